/* The rotation of heads that are stored in few bits: it spreads what one dimension holds over all,
 * so that no outlier takes the range of the others (arXiv:2404.00456, section 4). */
#ifndef NB_KERNEL_HADAMARD_H
#define NB_KERNEL_HADAMARD_H

#include <math.h>
#include <stdint.h>

/* x = H x / sqrt(n), n a power of two, H in Sylvester's order: pairs (a, b) become (a + b, a - b)
 * at distance 1, 2, 4 ..., then all are multiplied by fl(1 / sqrt(n)). It is its own inverse. */
static inline void nb_hadamard(float *x, int64_t n)
{
    for (int64_t half = 1; half < n; half *= 2) {
        for (int64_t i = 0; i < n; i += 2 * half) {
            for (int64_t j = i; j < i + half; j++) {
                const float a = x[j], b = x[j + half];
                x[j] = a + b;
                x[j + half] = a - b;
            }
        }
    }
    const float unit = 1.0f / sqrtf((float)n);
    for (int64_t i = 0; i < n; i++)
        x[i] *= unit;
}

#endif
