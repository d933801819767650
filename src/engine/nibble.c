/* The public interface (nibble.h) over the parts of the library. */
#define _GNU_SOURCE
#include "base/fpenv.h"
#include "engine/dialog.h"
#include "model/arch.h"

#include <sched.h>
#include <string.h>

struct nb_lm {
    nb_pool *pool;
    nb_kernels kernels;
    nb_store *store;
    nb_model model;
    nb_tokenizer *tokenizer;
    nb_jinja *template_; /* NULL: none */
    nb_kv_format kv;
    nb_sampling sampling;
};

struct nb_session {
    nb_lm *lm;
    nb_generator generator;
};

/* ---- opening ---- */

static int n_processors(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0)
        return 1;
    const int n = CPU_COUNT(&set);
    return n < 1 ? 1 : n > NB_POOL_MAX_THREADS ? NB_POOL_MAX_THREADS : n;
}

/* The index of `word` in `words`, which ends with NULL; NULL is the first. */
static nb_status find_word(const char *option, const char *word, const char *const *words, int *out,
                           nb_err *err)
{
    *out = 0;
    if (word == NULL)
        return NB_OK;
    for (int i = 0; words[i] != NULL; i++) {
        if (strcmp(word, words[i]) == 0) {
            *out = i;
            return NB_OK;
        }
    }
    return nb_fail(err, NB_USAGE, "the option %s has no value '%s'", option, word);
}

static nb_status open_threads(nb_lm *lm, const nb_lm_options *o, nb_err *err)
{
    if (o->threads < 0 || o->threads > NB_POOL_MAX_THREADS)
        return nb_fail(err, NB_USAGE, "%d threads: there may be 1 to %d, or 0 for all processors",
                       o->threads, NB_POOL_MAX_THREADS);
    unsigned mask;
    NB_TRY(nb_isa_choose(o->isa != NULL ? o->isa : "auto", &mask, err));
    nb_kernels_init(&lm->kernels, mask);
    return nb_pool_open(&lm->pool, o->threads > 0 ? o->threads : n_processors(), err);
}

static nb_status open_template(nb_lm *lm, nb_err *err)
{
    const char *text;
    size_t len;
    NB_TRY(nb_store_chat_template(lm->store, &text, &len, err));
    if (text != NULL && nb_jinja_parse(&lm->template_, text, len, err) != NB_OK)
        return nb_context(err, "%s: chat template", nb_store_path(lm->store));
    return NB_OK;
}

static nb_status open_lm(nb_lm *lm, const char *path, const nb_lm_options *o, nb_err *err)
{
    static const char *const computes[] = {"auto", "f", "i8", "i16", NULL};
    static const nb_compute_choice choices[] = {NB_COMPUTE_AUTO, NB_COMPUTE_ALL_F,
                                                NB_COMPUTE_ALL_I8, NB_COMPUTE_ALL_I16};
    int compute;
    NB_TRY(find_word("compute", o->compute, computes, &compute, err));
    const bool kv_given = o->kv != NULL && strcmp(o->kv, "auto") != 0;
    if (kv_given && !nb_kv_format_named(o->kv, &lm->kv))
        return nb_fail(err, NB_USAGE, "the option kv has no value '%s'", o->kv);
    if (o->n_ctx < 0 || o->n_ctx > (1 << 24))
        return nb_fail(err, NB_USAGE, "a context of %lld tokens: there may be 1 to %d",
                       (long long)o->n_ctx, 1 << 24);
    NB_TRY(open_threads(lm, o, err));
    NB_TRY(nb_store_open(&lm->store, path, err));
    const nb_model_options options = {choices[compute], o->n_ctx};
    NB_TRY(nb_model_open(&lm->model, lm->store, &options, lm->pool, err));
    if (kv_given && strcmp(o->kv, NB_KV_FP8_DYNAMIC) == 0)
        nb_model_forget_kv_scales(&lm->model);
    if (!kv_given)
        lm->kv = nb_config_kv_format(&lm->model.config);
    NB_TRY(nb_tokenizer_open(&lm->tokenizer, lm->store, err));
    NB_TRY(open_template(lm, err));
    return nb_sampling_read(lm->store, &lm->sampling, err);
}

