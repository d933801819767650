/* Statements, macros, and the render itself. See jinja.h and jinja_exec.h. */
#include "text/jinja_exec.h"

#include <assert.h>
#include <string.h>

#define DEFAULT_STEPS  INT64_C(10000000)
#define DEFAULT_OUTPUT ((size_t)16 << 20)
#define WORK_MEMORY    ((size_t)24 << 20)

static nb_status exec_body(nb_jrun *r, const nb_jnode *body);

static nb_status push_frame(nb_jrun *r, nb_jframe *parent)
{
    nb_jframe *frame;
    NB_TRY(NB_JALLOC(r, &frame, 1));
    frame->parent = parent;
    r->frame = frame;
    return NB_OK;
}

static nb_status exec_scoped(nb_jrun *r, const nb_jnode *body)
{
    nb_jframe *outer = r->frame;
    NB_TRY(push_frame(r, outer));
    NB_TRY(exec_body(r, body));
    r->frame = outer;
    return NB_OK;
}

static nb_status assign(nb_jrun *r, const nb_jnode *target, nb_jv value);

static nb_status assign_tuple(nb_jrun *r, const nb_jnode *target, nb_jv value)
{
    nb_jlist items;
    NB_TRY(nb_jv_iterate(r, value, &items));
    if (items.n != target->n_list)
        return nb_jrun_fail(r, "%s values to unpack (expected %d, got %lld)",
                            items.n < target->n_list ? "not enough" : "too many",
                            (int)target->n_list, (long long)items.n);
    int64_t i = 0;
    for (const nb_jnode *t = target->list; t != NULL; t = t->next)
        NB_TRY(assign(r, t, items.items[i++]));
    return NB_OK;
}

static nb_status assign_attribute(nb_jrun *r, const nb_jnode *target, nb_jv value)
{
    nb_jv object;
    NB_TRY(nb_jinja_eval(r, target->a, &object));
    if (object.kind != NB_JV_NAMESPACE)
        return nb_jrun_fail(r, "cannot assign attribute on non-namespace object");
    if (nb_jtext_starts(target->text, NB_JSPAN("_")))
        return nb_jrun_fail(r, "a namespace has no attributes that begin with an underscore");
    return nb_jdict_put(r, object.dict, nb_jv_text(target->text), value);
}

static nb_status assign(nb_jrun *r, const nb_jnode *target, nb_jv value)
{
    if (target->kind == NB_JN_TUPLE)
        return assign_tuple(r, target, value);
    if (target->kind == NB_JN_ATTR)
        return assign_attribute(r, target, value);
    return nb_jframe_set(r, target->text, value);
}

static nb_status exec_if(nb_jrun *r, const nb_jnode *n)
{
    for (; n != NULL; n = n->b) {
        nb_jv condition;
        NB_TRY(nb_jinja_eval(r, n->a, &condition));
        if (nb_jv_truth(condition))
            return exec_body(r, n->body);
        if (n->b == NULL)
            return exec_body(r, n->other);
    }
    return NB_OK;
}

/* The items for which the loop's condition holds. */
static nb_status select_items(nb_jrun *r, const nb_jnode *n, nb_jlist *items)
{
    nb_jlist kept = {0};
    for (int64_t i = 0; i < items->n; i++) {
        nb_jv holds;
        NB_TRY(assign(r, n->a, items->items[i]));
        NB_TRY(nb_jinja_eval(r, n->c, &holds));
        if (nb_jv_truth(holds))
            NB_TRY(nb_jlist_push(r, &kept, items->items[i]));
    }
    *items = kept;
    return NB_OK;
}

