/* Tiles of general matrix products on AVX-512. */
#include "kernel/avx512_mm.h"

#define VD_LANES 8
typedef __m512d vd;

INLINE vd vd_load(const double *p)
{
    return _mm512_loadu_pd(p);
}

INLINE void vd_store(double *p, vd v)
{
    _mm512_storeu_pd(p, v);
}

INLINE vd vd_set1(double x)
{
    return _mm512_set1_pd(x);
}

INLINE vd vd_fma(vd a, vd b, vd c)
{
    return _mm512_fmadd_pd(a, b, c);
}

INLINE vd vd_fnma(vd a, vd b, vd c)
{
    return _mm512_fnmadd_pd(a, b, c);
}

INLINE void vf_add_widened(double *c, vf v)
{
    const vd low = _mm512_cvtps_pd(_mm512_castps512_ps256(v));
    const vd high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1));
    vd_store(c, _mm512_add_pd(vd_load(c), low));
    vd_store(c + VD_LANES, _mm512_add_pd(vd_load(c + VD_LANES), high));
}

INLINE void vf_axpy_rest(float *y, float a, const float *x, int64_t n)
{
    const __mmask16 mask = (__mmask16)((1u << n) - 1);
    const vf sum =
        _mm512_fmadd_ps(vf_set1(a), _mm512_maskz_loadu_ps(mask, x), _mm512_maskz_loadu_ps(mask, y));
    _mm512_mask_storeu_ps(y, mask, sum);
}

INLINE void vd_axpy_rest(double *y, double a, const double *x, int64_t n)
{
    const __mmask8 mask = (__mmask8)((1u << n) - 1);
    const vd sum =
        _mm512_fmadd_pd(vd_set1(a), _mm512_maskz_loadu_pd(mask, x), _mm512_maskz_loadu_pd(mask, y));
    _mm512_mask_storeu_pd(y, mask, sum);
}

#include "kernel/mm_body.h"

void nb_kernels_avx512_mm(nb_kernels *k)
{
    fill_mm(k);
}
