/* See arrival.h. */
#include "load/arrival.h"

#include "base/rng.h"
#include "kernel/math.h"

#include <assert.h>

/* Streams of the random numbers: one a gap, apart from those of prompts (prompt.c). */
#define ARRIVALS ((uint64_t)1 << 60)

/* Numbers of one gap, drawn one after the other. */
typedef struct {
    uint64_t seed, stream, index;
} source;

/* Uniform in (0, 1]: a logarithm may be taken of it. */
static double uniform(source *from)
{
    return 1.0 - nb_rng_uniform(from->seed, from->stream, from->index++);
}

/* By Box and Muller; the twin of each number is not used. */
static double normal(source *from)
{
    const double radius = sqrt(-2 * nb_log64(uniform(from)));
    double sine, cosine;
    nb_sincos64(2 * 3.14159265358979323846 * uniform(from), &sine, &cosine);
    return radius * cosine;
}

/* Marsaglia and Tsang, "A simple method for generating gamma variables", ACM TOMS 26 (2000), for
 * shape >= 1. A try succeeds 19 times of 20. */
static double gamma_of(source *from, double shape)
{
    const double d = shape - 1.0 / 3, c = 1 / sqrt(9 * d);
    for (;;) {
        const double x = normal(from), root = 1 + c * x;
        if (root <= 0)
            continue;
        const double v = root * root * root;
        if (nb_log64(uniform(from)) < 0.5 * x * x + d - d * v + d * nb_log64(v))
            return d * v;
    }
}

double nb_arrival_gap(uint64_t seed, int64_t i, double burstiness)
{
    assert(burstiness > 0);
    source from = {.seed = seed, .stream = ARRIVALS | (uint64_t)i};
    if (burstiness == 1)
        return -nb_log64(uniform(&from));
    if (burstiness > 1)
        return gamma_of(&from, burstiness) / burstiness;
    /* Below 1 by the same paper's section 6: one shape more, times a power of a uniform number. */
    const double more = gamma_of(&from, burstiness + 1);
    return more * nb_pow64(uniform(&from), 1 / burstiness) / burstiness;
}
