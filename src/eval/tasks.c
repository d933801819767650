/* See tasks.h. */
#include "eval/tasks.h"

#include "base/fpenv.h"
#include "base/json.h"
#include "kernel/math.h"

#include <math.h>
#include <string.h>

#define FILE_LIMIT  ((size_t)1 << 30)
#define MAX_CHOICES 64        /* an answer is a byte */
#define MAX_TEXT    (1 << 18) /* bytes: far above what NB_TASK_TOKENS tokens can spell */
#define GROUP       64        /* items whose contexts share a step */

/* ---- reading ---- */

static int64_t count_code_points(const char *text)
{
    int64_t n = 0;
    for (; *text != 0; text++)
        n += ((unsigned char)*text & 0xc0) != 0x80;
    return n;
}

static size_t length_trimmed(const char *text)
{
    size_t n = strlen(text);
    while (n > 0 && strchr(" \t\n\v\f\r", text[n - 1]) != NULL)
        n--;
    return n;
}

static nb_status check_length(size_t n, nb_err *err)
{
    return n <= MAX_TEXT
               ? NB_OK
               : nb_fail(err, NB_DATA, "a text of %zu bytes; at most %d fit", n, MAX_TEXT);
}

static nb_status read_texts(const json_t *item, const char *key, json_t **list, nb_err *err)
{
    NB_TRY(nb_json_array(item, key, true, list, err));
    const size_t n = json_array_size(*list);
    if (n < 2 || n > MAX_CHOICES)
        return nb_fail(err, NB_DATA, "'%s' has %zu entries; 2 to %d are possible", key, n,
                       MAX_CHOICES);
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(*list, i);
        if (!json_is_string(v) || json_string_length(v) == 0 ||
            strlen(json_string_value(v)) != json_string_length(v))
            return nb_fail(err, NB_DATA, "'%s'[%zu] is not a text, or an empty one", key, i);
        NB_TRY(check_length(json_string_length(v), err));
        if (length_trimmed(json_string_value(v)) == 0)
            return nb_fail(err, NB_DATA, "'%s'[%zu] is white space only", key, i);
    }
    return NB_OK;
}

static nb_status read_item(const json_t *j, nb_arena *arena, nb_task_item *item, nb_err *err)
{
    if (!json_is_object(j))
        return nb_fail(err, NB_DATA, "not a JSON object");
    const bool shared = json_object_get(j, "context_options") != NULL;
    const char *text = NULL;
    json_t *list = NULL;
    NB_TRY(nb_json_text(j, shared ? "continuation" : "query", true, &text, err));
    NB_TRY(check_length(strlen(text), err));
    NB_TRY(read_texts(j, shared ? "context_options" : "choices", &list, err));
    const int64_t n = (int64_t)json_array_size(list);
    NB_TRY(nb_json_int(j, "gold", true, 0, n - 1, &item->gold, err));
    item->n_choices = n;
    NB_TRY(NB_ARENA_ALLOC(arena, &item->choices, n, err));
    char *before = NULL;
    if (!shared)
        NB_TRY(nb_arena_format(arena, &before, err, "%s\nAnswer:", text));
    for (int64_t i = 0; i < n; i++) {
        const char *option = json_string_value(json_array_get(list, (size_t)i));
        const char *scored = shared ? text : option;
        char *context = before, *continuation;
        size_t n_context = shared ? length_trimmed(option) : 0;
        if (shared)
            NB_TRY(nb_arena_text(arena, &context, option, n_context, err));
        NB_TRY(nb_arena_format(arena, &continuation, err, "%s %s", shared ? option + n_context : "",
                               scored));
        item->choices[i] = (nb_task_choice){
            .context = context, .continuation = continuation, .n_chars = count_code_points(scored)};
    }
    return NB_OK;
}

