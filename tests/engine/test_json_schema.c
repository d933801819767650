/* What a JSON schema becomes: the values it admits, and by name what is not supported, cannot be,
 * or would cost too much. */
#include "json_tokens.h"

#include "base/alloc.h"
#include "base/rng.h"

#include <stdlib.h>

/* ---- values ---- */

/* Each row: a schema, texts it admits, texts it does not; '|' parts the texts. */
static const struct {
    const char *schema, *good, *bad;
} rows[] = {
    {"{\"type\":\"null\"}", "null|  null", "nul|nulll||null "},
    {"{\"type\":\"boolean\"}",
     "true|"
     "false",
     "True|0|\"true\""},
    {"{\"type\":\"string\"}", "\"\"|\"a\"|\"\xc3\xa4\\n\\u00e4\\ud83d\\ude00\"|\"\\/\\\"\"",
     "\"|\"\\x\"|\"\\u12\"|\"\\u0000\"|\"\\ud800\"|\"\\udc00\"|\"\\ud800\\ud800\""
     "|\"\t\"|\"\xc0\x80\"|"
     "\"\xed\xa0\x80\"|\"\xf4\x90\x80\x80\"|\"\xc3\"|\"\xa4\"|\"\xff\""},
    {"{\"type\":\"string\",\"minLength\":2,\"maxLength\":3}",
     "\"ab\"|\"abc\"|\"\xe2\x82\xac\xe2\x82\xac\"|\"\\ud83d\\ude00\\n\\\"\"",
     "\"a\"|\"abcd\"|\"\xe2\x82\xac\""},
    {"{\"type\":\"number\"}",
     "0|-0|"
     "12.5|-1e5|1.25E+10|"
     "0.001|"
     "123456789012345678",
     "01|1.|.5|+1|"
     "1e|"
     "1e+|-|-01|NaN|Infinity|"
     "0x1|"
     "1e999|"
     "1234567890123456789"},
    {"{\"type\":\"number\",\"minimum\":0}",
     "0.5|"
     "12",
     "-1|-0"},
    {"{\"type\":\"integer\"}",
     "0|-7|"
     "10",
     "1.0|-0|"
     "1e3|"
     "007"},
    {"{\"type\":\"integer\",\"minimum\":17,\"maximum\":230}",
     "17|"
     "99|"
     "100|"
     "230",
     "16|"
     "231|"
     "1|"
     "0|-20|"
     "2300"},
    {"{\"type\":\"integer\",\"exclusiveMinimum\":-12,\"exclusiveMaximum\":3}",
     "-11|-9|-1|"
     "0|"
     "2",
     "-12|"
     "3|-0|-100"},
    {"{\"type\":\"integer\",\"minimum\":-30.5,\"maximum\":-11.5}", "-30|-12",
     "-31|-11|-1|"
     "0|"
     "5"},
    {"{\"type\":\"integer\",\"minimum\":1e30}", "", "1"},
    {"{\"enum\":[1,12,\"a\",\"ab\",null,[1,{\"x\":2.0}]]}",
     "1|"
     "12|\"a\"|\"ab\"|null|[1, {\"x\": 2.0}]",
     "2|"
     "123|\"\"|\"abc\"|[1,{}]"},
    {"{\"const\":3.0}", "3",
     "3.0|"
     "4"},
    {"{\"type\":[\"integer\",\"null\"],\"enum\":[1,2.5,3.0,null,\"x\"]}",
     "1|"
     "3|null",
     "2.5|\"x\""},
    {"{\"type\":[\"string\",\"null\"],\"maxLength\":1}", "\"a\"|null",
     "\"ab\"|"
     "1"},
    {"{\"type\":\"object\"}", "{}|{\"a\":1,\"a\":[{}]}|{ \"\" : null }",
     "[]|{\"a\"}|{\"a\":}|{,}|{\"a\":1,}|{a:1}"},
    {"{\"type\":\"array\"}", "[]|[1,[],\"x\"]|[ ]", "[,]|[1,]|[1 2]|{}"},
    {"true", "1|{\"a\":[true,false,null,1.5,\"s\"]}", ""},
    {"{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"},\"ab\":{\"type\":\"null\"},"
     "\"c\":{\"type\":\"null\"}},"
     "\"required\":[\"ab\"],\"additionalProperties\":false}",
     "{\"ab\":null}|{\"a\":1,\"ab\":null}|{\"ab\":null,\"c\":null}|{ \"a\" : 1 "
     ",\n\"ab\":null, \"c\":null }",
     "{}|{\"a\":1}|{\"c\":null}|{\"ab\":null,\"a\":1}|{\"ab\":null,\"ab\":null}|{"
     "\"ab\":null,\"x\":1}|{\"ab\":1}|"
     "{\"a\":1,}|{\"\\u0061b\":null}"},
    {"{\"type\":\"object\",\"properties\":{\"na\":{\"type\":\"integer\"}},\"additionalProperties\":"
     "{\"type\":\"boolean\"}}",
     "{}|{\"na\":1}|{\"na\":1,\"n\":true}|{\"nab\":true}|{\"\":false,\"nb\\n\":true}"
     "|{\"na\":3,\"n\xc3\xa4\":true}",
     "{\"na\":true}|{\"x\":true,\"na\":1}|{\"x\":1}|{\"na\":1,\"na\":true}|{"
     "\"\\u006ea\":true}"},
    {"{\"type\":\"object\",\"properties\":{\"\xc3\xa4\\\"\":{\"type\":\"null\"}},"
     "\"additionalProperties\":true}",
     "{\"\xc3\xa4\\\"\":null}|{\"\xc3\xa5\":1}|{\"\xc3\xa4\":1}",
     "{\"\xc3\xa4\\\"\":1}|{\"\xc3\":1}|{\"\xc3x\":1}"},
    {"{\"type\":\"object\",\"required\":[\"k\",\"k\"]}", "{\"k\":1}|{\"k\":[],\"z\":2}",
     "{}|{\"z\":1}"},
    {"{\"type\":\"object\",\"properties\":{\"a\":true,\"b\":false}}", "{}|{\"a\":[1]}",
     "{\"b\":1}|{\"z\":1}"},
    {"{\"type\":\"array\",\"items\":{\"type\":\"integer\"},\"minItems\":2,\"maxItems\":3}",
     "[1,2]|[1, 2,3]", "[]|[1]|[1,2,3,4]|[1,\"2\"]"},
    {"{\"type\":\"array\",\"maxItems\":0}", "[]|[ ]", "[1]"},
    {"{\"type\":\"array\",\"prefixItems\":[{\"type\":\"null\"},{\"type\":\"boolean\"}],"
     "\"minItems\":1}",
     "[null]|[null,true]", "[]|[true]|[null,true,1]"},
    {"{\"prefixItems\":[{\"type\":\"null\"}],\"items\":{\"type\":\"integer\"}}",
     "[]|[null]|[null,1,2]", "[1]|[null,null]"},
    {"{\"anyOf\":[{\"type\":\"object\",\"properties\":{\"k\":{\"const\":\"a\"},\"x\":{\"type\":"
     "\"null\"}},\"required\":[\"k\",\"x\"]},"
     "{\"type\":\"object\",\"properties\":{\"k\":{\"const\":\"b\"},\"y\":{\"type\":\"integer\"}},"
     "\"required\":[\"k\",\"y\"]},{\"type\":\"null\"}]}",
     "{\"k\":\"a\",\"x\":null}|{\"k\":\"b\",\"y\":3}|null",
     "{\"k\":\"a\",\"y\":3}|{\"k\":\"b\",\"x\":null}|{}|{\"k\":\"c\"}"},
    {"{\"oneOf\":[{\"type\":\"object\",\"properties\":{\"k\":{\"const\":1}},\"required\":[\"k\"]},{"
     "\"type\":\"object\",\"properties\":"
     "{\"k\":{\"enum\":[2,3]}},\"required\":[\"k\"]},{\"type\":\"string\"},{\"type\":\"integer\","
     "\"minimum\":5},{\"type\":\"integer\",\"maximum\":4}]}",
     "{\"k\":1}|{\"k\":3}|\"x\"|"
     "4|"
     "77",
     "{\"k\":4}|null"},
    {"{\"allOf\":[{\"type\":\"null\"}],\"title\":\"x\",\"description\":\"y\"}", "null", "1"},
    {"{\"$ref\":\"#/$defs/a~1b%41~0\",\"$defs\":{\"a/"
     "bA~\":{\"type\":\"null\"},\"unused\":{\"pattern\":\"x\"}}}",
     "null", "1"},
    {"{\"$defs\":{\"l\":{\"anyOf\":[{\"type\":\"null\"},{\"type\":\"object\",\"properties\":{\"v\":"
     "{\"type\":\"integer\"},\"next\":"
     "{\"$ref\":\"#/$defs/l\"}},\"required\":[\"v\",\"next\"]}]}},\"$ref\":\"#/$defs/l\"}",
     "null|{\"v\":1,\"next\":null}|{\"v\":1,\"next\":{\"v\":2,\"next\":null}}",
     "{\"v\":1}|{\"v\":1,\"next\":1}"},
    {"{\"type\":\"object\",\"properties\":{\"a\":{\"$ref\":\"#\"}}}", "{}|{\"a\":{\"a\":{}}}",
     "{\"a\":1}"},
};

