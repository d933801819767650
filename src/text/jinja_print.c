/* Values as Python prints them: str, repr, json.dumps. See jinja_run.h. */
#include "text/jinja_builtin.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static nb_status emit_literal(nb_jrun *r, const char *text)
{
    return nb_jrun_emit(r, (nb_jspan){text, strlen(text)});
}

static nb_status emit_int(nb_jrun *r, int64_t v)
{
    char text[24];
    const int n = snprintf(text, sizeof text, "%" PRId64, v);
    return nb_jrun_emit(r, (nb_jspan){text, (size_t)n});
}

/* The fewest digits that read back as f, without point: d[0].d[1]d[2]... * 10^exponent. */
static int shortest_digits(double f, char digits[20], int *exponent)
{
    char text[40];
    int precision = 0;
    do
        snprintf(text, sizeof text, "%.*e", precision, f);
    while (strtod(text, NULL) != f && ++precision < 17);
    int n = 0;
    const char *c = text;
    for (; *c != 'e'; c++)
        if (*c >= '0' && *c <= '9')
            digits[n++] = *c;
    *exponent = atoi(c + 1);
    return n;
}

/* repr(float): positional for 1e-4 <= |f| < 1e16. */
static nb_status emit_float(nb_jrun *r, double f, const char *nan, const char *inf)
{
    if (isnan(f))
        return emit_literal(r, nan);
    if (signbit(f))
        NB_TRY(nb_jrun_emit_byte(r, '-'));
    f = fabs(f);
    if (isinf(f))
        return emit_literal(r, inf);
    char digits[20] = "0", text[48];
    int exponent = 0, n = 1, len = 0;
    if (f != 0)
        n = shortest_digits(f, digits, &exponent);
    if (exponent < -4 || exponent >= 16) {
        text[len++] = digits[0];
        if (n > 1)
            text[len++] = '.';
        for (int i = 1; i < n; i++)
            text[len++] = digits[i];
        len += snprintf(text + len, 8, "e%c%02d", exponent < 0 ? '-' : '+', abs(exponent));
    } else {
        const int first = exponent < 0 ? exponent : 0;
        const int last = n - 1 > exponent + 1 ? n - 1 : exponent + 1;
        for (int i = first; i <= last; i++) {
            if (i == exponent + 1)
                text[len++] = '.';
            text[len++] = i >= 0 && i < n ? digits[i] : '0';
        }
    }
    return nb_jrun_emit(r, (nb_jspan){text, (size_t)len});
}

static nb_status emit_escape(nb_jrun *r, uint32_t cp)
{
    char text[12];
    const int n = cp < 0x100     ? snprintf(text, sizeof text, "\\x%02" PRIx32, cp)
                  : cp < 0x10000 ? snprintf(text, sizeof text, "\\u%04" PRIx32, cp)
                                 : snprintf(text, sizeof text, "\\U%08" PRIx32, cp);
    return nb_jrun_emit(r, (nb_jspan){text, (size_t)n});
}

static nb_status repr_text(nb_jrun *r, nb_jspan s)
{
    const bool single = s.n > 0 && memchr(s.p, '\'', s.n) != NULL;
    const bool twofold = s.n > 0 && memchr(s.p, '"', s.n) != NULL;
    const char quote = single && !twofold ? '"' : '\'';
    NB_TRY(nb_jrun_emit_byte(r, quote));
    for (size_t i = 0; i < s.n;) {
        uint32_t cp;
        const size_t len = nb_jtext_decode(s.p + i, s.n - i, &cp);
        if (cp == (uint32_t)quote || cp == '\\') {
            NB_TRY(nb_jrun_emit_byte(r, '\\'));
            NB_TRY(nb_jrun_emit_byte(r, (char)cp));
        } else if (cp == '\n') {
            NB_TRY(emit_literal(r, "\\n"));
        } else if (cp == '\r') {
            NB_TRY(emit_literal(r, "\\r"));
        } else if (cp == '\t') {
            NB_TRY(emit_literal(r, "\\t"));
        } else if (!nb_jtext_is_printable(cp)) {
            NB_TRY(emit_escape(r, cp));
        } else {
            NB_TRY(nb_jrun_emit(r, (nb_jspan){s.p + i, len}));
        }
        i += len;
    }
    return nb_jrun_emit_byte(r, quote);
}

static nb_status repr_items(nb_jrun *r, const nb_jlist *list, bool tuple)
{
    NB_TRY(nb_jrun_emit_byte(r, tuple ? '(' : '['));
    for (int64_t i = 0; i < list->n; i++) {
        if (i > 0)
            NB_TRY(emit_literal(r, ", "));
        NB_TRY(nb_jprint_repr(r, list->items[i]));
    }
    if (tuple && list->n == 1)
        NB_TRY(nb_jrun_emit_byte(r, ','));
    return nb_jrun_emit_byte(r, tuple ? ')' : ']');
}

