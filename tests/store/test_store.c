/* The front of the store: what a path is, names, chat templates, and the order of puts. */
#define _GNU_SOURCE
#include "store/store.h"
#include "store/container.h"
#include "store/sniff.h"
#include "support/golden.h"
#include "support/scratch.h"
#include "support/st_bytes.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static nb_status try_open(const char *name, nb_err *err)
{
    const int64_t live = nb_alloc_live();
    nb_store *store = NULL;
    const nb_status s = nb_store_open(&store, scratch_path(name), err);
    assert_true((s == NB_OK) == (store != NULL));
    nb_store_close(store);
    assert_int_equal(nb_alloc_live(), live);
    return s;
}

static void expect_refused(const char *name, nb_status status, const char *reason)
{
    nb_err err = {0};
    const nb_status s = try_open(name, &err);
    if (s != status || strstr(err.text, reason) == NULL)
        fail_msg("%s: status %d, wanted %d with '%s': %s", name, s, status, reason, err.text);
    if (strncmp(err.text, scratch_path(name), strlen(scratch_path(name))) != 0)
        fail_msg("the message does not begin with the file: %s", err.text);
}

/* ---- what a path is ---- */

static void files_that_are_no_models(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t n;
        nb_status status;
        const char *reason;
    } cases[] = {
        {"", 0, NB_DATA, "0 bytes are too short"},
        {"x", 1, NB_DATA, "1 bytes are too short"},
        {"GGU", 3, NB_DATA, "3 bytes are too short"},
        {"FUGG\0\0\0\3", 8, NB_UNSUPPORTED, "a GGUF file with its bytes swapped"},
        {"PK\3\4\24\0\0\0\0\0", 10, NB_UNSUPPORTED, "a ZIP archive"},
        {"\x80\2}q\0(X\1\0\0", 10, NB_UNSUPPORTED, "a Python pickle"},
        {"tjgg\3\0\0\0\0\0", 10, NB_UNSUPPORTED, "a GGML file from before GGUF"},
        {"{\"a\": 1, \"b\": 2}", 16, NB_UNSUPPORTED, "a JSON text"},
        {"version https://git-lfs.github.com/spec/v1\n", 43, NB_UNSUPPORTED, "a Git LFS pointer"},
        {"\x1f\x8b\x08\0\0\0\0\0\0\0", 10, NB_UNSUPPORTED, "a gzip archive"},
        {"0123456789abcdef", 16, NB_DATA, "nothing else that is known"},
        {"\0\0\0\0\0\0\0\0\0\0\0\0", 12, NB_DATA, "nothing else that is known"},
    };
    static const char *const names[] = {"x.gguf", "x.safetensors", "x"};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (size_t k = 0; k < 3; k++) {
            scratch_write(names[k], cases[i].bytes, cases[i].n);
            expect_refused(names[k], cases[i].status, cases[i].reason);
        }
    }
    st_write("x.safetensors", "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}",
             NULL, 2);
    expect_refused("x.safetensors", NB_UNSUPPORTED, "give the folder");
    scratch_write("cut.gguf", "GGUF\3\0\0\0", 8); /* the GGUF reader's to refuse */
    expect_refused("cut.gguf", NB_DATA, "");
}

static void sniffing_looks_at_no_more_than_there_is(void **state)
{
    (void)state;
    uint8_t *pk = malloc(3);
    assert_non_null(pk);
    memcpy(pk, "PK\3", 3);
    assert_null(nb_sniff(pk, 3));
    assert_null(nb_sniff(pk, 0));
    free(pk);
    assert_non_null(nb_sniff((const uint8_t *)"PK\3\4", 4));
}

static void paths_that_are_no_files(void **state)
{
    (void)state;
    expect_refused("missing", NB_DATA, "No such file");
    assert_int_equal(symlink("loop", scratch_path("loop")), 0);
    expect_refused("loop", NB_DATA, "");
    assert_int_equal(symlink("nowhere", scratch_path("dangling")), 0);
    expect_refused("dangling", NB_DATA, "No such file");
    assert_int_equal(mkfifo(scratch_path("fifo"), 0666), 0);
    expect_refused("fifo", NB_DATA, "not a regular file"); /* without waiting for a writer */
    nb_err err;
    nb_store *store;
    assert_int_equal(nb_store_open(&store, "/dev/zero", &err), NB_DATA);
    assert_int_equal(nb_store_open(&store, "", &err), NB_DATA);
    scratch_mkdir("empty");
    expect_refused("empty", NB_DATA, "No such file"); /* config.json */
}

