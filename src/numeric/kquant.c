/* GGUF's K-quants: super-blocks of 256 codes whose small blocks have integer scales of their own
 * under one f16 scale, and integer minima under another where a format has them. An encoder has to
 * search for these, because they depend on each other (fit_super.c); q4_k has one, the others are
 * read only.
 *
 * Products of the parameters are exact in binary32 (an f16 has 11 significant bits, the integers
 * at most 8), and so is scale * code, so a value is one rounding at most and
 *
 *   q2_k q4_k q5_k   value = scale * code + min,   scale = d * sc, min = -(dmin * mn)
 *   q3_k q6_k        value = scale * code,         scale = d * sc
 *
 * is what ggml computes. */
#include "numeric/fit_super.h"
#include "numeric/minifloat.h"

#include <assert.h>
#include <string.h>

#define SUPER 256

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
} q2_k_block;
static_assert(sizeof(q2_k_block) == 84, "a super-block is 84 bytes, with no padding");

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
} q3_k_block;
static_assert(sizeof(q3_k_block) == 110, "a super-block is 110 bytes, with no padding");

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
} q4_k_block;
static_assert(sizeof(q4_k_block) == 144, "a super-block is 144 bytes, with no padding");

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
} q5_k_block;
static_assert(sizeof(q5_k_block) == 176, "a super-block is 176 bytes, with no padding");

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
} q6_k_block;
static_assert(sizeof(q6_k_block) == 210, "a super-block is 210 bytes, with no padding");

/* ---- parameters ---- */

static void q2_k_parameters(const void *block, float *restrict scale, float *restrict min)
{
    const q2_k_block *b = block;
    const float d = nb_f16_to_f32(b->d), dmin = nb_f16_to_f32(b->dmin);
    for (int k = 0; k < 16; k++) {
        scale[k] = d * (float)(b->scales[k] & 15);
        min[k] = -(dmin * (float)(b->scales[k] >> 4));
    }
}

static void q3_k_parameters(const void *block, float *restrict scale, float *restrict min)
{
    (void)min;
    const q3_k_block *b = block;
    const float d = nb_f16_to_f32(b->d);
    for (int k = 0; k < 16; k++) {
        const int low = b->scales[k % 8] >> k / 8 * 4 & 15;
        const int top = b->scales[8 + k % 4] >> k / 4 * 2 & 3;
        scale[k] = d * (float)((low | top << 4) - 32);
    }
}

/* y[k] = factor * u[k]: integers and products are made side by side. */
static void eight_products(float *restrict y, uint64_t u, float factor)
{
    uint8_t byte[8];
    memcpy(byte, &u, sizeof byte);
    for (int k = 0; k < 8; k++)
        y[k] = factor * (float)byte[k];
}

static void six_bit_parameters(uint16_t d, uint16_t dmin, const uint8_t *scales, float *scale,
                               float *min)
{
    uint32_t a, z, low;
    memcpy(&a, scales, sizeof a);
    memcpy(&z, scales + 4, sizeof z);
    memcpy(&low, scales + 8, sizeof low);
    const uint32_t sc_high = (low & 0x0f0f0f0fu) | (a >> 2 & 0x30303030u);
    const uint32_t mn_high = (low >> 4 & 0x0f0f0f0fu) | (z >> 2 & 0x30303030u);
    eight_products(scale, (uint64_t)sc_high << 32 | (a & 0x3f3f3f3fu), nb_f16_to_f32(d));
    eight_products(min, (uint64_t)mn_high << 32 | (z & 0x3f3f3f3fu), -nb_f16_to_f32(dmin));
}

static void q4_k_parameters(const void *block, float *scale, float *min)
{
    const q4_k_block *b = block;
    six_bit_parameters(b->d, b->dmin, b->scales, scale, min);
}

static void q5_k_parameters(const void *block, float *scale, float *min)
{
    const q5_k_block *b = block;
    six_bit_parameters(b->d, b->dmin, b->scales, scale, min);
}

static void q6_k_parameters(const void *block, float *restrict scale, float *restrict min)
{
    (void)min;
    const q6_k_block *b = block;
    const float d = nb_f16_to_f32(b->d);
    for (int k = 0; k < 16; k++)
        scale[k] = d * (float)b->scales[k];
}

/* ---- codes ---- */

/* 32 codes from two bits of each byte. */
static void crumbs(int8_t *restrict code, const uint8_t *restrict low, int shift)
{
    for (int l = 0; l < 32; l++)
        code[l] = (int8_t)(low[l] >> shift & 3);
}

static void q2_k_codes(const void *block, int8_t *code)
{
    const uint8_t *low = ((const q2_k_block *)block)->low;
    for (int k = 0; k < 8; k++)
        crumbs(code + 32 * k, low + k / 4 * 32, k % 4 * 2);
}

/* Bit `bit` of a byte moved up or down to bit 2 is 4 where it is set. */
static void subtract_unless(int8_t *restrict code, const uint8_t *restrict top, int bit)
{
    for (int l = 0; l < 32; l++)
        code[l] = (int8_t)(code[l] + (top[l] << 2 >> bit & 4) - 4);
}

