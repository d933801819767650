/* What must hold of blocks, queues and plans whatever has happened, found out anew from the tables
 * themselves: for tests after every step, and for builds that would rather know. A message names
 * the invariant (K1 to K25 as docs/serving.md lists them) and the block or sequence. */
#ifndef NB_ENGINE_SCHED_CHECK_H
#define NB_ENGINE_SCHED_CHECK_H

#include "engine/sched.h"

/* NB_DATA when something is broken. Time is linear in blocks and tables; the costly comparisons of
 * tokens and hashes look at one part in 16, chosen by `turn`, or at everything when it is negative.
 * Uses the scratch of the blocks: nothing else of them may run. */
nb_status nb_blocks_check(const nb_blocks *b, int64_t turn, nb_err *err);
/* The blocks, the lists and the counts, at any time. */
nb_status nb_sched_check(const nb_sched *s, int64_t turn, nb_err *err);
/* Between nb_sched_plan and its commit, before anything else is submitted or aborted. */
nb_status nb_step_plan_check(const nb_sched *s, const nb_step_plan *plan, nb_err *err);

#endif
