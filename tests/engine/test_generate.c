/* The loop from prompt to answer: the same tokens however it is computed, text that never breaks a
 * character or shows a stop string, and an end that is always explained. */
#define _GNU_SOURCE
#include "opened.h"

#include "base/rng.h"
#include "engine/stoptext.h"
#include "text/unicode.h"

#include <stdlib.h>

static const tiny_model wordy = {.never_ends = true};
static const char prompt_text[] =
    "the land and the inn: then and there, 1234 \xc3\xa4\xe2\x82\xac.";

static void same_answer(const nb_generation *a, const nb_generation *b)
{
    assert_int_equal(a->n_tokens, b->n_tokens);
    assert_memory_equal(a->tokens, b->tokens, (size_t)a->n_tokens * sizeof *a->tokens);
    assert_int_equal(a->text_len, b->text_len);
    assert_memory_equal(a->text, b->text, a->text_len + 1);
    assert_int_equal(a->reason, b->reason);
    assert_true(a->logits_hash == b->logits_hash);
}

/* Chunks of a prompt, threads and instruction sets change no token and no bit of a logit. */
static void answers_do_not_depend_on_how_they_are_computed(void **state)
{
    (void)state;
    const char *path = model_path("wordy", &wordy);
    const nb_generate_options hows[] = {
        {.max_tokens = 40, .hash_logits = true},
        {.max_tokens = 40, .hash_logits = true, .sampling = {.temperature = 1.2, .seed = 5}},
    };
    const opening ways[] = {{.threads = 1},
                            {.threads = 3},
                            {.threads = 2, .step_tokens = 1},
                            {.step_tokens = 7},
                            {.step_tokens = 64, .threads = 2},
                            {.isa = NB_ISA_AVX2, .step_tokens = 3}};
    nb_generation first[2];
    for (size_t w = 0; w < sizeof ways / sizeof *ways; w++) {
        opened o;
        must_open(&o, path, &ways[w]);
        for (int h = 0; h < 2; h++) {
            nb_generation r = must_generate(&o, prompt_text, &hows[h]);
            assert_int_equal(r.n_tokens, 40);
            assert_int_equal(r.reason, NB_STOP_MAX_TOKENS);
            assert_int_equal(r.n_steps, 39);
            if (w == 0) {
                first[h] = r;
                continue;
            }
            same_answer(&r, &first[h]);
            nb_generation_free(&r);
        }
        close_opened(&o);
    }
    assert_true(first[0].logits_hash != first[1].logits_hash && first[0].logits_hash != 0);
    nb_generation_free(&first[0]);
    nb_generation_free(&first[1]);
}

/* A prompt that begins like what the cache holds costs only the rest, and gives the bits of a
 * fresh start: after a longer, a shorter, a diverging and the same prompt. */
static void the_cache_is_reused_without_a_trace(void **state)
{
    (void)state;
    const char *const texts[] = {
        "the land and the inn", "the land and the in",           "the land and a hat",
        "the land and a hat",   "the land and a hat that sings", "nothing"};
    const nb_generate_options how = {
        .max_tokens = 12, .hash_logits = true, .sampling = {.temperature = 1, .seed = 9}};
    const char *path = model_path("wordy", &wordy);
    opened o, fresh;
    must_open(&o, path, &(opening){0});
    int64_t n_cached = 0;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        must_open(&fresh, path, &(opening){0});
        nb_generation a = must_generate(&o, texts[i], &how);
        nb_generation b = must_generate(&fresh, texts[i], &how);
        same_answer(&a, &b);
        assert_int_equal(b.n_cached, 0);
        assert_int_equal(a.n_prompt, b.n_prompt);
        assert_int_equal(a.n_cached + a.n_prefilled, a.n_prompt);
        if (i == 3) /* the same prompt again: only its last token, for the logits */
            assert_int_equal(a.n_cached, a.n_prompt - 1);
        n_cached += a.n_cached;
        nb_generation_free(&a);
        nb_generation_free(&b);
        close_opened(&fresh);
    }
    assert_true(n_cached > 30);
    close_opened(&o);
}

