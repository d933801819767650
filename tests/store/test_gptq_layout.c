/* GPTQ's layout: the recorded words of AutoGPTQ, what of its config is read and refused, files that
 * do not fit together, and that what is written reads back. */
#include "store/gptq.h"
#include "store/qfolder.h"

/* ---- recorded words ---- */

/* Member [k][n] of a list of lists. */
static int at(const json_t *lists, size_t k, size_t n)
{
    const json_t *v = json_array_get(json_array_get(lists, k), n);
    assert_true(json_is_integer(v));
    return (int)json_integer_value(v);
}

static void golden_bits(const json_t *e)
{
    const int bits = (int)json_integer_value(golden_get(e, "bits")), half = 1 << (bits - 1);
    const int64_t n_cols = json_integer_value(golden_get(e, "K"));
    const int64_t n_rows = json_integer_value(golden_get(e, "N"));
    const json_t *q = golden_get(e, "q"), *zeros = golden_get(e, "zeros");
    const int64_t n_groups = (int64_t)json_array_size(zeros);
    const nb_format *fmt = nb_format_of_bits(bits);
    nb_err err;
    nb_mat m = {.fmt = fmt, .n_rows = n_rows, .n_cols = n_cols, .group_size = n_cols / n_groups};
    assert_int_equal(nb_format_row_bytes(fmt, n_cols, &m.row_bytes, &err), NB_OK);
    size_t n_bytes;
    uint8_t *words = golden_hex(e, "qweight", &n_bytes);
    assert_int_equal(n_bytes, n_rows * m.row_bytes);
    m.codes = malloc(n_bytes);
    m.zeros = malloc((size_t)(n_rows * n_groups));
    float *scales = calloc((size_t)(n_rows * n_groups), sizeof *scales), row_scale[8];
    assert_true(m.codes != NULL && m.zeros != NULL && scales != NULL);
    m.scales = scales;

    nb_gptq_read_codes(m.codes, (const uint32_t *)(const void *)words, n_rows, n_cols, bits);
    int8_t code[32];
    int16_t zero[8];
    for (int64_t n = 0; n < n_rows; n++) {
        memset(m.zeros, 0, (size_t)(n_rows * n_groups));
        fmt->int_row(&m, n, &(nb_int_row){.code = code, .scale = row_scale, .zero = zero});
        for (int64_t k = 0; k < n_cols; k++)
            assert_int_equal(code[k], at(q, (size_t)k, (size_t)n) - half);
    }
    uint8_t *again = malloc(n_bytes);
    assert_non_null(again);
    nb_gptq_write_codes((uint32_t *)(void *)again, m.codes, n_rows, n_cols, bits);
    assert_memory_equal(again, words, n_bytes);
    free(words);
    free(again);

    for (int less = 0; less < 2; less++) {
        words = golden_hex(e, less ? "qzeros_v1" : "qzeros_v2", &n_bytes);
        assert_int_equal(nb_gptq_read_zeros(m.zeros, (const uint32_t *)(const void *)words, n_rows,
                                            n_groups, bits, less, &err),
                         NB_OK);
        for (int64_t i = 0; i < n_rows * n_groups; i++)
            assert_int_equal(m.zeros[i],
                             at(zeros, (size_t)(i % n_groups), (size_t)(i / n_groups)) - half);
        again = malloc(n_bytes);
        assert_non_null(again);
        assert_int_equal(nb_gptq_write_zeros((uint32_t *)(void *)again, &m, less, &err), NB_OK);
        assert_memory_equal(again, words, n_bytes);
        free(words);
        free(again);
    }
    free(m.codes);
    free(m.zeros);
    free(scales);
}

