/* Private: the small steps over v16, 16 lanes of binary32. avx2_nn.c and avx512_nn.c include it
 * after the header that says what a v16 is. Element i of a row reduction lives in lane i mod 16,
 * so A1 is what the registers do by themselves. All are bound by memory or by the latency of one
 * chain of adds; nothing here is blocked. */
#include "kernel/kernel.h"

enum { LANES = 16, PIECE = 4096 };

static void rmsnorm_v16(float *y, const float *x, const float *g, int64_t n, float eps)
{
    const int64_t full = n - n % LANES, tail = n % LANES;
    v16 lane = v16_zero();
    for (int64_t i = 0; i < full; i += LANES)
        lane = v16_fma(v16_load(x + i), v16_load(x + i), lane);
    if (tail > 0) { /* lanes are +0 or more, so adding 0 * 0 leaves them alone */
        const v16 rest = v16_load_n(x + full, tail);
        lane = v16_fma(rest, rest, lane);
    }
    const v16 r = v16_set1(1.0f / sqrtf(v16_tree(lane) / (float)n + eps));
    for (int64_t i = 0; i < full; i += LANES)
        v16_store(y + i, v16_mul(v16_mul(v16_load(x + i), r), v16_load(g + i)));
    if (tail > 0) {
        const v16 rest = v16_mul(v16_load_n(x + full, tail), r);
        v16_store_n(y + full, v16_mul(rest, v16_load_n(g + full, tail)), tail);
    }
}

static void add_v16(float *y, const float *x, int64_t n)
{
    const int64_t full = n - n % LANES, tail = n % LANES;
    for (int64_t i = 0; i < full; i += LANES)
        v16_store(y + i, v16_add(v16_load(y + i), v16_load(x + i)));
    if (tail > 0)
        v16_store_n(y + full, v16_add(v16_load_n(y + full, tail), v16_load_n(x + full, tail)),
                    tail);
}

V16_INLINE v16 swiglu_step(v16 g, v16 u)
{
    const v16 e = v16_exp(v16_sub(v16_zero(), g));
    return v16_mul(v16_div(g, v16_add(v16_set1(1.0f), e)), u);
}

static void swiglu_v16(float *y, const float *g, const float *u, int64_t n)
{
    const int64_t full = n - n % LANES, tail = n % LANES;
    for (int64_t i = 0; i < full; i += LANES)
        v16_store(y + i, swiglu_step(v16_load(g + i), v16_load(u + i)));
    if (tail > 0)
        v16_store_n(y + full, swiglu_step(v16_load_n(g + full, tail), v16_load_n(u + full, tail)),
                    tail);
}

static void rope_v16(float *x, const float *cos, const float *sin, int64_t n_heads,
                     int64_t head_dim, int64_t rot_dim)
{
    const int64_t h = rot_dim / 2, full = h - h % LANES, tail = h % LANES;
    for (int64_t head = 0; head < n_heads; head++, x += head_dim) {
        for (int64_t i = 0; i < full; i += LANES) {
            const v16 a = v16_load(x + i), b = v16_load(x + i + h);
            const v16 c = v16_load(cos + i), s = v16_load(sin + i);
            v16_store(x + i, v16_fms(a, c, v16_mul(b, s)));
            v16_store(x + i + h, v16_fma(b, c, v16_mul(a, s)));
        }
        if (tail > 0) {
            const v16 a = v16_load_n(x + full, tail), b = v16_load_n(x + full + h, tail);
            const v16 c = v16_load_n(cos + full, tail), s = v16_load_n(sin + full, tail);
            v16_store_n(x + full, v16_fms(a, c, v16_mul(b, s)), tail);
            v16_store_n(x + full + h, v16_fma(b, c, v16_mul(a, s)), tail);
        }
    }
}

static void exp_v16(float *y, const float *x, int64_t n)
{
    const int64_t full = n - n % LANES, tail = n % LANES;
    for (int64_t i = 0; i < full; i += LANES)
        v16_store(y + i, v16_exp(v16_load(x + i)));
    if (tail > 0)
        v16_store_n(y + full, v16_exp(v16_load_n(x + full, tail)), tail);
}

