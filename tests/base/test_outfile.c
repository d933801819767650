/* Outputs appear whole or not at all: whatever fails, whoever is killed, whoever else writes. */
#define _GNU_SOURCE
#include "support/child.h"
#include "support/golden.h"
#include "support/scratch.h"

#include "base/file.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define TEMPORARY ".m.gguf.nibble-tmp"

static nb_outfile open_out(const char *name, bool force)
{
    nb_outfile out;
    nb_err err = {0};
    if (nb_outfile_open(&out, scratch_path(name), force, &err) != NB_OK)
        fail_msg("%s", err.text);
    return out;
}

static void write_out(nb_outfile *out, const char *text)
{
    nb_err err = {0};
    if (nb_outfile_write(out, text, strlen(text), &err) != NB_OK)
        fail_msg("%s", err.text);
}

static void commit_out(nb_outfile *out)
{
    nb_err err = {0};
    if (nb_outfile_commit(out, &err) != NB_OK)
        fail_msg("%s", err.text);
}

static void refused(const char *path, bool force, nb_status status, const char *reason)
{
    nb_err err = {0};
    nb_outfile out = {.fd = 77};
    assert_int_equal(nb_outfile_open(&out, path, force, &err), status);
    assert_int_equal(out.fd, -1);
    if (strstr(err.text, reason) == NULL)
        fail_msg("'%s' does not say '%s'", err.text, reason);
    nb_outfile_abort(&out);
}

static void nothing_has_the_name_before_commit(void **state)
{
    (void)state;
    nb_outfile out = open_out("m.gguf", false);
    assert_int_equal(scratch_count("."), 1);
    assert_false(scratch_exists("m.gguf"));
    write_out(&out, "first ");
    write_out(&out, "second");
    assert_false(scratch_exists("m.gguf"));
    commit_out(&out);
    assert_true(scratch_holds("m.gguf", "first second"));
    assert_int_equal(scratch_count("."), 1);
    nb_outfile_abort(&out); /* fine on a committed one */
    assert_true(scratch_holds("m.gguf", "first second"));

    out = open_out("other", false);
    write_out(&out, "x");
    nb_outfile_abort(&out);
    nb_outfile_abort(&out);
    assert_int_equal(scratch_count("."), 1);
    assert_int_equal(nb_alloc_live(), 0);
}

static void an_existing_file_needs_force(void **state)
{
    (void)state;
    scratch_text("m.gguf", "old and long");
    refused(scratch_path("m.gguf"), false, NB_USAGE, "m.gguf: already exists (use --force");
    assert_int_equal(scratch_count("."), 1);
    nb_outfile out = open_out("m.gguf", true);
    write_out(&out, "new");
    assert_true(scratch_holds("m.gguf", "old and long"));
    commit_out(&out);
    assert_true(scratch_holds("m.gguf", "new"));
    /* A name that only a dangling link has is taken, too. */
    assert_int_equal(symlink("gone", scratch_path("dangling")), 0);
    refused(scratch_path("dangling"), false, NB_USAGE, "already exists");
    assert_int_equal(scratch_count("."), 2);
}

/* Somebody else may take the name while we work; without --force that file wins. */
static void a_file_that_appeared_meanwhile_is_kept(void **state)
{
    (void)state;
    nb_outfile out = open_out("m.gguf", false);
    write_out(&out, "ours");
    scratch_text("m.gguf", "theirs");
    nb_err err = {0};
    assert_int_equal(nb_outfile_commit(&out, &err), NB_USAGE);
    assert_non_null(strstr(err.text, "already exists"));
    assert_true(scratch_holds("m.gguf", "theirs"));
    assert_int_equal(scratch_count("."), 1);
}

