/* The small steps: every variant against the scalar reference, bit for bit, over lengths with and
 * without tails and over hard data; the reference against double arithmetic, within derived
 * bounds; and planted faults through the same checks. */
#include "support/golden.h"
#include "support/check.h"
#include "isas.h"
#include "kernel/math.h"

#include <float.h>
#include <string.h>

/* ---- variant against reference ---- */

/* Buffers of one case: inputs, and an output of each side that starts with the same contents. */
typedef struct {
    int64_t n;
    float *a, *b, *got, *want;
    char what[120];
} nn_case;

static nn_case case_open(int64_t n, check_kind kind, uint64_t seed)
{
    nn_case c = {n, check_floats(n), check_floats(n), check_floats(n), check_floats(n), ""};
    check_fill(c.a, n, kind, seed);
    check_fill(c.b, n, kind, seed + 1);
    check_fill(c.got, n, kind, seed + 2);
    memcpy(c.want, c.got, (size_t)n * sizeof *c.got);
    snprintf(c.what, sizeof c.what, "%s data, n = %lld, seed %llu", check_kind_name(kind),
             (long long)n, (unsigned long long)seed);
    return c;
}

static void case_close(check_run *run, nn_case *c)
{
    float *const all[] = {c->a, c->b, c->got, c->want};
    for (int i = 0; i < 4; i++) {
        check_guard(run, c->what, all[i]);
        check_free(all[i]);
    }
}

typedef void slot_check(check_run *run, const nb_kernels *ref, const nb_kernels *k, nn_case *c);

static void check_rmsnorm(check_run *run, const nb_kernels *ref, const nb_kernels *k, nn_case *c)
{
    const float eps = c->n % 2 ? 1e-5f : 0.0f;
    ref->rmsnorm(c->want, c->a, c->b, c->n, eps);
    k->rmsnorm(c->got, c->a, c->b, c->n, eps);
    check_same_f32(run, c->what, c->got, c->want, c->n);
    k->rmsnorm(c->a, c->a, c->b, c->n, eps); /* in place */
    check_same_f32(run, c->what, c->a, c->want, c->n);
}

static void check_add(check_run *run, const nb_kernels *ref, const nb_kernels *k, nn_case *c)
{
    ref->add(c->want, c->a, c->n);
    k->add(c->got, c->a, c->n);
    check_same_f32(run, c->what, c->got, c->want, c->n);
}

static void check_swiglu(check_run *run, const nb_kernels *ref, const nb_kernels *k, nn_case *c)
{
    float *copy = check_floats(c->n);
    memcpy(copy, c->a, (size_t)c->n * sizeof *copy);
    ref->swiglu(c->want, c->a, c->b, c->n);
    k->swiglu(c->got, c->a, c->b, c->n);
    check_same_f32(run, c->what, c->got, c->want, c->n);
    k->swiglu(copy, copy, c->b, c->n);
    check_same_f32(run, c->what, copy, c->want, c->n);
    k->swiglu(c->b, c->a, c->b, c->n);
    check_same_f32(run, c->what, c->b, c->want, c->n);
    check_guard(run, c->what, copy);
    check_free(copy);
}

/* n values as heads of a few sizes, rotated whole, in part, or (an odd number) short of one. */
static void check_rope(check_run *run, const nb_kernels *ref, const nb_kernels *k, nn_case *c)
{
    const int64_t head_dims[] = {c->n, 64, 96, 7};
    for (int i = 0; i < 4; i++) {
        const int64_t dim = head_dims[i], n_heads = c->n / dim;
        for (int64_t rot = dim; n_heads > 0 && rot >= 1; rot = rot / 2 - (rot == dim)) {
            float *cos = check_floats(rot / 2), *sin = check_floats(rot / 2);
            memcpy(cos, c->a, (size_t)(rot / 2) * sizeof *cos);
            memcpy(sin, c->b, (size_t)(rot / 2) * sizeof *sin);
            ref->rope(c->want, cos, sin, n_heads, dim, rot);
            k->rope(c->got, cos, sin, n_heads, dim, rot);
            check_same_f32(run, c->what, c->got, c->want, c->n);
            check_free(cos);
            check_free(sin);
        }
    }
}

