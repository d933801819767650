/* Multiple choice: which continuation does the model find most likely? Items are JSON lines, of
 * one of two shapes:
 *
 *   {"query": text, "choices": [text...], "gold": i}              ARC and its kind: the choices
 *       follow "query\nAnswer:" after a space
 *   {"context_options": [text...], "continuation": text, "gold": i}   Winogrande: the shared
 *       continuation follows each option after a space
 *
 * As lm-evaluation-harness counts: acc takes the largest log-likelihood, acc_norm the largest per
 * character of the choice; ties go to the first. White space at the end of a context is scored with
 * the continuation. A tokenizer that puts BOS first by itself does so here (the harness's
 * add_bos_token=True). Where the continuation is shared, acc_norm is acc. */
#ifndef NB_EVAL_TASKS_H
#define NB_EVAL_TASKS_H

#include "base/arena.h"
#include "eval/score.h"

typedef struct {
    const char *context, *continuation; /* scored: continuation after context */
    int64_t n_chars;                    /* code points of the choice */
} nb_task_choice;

typedef struct {
    int64_t n_choices, gold;
    int64_t line; /* of the file, from 1 */
    nb_task_choice *choices;
} nb_task_item;

typedef struct {
    const char *path; /* borrowed */
    nb_task_item *items;
    int64_t n_items;
    nb_arena arena;
} nb_task;

/* Reads a file of items. NB_DATA names file and line. At most max_items (0: all). */
nb_status nb_task_load(nb_task *task, const char *path, int64_t max_items, nb_err *err);
void nb_task_free(nb_task *task);

typedef struct {
    int64_t n;
    double acc, acc_se, acc_norm, acc_norm_se;
    double seconds;
} nb_task_result;

/* Tokens of a forward step, and of an item with its longest choice at most. */
#define NB_TASK_TOKENS 512

/* What scoring a task takes. */
typedef struct {
    int64_t n_tokens; /* that go through the blocks */
    int64_t n_logits; /* rows of logits */
} nb_task_size;

/* Adds to *size, before there is a model: NB_DATA names file and line of an item that a model of
 * this vocabulary, opened for n_ctx tokens, could not score. */
nb_status nb_task_measure(const nb_task *task, const nb_tokenizer *tokenizer, int64_t vocab_size,
                          int64_t n_ctx, nb_task_size *size, nb_err *err);
/* Bytes that nb_task_run allocates, about. */
int64_t nb_task_bytes(const nb_config *config, int n_threads, nb_kv_format kv_cell);

/* What the model takes for right: by likelihood, and by likelihood per character. */
typedef struct {
    uint8_t choice, choice_norm;
} nb_task_answer;

/* Scores every item; answers [n_items], or NULL. Progress as in score.h, counted in items. NB_DATA
 * names file and line of an item that does not fit in the model's context, and refuses a model
 * whose logits are not finite. */
nb_status nb_task_run(const nb_task *task, nb_model *model, const nb_tokenizer *tokenizer,
                      const nb_kernels *kernels, nb_pool *pool, nb_kv_format kv_cell,
                      nb_score_progress *progress, void *context, nb_task_answer *answers,
                      nb_task_result *out, nb_err *err);

#endif
