/* See cpu.h. CPUID says what the processor has; XGETBV says which registers the operating system
 * saves. An instruction set is ours only if both agree. */
#define _GNU_SOURCE /* syscall */
#include "kernel/cpu.h"

#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

static uint64_t xgetbv0(void)
{
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return (uint64_t)hi << 32 | lo;
}

static bool has(unsigned word, unsigned bits)
{
    return (word & bits) == bits;
}

/* Tiles are 8 KiB of state that the operating system keeps for a thread only after its process
 * has asked (Linux 5.16; Documentation/arch/x86/xstate.rst). Asking again does nothing. */
static bool tiles_granted(void)
{
#if defined(__linux__)
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
    return false;
#endif
}

unsigned nb_cpu_isa(void)
{
    /* SDM volume 1, 14.3 and 15.2. XCR0: 1 SSE, 2 AVX, 5 opmask, 6 and 7 the ZMM halves,
     * 17 and 18 the tiles' shapes and contents. Leaf 7, EDX: 24 AMX-TILE, 25 AMX-INT8. */
    const unsigned leaf1_c = bit_FMA | bit_OSXSAVE | bit_AVX | bit_F16C;
    const unsigned leaf7_b512 = bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL;
    const unsigned leaf7_d_amx = 1u << 24 | 1u << 25;
    const uint64_t ymm = 0x06, zmm = 0xe6, tiles = 0x60000;

    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !has(c, leaf1_c))
        return NB_ISA_SCALAR;
    const uint64_t saved = xgetbv0();
    if ((saved & ymm) != ymm || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !has(b, bit_AVX2))
        return NB_ISA_SCALAR;
    unsigned isa = NB_ISA_AVX2;
    if ((saved & zmm) == zmm && has(b, leaf7_b512) && has(c, bit_AVX512VNNI))
        isa |= NB_ISA_AVX512;
    unsigned a1, b1, c1, d1; /* leaf 7, 1, EAX: 5 AVX512_BF16 */
    if ((isa & NB_ISA_AVX512) && a >= 1 && __get_cpuid_count(7, 1, &a1, &b1, &c1, &d1) &&
        has(a1, 1u << 5))
        isa |= NB_ISA_BF16;
    if ((isa & NB_ISA_AVX512) && (saved & tiles) == tiles && has(d, leaf7_d_amx) && tiles_granted())
        isa |= NB_ISA_AMX;
    return isa;
}
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>

/* The vector registers belong to the architecture; the dot products are an extension, and without
 * them the scalar reference runs. */
unsigned nb_cpu_isa(void)
{
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP ? NB_ISA_NEON : NB_ISA_SCALAR;
}
#else
unsigned nb_cpu_isa(void)
{
    return NB_ISA_SCALAR;
}
#endif

/* From least to most; the last is what the machine decides. */
static const struct {
    const char *name;
    unsigned mask;
} isas[] = {
    {"scalar", NB_ISA_SCALAR},
    {"avx2", NB_ISA_AVX2},
    {"avx512", NB_ISA_AVX2 | NB_ISA_AVX512},
    {"amx", NB_ISA_AVX2 | NB_ISA_AVX512 | NB_ISA_AMX},
    {"neon", NB_ISA_NEON},
    {"auto", NB_ISA_ALL},
};
enum { N_ISAS = sizeof isas / sizeof *isas };

nb_status nb_isa_parse(const char *name, unsigned *mask, nb_err *err)
{
    for (int i = 0; i < N_ISAS; i++) {
        if (strcmp(name, isas[i].name) == 0) {
            *mask = isas[i].mask;
            return NB_OK;
        }
    }
    return nb_fail(err, NB_USAGE,
                   "no instruction set '%s': there are scalar, avx2, avx512, amx, neon, auto",
                   name);
}

nb_status nb_isa_choose(const char *name, unsigned *mask, nb_err *err)
{
    unsigned wanted;
    NB_TRY(nb_isa_parse(name, &wanted, err));
    const unsigned here = nb_cpu_isa();
    if (wanted != NB_ISA_ALL && (wanted & ~here) != 0)
        return nb_fail(err, NB_USAGE, "this machine has no %s: its best is %s", name,
                       nb_isa_name(here));
    *mask = wanted;
    return NB_OK;
}

const char *nb_isa_name(unsigned isa)
{
    return isa & NB_ISA_AMX      ? "amx"
           : isa & NB_ISA_AVX512 ? "avx512"
           : isa & NB_ISA_AVX2   ? "avx2"
           : isa & NB_ISA_NEON   ? "neon"
                                 : "scalar";
}
