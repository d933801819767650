/* The simple GGUF blocks: 32 codes under an f16 scale d, and an f16 minimum m where one is drawn.
 *
 *   value[j] = d * code[j]             q4_0 q5_0 q8_0    codes are signed
 *   value[j] = d * code[j] + m         q4_1 q5_1         codes are not
 *
 * d * code has at most 11 + 8 significant bits, so the product is exact in binary32 and the sum is
 * one rounding, fused or not.
 *
 * In 4 and 5 bits, the low four bits of codes j and j + 16 share byte j of `low`, as
 *
 *   bit    7        4 3        0
 *        [ code j+16 |  code j  ]
 *
 * and the fifth bit of code j is bit j of the 32-bit little-endian `high`. Signed codes are stored
 * with 8 (16) added.
 *
 * The encoders follow ggml's reference quantizers bit for bit: codes are taken with the scale in
 * binary32, and only then is it rounded to f16. Where ggml would store an infinite scale, the
 * largest f16 is stored and used instead, and the codes saturate. */
#include "numeric/fit.h"
#include "numeric/minifloat.h"

#include <assert.h>
#include <float.h>
#include <math.h>
#include <string.h>

#define BLOCK 32

/*   byte   0    1 | 2  ...  17
 *        [   d    ][   low    ]                        4.5 bits per weight */
typedef struct {
    uint16_t d;
    uint8_t low[16];
} q4_0_block;
static_assert(sizeof(q4_0_block) == 18, "a block is 18 bytes, with no padding");

/*   byte   0    1 | 2    3 | 4  ...  19
 *        [   d    ][   m   ][   low    ]               5 bits per weight */
typedef struct {
    uint16_t d, m;
    uint8_t low[16];
} q4_1_block;
static_assert(sizeof(q4_1_block) == 20, "a block is 20 bytes, with no padding");

/*   byte   0    1 | 2 ...  5 | 6  ...  21
 *        [   d    ][  high   ][   low    ]             5.5 bits per weight */
typedef struct {
    uint16_t d;
    uint8_t high[4];
    uint8_t low[16];
} q5_0_block;
static_assert(sizeof(q5_0_block) == 22, "a block is 22 bytes, with no padding");

/*   byte   0    1 | 2    3 | 4 ...  7 | 8  ...  23
 *        [   d    ][   m   ][  high   ][   low    ]    6 bits per weight */
typedef struct {
    uint16_t d, m;
    uint8_t high[4];
    uint8_t low[16];
} q5_1_block;
static_assert(sizeof(q5_1_block) == 24, "a block is 24 bytes, with no padding");

/*   byte   0    1 | 2   3  ...  33
 *        [   d    ][ c0  c1 ... c31 ]                  8.5 bits per weight */
typedef struct {
    uint16_t d;
    int8_t code[32];
} q8_0_block;
static_assert(sizeof(q8_0_block) == 34, "a block is 34 bytes, with no padding");

/* ---- unpacking: block to codes ---- */

static void low_unpack(int8_t *restrict code, const uint8_t *restrict low, int zero)
{
    for (int j = 0; j < 16; j++)
        code[j] = (int8_t)((low[j] & 15) - zero);
    for (int j = 0; j < 16; j++)
        code[j + 16] = (int8_t)((low[j] >> 4) - zero);
}

/* Adds 16 to the codes whose bit is set, eight at a time: a byte of `high` is copied into the eight
 * bytes of a word, of which each keeps its own bit, and adding 127 carries any bit into the top. */
static void high_unpack(int8_t *restrict code, const uint8_t *restrict high)
{
    for (int k = 0; k < 4; k++) {
        const uint64_t bits = high[k] * 0x0101010101010101u & 0x8040201008040201u;
        const uint64_t set = (bits + 0x7f7f7f7f7f7f7f7fu) & 0x8080808080808080u;
        uint64_t eight;
        memcpy(&eight, code + 8 * k, sizeof eight);
        eight |= set >> 3;
        memcpy(code + 8 * k, &eight, sizeof eight);
    }
}

static void subtract(int8_t *code, int zero)
{
    for (int j = 0; j < BLOCK; j++)
        code[j] = (int8_t)(code[j] - zero);
}

static void q4_0_unpack(const void *block, int8_t *code)
{
    low_unpack(code, ((const q4_0_block *)block)->low, 8);
}

