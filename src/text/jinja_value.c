/* See jinja_value.h. */
#include "text/jinja_value.h"
#include "text/jinja_run.h"

#include <locale.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

bool nb_jv_is_int(nb_jv v, int64_t *i)
{
    if (v.kind != NB_JV_INT && v.kind != NB_JV_BOOL)
        return false;
    *i = v.kind == NB_JV_INT ? v.i : v.b;
    return true;
}

bool nb_jv_is_number(nb_jv v, double *f)
{
    int64_t i;
    if (nb_jv_is_int(v, &i)) {
        *f = (double)i;
        return true;
    }
    *f = v.f;
    return v.kind == NB_JV_FLOAT;
}

const char *nb_jv_type(nb_jv v)
{
    static const char *const NAMES[] = {
        [NB_JV_ABSENT] = "nothing",
        [NB_JV_UNDEFINED] = "Undefined",
        [NB_JV_NONE] = "NoneType",
        [NB_JV_BOOL] = "bool",
        [NB_JV_INT] = "int",
        [NB_JV_FLOAT] = "float",
        [NB_JV_TEXT] = "str",
        [NB_JV_LIST] = "list",
        [NB_JV_TUPLE] = "tuple",
        [NB_JV_DICT] = "dict",
        [NB_JV_NAMESPACE] = "Namespace",
        [NB_JV_LOOP] = "LoopContext",
        [NB_JV_MACRO] = "Macro",
        [NB_JV_FUNCTION] = "function",
        [NB_JV_METHOD] = "method",
    };
    return NAMES[v.kind];
}

static bool parse_int(nb_jspan text, int64_t *out)
{
    int base = 10;
    size_t i = 0;
    if (text.n > 2 && text.p[0] == '0') {
        const char c = (char)(text.p[1] | 0x20);
        base = c == 'x' ? 16 : c == 'o' ? 8 : c == 'b' ? 2 : 10;
        i = base == 10 ? 0 : 2;
    }
    int64_t value = 0;
    for (; i < text.n; i++) {
        const char c = text.p[i];
        if (c == '_')
            continue;
        const int digit = c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10;
        if (__builtin_mul_overflow(value, base, &value) ||
            __builtin_add_overflow(value, digit, &value))
            return false;
    }
    *out = value;
    return true;
}

bool nb_jv_parse_number(nb_jspan text, bool is_float, nb_jv *out)
{
    if (!is_float) {
        *out = nb_jv_int(0);
        return parse_int(text, &out->i);
    }
    /* strtod expects the decimal point of the locale, which a host program may have set. */
    char digits[400];
    const char *point = localeconv()->decimal_point;
    size_t n = 0;
    for (size_t i = 0; i < text.n; i++) {
        if (n + 8 > sizeof digits)
            return false;
        if (text.p[i] == '.')
            for (const char *c = point; *c != 0 && n + 2 < sizeof digits; c++)
                digits[n++] = *c;
        else if (text.p[i] != '_')
            digits[n++] = text.p[i];
    }
    digits[n] = 0;
    *out = nb_jv_float(strtod(digits, NULL));
    return true;
}

bool nb_jv_truth(nb_jv v)
{
    switch (v.kind) {
    case NB_JV_ABSENT:
    case NB_JV_UNDEFINED:
    case NB_JV_NONE:
        return false;
    case NB_JV_BOOL:
        return v.b;
    case NB_JV_INT:
        return v.i != 0;
    case NB_JV_FLOAT:
        return v.f != 0;
    case NB_JV_TEXT:
        return v.text.n > 0;
    case NB_JV_LIST:
    case NB_JV_TUPLE:
        return v.list->n > 0 || v.list->lazy;
    case NB_JV_DICT:
        return v.dict->n > 0;
    default:
        return true;
    }
}

static nb_status lists_equal(nb_jrun *r, const nb_jlist *a, const nb_jlist *b, bool *out)
{
    *out = a->n == b->n;
    for (int64_t i = 0; *out && i < a->n && i < b->n; i++)
        NB_TRY(nb_jv_equal(r, a->items[i], b->items[i], out));
    return NB_OK;
}

