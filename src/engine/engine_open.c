/* The engine's memory: planned, taken, and given back. */
#include "engine/engine_parts.h"

#include <string.h>

#define DEFAULT_STEP_TOKENS 512
#define DEFAULT_SEQS        64
#define DEFAULT_QUEUE       256
#define DEFAULT_KV_BYTES    ((int64_t)1 << 30)
#define AGEING_MS           1000

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Pages in F16 that packed formats need beside n_blocks blocks: every sequence keeps its own, so
 * there are no more of them than of blocks. */
static int64_t recent_pages(const nb_engine_setup *s, int64_t n_blocks)
{
    return smaller(nb_kv_recent_pages(s->kv, s->max_seqs, s->step_tokens), n_blocks);
}

/* Blocks that fit into so many bytes, with those pages. */
static int64_t blocks_in(const nb_engine_setup *s, int64_t bytes)
{
    const nb_config *c = &s->model->config;
    const int64_t block = (int64_t)nb_kv_page_bytes(c, s->kv);
    const int64_t recent = (int64_t)nb_kv_recent_page_bytes(c);
    const int64_t most = recent_pages(s, INT64_MAX);
    const int64_t n = bytes / (block + (most > 0 ? recent : 0));
    return n <= most ? n : (bytes - most * recent) / block;
}

static void resolve(nb_engine_setup *s)
{
    const nb_config *c = &s->model->config;
    s->n_ctx = s->n_ctx == 0 ? s->model->n_ctx : s->n_ctx;
    s->step_tokens = s->step_tokens == 0 ? DEFAULT_STEP_TOKENS : s->step_tokens;
    s->max_seqs = s->max_seqs == 0 ? DEFAULT_SEQS : s->max_seqs;
    s->max_seqs = smaller(s->max_seqs, s->step_tokens);
    s->max_queue = s->max_queue == 0 ? DEFAULT_QUEUE : s->max_queue;
    if (s->n_blocks == 0 && s->kv_bytes == 0) {
        const int64_t one = nb_kv_pages_for(s->n_ctx);
        const int64_t room = blocks_in(s, DEFAULT_KV_BYTES);
        s->n_blocks = smaller(one * s->max_seqs, room > one ? room : one);
    } else if (s->n_blocks == 0) {
        s->n_blocks = blocks_in(s, s->kv_bytes);
    }
    s->kv_bytes = s->n_blocks * (int64_t)nb_kv_page_bytes(c, s->kv) +
                  recent_pages(s, s->n_blocks) * (int64_t)nb_kv_recent_page_bytes(c);
    /* Who found a packed block would need the F16 form of its last positions, which went with who
     * computed it. */
    s->share_prefixes = s->share_prefixes && nb_kv_bits(s->kv) == 0;
}

static nb_status check(const nb_engine_setup *s, nb_err *err)
{
    if (s->n_ctx < 1 || s->n_ctx > s->model->n_ctx)
        return nb_fail(err, NB_USAGE, "a context of %lld: the model's is %lld", (long long)s->n_ctx,
                       (long long)s->model->n_ctx);
    if (s->step_tokens < 1 || s->max_seqs < 1 || s->max_queue < 0)
        return nb_fail(err, NB_USAGE, "a step needs a token, and room for a sequence");
    if (s->n_guess < 0 || s->n_guess > NB_MAX_GUESS)
        return nb_fail(err, NB_USAGE, "%d tokens to guess: there may be 0 to %d", s->n_guess,
                       NB_MAX_GUESS);
    if (s->n_blocks < 1)
        return nb_fail(err, NB_LIMIT, "the KV cache has no room for %d positions", NB_KV_PAGE);
    return NB_OK;
}

/* Rows of the head past the tokenizer's ids are padding: they have no text. */
static int64_t n_ids_of(const nb_engine_setup *s)
{
    const int64_t vocab = s->model->config.vocab_size;
    return s->tokenizer == NULL ? vocab : smaller(nb_tokenizer_n_tokens(s->tokenizer), vocab);
}

