/* General matrix products and sums over tokens: against plain loops in the contract's order, bit
 * for bit, for every instruction set, 1 to 3 threads, every orientation, and shapes with and
 * without tails; and planted faults through the same checks. */
#include "support/golden.h"
#include "support/check.h"
#include "kernel/machines.h"
#include "kernel/matmul.h"

#include <math.h>
#include <string.h>

static double *doubles(int64_t n)
{
    return check_alloc((size_t)n * sizeof(double));
}

/* ---- tiles and axpy, variant against reference ---- */

static const int64_t tile_cols[] = {1, 4, 7, 8, 9, 15, 16, 17, 24, 31, 32};
static const int64_t tile_depths[] = {0, 1, 2, 7, 128};

static void tile_case(check_run *run, const nb_kernels *k, int64_t m, int64_t n, int64_t depth,
                      check_kind kind)
{
    char what[120];
    snprintf(what, sizeof what, "tile %lld x %lld x %lld, %s data", (long long)m, (long long)n,
             (long long)depth, check_kind_name(kind));
    const int64_t ldc = n + 3, size = (m - 1) * ldc + n;
    float *a = check_floats(depth * NB_MM_ROWS), *b = check_floats(depth * NB_MM_COLS);
    float *got = check_floats(size), *want = check_floats(size), *start = check_floats(size);
    double *got_d = doubles(size), *want_d = doubles(size);
    int64_t row_at[NB_MM_ROWS];
    check_fill(a, depth * NB_MM_ROWS, kind, 1);
    check_fill(b, depth * NB_MM_COLS, kind, 2);
    check_fill(start, size, kind, 3);
    for (int add = 0; add < 2; add++) {
        memcpy(got, start, (size_t)size * sizeof *got);
        memcpy(want, start, (size_t)size * sizeof *got);
        tables[0].mm(want, ldc, m, n, a, b, depth, add);
        k->mm(got, ldc, m, n, a, b, depth, add);
        check_same_f32(run, what, got, want, size);
    }
    for (int64_t i = 0; i < size; i++)
        got_d[i] = want_d[i] = (double)start[i];
    for (int64_t i = 0; i < m; i++)
        row_at[i] = (m - 1 - i) * ldc;
    tables[0].mm_widen(want_d, row_at, m, n, a, b, depth);
    k->mm_widen(got_d, row_at, m, n, a, b, depth);
    for (int64_t i = 0; i < size; i++)
        check_same_f64(run, what, got_d[i], want_d[i]);
    float *const all[] = {a, b, got, want, start};
    for (int i = 0; i < 5; i++) {
        check_guard(run, what, all[i]);
        check_free(all[i]);
    }
    check_guard(run, what, got_d);
    check_free(got_d);
    check_free(want_d);
}

static void tile_case_d(check_run *run, const nb_kernels *k, int64_t m, int64_t n, int64_t depth,
                        check_kind kind)
{
    char what[120];
    snprintf(what, sizeof what, "binary64 tile %lld x %lld x %lld, %s data", (long long)m,
             (long long)n, (long long)depth, check_kind_name(kind));
    const int64_t ldc = n + 1, size = (m - 1) * ldc + n;
    const int64_t n_a = depth * NB_MM_ROWS, n_b = depth * NB_MM_COLS_D, longest = n_a + n_b + size;
    float *source = check_floats(longest);
    check_fill(source, longest, kind, 4);
    double *a = doubles(n_a), *b = doubles(n_b), *got = doubles(size), *want = doubles(size);
    for (int64_t i = 0; i < n_a; i++)
        a[i] = (double)source[i] / 3;
    for (int64_t i = 0; i < n_b; i++)
        b[i] = (double)source[n_a + i] / 3;
    for (int64_t i = 0; i < size; i++)
        got[i] = want[i] = (double)source[n_a + n_b + i];
    tables[0].mm_sub_d(want, ldc, m, n, a, b, depth);
    k->mm_sub_d(got, ldc, m, n, a, b, depth);
    for (int64_t i = 0; i < size; i++)
        check_same_f64(run, what, got[i], want[i]);
    double *const all[] = {a, b, got, want};
    for (int i = 0; i < 4; i++) {
        check_guard(run, what, all[i]);
        check_free(all[i]);
    }
    check_free(source);
}

