/* How an answer ends when the caller has a say in it: not before some length, not where the model
 * wants, at tokens of his own; and what is told of each token. */
#define _GNU_SOURCE
#include "opened.h"

#include "base/rng.h"

#include <math.h>

static const tiny_model brief = {0};

/* A seed with which the tiny model ends its answer between `low` and `high` tokens. */
static nb_generate_options ending_early(opened *o, int64_t low, int64_t high)
{
    for (uint64_t seed = 0; seed < 5000; seed++) {
        const nb_generate_options how = {.max_tokens = high,
                                         .sampling = {.temperature = 1.5, .seed = seed}};
        nb_generation r = must_generate(o, "the", &how);
        const bool good = r.reason == NB_STOP_EOS && r.n_tokens >= low;
        if (good)
            assert_int_equal(r.stop_id, TINY_EOS);
        nb_generation_free(&r);
        if (good)
            return how;
    }
    fail_msg("no seed ends the answer");
    return (nb_generate_options){0};
}

static void min_tokens_keeps_the_answer_open(void **state)
{
    (void)state;
    opened o;
    must_open(&o, model_path("brief", &brief), &(opening){0});
    nb_generate_options how = ending_early(&o, 2, 12);
    nb_generation early = must_generate(&o, "the", &how);
    const int64_t n = early.n_tokens;
    how.max_tokens = 60;
    how.min_tokens = n; /* it could end there by itself: nothing changes */
    nb_generation same = must_generate(&o, "the", &how);
    assert_int_equal(same.n_tokens, n);
    how.min_tokens = n + 1;
    nb_generation later = must_generate(&o, "the", &how);
    assert_true(later.n_tokens > n);
    assert_memory_equal(later.tokens, early.tokens, (size_t)n * sizeof *early.tokens);
    for (int64_t i = 0; i < n + 1; i++)
        assert_int_not_equal(later.tokens[i], TINY_EOS);
    nb_generation_free(&early);
    nb_generation_free(&same);
    nb_generation_free(&later);
    close_opened(&o);
}

static void the_models_end_is_ignored_on_request(void **state)
{
    (void)state;
    opened o;
    must_open(&o, model_path("brief", &brief), &(opening){0});
    nb_generate_options how = ending_early(&o, 2, 12);
    nb_generation early = must_generate(&o, "the", &how);
    how.max_tokens = 40;
    how.ignore_eos = true;
    how.with_special = true;
    nb_generation on = must_generate(&o, "the", &how);
    assert_int_equal(on.n_tokens, 40);
    assert_int_equal(on.reason, NB_STOP_MAX_TOKENS);
    assert_int_equal(on.stop_id, -1);
    assert_int_equal(on.tokens[early.n_tokens], TINY_EOS);
    assert_non_null(memmem(on.text, on.text_len, "<|im_end|>", 10));
    /* As a stop id of the caller's it ends the answer again. */
    const int32_t eos = TINY_EOS;
    how.stop_ids = &eos;
    how.n_stop_ids = 1;
    nb_generation again = must_generate(&o, "the", &how);
    assert_int_equal(again.n_tokens, early.n_tokens);
    assert_int_equal(again.reason, NB_STOP_EOS);
    nb_generation_free(&early);
    nb_generation_free(&on);
    nb_generation_free(&again);
    close_opened(&o);
}

/* A stop id ends the answer before its token; min_tokens keeps it from being chosen at all. */
static void tokens_of_the_caller_end_the_answer(void **state)
{
    (void)state;
    opened o;
    must_open(&o, model_path("wordy", &(tiny_model){.never_ends = true}), &(opening){0});
    nb_generate_options how = {.max_tokens = 40, .sampling = {.temperature = 1, .seed = 2}};
    nb_generation whole = must_generate(&o, "the", &how);
    const int32_t stops[2] = {whole.tokens[7], whole.tokens[20]};
    int64_t at = 0;
    while (whole.tokens[at] != stops[0] && whole.tokens[at] != stops[1])
        at++;
    how.stop_ids = stops;
    how.n_stop_ids = 2;
    nb_generation cut = must_generate(&o, "the", &how);
    assert_int_equal(cut.n_tokens, at);
    assert_int_equal(cut.stop_id, whole.tokens[at]);
    how.min_tokens = 30;
    nb_generation kept = must_generate(&o, "the", &how);
    assert_true(kept.n_tokens >= 30);
    for (int i = 0; i < 30; i++)
        assert_true(kept.tokens[i] != stops[0] && kept.tokens[i] != stops[1]);
    nb_generation_free(&whole);
    nb_generation_free(&cut);
    nb_generation_free(&kept);
    close_opened(&o);
}