/* Greedy is the argmax of the logits that the same tokens give when they are fed one by one. */
static void greedy_is_the_argmax(void **state)
{
    (void)state;
    opened o;
    must_open(&o, model_path("wordy", &wordy), &(opening){0});
    nb_generation r =
        must_generate(&o, "the", &(nb_generate_options){.max_tokens = 20, .hash_logits = true});
    nb_err err = {0};
    nb_tokens ids = {0};
    uint64_t hash = 0;
    encode(&o, "the", &ids);
    nb_generator_truncate(&o.generator, 0);
    assert_int_equal(nb_generator_feed(&o.generator, ids.ids, ids.n, &err), NB_OK);
    for (int64_t i = 0; i < r.n_tokens; i++) {
        /* The rows are those of the tokens n - 1, n, ... counted from the prompt's first, 0. */
        hash ^= nb_logits_hash(o.generator.logits, TINY_VOCAB, (uint64_t)(ids.n - 1 + i));
        assert_int_equal(o.kernels.argmax(o.generator.logits, TINY_VOCAB), r.tokens[i]);
        assert_int_equal(nb_generator_feed(&o.generator, &r.tokens[i], 1, &err), NB_OK);
    }
    assert_true(hash == r.logits_hash);
    nb_tokens_free(&ids);
    nb_generation_free(&r);
    close_opened(&o);
}

/* Penalties know the answer so far (no token twice) and the prompt (none of its tokens). */
static void penalties_see_prompt_and_answer(void **state)
{
    (void)state;
    opened o;
    must_open(&o, model_path("wordy", &wordy), &(opening){0});
    nb_generation r = must_generate(
        &o, "the",
        &(nb_generate_options){.max_tokens = 60, .sampling = {.presence_penalty = 1000}});
    for (int64_t i = 0; i < r.n_tokens; i++) {
        for (int64_t k = 0; k < i; k++)
            assert_int_not_equal(r.tokens[i], r.tokens[k]);
    }
    nb_generation_free(&r);
    /* Nearly all tokens are in the prompt, also the one that would follow. */
    enum { N = 250 };
    nb_err err = {0};
    nb_tokens ids = {0};
    for (int32_t i = 0; i < N; i++)
        assert_int_equal(nb_tokens_push(&ids, 3 + i, &err), NB_OK);
    for (int penalty = 0; penalty < 2; penalty++) {
        const nb_generate_options how = {
            .max_tokens = 1, .sampling = {.repetition_penalty = penalty == 1 ? 1000 : 0}};
        assert_int_equal(nb_generate(&o.generator, &ids, &how, NULL, NULL, &r, &err), NB_OK);
        assert_int_equal(r.tokens[0] >= 3 && r.tokens[0] < 3 + N, penalty == 0);
        nb_generation_free(&r);
    }
    nb_tokens_free(&ids);
    close_opened(&o);
}

/* ---- text ---- */

typedef struct {
    nb_buf text;
    int64_t n_calls, stop_after; /* 0: never */
    bool broken;                 /* a piece was not whole characters */
    bool stopped;
} listener;

static bool listen(void *context, const char *text, size_t len)
{
    listener *l = context;
    nb_err err = {0};
    assert_false(l->stopped);
    for (size_t i = 0; i < len;) {
        int32_t c;
        i += nb_utf8_next((const uint8_t *)text + i, len - i, &c);
        l->broken |= c < 0;
    }
    assert_int_equal(nb_buf_put(&l->text, text, len, &err), NB_OK);
    l->n_calls++;
    l->stopped = l->n_calls == l->stop_after;
    return !l->stopped;
}

/* Random bytes as tokens: pieces are whole characters, and together they are the text, which is
 * what decoding all tokens at once gives. */
static void pieces_of_text_are_whole_characters(void **state)
{
    (void)state;
    opened o;
    must_open(&o, model_path("wordy", &wordy), &(opening){0});
    int n_replaced = 0, n_multi = 0;
    for (uint64_t seed = 0; seed < 8; seed++) {
        listener l = {0};
        nb_generation r =
            must_generate(&o, prompt_text,
                          &(nb_generate_options){.max_tokens = 100,
                                                 .sampling = {.temperature = 1.5, .seed = seed},
                                                 .on_text = listen,
                                                 .context = &l});
        assert_false(l.broken);
        assert_int_equal(l.text.len, r.text_len);
        assert_memory_equal(l.text.data, r.text, r.text_len);
        nb_buf whole = {0};
        nb_decoder decoder = {0};
        nb_err err = {0};
        assert_int_equal(nb_tokenizer_decode(o.tokenizer, &decoder, r.tokens, r.n_tokens, false,
                                             true, &whole, &err),
                         NB_OK);
        assert_int_equal(whole.len, r.text_len);
        assert_memory_equal(whole.data, r.text, whole.len);
        n_replaced += strstr(r.text, "\xef\xbf\xbd") != NULL;
        for (size_t i = 0; i < r.text_len; i++)
            n_multi += ((uint8_t)r.text[i] & 0xe0) == 0xc0;
        nb_buf_free(&whole);
        nb_buf_free(&l.text);
        nb_generation_free(&r);
    }
    assert_true(n_replaced > 0 && n_multi > 0); /* else this looked at nothing */
    close_opened(&o);
}

