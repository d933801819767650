/* Attention on AVX2: tiles of 6 rows by two registers. */
#include "kernel/avx2_math.h"
#include "kernel/attn_body.h"

void nb_kernels_avx2_attn(nb_kernels *k)
{
    fill_attn(k);
}