/* ---- names ---- */

static const char two_weights[] =
    "{\"b.weight\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
    "\"a.weight\":{\"dtype\":\"BF16\",\"shape\":[3,2],\"data_offsets\":[4,16]}}";

static void make_folder(void)
{
    if (!scratch_exists("m"))
        scratch_mkdir("m");
    scratch_text("m/config.json", "{\"model_type\":\"llama\"}");
    st_write("m/model.safetensors", two_weights, NULL, 16);
}

static void weights_are_found_by_name(void **state)
{
    (void)state;
    make_folder();
    nb_err err;
    nb_store *store;
    assert_int_equal(nb_store_open(&store, scratch_path("m"), &err), NB_OK);
    assert_int_equal(nb_store_kind_of(store), NB_STORE_HF);
    assert_string_equal(nb_store_path(store), scratch_path("m"));
    assert_int_equal(nb_store_n_weights(store), 2);
    assert_string_equal(nb_store_weight(store, 0)->name, "b.weight"); /* in file order */
    assert_ptr_equal(nb_store_find(store, "a.weight"), nb_store_weight(store, 1));
    assert_ptr_equal(nb_store_find(store, "b.weight"), nb_store_weight(store, 0));
    assert_null(nb_store_find(store, "c.weight"));
    assert_null(nb_store_find(store, ""));
    assert_int_equal(nb_store_file_bytes(store), 8 + sizeof two_weights - 1 + 16);
    assert_null(nb_store_gguf(store));
    assert_non_null(json_object_get(nb_store_config(store), "model_type"));
    assert_null(nb_store_generation_config(store));
    assert_null(nb_store_tokenizer_config(store));
    nb_store_close(store);
    nb_store_close(NULL);
}

/* ---- chat templates ---- */

/* `wanted` NULL: none; "!reason": refused. */
static void expect_template(const char *tokenizer_config, const char *jinja, const char *wanted)
{
    make_folder();
    unlink(scratch_path("m/tokenizer_config.json"));
    unlink(scratch_path("m/chat_template.jinja"));
    if (tokenizer_config != NULL)
        scratch_text("m/tokenizer_config.json", tokenizer_config);
    if (jinja != NULL)
        scratch_text("m/chat_template.jinja", jinja);
    nb_err err = {0};
    nb_store *store;
    if (nb_store_open(&store, scratch_path("m"), &err) != NB_OK)
        fail_msg("%s", err.text);
    for (int again = 0; again < 2; again++) {
        const char *text = "x";
        size_t len = 9;
        const nb_status s = nb_store_chat_template(store, &text, &len, &err);
        if (wanted != NULL && wanted[0] == '!') {
            assert_int_equal(s, NB_DATA);
            if (strstr(err.text, wanted + 1) == NULL)
                fail_msg("%s", err.text);
        } else {
            assert_int_equal(s, NB_OK);
            assert_int_equal(len, wanted == NULL ? 0 : strlen(wanted));
            if (wanted == NULL)
                assert_null(text);
            else
                assert_memory_equal(text, wanted, len);
        }
    }
    nb_store_close(store);
}