static void q3_k_codes(const void *block, int8_t *code)
{
    const q3_k_block *b = block;
    for (int k = 0; k < 8; k++) {
        crumbs(code + 32 * k, b->low + k / 4 * 32, k % 4 * 2);
        subtract_unless(code + 32 * k, b->top, k);
    }
}

/* 64 codes: the low nibbles of 32 bytes, then the high ones. */
static void nibbles(int8_t *restrict code, const uint8_t *restrict low)
{
    for (int l = 0; l < 32; l++)
        code[l] = (int8_t)(low[l] & 15);
    for (int l = 0; l < 32; l++)
        code[l + 32] = (int8_t)(low[l] >> 4);
}

static void q4_k_codes(const void *block, int8_t *code)
{
    const q4_k_block *b = block;
    for (int k = 0; k < 4; k++)
        nibbles(code + 64 * k, b->low + 32 * k);
}

static void add_fifth_bit(int8_t *restrict code, const uint8_t *restrict high, int bit)
{
    for (int l = 0; l < 32; l++)
        code[l] = (int8_t)(code[l] | (high[l] >> bit & 1) << 4);
}

static void q5_k_codes(const void *block, int8_t *code)
{
    const q5_k_block *b = block;
    for (int k = 0; k < 4; k++)
        nibbles(code + 64 * k, b->low + 32 * k);
    for (int k = 0; k < 8; k++)
        add_fifth_bit(code + 32 * k, b->high, k);
}

static void q6_k_half(int8_t *restrict code, const uint8_t *restrict low,
                      const uint8_t *restrict high)
{
    for (int l = 0; l < 32; l++)
        code[l] = (int8_t)(((low[l] & 15) | (high[l] & 3) << 4) - 32);
    for (int l = 0; l < 32; l++)
        code[l + 32] = (int8_t)(((low[l + 32] & 15) | (high[l] & 12) << 2) - 32);
    for (int l = 0; l < 32; l++)
        code[l + 64] = (int8_t)((low[l] >> 4 | (high[l] & 48)) - 32);
    for (int l = 0; l < 32; l++)
        code[l + 96] = (int8_t)((low[l + 32] >> 4 | (high[l] & 192) >> 2) - 32);
}

static void q6_k_codes(const void *block, int8_t *code)
{
    const q6_k_block *b = block;
    q6_k_half(code, b->low, b->high);
    q6_k_half(code + SUPER / 2, b->low + 64, b->high + 32);
}

/* ---- rows, the same for all five: the functions, `len` and `has_min` are constants where these
 * are used ---- */

typedef void parameters_fn(const void *block, float *scale, float *min);
typedef void codes_fn(const void *block, int8_t *code);

#define ROWS static inline __attribute__((always_inline)) void

ROWS values_16(float *restrict y, const int8_t *restrict code, float scale)
{
    for (int l = 0; l < 16; l++)
        y[l] = scale * (float)code[l];
}

ROWS values_16_with_min(float *restrict y, const int8_t *restrict code, float scale, float min)
{
    for (int l = 0; l < 16; l++)
        y[l] = scale * (float)code[l] + min;
}

ROWS rows_decode(const nb_mat *m, int64_t r, float *y, parameters_fn *parameters, codes_fn *codes,
                 int len, bool has_min)
{
    assert(m->n_cols % SUPER == 0);
    const uint8_t *block = nb_mat_row(m, r);
    for (int64_t c = 0; c < m->n_cols; c += SUPER, block += m->fmt->block_bytes) {
        float scale[16], min[16];
        int8_t code[SUPER];
        parameters(block, scale, min);
        codes(block, code);
        for (int k = 0; k < SUPER; k += 16) {
            if (has_min)
                values_16_with_min(y + c + k, code + k, scale[k / len], min[k / len]);
            else
                values_16(y + c + k, code + k, scale[k / len]);
        }
    }
}

ROWS rows_int(const nb_mat *m, int64_t r, const nb_int_row *out, parameters_fn *parameters,
              codes_fn *codes, int len, bool has_min)
{
    assert(m->n_cols % SUPER == 0);
    const uint8_t *block = nb_mat_row(m, r);
    const int64_t n = m->n_cols / SUPER, per_block = SUPER / len;
    for (int64_t i = 0; i < n; i++, block += m->fmt->block_bytes) {
        parameters(block, out->scale + i * per_block, has_min ? out->min + i * per_block : NULL);
        codes(block, out->code + i * SUPER);
    }
}

/* ---- the grid of q4_k, and encoding through it ---- */

static void *super_at(const nb_mat *m, int64_t r, int64_t col)
{
    return (uint8_t *)nb_mat_row(m, r) + col / SUPER * m->fmt->block_bytes;
}

static void six_bit_pack(uint8_t *scales, const nb_super *s)
{
    for (int k = 0; k < 4; k++) {
        scales[k] = (uint8_t)(s->scale[k] | s->scale[k + 4] >> 4 << 6);
        scales[k + 4] = (uint8_t)(s->min[k] | s->min[k + 4] >> 4 << 6);
        scales[k + 8] = (uint8_t)((s->scale[k + 4] & 15) | (s->min[k + 4] & 15) << 4);
    }
}

