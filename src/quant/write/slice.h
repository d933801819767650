/* A piece of one matrix on its way from a format into another: what one thread does at a time.
 * Pieces have a fixed size, so that sums over them do not depend on the number of threads. */
#ifndef NB_QUANT_WRITE_SLICE_H
#define NB_QUANT_WRITE_SLICE_H

#include "quant/encode/quantizer.h"
#include "quant/plan/plan.h"

/* What to do with a weight that is NaN or infinite. */
typedef enum { NB_NONFINITE_REFUSE, NB_NONFINITE_ZERO, NB_NONFINITE_KEEP } nb_nonfinite;

/* The difference between what was and what is. */
typedef struct {
    double max;    /* largest |is - was| */
    double square; /* sum of (is - was)^2 */
    double power;  /* sum of was^2 */
} nb_error_sum;

void nb_error_sum_add(nb_error_sum *sum, const nb_error_sum *more);
/* sqrt(square / power): the noise as a share of the signal; 0 where there is no signal. */
double nb_error_sum_rms(const nb_error_sum *sum);

/* How one matrix is cut: either whole rows, or pieces of a row where rows are long and can be cut
 * anywhere. */
typedef struct {
    int64_t n_rows, n_cols;         /* of the matrix */
    int64_t slice_rows, slice_cols; /* of a slice; the last ones are smaller */
    int64_t n_slices;
} nb_slicing;

void nb_slicing_of(nb_slicing *s, const nb_mat *from, const nb_mat *to);

typedef struct {
    const nb_mat *from;
    nb_mat *to; /* NB_HOW_COPY: ignored */
    nb_how how;
    const nb_method *method; /* never NULL */
    nb_nonfinite nonfinite;
    bool requantize; /* where NB_HOW_REPACK is not exact: use `method` */
    bool survey;     /* only show the rows to the target, whose scales they share (format.h) */
} nb_slice_job;

typedef enum {
    NB_SLICE_FINE,
    NB_SLICE_NONFINITE, /* the source has one at (row, col), and the job refuses it */
    NB_SLICE_OVERFLOW,  /* the target cannot hold the value at (row, col) */
    NB_SLICE_INEXACT,   /* row cannot be repacked */
    NB_SLICE_FAILED,    /* the method said so, in err */
} nb_slice_end;

typedef struct {
    nb_slice_end end;
    int64_t row, col;
    float value;
    int64_t n_zeroed;
    int64_t n_requantized; /* rows */
    nb_error_sum error;
} nb_slice_result;

/* Buffers of one thread. */
size_t nb_slice_scratch_bytes(const nb_slicing *s);

/* Does slice i. With NB_HOW_COPY the source is only looked at; n_zeroed counts what a copy would
 * have to change. err is written only with NB_SLICE_FAILED. */
void nb_slice_run(const nb_slice_job *job, const nb_slicing *s, int64_t i, void *scratch,
                  nb_slice_result *result, nb_err *err);

#endif
