/* HQQ's layout: matrices that hqq itself packed, files that do not fit together, and that what is
 * written reads back. */
#include "store/hqq.h"
#include "store/qfolder.h"

#include <float.h>
#include <math.h>

/* ---- folders ---- */

#define CONFIG "{\"quant_method\":\"hqq\"}"

/* What a module holds, in the order of its pieces. */
typedef struct {
    int64_t shape[2];
    int32_t nbits, group_size, axis;
    uint8_t viewed;
    nb_st_dtype codes_dtype, scale_dtype;
    int64_t codes_dims[2], scale_dims[2];
    const void *codes, *scale, *zero;
} module;

enum { SHAPE, NBITS, GROUP, AXIS, CODES, SCALE, ZERO, VIEWED, N_PIECES };

static void pieces_of(piece out[N_PIECES], const module *m)
{
    const piece all[N_PIECES] = {
        {{.name = "m.shape", .dtype = NB_ST_I64, .n_dims = 1, .dims = {2}}, m->shape},
        {{.name = "m.nbits", .dtype = NB_ST_I32}, &m->nbits},
        {{.name = "m.group_size", .dtype = NB_ST_I32}, &m->group_size},
        {{.name = "m.axis", .dtype = NB_ST_I32}, &m->axis},
        {{.name = "m.W_q",
          .dtype = m->codes_dtype,
          .n_dims = 2,
          .dims = {m->codes_dims[0], m->codes_dims[1]}},
         m->codes},
        {{.name = "m.scale",
          .dtype = m->scale_dtype,
          .n_dims = 2,
          .dims = {m->scale_dims[0], m->scale_dims[1]}},
         m->scale},
        {{.name = "m.zero",
          .dtype = m->scale_dtype,
          .n_dims = 2,
          .dims = {m->scale_dims[0], m->scale_dims[1]}},
         m->zero},
        {{.name = "m.view_as_float", .dtype = NB_ST_U8}, &m->viewed},
    };
    memcpy(out, all, sizeof all);
}

/* ---- what hqq packed ---- */

static int64_t item(const json_t *entry, const char *key, size_t i)
{
    const json_t *v = json_array_get(golden_get(entry, key), i);
    assert_true(json_is_integer(v));
    return json_integer_value(v);
}

/* With 16 bits, scale * (u - zero) is one rounding however it is done; with F32, hqq rounds the
 * difference, and nibble the product with the zero point. */
static void compare_value(float got, float want, float scale, float zero, bool exact)
{
    if (exact)
        assert_true(got == want);
    else
        assert_true(fabsf(got - want) <= 2 * FLT_EPSILON * fabsf(scale) * (fabsf(zero) + 255));
}

static void golden_entry(const json_t *e)
{
    const char *dtype = json_string_value(golden_get(e, "dtype"));
    const bool f32 = strcmp(dtype, "float32") == 0;
    const nb_float_type type = f32 ? NB_F32 : strcmp(dtype, "float16") == 0 ? NB_F16 : NB_BF16;
    size_t n_codes, n_scale, n_zero, n_values;
    uint8_t *codes = golden_hex(e, "W_q", &n_codes), *scale = golden_hex(e, "scale", &n_scale);
    uint8_t *zero = golden_hex(e, "zero", &n_zero), *values = golden_hex(e, "W", &n_values);
    const module m = {.shape = {item(e, "shape", 0), item(e, "shape", 1)},
                      .nbits = (int32_t)json_integer_value(golden_get(e, "nbits")),
                      .group_size = (int32_t)json_integer_value(golden_get(e, "group_size")),
                      .axis = 1,
                      .codes_dtype =
                          json_integer_value(golden_get(e, "nbits")) == 3 ? NB_ST_I32 : NB_ST_U8,
                      .scale_dtype = f32              ? NB_ST_F32
                                     : type == NB_F16 ? NB_ST_F16
                                                      : NB_ST_BF16,
                      .codes_dims = {item(e, "W_q_shape", 0), item(e, "W_q_shape", 1)},
                      .scale_dims = {item(e, "scale_shape", 0), item(e, "scale_shape", 1)},
                      .codes = codes,
                      .scale = scale,
                      .zero = zero};
    piece pieces[N_PIECES];
    pieces_of(pieces, &m);
    write_folder(CONFIG, pieces, N_PIECES);

    nb_store *store = open_good("m");
    const nb_weight *w = nb_store_find(store, "m.weight");
    assert_non_null(w);
    assert_int_equal(w->fmt->bits, m.nbits == 5 ? 8 : m.nbits);
    assert_int_equal(w->group_size, m.group_size);
    assert_true(w->float_zeros && !w->symmetric && w->scale_type == type);
    assert_int_equal(w->layout, NB_LAYOUT_HQQ);
    assert_int_equal(w->bytes, n_codes + n_scale + n_zero + 16 + 12 + 1);
    nb_loaded loaded = {0};
    nb_err err;
    if (nb_store_read(store, w, &loaded, &err) != NB_OK)
        fail_msg("%s", err.text);
    assert_int_equal(n_values, w->n_rows * w->n_cols * (int64_t)sizeof(float));
    float y[128];
    assert_true(w->n_cols <= 128);
    for (int64_t r = 0; r < w->n_rows; r++) {
        w->fmt->decode_row(&loaded.mat, r, y);
        for (int64_t c = 0; c < w->n_cols; c++) {
            const int64_t g = r * (w->n_cols / w->group_size) + c / w->group_size;
            float want;
            memcpy(&want, values + (size_t)(r * w->n_cols + c) * sizeof want, sizeof want);
            compare_value(y[c], want, nb_float_get(scale, type, g), nb_float_get(zero, type, g),
                          !f32);
        }
    }
    if (m.nbits != 5) { /* which is written as 8 */
        uint8_t *again = malloc(n_codes);
        assert_non_null(again);
        nb_hqq_write_codes(again, &loaded.mat);
        assert_memory_equal(again, codes, n_codes);
        free(again);
    }
    nb_loaded_free(&loaded);
    nb_store_close(store);
    free(codes);
    free(scale);
    free(zero);
    free(values);
}

