/* See json_schema.h. From a text to nodes: all places are read, alternatives of alternatives become
 * one list, and what no value satisfies is found. */
#include "engine/json_build.h"

#include <string.h>

#define ARENA_LIMIT ((size_t)8 << 20)
/* Alternatives of all nodes together, once lists of lists are flat. */
#define MAX_FLAT 65536

/* ---- alternatives ---- */

/* Gathers what node `id` may be, without the lists in between: each once. `seen` [n_nodes] holds
 * the number of the last search that met a node. */
static int32_t flatten(const nb_json_build *b, int32_t id, int32_t *seen, int32_t *stack,
                       int32_t *found)
{
    const nb_json_node *node = b->schema->node;
    int32_t n_stack = 0, n_found = 0;
    stack[n_stack++] = id;
    seen[id] = id + 1;
    while (n_stack > 0) {
        const int32_t at = stack[--n_stack];
        if (node[at].kind != NB_JSON_ANY_OF) {
            found[n_found++] = at;
            continue;
        }
        for (int32_t i = node[at].n_alts - 1; i >= 0; i--) {
            const int32_t next = node[at].alt[i];
            if (seen[next] != id + 1) {
                seen[next] = id + 1;
                stack[n_stack++] = next; /* each node once: it fits */
            }
        }
    }
    return n_found;
}

/* The alternatives that may begin with the same character are walked side by side. */
static nb_status count_overlaps(const nb_json_node *node, const int32_t *alt, int32_t n,
                                nb_err *err)
{
    int count[3] = {0};
    for (int32_t i = 0; i < n; i++) {
        const nb_json_kind kind = node[alt[i]].kind;
        count[kind == NB_JSON_OBJECT ? 0 : kind == NB_JSON_ARRAY ? 1 : 2]++;
    }
    for (int k = 0; k < 3; k++) {
        if (count[k] > NB_JSON_MAX_ALTS)
            return nb_fail(err, NB_LIMIT, "%d alternatives of one kind: there may be %d", count[k],
                           NB_JSON_MAX_ALTS);
    }
    return NB_OK;
}

/* ---- oneOf ---- */

static bool share_a_text(const nb_json_node *x, const nb_json_node *y)
{
    for (int32_t i = 0, k = 0; i < x->n_texts && k < y->n_texts;) {
        const nb_json_spelling *a = &x->text[i], *c = &y->text[k];
        const int order = memcmp(a->bytes, c->bytes, (size_t)(a->len < c->len ? a->len : c->len));
        if (order == 0 && a->len == c->len)
            return true;
        if (order < 0 || (order == 0 && a->len < c->len))
            i++;
        else
            k++;
    }
    return false;
}

/* Both objects have to have a property whose values are listed, and none is on both lists. */
static bool objects_differ(const nb_json_node *node, const nb_json_node *x, const nb_json_node *y)
{
    for (int32_t i = 0, k = 0; i < x->n_texts && k < y->n_texts;) {
        const nb_json_spelling *a = &x->text[i], *c = &y->text[k];
        const int order = memcmp(a->bytes, c->bytes, (size_t)(a->len < c->len ? a->len : c->len));
        if (order != 0 || a->len != c->len) {
            if (order < 0 || (order == 0 && a->len < c->len))
                i++;
            else
                k++;
            continue;
        }
        const nb_json_node *v = &node[x->child[a->index]], *w = &node[y->child[c->index]];
        if (x->needed[a->index] == a->index && y->needed[c->index] == c->index &&
            v->kind == NB_JSON_LITERAL && w->kind == NB_JSON_LITERAL && !share_a_text(v, w))
            return true;
        i++;
        k++;
    }
    return false;
}

/* The kinds of values that a node admits, by their first characters. */
static unsigned first_kinds(const nb_json_node *x)
{
    static const unsigned of[] = {[NB_JSON_OBJECT] = 1,
                                  [NB_JSON_ARRAY] = 2,
                                  [NB_JSON_STRING] = 4,
                                  [NB_JSON_NUMBER] = 8,
                                  [NB_JSON_INTEGER] = 8};
    unsigned set = 0;
    if (x->kind != NB_JSON_LITERAL)
        return of[x->kind];
    for (int32_t i = 0; i < x->n_texts; i++) {
        const char c = x->text[i].bytes[0];
        set |= c == '{' ? 1u : c == '[' ? 2u : c == '"' ? 4u : c == '-' || c <= '9' ? 8u : 16u;
    }
    return set;
}

