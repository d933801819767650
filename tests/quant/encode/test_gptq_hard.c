/* The second-order encoders: that nothing in calibration or weights stops them, and that they say
 * what they refuse. */
#include "gptq_scene.h"

/* ---- data that is hard ---- */

static void assert_sound(scene *s, const char *method)
{
    const nb_group_result result = encode(s, method);
    static float q[MAX_ROWS * MAX_COLS];
    decode(s, q);
    const int64_t n = s->out[0].n_rows * s->out[0].n_cols;
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(q[i]))
            fail_msg("%s: value %lld is %g", method, (long long)i, (double)q[i]);
    assert_true(!isnan(result.loss[0]));
}

static const char *const hard_methods[] = {"gptq", "gptq:act-order,shrink=0,damp=0", "gptaq",
                                           "qronos:beta=auto"};
enum { N_HARD = sizeof hard_methods / sizeof *hard_methods };

/* H += x x^T of one token, `count` times; also as the cross moments. */
static void add_token(scene *s, const float *x, double count)
{
    const int64_t n = s->stats.n_cols;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            const double v = count * (double)x[i] * (double)x[j];
            if (j >= i) {
                nb_sym_row(&s->stats.h, i)[j] += v;
                nb_sym_row(&s->stats.held_h, i)[j] += v;
            }
            s->stats.cross[i * n + j] += v;
            s->stats.held_cross[i * n + j] += v;
        }
}

static void forget(scene *s)
{
    const size_t bytes = (size_t)(s->stats.n_cols * s->stats.n_cols) * sizeof(double);
    clear(&s->stats.h);
    clear(&s->stats.held_h);
    memset(s->stats.cross, 0, bytes);
    memset(s->stats.held_cross, 0, bytes);
}

static void hard_calibration_ends_well(void **state)
{
    (void)state;
    scene s;
    open_scene(&s, 9, 160, 20, "int4", 32, false); /* fewer tokens than columns */
    for (int i = 0; i < N_HARD; i++)
        assert_sound(&s, hard_methods[i]);
    forget(&s); /* no tokens at all */
    for (int i = 0; i < N_HARD; i++)
        assert_sound(&s, hard_methods[i]);
    float x[160];
    for (int j = 0; j < 160; j++)
        x[j] = j % 5 == 0 ? 0 : j % 5 == 1 ? 3 : (float)normal(3, (uint64_t)j);
    add_token(&s, x, 4096); /* one, repeated, with dead and constant columns */
    for (int i = 0; i < N_HARD; i++)
        assert_sound(&s, hard_methods[i]);
    static const float sizes[] = {1e-30f, 1e30f};
    for (int k = 0; k < 2; k++) {
        forget(&s);
        for (int j = 0; j < 160; j++)
            x[j] = (j % 3 == 0 ? sizes[k] : 1) * (float)normal(3, (uint64_t)j);
        add_token(&s, x, 1);
        for (int i = 0; i < N_HARD; i++)
            assert_sound(&s, hard_methods[i]);
    }
    close_scene(&s);
}

/* Sums that overflowed say nothing: codes are rounded, and the report says so. */
static void infinite_moments_are_told(void **state)
{
    (void)state;
    static const double bad[] = {INFINITY, NAN, -1};
    for (int at = 0; at < 2; at++)
        for (int i = 0; i < 3; i++) {
            if (at == 1 && i == 2)
                continue; /* -1 off the diagonal is nothing bad */
            scene s;
            open_scene(&s, 9, 160, 200, "int4", 32, false);
            s.stats.n_held = 0;
            nb_sym_row(&s.stats.h, 70)[70 + at] = bad[i];
            const nb_group_result result = encode(&s, "gptq:fit=absmax");
            assert_non_null(strstr(result.note, "rounded to nearest"));
            static float q[MAX_ROWS * MAX_COLS], plain[MAX_ROWS * MAX_COLS];
            decode(&s, q);
            encode_plain(&s);
            decode(&s, plain);
            assert_memory_equal(q, plain, 9 * 160 * sizeof(float));
            close_scene(&s);
        }
}

/* Weights up to the largest finite number, and a row of zeros. */
static void huge_weights_stay_finite(void **state)
{
    (void)state;
    for (size_t f = 0; f < sizeof formats / sizeof *formats; f++) {
        scene s;
        open_format(&s, formats[f], 9, 160);
        for (int j = 0; j < 160; j++) {
            s.weight[j] = 0;
            s.weight[160 + j] *= 1e38f;
            s.weight[320 + j] = j % 2 == 0 ? 3.4e38f : -3.4e38f;
            s.weight[480 + j] *= 1e-40f;
        }
        for (int i = 0; i < N_HARD; i++)
            assert_sound(&s, hard_methods[i]);
        close_scene(&s);
    }
}

