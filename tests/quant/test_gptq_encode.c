/* The second-order encoders: that the feedback is right, that it pays, and that nothing in the data
 * stops it. */
#include "quant/gptq_shrink.h"

#include "base/rng.h"
#include "support/golden.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_ROWS = 320, MAX_COLS = 288 };

/* ---- a scene: inputs with correlated columns, weights, and room for codes ---- */

typedef struct {
    nb_kernels kernels;
    nb_pool *pool;
    nb_algebra la;
    nb_input_stats stats;
    float *weight;
    nb_mat out[NB_GROUP_LINEARS];
    nb_group_job job;
    nb_method method;
} scene;

/* Near enough to normal: a sum of four uniform numbers, with variance 1. */
static double normal(uint64_t seed, uint64_t i)
{
    uint32_t w[4];
    nb_philox(seed, 1, i, w);
    return ((double)w[0] + w[1] + w[2] + w[3] - 0x1p33) * (1.7320508 * 0x1p-32);
}

/* Rows of x: n_hidden causes mixed, one column much louder than the others. x0 differs from x. */
static void make_rows(float *x, float *x0, int64_t n_rows, int64_t n, uint64_t seed)
{
    enum { HIDDEN = 24 };
    static double mix[MAX_COLS * HIDDEN];
    for (int64_t i = 0; i < n * HIDDEN; i++)
        mix[i] = normal(7, (uint64_t)i) / 5;
    for (int64_t t = 0; t < n_rows; t++) {
        double cause[HIDDEN];
        for (int i = 0; i < HIDDEN; i++)
            cause[i] = normal(seed, (uint64_t)(t * HIDDEN + i));
        for (int64_t j = 0; j < n; j++) {
            double v = 0.3 * normal(seed + 1, (uint64_t)(t * n + j));
            for (int i = 0; i < HIDDEN; i++)
                v += cause[i] * mix[j * HIDDEN + i];
            v *= j % 37 == 5 ? 20 : 1;
            x[t * n + j] = (float)v;
            x0[t * n + j] = (float)(v * 1.05 + 0.3 * normal(seed + 2, (uint64_t)(t * n + j)));
        }
    }
}

static void sums(scene *s, nb_sym *h, double **cross, int64_t n_tokens, uint64_t seed)
{
    nb_err err = {0};
    const int64_t n = s->stats.n_cols;
    float *x = malloc((size_t)((n_tokens + 1) * n) * sizeof *x);
    float *x0 = malloc((size_t)((n_tokens + 1) * n) * sizeof *x0);
    make_rows(x, x0, n_tokens, n, seed);
    assert_int_equal(nb_sym_init(h, n, &err), NB_OK);
    assert_int_equal(nb_sym_add_rows(&s->la, h, x, n, n_tokens, &err), NB_OK);
    assert_int_equal(NB_ALLOC(cross, n * n, &err), NB_OK);
    assert_int_equal(nb_cross_add_rows(&s->la, *cross, n, x0, x, n, n_tokens, &err), NB_OK);
    free(x);
    free(x0);
}

static void open_pool(scene *s, int n_threads, unsigned isa)
{
    nb_err err = {0};
    nb_kernels_init(&s->kernels, isa);
    assert_int_equal(nb_pool_open(&s->pool, n_threads, &err), NB_OK);
    s->la = (nb_algebra){.kernels = &s->kernels, .pool = s->pool};
}

static void close_pool(scene *s)
{
    nb_algebra_free(&s->la);
    nb_pool_close(s->pool);
}

static nb_mat make_mat(const char *format, int64_t n_rows, int64_t n, int64_t group, bool zeros)
{
    nb_err err = {0};
    nb_mat m = {.fmt = nb_format_by_name(format), .n_rows = n_rows, .n_cols = n};
    assert_non_null(m.fmt);
    if (m.fmt->affine) {
        m.group_size = group > 0 ? group : n;
        m.scale_type = NB_BF16;
        m.row_bytes = m.fmt == &nb_format_int4 ? 4 * ((n + 7) / 8) : n;
        m.scales = calloc((size_t)(n_rows * nb_mat_n_groups(&m)), 4);
        m.zeros = zeros ? calloc((size_t)(n_rows * nb_mat_n_groups(&m)), 1) : NULL;
    } else {
        assert_int_equal(nb_format_row_bytes(m.fmt, n, &m.row_bytes, &err), NB_OK);
    }
    m.codes = calloc((size_t)n_rows, (size_t)m.row_bytes);
    return m;
}

