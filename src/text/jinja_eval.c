/* Expressions: from nodes to values. See jinja_ast.h and jinja_exec.h. */
#include "text/jinja_exec.h"

#include <string.h>

nb_status nb_jframe_set(nb_jrun *r, nb_jspan name, nb_jv value)
{
    for (nb_jvar *v = r->frame->vars; v != NULL; v = v->next)
        if (nb_jspan_equal(v->name, name)) {
            v->value = value;
            return NB_OK;
        }
    nb_jvar *v;
    NB_TRY(NB_JALLOC(r, &v, 1));
    *v = (nb_jvar){.next = r->frame->vars, .name = name, .value = value};
    r->frame->vars = v;
    return NB_OK;
}

/* Scopes from the inside out, then the context, then what is built in. */
static nb_status lookup(nb_jrun *r, nb_jspan name, nb_jv *out)
{
    for (const nb_jframe *f = r->frame; f != NULL; f = f->parent) {
        NB_TRY(nb_jrun_charge(r, 0));
        for (const nb_jvar *v = f->vars; v != NULL; v = v->next)
            if (nb_jspan_equal(v->name, name)) {
                *out = v->value;
                return NB_OK;
            }
    }
    const nb_jv *found = nb_jdict_find(r, r->context, nb_jv_text(name));
    const nb_jbuiltin *global = nb_jinja_global(name);
    if (found != NULL)
        *out = *found;
    else if (global != NULL)
        *out = (nb_jv){.kind = NB_JV_FUNCTION, .function = global};
    else
        *out = nb_jv_undefined(NB_JV_ABSENT, name);
    return NB_OK;
}

static nb_status eval_items(nb_jrun *r, const nb_jnode *n, nb_jv *out)
{
    NB_TRY(nb_jlist_new(r, n->kind == NB_JN_TUPLE ? NB_JV_TUPLE : NB_JV_LIST, n->n_list, out));
    for (const nb_jnode *item = n->list; item != NULL; item = item->next) {
        NB_TRY(nb_jinja_eval(r, item, &out->list->items[out->list->n]));
        out->list->n++;
    }
    return NB_OK;
}

static nb_status eval_dict(nb_jrun *r, const nb_jnode *n, nb_jv *out)
{
    NB_TRY(nb_jdict_new(r, NB_JV_DICT, out));
    for (const nb_jnode *key = n->list; key != NULL; key = key->next->next) {
        nb_jv k, v;
        NB_TRY(nb_jinja_eval(r, key, &k));
        NB_TRY(nb_jinja_eval(r, key->next, &v));
        NB_TRY(nb_jdict_put(r, out->dict, k, v));
    }
    return NB_OK;
}

static nb_status eval_concat(nb_jrun *r, const nb_jnode *n, nb_jv *out)
{
    const size_t mark = nb_jrun_mark(r);
    for (const nb_jnode *item = n->list; item != NULL; item = item->next) {
        nb_jv v;
        NB_TRY(nb_jinja_eval(r, item, &v));
        NB_TRY(nb_jprint_str(r, v));
    }
    return nb_jrun_take(r, mark, out);
}

/* a < b < c: each operand is evaluated once, and none after the first false. */
static nb_status eval_compare(nb_jrun *r, const nb_jnode *n, nb_jv *out)
{
    nb_jv left, right;
    bool holds = true;
    NB_TRY(nb_jinja_eval(r, n->a, &left));
    for (const nb_jnode *o = n->list; o != NULL && holds; o = o->next) {
        NB_TRY(nb_jinja_eval(r, o->a, &right));
        NB_TRY(nb_jop_compare(r, o->op, left, right, &holds));
        left = right;
    }
    *out = nb_jv_bool(holds);
    return NB_OK;
}

static nb_status eval_condition(nb_jrun *r, const nb_jnode *n, nb_jv *out)
{
    nb_jv condition;
    NB_TRY(nb_jinja_eval(r, n->b, &condition));
    if (nb_jv_truth(condition))
        return nb_jinja_eval(r, n->a, out);
    if (n->c != NULL)
        return nb_jinja_eval(r, n->c, out);
    *out = nb_jv_undefined(NB_JV_ABSENT, NB_JSPAN("an inline if without else"));
    return NB_OK;
}

static nb_status eval_logic(nb_jrun *r, const nb_jnode *n, nb_jv *out)
{
    NB_TRY(nb_jinja_eval(r, n->a, out));
    if (nb_jv_truth(*out) == (n->kind == NB_JN_OR))
        return NB_OK;
    return nb_jinja_eval(r, n->b, out);
}

static nb_status eval_binary(nb_jrun *r, const nb_jnode *n, nb_jv *out)
{
    nb_jv a, b;
    NB_TRY(nb_jinja_eval(r, n->a, &a));
    NB_TRY(nb_jinja_eval(r, n->b, &b));
    return nb_jop_binary(r, n->op, a, b, out);
}

