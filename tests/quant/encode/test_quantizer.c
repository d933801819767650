/* The table of quantizers, and round to nearest. */
#include "quant/encode/quantizer.h"

#include "base/rng.h"
#include "support/golden.h"

#include <math.h>
#include <string.h>

static void every_quantizer_is_found_by_its_name(void **state)
{
    (void)state;
    int n = 0;
    for (const nb_quantizer *const *q = nb_quantizers; *q != NULL; q++, n++) {
        nb_method found;
        nb_err err = {0};
        assert_int_equal(nb_method_parse(&found, (*q)->name, &err), NB_OK);
        assert_ptr_equal(found.quantizer, *q);
        assert_true((*q)->encode_rows != NULL || (*q)->encode_group != NULL ||
                    (*q)->tune_block != NULL);
        assert_true((*q)->encode_rows != NULL || (*q)->needs != NB_STAT_NONE);
        assert_non_null((*q)->source);
        assert_non_null((*q)->summary);
    }
    assert_true(n > 0);
}

static void unknown_names_are_refused_with_the_list(void **state)
{
    (void)state;
    nb_method found;
    nb_err err = {0};
    assert_int_equal(nb_method_parse(&found, "gptqx", &err), NB_USAGE);
    assert_non_null(strstr(err.text, "'gptqx'"));
    assert_non_null(strstr(err.text, "rtn"));
    assert_int_equal(nb_method_parse(&found, "", &err), NB_USAGE);
    assert_int_equal(nb_method_parse(&found, "rt", &err), NB_USAGE);
}

static nb_status any_option(const nb_method *m, unsigned *needs, nb_err *err)
{
    (void)needs;
    double x;
    static const char *const known[] = {"b", "aa", NULL};
    NB_TRY(nb_method_only(m, known, err));
    return nb_method_number(m, "b", 0.5, 0, 1, &x, err);
}

/* Options are words or numbers in any order; what is wrong with one is said. */
static void options_are_read_and_checked(void **state)
{
    (void)state;
    const nb_quantizer q = {.name = "q", .check = any_option};
    nb_method m = {.quantizer = &q, .options = {{"b", "0.25"}}, .n_options = 1};
    nb_err err = {0};
    double x = 0;
    assert_int_equal(nb_method_number(&m, "b", 0.5, 0, 1, &x, &err), NB_OK);
    assert_true(x == 0.25);
    assert_int_equal(nb_method_number(&m, "c", 0.5, 0, 1, &x, &err), NB_OK);
    assert_true(x == 0.5);
    assert_null(nb_method_option_of(&m, "c"));
    static const char *const bad[] = {"", "x", "1.5", "-1", "0.5x", "nan"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        strcpy(m.options[0].value, bad[i]);
        assert_int_equal(nb_method_number(&m, "b", 0.5, 0, 1, &x, &err), NB_USAGE);
    }
    static const char *const refused[] = {"rtn:",   "rtn:x",  "rtn:x=1", "rtn:x,x",
                                          "rtn:=1", "rtn:x,", "rtn,x",   "rtn:x=y=z"};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        assert_int_equal(nb_method_parse(&m, refused[i], &err), NB_USAGE);
}

/* No code next to the chosen one is nearer to the weight, except where the range ends. */
static void rtn_takes_the_nearest_code(void **state)
{
    (void)state;
    enum { ROWS = 7, COLS = 64, GROUP = 32 };
    float x[ROWS * COLS], scales[ROWS * COLS / GROUP];
    int8_t codes[ROWS * COLS], zeros[ROWS * COLS / GROUP];
    for (int i = 0; i < ROWS * COLS; i++)
        x[i] = (float)(nb_rng_uniform(3, 1, (uint64_t)i) - 0.3);
    nb_method rtn;
    nb_err err = {0};
    assert_int_equal(nb_method_parse(&rtn, "rtn", &err), NB_OK);
    for (int asym = 0; asym < 2; asym++) {
        nb_mat m = {.fmt = &nb_format_int8,
                    .n_rows = ROWS,
                    .n_cols = COLS,
                    .codes = codes,
                    .row_bytes = COLS,
                    .group_size = GROUP,
                    .scale_type = NB_F32,
                    .scales = scales,
                    .zeros = asym ? zeros : NULL};
        const nb_quant_job job = {.method = &rtn, .weight = x, .n_rows = ROWS, .n_cols = COLS};
        assert_int_equal(rtn.quantizer->encode_rows(&job, &m, &err), NB_OK);
        for (int i = 0; i < ROWS * COLS; i++) {
            const double s = (double)scales[i / GROUP], z = asym ? zeros[i / GROUP] : 0;
            const double off = fabs(s * (codes[i] - z) - (double)x[i]);
            for (int step = -1; step <= 1; step += 2) {
                if (codes[i] + step < -128 || codes[i] + step > 127)
                    continue;
                assert_true(off <= fabs(s * (codes[i] + step - z) - (double)x[i]) + 1e-6 * s);
            }
        }
    }
}