/* Every substring of an answer, given as a stop string, ends it right before its first occurrence,
 * wherever tokens begin and end; what is shown is the same text. */
static void stop_strings_cut_across_tokens(void **state)
{
    (void)state;
    opened o;
    must_open(&o, model_path("wordy", &wordy), &(opening){0});
    nb_generate_options how = {.max_tokens = 30, .sampling = {.temperature = 1.5, .seed = 3}};
    nb_generation whole = must_generate(&o, prompt_text, &how);
    int n_tried = 0;
    for (size_t from = 0; from < whole.text_len; from += 2) {
        for (size_t len = 1; len <= 7 && from + len <= whole.text_len; len += 2) {
            char stop[8] = {0};
            memcpy(stop, whole.text + from, len);
            nb_stoptext probe; /* only whole characters can be asked for */
            nb_err err = {0};
            const char *const stops[] = {stop};
            if (strlen(stop) != len || nb_stoptext_init(&probe, stops, 1, &err) != NB_OK)
                continue;
            nb_stoptext_free(&probe);
            listener l = {0};
            how.stops = stops;
            how.n_stops = 1;
            how.on_text = listen;
            how.context = &l;
            nb_generation r = must_generate(&o, prompt_text, &how);
            assert_int_equal(r.reason, NB_STOP_TEXT);
            const char *first = memmem(whole.text, whole.text_len, stop, len);
            assert_int_equal(r.text_len, first - whole.text);
            assert_memory_equal(r.text, whole.text, r.text_len);
            assert_int_equal(l.text.len, r.text_len);
            assert_false(l.broken);
            assert_memory_equal(r.tokens, whole.tokens, (size_t)r.n_tokens * sizeof *r.tokens);
            nb_buf_free(&l.text);
            nb_generation_free(&r);
            n_tried++;
        }
    }
    assert_true(n_tried > 20);
    nb_generation_free(&whole);
    close_opened(&o);
}

/* ---- ends ---- */

/* The model's own end: its token is not part of the answer. */
static void the_end_token_ends_it(void **state)
{
    (void)state;
    opened o;
    must_open(&o, model_path("ending", &(tiny_model){0}), &(opening){0});
    int n_ended = 0;
    for (uint64_t seed = 0; seed < 40; seed++) {
        nb_generation r = must_generate(
            &o, "the end", &(nb_generate_options){.sampling = {.temperature = 2, .seed = seed}});
        for (int64_t i = 0; i < r.n_tokens; i++)
            assert_int_not_equal(r.tokens[i], TINY_EOS);
        assert_true(r.reason == NB_STOP_EOS || r.reason == NB_STOP_CONTEXT);
        n_ended += r.reason == NB_STOP_EOS;
        nb_generation_free(&r);
    }
    assert_true(n_ended > 0);
    close_opened(&o);
}

/* Prompt and answer have exactly n_ctx tokens when the context is full. */
static void a_full_context_ends_it(void **state)
{
    (void)state;
    const char *path = model_path("wordy", &wordy);
    for (int64_t n_ctx = 1; n_ctx < 80; n_ctx += 13) {
        opened o;
        nb_err err = {0};
        nb_tokens ids = {0};
        must_open(&o, path, &(opening){.n_ctx = n_ctx});
        for (int64_t n = 1; n <= n_ctx + 1; n += n < n_ctx - 2 ? 11 : 1) {
            ids.n = 0;
            for (int64_t i = 0; i < n; i++)
                assert_int_equal(nb_tokens_push(&ids, (int32_t)(3 + i % 200), &err), NB_OK);
            nb_generation r;
            const nb_status s =
                nb_generate(&o.generator, &ids, &(nb_generate_options){0}, NULL, NULL, &r, &err);
            if (n > n_ctx) {
                char want[100];
                snprintf(want, sizeof want, "the prompt has %d tokens and the context holds %d",
                         (int)n, (int)n_ctx);
                assert_int_equal(s, NB_LIMIT);
                assert_string_equal(err.text, want);
                continue;
            }
            assert_int_equal(s, NB_OK);
            assert_int_equal(r.reason, NB_STOP_CONTEXT);
            assert_int_equal(r.n_prompt, n);
            assert_int_equal(r.n_tokens, n_ctx - n);
            assert_true(r.n_tokens > 0 || r.text_len == 0);
            nb_generation_free(&r);
        }
        nb_tokens_free(&ids);
        close_opened(&o);
    }
}

