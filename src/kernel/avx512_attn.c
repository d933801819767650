/* Attention on AVX-512: tiles of 12 rows by two registers, or 6 by four. */
#include "kernel/avx512_math.h"
#include "kernel/attn_body.h"

void nb_kernels_avx512_attn(nb_kernels *k)
{
    fill_attn(k);
}
