/* The plain formats: the numbers themselves, in binary32, f16 or bf16. Nothing is shared between
 * two of them, so there is no integer form. */
#include "numeric/format.h"
#include "numeric/minifloat.h"

#include <assert.h>
#include <string.h>

static_assert(sizeof(float) == 4, "binary32 is what the files hold");

/* Rows are done in pieces of a constant length, because compilers turn such a loop into vector
 * code at -O2, and the rest one by one. */
#define PIECE 32

static void f16_decode_piece(float *restrict y, const uint16_t *restrict h)
{
    for (int i = 0; i < PIECE; i++)
        y[i] = nb_f16_to_f32(h[i]);
}

static void f16_encode_piece(uint16_t *restrict h, const float *restrict x)
{
    for (int i = 0; i < PIECE; i++)
        h[i] = nb_f16_from_f32(x[i]);
}

static void bf16_decode_piece(float *restrict y, const uint16_t *restrict h)
{
    for (int i = 0; i < PIECE; i++)
        y[i] = nb_bf16_to_f32(h[i]);
}

static void bf16_encode_piece(uint16_t *restrict h, const float *restrict x)
{
    for (int i = 0; i < PIECE; i++)
        h[i] = nb_bf16_from_f32(x[i]);
}

static void f32_decode_row(const nb_mat *m, int64_t r, float *y)
{
    memcpy(y, nb_mat_row(m, r), (size_t)m->n_cols * sizeof *y);
}

static void f32_encode_row(nb_mat *m, int64_t r, const float *x)
{
    memcpy(nb_mat_row(m, r), x, (size_t)m->n_cols * sizeof *x);
}

static void f16_decode_row(const nb_mat *m, int64_t r, float *y)
{
    const uint16_t *h = nb_mat_row(m, r);
    int64_t c = 0;
    for (; c + PIECE <= m->n_cols; c += PIECE)
        f16_decode_piece(y + c, h + c);
    for (; c < m->n_cols; c++)
        y[c] = nb_f16_to_f32(h[c]);
}

static void f16_encode_row(nb_mat *m, int64_t r, const float *x)
{
    uint16_t *h = nb_mat_row(m, r);
    int64_t c = 0;
    for (; c + PIECE <= m->n_cols; c += PIECE)
        f16_encode_piece(h + c, x + c);
    for (; c < m->n_cols; c++)
        h[c] = nb_f16_from_f32(x[c]);
}

static void bf16_decode_row(const nb_mat *m, int64_t r, float *y)
{
    const uint16_t *h = nb_mat_row(m, r);
    int64_t c = 0;
    for (; c + PIECE <= m->n_cols; c += PIECE)
        bf16_decode_piece(y + c, h + c);
    for (; c < m->n_cols; c++)
        y[c] = nb_bf16_to_f32(h[c]);
}

static void bf16_encode_row(nb_mat *m, int64_t r, const float *x)
{
    uint16_t *h = nb_mat_row(m, r);
    int64_t c = 0;
    for (; c + PIECE <= m->n_cols; c += PIECE)
        bf16_encode_piece(h + c, x + c);
    for (; c < m->n_cols; c++)
        h[c] = nb_bf16_from_f32(x[c]);
}

const nb_format nb_format_f32 = {
    .name = "f32",
    .ggml_type = 0,
    .block_len = 1,
    .block_bytes = 4,
    .bits = 32,
    .decode_row = f32_decode_row,
    .encode_row = f32_encode_row,
};

const nb_format nb_format_f16 = {
    .name = "f16",
    .ggml_type = 1,
    .block_len = 1,
    .block_bytes = 2,
    .bits = 16,
    .decode_row = f16_decode_row,
    .encode_row = f16_encode_row,
};

const nb_format nb_format_bf16 = {
    .name = "bf16",
    .ggml_type = 30,
    .block_len = 1,
    .block_bytes = 2,
    .bits = 16,
    .decode_row = bf16_decode_row,
    .encode_row = bf16_encode_row,
};
