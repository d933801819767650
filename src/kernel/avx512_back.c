/* The backward pass's small steps on AVX-512. */
#include "kernel/avx512_math.h"
#include "kernel/back_body.h"

void nb_kernels_avx512_back(nb_kernels *k)
{
    fill_back(k);
}
