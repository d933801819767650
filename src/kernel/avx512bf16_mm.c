/* Tiles of products in bfloat16 where the processor has the dot product of pairs. VDPBF16PS rounds
 * twice, the higher half first, each time as a fused multiply-add does; it takes and gives zeros
 * for denormal numbers, of which there are none (NB_BF16_SMALL). */
#include "kernel/avx512_mm.h"

#define VF_DOT2
INLINE vf vf_dot2(vf a, vf b, vf c)
{
    return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b);
}

#include "kernel/mm_pairs_body.h"

void nb_kernels_avx512bf16_mm(nb_kernels *k)
{
    fill_mm_pairs(k);
}
