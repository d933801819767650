/* Multiple choice: what is read, what is refused with its line, and log-likelihoods, accuracies and
 * ties against a plain computation without any sharing. */
#include "support/golden.h"
#include "support/scratch.h"
#include "support/tiny_model.h"
#include "support/must.h"

#include "eval/tasks.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- reading ---- */

static nb_task load(const char *text, int64_t max_items)
{
    nb_err err;
    nb_task t;
    scratch_text("t.jsonl", text);
    must(nb_task_load(&t, scratch_path("t.jsonl"), max_items, &err), &err);
    return t;
}

static void both_shapes_are_read(void **state)
{
    (void)state;
    nb_task t =
        load("{\"query\": \"Q: why?\", \"choices\": [\"so\", \"\xc3\xa9t\xc3\xa9 \xf0\x9f\x98"
             "\x80\", \"n\\no\"], \"gold\": 2}\n"
             "\r\n  \t\n"
             "{\"context_options\": [\"He \", \"She\\n\\t \"], \"continuation\": \"ran. \","
             " \"gold\": 0, \"id\": 17}",
             0);
    assert_int_equal(t.n_items, 2);
    const nb_task_item *a = &t.items[0], *b = &t.items[1];
    assert_int_equal(a->n_choices, 3);
    assert_int_equal(a->gold, 2);
    assert_int_equal(a->line, 1);
    assert_string_equal(a->choices[0].context, "Q: why?\nAnswer:");
    assert_string_equal(a->choices[2].context, "Q: why?\nAnswer:");
    assert_string_equal(a->choices[0].continuation, " so");
    assert_string_equal(a->choices[1].continuation, " \xc3\xa9t\xc3\xa9 \xf0\x9f\x98\x80");
    assert_int_equal(a->choices[0].n_chars, 2);
    assert_int_equal(a->choices[1].n_chars, 5); /* code points, not bytes */
    assert_int_equal(a->choices[2].n_chars, 3);
    assert_int_equal(b->line, 4);
    /* White space at the end of a context goes to the continuation. */
    assert_string_equal(b->choices[0].context, "He");
    assert_string_equal(b->choices[0].continuation, "  ran. ");
    assert_string_equal(b->choices[1].context, "She");
    assert_string_equal(b->choices[1].continuation, "\n\t  ran. ");
    assert_int_equal(b->choices[0].n_chars, 5);
    assert_int_equal(b->choices[1].n_chars, 5);
    nb_task_free(&t);
    nb_task_free(&t);
    t = load("{\"query\":\"a\",\"choices\":[\"b\",\"c\"],\"gold\":1}\n"
             "{\"query\":\"a\",\"choices\":[\"b\",\"c\"],\"gold\":1}\nnot read any more",
             2);
    assert_int_equal(t.n_items, 2);
    nb_task_free(&t);
    assert_int_equal(nb_alloc_live(), 0);
}

#define GOOD "{\"query\": \"q\", \"choices\": [\"a\", \"b\"], \"gold\": 0}\n"

