/* Statements of the template language, and the entry points. See jinja.h and jinja_ast.h. */
#include "text/jinja_ast.h"
#include "text/jinja_builtin.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Real templates have at most some ten thousand bytes, and take a hundred times that here. */
#define MAX_TEMPLATE ((size_t)4 << 20)
#define MAX_TOKENS   ((size_t)16 << 20)
#define MAX_NODES    ((size_t)24 << 20)

nb_status nb_jparse_node(nb_jparser *p, nb_jnode_kind kind, nb_jnode **out)
{
    nb_jnode *node;
    NB_TRY(NB_ARENA_ALLOC(p->arena, &node, 1, p->err));
    node->kind = kind;
    node->line = p->tokens[p->i].line;
    *out = node;
    return NB_OK;
}

nb_status nb_jparse_fail(nb_jparser *p, const char *format, ...)
{
    char text[400];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return nb_fail(p->err, NB_DATA, "line %d: %s", (int)p->tokens[p->i].line, text);
}

nb_status nb_jparse_unexpected(nb_jparser *p, const char *expected)
{
    static const char *const KINDS[] = {
        [NB_JTOK_END] = "end of template",
        [NB_JTOK_DATA] = "template data / text",
        [NB_JTOK_PRINT_BEGIN] = "begin of print statement",
        [NB_JTOK_PRINT_END] = "end of print statement",
        [NB_JTOK_BLOCK_BEGIN] = "begin of statement block",
        [NB_JTOK_BLOCK_END] = "end of statement block",
        [NB_JTOK_TEXT] = "string",
        [NB_JTOK_INT] = "integer",
        [NB_JTOK_FLOAT] = "float",
    };
    const nb_jtoken *t = &p->tokens[p->i];
    char got[64];
    if (t->kind == NB_JTOK_NAME || t->kind == NB_JTOK_OP)
        snprintf(got, sizeof got, "%.*s", t->text.n > 60 ? 60 : (int)t->text.n, t->text.p);
    else
        snprintf(got, sizeof got, "%s", KINDS[t->kind]);
    if (expected == NULL)
        return nb_jparse_fail(p, "unexpected '%s'", got);
    return nb_jparse_fail(p, "Expected %s, got '%s'", expected, got);
}

nb_status nb_jparse_enter(nb_jparser *p)
{
    if (++p->depth > NB_JINJA_MAX_NESTING)
        return nb_fail(p->err, NB_LIMIT, "line %d: nested deeper than %d levels",
                       (int)p->tokens[p->i].line, NB_JINJA_MAX_NESTING);
    return NB_OK;
}

bool nb_jparse_is_op(const nb_jparser *p, uint16_t op)
{
    const nb_jtoken *t = &p->tokens[p->i];
    return t->kind == NB_JTOK_OP && t->op == op;
}

bool nb_jparse_take_op(nb_jparser *p, uint16_t op)
{
    if (!nb_jparse_is_op(p, op))
        return false;
    p->i++;
    return true;
}

nb_status nb_jparse_expect_op(nb_jparser *p, uint16_t op)
{
    const char name[] = {'\'', (char)op, '\'', 0};
    return nb_jparse_take_op(p, op) ? NB_OK : nb_jparse_unexpected(p, name);
}

bool nb_jparse_is_name(const nb_jparser *p, const char *name)
{
    const nb_jtoken *t = &p->tokens[p->i];
    return t->kind == NB_JTOK_NAME && nb_jspan_equal(t->text, (nb_jspan){name, strlen(name)});
}

bool nb_jparse_take_name(nb_jparser *p, const char *name)
{
    if (!nb_jparse_is_name(p, name))
        return false;
    p->i++;
    return true;
}

nb_status nb_jparse_identifier(nb_jparser *p, nb_jspan *out)
{
    const nb_jtoken *t = &p->tokens[p->i];
    if (t->kind != NB_JTOK_NAME)
        return nb_jparse_unexpected(p, "name");
    *out = t->text;
    p->i++;
    return NB_OK;
}

static nb_status parse_body(nb_jparser *p, const char *const *ends, nb_jnode **out);

static nb_status expect_block_end(nb_jparser *p)
{
    if (p->tokens[p->i].kind != NB_JTOK_BLOCK_END)
        return nb_jparse_unexpected(p, "'end of statement block'");
    p->i++;
    return NB_OK;
}

/* "%}", the body, and the name that ends it, which is left to the caller if there are several. */
static nb_status parse_block(nb_jparser *p, const char *const *ends, nb_jnode **out)
{
    NB_TRY(expect_block_end(p));
    NB_TRY(parse_body(p, ends, out));
    if (p->tokens[p->i].kind == NB_JTOK_END)
        return nb_jparse_fail(p, "unexpected end of template, '%s' is missing", ends[0]);
    if (ends[1] == NULL) {
        p->i++;
        return expect_block_end(p);
    }
    return NB_OK;
}

#define ENDS(...) ((const char *const[]){__VA_ARGS__, NULL})

