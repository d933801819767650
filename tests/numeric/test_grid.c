/* Grids: what a code means is what decode_row gives, the nearest code is the nearest one, and a
 * search for scales is never worse than none, on ordinary and on hostile data. */
#include "numeric/mat.h"

#include "numeric/grid.h"

#include <float.h>

#define N_COLS 512 /* whole super-blocks and groups of every kind below */

typedef struct {
    const char *format;
    int64_t group_size;
    nb_float_type type;
    int zeros; /* 0: none; 1: integers; 2: floats */
} kind;

static const kind KINDS[] = {
    {"int2", 32, NB_BF16, 0}, {"int2", 128, NB_F16, 1},    {"int3", 64, NB_F16, 0},
    {"int3", 32, NB_BF16, 1}, {"int4", 32, NB_F16, 0},     {"int4", 32, NB_BF16, 1},
    {"int4", 8, NB_BF16, 0},  {"int4", N_COLS, NB_F32, 1}, {"int8", N_COLS, NB_BF16, 0},
    {"int8", 128, NB_F32, 0}, {"int8", 64, NB_F16, 1},     {"q4_0", 32, NB_F16, 0},
    {"q4_1", 32, NB_F16, 0},  {"q5_0", 32, NB_F16, 0},     {"q5_1", 32, NB_F16, 0},
    {"q8_0", 32, NB_F16, 0},  {"iq4_nl", 32, NB_F16, 0},   {"q4_k", 32, NB_F16, 0},
    {"q2_k", 16, NB_F16, 0},  {"q3_k", 16, NB_F16, 0},     {"q5_k", 32, NB_F16, 0},
    {"q6_k", 16, NB_F16, 0},  {"int4", 64, NB_BF16, 2},    {"int4", 32, NB_F16, 2},
    {"int8", 128, NB_F16, 2}, {"int3", N_COLS, NB_F32, 2}, {"int2", 32, NB_BF16, 2},
};
#define N_KINDS (sizeof KINDS / sizeof *KINDS)

static nb_mat mat_of(const kind *k, int64_t n_rows, int64_t n_cols)
{
    const nb_format *fmt = nb_format_by_name(k->format);
    assert_non_null(fmt);
    if (k->zeros == 2)
        return test_mat_float_zeros(fmt, n_rows, n_cols, k->group_size, k->type);
    return test_mat(fmt, n_rows, n_cols, k->group_size, k->type, k->zeros == 1);
}

static nb_grid grid_of(const nb_mat *m)
{
    nb_grid grid;
    nb_err err = {0};
    assert_int_equal(nb_grid_of(&grid, m, &err), NB_OK);
    return grid;
}

static void shapes_are_what_formats_say(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_KINDS; i++) {
        nb_mat m = mat_of(&KINDS[i], 1, N_COLS);
        const nb_grid grid = grid_of(&m);
        assert_int_equal(grid.group_len, KINDS[i].group_size);
        assert_int_equal(grid.n_levels,
                         strcmp(KINDS[i].format, "q8_0") == 0 ? 255 : 1 << m.fmt->bits);
        for (int l = 1; l < grid.n_levels; l++) {
            assert_true(grid.level[l] > grid.level[l - 1]);
            assert_true(!grid.uniform || grid.level[l] == grid.level[l - 1] + 1);
        }
        nb_int_form form;
        m.fmt->int_form(&m, &form);
        if (form.table == NULL)
            assert_true(grid.level[grid.n_levels - 1] ==
                        (float)(KINDS[i].zeros == 2 ? (1 << m.fmt->bits) - 1 : form.code_hi));
        else
            for (int l = 0; l < 16; l++)
                assert_true(grid.level[l] == (float)form.table[l]);
        test_mat_free(&m);
    }
}

static void formats_without_a_grid_say_so(void **state)
{
    (void)state;
    nb_mat m = {.fmt = &nb_format_f32};
    nb_grid grid;
    nb_err err = {0};
    assert_int_equal(nb_grid_of(&grid, &m, &err), NB_UNSUPPORTED);
    assert_string_equal(err.text, "f32 has no grid");
}

/* ---- nearest codes ---- */

static double distance(const nb_grid *grid, const nb_grid_group *g, int code, float x)
{
    return fabs((double)nb_grid_value(grid, g, code) - (double)x);
}

