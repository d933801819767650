/* A tiny model opened with a generator, for the tests of this folder. */
#ifndef NB_TESTS_ENGINE_OPENED_H
#define NB_TESTS_ENGINE_OPENED_H

#include "support/golden.h"

#include "engine/dialog.h"
#include "support/scratch.h"
#include "support/tiny_model.h"

#include <stdio.h>
#include <string.h>

typedef struct {
    nb_kernels kernels;
    nb_pool *pool;
    nb_store *store;
    nb_model model;
    nb_tokenizer *tokenizer;
    nb_generator generator;
} opened;

typedef struct {
    int threads;  /* 0: 1 */
    unsigned isa; /* 0: all */
    int64_t n_ctx, step_tokens;
    nb_kv_format kv;       /* 0: f16 */
    const nb_model *draft; /* NULL: none */
} opening;

/* Opens the folder, or leaves nothing behind. */
static inline nb_status try_open(opened *o, const char *path, const opening *how, nb_err *err)
{
    nb_status s;
    memset(o, 0, sizeof *o);
    nb_kernels_init(&o->kernels, how->isa != 0 ? how->isa : NB_ISA_ALL);
    NB_TRY_GOTO(s, nb_pool_open(&o->pool, how->threads > 0 ? how->threads : 1, err));
    NB_TRY_GOTO(s, nb_store_open(&o->store, path, err));
    NB_TRY_GOTO(s, nb_model_open(&o->model, o->store,
                                 &(nb_model_options){NB_COMPUTE_AUTO, how->n_ctx}, o->pool, err));
    NB_TRY_GOTO(s, nb_tokenizer_open(&o->tokenizer, o->store, err));
    NB_TRY_GOTO(s, nb_generator_init(&o->generator,
                                     &(nb_generator_setup){.model = &o->model,
                                                           .kernels = &o->kernels,
                                                           .pool = o->pool,
                                                           .tokenizer = o->tokenizer,
                                                           .draft = how->draft,
                                                           .kv = how->kv != 0 ? how->kv : NB_KV_F16,
                                                           .step_tokens = how->step_tokens},
                                     err));
done:
    return s;
}

static inline void close_opened(opened *o)
{
    nb_generator_free(&o->generator);
    nb_tokenizer_close(o->tokenizer);
    nb_model_close(&o->model);
    nb_store_close(o->store);
    nb_pool_close(o->pool);
    memset(o, 0, sizeof *o);
}

static inline void must_open(opened *o, const char *path, const opening *how)
{
    nb_err err = {0};
    if (try_open(o, path, how, &err) != NB_OK)
        fail_msg("%s", err.text);
}

/* The folder of a tiny model, written once a name. */
static inline const char *model_path(const char *name, const tiny_model *how)
{
    return scratch_exists(name) ? scratch_path(name) : tiny_model_write(name, how);
}

static inline void encode(const opened *o, const char *text, nb_tokens *out)
{
    nb_err err = {0};
    out->n = 0;
    assert_int_equal(
        nb_tokenizer_encode(o->tokenizer, text, strlen(text), (nb_encode_options){0}, out, &err),
        NB_OK);
}

/* Generates from a text; fails the test if that fails. */
static inline nb_generation must_generate(opened *o, const char *text,
                                          const nb_generate_options *options)
{
    nb_err err = {0};
    nb_tokens ids = {0};
    nb_generation r;
    encode(o, text, &ids);
    if (nb_generate(&o->generator, &ids, options, NULL, NULL, &r, &err) != NB_OK)
        fail_msg("%s", err.text);
    nb_tokens_free(&ids);
    return r;
}

#endif
