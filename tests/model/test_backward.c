/* A block forward and backward: the forward against the model's own, bit for bit; gradients
 * against differences of a forward pass in binary64 written here; and both against themselves in
 * every way they may be run. */
#include "support/golden.h"
#include "support/must.h"

#include "base/rng.h"
#include "kernel/math.h"
#include "model/backward.h"
#include "model/forward.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- a random block ---- */

enum {
    P_LINEAR = 0,
    P_BIAS = P_LINEAR + NB_N_LINEARS,
    P_ATTN_NORM = P_BIAS + NB_N_LINEARS,
    P_FFN_NORM,
    P_Q_NORM,
    P_K_NORM,
    P_X,
    N_PARAMS
};
static const char *const param_names[N_PARAMS] = {
    "q",         "k",        "v",      "o",      "gate",      "up",      "down",
    "q bias",    "k bias",   "v bias", "o bias", "gate bias", "up bias", "down bias",
    "attn norm", "ffn norm", "q norm", "k norm", "x"};

typedef struct {
    nb_config config;
    nb_rope_table rope;
    bool bf16;
    int64_t n_seq, len;
    int64_t count[N_PARAMS];
    float *param[N_PARAMS], *grad[N_PARAMS];
    float *cotangent; /* the loss is the sum of cotangent * y */
} block;

static float random_value(uint64_t stream, int64_t i, float centre, float width)
{
    return centre + width * (float)(2 * nb_rng_uniform(11, stream, (uint64_t)i) - 1);
}

static void fill(float *x, int64_t n, uint64_t stream, float centre, float width)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = random_value(stream, i, centre, width);
}

static void block_counts(block *b, bool biases)
{
    const nb_config *c = &b->config;
    for (int i = 0; i < NB_N_LINEARS; i++) {
        const int64_t rows = nb_linear_n_rows(c, (nb_linear_id)i);
        b->count[P_LINEAR + i] = rows * nb_linear_n_cols(c, (nb_linear_id)i);
        b->count[P_BIAS + i] = biases ? rows : 0;
    }
    b->count[P_ATTN_NORM] = b->count[P_FFN_NORM] = c->d_model;
    b->count[P_Q_NORM] = b->count[P_K_NORM] = c->qk_norm ? c->head_dim : 0;
    b->count[P_X] = b->n_seq * b->len * c->d_model;
}

static void block_open(block *b, nb_config config, bool biases, int64_t n_seq, int64_t len)
{
    *b = (block){.config = config, .n_seq = n_seq, .len = len};
    b->config.rms_eps = 1e-5f;
    b->config.rope = (nb_rope){.type = NB_ROPE_DEFAULT, .base = 100};
    nb_err err;
    must(nb_rope_table_init(&b->rope, &b->config, len, NULL, &err), &err);
    block_counts(b, biases);
    for (int i = 0; i < N_PARAMS; i++) {
        const bool gain = i >= P_ATTN_NORM && i <= P_K_NORM;
        const float width = i < P_BIAS ? 1.5f / sqrtf((float)config.d_model) : gain ? 0.5f : 1.0f;
        if (b->count[i] == 0)
            continue;
        b->param[i] = malloc((size_t)b->count[i] * sizeof(float));
        b->grad[i] = calloc((size_t)b->count[i], sizeof(float));
        fill(b->param[i], b->count[i], (uint64_t)i, gain ? 1.0f : 0.0f, width);
    }
    b->cotangent = malloc((size_t)b->count[P_X] * sizeof(float));
    fill(b->cotangent, b->count[P_X], 99, 0, 1);
}

static void block_close(block *b)
{
    for (int i = 0; i < N_PARAMS; i++) {
        free(b->param[i]);
        free(b->grad[i]);
    }
    free(b->cotangent);
    nb_rope_table_free(&b->rope);
}

