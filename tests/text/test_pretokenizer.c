/* Pre-tokenizers: pieces of the golden texts, hand-written scanners against the expressions that
 * they stand for, and expressions made to hang. */
#include "support/golden.h"

#include "base/rng.h"
#include "text/pretokenizer.h"
#include "text/unicode.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Pieces as they come: their texts end to end, and where each ends. */
typedef struct {
    nb_buf text, ends;
} pieces;

static nb_status gather(void *context, const uint8_t *bytes, size_t len, nb_err *err)
{
    pieces *p = context;
    assert_true(len > 0);
    NB_TRY(nb_buf_put(&p->text, bytes, len, err));
    return nb_buf_put(&p->ends, &p->text.len, sizeof p->text.len, err);
}

static void pieces_free(pieces *p)
{
    nb_buf_free(&p->text);
    nb_buf_free(&p->ends);
}

static nb_status cut(const nb_pretokenizer *p, const char *text, size_t len, pieces *out,
                     nb_err *err)
{
    *out = (pieces){0};
    return nb_pretokenize(p, text, len, gather, out, err);
}

static void assert_same_pieces(const pieces *a, const pieces *b, const char *what)
{
    if (a->text.len != b->text.len || a->ends.len != b->ends.len ||
        (a->ends.len > 0 && memcmp(a->ends.data, b->ends.data, a->ends.len) != 0))
        fail_msg("%s: %zu pieces and %zu pieces differ", what, a->ends.len / sizeof(size_t),
                 b->ends.len / sizeof(size_t));
}

static nb_pretokenizer from_json(const char *text)
{
    nb_err err = {0};
    nb_pretokenizer p;
    json_t *v = json_loads(text, 0, NULL);
    assert_non_null(v);
    if (nb_pretokenizer_from_json(&p, v, &err) != NB_OK)
        fail_msg("%s", err.text);
    json_decref(v);
    return p;
}

static void add_regex(nb_pretokenizer *p, const char *pattern)
{
    nb_err err = {0};
    if (nb_pretokenizer_add(p, NB_SPLIT_REGEX, pattern, &err) != NB_OK)
        fail_msg("%s", err.text);
}

/* The chain of one pattern set, with its expressions recognized or, hidden in a group, run. */
static nb_pretokenizer from_patterns(const json_t *patterns, bool hidden)
{
    nb_pretokenizer p = {0};
    for (size_t i = 0; i < json_array_size(patterns); i++) {
        char hiding[1024];
        const char *pattern = json_string_value(json_array_get(patterns, i));
        snprintf(hiding, sizeof hiding, "(?:%s)", pattern);
        add_regex(&p, hidden ? hiding : pattern);
    }
    return p;
}

static void assert_pieces(const pieces *got, const json_t *expected, const char *set,
                          const char *text)
{
    const size_t *ends = (const size_t *)(const void *)got->ends.data;
    const size_t n = got->ends.len / sizeof *ends;
    size_t begin = 0;
    bool same = n == json_array_size(expected);
    for (size_t i = 0; i < n && same; i++) {
        const json_t *piece = json_array_get(expected, i);
        const size_t len = json_string_length(piece);
        same = ends[i] - begin == len &&
               memcmp(got->text.data + begin, json_string_value(piece), len) == 0;
        begin = ends[i];
    }
    if (!same)
        fail_msg("%s cuts \"%s\" into other pieces (%zu of them)", set, text, n);
}

static void golden_pieces(void **state)
{
    (void)state;
    json_t *golden = golden_load("pretokenizers.json"), *patterns, *test;
    const char *set;
    size_t i, n_compared = 0;
    json_object_foreach(golden_get(golden, "patterns"), set, patterns)
    {
        for (int hidden = 0; hidden < 2; hidden++) {
            nb_pretokenizer p = from_patterns(patterns, hidden);
            assert_int_equal(p.steps[p.n_steps - 1].kind == NB_SPLIT_REGEX,
                             hidden || strcmp(set, "o200k") == 0 ||
                                 strcmp(set, "deepseek_v3") == 0);
            json_array_foreach(golden_get(golden, "cases"), i, test)
            {
                const json_t *text = golden_get(test, "text");
                nb_err err = {0};
                pieces got;
                assert_int_equal(
                    cut(&p, json_string_value(text), json_string_length(text), &got, &err), NB_OK);
                assert_pieces(&got, golden_get(test, set), set, json_string_value(text));
                pieces_free(&got);
                n_compared++;
            }
            nb_pretokenizer_free(&p);
        }
    }
    assert_int_equal(n_compared, 2 * 6 * 23);
    json_decref(golden);
}

