/* The public interface, used as a stranger would use it: nibble.h alone does the work here. */
#include "support/golden.h"

#include <nibble.h>

#include "base/alloc.h"
#include "support/scratch.h"
#include "support/tiny_model.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#if defined(__aarch64__)
#define FOREIGN_ISA "avx2"
#else
#define FOREIGN_ISA "neon"
#endif

static nb_lm *must_open(const char *name, const tiny_model *how, const nb_lm_options *options)
{
    nb_err err = {0};
    nb_lm *lm = NULL;
    const char *path = scratch_exists(name) ? scratch_path(name) : tiny_model_write(name, how);
    if (nb_lm_open(&lm, path, options, &err) != NB_OK)
        fail_msg("%s", err.text);
    return lm;
}

static const tiny_model wordy = {.never_ends = true};

static void a_model_describes_itself(void **state)
{
    (void)state;
    nb_lm *lm = must_open("wordy", &wordy, &(nb_lm_options){0});
    nb_lm_info info;
    nb_lm_describe(lm, &info);
    assert_string_equal(info.architecture, "llama");
    assert_string_equal(info.path, scratch_path("wordy"));
    assert_string_equal(info.compute, "f");
    assert_string_equal(info.kv, "f16");
    assert_int_equal(info.n_ctx, 256);
    assert_int_equal(info.n_ctx_model, 256);
    assert_int_equal(info.vocab_size, TINY_VOCAB);
    assert_int_equal(info.eos, TINY_EOS);
    assert_true(info.has_chat && info.threads >= 1 && info.weight_bytes > 0);
    /* 2 layers, keys and values of 2 heads of 16, two bytes each. */
    assert_int_equal(info.kv_bytes, 256 * 2 * 2 * 2 * 16 * 2);
    assert_true(info.n_params > 2 * TINY_VOCAB * 64 && info.file_bytes > 4 * info.n_params);
    nb_lm_close(lm);
    const nb_lm_options other = {.threads = 2, .isa = "scalar", .kv = "f32", .n_ctx = 100};
    lm = must_open("wordy", &wordy, &other);
    nb_lm_describe(lm, &info);
    assert_string_equal(info.isa, "scalar");
    assert_int_equal(info.threads, 2);
    assert_int_equal(info.n_ctx, 100);
    assert_int_equal(info.kv_bytes, 128 * 2 * 2 * 2 * 16 * 4); /* whole pages of 32 */
    nb_lm_close(lm);
    lm = must_open("plain", &(tiny_model){.no_template = true}, &(nb_lm_options){0});
    nb_lm_describe(lm, &info);
    assert_false(info.has_chat);
    const nb_chat_message message = {"user", "hi", 2};
    int32_t *ids;
    int64_t n;
    nb_err err = {0};
    assert_int_equal(nb_lm_chat(lm, &message, 1, true, &ids, &n, &err), NB_UNSUPPORTED);
    nb_lm_close(lm);
    nb_lm_close(NULL);
}

static void bad_options_and_files_are_refused(void **state)
{
    (void)state;
    const char *path = scratch_path("wordy");
    const struct {
        nb_lm_options options;
        const char *path;
        nb_status status;
        const char *text;
    } rows[] = {
        {{.threads = -1}, path, NB_USAGE, "-1 threads"},
        {{.threads = 257}, path, NB_USAGE, "257 threads"},
        {{.isa = "sse9"}, path, NB_USAGE, "sse9"},
        {{.isa = FOREIGN_ISA}, path, NB_USAGE, "this machine has no " FOREIGN_ISA},
        {{.compute = "i4"}, path, NB_USAGE, "compute has no value 'i4'"},
        {{.kv = "q8"}, path, NB_USAGE, "kv has no value 'q8'"},
        {{.n_ctx = -5}, path, NB_USAGE, "a context of -5 tokens"},
        {{.n_ctx = 1 << 30}, path, NB_USAGE, "a context of"},
        {{0}, "/does/not/exist.gguf", NB_DATA, "/does/not/exist.gguf"},
    };
    const int64_t live = nb_alloc_live();
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        nb_err err = {0};
        nb_lm *lm = NULL;
        assert_int_equal(nb_lm_open(&lm, rows[i].path, &rows[i].options, &err), rows[i].status);
        assert_non_null(strstr(err.text, rows[i].text));
        assert_null(lm);
        assert_int_equal(nb_alloc_live(), live);
    }
}