/* `slack` is for the rounding of the difference and of the division. */
static void assert_nearest(const nb_grid *grid, const nb_grid_group *g, float x, double slack)
{
    double least = INFINITY;
    for (int c = 0; c < grid->n_levels; c++)
        least = fmin(least, distance(grid, g, c, x));
    const int code = nb_grid_nearest(grid, g, x);
    assert_in_range(code, 0, grid->n_levels - 1);
    if (!(distance(grid, g, code, x) <= least + slack))
        fail_msg("x %a: code %d is off by %g, another by %g", (double)x, code,
                 distance(grid, g, code, x), least);
}

static const nb_grid_group GROUPS[] = {
    {.scale = 0.5f},
    {.scale = -0.5f},
    {.scale = 0.0123f},
    {.scale = -3.7e-5f},
    {.scale = 0x1p-24f},
    {.scale = 65504.0f},
    {.scale = 0.25f, .offset = -1.5f},
    {.scale = 0.013f, .offset = 0.7f},
};

/* Every code is the nearest to its own value; halfway between two, either is as near, and where
 * that is exact, the lower one is taken. */
static void every_code_and_every_midpoint(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_KINDS; i++) {
        nb_mat m = mat_of(&KINDS[i], 1, N_COLS);
        const nb_grid grid = grid_of(&m);
        for (size_t k = 0; k < sizeof GROUPS / sizeof *GROUPS; k++) {
            nb_grid_group g = GROUPS[k];
            for (int zero = -2; zero <= 1; zero++) {
                g.zero = KINDS[i].zeros == 1 ? zero : 0;
                const double scale = fabs((double)g.scale), far = 300 * scale + 2;
                for (int c = 0; c < grid.n_levels; c++)
                    assert_int_equal(nb_grid_nearest(&grid, &g, nb_grid_value(&grid, &g, c)), c);
                for (int c = 0; c + 1 < grid.n_levels; c++) {
                    const float a = nb_grid_value(&grid, &g, c),
                                b = nb_grid_value(&grid, &g, c + 1);
                    const float mid = 0.5f * a + 0.5f * b;
                    if (k < 2)
                        assert_int_equal(nb_grid_nearest(&grid, &g, mid), c);
                    else
                        assert_nearest(&grid, &g, mid, far * 0x1p-21);
                    assert_nearest(&grid, &g, nextafterf(mid, a), far * 0x1p-21);
                    assert_nearest(&grid, &g, nextafterf(mid, b), far * 0x1p-21);
                }
                assert_nearest(&grid, &g, 3e38f, 1e32);
                assert_nearest(&grid, &g, -3e38f, 1e32);
                assert_nearest(&grid, &g, 0, scale * 0x1p-20);
            }
        }
        test_mat_free(&m);
    }
}

/* Lengths that are no whole pieces give the same codes as one at a time. */
static void many_at_once_are_one_by_one(void **state)
{
    (void)state;
    float x[100];
    uint8_t code[101];
    for (size_t i = 0; i < N_KINDS; i++) {
        nb_mat m = mat_of(&KINDS[i], 1, N_COLS);
        const nb_grid grid = grid_of(&m);
        for (int64_t n = 0; n <= 100; n += n < 40 ? 1 : 20) {
            const nb_grid_group g = {.scale = n % 2 == 0 ? 0.031f : -0.02f};
            test_random_weights(x, n, 0.3, 0.1, i * 100 + (uint64_t)n);
            code[n] = 77;
            nb_grid_nearest_n(&grid, &g, x, n, code);
            assert_int_equal(code[n], 77);
            for (int64_t j = 0; j < n; j++)
                assert_int_equal(code[j], nb_grid_nearest(&grid, &g, x[j]));
        }
        const nb_grid_group none = {.scale = 0, .offset = 1};
        nb_grid_nearest_n(&grid, &none, x, 3, code);
        for (int l = 0; l < grid.n_levels; l++)
            assert_true(fabsf(grid.level[code[0]]) <= fabsf(grid.level[l]));
        assert_int_equal(code[0], nb_grid_nearest(&grid, &none, 5.0f));
        test_mat_free(&m);
    }
}

/* ---- storing ---- */

/* All codes of all groups, put in random pieces, decode to the values that the grid promises; what
 * is around them stays as it was. */
