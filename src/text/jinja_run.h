/* The state of one render and its budgets. Everything that a template can make grow is charged
 * here: steps, bytes of output, bytes of memory, depth. */
#ifndef NB_TEXT_JINJA_RUN_H
#define NB_TEXT_JINJA_RUN_H

#include "base/arena.h"
#include "text/jinja_value.h"

/* How deep evaluation may nest: macros that call themselves, long chains, nested data. Each level
 * takes some hundred bytes of stack. */
#define NB_JINJA_MAX_DEPTH 1000

/* One scope: variables in a list, looked up outwards. */
typedef struct nb_jvar {
    struct nb_jvar *next;
    nb_jspan name;
    nb_jv value;
} nb_jvar;

typedef struct nb_jframe {
    struct nb_jframe *parent;
    nb_jvar *vars;
} nb_jframe;

struct nb_jrun {
    nb_arena arena;
    nb_buf *out; /* rendered text; also the place where any text is put together */
    size_t out_base, max_output;
    int64_t steps_left, max_steps;
    int depth;
    nb_jframe *frame; /* innermost scope */
    nb_jdict *context;
    nb_jv block_text; /* what a filter or set block rendered, for its first filter */
    enum { NB_JFLOW_ON, NB_JFLOW_BREAK, NB_JFLOW_CONTINUE } flow;
    const char *now;
    size_t text_bytes; /* of the context */
    int32_t line;      /* of what is rendered, for messages */
    bool raised;       /* the template itself raised the error */
    nb_err *err;
};

nb_status nb_jrun_fail(nb_jrun *r, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Arguments for "%.*s" of a span, cut to what a message holds. */
#define NB_JSHOW(span) ((span).n > 200 ? 200 : (int)(span).n), ((span).n == 0 ? "" : (span).p)

/* The failure of using an undefined value, which says what was missing. */
nb_status nb_jrun_undefined(nb_jrun *r, nb_jv v);

/* Takes one step, and one more for each 64 bytes worked through. */
nb_status nb_jrun_charge(nb_jrun *r, size_t bytes);
/* One level deeper; nb_jrun_leave when done, also after a failure inside. */
nb_status nb_jrun_enter(nb_jrun *r);
static inline void nb_jrun_leave(nb_jrun *r)
{
    r->depth--;
}

nb_status nb_jrun_alloc(nb_jrun *r, void **out, int64_t count, size_t size);
#define NB_JALLOC(r, out, count) nb_jrun_alloc((r), (void **)(out), (count), sizeof **(out))

/* Appends text to the output. */
nb_status nb_jrun_emit(nb_jrun *r, nb_jspan text);
static inline nb_status nb_jrun_emit_byte(nb_jrun *r, char c)
{
    return nb_jrun_emit(r, (nb_jspan){&c, 1});
}
/* Text is put together at the end of the output: remember where it begins, emit, take it. */
static inline size_t nb_jrun_mark(const nb_jrun *r)
{
    return r->out->len;
}
nb_status nb_jrun_take(nb_jrun *r, size_t mark, nb_jv *out);

/* str(v), repr(v) and json.dumps(v) as Python writes them, to the output. */
nb_status nb_jprint_str(nb_jrun *r, nb_jv v);
nb_status nb_jprint_repr(nb_jrun *r, nb_jv v);
typedef struct {
    nb_jspan item, colon; /* separators; item.p NULL: the defaults */
    nb_jspan indent;      /* of one level; p NULL: all on one line */
    bool ensure_ascii, sort_keys;
} nb_jjson_style;
nb_status nb_jprint_json(nb_jrun *r, nb_jv v, const nb_jjson_style *style);
/* The text of str(v): v's own if it is one. */
nb_status nb_jv_to_text(nb_jrun *r, nb_jv v, nb_jspan *out);
/* HTML escapes of Markup. */
nb_status nb_jprint_escaped(nb_jrun *r, nb_jspan text);

/* Operators. `op` as in jinja_lex.h. */
nb_status nb_jop_binary(nb_jrun *r, uint16_t op, nb_jv a, nb_jv b, nb_jv *out);
nb_status nb_jop_unary(nb_jrun *r, uint16_t op, nb_jv a, nb_jv *out);
nb_status nb_jop_compare(nb_jrun *r, uint16_t op, nb_jv a, nb_jv b, bool *out);
/* v.name: an attribute first, then a key. v[index]: the other way round. */
nb_status nb_jop_attribute(nb_jrun *r, nb_jv v, nb_jspan name, nb_jv *out);
nb_status nb_jop_item(nb_jrun *r, nb_jv v, nb_jv index, nb_jv *out);
/* v[begin:end:step]; ABSENT or NONE where there is no bound. */
nb_status nb_jop_slice(nb_jrun *r, nb_jv v, nb_jv begin, nb_jv end, nb_jv step, nb_jv *out);
/* A path as filters take it: "a.b.0", or an index. */
nb_status nb_jop_path(nb_jrun *r, nb_jv v, nb_jv path, nb_jv *out);

/* Sorts by key, stably. keys[i] belongs to items[i]. */
nb_status nb_jop_sort(nb_jrun *r, nb_jv *keys, nb_jv *items, int64_t n, bool reverse);

#endif
