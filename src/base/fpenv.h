/* The floating-point environment of the arithmetic contract (design.md, A0): round to nearest
 * even, subnormals kept, exceptions masked. A host program may have set flush-to-zero. */
#ifndef NB_BASE_FPENV_H
#define NB_BASE_FPENV_H

#include <assert.h>
#include <float.h>
#include <stdint.h>

static_assert(FLT_EVAL_METHOD == 0, "float arithmetic must not use wider registers");

#if defined(__x86_64__)
#include <immintrin.h>
static inline uint64_t nb_fpenv_enter(void)
{
    const unsigned before = _mm_getcsr();
    if ((before & ~0x3fu) != 0x1f80u)
        _mm_setcsr(0x1f80u);
    return before;
}
static inline void nb_fpenv_leave(uint64_t before)
{
    if (((before ^ _mm_getcsr()) & ~0x3fu) != 0)
        _mm_setcsr((unsigned)before);
}
#elif defined(__aarch64__)
static inline uint64_t nb_fpenv_enter(void)
{
    uint64_t before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    if (before != 0)
        __asm__ volatile("msr fpcr, %0" ::"r"((uint64_t)0));
    return before;
}
static inline void nb_fpenv_leave(uint64_t before)
{
    uint64_t now;
    __asm__ volatile("mrs %0, fpcr" : "=r"(now));
    if (now != before)
        __asm__ volatile("msr fpcr, %0" ::"r"(before));
}
#else
static inline uint64_t nb_fpenv_enter(void)
{
    return 0;
}
static inline void nb_fpenv_leave(uint64_t before)
{
    (void)before;
}
#endif

#endif