static nb_status dicts_equal(nb_jrun *r, const nb_jdict *a, const nb_jdict *b, bool *out)
{
    *out = a->n == b->n;
    for (int64_t i = 0; *out && i < a->n; i++) {
        const nb_jv *other = nb_jdict_find(r, b, a->entries[i].key);
        *out = other != NULL;
        if (other != NULL)
            NB_TRY(nb_jv_equal(r, a->entries[i].value, *other, out));
    }
    return NB_OK;
}

nb_status nb_jv_equal(nb_jrun *r, nb_jv a, nb_jv b, bool *out)
{
    double x, y;
    int64_t i, k;
    if (nb_jv_is_int(a, &i) && nb_jv_is_int(b, &k)) {
        *out = i == k;
        return NB_OK;
    }
    if (nb_jv_is_number(a, &x) && nb_jv_is_number(b, &y)) {
        *out = x == y;
        return NB_OK;
    }
    *out = false;
    if (a.kind != b.kind)
        return NB_OK;
    switch (a.kind) {
    case NB_JV_TEXT:
        *out = nb_jspan_equal(a.text, b.text);
        return nb_jrun_charge(r, *out ? a.text.n : 0);
    case NB_JV_LIST:
    case NB_JV_TUPLE:
    case NB_JV_DICT: {
        NB_TRY(nb_jrun_charge(r, 0));
        NB_TRY(nb_jrun_enter(r));
        const nb_status s = a.kind == NB_JV_DICT ? dicts_equal(r, a.dict, b.dict, out)
                                                 : lists_equal(r, a.list, b.list, out);
        nb_jrun_leave(r);
        return s;
    }
    case NB_JV_NAMESPACE:
        *out = a.dict == b.dict;
        return NB_OK;
    case NB_JV_LOOP:
        *out = a.loop == b.loop;
        return NB_OK;
    case NB_JV_MACRO:
        *out = a.macro == b.macro;
        return NB_OK;
    case NB_JV_FUNCTION:
        *out = a.function == b.function;
        return NB_OK;
    case NB_JV_METHOD:
        *out = a.method == b.method;
        return NB_OK;
    default:
        *out = true; /* none and none, undefined and undefined */
        return NB_OK;
    }
}

nb_status nb_jv_order(nb_jrun *r, nb_jv a, nb_jv b, const char *op, int *out)
{
    double x, y;
    int64_t i, k;
    if (nb_jv_is_int(a, &i) && nb_jv_is_int(b, &k)) {
        *out = (i > k) - (i < k);
        return NB_OK;
    }
    if (nb_jv_is_number(a, &x) && nb_jv_is_number(b, &y)) {
        *out = (x > y) - (x < y);
        return NB_OK;
    }
    if (a.kind == NB_JV_UNDEFINED || b.kind == NB_JV_UNDEFINED)
        return nb_jrun_undefined(r, a.kind == NB_JV_UNDEFINED ? a : b);
    if (a.kind == NB_JV_TEXT && b.kind == NB_JV_TEXT) {
        /* The order of UTF-8 bytes is that of code points. */
        const size_t n = a.text.n < b.text.n ? a.text.n : b.text.n;
        *out = n == 0 ? 0 : memcmp(a.text.p, b.text.p, n);
        if (*out == 0)
            *out = (a.text.n > b.text.n) - (a.text.n < b.text.n);
        return nb_jrun_charge(r, n);
    }
    if (a.kind == b.kind && (a.kind == NB_JV_LIST || a.kind == NB_JV_TUPLE)) {
        NB_TRY(nb_jrun_charge(r, 0));
        NB_TRY(nb_jrun_enter(r));
        nb_status s = NB_OK;
        bool equal = true;
        int64_t at = 0;
        for (; s == NB_OK && at < a.list->n && at < b.list->n; at++) {
            s = nb_jv_equal(r, a.list->items[at], b.list->items[at], &equal);
            if (s != NB_OK || !equal)
                break;
        }
        if (s == NB_OK && !equal)
            s = nb_jv_order(r, a.list->items[at], b.list->items[at], op, out);
        else
            *out = (a.list->n > b.list->n) - (a.list->n < b.list->n);
        nb_jrun_leave(r);
        return s;
    }
    return nb_jrun_fail(r, "'%s' not supported between instances of '%s' and '%s'", op,
                        nb_jv_type(a), nb_jv_type(b));
}

