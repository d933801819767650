/* Reading: what is not a plain file is refused at once, and a file that shrinks or changes under
 * the reader is an error, never a signal. Outputs have their own test. */
#define _GNU_SOURCE
#include "support/golden.h"
#include "support/scratch.h"

#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static void refused(const char *path, nb_status status, const char *reason)
{
    nb_err err = {0};
    nb_file file = {.fd = 77, .path = NULL};
    assert_int_equal(nb_file_open(&file, path, &err), status);
    assert_int_equal(file.fd, -1);
    assert_null(file.path);
    if (strstr(err.text, reason) == NULL)
        fail_msg("'%s' does not say '%s'", err.text, reason);
    nb_file_close(&file);
}

/* None of these may block, and none is a file to read: the user named something else. */
static void what_is_not_a_file_is_refused_at_once(void **state)
{
    (void)state;
    refused(scratch_path("none"), NB_DATA, "No such file");
    refused("", NB_DATA, "No such file");
    refused(scratch_folder(), NB_DATA, "not a regular file");
    refused("/dev/zero", NB_DATA, "not a regular file");
    refused("/dev/null", NB_DATA, "not a regular file");
    assert_int_equal(mkfifo(scratch_path("fifo"), 0600), 0);
    refused(scratch_path("fifo"), NB_DATA, "not a regular file");
    assert_int_equal(symlink("gone", scratch_path("dangling")), 0);
    refused(scratch_path("dangling"), NB_DATA, "No such file");
    assert_int_equal(symlink("loop", scratch_path("loop")), 0);
    refused(scratch_path("loop"), NB_DATA, "symbolic links");
    scratch_text("file", "x");
    refused(scratch_path("file/below"), NB_DATA, "Not a directory");
    char name[300];
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = 0;
    refused(scratch_path(name), NB_DATA, "File name too long");
    char path[9000];
    memset(path, 'p', sizeof path - 1);
    path[sizeof path - 1] = 0;
    refused(path, NB_DATA, "File name too long");

    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_true(fd >= 0);
    if (strlen(scratch_path("socket")) < sizeof address.sun_path) {
        strcpy(address.sun_path, scratch_path("socket"));
        assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
        refused(scratch_path("socket"), NB_DATA, "");
    }
    close(fd);
    /* A file without permission was named rightly: exit code 3, not 1. */
    assert_int_equal(chmod(scratch_path("file"), 0), 0);
    if (geteuid() != 0)
        refused(scratch_path("file"), NB_IO, "Permission denied");
    assert_int_equal(nb_alloc_live(), 0);
}

static nb_file open_file(const char *path)
{
    nb_file file;
    nb_err err = {0};
    if (nb_file_open(&file, path, &err) != NB_OK)
        fail_msg("%s", err.text);
    return file;
}

/* Links to files are files: model caches are made of them. */
static void links_to_files_are_followed(void **state)
{
    (void)state;
    scratch_text("blob", "0123456789");
    assert_int_equal(symlink("blob", scratch_path("link")), 0);
    nb_file file = open_file(scratch_path("link"));
    nb_err err = {0};
    char bytes[4];
    assert_int_equal(file.size, 10);
    assert_int_equal(nb_file_read(&file, bytes, 4, 3, &err), NB_OK);
    assert_memory_equal(bytes, "3456", 4);
    nb_file_close(&file);
    nb_file_close(&file);
    assert_int_equal(nb_alloc_live(), 0);
}

/* Offsets and sizes from a header: the range has to lie in the file, and sums must not wrap. */
static void reads_outside_the_file_are_refused(void **state)
{
    (void)state;
    scratch_text("file", "0123456789");
    nb_file file = open_file(scratch_path("file"));
    nb_err err = {0};
    char bytes[16] = "untouched";
    const struct {
        size_t n;
        int64_t offset;
    } bad[] = {{11, 0},        {1, 10},       {0, 11},       {1, -1},
               {1, INT64_MAX}, {SIZE_MAX, 1}, {SIZE_MAX, 0}, {(size_t)INT64_MAX, 5},
               {10, INT64_MIN}};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(nb_file_read(&file, bytes, bad[i].n, bad[i].offset, &err), NB_DATA);
        assert_string_equal(bytes, "untouched");
    }
    assert_non_null(strstr(err.text, "past the end"));
    assert_int_equal(nb_file_read(&file, bytes, 0, 10, &err), NB_OK);
    assert_int_equal(nb_file_read(&file, bytes, 10, 0, &err), NB_OK);
    assert_memory_equal(bytes, "0123456789", 10);
    nb_file_close(&file);
}