/* H93 */
static void malformed_items_are_refused_with_file_and_line(void **state)
{
    (void)state;
    static const struct {
        const char *text, *reason;
    } cases[] = {
        {"", "no items"},
        {"\n\n \r\n", "no items"},
        {GOOD "{", "line 2: not valid JSON, line 1 column 1: "},
        {GOOD "\n[1, 2]\n", "line 3: not a JSON object"},
        {GOOD "17", "line 2: not a JSON object"},
        {"{\"choices\": [\"a\", \"b\"], \"gold\": 0}", "line 1: key 'query' is missing"},
        {"{\"query\": 5, \"choices\": [\"a\", \"b\"], \"gold\": 0}",
         "line 1: key 'query' is an integer, not a string"},
        {"{\"query\": \"q\", \"gold\": 0}", "line 1: key 'choices' is missing"},
        {"{\"query\": \"q\", \"choices\": [], \"gold\": 0}",
         "line 1: 'choices' has 0 entries; 2 to 64 are possible"},
        {"{\"query\": \"q\", \"choices\": [\"a\"], \"gold\": 0}",
         "line 1: 'choices' has 1 entries; 2 to 64 are possible"},
        {"{\"query\": \"q\", \"choices\": \"ab\", \"gold\": 0}",
         "line 1: key 'choices' is a string, not an array"},
        {"{\"query\": \"q\", \"choices\": [\"a\", 5], \"gold\": 0}",
         "line 1: 'choices'[1] is not a text, or an empty one"},
        {"{\"query\": \"q\", \"choices\": [\"a\", \"\"], \"gold\": 0}",
         "line 1: 'choices'[1] is not a text, or an empty one"},
        {"{\"query\": \"q\", \"choices\": [\"a\", \" \\n\"], \"gold\": 0}",
         "line 1: 'choices'[1] is white space only"},
        {"{\"query\": \"q\", \"choices\": [\"a\", \"b\"]}", "line 1: key 'gold' is missing"},
        {"{\"query\": \"q\", \"choices\": [\"a\", \"b\"], \"gold\": 2}",
         "line 1: key 'gold' is 2, outside 0 to 1"},
        {"{\"query\": \"q\", \"choices\": [\"a\", \"b\"], \"gold\": -1}",
         "line 1: key 'gold' is -1, outside 0 to 1"},
        {"{\"query\": \"q\", \"choices\": [\"a\", \"b\"], \"gold\": \"A\"}",
         "line 1: key 'gold' is a string, not an integer"},
        {"{\"context_options\": [\"a\", \"b\"], \"gold\": 0}",
         "line 1: key 'continuation' is missing"},
        {"{\"context_options\": [\"a\", \"b\"], \"query\": \"q\", \"gold\": 0}",
         "line 1: key 'continuation' is missing"},
        {GOOD "{\"query\": \"\xff\xfe\", \"choices\": [\"a\", \"b\"], \"gold\": 0}",
         "line 2: not valid JSON, line 1 column "},
        {GOOD "{\"query\": \"q\", \"query\": \"r\", \"choices\": [\"a\", \"b\"], \"gold\": 0}",
         "line 2: not valid JSON, line 1 column "},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        nb_err err = {0};
        nb_task t;
        char want[600];
        scratch_text("bad.jsonl", cases[i].text);
        assert_int_equal(nb_task_load(&t, scratch_path("bad.jsonl"), 0, &err), NB_DATA);
        snprintf(want, sizeof want, "%s: %s", scratch_path("bad.jsonl"), cases[i].reason);
        if (strncmp(err.text, want, strlen(want)) != 0)
            fail_msg("case %zu: '%s', not '%s'", i, err.text, want);
        assert_int_equal(nb_alloc_live(), 0);
    }
    nb_err err = {0};
    nb_task t;
    assert_int_equal(nb_task_load(&t, scratch_path("none.jsonl"), 0, &err), NB_DATA);
    assert_non_null(strstr(err.text, "none.jsonl"));
    assert_int_equal(nb_task_load(&t, scratch_folder(), 0, &err), NB_DATA);
}

/* Ten megabytes in one question: refused with its line, and not encoded first. */
static void an_endless_question_is_refused(void **state)
{
    (void)state;
    const size_t n = 10 << 20;
    char *text = malloc(n + 200);
    memcpy(text, GOOD "{\"query\": \"", strlen(GOOD) + 11);
    memset(text + strlen(GOOD) + 11, 'x', n);
    strcpy(text + strlen(GOOD) + 11 + n, "\", \"choices\": [\"a\", \"b\"], \"gold\": 0}\n");
    nb_err err = {0};
    nb_task t;
    char want[600];
    scratch_text("big.jsonl", text);
    free(text);
    assert_int_equal(nb_task_load(&t, scratch_path("big.jsonl"), 0, &err), NB_DATA);
    snprintf(want, sizeof want, "%s: line 2: a text of 10485760 bytes; at most 262144 fit",
             scratch_path("big.jsonl"));
    assert_string_equal(err.text, want);
    assert_int_equal(nb_alloc_live(), 0);
}

