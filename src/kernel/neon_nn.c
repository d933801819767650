/* The small steps on NEON: four registers hold the 16 lanes of A1. */
#include "kernel/neon_math.h"
#include "kernel/nn_body.h"

void nb_kernels_neon_nn(nb_kernels *k)
{
    fill_nn(k);
}
