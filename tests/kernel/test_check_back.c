/* The backward pass's small steps: every variant against the scalar reference, bit for bit; the
 * reference against differences in binary64 and exact sums; planted faults through the same
 * checks. */
#include "support/golden.h"
#include "support/check.h"
#include "isas.h"
#include "kernel/math.h"

#include <float.h>
#include <string.h>

typedef struct {
    int64_t n;
    float *in[4], *got[2], *want[2];
    char what[120];
} back_case;

static back_case case_open(int64_t n, check_kind kind, uint64_t seed)
{
    back_case c = {.n = n};
    for (uint64_t i = 0; i < 4; i++)
        check_fill(c.in[i] = check_floats(n), n, kind, seed + i);
    for (uint64_t i = 0; i < 2; i++) {
        c.got[i] = check_floats(n);
        c.want[i] = check_floats(n);
        check_fill(c.got[i], n, kind, seed + 4 + i);
        memcpy(c.want[i], c.got[i], (size_t)n * sizeof(float));
    }
    snprintf(c.what, sizeof c.what, "%s data, n = %lld, seed %llu", check_kind_name(kind),
             (long long)n, (unsigned long long)seed);
    return c;
}

static void case_close(check_run *run, back_case *c)
{
    for (int i = 0; i < 2; i++) {
        check_same_f32(run, c->what, c->got[i], c->want[i], c->n);
        check_guard(run, c->what, c->got[i]);
        check_free(c->got[i]);
        check_free(c->want[i]);
    }
    for (int i = 0; i < 4; i++)
        check_free(c->in[i]);
}

typedef void slot_run(const nb_kernels *k, const back_case *c, float *a, float *b);

static void run_rmsnorm_back(const nb_kernels *k, const back_case *c, float *a, float *b)
{
    k->rmsnorm_back(a, c->in[0], c->in[1], c->in[2], c->n, 0x1p-17f);
    k->rmsnorm_back(b, c->in[1], c->in[2], c->in[3], c->n, 0);
}

static void run_swiglu_back(const nb_kernels *k, const back_case *c, float *a, float *b)
{
    k->swiglu_back(a, b, c->in[0], c->n);
}

static void run_softmax_back(const nb_kernels *k, const back_case *c, float *a, float *b)
{
    k->softmax_back(a, b, c->n);
}

static const struct {
    const char *name;
    slot_run *run;
} rows[] = {{"rmsnorm_back", run_rmsnorm_back},
            {"swiglu_back", run_swiglu_back},
            {"softmax_back", run_softmax_back}};
enum { N_ROWS = sizeof rows / sizeof *rows };

static void walk_rows(check_run *run, slot_run *slot, const nb_kernels *ref, const nb_kernels *k)
{
    for (int kind = 0; kind < CHECK_N_KINDS; kind++) {
        for (int64_t i = 1; i <= 72; i++) {
            back_case c = case_open(i <= 70   ? i
                                    : i == 71 ? 576
                                              : 1543,
                                    (check_kind)kind, (uint64_t)(1000 * kind + 10 * i));
            slot(ref, &c, c.want[0], c.want[1]);
            slot(k, &c, c.got[0], c.got[1]);
            case_close(run, &c);
        }
    }
}

/* ---- products: all shapes around the tiles, chunks of k, steps of a ---- */

typedef struct {
    int64_t m, n, depth;
    bool transposed, add;
} product_shape;

static void one_product(check_run *run, const nb_kernels *ref, const nb_kernels *k,
                        const product_shape *s, check_kind kind)
{
    const int64_t ldc = s->n + 3, ldb = s->n + 1;
    const int64_t lda = (s->transposed ? s->m : s->depth) + 2;
    const int64_t a_floats = lda * (s->transposed ? s->depth : s->m) + 1;
    float *a = check_floats(a_floats), *b = check_floats(s->depth * ldb + 1);
    float *got = check_floats(s->m * ldc), *want = check_floats(s->m * ldc);
    check_fill(a, a_floats, kind, 5);
    check_fill(b, s->depth * ldb + 1, kind, 6);
    check_fill(got, s->m * ldc, kind, 7);
    memcpy(want, got, (size_t)(s->m * ldc) * sizeof *got);
    nb_product p = {.c = want,
                    .a = a,
                    .b = b,
                    .ldc = ldc,
                    .a_row = s->transposed ? 1 : lda,
                    .a_col = s->transposed ? lda : 1,
                    .ldb = ldb,
                    .m = s->m,
                    .n = s->n,
                    .depth = s->depth,
                    .add = s->add};
    ref->product(&p);
    p.c = got;
    k->product(&p);
    char what[120];
    snprintf(what, sizeof what, "%s data, %lld x %lld x %lld%s%s", check_kind_name(kind),
             (long long)s->m, (long long)s->n, (long long)s->depth, s->transposed ? ", a^T" : "",
             s->add ? ", added" : "");
    check_same_f32(run, what, got, want, s->m * ldc);
    check_guard(run, what, got);
    check_free(a);
    check_free(b);
    check_free(got);
    check_free(want);
}

