/* The methods of lists and dictionaries, as Python has them. See jinja_builtin.h.
 *
 * Values belong to one render, so append and pop change nothing outside it. */
#include "text/jinja_builtin.h"

#include <string.h>

#define METHOD(function)                                                                           \
    static nb_status function(nb_jrun *r, nb_jv self, const nb_jv *arg, const nb_jargs *all,       \
                              nb_jv *out)

METHOD(list_append)
{
    (void)all;
    *out = nb_jv_none();
    return nb_jlist_push(r, self.list, arg[0]);
}

METHOD(list_pop)
{
    (void)all;
    nb_jlist *list = self.list;
    int64_t at;
    NB_TRY(nb_jarg_int(r, arg[0], "pop", -1, &at));
    if (list->n == 0)
        return nb_jrun_fail(r, "pop from empty list");
    at += at < 0 ? list->n : 0;
    if (at < 0 || at >= list->n)
        return nb_jrun_fail(r, "pop index out of range");
    NB_TRY(nb_jrun_charge(r, (size_t)(list->n - at) * sizeof *list->items));
    *out = list->items[at];
    memmove(list->items + at, list->items + at + 1,
            (size_t)(list->n - at - 1) * sizeof *list->items);
    list->n--;
    return NB_OK;
}

METHOD(list_index)
{
    (void)all;
    bool equal = false;
    for (int64_t i = 0; i < self.list->n; i++) {
        NB_TRY(nb_jrun_charge(r, 0));
        NB_TRY(nb_jv_equal(r, self.list->items[i], arg[0], &equal));
        if (equal) {
            *out = nb_jv_int(i);
            return NB_OK;
        }
    }
    return nb_jrun_fail(r, "the value is not in the list");
}

METHOD(list_count)
{
    (void)all;
    *out = nb_jv_int(0);
    for (int64_t i = 0; i < self.list->n; i++) {
        bool equal;
        NB_TRY(nb_jrun_charge(r, 0));
        NB_TRY(nb_jv_equal(r, self.list->items[i], arg[0], &equal));
        out->i += equal;
    }
    return NB_OK;
}

/* The keys, the values, or the pairs of both. */
static nb_status entries(nb_jrun *r, const nb_jdict *d, bool keys, bool values, nb_jv *out)
{
    NB_TRY(nb_jrun_charge(r, (size_t)d->n * 64));
    NB_TRY(nb_jlist_new(r, NB_JV_LIST, d->n, out));
    for (int64_t i = 0; i < d->n; i++) {
        nb_jv item = keys ? d->entries[i].key : d->entries[i].value;
        if (keys && values) {
            NB_TRY(nb_jlist_new(r, NB_JV_TUPLE, 2, &item));
            NB_TRY(nb_jlist_push(r, item.list, d->entries[i].key));
            NB_TRY(nb_jlist_push(r, item.list, d->entries[i].value));
        }
        NB_TRY(nb_jlist_push(r, out->list, item));
    }
    return NB_OK;
}

METHOD(dict_items)
{
    (void)arg, (void)all;
    return entries(r, self.dict, true, true, out);
}

METHOD(dict_keys)
{
    (void)arg, (void)all;
    return entries(r, self.dict, true, false, out);
}

METHOD(dict_values)
{
    (void)arg, (void)all;
    return entries(r, self.dict, false, true, out);
}

METHOD(dict_get)
{
    (void)all;
    const nb_jv *found = nb_jdict_find(r, self.dict, arg[0]);
    *out = found != NULL ? *found : arg[1].kind == NB_JV_ABSENT ? nb_jv_none() : arg[1];
    return NB_OK;
}

METHOD(dict_pop)
{
    (void)all;
    const nb_jv *found = nb_jdict_find(r, self.dict, arg[0]);
    if (found == NULL && arg[1].kind == NB_JV_ABSENT)
        return nb_jrun_fail(r, "pop: the key is not in the dictionary");
    *out = found != NULL ? *found : arg[1];
    return found != NULL ? nb_jdict_remove(r, self.dict, arg[0]) : NB_OK;
}

METHOD(dict_copy)
{
    (void)arg, (void)all;
    NB_TRY(nb_jdict_new(r, NB_JV_DICT, out));
    for (int64_t i = 0; i < self.dict->n; i++)
        NB_TRY(nb_jdict_put(r, out->dict, self.dict->entries[i].key, self.dict->entries[i].value));
    return NB_OK;
}

METHOD(dict_update)
{
    (void)arg;
    *out = nb_jv_none();
    for (int k = 0; k < all->n; k++) {
        const nb_jarg *from = &all->items[k];
        if (from->name.p != NULL) {
            NB_TRY(nb_jdict_put(r, self.dict, nb_jv_text(from->name), from->value));
            continue;
        }
        if (from->value.kind != NB_JV_DICT)
            return nb_jrun_fail(r, "update: a dictionary is expected");
        const nb_jdict *d = from->value.dict;
        const int64_t n = d->n; /* d may be self */
        for (int64_t i = 0; i < n; i++)
            NB_TRY(nb_jdict_put(r, self.dict, d->entries[i].key, d->entries[i].value));
    }
    return NB_OK;
}

const nb_jbuiltin *nb_jinja_method(nb_jkind kind, nb_jspan name)
{
    static const nb_jbuiltin LIST[] = {
        {"append", list_append, {"object"}, 1, false},
        {"pop", list_pop, {"index"}, 0, false},
        {"index", list_index, {"value"}, 1, false},
        {"count", list_count, {"value"}, 1, false},
    };
    static const nb_jbuiltin DICT[] = {
        {"items", dict_items, {0}, 0, false},
        {"keys", dict_keys, {0}, 0, false},
        {"values", dict_values, {0}, 0, false},
        {"get", dict_get, {"key", "default"}, 1, false},
        {"pop", dict_pop, {"key", "default"}, 1, false},
        {"copy", dict_copy, {0}, 0, false},
        {"update", dict_update, {0}, 0, true},
    };
    switch (kind) {
    case NB_JV_TEXT:
        return nb_jstr_method(name);
    case NB_JV_LIST:
        return nb_jbuiltin_in(LIST, sizeof LIST / sizeof LIST[0], name);
    case NB_JV_TUPLE: /* index and count only: a tuple does not change */
        return nb_jbuiltin_in(LIST + 2, 2, name);
    case NB_JV_DICT:
        return nb_jbuiltin_in(DICT, sizeof DICT / sizeof DICT[0], name);
    default:
        return NULL;
    }
}