static void text_becomes_tokens_and_back(void **state)
{
    (void)state;
    nb_err err = {0};
    nb_lm *lm = must_open("bos", &(tiny_model){.adds_bos = true}, &(nb_lm_options){0});
    const char text[] = "the <|im_end|> \xe2\x82\xac \0 end";
    const size_t len = sizeof text - 1;
    int32_t *ids;
    int64_t n;
    char *back;
    size_t back_len;
    for (int flags = 0; flags < 4; flags++) {
        const bool special = flags & 1, bos = flags & 2;
        assert_int_equal(nb_lm_encode(lm, text, len, special, bos, &ids, &n, &err), NB_OK);
        int n_end = 0;
        for (int64_t i = 0; i < n; i++)
            n_end += ids[i] == TINY_EOS;
        assert_int_equal(n_end, special);
        assert_int_equal(ids[0] == 0, bos);
        assert_int_equal(nb_lm_decode(lm, ids + bos, n - bos, true, &back, &back_len, &err), NB_OK);
        assert_int_equal(back_len, len);
        assert_memory_equal(back, text, len + 1);
        nb_free(back);
        nb_free(ids);
    }
    assert_int_equal(nb_lm_encode(lm, "", 0, false, false, &ids, &n, &err), NB_OK);
    assert_int_equal(n, 0);
    assert_non_null(ids);
    assert_int_equal(nb_lm_decode(lm, ids, 0, false, &back, &back_len, &err), NB_OK);
    assert_string_equal(back, "");
    nb_free(back);
    nb_free(ids);
    const int32_t bad = 5000;
    assert_int_equal(nb_lm_decode(lm, &bad, 1, false, &back, &back_len, &err), NB_DATA);
    const nb_chat_message messages[] = {{"system", "be brief", 8}, {"user", "<|im_end|>", 10}};
    assert_int_equal(nb_lm_chat(lm, messages, 2, true, &ids, &n, &err), NB_OK);
    assert_int_equal(nb_lm_decode(lm, ids, n, true, &back, &back_len, &err), NB_OK);
    assert_string_equal(back, "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\n"
                              "<|im_end|><|im_end|>\n<|im_start|>assistant\n");
    int n_end = 0; /* the one in the message is text */
    for (int64_t i = 0; i < n; i++)
        n_end += ids[i] == TINY_EOS;
    assert_int_equal(n_end, 2);
    nb_free(back);
    nb_free(ids);
    nb_lm_close(lm);
}

/* Logits by feeding one by one and at once are the same; truncating takes them away; two sessions
 * do not disturb each other. */
