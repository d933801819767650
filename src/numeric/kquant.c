/* GGUF's K-quants: super-blocks of 256 codes whose small blocks have integer scales of their own
 * under one f16 scale, and integer minima under another where a format has them. Their bits are
 * drawn in kquant.h, their encoders are in kquant_grid.c.
 *
 * Products of the parameters are exact in binary32 (an f16 has 11 significant bits, the integers
 * at most 8), and so is scale * code, so a value is one rounding at most and
 *
 *   q2_k q4_k q5_k   value = scale * code + min,   scale = d * sc, min = -(dmin * mn)
 *   q3_k q6_k        value = scale * code,         scale = d * sc
 *
 * is what ggml computes. */
#include "numeric/kquant.h"
#include "numeric/minifloat.h"

#include <string.h>

/* ---- parameters ---- */

static void q2_k_parameters(const void *block, float *restrict scale, float *restrict min)
{
    const nb_q2_k_block *b = block;
    const float d = nb_f16_to_f32(b->d), dmin = nb_f16_to_f32(b->dmin);
    for (int k = 0; k < 16; k++) {
        scale[k] = d * (float)(b->scales[k] & 15);
        min[k] = -(dmin * (float)(b->scales[k] >> 4));
    }
}

static void q3_k_parameters(const void *block, float *restrict scale, float *restrict min)
{
    (void)min;
    const nb_q3_k_block *b = block;
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
    const nb_q4_k_block *b = block;
    six_bit_parameters(b->d, b->dmin, b->scales, scale, min);
}

static void q5_k_parameters(const void *block, float *scale, float *min)
{
    const nb_q5_k_block *b = block;
    six_bit_parameters(b->d, b->dmin, b->scales, scale, min);
}

static void q6_k_parameters(const void *block, float *restrict scale, float *restrict min)
{
    (void)min;
    const nb_q6_k_block *b = block;
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
    const uint8_t *low = ((const nb_q2_k_block *)block)->low;
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
    const nb_q3_k_block *b = block;
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
    const nb_q4_k_block *b = block;
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
    const nb_q5_k_block *b = block;
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
    const nb_q6_k_block *b = block;
    q6_k_half(code, b->low, b->high);
    q6_k_half(code + NB_SUPER_LEN / 2, b->low + 64, b->high + 32);
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
    assert(m->n_cols % NB_SUPER_LEN == 0);
    const uint8_t *block = nb_mat_row(m, r);
    for (int64_t c = 0; c < m->n_cols; c += NB_SUPER_LEN, block += m->fmt->block_bytes) {
        float scale[16], min[16];
        int8_t code[NB_SUPER_LEN];
        parameters(block, scale, min);
        codes(block, code);
        for (int k = 0; k < NB_SUPER_LEN; k += 16) {
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
    assert(m->n_cols % NB_SUPER_LEN == 0);
    const uint8_t *block = nb_mat_row(m, r);
    const int64_t n = m->n_cols / NB_SUPER_LEN, per_block = NB_SUPER_LEN / len;
    for (int64_t i = 0; i < n; i++, block += m->fmt->block_bytes) {
        parameters(block, out->scale + i * per_block, has_min ? out->min + i * per_block : NULL);
        codes(block, out->code + i * NB_SUPER_LEN);
    }
}

/* ---- the formats ---- */

/* X(name, ggml's type id, bits of a code, least code, columns to a scale, has minima). A scale is a
 * product of up to 18 significant bits, more than a 16-bit type holds. */
#define K_FORMATS(X)                                                                               \
    X(q2_k, 10, 2, 0, 16, true)                                                                    \
    X(q3_k, 11, 3, -4, 16, false)                                                                  \
    X(q4_k, 12, 4, 0, 32, true)                                                                    \
    X(q5_k, 13, 5, 0, 32, true)                                                                    \
    X(q6_k, 14, 6, -32, 16, false)

#define X(id, ggml, width, least, len, minimum)                                                    \
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
        .block_len = NB_SUPER_LEN,                                                                 \
        .block_bytes = sizeof(nb_##id##_block),                                                    \
        .bits = (width),                                                                           \
        .decode_row = id##_decode_row,                                                             \
        .encode_row = nb_##id##_encode_row,                                                        \
        .int_form = id##_int_form,                                                                 \
        .int_row = id##_int_row,                                                                   \
        .grid = &nb_##id##_grid,                                                                   \
    };
K_FORMATS(X)
#undef X