static void test_tiles(void **state)
{
    (void)state;
    for (int v = 1; v < n_tables; v++) {
        check_run run = {.name = nb_isa_name(tables[v].isa)};
        for (int64_t m = 1; m <= NB_MM_ROWS; m++)
            for (size_t c = 0; c < sizeof tile_cols / sizeof *tile_cols; c++)
                for (size_t d = 0; d < sizeof tile_depths / sizeof *tile_depths; d++) {
                    const check_kind kind = (check_kind)((m + (int64_t)(c + d)) % CHECK_N_KINDS);
                    tile_case(&run, &tables[v], m, tile_cols[c], tile_depths[d], kind);
                    if (tile_cols[c] <= NB_MM_COLS_D)
                        tile_case_d(&run, &tables[v], m, tile_cols[c], tile_depths[d], kind);
                }
        check_finish(&run);
    }
}

/* ---- pairs of bfloat16 ---- */

/* Every upper half with lower halves around the tie: no other bfloat16 is nearer, and of two that
 * are as near it is the even one. */
static void test_bf16_near(void **state)
{
    (void)state;
    static const uint32_t lower[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff};
    for (uint32_t upper = 0; upper < 0x10000; upper++)
        for (size_t i = 0; i < sizeof lower / sizeof *lower; i++) {
            const float x = nb_f32_from_bits(upper << 16 | lower[i]);
            const uint32_t got = nb_bf16_near(nb_f32_bits(x));
            const float y = nb_f32_from_bits(got << 16);
            if (isnan(x)) {
                assert_true(isnan(y) && (got & 0x40) != 0 && signbit(y) == signbit(x));
                continue;
            }
            if (fabsf(x) < 0x1p-50f) {
                assert_int_equal(got, 0);
                continue;
            }
            if (isinf(x)) {
                assert_true(y == x);
                continue;
            }
            const uint32_t down = upper, up = upper + 1; /* towards and away from zero */
            /* what comes after the largest number counts as 2^128, where rounding ends in Inf */
            const double high = isinf(nb_f32_from_bits(up << 16))
                                    ? copysign(0x1p128, (double)x)
                                    : (double)nb_f32_from_bits(up << 16);
            const double to_low = fabs((double)x - (double)nb_f32_from_bits(down << 16));
            const double to_high = fabs(high - (double)x);
            const uint32_t want =
                to_low < to_high || (to_low == to_high && down % 2 == 0) ? down : up;
            if (got != want)
                fail_msg("%a becomes %04x, not %04x", (double)x, got, want);
        }
}

/* A panel of pairs from two of numbers. */
static float *pair_panel(int64_t n, check_kind kind, uint64_t seed)
{
    float *low = check_floats(n), *high = check_floats(n), *pairs = check_floats(n);
    check_fill(low, n, kind, seed);
    check_fill(high, n, kind, seed + 1);
    tables[0].bf16_pairs(pairs, low, high, n);
    check_free(low);
    check_free(high);
    return pairs;
}

static void pair_tile_case(check_run *run, const nb_kernels *k, int64_t m, int64_t n, int64_t depth,
                           check_kind kind)
{
    char what[120];
    snprintf(what, sizeof what, "tile of pairs %lld x %lld x %lld, %s data", (long long)m,
             (long long)n, (long long)depth, check_kind_name(kind));
    const int64_t ldc = n + 3, size = (m - 1) * ldc + n;
    float *a = pair_panel(depth * NB_MM_ROWS, kind, 5), *start = check_floats(size);
    float *b = pair_panel(depth * NB_MM_COLS, kind, 7);
    float *got = check_floats(size), *want = check_floats(size);
    check_fill(start, size, kind, 9);
    for (int add = 0; add < 2; add++) {
        memcpy(got, start, (size_t)size * sizeof *got);
        memcpy(want, start, (size_t)size * sizeof *got);
        tables[0].mm_pairs(want, ldc, m, n, a, b, depth, add);
        k->mm_pairs(got, ldc, m, n, a, b, depth, add);
        check_same_f32(run, what, got, want, size);
    }
    float *const all[] = {a, b, got, want, start};
    for (int i = 0; i < 5; i++) {
        check_guard(run, what, all[i]);
        check_free(all[i]);
    }
}

