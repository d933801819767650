/* Calling what is built in: binding of arguments, global functions, {{ loop }}. See
 * jinja_builtin.h. */
#define _GNU_SOURCE
#include "text/jinja_builtin.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

const nb_jbuiltin *nb_jbuiltin_in(const nb_jbuiltin *table, size_t n, nb_jspan name)
{
    for (size_t i = 0; i < n; i++)
        if (nb_jspan_equal(name, (nb_jspan){table[i].name, strlen(table[i].name)}))
            return &table[i];
    return NULL;
}

static int param_named(const nb_jbuiltin *b, nb_jspan name)
{
    for (int i = 0; i < NB_JMAX_PARAMS && b->params[i] != NULL; i++)
        if (nb_jspan_equal(name, (nb_jspan){b->params[i], strlen(b->params[i])}))
            return i;
    return -1;
}

nb_status nb_jbuiltin_call(nb_jrun *r, const nb_jbuiltin *b, nb_jv self, const nb_jargs *args,
                           nb_jv *out)
{
    nb_jv bound[NB_JMAX_PARAMS] = {{0}};
    int n_params = 0;
    while (n_params < NB_JMAX_PARAMS && b->params[n_params] != NULL)
        n_params++;
    NB_TRY(nb_jrun_charge(r, (size_t)args->n * 64));
    for (int i = 0; i < args->n; i++) {
        const nb_jarg *arg = &args->items[i];
        const int at = arg->name.p == NULL ? i : param_named(b, arg->name);
        if (at >= 0 && at < n_params && bound[at].kind == NB_JV_ABSENT)
            bound[at] = arg->value;
        else if (b->open)
            continue;
        else if (arg->name.p == NULL)
            return nb_jrun_fail(r, "%s() takes at most %d arguments", b->name, n_params);
        else
            return nb_jrun_fail(r, "%s() takes no argument '%.*s' here", b->name,
                                NB_JSHOW(arg->name));
    }
    for (int i = 0; i < b->n_required; i++)
        if (bound[i].kind == NB_JV_ABSENT)
            return nb_jrun_fail(r, "%s() is missing its argument '%s'", b->name, b->params[i]);
    return b->call(r, self, bound, args, out);
}

nb_status nb_jinja_call(nb_jrun *r, nb_jv callee, const nb_jargs *args, nb_jv *out)
{
    switch (callee.kind) {
    case NB_JV_MACRO:
        return nb_jmacro_call(r, callee.macro, args, out);
    case NB_JV_FUNCTION:
        return nb_jbuiltin_call(r, callee.function, nb_jv_none(), args, out);
    case NB_JV_METHOD:
        return nb_jbuiltin_call(r, callee.method->builtin, callee.method->self, args, out);
    case NB_JV_UNDEFINED:
        return nb_jrun_undefined(r, callee);
    default:
        return nb_jrun_fail(r, "'%s' object is not callable", nb_jv_type(callee));
    }
}

nb_status nb_jarg_int(nb_jrun *r, nb_jv arg, const char *what, int64_t absent, int64_t *out)
{
    *out = absent;
    if (arg.kind == NB_JV_ABSENT || nb_jv_is_int(arg, out))
        return NB_OK;
    return nb_jrun_fail(r, "%s: an integer is expected, not '%s'", what, nb_jv_type(arg));
}

nb_status nb_jarg_text(nb_jrun *r, nb_jv arg, const char *what, nb_jspan absent, nb_jspan *out)
{
    *out = absent;
    if (arg.kind == NB_JV_ABSENT)
        return NB_OK;
    *out = arg.text;
    if (arg.kind == NB_JV_TEXT)
        return NB_OK;
    return nb_jrun_fail(r, "%s: a string is expected, not '%s'", what, nb_jv_type(arg));
}

/* ---- global functions ---- */

#define BUILTIN(function)                                                                          \
    static nb_status function(nb_jrun *r, nb_jv self, const nb_jv *arg, const nb_jargs *all,       \
                              nb_jv *out)

BUILTIN(global_range)
{
    (void)self;
    int64_t begin = 0, end, step;
    NB_TRY(nb_jarg_int(r, arg[0], "range", 0, &end));
    if (all->n > 1) {
        begin = end;
        NB_TRY(nb_jarg_int(r, arg[1], "range", 0, &end));
    }
    NB_TRY(nb_jarg_int(r, arg[2], "range", 1, &step));
    if (step == 0)
        return nb_jrun_fail(r, "range() arg 3 must not be zero");
    const __int128 span = step > 0 ? (__int128)end - begin : (__int128)begin - end;
    const __int128 stride = step > 0 ? (__int128)step : -(__int128)step;
    const __int128 n = span <= 0 ? 0 : (span + stride - 1) / stride;
    if (n > 100000)
        return nb_jrun_fail(r, "Range too big: at most 100000 numbers");
    NB_TRY(nb_jrun_charge(r, (size_t)n * sizeof(nb_jv)));
    NB_TRY(nb_jlist_new(r, NB_JV_LIST, (int64_t)n, out));
    for (int64_t i = 0; i < (int64_t)n; i++)
        out->list->items[i] = nb_jv_int(begin + i * step);
    out->list->n = (int64_t)n;
    return NB_OK;
}

