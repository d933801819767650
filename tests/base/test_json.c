/* JSON from outside: what is refused, and that each getter names the key and what it found. */
#include "support/golden.h"
#include "support/scratch.h"

#include "base/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static json_t *parse(const char *text)
{
    nb_err err = {0};
    json_t *v;
    if (nb_json_parse(&v, text, strlen(text), &err) != NB_OK)
        fail_msg("%s: %s", text, err.text);
    return v;
}

static void refused(const char *text, size_t n)
{
    nb_err err = {0};
    json_t *v = (json_t *)&err;
    if (nb_json_parse(&v, text, n, &err) != NB_DATA)
        fail_msg("not refused: %.60s", text);
    assert_null(v);
    assert_non_null(strstr(err.text, "not valid JSON"));
    assert_null(strchr(err.text, '\n'));
}

/* Things that other parsers let through, or crash on. */
static void broken_texts_are_refused(void **state)
{
    (void)state;
    const char *const rows[] = {
        "",
        " \n",
        "{",
        "{} {}",
        "{},",
        "[1,]",
        "{\"a\":1,}",
        "{\"a\" 1}",
        "{a:1}",
        "{'a':1}",
        "// c\n{}",
        "/* c */{}",
        "{\"a\":1,\"a\":1}",
        "{\"o\":{\"b\":[],\"b\":[]}}",
        "{\"a\":1,\"\\u0061\":2}",
        "NaN",
        "[NaN]",
        "Infinity",
        "-Infinity",
        "[+1]",
        "[01]",
        "[.5]",
        "[1.]",
        "[0x10]",
        "[1e999]",
        "[-1e999]",
        "[True]",
        "[nul]",
        "[\"a]",
        "[\"\n\"]",
        "[\"\\x41\"]",
        "[\"\\u12\"]",
        "[\"\\ud800\"]",
        "[\"\\udc00\"]",
        "[\"\\ud800\\u0041\"]",
        "[\"\\udc00\\ud800\"]",
        "[\"\\u0000\"]",
        "{\"a\\u0000b\":1}",
        /* Bad UTF-8: a lone byte, an overlong slash, a surrogate, past U+10FFFF, cut short. */
        "[\"\xff\"]",
        "[\"\xc0\xaf\"]",
        "[\"\xed\xa0\x80\"]",
        "[\"\xf4\x90\x80\x80\"]",
        "[\"\xe2\x82\"]",
        /* A byte-order mark, and what follows UTF-16's. */
        "\xef\xbb\xbf{}",
        "\xff\xfe{",
        "\xfe\xff",
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        refused(rows[i], strlen(rows[i]));
    refused("{\0}\0", 4);      /* UTF-16, little-endian */
    refused("\0{\0}", 4);      /* and big-endian */
    refused("\"a\0b\"", 5);    /* a zero byte inside a string */
    refused("{\"a\":1}\0", 8); /* and after the value */
    refused("[1]", 2);         /* the length given is the length read */
    refused(NULL, 0);
}

/* The user reads where: line and column. */
static void the_message_says_where(void **state)
{
    (void)state;
    nb_err err = {0};
    json_t *v;
    const char *text = "{\n \"a\": 1,\n \"b\": oops}";
    assert_int_equal(nb_json_parse(&v, text, strlen(text), &err), NB_DATA);
    assert_non_null(strstr(err.text, "line 3 column"));
}

static char *repeated(char c, size_t n, const char *before, const char *after)
{
    char *text = malloc(strlen(before) + n + strlen(after) + 1);
    assert_non_null(text);
    strcpy(text, before);
    memset(text + strlen(before), c, n);
    strcpy(text + strlen(before) + n, after);
    return text;
}

/* 20,000 digits are no integer; 100,000 levels are no reason to recurse. */
static void long_numbers_and_deep_nesting_are_refused(void **state)
{
    (void)state;
    char *text = repeated('9', 20000, "[", "]");
    refused(text, strlen(text));
    free(text);
    text = repeated('9', 20000, "[", ".0]");
    refused(text, strlen(text));
    free(text);
    const size_t depths[] = {2049, 100000, 1000000};
    for (size_t i = 0; i < sizeof depths / sizeof depths[0]; i++) {
        text = repeated('[', depths[i], "", "");
        refused(text, strlen(text));
        free(text);
        char *objects = malloc(depths[i] * 5 + 1);
        assert_non_null(objects);
        for (size_t k = 0; k < depths[i]; k++)
            memcpy(objects + 5 * k, "{\"a\":", 5);
        refused(objects, depths[i] * 5);
        free(objects);
    }
}

/* What is odd but right: all escapes, the largest integers, a bare value, 2,000 levels. */
static void odd_but_right_texts_are_taken(void **state)
{
    (void)state;
    json_t *v =
        parse(" {\"a\":[9223372036854775807,-9223372036854775808,-0.5e-3,\"\\ud83d\\ude00\"]} ");
    json_t *a = json_object_get(v, "a");
    assert_true(json_integer_value(json_array_get(a, 0)) == INT64_MAX);
    assert_true(json_integer_value(json_array_get(a, 1)) == INT64_MIN);
    assert_true(json_real_value(json_array_get(a, 2)) == -0.0005);
    assert_string_equal(json_string_value(json_array_get(a, 3)), "\xf0\x9f\x98\x80");
    json_decref(v);
    v = parse("3");
    assert_int_equal(json_integer_value(v), 3);
    json_decref(v);
    char *open = repeated('[', 2000, "", "");
    char *deep = repeated(']', 2000, open, "");
    v = parse(deep);
    json_decref(v);
    free(open);
    free(deep);
}

typedef enum { INT, NUMBER, BOOL, TEXT, OBJECT, ARRAY, N_GETTERS } getter;

/* One call of one getter on one key, its output thrown away after a look at whether it was set. */
static nb_status get(getter which, const json_t *o, const char *key, bool required, bool *set,
                     nb_err *err)
{
    int64_t i = -77;
    double d = -77;
    bool b = false, b2 = true;
    const char *t = "untouched";
    json_t *v = NULL;
    nb_status s = NB_OK;
    switch (which) {
    case INT:
        s = nb_json_int(o, key, required, 0, 1000, &i, err);
        break;
    case NUMBER:
        s = nb_json_number(o, key, required, &d, err);
        break;
    case BOOL:
        /* Asked twice, so that an untouched output shows whatever the value is. */
        s = nb_json_bool(o, key, required, &b, err);
        nb_json_bool(o, key, required, &b2, err);
        break;
    case TEXT:
        s = nb_json_text(o, key, required, &t, err);
        break;
    case OBJECT:
        s = nb_json_object(o, key, required, &v, err);
        break;
    case ARRAY:
        s = nb_json_array(o, key, required, &v, err);
        break;
    case N_GETTERS:
        break;
    }
    *set = i != -77 || d != -77 || b == b2 || strcmp(t, "untouched") != 0 || v != NULL;
    return s;
}

/* Every getter on a value of every type: right ones are taken, wrong ones refused by name with
 * what was found and what was wanted, and the output is left alone. */
static void every_getter_refuses_every_wrong_type(void **state)
{
    (void)state;
    const struct {
        const char *key, *is;
    } values[] = {{"int", "an integer"},
                  {"real", "a number with a fraction"},
                  {"whole", "a number with a fraction"},
                  {"text", "a string"},
                  {"true", "a boolean"},
                  {"false", "a boolean"},
                  {"object", "an object"},
                  {"array", "an array"}};
    const char *const wants[N_GETTERS] = {"an integer", "a number",  "a boolean",
                                          "a string",   "an object", "an array"};
    const bool right[N_GETTERS][8] = {
        [INT] = {true},
        [NUMBER] = {true, true, true},
        [BOOL] = {false, false, false, false, true, true},
        [TEXT] = {false, false, false, true},
        [OBJECT] = {false, false, false, false, false, false, true},
        [ARRAY] = {false, false, false, false, false, false, false, true},
    };
    json_t *o = parse("{\"int\":7,\"real\":1.5,\"whole\":7.0,\"text\":\"7\",\"true\":true,"
                      "\"false\":false,\"object\":{},\"array\":[7],\"null\":null}");
    for (int g = 0; g < N_GETTERS; g++) {
        for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
            assert_true(nb_json_given(o, values[i].key));
            for (int required = 0; required < 2; required++) {
                nb_err err = {0};
                bool set;
                const nb_status s = get((getter)g, o, values[i].key, required == 1, &set, &err);
                assert_int_equal(s, right[g][i] ? NB_OK : NB_DATA);
                assert_int_equal(set, right[g][i]);
                if (s != NB_OK) {
                    char want[200];
                    snprintf(want, sizeof want, "key '%s' is %s, not %s", values[i].key,
                             values[i].is, wants[g]);
                    assert_string_equal(err.text, want);
                }
            }
        }
        /* A missing key and null mean the same: fine unless required. */
        for (int k = 0; k < 2; k++) {
            nb_err err = {0};
            bool set;
            const char *key = k == 0 ? "absent" : "null";
            assert_false(nb_json_given(o, key));
            assert_int_equal(get((getter)g, o, key, false, &set, &err), NB_OK);
            assert_false(set);
            assert_int_equal(get((getter)g, o, key, true, &set, &err), NB_DATA);
            assert_false(set);
            char want[100];
            snprintf(want, sizeof want, "key '%s' is missing", key);
            assert_string_equal(err.text, want);
        }
        /* So does a key of something that is no object. */
        nb_err err = {0};
        bool set;
        assert_int_equal(get((getter)g, json_object_get(o, "array"), "x", true, &set, &err),
                         NB_DATA);
    }
    json_decref(o);
}