static void test_pair_tiles(void **state)
{
    (void)state;
    for (int v = 1; v < n_tables; v++) {
        check_run run = {.name = nb_isa_name(tables[v].isa)};
        for (int64_t m = 1; m <= NB_MM_ROWS; m++)
            for (size_t c = 0; c < sizeof tile_cols / sizeof *tile_cols; c++)
                for (int kind = 0; kind < CHECK_N_KINDS; kind++)
                    pair_tile_case(&run, &tables[v], m, tile_cols[c],
                                   tile_depths[(m + (int64_t)c + kind) % 5], (check_kind)kind);
        check_finish(&run);
    }
}

static void test_pairing(void **state)
{
    (void)state;
    for (int v = 0; v < n_tables; v++) {
        check_run run = {.name = nb_isa_name(tables[v].isa)};
        for (int kind = 0; kind < CHECK_N_KINDS; kind++)
            for (int64_t n = 1; n <= 100; n++) {
                const char *what = check_kind_name((check_kind)kind);
                float *low = check_floats(n), *high = check_floats(n);
                float *pairs = check_floats(n), *row = check_floats((n + 1) / 2);
                check_fill(low, n, (check_kind)kind, 14);
                check_fill(high, n, (check_kind)kind, 15);
                tables[v].bf16_pairs(pairs, low, high, n);
                tables[v].bf16_row(row, low, n);
                for (int64_t i = 0; i < n; i++) {
                    const uint32_t l = nb_bf16_near(nb_f32_bits(low[i]));
                    const uint32_t h = nb_bf16_near(nb_f32_bits(high[i]));
                    const uint32_t in_row = nb_f32_bits(row[i / 2]) >> 16 * (i % 2) & 0xffff;
                    check_same_f64(&run, what, nb_f32_bits(pairs[i]), l | h << 16);
                    check_same_f64(&run, what, in_row, l);
                }
                if (n % 2 == 1)
                    check_same_f64(&run, what, nb_f32_bits(row[n / 2]) >> 16, 0);
                float *const all[] = {low, high, pairs, row};
                for (int i = 0; i < 4; i++) {
                    check_guard(&run, what, all[i]);
                    check_free(all[i]);
                }
            }
        check_finish(&run);
    }
}

static void test_axpy(void **state)
{
    (void)state;
    for (int v = 1; v < n_tables; v++) {
        check_run run = {.name = nb_isa_name(tables[v].isa)};
        for (int kind = 0; kind < CHECK_N_KINDS; kind++)
            for (int64_t n = 0; n <= 70; n++) {
                float *x = check_floats(n), *got = check_floats(n), *want = check_floats(n);
                double *xd = doubles(n), *got_d = doubles(n), *want_d = doubles(n);
                float a;
                check_fill(&a, 1, (check_kind)kind, 10 + (uint64_t)n);
                check_fill(x, n, (check_kind)kind, 11);
                check_fill(got, n, (check_kind)kind, 12);
                for (int64_t i = 0; i < n; i++) {
                    want[i] = got[i];
                    xd[i] = (double)x[i] / 3;
                    got_d[i] = want_d[i] = (double)got[i] / 7;
                }
                tables[0].axpy(want, a, x, n);
                tables[v].axpy(got, a, x, n);
                check_same_f32(&run, check_kind_name((check_kind)kind), got, want, n);
                tables[0].axpy_d(want_d, (double)a / 3, xd, n);
                tables[v].axpy_d(got_d, (double)a / 3, xd, n);
                for (int64_t i = 0; i < n; i++)
                    check_same_f64(&run, check_kind_name((check_kind)kind), got_d[i], want_d[i]);
                void *const all[] = {x, got, want, xd, got_d, want_d};
                for (int i = 0; i < 6; i++) {
                    check_guard(&run, "axpy", all[i]);
                    check_free(all[i]);
                }
            }
        check_finish(&run);
    }
}

/* ---- products against the plain loop ---- */

static float at(const nb_view *v, int64_t i, int64_t j)
{
    return v->p[i * v->row_step + j * v->col_step];
}

/* A step of a chain: one product, or those of a pair, the higher column first. */
static float plain_step(const nb_matmul_job *job, float a, float b, float sum)
{
    if (!job->pairs)
        return fmaf(a, b, sum);
    const uint32_t x = nb_f32_bits(a), y = nb_f32_bits(b);
    sum = fmaf(nb_f32_from_bits(x & 0xffff0000), nb_f32_from_bits(y & 0xffff0000), sum);
    return fmaf(nb_f32_from_bits(x << 16), nb_f32_from_bits(y << 16), sum);
}

