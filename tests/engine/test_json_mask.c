/* Masks: exactly the tokens that lead on, never none of them, and at the end always JSON that the
 * schema admits by its definition. */
#include "json_tokens.h"
#include "json_valid.h"

#include "base/rng.h"

#include <stdlib.h>

static json_tokens tokens;

static int open_all(void **state)
{
    (void)state;
    open_tokens(&tokens);
    return 0;
}

static int close_all(void **state)
{
    (void)state;
    close_tokens(&tokens);
    return 0;
}

/* ---- random schemas ---- */

typedef struct {
    uint64_t seed, index;
    nb_buf text;
    int n_left; /* schemas that may still be written */
} writer;

static int64_t pick(writer *w, int64_t n)
{
    return (int64_t)(nb_rng_uniform(w->seed, 5, w->index++) * (double)n);
}

static void say(writer *w, const char *text)
{
    nb_err err = {0};
    assert_int_equal(nb_buf_text(&w->text, text, &err), NB_OK);
}

static void say_int(writer *w, const char *before, int64_t n)
{
    char text[64];
    snprintf(text, sizeof text, "%s%lld", before, (long long)n);
    say(w, text);
}

static void write_schema(writer *w, int depth);

static void write_object(writer *w, int depth)
{
    static const char *const names[] = {"name", "na",    "n\\\"q", "\xc3\xa4",
                                        "a",    "value", "",       "kind"};
    const int64_t n = pick(w, 5), from = pick(w, 8);
    say(w, "{\"type\":\"object\",\"properties\":{");
    for (int64_t i = 0; i < n; i++) {
        say(w, i > 0 ? ",\"" : "\"");
        say(w, names[(from + i) % 8]);
        say(w, "\":");
        write_schema(w, depth - 1);
    }
    say(w, "},\"required\":[");
    bool first = true;
    for (int64_t i = 0; i < n; i++) {
        if (pick(w, 2) == 0)
            continue;
        say(w, first ? "\"" : ",\"");
        say(w, names[(from + i) % 8]);
        say(w, "\"");
        first = false;
    }
    const int64_t other = pick(w, 3);
    say(w, other == 0 ? "],\"additionalProperties\":false" : "]");
    if (other == 1) {
        say(w, ",\"additionalProperties\":");
        write_schema(w, depth - 1);
    }
    say(w, "}");
}

static void write_array(writer *w, int depth)
{
    const int64_t low = pick(w, 3), n = pick(w, 3);
    say_int(w, "{\"type\":\"array\",\"minItems\":", low);
    if (pick(w, 2) == 0)
        say_int(w, ",\"maxItems\":", low + pick(w, 3));
    if (n > 0) {
        say(w, ",\"prefixItems\":[");
        for (int64_t i = 0; i < n; i++) {
            say(w, i > 0 ? "," : "");
            write_schema(w, depth - 1);
        }
        say(w, "]");
    }
    say(w, ",\"items\":");
    write_schema(w, depth - 1);
    say(w, "}");
}

static void write_any_of(writer *w, int depth)
{
    const int64_t n = 1 + pick(w, 3);
    say(w, "{\"anyOf\":[");
    for (int64_t i = 0; i < n; i++) {
        say(w, i > 0 ? "," : "");
        write_schema(w, depth - 1);
    }
    say(w, "]}");
}

