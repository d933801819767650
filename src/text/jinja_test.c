/* What may stand behind "is". See jinja_builtin.h. */
#include "text/jinja_ast.h"
#include "text/jinja_builtin.h"

#include <utf8proc.h>

#define TEST(function)                                                                             \
    static nb_status function(nb_jrun *r, nb_jv self, const nb_jv *arg, const nb_jargs *all,       \
                              nb_jv *out)
/* A test that looks at the value alone. */
#define SIMPLE_TEST(function, condition)                                                           \
    TEST(function)                                                                                 \
    {                                                                                              \
        (void)r, (void)arg, (void)all;                                                             \
        *out = nb_jv_bool(condition);                                                              \
        return NB_OK;                                                                              \
    }

static bool is_iterable(nb_jv v)
{
    return v.kind == NB_JV_UNDEFINED || v.kind == NB_JV_TEXT || v.kind == NB_JV_LIST ||
           v.kind == NB_JV_TUPLE || v.kind == NB_JV_DICT || v.kind == NB_JV_LOOP;
}

SIMPLE_TEST(test_defined, self.kind != NB_JV_UNDEFINED)
SIMPLE_TEST(test_undefined, self.kind == NB_JV_UNDEFINED)
SIMPLE_TEST(test_none, self.kind == NB_JV_NONE)
SIMPLE_TEST(test_boolean, self.kind == NB_JV_BOOL)
SIMPLE_TEST(test_true, self.kind == NB_JV_BOOL && self.b)
SIMPLE_TEST(test_false, self.kind == NB_JV_BOOL && !self.b)
SIMPLE_TEST(test_integer, self.kind == NB_JV_INT)
SIMPLE_TEST(test_float, self.kind == NB_JV_FLOAT)
SIMPLE_TEST(test_number,
            self.kind == NB_JV_BOOL || self.kind == NB_JV_INT || self.kind == NB_JV_FLOAT)
SIMPLE_TEST(test_string, self.kind == NB_JV_TEXT)
SIMPLE_TEST(test_mapping, self.kind == NB_JV_DICT)
SIMPLE_TEST(test_iterable, is_iterable(self))
SIMPLE_TEST(test_sequence, is_iterable(self) && self.kind != NB_JV_LOOP)
SIMPLE_TEST(test_callable, self.kind == NB_JV_MACRO || self.kind == NB_JV_FUNCTION ||
                               self.kind == NB_JV_METHOD || self.kind == NB_JV_UNDEFINED)
SIMPLE_TEST(test_escaped, self.kind == NB_JV_TEXT && self.markup)

/* self % divisor == wanted */
static nb_status remainder_is(nb_jrun *r, nb_jv self, nb_jv divisor, int64_t wanted, nb_jv *out)
{
    nb_jv rest;
    bool equal;
    NB_TRY(nb_jop_binary(r, '%', self, divisor, &rest));
    NB_TRY(nb_jv_equal(r, rest, nb_jv_int(wanted), &equal));
    *out = nb_jv_bool(equal);
    return NB_OK;
}

TEST(test_odd)
{
    (void)arg, (void)all;
    return remainder_is(r, self, nb_jv_int(2), 1, out);
}

TEST(test_even)
{
    (void)arg, (void)all;
    return remainder_is(r, self, nb_jv_int(2), 0, out);
}

TEST(test_divisible)
{
    (void)all;
    return remainder_is(r, self, arg[0], 0, out);
}

static nb_status compare(nb_jrun *r, uint16_t op, nb_jv a, nb_jv b, nb_jv *out)
{
    bool holds;
    NB_TRY(nb_jop_compare(r, op, a, b, &holds));
    *out = nb_jv_bool(holds);
    return NB_OK;
}

#define COMPARE_TEST(function, op)                                                                 \
    TEST(function)                                                                                 \
    {                                                                                              \
        (void)all;                                                                                 \
        return compare(r, op, self, arg[0], out);                                                  \
    }
COMPARE_TEST(test_eq, NB_JOP2('=', '='))
COMPARE_TEST(test_ne, NB_JOP2('!', '='))
COMPARE_TEST(test_lt, '<')
COMPARE_TEST(test_gt, '>')
COMPARE_TEST(test_le, NB_JOP2('<', '='))
COMPARE_TEST(test_ge, NB_JOP2('>', '='))
COMPARE_TEST(test_in, NB_JIN)

