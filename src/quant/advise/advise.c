/* The arithmetic of advice; see advise.h. */
#include "quant/advise/advise.h"

#include "quant/plan/bytes.h"

#include <string.h>

/* ---- parts ---- */

typedef enum { PART_LINEAR, PART_EMBED, PART_HEAD, PART_FLOATS } part_kind;

/* `count` matrices of a shape, of which a token meets `active`. Vectors and routers are floats. */
typedef struct {
    part_kind kind;
    int64_t n_rows, n_cols, count, active;
} part;

#define MAX_PARTS 16

static int list_parts(const nb_advise_shape *s, part *out)
{
    const int64_t d = s->d_model, d_q = s->n_heads * s->head_dim, L = s->n_layers;
    const int64_t d_kv = s->n_kv_heads * s->head_dim, moe = s->n_moe_layers, dense = L - moe;
    const int64_t vectors = 2 * d + (s->qk_norm ? 2 * s->head_dim : 0) +
                            (s->qkv_bias ? d_q + 2 * d_kv : 0) + (s->o_bias ? d : 0);
    const int64_t mlp_bias = s->mlp_bias ? 2 * s->d_ff + d : 0;
    const part all[] = {
        {PART_EMBED, s->vocab_size, d, 1, s->tied_head},
        {PART_HEAD, s->vocab_size, d, !s->tied_head, !s->tied_head},
        {PART_LINEAR, d_q, d, L, L},
        {PART_LINEAR, d_kv, d, 2 * L, 2 * L},
        {PART_LINEAR, d, d_q, L, L},
        {PART_LINEAR, s->d_ff, d, 2 * dense, 2 * dense},
        {PART_LINEAR, d, s->d_ff, dense, dense},
        {PART_LINEAR, s->d_expert, d, 2 * moe * s->n_experts, 2 * moe * s->n_active},
        {PART_LINEAR, d, s->d_expert, moe * s->n_experts, moe * s->n_active},
        {PART_LINEAR, s->d_shared, d, 2 * moe, 2 * moe},
        {PART_LINEAR, d, s->d_shared, moe, moe},
        {PART_FLOATS, s->n_experts + (s->d_shared > 0), d, moe, moe},
        {PART_FLOATS, 1, vectors + mlp_bias, dense, dense},
        {PART_FLOATS, 1, vectors, moe, moe},
        {PART_FLOATS, 1, d, 1, 1},
    };
    int n = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (all[i].count > 0 && all[i].n_rows > 0 && all[i].n_cols > 0)
            out[n++] = all[i];
    }
    return n;
}

/* Products of the stated maxima of a config may pass 64 bits: then the sum is the most there is. */
static int64_t whole(double v)
{
    return v < 9e18 ? (int64_t)v : INT64_MAX;
}

static double sum_params(const nb_advise_shape *s, bool active)
{
    part parts[MAX_PARTS];
    const int n = list_parts(s, parts);
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += (double)(parts[i].n_rows * parts[i].n_cols) *
               (double)(active ? parts[i].active : parts[i].count);
    return sum;
}

int64_t nb_advise_params(const nb_advise_shape *s)
{
    return whole(sum_params(s, false));
}

int64_t nb_advise_active_params(const nb_advise_shape *s)
{
    return whole(sum_params(s, true));
}

int64_t nb_advise_kv_bytes(const nb_advise_shape *s, nb_kv_format cell)
{
    return 2 * s->n_layers * s->n_kv_heads * (int64_t)nb_kv_head_bytes(cell, (int)s->head_dim) /
           NB_KV_PAGE;
}

/* Rows of a step of prefill, and of the logits that are looked at. */
#define STEP_ROWS 512

int64_t nb_advise_activation_bytes(const nb_advise_shape *s, int64_t batch)
{
    const int64_t d_q = s->n_heads * s->head_dim, d_kv = s->n_kv_heads * s->head_dim;
    const int64_t ff = s->d_ff > s->d_expert * s->n_active ? s->d_ff : s->d_expert * s->n_active;
    const double row = 3 * (double)s->d_model + 2 * (double)d_q + 2 * (double)d_kv + 3 * (double)ff;
    const double rows = batch > STEP_ROWS ? (double)batch : STEP_ROWS;
    return whole(4 * (row * rows + (double)s->vocab_size * (double)batch));
}

/* ---- schemes ---- */

const char *nb_loss_name(nb_loss loss)
{
    static const char *const names[] = {"none", "small", "visible", "large", "broken"};
    return names[loss];
}

nb_loss nb_loss_of(double kl)
{
    return kl < 0.005  ? NB_LOSS_NONE
           : kl < 0.05 ? NB_LOSS_SMALL
           : kl < 0.3  ? NB_LOSS_VISIBLE
           : kl < 1    ? NB_LOSS_LARGE
                       : NB_LOSS_BROKEN;
}

/* The weight that a scheme makes of a matrix; floats of 16 bits where rows are no whole blocks.
 * False: its groups do not divide the rows. */
