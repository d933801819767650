/* The working folder belongs to one process at a time, gives back what was put into it or says
 * that it cannot, and removes only what is its own. */
#define _GNU_SOURCE
#include "quant/weight/workdir.h"

#include "quant/weight/room.h"
#include "support/golden.h"
#include "support/scratch.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static nb_err err;

static nb_workdir opened(const char *name)
{
    nb_workdir w;
    assert_int_equal(nb_workdir_open(&w, scratch_path(name), &err), NB_OK);
    return w;
}

/* ---- the folder ---- */

static void it_is_made_and_removed(void **state)
{
    (void)state;
    nb_workdir w = opened("made");
    nb_spill s;
    assert_int_equal(nb_workdir_spill(&w, "x0-even", 4, 4, &s, &err), NB_OK);
    nb_spill_close(&s);
    json_t *nothing = json_object();
    assert_int_equal(nb_workdir_put_state(&w, nothing, &err), NB_OK);
    json_decref(nothing);
    assert_int_equal(scratch_count("made"), 3);
    struct stat st;
    assert_int_equal(stat(scratch_path("made"), &st), 0);
    assert_int_equal(st.st_mode & 0077, 0);
    nb_workdir_close(&w, false);
    assert_int_equal(scratch_count("made"), 3);
    w = opened("made");
    nb_workdir_close(&w, true);
    assert_false(scratch_exists("made"));
    nb_workdir_close(&w, true); /* closed: nothing happens */
    nb_workdir_close(&(nb_workdir){0}, true);
}

/* Somebody's files in it stay, and so does the folder then. */
static void what_is_not_its_own_stays(void **state)
{
    (void)state;
    nb_workdir w = opened("mixed");
    scratch_text("mixed/notes.txt", "mine");
    scratch_text("mixed/weight-000001.bin", "");
    scratch_text("mixed/.weight-000002.bin.nibble-tmp", "");
    nb_workdir_close(&w, true);
    assert_int_equal(scratch_count("mixed"), 1);
    assert_true(scratch_holds("mixed/notes.txt", "mine"));
}

static void places_that_are_no_folder(void **state)
{
    (void)state;
    nb_workdir w;
    scratch_text("file", "mine");
    assert_int_equal(nb_workdir_open(&w, scratch_path("file"), &err), NB_IO);
    assert_int_equal(nb_workdir_open(&w, scratch_path("no/such"), &err), NB_IO);
    assert_non_null(strstr(err.text, "no/such: cannot make the folder"));
    scratch_mkdir("linked");
    assert_int_equal(symlink("../file", scratch_path("linked/lock")), 0);
    assert_int_equal(nb_workdir_open(&w, scratch_path("linked"), &err), NB_IO);
    assert_true(scratch_holds("file", "mine"));
    assert_null(w.path);
}

/* Two at a time would overwrite each other's weights. */
static void a_second_one_is_refused(void **state)
{
    (void)state;
    nb_workdir w = opened("shared"), second;
    assert_int_equal(nb_workdir_open(&second, scratch_path("shared"), &err), NB_IO);
    assert_non_null(strstr(err.text, "shared: another process works in this folder"));
    nb_workdir_close(&w, false);
    w = opened("shared");
    nb_workdir_close(&w, true);
}

/* Processes that come and go as fast as they can, each removing the folder: never are two inside.
 * Whoever is in makes a file that must not be there yet. */
static void never_are_two_inside(void **state)
{
    (void)state;
    pid_t child[2];
    for (int i = 0; i < 2; i++) {
        child[i] = fork();
        assert_true(child[i] >= 0);
        if (child[i] > 0)
            continue;
        int n_in = 0;
        for (int tries = 0; n_in < 100 && tries < 1000000; tries++) {
            nb_workdir w;
            nb_err mine = {0};
            if (nb_workdir_open(&w, scratch_path("race"), &mine) != NB_OK)
                continue;
            n_in++;
            if (mkdir(scratch_path("inside"), 0700) != 0)
                _exit(1);
            (void)rmdir(scratch_path("inside"));
            nb_workdir_close(&w, true);
        }
        _exit(n_in == 100 ? 0 : 2);
    }
    for (int i = 0; i < 2; i++) {
        int status;
        assert_int_equal(waitpid(child[i], &status, 0), child[i]);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), 0);
    }
}