static void sessions_give_logits(void **state)
{
    (void)state;
    nb_err err = {0};
    nb_lm *lm = must_open("wordy", &wordy, &(nb_lm_options){.threads = 2});
    nb_session *a, *b;
    int32_t *ids;
    int64_t n;
    uint64_t hash_a = 1, hash_b = 2;
    assert_int_equal(nb_lm_encode(lm, "the land and the inn", 20, false, false, &ids, &n, &err),
                     NB_OK);
    assert_int_equal(nb_session_open(&a, lm, &err), NB_OK);
    assert_int_equal(nb_session_open(&b, lm, &err), NB_OK);
    assert_null(nb_session_logits(a, &hash_a));
    int32_t id = 0;
    assert_int_equal(nb_session_sample(a, &(nb_sampling){0}, &id, &err), NB_USAGE);
    assert_int_equal(nb_session_feed(a, ids, n, &err), NB_OK);
    for (int64_t i = 0; i < n; i++)
        assert_int_equal(nb_session_feed(b, ids + i, 1, &err), NB_OK);
    assert_int_equal(nb_session_n_tokens(a), n);
    const float *la = nb_session_logits(a, &hash_a), *lb = nb_session_logits(b, &hash_b);
    assert_memory_equal(la, lb, TINY_VOCAB * sizeof *la);
    assert_true(hash_a == hash_b);
    int32_t best = 0;
    for (int32_t i = 1; i < TINY_VOCAB; i++)
        best = la[i] > la[best] ? i : best;
    assert_int_equal(nb_session_sample(a, &(nb_sampling){0}, &id, &err), NB_OK);
    assert_int_equal(id, best);
    assert_int_equal(nb_session_sample(a, &(nb_sampling){.temperature = -1}, &id, &err), NB_USAGE);
    /* Nearly all tokens are there, also the one that would follow: unless there is a penalty. */
    enum { N_ALL = 250 };
    int32_t all[N_ALL];
    for (int32_t i = 0; i < N_ALL; i++)
        all[i] = 3 + i;
    nb_session_truncate(b, 0);
    assert_int_equal(nb_session_feed(b, all, N_ALL, &err), NB_OK);
    for (int penalty = 0; penalty < 2; penalty++) {
        const nb_sampling how = {.repetition_penalty = penalty == 1 ? 1000 : 0};
        assert_int_equal(nb_session_sample(b, &how, &id, &err), NB_OK);
        assert_int_equal(id >= 3 && id < 3 + N_ALL, penalty == 0);
    }
    nb_session_truncate(a, n + 5);
    assert_non_null(nb_session_logits(a, NULL));
    nb_session_truncate(a, n - 2);
    assert_null(nb_session_logits(a, NULL));
    assert_int_equal(nb_session_n_tokens(a), n - 2);
    assert_int_equal(nb_session_feed(a, ids + n - 2, 2, &err), NB_OK);
    (void)nb_session_logits(a, &hash_a);
    assert_true(hash_a == hash_b);
    nb_session_truncate(a, -3);
    assert_int_equal(nb_session_n_tokens(a), 0);
    const int32_t bad = -1;
    assert_int_equal(nb_session_feed(a, &bad, 1, &err), NB_DATA);
    nb_free(ids);
    nb_session_close(a);
    nb_session_close(b);
    nb_session_close(NULL);
    nb_lm_close(lm);
}

static bool collect(void *context, const char *text, size_t len)
{
    char *all = context;
    strncat(all, text, len);
    return true;
}

/* Generation is what sampling and feeding by hand give. */
static void generation_is_sampling_and_feeding(void **state)
{
    (void)state;
    nb_err err = {0};
    nb_lm *lm = must_open("wordy", &wordy, &(nb_lm_options){0});
    nb_session *a, *b;
    const int32_t prompt[] = {TINY_BYTE('h'), TINY_BYTE('i')};
    assert_int_equal(nb_session_open(&a, lm, &err), NB_OK);
    assert_int_equal(nb_session_open(&b, lm, &err), NB_OK);
    char text[4000] = "";
    const nb_generate_options how = {.sampling = {.temperature = 0.9, .top_k = 30, .seed = 4},
                                     .max_tokens = 25,
                                     .hash_logits = true,
                                     .on_text = collect,
                                     .context = text};
    nb_generation r;
    assert_int_equal(nb_session_generate(a, prompt, 2, &how, &r, &err), NB_OK);
    assert_string_equal(nb_stop_reason_name(r.reason), "max_tokens");
    assert_int_equal(r.n_tokens, 25);
    uint64_t hash = 0;
    assert_int_equal(nb_session_feed(b, prompt, 2, &err), NB_OK);
    for (int i = 0; i < 25; i++) {
        uint64_t row;
        int32_t id;
        (void)nb_session_logits(b, &row);
        hash ^= row;
        assert_int_equal(nb_session_sample(b, &how.sampling, &id, &err), NB_OK);
        assert_int_equal(id, r.tokens[i]);
        assert_int_equal(nb_session_feed(b, &id, 1, &err), NB_OK);
    }
    assert_true(hash == r.logits_hash);
    if (memchr(r.text, 0, r.text_len) == NULL)
        assert_string_equal(text, r.text);
    nb_generation_free(&r);
    nb_generation_free(&r); /* an empty one is fine */
    assert_int_equal(nb_session_generate(a, prompt, 0, &how, &r, &err), NB_DATA);
    static const int32_t many[300];
    assert_int_equal(nb_session_generate(a, many, 300, &how, &r, &err), NB_LIMIT);
    assert_string_equal(err.text, "the prompt has 300 tokens and the context holds 256");
    nb_session_close(a);
    nb_session_close(b);
    nb_lm_close(lm);
}

