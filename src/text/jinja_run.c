/* Budgets and messages of a render. See jinja_run.h. */
#include "text/jinja_run.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

nb_status nb_jrun_fail(nb_jrun *r, const char *format, ...)
{
    char text[900];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return nb_fail(r->err, NB_DATA, "%s", text);
}

nb_status nb_jrun_undefined(nb_jrun *r, nb_jv v)
{
    if (v.owner == NB_JV_ABSENT)
        return nb_jrun_fail(r, "'%.*s' is undefined", NB_JSHOW(v.text));
    if (v.owner == NB_JV_MACRO)
        return nb_jrun_fail(r, "parameter '%.*s' was not provided", NB_JSHOW(v.text));
    if (v.owner == NB_JV_LOOP)
        return nb_jrun_fail(r, "the loop has no '%.*s' here", NB_JSHOW(v.text));
    const char *type = nb_jv_type((nb_jv){.kind = v.owner});
    if (v.text.p == NULL)
        return nb_jrun_fail(r, "'%s object' has no such element", type);
    return nb_jrun_fail(r, "'%s%s' has no attribute '%.*s'", v.owner == NB_JV_NONE ? "None" : type,
                        v.owner == NB_JV_NONE ? "" : " object", NB_JSHOW(v.text));
}

nb_status nb_jrun_charge(nb_jrun *r, size_t bytes)
{
    r->steps_left -= 1 + (int64_t)(bytes / 64);
    if (r->steps_left < 0)
        return nb_fail(r->err, NB_LIMIT, "the template takes more than %lld steps",
                       (long long)r->max_steps);
    return NB_OK;
}

nb_status nb_jrun_enter(nb_jrun *r)
{
    if (r->depth >= NB_JINJA_MAX_DEPTH)
        return nb_fail(r->err, NB_LIMIT, "evaluation nests deeper than %d levels",
                       NB_JINJA_MAX_DEPTH);
    r->depth++;
    return NB_OK;
}

nb_status nb_jrun_alloc(nb_jrun *r, void **out, int64_t count, size_t size)
{
    const nb_status s = nb_arena_alloc(&r->arena, out, (size_t)count, size, r->err);
    if (s == NB_LIMIT)
        return nb_fail(r->err, NB_LIMIT, "the template needs more than %zu MiB of memory",
                       r->arena.limit >> 20);
    return s;
}

nb_status nb_jrun_emit(nb_jrun *r, nb_jspan text)
{
    NB_TRY(nb_jrun_charge(r, text.n));
    if (text.n > r->max_output - (r->out->len - r->out_base))
        return nb_fail(r->err, NB_LIMIT, "the template renders more than %zu bytes", r->max_output);
    return nb_buf_put(r->out, text.p, text.n, r->err);
}

nb_status nb_jrun_take(nb_jrun *r, size_t mark, nb_jv *out)
{
    const size_t n = r->out->len - mark;
    char *text;
    NB_TRY(nb_jrun_charge(r, n));
    NB_TRY(NB_JALLOC(r, &text, (int64_t)n));
    if (n > 0)
        memcpy(text, r->out->data + mark, n);
    r->out->len = mark;
    *out = nb_jv_text((nb_jspan){text, n});
    return NB_OK;
}

nb_status nb_jv_to_text(nb_jrun *r, nb_jv v, nb_jspan *out)
{
    if (v.kind != NB_JV_TEXT) {
        const size_t mark = nb_jrun_mark(r);
        NB_TRY(nb_jprint_str(r, v));
        NB_TRY(nb_jrun_take(r, mark, &v));
    }
    *out = v.text;
    return NB_OK;
}