/* namespace(other, name=value ...) and dict(...): a copy of a dictionary, and names. */
static nb_status make_dict(nb_jrun *r, nb_jkind kind, const nb_jargs *all, nb_jv *out)
{
    NB_TRY(nb_jdict_new(r, kind, out));
    for (int i = 0; i < all->n; i++) {
        const nb_jarg *arg = &all->items[i];
        if (arg->name.p == NULL && (i > 0 || arg->value.kind != NB_JV_DICT))
            return nb_jrun_fail(r, "a dictionary or names with values are expected");
        if (arg->name.p == NULL) {
            const nb_jdict *from = arg->value.dict;
            for (int64_t k = 0; k < from->n; k++)
                NB_TRY(nb_jdict_put(r, out->dict, from->entries[k].key, from->entries[k].value));
            continue;
        }
        if (kind == NB_JV_NAMESPACE && nb_jtext_starts(arg->name, NB_JSPAN("_")))
            return nb_jrun_fail(r, "a namespace has no attributes that begin with an underscore");
        NB_TRY(nb_jdict_put(r, out->dict, nb_jv_text(arg->name), arg->value));
    }
    return NB_OK;
}

BUILTIN(global_namespace)
{
    (void)self, (void)arg;
    return make_dict(r, NB_JV_NAMESPACE, all, out);
}

BUILTIN(global_dict)
{
    (void)self, (void)arg;
    return make_dict(r, NB_JV_DICT, all, out);
}

BUILTIN(global_raise)
{
    (void)self, (void)all, (void)out;
    nb_jspan message;
    NB_TRY(nb_jv_to_text(r, arg[0], &message));
    if (message.n == 0)
        return nb_jrun_fail(r, "the template refuses this without a reason");
    r->raised = true;
    return nb_jrun_fail(r, "%.*s", message.n > 800 ? 800 : (int)message.n, message.p);
}

/* One conversion of strftime, in the C locale; NULL if it is not known. */
static const char *date_part(char code, const struct tm *t, char text[16])
{
    static const char *const DAYS[] = {"Sunday",   "Monday", "Tuesday", "Wednesday",
                                       "Thursday", "Friday", "Saturday"};
    static const char *const MONTHS[] = {"January",   "February", "March",    "April",
                                         "May",       "June",     "July",     "August",
                                         "September", "October",  "November", "December"};
    const int hour = t->tm_hour % 12 == 0 ? 12 : t->tm_hour % 12;
    const struct {
        char code;
        int value, width;
    } NUMBERS[] = {
        {'d', t->tm_mday, 2},
        {'m', t->tm_mon + 1, 2},
        {'y', t->tm_year % 100, 2},
        {'H', t->tm_hour, 2},
        {'I', hour, 2},
        {'M', t->tm_min, 2},
        {'S', t->tm_sec, 2},
        {'Y', t->tm_year + 1900, 4},
        {'j', t->tm_yday + 1, 3},
        {'w', t->tm_wday, 1},
    };
    for (size_t i = 0; i < sizeof NUMBERS / sizeof NUMBERS[0]; i++)
        if (NUMBERS[i].code == code) {
            snprintf(text, 16, "%0*d", NUMBERS[i].width, NUMBERS[i].value);
            return text;
        }
    switch (code) {
    case 'B':
        return MONTHS[t->tm_mon];
    case 'A':
        return DAYS[t->tm_wday];
    case 'b':
        snprintf(text, 16, "%.3s", MONTHS[t->tm_mon]);
        return text;
    case 'a':
        snprintf(text, 16, "%.3s", DAYS[t->tm_wday]);
        return text;
    case 'p':
        return t->tm_hour < 12 ? "AM" : "PM";
    case '%':
        return "%";
    default:
        return NULL;
    }
}

static nb_status format_date(nb_jrun *r, nb_jspan format, const struct tm *t)
{
    for (size_t i = 0; i < format.n; i++) {
        if (format.p[i] != '%' || i + 1 == format.n) {
            NB_TRY(nb_jrun_emit(r, (nb_jspan){format.p + i, 1}));
            continue;
        }
        const bool bare = format.p[i + 1] == '-' && i + 2 < format.n; /* without leading zeros */
        i += bare ? 2 : 1;
        char text[16];
        const char *part = date_part(format.p[i], t, text);
        if (part == NULL)
            return nb_jrun_fail(r, "strftime_now: the conversion '%%%c' is not supported",
                                format.p[i]);
        while (bare && part[0] == '0' && part[1] != 0)
            part++;
        NB_TRY(nb_jrun_emit(r, (nb_jspan){part, strlen(part)}));
    }
    return NB_OK;
}