static nb_status parse_if(nb_jparser *p, nb_jnode **out)
{
    nb_jnode *first = NULL, **link = &first;
    do {
        nb_jnode *node;
        NB_TRY(nb_jparse_node(p, NB_JN_IF, &node));
        NB_TRY(nb_jparse_tuple(p, true, &node->a));
        NB_TRY(parse_block(p, ENDS("endif", "elif", "else"), &node->body));
        *link = node;
        link = &node->b;
        if (nb_jparse_take_name(p, "else")) {
            *out = first;
            return parse_block(p, ENDS("endif"), &node->other);
        }
    } while (nb_jparse_take_name(p, "elif"));
    *out = first;
    p->i++;
    return expect_block_end(p);
}

static nb_status parse_for(nb_jparser *p, nb_jnode **out)
{
    nb_jnode *node;
    NB_TRY(nb_jparse_node(p, NB_JN_FOR, &node));
    NB_TRY(nb_jparse_target(p, false, &node->a));
    if (!nb_jparse_take_name(p, "in"))
        return nb_jparse_unexpected(p, "'in'");
    NB_TRY(nb_jparse_tuple(p, true, &node->b));
    if (nb_jparse_take_name(p, "if"))
        NB_TRY(nb_jparse_expression(p, false, &node->c));
    if (nb_jparse_is_name(p, "recursive"))
        return nb_jparse_fail(p, "recursive loops are not supported");
    NB_TRY(parse_block(p, ENDS("endfor", "else"), &node->body));
    *out = node;
    if (nb_jparse_take_name(p, "else"))
        return parse_block(p, ENDS("endfor"), &node->other);
    p->i++;
    return expect_block_end(p);
}

static nb_status parse_set(nb_jparser *p, nb_jnode **out)
{
    nb_jnode *node;
    NB_TRY(nb_jparse_node(p, NB_JN_SET, &node));
    NB_TRY(nb_jparse_target(p, true, &node->a));
    *out = node;
    if (nb_jparse_take_op(p, '=')) {
        NB_TRY(nb_jparse_tuple(p, false, &node->b));
        return expect_block_end(p);
    }
    node->kind = NB_JN_SET_BLOCK;
    NB_TRY(nb_jparse_filters(p, false, &node->b));
    return parse_block(p, ENDS("endset"), &node->body);
}

/* Parameters (if any) and body of a macro or of a call block's caller. */
static nb_status parse_macro_rest(nb_jparser *p, nb_jnode *macro, const char *end)
{
    nb_jnode *outer = p->macro;
    p->macro = macro;
    NB_TRY(parse_block(p, ENDS(end), &macro->body));
    /* A macro inside may use what this one was given. */
    for (int i = 0; outer != NULL && i < 3; i++)
        outer->in_use[i] |= macro->in_use[i];
    p->macro = outer;
    return NB_OK;
}

static nb_status parse_macro(nb_jparser *p, nb_jnode **out)
{
    NB_TRY(nb_jparse_node(p, NB_JN_MACRO, out));
    NB_TRY(nb_jparse_identifier(p, &(*out)->text));
    NB_TRY(nb_jparse_expect_op(p, '('));
    NB_TRY(nb_jparse_parameters(p, *out));
    return parse_macro_rest(p, *out, "endmacro");
}

static nb_status parse_call_block(nb_jparser *p, nb_jnode **out)
{
    nb_jnode *node;
    NB_TRY(nb_jparse_node(p, NB_JN_CALL_BLOCK, &node));
    NB_TRY(nb_jparse_node(p, NB_JN_MACRO, &node->b));
    node->b->text = NB_JSPAN("caller");
    if (nb_jparse_take_op(p, '('))
        NB_TRY(nb_jparse_parameters(p, node->b));
    NB_TRY(nb_jparse_expression(p, false, &node->a));
    if (node->a->kind != NB_JN_CALL)
        return nb_jparse_fail(p, "expected call");
    *out = node;
    return parse_macro_rest(p, node->b, "endcall");
}

static nb_status parse_filter_block(nb_jparser *p, nb_jnode **out)
{
    NB_TRY(nb_jparse_node(p, NB_JN_FILTER_BLOCK, out));
    NB_TRY(nb_jparse_filters(p, true, &(*out)->b));
    return parse_block(p, ENDS("endfilter"), &(*out)->body);
}

static nb_status parse_with(nb_jparser *p, nb_jnode **out)
{
    nb_jnode *node, **tail;
    NB_TRY(nb_jparse_node(p, NB_JN_WITH, &node));
    tail = &node->list;
    while (p->tokens[p->i].kind != NB_JTOK_BLOCK_END) {
        if (node->list != NULL && !nb_jparse_take_op(p, ','))
            return nb_jparse_unexpected(p, "','");
        NB_TRY(nb_jparse_node(p, NB_JN_SET, tail));
        NB_TRY(nb_jparse_target(p, false, &(*tail)->a));
        NB_TRY(nb_jparse_expect_op(p, '='));
        NB_TRY(nb_jparse_expression(p, false, &(*tail)->b));
        tail = &(*tail)->next;
        node->n_list++;
    }
    *out = node;
    return parse_block(p, ENDS("endwith"), &node->body);
}

