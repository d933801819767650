/* Weights of any format and layout, as a plan of a folder to be written and the matrices for it,
 * for tests. */
#ifndef NB_TESTS_STORE_SAMPLE_H
#define NB_TESTS_STORE_SAMPLE_H

#include "base/rng.h"
#include "store/ct_pack.h"
#include "store/store.h"
#include "support/golden.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_PLAN 18

typedef struct {
    nb_weight plan[MAX_PLAN];
    nb_mat mats[MAX_PLAN];
    char names[MAX_PLAN][48];
    int n;
    char *config; /* config.json, where a test makes it once */
} sample;

/* Bytes that depend on the place only, without the bits that `mask` lacks. */
static inline void fill(void *out, size_t n, uint64_t stream, uint8_t mask)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t r[4];
        nb_philox(9, stream, i, r);
        ((uint8_t *)out)[i] = (uint8_t)(r[0] & mask);
    }
}

static inline void *filled(size_t n, uint64_t stream, uint8_t mask)
{
    void *out = malloc(n);
    assert_non_null(out);
    fill(out, n, stream, mask);
    return out;
}

/* A matrix like `like`, which says all but name and dimensions; its floats are finite. */
static inline nb_weight *add_like(sample *s, const nb_weight *like)
{
    const int i = s->n++;
    nb_err err;
    assert_true(i < MAX_PLAN);
    nb_weight *w = &s->plan[i];
    nb_mat *m = &s->mats[i];
    snprintf(s->names[i], sizeof s->names[i], "model.layers.%d.proj.weight", i);
    *w = *like;
    w->name = s->names[i];
    w->n_dims = 2;
    w->dims[0] = like->n_rows;
    w->dims[1] = like->n_cols;
    *m = (nb_mat){.fmt = w->fmt, .n_rows = w->n_rows, .n_cols = w->n_cols};
    assert_int_equal(nb_format_row_bytes(w->fmt, w->n_cols, &m->row_bytes, &err), NB_OK);
    m->codes =
        filled((size_t)(w->n_rows * m->row_bytes), (uint64_t)i, w->fmt->affine ? 0xff : 0x3f);
    if (!w->fmt->affine)
        return w;
    if (w->fmt->bits < 8)
        nb_ct_clear_padding(m->codes, w->n_rows, w->n_cols, w->fmt->bits);
    const size_t n_scales = (size_t)(w->n_rows * (w->n_cols / w->group_size));
    m->group_size = w->group_size;
    m->scale_type = w->scale_type;
    m->scales = filled(n_scales * nb_float_bytes(w->scale_type), 100 + (uint64_t)i, 0x3f);
    if (w->float_zeros)
        m->float_zeros = filled(n_scales * nb_float_bytes(w->scale_type), 200 + (uint64_t)i, 0x3f);
    if (w->symmetric || w->float_zeros)
        return w;
    m->zeros = filled(n_scales, 200 + (uint64_t)i, 0xff);
    for (size_t z = 0; z < n_scales; z++) {
        m->zeros[z] = (int8_t)(m->zeros[z] >> (8 - w->fmt->bits));
        /* not the lowest, for which version 1 of GPTQ has no place */
        if (w->layout != NB_LAYOUT_CT && m->zeros[z] == -(1 << (w->fmt->bits - 1)))
            m->zeros[z] = 0;
    }
    return w;
}

static inline void free_sample(sample *s)
{
    for (int i = 0; i < s->n; i++) {
        free(s->mats[i].codes);
        free(s->mats[i].scales);
        free(s->mats[i].zeros);
        free(s->mats[i].float_zeros);
    }
    free(s->config);
    *s = (sample){0};
}

#endif
