/* See json_walk.h. */
#include "engine/json_state.h"

#include <string.h>

static bool is_space(uint8_t c)
{
    return c == ' ' || c == '\n' || c == '\t' || c == '\r';
}

/* ---- frames ---- */

static const nb_json_node *node_of(const nb_json_walk *w, const nb_json_frame *f)
{
    return &w->schema->node[f->node];
}

/* -1 when there is no room: then this alternative is dropped. */
static int16_t new_frame(nb_json_walk *w, const nb_json_frame *f)
{
    if (w->n_frames == NB_JSON_MAX_FRAMES)
        return -1;
    w->frame[w->n_frames] = *f;
    return (int16_t)w->n_frames++;
}

static void put_top(nb_json_set *to, int16_t top)
{
    for (int i = 0; i < to->n; i++) {
        if (to->top[i] == top)
            return;
    }
    if (to->n < NB_JSON_MAX_TOPS)
        to->top[to->n++] = top;
}

static bool same_frame(const nb_json_frame *x, const nb_json_frame *y)
{
    return x->parent == y->parent && x->node == y->node && x->state == y->state &&
           x->space == y->space && x->depth == y->depth && x->negative == y->negative &&
           x->len == y->len && x->value == y->value;
}

/* Alternatives that have become the same are one. */
static void put(nb_json_walk *w, nb_json_set *to, const nb_json_frame *f)
{
    for (int i = 0; i < to->n; i++) {
        if (to->top[i] >= 0 && same_frame(&w->frame[to->top[i]], f))
            return;
    }
    if (to->n == NB_JSON_MAX_TOPS)
        return;
    const int16_t at = new_frame(w, f);
    if (at >= 0)
        to->top[to->n++] = at;
}

/* ---- lists of texts ---- */

void nb_json_narrow(const nb_json_spelling *text, int32_t len, uint8_t c, int32_t *a, int32_t *b)
{
    while (*a < *b && (text[*a].len <= len || (uint8_t)text[*a].bytes[len] < c))
        ++*a;
    int32_t end = *a;
    while (end < *b && (uint8_t)text[end].bytes[len] == c)
        end++;
    *b = end;
}

/* ---- what may come inside an object ---- */

static bool fits(const nb_json_walk *w, int depth, int32_t node)
{
    return depth + w->schema->node[node].height <= NB_JSON_MAX_DEPTH;
}

/* The last property that may come when `from` is the first one that may: what has to be there is
 * not passed over. */
static int32_t last_property(const nb_json_node *node, int32_t from)
{
    return node->needed[from] < node->n_texts ? node->needed[from] : node->n_texts - 1;
}

static bool may_be_further(const nb_json_walk *w, const nb_json_frame *object)
{
    const nb_json_node *node = node_of(w, object);
    return node->other >= 0 && node->needed[object->a] == node->n_texts &&
           fits(w, object->depth, node->other);
}

/* Is one of the names text[a, b) that of a property that may come? */
static bool may_be_declared(const nb_json_walk *w, const nb_json_frame *object, int32_t a,
                            int32_t b)
{
    const nb_json_node *node = node_of(w, object);
    const int32_t last = last_property(node, object->a);
    for (int32_t i = a; i < b; i++) {
        const int32_t p = node->text[i].index;
        if (p >= object->a && p <= last && fits(w, object->depth, node->child[p]))
            return true;
    }
    return false;
}

