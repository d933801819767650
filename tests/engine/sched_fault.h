/* Faults planted in worlds full of traffic, for the checks of blocks, queues and plans to find: one
 * thing at a time is broken, and the message must name its invariant. */
#ifndef NB_TESTS_SCHED_FAULT_H
#define NB_TESTS_SCHED_FAULT_H

#include "support/golden.h"
#include "support/sched_sim.h"

#include <string.h>

/* When a fault is planted, and whose check then runs. */
typedef enum { IDLE, PLANNED, DRAINED } phase;

/* Breaks something; false when this world has nothing to break just now. */
typedef bool breaks(nb_sched *s, nb_step_plan *plan);

typedef struct {
    const char *message; /* what the check says begins with this */
    phase when;
    breaks *plant;
} fault;

static inline nb_seq *first_running(const nb_sched *s)
{
    return s->n_running > 0 ? &s->seqs[s->running[0]] : NULL;
}

static inline nb_seq *first_waiting(const nb_sched *s)
{
    return s->n_waiting > 0 ? &s->seqs[s->waiting[0]] : NULL;
}

static inline void must_be_found(const fault *f, int number, nb_status status, const nb_err *err)
{
    if (status != NB_DATA || strncmp(err->text, f->message, strlen(f->message)) != 0)
        fail_msg("fault %d, '%s', gave '%s'", number, f->message,
                 status == NB_OK ? "nothing" : err->text);
}

/* One world until the fault can be planted in it; false when it never could. */
static inline bool planted_in(sim_world *w, const fault *f, int number)
{
    nb_err err = {0};
    nb_sched *s = sim_world_sched(w);
    nb_step_plan *plan = sim_world_plan(w);
    for (int step = 0; step < 150; step++) {
        assert_int_equal(sim_world_begin(w, &err), NB_OK);
        if (f->when == PLANNED && step >= 10 && f->plant(s, plan)) {
            must_be_found(f, number, nb_step_plan_check(s, plan, &err), &err);
            return true;
        }
        assert_int_equal(sim_world_finish(w, &err), NB_OK);
        if (f->when == IDLE && step >= 10 && f->plant(s, plan)) {
            must_be_found(f, number, nb_sched_check(s, -1, &err), &err);
            return true;
        }
    }
    if (f->when != DRAINED)
        return false;
    assert_int_equal(sim_world_drain(w, &err), NB_OK);
    if (!f->plant(s, plan))
        return false;
    must_be_found(f, number, nb_sched_check(s, -1, &err), &err);
    return true;
}

/* Each fault is planted in several worlds. */
static inline void plant_all(const fault *faults, int n_faults)
{
    for (int i = 0; i < n_faults; i++) {
        int n_planted = 0;
        for (int64_t index = 0; n_planted < 3 && index < 200; index++) {
            sim_world *w = sim_world_new(11, index, SIM_NO_FAULT);
            n_planted += planted_in(w, &faults[i], i);
            sim_world_free(w);
        }
        if (n_planted < 3)
            fail_msg("fault %d (%s) found no place", i, faults[i].message);
    }
}

#endif
