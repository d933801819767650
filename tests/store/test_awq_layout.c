/* AWQ's layout: the recorded words of AutoAWQ, what of its config is read and refused, files that
 * do not fit together, and that what is written reads back. */
#include "store/awq.h"
#include "store/qfolder.h"

static int at(const json_t *lists, size_t k, size_t n)
{
    const json_t *v = json_array_get(json_array_get(lists, k), n);
    assert_true(json_is_integer(v));
    return (int)json_integer_value(v);
}

/* ---- bits ---- */

/* The word of the reference: columns 0 to 7 hold 0 to 7. */
static void the_order_of_nibbles(void **state)
{
    (void)state;
    int8_t zeros[8];
    uint32_t word = 0x75316420, again;
    nb_awq_read_zeros(zeros, &word, 8, 1);
    for (int n = 0; n < 8; n++)
        assert_int_equal(zeros[n], n - 8);
    nb_awq_write_zeros(&again, zeros, 8, 1);
    assert_int_equal(again, word);
    nb_awq_write_zeros(&again, NULL, 8, 1);
    assert_int_equal(again, 0x88888888u);
}

/* One code at a time, in matrices with rests in each direction of the tiles: nibble i of a word
 * belongs to the output that the reference names. */
static void codes_are_where_the_layout_says(void **state)
{
    (void)state;
    static const int order[] = {0, 2, 4, 6, 1, 3, 5, 7};
    static const int64_t sizes[] = {8, 16, 24, 128, 136, 144};
    for (int a = 0; a < 6; a++) {
        for (int b = 0; b < 6; b++) {
            const int64_t n_rows = sizes[a], n_cols = sizes[b];
            const size_t n_bytes = (size_t)(n_rows * n_cols / 2);
            uint8_t *codes = malloc(n_bytes);
            uint32_t *words = malloc(n_bytes), *again = malloc(n_bytes);
            assert_true(codes != NULL && words != NULL && again != NULL);
            fill(words, n_bytes, (uint64_t)(a * 6 + b), 0xff);
            nb_awq_read_codes(codes, words, n_rows, n_cols);
            for (int64_t k = 0; k < n_cols; k++) {
                for (int64_t c = 0; c < n_rows / 8; c++) {
                    for (int i = 0; i < 8; i++) {
                        const uint32_t u = words[k * (n_rows / 8) + c] >> 4 * i & 15;
                        const int64_t n = 8 * c + order[i];
                        const int got = codes[n * n_cols / 2 + k / 2] >> k % 2 * 4 & 15;
                        assert_int_equal(got, u);
                    }
                }
            }
            nb_awq_write_codes(again, codes, n_rows, n_cols);
            assert_memory_equal(again, words, n_bytes);
            free(codes);
            free(words);
            free(again);
        }
    }
}

static void golden_vectors(void **state)
{
    (void)state;
    json_t *golden = golden_load("awq.json");
    const json_t *e = golden_get(golden, "int4_2groups"), *q = golden_get(e, "q");
    const json_t *values = golden_get(e, "W");
    enum { N_COLS = 64, N_ROWS = 16 };
    size_t n;
    uint8_t *qweight = golden_hex(e, "qweight", &n);
    assert_int_equal(n, N_COLS * N_ROWS / 2);
    uint8_t *qzeros = golden_hex(e, "qzeros", &n), *scales = golden_hex(e, "scales_f16", &n);
    const piece pieces[] = {PIECE("m.qweight", NB_ST_I32, 2, N_COLS, N_ROWS / 8, qweight),
                            PIECE("m.qzeros", NB_ST_I32, 2, 2, N_ROWS / 8, qzeros),
                            PIECE("m.scales", NB_ST_F16, 2, 2, N_ROWS, scales)};
    write_folder("{\"quant_method\":\"awq\",\"bits\":4,\"group_size\":32,\"zero_point\":true,"
                 "\"version\":\"gemm\",\"modules_to_not_convert\":null}",
                 pieces, 3);
    nb_store *store = open_good("m");
    const nb_weight *w = nb_store_find(store, "m.weight");
    assert_non_null(w);
    assert_ptr_equal(w->fmt, &nb_format_int4);
    assert_false(w->symmetric);
    assert_int_equal(w->layout, NB_LAYOUT_AWQ);
    nb_loaded loaded = {0};
    nb_err err;
    if (nb_store_read(store, w, &loaded, &err) != NB_OK)
        fail_msg("%s", err.text);
    float y[N_COLS], scale[2];
    int8_t code[N_COLS];
    int16_t zero[2];
    for (size_t r = 0; r < N_ROWS; r++) {
        w->fmt->decode_row(&loaded.mat, (int64_t)r, y);
        w->fmt->int_row(&loaded.mat, (int64_t)r,
                        &(nb_int_row){.code = code, .scale = scale, .zero = zero});
        for (size_t k = 0; k < N_COLS; k++) {
            assert_int_equal(code[k], at(q, k, r) - 8);
            assert_true((double)y[k] ==
                        golden_number(json_array_get(json_array_get(values, r), k)));
        }
    }
    uint32_t again[N_COLS * N_ROWS / 8];
    nb_awq_write_codes(again, loaded.mat.codes, N_ROWS, N_COLS);
    assert_memory_equal(again, qweight, sizeof again);
    nb_awq_write_zeros(again, loaded.mat.zeros, N_ROWS, 2);
    assert_memory_equal(again, qzeros, 16);
    nb_loaded_free(&loaded);
    nb_store_close(store);
    free(qweight);
    free(qzeros);
    free(scales);
    json_decref(golden);
}

