/* What schemes lose: measured, or predicted from what is; see advise.h. */
#include "quant/advise/advise.h"

#include "kernel/math.h"

#include <math.h>
#include <string.h>

typedef enum { FLOAT16, SYM, ASYM, BLOCK, TABLE, A8 } family;
#define NONE NAN

static const struct {
    const char *scheme;
    int bits;
    family family;
    int group;
    double kl[3]; /* by rtn, gptq, autoround */
} known[NB_N_CANDIDATES] = {
#define X(scheme, bits, family, group, rtn, gptq, autoround)                                       \
    {scheme, bits, family, group, {rtn, gptq, autoround}},
#include "quant/advise/kl.def"
#undef X
};

const char *nb_advise_scheme(int i, int *bits)
{
    *bits = known[i].bits;
    return known[i].scheme;
}

/* Groups twice as long: from g32 to g64 the divergence grew by 23 % without zero points, by 33 %
 * with them. */
#define LOG_A_DOUBLING 0.245
/* A bit less doubles the step, and the divergence goes with its square. From 4 to 3 bits, in groups
 * of 64 with zero points, it grew 3.9 times. */
#define LOG_A_BIT 1.3862943611198906
/* Rows of SmolLM2-135M have 576 to 1536 columns: as long as that many doublings of a group of 32.
 */
#define ROW_DOUBLINGS 4.5

static double doublings(int group)
{
    return group == 0 ? ROW_DOUBLINGS : nb_log64(group / 32.0) / nb_log64(2);
}

/* From the nearest line of the family that was measured: bits count before groups. */
static double predict_rtn(int bits, family its, int group)
{
    int best = -1;
    double best_far = INFINITY;
    for (int i = 0; i < NB_N_CANDIDATES; i++) {
        const double far = 10.0 * fabs((double)known[i].bits - bits) +
                           fabs(doublings(known[i].group) - doublings(group));
        if (known[i].family != its || isnan(known[i].kl[0]) || far >= best_far)
            continue;
        best = i;
        best_far = far;
    }
    if (best < 0)
        return NAN;
    const double grown = LOG_A_BIT * (known[best].bits - bits) +
                         LOG_A_DOUBLING * (doublings(group) - doublings(known[best].group));
    return known[best].kl[0] * nb_exp64(grown);
}

/* What methods that learn from a text leave of the divergence of rounding to nearest: AWQ and
 * AutoRound at 4 bits left 0.46 and 0.31 of it, AutoRound at 2 bits 0.18; other programs' runs of
 * the methods, on the same model and text. At 8 bits there is nothing to gain that a table of
 * advice should promise. */
static double share_of(int method, int bits)
{
    if (method == 0 || bits >= 8)
        return 1;
    if (method == 1)
        return 0.46;
    return bits >= 4 ? 0.31 : bits == 3 ? 0.24 : 0.18;
}

static int place_of(const char *method)
{
    return strcmp(method, "gptq") == 0 ? 1 : strcmp(method, "autoround") == 0 ? 2 : 0;
}

nb_advise_loss nb_advise_loss_of(const char *scheme, const char *method)
{
    const int m = place_of(method);
    for (int i = 0; i < NB_N_CANDIDATES; i++) {
        if (strcmp(known[i].scheme, scheme) != 0)
            continue;
        if (!isnan(known[i].kl[m]))
            return (nb_advise_loss){known[i].kl[m], true};
        const double rtn = isnan(known[i].kl[0])
                               ? predict_rtn(known[i].bits, known[i].family, known[i].group)
                               : known[i].kl[0];
        return (nb_advise_loss){rtn * share_of(m, known[i].bits), false};
    }
    return (nb_advise_loss){NAN, false};
}

nb_advise_loss nb_advise_loss_like(int bits, bool zeros, int64_t group, bool calibrated)
{
    const int longest = 1 << 20, g = group > longest ? longest : (int)group;
    const double rtn = bits >= 16 ? 0 : predict_rtn(bits, zeros ? ASYM : SYM, g < 0 ? 0 : g);
    return (nb_advise_loss){rtn * share_of(calibrated, bits), false};
}