static void free_mat(nb_mat *m)
{
    free(m->codes);
    free(m->scales);
    free(m->zeros);
}

/* One linear of n_rows by n. */
static void open_scene(scene *s, int64_t n_rows, int64_t n, int64_t n_tokens, const char *format,
                       int64_t group, bool zeros)
{
    *s = (scene){.stats = {.n_cols = n, .n_tokens = n_tokens, .n_held = n_tokens / 4}};
    open_pool(s, 2, ~0u);
    sums(s, &s->stats.h, &s->stats.cross, n_tokens, 11);
    sums(s, &s->stats.held_h, &s->stats.held_cross, n_tokens / 4, 12);
    s->weight = malloc((size_t)(n_rows * n) * sizeof(float));
    for (int64_t i = 0; i < n_rows * n; i++)
        s->weight[i] = (float)(0.05 * normal(13, (uint64_t)i));
    s->out[0] = make_mat(format, n_rows, n, group, zeros);
    s->job = (nb_group_job){.method = &s->method, .stats = &s->stats, .la = &s->la, .n = 1};
    s->job.linear[0].name = "w";
    s->job.linear[0].weight = s->weight;
    s->job.linear[0].n_rows = n_rows;
    s->job.linear[0].out = &s->out[0];
}

static void close_scene(scene *s)
{
    nb_sym_free(&s->stats.h);
    nb_sym_free(&s->stats.held_h);
    nb_free(s->stats.cross);
    nb_free(s->stats.held_cross);
    free(s->weight);
    free_mat(&s->out[0]);
    close_pool(s);
}

static nb_group_result encode(scene *s, const char *method)
{
    nb_err err = {0};
    nb_group_result result = {0};
    if (nb_method_parse(&s->method, method, &err) != NB_OK)
        fail_msg("%s", err.text);
    if (s->method.quantizer->encode_group(&s->job, &result, &err) != NB_OK)
        fail_msg("%s: %s", method, err.text);
    return result;
}

static void decode(const scene *s, float *q)
{
    for (int64_t r = 0; r < s->out[0].n_rows; r++)
        s->out[0].fmt->decode_row(&s->out[0], r, q + r * s->out[0].n_cols);
}

/* |w x0 - q x|^2 without what q does not change: by h, and by D = cross - h where given. */
static double loss(const scene *s, const nb_sym *h, const double *cross)
{
    const int64_t n = s->stats.n_cols;
    static float q[MAX_ROWS * MAX_COLS];
    decode(s, q);
    double total = 0;
    for (int64_t r = 0; r < s->out[0].n_rows; r++) {
        const float *w = s->weight + r * n;
        for (int64_t i = 0; i < n; i++) {
            const double e = (double)w[i] - (double)q[r * n + i];
            for (int64_t j = 0; j < n; j++) {
                const double hij = i < j ? nb_sym_row(h, i)[j] : nb_sym_row(h, j)[i];
                total += e * hij * ((double)w[j] - (double)q[r * n + j]);
                if (cross != NULL) /* w_j D[j][i] e_i */
                    total += 2 * e * (double)w[j] * (cross[j * n + i] - hij);
            }
        }
    }
    return total;
}

static void encode_plain(scene *s)
{
    for (int64_t r = 0; r < s->out[0].n_rows; r++)
        s->out[0].fmt->encode_row(&s->out[0], r, s->weight + r * s->out[0].n_cols);
}

static void round_all(scene *s, const nb_grid *grid)
{
    for (int64_t r = 0; r < s->out[0].n_rows; r++)
        nb_grid_round_row(grid, &s->out[0], r, s->weight + r * s->out[0].n_cols);
}

/* ---- what it is for ---- */

static const char *const formats[] = {"int4", "int4 asym", "int8", "q4_0", "iq4_nl"};

static void open_format(scene *s, const char *format, int64_t n_rows, int64_t n)
{
    const bool asym = strstr(format, "asym") != NULL;
    open_scene(s, n_rows, n, 700, asym ? "int4" : format, 32, asym);
}

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

static void clear(nb_sym *h)
{
    for (int64_t i = 0; i < h->n; i++)
        for (int64_t j = i; j < h->n; j++)
            nb_sym_row(h, i)[j] = 0;
}

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
        cmocka_unit_test(polish_never_hurts),
        cmocka_unit_test(diagonal_moments_mean_rounding),
        cmocka_unit_test(two_columns_by_hand),
        cmocka_unit_test(methods_agree_where_inputs_do),
        cmocka_unit_test(a_move_pays),
        cmocka_unit_test(threads_and_instruction_sets_do_not_matter),
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
