/* The methods of texts, as Python's str has them. See jinja_builtin.h.
 *
 * Upper and lower case are those of single code points (and of the sharp s); Python's few other
 * mappings to several code points, and the final sigma, are not made. */
#include "text/jinja_builtin.h"

#include <string.h>
#include <utf8proc.h>

#define METHOD(function)                                                                           \
    static nb_status function(nb_jrun *r, nb_jv self, const nb_jv *arg, const nb_jargs *all,       \
                              nb_jv *out)

/* ---- case ---- */

static bool is_cased(uint32_t cp)
{
    const utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)cp);
    return c == UTF8PROC_CATEGORY_LU || c == UTF8PROC_CATEGORY_LL || c == UTF8PROC_CATEGORY_LT;
}

/* The mapped form of one code point, up to 8 bytes. */
static size_t map_case(uint32_t cp, nb_jcase to, char out[8])
{
    const utf8proc_int32_t c = (utf8proc_int32_t)cp;
    if (cp == 0xDF && to != NB_JCASE_LOWER) {
        memcpy(out, to == NB_JCASE_UPPER ? "SS" : "Ss", 2);
        return 2;
    }
    if (cp == 0x130 && to == NB_JCASE_LOWER) {
        memcpy(out, "i\xCC\x87", 3);
        return 3;
    }
    return nb_jtext_encode((uint32_t)(to == NB_JCASE_UPPER   ? utf8proc_toupper(c)
                                      : to == NB_JCASE_LOWER ? utf8proc_tolower(c)
                                                             : utf8proc_totitle(c)),
                           out);
}

static bool ends_word(uint32_t cp)
{
    return nb_jtext_is_space(cp) || (cp < 0x80 && cp != 0 && strchr("-({[<", (int)cp) != NULL);
}

nb_status nb_jstr_case(nb_jrun *r, nb_jspan s, nb_jcase to, nb_jv *out)
{
    const size_t mark = nb_jrun_mark(r);
    bool inside = false; /* of a word */
    NB_TRY(nb_jrun_charge(r, s.n));
    for (size_t i = 0; i < s.n;) {
        uint32_t cp;
        const size_t len = nb_jtext_decode(s.p + i, s.n - i, &cp);
        const nb_jcase here = to == NB_JCASE_UPPER || to == NB_JCASE_LOWER ? to
                              : inside                                     ? NB_JCASE_LOWER
                              : to == NB_JCASE_WORDS                       ? NB_JCASE_UPPER
                                                                           : NB_JCASE_TITLE;
        char mapped[8];
        size_t n = map_case(cp, here, mapped);
        if (cp == 0xFFFD) { /* also a byte that is not UTF-8: kept as it is */
            memcpy(mapped, s.p + i, len);
            n = len;
        }
        NB_TRY(nb_buf_put(r->out, mapped, n, r->err));
        inside = to == NB_JCASE_TITLE ? is_cased(cp) : to == NB_JCASE_WORDS ? !ends_word(cp) : true;
        i += len;
    }
    return nb_jrun_take(r, mark, out);
}

METHOD(str_upper)
{
    (void)arg, (void)all;
    return nb_jstr_case(r, self.text, NB_JCASE_UPPER, out);
}

METHOD(str_lower)
{
    (void)arg, (void)all;
    return nb_jstr_case(r, self.text, NB_JCASE_LOWER, out);
}

METHOD(str_title)
{
    (void)arg, (void)all;
    return nb_jstr_case(r, self.text, NB_JCASE_TITLE, out);
}

METHOD(str_capitalize)
{
    (void)arg, (void)all;
    return nb_jstr_case(r, self.text, NB_JCASE_CAPITAL, out);
}

/* ---- strip ---- */

static nb_status strip(nb_jrun *r, nb_jv self, nb_jv chars, bool left, bool right, nb_jv *out)
{
    nb_jspan set = {0};
    if (chars.kind != NB_JV_NONE)
        NB_TRY(nb_jarg_text(r, chars, "strip", (nb_jspan){0}, &set));
    if (set.p == NULL && chars.kind == NB_JV_TEXT)
        set.p = "";
    /* Each code point is looked up in the set, which is short unless somebody means harm. */
    NB_TRY(nb_jrun_charge(r, set.n > 64 ? self.text.n * set.n : 4 * self.text.n));
    *out = nb_jv_text(nb_jtext_strip(self.text, set, left, right));
    return NB_OK;
}

METHOD(str_strip)
{
    (void)all;
    return strip(r, self, arg[0], true, true, out);
}

