/* A quantizer chooses codes for weights: format and encoder are separate choices. To add one: a
 * const nb_quantizer in its own file, and a line in quantizers.def. */
#ifndef NB_QUANT_QUANTIZER_H
#define NB_QUANT_QUANTIZER_H

#include "numeric/format.h"

/* What calibration has to gather before a method can choose. */
typedef enum { NB_STAT_NONE } nb_stat;

/* Rows of one matrix in full precision; all values are finite. */
typedef struct {
    const float *weight; /* [n_rows][n_cols] */
    int64_t n_rows, n_cols;
} nb_quant_job;

typedef struct {
    const char *name;
    const char *source; /* the paper it comes from */
    nb_stat needs;
    /* Fills codes, scales and zero points of `out`, which has the job's shape. Called by several
     * threads at once, for different rows. */
    nb_status (*encode)(const nb_quant_job *job, nb_mat *out, nb_err *err);
} nb_quantizer;

/* All of them, ending with NULL. */
extern const nb_quantizer *const nb_quantizers[];

/* NB_USAGE lists the names. */
nb_status nb_quantizer_by_name(const nb_quantizer **out, const char *name, nb_err *err);

#endif