static nb_status eval_item(nb_jrun *r, const nb_jnode *n, nb_jv *out)
{
    nb_jv v, index;
    NB_TRY(nb_jinja_eval(r, n->a, &v));
    NB_TRY(nb_jinja_eval(r, n->b, &index));
    return nb_jop_item(r, v, index, out);
}

static nb_status eval_slice(nb_jrun *r, const nb_jnode *n, nb_jv *out)
{
    nb_jv v, bound[3] = {{0}};
    const nb_jnode *nodes[3] = {n->b, n->c, n->other};
    NB_TRY(nb_jinja_eval(r, n->a, &v));
    for (int i = 0; i < 3; i++)
        if (nodes[i] != NULL)
            NB_TRY(nb_jinja_eval(r, nodes[i], &bound[i]));
    return nb_jop_slice(r, v, bound[0], bound[1], bound[2], out);
}

/* The arguments of a call, and `caller` as one more if it is not NULL. */
static nb_status eval_arguments(nb_jrun *r, const nb_jnode *n, const nb_jv *caller, nb_jargs *out)
{
    nb_jarg *args;
    NB_TRY(NB_JALLOC(r, &args, n->n_list + 1));
    *out = (nb_jargs){.items = args};
    for (const nb_jnode *arg = n->list; arg != NULL; arg = arg->next, out->n++) {
        const bool keyword = arg->kind == NB_JN_KEYWORD;
        args[out->n].name = keyword ? arg->text : (nb_jspan){0};
        NB_TRY(nb_jinja_eval(r, keyword ? arg->a : arg, &args[out->n].value));
    }
    if (caller != NULL)
        args[out->n++] = (nb_jarg){.name = NB_JSPAN("caller"), .value = *caller};
    return NB_OK;
}

nb_status nb_jinja_eval_call(nb_jrun *r, const nb_jnode *n, const nb_jv *caller, nb_jv *out)
{
    nb_jv callee;
    nb_jargs args;
    NB_TRY(nb_jinja_eval(r, n->a, &callee));
    NB_TRY(eval_arguments(r, n, caller, &args));
    return nb_jinja_call(r, callee, &args, out);
}

static nb_status eval_builtin(nb_jrun *r, const nb_jnode *n, nb_jv *out)
{
    nb_jv input = r->block_text;
    nb_jargs args;
    if (n->a != NULL)
        NB_TRY(nb_jinja_eval(r, n->a, &input));
    if (n->builtin == NULL)
        return nb_jrun_fail(r, "No %s named '%.*s'.", n->kind == NB_JN_TEST ? "test" : "filter",
                            NB_JSHOW(n->text));
    NB_TRY(eval_arguments(r, n, NULL, &args));
    NB_TRY(nb_jbuiltin_call(r, n->builtin, input, &args, out));
    if (n->kind == NB_JN_TEST)
        *out = nb_jv_bool(nb_jv_truth(*out) != n->negated);
    return NB_OK;
}

static nb_status eval_kind(nb_jrun *r, const nb_jnode *n, nb_jv *out)
{
    nb_jv v;
    switch (n->kind) {
    case NB_JN_CONST:
        *out = n->value;
        return NB_OK;
    case NB_JN_NAME:
        return lookup(r, n->text, out);
    case NB_JN_LIST:
    case NB_JN_TUPLE:
        return eval_items(r, n, out);
    case NB_JN_DICT:
        return eval_dict(r, n, out);
    case NB_JN_NOT:
        NB_TRY(nb_jinja_eval(r, n->a, &v));
        *out = nb_jv_bool(!nb_jv_truth(v));
        return NB_OK;
    case NB_JN_AND:
    case NB_JN_OR:
        return eval_logic(r, n, out);
    case NB_JN_UNARY:
        NB_TRY(nb_jinja_eval(r, n->a, &v));
        return nb_jop_unary(r, n->op, v, out);
    case NB_JN_BINARY:
        return eval_binary(r, n, out);
    case NB_JN_CONCAT:
        return eval_concat(r, n, out);
    case NB_JN_COMPARE:
        return eval_compare(r, n, out);
    case NB_JN_COND:
        return eval_condition(r, n, out);
    case NB_JN_ATTR:
        NB_TRY(nb_jinja_eval(r, n->a, &v));
        return nb_jop_attribute(r, v, n->text, out);
    case NB_JN_ITEM:
        return eval_item(r, n, out);
    case NB_JN_SLICE:
        return eval_slice(r, n, out);
    case NB_JN_CALL:
        return nb_jinja_eval_call(r, n, NULL, out);
    case NB_JN_FILTER:
    case NB_JN_TEST:
        return eval_builtin(r, n, out);
    default:
        return nb_jrun_fail(r, "this is not an expression");
    }
}

nb_status nb_jinja_eval(nb_jrun *r, const nb_jnode *n, nb_jv *out)
{
    NB_TRY(nb_jrun_charge(r, 0));
    NB_TRY(nb_jrun_enter(r));
    r->line = n->line;
    const nb_status s = eval_kind(r, n, out);
    nb_jrun_leave(r);
    return s;
}
