/* The definition of the backward pass's small steps. Scalar, never optimised. */
#include "kernel/kernel.h"
#include "kernel/math.h"

enum { LANES = 16 };

static float tree(float lane[LANES])
{
    for (int half = LANES / 2; half >= 1; half /= 2)
        for (int j = 0; j < half; j++)
            lane[j] += lane[j + half];
    return lane[0];
}

static void product_ref(const nb_product *p)
{
    for (int64_t i = 0; i < p->m; i++) {
        for (int64_t j = 0; j < p->n; j++) {
            float *c = p->c + i * p->ldc + j, sum = p->add ? *c : 0;
            for (int64_t begin = 0; begin < p->depth; begin += NB_CHUNK_K) {
                float chunk = 0;
                for (int64_t k = begin; k < p->depth && k < begin + NB_CHUNK_K; k++)
                    chunk = fmaf(p->a[i * p->a_row + k * p->a_col], p->b[k * p->ldb + j], chunk);
                sum += chunk;
            }
            *c = sum;
        }
    }
}

static void rmsnorm_back_ref(float *dx, const float *dy, const float *x, const float *g, int64_t n,
                             float eps)
{
    float square[LANES] = {0}, dot[LANES] = {0};
    for (int64_t i = 0; i < n; i++) {
        square[i % LANES] = fmaf(x[i], x[i], square[i % LANES]);
        dot[i % LANES] = fmaf(dy[i] * g[i], x[i], dot[i % LANES]);
    }
    const float r = 1.0f / sqrtf(tree(square) / (float)n + eps);
    const float c = r * r * r * tree(dot) / (float)n;
    for (int64_t i = 0; i < n; i++)
        dx[i] += fmaf(-c, x[i], dy[i] * g[i] * r);
}

static void swiglu_back_ref(float *g, float *u, const float *dy, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        const float s = 1.0f / (1.0f + nb_expf(-g[i])), a = g[i] * s;
        g[i] = dy[i] * u[i] * fmaf(a, 1.0f - s, s);
        u[i] = dy[i] * a;
    }
}

static void softmax_back_ref(float *s, float *dp, int64_t n)
{
    float m = -INFINITY, sum[LANES] = {0}, dot[LANES] = {0};
    for (int64_t i = 0; i < n; i++)
        m = s[i] > m ? s[i] : m;
    for (int64_t i = 0; i < n; i++) {
        s[i] = nb_expf(s[i] - m);
        sum[i % LANES] += s[i];
        dot[i % LANES] = fmaf(s[i], dp[i], dot[i % LANES]);
    }
    const float w = 1.0f / tree(sum), mean = tree(dot) * w;
    for (int64_t i = 0; i < n; i++) {
        s[i] *= w;
        dp[i] = s[i] * (dp[i] - mean);
    }
}

void nb_kernels_ref_back(nb_kernels *k)
{
    k->product = product_ref;
    k->rmsnorm_back = rmsnorm_back_ref;
    k->swiglu_back = swiglu_back_ref;
    k->softmax_back = softmax_back_ref;
}
