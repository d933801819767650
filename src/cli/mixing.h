/* From a budget to a recipe: measures what each layer costs in each candidate format, lets the
 * allocation choose, measures the choice, and writes it down as rules with reasons.
 *
 * All of that is before there is an output. What the output then turns out to have lost is told to
 * nb_mixing_judge, which may want another choice. */
#ifndef NB_CLI_MIXING_H
#define NB_CLI_MIXING_H

#include "cli/calibrating.h"
#include "cli/recipe_options.h"
#include "quant/mix/mixture.h"

/* What measuring takes before anything is written. */
typedef struct {
    int64_t memory, disk;
    double flops, seconds;
} nb_mixing_plan;

typedef struct {
    nb_recipe_flags *f; /* NULL: nothing is mixed */
    const nb_calibrating_flags *flags;
    const nb_plan_request *request;
    nb_store *store;
    const nb_runtime *rt;
    nb_out *out;
    nb_calib_set set;
    nb_calib_seq *pieces; /* of the set */
    int64_t n_pieces, n_tokens;
    nb_workdir dir;
    char key[NB_SHA256_HEX];
    char measured_with[160];
    nb_sensitivity table;
    nb_mixture mixture;
    nb_progress bar;
    double done;
    nb_mixing_plan plan;
    const char *target;    /* "bpw" */
    double bound;          /* on the divergence that is measured before there is an output */
    double kl;             /* measured so */
    int uniform;           /* that it was compared with; -1: none */
    double uniform_kl;     /* measured so */
    int64_t uniform_bytes; /* codes, scales, zero points */
    int64_t budget;        /* bytes that were allowed; 0: not said in bytes */
    bool best;             /* --max-kl: there is nothing beyond this choice */
    bool uniform_won;      /* before there was an output, or after */
    double predicted_kl;   /* the sum over layers */
    int64_t bytes;         /* of the mixture, as uniform_bytes */
    const char *stand_in;  /* of a dry run that knows no measurements: a scheme for all layers */
    nb_recipe uniform_recipe;
    int64_t n_outputs;                   /* that were judged */
    double output_kl, output_uniform_kl; /* of outputs; NaN: not measured */
} nb_mixing;

#define NB_MIXING_NONE ((nb_mixing){.dir = NB_WORKDIR_CLOSED, .uniform = -1})

/* Fills f->recipe, for the target of `request`, all of which outlive the mixing. What is measured
 * stays in OUT.nibble-mix, from where the same command goes on. A `dry` run only looks there: it
 * measures nothing, predicts m->plan, and where measurements are missing the recipe is that of one
 * candidate for all (m->stand_in). */
nb_status nb_mixing_run(nb_mixing *m, nb_recipe_flags *f, const nb_calibrating_flags *flags,
                        const nb_plan_request *request, nb_store *store, const nb_runtime *rt,
                        const char *output, bool dry, nb_out *out, nb_err *err);

/* The divergence of an output that was made from f->recipe. *again: it breaks --max-kl, and another
 * choice may not; NB_LIMIT: there is none. */
nb_status nb_mixing_judge(nb_mixing *m, double kl, bool *again, nb_err *err);
/* That other choice, in f->recipe, to which nothing may point any more. */
nb_status nb_mixing_choose_again(nb_mixing *m, nb_err *err);
/* The same bytes in one format, which the mixture has to beat: fills m->uniform_recipe; false:
 * there is none, or it is what f->recipe says already. */
nb_status nb_mixing_rival(nb_mixing *m, bool *any, nb_err *err);
/* The divergence of an output made from that; true: it is no worse, and is to be written. */
bool nb_mixing_compare(nb_mixing *m, double kl);

/* `done`: the output stands, and OUT.nibble-mix goes. */
void nb_mixing_close(nb_mixing *m, bool done);

/* mixing_keep.c: the folder, and what it has; what is measured so far goes there. */
nb_status nb_mixing_open_kept(nb_mixing *m, const char *output, bool dry, nb_err *err);
nb_status nb_mixing_keep(void *context, const nb_sensitivity *t, nb_err *err);

/* mixing_print.c */
void nb_mixing_tell_plan(const nb_mixing *m, nb_out *out);
void nb_mixing_tell_choice(const nb_mixing *m, nb_out *out);
void nb_mixing_tell_output(const nb_mixing *m, nb_out *out);
/* What is predicted, for the line of a dry run; and all of it, for nibble-report.json. NULL: no
 * memory. */
json_t *nb_mixing_plan_json(const nb_mixing *m);
nb_status nb_mixing_json(const nb_mixing *m, json_t **out, nb_err *err);

#endif
