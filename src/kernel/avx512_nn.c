/* The small steps on AVX-512: one register holds the 16 lanes of A1. */
#include "kernel/avx512_math.h"
#include "kernel/nn_body.h"

void nb_kernels_avx512_nn(nb_kernels *k)
{
    fill_nn(k);
}
