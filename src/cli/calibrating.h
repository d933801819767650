/* Quantizing with data: the calibration set, the walk, what is recorded of it. Between the plan of
 * rewriting.h and the writing of the output. */
#ifndef NB_CLI_CALIBRATING_H
#define NB_CLI_CALIBRATING_H

#include "cli/calib_options.h"
#include "cli/runtime.h"
#include "quant/calib/score.h"
#include "quant/walk/walk.h"
#include "quant/write/slice.h"

/* What the flags of a calibrated quantization say. */
typedef struct {
    nb_calib_request set;
    const nb_transform *transform; /* NULL: none */
    const char *transform_options;
    nb_method tune; /* with `tunes`: on top of the method */
    bool tunes;
    nb_method distill; /* with `distills`: options of a tuning of all scales at the end */
    bool distills;
    nb_flow flow;
    int64_t memory;
    int64_t check;                /* held-out sequences that the output is measured on */
    bool fresh;                   /* forget what an earlier run has left */
    bool guide_outputs;           /* and rows make up for each other's errors */
    bool guide;                   /* tokens count by what they do to the predictions */
    bool given_flow, given_check; /* on the command line */
    bool mixes;                   /* a mixture is found with the text */
    nb_observing observing;
    const char *observer; /* as it was given; NULL: it was not */
    const char *kv; /* "fp8", "fp8:head": the output gets scales of the KV cache; NULL: none */
    nb_observing kv_observing;
} nb_calibrating_flags;

typedef struct {
    nb_calib_set set;
    nb_calib_score score; /* of the set */
    nb_workdir dir;
    nb_walk_plan plan;
    double seconds; /* predicted, of a dry run */
    nb_walk_result result;
    char model_sha256[NB_SHA256_HEX];
    bool wanted; /* whether there is anything to calibrate */
    bool checks; /* else: whether there is a set, to check the output with, */
    bool serves; /* or to find scales of the KV cache by */
    bool guided;
    const char *observer; /* of static scales of activations; NULL: there are none */
} nb_calibrating;

/* `{0}` with dir closed. */
#define NB_CALIBRATING_NONE ((nb_calibrating){.dir = NB_WORKDIR_CLOSED})

nb_status nb_calibrating_flags_read(nb_calibrating_flags *f, const nb_args *args, nb_err *err);
void nb_calibrating_flags_free(nb_calibrating_flags *f);

/* Reads the set that the flags name, which have to name one, prints its notes, and scores it (NULL:
 * it does not). */
nb_status nb_calibrating_read_set(nb_calib_set *set, nb_calib_score *score,
                                  const nb_calibrating_flags *flags, nb_store *store, nb_out *out,
                                  nb_err *err);
/* Reads the set, and plans: without the working folder `folder` when `dry`. What an earlier run has
 * left there goes when `fresh`. */
nb_status nb_calibrating_open(nb_calibrating *c, const nb_calibrating_flags *flags,
                              const nb_plan *plan, nb_store *store, const nb_method *method,
                              const nb_runtime *rt, const char *folder, bool fresh, bool dry,
                              nb_out *out, nb_err *err);
/* The walk: c->result then names the weights that wait in c->dir. */
nb_status nb_calibrating_run(nb_calibrating *c, const nb_calibrating_flags *flags,
                             const nb_plan *plan, nb_store *store, const nb_method *method,
                             const nb_runtime *rt, nb_out *out, nb_err *err);
/* `done`: the output stands, and the working folder can go. */
void nb_calibrating_close(nb_calibrating *c, bool done);

/* calibrating_print.c: what the set is like, before the walk, on standard output, with warnings on
 * standard error; and how alike held-out inputs of layers are to the rest, after it. */
void nb_calibrating_print_set(const nb_calibrating *c, nb_out *out);
void nb_calibrating_print_coverage(const nb_calibrating *c, nb_out *out);
/* What tuning all scales at the end has done; nothing where there was none. */
void nb_calibrating_print_distilled(const nb_calibrating *c, nb_out *out);
/* What became of layers whose inputs are of no use, in one line: how many, which, why. False: there
 * are none. */
bool nb_calibrating_fallen(const nb_calibrating *c, char *text, size_t size);
/* Adds what the weights that the walk has made are off by. */
void nb_calibrating_add_errors(const nb_calibrating *c, nb_error_sum *sum);
/* What one line of --json says of it. NULL: no memory. */
json_t *nb_calibrating_line(const nb_calibrating *c);
/* Object for nibble-report.json: the set, its files, its score, layers. */
nb_status nb_calibrating_json(const nb_calibrating *c, json_t **out, nb_err *err);

#endif
