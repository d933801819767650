/* Embeddings are the same rows whether a container reads them one by one or all at once; what is
 * not there is refused. */
#include "quant/weight/embedding.h"

#include "support/check.h"
#include "support/golden.h"
#include "support/scratch.h"
#include "support/st_bytes.h"

#include <stdio.h>
#include <string.h>

#define N_ROWS 300
#define N_COLS 32

static const nb_config config = {.vocab_size = N_ROWS, .d_model = N_COLS};

/* Folders with nothing but a table: BF16, whose rows can be read alone, or 8-bit codes with a scale
 * a row, which are only read together. */
static nb_store *open_table(bool codes, int n_rows)
{
    static uint8_t bytes[N_ROWS * N_COLS * 2];
    char header[400];
    nb_store *store;
    nb_err err = {0};
    const int n = n_rows * N_COLS;
    for (int i = 0; i < n_rows * N_COLS * 2; i++)
        bytes[i] = (uint8_t)(i % 2 == 1 ? 0x3c + i / 2 % 7 : i / 2 % 251);
    if (!scratch_exists("m"))
        scratch_mkdir("m");
    if (codes)
        snprintf(header, sizeof header,
                 "{\"model.embed_tokens.weight\":{\"dtype\":\"I8\",\"shape\":[%d,%d],"
                 "\"data_offsets\":[0,%d]},\"model.embed_tokens.weight_scale\":{\"dtype\":\"BF16\","
                 "\"shape\":[%d,1],\"data_offsets\":[%d,%d]}}",
                 n_rows, N_COLS, n, n_rows, n, n + 2 * n_rows);
    else
        snprintf(header, sizeof header,
                 "{\"model.embed_tokens.weight\":{\"dtype\":\"BF16\",\"shape\":[%d,%d],"
                 "\"data_offsets\":[0,%d]}}",
                 n_rows, N_COLS, 2 * n);
    st_write("m/model.safetensors", header, bytes, (size_t)(codes ? n + 2 * n_rows : 2 * n));
    scratch_text("m/config.json",
                 codes ? "{\"model_type\":\"llama\",\"quantization_config\":{"
                         "\"quant_method\":\"compressed-tensors\",\"format\":\"int-quantized\","
                         "\"ignore\":[],\"config_groups\":{\"group_0\":{"
                         "\"targets\":[\"model.embed_tokens\"],\"weights\":{\"num_bits\":8,"
                         "\"type\":\"int\",\"symmetric\":true,\"strategy\":\"channel\"}}}}}"
                       : "{\"model_type\":\"llama\"}");
    if (nb_store_open(&store, scratch_path("m"), &err) != NB_OK)
        fail_msg("%s", err.text);
    return store;
}

static void rows_are_those_of_the_table(void **state)
{
    (void)state;
    static const int32_t ids[] = {0, 299, 7, 7, 0, 123, 298, 1};
    const int64_t n = sizeof ids / sizeof *ids;
    check_run run = {.name = "embeddings"};
    for (int codes = 0; codes <= 1; codes++) {
        nb_store *store = open_table(codes != 0, N_ROWS);
        const nb_weight *w = nb_store_find(store, "model.embed_tokens.weight");
        nb_loaded all = {0};
        nb_embedding e;
        nb_err err;
        assert_int_equal(nb_store_reads_rows(store, w), !codes);
        assert_int_equal(nb_store_read(store, w, &all, &err), NB_OK);
        assert_int_equal(nb_embedding_open(&e, store, &config, &err), NB_OK);
        for (int again = 0; again < 2; again++) {
            float want[N_COLS], *got = check_floats(n * N_COLS);
            assert_int_equal(nb_embedding_rows(&e, ids, n, got, &err), NB_OK);
            for (int64_t t = 0; t < n; t++) {
                all.mat.fmt->decode_row(&all.mat, ids[t], want);
                check_same_f32(&run, codes ? "codes" : "floats", got + t * N_COLS, want, N_COLS);
            }
            check_guard(&run, "embeddings", got);
            check_free(got);
        }
        nb_embedding_close(&e);
        nb_embedding_close(&e);
        nb_loaded_free(&all);
        nb_store_close(store);
    }
    check_finish(&run);
}

static void other_ids_and_shapes_are_refused(void **state)
{
    (void)state;
    static const int32_t bad[] = {-1, N_ROWS, INT32_MIN, INT32_MAX};
    for (int codes = 0; codes <= 1; codes++) {
        nb_store *store = open_table(codes != 0, N_ROWS);
        nb_embedding e;
        nb_err err;
        float x[2 * N_COLS];
        char want[200];
        assert_int_equal(nb_embedding_open(&e, store, &config, &err), NB_OK);
        for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
            const int32_t ids[2] = {5, bad[i]};
            assert_int_equal(nb_embedding_rows(&e, ids, 2, x, &err), NB_DATA);
            snprintf(want, sizeof want, "token id %d is outside the vocabulary of 300", bad[i]);
            assert_string_equal(err.text, want);
        }
        nb_embedding_close(&e);
        nb_store_close(store);
        store = open_table(codes != 0, N_ROWS - 1);
        assert_int_equal(nb_embedding_open(&e, store, &config, &err), NB_DATA);
        snprintf(want, sizeof want,
                 "%.100s: tensor 'model.embed_tokens.weight' is [299, 32], not [300, 32]",
                 nb_store_path(store));
        assert_string_equal(err.text, want);
        nb_store_close(store);
    }
    st_write("m/model.safetensors",
             "{\"w\":{\"dtype\":\"BF16\",\"shape\":[1,1],\"data_offsets\":[0,2]}}", NULL, 2);
    scratch_text("m/config.json", "{\"model_type\":\"llama\"}");
    nb_store *store;
    nb_embedding e;
    nb_err err;
    assert_int_equal(nb_store_open(&store, scratch_path("m"), &err), NB_OK);
    assert_int_equal(nb_embedding_open(&e, store, &config, &err), NB_DATA);
    assert_non_null(strstr(err.text, "tensor 'model.embed_tokens.weight' is missing"));
    nb_store_close(store);
}

/* Wherever memory ends, nothing stays behind, and the struct is empty. */
static void every_allocation_may_fail(void **state)
{
    (void)state;
    const int64_t live = nb_alloc_live();
    for (int codes = 0; codes <= 1; codes++) {
        nb_store *store = open_table(codes != 0, N_ROWS);
        bool done = false;
        int n_failed = 0;
        for (int64_t nth = 1; !done; nth++) {
            nb_embedding e = {0};
            nb_err err;
            float x[N_COLS];
            const int32_t id = 17;
            nb_alloc_fail_at(nth);
            nb_status s = nb_embedding_open(&e, store, &config, &err);
            if (s == NB_OK)
                s = nb_embedding_rows(&e, &id, 1, x, &err);
            nb_alloc_fail_at(0);
            done = s == NB_OK;
            n_failed += !done;
            assert_true(s == NB_OK || s == NB_MEMORY);
            nb_embedding_close(&e);
            assert_true(nth < 1000);
        }
        assert_true(n_failed > 0);
        nb_store_close(store);
    }
    assert_int_equal(nb_alloc_live(), live);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_are_those_of_the_table),
        cmocka_unit_test(other_ids_and_shapes_are_refused),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