static nb_status halve(void *context, nb_tokens *prompt, bool *shorter, nb_err *err)
{
    int *n_left = context;
    (void)err;
    if ((*n_left)-- <= 0)
        return NB_OK;
    prompt->n = (prompt->n + 1) / 2;
    *shorter = true;
    return NB_OK;
}

/* on_full shortens the prompt; the answer goes on after it, as if the shorter prompt and the
 * answer so far had been there from the start. */
static void a_shorter_prompt_makes_room(void **state)
{
    (void)state;
    enum { CTX = 64 };
    opened o, fresh;
    nb_err err = {0};
    const char *path = model_path("wordy", &wordy);
    must_open(&o, path, &(opening){.n_ctx = CTX});
    must_open(&fresh, path, &(opening){.n_ctx = CTX});
    nb_tokens ids = {0};
    for (int i = 0; i < 40; i++)
        assert_int_equal(nb_tokens_push(&ids, 10 + 3 * i, &err), NB_OK);
    int n_left = 1;
    nb_generation r;
    assert_int_equal(
        nb_generate(&o.generator, &ids, &(nb_generate_options){0}, halve, &n_left, &r, &err),
        NB_OK);
    assert_int_equal(r.reason, NB_STOP_CONTEXT);
    assert_int_equal(ids.n, 20);
    assert_int_equal(r.n_prompt, 40);
    assert_int_equal(r.n_dropped, 20);
    assert_int_equal(r.n_tokens, CTX - 20);
    /* The second half, greedily, from a fresh start. */
    for (int64_t i = 0; i < CTX - 40; i++)
        assert_int_equal(nb_tokens_push(&ids, r.tokens[i], &err), NB_OK);
    nb_generation rest;
    assert_int_equal(
        nb_generate(&fresh.generator, &ids, &(nb_generate_options){0}, NULL, NULL, &rest, &err),
        NB_OK);
    assert_int_equal(rest.n_tokens, 20);
    assert_memory_equal(rest.tokens, r.tokens + CTX - 40, 20 * sizeof *r.tokens);
    nb_generation_free(&r);
    nb_generation_free(&rest);
    /* A prompt that never fitted is cut before anything is computed. */
    ids.n = 0;
    for (int i = 0; i < 3 * CTX; i++)
        assert_int_equal(nb_tokens_push(&ids, 10 + i % 50, &err), NB_OK);
    n_left = 2;
    assert_int_equal(nb_generate(&o.generator, &ids, &(nb_generate_options){.max_tokens = 2}, halve,
                                 &n_left, &r, &err),
                     NB_OK);
    assert_int_equal(r.n_prompt, 3 * CTX / 4);
    assert_int_equal(r.n_tokens, 2);
    nb_generation_free(&r);
    nb_tokens_free(&ids);
    close_opened(&o);
    close_opened(&fresh);
}

/* The callback ends it at any call, between the steps of a prompt too; it is not called again, and
 * the generator is fit for the next prompt. */
