/* Registers of binary32 on AVX-512 as mm_body.h wants them: tiles of 12 rows by two registers of
 * sums, which leaves 8. Included once by a file. */
#include <immintrin.h>
#include <stdint.h>

#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif
#define INLINE static inline __attribute__((always_inline))

#define VF_LANES      16
#define SUB_ROWS      12
#define SUB_VECS      2
#define FOR_EACH_T(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12)

typedef __m512 vf;

INLINE vf vf_zero(void)
{
    return _mm512_setzero_ps();
}

INLINE vf vf_load(const float *p)
{
    return _mm512_loadu_ps(p);
}

INLINE void vf_store(float *p, vf v)
{
    _mm512_storeu_ps(p, v);
}

INLINE vf vf_set1(float x)
{
    return _mm512_set1_ps(x);
}

INLINE vf vf_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}

INLINE vf vf_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}