static nb_status read_lines(nb_task *task, const nb_buf *text, const char *path, int64_t max_items,
                            nb_err *err)
{
    /* An item is an object, so a file of empty lines takes no memory. */
    int64_t n_lines = 1;
    for (size_t i = 1; i < text->len && n_lines != max_items; i++)
        n_lines += text->data[i] == '\n' && text->data[i - 1] != '\n';
    NB_TRY(NB_ARENA_ALLOC(&task->arena, &task->items, n_lines, err));
    const char *line = (const char *)text->data, *end = line + text->len;
    for (int64_t number = 1; line < end; number++) {
        const char *stop = memchr(line, '\n', (size_t)(end - line));
        if (stop == NULL)
            stop = end;
        const size_t len = (size_t)(stop - line);
        if (strspn(line, " \t\r") < len) {
            json_t *j;
            nb_status s = nb_json_parse(&j, line, len, err);
            if (s == NB_OK) {
                s = read_item(j, &task->arena, &task->items[task->n_items], err);
                json_decref(j);
            }
            if (s != NB_OK)
                return nb_context(err, "%s: line %lld", path, (long long)number);
            task->items[task->n_items].line = number;
            if (++task->n_items == max_items)
                break;
        }
        line = stop + 1;
    }
    if (task->n_items == 0)
        return nb_fail(err, NB_DATA, "%s: no items", path);
    return NB_OK;
}

nb_status nb_task_load(nb_task *task, const char *path, int64_t max_items, nb_err *err)
{
    *task = (nb_task){.path = path};
    nb_buf text = {0};
    nb_status s = nb_file_slurp(&text, path, FILE_LIMIT, err);
    if (s == NB_OK)
        s = read_lines(task, &text, path, max_items, err);
    nb_buf_free(&text);
    if (s != NB_OK)
        nb_task_free(task);
    return s;
}

void nb_task_free(nb_task *task)
{
    nb_arena_free(&task->arena);
    *task = (nb_task){0};
}

/* ---- scoring ---- */

/* The tokens of one choice; the first n_shared are common to all choices of the item. */
typedef struct {
    nb_tokens whole;
    int64_t n_context;
} encoded;

typedef struct {
    encoded choices[MAX_CHOICES];
    int64_t n_choices, n_shared;
    double loglik[MAX_CHOICES];
    nb_kv_seq seq;
} prepared;

/* For whom texts are encoded. */
typedef struct {
    const nb_tokenizer *tokenizer;
    int64_t vocab_size, n_ctx;
} reader;

typedef struct {
    nb_model *model;
    reader reader;
    const nb_kernels *kernels;
    nb_work work;
    nb_kv_pool kv;
    float *hidden, *logits;
    prepared *items; /* [GROUP] */
    nb_step_input *inputs;
    int32_t *targets;
    double *sums; /* per row of the step */
} task_run;

static nb_status encode_choice(const reader *reader, const nb_task_choice *c, encoded *out,
                               nb_err *err)
{
    const nb_encode_options how = {.add_bos = true};
    nb_tokens context = {0};
    nb_buf text = {0};
    nb_status s =
        nb_tokenizer_encode(reader->tokenizer, c->context, strlen(c->context), how, &context, err);
    if (s == NB_OK)
        s = nb_buf_format(&text, err, "%s%s", c->context, c->continuation);
    out->whole.n = 0;
    if (s == NB_OK)
        s = nb_tokenizer_encode(reader->tokenizer, (const char *)text.data, text.len, how,
                                &out->whole, err);
    out->n_context = context.n;
    nb_buf_free(&text);
    nb_tokens_free(&context);
    if (s != NB_OK)
        return s;
    const int64_t limit = reader->n_ctx < NB_TASK_TOKENS ? reader->n_ctx : NB_TASK_TOKENS;
    if (out->whole.n > limit)
        return nb_fail(err, NB_DATA, "an item of %lld tokens; at most %lld fit",
                       (long long)out->whole.n, (long long)limit);
    if (out->n_context < 1 || out->whole.n <= out->n_context)
        return nb_fail(err, NB_DATA, "a choice without tokens of its own");
    for (int64_t i = 0; i < out->whole.n; i++) {
        if (out->whole.ids[i] >= reader->vocab_size)
            return nb_fail(err, NB_DATA, "token id %d is outside the vocabulary of %lld",
                           out->whole.ids[i], (long long)reader->vocab_size);
    }
    return NB_OK;
}

