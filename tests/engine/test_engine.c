/* The engine answers what the one-sequence loop answers, bit for bit: with others beside, with a
 * cache so small that sequences are preempted, with prefixes found, steps cut anyhow, and choices
 * that share a prompt. What is aborted holds nothing; what cannot run is refused. */
#define _GNU_SOURCE
#include "opened.h"

#include "engine/engine.h"

#include <pthread.h>
#include <stdlib.h>

static const tiny_model wordy = {.never_ends = true};
static const tiny_model ending = {0};

/* ---- what is told ---- */

typedef struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int n_open; /* requests that were not released */
    bool hold;  /* the engine's thread waits in the next event */
} desk;

/* One request, and all that was told of it. */
typedef struct {
    desk *desk;
    int64_t n;
    nb_tokens ids[8];
    nb_buf text[8], logprobs[8], prompt_logprobs;
    nb_finish finish[8];
    char stop[64];
    char error[200];
    int64_t n_prompt, n_cached, n_made[8];
    uint64_t logits_hash[8];
    int n_events, abort_after; /* says no after so many events; 0: never */
    bool released, told_after_end;
} client;

static bool hear(void *context, const nb_engine_event *e)
{
    client *c = context;
    nb_err err = {0};
    const int64_t i = e->choice;
    pthread_mutex_lock(&c->desk->mutex);
    while (c->desk->hold)
        pthread_cond_wait(&c->desk->changed, &c->desk->mutex);
    c->told_after_end =
        c->told_after_end || c->released || i < 0 || i >= c->n || c->finish[i] != NB_NOT_FINISHED;
    c->n_events++;
    if (e->prompt_at >= 0) {
        if (e->logprobs != NULL)
            (void)nb_buf_put(&c->prompt_logprobs, e->logprobs, sizeof *e->logprobs, &err);
    } else if (e->id >= 0) {
        (void)nb_tokens_push(&c->ids[i], e->id, &err);
        if (e->logprobs != NULL)
            (void)nb_buf_put(&c->logprobs[i], e->logprobs, 3 * sizeof *e->logprobs, &err);
    }
    (void)nb_buf_put(&c->text[i], e->text, e->len, &err);
    c->finish[i] = e->finish;
    c->logits_hash[i] ^= e->logits_hash;
    c->n_prompt = e->n_prompt;
    c->n_cached = e->n_cached;
    c->n_made[i] = e->n_made;
    if (e->stop != NULL)
        snprintf(c->stop, sizeof c->stop, "%s", e->stop);
    if (e->error != NULL)
        snprintf(c->error, sizeof c->error, "%s", e->error);
    const bool more = c->abort_after == 0 || c->n_events < c->abort_after;
    pthread_mutex_unlock(&c->desk->mutex);
    return more;
}

static void let_go(void *context)
{
    client *c = context;
    pthread_mutex_lock(&c->desk->mutex);
    c->released = true;
    c->desk->n_open--;
    pthread_cond_broadcast(&c->desk->changed);
    pthread_mutex_unlock(&c->desk->mutex);
}

static void hold(desk *d, bool on)
{
    pthread_mutex_lock(&d->mutex);
    d->hold = on;
    pthread_cond_broadcast(&d->changed);
    pthread_mutex_unlock(&d->mutex);
}

static void client_free(client *c)
{
    for (int64_t i = 0; i < c->n; i++) {
        nb_tokens_free(&c->ids[i]);
        nb_buf_free(&c->text[i]);
        nb_buf_free(&c->logprobs[i]);
    }
    nb_buf_free(&c->prompt_logprobs);
}

/* ---- an engine ---- */

typedef struct {
    opened o;
    nb_engine *e;
    desk desk;
} bench;

static void bench_open(bench *b, const char *path, nb_engine_setup setup)
{
    nb_err err = {0};
    must_open(&b->o, path, &(opening){.threads = 2});
    setup.model = b->o.generator.setup.model;
    setup.kernels = b->o.generator.setup.kernels;
    setup.pool = b->o.generator.setup.pool;
    setup.tokenizer = b->o.generator.setup.tokenizer;
    setup.kv = b->o.generator.setup.kv;
    pthread_mutex_init(&b->desk.mutex, NULL);
    pthread_cond_init(&b->desk.changed, NULL);
    b->desk.n_open = 0;
    b->desk.hold = false;
    if (nb_engine_open(&b->e, &setup, &err) != NB_OK)
        fail_msg("%s", err.text);
}

