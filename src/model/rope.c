/* See rope.h. */
#include "model/rope.h"

#include "kernel/math.h"

#include <float.h>
#include <math.h>

#define PI 3.14159265358979323846

static double clamp01(double x)
{
    return x < 0 ? 0 : x > 1 ? 1 : x;
}

/* The dimension whose wave turns n times in the original context. */
static double yarn_dimension(double n, double d, double base, double original)
{
    return d * nb_log64(original / (2 * PI * n)) / (2 * nb_log64(base));
}

static double yarn_mscale(double factor, double m)
{
    return factor <= 1 ? 1 : 0.1 * m * nb_log64(factor) + 1;
}

static double yarn_factor(const nb_rope *r)
{
    if (r->attention_factor != 0)
        return r->attention_factor;
    if (r->mscale != 0 && r->mscale_all_dim != 0)
        return yarn_mscale(r->factor, r->mscale) / yarn_mscale(r->factor, r->mscale_all_dim);
    return yarn_mscale(r->factor, 1);
}

void nb_rope_frequencies(const nb_config *c, int64_t n_ctx, const float *factors, double *theta,
                         double *factor)
{
    const nb_rope *r = &c->rope;
    const double d = (double)c->rot_dim;
    double base = r->base;
    if (r->type == NB_ROPE_DYNAMIC && n_ctx > c->n_ctx)
        base *=
            nb_pow64(r->factor * (double)n_ctx / (double)c->n_ctx - (r->factor - 1), d / (d - 2));
    double low = 0, high = 0;
    *factor = 1;
    if (r->type == NB_ROPE_YARN) {
        low = yarn_dimension(r->beta_fast, d, base, (double)r->original_n_ctx);
        high = yarn_dimension(r->beta_slow, d, base, (double)r->original_n_ctx);
        if (r->truncate) {
            low = floor(low);
            high = -floor(-high);
        }
        low = low < 0 ? 0 : low;
        high = high > d - 1 ? d - 1 : high;
        if (low == high)
            high += 0.001;
        *factor = yarn_factor(r);
    }
    for (int64_t i = 0; i < c->rot_dim / 2; i++) {
        double t = 1 / nb_pow64(base, 2 * (double)i / d);
        switch (r->type) {
        case NB_ROPE_DEFAULT:
        case NB_ROPE_DYNAMIC:
            break;
        case NB_ROPE_LINEAR:
            t /= r->factor;
            break;
        case NB_ROPE_LLAMA3: {
            const double wave = 2 * PI / t, original = (double)r->original_n_ctx;
            if (wave > original / r->low_freq_factor) {
                t /= r->factor;
            } else if (wave >= original / r->high_freq_factor) {
                const double s = (original / wave - r->low_freq_factor) /
                                 (r->high_freq_factor - r->low_freq_factor);
                t = (1 - s) * t / r->factor + s * t;
            }
            break;
        }
        case NB_ROPE_YARN: {
            const double ramp = clamp01(((double)i - low) / (high - low));
            t = t / r->factor * ramp + t * (1 - ramp);
            break;
        }
        case NB_ROPE_FACTORS:
            t /= (double)factors[i];
            break;
        }
        theta[i] = t;
    }
}

/* Numbers that each looked possible may still make no rotation together. nb_sincos64 ends at 2^31.
 */
static nb_status check_table(const double *theta, int64_t half, double factor, int64_t n_ctx,
                             nb_err *err)
{
    for (int64_t i = 0; i < half; i++) {
        if (!(theta[i] >= 0 && theta[i] * (double)n_ctx <= 0x1p31))
            return nb_fail(err, NB_DATA,
                           "RoPE turns dimension %lld by %g a position, which over "
                           "%lld positions is no angle",
                           (long long)i, theta[i], (long long)n_ctx);
    }
    if (!(factor > 0 && factor <= (double)FLT_MAX))
        return nb_fail(err, NB_DATA, "the factor on RoPE's cos and sin is %g", factor);
    return NB_OK;
}

nb_status nb_rope_table_init(nb_rope_table *t, const nb_config *c, int64_t n_ctx,
                             const float *factors, nb_err *err)
{
    *t = (nb_rope_table){.n_positions = n_ctx, .half = c->rot_dim / 2};
    double *theta, factor;
    NB_TRY(NB_ALLOC(&theta, t->half, err));
    nb_rope_frequencies(c, n_ctx, factors, theta, &factor);
    nb_status s = check_table(theta, t->half, factor, n_ctx, err);
    if (s == NB_OK)
        s = nb_alloc((void **)&t->cos, (size_t)n_ctx, (size_t)t->half * sizeof(float), err);
    if (s == NB_OK)
        s = nb_alloc((void **)&t->sin, (size_t)n_ctx, (size_t)t->half * sizeof(float), err);
    for (int64_t p = 0; s == NB_OK && p < n_ctx; p++) {
        for (int64_t i = 0; i < t->half; i++) {
            double sine, cosine;
            nb_sincos64((double)p * theta[i], &sine, &cosine);
            t->cos[p * t->half + i] = (float)(cosine * factor);
            t->sin[p * t->half + i] = (float)(sine * factor);
        }
    }
    nb_free(theta);
    if (s != NB_OK)
        nb_rope_table_free(t);
    return s;
}

void nb_rope_table_free(nb_rope_table *t)
{
    nb_free(t->cos);
    nb_free(t->sin);
    *t = (nb_rope_table){0};
}