/* The same words in a folder mean the recorded weights, also where groups are no runs. */
static void golden_folder(const json_t *e, bool v2)
{
    const int64_t n_cols = json_integer_value(golden_get(e, "K"));
    const int64_t n_rows = json_integer_value(golden_get(e, "N"));
    const int bits = (int)json_integer_value(golden_get(e, "bits"));
    const bool reorders = json_is_true(golden_get(e, "desc_act"));
    const int64_t n_groups = (int64_t)json_array_size(golden_get(e, "zeros"));
    size_t n;
    uint8_t *qweight = golden_hex(e, "qweight", &n), *scales = golden_hex(e, "scales_f16", &n);
    uint8_t *qzeros = golden_hex(e, v2 ? "qzeros_v2" : "qzeros_v1", &n);
    uint8_t *values = golden_hex(e, "W_f32le_hex", &n);
    int32_t g_idx[32];
    for (size_t k = 0; k < 32; k++)
        g_idx[k] = (int32_t)json_integer_value(json_array_get(golden_get(e, "g_idx"), k));
    char config[400];
    snprintf(config, sizeof config,
             "{\"quant_method\":\"gptq\",\"bits\":%d,\"group_size\":16,\"sym\":%s,\"desc_act\":%s,"
             "\"checkpoint_format\":\"%s\"}",
             bits, json_is_true(golden_get(e, "sym")) ? "true" : "false",
             reorders ? "true" : "false", v2 ? "gptq_v2" : "gptq");
    const piece pieces[] = {
        PIECE("m.qweight", NB_ST_I32, 2, n_cols * bits / 32, n_rows, qweight),
        PIECE("m.qzeros", NB_ST_I32, 2, n_groups, n_rows * bits / 32, qzeros),
        PIECE("m.g_idx", NB_ST_I32, 1, n_cols, 0, g_idx),
        PIECE("m.scales", NB_ST_F16, 2, n_groups, n_rows, scales),
    };
    write_folder(config, pieces, 4);
    nb_store *store = open_good("m");
    assert_int_equal(nb_store_n_weights(store), 1);
    const nb_weight *w = nb_store_find(store, "m.weight");
    assert_non_null(w);
    assert_string_equal(w->file_name, "m.qweight");
    assert_int_equal(w->reordered, reorders);
    assert_ptr_equal(w->fmt, reorders ? &nb_format_f32 : nb_format_of_bits(bits));
    assert_int_equal(w->bytes, n_cols * n_rows * bits / 8 + n_groups * n_rows * bits / 8 +
                                   4 * n_cols + 2 * n_groups * n_rows);
    nb_loaded loaded = {0};
    nb_err err;
    if (nb_store_read(store, w, &loaded, &err) != NB_OK)
        fail_msg("%s", err.text);
    float y[32];
    const float *want = (const float *)(const void *)values;
    for (int64_t r = 0; r < n_rows; r++) {
        w->fmt->decode_row(&loaded.mat, r, y);
        for (int64_t c = 0; c < n_cols; c++)
            assert_true(y[c] == want[r * n_cols + c]);
    }
    nb_loaded_free(&loaded);
    nb_store_close(store);
    free(qweight);
    free(qzeros);
    free(scales);
    free(values);
}

static void golden_vectors(void **state)
{
    (void)state;
    json_t *golden = golden_load("gptq.json");
    int n = 0;
    const char *key;
    json_t *e;
    json_object_foreach(golden, key, e)
    {
        if (!json_is_object(e))
            continue;
        golden_bits(e);
        golden_folder(e, false);
        golden_folder(e, true);
        n++;
    }
    assert_int_equal(n, 7);
    json_decref(golden);
}

/* ---- the config ---- */

static const char good_config[] =
    "{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":32,\"desc_act\":false,\"sym\":true,"
    "\"lm_head\":false,\"checkpoint_format\":\"gptq\",\"damp_percent\":0.01,\"static_groups\":"
    "false,"
    "\"true_sequential\":true,\"meta\":{\"quantizer\":[\"x:1\"]},\"dynamic\":{\"-:.*gate\":{}}}";

