/* What rounding would make of the linears of a point, for transforms that try out scales: rows of
 * each are multiplied by s, rounded to the planned format as the method would (nb_fit), and read
 * back. Large matrices are tried on some of their rows, spread evenly. */
#ifndef NB_QUANT_TRANSFORM_TRIAL_H
#define NB_QUANT_TRANSFORM_TRIAL_H

#include "quant/transform/transform.h"

typedef struct {
    nb_linear_id id;
    const float *weight; /* [n_rows][n_cols]: all rows, or `copy` */
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
    float *importance; /* [n_cols], scratch */
} nb_trial;

nb_status nb_trial_init(nb_trial *t, const nb_transform_job *job, nb_point point, int64_t max_rows,
                        nb_err *err);
void nb_trial_free(nb_trial *t);
/* out [n_rows][n_cols] = the values of linear i's rows times s once they are rounded; s NULL: 1.
 * Runs on the pool. */
void nb_trial_round(nb_trial *t, int i, const float *s, float *out);

/* Whether scales are to be searched for: anything but plain rtn does. */
bool nb_trial_searches(const nb_method *method);

#endif
