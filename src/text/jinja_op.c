/* Operators, attributes, indexes and slices, with Python's meaning. See jinja_run.h. */
#include "text/jinja_builtin.h"
#include "text/jinja_lex.h"
#include "text/jinja_ast.h"

#include <math.h>
#include <string.h>

static const char *op_name(uint16_t op)
{
    switch (op) {
    case '+':
        return "+";
    case '-':
        return "-";
    case '*':
        return "*";
    case '/':
        return "/";
    case '%':
        return "%";
    case '<':
        return "<";
    case '>':
        return ">";
    case NB_JOP2('/', '/'):
        return "//";
    case NB_JOP2('<', '='):
        return "<=";
    case NB_JOP2('>', '='):
        return ">=";
    default:
        return "** or pow()";
    }
}

static nb_status too_large(nb_jrun *r)
{
    return nb_jrun_fail(r, "an integer outside 64 bits");
}

/* ---- numbers ---- */

static nb_status int_power(nb_jrun *r, int64_t base, int64_t exponent, nb_jv *out)
{
    if (exponent < 0) {
        if (base == 0)
            return nb_jrun_fail(r, "0.0 cannot be raised to a negative power");
        double f = 1;
        for (int64_t e = exponent; e < 0 && f != 0 && base != 1 && base != -1; e++)
            f /= (double)base;
        *out = nb_jv_float(base == -1 && (exponent & 1) != 0 ? -1.0 : f);
        return NB_OK;
    }
    int64_t value = 1;
    while (exponent > 0) {
        if ((exponent & 1) != 0 && __builtin_mul_overflow(value, base, &value))
            return too_large(r);
        exponent >>= 1;
        if (exponent > 0 && __builtin_mul_overflow(base, base, &base))
            return too_large(r);
    }
    *out = nb_jv_int(value);
    return NB_OK;
}

/* Division rounds towards minus infinity, and the remainder has the divisor's sign. */
static nb_status int_divide(nb_jrun *r, bool remainder, int64_t a, int64_t b, nb_jv *out)
{
    if (b == 0)
        return nb_jrun_fail(r, "integer division or modulo by zero");
    if (b == -1) { /* INT64_MIN / -1 does not fit */
        if (!remainder && a == INT64_MIN)
            return too_large(r);
        *out = nb_jv_int(remainder ? 0 : -a);
        return NB_OK;
    }
    int64_t q = a / b, rest = a % b;
    if (rest != 0 && (rest < 0) != (b < 0)) {
        q--;
        rest += b;
    }
    *out = nb_jv_int(remainder ? rest : q);
    return NB_OK;
}

static nb_status int_op(nb_jrun *r, uint16_t op, int64_t a, int64_t b, nb_jv *out)
{
    int64_t v;
    switch (op) {
    case '+':
        if (__builtin_add_overflow(a, b, &v))
            return too_large(r);
        break;
    case '-':
        if (__builtin_sub_overflow(a, b, &v))
            return too_large(r);
        break;
    case '*':
        if (__builtin_mul_overflow(a, b, &v))
            return too_large(r);
        break;
    case '/':
        if (b == 0)
            return nb_jrun_fail(r, "division by zero");
        *out = nb_jv_float((double)a / (double)b);
        return NB_OK;
    case '%':
    case NB_JOP2('/', '/'):
        return int_divide(r, op == '%', a, b, out);
    default:
        return int_power(r, a, b, out);
    }
    *out = nb_jv_int(v);
    return NB_OK;
}

static nb_status float_op(nb_jrun *r, uint16_t op, double a, double b, nb_jv *out)
{
    double v;
    switch (op) {
    case '+':
        v = a + b;
        break;
    case '-':
        v = a - b;
        break;
    case '*':
        v = a * b;
        break;
    case '/':
    case '%':
    case NB_JOP2('/', '/'):
        if (b == 0)
            return nb_jrun_fail(r, op == '%' ? "float modulo" : "float division by zero");
        if (op == '/') {
            v = a / b;
            break;
        }
        v = fma(-floor(a / b), b, a);
        if (op != '%')
            v = floor(a / b);
        break;
    default:
        return nb_jrun_fail(r, "powers of numbers with a fraction are not supported");
    }
    *out = nb_jv_float(v);
    return NB_OK;
}

