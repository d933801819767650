/* What every verb that computes needs: threads, kernels, and models opened with the common
 * options (--threads, --isa, --compute, --kv). */
#ifndef NB_CLI_RUNTIME_H
#define NB_CLI_RUNTIME_H

#include "cli/args.h"
#include "cli/out.h"
#include "model/forward.h"
#include "text/tokenizer.h"

typedef struct {
    nb_pool *pool;
    nb_kernels kernels;
    bool dynamic_kv; /* --kv fp8:dynamic: of models that are opened with it */
} nb_runtime;

/* The verb's table must have the rows THREADS and ISA. `{0}` is a valid empty runtime. */
nb_status nb_runtime_open(nb_runtime *rt, const nb_args *args, nb_err *err);
void nb_runtime_close(nb_runtime *rt);

/* A model with what it came from. `{0}` is empty. */
typedef struct {
    nb_store *store;
    nb_tokenizer *tokenizer; /* NULL when it was not asked for */
    nb_model model;
    double load_seconds;
} nb_opened;

nb_status nb_opened_open(nb_opened *o, const nb_runtime *rt, const char *path,
                         nb_compute_choice compute, int64_t n_ctx, bool with_tokenizer,
                         nb_err *err);
/* The same from a store that is open already; it is o's from then on, and closed on failure. */
nb_status nb_opened_load(nb_opened *o, const nb_runtime *rt, nb_store *store,
                         nb_compute_choice compute, int64_t n_ctx, bool with_tokenizer,
                         nb_err *err);
void nb_opened_close(nb_opened *o);

/* A tokenizer that is there must be sound; one of a kind that nibble lacks is only mentioned. */
nb_status nb_tokenizer_check(nb_store *store, nb_out *out, nb_err *err);

/* Prints what was ignored while the model was opened, if anything was. */
void nb_opened_warn(const nb_opened *o, nb_out *out);

/* Values of --compute, and of --kv, which depends on what the model says. */
nb_compute_choice nb_compute_option(const nb_args *args);
nb_kv_format nb_kv_option(const nb_args *args, const nb_config *c);
/* What it is called: as it was asked for, and what auto comes to. */
const char *nb_kv_name(const nb_args *args, const nb_config *c);
/* The same with where its scales come from, if they are the model's, which is open. */
const char *nb_kv_label(const nb_args *args, const nb_config *c);

/* Bits per weight of all tensors of the files. */
double nb_opened_bpw(const nb_opened *o);

/* Peak resident set of this process so far, in bytes. */
int64_t nb_peak_rss(void);

/* The last part of a path, without trailing slashes: what a table calls a model. */
const char *nb_path_label(const char *path, char *buffer, size_t size);
/* The same without its ending: what a table calls a task. */
const char *nb_path_stem(const char *path, char *buffer, size_t size);

#endif