/* The largest of x, NaN if any is; a zero is +0. */
static float max_nan(const float *x, int64_t n)
{
    const int64_t full = n - n % LANES, tail = n % LANES;
    v16 m = v16_set1(x[0]);
    for (int64_t i = 0; i < full; i += LANES)
        m = v16_max_nan(v16_load(x + i), m);
    if (tail > 0)
        m = v16_pick_n(v16_max_nan(v16_load_n(x + full, tail), m), m, tail);
    float lane[LANES];
    v16_store(lane, m);
    float max = lane[0];
    for (int i = 1; i < LANES; i++)
        max = lane[i] > max || isnan(lane[i]) ? lane[i] : max;
    return max + 0.0f;
}

static void softmax_stats_v16(const float *x, int64_t n, float *max, double *sum)
{
    *max = max_nan(x, n);
    *sum = 0;
    const v16 m = v16_set1(*max);
    for (int64_t begin = 0; begin < n; begin += PIECE) {
        const int64_t end = n < begin + PIECE ? n : begin + PIECE, full = end - end % LANES;
        v16 lane = v16_zero();
        for (int64_t i = begin; i < full; i += LANES)
            lane = v16_add(lane, v16_exp(v16_sub(v16_load(x + i), m)));
        if (full < end) {
            const v16 e = v16_exp(v16_sub(v16_load_n(x + full, end - full), m));
            lane = v16_pick_n(v16_add(lane, e), lane, end - full);
        }
        *sum += (double)v16_tree(lane);
    }
}

/* fma(exp(lp), lp - lq, lane) */
V16_INLINE v16 kl_step(v16 p, v16 p_max, v16 p_logsum, v16 q, v16 q_max, v16 q_logsum, v16 lane)
{
    const v16 lp = v16_sub(v16_sub(p, p_max), p_logsum), lq = v16_sub(v16_sub(q, q_max), q_logsum);
    return v16_fma(v16_exp(lp), v16_sub(lp, lq), lane);
}

static double kl_v16(const float *p, float p_max, float p_logsum, const float *q, float q_max,
                     float q_logsum, int64_t n)
{
    const v16 pm = v16_set1(p_max), pl = v16_set1(p_logsum);
    const v16 qm = v16_set1(q_max), ql = v16_set1(q_logsum);
    double sum = 0;
    for (int64_t begin = 0; begin < n; begin += PIECE) {
        const int64_t end = n < begin + PIECE ? n : begin + PIECE, full = end - end % LANES;
        v16 lane = v16_zero();
        for (int64_t i = begin; i < full; i += LANES)
            lane = kl_step(v16_load(p + i), pm, pl, v16_load(q + i), qm, ql, lane);
        if (full < end) {
            const int64_t tail = end - full;
            const v16 a = v16_load_n(p + full, tail), b = v16_load_n(q + full, tail);
            lane = v16_pick_n(kl_step(a, pm, pl, b, qm, ql, lane), lane, tail);
        }
        sum += (double)v16_tree(lane);
    }
    return sum;
}

/* Two passes: the largest number, then the first place that has it. Carrying the index through one
 * pass costs more than reading what the first pass left in the cache. */
static int64_t argmax_v16(const float *x, int64_t n)
{
    const int64_t full = n - n % LANES, tail = n % LANES;
    v16 m = v16_set1(-INFINITY);
    for (int64_t i = 0; i < full; i += LANES)
        m = v16_max(v16_load(x + i), m);
    if (tail > 0)
        m = v16_pick_n(v16_max(v16_load_n(x + full, tail), m), m, tail);
    const v16 top = v16_set1(v16_top(m));
    for (int64_t i = 0; i < full; i += LANES) {
        const unsigned same = v16_equal(v16_load(x + i), top);
        if (same != 0)
            return i + __builtin_ctz(same);
    }
    const unsigned same = v16_equal(v16_load_n(x + full, tail), top) & ((1u << tail) - 1);
    return same != 0 ? full + __builtin_ctz(same) : 0;
}

static void fill_nn(nb_kernels *k)
{
    k->rmsnorm = rmsnorm_v16;
    k->add = add_v16;
    k->swiglu = swiglu_v16;
    k->rope = rope_v16;
    k->exp = exp_v16;
    k->softmax_stats = softmax_stats_v16;
    k->kl = kl_v16;
    k->argmax = argmax_v16;
}