/* ---- the state ---- */

static void a_state_comes_back(void **state)
{
    (void)state;
    nb_workdir w = opened("state");
    json_t *got, *put = json_loads("{\"b\": 1, \"a\": [0.1, 1e-300, 12345678901234567, 3.0, -0.0], "
                                   "\"t\": \"\\u00e4\\n\\\"\", \"n\": null, \"z\": {\"y\": {}}}",
                                   0, NULL);
    bool damaged = true;
    assert_non_null(put);
    assert_int_equal(nb_workdir_get_state(&w, &got, &damaged, &err), NB_OK);
    assert_null(got);
    assert_false(damaged);
    assert_int_equal(nb_workdir_put_state(&w, put, &err), NB_OK);
    assert_int_equal(nb_workdir_get_state(&w, &got, &damaged, &err), NB_OK);
    assert_non_null(got);
    assert_false(damaged);
    assert_true(json_equal(got, put));
    json_decref(got);
    json_decref(put);
    nb_workdir_close(&w, true);
}

/* Every byte of the file that says something: whatever one bit of it becomes, the state is as it
 * was, or there is none. */
static void a_damaged_state_is_none(void **state)
{
    (void)state;
    nb_workdir w = opened("bits");
    json_t *got, *put = json_pack("{s:s, s:i, s:[f]}", "key", "k1", "next_layer", 5, "l", 0.25);
    assert_int_equal(nb_workdir_put_state(&w, put, &err), NB_OK);
    char bytes[512], changed[512];
    FILE *f = fopen(scratch_path("bits/state.json"), "rb");
    assert_non_null(f);
    const size_t n = fread(bytes, 1, sizeof bytes, f);
    assert_true(n > 64 && n < sizeof bytes);
    fclose(f);
    int n_none = 0;
    for (size_t bit = 0; bit < 8 * n; bit += 3) {
        memcpy(changed, bytes, n);
        changed[bit / 8] ^= (char)(1 << bit % 8);
        scratch_write("bits/state.json", changed, n);
        bool damaged;
        assert_int_equal(nb_workdir_get_state(&w, &got, &damaged, &err), NB_OK);
        assert_int_equal(damaged, got == NULL);
        assert_true(got == NULL || json_equal(got, put));
        n_none += got == NULL;
        json_decref(got);
    }
    assert_true(n_none > (int)n);
    for (size_t cut = 0; cut < n; cut += 5) {
        bool damaged;
        scratch_write("bits/state.json", bytes, cut);
        assert_int_equal(nb_workdir_get_state(&w, &got, &damaged, &err), NB_OK);
        assert_null(got);
        assert_true(damaged);
    }
    json_decref(put);
    nb_workdir_close(&w, true);
}

/* ---- matrices ---- */

static const nb_weight planned = {.name = "w",
                                  .n_rows = 3,
                                  .n_cols = 64,
                                  .fmt = &nb_format_int4,
                                  .group_size = 32,
                                  .scale_type = NB_BF16};

static void fill(nb_loaded *made, int first)
{
    nb_mat_arrays arrays;
    nb_mat_list_arrays(&made->mat, &arrays);
    assert_true(arrays.n >= 2);
    for (int i = 0; i < arrays.n; i++) {
        for (size_t k = 0; k < arrays.array[i].bytes; k++)
            ((uint8_t *)arrays.array[i].data)[k] = (uint8_t)(first + 7 * (int)k + i);
    }
}

static bool same(nb_loaded *a, nb_loaded *b)
{
    nb_mat_arrays x, y;
    nb_mat_list_arrays(&a->mat, &x);
    nb_mat_list_arrays(&b->mat, &y);
    bool all = x.n == y.n;
    for (int i = 0; i < x.n && all; i++)
        all = x.array[i].bytes == y.array[i].bytes &&
              memcmp(x.array[i].data, y.array[i].data, x.array[i].bytes) == 0;
    return all;
}

