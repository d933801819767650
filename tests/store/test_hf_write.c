/* Hugging Face folders that are written: they read back as they were, whatever fails on the way. */
#include "store/hf_folder.h"
#include "store/sample.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- writing, and reading back ---- */

static void add_weight(sample *s, const nb_format *fmt, int64_t n_rows, int64_t n_cols,
                       int64_t group_size, bool symmetric, nb_float_type scale_type, int act)
{
    add_like(s, &(nb_weight){.fmt = fmt,
                             .n_rows = n_rows,
                             .n_cols = n_cols,
                             .group_size = group_size,
                             .symmetric = symmetric,
                             .scale_type = scale_type,
                             .act = {.bits = act, .per_token = act != 0}});
}

static void finish_sample(sample *s)
{
    nb_err err;
    json_t *q = NULL;
    if (nb_ct_config(&q, s->plan, s->n, &err) != NB_OK)
        fail_msg("%s", err.text);
    json_t *config = json_pack("{s:s,s:o*}", "model_type", "llama", "quantization_config", q);
    s->config = json_dumps(config, 0);
    assert_non_null(s->config);
    json_decref(config);
}

/* One of each kind, with sizes that leave padding everywhere. */
static void all_kinds(sample *s)
{
    *s = (sample){0};
    add_weight(s, &nb_format_bf16, 7, 9, 0, false, NB_F32, 0);
    add_weight(s, &nb_format_int4, 10, 64, 32, true, NB_BF16, 0);
    add_weight(s, &nb_format_int4, 9, 64, 32, false, NB_BF16, 0);
    add_weight(s, &nb_format_int4, 3, 41, 41, true, NB_F16, 0);
    add_weight(s, &nb_format_int4, 11, 43, 43, false, NB_F32, 0);
    add_weight(s, &nb_format_int4, 5, 64, 64, false, NB_F16, 8);
    add_weight(s, &nb_format_int8, 5, 64, 32, true, NB_F16, 0);
    add_weight(s, &nb_format_int8, 6, 37, 37, false, NB_F16, 0);
    add_weight(s, &nb_format_int8, 5, 39, 39, true, NB_BF16, 8);
    add_weight(s, &nb_format_int8, 5, 39, 13, false, NB_BF16, 8);
    add_weight(s, &nb_format_f32, 1, 3, 0, false, NB_F32, 0);
    add_weight(s, &nb_format_int3, 35, 64, 32, false, NB_F16, 0);
    add_weight(s, &nb_format_int3, 3, 41, 41, true, NB_BF16, 0);
    add_weight(s, &nb_format_int2, 19, 24, 8, false, NB_BF16, 0);
    add_weight(s, &nb_format_int2, 2, 33, 33, true, NB_F32, 0);
    finish_sample(s);
}

/* Puts weight i; of plain numbers zeros, if what they are is only to be known at the end. */
static nb_status put_weight(nb_sink *sink, const sample *s, int64_t i, bool amended, nb_err *err)
{
    static const uint8_t zeros[200];
    nb_mat mat = s->mats[i];
    if (amended && !mat.fmt->affine) {
        assert_true((size_t)(mat.n_rows * mat.row_bytes) <= sizeof zeros);
        mat.codes = (uint8_t *)zeros;
    }
    return nb_sink_put(sink, i, &mat, err);
}

static nb_status amend_weights(nb_sink *sink, const sample *s, nb_err *err)
{
    const char *path;
    NB_TRY(nb_sink_finish(sink, &path, err));
    for (int i = 0; i < s->n; i++) {
        if (!s->mats[i].fmt->affine)
            NB_TRY(nb_sink_amend(sink, i, &s->mats[i], err));
    }
    return NB_OK;
}