static nb_status exec_iterations(nb_jrun *r, const nb_jnode *n, nb_jloop *loop)
{
    NB_TRY(nb_jframe_set(r, NB_JSPAN("loop"), (nb_jv){.kind = NB_JV_LOOP, .loop = loop}));
    nb_jvar *own = NULL; /* the loop's variables; what the body sets is dropped at each turn */
    for (; loop->index < loop->items.n; loop->index++) {
        NB_TRY(nb_jrun_charge(r, 0));
        NB_TRY(assign(r, n->a, loop->items.items[loop->index]));
        if (own == NULL)
            own = r->frame->vars;
        NB_TRY(exec_body(r, n->body));
        r->frame->vars = own;
        const bool stop = r->flow == NB_JFLOW_BREAK;
        r->flow = NB_JFLOW_ON;
        if (stop)
            break;
    }
    return NB_OK;
}

static nb_status exec_for(nb_jrun *r, const nb_jnode *n)
{
    nb_jv over;
    nb_jloop *loop;
    nb_jframe *outer = r->frame;
    NB_TRY(nb_jinja_eval(r, n->b, &over));
    NB_TRY(NB_JALLOC(r, &loop, 1));
    NB_TRY(NB_JALLOC(r, &loop->changed, 1));
    NB_TRY(nb_jv_iterate(r, over, &loop->items));
    if (n->c != NULL) {
        NB_TRY(push_frame(r, outer));
        NB_TRY(select_items(r, n, &loop->items));
    }
    NB_TRY(push_frame(r, outer));
    if (loop->items.n > 0)
        NB_TRY(exec_iterations(r, n, loop));
    else
        NB_TRY(exec_body(r, n->other));
    r->frame = outer;
    return NB_OK;
}

/* Renders a body of its own scope into a text, and through filters if there are any. */
static nb_status capture(nb_jrun *r, const nb_jnode *body, const nb_jnode *filters, nb_jv *out)
{
    const size_t mark = nb_jrun_mark(r);
    NB_TRY(exec_scoped(r, body));
    NB_TRY(nb_jrun_take(r, mark, out));
    if (filters == NULL)
        return NB_OK;
    r->block_text = *out;
    return nb_jinja_eval(r, filters, out);
}

static nb_status exec_set(nb_jrun *r, const nb_jnode *n)
{
    nb_jv value;
    if (n->kind == NB_JN_SET)
        NB_TRY(nb_jinja_eval(r, n->b, &value));
    else
        NB_TRY(capture(r, n->body, n->b, &value));
    return assign(r, n->a, value);
}

static nb_status new_macro(nb_jrun *r, const nb_jnode *n, nb_jv *out)
{
    nb_jmacro *m;
    NB_TRY(NB_JALLOC(r, &m, 1));
    *m = (nb_jmacro){.node = n, .frame = r->frame};
    *out = (nb_jv){.kind = NB_JV_MACRO, .macro = m};
    return NB_OK;
}

static nb_status exec_call_block(nb_jrun *r, const nb_jnode *n)
{
    nb_jv caller, value;
    NB_TRY(new_macro(r, n->b, &caller));
    NB_TRY(nb_jinja_eval_call(r, n->a, &caller, &value));
    return nb_jprint_str(r, value);
}

static nb_status exec_with(nb_jrun *r, const nb_jnode *n)
{
    /* The values are those outside: none sees another. */
    nb_jframe *outer = r->frame;
    NB_TRY(push_frame(r, outer));
    nb_jframe *inner = r->frame;
    for (const nb_jnode *set = n->list; set != NULL; set = set->next) {
        nb_jv value;
        r->frame = outer;
        NB_TRY(nb_jinja_eval(r, set->b, &value));
        r->frame = inner;
        NB_TRY(assign(r, set->a, value));
    }
    NB_TRY(exec_body(r, n->body));
    r->frame = outer;
    return NB_OK;
}

