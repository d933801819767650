/* FP8 and NF4 weights that are written read back as they were; what a folder cannot hold is
 * refused. */
#include "base/rng.h"
#include "store/float_folder.h"
#include "store/store.h"
#include "support/golden.h"
#include "support/scratch.h"

#include <stdlib.h>
#include <string.h>

enum { ROWS = 37, COLS = 192 };

static nb_mat make_mat(const kind *k, uint64_t stream)
{
    nb_mat m = {.fmt = k->fmt,
                .n_rows = ROWS,
                .n_cols = COLS,
                .group_size = k->group_size,
                .scale_type = k->scale_type,
                .scale_rows = k->scale_rows};
    nb_err err;
    assert_int_equal(nb_format_row_bytes(k->fmt, COLS, &m.row_bytes, &err), NB_OK);
    const size_t n = (size_t)(ROWS * nb_mat_n_groups(&m));
    m.codes = calloc((size_t)(ROWS * m.row_bytes), 1);
    m.scales = calloc(n, 4);
    if (k->nested)
        m.nested = (nb_nested){.code = calloc(n, 1), .step = calloc(n, 4)};
    float *x = malloc(sizeof(float) * ROWS * COLS);
    for (int i = 0; i < ROWS * COLS; i++)
        x[i] = (float)(nb_rng_uniform(4, stream, (uint64_t)i) - 0.5);
    for (int r = 0; r < ROWS && nb_mat_shares(&m); r++)
        m.fmt->survey_row(&m, r, x + r * COLS);
    if (nb_mat_shares(&m))
        m.fmt->settle(&m);
    for (int r = 0; r < ROWS; r++)
        m.fmt->encode_row(&m, r, x + r * COLS);
    free(x);
    return m;
}

static void free_mat(nb_mat *m)
{
    free(m->codes);
    free(m->scales);
    free(m->nested.code);
    free(m->nested.step);
}

static nb_status write_plan(const nb_weight *plan, const nb_mat *mats, int n, nb_err *err)
{
    json_t *quantization = NULL;
    nb_buf config = {0};
    nb_sink *sink = NULL;
    nb_status s = nb_hf_quantization(&quantization, plan, n, err);
    json_t *all =
        json_pack("{s:s,s:O}", "model_type", "llama", "quantization_config", quantization);
    json_decref(quantization);
    if (s == NB_OK)
        s = nb_json_write(&config, all, false, err);
    json_decref(all);
    const nb_side_file side = {"config.json", config.data, config.len};
    if (s == NB_OK)
        s = nb_sink_open_hf(&sink, scratch_path("m"), true, plan, n, &side, 1, 0, err);
    for (int i = 0; i < n && s == NB_OK; i++)
        s = nb_sink_put(sink, i, &mats[i], err);
    if (s == NB_OK) {
        s = nb_sink_commit(sink, err);
        sink = NULL;
    }
    nb_sink_abort(sink);
    nb_buf_free(&config);
    return s;
}

static void expect_plan(const nb_weight *plan, const nb_mat *mats, int n)
{
    nb_store *store = open_good("m");
    nb_loaded loaded = {0};
    nb_err err;
    float was[COLS], is[COLS];
    assert_int_equal(nb_store_n_weights(store), n);
    for (int i = 0; i < n; i++) {
        const nb_weight *w = nb_store_find(store, plan[i].name);
        assert_non_null(w);
        assert_ptr_equal(w->fmt, plan[i].fmt);
        assert_int_equal(w->group_size, plan[i].group_size);
        assert_int_equal(w->scale_rows, plan[i].scale_rows);
        assert_int_equal(w->nested, plan[i].nested);
        assert_memory_equal(&w->act.bits, &plan[i].act.bits, sizeof w->act.bits);
        assert_int_equal(w->act.is_float, plan[i].act.is_float);
        assert_int_equal(w->act.is_static, plan[i].act.is_static);
        assert_int_equal(w->act.group_size, plan[i].act.group_size);
        assert_true(w->act.scale == plan[i].act.scale);
        if (nb_store_read(store, w, &loaded, &err) != NB_OK)
            fail_msg("%s", err.text);
        assert_memory_equal(loaded.mat.codes, mats[i].codes, (size_t)(ROWS * mats[i].row_bytes));
        for (int r = 0; r < ROWS; r++) {
            mats[i].fmt->decode_row(&mats[i], r, was);
            w->fmt->decode_row(&loaded.mat, r, is);
            assert_memory_equal(was, is, sizeof was);
        }
    }
    nb_loaded_free(&loaded);
    nb_store_close(store);
}

