/* tokenizer.json files that lie, or say unusual things: what is refused by name, and tokens that
 * are special. */
#include "support/golden.h"
#include "support/scratch.h"
#include "text/tiny_tokenizer.h"
#include "text/tokenizer_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- files that lie ---- */

#define TINY_MODEL(vocab, merges)                                                                  \
    "\"model\":{\"type\":\"BPE\",\"vocab\":" vocab ",\"merges\":" merges "}"

#define TINY(added, model)                                                                         \
    "{\"version\":\"1.0\",\"added_tokens\":" added ",\"normalizer\":null,\"pre_tokenizer\":"       \
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true},"                      \
    "\"decoder\":{\"type\":\"ByteLevel\"}," model "}"

#define VOCAB "{\"a\":0,\"b\":1,\"ab\":2}"

#define ADD(id, content) "[{\"id\":" id ",\"content\":\"" content "\",\"special\":true}]"

static void check_refused(const char *text, nb_status status, const char *reason)
{
    nb_err err = {0};
    nb_tokenizer *t;
    json_t *v;
    const int64_t live = nb_alloc_live();
    nb_status s = nb_json_parse(&v, text, strlen(text), &err);
    if (s == NB_OK) {
        s = nb_tokenizer_from_json(&t, v, NULL, NULL, NULL, -1, &err);
        json_decref(v);
        assert_true(s != NB_OK || t != NULL);
        assert_true(s == NB_OK || t == NULL);
        if (s == NB_OK)
            nb_tokenizer_close(t);
    }
    if (s != status || (reason != NULL && strstr(err.text, reason) == NULL))
        fail_msg("%.300s:\nexpected '%s' (%s), found '%s' (%s)", text, reason,
                 nb_status_name(status), s == NB_OK ? "" : err.text, nb_status_name(s));
    assert_int_equal(nb_alloc_live(), live);
}

static void bad_vocabularies(void **state)
{
    (void)state;
    check_refused(TINY("[]", TINY_MODEL(VOCAB, "[\"a b\"]")), NB_OK, NULL);
    check_refused(TINY("[]", TINY_MODEL("{}", "[]")), NB_DATA, "the vocabulary is empty");
    check_refused(TINY("[]", TINY_MODEL("[]", "[]")), NB_DATA, "vocab");
    check_refused(TINY("[]", TINY_MODEL("{\"a\":-1}", "[]")), NB_DATA, "'a' has id -1");
    check_refused(TINY("[]", TINY_MODEL("{\"a\":2147483647}", "[]")), NB_DATA, "id 2147483647");
    check_refused(TINY("[]", TINY_MODEL("{\"a\":4294967296}", "[]")), NB_DATA, "id 4294967296");
    check_refused(TINY("[]", TINY_MODEL("{\"a\":1e99}", "[]")), NB_DATA, "no integer");
    check_refused(TINY("[]", TINY_MODEL("{\"a\":99999999999999999999}", "[]")), NB_DATA, NULL);
    check_refused(TINY("[]", TINY_MODEL("{\"a\":0.5}", "[]")), NB_DATA, "no integer");
    check_refused(TINY("[]", TINY_MODEL("{\"a\":1.0}", "[]")), NB_DATA, "no integer");
    check_refused(TINY("[]", TINY_MODEL("{\"a\":\"0\"}", "[]")), NB_DATA, "no integer");
    check_refused(TINY("[]", TINY_MODEL("{\"a\":null}", "[]")), NB_DATA, "no integer");
    check_refused(TINY("[]", TINY_MODEL("{\"a\":0,\"b\":0}", "[]")), NB_DATA, "the same id 0");
    check_refused(TINY("[]", TINY_MODEL("{\"a\":0,\"a\":1}", "[]")), NB_DATA, "duplicate");
    check_refused(TINY("[]", TINY_MODEL("{\"\\ud800\":0}", "[]")), NB_DATA, NULL);
    check_refused(TINY("[]", TINY_MODEL("{\"\xff\":0}", "[]")), NB_DATA, NULL);
    /* A gap is fine, and is no token. */
    check_refused(TINY("[]", TINY_MODEL("{\"a\":100}", "[]")), NB_OK, NULL);
    check_refused(TINY("[]", TINY_MODEL("{\"a\":100000}", "[]")), NB_DATA, "id 100000");
}