static void chat_templates(void **state)
{
    (void)state;
    expect_template(NULL, NULL, NULL);
    expect_template("{}", NULL, NULL);
    expect_template("{\"chat_template\":null}", NULL, NULL);
    expect_template("{\"chat_template\":\"abc\"}", NULL, "abc");
    expect_template("{\"chat_template\":\"\"}", NULL, "");
    expect_template("{\"chat_template\":\"abc\"}", "from file\n", "from file\n");
    expect_template("{\"chat_template\":\"abc\"}", "", "");
    expect_template(NULL, "\xc3\xa9", "\xc3\xa9");
    expect_template("{\"chat_template\":[{\"name\":\"tool_use\",\"template\":\"t\"},"
                    "{\"name\":\"default\",\"template\":\"d\"}]}",
                    NULL, "d");
    expect_template("{\"chat_template\":[{\"name\":\"tool_use\",\"template\":\"t\"}]}", NULL, NULL);
    expect_template("{\"chat_template\":[]}", NULL, NULL);
    expect_template("{\"chat_template\":7}", NULL, "!tokenizer_config.json: key 'chat_template'");
    expect_template("{\"chat_template\":{}}", NULL, "!key 'chat_template'");
    expect_template("{\"chat_template\":[7]}", NULL, "!entry 0 is not an object");
    expect_template("{\"chat_template\":[{\"template\":\"t\"}]}", NULL, "!'name' is missing");
    expect_template("{\"chat_template\":[{\"name\":\"default\",\"template\":1}]}", NULL,
                    "!key 'chat_template'");
    expect_template(NULL, "a\xff", "!chat_template.jinja: not UTF-8");

    char *large = malloc((4 << 20) + 2);
    assert_non_null(large);
    memset(large, 'a', (4 << 20) + 1);
    large[(4 << 20) + 1] = 0;
    expect_template(NULL, large, "!more than the 4194304");
    free(large);
    unlink(scratch_path("m/chat_template.jinja"));
    assert_int_equal(symlink("nowhere", scratch_path("m/chat_template.jinja")), 0);
    nb_err err;
    nb_store *store;
    const char *text;
    size_t len;
    unlink(scratch_path("m/tokenizer_config.json"));
    assert_int_equal(nb_store_open(&store, scratch_path("m"), &err), NB_OK);
    assert_int_equal(nb_store_chat_template(store, &text, &len, &err), NB_DATA);
    nb_store_close(store);
    unlink(scratch_path("m/chat_template.jinja"));
}

/* ---- sinks ---- */

/* A sink that counts, and fails on demand. */
static struct {
    int puts, finishes, commits, aborts, fail_put, fail_finish, fail_commit;
} fake;

static nb_status fake_put(nb_sink *sink, int64_t index, const nb_mat *mat, nb_err *err)
{
    (void)sink;
    (void)mat;
    fake.puts++;
    return index + 1 == fake.fail_put ? nb_fail(err, NB_IO, "planted") : NB_OK;
}

static nb_status fake_finish(nb_sink *sink, const char **path, nb_err *err)
{
    (void)sink;
    fake.finishes++;
    *path = "there";
    return fake.fail_finish ? nb_fail(err, NB_IO, "planted") : NB_OK;
}

static nb_status fake_commit(nb_sink *sink, nb_err *err)
{
    (void)sink;
    fake.commits++;
    return fake.fail_commit ? nb_fail(err, NB_IO, "planted") : NB_OK;
}

static void fake_abort(nb_sink *sink)
{
    (void)sink;
    fake.aborts++;
}

static const nb_sink_kind fake_kind = {
    .put = fake_put, .finish = fake_finish, .commit = fake_commit, .abort = fake_abort};

static nb_weight vector(const char *name)
{
    return (nb_weight){
        .name = name, .n_dims = 1, .dims = {2}, .n_rows = 1, .n_cols = 2, .fmt = &nb_format_f32};
}

static nb_weight matrix(const char *name)
{
    return (nb_weight){.name = name,
                       .file_name = "elsewhere",
                       .n_dims = 2,
                       .dims = {3, 64},
                       .n_rows = 3,
                       .n_cols = 64,
                       .fmt = &nb_format_int4,
                       .group_size = 32,
                       .symmetric = true,
                       .scale_type = NB_F16};
}

static float numbers[2];
static uint8_t codes[3 * 32], scales[3 * 2 * 2];
static int8_t zeros[3 * 2];
static const nb_mat vector_mat = {
    .fmt = &nb_format_f32, .n_rows = 1, .n_cols = 2, .codes = numbers, .row_bytes = 8};
static const nb_mat matrix_mat = {.fmt = &nb_format_int4,
                                  .n_rows = 3,
                                  .n_cols = 64,
                                  .codes = codes,
                                  .row_bytes = 32,
                                  .group_size = 32,
                                  .scale_type = NB_F16,
                                  .scales = scales};

static nb_sink *new_sink(void)
{
    char names[2][8] = {"a", "b"}; /* gone when this returns: the plan must be a deep copy */
    const nb_weight plan[2] = {vector(names[0]), matrix(names[1])};
    nb_sink *sink;
    nb_err err;
    if (nb_sink_new(&sink, &fake_kind, plan, 2, &err) != NB_OK)
        fail_msg("%s", err.text);
    memset(names, 'x', sizeof names);
    sink->state = &fake;
    memset(&fake, 0, sizeof fake);
    return sink;
}