static nb_status repr_dict(nb_jrun *r, const nb_jdict *d)
{
    NB_TRY(nb_jrun_emit_byte(r, '{'));
    for (int64_t i = 0; i < d->n; i++) {
        if (i > 0)
            NB_TRY(emit_literal(r, ", "));
        NB_TRY(nb_jprint_repr(r, d->entries[i].key));
        NB_TRY(emit_literal(r, ": "));
        NB_TRY(nb_jprint_repr(r, d->entries[i].value));
    }
    return nb_jrun_emit_byte(r, '}');
}

static nb_status repr_container(nb_jrun *r, nb_jv v)
{
    if (v.kind == NB_JV_LIST || v.kind == NB_JV_TUPLE)
        return repr_items(r, v.list, v.kind == NB_JV_TUPLE);
    if (v.kind == NB_JV_NAMESPACE)
        NB_TRY(emit_literal(r, "<Namespace "));
    NB_TRY(repr_dict(r, v.dict));
    return v.kind == NB_JV_NAMESPACE ? nb_jrun_emit_byte(r, '>') : NB_OK;
}

nb_status nb_jprint_repr(nb_jrun *r, nb_jv v)
{
    switch (v.kind) {
    case NB_JV_ABSENT:
    case NB_JV_UNDEFINED:
        return emit_literal(r, "Undefined");
    case NB_JV_NONE:
        return emit_literal(r, "None");
    case NB_JV_BOOL:
        return emit_literal(r, v.b ? "True" : "False");
    case NB_JV_INT:
        return emit_int(r, v.i);
    case NB_JV_FLOAT:
        return emit_float(r, v.f, "nan", "inf");
    case NB_JV_TEXT:
        return repr_text(r, v.text);
    case NB_JV_LIST:
    case NB_JV_TUPLE:
    case NB_JV_DICT:
    case NB_JV_NAMESPACE: {
        NB_TRY(nb_jrun_enter(r));
        const nb_status s = repr_container(r, v);
        nb_jrun_leave(r);
        return s;
    }
    default:
        NB_TRY(nb_jrun_emit_byte(r, '<'));
        NB_TRY(emit_literal(r, nb_jv_type(v)));
        return nb_jrun_emit_byte(r, '>');
    }
}

nb_status nb_jprint_str(nb_jrun *r, nb_jv v)
{
    if (v.kind == NB_JV_TEXT)
        return nb_jrun_emit(r, v.text);
    if (v.kind == NB_JV_UNDEFINED || v.kind == NB_JV_ABSENT)
        return NB_OK;
    return nb_jprint_repr(r, v);
}

nb_status nb_jprint_escaped(nb_jrun *r, nb_jspan text)
{
    for (size_t i = 0; i < text.n; i++) {
        const char c = text.p[i];
        const char *e = c == '&'    ? "&amp;"
                        : c == '<'  ? "&lt;"
                        : c == '>'  ? "&gt;"
                        : c == '"'  ? "&#34;"
                        : c == '\'' ? "&#39;"
                                    : NULL;
        NB_TRY(e != NULL ? emit_literal(r, e) : nb_jrun_emit_byte(r, c));
    }
    return NB_OK;
}

static nb_status json_unicode(nb_jrun *r, uint32_t cp)
{
    char text[16];
    int n;
    if (cp < 0x10000)
        n = snprintf(text, sizeof text, "\\u%04" PRIx32, cp);
    else
        n = snprintf(text, sizeof text, "\\u%04" PRIx32 "\\u%04" PRIx32,
                     0xD800 + ((cp - 0x10000) >> 10), 0xDC00 + ((cp - 0x10000) & 0x3FF));
    return nb_jrun_emit(r, (nb_jspan){text, (size_t)n});
}

/* A text of JSON. What needs no escape goes out in one piece. */
static nb_status json_text(nb_jrun *r, nb_jspan s, bool ensure_ascii)
{
    static const char SHORT[] = "\"\"\\\\\bb\ff\nn\rr\tt";
    NB_TRY(nb_jrun_emit_byte(r, '"'));
    size_t plain = 0; /* where the piece begins */
    for (size_t i = 0; i < s.n;) {
        uint32_t cp;
        const size_t len = nb_jtext_decode(s.p + i, s.n - i, &cp);
        i += len;
        if (cp >= 0x20 && cp != '"' && cp != '\\' && (cp <= 0x7E || !ensure_ascii))
            continue;
        NB_TRY(nb_jrun_emit(r, (nb_jspan){s.p + plain, i - len - plain}));
        plain = i;
        char named = 0;
        for (size_t k = 0; SHORT[k] != 0; k += 2)
            if (cp == (uint32_t)SHORT[k])
                named = SHORT[k + 1];
        if (named != 0) {
            NB_TRY(nb_jrun_emit_byte(r, '\\'));
            NB_TRY(nb_jrun_emit_byte(r, named));
        } else {
            NB_TRY(json_unicode(r, cp));
        }
    }
    NB_TRY(nb_jrun_emit(r, (nb_jspan){s.p + plain, s.n - plain}));
    return nb_jrun_emit_byte(r, '"');
}

