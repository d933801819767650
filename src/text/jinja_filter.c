/* What may stand behind "|". See jinja_builtin.h. */
#include "text/jinja_builtin.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILTER(function)                                                                           \
    static nb_status function(nb_jrun *r, nb_jv self, const nb_jv *arg, const nb_jargs *all,       \
                              nb_jv *out)

static bool given(nb_jv arg)
{
    return arg.kind != NB_JV_ABSENT && arg.kind != NB_JV_NONE;
}

/* ---- texts ---- */

FILTER(filter_upper)
{
    (void)arg, (void)all;
    nb_jspan s;
    NB_TRY(nb_jv_to_text(r, self, &s));
    return nb_jstr_case(r, s, NB_JCASE_UPPER, out);
}

FILTER(filter_lower)
{
    (void)arg, (void)all;
    nb_jspan s;
    NB_TRY(nb_jv_to_text(r, self, &s));
    return nb_jstr_case(r, s, NB_JCASE_LOWER, out);
}

FILTER(filter_title)
{
    (void)arg, (void)all;
    nb_jspan s;
    NB_TRY(nb_jv_to_text(r, self, &s));
    return nb_jstr_case(r, s, NB_JCASE_WORDS, out);
}

FILTER(filter_capitalize)
{
    (void)arg, (void)all;
    nb_jspan s;
    NB_TRY(nb_jv_to_text(r, self, &s));
    return nb_jstr_case(r, s, NB_JCASE_CAPITAL, out);
}

FILTER(filter_trim)
{
    nb_jspan s;
    NB_TRY(nb_jv_to_text(r, self, &s));
    const nb_jbuiltin *strip = nb_jstr_method(NB_JSPAN("strip"));
    NB_TRY(strip->call(r, nb_jv_text(s), arg, all, out));
    out->markup = self.kind == NB_JV_TEXT && self.markup;
    return NB_OK;
}

FILTER(filter_string)
{
    (void)arg, (void)all;
    nb_jspan s;
    NB_TRY(nb_jv_to_text(r, self, &s));
    *out = nb_jv_text(s);
    out->markup = self.kind == NB_JV_TEXT && self.markup;
    return NB_OK;
}

FILTER(filter_safe)
{
    NB_TRY(filter_string(r, self, arg, all, out));
    out->markup = true;
    return NB_OK;
}

FILTER(filter_escape)
{
    NB_TRY(filter_string(r, self, arg, all, out));
    if (out->markup)
        return NB_OK;
    const size_t mark = nb_jrun_mark(r);
    NB_TRY(nb_jprint_escaped(r, out->text));
    NB_TRY(nb_jrun_take(r, mark, out));
    out->markup = true;
    return NB_OK;
}

FILTER(filter_replace)
{
    (void)all;
    nb_jspan s, old, new;
    int64_t count;
    NB_TRY(nb_jv_to_text(r, self, &s));
    NB_TRY(nb_jv_to_text(r, arg[0], &old));
    NB_TRY(nb_jv_to_text(r, arg[1], &new));
    NB_TRY(nb_jarg_int(r, given(arg[2]) ? arg[2] : (nb_jv){0}, "replace", -1, &count));
    return nb_jstr_replace(r, s, old, new, count, out);
}

/* Indents all lines but the first (unless asked) and empty ones (unless asked). */
FILTER(filter_indent)
{
    (void)all;
    nb_jspan s, by;
    nb_jv lines;
    int64_t width = 0;
    char spaces[256];
    if (self.kind == NB_JV_UNDEFINED)
        return nb_jrun_undefined(r, self);
    NB_TRY(nb_jarg_text(r, self, "indent", (nb_jspan){0}, &s));
    if (arg[0].kind == NB_JV_TEXT) {
        by = arg[0].text;
    } else {
        NB_TRY(nb_jarg_int(r, arg[0], "indent", 4, &width));
        if (width > (int64_t)sizeof spaces)
            return nb_jrun_fail(r, "indent: at most %zu columns", sizeof spaces);
        memset(spaces, ' ', sizeof spaces);
        by = (nb_jspan){spaces, width < 0 ? 0 : (size_t)width};
    }
    const size_t mark = nb_jrun_mark(r);
    NB_TRY(nb_jstr_lines(r, s, &lines));
    const bool open_end = s.n > 0 && (s.p[s.n - 1] == '\n' || s.p[s.n - 1] == '\r');
    if (s.n == 0 || open_end)
        NB_TRY(nb_jlist_push(r, lines.list, nb_jv_text(NB_JSPAN(""))));
    for (int64_t i = 0; i < lines.list->n; i++) {
        const nb_jspan line = lines.list->items[i].text;
        if (i > 0)
            NB_TRY(nb_jrun_emit_byte(r, '\n'));
        if (i == 0 ? nb_jv_truth(arg[1]) : line.n > 0 || nb_jv_truth(arg[2]))
            NB_TRY(nb_jrun_emit(r, by));
        NB_TRY(nb_jrun_emit(r, line));
    }
    return nb_jrun_take(r, mark, out);
}

