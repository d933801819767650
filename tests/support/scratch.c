/* See scratch.h. */
#define _GNU_SOURCE
#include "support/scratch.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[512];

int scratch_setup(void **state)
{
    (void)state;
    const char *base = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/nibble-test-XXXXXX", base != NULL ? base : "/tmp");
    return mkdtemp(folder) == NULL ? -1 : 0;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *where)
{
    (void)st;
    (void)type;
    (void)where;
    return remove(path);
}

/* Folders that a test made read-only are opened up on the way down. */
static int open_up(const char *path, const struct stat *st, int type, struct FTW *where)
{
    (void)where;
    if (type == FTW_D || type == FTW_DNR)
        (void)chmod(path, st->st_mode | 0700);
    return 0;
}

int scratch_teardown(void **state)
{
    (void)state;
    nftw(folder, open_up, 16, FTW_PHYS);
    return nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

const char *scratch_folder(void)
{
    return folder;
}

const char *scratch_path(const char *name)
{
    static char ring[8][PATH_MAX];
    static int next;
    char *out = ring[next++ % 8];
    assert_int_not_equal(folder[0], 0); /* without scratch_setup it would be the root folder */
    snprintf(out, PATH_MAX, "%s/%s", folder, name);
    return out;
}

void scratch_write(const char *name, const void *bytes, size_t n)
{
    FILE *f = fopen(scratch_path(name), "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

void scratch_text(const char *name, const char *text)
{
    scratch_write(name, text, strlen(text));
}

void scratch_mkdir(const char *name)
{
    assert_int_equal(mkdir(scratch_path(name), 0777), 0);
}

bool scratch_holds(const char *name, const char *text)
{
    FILE *f = fopen(scratch_path(name), "rb");
    if (f == NULL)
        return false;
    const size_t n = strlen(text);
    char *bytes = malloc(n + 2);
    assert_non_null(bytes);
    const size_t got = fread(bytes, 1, n + 1, f);
    fclose(f);
    const bool same = got == n && memcmp(bytes, text, n) == 0;
    free(bytes);
    return same;
}

bool scratch_exists(const char *name)
{
    struct stat st;
    return lstat(scratch_path(name), &st) == 0;
}

int scratch_count(const char *name)
{
    DIR *d = opendir(scratch_path(name));
    assert_non_null(d);
    int n = 0;
    for (const struct dirent *e; (e = readdir(d)) != NULL;) {
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            n++;
    }
    closedir(d);
    return n;
}