static nb_status parse_generation(nb_jparser *p, nb_jnode **out)
{
    NB_TRY(nb_jparse_node(p, NB_JN_SCOPE, out));
    return parse_block(p, ENDS("endgeneration"), &(*out)->body);
}

static nb_status parse_break(nb_jparser *p, nb_jnode **out)
{
    NB_TRY(nb_jparse_node(p, NB_JN_BREAK, out));
    return expect_block_end(p);
}

static nb_status parse_continue(nb_jparser *p, nb_jnode **out)
{
    NB_TRY(nb_jparse_node(p, NB_JN_CONTINUE, out));
    return expect_block_end(p);
}

static nb_status parse_statement(nb_jparser *p, nb_jnode **out)
{
    static const struct {
        const char *name;
        nb_status (*parse)(nb_jparser *p, nb_jnode **out);
    } STATEMENTS[] = {
        {"if", parse_if},           {"for", parse_for},
        {"set", parse_set},         {"macro", parse_macro},
        {"call", parse_call_block}, {"filter", parse_filter_block},
        {"with", parse_with},       {"generation", parse_generation},
        {"break", parse_break},     {"continue", parse_continue},
    };
    for (size_t i = 0; i < sizeof STATEMENTS / sizeof STATEMENTS[0]; i++)
        if (nb_jparse_take_name(p, STATEMENTS[i].name)) {
            NB_TRY(nb_jparse_enter(p));
            NB_TRY(STATEMENTS[i].parse(p, out));
            p->depth--;
            return NB_OK;
        }
    if (p->tokens[p->i].kind != NB_JTOK_NAME)
        return nb_jparse_unexpected(p, "tag name");
    return nb_jparse_fail(p, "Encountered unknown tag '%.*s'",
                          (int)(p->tokens[p->i].text.n > 60 ? 60 : p->tokens[p->i].text.n),
                          p->tokens[p->i].text.p);
}

static bool is_one_of(const nb_jparser *p, const char *const *names)
{
    for (; *names != NULL; names++)
        if (nb_jparse_is_name(p, *names))
            return true;
    return false;
}

/* Statements up to a block whose first word is in `ends`, which becomes the current token, or to
 * the end of the template. */
static nb_status parse_body(nb_jparser *p, const char *const *ends, nb_jnode **out)
{
    *out = NULL;
    for (;;) {
        const nb_jtoken *t = &p->tokens[p->i];
        nb_jnode *node = NULL;
        if (t->kind == NB_JTOK_END)
            return NB_OK;
        if (t->kind == NB_JTOK_DATA) {
            NB_TRY(nb_jparse_node(p, NB_JN_DATA, &node));
            node->text = t->text;
            p->i++;
        } else if (t->kind == NB_JTOK_PRINT_BEGIN) {
            p->i++;
            NB_TRY(nb_jparse_node(p, NB_JN_PRINT, &node));
            NB_TRY(nb_jparse_tuple(p, false, &node->a));
            if (p->tokens[p->i].kind != NB_JTOK_PRINT_END)
                return nb_jparse_unexpected(p, "'end of print statement'");
            p->i++;
        } else {
            p->i++; /* "{%": the lexer gives nothing else here */
            if (is_one_of(p, ends))
                return NB_OK;
            NB_TRY(parse_statement(p, &node));
        }
        *out = node;
        out = &node->next;
    }
}

static nb_status parse(nb_jinja *t, const char *text, size_t len, nb_err *err)
{
    nb_buf tokens = {.limit = MAX_TOKENS};
    t->arena.limit = MAX_NODES;
    if (len > MAX_TEMPLATE)
        return nb_fail(err, NB_LIMIT, "%zu bytes; at most %zu are read", len, MAX_TEMPLATE);
    nb_status s = nb_jinja_lex(text, len, &t->arena, &tokens, err);
    if (s == NB_OK) {
        nb_jparser p = {
            .tokens = (const nb_jtoken *)(void *)tokens.data, .arena = &t->arena, .err = err};
        s = parse_body(&p, ENDS("\xff"), &t->body);
    }
    nb_buf_free(&tokens);
    return s;
}

nb_status nb_jinja_parse(nb_jinja **out, const char *text, size_t len, nb_err *err)
{
    *out = NULL;
    nb_jinja *t;
    NB_TRY(NB_ALLOC(&t, 1, err));
    nb_status s = parse(t, text, len, err);
    if (s == NB_LIMIT) {
        /* A model with such a template loads; only its chat does not work. */
        t->refusal = *err;
        *err = (nb_err){0};
        s = NB_OK;
    }
    if (s != NB_OK) {
        nb_jinja_free(t);
        return nb_context(err, "chat template");
    }
    *out = t;
    return NB_OK;
}

void nb_jinja_free(nb_jinja *t)
{
    if (t == NULL)
        return;
    nb_arena_free(&t->arena);
    nb_free(t);
}