static void walk_products(check_run *run, const nb_kernels *ref, const nb_kernels *k)
{
    static const int64_t depths[] = {0, 1, 5, 127, 128, 129, 260};
    for (int64_t m = 1; m <= 26; m += m < 14 ? 1 : 6)
        for (int64_t n = 1; n <= 70; n += n < 18 ? 1 : 13)
            for (int64_t i = 0; i < 7; i++) {
                if ((m + n + i) % 3 != 0) /* a third of them all, in every combination of two */
                    continue;
                const product_shape s = {m, n, depths[i], (m + n) % 2 == 0, (m + i) % 2 == 0};
                one_product(run, ref, k, &s, CHECK_RANDOM);
            }
    for (int kind = 0; kind < CHECK_N_KINDS; kind++)
        for (int i = 0; i < 4; i++) {
            const product_shape s = {13, 37, 131, i % 2 == 0, i / 2 == 0};
            one_product(run, ref, k, &s, (check_kind)kind);
        }
}

static void variants_equal_the_reference(void **state)
{
    (void)state;
    nb_kernels ref, variants[N_ISA_MASKS];
    nb_kernels_init(&ref, NB_ISA_SCALAR);
    const int n_variants = isa_tables(variants);
    for (int v = 0; v < n_variants; v++) {
        assert_true(variants[v].product != ref.product);
        assert_true(variants[v].rmsnorm_back != ref.rmsnorm_back);
        assert_true(variants[v].swiglu_back != ref.swiglu_back);
        assert_true(variants[v].softmax_back != ref.softmax_back);
        for (int s = 0; s < N_ROWS; s++) {
            check_run run = {.name = rows[s].name};
            walk_rows(&run, rows[s].run, &ref, &variants[v]);
            check_finish(&run);
        }
        check_run run = {.name = "product"};
        walk_products(&run, &ref, &variants[v]);
        check_finish(&run);
    }
}

/* ---- planted faults ---- */

static void rmsnorm_back_fault(float *dx, const float *dy, const float *x, const float *g,
                               int64_t n, float eps)
{
    float square = 0, dot = 0; /* one lane */
    for (int64_t i = 0; i < n; i++) {
        square = fmaf(x[i], x[i], square);
        dot = fmaf(dy[i] * g[i], x[i], dot);
    }
    const float r = 1.0f / sqrtf(square / (float)n + eps), c = r * r * r * dot / (float)n;
    for (int64_t i = 0; i < n; i++)
        dx[i] += fmaf(-c, x[i], dy[i] * g[i] * r);
}

static void swiglu_back_fault(float *g, float *u, const float *dy, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        const float s = 1.0f / (1.0f + nb_expf(-g[i])), a = g[i] * s;
        g[i] = dy[i] * u[i] * (a * (1.0f - s) + s); /* not fused */
        u[i] = dy[i] * a;
    }
}

static void softmax_back_fault(float *s, float *dp, int64_t n)
{
    nb_kernels ref;
    nb_kernels_init(&ref, NB_ISA_SCALAR);
    ref.softmax_back(s, dp, n);
    if (n % 16 == 15)
        dp[n - 1] = -dp[n - 1]; /* the last of a tail */
}

static void product_fault(const nb_product *p)
{
    for (int64_t i = 0; i < p->m; i++)
        for (int64_t j = 0; j < p->n; j++) {
            float sum = 0; /* one chain through all chunks */
            for (int64_t k = 0; k < p->depth; k++)
                sum = fmaf(p->a[i * p->a_row + k * p->a_col], p->b[k * p->ldb + j], sum);
            p->c[i * p->ldc + j] = (p->add ? p->c[i * p->ldc + j] : 0) + sum;
        }
}

