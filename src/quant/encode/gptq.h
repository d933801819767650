/* The second-order encoders: gptq, gptaq and qronos. They choose codes column after column, and let
 * the columns still to come make up for the error of those already chosen, as the second moments H
 * of a layer's inputs say (GPTQ, arXiv:2210.17323, in the LDL form of QuIP, arXiv:2307.13304).
 *
 * With H' = R R^T, R upper triangular, the loss of a row e = w - q is a sum of squares,
 *
 *   e H' e^T = sum over k of R[k][k]^2 (t_k - q_k)^2,
 *   t_k = w_k + sum over i < k of e_i M[i][k],   M[i][k] = R[i][k] / R[k][k]
 *
 * so each q_k in turn is the value nearest to t_k. All of this runs on the pool; results depend
 * neither on its threads nor on the instruction set. */
#ifndef NB_QUANT_ENCODE_GPTQ_H
#define NB_QUANT_ENCODE_GPTQ_H

#include "quant/encode/quantizer.h"

/* In which order columns are chosen. Formats do not change: scales belong to the same columns. */
typedef enum {
    NB_ORDER_NONE,  /* as they are stored */
    NB_ORDER_DESC,  /* by descending diagonal of H, ties by index: "act-order" */
    NB_ORDER_GROUP, /* spans of the grid by their largest diagonal, columns inside a span likewise:
                       a span stays together, so that its scales can be chosen when it is reached */
} nb_gptq_order;

/* What the squared error of a weight counts while scales are fitted. */
typedef enum {
    NB_WEIGH_DIAG,  /* H[k][k]: what it costs if nothing makes up for it */
    NB_WEIGH_PIVOT, /* R[k][k]^2 = 1 / inverse(H')[k][k] of the columns left: what it costs when all
                       later columns do */
    NB_WEIGH_NONE,
} nb_gptq_weigh;

/* What is done about inputs that are not those of the full-precision model. */
typedef enum {
    NB_MOVE_NONE,
    NB_MOVE_STEPWISE, /* gptaq: each column hands its own part of the mismatch to later ones */
    NB_MOVE_FIRST,    /* qronos: weights move to the least-squares solution before rounding */
} nb_gptq_move;

typedef struct {
    nb_gptq_order order;
    nb_gptq_weigh weigh;
    nb_gptq_move move;
    nb_fit fit;
    bool dynamic;    /* scales of a span are fitted to t when the recursion reaches it; else all of
                        them before it starts, to the weights */
    double damp;     /* share of the mean diagonal that is added to the diagonal */
    double shrink;   /* of H towards its diagonal; below 0: chosen on held-out tokens */
    double strength; /* of the move, 0 to 1 (alpha, beta); below 0: chosen likewise */
    int polish;      /* sweeps of coordinate descent afterwards */
} nb_gptq_options;

/* NB_USAGE names what is wrong with the options of a method. */
nb_status nb_gptq_options_parse(nb_gptq_options *out, const nb_method *method, nb_err *err);

/* ---- H' and its factor ---- */

/* The sums that codes are chosen by: h, and `more` of other tokens where that is not NULL. */
typedef struct {
    const nb_sym *h, *more;
    const double *cross, *more_cross; /* with a move: [n][n], row of x0, column of x */
} nb_moments;

static inline double nb_moments_h(const nb_moments *m, int64_t i, int64_t j)
{
    const int64_t a = i < j ? i : j, b = i < j ? j : i;
    return nb_sym_row(m->h, a)[b] + (m->more != NULL ? nb_sym_row(m->more, a)[b] : 0);
}
/* The same on the diagonal, also where h and more rest. */
static inline double nb_moments_diag(const nb_moments *m, int64_t i)
{
    return nb_sym_diag(m->h, i) + (m->more != NULL ? nb_sym_diag(m->more, i) : 0);
}
/* Of D = sum of (x0 - x) x^T. */
static inline double nb_moments_mismatch(const nb_moments *m, int64_t i, int64_t j)
{
    const int64_t at = i * m->h->n + j;
    const double cross = m->cross[at] + (m->more_cross != NULL ? m->more_cross[at] : 0);
    return cross - nb_moments_h(m, i, j);
}

