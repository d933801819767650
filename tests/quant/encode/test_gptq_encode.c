/* The second-order encoders: that the feedback is right, and that it pays. With --cases, prints
 * what scripts/oracle_gptq.py compares. */
#include "gptq_scene.h"

/* ---- what it is for ---- */

/* Every order, rule of scales and format: the loss is below that of rounding to nearest, on the
 * tokens that chose and on others. */
static void every_option_beats_rounding(void **state)
{
    (void)state;
    static const char *const methods[] = {
        "gptq",
        "gptq:order=none",
        "gptq:order=none,static-groups,polish=0",
        "gptq:act-order",
        "gptq:act-order,fit=absmax,polish=0,shrink=0",
        "gptq:order=group,static-groups,importance=diag",
        "gptq:importance=none,shrink=0.2,damp=0.1",
    };
    for (size_t f = 0; f < sizeof formats / sizeof *formats; f++) {
        scene s;
        open_format(&s, formats[f], 24, 160);
        encode_plain(&s);
        const double plain = loss(&s, &s.stats.h, NULL);
        const double plain_held = loss(&s, &s.stats.held_h, NULL);
        for (size_t i = 0; i < sizeof methods / sizeof *methods; i++) {
            const nb_group_result result = encode(&s, methods[i]);
            const double is = loss(&s, &s.stats.h, NULL);
            if (!(is < 0.8 * plain) || !(loss(&s, &s.stats.held_h, NULL) < 0.9 * plain_held))
                fail_msg("%s, %s: %g after %g", formats[f], methods[i], is, plain);
            assert_true(result.loss[0] > 0 && result.loss[0] < 0.05);
            assert_true(strstr(result.note, "shrink") != NULL);
        }
        close_scene(&s);
    }
}

/* What is reported is what a plain loop over the decoded matrix finds. */
static void losses_are_told_as_they_are(void **state)
{
    (void)state;
    scene s;
    open_scene(&s, 20, 96, 400, "int4", 32, false);
    const nb_group_result with = encode(&s, "gptq:shrink=0.2");
    assert_true(with.held_loss[0] > 0 && with.held_loss[0] < 1);
    s.stats.n_held = 0;
    const nb_group_result result = encode(&s, "gptq:shrink=0.2");
    assert_true(isnan(result.held_loss[0]));
    const double is = loss(&s, &s.stats.h, NULL);
    memset(s.out[0].codes, 0x88, (size_t)(s.out[0].n_rows * s.out[0].row_bytes)); /* zeros */
    const double power = loss(&s, &s.stats.h, NULL);
    /* e is rounded to binary32 there and not here */
    assert_true(fabs(result.loss[0] - is / power) < 0x1p-22 * is / power);
    assert_string_equal(result.note, "shrink 0.2");
    close_scene(&s);
}

/* ---- rows that make up for each other ---- */

/* tr(G E H E^T). */
static double joint_loss(const scene *s, const nb_sym *g)
{
    const int64_t n = s->stats.n_cols, n_rows = s->out[0].n_rows;
    static float q[MAX_ROWS * MAX_COLS];
    static double eh[MAX_ROWS * MAX_COLS];
    decode(s, q);
    for (int64_t i = 0; i < n_rows * n; i++)
        q[i] = s->weight[i] - q[i];
    for (int64_t r = 0; r < n_rows; r++) {
        for (int64_t j = 0; j < n; j++) {
            eh[r * n + j] = 0;
            for (int64_t i = 0; i < n; i++)
                eh[r * n + j] += (double)q[r * n + i] * (i < j ? nb_sym_row(&s->stats.h, i)[j]
                                                               : nb_sym_row(&s->stats.h, j)[i]);
        }
    }
    double total = 0;
    for (int64_t r = 0; r < n_rows; r++) {
        for (int64_t k = 0; k < n_rows; k++) {
            double both = 0;
            for (int64_t j = 0; j < n; j++)
                both += eh[r * n + j] * (double)q[k * n + j];
            total += both * (r < k ? nb_sym_row(g, r)[k] : nb_sym_row(g, k)[r]);
        }
    }
    return total;
}

/* The loss over pairs of rows falls, which is no gain without pairs; where there are none, the
 * codes are those of rows by themselves. */