/* Until min_tokens a stop string is text like any other; the one that ends the answer is named. */
static void stop_strings_wait_for_min_tokens(void **state)
{
    (void)state;
    opened o;
    must_open(&o, model_path("wordy", &(tiny_model){.never_ends = true}), &(opening){0});
    /* Without an end of the model's own there is nothing to ban, which would move the draws. */
    nb_generate_options how = {
        .max_tokens = 60, .ignore_eos = true, .sampling = {.temperature = 1.5, .seed = 9}};
    nb_generation whole = must_generate(&o, "the", &how);
    char letter[2] = {0}; /* one that comes early and again later */
    for (size_t i = 0; i < whole.text_len / 3 && letter[0] == 0; i++) {
        const char c = whole.text[i];
        if (c > ' ' && c < 127 &&
            memchr(whole.text + whole.text_len / 2, c, whole.text_len / 2) != NULL)
            letter[0] = c;
    }
    assert_true(letter[0] != 0);
    const char *stops[2] = {"\x01\x02 never", letter};
    how.stops = stops;
    how.n_stops = 2;
    nb_generation cut = must_generate(&o, "the", &how);
    assert_int_equal(cut.reason, NB_STOP_TEXT);
    assert_int_equal(cut.stop_index, 1);
    assert_null(memchr(cut.text, letter[0], cut.text_len));
    how.min_tokens = cut.n_tokens + 1;
    nb_generation later = must_generate(&o, "the", &how);
    assert_true(later.n_tokens > cut.n_tokens);
    assert_non_null(memchr(later.text, letter[0], later.text_len));
    assert_memory_equal(later.text, whole.text, later.text_len);
    nb_generation_free(&whole);
    nb_generation_free(&cut);
    nb_generation_free(&later);
    close_opened(&o);
}

/* One row a token: its own logprob is that of its place, and greedy tokens lead their tops. Asking
 * for them changes nothing else. */
static void logprobs_come_with_each_token(void **state)
{
    (void)state;
    opened o;
    must_open(&o, model_path("wordy", &(tiny_model){.never_ends = true}), &(opening){0});
    const nb_sampling hows[] = {{0}, {.temperature = 2, .seed = 3, .frequency_penalty = 1}};
    for (int h = 0; h < 2; h++) {
        nb_generate_options how = {.max_tokens = 25, .sampling = hows[h], .hash_logits = true};
        nb_generation plain = must_generate(&o, "the", &how);
        assert_null(plain.logprobs);
        how.logprobs = true;
        how.n_top = 4;
        nb_generation r = must_generate(&o, "the", &how);
        assert_int_equal(r.n_tokens, plain.n_tokens);
        assert_memory_equal(r.tokens, plain.tokens, (size_t)r.n_tokens * sizeof *r.tokens);
        assert_true(r.logits_hash == plain.logits_hash);
        for (int64_t i = 0; i < r.n_tokens; i++) {
            const nb_logprob *row = r.logprobs + i * 5;
            assert_int_equal(row[0].id, r.tokens[i]);
            if (h == 0)
                assert_memory_equal(&row[0], &row[1], sizeof *row);
            for (int k = 0; k < 5; k++) {
                assert_true(row[k].logprob < 0 && (k < 2 || row[k].logprob <= row[k - 1].logprob));
                if (row[k].id == row[0].id)
                    assert_true(row[k].logprob == row[0].logprob);
            }
        }
        nb_generation_free(&plain);
        nb_generation_free(&r);
    }
    close_opened(&o);
}

static void what_cannot_be_is_refused(void **state)
{
    (void)state;
    opened o;
    must_open(&o, model_path("wordy", &(tiny_model){.never_ends = true}), &(opening){0});
    const int32_t far_id = TINY_VOCAB, negative = -1;
    const nb_logit_bias bias = {TINY_VOCAB, 1};
    const nb_generate_options bad[] = {
        {.min_tokens = -1},
        {.min_tokens = 9, .max_tokens = 8},
        {.n_top = NB_MAX_LOGPROBS + 1, .logprobs = true},
        {.n_top = -1, .logprobs = true},
        {.stop_ids = &far_id, .n_stop_ids = 1},
        {.stop_ids = &negative, .n_stop_ids = 1},
        {.n_stop_ids = NB_MAX_STOPS + 1},
        {.sampling = {.bias = &bias, .n_bias = 1}},
    };
    nb_tokens ids = {0};
    encode(&o, "the", &ids);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        nb_err err = {0};
        nb_generation r;
        assert_int_equal(nb_generate(&o.generator, &ids, &bad[i], NULL, NULL, &r, &err), NB_USAGE);
        assert_true(err.text[0] != 0);
    }
    nb_tokens_free(&ids);
    close_opened(&o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(min_tokens_keeps_the_answer_open),
        cmocka_unit_test(the_models_end_is_ignored_on_request),
        cmocka_unit_test(tokens_of_the_caller_end_the_answer),
        cmocka_unit_test(stop_strings_wait_for_min_tokens),
        cmocka_unit_test(logprobs_come_with_each_token),
        cmocka_unit_test(what_cannot_be_is_refused),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
