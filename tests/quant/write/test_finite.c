/* Values that are not finite are found wherever they are and whoever looks, refused by name, or
 * read as zeros, of which no other value knows anything. */
#include "quant/write/finite.h"

#include "base/json.h"
#include "support/golden.h"
#include "support/scratch.h"
#include "support/st_floats.h"
#include "support/tiny_model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const tiny_model small = {.biases = true, .n_vocab = 700};

/* Sets value `at` of a tensor in the model's file. */
static void plant(const char *folder, const char *tensor, int64_t at, float value)
{
    size_t n;
    float *x = st_floats_read(folder, tensor, &n);
    x[at] = value;
    st_floats_write(folder, tensor, x, n);
    free(x);
}

static nb_store *open_model(const char *tensor, int64_t at, float value)
{
    static int n_models;
    char name[24];
    nb_err err;
    nb_store *store;
    snprintf(name, sizeof name, "m%d", n_models++);
    const char *path = tiny_model_write(name, &small);
    if (tensor != NULL)
        plant(path, tensor, at, value);
    assert_int_equal(nb_store_open(&store, path, &err), NB_OK);
    return store;
}

/* Every kind of weight, first and last value, and either sort: the message has file, tensor, value
 * and place, with any number of threads. */
static void refused_wherever_it_is(void **state)
{
    (void)state;
    static const struct {
        const char *tensor;
        int64_t n_rows, n_cols;
    } places[] = {{"model.embed_tokens.weight", 700, 64},
                  {"lm_head.weight", 700, 64},
                  {"model.norm.weight", 1, 64},
                  {"model.layers.0.input_layernorm.weight", 1, 64},
                  {"model.layers.1.post_attention_layernorm.weight", 1, 64},
                  {"model.layers.0.self_attn.q_proj.bias", 1, 64},
                  {"model.layers.1.mlp.down_proj.bias", 1, 64},
                  {"model.layers.1.self_attn.v_proj.weight", 32, 64},
                  {"model.layers.0.mlp.down_proj.weight", 64, 128}};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        for (int k = 0; k < 2; k++) {
            char said[300];
            nb_pool *pool;
            nb_finite f;
            nb_err err = {0};
            const int64_t at = k == 0 ? 0 : places[i].n_rows * places[i].n_cols - 1;
            nb_store *store = open_model(places[i].tensor, at, k == 0 ? NAN : -INFINITY);
            assert_int_equal(nb_pool_open(&pool, 1 + 2 * k, &err), NB_OK);
            assert_int_equal(nb_finite_settle(&f, store, NB_NONFINITE_REFUSE, pool, &err), NB_DATA);
            snprintf(said, sizeof said,
                     "%s: tensor '%s' holds %s at [%lld, %lld]; --nonfinite=", nb_store_path(store),
                     places[i].tensor, k == 0 ? "nan" : "-inf", (long long)(at / places[i].n_cols),
                     (long long)(at % places[i].n_cols));
            if (strncmp(err.text, said, strlen(said)) != 0)
                fail_msg("'%s' does not begin with '%s'", err.text, said);
            nb_finite_free(&f);
            nb_pool_close(pool);
            nb_store_close(store);
        }
    }
}

static void read_all(nb_store *store, const char *name, bool by_rows, float *out)
{
    nb_err err;
    nb_loaded l = {0};
    const nb_weight *w = nb_store_find(store, name);
    assert_non_null(w);
    assert_true(nb_store_reads_rows(store, w));
    for (int64_t r = 0; r < w->n_rows; r++) {
        if (by_rows)
            assert_int_equal(nb_store_read_rows(store, w, r, 1, &l, &err), NB_OK);
        else if (r == 0)
            assert_int_equal(nb_store_read(store, w, &l, &err), NB_OK);
        assert_int_equal(l.mat.n_cols, w->n_cols);
        l.mat.fmt->decode_row(&l.mat, by_rows ? 0 : r, out + r * w->n_cols);
    }
    nb_loaded_free(&l);
}

/* Only what was not finite is zero, however it is read; in another store of the model, too; and
 * not any more when that is over. */