static void rows_make_up_for_each_other(void **state)
{
    (void)state;
    enum { ROWS = 72, N = 96 };
    static const char *const methods[] = {"gptq:shrink=0.2", "qronos:shrink=0.2,beta=1",
                                          "gptq:shrink=0.2,static-groups,order=desc"};
    static float g[2048 * ROWS], other[2048 * ROWS], alone[ROWS * N], got[ROWS * N];
    nb_err err = {0};
    make_rows(g, other, 2048, ROWS, 31);
    for (size_t f = 0; f < sizeof formats / sizeof *formats; f++) {
        scene s;
        nb_sym moments;
        open_format(&s, formats[f], ROWS, N);
        s.stats.n_held = 0;
        assert_int_equal(nb_sym_init(&moments, ROWS, &err), NB_OK);
        assert_int_equal(nb_sym_add_rows(&s.la, &moments, g, ROWS, 2048, &err), NB_OK);
        for (size_t i = 0; i < sizeof methods / sizeof *methods; i++) {
            s.job.linear[0].outputs = NULL;
            encode(&s, methods[i]);
            const double before = joint_loss(&s, &moments);
            decode(&s, alone);
            s.job.linear[0].outputs = &moments;
            encode(&s, methods[i]);
            const double after = joint_loss(&s, &moments);
            bool whole;
            assert_int_equal(nb_gptq_is_whole(&s.out[0], &whole, &err), NB_OK);
            if (i != 1 && !(after < (whole ? 1.0000001 : 0.85) * before))
                fail_msg("%s, %s: %g after %g", formats[f], methods[i], after, before);
        }
        for (int64_t i = 0; i < ROWS; i++) {
            for (int64_t j = i + 1; j < ROWS; j++)
                nb_sym_row(&moments, i)[j] = 0;
        }
        for (size_t i = 0; i < 2; i++) {
            s.job.linear[0].outputs = NULL;
            encode(&s, methods[i]);
            decode(&s, alone);
            s.job.linear[0].outputs = &moments;
            encode(&s, methods[i]);
            decode(&s, got);
            assert_memory_equal(got, alone, sizeof got);
        }
        nb_sym_free(&moments);
        close_scene(&s);
    }
}

/* Polishing never raises the loss that it works on. */
static void polish_never_hurts(void **state)
{
    (void)state;
    for (size_t f = 0; f < sizeof formats / sizeof *formats; f++) {
        scene s;
        open_format(&s, formats[f], 24, 160);
        s.stats.n_held = 0;
        double before = INFINITY;
        static const char *const methods[] = {"gptq:shrink=0,damp=0,polish=0",
                                              "gptq:shrink=0,damp=0,polish=1",
                                              "gptq:shrink=0,damp=0,polish=9"};
        for (size_t i = 0; i < 3; i++) {
            encode(&s, methods[i]);
            const double is = loss(&s, &s.stats.h, NULL);
            if (i == 1 ? !(is < before) : !(is <= before))
                fail_msg("%s, %s: %g after %g", formats[f], methods[i], is, before);
            before = is;
        }
        close_scene(&s);
    }
}

/* ---- cases with a known answer ---- */

/* Without correlations there is nothing to make up for: codes are those nearest to the weights
 * under the scales as they are stored, with every order. */
static void diagonal_moments_mean_rounding(void **state)
{
    (void)state;
    static const char *const methods[] = {"gptq:order=none",    "gptq:act-order", "gptq",
                                          "gptq:static-groups", "gptaq",          "qronos"};
    for (size_t f = 0; f < sizeof formats / sizeof *formats; f++) {
        scene s;
        open_format(&s, formats[f], 9, 160);
        const int64_t n = s.stats.n_cols;
        clear(&s.stats.h);
        clear(&s.stats.held_h);
        memset(s.stats.cross, 0, (size_t)(n * n) * sizeof(double));
        memset(s.stats.held_cross, 0, (size_t)(n * n) * sizeof(double));
        for (int64_t i = 0; i < n; i++) {
            const double d = 1 + 50 * nb_rng_uniform(5, 5, (uint64_t)i);
            nb_sym_row(&s.stats.h, i)[i] = s.stats.cross[i * n + i] = d;
            nb_sym_row(&s.stats.held_h, i)[i] = s.stats.held_cross[i * n + i] = d;
        }
        for (size_t i = 0; i < sizeof methods / sizeof *methods; i++) {
            encode(&s, methods[i]);
            static float q[MAX_ROWS * MAX_COLS], nearest[MAX_ROWS * MAX_COLS];
            nb_grid grid;
            nb_err err = {0};
            decode(&s, q);
            assert_int_equal(nb_grid_of(&grid, &s.out[0], &err), NB_OK);
            round_all(&s, &grid);
            decode(&s, nearest);
            assert_memory_equal(q, nearest, (size_t)(9 * n) * sizeof(float));
        }
        close_scene(&s);
    }
}

