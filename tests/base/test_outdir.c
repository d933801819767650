/* Output folders: exchanged whole, and nothing of the user's is ever deleted. */
#define _GNU_SOURCE
#include "support/child.h"
#include "support/golden.h"
#include "support/scratch.h"

#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define TEMPORARY ".model.nibble-tmp"

static nb_outdir open_dir(bool force)
{
    nb_outdir out;
    nb_err err = {0};
    if (nb_outdir_open(&out, scratch_path("model"), force, &err) != NB_OK)
        fail_msg("%s", err.text);
    return out;
}

/* Writes `text` as NAME in the temporary folder, as a container's writer does. */
static nb_status put(const nb_outdir *out, const char *name, const char *text, nb_err *err)
{
    char path[4200];
    snprintf(path, sizeof path, "%s/%s", out->temporary, name);
    nb_outfile file;
    NB_TRY(nb_outfile_open(&file, path, true, err));
    const nb_status s = nb_outfile_write(&file, text, strlen(text), err);
    if (s != NB_OK) {
        nb_outfile_abort(&file);
        return s;
    }
    return nb_outfile_commit(&file, err);
}

static nb_status fill_and_commit(nb_outdir *out, const char *text, nb_err *err)
{
    nb_status s = put(out, "config.json", text, err);
    if (s == NB_OK)
        s = put(out, "model.safetensors", text, err);
    if (s != NB_OK) {
        nb_outdir_abort(out);
        return s;
    }
    return nb_outdir_commit(out, err);
}

static void make_model(const char *text)
{
    nb_outdir out = open_dir(true);
    nb_err err = {0};
    if (fill_and_commit(&out, text, &err) != NB_OK)
        fail_msg("%s", err.text);
}

static bool model_holds(const char *text)
{
    return scratch_count("model") == 2 && scratch_holds("model/config.json", text) &&
           scratch_holds("model/model.safetensors", text);
}

static void refused(const char *path, bool force, nb_status status, const char *reason)
{
    nb_err err = {0};
    nb_outdir out = {.fd = 77};
    assert_int_equal(nb_outdir_open(&out, path, force, &err), status);
    assert_int_equal(out.fd, -1);
    if (strstr(err.text, reason) == NULL)
        fail_msg("'%s' does not say '%s'", err.text, reason);
    nb_outdir_abort(&out);
}

static void nothing_has_the_name_before_commit(void **state)
{
    (void)state;
    nb_err err = {0};
    nb_outdir out = open_dir(false);
    assert_int_equal(put(&out, "config.json", "one", &err), NB_OK);
    assert_false(scratch_exists("model"));
    nb_outdir_abort(&out);
    nb_outdir_abort(&out);
    assert_int_equal(scratch_count("."), 0);

    out = open_dir(false);
    assert_int_equal(fill_and_commit(&out, "one", &err), NB_OK);
    assert_true(model_holds("one"));
    assert_int_equal(scratch_count("."), 1);
    nb_outdir_abort(&out);
    assert_true(model_holds("one"));
    assert_int_equal(nb_alloc_live(), 0);
}

static void an_existing_model_needs_force(void **state)
{
    (void)state;
    make_model("old");
    scratch_text("model/tokenizer.json", "only the old one had this");
    refused(scratch_path("model"), false, NB_USAGE, "already exists (use --force");
    refused(scratch_path("model///"), false, NB_USAGE, "already exists");
    assert_int_equal(scratch_count("."), 1);
    nb_outdir out = open_dir(true);
    nb_err err = {0};
    assert_int_equal(put(&out, "config.json", "new", &err), NB_OK);
    assert_true(scratch_holds("model/config.json", "old"));
    nb_outdir_abort(&out);
    assert_true(scratch_holds("model/config.json", "old"));
    assert_int_equal(scratch_count("."), 1);
    make_model("new");
    assert_true(model_holds("new"));
    assert_int_equal(scratch_count("."), 1);
}

static void an_empty_folder_may_be_replaced(void **state)
{
    (void)state;
    scratch_mkdir("model");
    refused(scratch_path("model"), false, NB_USAGE, "already exists");
    make_model("new");
    assert_true(model_holds("new"));
}

/* --force on the wrong name costs nothing: not a home, not a project, not a link's target. */
static void other_folders_are_never_replaced(void **state)
{
    (void)state;
    scratch_mkdir("model");
    scratch_text("model/letter.txt", "dear");
    refused(scratch_path("model"), true, NB_USAGE, "not a model folder");
    scratch_text("model/config.json", "{}");
    scratch_mkdir("model/photos");
    refused(scratch_path("model"), true, NB_USAGE, "folders of its own");
    assert_int_equal(scratch_count("model"), 3);
    assert_true(scratch_holds("model/letter.txt", "dear"));

    assert_int_equal(symlink("model", scratch_path("link")), 0);
    refused(scratch_path("link"), true, NB_USAGE, "not a folder");
    scratch_text("file", "x");
    refused(scratch_path("file"), true, NB_USAGE, "not a folder");
    refused(scratch_path("file"), false, NB_USAGE, "not a folder");
    refused("/", true, NB_USAGE, "not a name");
    refused("", true, NB_USAGE, "not a name");
    refused(".", true, NB_USAGE, "not a name");
    refused(scratch_path(".."), true, NB_USAGE, "not a name");
    refused(scratch_path("none/model"), true, NB_IO, "No such file");
    char name[256];
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = 0;
    refused(scratch_path(name), true, NB_IO, "File name too long");
    assert_int_equal(scratch_count("."), 3);
    if (geteuid() != 0) {
        assert_int_equal(chmod(scratch_folder(), 0500), 0);
        refused(scratch_path("fresh"), true, NB_IO, "Permission denied");
    }
}

