/* The backward pass's small steps on NEON. */
#include "kernel/neon_math.h"
#include "kernel/back_body.h"

void nb_kernels_neon_back(nb_kernels *k)
{
    fill_back(k);
}