/* Text that meets every branch: classes in short runs, contractions, line breaks, stray bytes. */
static size_t random_text(char *out, size_t max, uint64_t seed, bool strays)
{
    static const char *const parts[] = {
        "a",    "Z",   "é",      "你",     "ſ",      "s",      "LL", "re", "1",       "23",
        "٣",    "Ⅷ",   "'",      "'s",     "'S",     " ",      " ",  "  ", "\t",      "\n",
        "\r",   "\n",  "\r\n",   "\u00a0", "\u2028", "\u3000", "!",  "_",  "€",       "\u0301",
        "🙂", "...", "\u180e", "\u200b", "'T",     "'ve",    "'D", "m",  "\xc2\x85"};
    size_t n = 0;
    for (uint64_t i = 0; n + 8 < max; i++) {
        uint32_t w[4];
        nb_philox(seed, 3, i, w);
        const char *part = parts[w[0] % (sizeof parts / sizeof *parts)];
        if (strays && w[1] % 9 == 0)
            out[n++] = (char)(0x80 | w[2]);
        else
            for (; *part != '\0'; part++)
                out[n++] = *part;
    }
    return n;
}

/* The scanners are only a faster way to run their expressions. */
static void scanners_equal_their_expressions(void **state)
{
    (void)state;
    json_t *golden = golden_load("pretokenizers.json");
    static const char *const sets[] = {"gpt2", "llama3", "qwen2"};
    for (int k = 0; k < 3; k++) {
        const json_t *patterns = golden_get(golden_get(golden, "patterns"), sets[k]);
        nb_pretokenizer scanned = from_patterns(patterns, false);
        nb_pretokenizer run = from_patterns(patterns, true);
        for (uint64_t seed = 0; seed < 3000; seed++) {
            nb_err err = {0};
            char text[200];
            const size_t n = random_text(text, 8 + seed % 190, seed, seed % 4 == 3);
            pieces a, b;
            assert_int_equal(cut(&scanned, text, n, &a, &err), NB_OK);
            assert_int_equal(cut(&run, text, n, &b, &err), NB_OK);
            assert_int_equal(a.text.len, n);
            if (n > 0)
                assert_memory_equal(a.text.data, text, n);
            assert_same_pieces(&a, &b, sets[k]);
            pieces_free(&a);
            pieces_free(&b);
        }
        nb_pretokenizer_free(&scanned);
        nb_pretokenizer_free(&run);
    }
    json_decref(golden);
}

/* Whatever the bytes, the pieces put together are the text. */
static void pieces_lose_no_byte(void **state)
{
    (void)state;
    nb_pretokenizer p = {0};
    nb_err err = {0};
    add_regex(&p, "\\p{L}+|x*");
    assert_int_equal(nb_pretokenizer_add(&p, NB_SPLIT_DIGIT_RUNS, NULL, &err), NB_OK);
    add_regex(&p, "[^\\r\\n]+");
    for (uint64_t seed = 0; seed < 300; seed++) {
        char text[256];
        for (size_t i = 0; i < sizeof text; i++) {
            uint32_t w[4];
            nb_philox(seed, 5, i, w);
            text[i] = (char)w[0];
        }
        pieces got;
        assert_int_equal(cut(&p, text, sizeof text, &got, &err), NB_OK);
        assert_int_equal(got.text.len, sizeof text);
        assert_memory_equal(got.text.data, text, sizeof text);
        pieces_free(&got);
    }
    nb_pretokenizer_free(&p);
}

static void check_cut(const char *json, const char *text, const char *expected)
{
    nb_pretokenizer p = from_json(json);
    nb_err err = {0};
    pieces got;
    assert_int_equal(cut(&p, text, strlen(text), &got, &err), NB_OK);
    json_t *v = json_loads(expected, 0, NULL);
    assert_non_null(v);
    assert_pieces(&got, v, json, text);
    json_decref(v);
    pieces_free(&got);
    nb_pretokenizer_free(&p);
}

#define BYTE_LEVEL(prefix, regex)                                                                  \
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":" prefix ",\"trim_offsets\":true,"               \
    "\"use_regex\":" regex "}"
#define SEQUENCE(list) "{\"type\":\"Sequence\",\"pretokenizers\":[" list "]}"
#define SPLIT(regex)                                                                               \
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" regex                                          \
    "\"},\"behavior\":\"Isolated\",\"invert\":false}"