static void plain_matmul(const nb_matmul_job *job)
{
    for (int64_t i = 0; i < job->m; i++)
        for (int64_t j = 0; j < job->n; j++) {
            float total = job->add ? job->c[i * job->ldc + j] : 0;
            for (int64_t k0 = 0; k0 < job->depth; k0 += 128) {
                float sum = 0;
                for (int64_t k = k0; k < job->depth && k < k0 + 128; k++)
                    sum = plain_step(job, at(&job->a, i, k), at(&job->b, k, j), sum);
                total += sum;
            }
            job->c[i * job->ldc + j] = total;
        }
}

/* A random matrix [rows][cols], stored by rows or by columns, that ends at an unreadable page. */
static nb_view matrix(int64_t rows, int64_t cols, bool by_columns, bool pairs, check_kind kind,
                      uint64_t seed)
{
    const int64_t inner = by_columns ? rows : cols, outer = by_columns ? cols : rows;
    const int64_t ld = inner + (int64_t)(seed % 3), size = outer > 0 ? (outer - 1) * ld + inner : 0;
    float *p = check_floats(size);
    check_fill(p, size, kind, seed);
    for (int64_t i = 0; pairs && i < size; i++)
        nb_bf16_put(p + i, p[i], 0.75f * p[size - 1 - i]);
    return by_columns ? (nb_view){p, 1, ld} : (nb_view){p, ld, 1};
}

/* The product in strips of rows on the pool, on b packed by columns. */
typedef struct {
    const nb_kernels *k;
    const nb_matmul_job *job;
    int64_t strip;
    float *packed;
    uint8_t *scratch[MAX_THREADS];
} strips;

static void strip_pack_task(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const strips *s = context;
    const int64_t end = (chunk + 1) * NB_MM_COLS;
    nb_matmul_pack(s->packed, &s->job->b, s->job->n, s->job->depth, chunk * NB_MM_COLS,
                   end < s->job->n ? end : s->job->n);
}

static void strip_task(void *context, int64_t chunk, int thread)
{
    const strips *s = context;
    nb_matmul_job job = *s->job;
    const int64_t i = chunk * s->strip;
    job.c += i * job.ldc;
    job.a.p += i * job.a.row_step;
    job.m = job.m - i < s->strip ? job.m - i : s->strip;
    job.b = (nb_view){0};
    nb_matmul_rows(s->k, &job, s->packed, s->scratch[thread]);
}

static void run_strips(const nb_kernels *k, nb_pool *pool, const nb_matmul_job *job, int64_t strip)
{
    strips s = {.k = k, .job = job, .strip = strip};
    s.packed = check_floats(nb_matmul_packed_floats(job->n, job->depth));
    for (int t = 0; t < nb_pool_n_threads(pool); t++)
        s.scratch[t] = check_alloc(NB_MATMUL_ROWS_SCRATCH);
    nb_pool_run(pool, (job->n + NB_MM_COLS - 1) / NB_MM_COLS, strip_pack_task, &s);
    nb_pool_run(pool, (job->m + strip - 1) / strip, strip_task, &s);
    for (int t = 0; t < nb_pool_n_threads(pool); t++)
        check_free(s.scratch[t]);
    check_free(s.packed);
}

static void matmul_case(check_run *run, int64_t m, int64_t n, int64_t depth, int form,
                        check_kind kind)
{
    char what[160];
    snprintf(what, sizeof what, "%lld x %lld x %lld, a by %s, b by %s%s%s, %s data", (long long)m,
             (long long)n, (long long)depth, form & 1 ? "columns" : "rows",
             form & 2 ? "columns" : "rows", form & 4 ? ", added" : "", form & 8 ? ", pairs" : "",
             check_kind_name(kind));
    nb_matmul_job job = {.ldc = n + (form & 1 ? 5 : 0), .m = m, .n = n, .depth = depth};
    job.add = form & 4;
    job.pairs = form & 8;
    job.a = matrix(m, depth, form & 1, job.pairs, kind, 20);
    job.b = matrix(depth, n, form & 2, job.pairs, kind, 22);
    const int64_t size = m > 0 ? (m - 1) * job.ldc + n : 0;
    float *start = check_floats(size), *want = check_floats(size), *got = check_floats(size);
    check_fill(start, size, kind, 24);
    memcpy(want, start, (size_t)size * sizeof *want);
    job.c = want;
    plain_matmul(&job);
    job.c = got;
    for (int v = 0; v < n_tables; v++)
        for (int t = 0; t < MAX_THREADS; t++) {
            if (v == 0 && t != 1)
                continue; /* the scalar tiles are slow */
            void *scratch = check_alloc((size_t)nb_matmul_scratch_bytes(m, n, depth, t + 1));
            memcpy(got, start, (size_t)size * sizeof *got);
            nb_matmul(&tables[v], pools[t], &job, scratch);
            check_same_f32(run, what, got, want, size);
            check_guard(run, what, scratch);
            check_guard(run, what, got);
            check_free(scratch);
            memcpy(got, start, (size_t)size * sizeof *got);
            run_strips(&tables[v], pools[t], &job, t == 0 ? 32 : 45 * t + 10);
            check_same_f32(run, what, got, want, size);
        }
    check_free((void *)(uintptr_t)job.a.p);
    check_free((void *)(uintptr_t)job.b.p);
    check_free(start);
    check_free(want);
    check_free(got);
}