static void q4_1_unpack(const void *block, int8_t *code)
{
    low_unpack(code, ((const q4_1_block *)block)->low, 0);
}

static void q5_0_unpack(const void *block, int8_t *code)
{
    low_unpack(code, ((const q5_0_block *)block)->low, 0);
    high_unpack(code, ((const q5_0_block *)block)->high);
    subtract(code, 16);
}

static void q5_1_unpack(const void *block, int8_t *code)
{
    low_unpack(code, ((const q5_1_block *)block)->low, 0);
    high_unpack(code, ((const q5_1_block *)block)->high);
}

static void q8_0_unpack(const void *block, int8_t *code)
{
    memcpy(code, ((const q8_0_block *)block)->code, BLOCK);
}

/* ---- rows, the same for all five: `unpack` and `has_min` are constants where these are used ----
 */

typedef void unpack_fn(const void *block, int8_t *code);

#define ROWS static inline __attribute__((always_inline)) void

static void values_scaled(float *restrict y, const int8_t *restrict code, float d)
{
    for (int j = 0; j < BLOCK; j++)
        y[j] = d * (float)code[j];
}

static void values_with_min(float *restrict y, const int8_t *restrict code, float d, float m)
{
    for (int j = 0; j < BLOCK; j++)
        y[j] = d * (float)code[j] + m;
}

/* All blocks begin with d, followed by m where there is one. */
static inline uint16_t half_bits(const uint8_t *block, int i)
{
    return ((const uint16_t *)(const void *)block)[i];
}

static inline float half_at(const uint8_t *block, int i)
{
    return nb_f16_to_f32(half_bits(block, i));
}

ROWS rows_decode(const nb_mat *m, int64_t r, float *y, unpack_fn *unpack, bool has_min)
{
    assert(m->n_cols % BLOCK == 0);
    const uint8_t *block = nb_mat_row(m, r);
    for (int64_t c = 0; c < m->n_cols; c += BLOCK, block += m->fmt->block_bytes) {
        int8_t code[BLOCK];
        unpack(block, code);
        if (has_min)
            values_with_min(y + c, code, half_at(block, 0), half_at(block, 1));
        else
            values_scaled(y + c, code, half_at(block, 0));
    }
}

/* Parameters are converted this many at a time, side by side. */
#define BATCH 16

static void halves_widen(float *restrict out, const uint16_t *restrict h, int64_t n)
{
    float wide[BATCH];
    for (int b = 0; b < BATCH; b++)
        wide[b] = nb_f16_to_f32(h[b]);
    memcpy(out, wide, (size_t)n * sizeof *wide);
}

ROWS rows_int(const nb_mat *m, int64_t r, const nb_int_row *out, unpack_fn *unpack, bool has_min)
{
    assert(m->n_cols % BLOCK == 0);
    const uint8_t *block = nb_mat_row(m, r);
    const int64_t n_blocks = m->n_cols / BLOCK;
    uint16_t d[BATCH] = {0}, min[BATCH] = {0};
    for (int64_t first = 0; first < n_blocks; first += BATCH) {
        const int64_t n = n_blocks - first < BATCH ? n_blocks - first : BATCH;
        for (int64_t b = 0; b < n; b++, block += m->fmt->block_bytes) {
            unpack(block, out->code + (first + b) * BLOCK);
            d[b] = half_bits(block, 0);
            if (has_min)
                min[b] = half_bits(block, 1);
        }
        halves_widen(out->scale + first, d, n);
        if (has_min)
            halves_widen(out->min + first, min, n);
    }
}

/* ---- encoding ---- */

/* Stores v as f16 and returns it as it was, or the largest f16 if v is beyond that. */
static float half_put(uint16_t *h, float v)
{
    const float kept = v > 65504.0f ? 65504.0f : v < -65504.0f ? -65504.0f : v;
    *h = nb_f16_from_f32(kept);
    return fabsf(v) < 65520.0f ? v : kept; /* up to there, v rounds to the largest by itself */
}

/* 1/d, and 0 where that is no number: d is then too small to be stored as anything but 0. */
static float inverse_or_zero(float d)
{
    const float inverse = d != 0 ? 1.0f / d : 0.0f;
    return fabsf(inverse) <= FLT_MAX ? inverse : 0.0f;
}

