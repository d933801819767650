/* What rounding would make of the linears of a point, for transforms that try out scales: rows of
 * each are multiplied by s, rounded to the planned format as the method would (nb_fit), and read
 * back. Large matrices are tried on some of their rows, spread evenly. */
#ifndef NB_QUANT_TRANSFORM_TRIAL_H
#define NB_QUANT_TRANSFORM_TRIAL_H

#include "quant/transform/transform.h"

typedef struct {
    nb_linear_id id;
    const float *weight; /* [n_rows][n_cols]: all rows where they are held, or `copy` */
    int64_t n_rows;
    float *copy;
    nb_loaded made;
    nb_grid grid;
    bool has_grid;
} nb_trial_linear;

/* `{0}` is empty. */
typedef struct {
    const nb_transform_job *job;
    nb_point point;
    int64_t n_cols, most_rows; /* of the linear with most */
    bool search;               /* the method is not plain rtn: scales are searched for */
    int n;                     /* linears that the plan quantizes, and that are not all zero */
    nb_trial_linear linear[NB_GROUP_LINEARS];
    double power[NB_GROUP_LINEARS]; /* of their outputs, as the transform measures errors: filled by
                                       it; linears with none do not count */
    float *importance;              /* [n_cols], scratch */
} nb_trial;

nb_status nb_trial_init(nb_trial *t, const nb_transform_job *job, nb_point point, int64_t max_rows,
                        nb_err *err);
void nb_trial_free(nb_trial *t);
/* Rows of the linear with most that would be tried. */
int64_t nb_trial_most_rows(const nb_config *c, nb_point point, int64_t max_rows);
/* Where weights are not held, bytes of a trial: rows as they are, and as they are made with their
 * scales, two bytes a weight at most; and of rows as they are read, before and after. */
int64_t nb_trial_bytes(const nb_config *c, nb_point point, int64_t max_rows);
int64_t nb_trial_strip_bytes(const nb_config *c);
/* out [n_rows][n_cols] = the values of linear i's rows times s once they are rounded; s NULL: 1.
 * Runs on the pool. */
void nb_trial_round(nb_trial *t, int i, const float *s, float *out);

/* Whether there is nothing to try: no linear, or none with any power. The note says which. */
bool nb_trial_is_void(const nb_trial *t, char *note, size_t room);

/* s_j = exp(alpha log_x[j] - (1 - alpha) log_w[j]), over the geometric mean of the largest and the
 * smallest of them: only ratios matter. 1 where a logarithm is -DBL_MAX, which stands for that of
 * nothing. log_w NULL: s_j = exp(alpha log_x[j]), likewise. All are [n]. */
void nb_trial_scales(const double *log_x, const double *log_w, double alpha, int64_t n, float *s);

/* Whether scales are to be searched for: anything but plain rtn does. */
bool nb_trial_searches(const nb_method *method);

#endif
