/* Traffic for the scheduler without a model behind it: worlds that are drawn from a seed, each with
 * a pool, a policy and clients of its own. Requests come in bursts, share prefixes, fork, guess
 * ahead, are refused, break and are aborted at any moment.
 *
 * In place of keys and values each slot of a block holds a hash of all tokens up to its position,
 * computed from the slot before it as a plan says, and a token follows from the last of them. So a
 * block that was shared, copied, evicted or rolled back wrongly gives other hashes than the
 * sequence's tokens alone, and is found out (K6, K7, K12). Every step goes through the checks of
 * engine/sched_check.h, too. */
#ifndef NB_TESTS_SCHED_SIM_H
#define NB_TESTS_SCHED_SIM_H

#include "engine/sched_check.h"

/* Mistakes that an engine might make, for the simulator to find. */
typedef enum {
    SIM_NO_FAULT,
    SIM_NO_COPIES,     /* blocks are not copied before they are written */
    SIM_LATE_COPIES,   /* they are copied after */
    SIM_KEEP_BROKEN,   /* what was computed wrongly is committed */
    SIM_ACCEPT_WRONG,  /* a guess is accepted that the model would not have made */
    SIM_STALE_TABLE,   /* the table of the step before is used */
    SIM_SAMPLE_BY_ROW, /* a token depends on where the sequence stands in the batch */
} sim_fault;

/* What has happened: a run in which nothing did has checked nothing. */
typedef struct {
    int64_t n_worlds, n_steps, n_tokens, n_cells_compared;
    int64_t n_submitted, n_refused, n_queue_full, n_aborted, n_aborted_midway, n_broken, n_over;
    int64_t n_preempted, n_patience, n_copies, n_hits, n_evicted, n_accepted, n_rejected;
    uint64_t hash; /* of all plans */
} sim_counts;

typedef struct sim_world sim_world;

/* World `index` of `seed`. Never NULL: a lack of memory ends the program. */
sim_world *sim_world_new(uint64_t seed, int64_t index, sim_fault fault);
void sim_world_free(sim_world *w);
nb_sched *sim_world_sched(sim_world *w);
/* Plans a step and looks at the plan. Then sim_world_finish runs and commits it. NB_DATA with the
 * invariant that is broken. */
nb_status sim_world_begin(sim_world *w, nb_err *err);
nb_status sim_world_finish(sim_world *w, nb_err *err);
nb_step_plan *sim_world_plan(sim_world *w);
/* No more clients: steps until all is over, which must be soon; then nothing may be left. */
nb_status sim_world_drain(sim_world *w, nb_err *err);

/* Worlds from `from` on until n_steps have run; adds to `counts`. The message says how to repeat
 * what failed. */
nb_status sim_run(uint64_t seed, int64_t from, int64_t n_steps, sim_fault fault, sim_counts *counts,
                  nb_err *err);

#endif