/* Columns that no token touched are rounded to nearest, whatever happens to the others. */
static void dead_columns_round(void **state)
{
    (void)state;
    scene s;
    open_scene(&s, 12, 160, 500, "int4", 32, false);
    for (int64_t i = 0; i < 160; i++)
        for (int64_t j = i; j < 160; j++)
            if (i % 9 == 4 || j % 9 == 4)
                nb_sym_row(&s.stats.h, i)[j] = nb_sym_row(&s.stats.held_h, i)[j] = 0;
    static float q[12 * 160], nearest[12 * 160];
    static const char *const methods[] = {"gptq", "gptq:order=none", "gptq:act-order"};
    for (int i = 0; i < 3; i++) {
        nb_grid grid;
        nb_err err = {0};
        encode(&s, methods[i]);
        decode(&s, q);
        assert_int_equal(nb_grid_of(&grid, &s.out[0], &err), NB_OK);
        round_all(&s, &grid);
        decode(&s, nearest);
        int n_moved = 0;
        for (int k = 0; k < 12 * 160; k++) {
            if (k % 160 % 9 == 4)
                assert_true(q[k] == nearest[k]);
            else
                n_moved += q[k] != nearest[k];
        }
        assert_true(n_moved > 0);
    }
    close_scene(&s);
}

/* ---- failures ---- */

static void options_are_checked(void **state)
{
    (void)state;
    static const char *const refused[] = {
        "gptq:shrink=2",  "gptq:shrink=-1",    "gptq:shrink=some",
        "gptq:order=up",  "gptq:beta=1",       "gptaq:beta=1",
        "qronos:alpha=1", "gptq:fit=best",     "gptq:act-order,static-groups=off",
        "gptq:polish=-1", "gptq:damp=nan",     "gptq:act-order,order=none",
        "gptaq:polish=2", "gptq:importance=h", "gptq:act-order=maybe",
    };
    nb_method m;
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        nb_err err = {0};
        if (nb_method_parse(&m, refused[i], &err) != NB_USAGE)
            fail_msg("%s is taken", refused[i]);
        assert_true(strlen(err.text) > 10);
    }
    static const struct {
        const char *text;
        unsigned needs;
    } taken[] = {
        {"gptq", NB_STAT_HESSIAN | NB_STAT_HELD_OUT},
        {"gptq:shrink=auto", NB_STAT_HESSIAN | NB_STAT_HELD_OUT},
        {"gptq:shrink=0.3,act-order,static-groups=on", NB_STAT_HESSIAN},
        {"gptaq:shrink=0", NB_STAT_HESSIAN | NB_STAT_CROSS},
        {"qronos:shrink=0,beta=auto", NB_STAT_HESSIAN | NB_STAT_CROSS | NB_STAT_HELD_OUT},
    };
    for (size_t i = 0; i < sizeof taken / sizeof *taken; i++) {
        nb_err err = {0};
        unsigned needs = 0;
        assert_int_equal(nb_method_parse(&m, taken[i].text, &err), NB_OK);
        assert_int_equal(m.quantizer->check(&m, &needs, &err), NB_OK);
        assert_int_equal(needs, taken[i].needs);
    }
}

/* Formats without codes have no grid; the linear layer is named. */
static void formats_without_a_grid_are_refused(void **state)
{
    (void)state;
    scene s;
    open_scene(&s, 4, 32, 64, "bf16", 0, false);
    nb_err err = {0};
    nb_group_result result;
    assert_int_equal(nb_method_parse(&s.method, "gptq", &err), NB_OK);
    assert_int_equal(s.method.quantizer->encode_group(&s.job, &result, &err), NB_UNSUPPORTED);
    assert_non_null(strstr(err.text, "bf16"));
    close_scene(&s);
}

/* Whichever allocation fails: a status, and nothing stays behind. */
static void failed_allocations_leave_nothing(void **state)
{
    (void)state;
    static const char *const methods[] = {"gptq:act-order,shrink=0.1,fit=absmax",
                                          "gptaq:shrink=0.1,fit=absmax",
                                          "qronos:shrink=0.1,fit=absmax"};
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++) {
        scene s;
        open_scene(&s, 194, 16, 64, "int4", 8, false);
        nb_err err = {0};
        nb_group_result result;
        assert_int_equal(nb_method_parse(&s.method, methods[i], &err), NB_OK);
        nb_status status = NB_MEMORY;
        int64_t n = 1;
        for (; status == NB_MEMORY; n++) {
            nb_algebra_free(&s.la);
            const int64_t live = nb_alloc_live();
            nb_alloc_fail_at(n);
            status = s.method.quantizer->encode_group(&s.job, &result, &err);
            nb_alloc_fail_at(0);
            nb_algebra_free(&s.la);
            assert_int_equal(nb_alloc_live(), live);
        }
        assert_int_equal(status, NB_OK);
        assert_true(n > 20);
        close_scene(&s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hard_calibration_ends_well),
        cmocka_unit_test(infinite_moments_are_told),
        cmocka_unit_test(huge_weights_stay_finite),
        cmocka_unit_test(dead_columns_round),
        cmocka_unit_test(options_are_checked),
        cmocka_unit_test(formats_without_a_grid_are_refused),
        cmocka_unit_test(failed_allocations_leave_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