static void what_of_a_config_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *key, *value;
        nb_status status;
        const char *reason;
    } cases[] = {
        {"bits", NULL, NB_DATA, "key 'bits' is missing"},
        {"bits", "5", NB_UNSUPPORTED, "bits 5 is not supported"},
        {"bits", "32", NB_UNSUPPORTED, "bits 32 is not supported"},
        {"bits", "0", NB_DATA, "bits"},
        {"bits", "\"4\"", NB_DATA, "'bits' is a string"},
        {"group_size", NULL, NB_DATA, "key 'group_size' is missing"},
        {"group_size", "0", NB_DATA, "group_size is 0"},
        {"group_size", "-2", NB_DATA, "group_size"},
        {"sym", "1", NB_DATA, "'sym' is"},
        {"desc_act", "\"no\"", NB_DATA, "'desc_act' is"},
        {"checkpoint_format", "\"gptq_p\"", NB_UNSUPPORTED, "checkpoint_format 'gptq_p'"},
        {"checkpoint_format", "\"marlin\"", NB_UNSUPPORTED, "checkpoint_format 'marlin'"},
        {"is_marlin_format", "true", NB_UNSUPPORTED, "is_marlin_format"},
        {"pack_dtype", "\"int64\"", NB_UNSUPPORTED, "pack_dtype 'int64'"},
        {"dynamic", "{\"+:.*down\":{\"bits\":8}}", NB_UNSUPPORTED, "dynamic: '+:.*down'"},
        {"dynamic", "{\".*down\":{\"bits\":8}}", NB_UNSUPPORTED, "dynamic: '.*down'"},
        {"dynamic", "[]", NB_DATA, "'dynamic' is"},
        {"quant_method", NULL, NB_DATA, "'quant_method' is missing"},
    };
    nb_qweight_spec spec;
    nb_err err = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *config = changed(good_config, cases[i].key, cases[i].value);
        err.text[0] = 0;
        const nb_status s = nb_qweight_parse(&spec, config, &err);
        if (s != cases[i].status || strstr(err.text, cases[i].reason) == NULL ||
            strncmp(err.text, "quantization_config: ", 21) != 0)
            fail_msg("%s = %s: status %d: %s", cases[i].key, cases[i].value, s, err.text);
        json_decref(config);
    }
}

static void what_a_config_means(void **state)
{
    (void)state;
    static const struct {
        const char *key, *value;
        nb_qweight_spec spec;
    } cases[] = {
        {"x", "null", {NB_LAYOUT_GPTQ, 4, 32, true, false}},
        {"group_size", "-1", {NB_LAYOUT_GPTQ, 4, -1, true, false}},
        {"bits", "3", {NB_LAYOUT_GPTQ, 3, 32, true, false}},
        {"sym", NULL, {NB_LAYOUT_GPTQ, 4, 32, true, false}},
        {"sym", "false", {NB_LAYOUT_GPTQ, 4, 32, false, false}},
        {"desc_act", "true", {NB_LAYOUT_GPTQ, 4, 32, true, true}},
        {"checkpoint_format", NULL, {NB_LAYOUT_GPTQ, 4, 32, true, false}},
        {"checkpoint_format", "\"gptq_v2\"", {NB_LAYOUT_GPTQ_V2, 4, 32, true, false}},
        {"w_bit", "8", {NB_LAYOUT_GPTQ, 8, 32, true, false}},
        {"q_group_size", "64", {NB_LAYOUT_GPTQ, 4, 64, true, false}},
    };
    nb_err err;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *config = changed(good_config, cases[i].key, cases[i].value);
        nb_qweight_spec spec;
        if (nb_qweight_parse(&spec, config, &err) != NB_OK)
            fail_msg("%s", err.text);
        const nb_qweight_spec *want = &cases[i].spec;
        if (spec.layout != want->layout || spec.bits != want->bits ||
            spec.group_size != want->group_size || spec.symmetric != want->symmetric ||
            spec.reorders != want->reorders)
            fail_msg("%s = %s", cases[i].key, cases[i].value);
        json_decref(config);
    }
    /* The format, where only the newer key says it. */
    json_t *config = changed(good_config, "checkpoint_format", NULL);
    json_object_set_new(config, "format", json_string("gptq_v2"));
    nb_qweight_spec spec;
    assert_int_equal(nb_qweight_parse(&spec, config, &err), NB_OK);
    assert_int_equal(spec.layout, NB_LAYOUT_GPTQ_V2);
    json_decref(config);
}