static void reading_survives_every_allocation_failure(void **state)
{
    (void)state;
    scratch_text("t.jsonl", GOOD GOOD "{\"context_options\": [\"a\", \"b\"], \"continuation\": "
                                      "\"c\", \"gold\": 0}");
    int64_t n = 1;
    for (;; n++) {
        nb_err err;
        nb_task t;
        nb_alloc_fail_at(n);
        const nb_status s = nb_task_load(&t, scratch_path("t.jsonl"), 0, &err);
        nb_alloc_fail_at(0);
        nb_task_free(&t);
        assert_int_equal(nb_alloc_live(), 0);
        if (s == NB_OK)
            break;
        assert_int_equal(s, NB_MEMORY);
    }
    assert_true(n > 1);
}

/* ---- scoring ---- */

typedef struct {
    nb_store *store;
    nb_model model;
    nb_tokenizer *tokenizer;
    nb_pool *pool;
    nb_kernels kernels;
} fixture;

static void open_fixture(fixture *f, const char *path, int64_t n_ctx, int threads)
{
    nb_err err;
    *f = (fixture){0};
    must(nb_store_open(&f->store, path, &err), &err);
    must(nb_pool_open(&f->pool, threads, &err), &err);
    nb_kernels_init(&f->kernels, NB_ISA_ALL);
    const nb_model_options options = {NB_COMPUTE_AUTO, n_ctx};
    must(nb_model_open(&f->model, f->store, &options, f->pool, &err), &err);
    must(nb_tokenizer_open(&f->tokenizer, f->store, &err), &err);
}

static void close_fixture(fixture *f)
{
    nb_tokenizer_close(f->tokenizer);
    nb_model_close(&f->model);
    nb_pool_close(f->pool);
    nb_store_close(f->store);
}

/* Written once. */
static const char *plain_model(void)
{
    return scratch_exists("plain") ? scratch_path("plain")
                                   : tiny_model_write("plain", &(tiny_model){.seed = 3});
}

static nb_status run_task(fixture *f, const nb_task *t, nb_task_result *r, nb_err *err)
{
    return nb_task_run(t, &f->model, f->tokenizer, &f->kernels, f->pool, NB_KV_F16, NULL, NULL,
                       NULL, r, err);
}

/* log p(continuation | context), each choice from the start, in binary64. */
static double plain_loglik(fixture *f, const nb_task_choice *c)
{
    nb_err err;
    nb_tokens context = {0}, whole = {0};
    char both[4096];
    snprintf(both, sizeof both, "%s%s", c->context, c->continuation);
    const nb_encode_options how = {.add_bos = true};
    must(nb_tokenizer_encode(f->tokenizer, c->context, strlen(c->context), how, &context, &err),
         &err);
    must(nb_tokenizer_encode(f->tokenizer, both, strlen(both), how, &whole, &err), &err);
    nb_work work;
    nb_kv_pool kv;
    nb_kv_seq seq;
    const int64_t vocab = f->model.config.vocab_size, d = f->model.config.d_model;
    must(nb_work_init(&work, &f->model, &f->kernels, f->pool, 512, &err), &err);
    must(nb_kv_pool_init(&kv, &f->model.config, NB_KV_F16, 16, &err), &err);
    must(nb_kv_seq_init(&seq, &kv, 512, &err), &err);
    float *hidden = calloc((size_t)(whole.n * d), sizeof *hidden);
    float *logits = calloc((size_t)vocab, sizeof *logits);
    const nb_step_input in = {&seq, whole.ids, whole.n - 1, whole.n - 1};
    must(nb_forward(&work, &in, 1, hidden, &err), &err);
    double sum = 0;
    for (int64_t i = context.n; i < whole.n; i++) {
        nb_logits(&work, hidden + (i - 1) * d, 1, logits);
        double max = -INFINITY, total = 0;
        for (int64_t v = 0; v < vocab; v++)
            max = fmax(max, (double)logits[v]);
        for (int64_t v = 0; v < vocab; v++)
            total += exp((double)logits[v] - max);
        sum += (double)logits[whole.ids[i]] - max - log(total);
    }
    free(hidden);
    free(logits);
    nb_kv_seq_free(&seq);
    nb_kv_pool_free(&kv);
    nb_work_free(&work);
    nb_tokens_free(&context);
    nb_tokens_free(&whole);
    return sum;
}