/* ---- rtn:search ---- */

enum { S_ROWS = 21, S_COLS = 64, S_GROUP = 32 };

typedef struct {
    uint8_t codes[S_ROWS * S_COLS / 2];
    uint16_t scales[S_ROWS * S_COLS / S_GROUP];
    nb_mat m;
} int4_mat;

static void int4_make(int4_mat *x)
{
    *x = (int4_mat){0};
    x->m = (nb_mat){.fmt = &nb_format_int4,
                    .n_rows = S_ROWS,
                    .n_cols = S_COLS,
                    .codes = x->codes,
                    .row_bytes = S_COLS / 2,
                    .group_size = S_GROUP,
                    .scale_type = NB_BF16,
                    .scales = x->scales};
}

static bool same_codes(const int4_mat *a, const int4_mat *b)
{
    return memcmp(a->codes, b->codes, sizeof a->codes) == 0 &&
           memcmp(a->scales, b->scales, sizeof a->scales) == 0;
}

/* Rows with a few large weights; importance that is small where they are. */
static void fill_search(float *w, double *importance)
{
    for (int c = 0; c < S_COLS; c++)
        importance[c] = c % 8 == 0 ? 0.001 : 1 + nb_rng_uniform(4, 2, (uint64_t)c);
    for (int i = 0; i < S_ROWS * S_COLS; i++)
        w[i] = (float)((nb_rng_uniform(4, 1, (uint64_t)i) - 0.5) * (i % 8 == 0 ? 6 : 1));
}

static double loss_of(const nb_mat *m, const float *w, const double *importance)
{
    double loss = 0;
    float y[S_COLS];
    for (int64_t r = 0; r < S_ROWS; r++) {
        m->fmt->decode_row(m, r, y);
        for (int c = 0; c < S_COLS; c++) {
            const double e = (double)w[r * S_COLS + c] - (double)y[c];
            loss += (importance == NULL ? 1 : importance[c]) * e * e;
        }
    }
    return loss;
}

static void rows_of(const char *method, const float *w, const float *importance, int4_mat *out)
{
    nb_method m;
    nb_err err = {0};
    int4_make(out);
    assert_int_equal(nb_method_parse(&m, method, &err), NB_OK);
    const nb_quant_job job = {
        .method = &m, .weight = w, .importance = importance, .n_rows = S_ROWS, .n_cols = S_COLS};
    assert_int_equal(m.quantizer->encode_rows(&job, &out->m, &err), NB_OK);
}

static nb_status group_of(const char *method, const float *w, double *mean_square, int n_threads,
                          int4_mat *out)
{
    nb_method m;
    nb_err err = {0};
    int4_make(out);
    assert_int_equal(nb_method_parse(&m, method, &err), NB_OK);
    nb_algebra la = {0};
    assert_int_equal(nb_pool_open(&la.pool, n_threads, &err), NB_OK);
    const nb_input_stats stats = {.n_cols = S_COLS, .n_tokens = 9, .mean_square = mean_square};
    const nb_group_job job = {
        .method = &m,
        .stats = &stats,
        .la = &la,
        .n = 1,
        .linear = {{.name = "q", .weight = w, .n_rows = S_ROWS, .out = &out->m}}};
    nb_group_result result;
    const nb_status s = m.quantizer->encode_group(&job, &result, &err);
    nb_pool_close(la.pool);
    return s;
}

/* Plain rtn is the format's encoder; searching loses less; weighing loses less where it counts. */
static void rtn_searches_when_told(void **state)
{
    (void)state;
    static float w[S_ROWS * S_COLS], importance[S_COLS];
    double p[S_COLS];
    fill_search(w, p);
    for (int c = 0; c < S_COLS; c++)
        importance[c] = (float)p[c];
    int4_mat encoded, plain, searched, weighed;
    int4_make(&encoded);
    for (int64_t r = 0; r < S_ROWS; r++)
        encoded.m.fmt->encode_row(&encoded.m, r, w + r * S_COLS);
    rows_of("rtn", w, importance, &plain);
    rows_of("rtn:search", w, NULL, &searched);
    rows_of("rtn:search", w, importance, &weighed);
    assert_true(same_codes(&plain, &encoded));
    assert_true(loss_of(&searched.m, w, NULL) < 0.95 * loss_of(&plain.m, w, NULL));
    assert_true(loss_of(&weighed.m, w, p) < 0.5 * loss_of(&searched.m, w, p));
}