static void values_are_what_decode_row_gives(void **state)
{
    (void)state;
    float w[2 * N_COLS], y[N_COLS];
    uint8_t code[2][N_COLS];
    for (uint64_t seed = 0; seed < 12; seed++) {
        for (size_t i = 0; i < N_KINDS; i++) {
            nb_mat m = mat_of(&KINDS[i], 2, N_COLS);
            const nb_grid grid = grid_of(&m);
            test_random_weights(w, 2 * N_COLS, pow(10, (double)seed - 6), 0.02, seed);
            nb_grid_fit_rows(&grid, &m, 0, 2, w, NULL,
                             seed % 2 == 0 ? NB_FIT_SEARCH : NB_FIT_ABSMAX);
            for (int r = 1; r >= 0; r--) {
                for (int c = 0; c < N_COLS; c++)
                    code[r][c] = (uint8_t)(test_random_u32(seed * 2 + (uint64_t)r, (uint64_t)c) %
                                           (uint32_t)grid.n_levels);
                const int64_t step = grid.group_len * (1 + (int64_t)(seed % 3));
                for (int64_t c = 0; c < N_COLS; c += step)
                    nb_grid_put(&grid, &m, r, c, code[r] + c,
                                c + step < N_COLS ? step : N_COLS - c);
            }
            for (int r = 0; r < 2; r++) {
                m.fmt->decode_row(&m, r, y);
                for (int c = 0; c < N_COLS; c++) {
                    nb_grid_group g;
                    nb_grid_group_at(&grid, &m, r, c, &g);
                    const float value = nb_grid_value(&grid, &g, code[r][c]);
                    if (!same_float(value, y[c]))
                        fail_msg("%s, column %d, code %d: %a is decoded as %a", KINDS[i].format, c,
                                 code[r][c], (double)value, (double)y[c]);
                }
            }
            test_mat_free(&m);
        }
    }
}

/* Rows that end inside a byte, and groups that begin in one. */
static void odd_rows_of_nibbles(void **state)
{
    (void)state;
    static const kind odd[] = {{"int4", 3, NB_F32, 0},  {"int4", 33, NB_F32, 1},
                               {"int3", 11, NB_F16, 1}, {"int2", 5, NB_F32, 0},
                               {"int8", 7, NB_BF16, 1}, {"int4", 5, NB_BF16, 2},
                               {"int3", 11, NB_F16, 2}};
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
        const int64_t n = odd[i].group_size == 33 ? 33 : 3 * odd[i].group_size;
        nb_mat m = mat_of(&odd[i], 2, n), want = mat_of(&odd[i], 2, n);
        const nb_grid grid = grid_of(&m);
        float w[2 * 33], y[33];
        uint8_t code[33];
        test_random_weights(w, 2 * n, 1, 0, i);
        for (int64_t r = 0; r < 2; r++)
            want.fmt->encode_row(&want, r, w + r * n);
        nb_grid_fit_rows(&grid, &m, 0, 2, w, NULL, NB_FIT_ABSMAX);
        for (int64_t r = 0; r < 2; r++) {
            for (int64_t c = 0; c < n; c += grid.group_len) {
                nb_grid_group g;
                nb_grid_group_at(&grid, &m, r, c, &g);
                nb_grid_nearest_n(&grid, &g, w + r * n + c, grid.group_len, code);
                nb_grid_put(&grid, &m, r, c, code, grid.group_len);
            }
            want.fmt->decode_row(&want, r, y);
        }
        assert_memory_equal(m.codes, want.codes, (size_t)(2 * m.row_bytes));
        assert_memory_equal(m.scales, want.scales,
                            test_mat_n_params(&m) * nb_float_bytes(m.scale_type));
        test_mat_free(&m);
        test_mat_free(&want);
    }
}