static void each(const char *texts, const nb_json_schema *schema, bool want, const char *of)
{
    for (const char *from = texts; from != NULL && *texts != 0;) {
        const char *end = strchr(from, '|');
        const size_t len = end != NULL ? (size_t)(end - from) : strlen(from);
        if (admits(schema, from, len) != want)
            fail_msg("%s: '%.*s' is %s", of, (int)len, from, want ? "refused" : "admitted");
        from = end != NULL ? end + 1 : NULL;
    }
}

static void schemas_admit_what_they_say(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (rows[i].good == NULL || rows[i].good[0] == 0)
            continue;
        nb_json_schema *s = must_compile(rows[i].schema);
        each(rows[i].good, s, true, rows[i].schema);
        each(rows[i].bad, s, false, rows[i].schema);
        nb_json_schema_free(s);
    }
}

/* Every integer of three digits against every pair of bounds near its own, both signs. */
static void integer_bounds_are_exact(void **state)
{
    (void)state;
    static const int bounds[] = {-1000, -999, -120, -99, -11, -10, -9,  -1, 0,
                                 1,     5,    9,    10,  99,  100, 105, 999};
    const int n = (int)(sizeof bounds / sizeof *bounds);
    for (int a = 0; a < n; a++) {
        for (int b = a; b < n; b++) {
            char text[120];
            snprintf(text, sizeof text, "{\"type\":\"integer\",\"minimum\":%d,\"maximum\":%d}",
                     bounds[a], bounds[b]);
            nb_json_schema *s = must_compile(text);
            for (int v = -1020; v <= 1020; v += v % 100 < 12 && v % 100 > -12 ? 1 : 7) {
                const int len = snprintf(text, sizeof text, "%d", v);
                assert_int_equal(admits(s, text, (size_t)len), v >= bounds[a] && v <= bounds[b]);
            }
            nb_json_schema_free(s);
        }
    }
}