static void bench_close(bench *b)
{
    nb_engine_close(b->e);
    assert_int_equal(b->desk.n_open, 0);
    close_opened(&b->o);
}

static nb_status ask(bench *b, client *c, const char *text, const nb_generate_options *options,
                     int64_t n, uint64_t *id, bool *busy, nb_err *err)
{
    nb_tokens ids = {0};
    encode(&b->o, text, &ids);
    c->desk = &b->desk;
    c->n = n;
    for (int64_t i = 0; i < n; i++)
        c->finish[i] = NB_NOT_FINISHED;
    const nb_engine_request r = {.prompt = ids.ids,
                                 .n_prompt = ids.n,
                                 .options = *options,
                                 .n = n,
                                 .prompt_logprobs = options->logprobs,
                                 .on_event = hear,
                                 .context = c,
                                 .release = let_go};
    pthread_mutex_lock(&b->desk.mutex);
    b->desk.n_open++;
    pthread_mutex_unlock(&b->desk.mutex);
    const nb_status s = nb_engine_submit(b->e, &r, id, busy, err);
    if (s != NB_OK) {
        pthread_mutex_lock(&b->desk.mutex);
        b->desk.n_open--;
        pthread_mutex_unlock(&b->desk.mutex);
    }
    nb_tokens_free(&ids);
    return s;
}

static uint64_t must_ask(bench *b, client *c, const char *text, const nb_generate_options *options,
                         int64_t n)
{
    uint64_t id = 0;
    bool busy;
    nb_err err = {0};
    if (ask(b, c, text, options, n, &id, &busy, &err) != NB_OK)
        fail_msg("%s", err.text);
    return id;
}

static void wait_for_all(bench *b)
{
    pthread_mutex_lock(&b->desk.mutex);
    while (b->desk.n_open > 0)
        pthread_cond_wait(&b->desk.changed, &b->desk.mutex);
    pthread_mutex_unlock(&b->desk.mutex);
}

/* What the loop of generate.h answers, alone and from a fresh start. */
static nb_generation alone(const char *path, const char *text, const nb_generate_options *options,
                           int64_t choice)
{
    opened o;
    nb_err err = {0};
    nb_tokens ids = {0};
    nb_generation r;
    nb_generate_options mine = *options;
    mine.sampling.choice += (uint64_t)choice;
    must_open(&o, path, &(opening){0});
    encode(&o, text, &ids);
    if (nb_generate(&o.generator, &ids, &mine, NULL, NULL, &r, &err) != NB_OK)
        fail_msg("%s", err.text);
    nb_tokens_free(&ids);
    close_opened(&o);
    return r;
}

/* The token that ended an answer is told of, but is no part of a generation. */
static void same(const client *c, int64_t i, const nb_generation *r)
{
    const int64_t more = r->reason == NB_STOP_EOS;
    assert_int_equal(c->ids[i].n, r->n_tokens + more);
    assert_int_equal(c->n_made[i], r->n_tokens + more);
    assert_memory_equal(c->ids[i].ids, r->tokens, (size_t)r->n_tokens * sizeof *r->tokens);
    assert_int_equal(c->text[i].len, r->text_len);
    if (r->text_len > 0)
        assert_memory_equal(c->text[i].data, r->text, r->text_len);
    assert_int_equal(c->finish[i], r->reason == NB_STOP_MAX_TOKENS || r->reason == NB_STOP_CONTEXT
                                       ? NB_FINISH_LENGTH
                                       : NB_FINISH_STOP);
    assert_false(c->told_after_end);
    assert_true(c->logits_hash[i] == r->logits_hash);
}

/* ---- tests ---- */

