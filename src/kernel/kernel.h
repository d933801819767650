/* The one dispatch table of everything fast, with a contract on every slot.
 *
 * Every slot is filled with the scalar reference (ref_*.c), then overridden by what the CPU has and
 * the mask allows. All variants of a slot give the same bits: each result is the expression of the
 * arithmetic contract (docs/numerics.md; A0-A12), which depends on the problem only.
 *
 * Kernels are single-threaded functions over a range; they allocate nothing, read nothing outside
 * their arguments and handle every tail themselves. They run under the floating-point environment
 * of base/fpenv.h (the pool sets it). Pointers need the alignment of their type only. */
#ifndef NB_KERNEL_KERNEL_H
#define NB_KERNEL_KERNEL_H

#include "kernel/cpu.h"
#include "numeric/format.h"

/* ---- A2, A3: matrix products on packed weights ---- */

#define NB_PANEL_ROWS   16 /* weight rows interleaved in a panel: one 512-bit register of outputs */
#define NB_TILE_MAX     12 /* tokens in a register tile */
#define NB_CHUNK_K      128                              /* A2: columns in one chain of FMAs */
#define NB_SEG_MAX      65536                            /* A3: columns in one integer sum */
#define NB_GEMM_SCRATCH (4 * NB_CHUNK_K * NB_PANEL_ROWS) /* floats: chunks of 4 panels */

typedef enum { NB_PANEL_F32, NB_PANEL_BF16, NB_PANEL_F16, NB_PANEL_U4, NB_PANEL_U8 } nb_panel_kind;

/* A matrix packed for the kernels, in panels of 16 rows (missing rows of the last are zero).
 *
 * Plain kinds: panel p, column k, row i: element [(p * n_cols + k) * 16 + i].
 * U8: panel p is k_pad / 4 groups of 64 bytes; byte 4 * i + j of group g is column 4 * g + j of
 *     row i, stored as code + 128.
 * U4: panel p is k_pad / 8 groups of 64 bytes; byte 4 * i + j of group g holds column 8 * g + j of
 *     row i in its low nibble and column 8 * g + 4 + j in its high one, stored as code - code_lo.
 * k_pad is n_cols rounded up to a multiple of 8; padding codes are 0.
 * scales, zeros, mins: [panel][segment][16]. value = s * (u - z) + m, u the stored code. */
typedef struct {
    nb_panel_kind kind;
    int64_t n_rows, n_cols, k_pad, n_panels;
    int64_t panel_bytes; /* of codes */
    uint8_t *codes;
    /* U4 and U8 */
    int64_t seg_len, n_segs; /* columns that share a scale */
    nb_float_type scale_type;
    void *scales;
    int32_t zero_const; /* z of every segment when zeros is NULL */
    int16_t *zeros;     /* or one for each row and segment */
    void *mins;         /* as scales; NULL: all zero */
} nb_panels;

/* Activations of up to NB_TILE_MAX tokens, packed so that each is a broadcast memory operand.
 * float: element [k * n_tok + t].
 * int:   plane [k_pad / 4][n_tok][4] of int8, columns past n_cols are 0; `lo` is NULL in mode i8;
 *        x = code * scale with code = hi (i8) or 256 * hi + lo (i16).
 *        scale [n_x_segs][n_tok], xsum [n_segs][n_tok]: sums of codes over each joint segment. */
typedef struct {
    int n_tok;
    const float *f;
    const int8_t *hi, *lo;
    const float *scale;
    const int32_t *xsum;
    int64_t x_seg_len; /* columns that share an activation scale */
    int64_t seg_len;   /* joint segment: min(x_seg_len, weight seg_len, NB_SEG_MAX) */
} nb_xtile;

/* y[t * ldy + r] for rows r of panels [begin, end), tokens t of the tile: A2, weights dequantized
 * to binary32 first where they are codes (fl(s * (u - z)), or fma(s, u - z, m) with mins).
 * `scratch` holds NB_GEMM_SCRATCH floats. The tiles are all of x's n_tiles, tile i
 * writing from y + tile_first[i] * ldy, so that a dequantized chunk serves all tokens. */