/* Nesting ends at the limit, and never in a place where it could not be closed. */
static void nesting_is_bounded(void **state)
{
    (void)state;
    nb_json_schema *s = must_compile("true");
    char text[400];
    for (int depth = 60; depth < 70; depth++) {
        memset(text, '[', (size_t)depth);
        memset(text + depth, ']', (size_t)depth);
        assert_int_equal(admits(s, text, 2 * (size_t)depth), depth <= NB_JSON_MAX_DEPTH);
    }
    nb_json_schema_free(s);
    /* Each level needs two more below: at the limit the shorter form is all there is. */
    s = must_compile("{\"anyOf\":[{\"type\":\"null\"},{\"type\":\"array\",\"minItems\":1,\"items\":"
                     "{\"type\":\"array\",\"minItems\":1,"
                     "\"items\":{\"$ref\":\"#\"}}}]}");
    for (int depth = 60; depth < 70; depth++) {
        memset(text, '[', (size_t)depth);
        memcpy(text + depth, "null", 4);
        memset(text + depth + 4, ']', (size_t)depth);
        assert_int_equal(admits(s, text, 2 * (size_t)depth + 4),
                         depth % 2 == 0 && depth <= NB_JSON_MAX_DEPTH);
    }
    nb_json_schema_free(s);
}

/* ---- what is refused ---- */

