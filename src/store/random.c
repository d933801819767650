/* See random.h. */
#include "store/random.h"

#include "base/rng.h"
#include "numeric/codebits.h"
#include "numeric/minifloat.h"
#include "store/container.h"

#include <math.h>
#include <string.h>

/* What opening hands to the container. */
typedef struct {
    json_t *config;
    const nb_weight *plan;
    int64_t n_weights;
    uint64_t seed;
} request;

/* ---- planning ---- */

static nb_status plan_weight(nb_store *store, const nb_weight *from, nb_weight *w, nb_err *err)
{
    char *name = NULL;
    NB_TRY(nb_arena_text(&store->arena, &name, from->name, strlen(from->name), err));
    *w = *from;
    w->name = w->file_name = name;
    if (w->fmt->encode_row == NULL)
        return nb_fail(err, NB_UNSUPPORTED, "%s: weight '%s': nibble does not make %s", store->path,
                       name, w->fmt->name);
    if (w->fmt->affine && (w->group_size <= 0 || w->n_cols % w->group_size != 0))
        return nb_fail(err, NB_UNSUPPORTED,
                       "%s: weight '%s': rows of %lld columns, which groups of %lld do not divide",
                       store->path, name, (long long)w->n_cols, (long long)w->group_size);
    static int8_t has_zeros;
    nb_mat mat = {.fmt = w->fmt,
                  .n_rows = w->n_rows,
                  .n_cols = w->n_cols,
                  .group_size = w->group_size,
                  .scale_type = w->scale_type,
                  .zeros = w->fmt->affine && !w->symmetric && !w->float_zeros ? &has_zeros : NULL,
                  .float_zeros = w->float_zeros ? &has_zeros : NULL};
    if (nb_format_row_bytes(w->fmt, w->n_cols, &mat.row_bytes, err) != NB_OK)
        return nb_context(err, "%s: weight '%s'", store->path, name);
    w->bytes = nb_mat_bytes(&mat);
    store->file_bytes += w->bytes;
    return NB_OK;
}

static nb_status random_open(nb_store *store, const char *path, nb_err *err)
{
    (void)path;
    const request *wanted = store->state;
    uint64_t *seed;
    store->state = NULL;
    store->config = json_incref(wanted->config);
    NB_TRY(NB_ARENA_ALLOC(&store->arena, &seed, 1, err));
    *seed = wanted->seed;
    NB_TRY(NB_ARENA_ALLOC(&store->arena, &store->weights, wanted->n_weights, err));
    for (; store->n_weights < wanted->n_weights; store->n_weights++) {
        const int64_t i = store->n_weights;
        NB_TRY(plan_weight(store, &wanted->plan[i], &store->weights[i], err));
    }
    store->state = seed;
    return NB_OK;
}

static void random_close(nb_store *store)
{
    store->state = NULL; /* its memory is the arena's */
}

/* ---- values ---- */

/* Numbers in the order of one weight's stream. */
typedef struct {
    uint64_t seed, stream, index;
    uint32_t words[4];
    int used;
} source;

static uint32_t next_word(source *s)
{
    if (s->used == 0 || s->used == 4) {
        nb_philox(s->seed, s->stream, s->index++, s->words);
        s->used = 0;
    }
    return s->words[s->used++];
}

/* In [-1, 1). */
static float next_float(source *s)
{
    return (float)(int32_t)next_word(s) * 0x1p-31f;
}

static void fill_bytes(source *s, uint8_t *out, size_t n)
{
    for (; n >= 16; n -= 16, out += 16) {
        nb_philox(s->seed, s->stream, s->index++, s->words);
        memcpy(out, s->words, 16);
    }
    s->used = 0;
    for (; n > 0; n--)
        *out++ = (uint8_t)next_word(s);
}

static nb_status make_room(nb_buf *buf, size_t n, nb_err *err)
{
    if (buf->cap < n)
        nb_buf_free(buf);
    buf->len = 0;
    NB_TRY(nb_buf_reserve(buf, n, err));
    buf->len = n;
    return NB_OK;
}

/* Blocks of which a matrix is put together: drawing each value of each would take minutes. */
#define N_BLOCKS 1024