static void names_that_cannot_be_outputs_are_refused(void **state)
{
    (void)state;
    scratch_mkdir("folder");
    refused(scratch_path("folder"), true, NB_USAGE, "is a folder");
    refused(scratch_path("folder/"), true, NB_USAGE, "is a folder");
    refused("", true, NB_USAGE, "not a name");
    refused("/", true, NB_USAGE, "not a name");
    refused(".", true, NB_USAGE, "not a name");
    refused("..", true, NB_USAGE, "not a name");
    refused("a/..", true, NB_USAGE, "not a name");
    refused(scratch_path("none/m.gguf"), true, NB_IO, "No such file");
    scratch_text("file", "x");
    refused(scratch_path("file/m.gguf"), true, NB_IO, "Not a directory");
    char name[256];
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = 0;
    refused(scratch_path(name), true, NB_IO, "File name too long");
    if (geteuid() != 0) {
        assert_int_equal(chmod(scratch_path("folder"), 0500), 0);
        refused(scratch_path("folder/m.gguf"), true, NB_IO, "Permission denied");
    }
    refused("/proc/m.gguf", true, NB_IO, "/proc/m.gguf");
    assert_int_equal(scratch_count("."), 2);
    assert_int_equal(nb_alloc_live(), 0);
}

static bool write_pieces(int pieces)
{
    nb_outfile out;
    nb_err err;
    if (nb_outfile_open(&out, scratch_path("m.gguf"), false, &err) != NB_OK)
        return false;
    for (int i = 0; i < pieces; i++) {
        if (nb_outfile_write(&out, "half-written ", 13, &err) != NB_OK)
            return false;
    }
    return true;
}

/* Killed with SIGKILL while it writes, at several moments: the name is not taken, and the next run
 * takes over the leftover. */
static void a_killed_writer_leaves_no_output(void **state)
{
    (void)state;
    for (int pieces = 0; pieces < 4; pieces++) {
        const pid_t child = child_start(write_pieces, pieces);
        /* While it lives, it holds the output. */
        refused(scratch_path("m.gguf"), false, NB_IO, "locked: another process");
        assert_true(scratch_exists(TEMPORARY));
        child_kill(child);
        assert_false(scratch_exists("m.gguf"));
        assert_true(scratch_exists(TEMPORARY));

        nb_outfile out = open_out("m.gguf", false);
        write_out(&out, "whole");
        commit_out(&out);
        assert_true(scratch_holds("m.gguf", "whole"));
        assert_int_equal(scratch_count("."), 1);
        assert_int_equal(unlink(scratch_path("m.gguf")), 0);
    }
}

/* What lies under the temporary's name but is no leftover of ours stays as it is. */
static void strangers_under_the_temporary_name_are_left_alone(void **state)
{
    (void)state;
    scratch_text("precious", "data");
    assert_int_equal(symlink("precious", scratch_path(TEMPORARY)), 0);
    refused(scratch_path("m.gguf"), false, NB_IO, "temporary");
    assert_int_equal(unlink(scratch_path(TEMPORARY)), 0);

    assert_int_equal(link(scratch_path("precious"), scratch_path(TEMPORARY)), 0);
    refused(scratch_path("m.gguf"), false, NB_IO, "in the way");
    assert_int_equal(unlink(scratch_path(TEMPORARY)), 0);

    assert_int_equal(mkfifo(scratch_path(TEMPORARY), 0600), 0);
    refused(scratch_path("m.gguf"), false, NB_IO, "");
    assert_int_equal(unlink(scratch_path(TEMPORARY)), 0);

    scratch_mkdir(TEMPORARY);
    refused(scratch_path("m.gguf"), false, NB_IO, "temporary");
    assert_true(scratch_holds("precious", "data"));
    assert_int_equal(scratch_count("."), 2);
}

/* A second writer that opened the temporary before the first one renamed it, and gets its lock
 * afterwards, holds the finished file. Many processes at one name: whatever happens, the name
 * always has one writer's whole text, and never none once it had one. */