enum { N_TEXTS = 12 };
static const char *const texts[N_TEXTS] = {
    "the land and the inn",
    "the land and the inn: then and there, 1234",
    "the land and the inn: then and there, 1234, the land and the inn, the land and the inn again",
    "a hat that sings",
    "x",
    "the land and the inn: then and there, 1235",
    "there is no land and no inn in the north, and the hat that sings is none of mine",
    "nothing",
    "the land and the inn",
    "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30",
    "in in in in in in in in in in in in in in in in in in in in in in in in in in in",
    "the hat",
};

static nb_generate_options options_of(int i)
{
    nb_generate_options o = {.max_tokens = 5 + 7 * i, .hash_logits = true};
    if (i % 3 == 1)
        o.sampling = (nb_sampling){.temperature = 1.1, .seed = (uint64_t)i, .top_k = 40};
    if (i % 3 == 2)
        o.sampling = (nb_sampling){
            .temperature = 0.8, .seed = 99, .repetition_penalty = 1.2, .frequency_penalty = 0.3};
    return o;
}

/* All at once, in caches of different sizes and steps of different lengths. */
static void answers_do_not_depend_on_company(void **state)
{
    (void)state;
    const nb_engine_setup setups[] = {
        {.n_ctx = 256},
        {.n_ctx = 256, .n_blocks = 9, .share_prefixes = true},
        {.n_ctx = 256, .n_blocks = 9, .step_tokens = 5, .max_seqs = 4},
        {.n_ctx = 256, .step_tokens = 1, .n_blocks = 12, .share_prefixes = true},
        {.n_ctx = 256,
         .step_tokens = 33,
         .max_seqs = 3,
         .policy = NB_SCHED_LPM,
         .share_prefixes = true},
    };
    const tiny_model *const models[] = {&wordy, &ending};
    for (int m = 0; m < 2; m++) {
        const char *path = model_path(m == 0 ? "wordy" : "ending", models[m]);
        nb_generation want[N_TEXTS];
        for (int i = 0; i < N_TEXTS; i++) {
            const nb_generate_options o = options_of(i);
            want[i] = alone(path, texts[i], &o, 0);
        }
        int64_t n_preempted = 0, n_cached = 0;
        for (size_t s = 0; s < sizeof setups / sizeof *setups; s++) {
            bench b;
            client c[N_TEXTS] = {0};
            bench_open(&b, path, setups[s]);
            for (int round = 0; round < 2; round++) {
                for (int i = 0; i < N_TEXTS; i++) {
                    const nb_generate_options o = options_of(i);
                    must_ask(&b, &c[i], texts[i], &o, 1);
                }
                wait_for_all(&b);
                for (int i = 0; i < N_TEXTS; i++) {
                    same(&c[i], 0, &want[i]);
                    assert_int_equal(c[i].n_prompt, want[i].n_prompt);
                    n_cached += c[i].n_cached;
                    client_free(&c[i]);
                    c[i] = (client){0};
                }
            }
            nb_engine_stats stats;
            nb_engine_read_stats(b.e, &stats);
            assert_int_equal(stats.finished[NB_FINISH_STOP] + stats.finished[NB_FINISH_LENGTH],
                             2 * N_TEXTS);
            assert_int_equal(stats.blocks_used, 0);
            n_preempted += stats.n_preemptions;
            bench_close(&b);
        }
        assert_true(m == 1 || (n_preempted > 0 && n_cached > 0)); /* else nothing was tried */
        for (int i = 0; i < N_TEXTS; i++)
            nb_generation_free(&want[i]);
    }
}

/* Choices to one prompt are those of as many requests. */
static void choices_share_a_prompt(void **state)
{
    (void)state;
    const char *path = model_path("wordy", &wordy);
    const nb_generate_options o = {.max_tokens = 20, .sampling = {.temperature = 1.3, .seed = 7}};
    const nb_engine_setup setup = {.n_ctx = 256, .n_blocks = 24, .step_tokens = 16};
    bench b;
    client c = {0};
    bench_open(&b, path, setup);
    must_ask(&b, &c, texts[2], &o, 5);
    wait_for_all(&b);
    bool differ = false;
    for (int i = 0; i < 5; i++) {
        nb_generation want = alone(path, texts[2], &o, i);
        same(&c, i, &want);
        differ = differ || memcmp(c.ids[i].ids, c.ids[0].ids, 20 * sizeof(int32_t)) != 0;
        nb_generation_free(&want);
    }
    assert_true(differ);
    client_free(&c);
    bench_close(&b);
}