static nb_status write_amended(const sample *s, const char *name, bool force, int64_t shard_bytes,
                               bool amended, int64_t *planned, nb_err *err)
{
    const nb_side_file side[] = {
        {.name = "config.json", .bytes = s->config, .len = strlen(s->config)},
        {.name = "tokenizer.json", .bytes = "{}", .len = 2},
    };
    nb_sink *sink;
    NB_TRY(nb_sink_open_hf(&sink, scratch_path(name), force, s->plan, s->n, side, 2, shard_bytes,
                           err));
    *planned = nb_sink_planned_bytes(sink);
    nb_status status = NB_OK;
    for (int i = 0; i < s->n && status == NB_OK; i++)
        status = put_weight(sink, s, i, amended, err);
    if (status == NB_OK && amended)
        status = amend_weights(sink, s, err);
    if (status == NB_OK)
        return nb_sink_commit(sink, err);
    nb_sink_abort(sink);
    return status;
}

static nb_status write_sample(const sample *s, const char *name, bool force, int64_t shard_bytes,
                              int64_t *planned, nb_err *err)
{
    return write_amended(s, name, force, shard_bytes, false, planned, err);
}

static void expect_same(const nb_mat *a, const nb_mat *b)
{
    assert_ptr_equal(a->fmt, b->fmt);
    assert_int_equal(a->n_rows, b->n_rows);
    assert_int_equal(a->n_cols, b->n_cols);
    assert_int_equal(a->row_bytes, b->row_bytes);
    assert_memory_equal(a->codes, b->codes, (size_t)(a->n_rows * a->row_bytes));
    assert_int_equal(a->group_size, b->group_size);
    if (!a->fmt->affine)
        return;
    const size_t n = (size_t)(a->n_rows * nb_mat_n_groups(a));
    assert_int_equal(a->scale_type, b->scale_type);
    assert_memory_equal(a->scales, b->scales, n * nb_float_bytes(a->scale_type));
    assert_int_equal(a->zeros == NULL, b->zeros == NULL);
    if (a->zeros != NULL)
        assert_memory_equal(a->zeros, b->zeros, n);
}

/* Rows that are read without the others are what they are among them, wherever that can be done. */
static void expect_rows(nb_store *store, const nb_weight *w, const nb_mat *all)
{
    nb_loaded rows = {0};
    nb_err err;
    assert_int_equal(nb_store_reads_rows(store, w), !w->fmt->affine);
    for (int64_t row = 0; row < w->n_rows && !w->fmt->affine; row++) {
        const int64_t n = row % 3 < w->n_rows - row ? row % 3 : w->n_rows - row;
        assert_int_equal(nb_store_read_rows(store, w, row, n, &rows, &err), NB_OK);
        assert_ptr_equal(rows.mat.fmt, w->fmt);
        assert_int_equal(rows.mat.n_rows, n);
        assert_int_equal(rows.mat.n_cols, w->n_cols);
        assert_memory_equal(rows.mat.codes, nb_mat_row(all, row), (size_t)(n * all->row_bytes));
    }
    nb_loaded_free(&rows);
}

static void expect_sample(const sample *s, const char *name, int64_t planned)
{
    nb_store *store = open_good(name);
    nb_loaded loaded = {0};
    nb_err err;
    assert_int_equal(nb_store_n_weights(store), s->n);
    assert_int_equal(nb_store_file_bytes(store), planned);
    for (int i = 0; i < s->n; i++) {
        const nb_weight *w = nb_store_weight(store, i), *p = &s->plan[i];
        assert_string_equal(w->name, p->name);
        assert_int_equal(w->n_dims, p->n_dims);
        assert_memory_equal(w->dims, p->dims, sizeof w->dims);
        assert_int_equal(w->act.bits, p->act.bits);
        assert_int_equal(w->act.per_token, p->act.per_token);
        if (p->fmt->affine)
            assert_int_equal(w->symmetric, p->symmetric);
        if (nb_store_read(store, w, &loaded, &err) != NB_OK)
            fail_msg("%s", err.text);
        expect_same(&loaded.mat, &s->mats[i]);
        expect_rows(store, w, &s->mats[i]);
    }
    nb_loaded_free(&loaded);
    nb_store_close(store);
}