/* ---- files that lie ---- */

enum { ROWS = 32, COLS = 64, GROUPS = 2 };
static uint32_t zeros_of_8[GROUPS][ROWS / 8]; /* version 1 */
static int32_t in_order[COLS];

static void good_pieces(piece out[5])
{
    memset(zeros_of_8, 0x77, sizeof zeros_of_8);
    for (int k = 0; k < COLS; k++)
        in_order[k] = k / 32;
    out[0] = PIECE("m.qweight", NB_ST_I32, 2, COLS / 8, ROWS, NULL);
    out[1] = PIECE("m.qzeros", NB_ST_I32, 2, GROUPS, ROWS / 8, zeros_of_8);
    out[2] = PIECE("m.g_idx", NB_ST_I32, 1, COLS, 0, in_order);
    out[3] = PIECE("m.scales", NB_ST_F16, 2, GROUPS, ROWS, NULL);
    out[4] = PIECE(NULL, NB_ST_F16, 0, 0, 0, NULL);
}

#define CONFIG(more)                                                                               \
    "{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":32,\"desc_act\":true" more "}"

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
         {{.name = "m.qweight", .dtype = NB_ST_I64, .n_dims = 2, .dims = {8, 32}}, NULL},
         NB_DATA,
         "'m.qweight': I64 [8, 32] is no I32 matrix"},
        {0,
         {{.name = "m.qweight", .dtype = NB_ST_I32, .n_dims = 1, .dims = {256}}, NULL},
         NB_DATA,
         "'m.qweight': I32 [256] is no I32 matrix"},
        {0,
         {{.name = "m.qweight", .dtype = NB_ST_I32, .n_dims = 2, .dims = {0, 32}}, NULL},
         NB_DATA,
         "'m.qweight': I32 [0, 32] is no I32 matrix"},
        {0,
         {{.name = "m.qweight", .dtype = NB_ST_I32, .n_dims = 2, .dims = {8, 33}}, NULL},
         NB_UNSUPPORTED,
         "'m.qweight': [8, 33] words hold no whole matrix of 4-bit codes"},
        {0,
         {{.name = "m.qweight", .dtype = NB_ST_I32, .n_dims = 2, .dims = {9, 32}}, NULL},
         NB_UNSUPPORTED,
         "'m.qweight': 72 columns are not divisible by the group_size 32"},
        {0,
         {{.name = "m.qweight", .dtype = NB_ST_I32, .n_dims = 2, .dims = {12, 32}}, NULL},
         NB_DATA,
         "'m.scales': wanted F16 [3, 32], found F16 [2, 32]"},
        {1,
         {{.name = "m.qzeros", .dtype = NB_ST_I32, .n_dims = 2, .dims = {2, 5}}, NULL},
         NB_DATA,
         "'m.qzeros': wanted I32 [2, 4], found I32 [2, 5]"},
        {1,
         {{.name = "m.qzeros", .dtype = NB_ST_I8, .n_dims = 2, .dims = {2, 4}}, NULL},
         NB_DATA,
         "'m.qzeros': wanted I32 [2, 4], found I8 [2, 4]"},
        {1, {{.name = NULL}, NULL}, NB_DATA, "'m.qweight' has no qzeros"},
        {2, {{.name = NULL}, NULL}, NB_DATA, "'m.qweight' has no g_idx, and desc_act is true"},
        {2,
         {{.name = "m.g_idx", .dtype = NB_ST_I32, .n_dims = 1, .dims = {63}}, NULL},
         NB_DATA,
         "'m.g_idx': wanted I32 [64], found I32 [63]"},
        {2,
         {{.name = "m.g_idx", .dtype = NB_ST_I64, .n_dims = 1, .dims = {64}}, NULL},
         NB_DATA,
         "'m.g_idx': wanted I32 [64], found I64 [64]"},
        {3, {{.name = NULL}, NULL}, NB_DATA, "'m.qweight' has no scales"},
        {3,
         {{.name = "m.scales", .dtype = NB_ST_F64, .n_dims = 2, .dims = {2, 32}}, NULL},
         NB_UNSUPPORTED,
         "'m.scales': scales of dtype F64"},
        {3,
         {{.name = "m.scales", .dtype = NB_ST_F16, .n_dims = 2, .dims = {32, 2}}, NULL},
         NB_DATA,
         "'m.scales': wanted F16 [2, 32], found F16 [32, 2]"},
        {4,
         {{.name = "m.weight", .dtype = NB_ST_F16, .n_dims = 2, .dims = {32, 64}}, NULL},
         NB_DATA,
         "'m.qweight' and 'm.weight' are one weight, twice"},
        {4,
         {{.name = "n.qzeros", .dtype = NB_ST_I32, .n_dims = 1, .dims = {1}}, NULL},
         NB_UNSUPPORTED,
         "'n.qzeros' belongs to no quantized weight"},
        {4,
         {{.name = "n.weight_packed", .dtype = NB_ST_I32, .n_dims = 1, .dims = {1}}, NULL},
         NB_UNSUPPORTED,
         "'n.weight_packed'"},
    };
    piece pieces[5];
    good_pieces(pieces);
    write_folder(CONFIG(""), pieces, 5);
    nb_store *store = open_good("m");
    assert_false(nb_store_weight(store, 0)->reordered);
    nb_store_close(store);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        good_pieces(pieces);
        pieces[cases[i].part] = cases[i].instead;
        write_folder(CONFIG(""), pieces, 5);
        expect_unread(cases[i].status, cases[i].reason);
    }
    /* Without desc_act nobody needs g_idx. */
    good_pieces(pieces);
    pieces[2].tensor.name = NULL;
    write_folder("{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":32}", pieces, 5);
    nb_store_close(open_good("m"));
}

