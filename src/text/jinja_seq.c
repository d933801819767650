/* The filters that take sequences apart: map, select, sort, join and their kin. Where Jinja gives
 * a generator, these give a list that is always true. See jinja_builtin.h. */
#include "text/jinja_builtin.h"

#include <string.h>

#define FILTER(function)                                                                           \
    static nb_status function(nb_jrun *r, nb_jv self, const nb_jv *arg, const nb_jargs *all,       \
                              nb_jv *out)

static bool given(nb_jv arg)
{
    return arg.kind != NB_JV_ABSENT && arg.kind != NB_JV_NONE;
}

/* A list of its own with the items of v. */
static nb_status copy_items(nb_jrun *r, nb_jv v, nb_jv *out)
{
    nb_jlist items;
    NB_TRY(nb_jv_iterate(r, v, &items));
    NB_TRY(nb_jrun_charge(r, (size_t)items.n * sizeof *items.items));
    NB_TRY(nb_jlist_new(r, NB_JV_LIST, items.n, out));
    if (items.n > 0)
        memcpy(out->list->items, items.items, (size_t)items.n * sizeof *items.items);
    out->list->n = items.n;
    return NB_OK;
}

FILTER(filter_list)
{
    (void)arg, (void)all;
    return copy_items(r, self, out);
}

FILTER(filter_first)
{
    (void)arg, (void)all;
    nb_jlist items;
    NB_TRY(nb_jv_iterate(r, self, &items));
    *out = items.n > 0 ? items.items[0]
                       : nb_jv_undefined(NB_JV_ABSENT, NB_JSPAN("first item of nothing"));
    return NB_OK;
}

FILTER(filter_last)
{
    (void)arg, (void)all;
    nb_jlist items;
    NB_TRY(nb_jv_iterate(r, self, &items));
    *out = items.n > 0 ? items.items[items.n - 1]
                       : nb_jv_undefined(NB_JV_ABSENT, NB_JSPAN("last item of nothing"));
    return NB_OK;
}

FILTER(filter_reverse)
{
    (void)arg, (void)all;
    if (self.kind == NB_JV_TEXT)
        return nb_jop_slice(r, self, (nb_jv){0}, (nb_jv){0}, nb_jv_int(-1), out);
    NB_TRY(copy_items(r, self, out));
    out->list->lazy = true;
    nb_jv *items = out->list->items;
    for (int64_t i = 0, k = out->list->n - 1; i < k; i++, k--) {
        const nb_jv swap = items[i];
        items[i] = items[k];
        items[k] = swap;
    }
    return NB_OK;
}

FILTER(filter_join)
{
    (void)all;
    nb_jlist items;
    nb_jspan between = {0};
    NB_TRY(nb_jv_iterate(r, self, &items));
    if (arg[0].kind != NB_JV_ABSENT)
        NB_TRY(nb_jv_to_text(r, arg[0], &between));
    const size_t mark = nb_jrun_mark(r);
    for (int64_t i = 0; i < items.n; i++) {
        nb_jv item = items.items[i];
        if (given(arg[1]))
            NB_TRY(nb_jop_path(r, item, arg[1], &item));
        if (i > 0)
            NB_TRY(nb_jrun_emit(r, between));
        NB_TRY(nb_jprint_str(r, item));
    }
    return nb_jrun_take(r, mark, out);
}

FILTER(filter_sum)
{
    (void)all;
    nb_jlist items;
    NB_TRY(nb_jv_iterate(r, self, &items));
    *out = arg[1].kind == NB_JV_ABSENT ? nb_jv_int(0) : arg[1];
    for (int64_t i = 0; i < items.n; i++) {
        nb_jv item = items.items[i];
        if (given(arg[0]))
            NB_TRY(nb_jop_path(r, item, arg[0], &item));
        NB_TRY(nb_jop_binary(r, '+', *out, item, out));
    }
    return NB_OK;
}

/* ---- order ---- */

/* What an item is sorted by: its attribute if one is named, in lower case unless case matters. */
static nb_status sort_key(nb_jrun *r, nb_jv item, nb_jv attribute, bool case_sensitive, nb_jv *out)
{
    *out = item;
    if (given(attribute))
        NB_TRY(nb_jop_path(r, item, attribute, out));
    if (out->kind == NB_JV_TEXT && !case_sensitive)
        NB_TRY(nb_jstr_case(r, out->text, NB_JCASE_LOWER, out));
    return NB_OK;
}

static nb_status sort_keys(nb_jrun *r, const nb_jlist *items, nb_jv attribute, bool case_sensitive,
                           nb_jv **out)
{
    NB_TRY(NB_JALLOC(r, out, items->n));
    for (int64_t i = 0; i < items->n; i++) {
        NB_TRY(nb_jrun_charge(r, 0));
        NB_TRY(sort_key(r, items->items[i], attribute, case_sensitive, &(*out)[i]));
    }
    return NB_OK;
}