static const struct {
    const char *schema;
    nb_status status;
    const char *message;
} refused[] = {
    {"", NB_DATA, "JSON schema: not valid JSON"},
    {"{\"type\":", NB_DATA, "JSON schema: not valid JSON"},
    {"3", NB_DATA, "JSON schema, at '#': a schema must be an object, true or false"},
    {"{\"type\":\"strnig\"}", NB_DATA, "at '#': there is no type 'strnig'"},
    {"{\"type\":7}", NB_DATA, "type must be a string or an array of strings"},
    {"{\"type\":[]}", NB_DATA, "type is an empty array"},
    {"{\"properties\":{\"a\":{\"items\":{\"format\":\"date\"}}}}", NB_UNSUPPORTED,
     "JSON schema, at '#/properties/a/items': the keyword 'format' is not supported"},
    {"{\"pattern\":\"^(a+)+$\"}", NB_UNSUPPORTED, "the keyword 'pattern' is not supported"},
    {"{\"anyOf\":[true,{\"propertys\":{}}]}", NB_UNSUPPORTED,
     "at '#/anyOf/1': the keyword 'propertys'"},
    {"{\"prefixItems\":[{\"prefixItems\":[1]}]}", NB_DATA,
     "at '#/prefixItems/0/prefixItems/0': a schema must be"},
    {"{\"type\":\"array\",\"minItems\":1000000000}", NB_LIMIT,
     "minItems is 1000000000: it may be 65536"},
    {"{\"minLength\":-1}", NB_DATA, "minLength"},
    {"{\"maxLength\":1.5}", NB_DATA, "maxLength"},
    {"{\"type\":\"number\",\"minimum\":1}", NB_UNSUPPORTED,
     "minimum of a number is supported for integers"},
    {"{\"type\":\"number\",\"exclusiveMaximum\":1}", NB_UNSUPPORTED,
     "exclusiveMaximum is supported for integers only"},
    {"{\"type\":\"integer\",\"minimum\":\"1\"}", NB_DATA, "minimum must be a number"},
    {"{\"type\":\"integer\",\"exclusiveMinimum\":true}", NB_DATA,
     "exclusiveMinimum must be a number"},
    {"{\"type\":\"integer\",\"multipleOf\":2}", NB_UNSUPPORTED, "'multipleOf'"},
    {"{\"enum\":[]}", NB_DATA, "enum must be an array of at least one value"},
    {"{\"enum\":[1],\"const\":1}", NB_UNSUPPORTED, "enum beside const"},
    {"{\"enum\":[\"a\"],\"minLength\":1}", NB_UNSUPPORTED, "enum and const go with type alone"},
    {"{\"anyOf\":[]}", NB_DATA, "anyOf is empty"},
    {"{\"anyOf\":[true],\"type\":\"string\"}", NB_UNSUPPORTED,
     "anyOf beside keywords that restrict"},
    {"{\"anyOf\":[true],\"oneOf\":[true]}", NB_UNSUPPORTED, "'oneOf' beside 'anyOf'"},
    {"{\"allOf\":[true,true]}", NB_UNSUPPORTED, "allOf of more than one"},
    {"{\"oneOf\":[{\"type\":\"string\"},{\"enum\":[\"a\"]}]}", NB_UNSUPPORTED,
     "members 0 and 1 of oneOf may hold"},
    {"{\"oneOf\":[{\"const\":1},{\"const\":1.0}]}", NB_UNSUPPORTED,
     "members 0 and 1 of oneOf may hold"},
    {"{\"oneOf\":[{\"type\":\"object\",\"properties\":{\"k\":{\"const\":1}}},{\"type\":\"object\","
     "\"properties\":{\"k\":{\"const\":2}}}]}",
     NB_UNSUPPORTED, "members 0 and 1 of oneOf may hold"},
    {"{\"$ref\":\"https://example.com/s.json\"}", NB_UNSUPPORTED,
     "only places in the same schema are looked up"},
    {"{\"$ref\":\"other.json#/a\"}", NB_UNSUPPORTED,
     "only places in the same schema are looked up"},
    {"{\"$ref\":\"#name\"}", NB_UNSUPPORTED, "only places in the same schema are looked up"},
    {"{\"$ref\":\"#/$defs/x\"}", NB_DATA, "$ref '#/$defs/x' leads nowhere"},
    {"{\"$ref\":\"#/a~2\"}", NB_DATA, "leads nowhere"},
    {"{\"$ref\":\"#/a%4\"}", NB_DATA, "leads nowhere"},
    {"{\"$ref\":7}", NB_DATA, "$ref"},
    {"{\"$ref\":\"#\"}", NB_DATA, "no value of at most 64 levels satisfies it"},
    {"{\"anyOf\":[{\"$ref\":\"#\"},{\"$ref\":\"#/anyOf/0\"}]}", NB_DATA,
     "no value of at most 64 levels satisfies it"},
    {"{\"type\":\"object\",\"properties\":{\"a\":{\"$ref\":\"#\"}},\"required\":[\"a\"]}", NB_DATA,
     "no value of at most 64 levels"},
    {"{\"type\":\"object\",\"required\":[\"a\"],\"additionalProperties\":false}", NB_DATA,
     "no value of at most"},
    {"{\"type\":\"array\",\"minItems\":3,\"maxItems\":2}", NB_DATA, "no value of at most"},
    {"{\"type\":\"array\",\"minItems\":2,\"prefixItems\":[true]}", NB_DATA, "no value of at most"},
    {"{\"type\":\"integer\",\"minimum\":3,\"maximum\":2}", NB_DATA, "no value of at most"},
    {"{\"type\":\"integer\",\"minimum\":1e30}", NB_DATA, "no value of at most"},
    {"{\"type\":\"integer\",\"maximum\":-1e30}", NB_DATA, "no value of at most"},
    {"{\"type\":\"string\",\"enum\":[1]}", NB_DATA, "no value of at most"},
    {"false", NB_DATA, "no value of at most"},
    {"{\"required\":\"a\"}", NB_DATA, "required"},
    {"{\"required\":[1]}", NB_DATA, "required must be an array of strings"},
    {"{\"properties\":[]}", NB_DATA, "properties"},
    {"{\"items\":[]}", NB_DATA, "at '#/items': a schema must be an object"},
};