static void the_caller_ends_it(void **state)
{
    (void)state;
    const char *path = model_path("wordy", &wordy);
    opened o, fresh;
    must_open(&o, path, &(opening){.step_tokens = 4});
    must_open(&fresh, path, &(opening){0});
    const nb_generate_options plain = {.max_tokens = 5, .hash_logits = true};
    nb_generation want = must_generate(&fresh, prompt_text, &plain);
    int n_middle = 0;
    for (int64_t at = 1; at < 25; at++) {
        listener l = {.stop_after = at};
        nb_generator_truncate(&o.generator, at % 3 == 0 ? 0 : 2);
        nb_generation r = must_generate(
            &o, prompt_text,
            &(nb_generate_options){.max_tokens = 50, .on_text = listen, .context = &l});
        assert_int_equal(r.reason, NB_STOP_CALLER);
        assert_int_equal(l.n_calls, at);
        nb_generation_free(&r);
        if (o.generator.held.n % 4 == 2) { /* in the middle of the prompt: exactly what is held */
            nb_tokens held = {0};
            nb_err err = {0};
            nb_generation b;
            for (int64_t i = 0; i < o.generator.held.n; i++)
                assert_int_equal(nb_tokens_push(&held, o.generator.held.ids[i], &err), NB_OK);
            assert_int_equal(nb_generate(&o.generator, &held, &plain, NULL, NULL, &r, &err), NB_OK);
            nb_generator_truncate(&fresh.generator, 0);
            assert_int_equal(nb_generate(&fresh.generator, &held, &plain, NULL, NULL, &b, &err),
                             NB_OK);
            same_answer(&r, &b);
            n_middle++;
            nb_generation_free(&r);
            nb_generation_free(&b);
            nb_tokens_free(&held);
        }
        nb_generation after = must_generate(&o, prompt_text, &plain);
        same_answer(&after, &want);
        nb_generation_free(&after);
        nb_buf_free(&l.text);
    }
    assert_true(n_middle > 0);
    nb_generation_free(&want);
    close_opened(&o);
    close_opened(&fresh);
}

/* Packed caches forget recent positions as they were: going back further than that computes them
 * again, and gives the same bits as a sequence that was never longer. */
static void going_back_computes_again_what_was_packed(void **state)
{
    (void)state;
    static const nb_kv_format formats[] = {NB_KV_INT4, NB_KV_INT2, NB_KV_F16};
    for (int f = 0; f < 3; f++) {
        enum { N = 400 };
        opened o, fresh;
        const opening how = {.n_ctx = N, .step_tokens = 64, .kv = formats[f]};
        must_open(&o, model_path("wordy", &wordy), &how);
        must_open(&fresh, model_path("wordy", &wordy), &how);
        nb_err err = {0};
        int32_t ids[N];
        for (int i = 0; i < N; i++)
            ids[i] = (i * 37 + i / 7) % 100;
        assert_int_equal(nb_generator_feed(&o.generator, ids, N, &err), NB_OK);
        nb_generator_truncate(&o.generator, N - 1); /* still there */
        assert_int_equal(o.generator.seq.n, N - 1);
        nb_generator_truncate(&o.generator, 250);
        assert_int_equal(o.generator.held.n, 250);
        assert_int_equal(o.generator.seq.n, formats[f] == NB_KV_F16 ? 250 : 0);
        assert_int_equal(nb_generator_feed(&o.generator, ids + 5, 20, &err), NB_OK);
        assert_int_equal(nb_generator_feed(&fresh.generator, ids, 250, &err), NB_OK);
        assert_int_equal(nb_generator_feed(&fresh.generator, ids + 5, 20, &err), NB_OK);
        assert_true(nb_generator_hash(&o.generator) == nb_generator_hash(&fresh.generator));
        close_opened(&o);
        close_opened(&fresh);
    }
}

/* ---- failures ---- */

static void bad_prompts_change_nothing(void **state)
{
    (void)state;
    opened o;
    nb_err err = {0};
    nb_generation r;
    must_open(&o, model_path("wordy", &wordy), &(opening){0});
    nb_generation before = must_generate(&o, "the", &(nb_generate_options){.max_tokens = 3});
    const int64_t held = o.generator.held.n;
    nb_tokens none = {0};
    assert_int_equal(
        nb_generate(&o.generator, &none, &(nb_generate_options){0}, NULL, NULL, &r, &err), NB_DATA);
    const int32_t bad[] = {5, 100000};
    assert_int_equal(nb_generator_feed(&o.generator, bad, 2, &err), NB_DATA);
    assert_string_equal(err.text, "token id 100000 is outside the vocabulary of 265");
    assert_int_equal(o.generator.held.n, held);
    static int32_t many[300];
    assert_int_equal(nb_generator_feed(&o.generator, many, 300, &err), NB_LIMIT);
    assert_int_equal(o.generator.held.n, held);
    assert_int_equal(o.generator.seq.n, held);
    nb_generation after = must_generate(&o, "the", &(nb_generate_options){.max_tokens = 3});
    same_answer(&before, &after);
    nb_generation_free(&before);
    nb_generation_free(&after);
    close_opened(&o);
}