/* Without a search, scales are those of the format's encoder. */
static void extremes_are_those_of_the_encoder(void **state)
{
    (void)state;
    float w[N_COLS];
    for (size_t i = 0; i < N_KINDS; i++) {
        if (strcmp(KINDS[i].format, "iq4_nl") == 0 || strstr(KINDS[i].format, "_k") != NULL)
            continue;
        nb_mat m = mat_of(&KINDS[i], 1, N_COLS), want = mat_of(&KINDS[i], 1, N_COLS);
        const nb_grid grid = grid_of(&m);
        for (uint64_t seed = 0; seed < 20; seed++) {
            test_random_weights(w, N_COLS, 0.02, 0.05, seed);
            if (seed % 5 == 4)
                memset(w, 0, sizeof w);
            want.fmt->encode_row(&want, 0, w);
            nb_grid_fit(&grid, &m, 0, 0, w, NULL, NB_FIT_ABSMAX);
            nb_grid_fit_rows(&grid, &m, 0, 1, w, w, NB_FIT_ABSMAX);
            for (int64_t c = 0; c < N_COLS; c += grid.group_len) {
                nb_grid_group a, b;
                nb_grid_group_at(&grid, &m, 0, c, &a);
                nb_grid_group_at(&grid, &want, 0, c, &b);
                assert_true(same_float(a.scale, b.scale) && same_float(a.offset, b.offset));
                assert_int_equal(a.zero, b.zero);
            }
        }
        test_mat_free(&m);
        test_mat_free(&want);
    }
}

/* ---- searching ---- */

typedef enum {
    BELL,
    TAILED,
    ONE_OUTLIER,
    ONE_SIDED,
    TWO_VALUES,
    CONSTANT,
    ZEROS,
    SUBNORMAL,
    HUGE,
    BITS,
    ALMOST_ZERO,
    ON_A_GRID,
    N_DATA,
} data_kind;

static void fill(float *w, data_kind what, uint64_t seed)
{
    test_random_weights(w, N_COLS, 0.02, what == TAILED ? 0.05 : 0, seed);
    for (int c = 0; c < N_COLS; c++) {
        const uint32_t u = test_random_u32(seed + 1000, (uint64_t)c);
        switch (what) {
        case ONE_OUTLIER:
            w[c] = c % 32 == (int)(seed % 32) ? 5.0f : w[c];
            break;
        case ONE_SIDED:
            w[c] = (seed % 2 == 0 ? -1.0f : 1.0f) * (3 + w[c]);
            break;
        case TWO_VALUES:
            w[c] = u % 2 == 0 ? -0.3f : 0.9f;
            break;
        case CONSTANT:
            w[c] = seed % 2 == 0 ? -0.123f : 7.7e-3f;
            break;
        case ZEROS:
            w[c] = u % 2 == 0 ? -0.0f : 0.0f;
            break;
        case SUBNORMAL:
            w[c] = nb_f32_from_bits(u & 0x807fffffu);
            break;
        case HUGE:
            w[c] *= 1e38f;
            w[c] *= 28;
            break;
        case BITS:
            w[c] = nb_f32_from_bits((u & 0x7f800000u) == 0x7f800000u ? u & 0xbfffffffu : u);
            break;
        case ALMOST_ZERO:
            w[c] = u % 97 == 0 ? w[c] : 0;
            break;
        case ON_A_GRID:
            w[c] = (float)(int)(u % 4) - 2;
            break;
        default:
            break;
        }
    }
}

/* Of every four, one is for all columns alike, the others spread over six decades, sparse (three
 * columns of four count nothing), or nothing at all. */
static const float *importance_of(float *p, uint64_t seed)
{
    for (int c = 0; c < N_COLS; c++) {
        const double u = nb_rng_uniform(5, seed, (uint64_t)c);
        const bool counts = nb_rng_uniform(6, seed, (uint64_t)c) < 0.25;
        p[c] = seed % 4 == 1 ? (float)pow(10, 6 * u - 3) : seed % 4 == 2 && counts ? (float)u : 0;
    }
    return seed % 4 == 0 ? NULL : p;
}

/* Rounds to the stored scales; the error of group g of `group_len` columns, by decode_row. */
static double loss_of(const nb_grid *grid, nb_mat *m, const float *w, const float *p, int64_t begin)
{
    float y[N_COLS];
    nb_grid_round_row(grid, m, 0, w);
    m->fmt->decode_row(m, 0, y);
    double loss = 0;
    bool any = false;
    for (int64_t c = begin; c < begin + grid->span_len; c++) {
        assert_true(fabsf(y[c]) <= FLT_MAX);
        any = any || p == NULL || p[c] > 0;
    }
    for (int64_t c = begin; c < begin + grid->span_len; c++) {
        const double e = (double)w[c] - (double)y[c];
        loss += (p == NULL || !any ? 1.0 : (double)p[c]) * (e * e);
    }
    return loss;
}

/* By its own measure, group by group, on all data and importances; nothing that is finite becomes
 * anything else. */
