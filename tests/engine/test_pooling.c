/* A prompt's pooled states are those of the model run once over the whole prompt, bit for bit: with
 * others beside that generate, with steps of any size, with sequences that are preempted, and with
 * prefixes found in the cache. */
#include "opened.h"

#include "engine/engine.h"

#include <pthread.h>
#include <stdlib.h>

static const tiny_model wordy = {.never_ends = true};

enum { MAX_DIMS = 512, N_TEXTS = 9 };
static const char *const texts[N_TEXTS] = {
    "the land and the inn",
    "the land and the inn: then and there, 1234",
    "the land and the inn: then and there, 1234, the land and the inn, the land and the inn again",
    "x",
    "there is no land and no inn in the north, and the hat that sings is none of mine",
    "the land and the inn: then and there, 1235",
    "a hat that sings",
    "the land and the inn: then and there, 1234, the land and the inn, the land and the inn again",
    "the land and the inn: then and there, 1234, the land and the inn, a hat",
};

typedef struct {
    pthread_mutex_t gate; /* who has it holds up the next event */
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int n_open;
} desk;

typedef struct {
    desk *desk;
    float pooled[MAX_DIMS];
    int64_t n_pooled, n_cached;
    int n_events;
    nb_finish finish;
} client;

static bool hear(void *context, const nb_engine_event *e)
{
    client *c = context;
    pthread_mutex_lock(&c->desk->gate);
    pthread_mutex_unlock(&c->desk->gate);
    pthread_mutex_lock(&c->desk->mutex);
    c->n_events++;
    c->finish = e->finish;
    c->n_cached = e->n_cached;
    if (e->pooled != NULL) {
        assert_true(e->n_pooled <= MAX_DIMS);
        memcpy(c->pooled, e->pooled, (size_t)e->n_pooled * sizeof(float));
        c->n_pooled = e->n_pooled;
    }
    pthread_mutex_unlock(&c->desk->mutex);
    return true;
}

static void let_go(void *context)
{
    client *c = context;
    pthread_mutex_lock(&c->desk->mutex);
    c->desk->n_open--;
    pthread_cond_broadcast(&c->desk->changed);
    pthread_mutex_unlock(&c->desk->mutex);
}

/* ---- the definition: the whole prompt in one step, on a cache of its own ---- */

static void pool_alone(const opened *o, const char *text, nb_pooling how, float *out)
{
    const nb_config *config = &o->model.config;
    const int64_t d = config->d_model;
    nb_err err = {0};
    nb_tokens ids = {0};
    nb_work work = {0};
    nb_kv_pool kv = {0};
    nb_kv_seq seq = {0};
    double sum[MAX_DIMS] = {0};
    encode(o, text, &ids);
    float *hidden = malloc((size_t)(ids.n * d) * sizeof *hidden);
    assert_non_null(hidden);
    assert_int_equal(nb_work_init(&work, &o->model, &o->kernels, o->pool, ids.n, &err), NB_OK);
    assert_int_equal(nb_kv_pool_init(&kv, config, NB_KV_F16, nb_kv_pages_for(ids.n), &err), NB_OK);
    assert_int_equal(nb_kv_seq_init(&seq, &kv, ids.n, &err), NB_OK);
    const nb_step_input input = {&seq, ids.ids, ids.n, ids.n};
    assert_int_equal(nb_forward(&work, &input, 1, hidden, &err), NB_OK);
    for (int64_t i = 0; i < ids.n; i++)
        for (int64_t k = 0; k < d; k++)
            sum[k] += (double)hidden[i * d + k];
    for (int64_t k = 0; k < d; k++)
        out[k] =
            how == NB_POOL_MEAN ? (float)(sum[k] / (double)ids.n) : hidden[(ids.n - 1) * d + k];
    nb_kv_seq_free(&seq);
    nb_kv_pool_free(&kv);
    nb_work_free(&work);
    free(hidden);
    nb_tokens_free(&ids);
}

/* ---- an engine ---- */