static nb_block_weights weights_of(const block *b)
{
    nb_block_weights w = {.attn_norm = b->param[P_ATTN_NORM],
                          .ffn_norm = b->param[P_FFN_NORM],
                          .q_norm = b->param[P_Q_NORM],
                          .k_norm = b->param[P_K_NORM]};
    for (int i = 0; i < NB_N_LINEARS; i++) {
        w.linear[i] = b->param[P_LINEAR + i];
        w.bias[i] = b->param[P_BIAS + i];
    }
    return w;
}

static nb_block_grads grads_of(const block *b)
{
    nb_block_grads g = {.attn_norm = b->grad[P_ATTN_NORM],
                        .ffn_norm = b->grad[P_FFN_NORM],
                        .q_norm = b->grad[P_Q_NORM],
                        .k_norm = b->grad[P_K_NORM],
                        .x = b->grad[P_X]};
    for (int i = 0; i < NB_N_LINEARS; i++) {
        g.linear[i] = b->grad[P_LINEAR + i];
        g.bias[i] = b->grad[P_BIAS + i];
    }
    return g;
}

/* Forward and backward, sequences in calls of `per_call`. y [n_seq * len][d_model]: outputs. */
static void block_run(block *b, unsigned isa, int threads, int64_t per_call, float *y)
{
    nb_err err;
    nb_kernels k;
    nb_pool *pool;
    nb_block_train t;
    nb_kernels_init(&k, isa);
    must(nb_pool_open(&pool, threads, &err), &err);
    must(nb_block_train_init(&t, &b->config, &b->rope, &k, pool, per_call, b->len, b->bf16, &err),
         &err);
    for (int i = 0; i < N_PARAMS; i++)
        if (b->count[i] > 0)
            memset(b->grad[i], 0, (size_t)b->count[i] * sizeof(float));
    const nb_block_weights w = weights_of(b);
    nb_block_grads g = grads_of(b);
    const int64_t d = b->config.d_model;
    for (int64_t seq = 0; seq < b->n_seq; seq += per_call) {
        const int64_t n = b->n_seq - seq < per_call ? b->n_seq - seq : per_call;
        const int64_t at = seq * b->len * d, bytes = n * b->len * d * (int64_t)sizeof(float);
        nb_block_forward(&t, &w, b->param[P_X] + at, n, b->len);
        memcpy(y + at, t.y, (size_t)bytes);
        memcpy(t.y, b->cotangent + at, (size_t)bytes);
        g.x = b->grad[P_X] + at;
        nb_block_backward(&t, &w, b->param[P_X] + at, n, b->len, &g);
    }
    nb_block_train_free(&t);
    nb_pool_close(pool);
}

/* ---- the same in binary64, straight from the formulas ---- */

typedef struct {
    const block *b;
    double *param[N_PARAMS];
    double *normed, *q, *k, *v, *att, *x1, *h, *row;
} truth;

static double *doubles(int64_t n)
{
    return malloc((size_t)n * sizeof(double));
}

static void truth_open(truth *t, const block *b)
{
    const nb_config *c = &b->config;
    *t = (truth){.b = b};
    for (int i = 0; i < N_PARAMS; i++) {
        t->param[i] = b->count[i] > 0 ? doubles(b->count[i]) : NULL;
        for (int64_t j = 0; j < b->count[i]; j++)
            t->param[i][j] = (double)b->param[i][j];
    }
    const int64_t d_q = c->n_heads * c->head_dim;
    t->normed = doubles(c->d_model);
    t->q = doubles(b->len * d_q);
    t->k = doubles(b->len * d_q);
    t->v = doubles(b->len * d_q);
    t->att = doubles(d_q);
    t->x1 = doubles(c->d_model);
    t->h = doubles(2 * c->d_ff);
    t->row = doubles(b->len + c->d_model);
}

static void truth_close(truth *t)
{
    for (int i = 0; i < N_PARAMS; i++)
        free(t->param[i]);
    double *const all[] = {t->normed, t->q, t->k, t->v, t->att, t->x1, t->h, t->row};
    for (int i = 0; i < 8; i++)
        free(all[i]);
}