static nb_status prepare_item(const reader *reader, const nb_task_item *item, prepared *p,
                              nb_err *err)
{
    p->n_choices = item->n_choices;
    for (int64_t i = 0; i < item->n_choices; i++)
        NB_TRY(encode_choice(reader, &item->choices[i], &p->choices[i], err));
    /* What all choices begin with is computed once; the last context token stays with the rest,
     * because its prediction is scored. */
    int64_t shared = p->choices[0].n_context - 1;
    for (int64_t i = 1; i < item->n_choices; i++) {
        const encoded *a = &p->choices[0], *b = &p->choices[i];
        int64_t n = 0;
        while (n < shared && n < b->n_context - 1 && a->whole.ids[n] == b->whole.ids[n])
            n++;
        shared = n;
    }
    p->n_shared = shared;
    return NB_OK;
}

static nb_status add_size(const nb_task *task, const reader *reader, prepared *p,
                          nb_task_size *size, nb_err *err)
{
    for (int64_t i = 0; i < task->n_items; i++) {
        if (prepare_item(reader, &task->items[i], p, err) != NB_OK)
            return nb_context(err, "%s: line %lld", task->path, (long long)task->items[i].line);
        size->n_tokens += p->n_shared;
        for (int64_t c = 0; c < p->n_choices; c++) {
            const encoded *e = &p->choices[c];
            size->n_tokens += e->whole.n - 1 - p->n_shared;
            size->n_logits += e->whole.n - e->n_context;
        }
    }
    return NB_OK;
}

static void free_choices(prepared *p)
{
    for (int64_t j = 0; j < MAX_CHOICES; j++)
        nb_tokens_free(&p->choices[j].whole);
}

nb_status nb_task_measure(const nb_task *task, const nb_tokenizer *tokenizer, int64_t vocab_size,
                          int64_t n_ctx, nb_task_size *size, nb_err *err)
{
    const reader reader = {tokenizer, vocab_size, n_ctx};
    nb_task_size all = *size;
    prepared *p;
    NB_TRY(NB_ALLOC(&p, 1, err));
    const nb_status s = add_size(task, &reader, p, &all, err);
    free_choices(p);
    nb_free(p);
    if (s == NB_OK)
        *size = all;
    return s;
}

/* Log-likelihoods of choice `c` of the items [0, n) that have one, in one step. */
static nb_status score_choice(task_run *run, int64_t n, int64_t c, nb_err *err)
{
    int64_t n_inputs = 0, n_rows = 0;
    for (int64_t i = 0; i < n; i++) {
        prepared *p = &run->items[i];
        if (c >= p->n_choices)
            continue;
        const encoded *e = &p->choices[c];
        const int64_t n_tokens = e->whole.n - 1 - p->n_shared, n_out = e->whole.n - e->n_context;
        run->inputs[n_inputs++] =
            (nb_step_input){&p->seq, e->whole.ids + p->n_shared, n_tokens, n_out};
        for (int64_t t = 0; t < n_out; t++)
            run->targets[n_rows++] = e->whole.ids[e->n_context + t];
    }
    NB_TRY(nb_forward(&run->work, run->inputs, n_inputs, run->hidden, err));
    const int64_t vocab = run->model->config.vocab_size, d = run->model->config.d_model;
    for (int64_t first = 0; first < n_rows; first += NB_SCORE_ROWS) {
        const int64_t count = n_rows - first < NB_SCORE_ROWS ? n_rows - first : NB_SCORE_ROWS;
        nb_logits(&run->work, run->hidden + first * d, count, run->logits);
        for (int64_t r = 0; r < count; r++) {
            const float *row = run->logits + r * vocab;
            float max;
            double sum;
            run->kernels->softmax_stats(row, vocab, &max, &sum);
            const double loglik =
                (double)row[run->targets[first + r]] - (double)max - nb_log64(sum);
            if (!isfinite(loglik))
                return nb_fail(err, NB_DATA, "the model's logits hold Inf or NaN");
            run->sums[first + r] = loglik;
        }
    }
    int64_t row = 0;
    for (int64_t i = 0; i < n; i++) {
        prepared *p = &run->items[i];
        if (c >= p->n_choices)
            continue;
        double sum = 0;
        for (int64_t t = p->choices[c].n_context; t < p->choices[c].whole.n; t++)
            sum += run->sums[row++];
        p->loglik[c] = sum;
        nb_kv_seq_truncate(&p->seq, p->n_shared);
    }
    return NB_OK;
}