static void fill_plan(nb_weight *plan, nb_mat *mats, const kind *kinds, int n)
{
    static const char *const names[] = {"a.weight", "b.weight", "c.weight",
                                        "d.weight", "e.weight", "f.weight"};
    for (int i = 0; i < n; i++) {
        const kind *k = &kinds[i];
        mats[i] = make_mat(k, (uint64_t)i);
        plan[i] = (nb_weight){.name = names[i],
                              .n_dims = 2,
                              .dims = {ROWS, COLS},
                              .n_rows = ROWS,
                              .n_cols = COLS,
                              .fmt = k->fmt,
                              .group_size = k->group_size,
                              .symmetric = true,
                              .scale_type = k->scale_type,
                              .scale_rows = k->scale_rows,
                              .nested = k->nested,
                              .act = k->act,
                              .layout = k->fmt == &nb_format_nf4 ? NB_LAYOUT_BNB : NB_LAYOUT_CT};
    }
}

#define F &nb_format_fp8_e4m3

static const kind fp8_kinds[] = {
    {F, COLS, 0, NB_BF16, false, {.bits = 8, .per_token = true, .is_float = true}},
    {F, COLS, ROWS, NB_BF16, false, {.bits = 8, .per_token = true, .is_float = true}},
    {F, 128, 16, NB_F32, false, {.bits = 8, .is_float = true, .group_size = 128}},
    {F, 64, 0, NB_F16, false, {0}},
    {F,
     COLS,
     0,
     NB_F32,
     false,
     {.bits = 8, .per_token = true, .is_float = true, .is_static = true, .scale = 0.125f}},
    {F, 256, 128, NB_BF16, false, {.bits = 8, .is_float = true, .group_size = 128}},
};

static const kind nf4_kinds[] = {
    {&nb_format_nf4, 64, 0, NB_F32, true, {0}},
    {&nb_format_nf4, 64, 0, NB_F32, false, {0}},
    {&nb_format_nf4, 32, 0, NB_F32, true, {0}},
};

static void what_is_written_reads_back(void **state)
{
    (void)state;
    for (int nf4 = 0; nf4 < 2; nf4++) {
        const kind *kinds = nf4 ? nf4_kinds : fp8_kinds;
        const int n = nf4 ? 3 : 6;
        nb_weight plan[6];
        nb_mat mats[6];
        nb_err err;
        fill_plan(plan, mats, kinds, n);
        if (write_plan(plan, mats, n, &err) != NB_OK)
            fail_msg("%s", err.text);
        expect_plan(plan, mats, n);
        for (int i = 0; i < n; i++) { /* and each alone, where names need not be listed */
            if (write_plan(&plan[i], &mats[i], 1, &err) != NB_OK)
                fail_msg("%s", err.text);
            expect_plan(&plan[i], &mats[i], 1);
        }
        for (int i = 0; i < n; i++)
            free_mat(&mats[i]);
    }
}

static void what_a_folder_cannot_hold(void **state)
{
    (void)state;
    nb_weight plan[2];
    nb_mat mats[2];
    nb_err err;
    const kind mixed[] = {nf4_kinds[0], fp8_kinds[0]};
    fill_plan(plan, mats, mixed, 2);
    assert_int_equal(write_plan(plan, mats, 2, &err), NB_UNSUPPORTED);
    assert_non_null(strstr(err.text, "a folder of bitsandbytes holds nf4 only"));
    plan[1].scale_rows = 16; /* not as put */
    assert_int_equal(write_plan(&plan[1], &mats[1], 1, &err), NB_USAGE);
    assert_non_null(strstr(err.text, "planned scales for 16 rows each"));
    free_mat(&mats[0]);
    free_mat(&mats[1]);
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    for (int nf4 = 0; nf4 < 2; nf4++) {
        nb_weight plan[6];
        nb_mat mats[6];
        nb_err err = {0};
        const int n = nf4 ? 1 : 3;
        fill_plan(plan, mats, nf4 ? nf4_kinds : fp8_kinds, n);
        assert_int_equal(write_plan(plan, mats, n, &err), NB_OK);
        const int64_t live = nb_alloc_live();
        for (int64_t at = 1;; at++) {
            nb_alloc_fail_at(at);
            const nb_status s = read_all("m", &err);
            nb_alloc_fail_at(0);
            assert_int_equal(nb_alloc_live(), live);
            if (s == NB_OK) {
                assert_true(at > 10);
                break;
            }
            assert_int_equal(s, NB_MEMORY);
        }
        for (int i = 0; i < n; i++)
            free_mat(&mats[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_reads_back),
        cmocka_unit_test(what_a_folder_cannot_hold),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