static int64_t first_best(const double *x, int64_t n)
{
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        best = x[i] > x[best] ? i : best;
    return best;
}

static const char *const words[] = {"the",     "sun",          "and",         "in",
                                    "a river", "heat",         "\xc3\xa9lan", "photosynthesis",
                                    "x",       "no one knows", "1234",        "th\xe2\x82\xac"};
#define N_WORDS (sizeof words / sizeof *words)

/* Items of both shapes, two to five choices, long and short; then 20 more: contexts of which one
 * begins with the other, items so long that few fit in a step, and the shortest choices. */
static void write_items(const char *name, int n)
{
    char text[65536];
    size_t len = 0;
    for (int i = 0; i < n; i++) {
        const int n_choices = 2 + i % 4;
        const bool shared = i % 3 == 2;
        len += (size_t)snprintf(text + len, sizeof text - len, "{\"%s\": \"",
                                shared ? "continuation" : "query");
        for (int k = 0; k < 1 + i * 7 % 30; k++)
            len += (size_t)snprintf(text + len, sizeof text - len, "%s%s", k > 0 ? " " : "",
                                    words[(size_t)(i * 5 + k * 3) % N_WORDS]);
        len += (size_t)snprintf(text + len, sizeof text - len, "\", \"%s\": [",
                                shared ? "context_options" : "choices");
        for (int c = 0; c < n_choices; c++)
            len += (size_t)snprintf(text + len, sizeof text - len, "%s\"%s %s\"", c > 0 ? ", " : "",
                                    words[(size_t)(i + c * 5) % N_WORDS],
                                    words[(size_t)(i * i + c) % N_WORDS]);
        len += (size_t)snprintf(text + len, sizeof text - len, "], \"gold\": %d}\n",
                                i * 3 % n_choices);
    }
    char longest[300] = {0};
    memset(longest, 'n', 261);
    len += (size_t)snprintf(
        text + len, sizeof text - len,
        "{\"context_options\": [\"a cat\", \"a cat sat\", \"a\"], \"continuation\": \"sat on it\","
        " \"gold\": 1}\n"
        "{\"context_options\": [\"a cat sat\", \"a cat\"], \"continuation\": \"sat on it\","
        " \"gold\": 1}\n"
        "{\"context_options\": [\"x%s\", \"y%s\"], \"continuation\": \"z\", \"gold\": 0}\n"
        "{\"context_options\": [\"y%s\", \"x%s\"], \"continuation\": \"z\", \"gold\": 0}\n",
        longest, longest, longest, longest);
    len += (size_t)snprintf(text + len, sizeof text - len,
                            "{\"context_options\": [\"a cat\", \"a cat sat\"], \"continuation\": "
                            "\"sat on it\", \"gold\": 1}\n");
    for (int i = 0; i < 15; i++) /* short ones, of which the count of characters decides */
        len +=
            (size_t)snprintf(text + len, sizeof text - len,
                             "{\"query\": \"%s\", \"choices\": [\"%c\", \"%c%c\"], \"gold\": %d}\n",
                             words[(size_t)i % N_WORDS], 'a' + i, 'B' + i, 'z' - i, i % 2);
    assert_true(len < sizeof text);
    scratch_write(name, text, len);
}

/* What is told beforehand is what is run: the same items are refused with the same words, and sizes
 * are those of the tokens. */