/* Magnitudes are compared as integers, which order the same way and vectorize. */
static int32_t magnitude_bits(float x)
{
    return (int32_t)(nb_f32_bits(x) & 0x7fffffffu);
}

static float absmax(const float *restrict x)
{
    int32_t largest = 0;
    for (int j = 0; j < BLOCK; j++)
        largest = magnitude_bits(x[j]) > largest ? magnitude_bits(x[j]) : largest;
    return nb_f32_from_bits((uint32_t)largest);
}

/* The element of the largest magnitude with its sign; of several, the first; +0 if all are 0. */
static float signed_absmax(const float *restrict x)
{
    const float amax = absmax(x);
    const int32_t largest = magnitude_bits(amax);
    int32_t from_end = 0;
    for (int j = 0; j < BLOCK; j++) {
        const int32_t candidate = magnitude_bits(x[j]) == largest ? BLOCK - j : 0;
        from_end = candidate > from_end ? candidate : from_end;
    }
    return amax == 0 ? 0.0f : x[BLOCK - from_end];
}

/* u[j] = trunc(x[j] * inverse + offset), in [0, top]. */
static void unsigned_codes(uint8_t *restrict u, const float *restrict x, float inverse,
                           float offset, float top)
{
    for (int j = 0; j < BLOCK; j++) {
        float v = x[j] * inverse + offset;
        v = v > 0 ? v : 0;
        v = v < top ? v : top;
        u[j] = (uint8_t)(int32_t)v;
    }
}

static void low_pack(uint8_t *restrict low, const uint8_t *restrict u)
{
    for (int j = 0; j < 16; j++)
        low[j] = (uint8_t)((u[j] & 15) | u[j + 16] << 4);
}

static void high_pack(uint8_t *restrict high, const uint8_t *restrict u)
{
    memset(high, 0, 4);
    for (int j = 0; j < BLOCK; j++)
        high[j / 8] |= (uint8_t)((u[j] >> 4 & 1) << j % 8);
}

static void q4_0_encode(void *out, const float *x)
{
    q4_0_block *b = out;
    uint8_t u[BLOCK];
    const float d = half_put(&b->d, signed_absmax(x) / -8.0f);
    unsigned_codes(u, x, inverse_or_zero(d), 8.5f, 15.0f);
    low_pack(b->low, u);
}

static void q5_0_encode(void *out, const float *x)
{
    q5_0_block *b = out;
    uint8_t u[BLOCK];
    const float d = half_put(&b->d, signed_absmax(x) / -16.0f);
    unsigned_codes(u, x, inverse_or_zero(d), 16.5f, 31.0f);
    low_pack(b->low, u);
    high_pack(b->high, u);
}

/* Chooses d and m of a block with a minimum; u as unsigned_codes of what lies above the minimum.
 * The least element is found in order: of +0 and -0, the first is kept. */
static void codes_above_min(uint16_t *d, uint16_t *m, uint8_t *u, const float *x, float top)
{
    float min = x[0], max = x[0];
    for (int j = 1; j < BLOCK; j++) {
        min = x[j] < min ? x[j] : min;
        max = x[j] > max ? x[j] : max;
    }
    const float scale = half_put(d, (max - min) / top), base = half_put(m, min);
    float above[BLOCK];
    for (int j = 0; j < BLOCK; j++)
        above[j] = x[j] - base;
    unsigned_codes(u, above, inverse_or_zero(scale), 0.5f, top);
}

static void q4_1_encode(void *out, const float *x)
{
    q4_1_block *b = out;
    uint8_t u[BLOCK];
    codes_above_min(&b->d, &b->m, u, x, 15.0f);
    low_pack(b->low, u);
}

static void q5_1_encode(void *out, const float *x)
{
    q5_1_block *b = out;
    uint8_t u[BLOCK];
    codes_above_min(&b->d, &b->m, u, x, 31.0f);
    low_pack(b->low, u);
    high_pack(b->high, u);
}

/* Halves are rounded away from zero: the fraction is compared, because adding 0.5 and truncating
 * would carry the number just below 0.5 up. */
static void round_away_codes(int8_t *restrict code, const float *restrict x, float inverse)
{
    for (int j = 0; j < BLOCK; j++) {
        const float v = x[j] * inverse;
        float magnitude = fabsf(v);
        magnitude = magnitude < 127.0f ? magnitude : 127.0f;
        const int32_t whole = (int32_t)magnitude;
        const int32_t rounded = whole + (magnitude - (float)whole >= 0.5f ? 1 : 0);
        code[j] = (int8_t)(v < 0 ? -rounded : rounded);
    }
}