static void searching_is_never_worse(void **state)
{
    (void)state;
    float w[N_COLS], p[N_COLS];
    int64_t n_better = 0;
    for (size_t i = 0; i < N_KINDS; i++) {
        nb_mat m = mat_of(&KINDS[i], 1, N_COLS);
        const nb_grid grid = grid_of(&m);
        for (int what = 0; what < N_DATA; what++) {
            for (uint64_t seed = 0; seed < 8; seed++) {
                fill(w, (data_kind)what, seed);
                const float *importance = importance_of(p, seed);
                double plain[N_COLS];
                nb_grid_fit_rows(&grid, &m, 0, 1, w, importance, NB_FIT_ABSMAX);
                for (int64_t c = 0; c < N_COLS; c += grid.span_len)
                    plain[c] = loss_of(&grid, &m, w, importance, c);
                nb_grid_fit_rows(&grid, &m, 0, 1, w, importance, NB_FIT_SEARCH);
                for (int64_t c = 0; c < N_COLS; c += grid.span_len) {
                    const double loss = loss_of(&grid, &m, w, importance, c);
                    if (!(loss <= plain[c]))
                        fail_msg("%s, data %d, seed %d: %g, and %g without a search",
                                 KINDS[i].format, what, (int)seed, loss, plain[c]);
                    n_better += loss < plain[c];
                }
            }
        }
        test_mat_free(&m);
    }
    assert_true(n_better > 1000);
}

/* What a search gains on bell-shaped weights, at least: a search that finds little is broken. */
static void searching_gains(void **state)
{
    (void)state;
    static const struct {
        const char *format;
        int64_t group_size;
        bool asymmetric;
        double share;
    } cases[] = {
        {"int2", 128, false, 0.5}, {"int2", 128, true, 0.6},    {"int3", 128, false, 0.65},
        {"int3", 128, true, 0.85}, {"int4", 32, false, 0.8},    {"int4", 32, true, 0.93},
        {"q4_0", 32, false, 0.93}, {"q4_1", 32, false, 0.85},   {"q8_0", 32, false, 0.95},
        {"q4_k", 32, false, 0.9},  {"iq4_nl", 32, false, 0.95}, {"q2_k", 16, false, 0.65},
        {"q3_k", 16, false, 0.88}, {"q5_k", 32, false, 0.85},   {"q6_k", 16, false, 0.8},
    };
    float w[N_COLS];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const kind k = {cases[i].format, cases[i].group_size, NB_F16, cases[i].asymmetric};
        nb_mat m = mat_of(&k, 1, N_COLS);
        const nb_grid grid = grid_of(&m);
        double plain = 0, found = 0;
        for (uint64_t seed = 0; seed < 16; seed++) {
            fill(w, BELL, seed);
            nb_grid_fit_rows(&grid, &m, 0, 1, w, NULL, NB_FIT_ABSMAX);
            for (int64_t c = 0; c < N_COLS; c += grid.span_len)
                plain += loss_of(&grid, &m, w, NULL, c);
            nb_grid_fit_rows(&grid, &m, 0, 1, w, NULL, NB_FIT_SEARCH);
            for (int64_t c = 0; c < N_COLS; c += grid.span_len)
                found += loss_of(&grid, &m, w, NULL, c);
        }
        if (!(found < cases[i].share * plain))
            fail_msg("%s: %g of the loss without a search is left", k.format, found / plain);
        test_mat_free(&m);
    }
}

/* The columns that count are fitted well, at the cost of those that do not. */
static void importance_decides(void **state)
{
    (void)state;
    float w[N_COLS], p[N_COLS];
    for (size_t i = 0; i < N_KINDS; i++) {
        nb_mat m = mat_of(&KINDS[i], 1, N_COLS);
        const nb_grid grid = grid_of(&m);
        double heeded = 0, ignored = 0;
        for (uint64_t seed = 0; seed < 4; seed++) {
            fill(w, BELL, seed);
            for (int c = 0; c < N_COLS; c++) { /* those that count are small */
                p[c] = c % 4 == 0 ? 1.0f : 1e-4f;
                w[c] *= c % 4 == 0 ? 0.25f : 1;
            }
            nb_grid_fit_rows(&grid, &m, 0, 1, w, p, NB_FIT_SEARCH);
            for (int64_t c = 0; c < N_COLS; c += grid.span_len)
                heeded += loss_of(&grid, &m, w, p, c);
            nb_grid_fit_rows(&grid, &m, 0, 1, w, NULL, NB_FIT_SEARCH);
            for (int64_t c = 0; c < N_COLS; c += grid.span_len)
                ignored += loss_of(&grid, &m, w, p, c);
        }
        if (!(heeded < 0.75 * ignored))
            fail_msg("%s: %g of the loss without importance", KINDS[i].format, heeded / ignored);
        test_mat_free(&m);
    }
}