static void tasks_are_measured_without_a_model(void **state)
{
    (void)state;
    nb_err err = {0}, other = {0};
    fixture f;
    open_fixture(&f, plain_model(), 512, 1);
    const int64_t vocab = f.model.config.vocab_size;
    /* "q\nAnswer:" is shared but for its last token; then that and " a", " bcd". */
    nb_task t = load("{\"query\": \"q\", \"choices\": [\"a\", \"bcd\"], \"gold\": 0}", 0);
    nb_tokens context = {0}, a = {0}, b = {0};
    const nb_encode_options how = {.add_bos = true};
    const char *texts[] = {"q\nAnswer:", "q\nAnswer: a", "q\nAnswer: bcd"};
    nb_tokens *tokens[] = {&context, &a, &b};
    for (int i = 0; i < 3; i++)
        must(nb_tokenizer_encode(f.tokenizer, texts[i], strlen(texts[i]), how, tokens[i], &err),
             &err);
    nb_task_size size = {.n_tokens = 1000, .n_logits = 100};
    must(nb_task_measure(&t, f.tokenizer, vocab, 512, &size, &err), &err);
    const int64_t shared = context.n - 1;
    assert_int_equal(size.n_logits, 100 + a.n + b.n - 2 * context.n);
    assert_int_equal(size.n_tokens, 1000 + shared + (a.n - 1 - shared) + (b.n - 1 - shared));
    for (int i = 0; i < 3; i++)
        nb_tokens_free(tokens[i]);
    nb_task_result r;
    const nb_task_size before = size;
    assert_int_equal(nb_task_measure(&t, f.tokenizer, 3, 512, &size, &err), NB_DATA);
    assert_non_null(strstr(err.text, "line 1: token id"));
    nb_task_free(&t);
    t = load(GOOD "{\"query\": \"01234567890123456789012345678\", \"choices\": [\"abc\", \"d\"],"
                  " \"gold\": 0}",
             0);
    f.model.n_ctx = 40;
    assert_int_equal(nb_task_measure(&t, f.tokenizer, vocab, 40, &size, &err), NB_DATA);
    assert_int_equal(run_task(&f, &t, &r, &other), NB_DATA);
    assert_string_equal(err.text, other.text);
    assert_memory_equal(&size, &before, sizeof size);
    nb_task_free(&t);
    close_fixture(&f);
}

/* The answers are those that make the accuracies, and what fails leaves nothing. */
static void answers_are_told_item_by_item(void **state)
{
    (void)state;
    enum { N = 40 };
    nb_err err = {0};
    fixture f;
    open_fixture(&f, plain_model(), 512, 1);
    write_items("answers.jsonl", N - 20);
    nb_task t;
    must(nb_task_load(&t, scratch_path("answers.jsonl"), 0, &err), &err);
    nb_task_answer answers[N];
    nb_task_result r;
    must(nb_task_run(&t, &f.model, f.tokenizer, &f.kernels, f.pool, NB_KV_F16, NULL, NULL, answers,
                     &r, &err),
         &err);
    int64_t right = 0, right_norm = 0;
    for (int64_t i = 0; i < N; i++) {
        assert_true(answers[i].choice < t.items[i].n_choices);
        assert_true(answers[i].choice_norm < t.items[i].n_choices);
        right += answers[i].choice == t.items[i].gold;
        right_norm += answers[i].choice_norm == t.items[i].gold;
    }
    assert_true((double)right / N == r.acc && (double)right_norm / N == r.acc_norm);
    const int64_t live = nb_alloc_live();
    nb_task_size size = {0};
    nb_status s = NB_MEMORY;
    int64_t n = 0;
    while (s == NB_MEMORY) {
        nb_alloc_fail_at(++n);
        s = nb_task_measure(&t, f.tokenizer, f.model.config.vocab_size, 512, &size, &err);
        nb_alloc_fail_at(0);
        assert_int_equal(nb_alloc_live(), live);
    }
    must(s, &err);
    assert_true(n > 10);
    nb_task_free(&t);
    close_fixture(&f);
}

/* Shared contexts, batches of items and pages change nothing: every choice has the likelihood that
 * it has alone. The accuracies would hide that, so each item is its own task once. */