static nb_sched_setup sched_setup(const nb_engine_setup *s)
{
    const nb_config *c = &s->model->config;
    nb_sched_setup out = {.blocks = {.n_blocks = s->n_blocks,
                                     .block_len = NB_KV_PAGE,
                                     .max_seqs = s->max_seqs,
                                     .max_positions = s->n_ctx,
                                     .share_prefixes = s->share_prefixes,
                                     .what = {(uint64_t)s->kv, (uint64_t)c->n_layers}},
                          .step_tokens = s->step_tokens,
                          .own_prompts = nb_kv_bits(s->kv) > 0,
                          .max_waiting = s->max_queue + s->max_seqs,
                          .ageing_ms = AGEING_MS,
                          .policy = s->policy};
    memcpy(out.blocks.key, s->key, sizeof s->key);
    return out;
}

nb_status nb_engine_plan(const nb_engine_setup *asked, nb_engine_memory *out, nb_err *err)
{
    nb_engine_setup s = *asked;
    size_t sched;
    resolve(&s);
    NB_TRY(check(&s, err));
    const nb_config *c = &s.model->config;
    const nb_sched_setup u = sched_setup(&s);
    NB_TRY(nb_sched_bytes(&u, &sched, err));
    const int n_threads = nb_pool_n_threads(s.pool);
    *out = (nb_engine_memory){
        .weights = s.model->packed_bytes,
        .cache = s.kv_bytes,
        .work = nb_work_bytes(s.model, n_threads, s.step_tokens) + 4 * s.step_tokens * c->d_model +
                4 * NB_ENGINE_LOGIT_ROWS * c->vocab_size + 17 * n_threads * c->vocab_size,
        .sequences = (int64_t)sched,
        .recent = recent_pages(&s, s.n_blocks) * (int64_t)nb_kv_recent_page_bytes(c),
        .n_blocks = s.n_blocks,
    };
    if (s.draft != NULL) {
        const nb_sampler of_target = {.n = n_ids_of(&s)};
        const nb_draft_setup d = nb_engine_draft_setup(&s, (nb_sampler *)(uintptr_t)&of_target);
        out->draft = s.draft->packed_bytes + nb_draft_bytes(&d);
    }
    out->total = out->weights + out->cache + out->work + out->sequences + out->draft;
    return NB_OK;
}

