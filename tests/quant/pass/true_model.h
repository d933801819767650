/* A model of llama's kind in plain loops of doubles, for tests of gradients: its loss, with one
 * output of one linear layer moved a little. */
#ifndef NB_TESTS_TRUE_MODEL_H
#define NB_TESTS_TRUE_MODEL_H

#include "model/model.h"
#include "support/golden.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TRUE_MAX_LAYERS = 3, TRUE_MAX_WIDTH = 64, TRUE_MAX_TOKENS = 24 };

typedef struct {
    nb_config config;
    nb_rope_table rope;
    double *embed, *head, *norm;
    struct {
        double *linear[NB_N_LINEARS], *bias[NB_N_LINEARS], *gain[2];
    } layer[TRUE_MAX_LAYERS];
} true_model;

/* One output of one linear, of one token. */
typedef struct {
    int64_t layer, token, output;
    nb_linear_id linear;
    double by;
} true_nudge;

static inline double *true_tensor(nb_store *store, const char *name)
{
    nb_err err = {0};
    nb_loaded loaded = {0};
    const nb_weight *w = nb_store_find(store, name);
    if (w == NULL)
        return NULL;
    assert_int_equal(nb_store_read(store, w, &loaded, &err), NB_OK);
    double *out = malloc((size_t)(w->n_rows * w->n_cols) * sizeof *out);
    float *row = malloc((size_t)w->n_cols * sizeof *row);
    assert_non_null(out);
    assert_non_null(row);
    for (int64_t r = 0; r < w->n_rows; r++) {
        loaded.mat.fmt->decode_row(&loaded.mat, r, row);
        for (int64_t c = 0; c < w->n_cols; c++)
            out[r * w->n_cols + c] = (double)row[c];
    }
    free(row);
    nb_loaded_free(&loaded);
    return out;
}

static inline void true_model_open(true_model *m, nb_store *store)
{
    static const char *const gains[2] = {"input_layernorm", "post_attention_layernorm"};
    nb_err err = {0};
    char name[128];
    *m = (true_model){0};
    assert_int_equal(nb_config_read(store, &m->config, &err), NB_OK);
    assert_true(m->config.n_layers <= TRUE_MAX_LAYERS && m->config.d_ff <= TRUE_MAX_WIDTH &&
                m->config.d_model <= TRUE_MAX_WIDTH);
    assert_int_equal(nb_rope_table_init(&m->rope, &m->config, TRUE_MAX_TOKENS, NULL, &err), NB_OK);
    m->embed = true_tensor(store, "model.embed_tokens.weight");
    m->head =
        true_tensor(store, m->config.tied_head ? "model.embed_tokens.weight" : "lm_head.weight");
    m->norm = true_tensor(store, "model.norm.weight");
    for (int64_t l = 0; l < m->config.n_layers; l++) {
        for (int j = 0; j < NB_N_LINEARS; j++) {
            const char *linear = nb_linear_name((nb_linear_id)j);
            snprintf(name, sizeof name, "model.layers.%lld.%s.weight", (long long)l, linear);
            m->layer[l].linear[j] = true_tensor(store, name);
            snprintf(name, sizeof name, "model.layers.%lld.%s.bias", (long long)l, linear);
            m->layer[l].bias[j] = true_tensor(store, name);
        }
        for (int j = 0; j < 2; j++) {
            snprintf(name, sizeof name, "model.layers.%lld.%s.weight", (long long)l, gains[j]);
            m->layer[l].gain[j] = true_tensor(store, name);
        }
    }
}

static inline void true_model_close(true_model *m)
{
    for (int l = 0; l < TRUE_MAX_LAYERS; l++) {
        for (int j = 0; j < NB_N_LINEARS; j++) {
            free(m->layer[l].linear[j]);
            free(m->layer[l].bias[j]);
        }
        free(m->layer[l].gain[0]);
        free(m->layer[l].gain[1]);
    }
    free(m->embed);
    free(m->head);
    free(m->norm);
    nb_rope_table_free(&m->rope);
}

static inline void true_norm(double *y, const double *x, const double *gain, const nb_config *c)
{
    double square = 0;
    for (int64_t i = 0; i < c->d_model; i++)
        square += x[i] * x[i];
    const double r = 1 / sqrt(square / (double)c->d_model + (double)c->rms_eps);
    for (int64_t i = 0; i < c->d_model; i++)
        y[i] = x[i] * r * gain[i];
}

/* y = W x + bias, and the nudge where it belongs. */
static inline void true_linear(const true_model *m, int64_t layer, nb_linear_id id, int64_t token,
                               const true_nudge *nudge, double *y, const double *x)
{
    const nb_config *c = &m->config;
    const int64_t d_q = c->n_heads * c->head_dim, d_k = c->n_kv_heads * c->head_dim;
    const int64_t rows[] = {d_q, d_k, d_k, c->d_model, c->d_ff, c->d_ff, c->d_model};
    const int64_t n = id == NB_LINEAR_O ? d_q : id == NB_LINEAR_DOWN ? c->d_ff : c->d_model;
    const double *w = m->layer[layer].linear[id], *bias = m->layer[layer].bias[id];
    for (int64_t r = 0; r < rows[id]; r++) {
        y[r] = bias != NULL ? bias[r] : 0;
        for (int64_t i = 0; i < n; i++)
            y[r] += w[r * n + i] * x[i];
    }
    if (nudge != NULL && nudge->layer == layer && nudge->linear == id && nudge->token == token)
        y[nudge->output] += nudge->by;
}