nb_status nb_lm_open(nb_lm **out, const char *path, const nb_lm_options *options, nb_err *err)
{
    nb_lm *lm;
    NB_TRY(NB_ALLOC(&lm, 1, err));
    /* Reading a number from JSON is arithmetic, too: a host's rounding would change rope_theta. */
    const uint64_t env = nb_fpenv_enter();
    const nb_status s = open_lm(lm, path, options, err);
    nb_fpenv_leave(env);
    if (s == NB_OK)
        *out = lm;
    else
        nb_lm_close(lm);
    return s;
}

void nb_lm_close(nb_lm *lm)
{
    if (lm == NULL)
        return;
    nb_jinja_free(lm->template_);
    nb_tokenizer_close(lm->tokenizer);
    nb_model_close(&lm->model);
    nb_store_close(lm->store);
    nb_pool_close(lm->pool);
    nb_free(lm);
}

void nb_lm_describe(const nb_lm *lm, nb_lm_info *out)
{
    const nb_model *m = &lm->model;
    *out = (nb_lm_info){
        .path = nb_store_path(lm->store),
        .architecture = m->config.arch->name,
        .compute = nb_model_compute_name(m),
        .isa = nb_isa_name(lm->kernels.isa),
        .kv = nb_kv_format_name(lm->kv),
        .threads = nb_pool_n_threads(lm->pool),
        .n_ctx = m->n_ctx,
        .n_ctx_model = m->config.n_ctx,
        .vocab_size = m->config.vocab_size,
        .n_params = m->n_params,
        .file_bytes = nb_store_file_bytes(lm->store),
        .weight_bytes = m->packed_bytes,
        .kv_bytes =
            nb_kv_pages_for(m->n_ctx) * NB_KV_PAGE * nb_config_kv_bytes(&m->config, lm->kv) +
            nb_config_kv_recent_bytes(&m->config, lm->kv),
        .bos = nb_tokenizer_bos(lm->tokenizer),
        .eos = nb_tokenizer_eos(lm->tokenizer),
        .has_chat = lm->template_ != NULL,
    };
}

void nb_lm_sampling(const nb_lm *lm, nb_sampling *out)
{
    *out = lm->sampling;
}

/* ---- text and tokens ---- */

/* Hands the ids over, or frees them. */
static nb_status give_ids(nb_status s, nb_tokens *found, int32_t **ids, int64_t *n, nb_err *err)
{
    if (s == NB_OK && found->ids == NULL) /* an empty list is a pointer, too */
        s = NB_ALLOC(&found->ids, 1, err);
    if (s != NB_OK) {
        nb_tokens_free(found);
        return s;
    }
    *ids = found->ids;
    *n = found->n;
    return NB_OK;
}

nb_status nb_lm_encode(const nb_lm *lm, const char *text, size_t len, bool parse_special,
                       bool add_bos, int32_t **ids, int64_t *n, nb_err *err)
{
    nb_tokens found = {0};
    const nb_encode_options options = {.parse_special = parse_special, .add_bos = add_bos};
    const nb_status s = nb_tokenizer_encode(lm->tokenizer, text, len, options, &found, err);
    return give_ids(s, &found, ids, n, err);
}

nb_status nb_lm_decode(const nb_lm *lm, const int32_t *ids, int64_t n, bool with_special,
                       char **text, size_t *len, nb_err *err)
{
    nb_buf bytes = {0};
    nb_decoder decoder = {0};
    nb_status s =
        nb_tokenizer_decode(lm->tokenizer, &decoder, ids, n, with_special, true, &bytes, err);
    if (s == NB_OK)
        s = nb_buf_u8(&bytes, 0, err);
    if (s != NB_OK) {
        nb_buf_free(&bytes);
        return s;
    }
    *text = (char *)bytes.data;
    *len = bytes.len - 1;
    return NB_OK;
}

