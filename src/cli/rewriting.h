/* What quantize and convert share: from a request to a finished output, with the plan before, the
 * progress during, and the summary after. */
#ifndef NB_CLI_REWRITING_H
#define NB_CLI_REWRITING_H

#include "cli/runtime.h"
#include "cli/verbs.h"
#include "quant/rewrite.h"
#include "quant/wrapping.h"

extern const char *const nb_container_choices[];

#define NB_OPT_ROW_TO                                                                              \
    {                                                                                              \
        .name = "to", .kind = NB_OPT_CHOICE, .value = "CONTAINER",                                 \
        .choices = nb_container_choices,                                                           \
        .help = "hf (a folder) or gguf; default: gguf if OUT ends in .gguf, else hf"               \
    }
#define NB_OPT_ROW_DRY_RUN                                                                         \
    {                                                                                              \
        .name = "dry-run", .kind = NB_OPT_FLAG,                                                    \
        .help = "print what would be done, its size, memory and time; write nothing"               \
    }

/* The container that --to and -o ask for. NB_USAGE when neither says enough. */
nb_status nb_rewriting_container(const nb_args *args, nb_store_kind *out, nb_err *err);

/* Runs a request on operand 0 and option -o; the verb's table has the rows OUTPUT, TO, FORCE,
 * DRY_RUN, THREADS, ISA, JSON and QUIET. Sets request->to. */
nb_status nb_rewriting_run(const nb_args *args, nb_plan_request request, const nb_method *method,
                           nb_nonfinite nonfinite, nb_out *out, nb_err *err);

/* ---- printing ---- */

/* One model on its way, for the printing functions. */
typedef struct {
    const nb_args *args;
    const char *source, *output; /* output: NULL in a dry run without -o */
    nb_store *store;
    nb_runtime runtime;
    const nb_method *method;
    nb_plan plan;
    nb_wrapping wrapping;
    int64_t bytes; /* of the tensor files */
    double seconds;
    nb_rewrite_result result;
    bool dry_run;
} nb_rewriting;

void nb_rewriting_print_head(const nb_rewriting *r, nb_out *out);
nb_status nb_rewriting_print_table(const nb_rewriting *r, nb_out *out, nb_err *err);
void nb_rewriting_print_end(const nb_rewriting *r, nb_out *out);
nb_status nb_rewriting_print_json(const nb_rewriting *r, nb_out *out, nb_err *err);

#endif
