/* What is kept of a transform is what it does: a block whose weights are read by rows ends up with
 * the bits of one whose weights are held, however the rows are cut. */
#include "support/golden.h"

#include "toy_block.h"

extern const nb_transform nb_transform_awq, nb_transform_smoothquant;

static nb_err err;

/* Weights that are not held: read from where nothing changes. */
typedef struct {
    toy_block block;
    nb_changes changes[NB_N_LINEARS];
    int64_t fail_at, n_reads; /* 0: none fails */
} unheld;

typedef struct {
    unheld *of;
    int id;
} place;

static place places[NB_N_LINEARS];

static nb_status read_rows(void *context, int64_t row, int64_t n, float *out, nb_err *e)
{
    const place *at = context;
    toy_block *b = &at->of->block;
    const int64_t n_cols = b->to[at->id].n_cols;
    if (++at->of->n_reads == at->of->fail_at)
        return nb_fail(e, NB_IO, "a row that cannot be read");
    memcpy(out, b->weight[at->id] + row * n_cols, (size_t)(n * n_cols) * sizeof *out);
    nb_changes_apply(&at->of->changes[at->id], b->job.la->pool, out, n_cols, row, n);
    return NB_OK;
}

static void unheld_open(unheld *u, nb_algebra *la, const toy_options *o)
{
    *u = (unheld){0};
    toy_open(&u->block, la, o);
    for (int id = 0; id < NB_N_LINEARS; id++) {
        places[id] = (place){u, id};
        u->block.job.weight[id] = NULL;
        u->block.job.rows[id] = (nb_rows){.read = read_rows, .context = &places[id]};
        u->block.job.changes[id] = &u->changes[id];
    }
}

static void unheld_close(unheld *u)
{
    for (int id = 0; id < NB_N_LINEARS; id++)
        nb_changes_free(&u->changes[id]);
    toy_close(&u->block);
}

static nb_algebra algebra(int n_threads)
{
    static nb_kernels kernels;
    nb_algebra la = {.kernels = &kernels};
    nb_kernels_init(&kernels, NB_ISA_ALL);
    assert_int_equal(nb_pool_open(&la.pool, n_threads, &err), NB_OK);
    return la;
}

static void close_algebra(nb_algebra *la)
{
    nb_pool_close(la->pool);
    nb_algebra_free(la);
}

#define NEEDS (NB_STAT_HESSIAN | NB_STAT_MAGNITUDE | NB_STAT_SAMPLE)

/* Read in steps of a prime, which are no steps of any loop. */
static void same_as_held(unheld *u, const toy_block *held)
{
    for (int id = 0; id < NB_N_LINEARS; id++) {
        const nb_weight *to = &held->to[id];
        float rows[7 * TOY_MAX];
        for (int64_t r = 0; r < to->n_rows; r += 7) {
            const int64_t n = to->n_rows - r < 7 ? to->n_rows - r : 7;
            assert_int_equal(read_rows(&places[id], r, n, rows, &err), NB_OK);
            assert_memory_equal(rows, held->weight[id] + r * to->n_cols,
                                (size_t)(n * to->n_cols) * sizeof *rows);
        }
        if (held->bias[id] != NULL)
            assert_memory_equal(u->block.bias[id], held->bias[id],
                                (size_t)to->n_rows * sizeof *held->bias[id]);
    }
    assert_memory_equal(u->block.gain, held->gain, sizeof held->gain);
    for (int p = 0; p < NB_N_POINTS; p++) {
        const int64_t n = held->stats[p].n_cols;
        assert_memory_equal(u->block.stats[p].mean_square, held->stats[p].mean_square,
                            (size_t)n * sizeof(double));
        for (int64_t i = 0; i < n; i++)
            assert_memory_equal(nb_sym_row(&u->block.stats[p].h, i) + i,
                                nb_sym_row(&held->stats[p].h, i) + i,
                                (size_t)(n - i) * sizeof(double));
    }
}

