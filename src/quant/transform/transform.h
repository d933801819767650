/* A transform changes the weights of a block without changing what the block computes, so that they
 * can be quantized with less loss: scales are moved between a linear layer and what comes before
 * it. To add one: a const nb_transform in its own file, and a line in transforms.def.
 *
 * Where scales can go, with s_j for input channel j of the linear (its columns are multiplied by
 * s_j, and what feeds the channel is divided by it):
 *
 *   q, k, v      from the gain of the attention norm
 *   o            from the rows of v; heads that share a value head share its s
 *   gate, up     from the gain of the FFN norm
 *   down         from the rows of up (SwiGLU is linear in it) */
#ifndef NB_QUANT_TRANSFORM_TRANSFORM_H
#define NB_QUANT_TRANSFORM_TRANSFORM_H

#include "model/model.h"
#include "quant/encode/quantizer.h"
#include "quant/transform/changes.h"

/* The points of a block where linear layers read. */
typedef enum { NB_AT_ATTN, NB_AT_O, NB_AT_FFN, NB_AT_DOWN, NB_N_POINTS } nb_point;
/* "q, k, v", "o", ... */
const char *nb_point_name(nb_point point);
/* The linears that read at a point: *n of them, from the returned one on. */
nb_linear_id nb_point_linears(nb_point point, int *n);
/* Channels at a point, and what they are divided through: channel j by way of source
 * nb_point_source(j), which is a row of v that feeds all heads of a group at NB_AT_O, else j. */
int64_t nb_point_n_cols(const nb_config *c, nb_point point);
int64_t nb_point_n_sources(const nb_config *c, nb_point point);
int64_t nb_point_source(const nb_config *c, nb_point point, int64_t j);

/* One block in full precision. Weights that are held are changed in place; of others, what is done
 * to them is kept. */
typedef struct {
    const nb_config *config;
    nb_algebra *la;
    const nb_method *method;     /* how the codes will be chosen; its encode_rows or rounding may
                                    be tried out */
    float *weight[NB_N_LINEARS]; /* [n_rows][n_cols]; NULL: */
    nb_rows rows[NB_N_LINEARS];  /* gives them, with what has been done to them so far, */
    nb_changes *changes[NB_N_LINEARS]; /* which goes here */
    float *bias[NB_N_LINEARS]; /* [n_rows]; NULL: none. v's and up's are divided with the rows */
    const nb_weight
        *to[NB_N_LINEARS];   /* the planned format; NULL: stays as it is (not quantized) */
    float *gain[2];          /* of the attention and the FFN norm, [d_model] */
    nb_float_type gain_type; /* as they will be stored: the divided gain is rounded to it first,
                                and s becomes gain / rounded gain, so that nothing is lost */
    nb_input_stats *stats[NB_N_POINTS]; /* of the inputs, rescaled with them: h, held_h, cross,
                                           means, maxima, sample; those of the point at hand */
    const char *options;                /* after the colon of "awq:clip=off"; "" without */
} nb_transform_job;

typedef struct {
    double before[NB_N_POINTS], after[NB_N_POINTS]; /* relative loss of rounding, tr(E H E^T) over
                                                       tr(W H W^T); NaN: not tried */
    char note[NB_N_POINTS][80];
} nb_transform_result;

typedef struct {
    const char *name, *source, *summary;
    unsigned needs; /* of nb_stat, at every point */
    nb_status (*check)(const char *options, nb_err *err);
    /* Does what there is to do at a point; points come in their order. */
    nb_status (*apply_at)(const nb_transform_job *job, nb_point point, nb_transform_result *result,
                          nb_err *err);
    /* Bytes that this takes, beside weights that are held and statistics. */
    int64_t (*bytes_at)(const nb_config *c, nb_point point, int n_threads);
    /* How many rows of a linear with n_rows are rounded in all, candidate by candidate, where the
     * largest linear of its point has most_rows: what time goes with. */
    double (*rows_tried)(const char *options, int64_t most_rows, int64_t n_rows);
    /* The option that leaves out what is done to all rows once scales are chosen; NULL: nothing is.
     */
    const char *without_last;
} nb_transform;

/* All of them, ending with NULL. */
extern const nb_transform *const nb_transforms[];
/* NB_USAGE lists the names. *options points into `text`, after the colon. */
nb_status nb_transform_by_name(const nb_transform **out, const char **options, const char *text,
                               nb_err *err);

/* Result of no point yet. */
nb_transform_result nb_transform_result_none(void);
/* At all points, whose statistics are all there. */
nb_status nb_transform_apply(const nb_transform *t, const nb_transform_job *job,
                             nb_transform_result *result, nb_err *err);

/* The next option of a list "clip=off,duo": false at its end. */
bool nb_transform_option(const char **at, nb_method_option *out);
/* NB_USAGE for an option that a transform does not have; `known` lists those that it has. */
nb_status nb_transform_no_option(const char *transform, const nb_method_option *o,
                                 const char *known, nb_err *err);

/* For transforms: rows [row, row + n) of a linear as they are by now, in `room` [n][n_cols] where
 * the weight is not held (nb_rows_get). */
nb_status nb_transform_rows(const nb_transform_job *job, nb_linear_id id, int64_t row, int64_t n,
                            float *room, const float **out, nb_err *err);
/* Rows that are taken at a time: all, where they are held. */
int64_t nb_transform_strip(const nb_transform_job *job, nb_linear_id id);

/* The largest weights that s at a point meets, which bound it. */
typedef struct {
    nb_point point;
    float *most, *fed; /* by column; by what feeds it */
} nb_transform_bounds;
/* Looks through all weights of the point, and those that feed it. */
nb_status nb_transform_bounds_find(nb_transform_bounds *b, const nb_transform_job *job,
                                   nb_point point, nb_err *err);
void nb_transform_bounds_free(nb_transform_bounds *b);

/* For transforms: makes of s [n_cols] what nb_transform_move would apply, so that candidates are
 * tried as they will be.
 *   - Channels with one source share the geometric mean of their s.
 *   - s lies in [1/4096, 4096], and makes no weight or bias larger than 32768; 1 where that cannot
 *     be, and for a NaN.
 *   - Where a linear that changes is not quantized, s is a power of two: its 16-bit floats take
 *     those without loss.
 *   - s is gain / rounded divided gain, and 1 where the gain is 0 or no normal number. */
void nb_transform_settle(const nb_transform_job *job, const nb_transform_bounds *b, float *s);

/* For transforms: divides what feeds a point's channels by s and multiplies the columns of its
 * linears by it; rescales the statistics. s is settled first; on return it holds what was really
 * applied. Once a point, before anything else is done to its weights. On failure nothing has
 * changed but s. */
nb_status nb_transform_move(const nb_transform_job *job, nb_point point, float *s, nb_err *err);

#endif