static void write_flat(writer *w)
{
    static const char *const flat[] = {
        "true",
        "{\"type\":\"string\"}",
        "{\"type\":\"number\"}",
        "{\"type\":\"number\",\"minimum\":0}",
        "{\"type\":[\"boolean\",\"null\"]}",
        "{\"enum\":[\"red\",\"green\",\"r\",1,12,-3.5,null,[1,\"x\"],{\"k\":true}]}",
        "{\"const\":\"n\xc3\xa4\\n\\u0001\"}",
        "{\"type\":[\"integer\",\"string\"],\"maxLength\":3,\"minimum\":-2}",
    };
    const int64_t kind = pick(w, 10);
    if (kind == 8) {
        const int64_t low = pick(w, 300) - 150;
        say_int(w, "{\"type\":\"integer\",\"minimum\":", low);
        say_int(w, ",\"maximum\":", low + pick(w, 200));
        say(w, "}");
    } else if (kind == 9) {
        const int64_t low = pick(w, 80);
        say_int(w, "{\"type\":\"string\",\"minLength\":", low);
        say_int(w, ",\"maxLength\":", low + pick(w, 5));
        say(w, "}");
    } else {
        say(w, flat[kind]);
    }
}

static void write_schema(writer *w, int depth)
{
    const int64_t kind = depth > 0 && w->n_left-- > 0 ? pick(w, 8) : 7;
    if (kind < 3)
        write_object(w, depth);
    else if (kind < 5)
        write_array(w, depth);
    else if (kind == 5)
        write_any_of(w, depth);
    else if (kind == 6)
        say(w, pick(w, 4) == 0 ? "{\"$ref\":\"#/$defs/list\"}" : "{\"$ref\":\"#/$defs/tree\"}");
    else
        write_flat(w);
}

static const char defs[] =
    "\"$defs\":{\"list\":{\"anyOf\":[{\"type\":\"null\"},{\"type\":\"object\",\"properties\":{"
    "\"v\":"
    "{\"type\":\"integer\"},\"next\":{\"$ref\":\"#/$defs/list\"}},\"required\":[\"next\"],"
    "\"additionalProperties\":false}]},\"tree\":{\"type\":\"array\",\"items\":"
    "{\"$ref\":\"#/$defs/tree\"},\"maxItems\":3}}";

/* ---- walks ---- */

static bool in_mask(const uint64_t *mask, int32_t id)
{
    return mask[id / 64] >> (id % 64) & 1;
}

/* The mask, by trying each token on a copy of the walk. */
static void check_mask(nb_json_walk *w, nb_json_walk *copy, const uint64_t *mask,
                       const char *schema)
{
    for (int32_t id = 0; id < tokens.n; id++) {
        nb_json_walk_copy(copy, w);
        const nb_trie_text *t = &tokens.text[id];
        if (nb_json_take(copy, t->bytes, t->len) != in_mask(mask, id))
            fail_msg("%s: token %d, '%.*s'", schema, id, (int)t->len, t->bytes);
    }
}

/* A token of the mask; late in a walk those that close something come first. -1: the end. */
static int32_t choose(writer *rng, const nb_json_walk *w, const uint64_t *mask, int64_t step)
{
    static const char closing[] = "\"}]";
    const bool late = step > 60;
    if (nb_json_must_end(w) || (nb_json_may_end(w) && (late || pick(rng, 3) == 0)))
        return -1;
    for (int i = 0; i < 3 && (late || pick(rng, 6) == 0); i++) {
        if (in_mask(mask, (uint8_t)closing[i]))
            return (uint8_t)closing[i];
    }
    int32_t first = (int32_t)pick(rng, tokens.n);
    if (pick(rng, 2) == 0 && !late) /* the longer ones are more interesting */
        first = 256 + (int32_t)pick(rng, tokens.n - 256);
    for (int32_t i = 0; i < tokens.n; i++) {
        const int32_t id = (first + i) % tokens.n;
        if (in_mask(mask, id))
            return id;
    }
    return -2;
}

static void check_text(const json_t *schema, const nb_buf *text, const char *of)
{
    json_error_t e;
    json_t *v = json_loadb((const char *)text->data, text->len, JSON_DECODE_ANY, &e);
    if (v == NULL)
        fail_msg("%s: '%.*s': %s", of, (int)text->len, (const char *)text->data, e.text);
    if (!is_valid(schema, schema, v))
        fail_msg("%s: '%.*s' does not satisfy it", of, (int)text->len, (const char *)text->data);
    json_decref(v);
}

