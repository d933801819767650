/* Folders with one quantized module "m" in the layouts of GPTQ, AWQ and HQQ, made by hand for
 * tests. */
#ifndef NB_TESTS_STORE_QFOLDER_H
#define NB_TESTS_STORE_QFOLDER_H

#include "numeric/minifloat.h"
#include "store/pieces.h"
#include "store/qweight.h"
#include "store/sample.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- weights to write ---- */

static inline nb_weight *add_weight(sample *s, nb_layout layout, const nb_format *fmt,
                                    int64_t n_rows, int64_t n_cols, int64_t group_size,
                                    bool symmetric)
{
    return add_like(s, &(nb_weight){.fmt = fmt,
                                    .n_rows = n_rows,
                                    .n_cols = n_cols,
                                    .group_size = group_size,
                                    .symmetric = symmetric,
                                    .scale_type = NB_F16,
                                    .layout = layout});
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
    nb_store *store = open_good(name);
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
        const size_t floats = n * nb_float_bytes(want->scale_type);
        assert_int_equal(w->scale_type, want->scale_type);
        assert_int_equal(w->float_zeros, want->float_zeros);
        assert_int_equal(loaded.mat.zeros == NULL, want->symmetric || want->float_zeros);
        assert_memory_equal(loaded.mat.scales, m->scales, floats);
        if (want->float_zeros)
            assert_memory_equal(loaded.mat.float_zeros, m->float_zeros, floats);
        else if (!want->symmetric)
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
    walk_reading("walk", 10);
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