/* No mapping is kept, so a truncated file gives a message and not a SIGBUS. */
static void a_file_that_shrinks_is_an_error(void **state)
{
    (void)state;
    scratch_text("file", "0123456789");
    nb_file file = open_file(scratch_path("file"));
    nb_err err = {0};
    char bytes[16];
    assert_int_equal(nb_file_check_unchanged(&file, &err), NB_OK);
    assert_int_equal(truncate(scratch_path("file"), 6), 0);
    assert_int_equal(nb_file_read(&file, bytes, 6, 0, &err), NB_OK);
    assert_int_equal(nb_file_read(&file, bytes, 7, 0, &err), NB_IO);
    assert_non_null(strstr(err.text, "shrank"));
    assert_int_equal(nb_file_read(&file, bytes, 1, 9, &err), NB_IO);
    assert_int_equal(nb_file_check_unchanged(&file, &err), NB_IO);
    nb_file_close(&file);
}

static void set_mtime(const char *path, int64_t ns)
{
    const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT},
                                      {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000}};
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}

/* Other bytes under the same name: told by the size, or by the time to the nanosecond. */
static void a_file_that_changes_is_an_error(void **state)
{
    (void)state;
    scratch_text("file", "0123456789");
    set_mtime(scratch_path("file"), 1000000000123456789);
    nb_file file = open_file(scratch_path("file"));
    nb_err err = {0};
    assert_int_equal(file.mtime_ns, 1000000000123456789);
    assert_int_equal(nb_file_check_unchanged(&file, &err), NB_OK);
    set_mtime(scratch_path("file"), 1000000000123456790);
    assert_int_equal(nb_file_check_unchanged(&file, &err), NB_DATA);
    assert_non_null(strstr(err.text, "changed while reading"));
    scratch_text("file", "0123456789+");
    set_mtime(scratch_path("file"), 1000000000123456789);
    assert_int_equal(nb_file_check_unchanged(&file, &err), NB_DATA);
    nb_file_close(&file);
}

/* EINTR is tried again; anything else is reported with the place. */
static void interrupted_reads_are_repeated(void **state)
{
    (void)state;
    scratch_text("file", "0123456789");
    nb_file file = open_file(scratch_path("file"));
    nb_err err = {0};
    char bytes[10] = {0};
    nb_file_fail_at(1, EINTR);
    assert_int_equal(nb_file_read(&file, bytes, 10, 0, &err), NB_OK);
    assert_memory_equal(bytes, "0123456789", 10);
    nb_file_fail_at(1, EIO);
    assert_int_equal(nb_file_read(&file, bytes, 4, 2, &err), NB_IO);
    assert_non_null(strstr(err.text, "reading at byte 2: Input/output error"));
    nb_file_fail_at(0, 0);
    nb_file_close(&file);
}

static void slurp_takes_whole_files_up_to_a_limit(void **state)
{
    (void)state;
    nb_err err = {0};
    scratch_write("file",
                  "0123\0"
                  "567",
                  8);
    scratch_text("empty", "");
    for (size_t limit = 0; limit < 10; limit++) {
        nb_buf out = {0};
        const nb_status s = nb_file_slurp(&out, scratch_path("file"), limit, &err);
        assert_int_equal(s, limit < 8 ? NB_DATA : NB_OK);
        assert_int_equal(out.len, limit < 8 ? 0 : 8);
        if (s == NB_OK)
            assert_memory_equal(out.data,
                                "0123\0"
                                "567",
                                9);
        nb_buf_free(&out);
    }
    nb_buf out = {0};
    assert_int_equal(nb_file_slurp(&out, scratch_path("empty"), 0, &err), NB_OK);
    assert_int_equal(out.len, 0);
    assert_int_equal(out.data[0], 0);
    nb_buf_free(&out);
    assert_int_equal(nb_file_slurp(&out, scratch_path("none"), 10, &err), NB_DATA);
    /* 6 GiB of nothing are refused by their size, unread. */
    scratch_text("sparse", "x");
    assert_int_equal(truncate(scratch_path("sparse"), (off_t)6 << 30), 0);
    assert_int_equal(nb_file_slurp(&out, scratch_path("sparse"), 1 << 20, &err), NB_DATA);
    assert_null(out.data);
    assert_int_equal(nb_alloc_live(), 0);
}

