/* Attention on NEON: tiles of 6 rows by four registers. */
#include "kernel/neon_math.h"
#include "kernel/attn_body.h"

void nb_kernels_neon_attn(nb_kernels *k)
{
    fill_attn(k);
}