static void accuracies_are_those_of_the_plain_computation(void **state)
{
    (void)state;
    enum { N = 90 };
    for (int bos = 0; bos < 2; bos++) {
        nb_err err;
        fixture f;
        open_fixture(&f,
                     bos ? tiny_model_write("bos", &(tiny_model){.seed = 3, .adds_bos = true})
                         : plain_model(),
                     512, 2);
        write_items("items.jsonl", N - 20);
        nb_task t;
        must(nb_task_load(&t, scratch_path("items.jsonl"), 0, &err), &err);
        assert_int_equal(t.n_items, N);
        int64_t right = 0, right_norm = 0, n_differ = 0;
        for (int64_t i = 0; i < N; i++) {
            nb_task_item *item = &t.items[i];
            double x[8], normed[8];
            for (int64_t c = 0; c < item->n_choices; c++) {
                x[c] = plain_loglik(&f, &item->choices[c]);
                normed[c] = x[c] / (double)item->choices[c].n_chars;
            }
            const int64_t best = first_best(x, item->n_choices);
            const int64_t best_norm = first_best(normed, item->n_choices);
            right += best == item->gold;
            right_norm += best_norm == item->gold;
            n_differ += best != best_norm;
            /* Whatever the gold, the item alone is right where the plain computation says so. */
            const int64_t gold = item->gold;
            nb_task one = {.path = "one", .items = item, .n_items = 1};
            for (item->gold = 0; item->gold < item->n_choices; item->gold++) {
                nb_task_result r;
                must(run_task(&f, &one, &r, &err), &err);
                assert_true(r.acc == (item->gold == best));
                assert_true(r.acc_norm == (item->gold == best_norm));
                assert_true(r.acc_se == 0 && r.n == 1);
            }
            item->gold = gold;
        }
        assert_true(n_differ > 3); /* the two counts are not one */
        nb_task_result r;
        must(run_task(&f, &t, &r, &err), &err);
        assert_int_equal(r.n, N);
        const double acc = (double)right / N, norm = (double)right_norm / N;
        assert_true(r.acc == acc && r.acc_norm == norm && acc > 0.1 && acc < 0.9);
        assert_true(fabs(r.acc_se - sqrt(acc * (1 - acc) / (N - 1))) < 1e-15);
        assert_true(fabs(r.acc_norm_se - sqrt(norm * (1 - norm) / (N - 1))) < 1e-15);
        nb_task_free(&t);
        close_fixture(&f);
    }
}

/* Equal choices are equally likely, and the first wins. */
static void ties_go_to_the_first(void **state)
{
    (void)state;
    nb_err err;
    fixture f;
    open_fixture(&f, plain_model(), 512, 1);
    nb_task t = load("{\"query\":\"q\",\"choices\":[\"same\",\"same\",\"same\"],\"gold\":0}\n"
                     "{\"query\":\"q\",\"choices\":[\"same\",\"same\",\"same\"],\"gold\":1}\n"
                     "{\"query\":\"q\",\"choices\":[\"same\",\"same\",\"same\"],\"gold\":2}\n"
                     "{\"context_options\":[\"x\",\"x\"],\"continuation\":\"y\",\"gold\":0}\n",
                     0);
    nb_task_result r;
    must(run_task(&f, &t, &r, &err), &err);
    assert_true(r.acc == 0.5 && r.acc_norm == 0.5);
    nb_task_free(&t);
    close_fixture(&f);
}

static void task_refused(fixture *f, const char *text, const char *reason)
{
    nb_err err = {0};
    nb_task t = load(text, 0);
    nb_task_result r = {.n = -7};
    const int64_t live = nb_alloc_live();
    char want[600];
    snprintf(want, sizeof want, reason, t.path);
    assert_int_equal(run_task(f, &t, &r, &err), NB_DATA);
    assert_string_equal(err.text, want);
    assert_int_equal(nb_alloc_live(), live);
    nb_task_free(&t);
}