nb_status nb_jv_length(nb_jrun *r, nb_jv v, int64_t *out)
{
    *out = 0;
    switch (v.kind) {
    case NB_JV_UNDEFINED:
        return NB_OK;
    case NB_JV_TEXT:
        NB_TRY(nb_jrun_charge(r, v.text.n));
        *out = nb_jtext_count(v.text);
        return NB_OK;
    case NB_JV_LIST:
    case NB_JV_TUPLE:
        *out = v.list->n;
        return NB_OK;
    case NB_JV_DICT:
        *out = v.dict->n;
        return NB_OK;
    default:
        return nb_jrun_fail(r, "object of type '%s' has no len()", nb_jv_type(v));
    }
}

nb_status nb_jv_iterate(nb_jrun *r, nb_jv v, nb_jlist *out)
{
    *out = (nb_jlist){0};
    switch (v.kind) {
    case NB_JV_UNDEFINED:
        return NB_OK;
    case NB_JV_LIST:
    case NB_JV_TUPLE:
        *out = *v.list;
        return NB_OK;
    case NB_JV_DICT:
        NB_TRY(nb_jrun_charge(r, (size_t)v.dict->n * sizeof *out->items));
        NB_TRY(NB_JALLOC(r, &out->items, v.dict->n));
        for (; out->n < v.dict->n; out->n++)
            out->items[out->n] = v.dict->entries[out->n].key;
        return NB_OK;
    case NB_JV_TEXT: {
        int64_t n;
        NB_TRY(nb_jv_length(r, v, &n));
        NB_TRY(nb_jrun_charge(r, (size_t)n * sizeof *out->items));
        NB_TRY(NB_JALLOC(r, &out->items, n));
        for (size_t at = 0; at < v.text.n;) {
            uint32_t cp;
            const size_t len = nb_jtext_decode(v.text.p + at, v.text.n - at, &cp);
            out->items[out->n++] = nb_jv_text((nb_jspan){v.text.p + at, len});
            at += len;
        }
        return NB_OK;
    }
    default:
        return nb_jrun_fail(r, "'%s' object is not iterable", nb_jv_type(v));
    }
}

nb_status nb_jv_contains(nb_jrun *r, nb_jv v, nb_jv needle, bool *out)
{
    *out = false;
    switch (v.kind) {
    case NB_JV_UNDEFINED:
        return NB_OK;
    case NB_JV_TEXT:
        if (needle.kind != NB_JV_TEXT)
            return nb_jrun_fail(r, "'in <string>' requires string as left operand, not %s",
                                nb_jv_type(needle));
        *out = nb_jtext_find(v.text, needle.text) >= 0;
        return nb_jrun_charge(r, v.text.n);
    case NB_JV_LIST:
    case NB_JV_TUPLE:
        for (int64_t i = 0; !*out && i < v.list->n; i++) {
            NB_TRY(nb_jrun_charge(r, 0));
            NB_TRY(nb_jv_equal(r, v.list->items[i], needle, out));
        }
        return NB_OK;
    case NB_JV_DICT:
        if (needle.kind == NB_JV_LIST || needle.kind == NB_JV_DICT)
            return nb_jrun_fail(r, "unhashable type: '%s'", nb_jv_type(needle));
        *out = nb_jdict_find(r, v.dict, needle) != NULL;
        return nb_jrun_charge(r, 0);
    default:
        return nb_jrun_fail(r, "argument of type '%s' is not iterable", nb_jv_type(v));
    }
}

nb_status nb_jlist_new(nb_jrun *r, nb_jkind kind, int64_t cap, nb_jv *out)
{
    nb_jlist *list;
    NB_TRY(NB_JALLOC(r, &list, 1));
    NB_TRY(NB_JALLOC(r, &list->items, cap));
    list->cap = cap;
    *out = (nb_jv){.kind = kind, .list = list};
    return NB_OK;
}

