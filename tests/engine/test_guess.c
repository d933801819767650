/* Guesses change the speed and nothing else: the same tokens, text, logprobs and hashes of logits,
 * greedy and drawn, however wrong they are. */
#include "opened.h"

#include "engine/ngram.h"

static const tiny_model wordy = {.never_ends = true};

/* ---- the guesses ---- */

static int64_t guess_after(nb_ngram *g, const char *text, int64_t k, int32_t *out)
{
    nb_ngram_clear(g);
    for (const char *c = text; *c != 0; c++)
        nb_ngram_push(g, *c);
    return nb_ngram_guess(g, k, out);
}

static void guesses_are_what_followed_last_time(void **state)
{
    (void)state;
    static const struct {
        const char *text, *next;
    } rows[] = {{"", ""},
                {"ab", ""},
                {"abcd", ""},
                {"abcdefgabc", "defga"},
                {"abcdxxabceyyabc", "eyyab"}, /* the later one */
                {"xbcd_abce_zbc", "e_zbc"},   /* three tokens are new: two decide */
                {"zabc1bc2zabc", "1bc2z"},    /* three decide before two */
                {"ababab", "ababa"},          /* the period goes on */
                {"aaaa", "aaaaa"}};
    nb_ngram g;
    nb_err err = {0};
    assert_int_equal(nb_ngram_init(&g, 64, &err), NB_OK);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int32_t out[5];
        const int64_t n = guess_after(&g, rows[i].text, 5, out);
        assert_int_equal(n, strlen(rows[i].next));
        for (int64_t k = 0; k < n; k++)
            assert_int_equal(out[k], rows[i].next[k]);
    }
    /* Past its end it takes note of nothing, and guesses what it knows. */
    nb_ngram_clear(&g);
    for (int i = 0; i < 1000; i++)
        nb_ngram_push(&g, i % 4);
    int32_t out[NB_MAX_GUESS];
    assert_int_equal(g.n, 64);
    assert_int_equal(nb_ngram_guess(&g, NB_MAX_GUESS, out), NB_MAX_GUESS);
    for (int i = 0; i < NB_MAX_GUESS; i++)
        assert_int_equal(out[i], i % 4);
    nb_ngram_free(&g);
}

/* ---- the answers ---- */

static const char pairs[] =
    "{\"type\":\"array\",\"items\":{\"type\":\"object\",\"properties\":{\"key\":"
    "{\"enum\":[\"one\",\"two\"]}},\"required\":[\"key\"]}}";

static void answers_are_the_same(void **state)
{
    (void)state;
    static const char *const stops[] = {"e", "th"};
    const nb_generate_options hows[] = {
        {.max_tokens = 60},
        {.max_tokens = 60, .sampling = {.temperature = 0.3, .seed = 4, .choice = 2}},
        {.max_tokens = 60, .sampling = {.temperature = 1.5, .seed = 4, .top_p = 0.9}},
        {.max_tokens = 60, .sampling = {.frequency_penalty = 0.5, .repetition_penalty = 1.2}},
        {.max_tokens = 60, .stops = stops, .n_stops = 2, .min_tokens = 9},
        {.max_tokens = 0}, /* until the context is full */
        {.max_tokens = 60, .json_schema = pairs},
    };
    const opening ways[] = {{.threads = 1}, {.threads = 2, .step_tokens = 3}, {.step_tokens = 1}};
    int64_t n_accepted = 0, n_wrong = 0;
    for (size_t h = 0; h < sizeof hows / sizeof *hows; h++) {
        opened o;
        must_open(&o, model_path("wordy", &wordy), &(opening){0});
        nb_generate_options how = hows[h];
        how.hash_logits = how.logprobs = true;
        how.n_top = 2;
        const char *prompt = "the land and the inn and the land and the inn and the";
        nb_generation want = must_generate(&o, prompt, &how);
        close_opened(&o);
        assert_true(want.n_guessed == 0 && want.n_accepted == 0);
        for (int k = 1; k <= NB_MAX_GUESS; k = 3 * k + 1) { /* 1, 4, 13 */
            must_open(&o, model_path("wordy", &wordy), &ways[k % 3]);
            how.n_guess = k;
            for (int again = 0; again < 2; again++) { /* afresh, and in a session that has it all */
                nb_generation got = must_generate(&o, prompt, &how);
                assert_int_equal(got.n_tokens, want.n_tokens);
                assert_memory_equal(got.tokens, want.tokens,
                                    (size_t)want.n_tokens * sizeof *want.tokens);
                assert_int_equal(got.text_len, want.text_len);
                assert_memory_equal(got.text, want.text, want.text_len);
                assert_int_equal(got.reason, want.reason);
                assert_true(got.logits_hash == want.logits_hash);
                assert_memory_equal(got.logprobs, want.logprobs,
                                    (size_t)want.n_tokens * 3 * sizeof *want.logprobs);
                assert_true(got.n_accepted <= got.n_guessed);
                if (again == 0)
                    assert_int_equal(got.n_steps + got.n_accepted, want.n_steps);
                /* The session holds prompt and answer, and no wrong guess. */
                assert_true(o.generator.held.n <= got.n_prompt + got.n_tokens);
                assert_int_equal(o.generator.seq.n, o.generator.held.n);
                n_accepted += got.n_accepted;
                n_wrong += got.n_guessed - got.n_accepted;
                nb_generation_free(&got);
            }
            close_opened(&o);
        }
        nb_generation_free(&want);
    }
    assert_true(n_accepted > 50 && n_wrong > 50);
}

/* Where a text repeats itself, a step makes more than one token: here the model is made to say the
 * same again and again. */
static void repetition_takes_fewer_steps(void **state)
{
    (void)state;
    opened o;
    must_open(&o, model_path("wordy", &wordy), &(opening){0});
    const nb_logit_bias bias = {TINY_BYTE('a'), 100};
    const nb_generate_options how = {
        .max_tokens = 100, .n_guess = 8, .sampling = {.bias = &bias, .n_bias = 1}};
    nb_generation r = must_generate(&o, "the", &how);
    assert_int_equal(r.n_tokens, 100);
    assert_true(r.n_steps <= 20);
    assert_int_equal(r.n_steps + r.n_accepted, 99);
    nb_generation_free(&r);
    close_opened(&o);
}

static void too_many_guesses_are_refused(void **state)
{
    (void)state;
    opened o;
    must_open(&o, model_path("wordy", &wordy), &(opening){0});
    nb_tokens ids = {0};
    encode(&o, "the", &ids);
    for (int i = 0; i < 2; i++) {
        const nb_generate_options how = {.n_guess = i == 0 ? -1 : NB_MAX_GUESS + 1};
        nb_err err = {0};
        nb_generation r;
        assert_int_equal(nb_generate(&o.generator, &ids, &how, NULL, NULL, &r, &err), NB_USAGE);
    }
    nb_tokens_free(&ids);
    close_opened(&o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(guesses_are_what_followed_last_time),
        cmocka_unit_test(answers_are_the_same),
        cmocka_unit_test(repetition_takes_fewer_steps),
        cmocka_unit_test(too_many_guesses_are_refused),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