/* ---- the config ---- */

static const char good_config[] =
    "{\"quant_method\":\"awq\",\"bits\":4,\"group_size\":32,\"zero_point\":true,"
    "\"version\":\"gemm\",\"modules_to_not_convert\":[\"lm_head\"]}";

static void configs(void **state)
{
    (void)state;
    static const struct {
        const char *key, *value;
        nb_status status;
        const char *reason;
    } cases[] = {
        {"bits", NULL, NB_DATA, "key 'bits' is missing"},
        {"bits", "3", NB_UNSUPPORTED, "bits 3 is not supported (4 is)"},
        {"group_size", NULL, NB_DATA, "key 'group_size' is missing"},
        {"group_size", "0", NB_DATA, "group_size is 0"},
        {"group_size", "-2", NB_DATA, "group_size"},
        {"zero_point", "false", NB_UNSUPPORTED, "zero_point false"},
        {"zero_point", "\"x\"", NB_DATA, "'zero_point' is a string"},
        {"version", "\"gemv\"", NB_UNSUPPORTED, "version 'gemv'"},
        {"version", "\"marlin\"", NB_UNSUPPORTED, "version 'marlin'"},
    };
    nb_qweight_spec spec;
    nb_err err = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *config = changed(good_config, cases[i].key, cases[i].value);
        const nb_status s = nb_qweight_parse(&spec, config, &err);
        if (s != cases[i].status || strstr(err.text, cases[i].reason) == NULL)
            fail_msg("%s = %s: status %d: %s", cases[i].key, cases[i].value, s, err.text);
        json_decref(config);
    }
    static const struct {
        const char *key, *value;
        int64_t group_size;
        bool symmetric;
    } good[] = {
        {"x", "1", 32, false},
        {"group_size", "-1", -1, false},
        {"q_group_size", "64", 64, false},
        {"w_bit", "4", 32, false},
        {"version", "\"GEMM\"", 32, false},
        {"version", NULL, 32, false},
        {"zero_point", NULL, 32, false},
        {"sym", "true", 32, true},
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        json_t *config = changed(good_config, good[i].key, good[i].value);
        if (nb_qweight_parse(&spec, config, &err) != NB_OK)
            fail_msg("%s", err.text);
        assert_int_equal(spec.layout, NB_LAYOUT_AWQ);
        assert_int_equal(spec.bits, 4);
        assert_int_equal(spec.group_size, good[i].group_size);
        assert_int_equal(spec.symmetric, good[i].symmetric);
        json_decref(config);
    }
}

/* ---- files that lie ---- */

static void parts_that_do_not_fit(void **state)
{
    (void)state;
    static const struct {
        int part;
        piece instead;
        nb_status status;
        const char *reason;
    } cases[] = {
        {0,
         {{.name = "m.qweight", .dtype = NB_ST_I32, .n_dims = 2, .dims = {60, 4}}, NULL},
         NB_UNSUPPORTED,
         "'m.qweight': [60, 4] words hold no whole matrix of 4-bit codes"},
        {0,
         {{.name = "m.qweight", .dtype = NB_ST_I32, .n_dims = 2, .dims = {72, 4}}, NULL},
         NB_UNSUPPORTED,
         "'m.qweight': 72 columns are not divisible by the group_size 32"},
        {0,
         {{.name = "m.qweight", .dtype = NB_ST_F32, .n_dims = 2, .dims = {64, 4}}, NULL},
         NB_DATA,
         "'m.qweight': F32 [64, 4] is no I32 matrix"},
        {0,
         {{.name = "m.qweight", .dtype = NB_ST_I32, .n_dims = 2, .dims = {64, 0}}, NULL},
         NB_DATA,
         "'m.qweight': I32 [64, 0] is no I32 matrix"},
        {1, {{.name = NULL}, NULL}, NB_DATA, "'m.qweight' has no qzeros"},
        {1,
         {{.name = "m.qzeros", .dtype = NB_ST_I32, .n_dims = 2, .dims = {4, 2}}, NULL},
         NB_DATA,
         "'m.qzeros': wanted I32 [2, 4], found I32 [4, 2]"},
        {2, {{.name = NULL}, NULL}, NB_DATA, "'m.qweight' has no scales"},
        {2,
         {{.name = "m.scales", .dtype = NB_ST_F16, .n_dims = 2, .dims = {2, 4}}, NULL},
         NB_DATA,
         "'m.scales': wanted F16 [2, 32], found F16 [2, 4]"},
        {3,
         {{.name = "m.g_idx", .dtype = NB_ST_I32, .n_dims = 1, .dims = {64}}, NULL},
         NB_UNSUPPORTED,
         "'m.g_idx' belongs to no quantized weight"},
    };
    const piece good[] = {
        PIECE("m.qweight", NB_ST_I32, 2, 64, 4, NULL), PIECE("m.qzeros", NB_ST_I32, 2, 2, 4, NULL),
        PIECE("m.scales", NB_ST_F16, 2, 2, 32, NULL), PIECE(NULL, NB_ST_I32, 0, 0, 0, NULL)};
    write_folder(good_config, good, 4);
    nb_store_close(open_good("m"));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        piece pieces[4];
        memcpy(pieces, good, sizeof good);
        pieces[cases[i].part] = cases[i].instead;
        write_folder(good_config, pieces, 4);
        expect_unread(cases[i].status, cases[i].reason);
    }
    /* "sym" is nibble's own word, and believed no more than others: all zero points are 0 here. */
    json_t *config = changed(good_config, "sym", "true");
    char *text = json_dumps(config, 0);
    write_folder(text, good, 4);
    expect_unread(NB_DATA, "tensor 'm.qzeros': output 0 has the zero point 0, and "
                           "quantization_config says that all are 8");
    free(text);
    json_decref(config);
}