typedef void nb_gemm_f_fn(float *y, int64_t ldy, const nb_panels *w, int64_t begin, int64_t end,
                          const nb_xtile *tiles, const int64_t *tile_first, int64_t n_tiles,
                          float *scratch);
/* The same by A3: per joint segment isum = sum of (u - z) * x exactly in int32, then
 * acc = fma((float)isum, fl(s_w * s_x), acc), then with mins
 * acc = fma(m, fl((float)xsum * s_x), acc). Segments ascending from acc = +0. */
typedef void nb_gemm_i_fn(float *y, int64_t ldy, const nb_panels *w, int64_t begin, int64_t end,
                          const nb_xtile *tile);

/* A3 activation codes of one row: for each group of `group` columns (the last may be shorter)
 * absmax by integer comparison, scale = absmax / qmax, inv = qmax / absmax,
 * code = clamp(rne(x * inv)). qmax is 127 with lo == NULL, else 32639 split as x = 256 hi + lo with
 * lo in [-128, 127]. absmax < 2^-100: scale +0, codes 0. Inf or NaN in the group: scale NaN,
 * codes 0, and the call returns false. hi, lo [n]; scale [ceil(n / group)]. */
typedef bool nb_quantize_row_fn(const float *x, int64_t n, int64_t group, int8_t *hi, int8_t *lo,
                                float *scale);

/* ---- A1, A6, A11: small steps; n is any length >= 1 ---- */

/* y = fl(fl(x * r) * g), r = 1 / sqrt(fl(ss / n) + eps), ss by A1 (16 lanes of fma(x, x, lane),
 * element i in lane i mod 16, then the tree 8-4-2-1: lane j += lane j + 8, then 4, 2, 1).
 * y may be x. */
typedef void nb_rmsnorm_fn(float *y, const float *x, const float *g, int64_t n, float eps);
/* y = y + x */
typedef void nb_add_fn(float *y, const float *x, int64_t n);
/* y = fl(fl(g / fl(1 + exp(-g))) * u). y may be g or u. */
typedef void nb_swiglu_fn(float *y, const float *g, const float *u, int64_t n);
/* Rotates halves in place, for each of n_heads heads of head_dim: with h = rot_dim / 2, i < h,
 * a = x[i], b = x[i + h]:  x[i] = fma(a, cos[i], -fl(b * sin[i])),
 * x[i + h] = fma(b, cos[i], fl(a * sin[i])). Elements past rot_dim stay. */
typedef void nb_rope_fn(float *x, const float *cos, const float *sin, int64_t n_heads,
                        int64_t head_dim, int64_t rot_dim);
/* y = nb_expf(x), element by element (kernel/math.h). y may be x. */
typedef void nb_exp_fn(float *y, const float *x, int64_t n);
/* max of x (NaN if any is NaN; a zero is +0), and *sum = sum of exp(x - max) by A1 over pieces of
 * 4,096 elements, pieces added ascending in binary64. */
typedef void nb_softmax_stats_fn(const float *x, int64_t n, float *max, double *sum);
/* Sum over i of p_i * (lp_i - lq_i), where lp = fl(fl(p[i] - p_max) - p_logsum), the same for q,
 * p_i = exp(lp): A1 over pieces of 4,096, lane = fma(p_i, fl(lp - lq), lane), pieces in binary64.
 */
typedef double nb_kl_fn(const float *p, float p_max, float p_logsum, const float *q, float q_max,
                        float q_logsum, int64_t n);
/* Index of the largest element, the lowest on ties; NaN never wins (0 if all are NaN). */
typedef int64_t nb_argmax_fn(const float *x, int64_t n);

/* ---- A5, A8: attention over pages ---- */

#define NB_KV_PAGE  32  /* positions in a page */
#define NB_KV_SPLIT 256 /* positions in a split: partial softmaxes are merged in this unit */