/* Those of the prompt are those of an answer that goes the same way. */
static void logprobs_are_those_of_the_loop(void **state)
{
    (void)state;
    const char *path = model_path("wordy", &wordy);
    const nb_generate_options o = {.max_tokens = 9, .logprobs = true, .n_top = 2};
    const nb_engine_setup setup = {.n_ctx = 256, .step_tokens = 4, .share_prefixes = true};
    nb_generation want = alone(path, texts[6], &o, 0);
    bench b;
    client c[2] = {0};
    bench_open(&b, path, setup);
    for (int i = 0; i < 2; i++) {
        must_ask(&b, &c[i], texts[6], &o, 1);
        wait_for_all(&b);
        same(&c[i], 0, &want);
        assert_int_equal(c[i].logprobs[0].len, 9 * 3 * sizeof(nb_logprob));
        assert_memory_equal(c[i].logprobs[0].data, want.logprobs, c[i].logprobs[0].len);
        assert_int_equal(c[i].prompt_logprobs.len,
                         (size_t)(c[i].n_prompt - 1) * sizeof(nb_logprob));
    }
    assert_memory_equal(c[0].prompt_logprobs.data, c[1].prompt_logprobs.data,
                        c[0].prompt_logprobs.len);
    client_free(&c[0]);
    client_free(&c[1]);
    nb_generation_free(&want);
    bench_close(&b);
}

/* A stop string cuts where the loop cuts, and is named. */
static void stop_strings_end_answers(void **state)
{
    (void)state;
    const char *path = model_path("wordy", &wordy);
    nb_generate_options o = {.max_tokens = 60};
    nb_generation whole = alone(path, texts[0], &o, 0);
    assert_true(whole.text_len > 12);
    char stop[4] = {0};
    memcpy(stop, whole.text + whole.text_len / 2, 3);
    const char *const stops[] = {"never said", stop};
    o.stops = stops;
    o.n_stops = 2;
    nb_generation want = alone(path, texts[0], &o, 0);
    bench b;
    client c = {0};
    bench_open(&b, path, (nb_engine_setup){.n_ctx = 256});
    must_ask(&b, &c, texts[0], &o, 1);
    wait_for_all(&b);
    if (want.reason == NB_STOP_TEXT) {
        same(&c, 0, &want);
        assert_string_equal(c.stop, stop);
    }
    client_free(&c);
    bench_close(&b);
    nb_generation_free(&want);
    nb_generation_free(&whole);
}

/* Answers held to a schema, beside others that are not. */
static void schemas_hold_in_company(void **state)
{
    (void)state;
    const char *path = model_path("wordy", &wordy);
    const char *const schemas[] = {"{\"type\": \"object\"}", NULL,
                                   "{\"type\": \"array\", \"items\": {\"type\": \"integer\"}}"};
    const nb_engine_setup setup = {.n_ctx = 256, .n_blocks = 6, .step_tokens = 9};
    bench b;
    client c[6] = {0};
    bench_open(&b, path, setup);
    for (int i = 0; i < 6; i++) {
        const nb_generate_options o = {.max_tokens = 50,
                                       .json_schema = schemas[i % 3],
                                       .hash_logits = true,
                                       .sampling = {.temperature = 1, .seed = (uint64_t)i}};
        must_ask(&b, &c[i], texts[i], &o, 1);
    }
    wait_for_all(&b);
    for (int i = 0; i < 6; i++) {
        const nb_generate_options o = {.max_tokens = 50,
                                       .json_schema = schemas[i % 3],
                                       .hash_logits = true,
                                       .sampling = {.temperature = 1, .seed = (uint64_t)i}};
        nb_generation want = alone(path, texts[i], &o, 0);
        assert_int_equal(c[i].ids[0].n, want.n_tokens + (want.stop_id >= 0));
        assert_memory_equal(c[i].ids[0].ids, want.tokens, (size_t)want.n_tokens * sizeof(int32_t));
        assert_true(c[i].logits_hash[0] == want.logits_hash);
        const char *at = (const char *)c[i].text[0].data;
        at += strspn(at, " \t\r\n");
        assert_true(i % 3 == 1 || *at == (i % 3 == 0 ? '{' : '['));
        nb_generation_free(&want);
        client_free(&c[i]);
    }
    bench_close(&b);
}