/* A name begins, by its quote. */
static void begin_key(nb_json_walk *w, int16_t at, nb_json_set *to)
{
    const nb_json_frame object = w->frame[at];
    const nb_json_node *node = node_of(w, &object);
    nb_json_frame key = {.parent = at, .node = object.node, .depth = object.depth, .len = 1};
    key.b = node->n_texts;
    if (may_be_declared(w, &object, 0, node->n_texts)) {
        key.state = NB_JSON_AT_KEY;
        put(w, to, &key);
    }
    if (!may_be_further(w, &object))
        return;
    nb_json_frame further = object;
    further.state = NB_JSON_AT_OBJECT_COLON;
    further.space = 0;
    further.a = node->n_texts;
    further.b = node->other;
    key.parent = new_frame(w, &further);
    if (key.parent < 0)
        return;
    key.state = NB_JSON_AT_KEY_FURTHER;
    key.space = NB_JSON_S_BODY;
    if (node->n_texts == 0) /* there is nothing to differ from */
        key = (nb_json_frame){.parent = key.parent,
                              .node = (int16_t)w->schema->any_string,
                              .state = NB_JSON_S_BODY,
                              .depth = key.depth};
    put(w, to, &key);
}

bool nb_json_in_further_name(const nb_json_frame *f)
{
    return f->state == NB_JSON_AT_KEY_FURTHER && f->space == NB_JSON_S_BODY;
}

static void step_key(nb_json_walk *w, const nb_json_frame *f, uint8_t c, nb_json_set *to)
{
    const nb_json_frame object = w->frame[f->parent];
    const nb_json_node *node = node_of(w, f);
    nb_json_frame g = *f;
    nb_json_narrow(node->text, f->len, c, &g.a, &g.b);
    if (!may_be_declared(w, &object, g.a, g.b))
        return;
    g.len++;
    if (node->text[g.a].len > g.len) {
        put(w, to, &g);
        return;
    }
    nb_json_frame next = object; /* the name is whole: no other begins with it, quote included */
    next.state = NB_JSON_AT_OBJECT_COLON;
    next.space = 0;
    next.a = node->text[g.a].index + 1;
    next.b = node->child[node->text[g.a].index];
    put(w, to, &next);
}

/* A name that must not become one of those declared, not even by escapes: none of them is admitted
 * before the name differs. */
static void step_key_further(nb_json_walk *w, const nb_json_frame *f, uint8_t c, nb_json_set *to)
{
    const nb_json_string_state next = nb_json_string_next((nb_json_string_state)f->space, c);
    nb_json_frame g = *f;
    nb_json_narrow(node_of(w, f)->text, f->len, c, &g.a, &g.b);
    if (next == NB_JSON_S_DEAD || (next == NB_JSON_S_CLOSED && g.a < g.b))
        return;
    if (next == NB_JSON_S_CLOSED) {
        put_top(to, f->parent);
        return;
    }
    if (c == '\\' && f->b > f->a)
        return;
    g.len++;
    g.space = (uint8_t)next;
    if (g.a == g.b)
        g = (nb_json_frame){.parent = f->parent,
                            .node = (int16_t)w->schema->any_string,
                            .state = (uint8_t)next,
                            .depth = f->depth};
    put(w, to, &g);
}

/* Numbers and literals that others begin with end where something else comes. */
static bool is_final(const nb_json_walk *w, const nb_json_frame *f)
{
    const nb_json_node *node = node_of(w, f);
    if (f->state == NB_JSON_AT_LITERAL)
        return node->text[f->a].len == f->len;
    return nb_json_number_is_final(node, f);
}

/* ---- values ---- */

static void step_literal(nb_json_walk *w, const nb_json_frame *f, uint8_t c, nb_json_set *to)
{
    const nb_json_spelling *text = node_of(w, f)->text;
    nb_json_frame g = *f;
    nb_json_narrow(text, f->len, c, &g.a, &g.b);
    if (g.a == g.b)
        return;
    g.len++;
    if (g.b - g.a == 1 && text[g.a].len == g.len)
        put_top(to, f->parent);
    else
        put(w, to, &g);
}

