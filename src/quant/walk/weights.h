/* Private to the walk: the weights of the block at hand, in full precision and as they were made,
 * on their way between the source, the frame's slots and the working folder. */
#ifndef NB_QUANT_WALK_WEIGHTS_H
#define NB_QUANT_WALK_WEIGHTS_H

#include "quant/calib/score.h"
#include "quant/pass/distill.h"
#include "quant/walk/walk.h"
#include "quant/write/slice.h"

/* Weights as floats, of one linear. */
typedef struct {
    float *values; /* [n_rows][n_cols] */
    int64_t n;
} nb_floats;

/* Whether what is held out moves the inputs of a point as the rest does. */
typedef struct {
    bool known;
    nb_calib_coverage of;
} nb_coverage;

struct nb_walker;
typedef struct {
    struct nb_walker *w;
    int j;
} nb_walker_place;

typedef struct nb_walker {
    const nb_walk_job *job;
    nb_walk_result *result;
    nb_walk_plan plan;
    nb_streams streams;
    nb_algebra la;
    nb_guide guide;                    /* closed, unless the job is guided */
    nb_guide_plan guide_plan;          /* zero, unless it is */
    nb_config config;                  /* of the whole model */
    bool quantized_flow, has_other;    /* stream 0 is the quantized model; stream 1 the original */
    bool by_block;                     /* the method tunes whole blocks */
    const nb_method *method;           /* the one that needs most */
    unsigned needs, transform_needs;   /* of all methods */
    unsigned point_needs[NB_N_POINTS]; /* of those at a point of the block at hand */
    int64_t layer;
    int64_t index[NB_N_LINEARS]; /* of the plan */
    int64_t gain_index[2], bias_index[NB_N_LINEARS];
    nb_floats weight[NB_N_LINEARS]; /* where they are held: of the group at hand, or, with a
                                    transform, of the block */
    nb_loaded source, made[NB_N_LINEARS];
    nb_walker_place place[NB_N_LINEARS]; /* for rows that are read as they are needed */
    bool in_pieces; /* the transform takes the block in pieces: its weights are not held, */
    nb_changes changes[NB_N_LINEARS]; /* and this is done to them */
    bool rests[NB_N_POINTS];          /* second moments of the point rest in a file */
    nb_spill resting[2];              /* those that choose codes; those held out */
    nb_input_stats stats[NB_N_POINTS];
    nb_coverage coverage[NB_N_POINTS]; /* of the block at hand */
    nb_distill_options distill;        /* where the job asks for it */
    nb_distill_state distill_state;
    int64_t distill_memory, distill_disk;
    double distill_flops;
    bool distilled; /* it is done */
    double done, started;
    char what[64];
    char tuned[120]; /* what the tuning of the block at hand says of it, and its time a weight */
    double tuned_seconds;
} nb_walker;

/* Where the weights of block w->layer are in the plan. */
void nb_walker_find(nb_walker *w);
static inline bool nb_walker_quantizes(const nb_walker *w, int j)
{
    return w->job->plan->how[w->index[j]] == NB_HOW_QUANTIZE;
}
/* Whether streams stop at the points of a block. */
static inline bool nb_walker_takes_parts(const nb_walker *w)
{
    return (w->quantized_flow && !w->by_block) || w->in_pieces;
}
/* How the codes of weight j are chosen. */
static inline const nb_method *nb_walker_method(const nb_walker *w, int j)
{
    return nb_plan_method(w->job->plan, w->index[j], w->job->method);
}
/* Norms and biases into all slots. */
nb_status nb_walker_load_norms(nb_walker *w, nb_err *err);
/* Weight j in full precision into w->weight[j]; refuses what is not finite. */
nb_status nb_walker_load_floats(nb_walker *w, int j, nb_err *err);
void nb_walker_drop_floats(nb_walker *w, int j);
/* The same a few rows at a time: from w->weight[j], where it is held, or from the source, with what
 * the transform has done to them. */
nb_rows nb_walker_rows(nb_walker *w, int j);
/* Whether codes of weight j at a point are to be chosen without holding it: it is large, or there
 * is little memory, and what chooses them can do that. */
bool nb_walker_reads_rows(const nb_walker *w, nb_point point, int j);
/* Empty statistics of a point, for `needs` and the report; and what is made of them in the end. */
nb_status nb_walker_start_stats(nb_walker *w, nb_point point, unsigned needs, nb_err *err);
nb_status nb_walker_end_stats(nb_walker *w, nb_point point, nb_err *err);
/* The statistics of a point where second moments rest: stream 0 is there, and no weights are in
 * memory. */
nb_status nb_walker_gather(nb_walker *w, nb_point point, nb_err *err);
/* Weight j, in full precision and as it was made. */
void nb_walker_forget(nb_walker *w, int j);

/* The source's own weight into a slot. */
nb_status nb_walker_set_original(nb_walker *w, int slot, int j, nb_err *err);
/* The full-precision weight into slot 1: as transformed, because what the other stream feeds the
 * linears is compared with what stream 0 does. */
nb_status nb_walker_set_other(nb_walker *w, int j, nb_err *err);
/* What was made of a weight into slot 0: in mode f, unless the scheme quantizes activations (A7).
 */
nb_status nb_walker_set_made(nb_walker *w, int j, nb_err *err);
/* Frees the weights of a point in all slots. */
void nb_walker_drop_linears(nb_walker *w, nb_point point);