static nb_status exec_kind(nb_jrun *r, const nb_jnode *n)
{
    nb_jv value;
    switch (n->kind) {
    case NB_JN_DATA:
        return nb_jrun_emit(r, n->text);
    case NB_JN_PRINT:
        NB_TRY(nb_jinja_eval(r, n->a, &value));
        return nb_jprint_str(r, value);
    case NB_JN_IF:
        return exec_if(r, n);
    case NB_JN_FOR:
        return exec_for(r, n);
    case NB_JN_SET:
    case NB_JN_SET_BLOCK:
        return exec_set(r, n);
    case NB_JN_MACRO:
        NB_TRY(new_macro(r, n, &value));
        return nb_jframe_set(r, n->text, value);
    case NB_JN_CALL_BLOCK:
        return exec_call_block(r, n);
    case NB_JN_FILTER_BLOCK:
        NB_TRY(capture(r, n->body, n->b, &value));
        return nb_jprint_str(r, value);
    case NB_JN_WITH:
        return exec_with(r, n);
    case NB_JN_SCOPE:
        return exec_scoped(r, n->body);
    case NB_JN_BREAK:
        r->flow = NB_JFLOW_BREAK;
        return NB_OK;
    case NB_JN_CONTINUE:
        r->flow = NB_JFLOW_CONTINUE;
        return NB_OK;
    default:
        return nb_jrun_fail(r, "this is not a statement");
    }
}

static nb_status exec_body(nb_jrun *r, const nb_jnode *body)
{
    NB_TRY(nb_jrun_enter(r));
    for (const nb_jnode *n = body; n != NULL && r->flow == NB_JFLOW_ON; n = n->next) {
        NB_TRY(nb_jrun_charge(r, 0));
        r->line = n->line;
        NB_TRY(exec_kind(r, n));
    }
    nb_jrun_leave(r);
    return NB_OK;
}

/* ---- macros ---- */

static const nb_jnode *parameter_named(const nb_jnode *macro, nb_jspan name)
{
    for (const nb_jnode *p = macro->list; p != NULL; p = p->next)
        if (nb_jspan_equal(p->text, name))
            return p;
    return NULL;
}

static const nb_jvar *own_variable(const nb_jrun *r, nb_jspan name)
{
    for (const nb_jvar *v = r->frame->vars; v != NULL; v = v->next)
        if (nb_jspan_equal(v->name, name))
            return v;
    return NULL;
}

/* Gives one argument to the macro's new scope, or to varargs or kwargs. */
static nb_status bind_argument(nb_jrun *r, const nb_jnode *macro, const nb_jarg *arg,
                               const nb_jnode **positional, nb_jlist *varargs, nb_jdict *kwargs)
{
    if (arg->name.p == NULL) {
        const nb_jnode *p = *positional;
        if (p != NULL) {
            *positional = p->next;
            return nb_jframe_set(r, p->text, arg->value);
        }
        if (macro->in_use[0])
            return nb_jlist_push(r, varargs, arg->value);
        return nb_jrun_fail(r, "macro '%.*s' takes not more than %d argument(s)",
                            NB_JSHOW(macro->text), (int)macro->n_list);
    }
    if (parameter_named(macro, arg->name) != NULL) {
        if (own_variable(r, arg->name) != NULL)
            return nb_jrun_fail(r, "macro '%.*s' got two values for '%.*s'", NB_JSHOW(macro->text),
                                NB_JSHOW(arg->name));
        return nb_jframe_set(r, arg->name, arg->value);
    }
    if (macro->in_use[2] && nb_jspan_equal(arg->name, NB_JSPAN("caller")))
        return nb_jframe_set(r, arg->name, arg->value);
    if (macro->in_use[1])
        return nb_jdict_put(r, kwargs, nb_jv_text(arg->name), arg->value);
    return nb_jrun_fail(r, "macro '%.*s' takes no keyword argument '%.*s'", NB_JSHOW(macro->text),
                        NB_JSHOW(arg->name));
}

