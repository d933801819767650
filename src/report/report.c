/* Reading result lines into rows, and rows as text and Markdown; see report.h and table.h. */
#include "report/report.h"

#include "base/json.h"
#include "report/table.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define MAX_TASKS 20

static const nb_column standard[] = {
    {"file_bytes", "size", "MB", "bytes of the tensor files", COLUMN_BYTES, 1, NULL, false},
    {"bpw", "bits/weight", "", "all tensor bytes times 8 over all parameters", COLUMN_NUMBER, 2,
     NULL, false},
    {"perplexity", "perplexity", "", "exp of the mean negative log-likelihood; lower is better",
     COLUMN_NUMBER, 3, "perplexity_se", false},
    {"kl_mean", "KL mean", "nat", "mean divergence from the original's predictions", COLUMN_SMALL,
     3, "kl_mean_se", false},
    {"top1", "top-1", "%", "how often the most likely token is the original's", COLUMN_PERCENT, 2,
     "top1_se", false},
    {"prefill_tok_s", "prefill", "tok/s", "tokens of a prompt read per second", COLUMN_NUMBER, 1,
     NULL, false},
    {"decode_tok_s", "decode", "tok/s", "tokens written per second", COLUMN_NUMBER, 1, NULL, false},
    {"peak_rss_bytes", "peak memory", "MB", "largest resident memory of the process", COLUMN_BYTES,
     1, NULL, false},
    {"compute", "compute", "", "arithmetic of the matrix products", COLUMN_TEXT, 0, NULL, false},
    {"kl_median", "KL median", "nat", "half of the positions lie below", COLUMN_SMALL, 3, NULL,
     true},
    {"kl_p99", "KL p99", "nat", "99 of 100 positions lie below", COLUMN_SMALL, 3, NULL, true},
    {"kl_max", "KL max", "nat", "the worst position", COLUMN_SMALL, 3, NULL, true},
    {"load_s", "load", "s", "from opening the file to the first token", COLUMN_NUMBER, 2, NULL,
     true},
    {"kv", "KV cache", "", "number type of the key-value cache", COLUMN_TEXT, 0, NULL, true},
    {"protocol", "protocol", "", "how perplexity was measured", COLUMN_TEXT, 0, NULL, true},
    {"n_tokens", "tokens", "", "tokens scored", COLUMN_COUNT, 0, NULL, true},
    {"logits_hash", "logits hash", "", "equal hashes: equal bits", COLUMN_TEXT, 0, NULL, true},
};

nb_status nb_report_new(nb_report **out, nb_err *err)
{
    nb_report *r;
    NB_TRY(NB_ALLOC(&r, 1, err));
    const nb_status s = NB_ARENA_ALLOC(&r->arena, &r->rows, NB_REPORT_MAX_ROWS, err);
    if (s != NB_OK) {
        nb_report_free(r);
        return s;
    }
    memcpy(r->columns, standard, sizeof standard);
    r->n_columns = sizeof standard / sizeof *standard;
    *out = r;
    return NB_OK;
}

void nb_report_free(nb_report *report)
{
    if (report == NULL)
        return;
    for (int64_t i = 0; i < report->n_artefacts; i++)
        json_decref(report->sources[i]);
    nb_arena_free(&report->arena);
    nb_free(report);
}

int64_t nb_report_n_rows(const nb_report *report)
{
    return report->n_rows;
}

/* ---- reading ---- */

int nb_report_column(const nb_report *r, const char *key)
{
    for (int c = 0; c < r->n_columns; c++) {
        if (strcmp(r->columns[c].key, key) == 0)
            return c;
    }
    return -1;
}

static nb_status find_row(nb_report *r, const char *name, nb_row **out, nb_err *err)
{
    for (int64_t i = 0; i < r->n_rows; i++) {
        if (strcmp(r->rows[i]->name, name) == 0) {
            *out = r->rows[i];
            return NB_OK;
        }
    }
    if (r->n_rows == NB_REPORT_MAX_ROWS)
        return nb_fail(err, NB_LIMIT, "more than %d rows", NB_REPORT_MAX_ROWS);
    nb_row *row = NULL;
    NB_TRY(NB_ARENA_ALLOC(&r->arena, &row, 1, err));
    NB_TRY(nb_arena_text(&r->arena, (char **)&row->name, name, strlen(name), err));
    r->rows[r->n_rows++] = row;
    *out = row;
    return NB_OK;
}

/* Takes object[key], if it is there, as the column's kind asks. */
static nb_status take(nb_report *r, const json_t *object, const char *key, bool is_text,
                      nb_value *out, nb_err *err)
{
    const json_t *v = json_object_get(object, key);
    if (v == NULL || json_is_null(v))
        return NB_OK;
    if (is_text) {
        const char *text;
        NB_TRY(nb_json_text(object, key, true, &text, err));
        NB_TRY(nb_arena_text(&r->arena, (char **)&out->text, text, strlen(text), err));
    } else {
        NB_TRY(nb_json_number(object, key, true, &out->number, err));
    }
    out->present = true;
    return NB_OK;
}

