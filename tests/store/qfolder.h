/* Folders with one quantized module "m" in the layouts of GPTQ and AWQ, made by hand for tests. */
#ifndef NB_TESTS_STORE_QFOLDER_H
#define NB_TESTS_STORE_QFOLDER_H

#include "support/golden.h"

#include "base/rng.h"
#include "numeric/minifloat.h"
#include "store/qweight.h"
#include "support/scratch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A tensor to be: `data` holds its bytes, NULL: zeros. A name of NULL leaves it out. */
typedef struct {
    nb_st_tensor tensor;
    const void *data;
} piece;

#define PIECE(nm, ty, nd, d0, d1, bytes)                                                           \
    ((piece){.tensor = {.name = (nm), .dtype = (ty), .n_dims = (nd), .dims = {(d0), (d1)}},        \
             .data = (bytes)})

static inline void write_folder(const char *config, const piece *pieces, int n)
{
    nb_st_tensor tensors[8];
    const void *data[8];
    nb_buf file = {0};
    nb_err err;
    int64_t bytes = 0;
    int kept = 0;
    assert_true(n <= 8);
    for (int i = 0; i < n; i++) {
        if (pieces[i].tensor.name == NULL)
            continue;
        tensors[kept] = pieces[i].tensor;
        data[kept++] = pieces[i].data;
    }
    assert_int_equal(nb_st_write_header(&file, tensors, kept, &bytes, &err), NB_OK);
    const size_t start = file.len;
    assert_int_equal(nb_buf_reserve(&file, (size_t)bytes + 1, &err), NB_OK);
    memset(file.data + start, 0, (size_t)bytes);
    for (int i = 0; i < kept; i++) {
        if (data[i] != NULL)
            memcpy(file.data + start + tensors[i].begin, data[i], (size_t)tensors[i].bytes);
    }
    if (!scratch_exists("m"))
        scratch_mkdir("m");
    scratch_write("m/model.safetensors", file.data, start + (size_t)bytes);
    nb_buf_free(&file);
    char text[1024];
    snprintf(text, sizeof text, "{\"model_type\":\"llama\",\"quantization_config\":%s}", config);
    scratch_text("m/config.json", text);
}

static inline nb_store *open_folder(const char *name)
{
    nb_err err;
    nb_store *store;
    if (nb_store_open(&store, scratch_path(name), &err) != NB_OK)
        fail_msg("%s", err.text);
    return store;
}

/* What opening or, if that goes well, reading says. */
static inline void expect_refused(nb_status status, const char *reason)
{
    const int64_t live = nb_alloc_live();
    nb_err err = {0};
    nb_store *store = NULL;
    nb_loaded loaded = {0};
    nb_status s = nb_store_open(&store, scratch_path("m"), &err);
    if (s == NB_OK)
        s = nb_store_read(store, nb_store_weight(store, 0), &loaded, &err);
    if (s != status || strstr(err.text, reason) == NULL)
        fail_msg("status %d, wanted %d with '%s': %s", s, status, reason, err.text);
    if (strncmp(err.text, scratch_path("m"), strlen(scratch_path("m"))) != 0)
        fail_msg("the message does not begin with the folder: %s", err.text);
    if (strchr(err.text, '\n') != NULL)
        fail_msg("more than one line: %s", err.text);
    nb_loaded_free(&loaded);
    nb_store_close(store);
    assert_int_equal(nb_alloc_live(), live);
}

/* ---- weights to write ---- */

#define MAX_PLAN 8
typedef struct {
    nb_weight plan[MAX_PLAN];
    nb_mat mats[MAX_PLAN];
    char names[MAX_PLAN][48];
    int n;
} sample;

static inline void fill(void *out, size_t n, uint64_t stream, int keep)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t r[4];
        nb_philox(11, stream, i, r);
        ((uint8_t *)out)[i] = (uint8_t)(r[0] & (uint32_t)keep);
    }
}

static inline nb_weight *add_weight(sample *s, nb_layout layout, const nb_format *fmt,
                                    int64_t n_rows, int64_t n_cols, int64_t group_size,
                                    bool symmetric)
{
    const int i = s->n++;
    nb_err err;
    nb_mat *m = &s->mats[i];
    assert_true(i < MAX_PLAN);
    snprintf(s->names[i], sizeof s->names[i], "model.layers.%d.proj.weight", i);
    s->plan[i] = (nb_weight){.name = s->names[i],
                             .n_dims = 2,
                             .dims = {n_rows, n_cols},
                             .n_rows = n_rows,
                             .n_cols = n_cols,
                             .fmt = fmt,
                             .group_size = group_size,
                             .symmetric = symmetric,
                             .scale_type = NB_F16,
                             .layout = layout};
    *m = (nb_mat){.fmt = fmt, .n_rows = n_rows, .n_cols = n_cols};
    assert_int_equal(nb_format_row_bytes(fmt, n_cols, &m->row_bytes, &err), NB_OK);
    const size_t n_codes = (size_t)(n_rows * m->row_bytes);
    m->codes = malloc(n_codes);
    assert_non_null(m->codes);
    fill(m->codes, n_codes, (uint64_t)i, fmt->affine ? 0xff : 0x3f);
    if (!fmt->affine)
        return &s->plan[i];
    const size_t n = (size_t)(n_rows * (n_cols / group_size));
    m->group_size = group_size;
    m->scale_type = NB_F16;
    m->scales = malloc(2 * n);
    assert_non_null(m->scales);
    fill(m->scales, 2 * n, 100 + (uint64_t)i, 0x3f); /* finite */
    if (symmetric)
        return &s->plan[i];
    m->zeros = malloc(n);
    assert_non_null(m->zeros);
    fill(m->zeros, n, 200 + (uint64_t)i, 0xff);
    for (size_t z = 0; z < n; z++) { /* not the lowest, for which version 1 has no place */
        m->zeros[z] = (int8_t)(m->zeros[z] >> (8 - fmt->bits));
        if (m->zeros[z] == -(1 << (fmt->bits - 1)))
            m->zeros[z] = 0;
    }
    return &s->plan[i];
}

