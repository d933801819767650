/* See checking_tasks.h. */
#include "cli/checking_tasks.h"

#include <stdio.h>
#include <string.h>

/* A tokenizer takes about this much memory for each entry of the vocabulary. */
#define TOKEN_BYTES 500.0
/* Tokens that a token of an item sees, about. */
#define TOKENS_SEEN 32
/* Of the speed of a long forward pass, what steps of some hundred tokens reach, with the loading of
 * models: on a busy machine 0.74 was seen, of processor time. */
#define PACE 0.85

/* ---- before ---- */

static nb_status read_task(nb_checked_task *t, const char *path, int64_t limit, nb_err *err)
{
    uint8_t digest[NB_SHA256_BYTES];
    nb_file file;
    NB_TRY(nb_file_open(&file, path, err));
    nb_status s = NB_OK;
    if (file.size > NB_TASK_CHECK_MAX_BYTES)
        s = nb_fail(err, NB_LIMIT, "%s: a file of %s; at most %s are read", path,
                    nb_human_bytes(file.size).text, nb_human_bytes(NB_TASK_CHECK_MAX_BYTES).text);
    if (s == NB_OK)
        s = nb_file_sha256(&file, 0, digest, err);
    nb_file_close(&file);
    NB_TRY(s);
    nb_sha256_hex_of(digest, t->sha256);
    return nb_task_load(&t->task, path, limit, err);
}

static nb_status measure(nb_task_check *a, nb_store *source, nb_err *err)
{
    nb_tokenizer *tokenizer;
    NB_TRY(nb_config_read(source, &a->config, err));
    NB_TRY(nb_tokenizer_open(&tokenizer, source, err));
    nb_status s = NB_OK;
    for (int i = 0; s == NB_OK && i < a->n; i++)
        s = nb_task_measure(&a->tasks[i].task, tokenizer, a->config.vocab_size, NB_TASK_TOKENS,
                            &a->size, err);
    nb_tokenizer_close(tokenizer);
    return s;
}

nb_status nb_task_check_open(nb_task_check *a, const nb_args *args, nb_store *source, nb_err *err)
{
    *a = (nb_task_check){0};
    NB_TRY(nb_path_list_take(&a->files, args, "check-tasks", err));
    if (a->files.n == 0 && nb_args_given(args, "check-tasks-limit"))
        return nb_fail(err, NB_USAGE, "--check-tasks-limit needs --check-tasks FILE");
    if (a->files.n == 0)
        return NB_OK;
    if (a->files.n > NB_TASK_CHECK_MAX_TASKS)
        return nb_fail(err, NB_USAGE, "--check-tasks: %d files; at most %d are possible",
                       a->files.n, NB_TASK_CHECK_MAX_TASKS);
    NB_TRY(NB_ALLOC(&a->tasks, a->files.n, err));
    for (; a->n < a->files.n; a->n++)
        NB_TRY(read_task(&a->tasks[a->n], a->files.paths[a->n],
                         nb_args_int(args, "check-tasks-limit"), err));
    return measure(a, source, err) == NB_OK ? NB_OK : nb_context(err, "--check-tasks");
}

void nb_task_check_free(nb_task_check *a)
{
    for (int i = 0; i < a->n; i++)
        nb_task_free(&a->tasks[i].task);
    nb_free(a->tasks);
    nb_path_list_free(&a->files);
    *a = (nb_task_check){0};
}

/* One of the models packed, its tokenizer, and what the scoring of items allocates. */
static int64_t memory_needed(const nb_task_check *a, int64_t model_bytes, int n_threads)
{
    const double bytes = NB_CHECK_BASE_BYTES + NB_CHECK_PACKED * (double)model_bytes +
                         TOKEN_BYTES * (double)a->config.vocab_size +
                         (double)nb_task_bytes(&a->config, n_threads, NB_KV_F16);
    return bytes < 9e18 ? (int64_t)bytes : INT64_MAX;
}