static void many_writers_never_tear_a_file(void **state)
{
    (void)state;
    enum { WRITERS = 4, ROUNDS = 60, SIZE = 50000 };
    pid_t child[WRITERS];
    for (int w = 0; w < WRITERS; w++) {
        child[w] = fork();
        assert_true(child[w] >= 0);
        if (child[w] != 0)
            continue;
        static char text[SIZE];
        memset(text, 'a' + w, sizeof text);
        for (int done = 0; done < ROUNDS;) {
            nb_outfile out;
            nb_err err;
            nb_status s = nb_outfile_open(&out, scratch_path("m.gguf"), true, &err);
            if (s == NB_OK)
                s = nb_outfile_write(&out, text, sizeof text, &err);
            if (s == NB_OK && done % 7 == 3) {
                nb_outfile_abort(&out);
                done++;
                continue;
            }
            if (s == NB_OK)
                s = nb_outfile_commit(&out, &err);
            if (s == NB_OK)
                done++;
            else if (strstr(err.text, "locked") == NULL)
                _exit(1);
        }
        _exit(0);
    }
    bool seen = false;
    int left = WRITERS, looks = 0;
    while (left > 0) {
        int status;
        while (left > 0 && waitpid(-1, &status, WNOHANG) > 0) {
            assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
            left--;
        }
        nb_buf text = {0};
        nb_err err = {0};
        if (nb_file_slurp(&text, scratch_path("m.gguf"), 1 << 20, &err) == NB_OK) {
            seen = true;
            looks++;
            assert_int_equal(text.len, SIZE);
            for (size_t i = 1; i < text.len; i++)
                assert_int_equal(text.data[i], text.data[0]);
        } else {
            assert_false(seen);
        }
        nb_buf_free(&text);
    }
    assert_true(looks > 0);
    assert_int_equal(scratch_count("."), 1);
}

/* Opens, writes in three pieces and commits, with the n-th I/O call failing. */
static nb_status replace_with_failure(int64_t n, int errnum, nb_err *err)
{
    nb_outfile out;
    nb_file_fail_at(n, errnum);
    nb_status s = nb_outfile_open(&out, scratch_path("m.gguf"), true, err);
    for (int i = 0; s == NB_OK && i < 3; i++)
        s = nb_outfile_write(&out, "new", 3, err);
    if (s == NB_OK)
        s = nb_outfile_commit(&out, err);
    nb_file_fail_at(0, 0);
    nb_outfile_abort(&out);
    return s;
}

/* Each write, sync and rename fails in turn: the old file is intact or the new one is whole, no
 * temporary is left, and the status says I/O. Interruptions are repeated. */
static void every_io_call_may_fail(void **state)
{
    (void)state;
    int failed = 0, kept = 0;
    for (int64_t n = 1; n <= 8; n++) {
        scratch_text("m.gguf", "old");
        nb_err err = {0};
        const nb_status s = replace_with_failure(n, n % 2 == 0 ? ENOSPC : EIO, &err);
        if (s != NB_OK) {
            failed++;
            assert_int_equal(s, NB_IO);
            assert_non_null(strstr(err.text, n % 2 == 0 ? "No space" : "Input/output"));
        }
        if (scratch_holds("m.gguf", "old"))
            kept++;
        else
            assert_true(scratch_holds("m.gguf", "newnewnew"));
        assert_int_equal(scratch_count("."), 1);
        assert_int_equal(nb_alloc_live(), 0);
    }
    /* Three writes, a sync, a rename; and the folder's sync, after which the new file stands. */
    assert_int_equal(failed, 6);
    assert_int_equal(kept, 5);
    for (int64_t n = 1; n <= 3; n++) {
        nb_err err = {0};
        scratch_text("m.gguf", "old");
        assert_int_equal(replace_with_failure(n, EINTR, &err), NB_OK);
        assert_true(scratch_holds("m.gguf", "newnewnew"));
    }
}