static void q8_0_encode(void *out, const float *x)
{
    q8_0_block *b = out;
    const float d = half_put(&b->d, absmax(x) / 127.0f);
    round_away_codes(b->code, x, inverse_or_zero(d));
}

typedef void encode_fn(void *block, const float *x);

ROWS rows_encode(nb_mat *m, int64_t r, const float *x, encode_fn *encode)
{
    assert(m->n_cols % BLOCK == 0);
    uint8_t *block = nb_mat_row(m, r);
    for (int64_t c = 0; c < m->n_cols; c += BLOCK, block += m->fmt->block_bytes)
        encode(block, x + c);
}

/* ---- the grid ---- */

static void q4_0_pack(void *block, const uint8_t *u)
{
    low_pack(((q4_0_block *)block)->low, u);
}

static void q4_1_pack(void *block, const uint8_t *u)
{
    low_pack(((q4_1_block *)block)->low, u);
}

static void q5_0_pack(void *block, const uint8_t *u)
{
    low_pack(((q5_0_block *)block)->low, u);
    high_pack(((q5_0_block *)block)->high, u);
}

static void q5_1_pack(void *block, const uint8_t *u)
{
    low_pack(((q5_1_block *)block)->low, u);
    high_pack(((q5_1_block *)block)->high, u);
}

static void q8_0_pack(void *block, const uint8_t *u)
{
    for (int j = 0; j < BLOCK; j++)
        ((q8_0_block *)block)->code[j] = (int8_t)(u[j] - 127);
}

static void *block_at(const nb_mat *m, int64_t r, int64_t col)
{
    return (uint8_t *)nb_mat_row(m, r) + col / BLOCK * m->fmt->block_bytes;
}

typedef void pack_fn(void *block, const uint8_t *u);

ROWS blocks_put(nb_mat *m, int64_t r, int64_t col, const uint8_t *code, int64_t n, pack_fn *pack)
{
    assert(col % BLOCK == 0 && n % BLOCK == 0);
    uint8_t *block = block_at(m, r, col);
    for (int64_t c = 0; c < n; c += BLOCK, block += m->fmt->block_bytes)
        pack(block, code + c);
}

static void block_group_at(const nb_mat *m, int64_t r, int64_t col, bool has_min,
                           nb_grid_group *out)
{
    const uint8_t *block = block_at(m, r, col);
    *out = (nb_grid_group){.scale = half_at(block, 0), .offset = has_min ? half_at(block, 1) : 0};
}

/* Where a search finds no scale (a block of equal values), that of the encoder stays. */
static void block_search(void *block, const nb_fit_data *d, int least, int top, bool has_min)
{
    float min = 0;
    const float scale = has_min ? nb_fit_scale_offset(d, top, NB_F16, false, &min)
                                : nb_fit_scale(d, least, top, NB_F16);
    if (scale == 0)
        return;
    const uint16_t half[2] = {nb_f16_from_f32(scale), nb_f16_from_f32(min)};
    memcpy(block, half, has_min ? 4 : 2);
}

static void block_fit(const nb_grid *grid, void *block, const float *w, const float *importance,
                      encode_fn *encode, bool has_min, nb_fit fit)
{
    if (fit == NB_FIT_ABSMAX) {
        uint16_t encoded[sizeof(q8_0_block) / 2];
        encode(encoded, w);
        memcpy(block, encoded, has_min ? 4 : 2);
        return;
    }
    nb_fit_data d;
    nb_fit_data_init(&d, w, importance, BLOCK, nb_fit_floor(importance, BLOCK));
    block_search(block, &d, (int)grid->level[0], grid->n_levels - 1, has_min);
}

static bool block_group_put(void *block, bool has_min, const nb_grid_group *g)
{
    const float scale = nb_fit_stored(NB_F16, (double)g->scale);
    if (scale == 0)
        return false;
    const uint16_t half[2] = {nb_f16_from_f32(scale),
                              nb_f16_from_f32(nb_fit_stored(NB_F16, (double)g->offset))};
    memcpy(block, half, has_min ? 4 : 2);
    return true;
}

