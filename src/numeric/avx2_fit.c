/* Scans of searches for scales: the eight lanes of a sum are two registers. */
#include "numeric/fit_scan.h"

#include <immintrin.h>

typedef struct {
    __m256d u, uu, xu; /* four lanes of each */
} lanes;

static inline void add(lanes *to, const nb_fit_chunk *k, int i, __m256d inverse, __m256d base,
                       __m256d most)
{
    __m256d v = _mm256_add_pd(_mm256_mul_pd(_mm256_loadu_pd(k->x + i), inverse), base);
    v = _mm256_min_pd(_mm256_max_pd(v, _mm256_setzero_pd()), most); /* a NaN becomes 0 */
    v = _mm256_round_pd(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m256d pu = _mm256_mul_pd(_mm256_loadu_pd(k->p + i), v);
    to->u = _mm256_add_pd(to->u, pu);
    to->uu = _mm256_add_pd(to->uu, _mm256_mul_pd(pu, v));
    to->xu = _mm256_add_pd(to->xu, _mm256_mul_pd(_mm256_loadu_pd(k->px + i), v));
}

static double folded(__m256d low, __m256d high)
{
    const __m256d four = _mm256_add_pd(low, high);
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

void nb_fit_chunk_avx2(const nb_fit_chunk *k, const nb_fit_map *map, int n_maps, double top,
                       nb_fit_sums *out)
{
    const __m256d zero = _mm256_setzero_pd(), most = _mm256_set1_pd(top);
    for (int m = 0; m < n_maps; m++) {
        const __m256d inverse = _mm256_set1_pd(map[m].inverse), base = _mm256_set1_pd(map[m].base);
        lanes low = {zero, zero, zero}, high = low;
        for (int i = 0; i < k->n; i += 8) {
            add(&low, k, i, inverse, base, most);
            add(&high, k, i + 4, inverse, base, most);
        }
        out[m].u += folded(low.u, high.u);
        out[m].uu += folded(low.uu, high.uu);
        out[m].xu += folded(low.xu, high.xu);
    }
}