static void orders_that_lead_nowhere(void **state)
{
    (void)state;
    static const int32_t bad[] = {-1, GROUPS, INT32_MAX, INT32_MIN};
    piece pieces[5];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        good_pieces(pieces);
        in_order[COLS - 1] = bad[i];
        write_folder(CONFIG(""), pieces, 5);
        char reason[100];
        snprintf(reason, sizeof reason, "tensor 'm.g_idx': group %d of column 63, and there are 2",
                 (int)bad[i]);
        expect_unread(NB_DATA, reason);
    }
    /* The tensor is believed, whatever desc_act says. */
    good_pieces(pieces);
    in_order[0] = 1;
    write_folder("{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":32}", pieces, 5);
    nb_store *store = open_good("m");
    assert_true(nb_store_weight(store, 0)->reordered);
    nb_store_close(store);
}

static void zero_points_that_say_nothing(void **state)
{
    (void)state;
    piece pieces[5];
    /* 15 in version 1 is 16 or 0: nobody knows. */
    good_pieces(pieces);
    zeros_of_8[1][2] |= 0xf00;
    write_folder(CONFIG(",\"sym\":false"), pieces, 5);
    expect_unread(NB_DATA, "tensor 'm.qzeros': group 1, output 18: the stored zero point 15");
    /* In version 2 it is 15. */
    write_folder(CONFIG(",\"sym\":false,\"checkpoint_format\":\"gptq_v2\""), pieces, 5);
    nb_store *store = open_good("m");
    nb_loaded loaded = {0};
    nb_err err;
    assert_int_equal(nb_store_read(store, nb_store_weight(store, 0), &loaded, &err), NB_OK);
    assert_int_equal(loaded.mat.zeros[18 * GROUPS + 1], 7);
    assert_int_equal(loaded.mat.zeros[18 * GROUPS], -1);
    nb_loaded_free(&loaded);
    nb_store_close(store);
    /* A symmetric file whose zero points are others is read by nobody as it was meant: such as one
     * of version 2 that says nothing of it. */
    good_pieces(pieces);
    memset(zeros_of_8, 0x88, sizeof zeros_of_8);
    write_folder(CONFIG(""), pieces, 5);
    expect_unread(NB_DATA, "output 0 has the zero point 9, and quantization_config says that all "
                           "are 8");
}

