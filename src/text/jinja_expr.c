/* Expressions of the template language, by precedence climbing. See jinja_ast.h. */
#include "text/jinja_ast.h"
#include "text/jinja_builtin.h"

#include <string.h>

static nb_status parse_level(nb_jparser *p, int level, nb_jnode **out);
static nb_status parse_unary(nb_jparser *p, bool with_filters, nb_jnode **out);

static void append(nb_jnode *parent, nb_jnode ***tail, nb_jnode *child)
{
    **tail = child;
    *tail = &child->next;
    parent->n_list++;
}

/* Arguments after "(", to the closing one. */
static nb_status parse_arguments(nb_jparser *p, nb_jnode *call)
{
    nb_jnode **tail = &call->list;
    bool keywords = false;
    while (!nb_jparse_take_op(p, ')')) {
        if (call->list != NULL) {
            NB_TRY(nb_jparse_expect_op(p, ','));
            if (nb_jparse_take_op(p, ')'))
                break;
        }
        const nb_jtoken *t = &p->tokens[p->i];
        if (nb_jparse_is_op(p, '*') || nb_jparse_is_op(p, NB_JOP2('*', '*')))
            return nb_jparse_fail(p, "arguments unpacked with * are not supported");
        nb_jnode *arg;
        if (t->kind == NB_JTOK_NAME && t[1].kind == NB_JTOK_OP && t[1].op == '=') {
            NB_TRY(nb_jparse_node(p, NB_JN_KEYWORD, &arg));
            arg->text = t->text;
            p->i += 2;
            keywords = true;
            NB_TRY(nb_jparse_expression(p, false, &arg->a));
        } else {
            if (keywords)
                return nb_jparse_fail(p, "invalid syntax for function call expression");
            NB_TRY(nb_jparse_expression(p, false, &arg));
        }
        append(call, &tail, arg);
    }
    return NB_OK;
}

static nb_status parse_list(nb_jparser *p, nb_jnode **out)
{
    nb_jnode *node;
    NB_TRY(nb_jparse_node(p, NB_JN_LIST, &node));
    nb_jnode **tail = &node->list;
    while (!nb_jparse_take_op(p, ']')) {
        if (node->list != NULL) {
            NB_TRY(nb_jparse_expect_op(p, ','));
            if (nb_jparse_take_op(p, ']'))
                break;
        }
        nb_jnode *item;
        NB_TRY(nb_jparse_expression(p, false, &item));
        append(node, &tail, item);
    }
    *out = node;
    return NB_OK;
}

static nb_status parse_dict(nb_jparser *p, nb_jnode **out)
{
    nb_jnode *node;
    NB_TRY(nb_jparse_node(p, NB_JN_DICT, &node));
    nb_jnode **tail = &node->list;
    while (!nb_jparse_take_op(p, '}')) {
        if (node->list != NULL) {
            NB_TRY(nb_jparse_expect_op(p, ','));
            if (nb_jparse_take_op(p, '}'))
                break;
        }
        nb_jnode *key, *value;
        NB_TRY(nb_jparse_expression(p, false, &key));
        NB_TRY(nb_jparse_expect_op(p, ':'));
        NB_TRY(nb_jparse_expression(p, false, &value));
        append(node, &tail, key);
        append(node, &tail, value);
    }
    *out = node;
    return NB_OK;
}

static bool constant_name(nb_jspan name, nb_jv *out)
{
    static const struct {
        const char *name;
        nb_jv value;
    } NAMES[] = {
        {"true", {.kind = NB_JV_BOOL, .b = true}},
        {"True", {.kind = NB_JV_BOOL, .b = true}},
        {"false", {.kind = NB_JV_BOOL, .b = false}},
        {"False", {.kind = NB_JV_BOOL, .b = false}},
        {"none", {.kind = NB_JV_NONE}},
        {"None", {.kind = NB_JV_NONE}},
    };
    for (size_t i = 0; i < sizeof NAMES / sizeof NAMES[0]; i++)
        if (nb_jspan_equal(name, (nb_jspan){NAMES[i].name, strlen(NAMES[i].name)})) {
            *out = NAMES[i].value;
            return true;
        }
    return false;
}

static nb_status parse_name(nb_jparser *p, nb_jnode **out)
{
    nb_jnode *node;
    const nb_jspan name = p->tokens[p->i].text;
    NB_TRY(nb_jparse_node(p, NB_JN_NAME, &node));
    if (constant_name(name, &node->value)) {
        node->kind = NB_JN_CONST;
        p->i++;
    } else {
        NB_TRY(nb_jparse_identifier(p, &node->text));
        static const char *const EXTRA[] = {"varargs", "kwargs", "caller"};
        for (size_t i = 0; p->macro != NULL && i < 3; i++)
            if (nb_jspan_equal(name, (nb_jspan){EXTRA[i], strlen(EXTRA[i])}))
                p->macro->in_use[i] = true;
    }
    *out = node;
    return NB_OK;
}