static void true_norm(double *y, const double *x, const double *gain, int64_t n, double eps)
{
    double square = 0;
    for (int64_t i = 0; i < n; i++)
        square += x[i] * x[i];
    const double r = 1 / sqrt(square / (double)n + eps);
    for (int64_t i = 0; i < n; i++)
        y[i] = x[i] * r * gain[i];
}

static void true_linear(const truth *t, nb_linear_id which, double *y, const double *x)
{
    const int64_t rows = nb_linear_n_rows(&t->b->config, which);
    const int64_t cols = nb_linear_n_cols(&t->b->config, which);
    for (int64_t r = 0; r < rows; r++) {
        double sum = t->param[P_BIAS + which] == NULL ? 0 : t->param[P_BIAS + which][r];
        for (int64_t c = 0; c < cols; c++)
            sum += t->param[P_LINEAR + which][r * cols + c] * x[c];
        y[r] = sum;
    }
}

static void true_heads(const truth *t, double *x, int64_t n_heads, const double *gain, int64_t pos)
{
    const nb_config *c = &t->b->config;
    const int64_t half = c->rot_dim / 2;
    for (int64_t h = 0; h < n_heads; h++, x += c->head_dim) {
        if (gain != NULL)
            true_norm(x, x, gain, c->head_dim, (double)c->rms_eps);
        for (int64_t i = 0; i < half; i++) {
            const double co = (double)t->b->rope.cos[pos * half + i];
            const double si = (double)t->b->rope.sin[pos * half + i], a = x[i], b = x[i + half];
            x[i] = a * co - b * si;
            x[i + half] = b * co + a * si;
        }
    }
}

static void true_attention(const truth *t, int64_t pos)
{
    const nb_config *c = &t->b->config;
    const int64_t dim = c->head_dim, group = c->n_heads / c->n_kv_heads;
    const int64_t window = c->sliding_window;
    const int64_t first = window > 0 && window <= pos ? pos + 1 - window : 0;
    for (int64_t h = 0; h < c->n_heads; h++) {
        const double *q = t->q + (pos * c->n_heads + h) * dim;
        double sum = 0, *out = t->att + h * dim;
        memset(out, 0, (size_t)dim * sizeof *out);
        for (int64_t j = first; j <= pos; j++) {
            const double *k = t->k + (j * c->n_kv_heads + h / group) * dim;
            const double *v = t->v + (j * c->n_kv_heads + h / group) * dim;
            double score = 0;
            for (int64_t i = 0; i < dim; i++)
                score += q[i] * k[i];
            const double e = nb_exp64(score / sqrt((double)dim));
            sum += e;
            for (int64_t i = 0; i < dim; i++)
                out[i] += e * v[i];
        }
        for (int64_t i = 0; i < dim; i++)
            out[i] /= sum;
    }
}

/* The loss of one sequence. */
static double true_sequence(const truth *t, int64_t seq)
{
    const block *b = t->b;
    const nb_config *c = &b->config;
    const int64_t d = c->d_model;
    const double eps = (double)c->rms_eps;
    double loss = 0;
    for (int64_t pos = 0; pos < b->len; pos++) {
        const double *x = t->param[P_X] + (seq * b->len + pos) * d;
        double *q = t->q + pos * c->n_heads * c->head_dim;
        double *k = t->k + pos * c->n_kv_heads * c->head_dim;
        true_norm(t->normed, x, t->param[P_ATTN_NORM], d, eps);
        true_linear(t, NB_LINEAR_Q, q, t->normed);
        true_linear(t, NB_LINEAR_K, k, t->normed);
        true_linear(t, NB_LINEAR_V, t->v + pos * c->n_kv_heads * c->head_dim, t->normed);
        true_heads(t, q, c->n_heads, t->param[P_Q_NORM], pos);
        true_heads(t, k, c->n_kv_heads, t->param[P_K_NORM], pos);
        true_attention(t, pos);
        true_linear(t, NB_LINEAR_O, t->x1, t->att);
        for (int64_t i = 0; i < d; i++)
            t->x1[i] += x[i];
        true_norm(t->normed, t->x1, t->param[P_FFN_NORM], d, eps);
        true_linear(t, NB_LINEAR_GATE, t->h, t->normed);
        true_linear(t, NB_LINEAR_UP, t->h + c->d_ff, t->normed);
        for (int64_t i = 0; i < c->d_ff; i++)
            t->h[i] = t->h[i] / (1 + nb_exp64(-t->h[i])) * t->h[c->d_ff + i];
        true_linear(t, NB_LINEAR_DOWN, t->row, t->h);
        for (int64_t i = 0; i < d; i++)
            loss += (t->row[i] + t->x1[i]) * (double)b->cotangent[(seq * b->len + pos) * d + i];
    }
    return loss;
}