/* A line with a "task" has its own accuracies: columns "TASK acc" and "TASK acc_norm". */
static nb_status take_task(nb_report *r, nb_row *row, const json_t *line, const char *task,
                           nb_err *err)
{
    static const char *const measures[] = {"acc", "acc_norm"};
    for (int m = 0; m < 2; m++) {
        const json_t *v = json_object_get(line, measures[m]);
        if (v == NULL || json_is_null(v))
            continue;
        char *key;
        NB_TRY(nb_arena_format(&r->arena, &key, err, "%s %s", task, measures[m]));
        int c = nb_report_column(r, key);
        if (c < 0) {
            if (r->n_tasks == 2 * MAX_TASKS)
                return nb_fail(err, NB_LIMIT, "more than %d tasks", MAX_TASKS);
            r->n_tasks++;
            c = r->n_columns++;
            r->columns[c] = (nb_column){.key = key,
                                        .title = key,
                                        .unit = "%",
                                        .meaning = "share of questions answered right",
                                        .kind = COLUMN_PERCENT,
                                        .digits = 1,
                                        .error_key = m == 0 ? "acc_se" : NULL};
        }
        NB_TRY(take(r, line, measures[m], false, &row->value[c], err));
        if (m == 0)
            NB_TRY(take(r, line, "acc_se", false, &row->error[c], err));
    }
    return NB_OK;
}

static_assert(sizeof standard / sizeof *standard + 2 * MAX_TASKS <= NB_REPORT_MAX_COLUMNS,
              "there is room for the columns of all tasks");

static nb_status add_object(nb_report *r, const json_t *line, nb_err *err)
{
    if (!json_is_object(line))
        return nb_fail(err, NB_DATA, "an object was expected");
    const char *name, *task = NULL;
    NB_TRY(nb_json_text(line, "name", true, &name, err));
    if (*name == 0)
        return nb_fail(err, NB_DATA, "'name' is empty");
    NB_TRY(nb_json_text(line, "task", false, &task, err));
    nb_row *row = NULL;
    NB_TRY(find_row(r, name, &row, err));
    for (int c = 0; c < (int)(sizeof standard / sizeof *standard); c++) {
        const nb_column *column = &r->columns[c];
        const bool is_text = column->kind == COLUMN_TEXT;
        if (task != NULL && column->kind == COLUMN_COUNT)
            continue; /* a task's count of tokens is not the perplexity's */
        NB_TRY(take(r, line, column->key, is_text, &row->value[c], err));
        if (column->error_key != NULL)
            NB_TRY(take(r, line, column->error_key, false, &row->error[c], err));
    }
    NB_TRY(take(r, line, "bytes", false, &row->value[0], err));
    return task != NULL ? take_task(r, row, line, task, err) : NB_OK;
}

nb_status nb_report_add(nb_report *report, const char *text, size_t len, const char *name,
                        nb_err *err)
{
    long long number = 0;
    for (size_t at = 0; at < len;) {
        const char *line = text + at;
        const char *end = memchr(line, '\n', len - at);
        size_t n = end != NULL ? (size_t)(end - line) : len - at;
        at += n + 1;
        number++;
        while (n > 0 && strchr(" \t\r", line[n - 1]) != NULL && line[n - 1] != 0)
            n--;
        if (n == 0)
            continue;
        json_t *object;
        nb_status s = nb_json_parse(&object, line, n, err);
        if (s == NB_OK) {
            s = add_object(report, object, err);
            json_decref(object);
        }
        if (s != NB_OK)
            return nb_context(err, "%s:%lld", name, number);
    }
    return NB_OK;
}

/* ---- reports of quantized models ---- */

bool nb_report_is_artefact(const char *text, size_t len)
{
    json_t *object;
    nb_err ignored = {0};
    if (nb_json_parse(&object, text, len, &ignored) != NB_OK)
        return false;
    const bool is = nb_artefact_is(object);
    json_decref(object);
    return is;
}