static void chains_of_steps(void **state)
{
    (void)state;
    check_cut(BYTE_LEVEL("false", "false"), "a b1", "[\"a b1\"]");
    check_cut(BYTE_LEVEL("true", "true"), "a b", "[\" a\",\" b\"]");
    check_cut(BYTE_LEVEL("true", "true"), " a", "[\" a\"]");
    check_cut(BYTE_LEVEL("false", "true"), "", "[]");
    /* The prefix space comes to every piece of the step before. */
    check_cut(SEQUENCE("{\"type\":\"Digits\"}," BYTE_LEVEL("true", "true")), "a12b",
              "[\" a\",\" 12\",\" b\"]");
    check_cut(SEQUENCE("{\"type\":\"Digits\",\"individual_digits\":true}," SEQUENCE(
                  BYTE_LEVEL("false", "true"))),
              "a12 b", "[\"a\",\"1\",\"2\",\" b\"]");
    check_cut(SEQUENCE(SPLIT("b+") "," BYTE_LEVEL("false", "false")), "abba",
              "[\"a\",\"bb\",\"a\"]");
    /* Line ends, and \u: spelled otherwise in PCRE2. */
    check_cut(SEQUENCE(SPLIT("^a$") "," BYTE_LEVEL("false", "false")), "a\na",
              "[\"a\",\"\\n\",\"a\"]");
    check_cut(SEQUENCE(SPLIT("\\\\u00e9") "," BYTE_LEVEL("false", "false")), "x\u00e9x",
              "[\"x\",\"\u00e9\",\"x\"]");
    /* U+180E is no white space to the reference. */
    check_cut(SEQUENCE(SPLIT("[\\\\s]+") "," BYTE_LEVEL("false", "false")), " \u180e\u3000",
              "[\" \",\"\u180e\",\"\u3000\"]");
}

static void check_refused(const char *json, nb_status status, const char *reason)
{
    nb_err err = {0};
    nb_pretokenizer p;
    const int64_t live = nb_alloc_live();
    json_t *v = json_loads(json, JSON_DECODE_ANY, NULL);
    assert_non_null(v);
    const nb_status s = nb_pretokenizer_from_json(&p, v, &err);
    if (s != status || strstr(err.text, reason) == NULL)
        fail_msg("%.200s: expected '%s' (%s), found '%s' (%s)", json, reason,
                 nb_status_name(status), err.text, nb_status_name(s));
    assert_int_equal(nb_alloc_live(), live);
    json_decref(v);
}

/* What is not done is refused by name: other pieces would give other ids without a word. */
static void unknown_steps_are_refused(void **state)
{
    (void)state;
    check_refused("null", NB_UNSUPPORTED, "null");
    check_refused("[]", NB_DATA, "no object");
    check_refused("{}", NB_DATA, "type");
    check_refused("{\"type\":\"Metaspace\"}", NB_UNSUPPORTED, "'Metaspace'");
    check_refused("{\"type\":\"Digits\"}", NB_UNSUPPORTED, "without ByteLevel");
    check_refused(SEQUENCE(""), NB_UNSUPPORTED, "without ByteLevel");
    check_refused(SEQUENCE(BYTE_LEVEL("false", "true") ",{\"type\":\"Digits\"}"), NB_UNSUPPORTED,
                  "'Digits' after ByteLevel");
    check_refused("{\"type\":\"ByteLevel\",\"use_regex\":1}", NB_DATA, "use_regex");
    check_refused("{\"type\":\"Split\",\"pattern\":{\"String\":\"x\"},\"behavior\":\"Isolated\"}",
                  NB_UNSUPPORTED, "no Regex");
    check_refused("{\"type\":\"Split\",\"pattern\":{\"Regex\":\"x\"},\"behavior\":\"Removed\"}",
                  NB_UNSUPPORTED, "'Removed'");
    check_refused("{\"type\":\"Split\",\"pattern\":{\"Regex\":\"x\"},\"behavior\":\"Isolated\","
                  "\"invert\":true}",
                  NB_UNSUPPORTED, "inverted");
    check_refused(SEQUENCE(SPLIT("(")), NB_DATA, "regular expression");
    check_refused(SEQUENCE(SPLIT("a{2}{3,1}")), NB_DATA, "regular expression");
    check_refused(SEQUENCE(SPLIT("\\\\p{Nonsense}")), NB_DATA, "regular expression");
    check_refused(SEQUENCE(SEQUENCE(SEQUENCE(SEQUENCE(SEQUENCE(
                      SEQUENCE(SEQUENCE(SEQUENCE(SEQUENCE(BYTE_LEVEL("true", "true")))))))))),
                  NB_DATA, "nested");
}