METHOD(str_lstrip)
{
    (void)all;
    return strip(r, self, arg[0], true, false, out);
}

METHOD(str_rstrip)
{
    (void)all;
    return strip(r, self, arg[0], false, true, out);
}

METHOD(str_removeprefix)
{
    (void)all;
    nb_jspan prefix;
    NB_TRY(nb_jarg_text(r, arg[0], "removeprefix", (nb_jspan){0}, &prefix));
    *out = self;
    if (nb_jtext_starts(self.text, prefix))
        *out = nb_jv_text((nb_jspan){self.text.p + prefix.n, self.text.n - prefix.n});
    return NB_OK;
}

METHOD(str_removesuffix)
{
    (void)all;
    nb_jspan suffix;
    NB_TRY(nb_jarg_text(r, arg[0], "removesuffix", (nb_jspan){0}, &suffix));
    *out = self;
    if (nb_jtext_ends(self.text, suffix))
        *out = nb_jv_text((nb_jspan){self.text.p, self.text.n - suffix.n});
    return NB_OK;
}

/* ---- search ---- */

/* Offset of the last needle. The search runs forward over reversed copies, at the end of the
 * output, so that it stays linear. */
static nb_status rfind(nb_jrun *r, nb_jspan s, nb_jspan needle, int64_t *out)
{
    const size_t mark = nb_jrun_mark(r);
    NB_TRY(nb_jrun_emit(r, s));
    NB_TRY(nb_jrun_emit(r, needle));
    char *copy = (char *)r->out->data + mark;
    for (size_t i = 0; i < s.n; i++)
        copy[i] = s.p[s.n - 1 - i];
    for (size_t i = 0; i < needle.n; i++)
        copy[s.n + i] = needle.p[needle.n - 1 - i];
    const int64_t at = nb_jtext_find((nb_jspan){copy, s.n}, (nb_jspan){copy + s.n, needle.n});
    r->out->len = mark;
    *out = at < 0 ? -1 : (int64_t)(s.n - needle.n) - at;
    return NB_OK;
}

static nb_status find(nb_jrun *r, nb_jv self, const nb_jv *arg, bool last, int64_t *out)
{
    nb_jspan needle;
    nb_jv part;
    int64_t begin, n, at;
    NB_TRY(nb_jarg_text(r, arg[0], "find", (nb_jspan){0}, &needle));
    NB_TRY(nb_jv_length(r, self, &n));
    NB_TRY(nb_jop_slice(r, self, arg[1], arg[2], (nb_jv){0}, &part));
    NB_TRY(nb_jarg_int(r, arg[1].kind == NB_JV_NONE ? (nb_jv){0} : arg[1], "find", 0, &begin));
    begin = begin < 0 ? (begin + n < 0 ? 0 : begin + n) : begin;
    NB_TRY(nb_jrun_charge(r, part.text.n));
    if (last)
        NB_TRY(rfind(r, part.text, needle, &at));
    else
        at = nb_jtext_find(part.text, needle);
    *out = at < 0 || begin > n ? -1 : begin + nb_jtext_count((nb_jspan){part.text.p, (size_t)at});
    return NB_OK;
}

METHOD(str_find)
{
    (void)all;
    *out = nb_jv_int(-1);
    return find(r, self, arg, false, &out->i);
}

METHOD(str_rfind)
{
    (void)all;
    *out = nb_jv_int(-1);
    return find(r, self, arg, true, &out->i);
}

METHOD(str_index)
{
    NB_TRY(str_find(r, self, arg, all, out));
    return out->i >= 0 ? NB_OK : nb_jrun_fail(r, "substring not found");
}

METHOD(str_count)
{
    (void)all;
    nb_jspan needle, rest = self.text;
    int64_t n = 0;
    NB_TRY(nb_jarg_text(r, arg[0], "count", (nb_jspan){0}, &needle));
    NB_TRY(nb_jrun_charge(r, rest.n));
    if (needle.n == 0)
        n = nb_jtext_count(rest) + 1;
    for (int64_t at; needle.n > 0 && (at = nb_jtext_find(rest, needle)) >= 0; n++)
        rest = (nb_jspan){rest.p + at + needle.n, rest.n - (size_t)at - needle.n};
    *out = nb_jv_int(n);
    return NB_OK;
}

