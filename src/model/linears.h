/* Linear layers that read the same rows, with what comes before and after them, in one run of the
 * pool: norm and quantization by tiles of tokens, then the products by strips of outputs, each
 * strip finished by the bias and by what follows it. Private to the forward pass. */
#ifndef NB_MODEL_LINEARS_H
#define NB_MODEL_LINEARS_H

#include "model/forward.h"

#define NB_LINEARS_MAX 3

/* What follows the products. */
typedef enum {
    NB_THEN_NOTHING,
    NB_THEN_ADD,   /* residual += y[0] */
    NB_THEN_SWIGLU /* y[0] = SwiGLU of y[0] (gate) and y[1] (up), of equal shapes */
} nb_then;

/* y[j] = norm(x) W[j]^T + bias[j] for n_rows rows. x [n_rows, n_cols], y[j] [n_rows, W[j]'s rows];
 * rows are contiguous. `gain` NULL: x is taken as it is. */
typedef struct {
    int n;
    const nb_linear *w[NB_LINEARS_MAX];
    float *y[NB_LINEARS_MAX];
    const float *x, *gain;
    nb_then then;
    float *residual;
    /* for the watcher: which operations these are */
    int64_t layer;
    nb_op norm_op, op[NB_LINEARS_MAX], then_op;
} nb_linears;

/* Bytes of work->packed that a run needs. */
int64_t nb_linears_packed_bytes(const nb_config *c, int64_t max_tokens);

/* Returns false if Inf or NaN met an integer product: those rows are NaN. */
bool nb_linears_run(nb_work *w, const nb_linears *l, int64_t n_rows);

#endif