/* ---- texts and lists ---- */

static nb_status add_texts(nb_jrun *r, nb_jv a, nb_jv b, nb_jv *out)
{
    const size_t mark = nb_jrun_mark(r);
    const bool markup = a.markup || b.markup;
    NB_TRY(markup && !a.markup ? nb_jprint_escaped(r, a.text) : nb_jrun_emit(r, a.text));
    NB_TRY(markup && !b.markup ? nb_jprint_escaped(r, b.text) : nb_jrun_emit(r, b.text));
    NB_TRY(nb_jrun_take(r, mark, out));
    out->markup = markup;
    return NB_OK;
}

static nb_status add_lists(nb_jrun *r, nb_jv a, nb_jv b, nb_jv *out)
{
    const int64_t n = a.list->n + b.list->n;
    NB_TRY(nb_jrun_charge(r, (size_t)n * sizeof *a.list->items));
    NB_TRY(nb_jlist_new(r, a.kind, n, out));
    for (int64_t i = 0; i < n; i++)
        out->list->items[i] = i < a.list->n ? a.list->items[i] : b.list->items[i - a.list->n];
    out->list->n = n;
    return NB_OK;
}

static nb_status repeat(nb_jrun *r, nb_jv v, int64_t times, nb_jv *out)
{
    if (times < 0)
        times = 0;
    if (v.kind == NB_JV_TEXT) {
        const size_t mark = nb_jrun_mark(r);
        for (int64_t i = 0; i < times && v.text.n > 0; i++)
            NB_TRY(nb_jrun_emit(r, v.text));
        return nb_jrun_take(r, mark, out);
    }
    NB_TRY(nb_jlist_new(r, v.kind, 0, out));
    for (int64_t i = 0; i < times && v.list->n > 0; i++)
        for (int64_t k = 0; k < v.list->n; k++) {
            NB_TRY(nb_jrun_charge(r, 0));
            NB_TRY(nb_jlist_push(r, out->list, v.list->items[k]));
        }
    return NB_OK;
}

static bool is_sequence(nb_jv v)
{
    return v.kind == NB_JV_TEXT || v.kind == NB_JV_LIST || v.kind == NB_JV_TUPLE;
}

nb_status nb_jop_binary(nb_jrun *r, uint16_t op, nb_jv a, nb_jv b, nb_jv *out)
{
    int64_t i, k;
    double x, y;
    if (nb_jv_is_int(a, &i) && nb_jv_is_int(b, &k))
        return int_op(r, op, i, k, out);
    if (nb_jv_is_number(a, &x) && nb_jv_is_number(b, &y)) {
        if (op == NB_JOP2('*', '*') && nb_jv_is_int(b, &k) && k >= 0 && k < 1024) {
            double v = 1;
            while (k-- > 0)
                v *= x;
            *out = nb_jv_float(v);
            return NB_OK;
        }
        return float_op(r, op, x, y, out);
    }
    if (a.kind == NB_JV_UNDEFINED || b.kind == NB_JV_UNDEFINED)
        return nb_jrun_undefined(r, a.kind == NB_JV_UNDEFINED ? a : b);
    if (op == '+' && a.kind == NB_JV_TEXT && b.kind == NB_JV_TEXT)
        return add_texts(r, a, b, out);
    if (op == '+' && is_sequence(a) && a.kind == b.kind)
        return add_lists(r, a, b, out);
    if (op == '*' && is_sequence(a) && nb_jv_is_int(b, &k))
        return repeat(r, a, k, out);
    if (op == '*' && is_sequence(b) && nb_jv_is_int(a, &k))
        return repeat(r, b, k, out);
    if (op == '+' && is_sequence(a))
        return nb_jrun_fail(r, "can only concatenate %s (not \"%s\") to %s", nb_jv_type(a),
                            nb_jv_type(b), nb_jv_type(a));
    if (op == '%' && a.kind == NB_JV_TEXT)
        return nb_jrun_fail(r, "formatting with %% is not supported");
    return nb_jrun_fail(r, "unsupported operand type(s) for %s: '%s' and '%s'", op_name(op),
                        nb_jv_type(a), nb_jv_type(b));
}