static nb_status affix(nb_jrun *r, nb_jv self, nb_jv with, bool at_end, nb_jv *out)
{
    const nb_jv *items = &with;
    int64_t n = 1;
    if (with.kind == NB_JV_TUPLE) {
        items = with.list->items;
        n = with.list->n;
    }
    *out = nb_jv_bool(false);
    for (int64_t i = 0; i < n && !out->b; i++) {
        nb_jspan text;
        NB_TRY(nb_jarg_text(r, items[i], at_end ? "endswith" : "startswith", (nb_jspan){0}, &text));
        NB_TRY(nb_jrun_charge(r, text.n));
        out->b = at_end ? nb_jtext_ends(self.text, text) : nb_jtext_starts(self.text, text);
    }
    return NB_OK;
}

METHOD(str_startswith)
{
    (void)all;
    return affix(r, self, arg[0], false, out);
}

METHOD(str_endswith)
{
    (void)all;
    return affix(r, self, arg[0], true, out);
}

nb_status nb_jstr_replace(nb_jrun *r, nb_jspan s, nb_jspan old, nb_jspan new, int64_t count,
                          nb_jv *out)
{
    const size_t mark = nb_jrun_mark(r);
    NB_TRY(nb_jrun_charge(r, s.n));
    while (count != 0) {
        /* An empty `old` stands before each code point, and at the end. */
        uint32_t cp;
        const int64_t at = nb_jtext_find(s, old);
        if (at < 0)
            break;
        NB_TRY(nb_jrun_emit(r, (nb_jspan){s.p, (size_t)at}));
        NB_TRY(nb_jrun_emit(r, new));
        size_t step = (size_t)at + old.n;
        if (old.n == 0 && s.n == 0)
            break;
        if (old.n == 0) {
            step = nb_jtext_decode(s.p, s.n, &cp);
            NB_TRY(nb_jrun_emit(r, (nb_jspan){s.p, step}));
        }
        s = (nb_jspan){s.p + step, s.n - step};
        count -= count > 0;
    }
    NB_TRY(nb_jrun_emit(r, s));
    return nb_jrun_take(r, mark, out);
}

METHOD(str_replace)
{
    (void)all;
    nb_jspan old, new;
    int64_t count;
    NB_TRY(nb_jarg_text(r, arg[0], "replace", (nb_jspan){0}, &old));
    NB_TRY(nb_jarg_text(r, arg[1], "replace", (nb_jspan){0}, &new));
    NB_TRY(nb_jarg_int(r, arg[2], "replace", -1, &count));
    return nb_jstr_replace(r, self.text, old, new, count, out);
}

/* ---- split and join ---- */

static nb_status push_text(nb_jrun *r, nb_jlist *list, const char *p, size_t n)
{
    NB_TRY(nb_jrun_charge(r, n));
    return nb_jlist_push(r, list, nb_jv_text((nb_jspan){p, n}));
}

/* Words between white space; after `limit` of them, the rest. From the right, the list is made
 * backwards. */
static nb_status split_words(nb_jrun *r, nb_jspan s, int64_t limit, bool right, nb_jlist *list)
{
    for (;;) {
        s = nb_jtext_strip(s, (nb_jspan){0}, !right, right);
        if (s.n == 0)
            return NB_OK;
        if (limit >= 0 && list->n == limit)
            return push_text(r, list, s.p, s.n);
        size_t word = 0;
        while (word < s.n) {
            uint32_t cp;
            const size_t len = right ? nb_jtext_last(s.p, s.n - word)
                                     : nb_jtext_decode(s.p + word, s.n - word, &cp);
            nb_jtext_decode(right ? s.p + s.n - word - len : s.p + word, len, &cp);
            if (nb_jtext_is_space(cp))
                break;
            word += len;
        }
        NB_TRY(nb_jrun_charge(r, 4 * word)); /* each character is looked at twice */
        NB_TRY(push_text(r, list, right ? s.p + s.n - word : s.p, word));
        s = (nb_jspan){right ? s.p : s.p + word, s.n - word};
    }
}

static nb_status split_at(nb_jrun *r, nb_jspan s, nb_jspan separator, int64_t limit, nb_jlist *list)
{
    while (limit < 0 || list->n < limit) {
        const int64_t at = nb_jtext_find(s, separator);
        if (at < 0)
            break;
        NB_TRY(push_text(r, list, s.p, (size_t)at));
        s = (nb_jspan){s.p + at + separator.n, s.n - (size_t)at - separator.n};
    }
    return push_text(r, list, s.p, s.n);
}

