/* The small steps on AVX2: two registers hold the 16 lanes of A1. */
#include "kernel/avx2_math.h"
#include "kernel/nn_body.h"

void nb_kernels_avx2_nn(nb_kernels *k)
{
    fill_nn(k);
}