/* A value of an alternative begins with c; afterwards frame `parent` goes on. */
static void begin(nb_json_walk *w, int32_t alt, int16_t parent, uint8_t depth, uint8_t c,
                  nb_json_set *to)
{
    const nb_json_node *node = &w->schema->node[alt];
    nb_json_frame f = {.parent = parent, .node = (int16_t)alt, .depth = depth};
    if (!fits(w, depth, alt))
        return;
    switch (node->kind) {
    case NB_JSON_OBJECT:
    case NB_JSON_ARRAY:
        if (c != (node->kind == NB_JSON_OBJECT ? '{' : '['))
            return;
        f.state = node->kind == NB_JSON_OBJECT ? NB_JSON_AT_OBJECT_FIRST : NB_JSON_AT_ARRAY_FIRST;
        f.depth++;
        break;
    case NB_JSON_STRING:
        if (c != '"')
            return;
        f.state = NB_JSON_S_BODY;
        break;
    case NB_JSON_NUMBER:
        f.state = NB_JSON_AT_MINUS;
        if ((c != '-' || node->nonnegative) && !nb_json_next_number(&f, c))
            return;
        break;
    case NB_JSON_INTEGER:
        f.state = NB_JSON_AT_WHOLE_MINUS;
        f.negative = c == '-';
        if (c == '-' ? !nb_json_may_be_negative(node) : !nb_json_next_whole(node, &f, c))
            return;
        break;
    case NB_JSON_LITERAL:
        f.state = NB_JSON_AT_LITERAL;
        f.b = node->n_texts;
        step_literal(w, &f, c, to);
        return;
    case NB_JSON_ANY_OF:
        return; /* lists of alternatives are flat */
    }
    put(w, to, &f);
}

static void begin_any(nb_json_walk *w, int32_t node, int16_t parent, uint8_t depth, uint8_t c,
                      nb_json_set *to)
{
    const nb_json_node *n = &w->schema->node[node];
    for (int32_t i = 0; i < n->n_alts; i++)
        begin(w, n->alt[i], parent, depth, c, to);
}

/* ---- objects and arrays ---- */

static void step_object(nb_json_walk *w, int16_t at, uint8_t c, nb_json_set *to)
{
    const nb_json_frame f = w->frame[at];
    const nb_json_node *node = node_of(w, &f);
    nb_json_frame g = f;
    g.space = 0;
    if (c == '}' && f.state != NB_JSON_AT_OBJECT_KEY && f.state != NB_JSON_AT_OBJECT_COLON) {
        if (node->needed[f.a] == node->n_texts)
            put_top(to, f.parent);
    } else if (c == '"' &&
               (f.state == NB_JSON_AT_OBJECT_FIRST || f.state == NB_JSON_AT_OBJECT_KEY)) {
        begin_key(w, at, to);
    } else if (c == ',' && f.state == NB_JSON_AT_OBJECT_NEXT) {
        g.state = NB_JSON_AT_OBJECT_KEY;
        if (may_be_declared(w, &f, 0, node->n_texts) || may_be_further(w, &f))
            put(w, to, &g);
    } else if (c == ':' && f.state == NB_JSON_AT_OBJECT_COLON) {
        nb_json_frame value = {.node = (int16_t)f.b, .state = NB_JSON_AT_VALUE, .depth = f.depth};
        g.state = NB_JSON_AT_OBJECT_NEXT;
        g.b = 0;
        value.parent = new_frame(w, &g);
        if (value.parent >= 0)
            put(w, to, &value);
    }
}

/* The node of item i; -1: there is none, or none that fits. */
static int32_t item(const nb_json_walk *w, const nb_json_frame *f, int32_t i)
{
    const nb_json_node *node = node_of(w, f);
    const int32_t child = i < node->n_children ? node->child[i] : node->other;
    return i < node->max && child >= 0 && fits(w, f->depth, child) ? child : -1;
}

