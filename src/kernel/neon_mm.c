/* Tiles of general matrix products on NEON: 6 rows by four registers of sums, which leaves 8. */
#include <arm_neon.h>
#include <math.h>
#include <stdint.h>

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 24")
#endif
#define INLINE static inline __attribute__((always_inline))

#define VF_LANES      4
#define VD_LANES      2
#define SUB_ROWS      6
#define SUB_VECS      4
#define FOR_EACH_T(X) X(1) X(2) X(3) X(4) X(5) X(6)

typedef float32x4_t vf;
typedef float64x2_t vd;

INLINE vf vf_zero(void)
{
    return vdupq_n_f32(0);
}

INLINE vf vf_load(const float *p)
{
    return vld1q_f32(p);
}

INLINE void vf_store(float *p, vf v)
{
    vst1q_f32(p, v);
}

INLINE vf vf_set1(float x)
{
    return vdupq_n_f32(x);
}

INLINE vf vf_add(vf a, vf b)
{
    return vaddq_f32(a, b);
}

INLINE vf vf_fma(vf a, vf b, vf c)
{
    return vfmaq_f32(c, a, b);
}

INLINE vd vd_load(const double *p)
{
    return vld1q_f64(p);
}

INLINE void vd_store(double *p, vd v)
{
    vst1q_f64(p, v);
}

INLINE vd vd_set1(double x)
{
    return vdupq_n_f64(x);
}

INLINE vd vd_fma(vd a, vd b, vd c)
{
    return vfmaq_f64(c, a, b);
}

INLINE vd vd_fnma(vd a, vd b, vd c)
{
    return vfmsq_f64(c, a, b);
}

INLINE void vf_add_widened(double *c, vf v)
{
    vd_store(c, vaddq_f64(vd_load(c), vcvt_f64_f32(vget_low_f32(v))));
    vd_store(c + VD_LANES, vaddq_f64(vd_load(c + VD_LANES), vcvt_high_f64_f32(v)));
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

void nb_kernels_neon_mm(nb_kernels *k)
{
    fill_mm(k);
}
