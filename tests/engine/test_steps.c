/* What requests may cost each other, step by step: a prompt delays a stream that runs by one step
 * of the budget at most, and a client that leaves holds nothing in the step after. */
#define _GNU_SOURCE
#include "engine_bench.h"

enum { STEP = 16, MOST_STEPS = 400 };

/* What the engine did in each step, and what one client saw; all on the engine's thread. */
typedef struct {
    bench *b;
    int64_t n_steps, n_tokens[MOST_STEPS], used[MOST_STEPS];
    int64_t n_told;       /* tokens of the stream */
    int64_t told_in[256]; /* the step of each */
    int64_t at;           /* the token at which it happens: */
    uint64_t leaver;      /* this request is aborted, */
    client *late_ones;    /* or those ask */
    int64_t n_late;
    int64_t happened; /* in this step */
} watching;

static void note_step(void *context, double seconds, int64_t n_tokens)
{
    watching *w = context;
    nb_engine_stats stats;
    (void)seconds;
    nb_engine_read_stats(w->b->e, &stats);
    if (w->n_steps < MOST_STEPS) {
        w->n_tokens[w->n_steps] = n_tokens;
        w->used[w->n_steps] = stats.blocks_used;
    }
    w->n_steps++;
}

/* A client that takes note of the step of each of its tokens. */
typedef struct {
    client c; /* first: hear takes it */
    watching *w;
} streaming;

static const char *long_text(void)
{
    static char text[240];
    for (size_t i = 0; i + 1 < sizeof text; i++)
        text[i] = (char)('A' + i * i % 26);
    return text;
}

static void happen(watching *w)
{
    const nb_generate_options o = {.max_tokens = 4};
    w->happened = w->n_steps;
    for (int64_t i = 0; i < w->n_late; i++)
        must_ask(w->b, &w->late_ones[i], long_text(), &o, 1);
    if (w->leaver != 0)
        nb_engine_abort(w->b->e, w->leaver);
}

static bool hear_and_note(void *context, const nb_engine_event *e)
{
    streaming *s = context;
    watching *w = s->w;
    if (e->id >= 0 && e->prompt_at < 0) {
        w->told_in[w->n_told++] = w->n_steps;
        if (w->n_told == w->at)
            happen(w);
    }
    return hear(&s->c, e);
}

static void stream(watching *w, streaming *s, const char *text, int64_t max_tokens)
{
    uint64_t id;
    bool busy;
    nb_err err = {0};
    nb_tokens ids = {0};
    encode(&w->b->o, text, &ids);
    s->w = w;
    s->c.desk = &w->b->desk;
    s->c.n = 1;
    s->c.finish[0] = NB_NOT_FINISHED;
    const nb_engine_request r = {.prompt = ids.ids,
                                 .n_prompt = ids.n,
                                 .options = {.max_tokens = max_tokens},
                                 .n = 1,
                                 .on_event = hear_and_note,
                                 .context = s,
                                 .release = let_go};
    pthread_mutex_lock(&w->b->desk.mutex);
    w->b->desk.n_open++;
    pthread_mutex_unlock(&w->b->desk.mutex);
    if (nb_engine_submit(w->b->e, &r, &id, &busy, &err) != NB_OK)
        fail_msg("%s", err.text);
    nb_tokens_free(&ids);
}

static void watch(watching *w, bench *b)
{
    const nb_engine_observer observer = {.step = note_step, .context = w};
    w->b = b;
    nb_engine_observe(b->e, &observer);
}

/* The last step is told of after the last request is over. */
static void end_watching(watching *w)
{
    nb_engine_close(w->b->e);
    w->b->e = NULL;
}

/* Three long prompts come while a stream runs, and two of them go before it: it is told a token in
 * every step all the same, and no step is longer than its budget. With a draft a step may have more
 * than one for it. */
static void prompts_delay_a_stream_by_a_step(void **state)
{
    (void)state;
    const char *path = model_path("wordy", &wordy);
    for (int draft = 0; draft < 2; draft++) {
        bench b;
        client late[3] = {{.priority = -9}, {.priority = -9}};
        watching w = {.at = 5, .late_ones = late, .n_late = 3};
        streaming s = {0};
        bench_open_draft(&b, path, draft ? path : NULL,
                         (nb_engine_setup){.n_ctx = 256,
                                           .step_tokens = STEP,
                                           .max_seqs = 4,
                                           .policy = NB_SCHED_PRIORITY,
                                           .n_guess = draft ? 3 : 0,
                                           .guess_always = true});
        watch(&w, &b);
        stream(&w, &s, "x", 120);
        wait_for_all(&b);
        end_watching(&w);
        int64_t n_full = 0;
        assert_true(w.n_steps < MOST_STEPS);
        assert_int_equal(w.n_told, 120);
        for (int64_t i = 0; i < w.n_steps; i++) {
            assert_in_range(w.n_tokens[i], 1, STEP);
            n_full += w.n_tokens[i] == STEP;
        }
        /* In as many full steps as the prompts take, the stream had its token. */
        assert_true(n_full >= 3 * 230 / STEP);
        for (int64_t i = 1; i < w.n_told; i++)
            assert_in_range(w.told_in[i] - w.told_in[i - 1], draft ? 0 : 1, 1);
        for (int i = 0; i < 3; i++) {
            assert_int_equal(late[i].finish[0], NB_FINISH_LENGTH);
            client_free(&late[i]);
        }
        client_free(&s.c);
        bench_close(&b);
    }
}

/* One leaves while its prompt is computed, while it is answered, or while it waits; what it held is
 * free in the next step, in which another goes on. */
static void who_leaves_holds_nothing_in_the_next_step(void **state)
{
    (void)state;
    const char *path = model_path("wordy", &wordy);
    for (int way = 0; way < 4; way++) {
        bench b;
        client leaver = {.abort_after = way == 3 ? 4 : 0};
        watching w = {.at = way == 0 ? 6 : way == 1 ? 24 : 3};
        streaming s = {0};
        const nb_generate_options o = {.max_tokens = 15};
        bench_open(&b, path,
                   (nb_engine_setup){.n_ctx = 256,
                                     .step_tokens = way == 3 ? 256 : STEP,
                                     .max_seqs = way == 2 ? 1 : 4});
        watch(&w, &b);
        hold(&b.desk, true); /* the stream's first token waits until the other has asked */
        stream(&w, &s, "x", 30);
        const uint64_t id = must_ask(&b, &leaver, long_text(), &o, 1);
        w.leaver = way == 3 ? 0 : id;
        hold(&b.desk, false);
        wait_for_all(&b);
        end_watching(&w);
        assert_true(w.n_steps < MOST_STEPS && w.n_told == 30);
        /* By its own wish, after its fourth token. */
        for (int64_t i = 0; i < w.n_steps && way == 3; i++)
            w.happened = w.n_tokens[i] == 2 ? i : w.happened;
        assert_in_range(w.happened, 2, w.n_steps - 2);
        assert_int_equal(w.used[w.happened + 1], 1); /* the stream's own */
        assert_int_equal(w.n_tokens[w.happened + 1], 1);
        if (way != 2)
            assert_in_range(w.used[w.happened - 1], 2, 9); /* what it held before */
        assert_true(way != 3 || leaver.n_events == 4);
        assert_true(leaver.released && !leaver.told_after_end);
        client_free(&leaver);
        client_free(&s.c);
        bench_close(&b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prompts_delay_a_stream_by_a_step),
        cmocka_unit_test(who_leaves_holds_nothing_in_the_next_step),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
