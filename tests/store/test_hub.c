/* Pull below the command line: names, and the way through the Python index with a stand-in for
 * Python. The server's side is tested against a real socket in tests/cli/test_pull.py. */
#define _GNU_SOURCE
#include "support/golden.h"
#include "support/scratch.h"

#include "base/file.h"
#include "base/sha256.h"
#include "store/hub.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A "python3" whose pip makes an empty wheel, and whose zipfile runs `unpack`. */
static void fake_python(const char *unpack)
{
    char script[2000];
    snprintf(script, sizeof script,
             "#!/bin/sh\n"
             "case \"$1\" in\n"
             "-m) while [ \"$1\" != -d ]; do shift; done; : > \"$2/p-1-py3-none-any.whl\" ;;\n"
             "-I) %s ;;\n"
             "esac\n",
             unpack);
    scratch_text("bin/python3", script);
    assert_int_equal(chmod(scratch_path("bin/python3"), 0755), 0);
}

/* What the cache holds; it may not exist yet. */
static int count_cached(void)
{
    return scratch_exists("cache") ? scratch_count("cache") : 0;
}

static char cache[4096], hello_sha256[NB_SHA256_HEX];
static nb_hub_known table[] = {{.names = {"Tiny", "owner/tiny-GGUF"},
                                .repo = "owner/tiny-GGUF",
                                .file = "tiny.gguf",
                                .bytes = 5,
                                .sha256 = hello_sha256,
                                .package = "p==1",
                                .member = "p/tiny.gguf"},
                               {.names = {NULL}}};

static nb_hub_request request_for(const char *model)
{
    /* Port 1 of this machine refuses at once: no server. */
    return (nb_hub_request){.model = model,
                            .revision = "main",
                            .cache = cache,
                            .endpoint = "http://127.0.0.1:1",
                            .known = table,
                            .stall_s = 10};
}

/* An empty cache, and a Python that has the file. */
static void start_afresh(void)
{
    fake_python("printf hello");
    unlink(scratch_path("cache/tiny.gguf"));
}

static int set_up(void **state)
{
    if (scratch_setup(state) != 0)
        return -1;
    scratch_mkdir("bin");
    setenv("PATH", scratch_path("bin"), 1);
    setenv("no_proxy", "127.0.0.1", 1);
    snprintf(cache, sizeof cache, "%s", scratch_path("cache"));
    nb_sha256_hex("hello", 5, hello_sha256);
    start_afresh();
    return 0;
}

static void the_index_is_the_last_way(void **state)
{
    (void)state;
    const char *const names[] = {"tiny", "TINY", "owner/Tiny-gguf"};
    for (int i = 0; i < 3; i++) {
        start_afresh();
        for (int again = 0; again < 2; again++) {
            const nb_hub_request request = request_for(names[i]);
            nb_hub_result result;
            nb_err err = {0};
            if (nb_hub_pull(&request, &result, &err) != NB_OK)
                fail_msg("%s", err.text);
            assert_int_equal(result.source, again ? NB_HUB_CACHE : NB_HUB_INDEX);
            assert_true(scratch_holds("cache/tiny.gguf", "hello"));
            nb_free(result.path);
        }
        assert_int_equal(count_cached(), 1);
    }
}