static void a_sink_in_order(void **state)
{
    (void)state;
    const int64_t live = nb_alloc_live();
    nb_err err;
    nb_sink *sink = new_sink();
    assert_string_equal(sink->plan[0].name, "a");
    assert_null(sink->plan[0].file_name);
    assert_string_equal(sink->plan[1].name, "b");
    assert_string_equal(sink->plan[1].file_name, "elsewhere");
    assert_int_equal(nb_sink_put(sink, 0, &vector_mat, &err), NB_OK);
    assert_int_equal(nb_sink_put(sink, 1, &matrix_mat, &err), NB_OK);
    assert_int_equal(nb_sink_commit(sink, &err), NB_OK);
    assert_int_equal(fake.puts, 2);
    assert_int_equal(fake.commits, 1);
    assert_int_equal(fake.aborts, 1); /* which frees */
    assert_int_equal(nb_alloc_live(), live);
    nb_sink_abort(NULL);
}

static void what_is_finished_is_finished_once(void **state)
{
    (void)state;
    nb_err err;
    const char *path = NULL;
    nb_sink *sink = new_sink();
    assert_int_equal(nb_sink_put(sink, 0, &vector_mat, &err), NB_OK);
    assert_int_equal(nb_sink_finish(sink, &path, &err), NB_USAGE); /* one is missing */
    assert_int_equal(fake.finishes, 0);
    assert_int_equal(nb_sink_put(sink, 1, &matrix_mat, &err), NB_OK);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(nb_sink_finish(sink, &path, &err), NB_OK);
        assert_string_equal(path, "there");
    }
    assert_int_equal(nb_sink_commit(sink, &err), NB_OK);
    assert_int_equal(fake.finishes, 1);
    assert_int_equal(fake.commits, 1);
    assert_int_equal(fake.aborts, 1);

    sink = new_sink();
    fake.fail_finish = 1;
    assert_int_equal(nb_sink_put(sink, 0, &vector_mat, &err), NB_OK);
    assert_int_equal(nb_sink_put(sink, 1, &matrix_mat, &err), NB_OK);
    assert_int_equal(nb_sink_finish(sink, &path, &err), NB_IO);
    fake.fail_finish = 0;
    assert_int_equal(nb_sink_commit(sink, &err), NB_USAGE); /* it is broken now */
    assert_int_equal(fake.commits, 0);
    assert_int_equal(fake.aborts, 1);
}

static void puts_out_of_order_are_refused(void **state)
{
    (void)state;
    static const int64_t wrong[] = {1, -1, 2, INT64_MAX, INT64_MIN};
    nb_err err;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        nb_sink *sink = new_sink();
        assert_int_equal(nb_sink_put(sink, wrong[i], &vector_mat, &err), NB_USAGE);
        assert_int_equal(nb_sink_put(sink, 0, &vector_mat, &err), NB_USAGE); /* it is broken now */
        assert_int_equal(fake.puts, 0);
        assert_int_equal(nb_sink_commit(sink, &err), NB_USAGE);
        assert_int_equal(fake.commits, 0);
        assert_int_equal(fake.aborts, 1);
    }
    nb_sink *sink = new_sink();
    assert_int_equal(nb_sink_put(sink, 0, &vector_mat, &err), NB_OK);
    assert_int_equal(nb_sink_put(sink, 0, &vector_mat, &err), NB_USAGE);
    nb_sink_abort(sink);
    sink = new_sink();
    assert_int_equal(nb_sink_put(sink, 0, &vector_mat, &err), NB_OK);
    assert_int_equal(nb_sink_commit(sink, &err), NB_USAGE); /* one of two */
    assert_int_equal(fake.commits, 0);
    assert_int_equal(fake.aborts, 1);
}

static void failures_below_are_passed_on(void **state)
{
    (void)state;
    nb_err err;
    nb_sink *sink = new_sink();
    fake.fail_put = 2;
    assert_int_equal(nb_sink_put(sink, 0, &vector_mat, &err), NB_OK);
    assert_int_equal(nb_sink_put(sink, 1, &matrix_mat, &err), NB_IO);
    assert_int_equal(nb_sink_put(sink, 1, &matrix_mat, &err), NB_USAGE);
    assert_int_equal(fake.puts, 2);
    assert_int_equal(nb_sink_commit(sink, &err), NB_USAGE);
    assert_int_equal(fake.commits, 0);
    assert_int_equal(fake.aborts, 1);

    sink = new_sink();
    fake.fail_commit = 1;
    assert_int_equal(nb_sink_put(sink, 0, &vector_mat, &err), NB_OK);
    assert_int_equal(nb_sink_put(sink, 1, &matrix_mat, &err), NB_OK);
    assert_int_equal(nb_sink_commit(sink, &err), NB_IO);
    assert_int_equal(fake.aborts, 1);
}