FILTER(filter_sort)
{
    (void)all;
    nb_jv *keys;
    NB_TRY(copy_items(r, self, out));
    NB_TRY(sort_keys(r, out->list, arg[2], nb_jv_truth(arg[1]), &keys));
    return nb_jop_sort(r, keys, out->list->items, out->list->n, nb_jv_truth(arg[0]));
}

FILTER(filter_dictsort)
{
    nb_jspan by;
    nb_jv *keys;
    NB_TRY(nb_jarg_text(r, arg[1], "dictsort", NB_JSPAN("key"), &by));
    const bool by_value = nb_jspan_equal(by, NB_JSPAN("value"));
    if (!by_value && !nb_jspan_equal(by, NB_JSPAN("key")))
        return nb_jrun_fail(r, "You can only sort by either \"key\" or \"value\"");
    if (self.kind != NB_JV_DICT)
        return nb_jrun_fail(r, "dictsort: a dictionary is expected, not '%s'", nb_jv_type(self));
    NB_TRY(nb_jinja_method(NB_JV_DICT, NB_JSPAN("items"))->call(r, self, arg, all, out));
    NB_TRY(sort_keys(r, out->list, nb_jv_int(by_value), nb_jv_truth(arg[0]), &keys));
    return nb_jop_sort(r, keys, out->list->items, out->list->n, nb_jv_truth(arg[2]));
}

static nb_status extreme(nb_jrun *r, nb_jv self, const nb_jv *arg, int sign, nb_jv *out)
{
    nb_jlist items;
    nb_jv *keys;
    NB_TRY(nb_jv_iterate(r, self, &items));
    NB_TRY(sort_keys(r, &items, arg[1], nb_jv_truth(arg[0]), &keys));
    *out = nb_jv_undefined(NB_JV_ABSENT, NB_JSPAN("extreme of nothing"));
    int64_t best = 0;
    for (int64_t i = 1; i < items.n; i++) {
        int order;
        NB_TRY(nb_jrun_charge(r, 0));
        NB_TRY(nb_jv_order(r, keys[i], keys[best], sign < 0 ? "<" : ">", &order));
        if (sign < 0 ? order < 0 : order > 0)
            best = i;
    }
    if (items.n > 0)
        *out = items.items[best];
    return NB_OK;
}

FILTER(filter_min)
{
    (void)all;
    return extreme(r, self, arg, -1, out);
}

FILTER(filter_max)
{
    (void)all;
    return extreme(r, self, arg, 1, out);
}

FILTER(filter_unique)
{
    (void)all;
    nb_jlist items;
    nb_jv *keys, seen;
    NB_TRY(nb_jv_iterate(r, self, &items));
    NB_TRY(sort_keys(r, &items, arg[1], nb_jv_truth(arg[0]), &keys));
    NB_TRY(nb_jdict_new(r, NB_JV_DICT, &seen));
    NB_TRY(nb_jlist_new(r, NB_JV_LIST, 0, out));
    out->list->lazy = true;
    for (int64_t i = 0; i < items.n; i++) {
        if (nb_jdict_find(r, seen.dict, keys[i]) != NULL)
            continue;
        NB_TRY(nb_jdict_put(r, seen.dict, keys[i], nb_jv_none()));
        NB_TRY(nb_jlist_push(r, out->list, items.items[i]));
    }
    return NB_OK;
}

/* ---- map and select ---- */

/* The arguments from number `from` on. */
static nb_jargs rest_of(const nb_jargs *all, int from)
{
    return (nb_jargs){.items = all->items + from, .n = all->n > from ? all->n - from : 0};
}

/* map(attribute=path, default=value): the attribute of each. */
static nb_status map_attribute(nb_jrun *r, const nb_jlist *items, const nb_jargs *all, nb_jv *out)
{
    nb_jv path = {0}, otherwise = {0};
    for (int i = 0; i < all->n; i++) {
        const nb_jarg *a = &all->items[i];
        if (a->name.p != NULL && nb_jspan_equal(a->name, NB_JSPAN("attribute")))
            path = a->value;
        else if (a->name.p != NULL && nb_jspan_equal(a->name, NB_JSPAN("default")))
            otherwise = a->value;
        else
            return nb_jrun_fail(r, "map: an argument besides attribute and default");
    }
    if (path.kind == NB_JV_ABSENT)
        return nb_jrun_fail(r, "map requires a filter argument");
    for (int64_t i = 0; i < items->n; i++) {
        nb_jv v;
        NB_TRY(nb_jop_path(r, items->items[i], path, &v));
        if (v.kind == NB_JV_UNDEFINED && otherwise.kind != NB_JV_ABSENT)
            v = otherwise;
        NB_TRY(nb_jlist_push(r, out->list, v));
    }
    return NB_OK;
}