static void check_exp(check_run *run, const nb_kernels *ref, const nb_kernels *k, nn_case *c)
{
    ref->exp(c->want, c->a, c->n);
    k->exp(c->got, c->a, c->n);
    check_same_f32(run, c->what, c->got, c->want, c->n);
    k->exp(c->a, c->a, c->n);
    check_same_f32(run, c->what, c->a, c->want, c->n);
}

static void check_softmax_stats(check_run *run, const nb_kernels *ref, const nb_kernels *k,
                                nn_case *c)
{
    double got, want;
    ref->softmax_stats(c->a, c->n, &c->want[0], &want);
    k->softmax_stats(c->a, c->n, &c->got[0], &got);
    check_same_f32(run, c->what, c->got, c->want, 1);
    check_same_f64(run, c->what, got, want);
}

static void check_kl(check_run *run, const nb_kernels *ref, const nb_kernels *k, nn_case *c)
{
    const float pm = c->a[0], qm = c->b[c->n - 1];
    const double want = ref->kl(c->a, pm, 3.25f, c->b, qm, 2.5f, c->n);
    check_same_f64(run, c->what, k->kl(c->a, pm, 3.25f, c->b, qm, 2.5f, c->n), want);
}

static void check_argmax(check_run *run, const nb_kernels *ref, const nb_kernels *k, nn_case *c)
{
    check_same_f64(run, c->what, (double)k->argmax(c->a, c->n), (double)ref->argmax(c->a, c->n));
    check_fill(c->a, c->n, CHECK_INTEGERS, (uint64_t)c->n); /* ties */
    check_same_f64(run, c->what, (double)k->argmax(c->a, c->n), (double)ref->argmax(c->a, c->n));
}

#define SLOTS(X) X(rmsnorm) X(add) X(swiglu) X(rope) X(exp) X(softmax_stats) X(kl) X(argmax)

static const struct {
    const char *name;
    slot_check *check;
} slots[] = {
#define SLOT(name) {#name, check_##name},
    SLOTS(SLOT)
#undef SLOT
};
enum { N_SLOTS = sizeof slots / sizeof *slots };

/* One slot over all lengths and kinds of data. */
static void walk(check_run *run, slot_check *check, const nb_kernels *ref, const nb_kernels *k)
{
    static const int64_t large[] = {127,  128,  129,  576,  1536,  4080,
                                    4095, 4096, 4097, 8191, 12295, 100003};
    for (int kind = 0; kind < CHECK_N_KINDS; kind++) {
        for (int64_t i = 1; i < 82; i++) {
            const int64_t n = i < 70 ? i : large[i - 70];
            if (n > 10000 && kind != CHECK_RANDOM && kind != CHECK_WIDE)
                continue; /* the length matters there, and one kind shows it */
            nn_case c = case_open(n, (check_kind)kind, (uint64_t)(1000 * kind + i));
            check(run, ref, k, &c);
            case_close(run, &c);
        }
    }
}

static void variants_equal_the_reference(void **state)
{
    (void)state;
    nb_kernels ref, variants[N_ISA_MASKS];
    nb_kernels_init(&ref, NB_ISA_SCALAR);
    const int n_variants = isa_tables(variants);
    for (int v = 0; v < n_variants; v++) {
        /* comparing the reference with itself would show nothing */
#define SLOT(name) assert_true(variants[v].name != ref.name);
        SLOTS(SLOT)
#undef SLOT
        for (int s = 0; s < N_SLOTS; s++) {
            char name[60];
            snprintf(name, sizeof name, "%s on %s", slots[s].name, nb_isa_name(variants[v].isa));
            check_run run = {.name = name};
            walk(&run, slots[s].check, &ref, &variants[v]);
            check_finish(&run);
        }
    }
}

/* ---- planted faults: each is wrong in one small way, for some input only ---- */