static nb_status bind_arguments(nb_jrun *r, const nb_jnode *macro, const nb_jargs *args)
{
    nb_jv varargs, kwargs;
    const nb_jnode *positional = macro->list;
    NB_TRY(nb_jlist_new(r, NB_JV_TUPLE, 0, &varargs));
    NB_TRY(nb_jdict_new(r, NB_JV_DICT, &kwargs));
    for (int i = 0; i < args->n; i++)
        NB_TRY(bind_argument(r, macro, &args->items[i], &positional, varargs.list, kwargs.dict));
    for (const nb_jnode *p = macro->list; p != NULL; p = p->next) {
        if (own_variable(r, p->text) != NULL)
            continue;
        nb_jv value = nb_jv_undefined(NB_JV_MACRO, p->text);
        if (p->a != NULL)
            NB_TRY(nb_jinja_eval(r, p->a, &value));
        NB_TRY(nb_jframe_set(r, p->text, value));
    }
    if (macro->in_use[0])
        NB_TRY(nb_jframe_set(r, NB_JSPAN("varargs"), varargs));
    if (macro->in_use[1])
        NB_TRY(nb_jframe_set(r, NB_JSPAN("kwargs"), kwargs));
    if (macro->in_use[2] && own_variable(r, NB_JSPAN("caller")) == NULL)
        NB_TRY(nb_jframe_set(r, NB_JSPAN("caller"),
                             nb_jv_undefined(NB_JV_ABSENT, NB_JSPAN("caller"))));
    return NB_OK;
}

nb_status nb_jmacro_call(nb_jrun *r, const nb_jmacro *m, const nb_jargs *args, nb_jv *out)
{
    nb_jframe *outer = r->frame;
    const int32_t line = r->line;
    NB_TRY(push_frame(r, m->frame));
    NB_TRY(bind_arguments(r, m->node, args));
    const size_t mark = nb_jrun_mark(r);
    NB_TRY(exec_body(r, m->node->body));
    if (r->flow != NB_JFLOW_ON)
        return nb_jrun_fail(r, "break or continue outside of a loop");
    NB_TRY(nb_jrun_take(r, mark, out));
    r->frame = outer;
    r->line = line;
    return NB_OK;
}

/* ---- the render ---- */

static nb_status render(nb_jrun *r, const nb_jinja *t, const json_t *context)
{
    nb_jv variables;
    NB_TRY(nb_jv_from_json(r, context, &variables));
    assert(variables.kind == NB_JV_DICT);
    r->context = variables.dict;
    /* What it may use beyond the context itself grows with the texts that it is given: a few
     * copies of a long conversation are normal. */
    r->arena.limit = r->arena.used + WORK_MEMORY + 16 * r->text_bytes;
    if (r->max_output == 0)
        r->max_output = DEFAULT_OUTPUT + 4 * r->text_bytes;
    NB_TRY(push_frame(r, NULL));
    NB_TRY(exec_body(r, t->body));
    if (r->flow != NB_JFLOW_ON)
        return nb_jrun_fail(r, "break or continue outside of a loop");
    return NB_OK;
}

nb_status nb_jinja_render(const nb_jinja *t, const json_t *context, const nb_jinja_limits *limits,
                          nb_buf *out, nb_err *err)
{
    if (t->refusal.status != NB_OK) {
        *err = t->refusal;
        return nb_context(err, "chat template");
    }
    const nb_jinja_limits none = {0};
    const nb_jinja_limits *l = limits == NULL ? &none : limits;
    const int64_t steps = l->max_steps > 0 ? l->max_steps : DEFAULT_STEPS;
    nb_jrun r = {
        .out = out,
        .out_base = out->len,
        .max_output = l->max_output,
        .steps_left = steps,
        .max_steps = steps,
        .now = l->now,
        .err = err,
    };
    const nb_status s = render(&r, t, context);
    nb_arena_free(&r.arena);
    if (s == NB_OK)
        return NB_OK;
    out->len = r.out_base;
    return r.raised ? s : nb_context(err, "chat template: line %d", (int)r.line);
}