/* Returns false when no value satisfies the schema, or it says too much. */
static bool walk_one(uint64_t seed, int64_t *n_steps, int64_t *n_bytes)
{
    nb_err err = {0};
    writer w = {.seed = seed, .n_left = 12};
    say(&w, "{\"type\":\"object\",");
    say(&w, defs);
    say(&w, ",\"properties\":{\"x\":");
    write_schema(&w, 4);
    say(&w, "},\"required\":[\"x\"]}");
    assert_int_equal(nb_buf_u8(&w.text, 0, &err), NB_OK);
    const char *text = (const char *)w.text.data;
    nb_json_schema *s = NULL;
    const nb_status status = nb_json_schema_compile(&s, text, strlen(text), &err);
    if (status != NB_OK) {
        if (strstr(err.text, "no value of at most") == NULL)
            fail_msg("%s: %s", text, err.text);
        nb_buf_free(&w.text);
        return false;
    }
    json_t *schema = json_loads(text, 0, NULL);
    nb_json_walk walk, copy;
    assert_int_equal(nb_json_walk_init(&walk, s, &err), NB_OK);
    assert_int_equal(nb_json_walk_init(&copy, s, &err), NB_OK);
    assert_int_equal(nb_json_vocab_spells(&tokens.vocab, s, &err), NB_OK);
    for (int round = 0; round < 3; round++) {
        nb_buf made = {0};
        nb_json_walk_begin(&walk);
        for (int64_t step = 0;; step++) {
            uint64_t mask[(sizeof tokens.text / sizeof *tokens.text + 63) / 64];
            nb_json_mask(&tokens.vocab, &walk, mask);
            if (pick(&w, 12) == 0)
                check_mask(&walk, &copy, mask, text);
            const int32_t id = choose(&w, &walk, mask, step);
            if (id == -2)
                fail_msg("%s: nothing may follow '%.*s'", text, (int)made.len, (char *)made.data);
            if (id < 0)
                break;
            assert_true(step < 5000);
            assert_true(nb_json_take(&walk, tokens.text[id].bytes, tokens.text[id].len));
            assert_int_equal(nb_buf_put(&made, tokens.text[id].bytes, tokens.text[id].len, &err),
                             NB_OK);
            ++*n_steps;
        }
        *n_bytes += (int64_t)made.len;
        check_text(schema, &made, text);
        nb_buf_free(&made);
    }
    json_decref(schema);
    nb_json_walk_free(&walk);
    nb_json_walk_free(&copy);
    nb_json_schema_free(s);
    nb_buf_free(&w.text);
    return true;
}

/* Random schemas, random tokens: every walk ends, in JSON that is valid by definition. */
static void random_walks_end_in_valid_json(void **state)
{
    (void)state;
    const char *only = getenv("JSON_SEED"); /* repeats one */
    const uint64_t from = only != NULL ? strtoull(only, NULL, 10) : 0;
    int n_walked = 0;
    int64_t n_steps = 0, n_bytes = 0;
    for (uint64_t seed = from; seed < (only != NULL ? from + 1 : 600); seed++)
        n_walked += walk_one(seed, &n_steps, &n_bytes);
    assert_true(only != NULL || (n_walked > 450 && n_steps > 20000 && n_bytes > n_steps));
}

