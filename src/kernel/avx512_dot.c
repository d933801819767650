/* The AVX-512 table of matrix products. */
#include "kernel/avx512_dot.h"

void nb_kernels_avx512_dot(nb_kernels *k)
{
    k->gemm_f = nb_avx512_gemm_f;
    k->gemm_i = nb_avx512_gemm_i;
    k->quantize_row = nb_avx512_quantize_row;
    k->pack_tile = nb_avx512_pack_tile;
}