BUILTIN(global_strftime_now)
{
    (void)self, (void)all;
    nb_jspan format;
    NB_TRY(nb_jarg_text(r, arg[0], "strftime_now", (nb_jspan){0}, &format));
    if (r->now != NULL) {
        *out = nb_jv_text((nb_jspan){r->now, strlen(r->now)});
        return NB_OK;
    }
    const time_t now = time(NULL);
    struct tm t = {0};
    if (localtime_r(&now, &t) == NULL)
        return nb_jrun_fail(r, "strftime_now: the clock shows no date");
    const size_t mark = nb_jrun_mark(r);
    NB_TRY(format_date(r, format, &t));
    return nb_jrun_take(r, mark, out);
}

const nb_jbuiltin *nb_jinja_global(nb_jspan name)
{
    static const nb_jbuiltin GLOBALS[] = {
        {"range", global_range, {"start", "stop", "step"}, 1, false},
        {"namespace", global_namespace, {0}, 0, true},
        {"dict", global_dict, {0}, 0, true},
        {"raise_exception", global_raise, {"message"}, 1, false},
        {"strftime_now", global_strftime_now, {"format"}, 1, false},
    };
    return nb_jbuiltin_in(GLOBALS, sizeof GLOBALS / sizeof GLOBALS[0], name);
}

/* ---- {{ loop }} ---- */

BUILTIN(loop_cycle)
{
    (void)arg;
    if (all->n == 0)
        return nb_jrun_fail(r, "no items for cycling given");
    *out = all->items[self.loop->index % all->n].value;
    return NB_OK;
}

BUILTIN(loop_changed)
{
    (void)arg;
    nb_jv now;
    bool same = false;
    NB_TRY(nb_jlist_new(r, NB_JV_TUPLE, all->n, &now));
    for (int i = 0; i < all->n; i++)
        NB_TRY(nb_jlist_push(r, now.list, all->items[i].value));
    if (self.loop->changed->kind == NB_JV_TUPLE)
        NB_TRY(nb_jv_equal(r, now, *self.loop->changed, &same));
    *self.loop->changed = now;
    *out = nb_jv_bool(!same);
    return NB_OK;
}

static const nb_jbuiltin LOOP_METHODS[] = {
    {"cycle", loop_cycle, {0}, 0, true},
    {"changed", loop_changed, {0}, 0, true},
};

nb_status nb_jloop_attribute(nb_jrun *r, const nb_jloop *loop, nb_jspan name, nb_jv *out)
{
    const int64_t i = loop->index, n = loop->items.n;
    const struct {
        const char *name;
        nb_jv value;
    } ATTRIBUTES[] = {
        {"index", nb_jv_int(i + 1)},
        {"index0", nb_jv_int(i)},
        {"revindex", nb_jv_int(n - i)},
        {"revindex0", nb_jv_int(n - i - 1)},
        {"first", nb_jv_bool(i == 0)},
        {"last", nb_jv_bool(i == n - 1)},
        {"length", nb_jv_int(n)},
        {"depth", nb_jv_int(1)},
        {"depth0", nb_jv_int(0)},
        {"previtem", i > 0 ? loop->items.items[i - 1] : nb_jv_undefined(NB_JV_LOOP, name)},
        {"nextitem", i + 1 < n ? loop->items.items[i + 1] : nb_jv_undefined(NB_JV_LOOP, name)},
    };
    for (size_t k = 0; k < sizeof ATTRIBUTES / sizeof ATTRIBUTES[0]; k++)
        if (nb_jspan_equal(name, (nb_jspan){ATTRIBUTES[k].name, strlen(ATTRIBUTES[k].name)})) {
            *out = ATTRIBUTES[k].value;
            return NB_OK;
        }
    const nb_jbuiltin *b =
        nb_jbuiltin_in(LOOP_METHODS, sizeof LOOP_METHODS / sizeof LOOP_METHODS[0], name);
    *out = nb_jv_undefined(NB_JV_LOOP, name);
    if (b == NULL)
        return NB_OK;
    nb_jmethod *m;
    NB_TRY(NB_JALLOC(r, &m, 1));
    *m = (nb_jmethod){.builtin = b, .self = {.kind = NB_JV_LOOP, .loop = loop}};
    *out = (nb_jv){.kind = NB_JV_METHOD, .method = m};
    return NB_OK;
}