/* With statistics, the mean squares of the inputs are the importances, for any number of threads;
 * without them, and without a search, groups are encoded as rows are. */
static void rtn_weighs_by_statistics(void **state)
{
    (void)state;
    static float w[S_ROWS * S_COLS], importance[S_COLS];
    double p[S_COLS];
    fill_search(w, p);
    for (int c = 0; c < S_COLS; c++)
        importance[c] = (float)p[c];
    int4_mat rows, group;
    for (int threads = 1; threads <= 3; threads++) {
        rows_of("rtn:search", w, importance, &rows);
        assert_int_equal(group_of("rtn:search", w, p, threads, &group), NB_OK);
        assert_true(same_codes(&rows, &group));
        rows_of("rtn:search", w, NULL, &rows);
        assert_false(same_codes(&rows, &group));
        assert_int_equal(group_of("rtn:search", w, NULL, threads, &group), NB_OK);
        assert_true(same_codes(&rows, &group));
        rows_of("rtn", w, NULL, &rows);
        assert_int_equal(group_of("rtn", w, p, threads, &group), NB_OK);
        assert_true(same_codes(&rows, &group));
    }
}

static void rtn_says_what_it_needs(void **state)
{
    (void)state;
    nb_method m;
    nb_err err = {0};
    unsigned needs = NB_STAT_NONE;
    assert_int_equal(nb_method_parse(&m, "rtn", &err), NB_OK);
    assert_int_equal(m.quantizer->check(&m, &needs, &err), NB_OK);
    assert_int_equal(needs, NB_STAT_NONE);
    assert_int_equal(nb_method_parse(&m, "rtn:search", &err), NB_OK);
    assert_int_equal(m.quantizer->check(&m, &needs, &err), NB_OK);
    assert_int_equal(needs, NB_STAT_MAGNITUDE);
    assert_int_equal(nb_method_parse(&m, "rtn:search=2", &err), NB_USAGE);
    assert_non_null(strstr(err.text, "takes no value"));
    assert_int_equal(nb_method_parse(&m, "rtn:serch", &err), NB_USAGE);
    assert_non_null(strstr(err.text, "there are: search"));
}

/* Formats without scales are encoded as ever. */
static void rtn_does_not_search_where_there_is_no_grid(void **state)
{
    (void)state;
    uint16_t bits[4] = {0};
    const float w[4] = {1, -2, 0.5f, 3};
    nb_mat m = {.fmt = &nb_format_bf16, .n_rows = 1, .n_cols = 4, .codes = bits, .row_bytes = 8};
    nb_method rtn;
    nb_err err = {0};
    assert_int_equal(nb_method_parse(&rtn, "rtn:search", &err), NB_OK);
    const nb_quant_job job = {.method = &rtn, .weight = w, .n_rows = 1, .n_cols = 4};
    assert_int_equal(rtn.quantizer->encode_rows(&job, &m, &err), NB_OK);
    float y[4];
    m.fmt->decode_row(&m, 0, y);
    assert_memory_equal(y, w, sizeof w);
}

/* ---- hqq ---- */

/* The sum of |e|^(11/16), which hqq's default norm is. */
static double norm_of(const nb_mat *m, const float *w)
{
    double norm = 0;
    float y[S_COLS];
    for (int64_t r = 0; r < m->n_rows; r++) {
        m->fmt->decode_row(m, r, y);
        for (int c = 0; c < S_COLS; c++)
            norm += pow(fabs((double)w[r * S_COLS + c] - (double)y[c]), 0.6875);
    }
    return norm;
}

static double squares_of(const nb_mat *m, const float *w)
{
    double squares = 0;
    float y[S_COLS];
    for (int64_t r = 0; r < m->n_rows; r++) {
        m->fmt->decode_row(m, r, y);
        for (int c = 0; c < S_COLS; c++)
            squares += pow((double)w[r * S_COLS + c] - (double)y[c], 2);
    }
    return squares;
}