static void test_matmul(void **state)
{
    (void)state;
    static const int64_t shapes[][3] = {
        {1, 1, 1},      {1, 33, 129},  {12, 32, 128}, {13, 31, 127},        {2, 2, 2},
        {97, 130, 257}, {193, 5, 300}, {3, 513, 130}, {1, 2 * 2048 + 9, 5}, {7, 70, 2 * 512 + 3},
        {0, 4, 4},      {4, 0, 4},     {4, 4, 0},
    };
    check_run run = {.name = "matmul"};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int form = 0; form < 16; form++) {
            const int64_t *s = shapes[i];
            const bool small = s[0] * s[1] * s[2] < 100000;
            for (int kind = 0; kind < CHECK_N_KINDS; kind++)
                if ((small && form < 8) || kind == form % 8)
                    matmul_case(&run, s[0], s[1], s[2], form, (check_kind)kind);
        }
    check_finish(&run);
}

/* Results that differ in the last bit of one, and chains that are cut early or not at all. */
static void test_matmul_faults(void **state)
{
    (void)state;
    enum { N = 16, DEPTH = 300 };
    float a[DEPTH], b[DEPTH * N], want[N], wrong[N];
    check_fill(a, DEPTH, CHECK_RANDOM, 30);
    check_fill(b, DEPTH * N, CHECK_RANDOM, 31);
    nb_matmul_job job = {.c = want, .ldc = N, .m = 1, .n = N, .depth = DEPTH};
    job.a = (nb_view){a, DEPTH, 1};
    job.b = (nb_view){b, N, 1};
    plain_matmul(&job);
    memcpy(wrong, want, sizeof want);
    wrong[N - 1] = nextafterf(wrong[N - 1], 10);
    check_run last_bit = {.name = "last bit"};
    check_same_f32(&last_bit, "", wrong, want, N);
    check_caught(&last_bit);
    for (int64_t cut = 64; cut <= 512; cut *= 8) {
        for (int64_t j = 0; j < N; j++) {
            wrong[j] = 0;
            for (int64_t k0 = 0; k0 < DEPTH; k0 += cut) {
                float sum = 0;
                for (int64_t k = k0; k < DEPTH && k < k0 + cut; k++)
                    sum = fmaf(a[k], b[k * N + j], sum);
                wrong[j] += sum;
            }
        }
        check_run other_cut = {.name = "another cut"};
        check_same_f32(&other_cut, "", wrong, want, N);
        check_caught(&other_cut);
    }
}

/* ---- sums over tokens ---- */

static double plain_outer(const nb_outer_job *job, double c, int64_t i, int64_t j)
{
    for (int64_t t0 = 0; t0 < job->n_rows; t0 += 128) {
        float sum = 0;
        for (int64_t t = t0; t < job->n_rows && t < t0 + 128; t++)
            sum = fmaf(job->a[t * job->lda + i], job->b[t * job->ldb + j], sum);
        c += (double)sum;
    }
    return c;
}

/* Where rows of c start: a rectangle with rows 3 apart, or the triangle by bands of 128 rows, and
 * what it takes. */
static int64_t lay_rows(int64_t *row_at, int64_t m, int64_t n, bool upper)
{
    int64_t end = 0;
    for (int64_t i = 0; i < m; i++) {
        const int64_t first = upper ? i / 128 * 128 : 0;
        row_at[i] = end - first;
        end += n - first + (upper ? 0 : 3);
    }
    return end;
}

