/* The backward pass's small steps on AVX2. */
#include "kernel/avx2_math.h"
#include "kernel/back_body.h"

void nb_kernels_avx2_back(nb_kernels *k)
{
    fill_back(k);
}