nb_status nb_jop_unary(nb_jrun *r, uint16_t op, nb_jv a, nb_jv *out)
{
    int64_t i;
    if (nb_jv_is_int(a, &i)) {
        if (op == '-' && i == INT64_MIN)
            return too_large(r);
        *out = nb_jv_int(op == '-' ? -i : i);
        return NB_OK;
    }
    if (a.kind == NB_JV_FLOAT) {
        *out = nb_jv_float(op == '-' ? -a.f : a.f);
        return NB_OK;
    }
    if (a.kind == NB_JV_UNDEFINED)
        return nb_jrun_undefined(r, a);
    return nb_jrun_fail(r, "bad operand type for unary %s: '%s'", op_name(op), nb_jv_type(a));
}

nb_status nb_jop_compare(nb_jrun *r, uint16_t op, nb_jv a, nb_jv b, bool *out)
{
    if (op == NB_JOP2('=', '=') || op == NB_JOP2('!', '=')) {
        NB_TRY(nb_jv_equal(r, a, b, out));
        *out = *out == (op == NB_JOP2('=', '='));
        return NB_OK;
    }
    if (op == NB_JIN || op == NB_JNOTIN) {
        NB_TRY(nb_jv_contains(r, b, a, out));
        *out = *out == (op == NB_JIN);
        return NB_OK;
    }
    int order;
    double x, y;
    NB_TRY(nb_jv_order(r, a, b, op_name(op), &order));
    const bool nan = nb_jv_is_number(a, &x) && nb_jv_is_number(b, &y) && (isnan(x) || isnan(y));
    *out = !nan && (op == '<'                 ? order < 0
                    : op == '>'               ? order > 0
                    : op == NB_JOP2('<', '=') ? order <= 0
                                              : order >= 0);
    return NB_OK;
}

/* ---- inside a value ---- */

static bool method_of(nb_jrun *r, nb_jv v, nb_jspan name, nb_jv *out, nb_status *s)
{
    const nb_jbuiltin *b = nb_jinja_method(v.kind, name);
    if (b == NULL)
        return false;
    nb_jmethod *m;
    *s = NB_JALLOC(r, &m, 1);
    if (*s == NB_OK) {
        *m = (nb_jmethod){.builtin = b, .self = v};
        *out = (nb_jv){.kind = NB_JV_METHOD, .method = m};
    }
    return true;
}

static bool key_of(nb_jrun *r, nb_jv v, nb_jv key, nb_jv *out)
{
    const nb_jv *found = nb_jdict_find(r, v.dict, key);
    if (found != NULL)
        *out = *found;
    return found != NULL;
}

nb_status nb_jop_attribute(nb_jrun *r, nb_jv v, nb_jspan name, nb_jv *out)
{
    nb_status s = NB_OK;
    if (v.kind == NB_JV_UNDEFINED)
        return nb_jrun_undefined(r, v);
    if (v.kind == NB_JV_LOOP)
        return nb_jloop_attribute(r, v.loop, name, out);
    if (v.kind != NB_JV_NAMESPACE && method_of(r, v, name, out, &s))
        return s;
    if ((v.kind == NB_JV_DICT || v.kind == NB_JV_NAMESPACE) && key_of(r, v, nb_jv_text(name), out))
        return NB_OK;
    /* What would be an attribute of the host's object in Python exists here for nobody. */
    if (nb_jtext_starts(name, NB_JSPAN("_")))
        return nb_jrun_fail(r, "access to attribute '%.*s' of '%s' object is unsafe.",
                            NB_JSHOW(name), nb_jv_type(v));
    *out = nb_jv_undefined(v.kind, name);
    return NB_OK;
}

