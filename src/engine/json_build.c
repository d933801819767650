/* See json_build.h. */
#include "engine/json_build.h"

#include <stdlib.h>
#include <string.h>

/* ---- nodes ---- */

static nb_status new_node(nb_json_build *b, nb_json_place place, int32_t *id, nb_err *err)
{
    nb_json_schema *s = b->schema;
    if (s->n_nodes == NB_JSON_MAX_NODES)
        return nb_fail(err, NB_LIMIT, "the schema has more than %d parts", NB_JSON_MAX_NODES);
    *id = s->n_nodes++;
    s->node[*id] = (nb_json_node){.kind = NB_JSON_ANY_OF, .other = -1, .max = NB_JSON_NO_MAX};
    b->place[*id] = place;
    return NB_OK;
}

nb_status nb_json_add(nb_json_build *b, nb_json_place place, int32_t *id, nb_err *err)
{
    const size_t mask = 2 * NB_JSON_MAX_NODES - 1;
    size_t at = (size_t)((uintptr_t)place.json / 16 * 0x9e3779b1u) & mask;
    for (; b->slot[at] != 0; at = (at + 1) & mask) {
        *id = b->slot[at] - 1;
        if (b->place[*id].json == place.json)
            return NB_OK;
    }
    NB_TRY(new_node(b, place, id, err));
    b->slot[at] = *id + 1;
    return NB_OK;
}

nb_status nb_json_make(nb_json_build *b, nb_json_kind kind, int32_t parent, int32_t *id,
                       nb_err *err)
{
    NB_TRY(new_node(b, (nb_json_place){.parent = parent, .index = -1}, id, err));
    b->schema->node[*id].kind = kind;
    return NB_OK;
}

nb_status nb_json_set_alts(nb_json_build *b, int32_t id, const int32_t *alt, int32_t n, nb_err *err)
{
    nb_json_node *node = &b->schema->node[id];
    NB_TRY(NB_ARENA_ALLOC(&b->schema->arena, &node->alt, n, err));
    memcpy(node->alt, alt, (size_t)n * sizeof *alt);
    node->n_alts = n;
    return NB_OK;
}

static nb_status any_words(nb_json_build *b, int32_t id, nb_err *err)
{
    json_t *values = json_pack("[n, b, b]", 0, 1);
    if (values == NULL)
        return nb_fail(err, NB_MEMORY, "out of memory");
    const nb_status s = nb_json_literals(b, id, values, NULL, NULL, err);
    json_decref(values);
    return s;
}

nb_status nb_json_any(nb_json_build *b, int32_t *id, nb_err *err)
{
    if (b->any >= 0) {
        *id = b->any;
        return NB_OK;
    }
    int32_t any, alt[5];
    nb_json_schema *s = b->schema;
    static const nb_json_kind kinds[5] = {NB_JSON_OBJECT, NB_JSON_ARRAY, NB_JSON_STRING,
                                          NB_JSON_NUMBER, NB_JSON_LITERAL};
    NB_TRY(nb_json_make(b, NB_JSON_ANY_OF, -1, &any, err));
    for (int i = 0; i < 5; i++)
        NB_TRY(nb_json_make(b, kinds[i], any, &alt[i], err));
    s->node[alt[0]].other = s->node[alt[1]].other = any;
    NB_TRY(NB_ARENA_ALLOC(&s->arena, &s->node[alt[0]].needed, 1, err));
    NB_TRY(any_words(b, alt[4], err));
    NB_TRY(nb_json_set_alts(b, any, alt, 5, err));
    *id = b->any = any;
    return NB_OK;
}

/* ---- texts ---- */

nb_status nb_json_spell(nb_json_build *b, const json_t *value, nb_json_spelling *out, nb_err *err)
{
    nb_buf text = {.limit = NB_JSON_MAX_TEXT};
    char *copy = NULL;
    nb_status s = NB_OK;
    if (json_is_real(value) && json_real_value(value) == (double)(int64_t)json_real_value(value) &&
        json_real_value(value) > -1e18 && json_real_value(value) < 1e18) {
        /* 1.0 and 1 are the same value: they get the same text. */
        s = nb_buf_format(&text, err, "%lld", (long long)json_real_value(value));
    } else {
        s = nb_json_write(&text, value, false, err);
    }
    if (s == NB_OK)
        s = nb_arena_text(&b->schema->arena, &copy, (const char *)text.data, text.len, err);
    if (s == NB_OK)
        *out = (nb_json_spelling){.bytes = copy, .len = (int32_t)text.len};
    nb_buf_free(&text);
    return s;
}

static int by_bytes(const void *a, const void *b)
{
    const nb_json_spelling *x = a, *y = b;
    const int order = memcmp(x->bytes, y->bytes, (size_t)(x->len < y->len ? x->len : y->len));
    return order != 0 ? order : (x->len > y->len) - (x->len < y->len);
}

void nb_json_sort(nb_json_spelling *text, int32_t n)
{
    qsort(text, (size_t)n, sizeof *text, by_bytes);
}

nb_status nb_json_literals(nb_json_build *b, int32_t id, const json_t *values,
                           nb_json_keep_fn *keep, const void *context, nb_err *err)
{
    nb_json_node *node = &b->schema->node[id];
    const size_t n = json_array_size(values);
    node->kind = NB_JSON_LITERAL;
    NB_TRY(NB_ARENA_ALLOC(&b->schema->arena, &node->text, n + 1, err));
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(values, i);
        if (keep == NULL || keep(context, v))
            NB_TRY(nb_json_spell(b, v, &node->text[node->n_texts++], err));
    }
    nb_json_sort(node->text, node->n_texts);
    int32_t kept = 0; /* equal values once */
    for (int32_t i = 0; i < node->n_texts; i++) {
        if (kept == 0 || by_bytes(&node->text[kept - 1], &node->text[i]) != 0)
            node->text[kept++] = node->text[i];
    }
    node->n_texts = kept;
    return NB_OK;
}

/* ---- places ---- */

/* Puts text before what `path` holds from *at on; false when it does not fit. */
static bool prepend(char *path, size_t *at, const char *text)
{
    const size_t len = strlen(text);
    if (len > *at)
        return false;
    *at -= len;
    memcpy(path + *at, text, len);
    return true;
}

nb_status nb_json_blame(const nb_json_build *b, int32_t id, nb_err *err)
{
    char path[240], index[16];
    size_t at = sizeof path - 1;
    bool fits = true;
    path[at] = 0;
    for (; id >= 0 && fits; id = b->place[id].parent) {
        const nb_json_place *p = &b->place[id];
        if (p->index >= 0) {
            snprintf(index, sizeof index, "/%d", (int)p->index);
            fits = prepend(path, &at, index);
        }
        if (p->name != NULL)
            fits = fits && prepend(path, &at, p->name) && prepend(path, &at, "/");
        if (p->key != NULL)
            fits = fits && prepend(path, &at, p->key) && prepend(path, &at, "/");
    }
    return nb_context(err, "JSON schema, at '%s%s'", fits ? "#" : "...", path + at);
}