nb_status nb_lm_chat(const nb_lm *lm, const nb_chat_message *messages, int64_t n_messages,
                     bool open_answer, int32_t **ids, int64_t *n, nb_err *err)
{
    if (lm->template_ == NULL)
        return nb_fail(err, NB_UNSUPPORTED, "%s: the model has no chat template",
                       nb_store_path(lm->store));
    nb_message *inner;
    NB_TRY(NB_ALLOC(&inner, n_messages, err));
    for (int64_t i = 0; i < n_messages; i++)
        inner[i] = (nb_message){
            .role = messages[i].role, .content = messages[i].content, .len = messages[i].len};
    nb_tokens found = {0};
    const nb_status s =
        nb_chat_encode(lm->tokenizer, lm->template_, inner, n_messages, open_answer, &found, err);
    nb_free(inner);
    return give_ids(s, &found, ids, n, err);
}

/* ---- sessions ---- */

nb_status nb_session_open(nb_session **out, nb_lm *lm, nb_err *err)
{
    nb_session *session;
    NB_TRY(NB_ALLOC(&session, 1, err));
    session->lm = lm;
    const nb_generator_setup setup = {.model = &lm->model,
                                      .kernels = &lm->kernels,
                                      .pool = lm->pool,
                                      .tokenizer = lm->tokenizer,
                                      .kv = lm->kv};
    const nb_status s = nb_generator_init(&session->generator, &setup, err);
    if (s == NB_OK)
        *out = session;
    else
        nb_free(session);
    return s;
}

void nb_session_close(nb_session *session)
{
    if (session == NULL)
        return;
    nb_generator_free(&session->generator);
    nb_free(session);
}

int64_t nb_session_n_tokens(const nb_session *session)
{
    return session->generator.held.n;
}

nb_status nb_session_feed(nb_session *session, const int32_t *ids, int64_t n, nb_err *err)
{
    return nb_generator_feed(&session->generator, ids, n, err);
}

void nb_session_truncate(nb_session *session, int64_t n)
{
    nb_generator_truncate(&session->generator, n < 0 ? 0 : n);
}

const float *nb_session_logits(const nb_session *session, uint64_t *hash)
{
    const nb_generator *g = &session->generator;
    if (!g->has_logits)
        return NULL;
    if (hash != NULL)
        *hash = nb_generator_hash(g);
    return g->logits;
}

nb_status nb_session_sample(nb_session *session, const nb_sampling *sampling, int32_t *id,
                            nb_err *err)
{
    nb_generator *g = &session->generator;
    NB_TRY(nb_sampling_check(sampling, g->sampler.n, err));
    if (!g->has_logits)
        return nb_fail(err, NB_USAGE, "there are no logits: feed tokens first");
    nb_sampler_begin(&g->sampler, g->held.ids, g->held.n);
    return nb_sample(&g->sampler, sampling, g->logits, g->held.n, id, err);
}

nb_status nb_session_generate(nb_session *session, const int32_t *prompt, int64_t n_prompt,
                              const nb_generate_options *options, nb_generation *out, nb_err *err)
{
    nb_tokens ids = {0};
    nb_status s = NB_OK;
    for (int64_t i = 0; i < n_prompt && s == NB_OK; i++)
        s = nb_tokens_push(&ids, prompt[i], err);
    if (s == NB_OK)
        s = nb_generate(&session->generator, &ids, options, NULL, NULL, out, err);
    nb_tokens_free(&ids);
    return s;
}

void nb_generation_free(nb_generation *g)
{
    nb_free(g->tokens);
    nb_free(g->text);
    nb_free(g->logprobs);
    *g = (nb_generation){0};
}

const char *nb_stop_reason_name(nb_stop_reason reason)
{
    static const char *const names[] = {
#define X(id, text) [id] = (text),
        NB_STOP_LIST(X)
#undef X
    };
    return names[reason];
}
