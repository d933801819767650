/* The grids of the K-quants, and encoding through them. The scales of a super-block are chosen
 * together: fit_super.c where there are minima, fit_signed.c where scales have signs. */
#include "numeric/fit_super.h"
#include "numeric/kquant.h"
#include "numeric/minifloat.h"

#define SUPER NB_SUPER_LEN

static void *super_at(const nb_mat *m, int64_t r, int64_t col)
{
    return (uint8_t *)nb_mat_row(m, r) + col / SUPER * m->fmt->block_bytes;
}

/* ---- parameters: what is stored of a super-block, and of group k of one ---- */

static const nb_super_form q2_k_form = {
    .n_groups = 16, .group_len = 16, .top = 3, .parameter_top = 15};
static const nb_super_form q4_k_form = {
    .n_groups = 8, .group_len = 32, .top = 15, .parameter_top = 63};
static const nb_super_form q5_k_form = {
    .n_groups = 8, .group_len = 32, .top = 31, .parameter_top = 63};
static const nb_signed_form q3_k_form = {
    .n_groups = 16, .group_len = 16, .least = -4, .top = 7, .scale_least = -32, .scale_most = 31};
static const nb_signed_form q6_k_form = {.n_groups = 16,
                                         .group_len = 16,
                                         .least = -32,
                                         .top = 63,
                                         .scale_least = -128,
                                         .scale_most = 127};

static void q2_k_store(void *block, const nb_super *s)
{
    nb_q2_k_block *b = block;
    b->d = nb_f16_from_f32(s->d);
    b->dmin = nb_f16_from_f32(s->dmin);
    for (int k = 0; k < 16; k++)
        b->scales[k] = (uint8_t)(s->scale[k] | s->min[k] << 4);
}

static void q2_k_group(const void *block, int k, nb_grid_group *out)
{
    const nb_q2_k_block *b = block;
    *out = (nb_grid_group){.scale = nb_f16_to_f32(b->d) * (float)(b->scales[k] & 15),
                           .offset = -(nb_f16_to_f32(b->dmin) * (float)(b->scales[k] >> 4))};
}

static void q3_k_store(void *block, const nb_signed *s)
{
    nb_q3_k_block *b = block;
    b->d = nb_f16_from_f32(s->d);
    for (int j = 0; j < 8; j++)
        b->scales[j] = (uint8_t)(((s->scale[j] + 32) & 15) | ((s->scale[j + 8] + 32) & 15) << 4);
    for (int j = 0; j < 4; j++)
        b->scales[8 + j] =
            (uint8_t)((s->scale[j] + 32) >> 4 | (s->scale[j + 4] + 32) >> 4 << 2 |
                      (s->scale[j + 8] + 32) >> 4 << 4 | (s->scale[j + 12] + 32) >> 4 << 6);
}

static void q3_k_group(const void *block, int k, nb_grid_group *out)
{
    const nb_q3_k_block *b = block;
    const int low = b->scales[k % 8] >> k / 8 * 4 & 15, top = b->scales[8 + k % 4] >> k / 4 * 2 & 3;
    *out = (nb_grid_group){.scale = nb_f16_to_f32(b->d) * (float)((low | top << 4) - 32)};
}

static void six_bit_store(uint8_t *scales, const nb_super *s)
{
    for (int k = 0; k < 4; k++) {
        scales[k] = (uint8_t)(s->scale[k] | s->scale[k + 4] >> 4 << 6);
        scales[k + 4] = (uint8_t)(s->min[k] | s->min[k + 4] >> 4 << 6);
        scales[k + 8] = (uint8_t)((s->scale[k + 4] & 15) | (s->min[k + 4] & 15) << 4);
    }
}

static void six_bit_group(uint16_t d, uint16_t dmin, const uint8_t *scales, int k,
                          nb_grid_group *out)
{
    int scale = scales[k % 4], min = scales[k % 4 + 4];
    if (k < 4) {
        scale &= 63;
        min &= 63;
    } else {
        scale = (scales[k + 4] & 15) | scale >> 6 << 4;
        min = scales[k + 4] >> 4 | min >> 6 << 4;
    }
    *out = (nb_grid_group){.scale = nb_f16_to_f32(d) * (float)scale,
                           .offset = -(nb_f16_to_f32(dmin) * (float)min)};
}