static void what_is_written_reads_back(void **state)
{
    (void)state;
    sample s;
    all_kinds(&s);
    static const struct {
        int64_t shard_bytes;
        int n_files; /* tensors, and the index */
    } cases[] = {{0, 1}, {100000, 1}, {1, 16}, {1000, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int64_t planned;
        nb_err err;
        if (write_sample(&s, "out", i > 0, cases[i].shard_bytes, &planned, &err) != NB_OK)
            fail_msg("%s", err.text);
        expect_sample(&s, "out", planned);
        if (cases[i].n_files > 0)
            assert_int_equal(scratch_count("out"), cases[i].n_files + 2);
        assert_int_equal(scratch_exists("out/model.safetensors"), cases[i].n_files == 1);
        assert_true(scratch_holds("out/tokenizer.json", "{}"));
        assert_true(scratch_holds("out/config.json", s.config));
    }
    free_sample(&s);
}

/* Every row and column count around the word sizes. */
static void every_small_shape_reads_back(void **state)
{
    (void)state;
    nb_err err;
    bool force = false;
    for (int64_t n_cols = 1; n_cols <= 10; n_cols++) {
        for (int64_t n_rows = 1; n_rows <= 10; n_rows += 3) {
            sample s = {0};
            int64_t planned;
            for (int k = 0; k < 8; k++)
                add_weight(&s, k & 1 ? &nb_format_int4 : &nb_format_int8, n_rows, n_cols,
                           k & 2 ? 1 : n_cols, (k & 4) != 0, NB_F16, 0);
            finish_sample(&s);
            if (write_sample(&s, "small", force, 0, &planned, &err) != NB_OK)
                fail_msg("%s", err.text);
            expect_sample(&s, "small", planned);
            free_sample(&s);
            force = true;
        }
    }
}

static void an_empty_plan_is_a_folder(void **state)
{
    (void)state;
    sample s = {0};
    int64_t planned;
    nb_err err;
    finish_sample(&s);
    assert_int_equal(write_sample(&s, "bare", false, 0, &planned, &err), NB_OK);
    expect_sample(&s, "bare", planned);
    free_sample(&s);
}

static void what_a_folder_cannot_hold(void **state)
{
    (void)state;
    nb_err err;
    nb_sink *sink;
    nb_weight w = {.name = "a.weight",
                   .n_dims = 2,
                   .dims = {4, 32},
                   .n_rows = 4,
                   .n_cols = 32,
                   .fmt = &nb_format_q4_0};
    const nb_side_file bad_names[] = {{.name = "../x"},
                                      {.name = ".x"},
                                      {.name = ""},
                                      {.name = "model.safetensors"},
                                      {.name = "model.safetensors.index.json"}};
    assert_int_equal(nb_sink_open_hf(&sink, scratch_path("no"), false, &w, 1, NULL, 0, 0, &err),
                     NB_UNSUPPORTED);
    assert_non_null(strstr(err.text, "weight 'a.weight': format q4_0"));
    w.fmt = &nb_format_int8;
    w.group_size = 32;
    w.name = "experts";
    assert_int_equal(nb_sink_open_hf(&sink, scratch_path("no"), false, &w, 1, NULL, 0, 0, &err),
                     NB_UNSUPPORTED);
    w.name = "a.weight";
    for (size_t i = 0; i < sizeof bad_names / sizeof *bad_names; i++)
        assert_int_equal(
            nb_sink_open_hf(&sink, scratch_path("no"), false, &w, 1, &bad_names[i], 1, 0, &err),
            NB_USAGE);
    assert_null(sink);
    assert_false(scratch_exists("no"));
    assert_false(scratch_exists(".no.nibble-tmp"));
}

static void nothing_is_there_before_the_end(void **state)
{
    (void)state;
    sample s;
    all_kinds(&s);
    nb_err err;
    const int64_t live = nb_alloc_live();
    for (int stop = 0; stop <= s.n; stop++) {
        nb_sink *sink;
        const nb_side_file side = {.name = "config.json", .bytes = s.config, .len = 2};
        assert_int_equal(
            nb_sink_open_hf(&sink, scratch_path("gone"), false, s.plan, s.n, &side, 1, 700, &err),
            NB_OK);
        for (int i = 0; i < stop; i++)
            assert_int_equal(nb_sink_put(sink, i, &s.mats[i], &err), NB_OK);
        assert_false(scratch_exists("gone"));
        assert_true(scratch_exists(".gone.nibble-tmp"));
        nb_sink_abort(sink);
        assert_false(scratch_exists("gone"));
        assert_false(scratch_exists(".gone.nibble-tmp"));
        assert_int_equal(nb_alloc_live(), live);
    }
    free_sample(&s);
}

/* Plain numbers that are only known once all is there: in any shard, and of the planned shape. */
static void plain_numbers_are_amended(void **state)
{
    (void)state;
    sample s;
    nb_err err = {0};
    int64_t planned;
    all_kinds(&s);
    static const int64_t shards[] = {1 << 20, 700, 64};
    for (int i = 0; i < 3; i++) {
        if (write_amended(&s, "amended", i > 0, shards[i], true, &planned, &err) != NB_OK)
            fail_msg("%s", err.text);
        expect_sample(&s, "amended", planned);
    }
    const nb_side_file side = {.name = "config.json", .bytes = s.config, .len = strlen(s.config)};
    nb_sink *sink;
    const char *path;
    assert_int_equal(
        nb_sink_open_hf(&sink, scratch_path("early"), false, s.plan, s.n, &side, 1, 1 << 20, &err),
        NB_OK);
    for (int i = 0; i < s.n; i++) {
        assert_int_equal(nb_sink_amend(sink, 0, &s.mats[0], &err), NB_USAGE); /* not all are put */
        assert_int_equal(nb_sink_put(sink, i, &s.mats[i], &err), NB_OK);
    }
    assert_int_equal(nb_sink_finish(sink, &path, &err), NB_OK);
    assert_int_equal(nb_sink_amend(sink, 1, &s.mats[1], &err), NB_USAGE); /* of codes */
    assert_int_equal(nb_sink_amend(sink, -1, &s.mats[0], &err), NB_USAGE);
    assert_int_equal(nb_sink_amend(sink, s.n, &s.mats[0], &err), NB_USAGE);
    assert_int_equal(nb_sink_amend(sink, 0, &s.mats[0], &err), NB_OK);
    assert_int_not_equal(nb_sink_amend(sink, 0, &s.mats[10], &err), NB_OK); /* another shape */
    assert_int_not_equal(nb_sink_commit(sink, &err), NB_OK);
    assert_false(scratch_exists("early"));
    free_sample(&s);
}

static void folders_are_replaced_only_by_force(void **state)
{
    (void)state;
    sample s, t = {0};
    int64_t planned;
    nb_err err;
    all_kinds(&s);
    add_weight(&t, &nb_format_f32, 2, 2, 0, false, NB_F32, 0);
    finish_sample(&t);
    assert_int_equal(write_sample(&s, "kept", false, 900, &planned, &err), NB_OK);
    assert_int_equal(write_sample(&t, "kept", false, 0, &planned, &err), NB_USAGE);
    assert_int_equal(write_sample(&t, "kept", true, 0, &planned, &err), NB_OK);
    expect_sample(&t, "kept", planned);
    assert_int_equal(scratch_count("kept"), 3);
    free_sample(&s);
    free_sample(&t);
}

/* ---- failures ---- */

static void every_allocation_may_fail(void **state)
{
    (void)state;
    sample s;
    int64_t planned, n;
    nb_err err;
    all_kinds(&s);
    const int64_t live = nb_alloc_live();
    for (n = 1;; n++) {
        nb_alloc_fail_at(n);
        const nb_status status = write_sample(&s, "walk", false, 700, &planned, &err);
        nb_alloc_fail_at(0);
        assert_int_equal(nb_alloc_live(), live);
        assert_false(scratch_exists(".walk.nibble-tmp"));
        if (status == NB_OK)
            break;
        assert_int_equal(status, NB_MEMORY);
        assert_false(scratch_exists("walk"));
    }
    assert_true(n > 20);
    walk_reading("walk", 20);
    free_sample(&s);
}

static void every_transfer_may_fail(void **state)
{
    (void)state;
    sample s;
    int64_t planned = 0, n;
    nb_err err;
    all_kinds(&s);
    const int64_t live = nb_alloc_live();
    for (n = 1;; n++) {
        nb_file_fail_at(n, n % 2 ? ENOSPC : EIO);
        const nb_status status =
            write_amended(&s, "disk", n > 1 && scratch_exists("disk"), 700, true, &planned, &err);
        nb_file_fail_at(0, 0);
        assert_int_equal(nb_alloc_live(), live);
        assert_false(scratch_exists(".disk.nibble-tmp"));
        if (status == NB_OK)
            break;
        assert_int_equal(status, NB_IO);
        if (scratch_exists("disk")) /* only the sync after the rename failed */
            expect_sample(&s, "disk", planned);
    }
    assert_true(n > 30);
    expect_sample(&s, "disk", planned);
    for (n = 1;; n++) {
        nb_store *store = NULL;
        nb_loaded loaded = {0};
        nb_file_fail_at(n, EIO);
        nb_status status = nb_store_open(&store, scratch_path("disk"), &err);
        for (int i = 0; status == NB_OK && i < s.n; i++)
            status = nb_store_read(store, nb_store_weight(store, i), &loaded, &err);
        nb_file_fail_at(0, 0);
        nb_loaded_free(&loaded);
        nb_store_close(store);
        if (status == NB_OK)
            break;
        assert_int_equal(status, NB_IO);
    }
    assert_true(n > 30);
    free_sample(&s);
}

/* Thousands of broken configurations and indexes: a status, never a crash or a leak. */
static void mutations(void **state)
{
    (void)state;
    sample s;
    int64_t planned;
    nb_err err;
    all_kinds(&s);
    assert_int_equal(write_sample(&s, "mutant", false, 1500, &planned, &err), NB_OK);
    nb_buf files[2] = {{0}};
    static const char *const names[] = {"mutant/config.json",
                                        "mutant/model.safetensors.index.json"};
    for (int f = 0; f < 2; f++)
        assert_int_equal(nb_file_slurp(&files[f], scratch_path(names[f]), 1 << 20, &err), NB_OK);
    const int64_t live = nb_alloc_live();
    static const char bytes[] = "{}[]\",:0149-.aLnt\\\xff";
    int n_good = 0, n_bad = 0;
    for (uint64_t i = 0; i < 3000; i++) {
        uint32_t r[4];
        nb_philox(5, 0, i, r);
        const nb_buf *file = &files[i % 2];
        uint8_t *text = malloc(file->len);
        assert_non_null(text);
        memcpy(text, file->data, file->len);
        for (uint32_t k = 0; k <= r[0] % 2; k++)
            text[r[1 + k] % file->len] = (uint8_t)bytes[r[1 + k] / file->len % (sizeof bytes - 1)];
        scratch_write(names[i % 2], text, file->len);
        free(text);
        nb_store *store;
        nb_loaded loaded = {0};
        nb_status status = nb_store_open(&store, scratch_path("mutant"), &err);
        for (int64_t w = 0; status == NB_OK && w < nb_store_n_weights(store); w++)
            status = nb_store_read(store, nb_store_weight(store, w), &loaded, &err);
        assert_true(status == NB_OK || status == NB_DATA || status == NB_UNSUPPORTED);
        n_good += status == NB_OK;
        n_bad += status != NB_OK;
        nb_loaded_free(&loaded);
        nb_store_close(store);
        scratch_write(names[i % 2], file->data, file->len);
        assert_int_equal(nb_alloc_live(), live);
    }
    assert_true(n_good > 10 && n_bad > 1000);
    nb_buf_free(&files[0]);
    nb_buf_free(&files[1]);
    free_sample(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_reads_back),
        cmocka_unit_test(every_small_shape_reads_back),
        cmocka_unit_test(an_empty_plan_is_a_folder),
        cmocka_unit_test(what_a_folder_cannot_hold),
        cmocka_unit_test(nothing_is_there_before_the_end),
        cmocka_unit_test(plain_numbers_are_amended),
        cmocka_unit_test(folders_are_replaced_only_by_force),
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(every_transfer_may_fail),
        cmocka_unit_test(mutations),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
