/* Scans of searches for scales: the eight lanes of a sum are one register, and the data of a chunk
 * come from the first cache once for each map. */
#include "numeric/fit_scan.h"

#include <immintrin.h>

static __m128d two_of(__m512d v)
{
    const __m256d four = _mm256_add_pd(_mm512_castpd512_pd256(v), _mm512_extractf64x4_pd(v, 1));
    return _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
}

void nb_fit_chunk_avx512(const nb_fit_chunk *k, const nb_fit_map *map, int n_maps, double top,
                         nb_fit_sums *out)
{
    const __m512d zero = _mm512_setzero_pd(), most = _mm512_set1_pd(top);
    for (int m = 0; m < n_maps; m++) {
        const __m512d inverse = _mm512_set1_pd(map[m].inverse), base = _mm512_set1_pd(map[m].base);
        __m512d u = zero, uu = zero, xu = zero;
        for (int i = 0; i < k->n; i += 8) {
            __m512d v = _mm512_add_pd(_mm512_mul_pd(_mm512_loadu_pd(k->x + i), inverse), base);
            v = _mm512_min_pd(_mm512_max_pd(v, zero), most); /* a NaN becomes the second: 0 */
            v = _mm512_roundscale_pd(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
            const __m512d pu = _mm512_mul_pd(_mm512_loadu_pd(k->p + i), v);
            u = _mm512_add_pd(u, pu);
            uu = _mm512_add_pd(uu, _mm512_mul_pd(pu, v));
            xu = _mm512_add_pd(xu, _mm512_mul_pd(_mm512_loadu_pd(k->px + i), v));
        }
        const __m128d u2 = two_of(u), uu2 = two_of(uu), xu2 = two_of(xu);
        const __m128d both = _mm_add_pd(_mm_unpacklo_pd(u2, uu2), _mm_unpackhi_pd(u2, uu2));
        out[m].u += _mm_cvtsd_f64(both);
        out[m].uu += _mm_cvtsd_f64(_mm_unpackhi_pd(both, both));
        out[m].xu += _mm_cvtsd_f64(_mm_add_sd(xu2, _mm_unpackhi_pd(xu2, xu2)));
    }
}