static void outer_case(check_run *run, int64_t m, int64_t n, int64_t n_rows, bool upper,
                       check_kind kind)
{
    char what[160];
    snprintf(what, sizeof what, "%s%lld x %lld, %lld tokens, %s data", upper ? "upper " : "",
             (long long)m, (long long)n, (long long)n_rows, check_kind_name(kind));
    const int64_t lda = m + 1, ldb = upper ? lda : n + 2;
    const int64_t size_a = n_rows > 0 ? (n_rows - 1) * lda + m : 0;
    const int64_t size_b = n_rows > 0 ? (n_rows - 1) * ldb + n : 0;
    float *a = check_floats(size_a), *b = upper ? a : check_floats(size_b);
    check_fill(a, size_a, kind, 40);
    if (!upper)
        check_fill(b, size_b, kind, 41);
    int64_t *row_at = check_alloc((size_t)m * sizeof *row_at);
    const int64_t size = lay_rows(row_at, m, n, upper);
    nb_outer_job job = {.row_at = row_at, .m = m, .n = n, .n_rows = n_rows, .a = a, .b = b};
    job.lda = lda;
    job.ldb = ldb;
    job.upper = upper;
    double *start = doubles(size), *want = doubles(size), *got = doubles(size);
    for (int64_t i = 0; i < size; i++)
        start[i] = want[i] = (double)check_pick(42, (uint64_t)i, 1000) / 7;
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = upper ? i / 128 * 128 : 0; j < n; j++)
            want[row_at[i] + j] = plain_outer(&job, start[row_at[i] + j], i, j);
    job.c = got;
    for (int v = 0; v < n_tables; v++)
        for (int t = 0; t < MAX_THREADS; t++) {
            if (v == 0 && t != 1)
                continue;
            void *scratch = check_alloc((size_t)nb_outer_scratch_bytes(m, n, t + 1));
            memcpy(got, start, (size_t)size * sizeof *got);
            nb_outer_add(&tables[v], pools[t], &job, scratch);
            int64_t seen = 0; /* elements that are neither in a row nor in a gap do not exist */
            for (int64_t i = 0; i < m; i++)
                for (int64_t j = upper ? i / 128 * 128 : 0; j < n; j++, seen++) {
                    const int64_t e = row_at[i] + j;
                    const bool free = upper && j < i && memcmp(&got[e], &start[e], 8) == 0;
                    check_same_f64(run, what, got[e], free ? start[e] : want[e]);
                    got[e] = start[e];
                }
            assert_int_equal(seen, upper ? size : m * n);
            check_same_bytes(run, what, got, start, (size_t)size * sizeof *got); /* the gaps */
            check_guard(run, what, scratch);
            check_guard(run, what, got);
            check_free(scratch);
        }
    check_free(a);
    if (!upper)
        check_free(b);
    check_free(row_at);
    check_free(start);
    check_free(want);
    check_free(got);
}

static void test_outer(void **state)
{
    (void)state;
    static const int64_t shapes[][3] = {
        {1, 1, 1},    {1, 40, 129}, {33, 12, 128},        {130, 140, 130},
        {13, 300, 3}, {2, 3, 0},    {9, 17, 5 * 128 + 1},
    };
    static const int64_t squares[][2] = {{1, 1},   {12, 128}, {127, 5},  {128, 129},
                                         {129, 7}, {300, 3},  {33, 640}, {140, 513}};
    check_run run = {.name = "outer"};
    for (int kind = 0; kind < CHECK_N_KINDS; kind++) {
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            if (kind == 0 || shapes[i][0] * shapes[i][1] * shapes[i][2] < 100000)
                outer_case(&run, shapes[i][0], shapes[i][1], shapes[i][2], false, (check_kind)kind);
        for (size_t i = 0; i < sizeof squares / sizeof *squares; i++)
            if (kind == 0 || squares[i][0] * squares[i][0] * squares[i][1] < 100000)
                outer_case(&run, squares[i][0], squares[i][0], squares[i][1], true,
                           (check_kind)kind);
    }
    check_finish(&run);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tiles),         cmocka_unit_test(test_bf16_near),
        cmocka_unit_test(test_pair_tiles),    cmocka_unit_test(test_pairing),
        cmocka_unit_test(test_axpy),          cmocka_unit_test(test_matmul),
        cmocka_unit_test(test_matmul_faults), cmocka_unit_test(test_outer),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