static void a_matrix_comes_back_or_is_refused(void **state)
{
    (void)state;
    nb_workdir w = opened("mats");
    nb_loaded put = {0}, got = {0};
    bool good = true;
    assert_int_equal(nb_room_for(&put, &planned, &err), NB_OK);
    assert_int_equal(nb_room_for(&got, &planned, &err), NB_OK);
    fill(&put, 1);
    fill(&got, 2);
    assert_int_equal(nb_workdir_check_mat(&w, 7, &good, &err), NB_OK);
    assert_false(good);
    assert_int_equal(nb_workdir_get_mat(&w, 7, &got, &err), NB_DATA);
    assert_int_equal(nb_workdir_put_mat(&w, 7, &put.mat, &err), NB_OK);
    assert_int_equal(nb_workdir_check_mat(&w, 7, &good, &err), NB_OK);
    assert_true(good);
    assert_int_equal(nb_workdir_get_mat(&w, 7, &got, &err), NB_OK);
    assert_true(same(&put, &got));

    char bytes[1024], changed[1024];
    FILE *f = fopen(scratch_path("mats/weight-000007.bin"), "rb");
    assert_non_null(f);
    const size_t n = fread(bytes, 1, sizeof bytes, f);
    assert_true(n > 100 && n < sizeof bytes - 1);
    fclose(f);
    for (size_t i = 0; i < n; i++) {
        memcpy(changed, bytes, n);
        changed[i] ^= 0x10;
        scratch_write("mats/weight-000007.bin", changed, n);
        assert_int_equal(nb_workdir_check_mat(&w, 7, &good, &err), NB_OK);
        assert_false(good);
        assert_int_equal(nb_workdir_get_mat(&w, 7, &got, &err), NB_DATA);
    }
    for (size_t len = 0; len <= n + 1; len += len == n - 1 ? 2 : 1) {
        bytes[n] = 0;
        scratch_write("mats/weight-000007.bin", bytes, len);
        assert_int_equal(nb_workdir_check_mat(&w, 7, &good, &err), NB_OK);
        assert_false(good);
        assert_int_equal(nb_workdir_get_mat(&w, 7, &got, &err), NB_DATA);
    }
    /* put again, it is whole again; one of another shape is not mistaken for it */
    fill(&put, 3);
    assert_int_equal(nb_workdir_put_mat(&w, 7, &put.mat, &err), NB_OK);
    assert_int_equal(nb_workdir_get_mat(&w, 7, &got, &err), NB_OK);
    assert_true(same(&put, &got));
    nb_weight other = planned;
    other.n_rows = 2;
    nb_loaded less = {0};
    assert_int_equal(nb_room_for(&less, &other, &err), NB_OK);
    assert_int_equal(nb_workdir_get_mat(&w, 7, &less, &err), NB_DATA);
    nb_loaded_free(&less);
    nb_loaded_free(&put);
    nb_loaded_free(&got);
    nb_workdir_close(&w, true);
}

/* Scales that are codes themselves: their codes, steps and offset come back, too. */
static void nested_scales_come_back(void **state)
{
    (void)state;
    static const nb_weight to = {.name = "w",
                                 .n_rows = 5,
                                 .n_cols = 64 * 64,
                                 .fmt = &nb_format_nf4,
                                 .group_size = 64,
                                 .symmetric = true,
                                 .nested = true};
    nb_workdir w = opened("nested");
    nb_loaded put = {0}, got = {0};
    assert_int_equal(nb_room_for(&put, &to, &err), NB_OK);
    assert_int_equal(nb_room_for(&got, &to, &err), NB_OK);
    fill(&put, 1);
    fill(&got, 2);
    put.mat.nested.offset = 0.5f;
    put.mat.nested.step[1] = 0.25f;
    put.mat.nested.code[319] = 77;
    assert_int_equal(nb_workdir_put_mat(&w, 0, &put.mat, &err), NB_OK);
    assert_int_equal(nb_workdir_get_mat(&w, 0, &got, &err), NB_OK);
    assert_true(same(&put, &got));
    assert_true(got.mat.nested.offset == 0.5f && got.mat.nested.step[1] == 0.25f);
    assert_int_equal(got.mat.nested.code[319], 77);
    nb_loaded_free(&put);
    nb_loaded_free(&got);
    nb_workdir_close(&w, true);
}

