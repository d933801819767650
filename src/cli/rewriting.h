/* What quantize and convert share: from a request to a finished output, with the plan before, the
 * progress during, and the summary after. */
#ifndef NB_CLI_REWRITING_H
#define NB_CLI_REWRITING_H

#include "cli/calibrating.h"
#include "cli/checking_tasks.h"
#include "cli/mixing.h"
#include "cli/verbs.h"
#include "quant/pass/kv_ranges.h"
#include "quant/plan/target.h"
#include "quant/write/finite.h"
#include "quant/write/rewrite.h"
#include "quant/write/wrapping.h"

#define NB_OPT_ROW_TO                                                                              \
    {                                                                                              \
        .name = "to", .kind = NB_OPT_CHOICE, .value = "CONTAINER", .choices = nb_target_names,     \
        .help = "a folder in the layout of compressed-tensors (hf), of GPTQ (gptq, gptq_v2) or "   \
                "AWQ (awq), or gguf; default: gguf if OUT ends in .gguf, else hf"                  \
    }
#define NB_OPT_ROW_DRY_RUN                                                                         \
    {                                                                                              \
        .name = "dry-run", .kind = NB_OPT_FLAG,                                                    \
        .help = "print what would be done, its size, memory and time; write nothing"               \
    }

/* Sets what --to and -o ask for. NB_USAGE when neither says enough. */
nb_status nb_rewriting_target(const nb_args *args, nb_plan_request *request, nb_err *err);

/* Runs a request on operand 0 and option -o; the verb's table has the rows OUTPUT, TO, FORCE,
 * DRY_RUN, THREADS, ISA, JSON and QUIET. Sets request->to. With `recipes` weights are quantized by
 * its rules, which are found first where it asks for a mixture; NULL: they are converted. `flags`
 * NULL: nothing is calibrated. */
nb_status nb_rewriting_run(const nb_args *args, nb_plan_request request, nb_recipe_flags *recipes,
                           const nb_method *method, const nb_calibrating_flags *flags,
                           nb_nonfinite nonfinite, nb_out *out, nb_err *err);

/* One model on its way, for the printing functions. */
typedef struct {
    const nb_args *args;
    const char *source, *output; /* output: NULL in a dry run without -o */
    nb_store *store;
    nb_runtime runtime;
    nb_plan_request *request;
    nb_nonfinite nonfinite;
    const nb_method *method;
    nb_plan plan;
    nb_wrapping wrapping;
    nb_recipe_flags *recipes; /* NULL: convert */
    nb_mixing mixing;
    nb_plan_request mixing_request; /* without rules */
    const nb_calibrating_flags *flags;
    nb_calibrating calibrating;
    nb_finite finite; /* what of the source is read as zeros while something learns from it */
    char sha256[NB_SHA256_HEX]; /* of the output */
    int64_t bytes;              /* of the tensor files */
    double seconds, kv_seconds;
    nb_rewrite_result result;
    nb_task_check tasks;                  /* that original and output answer */
    nb_check_plan check_plan, tasks_plan; /* zero: none */
    nb_kv_ranges_plan kv_plan;            /* zero: no scales of the cache are found */
    json_t *evaluation;                   /* checking.h, checking_tasks.h; NULL: none */
    bool dry_run;
    bool again;          /* an output was made before, of other rules: less is told of this one */
    bool rival;          /* this one is what a mixture has to beat */
    nb_sink *sink;       /* with the output, whole under a temporary name; NULL: there is none */
    const char *made_at; /* that name */
    char model_sha256[NB_SHA256_HEX]; /* of the source, once it is known */
} nb_rewriting;

/* ---- making: rewriting_make.c ---- */

/* Plans by r->request, prints that, and makes the output, whole under a temporary name, with what
 * it has lost. Failures leave what nb_rewriting_drop removes. */
nb_status nb_rewriting_make(nb_rewriting *r, nb_out *out, nb_err *err);
/* Adds what original and output answer to the tasks, if there are any. */
nb_status nb_rewriting_answer(nb_rewriting *r, nb_out *out, nb_err *err);
/* For a mixture: until it holds what was asked for and beats one format in the same bytes. */
nb_status nb_rewriting_make_mixture(nb_rewriting *r, nb_out *out, nb_err *err);
/* Gives the output its name, with its report: never one without the other. Working folders go. */
nb_status nb_rewriting_publish(nb_rewriting *r, nb_err *err);
/* The output that has no name yet, its plan, and with `clear` what was calibrated for it. */
void nb_rewriting_drop(nb_rewriting *r, bool clear);
nb_status nb_rewriting_dry_run(nb_rewriting *r, nb_out *out, nb_err *err);
nb_status nb_rewriting_settle_nonfinite(nb_rewriting *r, nb_err *err);

/* ---- scales of the KV cache: rewriting_kv.c; nothing where none are asked for ---- */

/* What finding them takes, into r->kv_plan; and of a dry run how long. */
nb_status nb_rewriting_plan_kv(nb_rewriting *r, double *seconds, nb_err *err);
/* Finds them by the output, which is whole, and puts them into it. */
nb_status nb_rewriting_find_kv(nb_rewriting *r, nb_out *out, nb_err *err);
void nb_rewriting_print_kv(const nb_rewriting *r, nb_out *out);
/* For the report. NULL: no memory. */
json_t *nb_rewriting_kv_json(const nb_rewriting *r);

/* ---- records: rewriting_record.c ---- */

/* What was chosen: everything on the command line that makes the bytes, normalized. NULL: no
 * memory. */
json_t *nb_rewriting_choices(const nb_rewriting *r);
/* An output that stands is refused (NB_USAGE), but *done when this very command has made it and was
 * killed before it had cleared away its folders, which is done now. */
nb_status nb_rewriting_done_before(nb_rewriting *r, bool *done, nb_out *out, nb_err *err);
/* The folders beside the output go. */
void nb_rewriting_clear(const nb_rewriting *r);
/* "OUT" with an ending, without slashes between. */
nb_status nb_rewriting_beside(const nb_rewriting *r, const char *ending, nb_buf *path, nb_err *err);

/* ---- printing: rewriting_print.c ---- */

/* The plan on standard output, for people; what to beware of on standard error. */
void nb_rewriting_print_head(const nb_rewriting *r, nb_out *out);
/* Bytes that it takes at its largest. */
int64_t nb_rewriting_memory(const nb_rewriting *r);
nb_status nb_rewriting_print_table(const nb_rewriting *r, nb_out *out, nb_err *err);
void nb_rewriting_print_end(const nb_rewriting *r, nb_out *out);
/* nibble-report.json in the output folder, under its temporary name, or
 * OUT.gguf.nibble-report.json beside the file. */
nb_status nb_rewriting_report_path(const nb_rewriting *r, bool published, nb_buf *out, nb_err *err);
nb_status nb_rewriting_write_report(const nb_rewriting *r, nb_err *err);
nb_status nb_rewriting_print_json(const nb_rewriting *r, nb_out *out, nb_err *err);

#endif
