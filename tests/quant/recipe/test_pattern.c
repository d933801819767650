/* Patterns over names: every short pattern against every short name, by a second definition. */
#include "quant/recipe/pattern.h"

#include "support/golden.h"

#include <stdio.h>
#include <string.h>

/* ---- the second definition: braces written out, then one way after the other ---- */

static bool plain(const char *p, const char *name)
{
    if (*p == 0)
        return *name == 0;
    if (*p == '*')
        return plain(p + 1, name) || (*name != 0 && plain(p, name + 1));
    return *name != 0 && (*p == '?' || *p == *name) && plain(p + 1, name + 1);
}

static bool expanded(const char *p, const char *name)
{
    const char *open = strchr(p, '{'), *close = open == NULL ? NULL : strchr(open, '}');
    if (open == NULL)
        return plain(p, name);
    for (const char *at = open + 1;; at++) {
        char one[64];
        const size_t n = strcspn(at, ",}");
        snprintf(one, sizeof one, "%.*s%.*s%s", (int)(open - p), p, (int)n, at, close + 1);
        if (expanded(one, name))
            return true;
        at += n;
        if (at == close)
            return false;
    }
}

static bool sound(const char *p)
{
    int open = 0;
    for (const char *c = p; *c != 0; c++) {
        open += *c == '{';
        open -= *c == '}';
        if (open < 0 || open > 1)
            return false;
    }
    return open == 0 && *p != 0;
}

/* Text number i of those over an alphabet, the shorter ones first; false: longer than max. */
static bool text_at(int64_t i, const char *alphabet, int max, char *out)
{
    const int64_t n = (int64_t)strlen(alphabet);
    int64_t count = 1;
    for (int len = 0; len <= max; len++) {
        if (i < count) {
            for (int k = 0; k < len; k++, i /= n)
                out[k] = alphabet[i % n];
            out[len] = 0;
            return true;
        }
        i -= count;
        count *= n;
    }
    return false;
}

/* All patterns of up to five characters and all names of up to four. */
static void agrees_with_the_definition(void **state)
{
    (void)state;
    nb_err err;
    char p[8], name[8];
    int64_t n_matched = 0, n_refused = 0;
    for (int64_t i = 0; text_at(i, "ab*?{},", 5, p); i++) {
        const bool good = nb_pattern_check(p, &err) == NB_OK;
        if (good != sound(p))
            fail_msg("'%s' is %s", p, good ? "taken" : "refused");
        n_refused += !good;
        for (int64_t j = 0; good && text_at(j, "ab,", 3, name); j++) {
            const bool matches = nb_pattern_matches(p, name);
            n_matched += matches;
            if (matches != expanded(p, name))
                fail_msg("'%s' and '%s': %d", p, name, matches);
        }
    }
    assert_true(n_matched > 10000);
    assert_true(n_refused > 1000);
}

static void names_of_tensors(void **state)
{
    (void)state;
    static const struct {
        const char *pattern, *name;
        bool matches;
    } cases[] = {
        {"model.layers.*.mlp.down_proj", "model.layers.12.mlp.down_proj", true},
        {"model.layers.*.mlp.down_proj", "model.layers.12.mlp.up_proj", false},
        {"*.q_proj", "model.layers.0.self_attn.q_proj", true},
        {"model.layers.{0,29}.*", "model.layers.29.mlp.up_proj", true},
        {"model.layers.{0,29}.*", "model.layers.2.mlp.up_proj", false},
        {"model.layers.{0,29}.*", "model.layers.0", false},
        {"model.layers.?.*_proj", "model.layers.10.mlp.up_proj", false},
        {"*.{q,k,v}_proj", "model.layers.3.self_attn.v_proj", true},
        {"*.{1?,2*}.*", "model.layers.200.x", true},
        {"lm_head", "lm_head", true},
        {"lm_head", "lm_heads", false},
        {"*", "", true},
        {"{,a}", "", true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        nb_err err;
        assert_int_equal(nb_pattern_check(cases[i].pattern, &err), NB_OK);
        if (nb_pattern_matches(cases[i].pattern, cases[i].name) != cases[i].matches)
            fail_msg("'%s' and '%s'", cases[i].pattern, cases[i].name);
    }
}

/* Many stars take no longer than few: tried one way after the other, this would take years. */
static void many_stars(void **state)
{
    (void)state;
    char p[200] = "", name[100];
    for (int i = 0; i < 60; i++)
        strcat(p, "*a");
    strcat(p, "b");
    memset(name, 'a', sizeof name - 1);
    name[sizeof name - 1] = 0;
    assert_false(nb_pattern_matches(p, name));
    name[sizeof name - 2] = 'b';
    assert_true(nb_pattern_matches(p, name));
}

static void refused(void **state)
{
    (void)state;
    static char longest[NB_PATTERN_MAX + 2];
    memset(longest, 'a', NB_PATTERN_MAX + 1);
    const struct {
        const char *pattern, *reason;
    } cases[] = {
        {"", "no characters"},       {"a b", "no name of a tensor has a ' '"},
        {"a\tb", "has a"},           {"a=b", "has a '='"},
        {"a#b", "has a '#'"},        {"\"a\"", "has a '\"'"},
        {"{a", "a '{' without"},     {"a}", "a '}' without"},
        {"{a{b}}", "inside braces"}, {longest, "at most 4096"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        nb_err err = {0};
        assert_int_equal(nb_pattern_check(cases[i].pattern, &err), NB_USAGE);
        if (strstr(err.text, cases[i].reason) == NULL)
            fail_msg("'%s': %s", cases[i].pattern, err.text);
    }
    nb_err err;
    longest[NB_PATTERN_MAX] = 0; /* the longest that is taken */
    assert_int_equal(nb_pattern_check(longest, &err), NB_OK);
    longest[0] = '*';
    assert_true(nb_pattern_matches(longest, longest + 1));
    assert_false(nb_pattern_matches(longest, "aaa"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_the_definition),
        cmocka_unit_test(names_of_tensors),
        cmocka_unit_test(many_stars),
        cmocka_unit_test(refused),
    };
    return cmocka_run_group_tests_name("pattern", tests, NULL, NULL);
}