static bool disjoint(const nb_json_node *node, const nb_json_node *x, const nb_json_node *y)
{
    if ((first_kinds(x) & first_kinds(y)) == 0)
        return true;
    if (x->kind == NB_JSON_LITERAL && y->kind == NB_JSON_LITERAL)
        return !share_a_text(x, y);
    if (x->kind == NB_JSON_OBJECT && y->kind == NB_JSON_OBJECT)
        return objects_differ(node, x, y);
    return x->kind == NB_JSON_INTEGER && y->kind == NB_JSON_INTEGER &&
           (x->max < y->min || y->max < x->min);
}

/* Of a oneOf whose members have flat lists: a value that satisfies two members satisfies none. */
static nb_status check_one_of(const nb_json_node *node, const int32_t *member, int32_t n,
                              nb_err *err)
{
    for (int32_t i = 0; i < n; i++) {
        for (int32_t k = i + 1; k < n; k++) {
            const nb_json_node *x = &node[member[i]], *y = &node[member[k]];
            for (int32_t u = 0; u < x->n_alts; u++) {
                for (int32_t v = 0; v < y->n_alts; v++) {
                    if (!disjoint(node, &node[x->alt[u]], &node[y->alt[v]]))
                        return nb_fail(err, NB_UNSUPPORTED,
                                       "members %d and %d of oneOf may hold for the same value; "
                                       "anyOf admits that",
                                       (int)i, (int)k);
                }
            }
        }
    }
    return NB_OK;
}

/* Makes all lists of alternatives flat. */
static nb_status flatten_all(nb_json_build *b, nb_err *err)
{
    nb_json_schema *s = b->schema;
    const size_t n = (size_t)s->n_nodes;
    int32_t *seen = NULL, *stack = NULL, *found = NULL, **flat = NULL, *n_flat = NULL, total = 0;
    nb_status status;
    NB_TRY_GOTO(status, NB_ALLOC(&seen, n, err));
    NB_TRY_GOTO(status, NB_ALLOC(&stack, n, err));
    NB_TRY_GOTO(status, NB_ALLOC(&found, n, err));
    NB_TRY_GOTO(status, NB_ALLOC(&flat, n, err));
    NB_TRY_GOTO(status, NB_ALLOC(&n_flat, n, err));
    for (int32_t id = 0; id < s->n_nodes; id++) {
        n_flat[id] = flatten(b, id, seen, stack, found);
        total += n_flat[id];
        status = total <= MAX_FLAT ? count_overlaps(s->node, found, n_flat[id], err)
                                   : nb_fail(err, NB_LIMIT, "too many alternatives");
        if (status != NB_OK) {
            nb_json_blame(b, id, err);
            goto done;
        }
        NB_TRY_GOTO(status, NB_ARENA_ALLOC(&s->arena, &flat[id], n_flat[id], err));
        memcpy(flat[id], found, (size_t)n_flat[id] * sizeof *found);
    }
    for (int32_t id = 0; id < s->n_nodes; id++) {
        int32_t *members = s->node[id].alt; /* as the schema lists them */
        const int32_t n_members = s->node[id].n_alts;
        s->node[id].alt = flat[id];
        s->node[id].n_alts = n_flat[id];
        flat[id] = members;
        n_flat[id] = n_members;
    }
    for (int32_t id = 0; id < s->n_nodes; id++) {
        if (!b->place[id].one_of)
            continue;
        status = check_one_of(s->node, flat[id], n_flat[id], err);
        if (status != NB_OK) {
            nb_json_blame(b, id, err);
            goto done;
        }
    }
done:
    nb_free(seen);
    nb_free(stack);
    nb_free(found);
    nb_free(flat);
    nb_free(n_flat);
    return status;
}

/* ---- what can be satisfied ---- */

static int32_t larger(int32_t a, int32_t b)
{
    return a > b ? a : b;
}