nb_status nb_task_check_estimate(nb_check_plan *out, const nb_task_check *a, int64_t source_bytes,
                                 int64_t output_bytes, int64_t memory, const nb_runtime *rt,
                                 bool timed, nb_err *err)
{
    *out = (nb_check_plan){0};
    if (a->n == 0)
        return NB_OK;
    const int64_t larger = source_bytes > output_bytes ? source_bytes : output_bytes;
    const int64_t needed = memory_needed(a, larger, nb_pool_n_threads(rt->pool));
    if (nb_check_memory(needed, memory, err) != NB_OK)
        return nb_context(err, "--check-tasks cannot be done");
    const double n_logits = 2 * (double)a->size.n_logits;
    out->memory = needed;
    out->flops =
        2 * (double)a->size.n_tokens * nb_check_blocks_flops(&a->config, (double)TOKENS_SEEN) +
        n_logits * 2.0 * (double)a->config.d_model * (double)a->config.vocab_size;
    return timed ? nb_check_seconds(&out->seconds, out->flops / PACE,
                                    n_logits * (double)a->config.vocab_size, rt, err)
                 : NB_OK;
}

/* ---- answering ---- */

enum { BASE, MADE, N_MODELS };

typedef struct {
    const nb_task_check *tasks;
    const nb_check_request *request;
    const nb_runtime *rt;
    nb_out *out;
    nb_tokenizer *tokenizer;           /* the original's, for both */
    nb_task_result *results[N_MODELS]; /* [n] */
    nb_task_answer **answers[N_MODELS];
    nb_progress bar;
    int64_t done; /* items of the tasks before */
} answering;

static bool on_items(void *context, int64_t done, int64_t total)
{
    answering *a = context;
    (void)total;
    nb_progress_update(a->out, &a->bar, a->done + done);
    return !nb_interrupted();
}

static nb_status open_model(answering *a, int which, nb_opened *o, nb_err *err)
{
    nb_store *store;
    const bool base = which == BASE;
    NB_TRY(nb_store_open(&store, base ? a->request->source : a->request->output, err));
    const nb_status s = base ? nb_finite_repeat(a->request->finite, store, err) : NB_OK;
    if (s != NB_OK) {
        nb_store_close(store);
        return s;
    }
    NB_TRY(nb_opened_load(o, a->rt, store, base ? NB_COMPUTE_ALL_F : NB_COMPUTE_AUTO,
                          NB_TASK_TOKENS, base, err));
    if (base) { /* outlives its model */
        a->tokenizer = o->tokenizer;
        o->tokenizer = NULL;
    }
    return NB_OK;
}

static nb_status answer(answering *a, int which, nb_err *err)
{
    const nb_task_check *t = a->tasks;
    nb_opened o = {0};
    nb_status s;
    NB_TRY_GOTO(s, NB_ALLOC(&a->results[which], t->n, err));
    NB_TRY_GOTO(s, NB_ALLOC(&a->answers[which], t->n, err));
    NB_TRY_GOTO(s, open_model(a, which, &o, err));
    for (int i = 0; i < t->n; i++) {
        const nb_task *task = &t->tasks[i].task;
        NB_TRY_GOTO(s, NB_ALLOC(&a->answers[which][i], task->n_items, err));
        NB_TRY_GOTO(s, nb_task_run(task, &o.model, a->tokenizer, &a->rt->kernels, a->rt->pool,
                                   NB_KV_F16, on_items, a, a->answers[which][i],
                                   &a->results[which][i], err));
        a->done += task->n_items;
    }
done:
    nb_opened_close(&o);
    return s;
}

static nb_status answer_all(answering *a, nb_err *err)
{
    const nb_task_check *t = a->tasks;
    int64_t n_items = 0;
    for (int i = 0; i < t->n; i++)
        n_items += t->tasks[i].task.n_items;
    if (nb_interrupted())
        return nb_fail_interrupted(err);
    nb_progress_begin(a->out, &a->bar, "answering", "items", N_MODELS * n_items);
    nb_status s = answer(a, BASE, err);
    if (s == NB_OK)
        s = answer(a, MADE, err);
    nb_progress_end(a->out, &a->bar);
    return s;
}

static void free_answers(answering *a)
{
    for (int which = 0; which < N_MODELS; which++) {
        for (int i = 0; a->answers[which] != NULL && i < a->tasks->n; i++)
            nb_free(a->answers[which][i]);
        nb_free(a->answers[which]);
        nb_free(a->results[which]);
    }
    nb_tokenizer_close(a->tokenizer);
}

/* ---- what is recorded ---- */

typedef struct {
    int64_t flips, flips_norm, lost, won;
} changes;