static nb_status json_newline(nb_jrun *r, const nb_jjson_style *style, int level)
{
    if (style->indent.p == NULL)
        return NB_OK;
    NB_TRY(nb_jrun_emit_byte(r, '\n'));
    for (int i = 0; i < level; i++)
        NB_TRY(nb_jrun_emit(r, style->indent));
    return NB_OK;
}

static nb_status json_value(nb_jrun *r, nb_jv v, const nb_jjson_style *style, int level);

static nb_status json_separator(nb_jrun *r, const nb_jjson_style *style)
{
    if (style->item.p != NULL)
        return nb_jrun_emit(r, style->item);
    return emit_literal(r, style->indent.p != NULL ? "," : ", ");
}

/* Keys are texts; numbers, booleans and None become the texts of their JSON. */
static nb_status json_key(nb_jrun *r, nb_jv key, const nb_jjson_style *style)
{
    if (key.kind == NB_JV_TEXT)
        return json_text(r, key.text, style->ensure_ascii);
    NB_TRY(nb_jrun_emit_byte(r, '"'));
    NB_TRY(json_value(r, key, style, 0));
    return nb_jrun_emit_byte(r, '"');
}

static nb_status json_items(nb_jrun *r, const nb_jlist *list, const nb_jjson_style *style,
                            int level)
{
    if (list->n == 0)
        return emit_literal(r, "[]");
    NB_TRY(nb_jrun_emit_byte(r, '['));
    for (int64_t i = 0; i < list->n; i++) {
        if (i > 0)
            NB_TRY(json_separator(r, style));
        NB_TRY(json_newline(r, style, level + 1));
        NB_TRY(json_value(r, list->items[i], style, level + 1));
    }
    NB_TRY(json_newline(r, style, level));
    return nb_jrun_emit_byte(r, ']');
}

/* The numbers of the entries in the order of their keys. */
static nb_status json_sorted(nb_jrun *r, const nb_jdict *d, nb_jv **out)
{
    nb_jv *keys, *order;
    NB_TRY(NB_JALLOC(r, &keys, d->n));
    NB_TRY(NB_JALLOC(r, &order, d->n));
    for (int64_t i = 0; i < d->n; i++) {
        keys[i] = d->entries[i].key;
        order[i] = nb_jv_int(i);
    }
    *out = order;
    return nb_jop_sort(r, keys, order, d->n, false);
}

static nb_status json_dict(nb_jrun *r, const nb_jdict *d, const nb_jjson_style *style, int level)
{
    if (d->n == 0)
        return emit_literal(r, "{}");
    nb_jv *order = NULL;
    if (style->sort_keys)
        NB_TRY(json_sorted(r, d, &order));
    NB_TRY(nb_jrun_emit_byte(r, '{'));
    for (int64_t i = 0; i < d->n; i++) {
        if (i > 0)
            NB_TRY(json_separator(r, style));
        NB_TRY(json_newline(r, style, level + 1));
        const struct nb_jentry *e = &d->entries[order == NULL ? i : order[i].i];
        NB_TRY(json_key(r, e->key, style));
        NB_TRY(style->colon.p != NULL ? nb_jrun_emit(r, style->colon) : emit_literal(r, ": "));
        NB_TRY(json_value(r, e->value, style, level + 1));
    }
    NB_TRY(json_newline(r, style, level));
    return nb_jrun_emit_byte(r, '}');
}

static nb_status json_value(nb_jrun *r, nb_jv v, const nb_jjson_style *style, int level)
{
    nb_status s;
    switch (v.kind) {
    case NB_JV_NONE:
        return emit_literal(r, "null");
    case NB_JV_BOOL:
        return emit_literal(r, v.b ? "true" : "false");
    case NB_JV_INT:
        return emit_int(r, v.i);
    case NB_JV_FLOAT:
        return emit_float(r, v.f, "NaN", "Infinity");
    case NB_JV_TEXT:
        return json_text(r, v.text, style->ensure_ascii);
    case NB_JV_LIST:
    case NB_JV_TUPLE:
        NB_TRY(nb_jrun_enter(r));
        s = json_items(r, v.list, style, level);
        nb_jrun_leave(r);
        return s;
    case NB_JV_DICT:
        NB_TRY(nb_jrun_enter(r));
        s = json_dict(r, v.dict, style, level);
        nb_jrun_leave(r);
        return s;
    default:
        return nb_jrun_fail(r, "Object of type %s is not JSON serializable", nb_jv_type(v));
    }
}

nb_status nb_jprint_json(nb_jrun *r, nb_jv v, const nb_jjson_style *style)
{
    return json_value(r, v, style, 0);
}