static void golden_vectors(void **state)
{
    (void)state;
    json_t *golden = golden_load("hqq.json");
    assert_int_equal(json_object_size(golden), 7);
    const char *name;
    json_t *e;
    json_object_foreach(golden, name, e)
    {
        golden_entry(e);
    }
    json_decref(golden);
}

/* ---- files that do not fit together ---- */

enum { ROWS = 6, COLS = 96, GROUP_SIZE = 32, GROUPS = ROWS * COLS / GROUP_SIZE };

static module good_module(void)
{
    static const uint16_t ones[GROUPS] = {0x3c00};
    return (module){.shape = {ROWS, COLS},
                    .nbits = 4,
                    .group_size = GROUP_SIZE,
                    .axis = 1,
                    .codes_dtype = NB_ST_U8,
                    .scale_dtype = NB_ST_F16,
                    .codes_dims = {GROUPS / 2, GROUP_SIZE},
                    .scale_dims = {GROUPS, 1},
                    .scale = ones};
}

static void expect_refused(const piece *pieces, const char *config, nb_status status,
                           const char *reason)
{
    write_folder(config, pieces, N_PIECES);
    expect_unread(status, reason);
}

static void expect_module_refused(const module *m, nb_status status, const char *reason)
{
    piece pieces[N_PIECES];
    pieces_of(pieces, m);
    expect_refused(pieces, CONFIG, status, reason);
}

