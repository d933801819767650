/* Tiles of general matrix products on AVX2: 6 rows by two registers of sums, which leaves 4. */
#include <immintrin.h>
#include <math.h>
#include <stdint.h>

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 24")
#endif
#define INLINE static inline __attribute__((always_inline))

#define VF_LANES      8
#define VD_LANES      4
#define SUB_ROWS      6
#define SUB_VECS      2
#define FOR_EACH_T(X) X(1) X(2) X(3) X(4) X(5) X(6)

typedef __m256 vf;
typedef __m256d vd;

INLINE vf vf_zero(void)
{
    return _mm256_setzero_ps();
}

INLINE vf vf_load(const float *p)
{
    return _mm256_loadu_ps(p);
}

INLINE void vf_store(float *p, vf v)
{
    _mm256_storeu_ps(p, v);
}

INLINE vf vf_set1(float x)
{
    return _mm256_set1_ps(x);
}

INLINE vf vf_add(vf a, vf b)
{
    return _mm256_add_ps(a, b);
}

INLINE vf vf_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}

INLINE vd vd_load(const double *p)
{
    return _mm256_loadu_pd(p);
}

INLINE void vd_store(double *p, vd v)
{
    _mm256_storeu_pd(p, v);
}

INLINE vd vd_set1(double x)
{
    return _mm256_set1_pd(x);
}

INLINE vd vd_fma(vd a, vd b, vd c)
{
    return _mm256_fmadd_pd(a, b, c);
}

INLINE vd vd_fnma(vd a, vd b, vd c)
{
    return _mm256_fnmadd_pd(a, b, c);
}

INLINE void vf_add_widened(double *c, vf v)
{
    const vd low = _mm256_cvtps_pd(_mm256_castps256_ps128(v));
    const vd high = _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1));
    vd_store(c, _mm256_add_pd(vd_load(c), low));
    vd_store(c + VD_LANES, _mm256_add_pd(vd_load(c + VD_LANES), high));
}

INLINE void vf_axpy_rest(float *y, float a, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = fmaf(a, x[i], y[i]);
}

INLINE void vd_axpy_rest(double *y, double a, const double *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = fma(a, x[i], y[i]);
}

#include "kernel/mm_body.h"

void nb_kernels_avx2_mm(nb_kernels *k)
{
    fill_mm(k);
}