static int32_t height_of(const nb_json_node *node, const nb_json_node *x)
{
    int32_t h = x->kind == NB_JSON_ANY_OF ? NB_JSON_NEVER : 0;
    switch (x->kind) {
    case NB_JSON_ANY_OF:
        for (int32_t i = 0; i < x->n_alts; i++)
            h = node[x->alt[i]].height < h ? node[x->alt[i]].height : h;
        return h;
    case NB_JSON_OBJECT:
        for (int32_t i = 0; i < x->n_children; i++) {
            if (x->needed[i] == i)
                h = larger(h, node[x->child[i]].height);
        }
        break;
    case NB_JSON_ARRAY:
        for (int32_t i = 0; i < x->n_children && i < x->min; i++)
            h = larger(h, node[x->child[i]].height);
        if (x->min > x->n_children && x->other >= 0)
            h = larger(h, node[x->other].height);
        break;
    case NB_JSON_LITERAL:
        return x->n_texts > 0 ? 0 : NB_JSON_NEVER;
    case NB_JSON_STRING:
    case NB_JSON_NUMBER:
    case NB_JSON_INTEGER:
        return x->min <= x->max ? 0 : NB_JSON_NEVER;
    }
    return h < NB_JSON_MAX_DEPTH && x->min <= x->max ? h + 1 : NB_JSON_NEVER;
}

/* Heights from below: at first nothing can be satisfied, then what nests one level less than in
 * the round before. */
static void find_heights(nb_json_schema *s)
{
    for (int32_t i = 0; i < s->n_nodes; i++)
        s->node[i].height = NB_JSON_NEVER;
    for (bool changed = true; changed;) {
        changed = false;
        for (int32_t i = s->n_nodes - 1; i >= 0; i--) {
            const int32_t h = height_of(s->node, &s->node[i]);
            changed |= h != s->node[i].height;
            s->node[i].height = h;
        }
    }
}

/* ---- the whole ---- */

static nb_status build(nb_json_build *b, nb_err *err)
{
    nb_json_schema *s = b->schema;
    NB_TRY(
        nb_json_add(b, (nb_json_place){.json = b->doc, .parent = -1, .index = -1}, &s->root, err));
    NB_TRY(nb_json_make(b, NB_JSON_STRING, -1, &s->any_string, err));
    for (int32_t id = 0; id < s->n_nodes; id++) {
        /* What was made is filled; types of one schema share its json, and are filled, too. */
        if (b->place[id].json == NULL || s->node[id].kind != NB_JSON_ANY_OF ||
            s->node[id].n_alts > 0)
            continue;
        if (nb_json_read(b, id, err) != NB_OK)
            return nb_json_blame(b, id, err);
    }
    NB_TRY(flatten_all(b, err));
    find_heights(s);
    if (s->node[s->root].height == NB_JSON_NEVER)
        return nb_fail(err, NB_DATA, "JSON schema: no value of at most %d levels satisfies it",
                       NB_JSON_MAX_DEPTH);
    return NB_OK;
}

nb_status nb_json_schema_compile(nb_json_schema **out, const char *text, size_t len, nb_err *err)
{
    if (len > NB_JSON_MAX_TEXT)
        return nb_fail(err, NB_LIMIT, "a JSON schema of %zu bytes: it may have %d", len,
                       NB_JSON_MAX_TEXT);
    nb_json_build b = {.any = -1};
    json_t *doc = NULL;
    nb_status s;
    NB_TRY_GOTO(s, NB_ALLOC(&b.schema, 1, err));
    b.schema->arena.limit = ARENA_LIMIT;
    NB_TRY_GOTO(s, NB_ALLOC(&b.schema->node, NB_JSON_MAX_NODES, err));
    NB_TRY_GOTO(s, NB_ALLOC(&b.place, NB_JSON_MAX_NODES, err));
    NB_TRY_GOTO(s, NB_ALLOC(&b.slot, 2 * NB_JSON_MAX_NODES, err));
    s = nb_json_parse(&doc, text, len, err);
    if (s != NB_OK) {
        nb_context(err, "JSON schema");
        goto done;
    }
    b.doc = doc;
    s = build(&b, err);
done:
    json_decref(doc);
    nb_free(b.place);
    nb_free(b.slot);
    if (s == NB_OK)
        *out = b.schema;
    else
        nb_json_schema_free(b.schema);
    return s;
}

void nb_json_schema_free(nb_json_schema *schema)
{
    if (schema == NULL)
        return;
    nb_arena_free(&schema->arena);
    nb_free(schema->node);
    nb_free(schema);
}