static void zeros_take_its_place(void **state)
{
    (void)state;
    static const char name[] = "model.layers.1.self_attn.v_proj.weight";
    enum { ROWS = 32, COLS = 64, N = ROWS * COLS };
    static float was[N], is[N];
    nb_err err;
    nb_pool *pool;
    nb_finite f;
    nb_store *again, *store = open_model(name, 77, NAN);
    plant(nb_store_path(store), name, N - 1, INFINITY);
    assert_int_equal(nb_store_open(&again, nb_store_path(store), &err), NB_OK);
    nb_store_close(store); /* its file has changed */
    assert_int_equal(nb_store_open(&store, nb_store_path(again), &err), NB_OK);
    assert_int_equal(nb_pool_open(&pool, 2, &err), NB_OK);
    read_all(store, name, false, was);
    assert_int_equal(nb_finite_settle(&f, store, NB_NONFINITE_ZERO, pool, &err), NB_OK);
    assert_int_equal(nb_finite_n_zeroed(&f, nb_store_find(store, name)), 2);
    assert_int_equal(nb_finite_n_zeroed(&f, nb_store_find(store, "model.norm.weight")), 0);
    assert_int_equal(nb_finite_repeat(&f, again, &err), NB_OK);
    for (int k = 0; k < 4; k++) {
        read_all(k < 2 ? store : again, name, k % 2 == 0, is);
        for (int64_t i = 0; i < N; i++) {
            if (i == 77 || i == N - 1)
                assert_true(is[i] == 0 && !isfinite(was[i]));
            else
                assert_memory_equal(&is[i], &was[i], sizeof *is);
        }
    }
    nb_finite_lift(&f);
    read_all(store, name, false, is);
    assert_memory_equal(is, was, sizeof is);
    assert_int_equal(nb_finite_n_zeroed(&f, nb_store_find(store, name)), 2);
    nb_finite_free(&f);
    nb_pool_close(pool);
    nb_store_close(again);
    nb_store_close(store);
}

/* A model without any is as it was, for either wish. */
static void finite_models_are_left_alone(void **state)
{
    (void)state;
    nb_err err;
    nb_pool *pool;
    nb_store *store = open_model(NULL, 0, 0);
    assert_int_equal(nb_pool_open(&pool, 2, &err), NB_OK);
    for (int k = 0; k < 2; k++) {
        nb_finite f;
        nb_loaded l = {0};
        const nb_nonfinite what = k == 0 ? NB_NONFINITE_REFUSE : NB_NONFINITE_ZERO;
        assert_int_equal(nb_finite_settle(&f, store, what, pool, &err), NB_OK);
        for (int64_t i = 0; i < nb_store_n_weights(store); i++) {
            const nb_weight *w = nb_store_weight(store, i);
            assert_int_equal(nb_finite_n_zeroed(&f, w), 0);
            assert_int_equal(nb_store_read(store, w, &l, &err), NB_OK);
            assert_ptr_equal(l.mat.codes, l.codes.data); /* no copy was made */
        }
        nb_loaded_free(&l);
        nb_finite_free(&f);
    }
    nb_pool_close(pool);
    nb_store_close(store);
}

/* Every allocation fails once. */
static void memory_that_fails_leaves_nothing(void **state)
{
    (void)state;
    nb_err err;
    nb_pool *pool;
    nb_finite f;
    int n_failed = 0;
    nb_status s = NB_MEMORY;
    static const char name[] = "model.layers.0.mlp.up_proj.weight";
    assert_int_equal(nb_pool_open(&pool, 2, &err), NB_OK);
    for (int64_t n = 1; s != NB_OK; n++) {
        nb_loaded l = {0};
        nb_store *store = open_model(name, 5, NAN);
        const int64_t live = nb_alloc_live();
        nb_alloc_fail_at(n);
        s = nb_finite_settle(&f, store, NB_NONFINITE_ZERO, pool, &err);
        if (s == NB_OK)
            s = nb_store_read(store, nb_store_find(store, name), &l, &err);
        nb_alloc_fail_at(0);
        assert_true(s == NB_OK || s == NB_MEMORY);
        n_failed += s != NB_OK;
        nb_loaded_free(&l);
        nb_finite_free(&f);
        assert_true(nb_alloc_live() <= live + 1); /* the store may have its table of marks */
        nb_store_close(store);
    }
    assert_true(n_failed > 10);
    nb_pool_close(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refused_wherever_it_is),
        cmocka_unit_test(zeros_take_its_place),
        cmocka_unit_test(finite_models_are_left_alone),
        cmocka_unit_test(memory_that_fails_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
