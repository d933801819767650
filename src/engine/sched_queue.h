/* The lists of a scheduler: who runs and who waits, each in order. Between sched.c and
 * sched_plan.c. */
#ifndef NB_ENGINE_SCHED_QUEUE_H
#define NB_ENGINE_SCHED_QUEUE_H

#include "engine/sched.h"

/* Whether sequence a goes before b: who was preempted too often, then by key and arrival. */
bool nb_seq_before(const nb_seq *a, const nb_seq *b);

/* Puts a slot into a list that is in order, and takes it out, which it must be in. */
void nb_sched_list_add(const nb_sched *s, int32_t *list, int64_t *n, int32_t slot);
void nb_sched_list_remove(int32_t *list, int64_t *n, int32_t slot);

/* Gives the blocks of a running sequence back, and its table. It is on no list then. */
void nb_sched_stop(nb_sched *s, int32_t slot);

#endif
