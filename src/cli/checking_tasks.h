/* What the original and its quantized output answer: tasks of multiple choice, as nibble eval
 * --tasks scores them, before the command ends. */
#ifndef NB_CLI_CHECKING_TASKS_H
#define NB_CLI_CHECKING_TASKS_H

#include "cli/checking.h"
#include "cli/path_list.h"
#include "eval/tasks.h"

#define NB_TASK_CHECK_MAX_TASKS 20
#define NB_TASK_CHECK_MAX_BYTES ((int64_t)64 << 20) /* of a file */

#define NB_OPT_ROWS_CHECK_TASKS                                                                    \
    {.name = "check-tasks",                                                                        \
     .repeats = true,                                                                              \
     .kind = NB_OPT_PATH,                                                                          \
     .value = "FILE",                                                                              \
     .help = "afterwards have the original and the output answer these tasks, as eval "            \
             "--tasks does, for the summary and nibble-report.json; several by commas, or given "  \
             "more than once"},                                                                    \
    {                                                                                              \
        .name = "check-tasks-limit", .kind = NB_OPT_INT, .value = "N", .max = INT64_MAX,           \
        .preset = "100", .help = "items of each task, at most; 0: all"                             \
    }

typedef struct {
    nb_task task;
    char sha256[NB_SHA256_HEX]; /* of the file */
} nb_checked_task;

/* Tasks that are ready to be answered. `{0}`: there are none. */
typedef struct {
    nb_path_list files;
    nb_checked_task *tasks; /* [n] */
    int n;
    nb_config config;  /* of the original */
    nb_task_size size; /* of all, for one model */
} nb_task_check;

/* Reads the files of --check-tasks; what of them the original, which is opened, could not be asked
 * is refused now and not after hours. Free after failures, too. */
nb_status nb_task_check_open(nb_task_check *a, const nb_args *args, nb_store *source, nb_err *err);
void nb_task_check_free(nb_task_check *a);

/* What it will take, one model after the other: all zero without tasks. NB_LIMIT when there is no
 * memory for it, `memory` as in nb_check_request. Seconds are measured only when `timed`. */
nb_status nb_task_check_estimate(nb_check_plan *out, const nb_task_check *a, int64_t source_bytes,
                                 int64_t output_bytes, int64_t memory, const nb_runtime *rt,
                                 bool timed, nb_err *err);

/* Adds to the object "evaluation" of nibble-report.json, which is made where there is none:
 *
 *   tasks            an object each: task, path, sha256, n; acc, acc_se, acc_norm, acc_norm_se of
 *                    the output, and base_acc, ... of the original, computed in floats; both with
 *                    a cache in F16
 *     flips          items that the output answers otherwise, by likelihood
 *     lost, won      of these, what only the original has right, and only the output
 *     flips_norm     items that it answers otherwise by likelihood per character
 *   tasks_seconds
 *
 * or only tasks_left_out, a text that says why there are no answers. That is no failure: the output
 * stands already. Fails with NB_MEMORY for the report itself only. */
nb_status nb_task_check_run(const nb_task_check *a, json_t **evaluation,
                            const nb_check_request *request, const nb_runtime *rt, nb_out *to,
                            nb_err *err);
/* Lines for people, from that object. */
void nb_task_check_print(const json_t *evaluation, nb_out *out);

#endif