/* The numbers that columns know: of the file, and of its evaluation, which was read once. */
static nb_status add_artefact_row(nb_report *r, const json_t *object, const char *label,
                                  nb_err *err)
{
    nb_row *row = NULL;
    const json_t *evaluation = json_object_get(object, "evaluation");
    NB_TRY(find_row(r, label, &row, err));
    for (int c = 0; c < (int)(sizeof standard / sizeof *standard); c++) {
        const nb_column *column = &r->columns[c];
        const json_t *from = json_is_object(evaluation) ? evaluation : NULL;
        if (strcmp(column->key, "file_bytes") == 0 || strcmp(column->key, "bpw") == 0 ||
            strcmp(column->key, "peak_rss_bytes") == 0)
            from = object;
        const char *key = strcmp(column->key, "file_bytes") == 0 ? "bytes" : column->key;
        NB_TRY(take(r, from, key, column->kind == COLUMN_TEXT, &row->value[c], err));
        if (column->error_key != NULL)
            NB_TRY(take(r, from, column->error_key, false, &row->error[c], err));
    }
    size_t i;
    json_t *o;
    json_array_foreach(json_object_get(evaluation, "tasks"), i, o)
    {
        NB_TRY(take_task(r, row, o, json_string_value(json_object_get(o, "task")), err));
    }
    return NB_OK;
}

static nb_status add_artefact(nb_report *r, json_t *object, const char *label, nb_err *err)
{
    nb_artefact *a = &r->artefacts[r->n_artefacts];
    if (!nb_artefact_is(object))
        return nb_fail(err, NB_DATA, "this is no report of a quantized model");
    NB_TRY(nb_artefact_read(a, &r->arena, object, err));
    NB_TRY(nb_arena_text(&r->arena, (char **)&a->name, label, strlen(label), err));
    NB_TRY(add_artefact_row(r, object, label, err));
    r->sources[r->n_artefacts++] = json_incref(object);
    return NB_OK;
}

nb_status nb_report_add_artefact(nb_report *report, const char *text, size_t len, const char *name,
                                 const char *label, nb_err *err)
{
    json_t *object = NULL;
    if (report->n_artefacts == NB_REPORT_MAX_ARTEFACTS)
        return nb_fail(err, NB_LIMIT, "%s: more than %d reports of quantized models", name,
                       NB_REPORT_MAX_ARTEFACTS);
    nb_status s = nb_json_parse(&object, text, len, err);
    if (s == NB_OK)
        s = add_artefact(report, object, label, err);
    json_decref(object);
    return s == NB_OK ? s : nb_context(err, "%s", name);
}

/* ---- values for readers ---- */

bool nb_report_column_used(const nb_report *r, int column)
{
    for (int64_t i = 0; i < r->n_rows; i++) {
        if (r->rows[i]->value[column].present)
            return true;
    }
    return false;
}

/* `digits` significant digits without an exponent where that stays short. */
static void show_small(char *out, size_t size, double v, int digits)
{
    const double a = fabs(v);
    if (v == 0)
        snprintf(out, size, "0");
    else if (a < 1e-5 || a >= 1e6)
        snprintf(out, size, "%.*e", digits - 1, v);
    else {
        const int before = (int)floor(log10(a)) + 1;
        snprintf(out, size, "%.*f", digits > before ? digits - before : 0, v);
    }
}

static void show_number(char *out, size_t size, const nb_column *c, double v)
{
    switch (c->kind) {
    case COLUMN_BYTES:
        v /= 1e6;
        break;
    case COLUMN_PERCENT:
        v *= 100;
        break;
    case COLUMN_SMALL:
        show_small(out, size, v, c->digits);
        return;
    default:
        break;
    }
    /* A hostile or broken result may be huge: it stays one short word. */
    snprintf(out, size, fabs(v) < 1e15 ? "%.*f" : "%.*e", c->digits, v);
}

nb_shown nb_report_show(const nb_report *r, const nb_row *row, int column)
{
    nb_shown shown = {""};
    const nb_column *c = &r->columns[column];
    const nb_value *v = &row->value[column], *e = &row->error[column];
    if (!v->present)
        return shown;
    if (c->kind == COLUMN_TEXT) {
        size_t n = strlen(v->text);
        if (n >= sizeof shown.text) { /* cut between characters, not inside one */
            n = sizeof shown.text - 1;
            while (n > 0 && ((unsigned char)v->text[n] & 0xc0) == 0x80)
                n--;
        }
        memcpy(shown.text, v->text, n);
        return shown;
    }
    show_number(shown.text, sizeof shown.text, c, v->number);
    if (e->present) {
        const size_t n = strlen(shown.text);
        snprintf(shown.text + n, sizeof shown.text - n, " \xc2\xb1 ");
        show_number(shown.text + n + 4, sizeof shown.text - n - 4, c, e->number);
    }
    return shown;
}

/* ---- text and Markdown ---- */

static nb_status put_title(const nb_column *c, nb_buf *out, nb_err *err)
{
    if (c->unit[0] == 0)
        return nb_buf_text(out, c->title, err);
    return nb_buf_format(out, err, "%s (%s)", c->title, c->unit);
}

/* Pipes, backslashes and markup of Markdown, and control characters. */
static nb_status put_markdown(nb_buf *out, const char *text, nb_err *err)
{
    for (const char *p = text; *p != 0; p++) {
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            NB_TRY(nb_buf_u8(out, ' ', err));
        else if (strchr("\\|`*_{}[]<>#&!~", *p) != NULL)
            NB_TRY(nb_buf_format(out, err, "\\%c", *p));
        else
            NB_TRY(nb_buf_u8(out, (uint8_t)*p, err));
    }
    return NB_OK;
}