static inline void true_rope(const true_model *m, double *x, int64_t n_heads, int64_t pos)
{
    const int64_t half = m->rope.half;
    for (int64_t h = 0; h < n_heads; h++, x += m->config.head_dim)
        for (int64_t i = 0; i < half; i++) {
            const double c = (double)m->rope.cos[pos * half + i];
            const double s = (double)m->rope.sin[pos * half + i], a = x[i], b = x[i + half];
            x[i] = a * c - b * s;
            x[i + half] = b * c + a * s;
        }
}

typedef double true_rows[TRUE_MAX_TOKENS][TRUE_MAX_WIDTH];

static inline void true_attention(const true_model *m, const double *q, true_rows k, true_rows v,
                                  int64_t pos, double *out)
{
    const nb_config *c = &m->config;
    const int64_t dim = c->head_dim, group = c->n_heads / c->n_kv_heads;
    for (int64_t h = 0; h < c->n_heads; h++) {
        double sum = 0, *o = out + h * dim;
        memset(o, 0, (size_t)dim * sizeof *o);
        for (int64_t j = 0; j <= pos; j++) {
            double score = 0;
            for (int64_t i = 0; i < dim; i++)
                score += q[h * dim + i] * k[j][h / group * dim + i];
            const double e = exp(score / sqrt((double)dim));
            sum += e;
            for (int64_t i = 0; i < dim; i++)
                o[i] += e * v[j][h / group * dim + i];
        }
        for (int64_t i = 0; i < dim; i++)
            o[i] /= sum;
    }
}

/* logits [n][vocab_size]. */
static inline void true_logits(const true_model *m, const int32_t *ids, int64_t n,
                               const true_nudge *nudge, double *logits)
{
    const nb_config *c = &m->config;
    static true_rows x, k, v;
    double h[TRUE_MAX_WIDTH], q[TRUE_MAX_WIDTH], y[TRUE_MAX_WIDTH], up[TRUE_MAX_WIDTH];
    assert_true(n <= TRUE_MAX_TOKENS);
    for (int64_t t = 0; t < n; t++)
        memcpy(x[t], m->embed + ids[t] * c->d_model, (size_t)c->d_model * sizeof(double));
    for (int64_t l = 0; l < c->n_layers; l++)
        for (int64_t t = 0; t < n; t++) {
            true_norm(h, x[t], m->layer[l].gain[0], c);
            true_linear(m, l, NB_LINEAR_Q, t, nudge, q, h);
            true_linear(m, l, NB_LINEAR_K, t, nudge, k[t], h);
            true_linear(m, l, NB_LINEAR_V, t, nudge, v[t], h);
            true_rope(m, q, c->n_heads, t);
            true_rope(m, k[t], c->n_kv_heads, t);
            true_attention(m, q, k, v, t, h);
            true_linear(m, l, NB_LINEAR_O, t, nudge, y, h);
            for (int64_t i = 0; i < c->d_model; i++)
                x[t][i] += y[i];
            true_norm(h, x[t], m->layer[l].gain[1], c);
            true_linear(m, l, NB_LINEAR_GATE, t, nudge, y, h);
            true_linear(m, l, NB_LINEAR_UP, t, nudge, up, h);
            for (int64_t i = 0; i < c->d_ff; i++)
                h[i] = y[i] / (1 + exp(-y[i])) * up[i];
            true_linear(m, l, NB_LINEAR_DOWN, t, nudge, y, h);
            for (int64_t i = 0; i < c->d_model; i++)
                x[t][i] += y[i];
        }
    for (int64_t t = 0; t < n; t++) {
        true_norm(h, x[t], m->norm, c);
        for (int64_t i = 0; i < c->vocab_size; i++) {
            logits[t * c->vocab_size + i] = 0;
            for (int64_t j = 0; j < c->d_model; j++)
                logits[t * c->vocab_size + i] += m->head[i * c->d_model + j] * h[j];
        }
    }
}

/* probs [n_ids] of logits, in place. Returns the logarithm of the sum that they were divided by. */
static inline double true_softmax(double *logits, int64_t n_ids)
{
    double sum = 0, most = logits[0];
    for (int64_t i = 0; i < n_ids; i++)
        most = fmax(most, logits[i]);
    for (int64_t i = 0; i < n_ids; i++)
        sum += exp(logits[i] - most);
    for (int64_t i = 0; i < n_ids; i++)
        logits[i] = exp(logits[i] - most) / sum;
    return most + log(sum);
}

#endif