/* Scaling all importances changes nothing, and a call depends on its own row and span alone. */
static void fits_are_reproducible(void **state)
{
    (void)state;
    float w[2 * N_COLS], p[N_COLS], scaled[N_COLS];
    for (size_t i = 0; i < N_KINDS; i++) {
        nb_mat a = mat_of(&KINDS[i], 2, N_COLS), b = mat_of(&KINDS[i], 2, N_COLS);
        const nb_grid grid = grid_of(&a);
        test_random_weights(w, 2 * N_COLS, 0.1, 0.02, i);
        for (int c = 0; c < N_COLS; c++) {
            p[c] = (float)nb_rng_uniform(9, i, (uint64_t)c);
            scaled[c] = 1024 * p[c];
        }
        nb_grid_fit_rows(&grid, &a, 0, 2, w, p, NB_FIT_SEARCH);
        for (int64_t r = 1; r >= 0; r--)
            for (int64_t c = N_COLS - grid.span_len; c >= 0; c -= grid.span_len)
                nb_grid_fit(&grid, &b, r, c, w + r * N_COLS + c, scaled + c, NB_FIT_SEARCH);
        for (int64_t r = 0; r < 2; r++) {
            nb_grid_round_row(&grid, &a, r, w + r * N_COLS);
            nb_grid_round_row(&grid, &b, r, w + r * N_COLS);
        }
        assert_memory_equal(a.codes, b.codes, (size_t)(2 * a.row_bytes));
        if (a.scales != NULL)
            assert_memory_equal(a.scales, b.scales,
                                test_mat_n_params(&a) * nb_float_bytes(a.scale_type));
        test_mat_free(&a);
        test_mat_free(&b);
    }
}

/* Formats without extremes to start from are encoded by the search itself. */
static void searching_encoders(void **state)
{
    (void)state;
    static const char *const names[] = {"iq4_nl", "q2_k", "q4_k", "q5_k"};
    float w[N_COLS], y[N_COLS];
    for (size_t i = 0; i < 4; i++) {
        nb_mat m = test_mat_block(nb_format_by_name(names[i]), 2, N_COLS);
        const nb_grid grid = grid_of(&m);
        for (int what = 0; what < N_DATA; what++) {
            fill(w, (data_kind)what, 3);
            m.fmt->encode_row(&m, 1, w);
            nb_grid_fit_rows(&grid, &m, 0, 1, w, NULL, NB_FIT_SEARCH);
            nb_grid_round_row(&grid, &m, 0, w);
            assert_memory_equal(nb_mat_row(&m, 0), nb_mat_row(&m, 1), (size_t)m.row_bytes);
            m.fmt->decode_row(&m, 1, y);
            double loss = 0, power = 0;
            for (int c = 0; c < N_COLS; c++) {
                loss += pow((double)y[c] - (double)w[c], 2);
                power += pow((double)w[c], 2);
            }
            if (what == BELL)
                assert_true(loss < (i == 1 ? 0.1 : 0.008) * power);
            if (what == ZEROS)
                assert_true(loss == 0);
        }
        test_mat_free(&m);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shapes_are_what_formats_say),
        cmocka_unit_test(formats_without_a_grid_say_so),
        cmocka_unit_test(every_code_and_every_midpoint),
        cmocka_unit_test(many_at_once_are_one_by_one),
        cmocka_unit_test(values_are_what_decode_row_gives),
        cmocka_unit_test(odd_rows_of_nibbles),
        cmocka_unit_test(extremes_are_those_of_the_encoder),
        cmocka_unit_test(searching_is_never_worse),
        cmocka_unit_test(searching_gains),
        cmocka_unit_test(importance_decides),
        cmocka_unit_test(fits_are_reproducible),
        cmocka_unit_test(searching_encoders),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
