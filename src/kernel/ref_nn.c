/* The definition of the small steps: the shortest true statement of each in the contract's order
 * (A1, A6, A11). Scalar, never optimised. */
#include "kernel/kernel.h"
#include "kernel/math.h"

enum { LANES = 16, PIECE = 4096 };

/* A1: lane j += lane j + 8, then 4, 2, 1. */
static float tree(float lane[LANES])
{
    for (int half = LANES / 2; half >= 1; half /= 2)
        for (int j = 0; j < half; j++)
            lane[j] += lane[j + half];
    return lane[0];
}

static void rmsnorm_ref(float *y, const float *x, const float *g, int64_t n, float eps)
{
    float lane[LANES] = {0};
    for (int64_t i = 0; i < n; i++)
        lane[i % LANES] = fmaf(x[i], x[i], lane[i % LANES]);
    const float r = 1.0f / sqrtf(tree(lane) / (float)n + eps);
    for (int64_t i = 0; i < n; i++)
        y[i] = x[i] * r * g[i];
}

static void add_ref(float *y, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] += x[i];
}

static void swiglu_ref(float *y, const float *g, const float *u, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = g[i] / (1.0f + nb_expf(-g[i])) * u[i];
}

static void rope_ref(float *x, const float *cos, const float *sin, int64_t n_heads,
                     int64_t head_dim, int64_t rot_dim)
{
    const int64_t h = rot_dim / 2;
    for (int64_t head = 0; head < n_heads; head++, x += head_dim) {
        for (int64_t i = 0; i < h; i++) {
            const float a = x[i], b = x[i + h];
            x[i] = fmaf(a, cos[i], -(b * sin[i]));
            x[i + h] = fmaf(b, cos[i], a * sin[i]);
        }
    }
}

static void exp_ref(float *y, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = nb_expf(x[i]);
}

static void softmax_stats_ref(const float *x, int64_t n, float *max, double *sum)
{
    float m = x[0];
    for (int64_t i = 1; i < n; i++)
        m = x[i] > m || isnan(x[i]) ? x[i] : m;
    *max = m + 0.0f; /* one zero for both */
    *sum = 0;
    for (int64_t begin = 0; begin < n; begin += PIECE) {
        float lane[LANES] = {0};
        for (int64_t i = begin; i < n && i < begin + PIECE; i++)
            lane[i % LANES] += nb_expf(x[i] - *max);
        *sum += (double)tree(lane);
    }
}

static double kl_ref(const float *p, float p_max, float p_logsum, const float *q, float q_max,
                     float q_logsum, int64_t n)
{
    double sum = 0;
    for (int64_t begin = 0; begin < n; begin += PIECE) {
        float lane[LANES] = {0};
        for (int64_t i = begin; i < n && i < begin + PIECE; i++) {
            const float lp = p[i] - p_max - p_logsum, lq = q[i] - q_max - q_logsum;
            lane[i % LANES] = fmaf(nb_expf(lp), lp - lq, lane[i % LANES]);
        }
        sum += (double)tree(lane);
    }
    return sum;
}

static int64_t argmax_ref(const float *x, int64_t n)
{
    int64_t best = -1;
    for (int64_t i = 0; i < n; i++)
        if (!isnan(x[i]) && (best < 0 || x[i] > x[best]))
            best = i;
    return best < 0 ? 0 : best;
}

void nb_kernels_ref_nn(nb_kernels *k)
{
    k->rmsnorm = rmsnorm_ref;
    k->add = add_ref;
    k->swiglu = swiglu_ref;
    k->rope = rope_ref;
    k->exp = exp_ref;
    k->softmax_stats = softmax_stats_ref;
    k->kl = kl_ref;
    k->argmax = argmax_ref;
}