static void recommended_sampling_is_handed_out(void **state)
{
    (void)state;
    nb_sampling how;
    nb_lm *lm = must_open("wordy", &wordy, &(nb_lm_options){0});
    nb_lm_sampling(lm, &how);
    assert_true(how.temperature == 0);
    nb_lm_close(lm);
    lm = must_open("warm",
                   &(tiny_model){.generation_config =
                                     "{\"do_sample\": true, \"temperature\": 0.5, \"top_k\": 9}"},
                   &(nb_lm_options){0});
    nb_lm_sampling(lm, &how);
    assert_true(how.temperature == 0.5 && how.top_k == 9);
    nb_lm_close(lm);
}

typedef struct {
    const nb_lm *lm;
    int64_t n_want;
    bool ok;
} reader;

static void *read_texts(void *context)
{
    reader *r = context;
    nb_err err = {0};
    r->ok = true;
    for (int i = 0; i < 200; i++) {
        const nb_chat_message message = {"user", "the inn and the land", 20};
        int32_t *ids;
        int64_t n;
        char *text;
        size_t len;
        r->ok &= nb_lm_chat(r->lm, &message, 1, true, &ids, &n, &err) == NB_OK && n == r->n_want;
        r->ok &= nb_lm_decode(r->lm, ids, n, false, &text, &len, &err) == NB_OK && len == 36;
        nb_free(text);
        nb_free(ids);
    }
    return NULL;
}

/* Calls on a const nb_lm run beside each other and beside one that computes (the thread sanitizer
 * watches). */
static void text_calls_run_at_the_same_time(void **state)
{
    (void)state;
    nb_err err = {0};
    nb_lm *lm = must_open("wordy", &wordy, &(nb_lm_options){.threads = 2});
    reader readers[3];
    pthread_t threads[3];
    int32_t *ids;
    int64_t n;
    const nb_chat_message message = {"user", "the inn and the land", 20};
    assert_int_equal(nb_lm_chat(lm, &message, 1, true, &ids, &n, &err), NB_OK);
    nb_free(ids);
    for (int i = 0; i < 3; i++) {
        readers[i] = (reader){.lm = lm, .n_want = n};
        assert_int_equal(pthread_create(&threads[i], NULL, read_texts, &readers[i]), 0);
    }
    nb_session *s;
    nb_generation r;
    const int32_t prompt[] = {TINY_BYTE('h')};
    assert_int_equal(nb_session_open(&s, lm, &err), NB_OK);
    assert_int_equal(
        nb_session_generate(s, prompt, 1, &(nb_generate_options){.max_tokens = 50}, &r, &err),
        NB_OK);
    nb_generation_free(&r);
    nb_session_close(s);
    for (int i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
        assert_true(readers[i].ok);
    }
    nb_lm_close(lm);
}

/* Opening with each allocation failing once. */
static void failing_allocations_leave_nothing(void **state)
{
    (void)state;
    const char *path = tiny_model_write("small", &(tiny_model){.n_layers = 1});
    const int64_t live = nb_alloc_live();
    bool done = false;
    int64_t n_failed = 0;
    for (int64_t n = 1; !done; n += n < 60 ? 1 : 23) {
        nb_err err = {0};
        nb_lm *lm = NULL;
        nb_session *s = NULL;
        nb_alloc_fail_at(n);
        nb_status status = nb_lm_open(&lm, path, &(nb_lm_options){.threads = 1}, &err);
        if (status == NB_OK)
            status = nb_session_open(&s, lm, &err);
        nb_alloc_fail_at(0);
        done = status == NB_OK;
        assert_true(done || status == NB_MEMORY);
        n_failed += !done;
        nb_session_close(s);
        nb_lm_close(lm);
        assert_int_equal(nb_alloc_live(), live);
    }
    assert_true(n_failed > 30);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_model_describes_itself),
        cmocka_unit_test(bad_options_and_files_are_refused),
        cmocka_unit_test(text_becomes_tokens_and_back),
        cmocka_unit_test(sessions_give_logits),
        cmocka_unit_test(generation_is_sampling_and_feeding),
        cmocka_unit_test(recommended_sampling_is_handed_out),
        cmocka_unit_test(text_calls_run_at_the_same_time),
        cmocka_unit_test(failing_allocations_leave_nothing),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