typedef struct {
    opened o;
    nb_engine *e;
    desk desk;
} bench;

static void bench_open(bench *b, nb_engine_setup setup)
{
    nb_err err = {0};
    must_open(&b->o, model_path("wordy", &wordy), &(opening){.threads = 2});
    setup.model = &b->o.model;
    setup.kernels = &b->o.kernels;
    setup.pool = b->o.pool;
    setup.tokenizer = b->o.tokenizer;
    setup.kv = NB_KV_F16;
    if (setup.n_guess < 0) {
        setup.draft = &b->o.model; /* of itself: every guess is right */
        setup.n_guess = -setup.n_guess;
    }
    pthread_mutex_init(&b->desk.gate, NULL);
    pthread_mutex_init(&b->desk.mutex, NULL);
    pthread_cond_init(&b->desk.changed, NULL);
    b->desk.n_open = 0;
    if (nb_engine_open(&b->e, &setup, &err) != NB_OK)
        fail_msg("%s", err.text);
}

static void bench_close(bench *b)
{
    nb_engine_close(b->e);
    assert_int_equal(b->desk.n_open, 0);
    close_opened(&b->o);
}

static nb_status ask(bench *b, client *c, const char *text, nb_engine_request r, nb_err *err)
{
    nb_tokens ids = {0};
    uint64_t id;
    bool busy;
    encode(&b->o, text, &ids);
    *c = (client){.desk = &b->desk};
    r.prompt = ids.ids;
    r.n_prompt = ids.n;
    r.n = r.n == 0 ? 1 : r.n;
    r.on_event = hear;
    r.context = c;
    r.release = let_go;
    pthread_mutex_lock(&b->desk.mutex);
    b->desk.n_open++;
    pthread_mutex_unlock(&b->desk.mutex);
    const nb_status s = nb_engine_submit(b->e, &r, &id, &busy, err);
    if (s != NB_OK)
        let_go(c);
    nb_tokens_free(&ids);
    return s;
}

static void must_ask(bench *b, client *c, const char *text, nb_pooling how)
{
    nb_err err = {0};
    const nb_engine_request r = {.no_answer = how != NB_POOL_NONE,
                                 .pooling = how,
                                 .options = {.max_tokens = how == NB_POOL_NONE ? 60 : 0}};
    if (ask(b, c, text, r, &err) != NB_OK)
        fail_msg("%s", err.text);
}

static void wait_for_all(bench *b)
{
    pthread_mutex_lock(&b->desk.mutex);
    while (b->desk.n_open > 0)
        pthread_cond_wait(&b->desk.changed, &b->desk.mutex);
    pthread_mutex_unlock(&b->desk.mutex);
}

/* ---- tests ---- */