/* Formats whose scales lie inside the blocks, and plain numbers, which are blocks of one. */
static nb_status make_blocks(source *s, const nb_weight *w, nb_loaded *out, nb_err *err)
{
    const int64_t len = w->fmt->block_len, n_values = N_BLOCKS * len;
    const size_t bytes = (size_t)w->fmt->block_bytes;
    /* Uniform values of this width have the variance 1 / n_cols. */
    const float width = sqrtf(3.0f / (float)w->n_cols);
    const size_t values_bytes = (size_t)n_values * sizeof(float);
    NB_TRY(make_room(&out->codes, (size_t)w->bytes, err));
    NB_TRY(make_room(&out->scratch, values_bytes + N_BLOCKS * bytes, err));
    float *values = (float *)(void *)out->scratch.data;
    uint8_t *blocks = out->scratch.data + values_bytes;
    for (int64_t i = 0; i < n_values; i++)
        values[i] = w->n_dims == 1 ? 1 + 0.25f * next_float(s) : width * next_float(s);
    nb_mat pool = {.fmt = w->fmt,
                   .n_rows = 1,
                   .n_cols = n_values,
                   .codes = blocks,
                   .row_bytes = (int64_t)(N_BLOCKS * bytes)};
    w->fmt->encode_row(&pool, 0, values);
    const int64_t n = w->bytes / (int64_t)bytes;
    for (int64_t i = 0; i < n; i++)
        memcpy(out->codes.data + (size_t)i * bytes, blocks + next_word(s) % N_BLOCKS * bytes,
               bytes);
    return NB_OK;
}

/* The bits behind the last column stay 0. */
static void clear_padding(const nb_mat *m)
{
    for (int64_t r = 0; r < m->n_rows && m->fmt->bits < 8; r++)
        nb_codebits_clear_rest(nb_mat_row(m, r), m->fmt->bits, m->n_cols);
}

static nb_status make_affine(source *s, const nb_weight *w, nb_loaded *out, nb_err *err)
{
    nb_mat *m = &out->mat;
    m->group_size = w->group_size;
    m->scale_type = w->scale_type;
    const int64_t n_scales = w->n_rows * nb_mat_n_groups(m);
    NB_TRY(make_room(&out->codes, (size_t)(w->n_rows * m->row_bytes), err));
    NB_TRY(make_room(&out->scales, (size_t)n_scales * nb_float_bytes(w->scale_type), err));
    fill_bytes(s, out->codes.data, out->codes.len);
    m->codes = out->codes.data;
    m->scales = out->scales.data;
    clear_padding(m);
    /* All codes are as likely: 2^bits of them have the standard deviation 2^bits / sqrt(12). */
    const float unit = sqrtf(12.0f / (float)w->n_cols) / (float)(1 << w->fmt->bits);
    for (int64_t i = 0; i < n_scales; i++)
        nb_float_put(m->scales, w->scale_type, i, unit * (1 + 0.25f * next_float(s)));
    if (w->symmetric)
        return NB_OK;
    if (w->float_zeros) {
        const float half = (float)(1 << (w->fmt->bits - 1));
        NB_TRY(make_room(&out->zeros, (size_t)n_scales * nb_float_bytes(w->scale_type), err));
        m->float_zeros = out->zeros.data;
        for (int64_t i = 0; i < n_scales; i++)
            nb_float_put(m->float_zeros, w->scale_type, i, half * (1 + 0.25f * next_float(s)));
        return NB_OK;
    }
    NB_TRY(make_room(&out->zeros, (size_t)n_scales, err));
    m->zeros = (int8_t *)out->zeros.data;
    for (int64_t i = 0; i < n_scales; i++)
        m->zeros[i] = (int8_t)((int)(next_word(s) % 5) - 2);
    return NB_OK;
}

static nb_status random_read(nb_store *store, int64_t i, nb_loaded *out, nb_err *err)
{
    const nb_weight *w = &store->weights[i];
    source s = {.seed = *(const uint64_t *)store->state, .stream = (uint64_t)i};
    out->mat = (nb_mat){.fmt = w->fmt, .n_rows = w->n_rows, .n_cols = w->n_cols};
    NB_TRY(nb_format_row_bytes(w->fmt, w->n_cols, &out->mat.row_bytes, err));
    if (w->fmt->affine)
        return make_affine(&s, w, out, err);
    NB_TRY(make_blocks(&s, w, out, err));
    out->mat.codes = out->codes.data;
    return NB_OK;
}

static const nb_container container_random = {
    .name = "random",
    .kind = NB_STORE_HF,
    .open = random_open,
    .read = random_read,
    .close = random_close,
};

nb_status nb_store_open_random(nb_store **out, const char *name, json_t *config,
                               const nb_weight *plan, int64_t n_weights, uint64_t seed, nb_err *err)
{
    request wanted = {config, plan, n_weights, seed};
    const nb_status s = nb_store_open_as(out, &container_random, name, &wanted, err);
    json_decref(config);
    return s;
}