/* Two columns, scale 1, no damping: H = (4 3; 3 9). The factor's column of feedback is
 * R01 / R11 = 3 / 9, so that w = (2.2, 1.3) becomes 2, and then t_1 = 1.3 + 0.2 / 3 = 1.367 -> 1;
 * and w = (2.4, 1.4) becomes 2 and t_1 = 1.533 -> 2, which rounding alone would not do.
 * In descending order column 1 comes first, and feeds back 3 / 4 of its error: w = (2.2, 1.3): 1,
 * t_0 = 2.2 + 0.225 = 2.425 -> 2; w = (2.4, 1.4): 1, t_0 = 2.4 + 0.3 = 2.7 -> 3. */
static void two_columns_by_hand(void **state)
{
    (void)state;
    scene s;
    open_scene(&s, 3, 2, 8, "int8", 0, false);
    static const float w[] = {2.2f, 1.3f, 2.4f, 1.4f, -127.5f, 0};
    memcpy(s.weight, w, sizeof w);
    s.stats.n_held = 0;
    nb_sym_row(&s.stats.h, 0)[0] = 4;
    nb_sym_row(&s.stats.h, 0)[1] = 3;
    nb_sym_row(&s.stats.h, 1)[1] = 9;
    const uint16_t one = 0x3f80;
    static const float stored[] = {2, 1, 2, 2}, descending[] = {2, 1, 3, 1};
    nb_err err = {0};
    for (int desc = 0; desc < 2; desc++) {
        nb_gptq_options o = {.order = desc ? NB_ORDER_DESC : NB_ORDER_NONE};
        nb_feedback f;
        const nb_moments m = {.h = &s.stats.h};
        for (int64_t r = 0; r < 3; r++)
            ((uint16_t *)s.out[0].scales)[r] = one;
        assert_int_equal(nb_feedback_init(&f, 2, &err), NB_OK);
        assert_int_equal(nb_feedback_make(&f, &s.la, &m, &o, 0, 2, &err), NB_OK);
        assert_int_equal(f.order[0], desc);
        assert_true(f.damp == 0 && !f.blind);
        const nb_gptq_job job = {.la = &s.la,
                                 .options = &o,
                                 .feedback = &f,
                                 .moments = &m,
                                 .weight = s.weight,
                                 .out = &s.out[0],
                                 .keep_scales = true};
        assert_int_equal(nb_gptq_encode(&job, &err), NB_OK);
        float q[6];
        decode(&s, q);
        assert_memory_equal(q, desc ? descending : stored, 4 * sizeof(float));
        nb_feedback_free(&f);
    }
    close_scene(&s);
}

static void keep_codes(const scene *s, uint8_t *to)
{
    const nb_mat *m = &s->out[0];
    memcpy(to, m->codes, (size_t)(m->n_rows * m->row_bytes));
    if (m->scales != NULL)
        memcpy(to + m->n_rows * m->row_bytes, m->scales,
               (size_t)(m->n_rows * nb_mat_n_groups(m)) * nb_float_bytes(m->scale_type));
}

/* With inputs that are those of the full-precision model, gptaq and qronos are gptq. */
static void methods_agree_where_inputs_do(void **state)
{
    (void)state;
    scene s;
    open_scene(&s, 20, 160, 500, "int4", 32, false);
    const int64_t n = s.stats.n_cols;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            const int64_t a = i < j ? i : j, b = i < j ? j : i;
            s.stats.cross[i * n + j] = nb_sym_row(&s.stats.h, a)[b];
            s.stats.held_cross[i * n + j] = nb_sym_row(&s.stats.held_h, a)[b];
        }
    static uint8_t want[MAX_ROWS * MAX_COLS], is[MAX_ROWS * MAX_COLS];
    encode(&s, "gptq:polish=0");
    keep_codes(&s, want);
    static const char *const same[] = {"gptaq", "gptaq:alpha=0.5", "qronos:polish=0",
                                       "qronos:polish=0,beta=auto"};
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        encode(&s, same[i]);
        keep_codes(&s, is);
        assert_memory_equal(is, want, sizeof want);
    }
    close_scene(&s);
}

/* With inputs that are not, each of the two gets nearer to the full-precision outputs. */
static void a_move_pays(void **state)
{
    (void)state;
    scene s;
    open_scene(&s, 24, 160, 900, "int4", 32, false);
    encode(&s, "gptq:polish=0");
    const double plain = loss(&s, &s.stats.held_h, s.stats.held_cross);
    encode(&s, "gptaq");
    const double stepwise = loss(&s, &s.stats.held_h, s.stats.held_cross);
    encode(&s, "qronos:polish=0");
    const double first = loss(&s, &s.stats.held_h, s.stats.held_cross);
    if (!(stepwise < plain) || !(first < stepwise))
        fail_msg("gptq %g, gptaq %g, qronos %g", plain, stepwise, first);
    close_scene(&s);
}