/* Between the start and the end of an hour's work, the folder may have become something else. */
static void what_is_replaced_is_looked_at_again(void **state)
{
    (void)state;
    nb_err err = {0};
    make_model("old");
    nb_outdir out = open_dir(true);
    assert_int_equal(unlink(scratch_path("model/config.json")), 0);
    scratch_text("model/letter.txt", "dear");
    assert_int_equal(fill_and_commit(&out, "new", &err), NB_USAGE);
    assert_true(scratch_holds("model/letter.txt", "dear"));
    assert_int_equal(scratch_count("."), 1);

    /* One that went away is no obstacle; one that came is. */
    assert_int_equal(unlink(scratch_path("model/letter.txt")), 0);
    assert_int_equal(unlink(scratch_path("model/model.safetensors")), 0);
    make_model("old");
    out = open_dir(true);
    assert_int_equal(rename(scratch_path("model"), scratch_path("moved")), 0);
    assert_int_equal(fill_and_commit(&out, "new", &err), NB_OK);
    assert_true(model_holds("new"));
    assert_int_equal(rename(scratch_path("model"), scratch_path("moved too")), 0);
    out = open_dir(true);
    scratch_mkdir("model");
    assert_int_equal(fill_and_commit(&out, "new", &err), NB_USAGE);
    assert_int_equal(scratch_count("model"), 0);
    assert_int_equal(scratch_count("."), 3);
}

static bool write_pieces(int pieces)
{
    nb_outdir out;
    nb_err err;
    return nb_outdir_open(&out, scratch_path("model"), false, &err) == NB_OK &&
           (pieces < 1 || put(&out, "stale.json", "stale", &err) == NB_OK) &&
           (pieces < 2 || put(&out, "config.json", "stale", &err) == NB_OK);
}

static void a_killed_writer_leaves_no_output(void **state)
{
    (void)state;
    for (int pieces = 0; pieces < 3; pieces++) {
        const pid_t child = child_start(write_pieces, pieces);
        refused(scratch_path("model"), false, NB_IO, "locked: another process");
        assert_int_equal(scratch_count(TEMPORARY), pieces);
        child_kill(child);
        assert_false(scratch_exists("model"));
        assert_true(scratch_exists(TEMPORARY));

        make_model("whole");
        assert_true(model_holds("whole"));
        assert_int_equal(scratch_count("."), 1);
        assert_int_equal(unlink(scratch_path("model/config.json")), 0);
        assert_int_equal(unlink(scratch_path("model/model.safetensors")), 0);
        assert_int_equal(rmdir(scratch_path("model")), 0);
    }
}

static void strangers_under_the_temporary_name_are_left_alone(void **state)
{
    (void)state;
    scratch_mkdir(TEMPORARY);
    scratch_mkdir(TEMPORARY "/deep");
    scratch_text(TEMPORARY "/deep/letter.txt", "dear");
    refused(scratch_path("model"), true, NB_IO, "please remove it");
    assert_true(scratch_holds(TEMPORARY "/deep/letter.txt", "dear"));
    assert_int_equal(rename(scratch_path(TEMPORARY), scratch_path("real")), 0);
    assert_int_equal(symlink("real", scratch_path(TEMPORARY)), 0);
    refused(scratch_path("model"), true, NB_IO, "temporary");
    assert_int_equal(unlink(scratch_path(TEMPORARY)), 0);
    scratch_text(TEMPORARY, "a file");
    refused(scratch_path("model"), true, NB_IO, "temporary");
    assert_true(scratch_holds(TEMPORARY, "a file"));
}

/* The first byte of a file in an open folder; 0 when it has none, or is gone. */
static char first_byte(int folder_fd, const char *name)
{
    char byte = 0;
    const int fd = openat(folder_fd, name, O_RDONLY);
    if (fd >= 0) {
        if (read(fd, &byte, 1) != 1)
            byte = 0;
        close(fd);
    }
    return byte;
}

/* Several processes replace one folder over and over, and one looks: the name always has a whole
 * model of one writer. Only the last instants of an unlucky writer may be refused as locked. */