/* Identity, which for texts and numbers is taken to be equality within one type. */
TEST(test_same)
{
    (void)all;
    const nb_jv other = arg[0];
    bool same = self.kind == other.kind;
    if (same && (self.kind == NB_JV_LIST || self.kind == NB_JV_TUPLE))
        same = self.list == other.list;
    else if (same && self.kind == NB_JV_DICT)
        same = self.dict == other.dict;
    else if (same)
        NB_TRY(nb_jv_equal(r, self, other, &same));
    *out = nb_jv_bool(same);
    return NB_OK;
}

/* str.isupper and str.islower: some cased letter, and none of the other case. */
static nb_status is_case(nb_jrun *r, nb_jv self, bool upper, nb_jv *out)
{
    nb_jspan s;
    bool some = false, other = false;
    NB_TRY(nb_jv_to_text(r, self, &s));
    NB_TRY(nb_jrun_charge(r, 4 * s.n)); /* looking up a class takes a while */
    for (size_t i = 0; i < s.n;) {
        uint32_t cp;
        i += nb_jtext_decode(s.p + i, s.n - i, &cp);
        const utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)cp);
        const bool is_upper = c == UTF8PROC_CATEGORY_LU, is_lower = c == UTF8PROC_CATEGORY_LL;
        some |= upper ? is_upper : is_lower;
        other |= (upper ? is_lower : is_upper) || c == UTF8PROC_CATEGORY_LT;
    }
    *out = nb_jv_bool(some && !other);
    return NB_OK;
}

TEST(test_upper)
{
    (void)arg, (void)all;
    return is_case(r, self, true, out);
}

TEST(test_lower)
{
    (void)arg, (void)all;
    return is_case(r, self, false, out);
}

TEST(test_filter)
{
    (void)r, (void)arg, (void)all;
    *out = nb_jv_bool(self.kind == NB_JV_TEXT && nb_jinja_filter(self.text) != NULL);
    return NB_OK;
}

TEST(test_test)
{
    (void)r, (void)arg, (void)all;
    *out = nb_jv_bool(self.kind == NB_JV_TEXT && nb_jinja_test(self.text) != NULL);
    return NB_OK;
}

const nb_jbuiltin *nb_jinja_test(nb_jspan name)
{
    static const nb_jbuiltin TESTS[] = {
        {"defined", test_defined, {0}, 0, false},
        {"undefined", test_undefined, {0}, 0, false},
        {"none", test_none, {0}, 0, false},
        {"boolean", test_boolean, {0}, 0, false},
        {"true", test_true, {0}, 0, false},
        {"false", test_false, {0}, 0, false},
        {"integer", test_integer, {0}, 0, false},
        {"float", test_float, {0}, 0, false},
        {"number", test_number, {0}, 0, false},
        {"string", test_string, {0}, 0, false},
        {"mapping", test_mapping, {0}, 0, false},
        {"iterable", test_iterable, {0}, 0, false},
        {"sequence", test_sequence, {0}, 0, false},
        {"callable", test_callable, {0}, 0, false},
        {"escaped", test_escaped, {0}, 0, false},
        {"odd", test_odd, {0}, 0, false},
        {"even", test_even, {0}, 0, false},
        {"divisibleby", test_divisible, {"num"}, 1, false},
        {"eq", test_eq, {"other"}, 1, false},
        {"equalto", test_eq, {"other"}, 1, false},
        {"==", test_eq, {"other"}, 1, false},
        {"ne", test_ne, {"other"}, 1, false},
        {"!=", test_ne, {"other"}, 1, false},
        {"lt", test_lt, {"other"}, 1, false},
        {"lessthan", test_lt, {"other"}, 1, false},
        {"<", test_lt, {"other"}, 1, false},
        {"gt", test_gt, {"other"}, 1, false},
        {"greaterthan", test_gt, {"other"}, 1, false},
        {">", test_gt, {"other"}, 1, false},
        {"le", test_le, {"other"}, 1, false},
        {"<=", test_le, {"other"}, 1, false},
        {"ge", test_ge, {"other"}, 1, false},
        {">=", test_ge, {"other"}, 1, false},
        {"in", test_in, {"seq"}, 1, false},
        {"sameas", test_same, {"other"}, 1, false},
        {"upper", test_upper, {0}, 0, false},
        {"lower", test_lower, {0}, 0, false},
        {"filter", test_filter, {0}, 0, false},
        {"test", test_test, {0}, 0, false},
    };
    return nb_jbuiltin_in(TESTS, sizeof TESTS / sizeof TESTS[0], name);
}