static nb_status json_style(nb_jrun *r, const nb_jv *arg, char spaces[64], nb_jjson_style *style)
{
    *style =
        (nb_jjson_style){.ensure_ascii = nb_jv_truth(arg[0]), .sort_keys = nb_jv_truth(arg[3])};
    int64_t width;
    if (arg[1].kind == NB_JV_TEXT) {
        style->indent = arg[1].text;
        if (style->indent.p == NULL)
            style->indent.p = "";
    } else if (given(arg[1])) {
        NB_TRY(nb_jarg_int(r, arg[1], "tojson", 0, &width));
        if (width > 64)
            return nb_jrun_fail(r, "tojson: at most 64 columns of indent");
        memset(spaces, ' ', 64);
        style->indent = (nb_jspan){spaces, width < 0 ? 0 : (size_t)width};
    }
    if (!given(arg[2]))
        return NB_OK;
    if ((arg[2].kind != NB_JV_TUPLE && arg[2].kind != NB_JV_LIST) || arg[2].list->n != 2)
        return nb_jrun_fail(r, "tojson: separators are a pair of strings");
    NB_TRY(nb_jarg_text(r, arg[2].list->items[0], "tojson", (nb_jspan){0}, &style->item));
    return nb_jarg_text(r, arg[2].list->items[1], "tojson", (nb_jspan){0}, &style->colon);
}

FILTER(filter_tojson)
{
    (void)all;
    nb_jjson_style style;
    char spaces[64];
    NB_TRY(json_style(r, arg, spaces, &style));
    const size_t mark = nb_jrun_mark(r);
    NB_TRY(nb_jprint_json(r, self, &style));
    return nb_jrun_take(r, mark, out);
}

/* ---- numbers ---- */

/* The whole of a text is a number, white space around it apart. */
static bool text_to_number(nb_jspan s, bool is_float, nb_jv *out)
{
    s = nb_jtext_strip(s, (nb_jspan){0}, true, true);
    const bool minus = s.n > 0 && s.p[0] == '-';
    if (s.n > 0 && (s.p[0] == '-' || s.p[0] == '+'))
        s = (nb_jspan){s.p + 1, s.n - 1};
    size_t digits = 0, i = 0;
    for (; i < s.n && s.p[i] >= '0' && s.p[i] <= '9'; i++)
        digits++;
    if (is_float && i < s.n && s.p[i] == '.')
        for (i++; i < s.n && s.p[i] >= '0' && s.p[i] <= '9'; i++)
            digits++;
    if (is_float && digits > 0 && i < s.n && (s.p[i] == 'e' || s.p[i] == 'E')) {
        i++;
        i += i < s.n && (s.p[i] == '+' || s.p[i] == '-');
        const size_t exponent = i;
        while (i < s.n && s.p[i] >= '0' && s.p[i] <= '9')
            i++;
        if (i == exponent)
            return false;
    }
    if (digits == 0 || i != s.n || !nb_jv_parse_number(s, is_float, out))
        return false;
    if (minus && is_float)
        out->f = -out->f;
    else if (minus)
        out->i = -out->i;
    return true;
}

FILTER(filter_int)
{
    (void)all;
    int64_t i, base;
    double f = NAN;
    nb_jv v;
    if (self.kind == NB_JV_UNDEFINED)
        return nb_jrun_undefined(r, self);
    *out = arg[0].kind == NB_JV_ABSENT ? nb_jv_int(0) : arg[0];
    NB_TRY(nb_jarg_int(r, arg[1], "int", 10, &base));
    if (base != 10)
        return nb_jrun_fail(r, "int: only base 10 is supported");
    if (nb_jv_is_int(self, &i)) {
        *out = nb_jv_int(i);
        return NB_OK;
    }
    if (self.kind == NB_JV_TEXT && text_to_number(self.text, false, &v)) {
        *out = v;
        return NB_OK;
    }
    if (self.kind == NB_JV_FLOAT)
        f = self.f;
    else if (self.kind == NB_JV_TEXT && text_to_number(self.text, true, &v))
        f = v.f;
    if (f > -0x1p63 && f < 0x1p63)
        *out = nb_jv_int((int64_t)f);
    return NB_OK;
}

FILTER(filter_float)
{
    (void)all;
    double f;
    nb_jv v;
    if (self.kind == NB_JV_UNDEFINED)
        return nb_jrun_undefined(r, self);
    *out = arg[0].kind == NB_JV_ABSENT ? nb_jv_float(0) : arg[0];
    if (nb_jv_is_number(self, &f))
        *out = nb_jv_float(f);
    else if (self.kind == NB_JV_TEXT && text_to_number(self.text, true, &v))
        *out = v;
    return NB_OK;
}

FILTER(filter_abs)
{
    (void)arg, (void)all;
    double f;
    if (!nb_jv_is_number(self, &f))
        return nb_jrun_fail(r, "bad operand type for abs(): '%s'", nb_jv_type(self));
    return nb_jop_unary(r, f < 0 || (self.kind == NB_JV_FLOAT && signbit(f)) ? '-' : '+', self,
                        out);
}