static void rmsnorm_fault(float *y, const float *x, const float *g, int64_t n, float eps)
{
    float lane[8] = {0}, sum = 0; /* half of the lanes: another order */
    for (int64_t i = 0; i < n; i++)
        lane[i % 8] = fmaf(x[i], x[i], lane[i % 8]);
    for (int i = 0; i < 8; i++)
        sum += lane[i];
    const float r = 1.0f / sqrtf(sum / (float)n + eps);
    for (int64_t i = 0; i < n; i++)
        y[i] = x[i] * r * g[i];
}

static void add_fault(float *y, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n - n % 64 / 63; i++) /* loses the tail of 63 */
        y[i] += x[i];
}

static void swiglu_fault(float *y, const float *g, const float *u, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = g[i] * u[i] / (1.0f + nb_expf(-g[i])); /* rounds in another order */
}

static void rope_fault(float *x, const float *cos, const float *sin, int64_t n_heads,
                       int64_t head_dim, int64_t rot_dim)
{
    const int64_t h = rot_dim / 2;
    for (int64_t head = 0; head < n_heads; head++, x += head_dim) {
        for (int64_t i = 0; i < h; i++) {
            const float a = x[i], b = x[i + h];
            x[i] = a * cos[i] - b * sin[i]; /* not fused */
            x[i + h] = fmaf(b, cos[i], a * sin[i]);
        }
    }
}

static void exp_fault(float *y, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = nb_expf(x[i]) < FLT_MIN ? 0 : nb_expf(x[i]); /* flushes subnormals */
}

static void softmax_stats_fault(const float *x, int64_t n, float *max, double *sum)
{
    nb_kernels ref;
    nb_kernels_init(&ref, NB_ISA_SCALAR);
    ref.softmax_stats(x, n, max, sum);
    if (n > 4096)
        *sum = (double)(float)*sum; /* pieces added in binary32 */
}

static double kl_fault(const float *p, float p_max, float p_logsum, const float *q, float q_max,
                       float q_logsum, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        const float lp = p[i] - p_max - p_logsum, lq = q[i] - q_max - q_logsum;
        sum += (double)(nb_expf(lp) * (lp - lq)); /* too exact */
    }
    return sum;
}

static int64_t argmax_fault(const float *x, int64_t n)
{
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        best = x[i] >= x[best] ? i : best; /* the last on ties */
    return best;
}

static void add_out_of_bounds(float *y, const float *x, int64_t n)
{
    nb_kernels ref;
    nb_kernels_init(&ref, NB_ISA_SCALAR);
    ref.add(y, x, n);
    y[-1] = 0;
}

static void planted_faults_are_caught(void **state)
{
    (void)state;
    nb_kernels ref, broken;
    nb_kernels_init(&ref, NB_ISA_SCALAR);
    broken = ref;
#define SLOT(name) broken.name = name##_fault;
    SLOTS(SLOT)
#undef SLOT
    for (int s = 0; s < N_SLOTS; s++) {
        check_run run = {.name = slots[s].name};
        walk(&run, slots[s].check, &ref, &broken);
        check_caught(&run);
    }
    check_run run = {.name = "add outside its buffer"};
    broken.add = add_out_of_bounds;
    walk(&run, check_add, &ref, &broken);
    check_caught(&run);
}

/* ---- the reference against double ----
 *
 * u is half a unit in the last place of 1. One operation has a relative error of at most u, exp of
 * EXP_U u; the bounds below add these up to first order, and 1 % for the rest. */

static const double u = 0x1p-24;
#define EXP_U (2 * NB_EXPF_MAX_ULP)
#define SLACK 1.01

static void near(check_run *run, const nn_case *c, int64_t i, double got, double want, double bound)
{
    char what[200];
    snprintf(what, sizeof what, "%s, element %lld", c->what, (long long)i);
    check_near(run, what, got, want, bound * SLACK + 0x1p-149);
}