static void planted_faults_are_caught(void **state)
{
    (void)state;
    nb_kernels ref, bad;
    nb_kernels_init(&ref, NB_ISA_SCALAR);
    nb_kernels_init(&bad, NB_ISA_SCALAR);
    bad.rmsnorm_back = rmsnorm_back_fault;
    bad.swiglu_back = swiglu_back_fault;
    bad.softmax_back = softmax_back_fault;
    bad.product = product_fault;
    for (int s = 0; s < N_ROWS; s++) {
        check_run run = {.name = rows[s].name};
        walk_rows(&run, rows[s].run, &ref, &bad);
        check_caught(&run);
    }
    check_run run = {.name = "product"};
    walk_products(&run, &ref, &bad);
    check_caught(&run);
}

/* ---- the reference against the truth ---- */

enum { N_TRUTH = 37 };

static double norm_loss(const double *x, const float *g, const float *dy, double eps)
{
    double square = 0, loss = 0;
    for (int i = 0; i < N_TRUTH; i++)
        square += x[i] * x[i];
    for (int i = 0; i < N_TRUTH; i++)
        loss += (double)dy[i] * (double)g[i] * x[i] / sqrt(square / N_TRUTH + eps);
    return loss;
}

static double swiglu_loss(double g, double u)
{
    return g / (1 + nb_exp64(-g)) * u;
}

static double softmax_loss(const double *s, const float *dp)
{
    double sum = 0, loss = 0;
    for (int i = 0; i < N_TRUTH; i++)
        sum += nb_exp64(s[i]);
    for (int i = 0; i < N_TRUTH; i++)
        loss += nb_exp64(s[i]) / sum * (double)dp[i];
    return loss;
}

/* Central differences in binary64 of step h are exact to h^2 times a third derivative, which is of
 * order 1 here; what is left is the rounding of binary32 over sums of N_TRUTH terms of order 1. */
static void the_reference_is_the_derivative(void **state)
{
    (void)state;
    const double h = 1e-5, bound = 4 * N_TRUTH * (double)FLT_EPSILON;
    nb_kernels k;
    nb_kernels_init(&k, NB_ISA_SCALAR);
    float x[N_TRUTH], g[N_TRUTH], dy[N_TRUTH], dx[N_TRUTH] = {0}, p[N_TRUTH], dp[N_TRUTH];
    check_fill(x, N_TRUTH, CHECK_RANDOM, 1);
    check_fill(g, N_TRUTH, CHECK_RANDOM, 2);
    check_fill(dy, N_TRUTH, CHECK_RANDOM, 3);
    k.rmsnorm_back(dx, dy, x, g, N_TRUTH, 0x1p-10f);
    memcpy(p, x, sizeof p);
    memcpy(dp, dy, sizeof dp);
    k.softmax_back(p, dp, N_TRUTH);
    double total = 0;
    for (int i = 0; i < N_TRUTH; i++) {
        double v[N_TRUTH], low, high;
        for (int j = 0; j < N_TRUTH; j++)
            v[j] = (double)x[j];
        v[i] = (double)x[i] - h;
        low = norm_loss(v, g, dy, 0x1p-10);
        const double low_s = softmax_loss(v, dy);
        v[i] = (double)x[i] + h;
        high = norm_loss(v, g, dy, 0x1p-10);
        const double high_s = softmax_loss(v, dy);
        assert_true(fabs((high - low) / (2 * h) - (double)dx[i]) < bound);
        assert_true(fabs((high_s - low_s) / (2 * h) - (double)dp[i]) < bound);
        total += (double)p[i];

        float gi = 8 * x[i], ui = g[i];
        const double g0 = (double)gi, u0 = (double)ui, d = (double)dy[i];
        k.swiglu_back(&gi, &ui, &dy[i], 1);
        const double dg = d * (swiglu_loss(g0 + h, u0) - swiglu_loss(g0 - h, u0)) / (2 * h);
        const double du = d * (swiglu_loss(g0, u0 + h) - swiglu_loss(g0, u0 - h)) / (2 * h);
        assert_true(fabs(dg - (double)gi) < bound && fabs(du - (double)ui) < bound);
    }
    assert_true(fabs(total - 1) < bound);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(variants_equal_the_reference),
        cmocka_unit_test(planted_faults_are_caught),
        cmocka_unit_test(the_reference_is_the_derivative),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