static double true_loss(const truth *t)
{
    double loss = 0;
    for (int64_t seq = 0; seq < t->b->n_seq; seq++)
        loss += true_sequence(t, seq);
    return loss;
}

/* Central differences in binary64 are good to h^2, 1e-8. The gradients are sums of n_seq * len
 * terms in binary32, each the end of a chain of five products: 30 times the unit of binary32, of
 * the largest of their kind, was enough for every case below; a wrong term is off by far more. */
static void gradients_equal_differences(void **state)
{
    (void)state;
    static const struct {
        nb_config config;
        bool biases;
        int64_t n_seq, len;
    } cases[] = {
        /* plain, one head */
        {{.d_model = 16, .d_ff = 24, .n_heads = 1, .n_kv_heads = 1, .head_dim = 8, .rot_dim = 8},
         false,
         1,
         1},
        /* groups of heads, biases, a block of queries and a half */
        {{.d_model = 20, .d_ff = 36, .n_heads = 6, .n_kv_heads = 2, .head_dim = 8, .rot_dim = 8},
         true,
         2,
         70},
        /* a window, QK-norm, RoPE on a part of each head */
        {{.d_model = 24,
          .d_ff = 17,
          .n_heads = 4,
          .n_kv_heads = 2,
          .head_dim = 20,
          .rot_dim = 10,
          .sliding_window = 19,
          .qk_norm = true},
         true,
         1,
         61},
    };
    for (size_t n = 0; n < sizeof cases / sizeof *cases; n++) {
        block b;
        truth t;
        block_open(&b, cases[n].config, cases[n].biases, cases[n].n_seq, cases[n].len);
        float *y = malloc((size_t)b.count[P_X] * sizeof *y);
        block_run(&b, NB_ISA_ALL, 2, 2, y);
        truth_open(&t, &b);
        for (int i = 0; i < N_PARAMS; i++) {
            double worst = 0, largest = 0;
            for (int64_t j = 0; j < b.count[i]; j++)
                largest = fmax(largest, fabs((double)b.grad[i][j]));
            for (int64_t s = 0; s < 9 && s < b.count[i]; s++) {
                const int64_t j =
                    (int64_t)(nb_rng_uniform(n, (uint64_t)i, (uint64_t)s) * (double)b.count[i]);
                const double kept = t.param[i][j], h = 1e-4;
                t.param[i][j] = kept + h;
                const double high = true_loss(&t);
                t.param[i][j] = kept - h;
                const double difference = (high - true_loss(&t)) / (2 * h);
                t.param[i][j] = kept;
                worst = fmax(worst, fabs(difference - (double)b.grad[i][j]));
            }
            const double bound = 30 * 0x1p-23 * (largest + 1e-3 * (i == P_K_NORM || i == P_Q_NORM));
            /* the bias of k moves all scores of a query alike: its gradient is 0 but for RoPE */
            if (b.count[i] > 0 && !(worst <= bound + 1e-7))
                fail_msg("case %zu, %s: off by %g of %g", n, param_names[i], worst, largest);
        }
        truth_close(&t);
        free(y);
        block_close(&b);
    }
}

