/* The limit of AMX: products of whole tiles, six sums in turn, both operands staying where they
 * are. Everything else is as with AVX-512. */
#include "kernel/amx_tile.h"
#include "kernel/limits.h"

#include <string.h>

#define CHAINS 6

static uint16_t int8_run(int64_t n_steps)
{
    _Alignas(64) int8_t ones[16 * 64];
    _Alignas(64) int32_t sums[16 * 16];
    memset(ones, 1, sizeof ones);
    tile_shapes shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        shapes.row_bytes[i] = 64;
        shapes.rows[i] = 16;
    }
    TILE_SHAPES(&shapes);
    TILE_LOAD(6, ones, 64);
    TILE_LOAD(7, ones, 64);
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
    TILE_ZERO(4);
    TILE_ZERO(5);
    for (int64_t i = 0; i < n_steps; i++) {
        TILE_DOT(0, 6, 7);
        TILE_DOT(1, 6, 7);
        TILE_DOT(2, 6, 7);
        TILE_DOT(3, 6, 7);
        TILE_DOT(4, 6, 7);
        TILE_DOT(5, 6, 7);
    }
    int32_t all = 0;
#define ADD(c)                                                                                     \
    do {                                                                                           \
        TILE_STORE(c, sums, 64);                                                                   \
        all += sums[0];                                                                            \
    } while (0)
    ADD(0);
    ADD(1);
    ADD(2);
    ADD(3);
    ADD(4);
    ADD(5);
#undef ADD
    TILE_RELEASE();
    return (uint16_t)all;
}

void nb_limits_amx(nb_limit_loops *loops)
{
    loops->int8 = (nb_peak_loop){"tdpbssd", 256, CHAINS * 32768, int8_run};
}