static void what_is_not_supported_is_named(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        nb_err err = {0};
        nb_json_schema *s = NULL;
        const nb_status got =
            nb_json_schema_compile(&s, refused[i].schema, strlen(refused[i].schema), &err);
        if (got != refused[i].status || strstr(err.text, refused[i].message) == NULL)
            fail_msg("%s: %d, %s", refused[i].schema, got, err.text);
        assert_null(s);
    }
}

/* ---- what would cost too much ---- */

static nb_status compile(nb_buf *text, nb_err *err)
{
    nb_json_schema *s = NULL;
    const nb_status status = nb_json_schema_compile(&s, (const char *)text->data, text->len, err);
    nb_json_schema_free(s);
    nb_buf_free(text);
    return status;
}

static void hostile_schemas_end_soon(void **state)
{
    (void)state;
    nb_err err = {0};
    nb_buf b = {0};
    for (int i = 0; i < 100000; i++) /* deeper than any parser goes */
        nb_buf_text(&b, "{\"not\":", &err);
    assert_int_not_equal(compile(&b, &err), NB_OK);
    for (int i = 0; i < 1500; i++) /* deep, and read: an array of an array of ... */
        nb_buf_text(&b, "{\"items\":", &err);
    nb_buf_text(&b, "true", &err);
    for (int i = 0; i < 1500; i++)
        nb_buf_text(&b, "}", &err);
    assert_int_equal(compile(&b, &err), NB_OK);
    nb_buf_text(&b, "{\"prefixItems\":[", &err); /* 100 schemas that are all of each other */
    for (int i = 0; i < 100; i++) {
        nb_buf_format(&b, &err, "%s{\"anyOf\":[{\"type\":\"null\"}", i > 0 ? "," : "");
        for (int k = 0; k < 50; k++)
            nb_buf_format(&b, &err, ",{\"$ref\":\"#/prefixItems/%d\"}", (i * 7 + k) % 100);
        nb_buf_text(&b, "]}", &err);
    }
    nb_buf_text(&b, "]}", &err);
    assert_int_equal(compile(&b, &err), NB_LIMIT);
    assert_non_null(strstr(err.text, "more than 4096 parts"));
    nb_buf_text(&b, "{\"anyOf\":[", &err);
    for (int i = 0; i < 17; i++)
        nb_buf_format(&b, &err, "%s{\"type\":\"object\",\"properties\":{\"a%d\":true}}",
                      i > 0 ? "," : "", i);
    nb_buf_text(&b, "]}", &err);
    assert_int_equal(compile(&b, &err), NB_LIMIT);
    assert_non_null(strstr(err.text, "17 alternatives of one kind: there may be 16"));
    nb_buf_text(&b, "{\"properties\":{", &err);
    for (int i = 0; i < 513; i++)
        nb_buf_format(&b, &err, "%s\"p%d\":true", i > 0 ? "," : "", i);
    nb_buf_text(&b, "}}", &err);
    assert_int_equal(compile(&b, &err), NB_LIMIT);
    for (int i = 0; i < NB_JSON_MAX_TEXT; i++)
        nb_buf_text(&b, " ", &err);
    nb_buf_text(&b, "true", &err);
    assert_int_equal(compile(&b, &err), NB_LIMIT);
}