/* ---- the same bits in every way ---- */

static void same_ways(nb_config config, bool bf16, int64_t n_seq, int64_t len)
{
    static const unsigned isas[] = {NB_ISA_ALL, NB_ISA_SCALAR, NB_ISA_AVX2,
                                    NB_ISA_AVX2 | NB_ISA_AVX512, NB_ISA_ALL};
    static const int threads[] = {1, 2, 3, 1, 2};
    block want, got;
    block_open(&want, config, true, n_seq, len);
    block_open(&got, config, true, n_seq, len);
    want.bf16 = got.bf16 = bf16;
    float *y = malloc((size_t)want.count[P_X] * sizeof *y),
          *z = malloc((size_t)want.count[P_X] * 4);
    block_run(&want, NB_ISA_ALL, 2, n_seq, y);
    for (int way = 0; way < 5; way++) {
        block_run(&got, isas[way], threads[way], way == 4 ? 1 : n_seq, z);
        assert_memory_equal(y, z, (size_t)want.count[P_X] * sizeof *y);
        for (int i = 0; i < N_PARAMS; i++)
            if (want.count[i] > 0 &&
                memcmp(want.grad[i], got.grad[i], (size_t)want.count[i] * sizeof(float)) != 0)
                fail_msg("way %d, len %lld: gradients of %s differ", way, (long long)len,
                         param_names[i]);
    }
    free(y);
    free(z);
    block_close(&want);
    block_close(&got);
}

static void bits_depend_on_the_problem_only(void **state)
{
    (void)state;
    const nb_config c = {.d_model = 40,
                         .d_ff = 56,
                         .n_heads = 4,
                         .n_kv_heads = 2,
                         .head_dim = 12,
                         .rot_dim = 12,
                         .qk_norm = true};
    same_ways(c, false, 3, 37);
    same_ways(c, false, 2, 128); /* whole pieces: sequences share a product */
    same_ways(c, true, 3, 37);
    same_ways(c, true, 2, 128);
    same_ways(c, true, 2, 256); /* whole pieces of pairs */
    nb_config odd = c;
    odd.d_ff = 57;
    same_ways(odd, true, 2, 5);
}

/* In bfloat16 an operand is off by 2^-9 of itself at most, and a gradient went through three
 * products with what came before it: within a few 2^-9 of the largest of its kind, and not equal.
 */
static void bfloat16_is_near(void **state)
{
    (void)state;
    const nb_config c = {
        .d_model = 40, .d_ff = 57, .n_heads = 4, .n_kv_heads = 2, .head_dim = 12, .rot_dim = 12};
    block fine, coarse;
    block_open(&fine, c, true, 2, 61);
    block_open(&coarse, c, true, 2, 61);
    coarse.bf16 = true;
    float *y = malloc((size_t)fine.count[P_X] * sizeof *y);
    float *z = malloc((size_t)fine.count[P_X] * sizeof *z);
    block_run(&fine, NB_ISA_ALL, 2, 2, y);
    block_run(&coarse, NB_ISA_ALL, 2, 2, z);
    double largest_y = 0, worst_y = 0;
    for (int64_t j = 0; j < fine.count[P_X]; j++) {
        largest_y = fmax(largest_y, fabs((double)y[j]));
        worst_y = fmax(worst_y, fabs((double)y[j] - (double)z[j]));
    }
    assert_true(worst_y > 0 && worst_y <= 2 * 0x1p-9 * largest_y);
    for (int i = 0; i < N_PARAMS; i++) {
        double worst = 0, largest = 0;
        for (int64_t j = 0; j < fine.count[i]; j++) {
            largest = fmax(largest, fabs((double)fine.grad[i][j]));
            worst = fmax(worst, fabs((double)fine.grad[i][j] - (double)coarse.grad[i][j]));
        }
        /* what the biases of the last product get is no product at all; that of k is nearly 0 */
        const bool same = i == P_BIAS + NB_LINEAR_DOWN;
        if (fine.count[i] > 0 && i != P_BIAS + NB_LINEAR_K &&
            !(worst <= 4 * 0x1p-9 * largest && (worst > 0) == !same))
            fail_msg("%s: off by %g of %g", param_names[i], worst, largest);
    }
    free(y);
    free(z);
    block_close(&fine);
    block_close(&coarse);
}