static void truth_rmsnorm(check_run *run, const nb_kernels *k, nn_case *c)
{
    const float eps = 1e-5f;
    double ss = 0;
    for (int64_t i = 0; i < c->n; i++)
        ss += (double)c->a[i] * (double)c->a[i];
    const double r = 1 / sqrt(ss / (double)c->n + (double)eps);
    k->rmsnorm(c->got, c->a, c->b, c->n, eps);
    /* ss: a rounding for each element of a lane, 4 in the tree, then / n and + eps; the root halves
     * that; root, reciprocal and two products */
    const double relative = (0.5 * (double)(c->n / 16 + 1 + 4 + 2) + 4) * u;
    for (int64_t i = 0; i < c->n; i++) {
        const double want = (double)c->a[i] * r * (double)c->b[i];
        near(run, c, i, (double)c->got[i], want, fabs(want) * relative);
    }
}

static void truth_add(check_run *run, const nb_kernels *k, nn_case *c)
{
    k->add(c->got, c->a, c->n);
    for (int64_t i = 0; i < c->n; i++) {
        const double want = (double)c->want[i] + (double)c->a[i];
        near(run, c, i, (double)c->got[i], want, fabs(want) * u);
    }
}

static void truth_swiglu(check_run *run, const nb_kernels *k, nn_case *c)
{
    k->swiglu(c->got, c->a, c->b, c->n);
    for (int64_t i = 0; i < c->n; i++) {
        const double g = (double)c->a[i], want = g / (1 + exp(-g)) * (double)c->b[i];
        near(run, c, i, (double)c->got[i], want, fabs(want) * (EXP_U + 3) * u);
    }
}

static void truth_rope(check_run *run, const nb_kernels *k, nn_case *c)
{
    const int64_t h = c->n / 2;
    k->rope(c->got, c->a, c->b, 1, c->n, c->n);
    for (int64_t i = 0; i < h; i++) {
        const double a = (double)c->want[i], b = (double)c->want[i + h];
        const double cos = (double)c->a[i], sin = (double)c->b[i];
        const double x = a * cos - b * sin, y = b * cos + a * sin;
        near(run, c, i, (double)c->got[i], x, (fabs(b * sin) + fabs(x)) * u);
        near(run, c, i + h, (double)c->got[i + h], y, (fabs(a * sin) + fabs(y)) * u);
    }
    if (c->n % 2 != 0) /* the odd element stays */
        near(run, c, c->n - 1, (double)c->got[c->n - 1], (double)c->want[c->n - 1], 0);
}

static void truth_exp(check_run *run, const nb_kernels *k, nn_case *c)
{
    k->exp(c->got, c->a, c->n);
    for (int64_t i = 0; i < c->n; i++) {
        const double want = exp((double)c->a[i]);
        near(run, c, i, (double)c->got[i], want, want * EXP_U * u);
    }
}

/* Roundings in a sum by A1 over pieces of 4,096. */
#define SUM_U (4096 / 16 + 4)

static void truth_softmax_stats(check_run *run, const nb_kernels *k, nn_case *c)
{
    double max = (double)c->a[0], sum = 0, bound = 0, got;
    for (int64_t i = 1; i < c->n; i++)
        max = fmax(max, (double)c->a[i]);
    for (int64_t i = 0; i < c->n; i++) {
        const double d = (double)c->a[i] - max;
        sum += exp(d);
        bound += exp(d) * (fabs(d) + EXP_U + SUM_U) * u;
    }
    k->softmax_stats(c->a, c->n, c->got, &got);
    near(run, c, 0, (double)c->got[0], max, 0);
    near(run, c, 0, got, sum, bound);
}

static void truth_kl(check_run *run, const nb_kernels *k, nn_case *c)
{
    const float pm = 1, ps = 3.25f, qm = 0.5f, qs = 2.5f;
    double sum = 0, bound = 0;
    for (int64_t i = 0; i < c->n; i++) {
        const double p = (double)c->a[i] - (double)pm, q = (double)c->b[i] - (double)qm;
        const double lp = p - (double)ps, lq = q - (double)qs, e = exp(lp);
        const double dp = (fabs(p) + fabs(lp)) * u, dq = (fabs(q) + fabs(lq)) * u;
        sum += e * (lp - lq);
        bound += e * (fabs(lp - lq) * (dp + (EXP_U + 1 + SUM_U) * u) + dp + dq);
    }
    near(run, c, 0, k->kl(c->a, pm, ps, c->b, qm, qs, c->n), sum, bound);
}