static void what_is_not_the_file_is_refused(void **state)
{
    (void)state;
    const char *const cases[][2] = {
        {"printf hellp", "checksum mismatch"},
        {"printf hell", "has 4 bytes, 5 were expected"},
        {"printf hello!", "has at least 6 bytes, 5 were expected"},
        {"while :; do printf hello; done", "has at least "},
        {"printf hello; printf 'KeyError: no member\\n' >&2; exit 1", "KeyError: no member"},
        {"exit 3", "it said nothing"},
        {"kill -9 $$", "unpacking"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fake_python(cases[i][0]);
        const nb_hub_request request = request_for("tiny");
        nb_hub_result result;
        nb_err err = {0};
        assert_int_equal(nb_hub_pull(&request, &result, &err), NB_IO);
        if (strstr(err.text, cases[i][1]) == NULL)
            fail_msg("%s: %s", cases[i][0], err.text);
        assert_non_null(strstr(err.text, "tiny: no way worked: (1) not in "));
        assert_null(result.path);
        assert_int_equal(count_cached(), 0);
    }
}

/* A damaged file in the cache is noticed and replaced. */
static void the_cache_is_verified(void **state)
{
    (void)state;
    scratch_mkdir("cache");
    scratch_text("cache/tiny.gguf", "jello");
    const nb_hub_request request = request_for("tiny");
    nb_hub_result result;
    nb_err err = {0};
    assert_int_equal(nb_hub_pull(&request, &result, &err), NB_OK);
    assert_int_equal(result.source, NB_HUB_INDEX);
    assert_true(scratch_holds("cache/tiny.gguf", "hello"));
    nb_free(result.path);
}

static int steps_left;

static bool stop_after_some(void *context, const char *label, int64_t done, int64_t total)
{
    (void)context, (void)label, (void)done, (void)total;
    return steps_left-- > 0;
}

/* Wherever it is stopped, nothing half done stays. */
static void stopping_leaves_nothing(void **state)
{
    (void)state;
    nb_status s = NB_INTERRUPTED;
    int n = 0;
    for (; s != NB_OK; n++) {
        start_afresh();
        nb_hub_request request = request_for("tiny");
        request.step = stop_after_some;
        steps_left = n;
        nb_hub_result result;
        nb_err err = {0};
        s = nb_hub_pull(&request, &result, &err);
        if (s != NB_OK) {
            assert_int_equal(s, NB_INTERRUPTED);
            assert_int_equal(count_cached(), 0);
        }
        nb_free(result.path);
    }
    assert_true(n > 2);
}

static void memory_may_run_out_anywhere(void **state)
{
    (void)state;
    const int64_t before = nb_alloc_live();
    nb_status s = NB_MEMORY;
    int64_t n = 1;
    for (; s != NB_OK; n++) {
        start_afresh();
        const nb_hub_request request = request_for("tiny");
        nb_hub_result result;
        nb_err err = {0};
        nb_alloc_fail_at(n);
        s = nb_hub_pull(&request, &result, &err);
        nb_alloc_fail_at(0);
        assert_true(s == NB_OK || s == NB_MEMORY);
        nb_free(result.path);
        assert_int_equal(nb_alloc_live(), before);
        /* Short of memory for the answer, the file may be there already; then it is whole. */
        assert_true(count_cached() <= 1);
        assert_true(count_cached() == 0 ? s != NB_OK : scratch_holds("cache/tiny.gguf", "hello"));
    }
    assert_true(n > 5);
}

static void disks_may_fail_anywhere(void **state)
{
    (void)state;
    const int64_t before = nb_alloc_live();
    int64_t n = 1;
    for (nb_status s = NB_IO; s != NB_OK; n++) {
        start_afresh();
        const nb_hub_request request = request_for("tiny");
        nb_hub_result result;
        nb_err err = {0};
        nb_file_fail_at(n, ENOSPC);
        s = nb_hub_pull(&request, &result, &err);
        nb_file_fail_at(0, 0);
        assert_true(s == NB_OK || s == NB_IO);
        nb_free(result.path);
        assert_int_equal(nb_alloc_live(), before);
        assert_true(count_cached() <= 1);
        assert_true(count_cached() == 0 ? s != NB_OK : scratch_holds("cache/tiny.gguf", "hello"));
    }
    assert_true(n > 3);
}

static void only_safe_names_are_safe(void **state)
{
    (void)state;
    const char *const safe[] = {"a", "a/b", "a.b", "..a", "a..b", "...", "a b", "\xc3\xa9", "-x"};
    const char *const unsafe[] = {"",     "/",    "/a",     "a/",    "a//b",      "..",
                                  "../a", "a/..", "a/../b", ".",     "./a",       "a/./b",
                                  "a\\b", "a\n",  "\x7f",   "a\x01", ".nibble-x", "a/.nibble-x"};
    for (size_t i = 0; i < sizeof safe / sizeof *safe; i++)
        assert_true(nb_hub_is_safe_name(safe[i]));
    for (size_t i = 0; i < sizeof unsafe / sizeof *unsafe; i++)
        assert_false(nb_hub_is_safe_name(unsafe[i]));
    char name[1100];
    memset(name, 'a', sizeof name);
    name[240] = 0;
    assert_true(nb_hub_is_safe_name(name));
    name[240] = 'a';
    name[241] = 0;
    assert_false(nb_hub_is_safe_name(name));
}

static void a_path_needs_no_way_at_all(void **state)
{
    (void)state;
    nb_hub_request request = request_for(scratch_folder());
    request.cache = NULL;
    nb_hub_result result;
    nb_err err = {0};
    assert_int_equal(nb_hub_pull(&request, &result, &err), NB_OK);
    assert_int_equal(result.source, NB_HUB_LOCAL);
    assert_string_equal(result.path, scratch_folder());
    nb_free(result.path);
    request = request_for("tiny");
    request.cache = NULL;
    assert_int_equal(nb_hub_pull(&request, &result, &err), NB_USAGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_index_is_the_last_way, set_up, scratch_teardown),
        cmocka_unit_test_setup_teardown(what_is_not_the_file_is_refused, set_up, scratch_teardown),
        cmocka_unit_test_setup_teardown(the_cache_is_verified, set_up, scratch_teardown),
        cmocka_unit_test_setup_teardown(stopping_leaves_nothing, set_up, scratch_teardown),
        cmocka_unit_test_setup_teardown(memory_may_run_out_anywhere, set_up, scratch_teardown),
        cmocka_unit_test_setup_teardown(disks_may_fail_anywhere, set_up, scratch_teardown),
        cmocka_unit_test_setup_teardown(only_safe_names_are_safe, set_up, scratch_teardown),
        cmocka_unit_test_setup_teardown(a_path_needs_no_way_at_all, set_up, scratch_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