/* Hugging Face writes a length of 10^30 into tokenizer_config.json. */
static void numbers_beyond_64_bits_are_reals(void **state)
{
    (void)state;
    static const char text[] =
        "{\"a\": 1000000000000000019884624838656, \"b\": [-99999999999999999999, "
        "12], \"c\\\"1111111111111111111111\": \"2222222222222222222222\"}";
    nb_err err = {0};
    json_t *j = NULL;
    assert_int_equal(nb_json_parse(&j, text, sizeof text - 1, &err), NB_OK);
    assert_true(json_real_value(json_object_get(j, "a")) == 1e30);
    assert_true(json_real_value(json_array_get(json_object_get(j, "b"), 0)) == -1e20);
    assert_true(json_integer_value(json_array_get(json_object_get(j, "b"), 1)) == 12);
    assert_string_equal(json_string_value(json_object_get(j, "c\"1111111111111111111111")),
                        "2222222222222222222222");
    json_decref(j);
    static const char *const bad[] = {"[99999999999999999999x]", "[99999999999999999999 1]",
                                      "[00000000000000000000001]", "[99999999999999999999"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(nb_json_parse(&j, bad[i], strlen(bad[i]), &err), NB_DATA);
}

static void integers_have_a_range(void **state)
{
    (void)state;
    json_t *o = parse("{\"n\":576,\"min\":-9223372036854775808,\"max\":9223372036854775807}");
    nb_err err = {0};
    int64_t n = -1;
    assert_int_equal(nb_json_int(o, "n", true, 576, 576, &n, &err), NB_OK);
    assert_int_equal(n, 576);
    n = -1;
    assert_int_equal(nb_json_int(o, "n", true, 1, 575, &n, &err), NB_DATA);
    assert_string_equal(err.text, "key 'n' is 576, outside 1 to 575");
    assert_int_equal(nb_json_int(o, "n", true, 577, INT64_MAX, &n, &err), NB_DATA);
    assert_int_equal(n, -1);
    assert_int_equal(nb_json_int(o, "min", true, INT64_MIN, INT64_MAX, &n, &err), NB_OK);
    assert_true(n == INT64_MIN);
    assert_int_equal(nb_json_int(o, "max", true, INT64_MIN, INT64_MAX, &n, &err), NB_OK);
    assert_true(n == INT64_MAX);
    assert_int_equal(nb_json_int(o, "max", true, 0, INT64_MAX - 1, &n, &err), NB_DATA);
    json_decref(o);
}

static void values_come_out_as_they_are(void **state)
{
    (void)state;
    json_t *o = parse("{\"i\":3,\"r\":-2.5,\"t\":\"x\\ny\",\"b\":true,\"n\":false}");
    nb_err err = {0};
    double d = 0;
    bool b = false;
    const char *t = NULL;
    assert_int_equal(nb_json_number(o, "i", true, &d, &err), NB_OK);
    assert_true(d == 3.0);
    assert_int_equal(nb_json_number(o, "r", true, &d, &err), NB_OK);
    assert_true(d == -2.5);
    assert_int_equal(nb_json_text(o, "t", true, &t, &err), NB_OK);
    assert_string_equal(t, "x\ny");
    assert_int_equal(nb_json_bool(o, "b", true, &b, &err), NB_OK);
    assert_true(b);
    assert_int_equal(nb_json_bool(o, "n", true, &b, &err), NB_OK);
    assert_false(b);
    json_decref(o);
    /* A zero inside cannot come from a text, but from a program; C strings would end there. */
    o = json_object();
    json_object_set_new(o, "z", json_stringn("a\0b", 3));
    assert_int_equal(nb_json_text(o, "z", true, &t, &err), NB_DATA);
    assert_string_equal(err.text, "key 'z' holds a zero byte");
    json_decref(o);
}

static void files_are_named_in_messages(void **state)
{
    (void)state;
    nb_err err = {0};
    json_t *v;
    scratch_text("good.json", "{\"a\":[1,2]}");
    scratch_text("bad.json", "{\"a\":");
    scratch_text("empty.json", "");
    assert_int_equal(nb_json_load(&v, scratch_path("good.json"), 100, &err), NB_OK);
    assert_int_equal(json_array_size(json_object_get(v, "a")), 2);
    json_decref(v);
    assert_int_equal(nb_json_load(&v, scratch_path("bad.json"), 100, &err), NB_DATA);
    assert_null(v);
    const char *name = scratch_path("bad.json: not valid JSON");
    assert_memory_equal(err.text, name, strlen(name));
    assert_int_equal(nb_json_load(&v, scratch_path("empty.json"), 100, &err), NB_DATA);
    assert_int_equal(nb_json_load(&v, scratch_path("good.json"), 10, &err), NB_DATA);
    assert_int_equal(nb_json_load(&v, scratch_path("none.json"), 10, &err), NB_DATA);
    assert_null(v);
    assert_int_equal(nb_alloc_live(), 0);
}

/* Written and read again, a value is the same; what does not fit leaves the buffer as it was. */
static void writing_round_trips_or_leaves_no_trace(void **state)
{
    (void)state;
    const char *text = "{\"z\":1,\"a\":[true,null,\"\\u0001\\\"\xc3\xa9\",0.1,-5e-324]}";
    json_t *v = parse(text);
    for (int pretty = 0; pretty < 2; pretty++) {
        nb_buf out = {0};
        nb_err err = {0};
        assert_int_equal(nb_buf_text(&out, "# ", &err), NB_OK);
        assert_int_equal(nb_json_write(&out, v, pretty == 1, &err), NB_OK);
        json_t *again;
        assert_int_equal(nb_json_parse(&again, (char *)out.data + 2, out.len - 2, &err), NB_OK);
        assert_true(json_equal(v, again));
        json_decref(again);
        const size_t whole = out.len;
        nb_buf_free(&out);
        for (size_t limit = 2; limit < whole; limit++) {
            out = (nb_buf){.limit = limit};
            assert_int_equal(nb_buf_text(&out, "# ", &err), NB_OK);
            assert_int_equal(nb_json_write(&out, v, pretty == 1, &err), NB_LIMIT);
            assert_int_equal(out.len, 2);
            nb_buf_free(&out);
        }
    }
    nb_buf out = {0};
    nb_err err = {0};
    nb_alloc_fail_at(1);
    assert_int_equal(nb_json_write(&out, v, true, &err), NB_MEMORY);
    nb_alloc_fail_at(0);
    assert_int_equal(out.len, 0);
    json_decref(v);
    assert_int_equal(nb_alloc_live(), 0);
}

/* Whichever allocation fails, also one that is made for a key: no half of a text is a success. */
static void every_allocation_of_writing_may_fail(void **state)
{
    (void)state;
    json_t *v = json_object();
    for (int i = 0; i < 300; i++) {
        char key[32];
        snprintf(key, sizeof key, "a_rather_long_key.%d", i);
        json_object_set_new(v, key, json_integer(1));
    }
    for (int64_t n = 1;; n++) {
        nb_buf out = {0};
        nb_err err = {0};
        nb_alloc_fail_at(n);
        const nb_status s = nb_json_write(&out, v, true, &err);
        nb_alloc_fail_at(0);
        assert_int_equal(out.len == 0, s != NB_OK);
        nb_buf_free(&out);
        if (s == NB_OK) {
            assert_true(n > 5);
            break;
        }
        assert_int_equal(s, NB_MEMORY);
    }
    json_decref(v);
}

/* A model of 60,000 tensors has as many keys, and they are alike. */
static void many_keys_are_taken(void **state)
{
    (void)state;
    nb_buf text = {0};
    nb_err err = {0};
    assert_int_equal(nb_buf_text(&text, "{", &err), NB_OK);
    for (int i = 0; i < 60000; i++)
        assert_int_equal(
            nb_buf_format(&text, &err, "%s\"model.layers.%d.weight\":%d", i == 0 ? "" : ",", i, i),
            NB_OK);
    assert_int_equal(nb_buf_text(&text, "}", &err), NB_OK);
    json_t *v;
    assert_int_equal(nb_json_parse(&v, (char *)text.data, text.len, &err), NB_OK);
    assert_int_equal(json_object_size(v), 60000);
    int64_t n = 0;
    assert_int_equal(nb_json_int(v, "model.layers.59999.weight", true, 0, 60000, &n, &err), NB_OK);
    assert_int_equal(n, 59999);
    json_decref(v);
    nb_buf_free(&text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(broken_texts_are_refused),
        cmocka_unit_test(the_message_says_where),
        cmocka_unit_test(long_numbers_and_deep_nesting_are_refused),
        cmocka_unit_test(odd_but_right_texts_are_taken),
        cmocka_unit_test(every_getter_refuses_every_wrong_type),
        cmocka_unit_test(numbers_beyond_64_bits_are_reals),
        cmocka_unit_test(integers_have_a_range),
        cmocka_unit_test(values_come_out_as_they_are),
        cmocka_unit_test_setup_teardown(files_are_named_in_messages, scratch_setup,
                                        scratch_teardown),
        cmocka_unit_test(writing_round_trips_or_leaves_no_trace),
        cmocka_unit_test(every_allocation_of_writing_may_fail),
        cmocka_unit_test(many_keys_are_taken),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