/* ---- same bits ---- */

/* More columns than a band, more rows than a sample: any number of threads, any instruction set. */
static void threads_and_instruction_sets_do_not_matter(void **state)
{
    (void)state;
    static const char *const methods[] = {"gptq", "gptq:act-order,shrink=0.1",
                                          "gptaq:order=none,shrink=0.3",
                                          "qronos:shrink=0.2,beta=auto"};
    static const unsigned isas[] = {0, NB_ISA_AVX2, ~0u, ~0u};
    static const int n_threads[] = {2, 3, 1, 3};
    static uint8_t want[MAX_ROWS * MAX_COLS], is[MAX_ROWS * MAX_COLS];
    scene s;
    open_scene(&s, 196, 160, 400, "int4", 32, false);
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++) {
        encode(&s, methods[i]);
        memset(want, 0, sizeof want);
        memset(is, 0, sizeof is);
        keep_codes(&s, want);
        close_pool(&s);
        open_pool(&s, n_threads[i], isas[i]);
        encode(&s, methods[i]);
        keep_codes(&s, is);
        assert_memory_equal(is, want, sizeof want);
    }
    close_scene(&s);
}

/* ---- cases for scripts/oracle_gptq.py ---- */

static void print_numbers(const char *name, const double *x, int64_t n)
{
    printf(", \"%s\": [", name);
    for (int64_t i = 0; i < n; i++)
        printf("%s%.17g", i == 0 ? "" : ", ", x[i]);
    printf("]");
}

static void print_case(const char *move, const char *method, double shrink)
{
    enum { ROWS = 24, N = 160, GROUP = 8 };
    static double w[ROWS * N], h[N * N], d[N * N], scale[ROWS * N / GROUP], code[ROWS * N];
    static float q[ROWS * N];
    nb_err err = {0};
    scene s;
    open_scene(&s, ROWS, N, 800, "int4", GROUP, false);
    s.stats.n_held = 0;
    encode(&s, method);
    decode(&s, q);
    nb_grid grid;
    assert_int_equal(nb_grid_of(&grid, &s.out[0], &err), NB_OK);
    for (int64_t i = 0; i < ROWS * N; i++) {
        nb_grid_group g;
        nb_grid_group_at(&grid, &s.out[0], i / N, i % N, &g);
        w[i] = (double)s.weight[i];
        scale[i / GROUP] = (double)g.scale;
        code[i] = (double)q[i] / (double)g.scale;
    }
    for (int64_t i = 0; i < N * N; i++) {
        const int64_t r = i / N, c = i % N;
        h[i] = r < c ? nb_sym_row(&s.stats.h, r)[c] : nb_sym_row(&s.stats.h, c)[r];
        d[i] = s.stats.cross[i] - h[i];
    }
    printf("{\"name\": \"%s\", \"move\": \"%s\", \"n\": %d, \"group\": %d", method, move, N, GROUP);
    printf(", \"shrink\": %g, \"damp\": 0.01, \"strength\": 1", shrink);
    print_numbers("w", w, ROWS * N);
    print_numbers("h", h, N * N);
    print_numbers("d", d, N * N);
    print_numbers("scale", scale, ROWS * N / GROUP);
    print_numbers("code", code, ROWS * N);
    printf("}\n");
    close_scene(&s);
}

static int print_cases(void)
{
    print_case("gptq", "gptq:order=none,static-groups,polish=0,shrink=0", 0);
    print_case("gptq", "gptq:order=none,static-groups,polish=0,shrink=0.3,fit=absmax", 0.3);
    print_case("gptaq", "gptaq:order=none,static-groups,shrink=0", 0);
    print_case("gptaq", "gptaq:order=none,static-groups,shrink=0.3", 0.3);
    print_case("qronos", "qronos:order=none,static-groups,polish=0,shrink=0", 0);
    print_case("qronos", "qronos:order=none,static-groups,polish=0,shrink=0.3", 0.3);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--cases") == 0)
        return print_cases();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_option_beats_rounding),
        cmocka_unit_test(losses_are_told_as_they_are),
        cmocka_unit_test(rows_make_up_for_each_other),
        cmocka_unit_test(polish_never_hurts),
        cmocka_unit_test(diagonal_moments_mean_rounding),
        cmocka_unit_test(two_columns_by_hand),
        cmocka_unit_test(methods_agree_where_inputs_do),
        cmocka_unit_test(a_move_pays),
        cmocka_unit_test(threads_and_instruction_sets_do_not_matter),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
