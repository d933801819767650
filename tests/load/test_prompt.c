/* Random prompts: the same for the same seed, of the lengths asked for, and with words that fit the
 * server's tokenizer. */
#include "support/golden.h"

#include "load/prompt.h"

#include <string.h>

/* A tokenizer with `special` tokens around the text, in which a word is a token for every `most`
 * letters that it begins. */
typedef struct {
    int64_t special;
    size_t most;
    int64_t calls, fail_at;
} counter;

static int64_t count_text(const counter *c, const char *text)
{
    int64_t n = c->special;
    while (*text != 0) {
        text += strspn(text, " ");
        const size_t len = strcspn(text, " ");
        n += (int64_t)((len + c->most - 1) / c->most);
        text += len;
    }
    return n;
}

static nb_status count(void *context, const char *text, int64_t *n, nb_err *err)
{
    counter *c = context;
    if (++c->calls == c->fail_at)
        return nb_fail(err, NB_IO, "gone");
    *n = count_text(c, text);
    return NB_OK;
}

static char *text_of(const nb_prompt_plan *plan, const nb_words *words, int64_t i)
{
    nb_err err = {0};
    nb_buf out = {0};
    assert_int_equal(nb_prompt_text(&out, plan, words, i, &err), NB_OK);
    assert_int_equal(nb_buf_u8(&out, 0, &err), NB_OK);
    return (char *)out.data;
}

/* Few questions where nearly all words are one token; each prompt then has just the tokens asked
 * for, those that the server adds included. */
static void fitted_words_make_exact_lengths(void **state)
{
    (void)state;
    for (size_t most = 4; most <= 16; most += 4) {
        counter c = {.special = 2, .most = most};
        nb_err err = {0};
        nb_words words;
        assert_int_equal(nb_words_fit(&words, count, &c, &err), NB_OK);
        assert_true(words.exact && words.n >= 16 && words.n <= NB_WORDS_MAX);
        for (int i = 0; i < words.n; i++) {
            assert_true(strlen(words.of[i]) <= most);
            for (int j = 0; j < i; j++)
                assert_string_not_equal(words.of[i], words.of[j]);
        }
        assert_true(most < 16 || c.calls == 4);
        const nb_prompt_plan plan = {
            .seed = 4, .input = {3, 40}, .output = {1, 9}, .prefix_len = 7, .n_prefixes = 3};
        for (int64_t i = 0; i < 200; i++) {
            char *text = text_of(&plan, &words, i);
            const int64_t n = nb_prompt_input_len(&plan, i);
            assert_in_range(n, 10, 47);
            assert_int_equal(count_text(&c, text), n);
            nb_free(text);
        }
    }
}

/* Where words are several tokens each, lengths are right on the average. */
static void other_tokenizers_get_about_the_length(void **state)
{
    (void)state;
    counter c = {.special = 1, .most = 1};
    nb_err err = {0};
    nb_words words;
    assert_int_equal(nb_words_fit(&words, count, &c, &err), NB_OK);
    assert_false(words.exact);
    assert_true(words.tokens_per_word > 3 && words.tokens_per_word < 6);
    const nb_prompt_plan plan = {.input = {400, 400}, .output = {1, 1}};
    int64_t sum = 0;
    for (int64_t i = 0; i < 50; i++) {
        char *text = text_of(&plan, &words, i);
        sum += count_text(&c, text);
        nb_free(text);
    }
    assert_in_range(sum, 50 * 380, 50 * 420);
}

/* A server that counts nonsense is refused; one that fails is told of. */
static nb_status same(void *context, const char *text, int64_t *n, nb_err *err)
{
    (void)text, (void)err;
    *n = *(int64_t *)context;
    return NB_OK;
}

static void odd_counts_are_refused(void **state)
{
    (void)state;
    nb_words words;
    nb_words_init(&words);
    const nb_words before = words;
    for (int64_t n = -1; n < 3; n++) {
        nb_err err = {0};
        assert_int_equal(nb_words_fit(&words, same, &n, &err), NB_DATA);
    }
    for (int64_t at = 1; at < 12; at++) {
        nb_err err = {0};
        counter c = {.most = 4, .fail_at = at};
        assert_int_equal(nb_words_fit(&words, count, &c, &err), NB_IO);
        assert_int_equal(c.calls, at);
    }
    assert_memory_equal(&words, &before, sizeof words); /* failures leave it as it was */
}

/* Prompt i depends on the plan and i alone; seeds and numbers give others; prefixes are shared. */
static void prompts_are_a_function_of_the_plan(void **state)
{
    (void)state;
    nb_words words;
    nb_words_init(&words);
    nb_prompt_plan plan = {
        .seed = 1, .input = {20, 20}, .output = {5, 5}, .prefix_len = 30, .n_prefixes = 2};
    char *first[6];
    for (int64_t i = 5; i >= 0; i--)
        first[i] = text_of(&plan, &words, i);
    size_t prefix = 0;
    for (int k = 0; k < 30; k++)
        prefix += strcspn(first[0] + prefix, " ") + 1;
    for (int64_t i = 0; i < 6; i++) {
        char *again = text_of(&plan, &words, i);
        assert_string_equal(again, first[i]);
        nb_free(again);
        assert_int_equal(strncmp(first[i], first[0], prefix) == 0, i % 2 == 0);
        for (int64_t j = 0; j < i; j++)
            assert_string_not_equal(first[i], first[j]);
    }
    plan.seed = 2;
    char *other = text_of(&plan, &words, 0);
    assert_int_not_equal(strncmp(first[0], other, 40), 0);
    nb_free(other);
    for (int i = 0; i < 6; i++)
        nb_free(first[i]);
}

/* Both ends of a range are drawn, and no other length; one word at least is asked. */
static void lengths_fill_their_range(void **state)
{
    (void)state;
    const nb_prompt_plan plan = {.seed = 3, .input = {4, 6}, .output = {1, 3}};
    int64_t inputs[10] = {0}, outputs[10] = {0};
    for (int64_t i = 0; i < 3000; i++) {
        inputs[nb_prompt_input_len(&plan, i)]++;
        outputs[nb_prompt_output_len(&plan, i)]++;
    }
    for (int k = 0; k < 3; k++) {
        assert_in_range(inputs[4 + k], 850, 1150);
        assert_in_range(outputs[1 + k], 850, 1150);
    }
    nb_words words;
    nb_words_init(&words);
    words.n_special = 10;
    char *text = text_of(&plan, &words, 0);
    assert_true(strlen(text) > 0 && strchr(text, ' ') == NULL);
    nb_free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fitted_words_make_exact_lengths),
        cmocka_unit_test(other_tokenizers_get_about_the_length),
        cmocka_unit_test(odd_counts_are_refused),
        cmocka_unit_test(prompts_are_a_function_of_the_plan),
        cmocka_unit_test(lengths_fill_their_range),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