/* Room for weight j in its planned format, all zero. */
nb_status nb_walker_room(nb_walker *w, int j, nb_err *err);
/* A weight that the plan does not quantize, but a transform has changed, into its room. */
nb_status nb_walker_encode_plain(nb_walker *w, int j, nb_err *err);
/* What was made of weight j into the working folder. */
nb_status nb_walker_keep(nb_walker *w, int j, nb_err *err);
/* A changed vector of the plan into the working folder. */
nb_status nb_walker_keep_vector(nb_walker *w, int64_t index, const float *x, nb_err *err);

/* A sweep of stream i with the weights that are in its slot: statistics needs[NB_N_POINTS] (NULL:
 * none) into w->stats, and the results kept. */
nb_status nb_walker_sweep(nb_walker *w, int i, const unsigned *needs, bool keep, nb_err *err);
/* What is known so far into the working folder, so that a later run goes on from there. */
nb_status nb_walker_save(nb_walker *w, nb_err *err);
/* Goes on from a state that fits, or starts anew. */
nb_status nb_walker_resume(nb_walker *w, nb_err *err);
/* Says which weights of the first n layers are in the working folder. */
void nb_walker_mark_made(nb_walker *w, int64_t n);

/* walk/plan.c: what the job asks for, and w->plan. */
nb_status nb_walker_set_up(nb_walker *w, nb_err *err);
/* walk/memory.c: steps as large, and as few points at rest, as the job's limit on memory allows;
 * w->plan.memory may be above it even so. */
void nb_walker_plan_memory(nb_walker *w, int64_t longest, int n_streams);
/* Of the files in which second moments rest. */
int64_t nb_walker_resting_bytes(const nb_walker *w);
/* Columns at a point, and rows of all linears that read there. */
int64_t nb_walker_point_shape(const nb_config *c, nb_point point, int64_t *n_rows);

/* walk/guide.c. What the guide takes, into w->guide_plan and the operations of w->plan; NB_USAGE
 * where it would change nothing. */
nb_status nb_walker_plan_guide(nb_walker *w, nb_err *err);
/* How far it has come, into a state and out of it. */
nb_status nb_walker_put_guide(const nb_walker *w, json_t *state, nb_err *err);
void nb_walker_take_guide(nb_walker *w, const json_t *state);
/* Makes what is missing of it; the streams then weigh their tokens. */
nb_status nb_walker_make_guide(nb_walker *w, nb_err *err);
/* The KL divergence, a token, that the error of weight j as it was made is predicted to add by
 * itself: half the mean of s |E x|^2, over held-out tokens where there are any. NaN without a guide
 * or sums over tokens. A transform that has moved scales into the rows of v or up has changed what
 * s is there, which is not followed. */
nb_status nb_walker_predict(nb_walker *w, nb_point point, int j, const nb_input_stats *stats,
                            double *kl, nb_err *err);

/* walk/distill.c: the scales of all layers, once they are made. What it takes, into the members
 * above and the operations of w->plan; its state; the work itself, which fills result->distilled.
 */
nb_status nb_walker_plan_distill(nb_walker *w, nb_err *err);
nb_status nb_walker_put_distill(const nb_walker *w, json_t *state, nb_err *err);
void nb_walker_take_distill(nb_walker *w, const json_t *state);
nb_status nb_walker_distill(nb_walker *w, nb_err *err);

/* walk/measure.c. What a method has to say of a weight that it has made. */
typedef struct {
    double loss, held_loss; /* relative errors of the outputs; NaN: not known, to be measured */
    double predicted_kl;    /* NaN: not known */
    const char *note;       /* NULL or empty: nothing */
    double seconds;
    bool fell_back; /* of nb_group_result */
} nb_walker_said;
/* Adds an object to the report, or, of a weight that was told of before, puts it in its place. Its
 * floats and what was made of it are there, and, if there are any, the statistics of its inputs. */
nb_status nb_walker_tell(nb_walker *w, nb_point point, int j, const nb_walker_said *said,
                         nb_err *err);
/* The coverage of a point, from its statistics. */
nb_status nb_walker_look(nb_walker *w, nb_point point, nb_err *err);
/* What the report wants of every point that is looked at anyway, beside what methods need. */
#define NB_WALKER_LOOKS ((unsigned)NB_STAT_SAMPLE | (unsigned)NB_STAT_COVERAGE)

/* walk/ranges.c: static scales of activations. Whether a linear of a point waits for one. */
bool nb_walker_waits(const nb_walker *w, nb_point point);
/* How weight j's activations are computed, with the scale that was found. */
nb_act_spec nb_walker_act(const nb_walker *w, int j);
/* Finds the scales of a point from its statistics, which have ranges where one waits. */
void nb_walker_settle_ranges(nb_walker *w, nb_point point);
/* Into a state and out of it; false: the state lacks one of the first n_layers. */
nb_status nb_walker_put_ranges(const nb_walker *w, json_t *state, nb_err *err);
bool nb_walker_take_ranges(nb_walker *w, const json_t *state, int64_t n_layers);

/* walk/block.c: the block at hand as a whole, by the method's tune_block. */
nb_status nb_walker_tune_block(nb_walker *w, nb_err *err);
/* The same by job->tune, from the codes that were made, which are still there. */
nb_status nb_walker_tune_made(nb_walker *w, nb_err *err);

/* walk/transform.c. The statistics of stream 0 with full-precision weights, and the transform by
 * them, if there is one: weights are then held, changed, in w->weight, or w->changes says what was
 * done to them. `original`: the methods' statistics are gathered as well, and stay, and the stream
 * goes through the block. */
nb_status nb_walker_transform(nb_walker *w, bool original, nb_err *err);

#endif