/* ---- writing ---- */

static void what_is_written_reads_back(void **state)
{
    (void)state;
    for (int symmetric = 0; symmetric < 2; symmetric++) {
        sample s = {0};
        add_weight(&s, NB_LAYOUT_AWQ, &nb_format_int4, 8, 64, 32, symmetric);
        add_weight(&s, NB_LAYOUT_AWQ, &nb_format_int4, 40, 160, 32, symmetric);
        add_weight(&s, NB_LAYOUT_AWQ, &nb_format_bf16, 3, 5, 0, false);
        if (!symmetric)
            s.mats[0].zeros[3] = -8; /* 0 has a place */
        int64_t planned;
        nb_err err;
        if (write_sample(&s, "out", &planned, &err) != NB_OK)
            fail_msg("%s", err.text);
        expect_sample(&s, "out", planned);

        json_t *q;
        assert_int_equal(nb_hf_quantization(&q, s.plan, s.n, &err), NB_OK);
        char *text = json_dumps(q, JSON_SORT_KEYS | JSON_COMPACT);
        char want[300];
        snprintf(
            want, sizeof want,
            "{\"bits\":4,\"group_size\":32,\"modules_to_not_convert\":[\"model.layers.2.proj\","
            "\"lm_head\"],\"quant_method\":\"awq\"%s,\"version\":\"gemm\",\"zero_point\":true}",
            symmetric ? ",\"sym\":true" : "");
        assert_string_equal(text, want);
        free(text);
        json_decref(q);
        free_sample(&s);
    }
}

static void what_the_layout_cannot_hold(void **state)
{
    (void)state;
    sample s = {0};
    nb_weight *w = add_weight(&s, NB_LAYOUT_AWQ, &nb_format_int4, 8, 64, 32, false);
    const nb_weight was = *w;
    static const nb_format *const others[] = {&nb_format_int2, &nb_format_int3, &nb_format_int8};
    for (int i = 0; i < 3; i++) {
        w->fmt = others[i];
        expect_not_written(&s, NB_UNSUPPORTED, "AWQ has no place for int");
    }
    *w = was;
    w->scale_type = NB_F32;
    expect_not_written(&s, NB_UNSUPPORTED, "AWQ has scales of f16, not of f32");
    *w = was;
    w->act = (nb_act_spec){.bits = 8, .per_token = true};
    expect_not_written(&s, NB_UNSUPPORTED, "AWQ has no words for activations of 8 bits");
    *w = was;
    w->n_rows = w->dims[0] = 12;
    expect_not_written(&s, NB_UNSUPPORTED, "AWQ packs rows and columns by 8, not 12 x 64");
    *w = was;
    w->name = "lm_head.weight";
    expect_not_written(&s, NB_UNSUPPORTED,
                       "'lm_head.weight' is quantized, which AWQ's readers do not expect");
    free_sample(&s);
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    sample s = {0};
    add_weight(&s, NB_LAYOUT_AWQ, &nb_format_int4, 8, 64, 32, false);
    add_weight(&s, NB_LAYOUT_AWQ, &nb_format_bf16, 3, 5, 0, false);
    walk_allocations(&s);
    free_sample(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_order_of_nibbles),
        cmocka_unit_test(codes_are_where_the_layout_says),
        cmocka_unit_test(golden_vectors),
        cmocka_unit_test(configs),
        cmocka_unit_test(parts_that_do_not_fit),
        cmocka_unit_test(what_is_written_reads_back),
        cmocka_unit_test(what_the_layout_cannot_hold),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
