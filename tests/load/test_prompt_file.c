/* Files of prompts: mutated ones are read or refused, and memory may run out anywhere. What each
 * form means, the command-line test asks. */
#include "support/golden.h"
#include "support/scratch.h"

#include "base/rng.h"
#include "load/prompt_file.h"

#include <string.h>

static const char lines[] =
    "{\"prompt\": \"a\", \"output_tokens\": 3}\n"
    "\n"
    "{\"messages\": [{\"role\": \"user\", \"content\": \"b\"}], \"max_tokens\": 4}\r\n"
    "{\"conversations\": [{\"from\": \"human\", \"value\": \"c\"}, "
    "{\"from\": \"gpt\", \"value\": \"d\"}]}";

static nb_status read_text(const char *text, size_t n, bool chat, nb_prompt_file *file, nb_err *err)
{
    scratch_write("p.jsonl", text, n);
    return nb_prompt_file_read(file, scratch_path("p.jsonl"), chat, err);
}

/* Every item that was read has one thing to ask, and a length that can be. */
static void check_items(const nb_prompt_file *file, bool chat)
{
    assert_true(file->n > 0);
    for (int64_t i = 0; i < file->n; i++) {
        const nb_prompt_item *item = &file->items[i];
        assert_true((item->prompt == NULL) != (item->messages == NULL));
        assert_true(item->prompt == NULL || json_is_string(item->prompt));
        assert_true(item->messages == NULL || (chat && json_array_size(item->messages) > 0));
        assert_in_range(item->output_tokens, 0, 1 << 20);
    }
}

static void forms_are_read(void **state)
{
    (void)state;
    nb_err err = {0};
    nb_prompt_file file;
    assert_int_equal(read_text(lines, sizeof lines - 1, true, &file, &err), NB_OK);
    assert_int_equal(file.n, 3);
    check_items(&file, true);
    assert_int_equal(file.items[0].output_tokens, 3);
    assert_int_equal(file.items[1].output_tokens, 4);
    assert_int_equal(file.items[2].output_tokens, 0);
    assert_int_equal(json_array_size(file.items[2].messages), 1);
    nb_prompt_file_free(&file);
    assert_int_equal(read_text(lines, sizeof lines - 1, false, &file, &err), NB_DATA);
    assert_non_null(strstr(err.text, "prompt 2: messages need --endpoint chat"));
}

/* One byte changed, cut out, or all that follows cut off: read or refused, never anything else. */
static void mutated_files_are_read_or_refused(void **state)
{
    (void)state;
    int read = 0, refused = 0;
    for (uint64_t round = 0; round < 1500; round++) {
        char text[sizeof lines];
        size_t n = sizeof lines - 1;
        memcpy(text, lines, sizeof lines);
        const size_t at = (size_t)((double)n * nb_rng_uniform(1, 1, round));
        static const char bytes[] = "{}[]\":,\n 0x\xff\\tn-";
        if (round % 3 == 0)
            text[at] = bytes[(size_t)(nb_rng_uniform(1, 2, round) * (double)(sizeof bytes - 1))];
        else if (round % 3 == 1)
            memmove(text + at, text + at + 1, --n - at);
        else
            n = at;
        nb_err err = {0};
        nb_prompt_file file = {0};
        const int64_t before = nb_alloc_live();
        const nb_status s = read_text(text, n, true, &file, &err);
        assert_true(s == NB_OK || s == NB_DATA);
        if (s == NB_OK)
            check_items(&file, true);
        else
            assert_true(strlen(err.text) > 0 && file.n == 0);
        read += s == NB_OK;
        refused += s != NB_OK;
        nb_prompt_file_free(&file);
        assert_int_equal(nb_alloc_live(), before);
    }
    assert_true(read > 100 && refused > 100);
}

static void memory_may_run_out(void **state)
{
    (void)state;
    scratch_text("p.jsonl", lines);
    int failed = 0;
    for (int64_t n = 1;; n++) {
        const int64_t before = nb_alloc_live();
        nb_err err = {0};
        nb_prompt_file file = {0};
        nb_alloc_fail_at(n);
        const nb_status s = nb_prompt_file_read(&file, scratch_path("p.jsonl"), true, &err);
        nb_alloc_fail_at(0);
        nb_prompt_file_free(&file);
        assert_int_equal(nb_alloc_live(), before);
        if (s == NB_OK)
            break;
        assert_int_equal(s, NB_MEMORY);
        failed++;
    }
    assert_true(failed >= 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forms_are_read),
        cmocka_unit_test(mutated_files_are_read_or_refused),
        cmocka_unit_test(memory_may_run_out),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
