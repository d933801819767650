/* See digest.h. */
#define _DEFAULT_SOURCE
#include "quant/write/digest.h"

#include "base/file.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MAX_FILES 4096

static nb_status digest_file(const char *path, char hex[NB_SHA256_HEX], nb_err *err)
{
    nb_file file = NB_FILE_CLOSED;
    uint8_t digest[NB_SHA256_BYTES];
    NB_TRY(nb_file_open(&file, path, err));
    const nb_status s = nb_file_sha256(&file, 0, digest, err);
    if (s == NB_OK)
        nb_sha256_hex_of(digest, hex);
    nb_file_close(&file);
    return s;
}

static bool ends_with(const char *name, const char *end)
{
    const size_t n = strlen(name), n_end = strlen(end);
    return n > n_end && strcmp(name + n - n_end, end) == 0;
}

static int is_part(const struct dirent *e)
{
    static const char report[] = "nibble-report";
    return e->d_name[0] != '.' &&
           (ends_with(e->d_name, ".safetensors") || ends_with(e->d_name, ".json") ||
            ends_with(e->d_name, ".jinja")) &&
           strncmp(e->d_name, report, sizeof report - 1) != 0;
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static nb_status digest_folder(const char *path, struct dirent **names, int n, nb_buf *lines,
                               nb_err *err)
{
    if (n > MAX_FILES)
        return nb_fail(err, NB_LIMIT, "%s: more than %d files", path, MAX_FILES);
    for (int i = 0; i < n; i++) {
        char hex[NB_SHA256_HEX];
        nb_buf full = {0};
        nb_status s = nb_buf_format(&full, err, "%s/%s", path, names[i]->d_name);
        if (s == NB_OK)
            s = digest_file((const char *)full.data, hex, err);
        nb_buf_free(&full);
        if (s == NB_OK)
            s = nb_buf_format(lines, err, "%s  %s\n", hex, names[i]->d_name);
        NB_TRY(s);
    }
    return NB_OK;
}

/* How many files a GGUF called PREFIX-00001-of-00003.gguf is split into; 1: not split, as far as
 * its name and its neighbour say. */
static nb_status count_shards(const char *path, int *count, nb_err *err)
{
    const size_t n = strlen(path), n_tail = strlen("-00001-of-00003.gguf");
    *count = 1;
    if (n <= n_tail || strncmp(path + n - n_tail, "-00001-of-", 10) != 0 ||
        !ends_with(path, ".gguf") || strspn(path + n - 10, "0123456789") != 5)
        return NB_OK;
    nb_buf second = {0};
    const nb_status s =
        nb_buf_format(&second, err, "%.*s-00002-of-%s", (int)(n - n_tail), path, path + n - 10);
    if (s == NB_OK && nb_path_exists((const char *)second.data))
        *count = atoi(path + n - 10);
    nb_buf_free(&second);
    return s;
}

static nb_status digest_shards(const char *path, int count, nb_buf *lines, nb_err *err)
{
    const size_t n_prefix = strlen(path) - strlen("00001-of-00003.gguf");
    nb_status s = NB_OK;
    for (int i = 1; i <= count && s == NB_OK; i++) {
        char hex[NB_SHA256_HEX];
        nb_buf name = {0};
        s = nb_buf_format(&name, err, "%.*s%05d%s", (int)n_prefix, path, i, path + n_prefix + 5);
        if (s == NB_OK)
            s = digest_file((const char *)name.data, hex, err);
        if (s == NB_OK) {
            const char *slash = strrchr((const char *)name.data, '/');
            s = nb_buf_format(lines, err, "%s  %s\n", hex,
                              slash != NULL ? slash + 1 : (const char *)name.data);
        }
        nb_buf_free(&name);
    }
    return s;
}

static nb_status digest_gguf(const char *path, char hex[NB_SHA256_HEX], nb_err *err)
{
    int count;
    nb_buf lines = {0};
    NB_TRY(count_shards(path, &count, err));
    if (count <= 1)
        return digest_file(path, hex, err);
    const nb_status s = digest_shards(path, count, &lines, err);
    if (s == NB_OK)
        nb_sha256_hex(lines.data, lines.len, hex);
    nb_buf_free(&lines);
    return s;
}

nb_status nb_model_digest(const char *path, char hex[NB_SHA256_HEX], nb_err *err)
{
    if (!nb_path_is_dir(path))
        return digest_gguf(path, hex, err);
    struct dirent **names = NULL;
    const int n = scandir(path, &names, is_part, by_name);
    if (n < 0)
        return nb_fail_errno(err, errno, "%s: cannot list the folder", path);
    nb_buf lines = {0};
    const nb_status s = digest_folder(path, names, n, &lines, err);
    if (s == NB_OK)
        nb_sha256_hex(lines.data, lines.len, hex);
    nb_buf_free(&lines);
    for (int i = 0; i < n; i++)
        free(names[i]);
    free(names);
    return s;
}