/* Tokens that an item takes in a step, whichever choice it is. */
static int64_t longest_choice(const prepared *p)
{
    int64_t longest = 0;
    for (int64_t c = 0; c < p->n_choices; c++)
        longest = p->choices[c].whole.n > longest ? p->choices[c].whole.n : longest;
    return longest;
}

/* Prepares items from `first` on, as many as fit in one step; at least one does. */
static nb_status prepare_group(task_run *run, const nb_task *task, int64_t first, int64_t *n,
                               nb_err *err)
{
    int64_t total = 0;
    for (*n = 0; *n < GROUP && first + *n < task->n_items; ++*n) {
        const nb_task_item *item = &task->items[first + *n];
        if (prepare_item(&run->reader, item, &run->items[*n], err) != NB_OK)
            return nb_context(err, "%s: line %lld", task->path, (long long)item->line);
        total += longest_choice(&run->items[*n]);
        if (total > NB_TASK_TOKENS)
            break;
    }
    return NB_OK;
}

static nb_status score_group(task_run *run, int64_t n, nb_err *err)
{
    int64_t n_inputs = 0, most = 0;
    for (int64_t i = 0; i < n; i++) {
        prepared *p = &run->items[i];
        nb_kv_seq_truncate(&p->seq, 0);
        if (p->n_shared > 0)
            run->inputs[n_inputs++] =
                (nb_step_input){&p->seq, p->choices[0].whole.ids, p->n_shared, 0};
        most = p->n_choices > most ? p->n_choices : most;
    }
    if (n_inputs > 0)
        NB_TRY(nb_forward(&run->work, run->inputs, n_inputs, run->hidden, err));
    for (int64_t c = 0; c < most; c++)
        NB_TRY(score_choice(run, n, c, err));
    return NB_OK;
}

/* The first of the largest. */
static int64_t best_of(const double *x, int64_t n)
{
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        best = x[i] > x[best] ? i : best;
    return best;
}

static nb_status run_items(const nb_task *task, task_run *run, nb_score_progress *progress,
                           void *context, nb_task_answer *answers, nb_task_result *out, nb_err *err)
{
    int64_t n_right = 0, n_right_norm = 0;
    for (int64_t first = 0; first < task->n_items;) {
        int64_t n;
        NB_TRY(prepare_group(run, task, first, &n, err));
        NB_TRY(score_group(run, n, err));
        for (int64_t i = 0; i < n; i++) {
            const nb_task_item *item = &task->items[first + i];
            double normed[MAX_CHOICES];
            for (int64_t c = 0; c < item->n_choices; c++)
                normed[c] = run->items[i].loglik[c] / (double)item->choices[c].n_chars;
            const int64_t best = best_of(run->items[i].loglik, item->n_choices);
            const int64_t best_norm = best_of(normed, item->n_choices);
            n_right += best == item->gold;
            n_right_norm += best_norm == item->gold;
            if (answers != NULL)
                answers[first + i] = (nb_task_answer){(uint8_t)best, (uint8_t)best_norm};
        }
        first += n;
        if (progress != NULL && !progress(context, first, task->n_items))
            return nb_fail(err, NB_INTERRUPTED, "interrupted after %lld of %lld items",
                           (long long)first, (long long)task->n_items);
    }
    const double n = (double)task->n_items;
    out->n = task->n_items;
    out->acc = (double)n_right / n;
    out->acc_norm = (double)n_right_norm / n;
    /* The sample standard error of a share, as lm-evaluation-harness prints it. */
    out->acc_se = n > 1 ? sqrt(out->acc * (1 - out->acc) / (n - 1)) : 0;
    out->acc_norm_se = n > 1 ? sqrt(out->acc_norm * (1 - out->acc_norm) / (n - 1)) : 0;
    return NB_OK;
}