/* A disk that fails while a state or a matrix is replaced: the old one stands. */
static void a_failing_disk_leaves_the_old_one(void **state)
{
    (void)state;
    nb_workdir w = opened("failing");
    json_t *old = json_pack("{s:i}", "n", 1), *new = json_pack("{s:i}", "n", 2), *got;
    nb_loaded put = {0}, back = {0};
    assert_int_equal(nb_room_for(&put, &planned, &err), NB_OK);
    assert_int_equal(nb_room_for(&back, &planned, &err), NB_OK);
    int n_failed = 0;
    for (int64_t n = 1; n < 8; n++) {
        bool damaged;
        assert_int_equal(nb_workdir_put_state(&w, old, &err), NB_OK);
        fill(&put, 1);
        assert_int_equal(nb_workdir_put_mat(&w, 1, &put.mat, &err), NB_OK);
        nb_file_fail_at(n, 28 /* ENOSPC */);
        const nb_status s = nb_workdir_put_state(&w, new, &err);
        nb_file_fail_at(0, 0);
        assert_int_equal(nb_workdir_get_state(&w, &got, &damaged, &err), NB_OK);
        assert_true(json_equal(got, new) || (s == NB_IO && json_equal(got, old)));
        json_decref(got);
        n_failed += s == NB_IO;
        nb_file_fail_at(n, 28);
        fill(&put, 2);
        const nb_status m = nb_workdir_put_mat(&w, 1, &put.mat, &err);
        nb_file_fail_at(0, 0);
        assert_int_equal(nb_workdir_get_mat(&w, 1, &back, &err), NB_OK);
        if (!same(&put, &back)) {
            assert_int_equal(m, NB_IO);
            fill(&put, 1);
            assert_true(same(&put, &back));
        }
    }
    assert_true(n_failed >= 3);
    nb_loaded_free(&put);
    nb_loaded_free(&back);
    json_decref(old);
    json_decref(new);
    nb_workdir_close(&w, true);
}

static void memory_that_fails_leaves_nothing(void **state)
{
    (void)state;
    const int64_t live = nb_alloc_live();
    int64_t n = 1;
    for (;; n++) {
        nb_workdir w = NB_WORKDIR_CLOSED;
        json_t *got = NULL, *put = json_pack("{s:i}", "n", 1);
        bool good, damaged;
        nb_alloc_fail_at(n);
        nb_status s = nb_workdir_open(&w, scratch_path("alloc"), &err);
        if (s == NB_OK)
            s = nb_workdir_put_state(&w, put, &err);
        if (s == NB_OK)
            s = nb_workdir_get_state(&w, &got, &damaged, &err);
        if (s == NB_OK)
            s = nb_workdir_check_mat(&w, 0, &good, &err);
        nb_alloc_fail_at(0);
        assert_true(s != NB_OK || got != NULL);
        json_decref(got);
        json_decref(put);
        nb_workdir_close(&w, true);
        assert_int_equal(nb_alloc_live(), live);
        if (s == NB_OK)
            break;
        assert_int_equal(s, NB_MEMORY);
    }
    assert_true(n > 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_is_made_and_removed),
        cmocka_unit_test(what_is_not_its_own_stays),
        cmocka_unit_test(places_that_are_no_folder),
        cmocka_unit_test(a_second_one_is_refused),
        cmocka_unit_test(never_are_two_inside),
        cmocka_unit_test(a_state_comes_back),
        cmocka_unit_test(a_damaged_state_is_none),
        cmocka_unit_test(a_matrix_comes_back_or_is_refused),
        cmocka_unit_test(nested_scales_come_back),
        cmocka_unit_test(a_failing_disk_leaves_the_old_one),
        cmocka_unit_test(memory_that_fails_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