static nb_status code_point_at(nb_jrun *r, nb_jv v, int64_t index, nb_jv *out)
{
    if (index < 0) {
        int64_t n;
        NB_TRY(nb_jv_length(r, v, &n));
        index += n;
    }
    NB_TRY(nb_jrun_charge(r, v.text.n));
    const size_t at = index < 0 ? v.text.n : nb_jtext_offset(v.text, index);
    uint32_t cp;
    if (at >= v.text.n)
        *out = nb_jv_undefined(v.kind, (nb_jspan){0});
    else
        *out = nb_jv_text(
            (nb_jspan){v.text.p + at, nb_jtext_decode(v.text.p + at, v.text.n - at, &cp)});
    return NB_OK;
}

nb_status nb_jop_item(nb_jrun *r, nb_jv v, nb_jv index, nb_jv *out)
{
    int64_t i;
    if (v.kind == NB_JV_UNDEFINED)
        return nb_jrun_undefined(r, v);
    if (index.kind == NB_JV_UNDEFINED && v.kind != NB_JV_DICT) {
        *out = nb_jv_undefined(v.kind, (nb_jspan){0});
        return NB_OK;
    }
    if ((v.kind == NB_JV_LIST || v.kind == NB_JV_TUPLE) && nb_jv_is_int(index, &i)) {
        i += i < 0 ? v.list->n : 0;
        *out = i >= 0 && i < v.list->n ? v.list->items[i] : nb_jv_undefined(v.kind, (nb_jspan){0});
        return NB_OK;
    }
    if (v.kind == NB_JV_TEXT && nb_jv_is_int(index, &i))
        return code_point_at(r, v, i, out);
    if (v.kind == NB_JV_DICT && key_of(r, v, index, out))
        return NB_OK;
    if (index.kind == NB_JV_TEXT)
        return nb_jop_attribute(r, v, index.text, out);
    *out = nb_jv_undefined(v.kind, (nb_jspan){0});
    return NB_OK;
}

/* One bound of a slice, counted from the end if negative, then clamped to [low, high]. */
static nb_status slice_bound(nb_jrun *r, nb_jv v, int64_t n, int64_t absent, int64_t low,
                             int64_t high, int64_t *out)
{
    *out = absent;
    if (v.kind == NB_JV_ABSENT || v.kind == NB_JV_NONE)
        return NB_OK;
    if (v.kind == NB_JV_UNDEFINED)
        return nb_jrun_undefined(r, v);
    if (!nb_jv_is_int(v, out))
        return nb_jrun_fail(r, "slice indices must be integers or None");
    if (*out < 0)
        *out += n;
    *out = *out < low ? low : *out > high ? high : *out;
    return NB_OK;
}

static nb_status slice_text(nb_jrun *r, nb_jv v, int64_t begin, int64_t step, int64_t count,
                            nb_jv *out)
{
    if (step == 1 || count == 0) {
        const size_t from = nb_jtext_offset(v.text, begin);
        const nb_jspan rest = {v.text.p + from, v.text.n - from};
        *out = nb_jv_text((nb_jspan){rest.p, nb_jtext_offset(rest, count)});
        return NB_OK;
    }
    nb_jlist points;
    NB_TRY(nb_jv_iterate(r, v, &points));
    const size_t mark = nb_jrun_mark(r);
    for (int64_t i = 0; i < count; i++)
        NB_TRY(nb_jrun_emit(r, points.items[begin + i * step].text));
    return nb_jrun_take(r, mark, out);
}

