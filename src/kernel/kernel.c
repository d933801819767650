/* See kernel.h. */
#include "kernel/kernel.h"

const char *nb_kv_format_name(nb_kv_format f)
{
    static const char *const names[] = {"f32", "f16",  "bf16",       "int8",
                                        "fp8", "int4", "int4_plain", "int2"};
    return names[f];
}

void nb_kernels_init(nb_kernels *k, unsigned allow)
{
    *k = (nb_kernels){.isa = nb_cpu_isa() & allow};
    nb_kernels_ref_dot(k); /* every slot, always */
    nb_kernels_ref_mm(k);
    nb_kernels_ref_nn(k);
    nb_kernels_ref_kv(k);
    nb_kernels_ref_attn(k);
    nb_kernels_ref_back(k);
#if defined(__x86_64__)
    if (k->isa & NB_ISA_AVX2) { /* then whatever beats it */
        nb_kernels_avx2_dot(k);
        nb_kernels_avx2_mm(k);
        nb_kernels_avx2_nn(k);
        nb_kernels_avx2_attn(k);
        nb_kernels_avx2_back(k);
    }
    if (k->isa & NB_ISA_AVX512) {
        nb_kernels_avx512_dot(k);
        nb_kernels_avx512_mm(k);
        nb_kernels_avx512_nn(k);
        nb_kernels_avx512_attn(k);
        nb_kernels_avx512_back(k);
    }
    if (k->isa & NB_ISA_BF16)
        nb_kernels_avx512bf16_mm(k);
    if (k->isa & NB_ISA_AMX)
        nb_kernels_amx_dot(k);
#elif defined(__aarch64__)
    if (k->isa & NB_ISA_NEON) {
        nb_kernels_neon_dot(k);
        nb_kernels_neon_pack(k);
        nb_kernels_neon_mm(k);
        nb_kernels_neon_nn(k);
        nb_kernels_neon_attn(k);
        nb_kernels_neon_back(k);
    }
#endif
#if defined(NIBBLE_PLANT_FAULT)
    nb_kernels_plant_fault(k);
#endif
}
