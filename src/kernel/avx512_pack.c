/* Packing of activations, AVX-512. */
#include "kernel/avx512_dot.h"
#include "kernel/group_scale.h"

bool nb_avx512_quantize_row(const float *x, int64_t n, int64_t group, int8_t *hi, int8_t *lo,
                            float *scale)
{
    const float qmax = lo == NULL ? 127.0f : 32639.0f;
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    bool finite = true;
    for (int64_t g = 0; g * group < n; g++) {
        const int64_t begin = g * group, end = begin + group < n ? begin + group : n;
        __m512i most = _mm512_setzero_si512();
        for (int64_t k = begin; k < end; k += 16) {
            const __mmask16 in = lanes(end - k);
            const __m512i bits = _mm512_castps_si512(_mm512_maskz_loadu_ps(in, x + k));
            most = _mm512_max_epi32(most, _mm512_and_si512(bits, magnitude));
        }
        const int32_t bits = _mm512_reduce_max_epi32(most);
        float inv;
        const bool good = group_scale(bits, qmax, &scale[g], &inv);
        finite = finite && good;
        const __m512 inv16 = _mm512_set1_ps(inv);
        const __m512i most_code = _mm512_set1_epi32((int)qmax);
        for (int64_t k = begin; k < end; k += 16) {
            const __mmask16 in = lanes(end - k);
            __m512 v = _mm512_maskz_loadu_ps(in, x + k);
            if (!good)
                v = _mm512_setzero_ps();
            __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(v, inv16)); /* nearest even */
            q = _mm512_max_epi32(_mm512_min_epi32(q, most_code),
                                 _mm512_sub_epi32(_mm512_setzero_si512(), most_code));
            if (lo != NULL) {
                const __m512i high =
                    _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(128)), 8);
                const __m512i low = _mm512_sub_epi32(q, _mm512_slli_epi32(high, 8));
                _mm512_mask_cvtepi32_storeu_epi8(lo + k, in, low);
                q = high;
            }
            _mm512_mask_cvtepi32_storeu_epi8(hi + k, in, q);
        }
    }
    return finite;
}