FILTER(filter_map)
{
    (void)arg;
    nb_jlist items;
    NB_TRY(nb_jv_iterate(r, self, &items));
    NB_TRY(nb_jlist_new(r, NB_JV_LIST, items.n, out));
    out->list->lazy = true;
    if (all->n == 0 || all->items[0].name.p != NULL)
        return map_attribute(r, &items, all, out);
    nb_jspan name;
    NB_TRY(nb_jarg_text(r, all->items[0].value, "map", (nb_jspan){0}, &name));
    const nb_jbuiltin *filter = nb_jinja_filter(name);
    if (filter == NULL)
        return nb_jrun_fail(r, "No filter named '%.*s'.", NB_JSHOW(name));
    const nb_jargs rest = rest_of(all, 1);
    for (int64_t i = 0; i < items.n; i++) {
        nb_jv v;
        NB_TRY(nb_jbuiltin_call(r, filter, items.items[i], &rest, &v));
        NB_TRY(nb_jlist_push(r, out->list, v));
    }
    return NB_OK;
}

/* The items of which a test says `wanted`; of their attribute, if by_attribute. Without a test,
 * truth decides. */
static nb_status select_items(nb_jrun *r, nb_jv self, const nb_jargs *all, bool by_attribute,
                              bool wanted, nb_jv *out)
{
    nb_jlist items;
    const nb_jbuiltin *test = NULL;
    const int at = by_attribute ? 1 : 0; /* of the test's name */
    if (all->n < at)
        return nb_jrun_fail(r, "Missing parameter for attribute name");
    if (all->n > at) {
        nb_jspan name;
        NB_TRY(nb_jarg_text(r, all->items[at].value, "select", (nb_jspan){0}, &name));
        test = nb_jinja_test(name);
        if (test == NULL)
            return nb_jrun_fail(r, "No test named '%.*s'.", NB_JSHOW(name));
    }
    const nb_jargs rest = rest_of(all, at + 1);
    NB_TRY(nb_jv_iterate(r, self, &items));
    NB_TRY(nb_jlist_new(r, NB_JV_LIST, 0, out));
    out->list->lazy = true;
    for (int64_t i = 0; i < items.n; i++) {
        nb_jv v = items.items[i], says;
        if (by_attribute)
            NB_TRY(nb_jop_path(r, v, all->items[0].value, &v));
        says = v;
        NB_TRY(nb_jrun_charge(r, 0));
        if (test != NULL)
            NB_TRY(nb_jbuiltin_call(r, test, v, &rest, &says));
        if (nb_jv_truth(says) == wanted)
            NB_TRY(nb_jlist_push(r, out->list, items.items[i]));
    }
    return NB_OK;
}

FILTER(filter_select)
{
    (void)arg;
    return select_items(r, self, all, false, true, out);
}

FILTER(filter_reject)
{
    (void)arg;
    return select_items(r, self, all, false, false, out);
}

FILTER(filter_selectattr)
{
    (void)arg;
    return select_items(r, self, all, true, true, out);
}

FILTER(filter_rejectattr)
{
    (void)arg;
    return select_items(r, self, all, true, false, out);
}

const nb_jbuiltin *nb_jseq_filter(nb_jspan name)
{
    static const nb_jbuiltin FILTERS[] = {
        {"list", filter_list, {0}, 0, false},
        {"first", filter_first, {0}, 0, false},
        {"last", filter_last, {0}, 0, false},
        {"reverse", filter_reverse, {0}, 0, false},
        {"join", filter_join, {"d", "attribute"}, 0, false},
        {"sum", filter_sum, {"attribute", "start"}, 0, false},
        {"sort", filter_sort, {"reverse", "case_sensitive", "attribute"}, 0, false},
        {"dictsort", filter_dictsort, {"case_sensitive", "by", "reverse"}, 0, false},
        {"min", filter_min, {"case_sensitive", "attribute"}, 0, false},
        {"max", filter_max, {"case_sensitive", "attribute"}, 0, false},
        {"unique", filter_unique, {"case_sensitive", "attribute"}, 0, false},
        {"map", filter_map, {0}, 0, true},
        {"select", filter_select, {0}, 0, true},
        {"reject", filter_reject, {0}, 0, true},
        {"selectattr", filter_selectattr, {0}, 0, true},
        {"rejectattr", filter_rejectattr, {0}, 0, true},
    };
    return nb_jbuiltin_in(FILTERS, sizeof FILTERS / sizeof FILTERS[0], name);
}
