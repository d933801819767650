/* GGUF's K-quants: super-blocks of 256 codes whose small blocks have integer scales of their own
 * under one f16 scale. Read only: their encoders search, which is a quantizer's work.
 *
 * Products of the parameters are exact in binary32 (an f16 has 11 significant bits, the integers
 * at most 8), and so is scale * code, so a value is one rounding at most and
 *
 *   q4_k   value = scale * code + min,   scale = d * sc, min = -(dmin * mn)
 *   q6_k   value = scale * code,         scale = d * sc
 *
 * is what ggml computes. */
#include "numeric/format.h"
#include "numeric/minifloat.h"

#include <assert.h>
#include <string.h>

#define SUPER 256

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

#define Q4_K_LEN 32
#define Q4_K_N   (SUPER / Q4_K_LEN)

static void q4_k_parameters(const q4_k_block *b, float *scale, float *min)
{
    const float d = nb_f16_to_f32(b->d), dmin = nb_f16_to_f32(b->dmin);
    for (int k = 0; k < 4; k++) {
        const int a = b->scales[k], z = b->scales[k + 4], low = b->scales[k + 8];
        scale[k] = d * (float)(a & 63);
        min[k] = -(dmin * (float)(z & 63));
        scale[k + 4] = d * (float)((low & 15) | a >> 6 << 4);
        min[k + 4] = -(dmin * (float)(low >> 4 | z >> 6 << 4));
    }
}

static void q4_k_pair(int8_t *restrict code, const uint8_t *restrict low)
{
    for (int l = 0; l < 32; l++)
        code[l] = (int8_t)(low[l] & 15);
    for (int l = 0; l < 32; l++)
        code[l + 32] = (int8_t)(low[l] >> 4);
}

static void q4_k_codes(const q4_k_block *b, int8_t *code)
{
    for (int k = 0; k < 4; k++)
        q4_k_pair(code + 64 * k, b->low + 32 * k);
}

static void q4_k_values(float *restrict y, const int8_t *restrict code, float scale, float min)
{
    for (int l = 0; l < Q4_K_LEN; l++)
        y[l] = scale * (float)code[l] + min;
}

static void q4_k_decode_row(const nb_mat *m, int64_t r, float *y)
{
    assert(m->n_cols % SUPER == 0);
    const q4_k_block *b = nb_mat_row(m, r);
    for (int64_t c = 0; c < m->n_cols; c += SUPER, b++) {
        float scale[Q4_K_N], min[Q4_K_N];
        int8_t code[SUPER];
        q4_k_parameters(b, scale, min);
        q4_k_codes(b, code);
        for (int k = 0; k < Q4_K_N; k++)
            q4_k_values(y + c + k * Q4_K_LEN, code + k * Q4_K_LEN, scale[k], min[k]);
    }
}

static void q4_k_int_form(const nb_mat *m, nb_int_form *form)
{
    (void)m;
    *form = (nb_int_form){
        .segment_len = Q4_K_LEN,
        .code_hi = 15,
        .has_min = true,
        .scale_type = NB_F32, /* a product of 17 bits */
    };
}

static void q4_k_int_row(const nb_mat *m, int64_t r, const nb_int_row *out)
{
    assert(m->n_cols % SUPER == 0);
    const q4_k_block *b = nb_mat_row(m, r);
    const int64_t n = m->n_cols / SUPER;
    for (int64_t i = 0; i < n; i++) {
        q4_k_parameters(b + i, out->scale + i * Q4_K_N, out->min + i * Q4_K_N);
        q4_k_codes(b + i, out->code + i * SUPER);
    }
}

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

#define Q6_K_LEN 16
#define Q6_K_N   (SUPER / Q6_K_LEN)

static void q6_k_parameters(const q6_k_block *b, float *scale)
{
    const float d = nb_f16_to_f32(b->d);
    for (int k = 0; k < Q6_K_N; k++)
        scale[k] = d * (float)b->scales[k];
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

static void q6_k_codes(const q6_k_block *b, int8_t *code)
{
    q6_k_half(code, b->low, b->high);
    q6_k_half(code + SUPER / 2, b->low + 64, b->high + 32);
}

static void q6_k_values(float *restrict y, const int8_t *restrict code, float scale)
{
    for (int l = 0; l < Q6_K_LEN; l++)
        y[l] = scale * (float)code[l];
}

static void q6_k_decode_row(const nb_mat *m, int64_t r, float *y)
{
    assert(m->n_cols % SUPER == 0);
    const q6_k_block *b = nb_mat_row(m, r);
    for (int64_t c = 0; c < m->n_cols; c += SUPER, b++) {
        float scale[Q6_K_N];
        int8_t code[SUPER];
        q6_k_parameters(b, scale);
        q6_k_codes(b, code);
        for (int k = 0; k < Q6_K_N; k++)
            q6_k_values(y + c + k * Q6_K_LEN, code + k * Q6_K_LEN, scale[k]);
    }
}

static void q6_k_int_form(const nb_mat *m, nb_int_form *form)
{
    (void)m;
    *form = (nb_int_form){
        .segment_len = Q6_K_LEN,
        .code_lo = -32,
        .code_hi = 31,
        .scale_type = NB_F32, /* a product of 18 bits */
    };
}

static void q6_k_int_row(const nb_mat *m, int64_t r, const nb_int_row *out)
{
    assert(m->n_cols % SUPER == 0);
    const q6_k_block *b = nb_mat_row(m, r);
    const int64_t n = m->n_cols / SUPER;
    for (int64_t i = 0; i < n; i++) {
        q6_k_parameters(b + i, out->scale + i * Q6_K_N);
        q6_k_codes(b + i, out->code + i * SUPER);
    }
}

const nb_format nb_format_q4_k = {
    .name = "q4_k",
    .ggml_type = 12,
    .block_len = SUPER,
    .block_bytes = sizeof(q4_k_block),
    .bits = 4,
    .decode_row = q4_k_decode_row,
    .int_form = q4_k_int_form,
    .int_row = q4_k_int_row,
};

const nb_format nb_format_q6_k = {
    .name = "q6_k",
    .ggml_type = 14,
    .block_len = SUPER,
    .block_bytes = sizeof(q6_k_block),
    .bits = 6,
    .decode_row = q6_k_decode_row,
    .int_form = q6_k_int_form,
    .int_row = q6_k_int_row,
};