/* A file system that knows no renameat2 still refuses a taken name, and takes a free one. */
static void without_renameat2_the_rules_hold(void **state)
{
    (void)state;
    for (int taken = 0; taken < 2; taken++) {
        nb_outfile out = open_out("m.gguf", false);
        write_out(&out, "ours");
        if (taken == 1)
            scratch_text("m.gguf", "theirs");
        nb_err err = {0};
        nb_file_fail_at(2, EINVAL); /* the sync, then the rename */
        const nb_status s = nb_outfile_commit(&out, &err);
        nb_file_fail_at(0, 0);
        assert_int_equal(s, taken == 1 ? NB_USAGE : NB_OK);
        assert_true(scratch_holds("m.gguf", taken == 1 ? "theirs" : "ours"));
        assert_int_equal(scratch_count("."), 1);
        assert_int_equal(unlink(scratch_path("m.gguf")), 0);
    }
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    int failures = 0;
    for (int64_t n = 1; n < 5; n++) {
        nb_outfile out;
        nb_err err = {0};
        nb_alloc_fail_at(n);
        const nb_status s = nb_outfile_open(&out, scratch_path("m.gguf"), false, &err);
        nb_alloc_fail_at(0);
        assert_true(s == NB_OK || s == NB_MEMORY);
        failures += s == NB_MEMORY;
        nb_outfile_abort(&out);
        assert_int_equal(nb_alloc_live(), 0);
        assert_int_equal(scratch_count("."), 0);
    }
    assert_int_equal(failures, 2);
}

/* The disk is full: a small file system in memory, where the machine lets a test mount one. */
static void a_full_disk_keeps_the_old_file(void **state)
{
    (void)state;
    scratch_mkdir("small");
    if (mount("none", scratch_path("small"), "tmpfs", 0, "size=256k") != 0) {
        print_message("SKIP: no permission to mount a small file system\n");
        skip();
    }
    scratch_text("small/m.gguf", "old");
    nb_outfile out = open_out("small/m.gguf", true);
    char piece[4096];
    memset(piece, 'x', sizeof piece);
    nb_err err = {0};
    nb_status s = NB_OK;
    for (int i = 0; i < 1000 && s == NB_OK; i++)
        s = nb_outfile_write(&out, piece, sizeof piece, &err);
    nb_outfile_abort(&out);
    const bool kept = scratch_holds("small/m.gguf", "old");
    const int left = scratch_count("small");
    assert_int_equal(umount(scratch_path("small")), 0);
    assert_int_equal(s, NB_IO);
    assert_non_null(strstr(err.text, "m.gguf: writing: No space left on device"));
    assert_true(kept);
    assert_int_equal(left, 1);
}

/* Whoever may write to /dev may rename over a device: --force must not. */
static void what_is_no_file_is_never_replaced(void **state)
{
    (void)state;
    char path[4096];
    snprintf(path, sizeof path, "%s", scratch_path("m.gguf"));
    assert_int_equal(mkfifo(path, 0600), 0);
    refused(path, false, NB_USAGE, "not a regular file");
    refused(path, true, NB_USAGE, "not a regular file");
    struct stat st;
    assert_int_equal(lstat(path, &st), 0);
    assert_true(S_ISFIFO(st.st_mode));
    assert_int_equal(scratch_count("."), 1);
    /* A link to it is only a name. */
    assert_int_equal(rename(path, scratch_path("fifo")), 0);
    assert_int_equal(symlink("fifo", path), 0);
    nb_outfile out = open_out("m.gguf", true);
    write_out(&out, "new");
    commit_out(&out);
    assert_true(scratch_holds("m.gguf", "new"));
    assert_int_equal(lstat(scratch_path("fifo"), &st), 0);
    assert_true(S_ISFIFO(st.st_mode));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, scratch_setup, scratch_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(nothing_has_the_name_before_commit),
        TEST(an_existing_file_needs_force),
        TEST(a_file_that_appeared_meanwhile_is_kept),
        TEST(names_that_cannot_be_outputs_are_refused),
        TEST(a_killed_writer_leaves_no_output),
        TEST(strangers_under_the_temporary_name_are_left_alone),
        TEST(many_writers_never_tear_a_file),
        TEST(every_io_call_may_fail),
        TEST(without_renameat2_the_rules_hold),
        TEST(every_allocation_may_fail),
        TEST(a_full_disk_keeps_the_old_file),
        TEST(what_is_no_file_is_never_replaced),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