static void step_array(nb_json_walk *w, int16_t at, uint8_t c, nb_json_set *to)
{
    const nb_json_frame f = w->frame[at];
    const nb_json_node *node = node_of(w, &f);
    if (c == ']') {
        if (f.a >= node->min)
            put_top(to, f.parent);
        return;
    }
    const int32_t child = item(w, &f, f.a);
    if (child < 0 || (f.state == NB_JSON_AT_ARRAY_NEXT) != (c == ','))
        return;
    nb_json_frame g = f;
    g.state = NB_JSON_AT_ARRAY_NEXT;
    g.space = 0;
    /* Once a number says nothing any more, it stands still: arrays that differ in it are alike. */
    if (node->max < NB_JSON_NO_MAX || f.a < node->min || f.a < node->n_children)
        g.a++;
    const int16_t next = new_frame(w, &g);
    if (next < 0)
        return;
    if (f.state == NB_JSON_AT_ARRAY_NEXT)
        put(w, to,
            &(nb_json_frame){.parent = next,
                             .node = (int16_t)child,
                             .state = NB_JSON_AT_VALUE,
                             .depth = f.depth});
    else
        begin_any(w, child, next, f.depth, c, to);
}

static void step_string(nb_json_walk *w, int16_t at, uint8_t c, nb_json_set *to)
{
    const nb_json_frame *f = &w->frame[at];
    const nb_json_node *node = node_of(w, f);
    const nb_json_string_state next = nb_json_string_next((nb_json_string_state)f->state, c);
    nb_json_frame g = *f;
    if (next == NB_JSON_S_DEAD)
        return;
    if (next == NB_JSON_S_CLOSED) {
        if (f->a >= node->min)
            put_top(to, f->parent);
        return;
    }
    g.state = (uint8_t)next;
    if (f->state == NB_JSON_S_BODY) {
        if (f->a >= node->max)
            return;
        if (node->max < NB_JSON_NO_MAX || f->a < node->min)
            g.a++;
    }
    if (g.state == f->state && g.a == f->a)
        put_top(to, at);
    else
        put(w, to, &g);
}

static bool step_space(nb_json_walk *w, const nb_json_frame *f, uint8_t c, nb_json_set *to)
{
    if (!is_space(c) || f->state < NB_JSON_AT_VALUE || f->state > NB_JSON_AT_ARRAY_NEXT ||
        f->state == NB_JSON_AT_KEY || f->state == NB_JSON_AT_KEY_FURTHER)
        return false;
    nb_json_frame g = *f;
    if (g.space++ < NB_JSON_MAX_SPACE)
        put(w, to, &g);
    return true;
}

/* Where one frame leads. What ends only where something else comes leaves the byte to its parent.
 */
static void step_one(nb_json_walk *w, int16_t at, uint8_t c, nb_json_set *to)
{
    while (at >= 0) {
        const nb_json_frame f = w->frame[at];
        nb_json_frame g = f;
        if (f.state < NB_JSON_S_LAST) {
            step_string(w, at, c, to);
            return;
        }
        if (step_space(w, &f, c, to))
            return;
        switch (f.state) {
        case NB_JSON_AT_VALUE:
            begin_any(w, f.node, f.parent, f.depth, c, to);
            return;
        case NB_JSON_AT_KEY:
            step_key(w, &f, c, to);
            return;
        case NB_JSON_AT_KEY_FURTHER:
            step_key_further(w, &f, c, to);
            return;
        case NB_JSON_AT_ARRAY_FIRST:
        case NB_JSON_AT_ARRAY_NEXT:
            step_array(w, at, c, to);
            return;
        case NB_JSON_AT_LITERAL:
            step_literal(w, &f, c, to);
            break;
        case NB_JSON_AT_WHOLE_MINUS:
        case NB_JSON_AT_WHOLE_ZERO:
        case NB_JSON_AT_WHOLE:
            if (nb_json_next_whole(node_of(w, &f), &g, c)) {
                put(w, to, &g);
                return;
            }
            break;
        default:
            if (f.state < NB_JSON_AT_KEY) {
                step_object(w, at, c, to);
                return;
            }
            if (nb_json_next_number(&g, c)) {
                put(w, to, &g);
                return;
            }
        }
        if (!is_final(w, &f))
            return;
        at = f.parent;
    }
}

