/* The definition of attention over the paged cache (A5): one query head at a time, one cell at a
 * time, in the contract's order. Scalar, never optimised. */
#include "kernel/attn_scratch.h"
#include "kernel/hadamard.h"
#include "kernel/math.h"
#include "kernel/ref_kv.h"
#include "numeric/minifloat.h"

#include <assert.h>

int64_t nb_attn_scratch_floats(int head_dim, int64_t n_positions)
{
    const int64_t n_splits = (n_positions + NB_KV_SPLIT - 1) / NB_KV_SPLIT;
    const nb_attn_args widest = {.n_q = NB_ATTN_ROWS, .n_group = 1, .kv = {.head_dim = head_dim}};
    return NB_ATTN_AT_PARTS + n_splits * nb_attn_part_floats(&widest);
}

/* ---- attention ---- */

/* Of the pages, for every query of the call. */
static int64_t n_sealed(const nb_attn_args *a)
{
    return nb_kv_n_sealed(a->kv.format, a->pos0);
}

/* A2 over the head dimension. */
static float float_score(const nb_attn_args *a, const float *q, int64_t p)
{
    float sum = 0;
    for (int64_t begin = 0; begin < a->kv.head_dim; begin += NB_CHUNK_K) {
        float chunk = 0;
        for (int64_t d = begin; d < a->kv.head_dim && d < begin + NB_CHUNK_K; d++)
            chunk = fmaf(q[d], nb_ref_key(&a->kv, a->kv_head, n_sealed(a), p, d), chunk);
        sum += chunk;
    }
    return sum;
}

/* A3's rule for activations, the head being one group. Returns the scale. */
static float quantize_query(const float *q, int64_t n, int bits, int *code)
{
    const float qmax = bits == 8 ? 127.0f : 32639.0f;
    uint32_t top = 0;
    for (int64_t d = 0; d < n; d++) {
        const uint32_t b = nb_f32_bits(q[d]) & 0x7fffffffu;
        top = b > top ? b : top;
    }
    const float absmax = nb_f32_from_bits(top);
    const bool bad = top >= 0x7f800000u, none = absmax < 0x1p-100f;
    for (int64_t d = 0; d < n; d++) {
        const float c = bad || none ? 0 : rintf(q[d] * (qmax / absmax));
        code[d] = (int)(c > qmax ? qmax : c < -qmax ? -qmax : c);
    }
    return bad ? nb_f32_from_bits(0x7fc00000u) : none ? 0 : absmax / qmax;
}

/* A3 over the head dimension, one segment. */
static float int_score(const nb_attn_args *a, const int *code, float scale, int64_t p)
{
    int64_t isum = 0;
    for (int64_t d = 0; d < a->kv.head_dim; d++)
        isum += (int64_t)code[d] * nb_ref_key_code(&a->kv, a->kv_head, p, d);
    assert(isum >= INT32_MIN && isum <= INT32_MAX);
    return (float)(int32_t)isum * (scale * nb_ref_key_scale(&a->kv, a->kv_head, p));
}

/* A2 over the visible cells [begin, end) of the split at `first`, element d. */
static float weighted_value(const nb_attn_args *a, const float *e, int64_t first, int64_t begin,
                            int64_t end, int64_t d)
{
    float sum = 0;
    for (int64_t cut = first; cut < end; cut += NB_CHUNK_K) {
        float chunk = 0;
        for (int64_t p = cut < begin ? begin : cut; p < end && p < cut + NB_CHUNK_K; p++)
            chunk = fmaf(e[p - first], nb_ref_value(&a->kv, a->kv_head, n_sealed(a), p, d), chunk);
        sum += chunk;
    }
    return sum;
}

/* A1 over the cells of a split: cell c in lane c mod 16. */
static float sum_of(const float *e, int64_t begin, int64_t end)
{
    float lane[16] = {0};
    for (int64_t c = begin; c < end; c++)
        lane[c % 16] += e[c];
    for (int half = 8; half >= 1; half /= 2)
        for (int j = 0; j < half; j++)
            lane[j] += lane[j + half];
    return lane[0];
}

/* The first position that a query at `pos` sees. */
static int64_t first_seen(const nb_attn_args *a, int64_t pos)
{
    return a->window > 0 && a->window <= pos ? pos + 1 - a->window : 0;
}