nb_status nb_jop_slice(nb_jrun *r, nb_jv v, nb_jv begin, nb_jv end, nb_jv step, nb_jv *out)
{
    if (v.kind == NB_JV_UNDEFINED)
        return nb_jrun_undefined(r, v);
    if (!is_sequence(v))
        return nb_jrun_fail(r, "'%s' object cannot be sliced", nb_jv_type(v));
    int64_t n, by = 1, from, to;
    NB_TRY(nb_jv_length(r, v, &n));
    if (step.kind != NB_JV_ABSENT && step.kind != NB_JV_NONE && !nb_jv_is_int(step, &by))
        return nb_jrun_fail(r, "slice indices must be integers or None");
    if (by == 0)
        return nb_jrun_fail(r, "slice step cannot be zero");
    /* A step that passes over the whole sequence meets one item, whatever its size. */
    by = by > n + 1 ? n + 1 : by < -n - 1 ? -n - 1 : by;
    const int64_t low = by > 0 ? 0 : -1, high = by > 0 ? n : n - 1;
    NB_TRY(slice_bound(r, begin, n, by > 0 ? 0 : n - 1, low, high, &from));
    NB_TRY(slice_bound(r, end, n, by > 0 ? n : -1, low, high, &to));
    int64_t count = 0;
    if (by > 0 && from < to)
        count = (to - from + by - 1) / by;
    if (by < 0 && from > to)
        count = (from - to - by - 1) / -by;
    NB_TRY(nb_jrun_charge(r, (size_t)count));
    if (v.kind == NB_JV_TEXT)
        return slice_text(r, v, from < 0 ? 0 : from, by, count, out);
    NB_TRY(nb_jlist_new(r, v.kind, count, out));
    for (int64_t i = 0; i < count; i++)
        out->list->items[i] = v.list->items[from + i * by];
    out->list->n = count;
    return NB_OK;
}

nb_status nb_jop_path(nb_jrun *r, nb_jv v, nb_jv path, nb_jv *out)
{
    *out = v;
    if (path.kind != NB_JV_TEXT)
        return nb_jop_item(r, v, path, out);
    nb_jspan rest = path.text;
    for (bool last = false; !last;) {
        const int64_t dot = nb_jtext_find(rest, NB_JSPAN("."));
        last = dot < 0;
        const nb_jspan part = {rest.p, last ? rest.n : (size_t)dot};
        if (!last)
            rest = (nb_jspan){rest.p + dot + 1, rest.n - (size_t)dot - 1};
        bool digits = part.n > 0 && part.n < 18;
        for (size_t i = 0; i < part.n; i++)
            digits = digits && part.p[i] >= '0' && part.p[i] <= '9';
        nb_jv key = nb_jv_text(part);
        if (digits)
            nb_jv_parse_number(part, false, &key);
        NB_TRY(nb_jop_item(r, *out, key, out));
    }
    return NB_OK;
}

/* ---- sorting ---- */

/* Merges the sorted halves of [0, n) of `order` through `spare`. */
static nb_status merge(nb_jrun *r, const nb_jv *keys, bool reverse, int64_t *order, int64_t middle,
                       int64_t n, int64_t *spare)
{
    memcpy(spare, order, (size_t)n * sizeof *order);
    int64_t a = 0, b = middle;
    for (int64_t i = 0; i < n; i++) {
        bool take_b = a == middle;
        if (a < middle && b < n) {
            int c;
            NB_TRY(nb_jrun_charge(r, 0));
            NB_TRY(nb_jv_order(r, keys[spare[b]], keys[spare[a]], "<", &c));
            take_b = reverse ? c > 0 : c < 0;
        }
        order[i] = take_b ? spare[b++] : spare[a++];
    }
    return NB_OK;
}

nb_status nb_jop_sort(nb_jrun *r, nb_jv *keys, nb_jv *items, int64_t n, bool reverse)
{
    int64_t *order, *spare;
    nb_jv *sorted;
    NB_TRY(NB_JALLOC(r, &order, n));
    NB_TRY(NB_JALLOC(r, &spare, n));
    NB_TRY(NB_JALLOC(r, &sorted, n));
    for (int64_t i = 0; i < n; i++)
        order[i] = i;
    for (int64_t width = 1; width < n; width *= 2)
        for (int64_t at = 0; at + width < n; at += 2 * width) {
            const int64_t both = at + 2 * width < n ? 2 * width : n - at;
            NB_TRY(merge(r, keys, reverse, order + at, width, both, spare));
        }
    for (int64_t i = 0; i < n; i++)
        sorted[i] = items[order[i]];
    if (n > 0)
        memcpy(items, sorted, (size_t)n * sizeof *items);
    return NB_OK;
}