static inline void free_sample(sample *s)
{
    for (int i = 0; i < s->n; i++) {
        free(s->mats[i].codes);
        free(s->mats[i].scales);
        free(s->mats[i].zeros);
    }
    *s = (sample){0};
}

/* Writes the folder `name` with the config that belongs to it. */
static inline nb_status write_sample(const sample *s, const char *name, int64_t *planned,
                                     nb_err *err)
{
    json_t *q = NULL;
    NB_TRY(nb_hf_quantization(&q, s->plan, s->n, err));
    json_t *config = json_pack("{s:s,s:o*}", "model_type", "llama", "quantization_config", q);
    char *text = json_dumps(config, 0);
    json_decref(config);
    assert_non_null(text);
    const nb_side_file side = {.name = "config.json", .bytes = text, .len = strlen(text)};
    nb_sink *sink;
    nb_status status =
        nb_sink_open_hf(&sink, scratch_path(name), true, s->plan, s->n, &side, 1, 0, err);
    if (status == NB_OK) {
        *planned = nb_sink_planned_bytes(sink);
        for (int i = 0; i < s->n && status == NB_OK; i++)
            status = nb_sink_put(sink, i, &s->mats[i], err);
        if (status == NB_OK)
            status = nb_sink_commit(sink, err);
        else
            nb_sink_abort(sink);
    }
    free(text);
    return status;
}

static inline void expect_not_written(const sample *s, nb_status status, const char *reason)
{
    int64_t planned;
    nb_err err = {0};
    const nb_status got = write_sample(s, "no", &planned, &err);
    if (got != status || strstr(err.text, reason) == NULL)
        fail_msg("status %d, wanted %d with '%s': %s", got, status, reason, err.text);
    assert_false(scratch_exists("no"));
}

/* The folder holds the sample, bit for bit. */
static inline void expect_sample(const sample *s, const char *name, int64_t planned)
{
    nb_store *store = open_folder(name);
    nb_loaded loaded = {0};
    nb_err err;
    assert_int_equal(nb_store_n_weights(store), s->n);
    assert_int_equal(nb_store_file_bytes(store), planned);
    for (int i = 0; i < s->n; i++) {
        const nb_weight *want = &s->plan[i], *w = nb_store_find(store, want->name);
        const nb_mat *m = &s->mats[i];
        assert_non_null(w);
        assert_ptr_equal(w->fmt, want->fmt);
        assert_int_equal(w->n_rows, want->n_rows);
        assert_int_equal(w->n_cols, want->n_cols);
        if (nb_store_read(store, w, &loaded, &err) != NB_OK)
            fail_msg("%s", err.text);
        assert_int_equal(loaded.mat.row_bytes, m->row_bytes);
        assert_memory_equal(loaded.mat.codes, m->codes, (size_t)(m->n_rows * m->row_bytes));
        if (!want->fmt->affine)
            continue;
        const size_t n = (size_t)(want->n_rows * (want->n_cols / want->group_size));
        assert_int_equal(w->layout, want->layout);
        assert_int_equal(w->group_size, want->group_size);
        assert_int_equal(w->symmetric, want->symmetric);
        assert_int_equal(loaded.mat.zeros == NULL, want->symmetric);
        assert_memory_equal(loaded.mat.scales, m->scales, 2 * n);
        if (!want->symmetric)
            assert_memory_equal(loaded.mat.zeros, m->zeros, n);
    }
    nb_loaded_free(&loaded);
    nb_store_close(store);
}

/* Every allocation of writing and of reading back fails once. */
static inline void walk_allocations(const sample *s)
{
    const int64_t live = nb_alloc_live();
    int64_t n, planned;
    nb_err err;
    for (n = 1;; n++) {
        nb_alloc_fail_at(n);
        const nb_status status = write_sample(s, "walk", &planned, &err);
        nb_alloc_fail_at(0);
        assert_int_equal(nb_alloc_live(), live);
        if (status == NB_OK)
            break;
        assert_int_equal(status, NB_MEMORY);
        assert_false(scratch_exists("walk"));
    }
    assert_true(n > 10);
    for (n = 1;; n++) {
        nb_store *store = NULL;
        nb_loaded loaded = {0};
        nb_alloc_fail_at(n);
        nb_status status = nb_store_open(&store, scratch_path("walk"), &err);
        for (int i = 0; status == NB_OK && i < s->n; i++)
            status = nb_store_read(store, nb_store_weight(store, i), &loaded, &err);
        nb_alloc_fail_at(0);
        nb_loaded_free(&loaded);
        nb_store_close(store);
        assert_int_equal(nb_alloc_live(), live);
        if (status == NB_OK)
            break;
        if (status != NB_MEMORY)
            fail_msg("allocation %lld: %s", (long long)n, err.text);
    }
    assert_true(n > 10);
}

/* An object with `key` set to `value` (JSON, NULL: removed). Free with json_decref. */
static inline json_t *changed(const char *text, const char *key, const char *value)
{
    json_t *config = json_loads(text, 0, NULL);
    assert_non_null(config);
    if (value == NULL) {
        json_object_del(config, key);
        return config;
    }
    json_t *v = json_loads(value, JSON_DECODE_ANY, NULL);
    assert_non_null(v);
    assert_int_equal(json_object_set_new(config, key, v), 0);
    return config;
}

#endif