static void numbers_that_make_no_sense(void **state)
{
    (void)state;
    static const struct {
        int32_t nbits, group_size, axis;
        int64_t rows, cols;
        nb_status status;
        const char *reason;
    } cases[] = {
        {1, 32, 1, ROWS, COLS, NB_UNSUPPORTED, "nbits 1 is not supported"},
        {7, 32, 1, ROWS, COLS, NB_UNSUPPORTED, "nbits 7 is not supported"},
        {-4, 32, 1, ROWS, COLS, NB_UNSUPPORTED, "nbits -4 is not supported"},
        {4, 32, 0, ROWS, COLS, NB_UNSUPPORTED, "axis 0 is not supported"},
        {4, 0, 1, ROWS, COLS, NB_DATA, "group_size 0"},
        {4, INT32_MIN, 1, ROWS, COLS, NB_DATA, "group_size -2147483648"},
        {4, 64, 1, ROWS, COLS, NB_UNSUPPORTED, "rows of 96 columns"},
        {4, 32, 1, 0, COLS, NB_DATA, "shape [0, 96]"},
        {4, 32, 1, -6, -96, NB_DATA, "shape [-6, -96]"},
        {4, 32, 1, INT64_MAX, COLS, NB_DATA, "shape [9223372036854775807, 96]"},
        {4, 32, 1, 8, COLS, NB_DATA, "wanted U8 [12, 32], found U8 [9, 32]"},
        {4, 32, 1, 3, COLS, NB_DATA, "9 groups are no whole words of 2"},
        {2, 32, 1, ROWS, COLS, NB_DATA, "18 groups are no whole words of 4"},
        {3, 32, 1, ROWS, COLS, NB_DATA, "wanted I32 [2, 32], found U8 [9, 32]"},
        {8, 32, 1, ROWS, COLS, NB_DATA, "wanted U8 [18, 32], found U8 [9, 32]"},
        {4, 96, 1, ROWS, COLS, NB_DATA, "wanted U8 [3, 96]"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        module m = good_module();
        m.nbits = cases[i].nbits;
        m.group_size = cases[i].group_size;
        m.axis = cases[i].axis;
        m.shape[0] = cases[i].rows;
        m.shape[1] = cases[i].cols;
        expect_module_refused(&m, cases[i].status, cases[i].reason);
    }
}

static void parts_that_do_not_fit(void **state)
{
    (void)state;
    module m = good_module();
    m.viewed = 1;
    expect_module_refused(&m, NB_UNSUPPORTED, "'m.W_q': view_as_float is not supported");
    m = good_module();
    m.codes_dtype = NB_ST_BF16;
    expect_module_refused(&m, NB_DATA, "wanted U8 [9, 32], found BF16");
    m = good_module();
    m.scale_dtype = NB_ST_U8;
    expect_module_refused(&m, NB_UNSUPPORTED, "m.scale");
    m = good_module();
    m.scale_dims[0] = GROUPS - 1;
    expect_module_refused(&m, NB_DATA, "'m.scale': wanted F16 [18, 1], found F16 [17, 1]");
    m = good_module();
    m.scale_dims[0] = 1;
    m.scale_dims[1] = GROUPS; /* as axis 0 has them */
    expect_module_refused(&m, NB_DATA, "'m.scale': wanted F16 [18, 1], found F16 [1, 18]");

    static const char *const lacks[] = {"no shape",    "no nbits",        "no group_size",
                                        "no axis",     "no quantized",    "has no scale",
                                        "has no zero", "no view_as_float"};
    for (int i = 0; i < N_PIECES; i++) {
        piece pieces[N_PIECES];
        m = good_module();
        pieces_of(pieces, &m);
        pieces[i].tensor.name = NULL;
        expect_refused(pieces, CONFIG, i == CODES ? NB_UNSUPPORTED : NB_DATA, lacks[i]);
    }
}

static void tensors_of_other_types(void **state)
{
    (void)state;
    piece pieces[N_PIECES];
    module m = good_module();
    pieces_of(pieces, &m);
    pieces[ZERO].tensor.dtype = NB_ST_BF16;
    expect_refused(pieces, CONFIG, NB_DATA, "'m.zero': wanted F16 [18, 1], found BF16");
    pieces_of(pieces, &m);
    pieces[NBITS].tensor = (nb_st_tensor){.name = "m.nbits", .dtype = NB_ST_F32};
    expect_refused(pieces, CONFIG, NB_DATA, "'m.nbits': wanted one integer, found F32");
    pieces_of(pieces, &m);
    pieces[GROUP].tensor =
        (nb_st_tensor){.name = "m.group_size", .dtype = NB_ST_I32, .n_dims = 1, .dims = {2}};
    expect_refused(pieces, CONFIG, NB_DATA, "wanted one integer, found I32 [2]");
    pieces_of(pieces, &m);
    pieces[SHAPE].tensor.dims[0] = 3;
    pieces[SHAPE].data = NULL;
    expect_refused(pieces, CONFIG, NB_DATA, "'m.shape': wanted I64 [2], found I64 [3]");
    /* The weight is there twice. */
    pieces_of(pieces, &m);
    pieces[VIEWED].tensor =
        (nb_st_tensor){.name = "m.weight", .dtype = NB_ST_F16, .n_dims = 2, .dims = {ROWS, COLS}};
    pieces[VIEWED].data = NULL;
    expect_refused(pieces, CONFIG, NB_DATA, "are one weight, twice");
}

/* Numbers may have any integer type: hqq asks for their value alone. */
static void numbers_of_any_type(void **state)
{
    (void)state;
    static const int64_t wide = 4;
    static const uint8_t narrow = GROUP_SIZE;
    static const int16_t one = 1;
    piece pieces[N_PIECES];
    const module m = good_module();
    pieces_of(pieces, &m);
    pieces[NBITS] = (piece){{.name = "m.nbits", .dtype = NB_ST_I64}, &wide};
    pieces[GROUP] = (piece){{.name = "m.group_size", .dtype = NB_ST_U8}, &narrow};
    pieces[AXIS] = (piece){{.name = "m.axis", .dtype = NB_ST_I16, .n_dims = 1, .dims = {1}}, &one};
    write_folder(CONFIG, pieces, N_PIECES);
    nb_err err;
    if (read_all("m", &err) != NB_OK)
        fail_msg("%s", err.text);
}

/* NaN and infinities are data, which whoever computes looks for; they decode to what is no number,
 * and nothing else happens. */
static void scales_that_are_no_numbers(void **state)
{
    (void)state;
    uint16_t scale[GROUPS], zero[GROUPS];
    for (int i = 0; i < GROUPS; i++) {
        scale[i] = i % 3 == 0 ? 0x7e00 : i % 3 == 1 ? 0xfc00 : 0x3c00;
        zero[i] = i % 3 == 2 ? 0x7c00 : 0x4000;
    }
    module m = good_module();
    m.scale = scale;
    m.zero = zero;
    piece pieces[N_PIECES];
    pieces_of(pieces, &m);
    write_folder(CONFIG, pieces, N_PIECES);
    nb_store *store = open_good("m");
    nb_loaded loaded = {0};
    nb_err err;
    assert_int_equal(nb_store_read(store, nb_store_weight(store, 0), &loaded, &err), NB_OK);
    float scratch[COLS];
    int64_t row, col;
    assert_true(nb_mat_find_nonfinite(&loaded.mat, scratch, &row, &col));
    assert_true(row == 0 && col == 0);
    for (int64_t r = 0; r < ROWS; r++) {
        loaded.mat.fmt->decode_row(&loaded.mat, r, scratch);
        for (int c = 0; c < COLS; c++)
            assert_true(!isfinite(scratch[c]));
    }
    nb_loaded_free(&loaded);
    nb_store_close(store);
}

/* Without the config that says so, nothing is HQQ. */
static void only_where_the_config_says_so(void **state)
{
    (void)state;
    piece pieces[N_PIECES];
    const module m = good_module();
    pieces_of(pieces, &m);
    write_folder("null", pieces, N_PIECES);
    nb_store *store = open_good("m");
    assert_null(nb_store_find(store, "m.weight"));
    nb_store_close(store);
}

/* ---- writing ---- */

static nb_weight *add_hqq(sample *s, const nb_format *fmt, int64_t n_rows, int64_t n_cols,
                          int64_t group_size, nb_float_type type)
{
    return add_like(s, &(nb_weight){.fmt = fmt,
                                    .n_rows = n_rows,
                                    .n_cols = n_cols,
                                    .group_size = group_size,
                                    .float_zeros = true,
                                    .scale_type = type,
                                    .layout = NB_LAYOUT_HQQ});
}

static nb_weight *add_plain(sample *s, const char *name)
{
    nb_weight *w = add_like(s, &(nb_weight){.fmt = &nb_format_bf16, .n_rows = 2, .n_cols = 64});
    w->name = name;
    return w;
}

/* Tensors of wide elements begin at multiples of them: torch makes views of the file. */
static void expect_aligned(const char *path)
{
    nb_arena arena = {0};
    nb_safetensors st = NB_SAFETENSORS_CLOSED;
    nb_err err;
    assert_int_equal(nb_st_open(&st, &arena, scratch_path(path), &err), NB_OK);
    assert_int_equal(st.n_tensors, 2 * NB_HQQ_N_PARTS);
    for (int64_t i = 0; i < st.n_tensors; i++)
        assert_int_equal(st.tensors[i].begin % (nb_st_dtype_bits(st.tensors[i].dtype) / 8), 0);
    nb_st_close(&st);
    nb_arena_free(&arena);
}

static void what_is_written_reads_back(void **state)
{
    (void)state;
    static const struct {
        const nb_format *fmt;
        int64_t n_rows, n_cols, group_size;
        nb_float_type type;
    } kinds[] = {
        {&nb_format_int4, 6, 128, 64, NB_BF16},  {&nb_format_int4, 4, 96, 96, NB_F16},
        {&nb_format_int4, 10, 96, 32, NB_F32},   {&nb_format_int8, 2, 128, 64, NB_BF16},
        {&nb_format_int3, 14, 96, 32, NB_F16},   {&nb_format_int3, 2, 64, 32, NB_BF16},
        {&nb_format_int2, 8, 640, 320, NB_BF16}, {&nb_format_int8, 4, 520, 520, NB_F16},
    };
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        sample s = {0};
        int64_t planned;
        nb_err err;
        for (int i = 0; i < 2; i++)
            add_hqq(&s, kinds[k].fmt, kinds[k].n_rows, kinds[k].n_cols, kinds[k].group_size,
                    kinds[k].type);
        if (write_sample(&s, "back", &planned, &err) != NB_OK)
            fail_msg("%s", err.text);
        expect_aligned("back/model.safetensors");
        expect_sample(&s, "back", planned);
        nb_store *store = open_good("back");
        const nb_weight *w = nb_store_weight(store, 0);
        assert_int_equal(w->bytes, nb_hqq_bytes(w));
        if (w->fmt->bits != 3) /* whose words have a rest */
            assert_int_equal(w->bytes, nb_mat_bytes(&s.mats[0]) + nb_hqq_words_bytes(w));
        nb_store_close(store);
        free_sample(&s);
    }
}

