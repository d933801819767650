/* Packing of weights and activations, and matrix products run on the pool: written once over the
 * table's micro-kernels. Shapes: y [n_tok, n_rows] = x [n_tok, n_cols] * W^T. */
#ifndef NB_KERNEL_GEMM_H
#define NB_KERNEL_GEMM_H

#include "base/pool.h"
#include "base/slab.h"
#include "kernel/kernel.h"

/* ---- weights ---- */

/* Describes the panels of a matrix like `m` (its codes, scales and zeros are not looked at). */
void nb_panels_plan(nb_panels *out, const nb_mat *m);
int64_t nb_panels_bytes(const nb_panels *p);
/* Allocates what the plan needs: in the slab, or alone when it is NULL. Free with nb_panels_free;
 * `{0}` is fine there, and panels in a slab go with it. */
nb_status nb_panels_alloc(nb_panels *p, nb_slab *slab, nb_err *err);
void nb_panels_free(nb_panels *p);
/* Fills the panels from the matrix they were planned for. */
nb_status nb_panels_pack(nb_panels *p, const nb_mat *m, nb_pool *pool, nb_err *err);
/* y[0, n_cols) = row r, dequantized as the format decodes it. */
void nb_panels_row(const nb_panels *p, int64_t r, float *y);

/* ---- activations ---- */

/* The three compute modes of the contract (A7). */
typedef enum { NB_COMPUTE_F, NB_COMPUTE_I8, NB_COMPUTE_I16 } nb_compute;
const char *nb_compute_name(nb_compute c); /* "f", "i8", "i16" */

/* What is done to the rows of x before they are packed.
 *
 * Activations that are FP8 (A7): E4M3 under a scale for each `group` columns of a token (0: all of
 * them), scale = absmax / 448, code = e4m3(x * (448 / absmax)); or under one that is given, codes
 * then saturate. x becomes fl(code * scale). absmax < 2^-100: zeros.
 *
 * `integer`: codes of 8 bits under a scale that is given, in mode i8 (A3):
 * code = clamp(rne(x * fl(1 / scale)), -127, 127). x becomes the code, which packing takes as it
 * is. */
typedef struct {
    bool on;
    int64_t group;
    float scale; /* 0: by absmax; given ones lie in [2^-100, 2^100] */
    bool integer;
} nb_xround;

/* y[0, n) = x rounded. Inf or NaN in x: NaN in its group, and false. y may be x. */
bool nb_round_row(float *y, const float *x, int64_t n, const nb_xround *how);

/* How activations must be packed to meet a weight. Weights with equal layouts share a packing. */
typedef struct {
    nb_compute mode;
    int64_t n_cols, k_pad;
    int64_t x_seg_len;  /* integer modes: columns that share an activation scale */
    int64_t seg_len;    /* joint segment with the weight's */
    int32_t zero_const; /* of the weight; 0 when its zero points vary */
    nb_xround round;    /* what is done to rows before they are packed, by the caller */
} nb_xlayout;

/* The layout for a weight in the wanted mode; falls back to NB_COMPUTE_F, and says so in
 * layout->mode, when the weight has no codes or its segments do not nest with the activations'.
 * Groups: per_token in i8 gives one scale a row, else max(32, min(weight segment, 128)) columns.
 * i16 always takes groups, because a whole row of 16-bit products does not fit in int32. */
void nb_xlayout_for(nb_xlayout *layout, const nb_panels *w, nb_compute wanted, bool per_token);
bool nb_xlayout_equal(const nb_xlayout *a, const nb_xlayout *b);

/* Packed activations of n_tok tokens; everything lives in one caller-provided buffer. */
typedef struct {
    nb_xlayout layout;
    int64_t n_tok, n_tiles;
    nb_xtile *tiles;
    int64_t *tile_first;
    uint8_t *staging; /* of each tile */
    int64_t staging_bytes;
} nb_xpacked;

/* Bytes of the buffer for at most n_tok tokens of any layout with n_cols columns. */
int64_t nb_xpack_bytes(int64_t n_cols, int64_t n_tok);
/* Lays out the buffer, aligned to 64 bytes, for n_tok tokens: tiles of rows when the machine has a
 * unit for them and n_tok is worth it, else of panels. Nothing is packed yet. */
void nb_xpack_plan(nb_xpacked *out, const nb_xlayout *layout, const nb_kernels *k, int64_t n_tok,
                   void *buffer);
/* Packs tile i from its first token's row at x (row t at x + t * ld). Returns false if Inf or NaN
 * met an integer mode: those tokens' outputs will be NaN, as the contract says. Different tiles may
 * be packed at once. */
bool nb_xpack_tile(const nb_xpacked *p, const nb_kernels *k, int64_t i, const float *x, int64_t ld);
/* Both, for all tiles, on the pool. x is the row of the first token. */
bool nb_xpack(nb_xpacked *out, const nb_xlayout *layout, const nb_kernels *k, nb_pool *pool,
              const float *x, int64_t ld, int64_t n_tok, void *buffer);

/* ---- products ---- */

typedef struct {
    const nb_panels *w;
    float *y; /* token t at y + t * ld */
    int64_t ld;
} nb_gemm_job;

#define NB_GEMM_MAX_JOBS 8

/* How many panels of w make a good chunk of work for n_tok tokens: enough that handing it out costs
 * little, few enough that no thread waits long for another's last one. */
int64_t nb_gemm_chunk_panels(const nb_panels *w, int64_t n_tok);
/* Rows [16 * begin, 16 * end) of the job's weight, for all tokens. Different panels may run at
 * once. */
void nb_gemm_panels(const nb_kernels *k, const nb_xpacked *x, const nb_gemm_job *job, int64_t begin,
                    int64_t end);

/* All jobs on the same activations in one run of the pool. */
void nb_gemm(const nb_kernels *k, nb_pool *pool, const nb_xpacked *x, const nb_gemm_job *jobs,
             int n_jobs);

#endif