static void bad_merges(void **state)
{
    (void)state;
    static const struct {
        const char *merges, *reason;
    } bad[] = {{"[\"ab\"]", "merge 0 'ab' is not two texts"},
               {"[\"a \"]", "is not two texts"},
               {"[\" b\"]", "is not two texts"},
               {"[\"\"]", "is not two texts"},
               {"[\"a b\",\"a c\"]", "merge 1 'a' + 'c': the right part"},
               {"[\"c a\"]", "the left part"},
               {"[\"b a\"]", "the whole"},
               {"[\"a b c\"]", "the right part"},
               {"[7]", "merge 0 is neither"},
               {"[null]", "merge 0 is neither"},
               {"[[\"a\"]]", "merge 0 is neither"},
               {"[[\"a\",\"b\",\"c\"]]", "merge 0 is neither"},
               {"[[\"a\",1]]", "merge 0 is neither"},
               {"{}", "merges"},
               {"null", "merges"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char text[1000];
        snprintf(text, sizeof text, TINY("[]", TINY_MODEL(VOCAB, "%s")), bad[i].merges);
        check_refused(text, NB_DATA, bad[i].reason);
    }
}

static void bad_added_tokens(void **state)
{
    (void)state;
#define WITH(added) TINY(added, TINY_MODEL(VOCAB, "[]"))
    check_refused(WITH(ADD("3", "<s>")), NB_OK, NULL);
    check_refused(WITH(ADD("2", "ab")), NB_OK, NULL);
    check_refused(WITH(ADD("3", "")), NB_DATA, "added_tokens[0] is empty");
    check_refused(WITH(ADD("-1", "x")), NB_DATA, "'x' has id -1");
    check_refused(WITH(ADD("2000000000", "x")), NB_DATA, "'x' has id 2000000000");
    check_refused(WITH(ADD("1.5", "x")), NB_DATA, "no integer");
    check_refused(WITH(ADD("\"3\"", "x")), NB_DATA, "no integer");
    check_refused(WITH(ADD("1", "x")), NB_DATA, "tokens 'b' and 'x' have the same id 1");
    check_refused(WITH(ADD("3", "a")), NB_DATA, "tokens 0 and 3 are both 'a'");
    check_refused(WITH("[7]"), NB_DATA, "added_tokens[0] is no object");
    check_refused(WITH("[{\"id\":3}]"), NB_DATA, "added_tokens[0]");
    check_refused(WITH("[{\"id\":3,\"content\":5}]"), NB_DATA, "added_tokens[0]");
    check_refused(WITH("[{\"id\":3,\"content\":\"x\",\"lstrip\":1}]"), NB_DATA, "lstrip");
    check_refused(WITH("[{\"id\":3,\"content\":\"x\"},{\"id\":3,\"content\":\"x\"}]"), NB_DATA,
                  "added twice");
    check_refused(WITH("[{\"id\":3,\"content\":\"x\"},{\"id\":4,\"content\":\"x\"}]"), NB_DATA,
                  "tokens 3 and 4 are both 'x'");
    check_refused(WITH("{}"), NB_DATA, "added_tokens");
#undef WITH
}

/* Each member that asks for something not done, one at a time. */
static void other_kinds_are_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *where, *key, *value;
        nb_status status;
        const char *reason;
    } bad[] = {
        {"", "version", "\"2.0\"", NB_UNSUPPORTED, "'2.0'"},
        {"", "version", "1", NB_DATA, "version"},
        {"", "normalizer", "{\"type\":\"NFKC\"}", NB_UNSUPPORTED, "'NFKC'"},
        {"", "normalizer", "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Lowercase\"}]}",
         NB_UNSUPPORTED, "'Lowercase'"},
        {"", "normalizer", "7", NB_DATA, "normalizer"},
        {"", "pre_tokenizer", "null", NB_UNSUPPORTED, "pre_tokenizer"},
        {"", "pre_tokenizer", "{\"type\":\"Whitespace\"}", NB_UNSUPPORTED, "'Whitespace'"},
        {"", "decoder", "{\"type\":\"Metaspace\"}", NB_UNSUPPORTED, "'Metaspace'"},
        {"", "decoder", "null", NB_DATA, "decoder"},
        {"", "post_processor", "{\"type\":\"RobertaProcessing\"}", NB_UNSUPPORTED,
         "'RobertaProcessing'"},
        {"", "post_processor",
         "{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":{\"id\":\"A\"}},"
         "{\"SpecialToken\":{\"id\":\"a\"}},{\"SpecialToken\":{\"id\":\"a\"}}]}",
         NB_UNSUPPORTED, "template"},
        {"", "post_processor",
         "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"a\"}},"
         "{\"SpecialToken\":{\"id\":\"a\"}},{\"Sequence\":{\"id\":\"A\"}}]}",
         NB_UNSUPPORTED, "template"},
        {"", "post_processor",
         "{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":{\"id\":\"A\"}},"
         "{\"Sequence\":{\"id\":\"A\"}}]}",
         NB_UNSUPPORTED, "template"},
        {"", "post_processor",
         "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"a\"}}]}",
         NB_UNSUPPORTED, "template"},
        {"", "post_processor",
         "{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":{\"id\":\"A\"}},"
         "{\"SpecialToken\":{\"id\":\"a\"}}],\"special_tokens\":{\"a\":{\"ids\":[-1]}}}",
         NB_DATA, "id -1"},
        {"", "post_processor",
         "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"a\"}},"
         "{\"Sequence\":{\"id\":\"A\"}}],\"special_tokens\":{\"a\":{\"ids\":[9]}}}",
         NB_DATA, "id 9"},
        {"model", "type", "\"Unigram\"", NB_UNSUPPORTED, "'Unigram'"},
        {"model", "byte_fallback", "true", NB_UNSUPPORTED, "byte_fallback"},
        {"model", "dropout", "0.1", NB_UNSUPPORTED, "dropout"},
        {"model", "end_of_word_suffix", "\"</w>\"", NB_UNSUPPORTED, "'</w>'"},
        {"model", "continuing_subword_prefix", "\"##\"", NB_UNSUPPORTED, "'##'"},
        {"model", "unk_token", "\"x\"", NB_DATA, "unk_token 'x'"},
        {"model", "ignore_merges", "1", NB_DATA, "ignore_merges"},
        {"", "model", "null", NB_DATA, "model"},
    };
    const char *text = TINY("[]", TINY_MODEL(VOCAB, "[]"));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        json_t *v = json_loads(text, 0, NULL);
        json_t *at = bad[i].where[0] == '\0' ? v : json_object_get(v, bad[i].where);
        json_object_set_new(at, bad[i].key, json_loads(bad[i].value, JSON_DECODE_ANY, NULL));
        char *changed = json_dumps(v, 0);
        check_refused(changed, bad[i].status, bad[i].reason);
        free(changed);
        json_decref(v);
    }
    /* Deep inside sequences. */
    char deep[4000] = "";
    for (int i = 0; i < 20; i++)
        strcat(deep, "{\"type\":\"Sequence\",\"normalizers\":[");
    strcat(deep, "{\"type\":\"NFC\"}");
    for (int i = 0; i < 20; i++)
        strcat(deep, "]}");
    json_t *v = json_loads(text, 0, NULL);
    json_object_set_new(v, "normalizer", json_loads(deep, 0, NULL));
    char *changed = json_dumps(v, 0);
    check_refused(changed, NB_DATA, "nested");
    free(changed);
    json_decref(v);
}

/* ---- the files beside tokenizer.json ---- */

static nb_tokenizer *load_with(const char *config, const char *generation, const char *model)
{
    nb_err err = {0};
    const char *added = "[{\"id\":3,\"content\":\"<s>\",\"special\":true},"
                        "{\"id\":4,\"content\":\"</s>\",\"special\":true}]";
    char text[2000];
    snprintf(text, sizeof text, TINY("%s", TINY_MODEL(VOCAB, "[]")), added);
    json_t *v = json_loads(text, 0, NULL), *c = json_loads(config, 0, NULL);
    json_t *g = json_loads(generation, 0, NULL), *m = json_loads(model, 0, NULL);
    assert_non_null(v);
    nb_tokenizer *t;
    if (nb_tokenizer_from_json(&t, v, c, g, m, -1, &err) != NB_OK)
        fail_msg("%s", err.text);
    json_decref(v);
    json_decref(c);
    json_decref(g);
    json_decref(m);
    return t;
}

static void named_tokens_and_stops(void **state)
{
    (void)state;
    nb_tokenizer *t = load_with("{\"bos_token\":\"<s>\",\"eos_token\":{\"content\":\"</s>\"},"
                                "\"pad_token\":null,\"unk_token\":\"<s>\",\"add_bos_token\":true}",
                                "{\"eos_token_id\":[2,4,77,-1,\"x\",2]}", "{\"eos_token_id\":1}");
    assert_int_equal(nb_tokenizer_bos(t), 3);
    assert_int_equal(nb_tokenizer_eos(t), 4);
    assert_int_equal(nb_tokenizer_pad(t), -1);
    assert_int_equal(t->unknown, 3);
    assert_int_equal(t->bpe.unknown, -1); /* the model itself has none */
    assert_true(nb_tokenizer_adds_bos(t));
    assert_true(nb_tokenizer_is_stop(t, 4));
    assert_true(nb_tokenizer_is_stop(t, 2));
    assert_false(nb_tokenizer_is_stop(t, 1)); /* config.json counts when there is nothing better */
    assert_false(nb_tokenizer_is_stop(t, 77));
    assert_int_equal(t->n_stops, 2);
    nb_tokens ids = encode(t, "ab", 2, (nb_encode_options){.add_bos = true});
    assert_int_equal(ids.n, 3);
    assert_int_equal(ids.ids[0], 3);
    nb_tokens_free(&ids);
    nb_tokenizer_close(t);

    t = load_with("{\"eos_token\":\"nothing\"}", "{}", "{\"eos_token_id\":1}");
    assert_int_equal(nb_tokenizer_bos(t), -1);
    assert_int_equal(nb_tokenizer_eos(t), 1);
    assert_true(nb_tokenizer_is_stop(t, 1));
    assert_false(nb_tokenizer_adds_bos(t));
    nb_tokenizer_close(t);

    t = load_with("{}", "{}", "{\"eos_token_id\":500,\"bos_token_id\":-3}");
    assert_int_equal(nb_tokenizer_eos(t), -1);
    nb_tokenizer_close(t);
}

/* Without the embedding's shape, config.json's vocab_size bounds the ids. */
static void ids_past_the_rows(void **state)
{
    (void)state;
    nb_err err = {0};
    nb_tokenizer *t;
    json_t *v = json_loads(TINY("[]", TINY_MODEL(VOCAB, "[]")), 0, NULL);
    json_t *model = json_loads("{\"vocab_size\":2}", 0, NULL);
    assert_int_equal(nb_tokenizer_from_json(&t, v, NULL, NULL, model, -1, &err), NB_DATA);
    assert_string_equal(err.text, "token 'ab' has id 2; ids from 0 to 1 were expected");
    assert_int_equal(nb_tokenizer_from_json(&t, v, NULL, NULL, model, 2, &err), NB_DATA);
    assert_int_equal(nb_tokenizer_from_json(&t, v, NULL, NULL, model, 3, &err), NB_OK);
    assert_int_equal(nb_tokenizer_n_tokens(t), 3);
    nb_tokenizer_close(t);
    json_decref(model);
    json_decref(v);
}

/* ---- special tokens in text ---- */

/* Text from a user never becomes a control token, also not through ignore_merges or merges. */
static void special_text_stays_text(void **state)
{
    (void)state;
    const char *text = "{\"version\":\"1.0\",\"added_tokens\":"
                       "[{\"id\":4,\"content\":\"ab\",\"special\":true}],\"pre_tokenizer\":"
                       "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true},"
                       "\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\","
                       "\"ignore_merges\":true,\"vocab\":{\"a\":0,\"b\":1,\"aa\":2,\"bb\":3},"
                       "\"merges\":[]}}";
    json_t *v = json_loads(text, 0, NULL);
    nb_tokenizer *t = load(v);
    nb_tokens ids = encode(t, "ab", 2, (nb_encode_options){0});
    assert_int_equal(ids.n, 2);
    assert_int_equal(ids.ids[0], 0);
    assert_int_equal(ids.ids[1], 1);
    nb_tokens_free(&ids);
    ids = encode(t, "ab", 2, (nb_encode_options){.parse_special = true});
    assert_int_equal(ids.n, 1);
    assert_int_equal(ids.ids[0], 4);
    nb_tokens_free(&ids);
    nb_tokenizer_close(t);
    json_decref(v);
}

/* Added tokens and a text made so that a search that goes back would be quadratic. */
static void hostile_added_tokens(void **state)
{
    (void)state;
    const size_t long_len = 200000, n = 1 << 20;
    char *content = malloc(long_len + 2), *text = malloc(n);
    assert_non_null(content);
    assert_non_null(text);
    memset(content, 'a', long_len);
    content[long_len] = 'c';
    content[long_len + 1] = '\0';
    memset(text, 'a', n);
    json_t *v = json_loads(TINY(ADD("3", "<s>"), TINY_MODEL(VOCAB, "[]")), 0, NULL);
    json_array_append_new(
        json_object_get(v, "added_tokens"),
        json_pack("{s:i,s:s,s:b,s:b}", "id", 4, "content", content, "special", 0, "normalized", 0));
    json_array_append_new(
        json_object_get(v, "added_tokens"),
        json_pack("{s:i,s:s,s:b,s:b}", "id", 5, "content", "aa", "special", 0, "normalized", 0));
    nb_tokenizer *t = load(v);
    nb_tokens ids = encode(t, text, n, (nb_encode_options){0});
    assert_int_equal(ids.n, n / 2);
    assert_int_equal(ids.ids[0], 5);
    nb_tokens_free(&ids);
    nb_tokenizer_close(t);
    json_decref(v);
    free(content);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_vocabularies),
        cmocka_unit_test(bad_merges),
        cmocka_unit_test(bad_added_tokens),
        cmocka_unit_test(other_kinds_are_refused_by_name),
        cmocka_unit_test(named_tokens_and_stops),
        cmocka_unit_test(ids_past_the_rows),
        cmocka_unit_test(special_text_stays_text),
        cmocka_unit_test(hostile_added_tokens),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