/* Guesses change how many steps there are, and nothing else. */
static void guesses_leave_answers_alone(void **state)
{
    (void)state;
    const char *path = model_path("wordy", &wordy);
    const nb_engine_setup setups[] = {{.n_ctx = 256},
                                      {.n_ctx = 256, .n_blocks = 9, .step_tokens = 11}};
    for (int s = 0; s < 2; s++) {
        bench b;
        client c[N_TEXTS] = {0};
        bench_open(&b, path, setups[s]);
        for (int i = 0; i < N_TEXTS; i++) {
            nb_generate_options o = options_of(i);
            o.n_guess = 1 + i;
            o.sampling.temperature /= 4;
            must_ask(&b, &c[i], texts[i], &o, 1);
        }
        wait_for_all(&b);
        for (int i = 0; i < N_TEXTS; i++) {
            nb_generate_options o = options_of(i);
            o.sampling.temperature /= 4;
            nb_generation want = alone(path, texts[i], &o, 0);
            same(&c[i], 0, &want);
            nb_generation_free(&want);
            client_free(&c[i]);
        }
        nb_engine_stats stats;
        nb_engine_read_stats(b.e, &stats);
        assert_true(stats.guessed_tokens > stats.accepted_tokens && stats.accepted_tokens > 0);
        bench_close(&b);
    }
}

/* By id, by the owner who wants no more, and because the engine closes. */
static void what_is_aborted_holds_nothing(void **state)
{
    (void)state;
    const char *path = model_path("wordy", &wordy);
    const nb_generate_options o = {.max_tokens = 200};
    bench b;
    client c[6] = {0};
    uint64_t id[6];
    bench_open(&b, path, (nb_engine_setup){.n_ctx = 256, .n_blocks = 20, .max_seqs = 3});
    hold(&b.desk, true);
    for (int i = 0; i < 6; i++) {
        c[i].abort_after = i == 2 || i == 4 ? 5 : 0;
        id[i] = must_ask(&b, &c[i], texts[i], &o, i == 3 ? 2 : 1);
    }
    nb_engine_abort(b.e, id[0]);
    nb_engine_abort(b.e, id[5]);
    nb_engine_abort(b.e, 123456);
    hold(&b.desk, false);
    wait_for_all(&b);
    assert_int_equal(c[0].finish[0], NB_FINISH_ABORT);
    assert_int_equal(c[5].finish[0], NB_FINISH_ABORT);
    assert_int_equal(c[1].finish[0], NB_FINISH_LENGTH);
    assert_int_equal(c[3].finish[1], NB_FINISH_LENGTH);
    assert_int_equal(c[2].n_events, 5);
    assert_int_equal(c[4].n_events, 5);
    nb_engine_stats stats;
    nb_engine_read_stats(b.e, &stats);
    assert_int_equal(stats.blocks_used, 0);
    assert_int_equal(stats.finished[NB_FINISH_ABORT], 4);
    client last = {0};
    must_ask(&b, &last, texts[1], &o, 1);
    bench_close(&b);
    assert_true(last.released);
    for (int i = 0; i < 6; i++) {
        assert_false(c[i].told_after_end);
        client_free(&c[i]);
    }
    client_free(&last);
}