static void truth_argmax(check_run *run, const nb_kernels *k, nn_case *c)
{
    int64_t want = c->n - 1;
    for (int64_t i = c->n - 1; i >= 0; i--)
        want = c->a[i] >= c->a[want] ? i : want;
    near(run, c, 0, (double)k->argmax(c->a, c->n), (double)want, 0);
}

static void the_reference_is_near_the_truth(void **state)
{
    (void)state;
    nb_kernels ref;
    nb_kernels_init(&ref, NB_ISA_SCALAR);
    static void (*const truths[])(check_run *, const nb_kernels *, nn_case *) = {
#define SLOT(name) truth_##name,
        SLOTS(SLOT)
#undef SLOT
    };
    static const int64_t lengths[] = {1, 2, 3, 15, 16, 17, 64, 100, 576, 4096, 4097, 9001};
    for (int s = 0; s < N_SLOTS; s++) {
        check_run run = {.name = slots[s].name};
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
            static const check_kind kinds[] = {CHECK_RANDOM, CHECK_INTEGERS, CHECK_EQUAL};
            for (uint64_t j = 0; j < 3; j++) {
                nn_case c = case_open(lengths[i], kinds[j], 77 * i + j);
                truths[s](&run, &ref, &c);
                case_close(&run, &c);
            }
        }
        check_finish(&run);
    }
}

/* ---- what the contract says in words ---- */

static void words_of_the_contract(const nb_kernels *k)
{
    float max;
    double sum;
    float zeros[20], mixed[40], x[33];
    for (int i = 0; i < 20; i++)
        zeros[i] = -0.0f;
    k->softmax_stats(zeros, 20, &max, &sum);
    assert_true(max == 0 && !signbit(max) && sum == 20);
    for (int at = 0; at < 40; at++) { /* a NaN anywhere shows in both */
        for (int i = 0; i < 40; i++)
            mixed[i] = i == at ? NAN : (float)i;
        k->softmax_stats(mixed, 40, &max, &sum);
        assert_true(isnan(max) && isnan(sum));
        /* and never wins */
        assert_int_equal(k->argmax(mixed, 40), at == 39 ? 38 : 39);
    }
    for (int n = 1; n <= 33; n++) {
        for (int i = 0; i < n; i++)
            x[i] = NAN;
        assert_int_equal(k->argmax(x, n), 0);
        x[n - 1] = -INFINITY;
        assert_int_equal(k->argmax(x, n), n - 1);
        for (int i = 0; i < n; i++)
            x[i] = i % 2 ? 0.0f : -0.0f; /* equal: the first wins */
        assert_int_equal(k->argmax(x, n), 0);
    }
    float one[1] = {3.0f}, gain[1] = {1.0f}, y[1];
    k->rmsnorm(y, one, gain, 1, 0.0f);
    assert_true(y[0] == 3.0f * (1.0f / 3.0f));
    k->rmsnorm(y, zeros, gain, 1, 0.25f);
    assert_true(y[0] == 0);
    /* a quarter turn is exact */
    float v[4] = {1, 2, 3, 4}, cos0[2] = {0, 0}, sin1[2] = {1, 1};
    k->rope(v, cos0, sin1, 1, 4, 4);
    assert_true(v[0] == -3 && v[1] == -4 && v[2] == 1 && v[3] == 2);
    /* equal distributions have no divergence */
    float p[50];
    for (int i = 0; i < 50; i++)
        p[i] = (float)(i % 7);
    assert_true(k->kl(p, 6, 3, p, 6, 3, 50) == 0);
}

static void every_table_keeps_the_words(void **state)
{
    (void)state;
    nb_kernels ref, variants[N_ISA_MASKS];
    nb_kernels_init(&ref, NB_ISA_SCALAR);
    words_of_the_contract(&ref);
    const int n_variants = isa_tables(variants);
    for (int v = 0; v < n_variants; v++)
        words_of_the_contract(&variants[v]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(variants_equal_the_reference),
        cmocka_unit_test(planted_faults_are_caught),
        cmocka_unit_test(the_reference_is_near_the_truth),
        cmocka_unit_test(every_table_keeps_the_words),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
