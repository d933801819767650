/* Messages: what a hostile name may do to one line of text, and what survives a long path. */
#include "support/golden.h"

#include "base/status.h"

#include <errno.h>
#include <string.h>

static bool one_printable_line(const nb_err *err)
{
    for (const char *p = err->text; *p != 0; p++) {
        if (*p < 0x20 || *p > 0x7e)
            return false;
    }
    return true;
}

/* Every status has a name and the exit code that the documents promise. */
static void statuses_have_names_and_exit_codes(void **state)
{
    (void)state;
    const struct {
        nb_status status;
        int exit_code;
    } rows[] = {{NB_OK, 0}, {NB_DATA, 1},   {NB_UNSUPPORTED, 1}, {NB_USAGE, 2},
                {NB_IO, 3}, {NB_MEMORY, 4}, {NB_LIMIT, 4},       {NB_INTERRUPTED, 5}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        assert_int_equal(nb_status_exit_code(rows[i].status), rows[i].exit_code);
        assert_string_not_equal(nb_status_name(rows[i].status), "unknown status");
        for (size_t j = 0; j < i; j++)
            assert_string_not_equal(nb_status_name(rows[i].status), nb_status_name(rows[j].status));
    }
    assert_string_equal(nb_status_name((nb_status)1000), "unknown status");
    assert_int_equal(nb_status_exit_code((nb_status)1000), 1);
    assert_string_equal(nb_version(), NIBBLE_VERSION);
}

/* A tensor name may hold a newline that forges a second line, or an escape sequence that repaints
 * the terminal: every byte but printable ASCII is shown as \xNN. */
static void every_byte_is_escaped_or_printable(void **state)
{
    (void)state;
    for (int c = 1; c < 256; c++) {
        const char name[] = {'a', (char)c, 'b', 0};
        nb_err err = {0};
        assert_int_equal(nb_fail(&err, NB_DATA, "tensor '%s'", name), NB_DATA);
        assert_int_equal(err.status, NB_DATA);
        assert_true(one_printable_line(&err));
        char want[32];
        if (c >= 0x20 && c < 0x7f)
            snprintf(want, sizeof want, "tensor 'a%cb'", c);
        else
            snprintf(want, sizeof want, "tensor 'a\\x%02xb'", (unsigned)c);
        assert_string_equal(err.text, want);
    }
}

/* A format in a hostile name is text, not a format. */
static void percent_signs_in_data_are_data(void **state)
{
    (void)state;
    nb_err err = {0};
    nb_fail(&err, NB_DATA, "tensor '%s'", "%s%n%d");
    assert_string_equal(err.text, "tensor '%s%n%d'");
    nb_context(&err, "%s", "%n.gguf");
    assert_string_equal(err.text, "%n.gguf: tensor '%s%n%d'");
}

/* The message is cut at its end, always terminated, and never inside an escape. */
static void a_long_message_is_cut(void **state)
{
    (void)state;
    for (size_t pad = 0; pad < 8; pad++) {
        char name[3000];
        memset(name, '\x01', sizeof name - 1);
        memset(name, 'a', pad);
        name[sizeof name - 1] = 0;
        nb_err err;
        memset(&err, '?', sizeof err);
        nb_fail(&err, NB_DATA, "%s", name);
        const size_t n = strlen(err.text);
        assert_in_range(n, sizeof err.text - 5, sizeof err.text - 1);
        assert_true(one_printable_line(&err));
        assert_string_equal(err.text + n - 4, "\\x01");
    }
}

/* The user reads a chain from the outside in, and the status stays that of the inner failure. */
static void contexts_chain_outwards(void **state)
{
    (void)state;
    nb_err err = {0};
    nb_fail(&err, NB_LIMIT, "ends at byte %d of %d", 912, 880);
    assert_int_equal(nb_context(&err, "tensor '%s'", "x\n"), NB_LIMIT);
    assert_int_equal(nb_context(&err, "opening '%s'", "m.gguf"), NB_LIMIT);
    assert_int_equal(err.status, NB_LIMIT);
    assert_string_equal(err.text, "opening 'm.gguf': tensor 'x\\x0a': ends at byte 912 of 880");
}

/* A message may be built from itself. */
static void the_old_text_may_be_an_argument(void **state)
{
    (void)state;
    nb_err err = {0};
    nb_fail(&err, NB_DATA, "inner");
    nb_fail(&err, NB_IO, "outer (%s)", err.text);
    assert_string_equal(err.text, "outer (inner)");
    nb_context(&err, "again %s", err.text);
    assert_string_equal(err.text, "again outer (inner): outer (inner)");
}

/* "FILE: reason" with a path of 4,095 bytes still has its reason, however the path is spelled. */
static void the_reason_survives_a_long_path(void **state)
{
    (void)state;
    for (int c = 'a'; c < 256; c += 100) {
        char path[4096];
        memset(path, c, sizeof path - 1);
        path[sizeof path - 1] = 0;
        nb_err err = {0};
        assert_int_equal(nb_fail_errno(&err, EACCES, "%s: opening", path), NB_IO);
        const char *end = err.text + strlen(err.text) - strlen("...: Permission denied");
        assert_string_equal(end, "...: Permission denied");
        assert_true(one_printable_line(&err));

        nb_fail(&err, NB_DATA, "the reason");
        nb_context(&err, "%s", path);
        end = err.text + strlen(err.text) - strlen("...: the reason");
        assert_string_equal(end, "...: the reason");
        assert_in_range(strlen(err.text), sizeof err.text - 5, sizeof err.text - 1);
    }
    /* And a long reason leaves room for the name. */
    char reason[sizeof((nb_err){0}).text];
    memset(reason, 'r', sizeof reason - 1);
    reason[sizeof reason - 1] = 0;
    nb_err err = {0};
    nb_fail(&err, NB_DATA, "%s", reason);
    nb_context(&err, "model.gguf");
    assert_memory_equal(err.text, "model.gguf: rrr", 15);
}

static void system_errors_are_named(void **state)
{
    (void)state;
    nb_err err = {0};
    assert_int_equal(nb_fail_errno(&err, ENOSPC, "%s: writing", "out"), NB_IO);
    assert_string_equal(err.text, "out: writing: No space left on device");
    assert_int_equal(nb_fail_errno(&err, ENOMEM, "reading"), NB_MEMORY);
}

static nb_status twice(nb_err *err, int *reached)
{
    NB_TRY(NB_OK);
    ++*reached;
    NB_TRY(nb_fail(err, NB_IO, "stop"));
    ++*reached;
    return NB_OK;
}

static void try_returns_at_the_first_failure(void **state)
{
    (void)state;
    nb_err err = {0};
    int reached = 0;
    assert_int_equal(twice(&err, &reached), NB_IO);
    assert_int_equal(reached, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(statuses_have_names_and_exit_codes),
        cmocka_unit_test(every_byte_is_escaped_or_printable),
        cmocka_unit_test(percent_signs_in_data_are_data),
        cmocka_unit_test(a_long_message_is_cut),
        cmocka_unit_test(contexts_chain_outwards),
        cmocka_unit_test(the_old_text_may_be_an_argument),
        cmocka_unit_test(the_reason_survives_a_long_path),
        cmocka_unit_test(system_errors_are_named),
        cmocka_unit_test(try_returns_at_the_first_failure),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