/* m_j, l_j, o_j of one query head at position `pos` for the split at `first`. */
static void attend_split(const nb_attn_args *a, const nb_attn_part *part, int row, int64_t first,
                         int64_t pos, const float *q)
{
    const int64_t seen = first_seen(a, pos), begin = seen > first ? seen : first;
    const int64_t end = pos + 1 < first + NB_KV_SPLIT ? pos + 1 : first + NB_KV_SPLIT;
    const int64_t head_dim = a->kv.head_dim;
    if (begin >= end)
        return;
    float e[NB_KV_SPLIT], scaled[NB_ATTN_MAX_DIM], max = -INFINITY, q_scale = 0;
    int code[NB_ATTN_MAX_DIM];
    for (int64_t d = 0; d < head_dim; d++)
        scaled[d] = q[d] * a->scale;
    if (a->q_bits > 0)
        q_scale = quantize_query(scaled, head_dim, a->q_bits, code);
    for (int64_t p = begin; p < end; p++) {
        const float s = a->q_bits > 0 ? int_score(a, code, q_scale, p) : float_score(a, scaled, p);
        e[p - first] = s;
        max = s > max ? s : max;
    }
    for (int64_t p = begin; p < end; p++)
        e[p - first] = nb_expf(e[p - first] - max);
    part->m[row] = max;
    part->l[row] = sum_of(e, begin - first, end - first);
    for (int64_t d = 0; d < head_dim; d++)
        part->o[row * part->row_floats + d] = weighted_value(a, e, first, begin, end, d);
}

/* Where token t, query head j of the group, has its row in q and out. */
static int64_t row_at(const nb_attn_args *a, int t, int j)
{
    return t * a->ld + ((int64_t)a->kv_head * a->n_group + j) * a->kv.head_dim;
}

static void attn_splits_ref(const nb_attn_args *a, int64_t begin, int64_t end, float *parts)
{
    assert(a->n_q * a->n_group <= NB_ATTN_ROWS && a->kv.head_dim <= NB_ATTN_MAX_DIM);
    assert(a->q_bits == 0 || a->kv.format == NB_KV_INT8);
    assert(n_sealed(a) == nb_kv_n_sealed(a->kv.format, a->pos0 + a->n_q - 1));
    const int64_t split0 = nb_attn_first_position(a) / NB_KV_SPLIT;
    for (int64_t i = begin; i < end; i++) {
        const nb_attn_part part = nb_attn_part_of(a, parts, i);
        for (int t = 0; t < a->n_q; t++)
            for (int j = 0; j < a->n_group; j++)
                attend_split(a, &part, t * a->n_group + j, (split0 + i) * NB_KV_SPLIT, a->pos0 + t,
                             a->q + row_at(a, t, j));
    }
}

/* One query head at position `pos`. */
static void merge_row(const nb_attn_args *a, const float *parts, int row, int64_t pos, float *out)
{
    const int64_t split0 = nb_attn_first_position(a) / NB_KV_SPLIT;
    const int64_t begin = first_seen(a, pos) / NB_KV_SPLIT, end = pos / NB_KV_SPLIT + 1;
    float max = -INFINITY;
    for (int64_t j = begin; j < end; j++) {
        const float m = nb_attn_part_of(a, (float *)parts, j - split0).m[row];
        max = m > max ? m : max;
    }
    for (int64_t d = 0; d < a->kv.head_dim; d++) {
        float L = 0, O = 0;
        for (int64_t j = begin; j < end; j++) {
            const nb_attn_part part = nb_attn_part_of(a, (float *)parts, j - split0);
            const float w = nb_expf(part.m[row] - max);
            L = fmaf(part.l[row], w, L);
            O = fmaf(part.o[row * part.row_floats + d], w, O);
        }
        out[d] = O / L;
    }
    if (nb_kv_rotates(a->kv.format, a->kv.head_dim))
        nb_hadamard(out, a->kv.head_dim);
}

static void attn_merge_ref(const nb_attn_args *a, const float *parts)
{
    for (int t = 0; t < a->n_q; t++)
        for (int j = 0; j < a->n_group; j++)
            merge_row(a, parts, t * a->n_group + j, a->pos0 + t, a->out + row_at(a, t, j));
}

static void attention_ref(const nb_attn_args *a)
{
    float *parts = a->scratch + NB_ATTN_AT_PARTS;
    attn_splits_ref(a, 0, nb_attn_n_splits(a), parts);
    attn_merge_ref(a, parts);
}

void nb_kernels_ref_attn(nb_kernels *k)
{
    k->attention = attention_ref;
    k->attn_splits = attn_splits_ref;
    k->attn_merge = attn_merge_ref;
}