/* What does not fit, in a context or in a vocabulary, is refused with its line. */
static void items_that_cannot_be_scored_are_refused(void **state)
{
    (void)state;
    fixture f;
    open_fixture(&f, plain_model(), 40, 1);
    task_refused(&f,
                 "\n" GOOD "{\"query\": \"01234567890123456789012345678\", \"choices\": "
                 "[\"abc\", \"d\"], \"gold\": 0}",
                 "%s: line 3: an item of 41 tokens; at most 40 fit");
    nb_task t = load("{\"query\": \"0123456789012345678901234567\", \"choices\": [\"a\", \"abc\"],"
                     " \"gold\": 0}",
                     0);
    nb_err err;
    nb_task_result r;
    must(run_task(&f, &t, &r, &err), &err); /* 40: right up to the end */
    nb_task_free(&t);
    /* Somebody else's tokenizer, with more tokens than the model has rows: the id of the
     * 'w' of "Answer:" is one too high. */
    nb_store *store;
    nb_model few;
    const char *path = tiny_model_write("few", &(tiny_model){.seed = 3, .n_vocab = TINY_BYTE('w')});
    must(nb_store_open(&store, path, &err), &err);
    must(nb_model_open(&few, store, &(nb_model_options){NB_COMPUTE_AUTO, 64}, f.pool, &err), &err);
    t = load(GOOD, 0);
    const nb_status s = nb_task_run(&t, &few, f.tokenizer, &f.kernels, f.pool, NB_KV_F16, NULL,
                                    NULL, NULL, &r, &err);
    nb_task_free(&t);
    assert_int_equal(s, NB_DATA);
    assert_non_null(strstr(err.text, ": line 1: token id 122 is outside the vocabulary of 122"));
    nb_model_close(&few);
    nb_store_close(store);
    close_fixture(&f);
    open_fixture(&f, tiny_model_write("nan", &(tiny_model){.seed = 3, .nan_head = true}), 64, 1);
    t = load(GOOD, 0);
    assert_int_equal(run_task(&f, &t, &r, &err), NB_DATA);
    assert_string_equal(err.text, "the model's logits hold Inf or NaN");
    nb_task_free(&t);
    close_fixture(&f);
}

typedef struct {
    int64_t done, n;
    bool stop;
} watcher;

static bool watch(void *context, int64_t done, int64_t total)
{
    watcher *w = context;
    assert_int_equal(total, 90);
    assert_true(done > w->done && done <= total);
    w->done = done;
    w->n++;
    return !w->stop;
}

static void progress_is_told_and_can_stop(void **state)
{
    (void)state;
    nb_err err;
    fixture f;
    open_fixture(&f, plain_model(), 512, 2);
    write_items("items.jsonl", 70);
    nb_task t;
    nb_task_result r;
    must(nb_task_load(&t, scratch_path("items.jsonl"), 0, &err), &err);
    watcher w = {0};
    must(nb_task_run(&t, &f.model, f.tokenizer, &f.kernels, f.pool, NB_KV_F32, watch, &w, NULL, &r,
                     &err),
         &err);
    assert_true(w.done == 90 && w.n > 3);
    w = (watcher){.stop = true};
    assert_int_equal(nb_task_run(&t, &f.model, f.tokenizer, &f.kernels, f.pool, NB_KV_F32, watch,
                                 &w, NULL, &r, &err),
                     NB_INTERRUPTED);
    assert_int_equal(w.n, 1);
    nb_task_free(&t);
    close_fixture(&f);
}

static void scoring_survives_every_allocation_failure(void **state)
{
    (void)state;
    nb_err err;
    fixture f;
    open_fixture(&f, plain_model(), 64, 1);
    nb_task t = load(GOOD, 0);
    const int64_t before = nb_alloc_live();
    int64_t n = 1;
    for (;; n++) {
        nb_task_result r;
        nb_alloc_fail_at(n);
        const nb_status s = run_task(&f, &t, &r, &err);
        nb_alloc_fail_at(0);
        assert_int_equal(nb_alloc_live(), before);
        if (s == NB_OK)
            break;
        assert_int_equal(s, NB_MEMORY);
    }
    assert_true(n > 80); /* buffers, a table for each of 64 sequences, and tokens */
    nb_task_free(&t);
    close_fixture(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_shapes_are_read),
        cmocka_unit_test(malformed_items_are_refused_with_file_and_line),
        cmocka_unit_test(an_endless_question_is_refused),
        cmocka_unit_test(reading_survives_every_allocation_failure),
        cmocka_unit_test(tasks_are_measured_without_a_model),
        cmocka_unit_test(answers_are_told_item_by_item),
        cmocka_unit_test(accuracies_are_those_of_the_plain_computation),
        cmocka_unit_test(ties_go_to_the_first),
        cmocka_unit_test(items_that_cannot_be_scored_are_refused),
        cmocka_unit_test(progress_is_told_and_can_stop),
        cmocka_unit_test(scoring_survives_every_allocation_failure),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