/* `{0}` is empty. */
typedef struct {
    int64_t n;
    nb_sym r;          /* the factor of H' with columns in `order` */
    int64_t *order;    /* [n]: which column is the k-th */
    bool permuted;     /* order is not 0, 1, 2 ... */
    float *importance; /* [n], by column, for nb_grid_fit; largest about 1 */
    bool weighed;      /* importance says anything */
    bool blind;        /* H was not usable: M is 0, so that codes are rounded to nearest */
    double scale;      /* H was multiplied by this power of two */
    double damp;       /* what it took */
    double mean;       /* of the diagonal of H, scaled: damping is a share of it */
} nb_feedback;

nb_status nb_feedback_init(nb_feedback *f, int64_t n, nb_err *err);
void nb_feedback_free(nb_feedback *f);
/* The factor alone, which nb_feedback_make makes anew: where there is no room for it beside what
 * comes next. */
void nb_feedback_drop_factor(nb_feedback *f);
/* Orders, shrinks, damps and factors H, for a grid with spans of span_len columns. Damping grows
 * until the factor exists. May be called again. */
nb_status nb_feedback_make(nb_feedback *f, nb_algebra *la, const nb_moments *moments,
                           const nb_gptq_options *options, double shrink, int64_t span_len,
                           nb_err *err);
/* full [n][n] = H' in `order`, both triangles, in binary32: what nb_feedback_make factored. */
nb_status nb_feedback_full(const nb_feedback *f, nb_algebra *la, const nb_moments *moments,
                           double shrink, float *full, nb_err *err);

/* ---- one matrix ---- */

/* Polishing takes as much room as the recursion, and can come after it when all rows are through.
 */
typedef enum { NB_GPTQ_ALL, NB_GPTQ_RECURSE, NB_GPTQ_POLISH } nb_gptq_phase;

typedef struct {
    nb_algebra *la;
    const nb_gptq_options *options;
    const nb_feedback *feedback;
    const nb_moments *moments; /* that feedback was made of, with this `shrink` */
    double shrink, strength;
    const float *weight; /* [out->n_rows][out->n_cols] */
    nb_mat *out;
    bool refit;        /* polishing may change scales, too */
    bool keep_scales;  /* out has scales already */
    const float *full; /* nb_feedback_full, for polishing; NULL: it is made */
    nb_gptq_phase phase;
    uint8_t *code; /* [n_rows][n_cols]: from the recursion, which then leaves the codes of `out`
                      alone, to polishing */
} nb_gptq_job;

/* Chooses the codes of one matrix, and its scales. On failure `out` is unspecified. Rows do not
 * depend on each other: a matrix may be given in strips, unless nb_gptq_is_whole. */
nb_status nb_gptq_encode(const nb_gptq_job *job, nb_err *err);
/* The same, whole, with a loss in which rows meet, tr(G E H E^T), G [n_rows, n_rows] of the outputs
 * (YAQA, arXiv:2505.22988). With G' = S S^T, S upper triangular, and E_i the error of row i, rows
 * are encoded in turn, a few at a time, each against
 *
 *   t_k = w_k + sum over i < k of E_i S[i][k] / S[k][k],
 *
 * by the recursion and the polishing above. G' is G shrunk and damped like H. NB_MOVE_STEPWISE has
 * no target that could be changed, and is not for this; nor are matrices with nb_gptq_is_whole. */
nb_status nb_gptq_encode_by_outputs(const nb_gptq_job *job, const nb_sym *g_g, nb_err *err);
/* Whether scales of `out` depend on all of its rows. */
nb_status nb_gptq_is_whole(const nb_mat *out, bool *whole, nb_err *err);

/* ---- for gptq*.c ---- */

/* What the recursion works on: rows in the order of the feedback. */
typedef struct {
    const nb_gptq_job *job;
    nb_grid grid;
    int64_t n_rows, n;
    bool dynamic;
    const float *base; /* [n_rows][n]: what q is to be like: weights, moved ones with
                          NB_MOVE_FIRST */
    float *moved;      /* base, where it is not the job's weights */
    float *t;          /* [n_rows][n] */
    uint8_t *code;     /* [n_rows][n], by column */
} nb_recursion;

/* base += strength' base D H'^-1, D = cross - H (NB_MOVE_FIRST); or t += the strictly triangular
 * part of it that gptaq hands on (NB_MOVE_STEPWISE). */
nb_status nb_gptq_move_first(nb_recursion *c, nb_err *err);
nb_status nb_gptq_move_stepwise(nb_recursion *c, nb_err *err);
/* Sweeps of coordinate descent over the codes. */
nb_status nb_gptq_polish(nb_recursion *c, nb_err *err);

#endif
