/* Stop strings in a stream: cut anywhere, they are found at the same place, and nothing of them is
 * ever shown. */
#include "support/golden.h"

#include "engine/stoptext.h"

#include "base/rng.h"

#include <string.h>

#define MAX_TEXT 300

/* The definition: the first byte at which some string is complete, the longest of those; what lies
 * before it is the answer. */
static bool slow_find(const char *text, size_t len, const char *const *stops, int n, size_t *cut)
{
    for (size_t end = 1; end <= len; end++) {
        size_t longest = 0;
        for (int i = 0; i < n; i++) {
            const size_t m = strlen(stops[i]);
            if (m <= end && m > longest && memcmp(text + end - m, stops[i], m) == 0)
                longest = m;
        }
        if (longest > 0) {
            *cut = end - longest;
            return true;
        }
    }
    *cut = len;
    return false;
}

/* Pushes the text in pieces whose lengths come from `seed` (0: byte by byte). After each piece,
 * what was shown must not hold back more than it has to. */
static void check_stream(const char *text, size_t len, const char *const *stops, int n,
                         uint64_t seed)
{
    nb_err err = {0};
    nb_stoptext st;
    nb_buf out = {0};
    size_t want;
    const bool found_want = slow_find(text, len, stops, n, &want);
    bool found = false;
    assert_int_equal(nb_stoptext_init(&st, stops, n, &err), NB_OK);
    for (size_t i = 0; i < len && !found;) {
        size_t piece = 1 + (seed == 0 ? 0 : (size_t)(7 * nb_rng_uniform(seed, 2, i)));
        piece = piece < len - i ? piece : len - i;
        assert_int_equal(nb_stoptext_push(&st, text + i, piece, &out, &found, &err), NB_OK);
        i += piece;
        assert_in_range(out.len, 0, want);
        if (!found) {
            /* Held back: exactly the longest end of the text that a string begins with. */
            size_t held = 0;
            for (int k = 0; k < n; k++) {
                for (size_t m = strlen(stops[k]) - 1; m > held; m--) {
                    if (m <= i && memcmp(text + i - m, stops[k], m) == 0)
                        held = m;
                }
            }
            assert_int_equal(out.len, i - held);
        }
    }
    if (!found)
        assert_int_equal(nb_stoptext_flush(&st, &out, &err), NB_OK);
    assert_int_equal(found, found_want);
    assert_int_equal(out.len, want);
    assert_true(want == 0 || memcmp(out.data, text, want) == 0);
    nb_buf_free(&out);
    nb_stoptext_free(&st);
}

static void strings_are_found_where_they_are(void **state)
{
    (void)state;
    const struct {
        const char *text, *stops[3];
        int n;
    } rows[] = {
        {"Paris.\n\nQ: and", {"\n\n"}, 1},
        {"aaab", {"aab"}, 1},
        {"abababac", {"ababac"}, 1},
        {"one two three", {"three", "two", "e"}, 3},
        {"xabc", {"c", "abc", "bc"}, 3},
        {"nothing here", {"there"}, 1},
        {"ends with a begi", {"beginning"}, 1},
        {"stop", {"stop"}, 1},
        {"caf\xc3\xa9 noir", {"\xc3\xa9 n"}, 1},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        for (uint64_t seed = 0; seed < 20; seed++)
            check_stream(rows[i].text, strlen(rows[i].text), rows[i].stops, rows[i].n, seed);
    }
}

/* Texts and strings over two letters, where everything overlaps. */
static void random_streams_agree_with_the_definition(void **state)
{
    (void)state;
    for (uint64_t round = 1; round <= 400; round++) {
        char text[MAX_TEXT], room[3][12];
        const char *stops[3];
        for (size_t i = 0; i < MAX_TEXT; i++)
            text[i] = nb_rng_uniform(round, 1, i) < 0.5 ? 'a' : 'b';
        const int n = (int)(round % 4) < 3 ? (int)(round % 4) : 3;
        for (int k = 0; k < n; k++) {
            const size_t len = 1 + (size_t)(10 * nb_rng_uniform(round, 3, (uint64_t)k));
            for (size_t i = 0; i < len; i++)
                room[k][i] = nb_rng_uniform(round, 4 + (uint64_t)k, i) < 0.5 ? 'a' : 'b';
            room[k][len] = 0;
            stops[k] = room[k];
        }
        check_stream(text, MAX_TEXT, stops, n, round);
    }
}

/* 60 KB of one letter and a string of 60,000 of them and another one: quadratic time would be
 * billions of steps, and the test would run into its time limit. */
static void repetitive_strings_take_linear_time(void **state)
{
    (void)state;
    enum { N = 60000 };
    static char text[50 * N], stop[N + 2];
    memset(text, 'a', sizeof text);
    memset(stop, 'a', N);
    stop[N] = 'b';
    const char *const stops[] = {stop};
    nb_err err = {0};
    nb_stoptext st;
    nb_buf out = {0};
    bool found;
    assert_int_equal(nb_stoptext_init(&st, stops, 1, &err), NB_OK);
    assert_int_equal(nb_stoptext_push(&st, text, sizeof text, &out, &found, &err), NB_OK);
    assert_false(found);
    assert_int_equal(out.len, sizeof text - N);
    nb_buf_free(&out);
    nb_stoptext_free(&st);
}

static void bad_strings_are_refused(void **state)
{
    (void)state;
    static char longer[NB_STOP_MAX_BYTES + 2];
    memset(longer, 'x', sizeof longer - 1);
    const char *many[NB_MAX_STOPS + 1];
    for (int i = 0; i <= NB_MAX_STOPS; i++)
        many[i] = "x";
    const struct {
        const char *const *stops;
        int n;
    } rows[] = {{(const char *const[]){"fine", ""}, 2},
                {(const char *const[]){"fine", "\xff\xfe"}, 2},
                {(const char *const[]){"\xa9 half"}, 1},
                {(const char *const[]){longer}, 1},
                {many, NB_MAX_STOPS + 1},
                {many, -1}};
    const int64_t live = nb_alloc_live();
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        nb_err err = {0};
        nb_stoptext st;
        assert_int_equal(nb_stoptext_init(&st, rows[i].stops, rows[i].n, &err), NB_USAGE);
        assert_int_equal(nb_alloc_live(), live);
    }
    nb_err err = {0};
    nb_stoptext st;
    assert_int_equal(nb_stoptext_init(&st, many, NB_MAX_STOPS, &err), NB_OK);
    nb_stoptext_free(&st);
}

static void failing_allocations_leave_nothing(void **state)
{
    (void)state;
    const char *const stops[] = {"abc", "bcd"};
    const int64_t live = nb_alloc_live();
    bool done = false;
    for (int64_t n = 1; !done; n++) {
        nb_err err = {0};
        nb_stoptext st;
        nb_buf out = {0};
        bool found = false;
        nb_alloc_fail_at(n);
        nb_status s = nb_stoptext_init(&st, stops, 2, &err);
        if (s == NB_OK)
            s = nb_stoptext_push(&st, "xxabxx", 6, &out, &found, &err);
        nb_alloc_fail_at(0);
        done = s == NB_OK;
        assert_true(done || (s == NB_MEMORY && n < 10));
        assert_true(!done || n > 3);
        nb_stoptext_free(&st);
        nb_buf_free(&out);
        assert_int_equal(nb_alloc_live(), live);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(strings_are_found_where_they_are),
        cmocka_unit_test(random_streams_agree_with_the_definition),
        cmocka_unit_test(repetitive_strings_take_linear_time),
        cmocka_unit_test(bad_strings_are_refused),
        cmocka_unit_test(failing_allocations_leave_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