static nb_status take_memory(nb_engine *e, nb_err *err)
{
    const nb_engine_setup *s = &e->setup;
    const nb_config *c = &s->model->config;
    const nb_sched_setup u = sched_setup(s);
    const int64_t n = s->max_seqs;
    e->n_threads = nb_pool_n_threads(s->pool);
    NB_TRY(nb_ends_init(&e->ends, s->tokenizer, e->n_ids, err));
    NB_TRY(nb_sched_init(&e->sched, &u, err));
    NB_TRY(nb_step_plan_init(&e->plan, &e->sched, err));
    NB_TRY(nb_work_init(&e->work, s->model, s->kernels, s->pool, s->step_tokens, err));
    NB_TRY(
        nb_kv_pool_init_recent(&e->kv, c, s->kv, s->n_blocks, recent_pages(s, s->n_blocks), err));
    NB_TRY(NB_ALLOC(&e->seqs, n, err));
    for (int64_t i = 0; i < n; i++)
        NB_TRY(nb_kv_seq_init_lent(&e->seqs[i], &e->kv, nb_blocks_table(&e->sched.blocks, i),
                                   e->sched.blocks.max_table, err));
    NB_TRY(NB_ALLOC(&e->inputs, n, err));
    NB_TRY(NB_ALLOC(&e->first_row, n + 1, err));
    NB_TRY(NB_ALLOC(&e->broken, n, err));
    NB_TRY(NB_ALLOC(&e->results, n, err));
    NB_TRY(NB_ALLOC(&e->fed, n, err));
    NB_TRY(NB_ALLOC(&e->made, n, err));
    NB_TRY(NB_ALLOC(&e->n_guessed, n, err));
    NB_TRY(NB_ALLOC(&e->entry_choice, n, err));
    NB_TRY(NB_ALLOC(&e->by_slot, e->sched.n_slots, err));
    NB_TRY(NB_ALLOC(&e->slot_id, e->sched.n_slots, err));
    NB_TRY(NB_ALLOC(&e->slot_sample, e->sched.n_slots, err));
    NB_TRY(NB_ALLOC(&e->live, e->max_claimed, err));
    NB_TRY(NB_ALLOC(&e->hidden, s->step_tokens * c->d_model, err));
    NB_TRY(NB_ALLOC(&e->logits, NB_ENGINE_LOGIT_ROWS * c->vocab_size, err));
    NB_TRY(NB_ALLOC(&e->rows, NB_ENGINE_LOGIT_ROWS, err));
    NB_TRY(NB_ALLOC(&e->samplers, e->n_threads, err));
    for (int i = 0; i < e->n_threads; i++)
        NB_TRY(nb_sampler_init(&e->samplers[i], s->kernels, e->n_ids, err));
    if (s->draft == NULL)
        return NB_OK;
    NB_TRY(NB_ALLOC(&e->asks, n, err));
    NB_TRY(NB_ALLOC(&e->ask_entry, n, err));
    const nb_draft_setup d = nb_engine_draft_setup(s, e->samplers);
    return nb_draft_init(&e->draft, &d, err);
}

static void give_back(nb_engine *e)
{
    for (int i = 0; i < e->n_threads && e->samplers != NULL; i++)
        nb_sampler_free(&e->samplers[i]);
    nb_draft_free(&e->draft);
    nb_json_tokens_free(&e->json);
    nb_ends_free(&e->ends);
    nb_step_plan_free(&e->plan);
    for (int64_t i = 0; i < e->setup.max_seqs && e->seqs != NULL; i++)
        nb_kv_seq_free(&e->seqs[i]);
    nb_sched_free(&e->sched);
    nb_work_free(&e->work);
    nb_kv_pool_free(&e->kv);
    void *all[] = {e->seqs,    e->inputs,      e->first_row, e->broken,   e->results,
                   e->fed,     e->made,        e->n_guessed, e->rows,     e->entry_choice,
                   e->by_slot, e->hidden,      e->logits,    e->samplers, e->live,
                   e->slot_id, e->slot_sample, e->asks,      e->ask_entry};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        nb_free(all[i]);
    pthread_cond_destroy(&e->wake);
    pthread_mutex_destroy(&e->mutex);
    nb_free(e);
}

nb_status nb_engine_open(nb_engine **out, const nb_engine_setup *setup, nb_err *err)
{
    nb_engine *e;
    *out = NULL;
    NB_TRY(NB_ALLOC(&e, 1, err));
    e->setup = *setup;
    resolve(&e->setup);
    pthread_mutex_init(&e->mutex, NULL);
    pthread_cond_init(&e->wake, NULL);
    e->requests_end = &e->requests;
    e->max_claimed = e->setup.max_queue + e->setup.max_seqs;
    e->n_ids = n_ids_of(setup);
    nb_status s = check(&e->setup, err);
    if (s == NB_OK)
        s = take_memory(e, err);
    if (s == NB_OK)
        s = nb_engine_start(e, err);
    if (s != NB_OK) {
        give_back(e);
        return s;
    }
    *out = e;
    return NB_OK;
}

void nb_engine_close(nb_engine *e)
{
    if (e == NULL)
        return;
    pthread_mutex_lock(&e->mutex);
    e->stop = e->draining = e->any_news = true;
    pthread_cond_signal(&e->wake);
    pthread_mutex_unlock(&e->mutex);
    pthread_join(e->thread, NULL);
    give_back(e);
}