/* Every sequence of a group may end in a page of its own. */
#define N_PAGES (nb_kv_pages_for(NB_TASK_TOKENS) + GROUP)

int64_t nb_task_bytes(const nb_config *config, int n_threads, nb_kv_format kv_cell)
{
    const nb_model like = {.config = *config, .n_ctx = NB_TASK_TOKENS};
    const double bytes =
        (double)nb_work_bytes(&like, n_threads, NB_TASK_TOKENS) +
        (double)nb_config_kv_bytes(config, kv_cell) * (double)(N_PAGES * NB_KV_PAGE) +
        4.0 * NB_TASK_TOKENS * (double)config->d_model +
        4.0 * NB_SCORE_ROWS * (double)config->vocab_size + (double)(GROUP * sizeof(prepared));
    return bytes < 9e18 ? (int64_t)bytes : INT64_MAX;
}

nb_status nb_task_run(const nb_task *task, nb_model *model, const nb_tokenizer *tokenizer,
                      const nb_kernels *kernels, nb_pool *pool, nb_kv_format kv_cell,
                      nb_score_progress *progress, void *context, nb_task_answer *answers,
                      nb_task_result *out, nb_err *err)
{
    const nb_config *c = &model->config;
    task_run run = {
        .model = model, .reader = {tokenizer, c->vocab_size, model->n_ctx}, .kernels = kernels};
    nb_status s;
    NB_TRY_GOTO(s, nb_work_init(&run.work, model, kernels, pool, NB_TASK_TOKENS, err));
    NB_TRY_GOTO(s, nb_kv_pool_init(&run.kv, c, kv_cell, N_PAGES, err));
    NB_TRY_GOTO(s, nb_alloc((void **)&run.hidden, NB_TASK_TOKENS, (size_t)c->d_model * 4, err));
    NB_TRY_GOTO(s, nb_alloc((void **)&run.logits, NB_SCORE_ROWS, (size_t)c->vocab_size * 4, err));
    NB_TRY_GOTO(s, NB_ALLOC(&run.items, GROUP, err));
    NB_TRY_GOTO(s, NB_ALLOC(&run.inputs, GROUP, err));
    NB_TRY_GOTO(s, NB_ALLOC(&run.targets, NB_TASK_TOKENS, err));
    NB_TRY_GOTO(s, NB_ALLOC(&run.sums, NB_TASK_TOKENS, err));
    for (int64_t i = 0; i < GROUP; i++)
        NB_TRY_GOTO(s, nb_kv_seq_init(&run.items[i].seq, &run.kv, NB_TASK_TOKENS, err));
    const uint64_t env = nb_fpenv_enter();
    s = run_items(task, &run, progress, context, answers, out, err);
    nb_fpenv_leave(env);
done:
    for (int64_t i = 0; run.items != NULL && i < GROUP; i++) {
        nb_kv_seq_free(&run.items[i].seq);
        free_choices(&run.items[i]);
    }
    nb_kv_pool_free(&run.kv);
    nb_work_free(&run.work);
    nb_free(run.hidden);
    nb_free(run.logits);
    nb_free(run.items);
    nb_free(run.inputs);
    nb_free(run.targets);
    nb_free(run.sums);
    return s;
}