/* ---- writing ---- */

static const nb_format *const formats[] = {&nb_format_int2, &nb_format_int3, &nb_format_int4,
                                           &nb_format_int8};

static void what_is_written_reads_back(void **state)
{
    (void)state;
    for (int f = 0; f < 4; f++) {
        for (int symmetric = 0; symmetric < 2; symmetric++) {
            for (int v2 = 0; v2 < 2; v2++) {
                const nb_layout layout = v2 ? NB_LAYOUT_GPTQ_V2 : NB_LAYOUT_GPTQ;
                sample s = {0};
                add_weight(&s, layout, formats[f], 32, 64, 32, symmetric);
                add_weight(&s, layout, formats[f], 96, 32, 32, symmetric);
                add_weight(&s, layout, formats[f], 32, 160, 32, symmetric);
                if (v2 && !symmetric) /* there is a place for the lowest zero point */
                    s.mats[1].zeros[3] = (int8_t) - (1 << (formats[f]->bits - 1));
                int64_t planned;
                nb_err err;
                if (write_sample(&s, "out", &planned, &err) != NB_OK)
                    fail_msg("%s", err.text);
                expect_sample(&s, "out", planned);
                free_sample(&s);
            }
        }
    }
    sample s = {0}; /* one scale a row */
    add_weight(&s, NB_LAYOUT_GPTQ, &nb_format_int4, 32, 64, 64, true);
    add_weight(&s, NB_LAYOUT_GPTQ, &nb_format_int4, 32, 96, 96, true);
    add_weight(&s, NB_LAYOUT_GPTQ, &nb_format_bf16, 3, 5, 0, false);
    int64_t planned;
    nb_err err;
    if (write_sample(&s, "out", &planned, &err) != NB_OK)
        fail_msg("%s", err.text);
    expect_sample(&s, "out", planned);
    free_sample(&s);
}

static void the_config_that_is_written(void **state)
{
    (void)state;
    sample s = {0};
    nb_err err;
    json_t *q;
    add_weight(&s, NB_LAYOUT_GPTQ, &nb_format_int3, 32, 64, 32, false);
    add_weight(&s, NB_LAYOUT_GPTQ, &nb_format_bf16, 32, 64, 0, false);
    assert_int_equal(nb_hf_quantization(&q, s.plan, s.n, &err), NB_OK);
    char *text = json_dumps(q, JSON_SORT_KEYS | JSON_COMPACT);
    assert_string_equal(text,
                        "{\"bits\":3,\"checkpoint_format\":\"gptq\",\"desc_act\":false,\"dynamic\":"
                        "{\"-:^model\\\\.layers\\\\.1\\\\.proj$\":{}},\"format\":\"gptq\","
                        "\"group_size\":32,\"lm_head\":false,\"pack_dtype\":\"int32\","
                        "\"quant_method\":\"gptq\",\"sym\":false}");
    free(text);
    json_decref(q);

    /* The head is told of when it is quantized, and expected not to be. */
    snprintf(s.names[1], sizeof s.names[1], "lm_head.weight");
    assert_int_equal(nb_hf_quantization(&q, s.plan, s.n, &err), NB_OK);
    assert_null(json_object_get(q, "dynamic"));
    assert_true(json_is_false(json_object_get(q, "lm_head")));
    json_decref(q);
    s.plan[1] = s.plan[0];
    s.plan[1].name = "lm_head.weight";
    assert_int_equal(nb_hf_quantization(&q, s.plan, s.n, &err), NB_OK);
    assert_true(json_is_true(json_object_get(q, "lm_head")));
    json_decref(q);

    /* One scale a row is -1; a row as long as the others' groups is one of them. */
    s.plan[0].group_size = s.plan[1].group_size = 64;
    assert_int_equal(nb_hf_quantization(&q, s.plan, s.n, &err), NB_OK);
    assert_int_equal(json_integer_value(json_object_get(q, "group_size")), -1);
    json_decref(q);
    s.plan[1].n_cols = 128;
    assert_int_equal(nb_hf_quantization(&q, s.plan, s.n, &err), NB_OK);
    assert_int_equal(json_integer_value(json_object_get(q, "group_size")), 64);
    json_decref(q);
    free_sample(&s);
}