/* As rfind, over one reversed copy for all the pieces; the list is made backwards. */
static nb_status rsplit_at(nb_jrun *r, nb_jspan s, nb_jspan separator, int64_t limit,
                           nb_jlist *list)
{
    const size_t mark = nb_jrun_mark(r);
    NB_TRY(nb_jrun_emit(r, s));
    NB_TRY(nb_jrun_emit(r, separator));
    char *copy = (char *)r->out->data + mark;
    for (size_t i = 0; i < s.n; i++)
        copy[i] = s.p[s.n - 1 - i];
    for (size_t i = 0; i < separator.n; i++)
        copy[s.n + i] = separator.p[separator.n - 1 - i];
    const nb_jspan needle = {copy + s.n, separator.n};
    size_t done = 0; /* bytes of s from its end */
    while (limit < 0 || list->n < limit) {
        const int64_t at = nb_jtext_find((nb_jspan){copy + done, s.n - done}, needle);
        if (at < 0)
            break;
        NB_TRY(push_text(r, list, s.p + s.n - done - (size_t)at, (size_t)at));
        done += (size_t)at + separator.n;
    }
    r->out->len = mark;
    return push_text(r, list, s.p, s.n - done);
}

static nb_status split(nb_jrun *r, nb_jv self, const nb_jv *arg, bool right, nb_jv *out)
{
    nb_jspan separator;
    int64_t limit;
    NB_TRY(nb_jarg_int(r, arg[1], "split", -1, &limit));
    NB_TRY(nb_jlist_new(r, NB_JV_LIST, 0, out));
    if (arg[0].kind == NB_JV_ABSENT || arg[0].kind == NB_JV_NONE) {
        NB_TRY(split_words(r, self.text, limit, right, out->list));
    } else {
        NB_TRY(nb_jarg_text(r, arg[0], "split", (nb_jspan){0}, &separator));
        if (separator.n == 0)
            return nb_jrun_fail(r, "empty separator");
        NB_TRY(right ? rsplit_at(r, self.text, separator, limit, out->list)
                     : split_at(r, self.text, separator, limit, out->list));
    }
    for (int64_t i = 0; right && i < out->list->n / 2; i++) {
        nb_jv *a = &out->list->items[i], *b = &out->list->items[out->list->n - 1 - i], swap = *a;
        *a = *b;
        *b = swap;
    }
    return NB_OK;
}

METHOD(str_split)
{
    (void)all;
    return split(r, self, arg, false, out);
}

METHOD(str_rsplit)
{
    (void)all;
    return split(r, self, arg, true, out);
}

static nb_status partition(nb_jrun *r, nb_jv self, nb_jv arg, bool last, nb_jv *out)
{
    nb_jspan s = self.text, separator;
    int64_t at;
    NB_TRY(nb_jarg_text(r, arg, "partition", (nb_jspan){0}, &separator));
    if (separator.n == 0)
        return nb_jrun_fail(r, "empty separator");
    if (last)
        NB_TRY(rfind(r, s, separator, &at));
    else
        at = nb_jtext_find(s, separator);
    const size_t cut = at < 0 ? (last ? 0 : s.n) : (size_t)at, len = at < 0 ? 0 : separator.n;
    NB_TRY(nb_jlist_new(r, NB_JV_TUPLE, 3, out));
    NB_TRY(push_text(r, out->list, s.p, cut));
    NB_TRY(push_text(r, out->list, s.p + cut, len));
    return push_text(r, out->list, s.p + cut + len, s.n - cut - len);
}

METHOD(str_partition)
{
    (void)all;
    return partition(r, self, arg[0], false, out);
}

METHOD(str_rpartition)
{
    (void)all;
    return partition(r, self, arg[0], true, out);
}

static bool ends_line(uint32_t cp)
{
    return (cp >= 0x0A && cp <= 0x0D) || (cp >= 0x1C && cp <= 0x1E) || cp == 0x85 || cp == 0x2028 ||
           cp == 0x2029;
}

nb_status nb_jstr_lines(nb_jrun *r, nb_jspan s, nb_jv *out)
{
    NB_TRY(nb_jlist_new(r, NB_JV_LIST, 0, out));
    size_t begin = 0;
    for (size_t i = 0; i < s.n;) {
        uint32_t cp;
        const size_t at = i;
        i += nb_jtext_decode(s.p + i, s.n - i, &cp);
        if (!ends_line(cp))
            continue;
        NB_TRY(push_text(r, out->list, s.p + begin, at - begin));
        i += cp == '\r' && i < s.n && s.p[i] == '\n';
        begin = i;
    }
    return begin < s.n ? push_text(r, out->list, s.p + begin, s.n - begin) : NB_OK;
}

METHOD(str_splitlines)
{
    (void)arg, (void)all;
    return nb_jstr_lines(r, self.text, out);
}