void nb_json_step(nb_json_walk *w, const nb_json_set *from, uint8_t c, nb_json_set *to)
{
    to->n = 0;
    for (int i = 0; i < from->n; i++)
        step_one(w, from->top[i], c, to);
}

/* ---- the walk ---- */

nb_status nb_json_walk_init(nb_json_walk *w, const nb_json_schema *schema, nb_err *err)
{
    *w = (nb_json_walk){.schema = schema};
    nb_status s = NB_ALLOC(&w->frame, NB_JSON_MAX_FRAMES, err);
    if (s == NB_OK)
        s = NB_ALLOC(&w->moved, NB_JSON_MAX_FRAMES, err);
    if (s != NB_OK)
        nb_json_walk_free(w);
    else if (schema != NULL)
        nb_json_walk_begin(w);
    return s;
}

void nb_json_walk_free(nb_json_walk *w)
{
    nb_free(w->frame);
    nb_free(w->moved);
    *w = (nb_json_walk){0};
}

void nb_json_walk_begin(nb_json_walk *w)
{
    w->frame[0] = (nb_json_frame){
        .parent = -1, .node = (int16_t)w->schema->root, .state = NB_JSON_AT_VALUE, .depth = 0};
    w->n_frames = 1;
    w->now = (nb_json_set){.n = 1};
}

void nb_json_walk_copy(nb_json_walk *to, const nb_json_walk *from)
{
    memcpy(to->frame, from->frame, (size_t)from->n_frames * sizeof *from->frame);
    to->schema = from->schema;
    to->n_frames = from->n_frames;
    to->now = from->now;
}

/* Keeps the frames that the tops stand on, and closes the gaps. A parent is older than its child,
 * so that one pass down marks and one pass up moves. */
static void forget(nb_json_walk *w)
{
    for (int32_t i = 0; i < w->n_frames; i++)
        w->moved[i] = -1;
    for (int i = 0; i < w->now.n; i++) {
        if (w->now.top[i] >= 0)
            w->moved[w->now.top[i]] = 0;
    }
    for (int32_t i = w->n_frames - 1; i >= 0; i--) {
        if (w->moved[i] == 0 && w->frame[i].parent >= 0)
            w->moved[w->frame[i].parent] = 0;
    }
    int16_t n = 0;
    for (int32_t i = 0; i < w->n_frames; i++) {
        if (w->moved[i] < 0)
            continue;
        nb_json_frame f = w->frame[i];
        f.parent = f.parent < 0 ? (int16_t)-1 : w->moved[f.parent];
        w->moved[i] = n;
        w->frame[n++] = f;
    }
    for (int i = 0; i < w->now.n; i++) {
        if (w->now.top[i] >= 0)
            w->now.top[i] = w->moved[w->now.top[i]];
    }
    w->n_frames = n;
}

bool nb_json_take(nb_json_walk *w, const char *bytes, size_t len)
{
    const nb_json_set before = w->now;
    const int32_t n_frames = w->n_frames;
    nb_json_set next;
    for (size_t i = 0; i < len; i++) {
        nb_json_step(w, &w->now, (uint8_t)bytes[i], &next);
        w->now = next;
        if (next.n == 0) {
            w->now = before;
            w->n_frames = n_frames;
            return false;
        }
    }
    forget(w);
    return true;
}

bool nb_json_may_end(const nb_json_walk *w)
{
    for (int i = 0; i < w->now.n; i++) {
        const int16_t at = w->now.top[i];
        if (at < 0 || (w->frame[at].parent < 0 && is_final(w, &w->frame[at])))
            return true;
    }
    return false;
}

bool nb_json_must_end(const nb_json_walk *w)
{
    for (int i = 0; i < w->now.n; i++) {
        if (w->now.top[i] >= 0)
            return false;
    }
    return true;
}