nb_status nb_jlist_push(nb_jrun *r, nb_jlist *list, nb_jv item)
{
    if (list->n == list->cap) {
        const int64_t cap = list->cap < 8 ? 8 : 2 * list->cap;
        nb_jv *items;
        NB_TRY(NB_JALLOC(r, &items, cap));
        if (list->n > 0)
            memcpy(items, list->items, (size_t)list->n * sizeof *items);
        list->items = items;
        list->cap = cap;
    }
    list->items[list->n++] = item;
    return NB_OK;
}

nb_status nb_jdict_new(nb_jrun *r, nb_jkind kind, nb_jv *out)
{
    nb_jdict *d;
    NB_TRY(NB_JALLOC(r, &d, 1));
    *out = (nb_jv){.kind = kind, .dict = d};
    return NB_OK;
}

/* False for what cannot be a key. Numbers that are equal have equal hashes. */
static bool hash_key(nb_jv key, uint64_t *out)
{
    uint64_t h = 0xcbf29ce484222325u; /* FNV-1a */
    double f;
    int64_t i;
    if (key.kind == NB_JV_TEXT) {
        for (size_t k = 0; k < key.text.n; k++)
            h = (h ^ (unsigned char)key.text.p[k]) * 0x100000001b3u;
    } else if (nb_jv_is_int(key, &i)) {
        h ^= (uint64_t)i;
    } else if (key.kind == NB_JV_FLOAT) {
        f = key.f;
        if (rint(f) == f && f >= -0x1p62 && f <= 0x1p62)
            h ^= (uint64_t)(int64_t)f;
        else
            memcpy(&h, &f, sizeof h);
    } else if (key.kind == NB_JV_NONE) {
        h = 1;
    } else {
        return false;
    }
    h ^= h >> 32;
    h *= 0x9E3779B97F4A7C15u;
    *out = h ^ h >> 29;
    return true;
}

static bool same_key(nb_jv a, nb_jv b)
{
    double x, y;
    if (a.kind == NB_JV_TEXT || b.kind == NB_JV_TEXT)
        return a.kind == b.kind && nb_jspan_equal(a.text, b.text);
    if (nb_jv_is_number(a, &x) && nb_jv_is_number(b, &y))
        return x == y;
    return a.kind == b.kind;
}

/* The index of a key's entry or -1. What a probe meets is counted against the steps, so that keys
 * chosen to collide end in a spent budget. */
static int64_t entry_of(nb_jrun *r, const nb_jdict *d, nb_jv key, uint64_t hash)
{
    if (d->slots == NULL) {
        for (int64_t i = 0; i < d->n; i++)
            if (d->entries[i].hash == hash && same_key(d->entries[i].key, key))
                return i;
        return -1;
    }
    const uint64_t mask = (uint64_t)d->n_slots - 1;
    for (uint64_t at = hash & mask; d->slots[at] != 0; at = (at + 1) & mask) {
        const int64_t i = d->slots[at] - 1;
        if (d->entries[i].hash == hash && same_key(d->entries[i].key, key))
            return i;
        r->steps_left--;
    }
    return -1;
}

nb_jv *nb_jdict_find(nb_jrun *r, const nb_jdict *d, nb_jv key)
{
    uint64_t hash;
    if (!hash_key(key, &hash))
        return NULL;
    const int64_t i = entry_of(r, d, key, hash);
    return i < 0 ? NULL : &d->entries[i].value;
}

#define SMALL_DICT 8

static void fill_slots(nb_jrun *r, nb_jdict *d)
{
    const uint64_t mask = (uint64_t)d->n_slots - 1;
    for (int64_t i = 0; i < d->n; i++) {
        uint64_t at = d->entries[i].hash & mask;
        for (; d->slots[at] != 0; at = (at + 1) & mask)
            r->steps_left--;
        d->slots[at] = (int32_t)(i + 1);
    }
}

static nb_status grow(nb_jrun *r, nb_jdict *d)
{
    const int64_t cap = d->cap == 0 ? SMALL_DICT : 2 * d->cap;
    struct nb_jentry *entries;
    if (cap > INT32_MAX / 2)
        return nb_jrun_fail(r, "a dictionary of more than %lld keys", (long long)d->n);
    NB_TRY(NB_JALLOC(r, &entries, cap));
    if (d->n > 0)
        memcpy(entries, d->entries, (size_t)d->n * sizeof *entries);
    int32_t *slots = NULL;
    if (cap > SMALL_DICT)
        NB_TRY(NB_JALLOC(r, &slots, 2 * cap));
    d->entries = entries;
    d->cap = cap;
    d->slots = slots;
    d->n_slots = 2 * cap;
    if (slots != NULL)
        fill_slots(r, d);
    return NB_OK;
}