METHOD(str_join)
{
    (void)all;
    nb_jlist items;
    NB_TRY(nb_jv_iterate(r, arg[0], &items));
    const size_t mark = nb_jrun_mark(r);
    for (int64_t i = 0; i < items.n; i++) {
        if (items.items[i].kind != NB_JV_TEXT)
            return nb_jrun_fail(r, "sequence item %lld: expected str instance, %s found",
                                (long long)i, nb_jv_type(items.items[i]));
        if (i > 0)
            NB_TRY(nb_jrun_emit(r, self.text));
        NB_TRY(nb_jrun_emit(r, items.items[i].text));
    }
    return nb_jrun_take(r, mark, out);
}

/* ---- classes: true when there are code points and all are of the class ---- */

static bool is_class(uint32_t cp, char kind)
{
    const utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)cp);
    const bool letter = c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_LO;
    const bool number = c >= UTF8PROC_CATEGORY_ND && c <= UTF8PROC_CATEGORY_NO;
    switch (kind) {
    case 'd':
        return c == UTF8PROC_CATEGORY_ND;
    case 'a':
        return letter;
    case 'n':
        return letter || number;
    default:
        return nb_jtext_is_space(cp);
    }
}

static nb_status all_of_class(nb_jrun *r, nb_jspan s, char kind, nb_jv *out)
{
    bool holds = s.n > 0;
    NB_TRY(nb_jrun_charge(r, 4 * s.n)); /* looking up a class takes a while */
    for (size_t i = 0; i < s.n && holds;) {
        uint32_t cp;
        i += nb_jtext_decode(s.p + i, s.n - i, &cp);
        holds = is_class(cp, kind);
    }
    *out = nb_jv_bool(holds);
    return NB_OK;
}

METHOD(str_isdigit)
{
    (void)arg, (void)all;
    return all_of_class(r, self.text, 'd', out);
}

METHOD(str_isalpha)
{
    (void)arg, (void)all;
    return all_of_class(r, self.text, 'a', out);
}

METHOD(str_isalnum)
{
    (void)arg, (void)all;
    return all_of_class(r, self.text, 'n', out);
}

METHOD(str_isspace)
{
    (void)arg, (void)all;
    return all_of_class(r, self.text, 's', out);
}

METHOD(str_isupper)
{
    return nb_jinja_test(NB_JSPAN("upper"))->call(r, self, arg, all, out);
}

METHOD(str_islower)
{
    return nb_jinja_test(NB_JSPAN("lower"))->call(r, self, arg, all, out);
}

const nb_jbuiltin *nb_jstr_method(nb_jspan name)
{
    static const nb_jbuiltin METHODS[] = {
        {"strip", str_strip, {"chars"}, 0, false},
        {"lstrip", str_lstrip, {"chars"}, 0, false},
        {"rstrip", str_rstrip, {"chars"}, 0, false},
        {"split", str_split, {"sep", "maxsplit"}, 0, false},
        {"rsplit", str_rsplit, {"sep", "maxsplit"}, 0, false},
        {"splitlines", str_splitlines, {0}, 0, false},
        {"partition", str_partition, {"sep"}, 1, false},
        {"rpartition", str_rpartition, {"sep"}, 1, false},
        {"startswith", str_startswith, {"prefix"}, 1, false},
        {"endswith", str_endswith, {"suffix"}, 1, false},
        {"removeprefix", str_removeprefix, {"prefix"}, 1, false},
        {"removesuffix", str_removesuffix, {"suffix"}, 1, false},
        {"replace", str_replace, {"old", "new", "count"}, 2, false},
        {"find", str_find, {"sub", "start", "end"}, 1, false},
        {"rfind", str_rfind, {"sub", "start", "end"}, 1, false},
        {"index", str_index, {"sub", "start", "end"}, 1, false},
        {"count", str_count, {"sub"}, 1, false},
        {"join", str_join, {"iterable"}, 1, false},
        {"upper", str_upper, {0}, 0, false},
        {"lower", str_lower, {0}, 0, false},
        {"title", str_title, {0}, 0, false},
        {"capitalize", str_capitalize, {0}, 0, false},
        {"isdigit", str_isdigit, {0}, 0, false},
        {"isalpha", str_isalpha, {0}, 0, false},
        {"isalnum", str_isalnum, {0}, 0, false},
        {"isspace", str_isspace, {0}, 0, false},
        {"isupper", str_isupper, {0}, 0, false},
        {"islower", str_islower, {0}, 0, false},
    };
    return nb_jbuiltin_in(METHODS, sizeof METHODS / sizeof METHODS[0], name);
}
