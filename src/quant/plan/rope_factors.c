/* See rope_factors.h. */
#include "quant/plan/rope_factors.h"

#include "model/rope.h"

#include <math.h>

/* What the scaling divides frequency i by, in binary64, in scratch[0, rot_dim / 2). */
static void divisors(const nb_config *c, double *scratch)
{
    const int64_t half = c->rot_dim / 2;
    double *plain = scratch, *scaled = scratch + half, factor;
    nb_config without = *c;
    without.rope.type = NB_ROPE_DEFAULT;
    nb_rope_frequencies(&without, c->n_ctx, NULL, plain, &factor);
    nb_rope_frequencies(c, c->n_ctx, NULL, scaled, &factor);
    for (int64_t i = 0; i < half; i++)
        plain[i] /= scaled[i];
}

void nb_rope_factors_of(const nb_config *c, float *factors, double *scratch)
{
    divisors(c, scratch);
    for (int64_t i = 0; i < c->rot_dim / 2; i++)
        factors[i] = (float)scratch[i];
}

/* Files are made by programs that compute frequencies in binary32. */
#define NEAR 2e-5

static bool agree(const nb_config *c, const float *factors, double *scratch)
{
    divisors(c, scratch);
    for (int64_t i = 0; i < c->rot_dim / 2; i++) {
        if (!(fabs((double)factors[i] - scratch[i]) <= NEAR * scratch[i]))
            return false;
    }
    return true;
}

bool nb_rope_factors_name(nb_config *c, const float *factors, double *scratch)
{
    /* Llama 3.1 to 3.3 have 1, 4 and 8,192 with factors of 8 and 32; its descendants change the
     * length they start from. */
    static const int64_t originals[] = {8192, 4096, 2048, 16384, 32768};
    nb_config named = *c;
    named.rope.type = NB_ROPE_LLAMA3;
    named.rope.low_freq_factor = 1;
    named.rope.high_freq_factor = 4;
    const double last = (double)factors[c->rot_dim / 2 - 1], whole = rint(last);
    if (!(last >= 1) || isinf(last))
        return false;
    named.rope.factor = fabs(last - whole) <= NEAR * whole ? whole : last;
    for (size_t i = 0; i < sizeof originals / sizeof *originals; i++) {
        named.rope.original_n_ctx = originals[i];
        if (agree(&named, factors, scratch)) {
            *c = named;
            return true;
        }
    }
    return false;
}