nb_status nb_jdict_put(nb_jrun *r, nb_jdict *d, nb_jv key, nb_jv value)
{
    uint64_t hash;
    if (!hash_key(key, &hash))
        return nb_jrun_fail(r, "unhashable type: '%s'", nb_jv_type(key));
    NB_TRY(nb_jrun_charge(r, key.kind == NB_JV_TEXT ? key.text.n : 0));
    const int64_t found = entry_of(r, d, key, hash);
    if (found >= 0) {
        d->entries[found].value = value;
        return NB_OK;
    }
    if (d->n == d->cap)
        NB_TRY(grow(r, d));
    d->entries[d->n++] = (struct nb_jentry){key, value, hash};
    if (d->slots != NULL) {
        const uint64_t mask = (uint64_t)d->n_slots - 1;
        uint64_t at = hash & mask;
        while (d->slots[at] != 0)
            at = (at + 1) & mask;
        d->slots[at] = (int32_t)d->n;
    }
    return NB_OK;
}

nb_status nb_jdict_remove(nb_jrun *r, nb_jdict *d, nb_jv key)
{
    uint64_t hash = 0;
    const int64_t i = hash_key(key, &hash) ? entry_of(r, d, key, hash) : -1;
    if (i < 0)
        return nb_jrun_fail(r, "the key is not in the dictionary");
    NB_TRY(nb_jrun_charge(r, (size_t)d->n * sizeof *d->entries));
    memmove(d->entries + i, d->entries + i + 1, (size_t)(d->n - i - 1) * sizeof *d->entries);
    d->n--;
    if (d->slots != NULL) {
        memset(d->slots, 0, (size_t)d->n_slots * sizeof *d->slots);
        fill_slots(r, d);
    }
    return NB_OK;
}

static nb_status container_from_json(nb_jrun *r, const json_t *json, nb_jv *out)
{
    if (json_is_array(json)) {
        const size_t n = json_array_size(json);
        NB_TRY(nb_jlist_new(r, NB_JV_LIST, (int64_t)n, out));
        for (size_t i = 0; i < n; i++, out->list->n++)
            NB_TRY(nb_jv_from_json(r, json_array_get(json, i), &out->list->items[i]));
        return NB_OK;
    }
    NB_TRY(nb_jdict_new(r, NB_JV_DICT, out));
    void *object = (void *)(uintptr_t)json; /* jansson's iterators take no const */
    for (void *it = json_object_iter(object); it != NULL; it = json_object_iter_next(object, it)) {
        nb_jv value;
        NB_TRY(nb_jv_from_json(r, json_object_iter_value(it), &value));
        const char *name = json_object_iter_key(it);
        const nb_jspan key = {name, strlen(name)};
        NB_TRY(nb_jdict_put(r, out->dict, nb_jv_text(key), value));
    }
    return NB_OK;
}

nb_status nb_jv_from_json(nb_jrun *r, const json_t *json, nb_jv *out)
{
    switch (json_typeof(json)) {
    case JSON_NULL:
        *out = nb_jv_none();
        return NB_OK;
    case JSON_TRUE:
    case JSON_FALSE:
        *out = nb_jv_bool(json_is_true(json));
        return NB_OK;
    case JSON_INTEGER:
        *out = nb_jv_int(json_integer_value(json));
        return NB_OK;
    case JSON_REAL:
        *out = nb_jv_float(json_real_value(json));
        return NB_OK;
    case JSON_STRING:
        r->text_bytes += json_string_length(json);
        *out = nb_jv_text((nb_jspan){json_string_value(json), json_string_length(json)});
        return NB_OK;
    case JSON_ARRAY:
    case JSON_OBJECT:
        break;
    }
    NB_TRY(nb_jrun_enter(r));
    const nb_status s = container_from_json(r, json, out);
    nb_jrun_leave(r);
    return s;
}