/* ---- one forward ---- */

typedef struct {
    int64_t layer, d;
    float *in, *out;
} seen;

static void see(void *context, int64_t layer, nb_op op, int64_t input, int64_t position,
                int64_t column, const float *values, int64_t n)
{
    seen *s = context;
    float *to = layer == s->layer - 1 ? s->in : s->out;
    if (op == NB_OP_FFN_RESIDUAL && input == 0 && (layer == s->layer - 1 || layer == s->layer))
        memcpy(to + position * s->d + column, values, (size_t)n * sizeof *values);
}

/* A weight of layer 1 by the end of its name; NULL if there is none. */
static float *load(nb_store *store, const char *name)
{
    char full[128];
    nb_err err;
    snprintf(full, sizeof full, "model.layers.1.%s", name);
    const nb_weight *w = nb_store_find(store, full);
    if (w == NULL)
        return NULL;
    nb_loaded loaded = {0};
    must(nb_store_read(store, w, &loaded, &err), &err);
    float *x = malloc((size_t)(w->n_rows * w->n_cols) * sizeof *x);
    for (int64_t r = 0; r < w->n_rows; r++)
        w->fmt->decode_row(&loaded.mat, r, x + r * w->n_cols);
    nb_loaded_free(&loaded);
    return x;
}

static nb_block_weights load_block(nb_store *store)
{
    static const char *const names[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                        "self_attn.o_proj", "mlp.gate_proj",    "mlp.up_proj",
                                        "mlp.down_proj"};
    nb_block_weights w = {.attn_norm = load(store, "input_layernorm.weight"),
                          .ffn_norm = load(store, "post_attention_layernorm.weight"),
                          .q_norm = load(store, "self_attn.q_norm.weight"),
                          .k_norm = load(store, "self_attn.k_norm.weight")};
    for (int i = 0; i < NB_N_LINEARS; i++) {
        char name[64];
        snprintf(name, sizeof name, "%s.weight", names[i]);
        w.linear[i] = load(store, name);
        snprintf(name, sizeof name, "%s.bias", names[i]);
        w.bias[i] = load(store, name);
    }
    return w;
}

static void free_block(nb_block_weights *w)
{
    for (int i = 0; i < NB_N_LINEARS; i++) {
        free((void *)w->linear[i]);
        free((void *)w->bias[i]);
    }
    free((void *)w->attn_norm);
    free((void *)w->ffn_norm);
    free((void *)w->q_norm);
    free((void *)w->k_norm);
}

/* What the model does with 50 tokens. */
static void run_model(nb_model *m, nb_pool *pool, const nb_kernels *k, int64_t len, seen *s)
{
    nb_err err;
    nb_work work;
    nb_kv_pool kv;
    nb_kv_seq seq;
    must(nb_work_init(&work, m, k, pool, 64, &err), &err);
    must(nb_kv_pool_init(&kv, &m->config, NB_KV_F32, 64, &err), &err);
    must(nb_kv_seq_init(&seq, &kv, 64, &err), &err);
    int32_t tokens[64];
    for (int i = 0; i < 64; i++)
        tokens[i] = (int32_t)(nb_rng_uniform(5, 6, (uint64_t)i) * (double)m->config.vocab_size);
    work.watcher = (nb_watcher){see, s};
    const nb_step_input in = {&seq, tokens, len, 0};
    must(nb_forward(&work, &in, 1, NULL, &err), &err);
    nb_kv_seq_free(&seq);
    nb_kv_pool_free(&kv);
    nb_work_free(&work);
}

