/* A scheduler with an engine that always gives the same token, for tests of single rules. */
#ifndef NB_TESTS_SCHED_BENCH_H
#define NB_TESTS_SCHED_BENCH_H

#include "support/golden.h"

#include "engine/sched_check.h"

#include <stdio.h>
#include <string.h>

#define LEN 4

/* A scheduler, its plan and an engine that always gives token 7. */
typedef struct {
    nb_sched s;
    nb_step_plan plan;
    nb_sched_result results[16];
    int32_t answers[16][NB_SCHED_MAX_DRAFT + 1];
} bench;

static inline nb_sched_setup setup_of(int64_t n_blocks, int64_t step_tokens)
{
    return (nb_sched_setup){.blocks = {.n_blocks = n_blocks,
                                       .block_len = LEN,
                                       .max_seqs = 16,
                                       .max_positions = 128,
                                       .share_prefixes = true},
                            .step_tokens = step_tokens,
                            .max_waiting = 32,
                            .ageing_ms = 100,
                            .policy = NB_SCHED_FCFS};
}

static inline void make(bench *b, const nb_sched_setup *setup)
{
    nb_err err = {0};
    memset(b, 0, sizeof *b);
    if (nb_sched_init(&b->s, setup, &err) != NB_OK ||
        nb_step_plan_init(&b->plan, &b->s, &err) != NB_OK)
        fail_msg("%s", err.text);
}

static inline void drop(bench *b)
{
    nb_step_plan_free(&b->plan);
    nb_sched_free(&b->s);
    assert_int_equal(nb_alloc_live(), 0);
}

static int32_t prompt_tokens[128]; /* as `prompt` wrote them last */

/* A request of `n_prompt` tokens that begin with `family`, each family another prefix. */
static inline nb_sched_request request(uint64_t id, int32_t family, int64_t n_prompt,
                                       int64_t max_new)
{
    for (int32_t i = 0; i < 128; i++)
        prompt_tokens[i] = family * 1000 + i;
    return (nb_sched_request){
        .id = id, .prompt = prompt_tokens, .n_prompt = n_prompt, .max_new = max_new};
}

static inline void submit(bench *b, const nb_sched_request *r)
{
    nb_err err = {0};
    if (nb_sched_submit(&b->s, r, &err) != NB_OK)
        fail_msg("%s", err.text);
}

static inline void submit_plain(bench *b, uint64_t id, int64_t n_prompt, int64_t max_new)
{
    const nb_sched_request r = request(id, (int32_t)id, n_prompt, max_new);
    submit(b, &r);
}

static inline void plan(bench *b)
{
    nb_err err = {0};
    nb_sched_plan(&b->s, &b->plan);
    if (nb_step_plan_check(&b->s, &b->plan, &err) != NB_OK ||
        nb_sched_check(&b->s, -1, &err) != NB_OK)
        fail_msg("%s", err.text);
}

static inline void commit(bench *b)
{
    nb_err err = {0};
    nb_sched_commit(&b->s, &b->plan, b->results);
    if (nb_sched_check(&b->s, -1, &err) != NB_OK)
        fail_msg("%s", err.text);
}

/* The engine: one token for each entry that samples. */
static inline void answer(bench *b)
{
    for (int64_t i = 0; i < b->plan.n_entries; i++) {
        const nb_step_entry *e = &b->plan.entries[i];
        b->answers[i][0] = 7;
        b->results[i] =
            (nb_sched_result){.tokens = b->answers[i], .n_tokens = e->samples && e->n_left > 0};
    }
}

static inline void step(bench *b)
{
    plan(b);
    answer(b);
    commit(b);
}

/* "id:start+n" of each entry, with a * where it samples. */
static inline const char *told(const bench *b)
{
    static char text[400];
    text[0] = 0;
    for (int64_t i = 0; i < b->plan.n_entries; i++) {
        const nb_step_entry *e = &b->plan.entries[i];
        char one[100];
        snprintf(one, sizeof one, "%s%llu:%lld+%lld%s", i == 0 ? "" : " ",
                 (unsigned long long)e->id, (long long)e->start, (long long)e->n,
                 e->samples ? "*" : "");
        strncat(text, one, sizeof text - strlen(text) - 1);
    }
    return text;
}

static inline void planned(bench *b, const char *want)
{
    plan(b);
    assert_string_equal(told(b), want);
    answer(b);
    commit(b);
}

#endif