nb_status nb_report_markdown(const nb_report *r, nb_buf *out, nb_err *err)
{
    NB_TRY(nb_buf_text(out, "| name |", err));
    for (int c = 0; c < r->n_columns; c++) {
        if (r->columns[c].detail || !nb_report_column_used(r, c))
            continue;
        nb_buf title = {0};
        nb_status s = put_title(&r->columns[c], &title, err);
        if (s == NB_OK)
            s = nb_buf_u8(&title, 0, err);
        if (s == NB_OK)
            s = nb_buf_text(out, " ", err);
        if (s == NB_OK)
            s = put_markdown(out, (const char *)title.data, err);
        nb_buf_free(&title);
        NB_TRY(s);
        NB_TRY(nb_buf_text(out, " |", err));
    }
    NB_TRY(nb_buf_text(out, "\n|:---|", err));
    for (int c = 0; c < r->n_columns; c++) {
        if (!r->columns[c].detail && nb_report_column_used(r, c))
            NB_TRY(nb_buf_text(out, r->columns[c].kind == COLUMN_TEXT ? ":---|" : "---:|", err));
    }
    NB_TRY(nb_buf_text(out, "\n", err));
    for (int64_t i = 0; i < r->n_rows; i++) {
        NB_TRY(nb_buf_text(out, "| ", err));
        NB_TRY(put_markdown(out, r->rows[i]->name, err));
        NB_TRY(nb_buf_text(out, " |", err));
        for (int c = 0; c < r->n_columns; c++) {
            if (r->columns[c].detail || !nb_report_column_used(r, c))
                continue;
            NB_TRY(nb_buf_text(out, " ", err));
            NB_TRY(put_markdown(out, nb_report_show(r, r->rows[i], c).text, err));
            NB_TRY(nb_buf_text(out, " |", err));
        }
        NB_TRY(nb_buf_text(out, "\n", err));
    }
    return NB_OK;
}

/* Characters of UTF-8 text: continuation bytes take no column. */
static int text_width(const char *text)
{
    int n = 0;
    for (const char *p = text; *p != 0; p++)
        n += ((unsigned char)*p & 0xc0) != 0x80;
    return n;
}

static nb_status put_plain_cell(nb_buf *out, const char *text, int width, bool right, nb_err *err)
{
    const int pad = width - text_width(text);
    if (right && pad > 0)
        NB_TRY(nb_buf_format(out, err, "%*s", pad, ""));
    for (const char *p = text; *p != 0; p++)
        NB_TRY(nb_buf_u8(out, (unsigned char)*p < 0x20 || *p == 0x7f ? '?' : (uint8_t)*p, err));
    if (!right && pad > 0)
        NB_TRY(nb_buf_format(out, err, "%*s", pad, ""));
    return NB_OK;
}

/* The text of one cell: row -1 is the head, column -1 the name. Lives in `room` or the report. */
static const char *plain_cell(const nb_report *r, int64_t row, int column, nb_shown *room)
{
    if (column < 0)
        return row < 0 ? "name" : r->rows[row]->name;
    const nb_column *c = &r->columns[column];
    if (row >= 0)
        *room = nb_report_show(r, r->rows[row], column);
    else if (c->unit[0] == 0)
        return c->title;
    else
        snprintf(room->text, sizeof room->text, "%s (%s)", c->title, c->unit);
    return room->text;
}

nb_status nb_report_text(const nb_report *r, nb_buf *out, nb_err *err)
{
    int widths[NB_REPORT_MAX_COLUMNS + 1] = {0};
    nb_shown room;
    for (int c = -1; c < r->n_columns; c++) {
        for (int64_t i = -1; i < r->n_rows; i++) {
            const int w = text_width(plain_cell(r, i, c, &room));
            widths[c + 1] = w > widths[c + 1] ? w : widths[c + 1];
        }
    }
    for (int64_t i = -1; i < r->n_rows; i++) {
        for (int c = -1; c < r->n_columns; c++) {
            if (c >= 0 && (r->columns[c].detail || !nb_report_column_used(r, c)))
                continue;
            const bool right = c >= 0 && r->columns[c].kind != COLUMN_TEXT;
            if (c >= 0)
                NB_TRY(nb_buf_text(out, "  ", err));
            NB_TRY(put_plain_cell(out, plain_cell(r, i, c, &room), widths[c + 1], right, err));
        }
        while (out->len > 0 && out->data[out->len - 1] == ' ')
            out->len--;
        NB_TRY(nb_buf_text(out, "\n", err));
    }
    return NB_OK;
}