static void forward_is_the_models_own(void **state)
{
    (void)state;
    enum { LEN = 50 };
    static const char *const names[] = {"llama_bias", "mistral", "qwen2", "qwen3", "qwen2_yarn"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[1024];
        snprintf(path, sizeof path, "%s/models/%s", NIBBLE_GOLDEN, names[i]);
        nb_err err;
        nb_store *store;
        nb_pool *pool;
        nb_model m;
        nb_kernels k;
        nb_kernels_init(&k, NB_ISA_ALL);
        must(nb_store_open(&store, path, &err), &err);
        must(nb_pool_open(&pool, 2, &err), &err);
        must(nb_model_open(&m, store, &(nb_model_options){NB_COMPUTE_ALL_F, 64}, pool, &err), &err);
        const size_t bytes = (size_t)(LEN * m.config.d_model) * sizeof(float);
        seen s = {1, m.config.d_model, malloc(bytes), malloc(bytes)};
        run_model(&m, pool, &k, LEN, &s);

        nb_block_weights w = load_block(store);
        nb_block_train t;
        must(nb_block_train_init(&t, &m.config, &m.rope, &k, pool, 1, LEN, false, &err), &err);
        nb_block_forward(&t, &w, s.in, 1, LEN);
        if (memcmp(t.y, s.out, bytes) != 0)
            fail_msg("%s: the block gives other bits than the model", names[i]);
        nb_block_train_free(&t);
        free_block(&w);
        free(s.in);
        free(s.out);
        nb_model_close(&m);
        nb_pool_close(pool);
        nb_store_close(store);
    }
}

/* ---- memory ---- */

static void sizes_are_known_and_refused(void **state)
{
    (void)state;
    nb_config c = {.d_model = 16, .d_ff = 24, .n_heads = 2, .n_kv_heads = 1, .head_dim = 8};
    c.rot_dim = 8;
    c.rope = (nb_rope){.type = NB_ROPE_DEFAULT, .base = 100};
    const int64_t small = nb_block_train_bytes(&c, 1, 32, false, 1);
    /* gate, up and their product, of 63 more sequences */
    assert_true(small > 0 &&
                nb_block_train_bytes(&c, 64, 32, false, 1) - small >= 63 * 32 * 3 * c.d_ff * 4);
    assert_true(nb_block_train_bytes(&c, INT64_MAX / 4, 32, true, 1) == INT64_MAX);
    assert_true(nb_block_train_bytes(&c, 1 << 20, 1 << 20, true, 1) == INT64_MAX);

    nb_err err;
    nb_kernels k;
    nb_pool *pool;
    nb_rope_table rope;
    nb_block_train t = {0};
    nb_kernels_init(&k, NB_ISA_ALL);
    must(nb_pool_open(&pool, 1, &err), &err);
    must(nb_rope_table_init(&rope, &c, 32, NULL, &err), &err);
    assert_int_equal(nb_block_train_init(&t, &c, &rope, &k, pool, 1, 33, false, &err), NB_USAGE);
    assert_int_equal(nb_block_train_init(&t, &c, &rope, &k, pool, INT64_MAX / 4, 32, false, &err),
                     NB_MEMORY);
    const int64_t live = nb_alloc_live();
    nb_alloc_fail_at(1);
    assert_int_equal(nb_block_train_init(&t, &c, &rope, &k, pool, 1, 32, true, &err), NB_MEMORY);
    nb_alloc_fail_at(0);
    assert_null(t.memory);
    assert_int_equal(nb_alloc_live(), live);
    nb_block_train_free(&t); /* fine when empty */
    nb_rope_table_free(&rope);
    nb_pool_close(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_equal_differences),
        cmocka_unit_test(bits_depend_on_the_problem_only),
        cmocka_unit_test(bfloat16_is_near),
        cmocka_unit_test(forward_is_the_models_own),
        cmocka_unit_test(sizes_are_known_and_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