static void matrices_must_be_as_planned(void **state)
{
    (void)state;
    nb_mat wrong[8];
    for (int i = 0; i < 8; i++)
        wrong[i] = matrix_mat;
    wrong[0].fmt = &nb_format_int8;
    wrong[1].n_rows = 2;
    wrong[2].n_cols = 63;
    wrong[3].row_bytes = 36;
    wrong[4].group_size = 64;
    wrong[5].scale_type = NB_BF16;
    wrong[6].zeros = zeros;
    wrong[7] = vector_mat;
    for (int i = 0; i < 8; i++) {
        nb_err err;
        nb_sink *sink = new_sink();
        assert_int_equal(nb_sink_put(sink, 0, &vector_mat, &err), NB_OK);
        assert_int_equal(nb_sink_put(sink, 1, &wrong[i], &err), NB_USAGE);
        assert_non_null(strstr(err.text, "weight 'b': "));
        assert_int_equal(fake.puts, 1);
        nb_sink_abort(sink);
    }
}

static void plans_that_make_no_sense(void **state)
{
    (void)state;
    const int64_t live = nb_alloc_live();
    nb_weight wrong[9];
    for (int i = 0; i < 9; i++)
        wrong[i] = matrix("w");
    wrong[0].n_dims = 5;
    wrong[1].n_dims = -1;
    wrong[2].n_rows = 0;
    wrong[3].dims[0] = 4;
    wrong[4].dims[1] = 32;
    wrong[5].dims[0] = wrong[5].n_rows = (int64_t)1 << 62;
    wrong[6].group_size = 48;
    wrong[7].group_size = 0;
    wrong[8].n_rows = 64; /* transposed: the same number of values */
    wrong[8].n_cols = 3;
    nb_err err;
    nb_sink *sink;
    for (int i = 0; i < 9; i++) {
        const nb_status s = nb_sink_new(&sink, &fake_kind, &wrong[i], 1, &err);
        assert_int_equal(s, i == 6 || i == 7 ? NB_UNSUPPORTED : NB_USAGE);
        assert_null(sink);
        assert_non_null(strstr(err.text, "weight 'w': "));
    }
    const nb_weight twice[] = {vector("v"), matrix("w"), vector("v")};
    assert_int_equal(nb_sink_new(&sink, &fake_kind, twice, 3, &err), NB_DATA);
    assert_non_null(strstr(err.text, "weight 'v' is planned twice"));
    nb_weight scalar = vector("s");
    scalar.n_dims = 0;
    scalar.n_cols = 1;
    assert_int_equal(nb_sink_new(&sink, &fake_kind, &scalar, 1, &err), NB_OK);
    nb_sink_abort(sink);
    assert_int_equal(nb_alloc_live(), live);
}

static void every_allocation_of_a_plan_may_fail(void **state)
{
    (void)state;
    const nb_weight plan[2] = {vector("a"), matrix("b")};
    const int64_t live = nb_alloc_live();
    int64_t n = 1;
    for (;; n++) {
        nb_err err;
        nb_sink *sink;
        nb_alloc_fail_at(n);
        const nb_status s = nb_sink_new(&sink, &fake_kind, plan, 2, &err);
        nb_alloc_fail_at(0);
        nb_sink_abort(sink);
        assert_int_equal(nb_alloc_live(), live);
        if (s == NB_OK)
            break;
        assert_int_equal(s, NB_MEMORY);
    }
    assert_true(n > 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(files_that_are_no_models),
        cmocka_unit_test(sniffing_looks_at_no_more_than_there_is),
        cmocka_unit_test(paths_that_are_no_files),
        cmocka_unit_test(weights_are_found_by_name),
        cmocka_unit_test(chat_templates),
        cmocka_unit_test(a_sink_in_order),
        cmocka_unit_test(what_is_finished_is_finished_once),
        cmocka_unit_test(puts_out_of_order_are_refused),
        cmocka_unit_test(failures_below_are_passed_on),
        cmocka_unit_test(matrices_must_be_as_planned),
        cmocka_unit_test(plans_that_make_no_sense),
        cmocka_unit_test(every_allocation_of_a_plan_may_fail),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