static void what_the_layout_cannot_hold(void **state)
{
    (void)state;
    sample s = {0};
    add_hqq(&s, &nb_format_int4, 3, 64, 64, NB_BF16);
    expect_not_written(&s, NB_UNSUPPORTED, "HQQ packs groups by 2, and there are 3");
    free_sample(&s);

    nb_weight *first = add_hqq(&s, &nb_format_int4, 6, 128, 64, NB_BF16);
    first->act.bits = 8;
    expect_not_written(&s, NB_UNSUPPORTED, "no words for activations of 8 bits");
    first->act.bits = 0;
    first->name = "model.embed_tokens.weight";
    expect_not_written(&s, NB_UNSUPPORTED, "no linear layer's weight");
    first->name = "model.layers.0.a.weight";
    nb_weight *second = add_plain(&s, "model.layers.1.a.weight");
    expect_not_written(&s, NB_UNSUPPORTED, "leaves out a module in all blocks or in none");
    second->name = "model.layers.1.b.weight";
    add_weight(&s, NB_LAYOUT_CT, &nb_format_int4, 6, 128, 64, false);
    expect_not_written(&s, NB_UNSUPPORTED, "int4 without float zero points");
    free_sample(&s);

    add_hqq(&s, &nb_format_int4, 6, 128, 64, NB_BF16);
    add_hqq(&s, &nb_format_int8, 6, 128, 64, NB_BF16);
    expect_not_written(&s, NB_UNSUPPORTED, "HQQ has one format for all");
    s.plan[1].fmt = &nb_format_int4;
    s.plan[1].group_size = 32;
    expect_not_written(&s, NB_UNSUPPORTED, "in groups of 32");
    free_sample(&s);
}