/* The validator is not blind: values beside the schemas are found. */
static void the_validator_sees(void **state)
{
    (void)state;
    static const char *const wrong[][2] = {
        {"{\"type\":\"string\",\"minLength\":2}", "\"\xc3\xa4\""},
        {"{\"type\":\"object\",\"required\":[\"a\"]}", "{}"},
        {"{\"properties\":{\"a\":{\"type\":\"null\"}}}", "{\"a\":1}"},
        {"{\"additionalProperties\":false}", "{\"a\":1}"},
        {"{\"type\":\"array\",\"maxItems\":1}", "[1,2]"},
        {"{\"prefixItems\":[{\"type\":\"null\"}]}", "[1]"},
        {"{\"items\":{\"type\":\"integer\",\"maximum\":3}}", "[1,4]"},
        {"{\"anyOf\":[{\"const\":1},{\"enum\":[2]}]}", "3"},
        {"{\"$ref\":\"#/$defs/a\",\"$defs\":{\"a\":{\"type\":\"null\"}}}", "1"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        json_t *s = json_loads(wrong[i][0], JSON_DECODE_ANY, NULL);
        json_t *v = json_loads(wrong[i][1], JSON_DECODE_ANY, NULL);
        assert_non_null(s);
        assert_non_null(v);
        assert_false(is_valid(s, s, v));
        json_decref(s);
        json_decref(v);
    }
}

/* ---- edges ---- */

/* A model that says nothing but spaces, or digits, is made to go on. */
static void nothing_goes_on_for_ever(void **state)
{
    (void)state;
    static const struct {
        const char *schema, *begin, *again;
    } loops[] = {{"true", "", " "},
                 {"true", "[", "\n"},
                 {"true", "{\"a\":", "\t"},
                 {"true", "[1", " "},
                 {"true", "[", "9"},
                 {"true", "[0.", "9"},
                 {"true", "[1e", "9"},
                 {"true", "[-", "9"},
                 {"true", "", "["},
                 {"true", "{", " "},
                 {"true", "{\"a\" ", "\r"},
                 {"true", "{\"a\":1,", " "},
                 {"{\"type\":\"integer\"}", "", "9"}};
    nb_err err = {0};
    for (size_t i = 0; i < sizeof loops / sizeof *loops; i++) {
        nb_json_schema *s = must_compile(loops[i].schema);
        nb_json_walk w;
        assert_int_equal(nb_json_walk_init(&w, s, &err), NB_OK);
        assert_true(loops[i].begin[0] == 0 ||
                    nb_json_take(&w, loops[i].begin, strlen(loops[i].begin)));
        int n = 0;
        while (nb_json_take(&w, loops[i].again, 1) && n < 1000)
            n++;
        assert_in_range(n, 1, 64);
        nb_json_walk_free(&w);
        nb_json_schema_free(s);
    }
}

/* Alternatives that stay alike as long as they can, side by side at every level. */
static void alternatives_stay_bounded(void **state)
{
    (void)state;
    nb_err err = {0};
    nb_buf b = {0};
    nb_buf_text(&b, "{\"$defs\":{\"x\":{\"anyOf\":[", &err);
    for (int i = 0; i < 16; i++)
        nb_buf_format(&b, &err,
                      "%s{\"type\":\"array\",\"items\":{\"$ref\":\"#/$defs/x\"},\"maxItems\":%d}",
                      i > 0 ? "," : "", i + 1);
    nb_buf_text(&b, "]}},\"$ref\":\"#/$defs/x\"}", &err);
    nb_buf_u8(&b, 0, &err);
    nb_json_schema *s = must_compile((const char *)b.data);
    nb_json_walk w, copy;
    assert_int_equal(nb_json_walk_init(&w, s, &err), NB_OK);
    assert_int_equal(nb_json_walk_init(&copy, s, &err), NB_OK);
    uint64_t mask[(sizeof tokens.text / sizeof *tokens.text + 63) / 64];
    writer rng = {.seed = 3};
    /* What the sixteen admit together; they themselves would take the validator for ever. */
    json_t *schema =
        json_loads("{\"type\":\"array\",\"items\":{\"$ref\":\"#\"},\"maxItems\":16}", 0, NULL);
    nb_buf made = {0};
    int n = 0;
    for (; !nb_json_must_end(&w) && n < 3000; n++) {
        assert_true(w.n_frames <= NB_JSON_MAX_FRAMES / 3 && w.now.n <= NB_JSON_MAX_TOPS);
        if (n % 64 == 1) {
            nb_json_mask(&tokens.vocab, &w, mask);
            check_mask(&w, &copy, mask, "arrays of arrays");
        }
        const bool deeper = n < 100 || (n < 600 && pick(&rng, 4) == 0);
        const char *order = deeper ? "[]," : "],[";
        while (*order != 0 && !nb_json_take(&w, order, 1))
            order++;
        assert_true(*order != 0);
        nb_buf_u8(&made, (uint8_t)*order, &err);
    }
    assert_true(n < 3000);
    check_text(schema, &made, "arrays of arrays");
    json_decref(schema);
    nb_buf_free(&made);
    nb_buf_free(&b);
    nb_json_walk_free(&w);
    nb_json_walk_free(&copy);
    nb_json_schema_free(s);
}

/* A vocabulary that lacks a byte is refused, by that byte. */
static void a_vocabulary_has_to_spell(void **state)
{
    (void)state;
    nb_err err = {0};
    nb_json_schema *s = must_compile("{\"const\":\"\xc3\xa4\"}");
    for (int missing = 0; missing < 256; missing++) {
        nb_trie_text text[255];
        int n = 0;
        for (int i = 0; i < 256; i++) {
            if (i != missing)
                text[n++] = (nb_trie_text){&tokens.byte[i], 1, i};
        }
        nb_trie trie;
        nb_json_vocab vocab;
        assert_int_equal(nb_trie_of_texts(&trie, text, n, 256, &err), NB_OK);
        assert_int_equal(nb_json_vocab_init(&vocab, &trie, &err), NB_OK);
        const bool needed = (missing >= 0x20 && missing < 0x7f) ||
                            (missing >= 0x80 && missing < 0xc0) || missing == 0xc3;
        assert_int_equal(nb_json_vocab_spells(&vocab, s, &err), needed ? NB_UNSUPPORTED : NB_OK);
        char byte[8];
        snprintf(byte, sizeof byte, "0x%02x", (unsigned)missing);
        if (needed)
            assert_non_null(strstr(err.text, byte));
        nb_json_vocab_free(&vocab);
        nb_trie_free(&trie);
    }
    nb_json_schema_free(s);
}

/* Tokens of the same bytes come together; long and empty ones never. */
static void tries_hold_what_they_should(void **state)
{
    (void)state;
    nb_err err = {0};
    char longest[NB_TRIE_MAX_BYTES + 1];
    memset(longest, 'x', sizeof longest);
    nb_trie_text text[] = {{"x", 1, 4},
                           {"", 0, 1},
                           {"x", 1, 2},
                           {longest, NB_TRIE_MAX_BYTES, 0},
                           {longest, NB_TRIE_MAX_BYTES + 1, 3},
                           {"x", 1, 5}};
    nb_trie trie;
    nb_json_vocab vocab;
    assert_int_equal(nb_trie_of_texts(&trie, text, 6, 6, &err), NB_OK);
    assert_int_equal(trie.n_nodes, NB_TRIE_MAX_BYTES);
    assert_int_equal(nb_json_vocab_init(&vocab, &trie, &err), NB_OK);
    assert_true(vocab.inside[0] == (1u | 1u << 2 | 1u << 4 | 1u << 5));
    assert_int_equal(vocab.chars[0], NB_TRIE_MAX_BYTES);
    nb_json_vocab_free(&vocab);
    nb_trie_free(&trie);
    assert_int_equal(nb_trie_of_texts(&trie, NULL, 0, 0, &err), NB_OK);
    nb_trie_free(&trie);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_walks_end_in_valid_json),
        cmocka_unit_test(the_validator_sees),
        cmocka_unit_test(nothing_goes_on_for_ever),
        cmocka_unit_test(alternatives_stay_bounded),
        cmocka_unit_test(a_vocabulary_has_to_spell),
        cmocka_unit_test(tries_hold_what_they_should),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