static void pooled_states_do_not_depend_on_company(void **state)
{
    (void)state;
    static const nb_engine_setup setups[] = {
        {.n_ctx = 256},
        {.n_ctx = 256, .step_tokens = 7, .max_seqs = 5},
        {.n_ctx = 256, .step_tokens = 1, .max_seqs = 1},
        {.n_ctx = 256, .n_blocks = 8, .step_tokens = 11},
        {.n_ctx = 256, .step_tokens = 16, .share_prefixes = true},
        {.n_ctx = 256, .n_blocks = 9, .step_tokens = 19, .n_guess = 4},
        {.n_ctx = 256, .step_tokens = 40, .n_guess = -3}, /* with a draft model */
    };
    static float want[2][N_TEXTS][MAX_DIMS];
    static client embeds[2][N_TEXTS], others[N_TEXTS];
    opened o;
    must_open(&o, model_path("wordy", &wordy), &(opening){0});
    const int64_t d = o.model.config.d_model;
    for (int i = 0; i < N_TEXTS; i++)
        for (int k = 0; k < 2; k++)
            pool_alone(&o, texts[i], k == 0 ? NB_POOL_MEAN : NB_POOL_LAST, want[k][i]);
    close_opened(&o);
    assert_memory_not_equal(want[0][0], want[1][0], (size_t)d * sizeof(float));
    assert_memory_not_equal(want[0][0], want[0][1], (size_t)d * sizeof(float));
    int64_t n_preempted = 0, n_cached = 0;
    for (size_t s = 0; s < sizeof setups / sizeof *setups; s++) {
        bench b;
        bench_open(&b, setups[s]);
        pthread_mutex_lock(&b.desk.gate);
        for (int i = 0; i < N_TEXTS; i++) {
            must_ask(&b, &embeds[0][i], texts[i], NB_POOL_MEAN);
            must_ask(&b, &others[i], texts[i], NB_POOL_NONE);
            must_ask(&b, &embeds[1][i], texts[i], NB_POOL_LAST);
        }
        pthread_mutex_unlock(&b.desk.gate);
        wait_for_all(&b);
        for (int i = 0; i < N_TEXTS; i++) {
            for (int k = 0; k < 2; k++) {
                assert_int_equal(embeds[k][i].finish, NB_FINISH_STOP);
                assert_int_equal(embeds[k][i].n_events, 1);
                assert_int_equal(embeds[k][i].n_pooled, d);
                assert_memory_equal(embeds[k][i].pooled, want[k][i], (size_t)d * sizeof(float));
                n_cached += embeds[k][i].n_cached;
            }
            assert_int_equal(others[i].n_pooled, 0);
        }
        nb_engine_stats stats;
        nb_engine_read_stats(b.e, &stats);
        n_preempted += stats.n_preemptions;
        assert_int_equal(stats.blocks_used, 0);
        bench_close(&b);
    }
    assert_true(n_preempted > 0 && n_cached > 0); /* or the setups tried nothing */
}

static void pooling_is_of_a_prompt_alone(void **state)
{
    (void)state;
    static const nb_engine_request bad[] = {
        {.pooling = NB_POOL_MEAN, .options = {.max_tokens = 1}},
        {.pooling = NB_POOL_LAST, .no_answer = true, .n = 2},
        {.pooling = NB_POOL_MEAN,
         .no_answer = true,
         .prompt_logprobs = true,
         .options = {.logprobs = true}},
    };
    bench b;
    bench_open(&b, (nb_engine_setup){.n_ctx = 64});
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        nb_err err = {0};
        client c;
        assert_int_equal(ask(&b, &c, "x", bad[i], &err), NB_USAGE);
        assert_non_null(strstr(err.text, "pooling"));
    }
    bench_close(&b);
}

/* A request that finds no memory is refused, and leaves nothing behind. */
static void memory_may_fail(void **state)
{
    (void)state;
    bench b;
    bench_open(&b, (nb_engine_setup){.n_ctx = 64});
    nb_tokens ids = {0};
    encode(&b.o, "the inn", &ids);
    nb_status s = NB_MEMORY;
    int n = 1;
    for (; s != NB_OK; n++) {
        nb_err err = {0};
        client c = {.desk = &b.desk};
        const nb_engine_request r = {.prompt = ids.ids,
                                     .n_prompt = ids.n,
                                     .n = 1,
                                     .no_answer = true,
                                     .pooling = NB_POOL_MEAN,
                                     .on_event = hear,
                                     .context = &c,
                                     .release = let_go};
        uint64_t id;
        bool busy;
        const int64_t live = nb_alloc_live();
        b.desk.n_open = 1;
        nb_alloc_fail_at(n);
        s = nb_engine_submit(b.e, &r, &id, &busy, &err);
        nb_alloc_fail_at(0);
        if (s == NB_OK) {
            wait_for_all(&b);
            assert_int_equal(c.finish, NB_FINISH_STOP);
            break;
        }
        assert_int_equal(s, NB_MEMORY);
        assert_int_equal(nb_alloc_live(), live);
        b.desk.n_open = 0;
    }
    assert_true(n > 4);
    nb_tokens_free(&ids);
    bench_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pooled_states_do_not_depend_on_company),
        cmocka_unit_test(pooling_is_of_a_prompt_alone),
        cmocka_unit_test(memory_may_fail),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