static void what_is_kept_is_what_was_done(void **state)
{
    (void)state;
    static const struct {
        const nb_transform *transform;
        const char *options;
        toy_options how;
    } cases[] = {
        {&nb_transform_awq, "grid=4", {.seed = 1, .outlier = 3, .biases = true}},
        {&nb_transform_awq, "grid=4", {.seed = 2, .symmetric = true, .group = -1}},
        {&nb_transform_awq, "grid=3", {.seed = 3, .outlier = 5, .n_kv_heads = 4}},
        {&nb_transform_awq, "grid=4,clip=off", {.seed = 4, .method = "rtn:search"}},
        {&nb_transform_smoothquant, "", {.seed = 5, .outlier = 9, .biases = true, .act_bits = 8}},
        {&nb_transform_smoothquant, "alpha=0.7", {.seed = 6, .outlier = 2, .act_bits = 8}},
    };
    int n_moved = 0, n_clipped = 0;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        nb_algebra la = algebra(1 + (int)i % 3);
        toy_options how = cases[i].how;
        how.needs = NEEDS;
        how.gain_type = i % 2 == 0 ? NB_BF16 : NB_F16;
        toy_block held;
        unheld u;
        toy_open(&held, &la, &how);
        unheld_open(&u, &la, &how);
        held.job.options = u.block.job.options = cases[i].options;
        nb_transform_result want, got;
        assert_int_equal(nb_transform_apply(cases[i].transform, &held.job, &want, &err), NB_OK);
        assert_int_equal(nb_transform_apply(cases[i].transform, &u.block.job, &got, &err), NB_OK);
        assert_memory_equal(got.after, want.after, sizeof want.after);
        assert_memory_equal(got.note, want.note, sizeof want.note);
        same_as_held(&u, &held);
        for (int id = 0; id < NB_N_LINEARS; id++) {
            n_moved += u.changes[id].columns != NULL && u.changes[id].divisors != NULL;
            n_clipped += u.changes[id].clip != NULL && u.changes[id].divisors != NULL;
        }
        toy_close(&held);
        unheld_close(&u);
        close_algebra(&la);
    }
    assert_true(n_moved > 0 && n_clipped > 0); /* all three on one weight */
}

/* Whichever read fails: the error comes out, and nothing leaks. */
static void rows_that_cannot_be_read_are_an_error(void **state)
{
    (void)state;
    nb_algebra la = algebra(2);
    const toy_options how = {.seed = 8, .outlier = 3, .needs = NEEDS};
    int64_t n_failed = 0;
    for (int64_t n = 1;; n += 1 + n / 5) {
        unheld u;
        const int64_t live = nb_alloc_live();
        unheld_open(&u, &la, &how);
        u.block.job.options = "grid=2,duo=off";
        u.fail_at = n;
        nb_transform_result r;
        const nb_status s = nb_transform_apply(&nb_transform_awq, &u.block.job, &r, &err);
        unheld_close(&u);
        nb_algebra_free(&la);
        la.scratch = (nb_buf){0};
        assert_int_equal(nb_alloc_live(), live);
        if (s == NB_OK)
            break;
        assert_int_equal(s, NB_IO);
        n_failed++;
    }
    assert_true(n_failed > 8);
    close_algebra(&la);
}

/* No step leaves a span as it is, and each is what it says, for ranges on one side of zero, too. */
static void spans_are_clipped_to_their_share(void **state)
{
    (void)state;
    static const float spans[][4] = {
        {-1, 0.5f, 0.25f, 2}, {1, 2, 3, 4}, {-4, -3, -2, -1}, {0, 0, 0, 0}, {-0.0f, 1, -1, 0.5f}};
    for (int i = 0; i < 5; i++) {
        for (int two_sided = 0; two_sided < 2; two_sided++) {
            float lo, hi, to[4];
            nb_clip_range(spans[i], 4, two_sided != 0, &lo, &hi);
            assert_true(lo <= 0 && hi >= 0 && (two_sided != 0 || lo == -hi));
            nb_clip_span(to, spans[i], 4, lo, hi, 0);
            assert_memory_equal(to, spans[i], sizeof to);
            nb_clip_span(to, spans[i], 4, lo, hi, 10);
            for (int j = 0; j < 4; j++)
                assert_true(to[j] == fmaxf(lo * 0.5f, fminf(hi * 0.5f, spans[i][j])));
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_kept_is_what_was_done),
        cmocka_unit_test(rows_that_cannot_be_read_are_an_error),
        cmocka_unit_test(spans_are_clipped_to_their_share),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