/* Rounds half to even as round() does, by way of decimal digits, or up or down. */
FILTER(filter_round)
{
    (void)all;
    double f;
    int64_t places;
    nb_jspan method;
    NB_TRY(nb_jarg_int(r, arg[0], "round", 0, &places));
    NB_TRY(nb_jarg_text(r, arg[1], "round", NB_JSPAN("common"), &method));
    if (!nb_jv_is_number(self, &f))
        return nb_jrun_fail(r, "type %s doesn't define a rounding", nb_jv_type(self));
    if (places < 0 || places > 15)
        return nb_jrun_fail(r, "round: 0 to 15 decimal places are supported");
    double scale = 1;
    for (int64_t i = 0; i < places; i++)
        scale *= 10;
    if (nb_jspan_equal(method, NB_JSPAN("common"))) {
        char text[400];
        snprintf(text, sizeof text, "%.*f", (int)places, f);
        *out = nb_jv_float(strtod(text, NULL));
    } else if (nb_jspan_equal(method, NB_JSPAN("ceil"))) {
        *out = nb_jv_float(-floor(-f * scale) / scale);
    } else if (nb_jspan_equal(method, NB_JSPAN("floor"))) {
        *out = nb_jv_float(floor(f * scale) / scale);
    } else {
        return nb_jrun_fail(r, "method must be common, ceil or floor");
    }
    /* round() of an integer stays one. */
    int64_t i;
    if (nb_jv_is_int(self, &i) && nb_jspan_equal(method, NB_JSPAN("common")))
        *out = nb_jv_int(i);
    return NB_OK;
}

/* ---- any value ---- */

FILTER(filter_default)
{
    (void)r, (void)all;
    const bool missing =
        self.kind == NB_JV_UNDEFINED || (nb_jv_truth(arg[1]) && !nb_jv_truth(self));
    *out = !missing ? self : arg[0].kind == NB_JV_ABSENT ? nb_jv_text(NB_JSPAN("")) : arg[0];
    return NB_OK;
}

FILTER(filter_length)
{
    (void)arg, (void)all;
    *out = nb_jv_int(0);
    return nb_jv_length(r, self, &out->i);
}

FILTER(filter_attr)
{
    (void)all;
    nb_jspan name;
    NB_TRY(nb_jarg_text(r, arg[0], "attr", (nb_jspan){0}, &name));
    /* Attributes only, never keys. */
    if (self.kind == NB_JV_DICT && nb_jinja_method(self.kind, name) == NULL) {
        *out = nb_jv_undefined(self.kind, name);
        return NB_OK;
    }
    return nb_jop_attribute(r, self, name, out);
}

FILTER(filter_items)
{
    const nb_jbuiltin *items = nb_jinja_method(NB_JV_DICT, NB_JSPAN("items"));
    if (self.kind == NB_JV_UNDEFINED)
        return nb_jlist_new(r, NB_JV_LIST, 0, out);
    if (self.kind != NB_JV_DICT)
        return nb_jrun_fail(r, "Can only get item pairs from a mapping.");
    return items->call(r, self, arg, all, out);
}

const nb_jbuiltin *nb_jinja_filter(nb_jspan name)
{
    static const nb_jbuiltin FILTERS[] = {
        {"upper", filter_upper, {0}, 0, false},
        {"lower", filter_lower, {0}, 0, false},
        {"title", filter_title, {0}, 0, false},
        {"capitalize", filter_capitalize, {0}, 0, false},
        {"trim", filter_trim, {"chars"}, 0, false},
        {"string", filter_string, {0}, 0, false},
        {"safe", filter_safe, {0}, 0, false},
        {"escape", filter_escape, {0}, 0, false},
        {"e", filter_escape, {0}, 0, false},
        {"replace", filter_replace, {"old", "new", "count"}, 2, false},
        {"indent", filter_indent, {"width", "first", "blank"}, 0, false},
        {"tojson", filter_tojson, {"ensure_ascii", "indent", "separators", "sort_keys"}, 0, false},
        {"int", filter_int, {"default", "base"}, 0, false},
        {"float", filter_float, {"default"}, 0, false},
        {"abs", filter_abs, {0}, 0, false},
        {"round", filter_round, {"precision", "method"}, 0, false},
        {"default", filter_default, {"default_value", "boolean"}, 0, false},
        {"d", filter_default, {"default_value", "boolean"}, 0, false},
        {"length", filter_length, {0}, 0, false},
        {"count", filter_length, {0}, 0, false},
        {"attr", filter_attr, {"name"}, 1, false},
        {"items", filter_items, {0}, 0, false},
    };
    const nb_jbuiltin *b = nb_jbuiltin_in(FILTERS, sizeof FILTERS / sizeof FILTERS[0], name);
    return b != NULL ? b : nb_jseq_filter(name);
}
