/* The help of a verb, printed from the same table that its arguments are parsed by. */
#include "cli/verbs.h"

#include <stdio.h>
#include <string.h>

#define HELP_WIDTH 80
#define HELP_LEFT  26

/* Appends `text` broken into lines that start at column `left`; the cursor is at `column`. */
static nb_status put_wrapped(nb_buf *out, size_t left, size_t column, const char *text, nb_err *err)
{
    if (column >= left) {
        NB_TRY(nb_buf_text(out, "\n", err));
        column = 0;
    }
    bool fresh = true;
    while (*text != 0) {
        const size_t n = strcspn(text, " ");
        if (!fresh && column + 1 + n > HELP_WIDTH) {
            NB_TRY(nb_buf_text(out, "\n", err));
            column = 0;
            fresh = true;
        }
        if (column < left) {
            NB_TRY(nb_buf_format(out, err, "%*s", (int)(left - column), ""));
            column = left;
        }
        NB_TRY(nb_buf_format(out, err, "%s%.*s", fresh ? "" : " ", (int)n, text));
        column += n + !fresh;
        fresh = false;
        text += n;
        text += strspn(text, " ");
    }
    return nb_buf_text(out, "\n", err);
}

/* What a value may be: "(1 to 256)", "(f16, f32; default f16)". */
static nb_status put_limits(nb_buf *out, const nb_opt *o, nb_err *err)
{
    const char *between = " (";
    if (o->kind == NB_OPT_INT && o->max < INT64_MAX) {
        NB_TRY(nb_buf_format(out, err, " (%lld to %lld", (long long)o->min, (long long)o->max));
        between = "; ";
    } else if (o->kind == NB_OPT_FLOAT) {
        NB_TRY(nb_buf_format(out, err, " (%g to %g", o->low, o->high));
        between = "; ";
    } else if (o->kind == NB_OPT_CHOICE) {
        for (int i = 0; o->choices[i] != NULL; i++)
            NB_TRY(nb_buf_format(out, err, "%s%s", i == 0 ? " (" : ", ", o->choices[i]));
        between = "; ";
    }
    if (o->repeats) {
        NB_TRY(nb_buf_format(out, err, "%smay be repeated", between));
        between = "; ";
    }
    if (o->preset != NULL) {
        NB_TRY(nb_buf_format(out, err, "%sdefault %s", between, o->preset));
        between = "; ";
    }
    return between[0] == ';' ? nb_buf_text(out, ")", err) : NB_OK;
}

static nb_status put_other_names(nb_buf *out, const nb_opt *o, nb_err *err)
{
    for (const char *const *also = o->also; also != NULL && *also != NULL; also++)
        NB_TRY(nb_buf_format(out, err, "%s--%s", also == o->also ? "; also " : ", ", *also));
    return NB_OK;
}

static nb_status put_option(nb_buf *out, const nb_opt *o, nb_err *err)
{
    char left[120];
    char letter[5] = "    ";
    if (o->letter != 0)
        snprintf(letter, sizeof letter, "-%c, ", o->letter);
    const int n = snprintf(left, sizeof left, "  %s--%s%s%s", letter, o->name,
                           o->value != NULL ? " " : "", o->value != NULL ? o->value : "");
    NB_TRY(nb_buf_text(out, left, err));
    nb_buf text = {0};
    nb_status s = nb_buf_text(&text, o->help, err);
    if (s == NB_OK)
        s = put_other_names(&text, o, err);
    if (s == NB_OK)
        s = put_limits(&text, o, err);
    if (s == NB_OK)
        s = nb_buf_u8(&text, 0, err);
    if (s == NB_OK)
        s = put_wrapped(out, HELP_LEFT, (size_t)n, (const char *)text.data, err);
    nb_buf_free(&text);
    return s;
}

static nb_status put_usage(nb_buf *out, const nb_verb *verb, nb_err *err)
{
    NB_TRY(nb_buf_format(out, err, "\nUsage: nibble %s", verb->name));
    for (const nb_operand *p = verb->operands; p != NULL && p->name != NULL; p++)
        NB_TRY(nb_buf_format(out, err, p->min > 0 ? " %s%s" : " [%s%s]", p->name,
                             p->max > 1 ? "..." : ""));
    return nb_buf_text(out, " [options]\n", err);
}

nb_status nb_args_help(const nb_verb *verb, nb_buf *out, nb_err *err)
{
    NB_TRY(nb_buf_format(out, err, "nibble %s: %s\n\nExample:\n", verb->name, verb->summary));
    for (const char *line = verb->example; *line != 0;) {
        const size_t n = strcspn(line, "\n");
        NB_TRY(nb_buf_format(out, err, "  %.*s\n", (int)n, line));
        line += n + (line[n] == '\n');
    }
    NB_TRY(put_usage(out, verb, err));
    if (verb->about != NULL)
        NB_TRY(nb_buf_format(out, err, "\n%s\n", verb->about));
    if (verb->operands != NULL && verb->operands[0].name != NULL)
        NB_TRY(nb_buf_text(out, "\n", err));
    for (const nb_operand *p = verb->operands; p != NULL && p->name != NULL; p++) {
        char left[80];
        const int n = snprintf(left, sizeof left, "  %s", p->name);
        NB_TRY(nb_buf_text(out, left, err));
        NB_TRY(put_wrapped(out, HELP_LEFT, (size_t)n, p->help, err));
    }
    NB_TRY(nb_buf_text(out, "\nOptions:\n", err));
    for (const nb_opt *o = verb->options; o != NULL && o->name != NULL; o++)
        NB_TRY(put_option(out, o, err));
    static const nb_opt help = {
        .name = "help", .letter = 'h', .kind = NB_OPT_FLAG, .help = "show this"};
    return put_option(out, &help, err);
}