/* Syntax that PCRE2 would read as something else, or that escapes the counting of steps. */
static void foreign_syntax_is_refused(void **state)
{
    (void)state;
    static const char *const patterns[] = {"\\h",         "[\\h]",
                                           "\\v",         "\\K",
                                           "\\G",         "\\R",
                                           "\\X",         "\\N",
                                           "\\Qa\\E",     "\\Z",
                                           "[a[b]]",      "[a&&b]",
                                           "[]a]",        "[^]a]",
                                           "[a",          "\\",
                                           "(?m:a)",      "(?s:a)",
                                           "(?#c)",       "(?<n>a)",
                                           "(?P<n>a)",    "(?R)",
                                           "(?1)",        "(a)\\1",
                                           "(?C1)a",      "(*LIMIT_MATCH=1)a",
                                           "(*UTF)a",     "(?|a|b)",
                                           "\\x",         "\\xff",
                                           "\\u12",       "a{2}+",
                                           "\\p",         "\\pL",
                                           "[\\b]",       "\\C",
                                           "\\o{7}",      "(?i)a",
                                           "(?~a)",       "\\p{L",
                                           "[[:alpha:]]", "\\0",
                                           "\\g<1>",      "\\k<n>",
                                           "(?:"};
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
        nb_err err = {0};
        nb_pretokenizer p = {0};
        const int64_t live = nb_alloc_live();
        const nb_status s = nb_pretokenizer_add(&p, NB_SPLIT_REGEX, patterns[i], &err);
        if (s != NB_UNSUPPORTED && !(s == NB_DATA && strcmp(patterns[i], "(?:") == 0))
            fail_msg("'%s' gave '%s'", patterns[i], nb_status_name(s));
        assert_int_equal(nb_alloc_live(), live);
    }
    /* Deep nesting ends in an error, not in a stack. */
    char deep[601] = "";
    for (int i = 0; i < 200; i++)
        strcat(deep, "(?:");
    nb_err err = {0};
    nb_pretokenizer p = {0};
    assert_int_equal(nb_pretokenizer_add(&p, NB_SPLIT_REGEX, deep, &err), NB_DATA);
    for (int i = 0; i < NB_MAX_SPLITS; i++)
        add_regex(&p, "a");
    assert_int_equal(nb_pretokenizer_add(&p, NB_SPLIT_REGEX, "a", &err), NB_DATA);
    nb_pretokenizer_free(&p);
}

/* Patterns that would take longer than the age of the universe, or the square of the text: an
 * error soon. The test's time limit would catch the hang. */
static void catastrophic_patterns_hit_the_limit(void **state)
{
    (void)state;
    static const char *const patterns[] = {"(a+)+$", "(?:a|aa)+$", "(?:a*)*b",  "(a|a|b)*c",
                                           "a*+b",   "a*b",        "(?>a+)b",   "(?:a?){30}a{30}b",
                                           "a+$",    "(?=a*b)a",   "(?:.|a)*b", "[^b]*b"};
    const size_t n = 1 << 20;
    char *text = malloc(n);
    assert_non_null(text);
    memset(text, 'a', n);
    text[n - 1] = '!';
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
        nb_err err = {0};
        nb_pretokenizer p = {0};
        add_regex(&p, patterns[i]);
        const int64_t live = nb_alloc_live();
        pieces got;
        const nb_status s = cut(&p, text, n, &got, &err);
        if (s != NB_LIMIT)
            fail_msg("'%s' gave '%s'", patterns[i], nb_status_name(s));
        pieces_free(&got);
        assert_int_equal(nb_alloc_live(), live);
        nb_pretokenizer_free(&p);
    }
    free(text);
}

/* The same limit lets every real pattern through, on long runs of each thing that could hurt. */
static void real_patterns_stay_below_the_limit(void **state)
{
    (void)state;
    static const char *const units[] = {"a",      "A",  " ",    "\n", " \n", "!",  "1",   "你",
                                        "\u0301", "'s", "\xff", "a ", "Aa",  "! ", "\t a"};
    json_t *golden = golden_load("pretokenizers.json"), *patterns;
    const char *set;
    const size_t n = 1 << 16;
    char *text = malloc(n + 8);
    assert_non_null(text);
    json_object_foreach(golden_get(golden, "patterns"), set, patterns)
    {
        nb_pretokenizer p = from_patterns(patterns, true);
        for (size_t k = 0; k < sizeof units / sizeof *units; k++) {
            size_t len = 0;
            for (; len < n; len += strlen(units[k]))
                memcpy(text + len, units[k], strlen(units[k]));
            nb_err err = {0};
            pieces got;
            if (cut(&p, text, len, &got, &err) != NB_OK)
                fail_msg("%s on many '%s': %s", set, units[k], err.text);
            assert_int_equal(got.text.len, len);
            pieces_free(&got);
        }
        nb_pretokenizer_free(&p);
    }
    free(text);
    json_decref(golden);
}

