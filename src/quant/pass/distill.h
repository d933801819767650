/* Distillation: the scales of all quantized linear layers, learned together so that the quantized
 * model predicts what the original does. The loss is KL(original || quantized) of the next token,
 * by the whole model's forward and backward pass (E2E-QP of EfficientQAT, arXiv:2407.11062, section
 * 3.3, with the original's predictions in place of the text's tokens); codes stay, and scales move
 * as scales.h has it. Methods that go layer by layer know neither what later layers make of an
 * error, nor what earlier ones have left; this does, with few numbers to learn and hence little
 * text.
 *
 * A step takes the next sequences of a shuffled set, by a rate that rises over a few steps and then
 * falls to 0. Of the end and the start, what has the lesser KL on held-out sequences counts; the
 * end where there are none. A step whose loss is no finite number is the last one, and the start
 * counts. Embeddings and head are the original's.
 *
 * Memory holds one block at a time; what is learned lies on disk, and a killed run goes on from its
 * last step to the same bytes. */
#ifndef NB_QUANT_PASS_DISTILL_H
#define NB_QUANT_PASS_DISTILL_H

#include "quant/encode/scales.h"
#include "quant/pass/passes.h"
#include "quant/plan/plan.h"

typedef struct {
    int64_t steps, batch, len; /* steps; sequences of a step; tokens of a sequence at most */
    double rate;               /* a step changes a scale by about this share of it */
} nb_distill_options;

/* Whose options these are; no method of its own (nb_method_of). */
extern const nb_quantizer nb_quantizer_distill;
/* "steps=64,batch=1,len=2048,lr=0.003". */
nb_status nb_distill_options_parse(nb_distill_options *out, const nb_method *method, nb_err *err);

typedef struct {
    nb_store *store;
    const nb_plan *plan; /* what it quantizes lies in `dir`, made: the start */
    nb_pool *pool;
    const nb_kernels *kernels;
    const nb_calib_seq *seqs;
    int64_t n_seqs;
    const nb_workdir *dir;
    const nb_distill_options *options;
    uint64_t seed; /* of the order of sequences */
    /* As of nb_passes; `what` says where it stands. */
    nb_passes_progress *progress;
    /* Called after each step, to keep `state`. */
    nb_status (*keep)(void *context, nb_err *err);
    void *context; /* of both */
    char *what;    /* [64]; NULL: nobody asks */
} nb_distill_job;

/* How far it has come, for a later run. `{.before = NAN, .after = NAN}`: nowhere yet. */
typedef struct {
    int64_t n_steps;
    uint64_t hash; /* of what was learned until then */
    double before; /* KL on held-out sequences at the start; NaN: not measured */
    double after;  /* and at the end */
    bool better;   /* at the end: what was learned counts */
} nb_distill_state;

/* Whether there is anything to learn. */
bool nb_distill_learns(const nb_plan *plan);

/* Bytes in memory (INT64_MAX where it is no number) and on disk; floating-point operations. */
int64_t nb_distill_memory(const nb_config *c, const nb_plan *plan, const nb_distill_options *o,
                          int n_threads);
int64_t nb_distill_disk(const nb_config *c, const nb_plan *plan, const nb_distill_options *o);
double nb_distill_flops(const nb_config *c, const nb_distill_options *o, const nb_calib_seq *seqs,
                        int64_t n_seqs);

/* If state->better, the matrices that were learned then lie in `dir`, under their numbers in the
 * plan and plan->n more. Those of the start stay in any case, so that a run that is killed here
 * finds what it needs. A state that does not fit what lies in `dir` is one of no steps. */
nb_status nb_distill(const nb_distill_job *job, nb_distill_state *state, nb_err *err);

#endif