/* Literals that stand side by side are one text. */
static nb_status parse_text(nb_jparser *p, nb_jnode **out)
{
    const nb_jtoken *first = &p->tokens[p->i];
    size_t n = 0;
    while (p->tokens[p->i].kind == NB_JTOK_TEXT)
        n += p->tokens[p->i++].text.n;
    nb_jspan text = first->text;
    if (first[1].kind == NB_JTOK_TEXT) {
        char *joined;
        NB_TRY(NB_ARENA_ALLOC(p->arena, &joined, n + 1, p->err));
        n = 0;
        for (const nb_jtoken *t = first; t->kind == NB_JTOK_TEXT; t++) {
            if (t->text.n > 0)
                memcpy(joined + n, t->text.p, t->text.n);
            n += t->text.n;
        }
        text = (nb_jspan){joined, n};
    }
    NB_TRY(nb_jparse_node(p, NB_JN_CONST, out));
    (*out)->value = nb_jv_text(text);
    return NB_OK;
}

static nb_status parse_number(nb_jparser *p, nb_jnode **out)
{
    const nb_jtoken *t = &p->tokens[p->i];
    NB_TRY(nb_jparse_node(p, NB_JN_CONST, out));
    if (!nb_jv_parse_number(t->text, t->kind == NB_JTOK_FLOAT, &(*out)->value))
        return nb_jparse_fail(p, "a number of %zu digits is too large", t->text.n);
    p->i++;
    return NB_OK;
}

static nb_status parse_primary(nb_jparser *p, nb_jnode **out)
{
    switch (p->tokens[p->i].kind) {
    case NB_JTOK_NAME:
        return parse_name(p, out);
    case NB_JTOK_TEXT:
        return parse_text(p, out);
    case NB_JTOK_INT:
    case NB_JTOK_FLOAT:
        return parse_number(p, out);
    default:
        break;
    }
    if (nb_jparse_take_op(p, '['))
        return parse_list(p, out);
    if (nb_jparse_take_op(p, '{'))
        return parse_dict(p, out);
    if (nb_jparse_take_op(p, '(')) {
        if (nb_jparse_take_op(p, ')'))
            return nb_jparse_node(p, NB_JN_TUPLE, out);
        NB_TRY(nb_jparse_tuple(p, false, out));
        return nb_jparse_expect_op(p, ')');
    }
    return nb_jparse_unexpected(p, NULL);
}

/* After "[": an index, or begin:end:step. */
static nb_status parse_subscript(nb_jparser *p, nb_jnode *object, nb_jnode **out)
{
    nb_jnode *node;
    NB_TRY(nb_jparse_node(p, NB_JN_ITEM, &node));
    node->a = object;
    if (!nb_jparse_is_op(p, ':'))
        NB_TRY(nb_jparse_expression(p, false, &node->b));
    if (nb_jparse_take_op(p, ':')) {
        node->kind = NB_JN_SLICE;
        if (!nb_jparse_is_op(p, ']') && !nb_jparse_is_op(p, ':'))
            NB_TRY(nb_jparse_expression(p, false, &node->c));
        if (nb_jparse_take_op(p, ':') && !nb_jparse_is_op(p, ']'))
            NB_TRY(nb_jparse_expression(p, false, &node->other));
    } else if (nb_jparse_is_op(p, ',')) {
        return nb_jparse_fail(p, "an index of several parts is not supported");
    }
    *out = node;
    return nb_jparse_expect_op(p, ']');
}

static nb_status parse_call(nb_jparser *p, nb_jnode *callee, nb_jnode **out)
{
    nb_jnode *call;
    NB_TRY(nb_jparse_node(p, NB_JN_CALL, &call));
    call->a = callee;
    *out = call;
    return parse_arguments(p, call);
}

