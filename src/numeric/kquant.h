/* How the super-blocks of GGUF's K-quants lie in memory: what decoding (kquant.c) and encoding
 * (kquant_grid.c) share. */
#ifndef NB_NUMERIC_KQUANT_H
#define NB_NUMERIC_KQUANT_H

#include "numeric/grid.h"

#include <assert.h>

#define NB_SUPER_LEN 256 /* codes of a super-block */

/* q2_k: sixteen blocks of 16, each with a 4-bit scale and a 4-bit minimum; 2.625 bits per weight.
 *
 *   byte   0 ... 15 | 16 ... 79 | 80 81 | 82 83
 *        [  scales  ][   low    ][  d   ][ dmin ]          scales, bits 7..4: mn, 3..0: sc
 *
 * Each half of 128 codes has 32 bytes of `low`: code l + 32g of a half, l = 0..31, is in bits
 * 2g and 2g + 1 of byte l. */
typedef struct {
    uint8_t scales[16];
    uint8_t low[64];
    uint16_t d, dmin;
} nb_q2_k_block;
static_assert(sizeof(nb_q2_k_block) == 84, "a super-block is 84 bytes, with no padding");

/* q3_k: sixteen blocks of 16, each with a signed 6-bit scale; codes -4..3; 3.4375 bits per weight.
 *
 *   byte   0 ... 31 | 32 ... 95 | 96 ... 107 | 108 109
 *        [   top    ][   low    ][  scales   ][   d    ]
 *
 * The low two bits of a code lie as in q2_k. Its third, set where 4 is not to be subtracted, is in
 * byte l of `top`: bit g for the first half, bit 4 + g for the second. The twelve bytes of scales,
 * stored with 32 added:
 *
 *   bit          7 6         5 4        3 2        1 0
 *   byte j     [  sc j+8, low 4 bits ][  sc j, low 4 bits ]         j = 0..7
 *   byte 8+j   [ sc j+12 |  sc j+8  |  sc j+4  |  sc j  ]           j = 0..3: the top two bits */
typedef struct {
    uint8_t top[32];
    uint8_t low[64];
    uint8_t scales[12];
    uint16_t d;
} nb_q3_k_block;
static_assert(sizeof(nb_q3_k_block) == 110, "a super-block is 110 bytes, with no padding");

/* q4_k: eight blocks of 32, each with a 6-bit scale and a 6-bit minimum; 4.5 bits per weight.
 *
 *   byte   0  1 | 2    3 | 4   ...   15 | 16 ... 143
 *        [   d  ][ dmin ][ scales, mins ][   low    ]
 *
 * Blocks 2k and 2k+1 have their codes in the low and the high nibbles of bytes 32k..32k+31 of
 * `low`. The twelve bytes of scales sc and minima mn:
 *
 *   bit         7 6            5 ... 0
 *   byte k    [ sc k+4, high |  sc k  ]      k = 0..3
 *   byte k+4  [ mn k+4, high |  mn k  ]
 *
 *   bit         7 ... 4        3 ... 0
 *   byte k+8  [ mn k+4, low | sc k+4, low ] */
typedef struct {
    uint16_t d, dmin;
    uint8_t scales[12];
    uint8_t low[128];
} nb_q4_k_block;
static_assert(sizeof(nb_q4_k_block) == 144, "a super-block is 144 bytes, with no padding");

/* q5_k: as q4_k, with a fifth bit; 5.5 bits per weight.
 *
 *   byte   0  1 | 2    3 | 4   ...   15 | 16 ... 47 | 48 ... 175
 *        [   d  ][ dmin ][ scales, mins ][   high  ][    low    ]
 *
 * The fifth bit of code l of block k is bit k of byte l of `high`. */
typedef struct {
    uint16_t d, dmin;
    uint8_t scales[12];
    uint8_t high[32];
    uint8_t low[128];
} nb_q5_k_block;
static_assert(sizeof(nb_q5_k_block) == 176, "a super-block is 176 bytes, with no padding");

/* q6_k: sixteen blocks of 16, each with a signed 8-bit scale; codes -32..31 stored with 32 added;
 * 6.5625 bits per weight.
 *
 *   byte   0 ... 127 | 128 ... 191 | 192 ... 207 | 208 209
 *        [    low    ][    high    ][   scales   ][   d    ]
 *
 * Each half of 128 codes has 64 bytes of `low` and 32 of `high`. Code l + 32g of a half, l = 0..31:
 *
 *   g            0               1                2                3
 *   low 4 bits   low[l] & 15     low[l+32] & 15   low[l] >> 4      low[l+32] >> 4
 *   top 2 bits   high[l] bits 0  bits 2           bits 4           bits 6           (and one up) */
typedef struct {
    uint8_t low[128];
    uint8_t high[64];
    int8_t scales[16];
    uint16_t d;
} nb_q6_k_block;
static_assert(sizeof(nb_q6_k_block) == 210, "a super-block is 210 bytes, with no padding");

/* Their grids, and encoders that search for the scales of least squared error. */
extern const nb_grid_form nb_q2_k_grid;
extern const nb_grid_form nb_q3_k_grid;
extern const nb_grid_form nb_q4_k_grid;
extern const nb_grid_form nb_q5_k_grid;
extern const nb_grid_form nb_q6_k_grid;
void nb_q2_k_encode_row(nb_mat *m, int64_t r, const float *x);
void nb_q3_k_encode_row(nb_mat *m, int64_t r, const float *x);
void nb_q4_k_encode_row(nb_mat *m, int64_t r, const float *x);
void nb_q5_k_encode_row(nb_mat *m, int64_t r, const float *x);
void nb_q6_k_encode_row(nb_mat *m, int64_t r, const float *x);

#endif