static void q4_k_store(void *block, const nb_super *s)
{
    nb_q4_k_block *b = block;
    b->d = nb_f16_from_f32(s->d);
    b->dmin = nb_f16_from_f32(s->dmin);
    six_bit_store(b->scales, s);
}

static void q4_k_group(const void *block, int k, nb_grid_group *out)
{
    const nb_q4_k_block *b = block;
    six_bit_group(b->d, b->dmin, b->scales, k, out);
}

static void q5_k_store(void *block, const nb_super *s)
{
    nb_q5_k_block *b = block;
    b->d = nb_f16_from_f32(s->d);
    b->dmin = nb_f16_from_f32(s->dmin);
    six_bit_store(b->scales, s);
}

static void q5_k_group(const void *block, int k, nb_grid_group *out)
{
    const nb_q5_k_block *b = block;
    six_bit_group(b->d, b->dmin, b->scales, k, out);
}

static void q6_k_store(void *block, const nb_signed *s)
{
    nb_q6_k_block *b = block;
    b->d = nb_f16_from_f32(s->d);
    for (int k = 0; k < 16; k++)
        b->scales[k] = s->scale[k];
}

static void q6_k_group(const void *block, int k, nb_grid_group *out)
{
    const nb_q6_k_block *b = block;
    *out = (nb_grid_group){.scale = nb_f16_to_f32(b->d) * (float)b->scales[k]};
}

/* ---- codes 0, 1, ... of group k of a super-block ---- */

/* `n` bytes take these codes into their bits [shift, shift + width); the other bits stay. */
static void put_bits(uint8_t *byte, const uint8_t *code, int n, int from, int width, int shift)
{
    const int mask = (1 << width) - 1;
    for (int l = 0; l < n; l++)
        byte[l] = (uint8_t)((byte[l] & ~(mask << shift)) | (code[l] >> from & mask) << shift);
}

/* Groups of 16: where in its half of 128 codes a group is, as code l + 32 g. */
typedef struct {
    int half, g, l;
} place;

static place place_of(int k)
{
    return (place){.half = k / 8, .g = k % 8 / 2, .l = k % 2 * 16};
}

static void q2_k_put(void *block, int k, const uint8_t *code)
{
    const place p = place_of(k);
    put_bits(((nb_q2_k_block *)block)->low + 32 * p.half + p.l, code, 16, 0, 2, 2 * p.g);
}

static void q3_k_put(void *block, int k, const uint8_t *code)
{
    nb_q3_k_block *b = block;
    const place p = place_of(k);
    put_bits(b->low + 32 * p.half + p.l, code, 16, 0, 2, 2 * p.g);
    put_bits(b->top + p.l, code, 16, 2, 1, 4 * p.half + p.g);
}

static void q4_k_put(void *block, int k, const uint8_t *code)
{
    put_bits(((nb_q4_k_block *)block)->low + k / 2 * 32, code, 32, 0, 4, k % 2 * 4);
}

static void q5_k_put(void *block, int k, const uint8_t *code)
{
    nb_q5_k_block *b = block;
    put_bits(b->low + k / 2 * 32, code, 32, 0, 4, k % 2 * 4);
    put_bits(b->high, code, 32, 4, 1, k);
}

static void q6_k_put(void *block, int k, const uint8_t *code)
{
    nb_q6_k_block *b = block;
    const place p = place_of(k);
    put_bits(b->low + 64 * p.half + p.g % 2 * 32 + p.l, code, 16, 0, 4, p.g / 2 * 4);
    put_bits(b->high + 32 * p.half + p.l, code, 16, 4, 2, 2 * p.g);
}

/* ---- the grids ---- */

/* Encoders search, because there is nothing simpler to agree with; those of q3_k and q6_k in
 * less time, since q6_k is what large embeddings become. */