static void many_writers_never_mix_folders(void **state)
{
    (void)state;
    enum { WRITERS = 3, ROUNDS = 25 };
    make_model("x");
    pid_t child[WRITERS];
    for (int w = 0; w < WRITERS; w++) {
        child[w] = fork();
        assert_true(child[w] >= 0);
        if (child[w] != 0)
            continue;
        const char text[] = {(char)('a' + w), 0};
        for (int done = 0; done < ROUNDS;) {
            nb_outdir out;
            nb_err err;
            nb_status s = nb_outdir_open(&out, scratch_path("model"), true, &err);
            if (s == NB_OK)
                s = fill_and_commit(&out, text, &err);
            if (s == NB_OK)
                done++;
            else if (strstr(err.text, "lock") == NULL) {
                fprintf(stderr, "%s\n", err.text);
                _exit(1);
            }
        }
        _exit(0);
    }
    int left = WRITERS, looks = 0;
    while (left > 0) {
        int status;
        while (left > 0 && waitpid(-1, &status, WNOHANG) > 0) {
            assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
            left--;
        }
        /* By descriptor, so that both files are looked up in one and the same folder, which loses
         * its files only after it has lost its name. */
        const int fd = open(scratch_path("model"), O_RDONLY | O_DIRECTORY);
        assert_true(fd >= 0);
        const char config = first_byte(fd, "config.json"),
                   data = first_byte(fd, "model.safetensors");
        assert_true(config == data || config == 0 || data == 0);
        looks += config == data && config != 0;
        close(fd);
    }
    assert_true(looks > 0);
    assert_true(model_holds("a") || model_holds("b") || model_holds("c"));
    assert_int_equal(scratch_count("."), 1);
}

/* Each write, sync and rename of a whole replacement fails in turn. */
static void every_io_call_may_fail(void **state)
{
    (void)state;
    int failed = 0, kept = 0;
    for (int64_t n = 1; n <= 14; n++) {
        make_model("old");
        nb_err err = {0};
        nb_outdir out = open_dir(true);
        nb_file_fail_at(n, ENOSPC);
        const nb_status s = fill_and_commit(&out, "new", &err);
        nb_file_fail_at(0, 0);
        failed += s != NB_OK;
        if (model_holds("old"))
            kept++;
        else
            assert_true(model_holds("new"));
        assert_true(s == NB_OK || s == NB_IO);
        assert_int_equal(scratch_count("."), 1);
        assert_int_equal(nb_alloc_live(), 0);
    }
    /* Two files of four calls each; the folder's sync, the exchange, and the parent's sync. */
    assert_int_equal(failed, 11);
    assert_int_equal(kept, 10);
}

/* A file system without an atomic exchange, and without a rename that refuses a taken name. */
static void without_exchange_the_outcome_is_the_same(void **state)
{
    (void)state;
    make_model("old");
    nb_outdir out = open_dir(true);
    nb_err err = {0};
    assert_int_equal(put(&out, "config.json", "new", &err), NB_OK);
    assert_int_equal(put(&out, "model.safetensors", "new", &err), NB_OK);
    nb_file_fail_at(2, EINVAL); /* the sync, then the exchange */
    assert_int_equal(nb_outdir_commit(&out, &err), NB_OK);
    nb_file_fail_at(0, 0);
    assert_true(model_holds("new"));
    assert_int_equal(scratch_count("."), 1);

    /* And for a name that was free. */
    assert_int_equal(rename(scratch_path("model"), scratch_path("before")), 0);
    out = open_dir(false);
    assert_int_equal(put(&out, "config.json", "two", &err), NB_OK);
    assert_int_equal(put(&out, "model.safetensors", "two", &err), NB_OK);
    nb_file_fail_at(2, ENOSYS);
    assert_int_equal(nb_outdir_commit(&out, &err), NB_OK);
    nb_file_fail_at(0, 0);
    assert_true(model_holds("two"));
    assert_int_equal(scratch_count("."), 2);
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    int failures = 0;
    for (int64_t n = 1; n < 5; n++) {
        nb_outdir out;
        nb_err err = {0};
        nb_alloc_fail_at(n);
        const nb_status s = nb_outdir_open(&out, scratch_path("model"), false, &err);
        nb_alloc_fail_at(0);
        assert_true(s == NB_OK || s == NB_MEMORY);
        failures += s == NB_MEMORY;
        nb_outdir_abort(&out);
        assert_int_equal(nb_alloc_live(), 0);
        assert_int_equal(scratch_count("."), 0);
    }
    assert_int_equal(failures, 2);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, scratch_setup, scratch_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(nothing_has_the_name_before_commit),
        TEST(an_existing_model_needs_force),
        TEST(an_empty_folder_may_be_replaced),
        TEST(other_folders_are_never_replaced),
        TEST(what_is_replaced_is_looked_at_again),
        TEST(a_killed_writer_leaves_no_output),
        TEST(strangers_under_the_temporary_name_are_left_alone),
        TEST(many_writers_never_mix_folders),
        TEST(every_io_call_may_fail),
        TEST(without_exchange_the_outcome_is_the_same),
        TEST(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