/* One layer's cache of one sequence. Position p lives in page table[p / NB_KV_PAGE], at
 * arena + page * page_bytes. In a page, for KV head h:
 *   keys    cell [d][p % 32] at k_offset + h * head_dim * 32 cells   (dimension-major)
 *   values  cell [p % 32][d] at v_offset + h * head_dim * 32 cells   (position-major)
 * Cells are NB_F32 or NB_F16. */
typedef struct {
    uint8_t *arena;
    size_t page_bytes, k_offset, v_offset;
    const int32_t *table;
    nb_float_type cell;
    int n_kv_heads, head_dim;
} nb_kv_view;

/* Stores the keys and values [n_kv_heads * head_dim] of position `pos`, converted to the cell
 * type (round to nearest even). */
typedef void nb_kv_store_fn(const nb_kv_view *kv, int64_t pos, const float *k, const float *v);

/* Causal attention of n_q consecutive tokens of one sequence, at positions pos0, pos0 + 1, ...,
 * for the query heads of one KV head (n_group of them: heads kv_head * n_group + j).
 *
 *   q, out  token t, head hd at [t * ld + hd * head_dim]; out may not overlap q
 *   window  0, or how many positions a query sees, itself included (sliding window)
 *   n_q * n_group <= NB_ATTN_ROWS
 *
 * A5: q' = fl(q * scale). Score of a cell: A2 over the head dimension on the cell's value. Splits
 * of 256 absolute positions; per split over the visible cells: m_j = max, e = nb_expf(fl(s - m_j)),
 * l_j = sum of e by A1 (cell c of the split in lane c mod 16; cells not visible add +0),
 * o_j = A2 over the split's cells in ascending position, chunks cut every 128 positions of the
 * split. A split with no visible cell is skipped. Merge: m = max m_j; j ascending from L = O = +0,
 * w = nb_expf(fl(m_j - m)): L = fma(l_j, w, L), O = fma(o_j, w, O); out = O / L.
 * Cells that a query may not see are never read for it. `scratch` holds
 * nb_attn_scratch_floats(head_dim, pos0 + n_q) floats; head_dim <= NB_ATTN_MAX_DIM. */
#define NB_ATTN_ROWS    24
#define NB_ATTN_MAX_DIM 512
typedef struct {
    const float *q;
    float *out;
    int64_t ld;
    int n_q, n_group, kv_head;
    int64_t pos0, window;
    float scale;
    nb_kv_view kv;
    float *scratch;
} nb_attn_args;
/* Room for q', the scores and chains of one split, and (m_j, l_j, o_j) of every split of
 * n_positions. */
int64_t nb_attn_scratch_floats(int head_dim, int64_t n_positions);
typedef void nb_attention_fn(const nb_attn_args *args);

typedef struct {
    unsigned isa; /* the mask in force */
    nb_gemm_f_fn *gemm_f;
    nb_gemm_i_fn *gemm_i;
    nb_quantize_row_fn *quantize_row;
    nb_rmsnorm_fn *rmsnorm;
    nb_add_fn *add;
    nb_swiglu_fn *swiglu;
    nb_rope_fn *rope;
    nb_exp_fn *exp;
    nb_softmax_stats_fn *softmax_stats;
    nb_kl_fn *kl;
    nb_argmax_fn *argmax;
    nb_kv_store_fn *kv_store;
    nb_attention_fn *attention;
} nb_kernels;

/* Fills every slot from what nb_cpu_isa() & allow has. */
void nb_kernels_init(nb_kernels *k, unsigned allow);

/* The tables below override some slots of *k; called by nb_kernels_init only. */
void nb_kernels_ref_dot(nb_kernels *k);
void nb_kernels_ref_nn(nb_kernels *k);
void nb_kernels_ref_attn(nb_kernels *k);
#if defined(__x86_64__)
void nb_kernels_avx2_dot(nb_kernels *k);
void nb_kernels_avx2_nn(nb_kernels *k);
void nb_kernels_avx2_attn(nb_kernels *k);
void nb_kernels_avx512_dot(nb_kernels *k);
void nb_kernels_avx512_nn(nb_kernels *k);
void nb_kernels_avx512_attn(nb_kernels *k);
#endif

#endif