typedef void span_fn(const nb_grid *grid, nb_mat *m, int64_t r, int64_t col, const float *w);

static void super_span(const nb_grid *grid, nb_mat *m, int64_t r, int64_t col, const float *w)
{
    nb_grid_fit(grid, m, r, col, w, NULL, NB_FIT_SEARCH);
}

static void encode(nb_mat *m, int64_t r, const float *x, span_fn *fit)
{
    nb_grid grid;
    assert(m->n_cols % SUPER == 0);
    m->fmt->grid->shape(m, &grid);
    for (int64_t c = 0; c < m->n_cols; c += SUPER)
        fit(&grid, m, r, c, x + c);
    nb_grid_round_row(&grid, m, r, x);
}

static void q3_k_span(const nb_grid *grid, nb_mat *m, int64_t r, int64_t col, const float *w)
{
    (void)grid;
    nb_signed s;
    nb_signed_quick(&s, &q3_k_form, w);
    q3_k_store(super_at(m, r, col), &s);
}

static void q6_k_span(const nb_grid *grid, nb_mat *m, int64_t r, int64_t col, const float *w)
{
    (void)grid;
    nb_signed s;
    nb_signed_quick(&s, &q6_k_form, w);
    q6_k_store(super_at(m, r, col), &s);
}

/* X(name, kind of super-block, levels, least level, columns to a scale, how encoders fit one) */
#define K_GRIDS(X)                                                                                 \
    X(q2_k, super, 4, 0, 16, super_span)                                                           \
    X(q3_k, signed, 8, -4, 16, q3_k_span)                                                          \
    X(q4_k, super, 16, 0, 32, super_span)                                                          \
    X(q5_k, super, 32, 0, 32, super_span)                                                          \
    X(q6_k, signed, 64, -32, 16, q6_k_span)

#define X(id, kind, count, least, len, span)                                                       \
    static void id##_grid_shape(const nb_mat *m, nb_grid *grid)                                    \
    {                                                                                              \
        (void)m;                                                                                   \
        *grid = (nb_grid){                                                                         \
            .n_levels = (count),                                                                   \
            .level = nb_grid_integers + 128 + (least),                                             \
            .uniform = true,                                                                       \
            .group_len = (len),                                                                    \
            .span_len = SUPER,                                                                     \
        };                                                                                         \
    }                                                                                              \
    static void id##_grid_fit(const nb_grid *grid, nb_mat *m, int64_t r, int64_t col,              \
                              const float *w, const float *importance, int64_t n, nb_fit fit)      \
    {                                                                                              \
        (void)grid;                                                                                \
        assert(n == SUPER);                                                                        \
        nb_##kind s;                                                                               \
        if (fit == NB_FIT_ABSMAX)                                                                  \
            nb_##kind##_extremes(&s, &id##_form, w);                                               \
        else                                                                                       \
            nb_##kind##_search(&s, &id##_form, w, importance);                                     \
        id##_store(super_at(m, r, col), &s);                                                       \
    }                                                                                              \
    static void id##_grid_group_at(const nb_mat *m, int64_t r, int64_t col, nb_grid_group *out)    \
    {                                                                                              \
        id##_group(super_at(m, r, col), (int)(col % SUPER / (len)), out);                          \
    }                                                                                              \
    static void id##_grid_put(nb_mat *m, int64_t r, int64_t col, const uint8_t *code, int64_t n)   \
    {                                                                                              \
        for (int64_t c = col; c < col + n; c += (len))                                             \
            id##_put(super_at(m, r, c), (int)(c % SUPER / (len)), code + (c - col));               \
    }                                                                                              \
    const nb_grid_form nb_##id##_grid = {                                                          \
        .shape = id##_grid_shape,                                                                  \
        .fit = id##_grid_fit,                                                                      \
        .group_at = id##_grid_group_at,                                                            \
        .put = id##_grid_put,                                                                      \
    };                                                                                             \
    void nb_##id##_encode_row(nb_mat *m, int64_t r, const float *x)                                \
    {                                                                                              \
        encode(m, r, x, span);                                                                     \
    }
K_GRIDS(X)
#undef X