/* .name .0 [..] (..) after a value. */
static nb_status parse_postfix(nb_jparser *p, nb_jnode **node)
{
    for (;;) {
        if (nb_jparse_take_op(p, '.')) {
            const nb_jtoken *t = &p->tokens[p->i];
            nb_jnode *attr;
            NB_TRY(nb_jparse_node(p, NB_JN_ATTR, &attr));
            attr->a = *node;
            if (t->kind == NB_JTOK_NAME) {
                attr->text = t->text;
                p->i++;
            } else if (t->kind == NB_JTOK_INT) {
                attr->kind = NB_JN_ITEM;
                NB_TRY(parse_number(p, &attr->b));
            } else {
                return nb_jparse_fail(p, "expected name or number");
            }
            *node = attr;
        } else if (nb_jparse_take_op(p, '[')) {
            NB_TRY(parse_subscript(p, *node, node));
        } else if (nb_jparse_take_op(p, '(')) {
            NB_TRY(parse_call(p, *node, node));
        } else {
            return NB_OK;
        }
    }
}

/* The name of a filter or a test; dots are part of it. */
static nb_status parse_builtin_name(nb_jparser *p, nb_jspan *out)
{
    const nb_jtoken *t = &p->tokens[p->i];
    if (t->kind != NB_JTOK_NAME)
        return nb_jparse_unexpected(p, "name");
    *out = t->text;
    p->i++;
    return NB_OK;
}

static nb_status parse_filter(nb_jparser *p, nb_jnode *input, nb_jnode **out)
{
    nb_jnode *node;
    NB_TRY(nb_jparse_node(p, NB_JN_FILTER, &node));
    NB_TRY(parse_builtin_name(p, &node->text));
    node->a = input;
    node->builtin = nb_jinja_filter(node->text);
    if (nb_jparse_take_op(p, '('))
        NB_TRY(parse_arguments(p, node));
    *out = node;
    return NB_OK;
}

nb_status nb_jparse_filters(nb_jparser *p, bool first_bare, nb_jnode **out)
{
    *out = NULL;
    while (first_bare || nb_jparse_take_op(p, '|')) {
        NB_TRY(parse_filter(p, *out, out));
        first_bare = false;
    }
    return NB_OK;
}

/* May this token begin the one argument of a test written without brackets? */
static bool begins_test_argument(const nb_jparser *p)
{
    static const char *const STOPS[] = {"else", "or", "and", "if", "in", "not", "is", "recursive"};
    const nb_jtoken *t = &p->tokens[p->i];
    if (t->kind == NB_JTOK_OP)
        return t->op == '[' || t->op == '{';
    for (size_t i = 0; i < sizeof STOPS / sizeof STOPS[0]; i++)
        if (nb_jparse_is_name(p, STOPS[i]))
            return false;
    return t->kind == NB_JTOK_NAME || t->kind == NB_JTOK_TEXT || t->kind == NB_JTOK_INT ||
           t->kind == NB_JTOK_FLOAT;
}

static nb_status parse_test(nb_jparser *p, nb_jnode *input, nb_jnode **out)
{
    nb_jnode *node;
    NB_TRY(nb_jparse_node(p, NB_JN_TEST, &node));
    node->a = input;
    node->negated = nb_jparse_take_name(p, "not");
    NB_TRY(parse_builtin_name(p, &node->text));
    node->builtin = nb_jinja_test(node->text);
    *out = node;
    if (nb_jparse_take_op(p, '('))
        return parse_arguments(p, node);
    if (!begins_test_argument(p))
        return NB_OK;
    node->n_list = 1;
    NB_TRY(parse_primary(p, &node->list));
    return parse_postfix(p, &node->list);
}

static nb_status parse_operand(nb_jparser *p, bool with_filters, nb_jnode **out)
{
    if (nb_jparse_is_op(p, '-') || nb_jparse_is_op(p, '+')) {
        NB_TRY(nb_jparse_node(p, NB_JN_UNARY, out));
        (*out)->op = p->tokens[p->i++].op;
        NB_TRY(parse_unary(p, false, &(*out)->a));
    } else {
        NB_TRY(parse_primary(p, out));
    }
    NB_TRY(parse_postfix(p, out));
    while (with_filters) {
        if (nb_jparse_take_op(p, '|'))
            NB_TRY(parse_filter(p, *out, out));
        else if (nb_jparse_take_name(p, "is"))
            NB_TRY(parse_test(p, *out, out));
        else if (nb_jparse_take_op(p, '('))
            NB_TRY(parse_call(p, *out, out));
        else
            break;
    }
    return NB_OK;
}

static nb_status parse_unary(nb_jparser *p, bool with_filters, nb_jnode **out)
{
    NB_TRY(nb_jparse_enter(p));
    const nb_status s = parse_operand(p, with_filters, out);
    p->depth--;
    return s;
}