static void block_shape(nb_grid *grid, int least, int most, bool has_min)
{
    *grid = (nb_grid){
        .n_levels = most - least + 1,
        .level = nb_grid_integers + 128 + least,
        .uniform = true,
        .group_len = BLOCK,
        .span_len = BLOCK,
        .has_offset = has_min,
    };
}

/* ---- the formats ---- */

/* X(name, ggml's type id, bits of a code, least code, least code of the grid, has a minimum). The
 * grid of q8_0 has no -128, because its encoder, and that of ggml, never writes it. */
#define BLOCK_FORMATS(X)                                                                           \
    X(q4_0, 2, 4, -8, -8, false)                                                                   \
    X(q4_1, 3, 4, 0, 0, true)                                                                      \
    X(q5_0, 6, 5, -16, -16, false)                                                                 \
    X(q5_1, 7, 5, 0, 0, true)                                                                      \
    X(q8_0, 8, 8, -128, -127, false)

#define X(id, ggml, width, least, grid_least, minimum)                                             \
    static void id##_decode_row(const nb_mat *m, int64_t r, float *y)                              \
    {                                                                                              \
        rows_decode(m, r, y, id##_unpack, minimum);                                                \
    }                                                                                              \
    static void id##_encode_row(nb_mat *m, int64_t r, const float *x)                              \
    {                                                                                              \
        rows_encode(m, r, x, id##_encode);                                                         \
    }                                                                                              \
    static void id##_int_row(const nb_mat *m, int64_t r, const nb_int_row *out)                    \
    {                                                                                              \
        rows_int(m, r, out, id##_unpack, minimum);                                                 \
    }                                                                                              \
    static void id##_int_form(const nb_mat *m, nb_int_form *form)                                  \
    {                                                                                              \
        (void)m;                                                                                   \
        *form = (nb_int_form){                                                                     \
            .segment_len = BLOCK,                                                                  \
            .code_lo = (least),                                                                    \
            .code_hi = (least) + (1 << (width)) - 1,                                               \
            .has_min = (minimum),                                                                  \
            .scale_type = NB_F16,                                                                  \
        };                                                                                         \
    }                                                                                              \
    static void id##_grid_shape(const nb_mat *m, nb_grid *grid)                                    \
    {                                                                                              \
        (void)m;                                                                                   \
        block_shape(grid, grid_least, (least) + (1 << (width)) - 1, minimum);                      \
    }                                                                                              \
    static void id##_grid_fit(const nb_grid *grid, nb_mat *m, int64_t r, int64_t col,              \
                              const float *w, const float *importance, int64_t n, nb_fit fit)      \
    {                                                                                              \
        (void)n;                                                                                   \
        block_fit(grid, block_at(m, r, col), w, importance, id##_encode, minimum, fit);            \
    }                                                                                              \
    static void id##_grid_group_at(const nb_mat *m, int64_t r, int64_t col, nb_grid_group *out)    \
    {                                                                                              \
        block_group_at(m, r, col, minimum, out);                                                   \
    }                                                                                              \
    static bool id##_grid_group_put(nb_mat *m, int64_t r, int64_t col, const nb_grid_group *g)     \
    {                                                                                              \
        return block_group_put(block_at(m, r, col), minimum, g);                                   \
    }                                                                                              \
    static void id##_grid_put(nb_mat *m, int64_t r, int64_t col, const uint8_t *code, int64_t n)   \
    {                                                                                              \
        blocks_put(m, r, col, code, n, id##_pack);                                                 \
    }                                                                                              \
    static const nb_grid_form id##_grid = {                                                        \
        .shape = id##_grid_shape,                                                                  \
        .fit = id##_grid_fit,                                                                      \
        .group_at = id##_grid_group_at,                                                            \
        .group_put = id##_grid_group_put,                                                          \
        .put = id##_grid_put,                                                                      \
    };                                                                                             \
    const nb_format nb_format_##id = {                                                             \
        .name = #id,                                                                               \
        .ggml_type = (ggml),                                                                       \
        .block_len = BLOCK,                                                                        \
        .block_bytes = sizeof(id##_block),                                                         \
        .bits = (width),                                                                           \
        .decode_row = id##_decode_row,                                                             \
        .encode_row = id##_encode_row,                                                             \
        .int_form = id##_int_form,                                                                 \
        .int_row = id##_int_row,                                                                   \
        .grid = &id##_grid,                                                                        \
    };
BLOCK_FORMATS(X)
#undef X
