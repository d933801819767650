/* Hugging Face folders made by hand, for tests of what reads them. */
#ifndef NB_TESTS_HF_FOLDER_H
#define NB_TESTS_HF_FOLDER_H

#include "store/safetensors.h"
#include "store/store.h"
#include "support/golden.h"
#include "support/scratch.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define CONFIG "{\"model_type\":\"llama\"}"

static inline void clear_folder(void)
{
    static const char *const files[] = {"config.json",
                                        "generation_config.json",
                                        "tokenizer_config.json",
                                        "model.safetensors",
                                        "model.safetensors.index.json",
                                        "one.safetensors",
                                        "two.safetensors",
                                        "pytorch_model.bin"};
    if (!scratch_exists("m"))
        scratch_mkdir("m");
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[64];
        snprintf(path, sizeof path, "m/%s", files[i]);
        unlink(scratch_path(path));
    }
    scratch_text("m/config.json", CONFIG);
}

/* One tensor of a file to be. */
typedef struct {
    nb_st_tensor tensor;
    const void *data; /* NULL: zeros */
} piece;

#define PIECE(nm, ty, nd, d0, d1, bytes)                                                           \
    ((piece){.tensor = {.name = (nm), .dtype = (ty), .n_dims = (nd), .dims = {(d0), (d1)}},        \
             .data = (bytes)})

static inline void write_pieces(const char *name, const piece *pieces, int n)
{
    nb_st_tensor tensors[16];
    nb_buf file = {0};
    nb_err err;
    int64_t data = 0;
    assert_true(n <= 16);
    for (int i = 0; i < n; i++)
        tensors[i] = pieces[i].tensor;
    assert_int_equal(nb_st_write_header(&file, tensors, n, &data, &err), NB_OK);
    const size_t start = file.len;
    assert_int_equal(nb_buf_reserve(&file, (size_t)data + 1, &err), NB_OK);
    memset(file.data + start, 0, (size_t)data);
    for (int i = 0; i < n; i++) {
        if (pieces[i].data != NULL)
            memcpy(file.data + start + tensors[i].begin, pieces[i].data, (size_t)tensors[i].bytes);
    }
    scratch_write(name, file.data, start + (size_t)data);
    nb_buf_free(&file);
}

static inline nb_store *open_good(const char *name)
{
    nb_err err;
    nb_store *store;
    if (nb_store_open(&store, scratch_path(name), &err) != NB_OK)
        fail_msg("%s", err.text);
    return store;
}

static inline void expect_refused(nb_status status, const char *reason)
{
    const int64_t live = nb_alloc_live();
    nb_err err = {0};
    nb_store *store;
    const nb_status s = nb_store_open(&store, scratch_path("m"), &err);
    if (s != status || strstr(err.text, reason) == NULL)
        fail_msg("status %d, wanted %d with '%s': %s", s, status, reason, err.text);
    assert_null(store);
    if (strncmp(err.text, scratch_path("m"), strlen(scratch_path("m"))) != 0)
        fail_msg("the message does not begin with the folder: %s", err.text);
    assert_int_equal(nb_alloc_live(), live);
}

#endif