static changes compare(const nb_task *task, const nb_task_answer *base, const nb_task_answer *made)
{
    changes c = {0};
    for (int64_t i = 0; i < task->n_items; i++) {
        const int64_t gold = task->items[i].gold;
        c.flips += base[i].choice != made[i].choice;
        c.flips_norm += base[i].choice_norm != made[i].choice_norm;
        c.lost += base[i].choice == gold && made[i].choice != gold;
        c.won += base[i].choice != gold && made[i].choice == gold;
    }
    return c;
}

static json_t *task_json(const answering *a, int i)
{
    const nb_checked_task *t = &a->tasks->tasks[i];
    const nb_task_result *base = &a->results[BASE][i], *made = &a->results[MADE][i];
    const changes c = compare(&t->task, a->answers[BASE][i], a->answers[MADE][i]);
    char name[256];
    nb_path_stem(t->task.path, name, sizeof name);
    json_t *o = json_pack("{s:o, s:o, s:s, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "task",
                          nb_json_any_text(name, strlen(name)), "path",
                          nb_json_any_text(t->task.path, strlen(t->task.path)), "sha256", t->sha256,
                          "n", (json_int_t)made->n, "acc", made->acc, "acc_se", made->acc_se,
                          "acc_norm", made->acc_norm, "acc_norm_se", made->acc_norm_se, "base_acc",
                          base->acc, "base_acc_se", base->acc_se, "base_acc_norm", base->acc_norm,
                          "base_acc_norm_se", base->acc_norm_se);
    json_t *more =
        json_pack("{s:I, s:I, s:I, s:I}", "flips", (json_int_t)c.flips, "lost", (json_int_t)c.lost,
                  "won", (json_int_t)c.won, "flips_norm", (json_int_t)c.flips_norm);
    const bool bad = o == NULL || more == NULL || json_object_update(o, more) != 0;
    json_decref(more);
    if (!bad)
        return o;
    json_decref(o);
    return NULL;
}

static bool record(const answering *a, json_t *evaluation, double seconds)
{
    json_t *list = json_array();
    bool fine = list != NULL;
    for (int i = 0; fine && i < a->tasks->n; i++)
        fine = json_array_append_new(list, task_json(a, i)) == 0;
    fine = json_object_set(evaluation, "tasks", list) == 0 && fine;
    json_decref(list);
    return fine && json_object_set_new(evaluation, "tasks_seconds", json_real(seconds)) == 0;
}

nb_status nb_task_check_run(const nb_task_check *tasks, json_t **evaluation,
                            const nb_check_request *request, const nb_runtime *rt, nb_out *to,
                            nb_err *err)
{
    if (tasks->n == 0)
        return NB_OK;
    const double start = nb_clock();
    answering a = {.tasks = tasks, .request = request, .rt = rt, .out = to};
    nb_err why = {0};
    const nb_status s = answer_all(&a, &why);
    const char *text = s == NB_INTERRUPTED ? "interrupted" : why.text;
    if (*evaluation == NULL)
        *evaluation = json_object();
    bool fine = *evaluation != NULL;
    if (s == NB_OK)
        fine = fine && record(&a, *evaluation, nb_clock() - start);
    else
        fine = fine && json_object_set_new(*evaluation, "tasks_left_out",
                                           nb_json_any_text(text, strlen(text))) == 0;
    if (s != NB_OK)
        nb_out_note(to, "no answers to the tasks: %s", text);
    free_answers(&a);
    return fine ? NB_OK : nb_fail(err, NB_MEMORY, "no memory for the report");
}

/* ---- for people ---- */

static double number(const json_t *o, const char *key)
{
    return json_number_value(json_object_get(o, key));
}

void nb_task_check_print(const json_t *evaluation, nb_out *out)
{
    size_t i;
    json_t *o;
    json_array_foreach(json_object_get(evaluation, "tasks"), i, o)
    {
        const char *name = json_string_value(json_object_get(o, "task"));
        nb_out_text(out,
                    "  %s: acc %.4f +- %.4f (original %.4f +- %.4f), acc_norm %.4f +- %.4f (%.4f "
                    "+- %.4f); %.0f of %.0f answers differ, %.0f lost, %.0f won\n",
                    name != NULL ? name : "", number(o, "acc"), number(o, "acc_se"),
                    number(o, "base_acc"), number(o, "base_acc_se"), number(o, "acc_norm"),
                    number(o, "acc_norm_se"), number(o, "base_acc_norm"),
                    number(o, "base_acc_norm_se"), number(o, "flips"), number(o, "n"),
                    number(o, "lost"), number(o, "won"));
    }
}