/* Schemas with bytes changed, cut out and repeated: a status and a message, or an automaton whose
 * first byte can be found. Under sanitizers this is the fuzz target. */
static void mutants_do_no_harm(void **state)
{
    (void)state;
    const uint64_t n_rows = sizeof rows / sizeof *rows;
    int n_good = 0, n_bad = 0;
    for (uint64_t seed = 0; seed < 4000; seed++) {
        char text[1200];
        const char *from = rows[seed % n_rows].schema;
        size_t len = strlen(from);
        memcpy(text, from, len);
        for (uint64_t k = 0; k < 1 + seed % 3; k++) {
            const size_t at = (size_t)(nb_rng_uniform(seed, 1, k) * (double)len);
            const size_t n = (size_t)(nb_rng_uniform(seed, 2, k) * (double)(len - at) / 4);
            const int kind = (int)(nb_rng_uniform(seed, 3, k) * 3);
            if (kind == 0) {
                text[at] = "{}[]\",:0719-.etfn\\#/$"[(int)(nb_rng_uniform(seed, 4, k) * 22)];
            } else if (kind == 1) {
                memmove(text + at, text + at + n, len - at - n);
                len -= n;
            } else if (len + n < sizeof text) {
                memmove(text + at + n, text + at, len - at);
                len += n;
            }
        }
        nb_err err = {0};
        nb_json_schema *s = NULL;
        if (nb_json_schema_compile(&s, text, len, &err) != NB_OK) {
            assert_true(err.text[0] != 0);
            n_bad++;
            continue;
        }
        nb_json_walk w;
        assert_int_equal(nb_json_walk_init(&w, s, &err), NB_OK);
        bool begins = false;
        for (int c = 0; c < 256 && !begins; c++) {
            const char byte = (char)c;
            begins = c != ' ' && c != '\n' && c != '\t' && c != '\r' && nb_json_take(&w, &byte, 1);
        }
        assert_true(begins);
        n_good++;
        nb_json_walk_free(&w);
        nb_json_schema_free(s);
    }
    assert_true(n_good > 100 && n_bad > 1000);
}

/* Whichever allocation of ours fails, nothing is left. */
static void failing_allocations_leave_nothing(void **state)
{
    (void)state;
    const char *text = "{\"type\":\"object\",\"properties\":{\"a\":{\"anyOf\":[{\"type\":"
                       "\"string\"},{\"enum\":[1,2]},"
                       "{\"$ref\":\"#/properties/a/anyOf/"
                       "0\"}]},\"b\":{\"type\":\"array\"}},\"required\":[\"a\",\"c\"],"
                       "\"additionalProperties\":true}";
    const int64_t live = nb_alloc_live();
    bool done = false;
    int n_failed = 0;
    for (int64_t n = 1; !done; n++) {
        nb_err err = {0};
        nb_json_schema *s = NULL;
        nb_json_walk w = {0};
        nb_alloc_fail_at(n);
        nb_status status = nb_json_schema_compile(&s, text, strlen(text), &err);
        if (status == NB_OK)
            status = nb_json_walk_init(&w, s, &err);
        nb_alloc_fail_at(0);
        done = status == NB_OK;
        n_failed += !done;
        if (!done)
            assert_int_equal(status, NB_MEMORY);
        if (w.frame != NULL)
            nb_json_walk_free(&w);
        nb_json_schema_free(s);
        assert_int_equal(nb_alloc_live(), live);
    }
    assert_true(n_failed > 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(schemas_admit_what_they_say),
        cmocka_unit_test(integer_bounds_are_exact),
        cmocka_unit_test(nesting_is_bounded),
        cmocka_unit_test(what_is_not_supported_is_named),
        cmocka_unit_test(hostile_schemas_end_soon),
        cmocka_unit_test(mutants_do_no_harm),
        cmocka_unit_test(failing_allocations_leave_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
