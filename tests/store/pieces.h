/* Hugging Face folders with tensors made by hand, and the opening of them, for tests. */
#ifndef NB_TESTS_STORE_PIECES_H
#define NB_TESTS_STORE_PIECES_H

#include "store/safetensors.h"
#include "store/store.h"
#include "support/golden.h"
#include "support/scratch.h"

#include <string.h>

/* A tensor of a file to be: `data` holds its bytes, NULL: zeros. A name of NULL leaves it out. */
typedef struct {
    nb_st_tensor tensor;
    const void *data;
} piece;

#define PIECE(nm, ty, nd, d0, d1, bytes)                                                           \
    ((piece){.tensor = {.name = (nm), .dtype = (ty), .n_dims = (nd), .dims = {(d0), (d1)}},        \
             .data = (bytes)})

static inline void write_pieces(const char *name, const piece *pieces, int n)
{
    nb_st_tensor tensors[16];
    const void *data[16];
    nb_buf file = {0};
    nb_err err;
    int64_t bytes = 0;
    int kept = 0;
    assert_true(n <= 16);
    for (int i = 0; i < n; i++) {
        if (pieces[i].tensor.name == NULL)
            continue;
        tensors[kept] = pieces[i].tensor;
        data[kept++] = pieces[i].data;
    }
    assert_int_equal(nb_st_write_header(&file, tensors, kept, &bytes, &err), NB_OK);
    const size_t start = file.len;
    assert_int_equal(nb_buf_reserve(&file, (size_t)bytes + 1, &err), NB_OK);
    memset(file.data + start, 0, (size_t)bytes);
    for (int i = 0; i < kept; i++) {
        if (data[i] != NULL)
            memcpy(file.data + start + tensors[i].begin, data[i], (size_t)tensors[i].bytes);
    }
    scratch_write(name, file.data, start + (size_t)bytes);
    nb_buf_free(&file);
}

/* The folder "m" with these tensors and this quantization_config. */
static inline void write_folder(const char *quantization, const piece *pieces, int n)
{
    nb_buf config = {0};
    nb_err err;
    if (!scratch_exists("m"))
        scratch_mkdir("m");
    write_pieces("m/model.safetensors", pieces, n);
    assert_int_equal(nb_buf_format(&config, &err,
                                   "{\"model_type\":\"llama\",\"quantization_config\":%s}",
                                   quantization),
                     NB_OK);
    scratch_text("m/config.json", (const char *)config.data);
    nb_buf_free(&config);
}

static inline nb_store *open_good(const char *name)
{
    nb_err err;
    nb_store *store;
    if (nb_store_open(&store, scratch_path(name), &err) != NB_OK)
        fail_msg("%s", err.text);
    return store;
}

/* Opens a folder and reads its weights; the first failure. */
static inline nb_status read_all(const char *name, nb_err *err)
{
    nb_store *store = NULL;
    nb_loaded loaded = {0};
    nb_status s = nb_store_open(&store, scratch_path(name), err);
    for (int64_t i = 0; s == NB_OK && i < nb_store_n_weights(store); i++)
        s = nb_store_read(store, nb_store_weight(store, i), &loaded, err);
    nb_loaded_free(&loaded);
    nb_store_close(store);
    return s;
}

/* What opening or, if that goes well, reading "m" says: one line that begins with the folder. */
static inline void expect_unread(nb_status status, const char *reason)
{
    const int64_t live = nb_alloc_live();
    nb_err err = {0};
    const nb_status s = read_all("m", &err);
    if (s != status || strstr(err.text, reason) == NULL)
        fail_msg("status %d, wanted %d with '%s': %s", s, status, reason, err.text);
    if (strncmp(err.text, scratch_path("m"), strlen(scratch_path("m"))) != 0)
        fail_msg("the message does not begin with the folder: %s", err.text);
    if (strchr(err.text, '\n') != NULL)
        fail_msg("more than one line: %s", err.text);
    assert_int_equal(nb_alloc_live(), live);
}

/* Every allocation of opening and reading fails once; there are more than `least`. */
static inline void walk_reading(const char *name, int64_t least)
{
    const int64_t live = nb_alloc_live();
    int64_t n;
    for (n = 1;; n++) {
        nb_err err = {0};
        nb_alloc_fail_at(n);
        const nb_status status = read_all(name, &err);
        nb_alloc_fail_at(0);
        assert_int_equal(nb_alloc_live(), live);
        if (status == NB_OK)
            break;
        if (status != NB_MEMORY)
            fail_msg("allocation %lld: %s", (long long)n, err.text);
    }
    assert_true(n > least);
}

#endif