/* From either start the norm falls, for scales alone, zero points of both kinds and offsets; no
 * steps change nothing; nothing that is finite becomes anything else. Where zero points are
 * integers, the squares do not grow. */
static void hqq_lowers_its_norm(void **state)
{
    (void)state;
    static float w[S_ROWS * S_COLS];
    static uint8_t codes[S_ROWS * S_COLS];
    static uint16_t scales[S_ROWS * 2];
    static int8_t zeros[S_ROWS * 2];
    static uint16_t float_zeros[S_ROWS * 2];
    double p[S_COLS];
    fill_search(w, p);
    static const nb_format *const formats[] = {&nb_format_int4, &nb_format_int4,   &nb_format_int2,
                                               &nb_format_q4_1, &nb_format_iq4_nl, &nb_format_int2,
                                               &nb_format_int4, &nb_format_int8};
    for (size_t f = 0; f < sizeof formats / sizeof *formats; f++) {
        nb_err err = {0};
        nb_mat m = {.fmt = formats[f], .n_rows = S_ROWS, .n_cols = S_COLS, .codes = codes};
        assert_int_equal(nb_format_row_bytes(m.fmt, S_COLS, &m.row_bytes, &err), NB_OK);
        if (m.fmt->affine) {
            m.group_size = S_GROUP;
            m.scale_type = NB_F16;
            m.scales = scales;
            m.zeros = f == 1 || f == 5 ? zeros : NULL;
            m.float_zeros = f > 5 ? float_zeros : NULL;
        }
        static const char *const names[] = {"hqq:start=absmax,steps=0", "hqq:start=absmax",
                                            "hqq:steps=0", "hqq", "rtn:search"};
        double norm[5], squares[5];
        for (int i = 0; i < 5; i++) {
            nb_method method;
            assert_int_equal(nb_method_parse(&method, names[i], &err), NB_OK);
            const nb_quant_job job = {
                .method = &method, .weight = w, .n_rows = S_ROWS, .n_cols = S_COLS};
            assert_int_equal(method.quantizer->encode_rows(&job, &m, &err), NB_OK);
            norm[i] = norm_of(&m, w);
            squares[i] = squares_of(&m, w);
        }
        assert_true(norm[1] < norm[0]);
        assert_true(norm[3] <= norm[2] && (norm[3] < norm[2] || m.zeros != NULL));
        for (int i = 0; m.zeros != NULL && i < 4; i += 2)
            assert_true(squares[i + 1] <= squares[i] * (1 + 1e-12));
        assert_true(norm[4] == norm[2]);
    }
}

static void hqq_refuses_what_it_does_not_know(void **state)
{
    (void)state;
    static const char *const refused[] = {"hqq:p=0",     "hqq:p=2",   "hqq:steps=-1",
                                          "hqq:start=x", "hqq:start", "hqq:q=1"};
    nb_method m;
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        nb_err err = {0};
        assert_int_equal(nb_method_parse(&m, refused[i], &err), NB_USAGE);
    }
}

static void rtn_without_memory(void **state)
{
    (void)state;
    static float w[S_ROWS * S_COLS];
    double p[S_COLS];
    fill_search(w, p);
    int4_mat out;
    nb_err err = {0};
    nb_method m;
    int4_make(&out);
    assert_int_equal(nb_method_parse(&m, "rtn:search", &err), NB_OK);
    const nb_input_stats stats = {.n_cols = S_COLS, .mean_square = p};
    const nb_group_job job = {.method = &m, .stats = &stats};
    nb_group_result result;
    const int64_t live = nb_alloc_live();
    nb_alloc_fail_at(1);
    assert_int_equal(m.quantizer->encode_group(&job, &result, &err), NB_MEMORY);
    nb_alloc_fail_at(0);
    assert_int_equal(nb_alloc_live(), live);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_quantizer_is_found_by_its_name),
        cmocka_unit_test(unknown_names_are_refused_with_the_list),
        cmocka_unit_test(options_are_read_and_checked),
        cmocka_unit_test(rtn_takes_the_nearest_code),
        cmocka_unit_test(rtn_searches_when_told),
        cmocka_unit_test(rtn_weighs_by_statistics),
        cmocka_unit_test(rtn_says_what_it_needs),
        cmocka_unit_test(rtn_does_not_search_where_there_is_no_grid),
        cmocka_unit_test(hqq_lowers_its_norm),
        cmocka_unit_test(hqq_refuses_what_it_does_not_know),
        cmocka_unit_test(rtn_without_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