/* Binary operators, loosest first; one level of the grammar each. */
enum {
    LEVEL_OR,
    LEVEL_AND,
    LEVEL_NOT,
    LEVEL_COMPARE,
    LEVEL_SUM,
    LEVEL_CONCAT,
    LEVEL_TERM,
    LEVEL_POWER,
    LEVEL_UNARY
};

static bool binary_op(const nb_jparser *p, int level)
{
    if (p->tokens[p->i].kind != NB_JTOK_OP)
        return false;
    const uint16_t op = p->tokens[p->i].op;
    if (level == LEVEL_SUM)
        return op == '+' || op == '-';
    if (level == LEVEL_TERM)
        return op == '*' || op == '/' || op == '%' || op == NB_JOP2('/', '/');
    return level == LEVEL_POWER && op == NB_JOP2('*', '*');
}

static bool take_comparison(nb_jparser *p, uint16_t *op)
{
    static const uint16_t OPS[] = {NB_JOP2('=', '='), NB_JOP2('!', '='), '<', '>',
                                   NB_JOP2('<', '='), NB_JOP2('>', '=')};
    for (size_t i = 0; i < sizeof OPS / sizeof OPS[0]; i++)
        if (nb_jparse_take_op(p, OPS[i])) {
            *op = OPS[i];
            return true;
        }
    if (nb_jparse_take_name(p, "in")) {
        *op = NB_JIN;
        return true;
    }
    const nb_jtoken *t = &p->tokens[p->i];
    if (nb_jparse_is_name(p, "not") && t[1].kind == NB_JTOK_NAME &&
        nb_jspan_equal(t[1].text, NB_JSPAN("in"))) {
        p->i += 2;
        *op = NB_JNOTIN;
        return true;
    }
    return false;
}

static nb_status parse_comparison(nb_jparser *p, nb_jnode **out)
{
    NB_TRY(parse_level(p, LEVEL_SUM, out));
    nb_jnode *compare = NULL, **tail = NULL;
    uint16_t op;
    while (take_comparison(p, &op)) {
        if (compare == NULL) {
            NB_TRY(nb_jparse_node(p, NB_JN_COMPARE, &compare));
            compare->a = *out;
            tail = &compare->list;
            *out = compare;
        }
        nb_jnode *operand;
        NB_TRY(nb_jparse_node(p, NB_JN_OPERAND, &operand));
        operand->op = op;
        NB_TRY(parse_level(p, LEVEL_SUM, &operand->a));
        append(compare, &tail, operand);
    }
    return NB_OK;
}

static nb_status parse_not(nb_jparser *p, nb_jnode **out)
{
    if (!nb_jparse_take_name(p, "not"))
        return parse_comparison(p, out);
    NB_TRY(nb_jparse_enter(p));
    NB_TRY(nb_jparse_node(p, NB_JN_NOT, out));
    NB_TRY(parse_not(p, &(*out)->a));
    p->depth--;
    return NB_OK;
}

static nb_status parse_concat(nb_jparser *p, nb_jnode **out)
{
    NB_TRY(parse_level(p, LEVEL_TERM, out));
    if (!nb_jparse_is_op(p, '~'))
        return NB_OK;
    nb_jnode *node, **tail;
    NB_TRY(nb_jparse_node(p, NB_JN_CONCAT, &node));
    tail = &node->list;
    append(node, &tail, *out);
    while (nb_jparse_take_op(p, '~')) {
        nb_jnode *item;
        NB_TRY(parse_level(p, LEVEL_TERM, &item));
        append(node, &tail, item);
    }
    *out = node;
    return NB_OK;
}

static nb_status parse_level(nb_jparser *p, int level, nb_jnode **out)
{
    if (level == LEVEL_NOT)
        return parse_not(p, out);
    if (level == LEVEL_CONCAT)
        return parse_concat(p, out);
    if (level == LEVEL_UNARY)
        return parse_unary(p, true, out);
    NB_TRY(parse_level(p, level + 1, out));
    for (;;) {
        nb_jnode_kind kind = NB_JN_BINARY;
        const uint16_t op = p->tokens[p->i].op;
        if (level == LEVEL_OR && nb_jparse_take_name(p, "or"))
            kind = NB_JN_OR;
        else if (level == LEVEL_AND && nb_jparse_take_name(p, "and"))
            kind = NB_JN_AND;
        else if (binary_op(p, level))
            p->i++;
        else
            return NB_OK;
        nb_jnode *node;
        NB_TRY(nb_jparse_node(p, kind, &node));
        node->op = op;
        node->a = *out;
        NB_TRY(parse_level(p, level + 1, &node->b));
        *out = node;
    }
}