static void q4_k_grid_shape(const nb_mat *m, nb_grid *grid)
{
    (void)m;
    *grid = (nb_grid){
        .n_levels = 16,
        .level = nb_grid_integers + 128,
        .uniform = true,
        .group_len = 32,
        .span_len = SUPER,
    };
}

static void q4_k_grid_fit(const nb_grid *grid, nb_mat *m, int64_t r, int64_t col, const float *w,
                          const float *importance, int64_t n, nb_fit fit)
{
    (void)grid;
    assert(n == SUPER);
    static const nb_super_form form = {
        .n_groups = 8, .group_len = 32, .top = 15, .parameter_top = 63};
    nb_super s;
    if (fit == NB_FIT_ABSMAX)
        nb_super_extremes(&s, &form, w);
    else
        nb_super_search(&s, &form, w, importance);
    q4_k_block *b = super_at(m, r, col);
    b->d = nb_f16_from_f32(s.d);
    b->dmin = nb_f16_from_f32(s.dmin);
    six_bit_pack(b->scales, &s);
}

static void q4_k_grid_group_at(const nb_mat *m, int64_t r, int64_t col, nb_grid_group *out)
{
    float scale[8], min[8];
    q4_k_parameters(super_at(m, r, col), scale, min);
    *out = (nb_grid_group){.scale = scale[col % SUPER / 32], .offset = min[col % SUPER / 32]};
}

/* A group is the low or the high nibbles of its bytes. */
static void q4_k_grid_put(nb_mat *m, int64_t r, int64_t col, const uint8_t *code, int64_t n)
{
    for (int64_t c = col; c < col + n; c += 32, code += 32) {
        q4_k_block *b = super_at(m, r, c);
        const int64_t k = c % SUPER / 32;
        const int shift = (int)(k % 2) * 4;
        uint8_t *low = b->low + k / 2 * 32;
        for (int l = 0; l < 32; l++)
            low[l] = (uint8_t)((low[l] & 0xf0 >> shift) | code[l] << shift);
    }
}

static const nb_grid_form q4_k_grid = {
    .shape = q4_k_grid_shape,
    .fit = q4_k_grid_fit,
    .group_at = q4_k_grid_group_at,
    .put = q4_k_grid_put,
};

static void q4_k_encode_row(nb_mat *m, int64_t r, const float *x)
{
    assert(m->n_cols % SUPER == 0);
    nb_grid grid;
    q4_k_grid_shape(m, &grid);
    for (int64_t c = 0; c < m->n_cols; c += SUPER)
        nb_grid_fit(&grid, m, r, c, x + c, NULL, NB_FIT_SEARCH);
    nb_grid_round_row(&grid, m, r, x);
}

/* ---- the formats ---- */

/* X(name, ggml's type id, bits of a code, least code, columns to a scale, has minima, its encoder,
 * its grid). A scale is a product of up to 18 significant bits, more than a 16-bit type holds. */
#define K_FORMATS(X)                                                                               \
    X(q2_k, 10, 2, 0, 16, true, NULL, NULL)                                                        \
    X(q3_k, 11, 3, -4, 16, false, NULL, NULL)                                                      \
    X(q4_k, 12, 4, 0, 32, true, q4_k_encode_row, &q4_k_grid)                                       \
    X(q5_k, 13, 5, 0, 32, true, NULL, NULL)                                                        \
    X(q6_k, 14, 6, -32, 16, false, NULL, NULL)

#define X(id, ggml, width, least, len, minimum, encoder, its_grid)                                 \
    static void id##_decode_row(const nb_mat *m, int64_t r, float *y)                              \
    {                                                                                              \
        rows_decode(m, r, y, id##_parameters, id##_codes, len, minimum);                           \
    }                                                                                              \
    static void id##_int_row(const nb_mat *m, int64_t r, const nb_int_row *out)                    \
    {                                                                                              \
        rows_int(m, r, out, id##_parameters, id##_codes, len, minimum);                            \
    }                                                                                              \
    static void id##_int_form(const nb_mat *m, nb_int_form *form)                                  \
    {                                                                                              \
        (void)m;                                                                                   \
        *form = (nb_int_form){                                                                     \
            .segment_len = (len),                                                                  \
            .code_lo = (least),                                                                    \
            .code_hi = (least) + (1 << (width)) - 1,                                               \
            .has_min = (minimum),                                                                  \
            .scale_type = NB_F32,                                                                  \
        };                                                                                         \
    }                                                                                              \
    const nb_format nb_format_##id = {                                                             \
        .name = #id,                                                                               \
        .ggml_type = (ggml),                                                                       \
        .block_len = SUPER,                                                                        \
        .block_bytes = sizeof(id##_block),                                                         \
        .bits = (width),                                                                           \
        .decode_row = id##_decode_row,                                                             \
        .encode_row = encoder,                                                                     \
        .int_form = id##_int_form,                                                                 \
        .int_row = id##_int_row,                                                                   \
        .grid = its_grid,                                                                          \
    };
K_FORMATS(X)
#undef X
