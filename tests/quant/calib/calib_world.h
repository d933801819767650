/* The tiny model's tokenizer and template, and calibration sets made with them. */
#ifndef NB_TESTS_CALIB_WORLD_H
#define NB_TESTS_CALIB_WORLD_H

#include "quant/calib/set.h"
#include "support/golden.h"
#include "support/scratch.h"
#include "support/tiny_model.h"

#include <stdio.h>
#include <string.h>

/* The tiny model's tokenizer and template. */
static nb_store *store;

static nb_tokenizer *tokenizer;

static const char *template_text;

static size_t n_template;

static inline void open_tokenizer(const tiny_model *how)
{
    static int n_written;
    char name[16];
    nb_err err = {0};
    snprintf(name, sizeof name, "model%d", n_written++);
    if (nb_store_open(&store, tiny_model_write(name, how), &err) != NB_OK ||
        nb_store_chat_template(store, &template_text, &n_template, &err) != NB_OK ||
        nb_tokenizer_open(&tokenizer, store, &err) != NB_OK)
        fail_msg("%s", err.text);
}

static inline void close_tokenizer(void)
{
    nb_tokenizer_close(tokenizer);
    nb_store_close(store);
    tokenizer = NULL;
    store = NULL;
}

static inline int setup(void **state)
{
    if (scratch_setup(state) != 0)
        return 1;
    open_tokenizer(&(tiny_model){0});
    return 0;
}

static inline int teardown(void **state)
{
    close_tokenizer();
    return scratch_teardown(state);
}

static inline nb_status open_set(nb_calib_set *set, nb_calib_options o, nb_err *err)
{
    return nb_calib_set_open(set, tokenizer, template_text, n_template, &o, err);
}

/* A set of one file of the scratch folder. */
static inline nb_calib_set set_of(const char *name, nb_calib_options o)
{
    const char *path = scratch_path(name);
    nb_calib_set set;
    nb_err err = {0};
    if (o.paths == NULL) {
        o.paths = &path;
        o.n_paths = 1;
    }
    if (open_set(&set, o, &err) != NB_OK)
        fail_msg("%s", err.text);
    return set;
}

static inline void encode(nb_tokens *out, const char *text, size_t len)
{
    nb_err err = {0};
    assert_int_equal(nb_tokenizer_encode(tokenizer, text, len, (nb_encode_options){0}, out, &err),
                     NB_OK);
}

static inline void expect_ids(const nb_calib_seq *seq, const int32_t *ids, int64_t n)
{
    assert_int_equal(seq->n, n);
    assert_memory_equal(seq->ids, ids, (size_t)n * sizeof *ids);
}

static inline void expect_text(const nb_calib_seq *seq, const char *text)
{
    nb_tokens want = {0};
    encode(&want, text, strlen(text));
    expect_ids(seq, want.ids, want.n);
    nb_tokens_free(&want);
}

static inline bool has_note(const nb_calib_set *set, const char *part)
{
    for (int i = 0; i < set->n_notes; i++)
        if (strstr(set->notes[i], part) != NULL)
            return true;
    return false;
}

#endif