/* NaN in the weights of the head ends in a message, not in token 0. */
static void nan_logits_are_an_error(void **state)
{
    (void)state;
    opened o;
    nb_err err = {0};
    nb_tokens ids = {0};
    nb_generation r;
    must_open(&o, model_path("nan", &(tiny_model){.nan_head = true}), &(opening){0});
    encode(&o, "the", &ids);
    assert_int_equal(
        nb_generate(&o.generator, &ids, &(nb_generate_options){0}, NULL, NULL, &r, &err), NB_DATA);
    assert_string_equal(err.text, "the logit of token 7 is NaN");
    nb_tokens_free(&ids);
    close_opened(&o);
}

/* Rows of the head past the tokenizer's ids (vocabularies are padded) are never chosen. */
static void padding_rows_are_never_chosen(void **state)
{
    (void)state;
    opened o;
    must_open(&o, model_path("padded", &(tiny_model){.n_vocab = 1024, .never_ends = true}),
              &(opening){0});
    nb_generation r = must_generate(
        &o, "the",
        &(nb_generate_options){.max_tokens = 200, .sampling = {.temperature = 3, .seed = 1}});
    assert_int_equal(r.n_tokens, 200);
    for (int64_t i = 0; i < r.n_tokens; i++)
        assert_in_range(r.tokens[i], 0, TINY_VOCAB - 1);
    nb_generation_free(&r);
    close_opened(&o);
}

/* Each allocation of opening and generating fails once: a status, nothing leaks, and the same
 * generator then answers as if nothing had happened. */
static void failing_allocations_leave_nothing(void **state)
{
    (void)state;
    const char *path = model_path("wordy", &wordy);
    const char *const stops[] = {"never, ever"};
    const nb_generate_options how = {
        .max_tokens = 70, .hash_logits = true, .stops = stops, .n_stops = 1};
    opened o;
    nb_tokens ids = {0};
    must_open(&o, path, &(opening){0});
    encode(&o, "the", &ids);
    nb_generation want = must_generate(&o, "the", &how);
    const int64_t live = nb_alloc_live();
    bool done = false;
    int64_t n_failed = 0;
    for (int64_t n = 1; !done; n++) {
        nb_err err = {0};
        nb_generation r = {0};
        nb_alloc_fail_at(n);
        const nb_status s = nb_generate(&o.generator, &ids, &how, NULL, NULL, &r, &err);
        nb_alloc_fail_at(0);
        done = s == NB_OK;
        n_failed += !done;
        assert_true(done || s == NB_MEMORY);
        if (done)
            same_answer(&r, &want);
        nb_generation_free(&r);
        assert_int_equal(nb_alloc_live(), live);
    }
    assert_true(n_failed > 5);
    nb_generation_free(&want);
    nb_tokens_free(&ids);
    nb_generator_setup setup = o.generator.setup;
    nb_generator_free(&o.generator);
    const int64_t closed = nb_alloc_live();
    done = false;
    for (int64_t n = 1; !done; n++) {
        nb_err err = {0};
        nb_alloc_fail_at(n);
        done = nb_generator_init(&o.generator, &setup, &err) == NB_OK;
        nb_alloc_fail_at(0);
        assert_true(done || err.status == NB_MEMORY);
        if (!done)
            assert_int_equal(nb_alloc_live(), closed);
    }
    close_opened(&o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_do_not_depend_on_how_they_are_computed),
        cmocka_unit_test(the_cache_is_reused_without_a_trace),
        cmocka_unit_test(greedy_is_the_argmax),
        cmocka_unit_test(penalties_see_prompt_and_answer),
        cmocka_unit_test(pieces_of_text_are_whole_characters),
        cmocka_unit_test(stop_strings_cut_across_tokens),
        cmocka_unit_test(the_end_token_ends_it),
        cmocka_unit_test(a_full_context_ends_it),
        cmocka_unit_test(a_shorter_prompt_makes_room),
        cmocka_unit_test(the_caller_ends_it),
        cmocka_unit_test(going_back_computes_again_what_was_packed),
        cmocka_unit_test(bad_prompts_change_nothing),
        cmocka_unit_test(nan_logits_are_an_error),
        cmocka_unit_test(padding_rows_are_never_chosen),
        cmocka_unit_test(failing_allocations_leave_nothing),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