/* A chain written down and read again is the same chain. */
static void chains_survive_json(void **state)
{
    (void)state;
    static const char *const chains[] = {
        BYTE_LEVEL("false", "true"),
        BYTE_LEVEL("true", "false"),
        BYTE_LEVEL("true", "true"),
        SEQUENCE("{\"type\":\"Digits\",\"individual_digits\":true}," BYTE_LEVEL("false", "true")),
        SEQUENCE("{\"type\":\"Digits\",\"individual_digits\":false}," BYTE_LEVEL("true", "true")),
        SEQUENCE(SPLIT("\\\\p{N}{1,3}") "," SPLIT("x+") "," BYTE_LEVEL("false", "false")),
    };
    for (size_t i = 0; i < sizeof chains / sizeof *chains; i++) {
        nb_err err = {0};
        nb_pretokenizer p = from_json(chains[i]), q;
        json_t *v;
        assert_int_equal(nb_pretokenizer_to_json(&p, &v, &err), NB_OK);
        assert_int_equal(nb_pretokenizer_from_json(&q, v, &err), NB_OK);
        assert_int_equal(p.n_steps, q.n_steps);
        for (int k = 0; k < p.n_steps; k++) {
            assert_int_equal(p.steps[k].kind, q.steps[k].kind);
            if (p.steps[k].kind == NB_SPLIT_REGEX)
                assert_string_equal(p.steps[k].pattern, q.steps[k].pattern);
        }
        json_decref(v);
        nb_pretokenizer_free(&p);
        nb_pretokenizer_free(&q);
    }
}

static void families_by_name(void **state)
{
    (void)state;
    static const char *const names[] = {"gpt-2", "smollm", "llama-bpe", "qwen2"};
    for (int i = 0; i < 4; i++) {
        const nb_split_family *f = nb_split_family_by_name(names[i], strlen(names[i]));
        assert_non_null(f);
        nb_pretokenizer p = {.n_steps = f->n_steps};
        for (int k = 0; k < f->n_steps; k++)
            p.steps[k].kind = f->steps[k];
        assert_ptr_equal(nb_split_family_of(&p, f->nfc, f->ignore_merges), f);
        assert_null(nb_split_family_of(&p, !f->nfc, f->ignore_merges));
    }
    static const char *const others[] = {"default", "", "gpt-22", "smoll", "Qwen2", "tekken"};
    for (int i = 0; i < 6; i++)
        assert_null(nb_split_family_by_name(others[i], strlen(others[i])));
}

/* Every allocation that can fail while compiling and cutting fails once. */
static void without_memory(void **state)
{
    (void)state;
    json_t *v = json_loads(SEQUENCE(SPLIT("[a-c]+\\\\s") "," BYTE_LEVEL("true", "true")), 0, NULL);
    assert_non_null(v);
    const int64_t live = nb_alloc_live();
    nb_status s = NB_MEMORY;
    for (int64_t k = 1; s == NB_MEMORY; k++) {
        nb_err err = {0};
        nb_pretokenizer p;
        nb_alloc_fail_at(k);
        s = nb_pretokenizer_from_json(&p, v, &err);
        if (s == NB_OK) {
            pieces got;
            s = cut(&p, "abc x\xff y", 9, &got, &err);
            pieces_free(&got);
            nb_pretokenizer_free(&p);
        }
        nb_alloc_fail_at(0);
        assert_int_equal(nb_alloc_live(), live);
        assert_true(k > 3 || s == NB_MEMORY);
    }
    assert_int_equal(s, NB_OK);
    json_decref(v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_pieces),
        cmocka_unit_test(scanners_equal_their_expressions),
        cmocka_unit_test(pieces_lose_no_byte),
        cmocka_unit_test(chains_of_steps),
        cmocka_unit_test(unknown_steps_are_refused),
        cmocka_unit_test(foreign_syntax_is_refused),
        cmocka_unit_test(catastrophic_patterns_hit_the_limit),
        cmocka_unit_test(real_patterns_stay_below_the_limit),
        cmocka_unit_test(chains_survive_json),
        cmocka_unit_test(families_by_name),
        cmocka_unit_test(without_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