static bool weight_under(nb_weight *w, const nb_scheme *scheme, const part *p)
{
    *w = (nb_weight){.fmt = &nb_format_bf16, .n_rows = p->n_rows, .n_cols = p->n_cols};
    w->n_dims = 2;
    w->dims[0] = p->n_rows;
    w->dims[1] = p->n_cols;
    const bool gguf = scheme != NULL && scheme->container == NB_STORE_GGUF;
    if (p->kind == PART_FLOATS && gguf)
        w->fmt = &nb_format_f32;
    if (scheme == NULL || p->kind == PART_FLOATS || (p->kind != PART_LINEAR && !gguf))
        return true;
    if (gguf) {
        const nb_format *fmt = p->kind == PART_LINEAR ? scheme->fmt : &nb_format_q8_0;
        if (p->n_cols % fmt->block_len == 0)
            w->fmt = fmt;
        return true;
    }
    const bool nf4 = scheme->fmt == &nb_format_nf4;
    w->fmt = scheme->fmt;
    w->symmetric = scheme->symmetric;
    w->float_zeros = scheme->float_zeros;
    w->group_size = scheme->group_size == NB_GROUP_CHANNEL ? p->n_cols : scheme->group_size;
    w->scale_type = nf4 ? NB_F32 : NB_BF16;
    w->scale_rows = scheme->scale_rows;
    w->nested = scheme->nested;
    w->act = scheme->act;
    w->layout = nf4 ? NB_LAYOUT_BNB : scheme->float_zeros ? NB_LAYOUT_HQQ : NB_LAYOUT_CT;
    return nf4 || p->n_cols % w->group_size == 0;
}

/* Names, shapes and offsets at the start of a file; a GGUF has the tokenizer there as well, about
 * 36 bytes a token with its merges. */
static double head_bytes(const nb_advise_shape *s, const nb_scheme *scheme, double n_tensors,
                         double n_linears)
{
    if (scheme == NULL || scheme->container == NB_STORE_HF)
        return 114 * (n_tensors + (scheme != NULL ? (scheme->symmetric ? 2 : 3) * n_linears : 0));
    return 36.0 * (double)s->vocab_size + 72 * n_tensors;
}

static nb_status fill(nb_candidate *c, const nb_advise_shape *s, const char *name, nb_err *err)
{
    nb_scheme scheme;
    part parts[MAX_PARTS];
    const bool plain = strcmp(name, "BF16") == 0;
    *c = (nb_candidate){.scheme = name};
    if (!plain)
        NB_TRY(nb_scheme_parse(&scheme, name, err));
    c->possible = true;
    double bytes = 0, n_linears = 0, n_tensors = 0;
    nb_weight like = {.fmt = &nb_format_bf16};
    const int n = list_parts(s, parts);
    for (int p = 0; p < n; p++) {
        nb_weight w;
        c->possible = c->possible && weight_under(&w, plain ? NULL : &scheme, &parts[p]);
        if (!c->possible)
            return NB_OK;
        const double one = (double)nb_planned_bytes(&w);
        bytes += one * (double)parts[p].count;
        c->active_bytes += one * (double)parts[p].active;
        n_tensors += (double)parts[p].count * (parts[p].kind == PART_FLOATS ? 3 : 1);
        if (parts[p].kind == PART_LINEAR) {
            n_linears += (double)parts[p].count;
            like = w;
        }
    }
    c->compute = nb_weight_compute(&like, NB_COMPUTE_AUTO);
    c->a8 = !plain && scheme.act.bits == 8;
    c->bpw = 8 * bytes / sum_params(s, false);
    c->bytes = whole(bytes + head_bytes(s, plain ? NULL : &scheme, n_tensors, n_linears));
    return NB_OK;
}

nb_status nb_advise_candidate_like(nb_candidate *out, const nb_advise_shape *s, const char *scheme,
                                   nb_err *err)
{
    const nb_status status = fill(out, s, scheme, err);
    out->scheme = "";
    return status;
}

nb_status nb_advise_candidates(nb_candidate out[NB_N_CANDIDATES], const nb_advise_shape *s,
                               nb_err *err)
{
    for (int i = 0; i < NB_N_CANDIDATES; i++) {
        int bits;
        const char *scheme = nb_advise_scheme(i, &bits);
        NB_TRY(fill(&out[i], s, scheme, err));
        out[i].bits = bits;
        out[i].loss = nb_advise_loss_of(scheme, "rtn");
    }
    return NB_OK;
}

/* ---- speed and memory ---- */

/* Shares of the limits that nibble bench reaches on models of this size, as a rule. */
#define READ_SHARE    0.7
#define COMPUTE_SHARE 0.5

double nb_advise_decode(const nb_advise_shape *s, const nb_candidate *c, const nb_advise_machine *m,
                        int64_t ctx, nb_kv_format kv)
{
    const double cache = (double)nb_advise_kv_bytes(s, kv) * (double)ctx;
    return READ_SHARE * m->read / (c->active_bytes + cache);
}

double nb_advise_prefill(const nb_advise_shape *s, const nb_candidate *c,
                         const nb_advise_machine *m)
{
    /* i16 runs the 8-bit multiply twice. Embedding and head are no work of a prompt's tokens. */
    const double peak = c->compute == NB_COMPUTE_F     ? m->fma_ops
                        : c->compute == NB_COMPUTE_I16 ? m->int8_ops / 2
                                                       : m->int8_ops;
    const double rows = (double)s->vocab_size * (double)s->d_model;
    return COMPUTE_SHARE * peak / (2 * (sum_params(s, true) - rows));
}

/* Code, threads, tokenizer. */
#define PROGRAM_BYTES 32e6

int64_t nb_advise_memory(const nb_advise_shape *s, const nb_candidate *c, int64_t ctx,
                         int64_t batch, nb_kv_format kv)
{
    const double cache = (double)nb_advise_kv_bytes(s, kv) * (double)ctx * (double)batch;
    return whole((double)c->bytes + cache + (double)nb_advise_activation_bytes(s, batch) +
                 PROGRAM_BYTES);
}