/* Modules that stay floats are named without their block, and once. */
static void skipped_modules(void **state)
{
    (void)state;
    sample s = {0};
    add_plain(&s, "model.embed_tokens.weight");
    add_plain(&s, "model.layers.0.mlp.up_proj.weight");
    add_plain(&s, "model.layers.1.mlp.up_proj.weight");
    add_hqq(&s, &nb_format_int4, 6, 128, 64, NB_BF16)->name =
        "model.layers.10.mlp.down_proj.weight";
    json_t *q;
    nb_err err;
    assert_int_equal(nb_hf_quantization(&q, s.plan, s.n, &err), NB_OK);
    char *text = json_dumps(q, JSON_COMPACT);
    assert_string_equal(
        text, "{\"quant_config\":{\"weight_quant_params\":{\"nbits\":4,\"channel_wise\":true,"
              "\"group_size\":64,\"optimize\":true,\"round_zero\":false,\"axis\":1,"
              "\"view_as_float\":false},\"scale_quant_params\":null,\"zero_quant_params\":null,"
              "\"offload_meta\":false},\"quant_method\":\"hqq\",\"skip_modules\":[\"lm_head\","
              "\"mlp.up_proj\"]}");
    free(text);
    json_decref(q);
    free_sample(&s);
}

/* Every allocation failing in turn, in writing and in reading. */
static void memory_fails(void **state)
{
    (void)state;
    sample s = {0};
    for (int i = 0; i < 2; i++)
        add_hqq(&s, &nb_format_int4, 6, 128, 64, NB_BF16);
    walk_allocations(&s);
    free_sample(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_vectors),
        cmocka_unit_test(numbers_that_make_no_sense),
        cmocka_unit_test(parts_that_do_not_fit),
        cmocka_unit_test(tensors_of_other_types),
        cmocka_unit_test(numbers_of_any_type),
        cmocka_unit_test(scales_that_are_no_numbers),
        cmocka_unit_test(only_where_the_config_says_so),
        cmocka_unit_test(what_is_written_reads_back),
        cmocka_unit_test(what_the_layout_cannot_hold),
        cmocka_unit_test(skipped_modules),
        cmocka_unit_test(memory_fails),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