static void what_the_layout_cannot_hold(void **state)
{
    (void)state;
    sample s = {0};
    nb_weight *a = add_weight(&s, NB_LAYOUT_GPTQ, &nb_format_int4, 32, 64, 32, false);
    nb_weight *b = add_weight(&s, NB_LAYOUT_GPTQ, &nb_format_int4, 32, 64, 32, false);
    const nb_weight was = *b;

    b->scale_type = NB_BF16;
    expect_not_written(&s, NB_UNSUPPORTED, "GPTQ has scales of f16, not of bf16");
    *b = was;
    b->act = (nb_act_spec){.bits = 8, .per_token = true};
    expect_not_written(&s, NB_UNSUPPORTED, "GPTQ has no words for activations of 8 bits");
    *b = was;
    b->fmt = &nb_format_int3;
    expect_not_written(
        &s, NB_UNSUPPORTED,
        "'model.layers.1.proj.weight' is int3 asym, and 'model.layers.0.proj.weight' "
        "int4 asym: GPTQ has one format for all");
    *b = was;
    b->symmetric = true;
    expect_not_written(&s, NB_UNSUPPORTED, "GPTQ has one format for all");
    *b = was;
    b->layout = NB_LAYOUT_GPTQ_V2;
    expect_not_written(&s, NB_UNSUPPORTED, "GPTQ has one format for all");
    *b = was;
    b->group_size = 16;
    expect_not_written(&s, NB_UNSUPPORTED, "has groups of 16, and others of 32");
    b->group_size = 64; /* one a row, but the others are not */
    expect_not_written(&s, NB_UNSUPPORTED, "has groups of 64, and others of 32");
    *b = was;
    b->name = "model.embed_tokens.weight";
    expect_not_written(&s, NB_UNSUPPORTED, "is quantized, and no linear layer's weight");
    b->name = "model.layers.1.bias";
    expect_not_written(&s, NB_UNSUPPORTED, "is quantized, and no linear layer's weight");
    *b = was;
    for (int i = 0; i < 2; i++) {
        b->n_rows = b->dims[0] = i ? 32 : 40;
        b->n_cols = b->dims[1] = i ? 80 : 64;
        b->group_size = a->group_size = i ? 16 : 32;
        expect_not_written(&s, NB_UNSUPPORTED, i ? "by 32, not 32 x 80" : "by 32, not 40 x 64");
    }
    *b = was;
    a->group_size = 32;
    s.mats[1].zeros[5] = -8; /* row 2, group 1 */
    expect_not_written(
        &s, NB_UNSUPPORTED,
        "weight 'model.layers.1.proj.weight': row 2 has a zero point of 0, for which "
        "GPTQ version 1 has no place");
    free_sample(&s);
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    sample s = {0};
    add_weight(&s, NB_LAYOUT_GPTQ, &nb_format_int4, 32, 64, 32, false);
    add_weight(&s, NB_LAYOUT_GPTQ, &nb_format_bf16, 3, 5, 0, false);
    walk_allocations(&s);
    free_sample(&s);
    /* And of a weight in an order of its own. */
    piece pieces[5];
    good_pieces(pieces);
    in_order[0] = 1;
    write_folder(CONFIG(""), pieces, 5);
    walk_reading("m", 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_vectors),
        cmocka_unit_test(what_of_a_config_is_refused),
        cmocka_unit_test(what_a_config_means),
        cmocka_unit_test(parts_that_do_not_fit),
        cmocka_unit_test(orders_that_lead_nowhere),
        cmocka_unit_test(zero_points_that_say_nothing),
        cmocka_unit_test(what_is_written_reads_back),
        cmocka_unit_test(the_config_that_is_written),
        cmocka_unit_test(what_the_layout_cannot_hold),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