static void what_cannot_run_is_refused(void **state)
{
    (void)state;
    const char *path = model_path("wordy", &wordy);
    const int32_t stop_id = 1 << 30;
    const nb_logit_bias bias = {.id = -1};
    const struct {
        nb_generate_options o;
        int64_t n;
        nb_status status;
        const char *says;
    } bad[] = {
        {{.max_tokens = 300}, 1, NB_LIMIT, "context"},
        {{.max_tokens = 200}, 1, NB_LIMIT, "KV cache"},
        {{.max_tokens = -1}, 1, NB_USAGE, "max_tokens"},
        {{.max_tokens = 4}, 0, NB_USAGE, "n is 0"},
        {{.max_tokens = 4}, 1000, NB_USAGE, "n is 1000"},
        {{.max_tokens = 4, .min_tokens = 5}, 1, NB_USAGE, "min_tokens"},
        {{.max_tokens = 4, .sampling = {.temperature = -1}}, 1, NB_USAGE, "temperature"},
        {{.max_tokens = 4, .n_top = 21}, 1, NB_USAGE, "n_top"},
        {{.max_tokens = 4, .stop_ids = &stop_id, .n_stop_ids = 1}, 1, NB_USAGE, "stop_ids"},
        {{.max_tokens = 4, .n_stops = 65}, 1, NB_USAGE, "stop"},
        {{.max_tokens = 4, .sampling = {.bias = &bias, .n_bias = 1}}, 1, NB_USAGE, "bias"},
    };
    bench b;
    bench_open(&b, path,
               (nb_engine_setup){.n_ctx = 256, .n_blocks = 4, .max_seqs = 1, .max_queue = 1});
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        client c = {0};
        nb_err err = {0};
        uint64_t id;
        bool busy;
        c.n = 1;
        c.desk = &b.desk;
        nb_tokens ids = {0};
        encode(&b.o, "the inn", &ids);
        const nb_engine_request r = {.prompt = ids.ids,
                                     .n_prompt = ids.n,
                                     .options = bad[i].o,
                                     .n = bad[i].n,
                                     .on_event = hear,
                                     .context = &c};
        assert_int_equal(nb_engine_submit(b.e, &r, &id, &busy, &err), bad[i].status);
        assert_non_null(strstr(err.text, bad[i].says));
        assert_false(busy);
        nb_tokens_free(&ids);
    }
    client c[4] = {0};
    int n_busy = 0;
    const nb_generate_options o = {.max_tokens = 60};
    for (int i = 0; i < 4; i++) {
        nb_err err = {0};
        uint64_t id;
        bool busy = false;
        const nb_status s = ask(&b, &c[i], "the inn", &o, 1, &id, &busy, &err);
        assert_true(s == NB_OK || (s == NB_LIMIT && busy));
        n_busy += busy;
    }
    assert_true(n_busy >= 1);
    nb_engine_drain(b.e);
    nb_err err = {0};
    uint64_t id;
    bool busy = false;
    client late = {0};
    assert_int_equal(ask(&b, &late, "x", &o, 1, &id, &busy, &err), NB_LIMIT);
    assert_true(busy);
    wait_for_all(&b);
    for (int i = 0; i < 4; i++)
        client_free(&c[i]);
    bench_close(&b);
}

/* Memory that runs out while it is opened or asked leaves nothing behind. */
static void memory_may_fail(void **state)
{
    (void)state;
    const char *path = model_path("wordy", &wordy);
    opened o;
    must_open(&o, path, &(opening){.threads = 1});
    const nb_engine_setup setup = {.model = o.generator.setup.model,
                                   .kernels = o.generator.setup.kernels,
                                   .pool = o.generator.setup.pool,
                                   .tokenizer = o.generator.setup.tokenizer,
                                   .kv = o.generator.setup.kv,
                                   .n_ctx = 64};
    const int64_t live = nb_alloc_live();
    nb_status s = NB_MEMORY;
    for (int n = 1; s != NB_OK; n++) {
        nb_engine *e;
        nb_err err = {0};
        nb_alloc_fail_at(n);
        s = nb_engine_open(&e, &setup, &err);
        nb_alloc_fail_at(0);
        assert_true(s == NB_OK || s == NB_MEMORY);
        if (s == NB_OK)
            nb_engine_close(e);
        assert_int_equal(nb_alloc_live(), live);
    }
    close_opened(&o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_do_not_depend_on_company),
        cmocka_unit_test(choices_share_a_prompt),
        cmocka_unit_test(logprobs_are_those_of_the_loop),
        cmocka_unit_test(stop_strings_end_answers),
        cmocka_unit_test(schemas_hold_in_company),
        cmocka_unit_test(guesses_leave_answers_alone),
        cmocka_unit_test(what_is_aborted_holds_nothing),
        cmocka_unit_test(what_cannot_run_is_refused),
        cmocka_unit_test(memory_may_fail),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
