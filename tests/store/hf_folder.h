/* Hugging Face folders made by hand, for tests of what reads them. */
#ifndef NB_TESTS_HF_FOLDER_H
#define NB_TESTS_HF_FOLDER_H

#include "store/pieces.h"

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