/* Runs slurp("-") with standard input replaced by `fd`. */
static nb_status slurp_stdin(int fd, nb_buf *out, size_t limit, nb_err *err)
{
    const int saved = dup(STDIN_FILENO);
    assert_int_equal(dup2(fd, STDIN_FILENO), STDIN_FILENO);
    const nb_status s = nb_file_slurp(out, "-", limit, err);
    dup2(saved, STDIN_FILENO);
    close(saved);
    return s;
}

static void slurp_reads_standard_input_up_to_a_limit(void **state)
{
    (void)state;
    nb_err err = {0};
    nb_buf out = {0};
    /* A pipe gives its bytes in pieces, as the writer wrote them. */
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    for (int i = 0; i < 100; i++)
        assert_int_equal(write(ends[1], "0123456789", 10), 10);
    close(ends[1]);
    assert_int_equal(slurp_stdin(ends[0], &out, 1000, &err), NB_OK);
    close(ends[0]);
    assert_int_equal(out.len, 1000);
    assert_int_equal(out.data[1000], 0);
    nb_buf_free(&out);

    const int endless = open("/dev/zero", O_RDONLY);
    assert_int_equal(slurp_stdin(endless, &out, 1 << 20, &err), NB_DATA);
    assert_true(out.cap < 4 << 20);
    nb_buf_free(&out);
    close(endless);
    const int folder = open(scratch_folder(), O_RDONLY);
    assert_int_equal(slurp_stdin(folder, &out, 100, &err), NB_IO);
    nb_buf_free(&out);
    close(folder);
    assert_int_equal(nb_alloc_live(), 0);
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    scratch_text("file", "0123456789");
    int failures = 0;
    for (int64_t n = 1; n < 5; n++) {
        nb_err err = {0};
        nb_buf out = {0};
        nb_alloc_fail_at(n);
        const nb_status s = nb_file_slurp(&out, scratch_path("file"), 100, &err);
        nb_alloc_fail_at(0);
        assert_true(s == NB_OK || s == NB_MEMORY);
        failures += s == NB_MEMORY;
        nb_buf_free(&out);
        assert_int_equal(nb_alloc_live(), 0);
    }
    assert_int_equal(failures, 2);
}

static void paths_are_compared_by_what_they_name(void **state)
{
    (void)state;
    scratch_text("a", "x");
    scratch_text("b", "x");
    scratch_mkdir("d");
    assert_int_equal(symlink("a", scratch_path("to-a")), 0);
    assert_int_equal(link(scratch_path("a"), scratch_path("also-a")), 0);
    assert_true(nb_path_same(scratch_path("a"), scratch_path("d/../a")));
    assert_true(nb_path_same(scratch_path("a"), scratch_path("to-a")));
    assert_true(nb_path_same(scratch_path("a"), scratch_path("also-a")));
    assert_false(nb_path_same(scratch_path("a"), scratch_path("b")));
    assert_false(nb_path_same(scratch_path("none"), scratch_path("none")));
    assert_true(nb_path_is_dir(scratch_path("d")));
    assert_false(nb_path_is_dir(scratch_path("a")));
    assert_false(nb_path_is_dir(scratch_path("none")));
    assert_true(nb_path_exists(scratch_path("d")));
    assert_false(nb_path_exists(scratch_path("none")));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, scratch_setup, scratch_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(what_is_not_a_file_is_refused_at_once),
        TEST(links_to_files_are_followed),
        TEST(reads_outside_the_file_are_refused),
        TEST(a_file_that_shrinks_is_an_error),
        TEST(a_file_that_changes_is_an_error),
        TEST(interrupted_reads_are_repeated),
        TEST(slurp_takes_whole_files_up_to_a_limit),
        TEST(slurp_reads_standard_input_up_to_a_limit),
        TEST(every_allocation_may_fail),
        TEST(paths_are_compared_by_what_they_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
