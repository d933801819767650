/* Private to amx_*.c: the tile instructions, written out, because a compiler that does not know
 * tile registers must at least know that they read and write memory in order.
 *
 * There are eight registers of up to 16 rows of up to 64 bytes; the shape of each is part of the
 * thread's state (Intel SDM volume 1, chapter 18). A product C += A * B takes
 *
 *   A  [tokens][columns]        signed bytes, as a plane of activations lies in memory
 *   B  [columns / 4][16][4]     signed bytes: a panel of 16 weight rows, four columns to a dword
 *   C  [tokens][16]             int32, exact (modulo 2^32) */
#ifndef NB_KERNEL_AMX_TILE_H
#define NB_KERNEL_AMX_TILE_H

#include <assert.h>
#include <stdint.h>

/* What ldtilecfg reads. */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_shapes;
static_assert(sizeof(tile_shapes) == 64, "the layout is the processor's");

#define TILE_SHAPES(shapes) __asm__ volatile("ldtilecfg %0" ::"m"(*(shapes)))
#define TILE_RELEASE()      __asm__ volatile("tilerelease")
#define TILE_ZERO(c)        __asm__ volatile("tilezero %%tmm" #c ::)
/* Rows `stride` bytes apart. */
#define TILE_LOAD(t, at, stride)                                                                   \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t ::"r"(at), "r"((int64_t)(stride)) : "memory")
#define TILE_STORE(t, at, stride)                                                                  \
    __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(at), "r"((int64_t)(stride))         \
                     : "memory")
/* c += a * b, bytes signed on both sides. */
#define TILE_DOT(c, a, b) __asm__ volatile("tdpbssd %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::)

#endif