static nb_status parse_condition(nb_jparser *p, bool without_if, nb_jnode **out)
{
    NB_TRY(parse_level(p, LEVEL_OR, out));
    while (!without_if && nb_jparse_take_name(p, "if")) {
        nb_jnode *node;
        NB_TRY(nb_jparse_node(p, NB_JN_COND, &node));
        node->a = *out;
        NB_TRY(parse_level(p, LEVEL_OR, &node->b));
        if (nb_jparse_take_name(p, "else"))
            NB_TRY(nb_jparse_expression(p, false, &node->c));
        *out = node;
    }
    return NB_OK;
}

nb_status nb_jparse_expression(nb_jparser *p, bool without_if, nb_jnode **out)
{
    NB_TRY(nb_jparse_enter(p));
    const nb_status s = parse_condition(p, without_if, out);
    p->depth--;
    return s;
}

static bool ends_tuple(const nb_jparser *p)
{
    const nb_jtoken *t = &p->tokens[p->i];
    return t->kind == NB_JTOK_PRINT_END || t->kind == NB_JTOK_BLOCK_END || t->kind == NB_JTOK_END ||
           nb_jparse_is_op(p, ')') || nb_jparse_is_name(p, "recursive");
}

nb_status nb_jparse_tuple(nb_jparser *p, bool without_if, nb_jnode **out)
{
    if (ends_tuple(p))
        return nb_jparse_unexpected(p, "an expression");
    NB_TRY(nb_jparse_expression(p, without_if, out));
    if (!nb_jparse_is_op(p, ','))
        return NB_OK;
    nb_jnode *tuple, **tail;
    NB_TRY(nb_jparse_node(p, NB_JN_TUPLE, &tuple));
    tail = &tuple->list;
    append(tuple, &tail, *out);
    while (nb_jparse_take_op(p, ',') && !ends_tuple(p)) {
        nb_jnode *item;
        NB_TRY(nb_jparse_expression(p, without_if, &item));
        append(tuple, &tail, item);
    }
    *out = tuple;
    return NB_OK;
}

static nb_status parse_one_target(nb_jparser *p, bool with_attribute, nb_jnode **out)
{
    if (nb_jparse_take_op(p, '(')) {
        NB_TRY(nb_jparse_enter(p));
        NB_TRY(nb_jparse_target(p, with_attribute, out));
        p->depth--;
        return nb_jparse_expect_op(p, ')');
    }
    NB_TRY(nb_jparse_node(p, NB_JN_NAME, out));
    NB_TRY(nb_jparse_identifier(p, &(*out)->text));
    nb_jv constant;
    if (constant_name((*out)->text, &constant))
        return nb_jparse_fail(p, "can't assign to a constant");
    if (with_attribute && nb_jparse_take_op(p, '.')) {
        nb_jnode *name = *out;
        NB_TRY(nb_jparse_node(p, NB_JN_ATTR, out));
        (*out)->a = name;
        return nb_jparse_identifier(p, &(*out)->text);
    }
    return NB_OK;
}

nb_status nb_jparse_target(nb_jparser *p, bool with_attribute, nb_jnode **out)
{
    NB_TRY(parse_one_target(p, with_attribute, out));
    if (!nb_jparse_is_op(p, ','))
        return NB_OK;
    nb_jnode *tuple, **tail;
    NB_TRY(nb_jparse_node(p, NB_JN_TUPLE, &tuple));
    tail = &tuple->list;
    append(tuple, &tail, *out);
    while (nb_jparse_take_op(p, ',')) {
        const nb_jtoken *t = &p->tokens[p->i];
        if (t->kind != NB_JTOK_NAME && !nb_jparse_is_op(p, '('))
            break;
        if (nb_jparse_is_name(p, "in"))
            break;
        nb_jnode *item;
        NB_TRY(parse_one_target(p, with_attribute, &item));
        append(tuple, &tail, item);
    }
    *out = tuple;
    return NB_OK;
}

nb_status nb_jparse_parameters(nb_jparser *p, nb_jnode *macro)
{
    nb_jnode **tail = &macro->list;
    while (!nb_jparse_take_op(p, ')')) {
        if (macro->list != NULL)
            NB_TRY(nb_jparse_expect_op(p, ','));
        nb_jnode *parameter;
        NB_TRY(nb_jparse_node(p, NB_JN_NAME, &parameter));
        NB_TRY(nb_jparse_identifier(p, &parameter->text));
        if (nb_jparse_take_op(p, '='))
            NB_TRY(nb_jparse_expression(p, false, &parameter->a));
        append(macro, &tail, parameter);
    }
    return NB_OK;
}
