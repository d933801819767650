/* Tokenizers in the keys of a GGUF: what they say, what is refused, and export there and back. */
#include "support/gguf_bytes.h"
#include "support/golden.h"
#include "support/scratch.h"
#include "text/tiny_tokenizer.h"
#include "text/tokenizer_parts.h"

#include <stdio.h>
#include <string.h>

/* ---- GGUF ---- */

/* What a test may change about a small GGUF. */
typedef struct {
    const char *model, *pre;
    const char *tokens[8];
    int32_t types[8];
    int n_types; /* -1: no key */
    const char *merges[4];
    int64_t eos, unknown; /* -1: no key */
    int n_rows;           /* 0: no embedding */
} gguf_spec;

static const gguf_spec good_spec = {
    .model = "gpt2",
    .pre = "smollm",
    .tokens = {"<s>", "a", "b", "ab", "Ġ", "<tool>"},
    .types = {3, 1, 1, 1, 1, 4},
    .n_types = 6,
    .merges = {"a b"},
    .eos = 0,
    .unknown = 0,
};

static int count(const char *const *list)
{
    int n = 0;
    while (list[n] != NULL)
        n++;
    return n;
}

static void put_strings(gguf_bytes *g, const char *key, const char *const *list)
{
    gb_array(g, key, 8, (uint64_t)count(list));
    for (int i = 0; list[i] != NULL; i++)
        gb_raw_string(&g->kv, list[i]);
}

static void write_gguf(const gguf_spec *spec, const char *name)
{
    gguf_bytes g = {0};
    nb_buf file = {0};
    gb_text(&g, "general.architecture", "llama");
    if (spec->model != NULL)
        gb_text(&g, "tokenizer.ggml.model", spec->model);
    if (spec->pre != NULL)
        gb_text(&g, "tokenizer.ggml.pre", spec->pre);
    put_strings(&g, "tokenizer.ggml.tokens", spec->tokens);
    if (spec->n_types >= 0) {
        gb_array(&g, "tokenizer.ggml.token_type", 5, (uint64_t)spec->n_types);
        for (int i = 0; i < spec->n_types; i++)
            gb_raw_u32(&g.kv, (uint32_t)spec->types[i]);
    }
    put_strings(&g, "tokenizer.ggml.merges", spec->merges);
    if (spec->eos >= 0)
        gb_u32(&g, "tokenizer.ggml.eos_token_id", (uint32_t)spec->eos);
    if (spec->unknown >= 0)
        gb_u32(&g, "tokenizer.ggml.unknown_token_id", (uint32_t)spec->unknown);
    const float zeros[8 * 32] = {0};
    if (spec->n_rows > 0)
        gb_tensor(&g, "token_embd.weight", 32, (uint64_t)spec->n_rows, 0, zeros,
                  (size_t)spec->n_rows * 32 * sizeof *zeros);
    gb_finish(&g, &file);
    scratch_write(name, file.data, file.len);
    nb_buf_free(&file);
    gb_free(&g);
}

static nb_status open_spec(const gguf_spec *spec, nb_tokenizer **t, nb_err *err)
{
    nb_store *store;
    write_gguf(spec, "t.gguf");
    if (nb_store_open(&store, scratch_path("t.gguf"), err) != NB_OK)
        fail_msg("%s", err->text);
    const nb_status s = nb_tokenizer_open(t, store, err);
    nb_store_close(store);
    return s;
}

static void gguf_keys(void **state)
{
    (void)state;
    nb_err err = {0};
    nb_tokenizer *t;
    gguf_spec spec = good_spec;
    spec.n_rows = 6;
    if (open_spec(&spec, &t, &err) != NB_OK)
        fail_msg("%s", err.text);
    assert_int_equal(nb_tokenizer_n_tokens(t), 6);
    assert_int_equal(nb_tokenizer_eos(t), 0);
    assert_int_equal(nb_tokenizer_bos(t), -1);
    assert_true(nb_tokenizer_is_special(t, 0));
    assert_false(nb_tokenizer_is_special(t, 5));
    const char *bytes;
    size_t len;
    assert_int_equal(nb_tokenizer_token(t, 4, &bytes, &len, &err), NB_OK);
    assert_int_equal(len, 1);
    assert_int_equal(bytes[0], ' ');
    nb_tokens ids = encode(t, "ab ba<tool>", 11, (nb_encode_options){0});
    const int32_t expected[] = {3, 4, 2, 1, 5};
    assert_int_equal(ids.n, 5);
    assert_memory_equal(ids.ids, expected, sizeof expected);
    nb_tokens_free(&ids);
    ids = encode(t, "<s>a", 4, (nb_encode_options){.parse_special = true});
    assert_int_equal(ids.n, 2);
    assert_int_equal(ids.ids[0], 0);
    nb_tokens_free(&ids);
    /* The unknown token is kept for files made from this one, and stands for no byte. */
    ids = encode(t, "aqb", 3, (nb_encode_options){0});
    assert_int_equal(ids.n, 1);
    assert_int_equal(ids.ids[0], 3);
    assert_int_equal(ids.n_left_out, 1);
    nb_tokens_free(&ids);
    json_t *v, *config;
    assert_int_equal(nb_tokenizer_to_json(t, &v, &err), NB_OK);
    assert_int_equal(nb_tokenizer_to_config(t, NULL, &config, &err), NB_OK);
    const json_t *model = json_object_get(v, "model");
    assert_true(json_is_null(golden_get(model, "unk_token")));
    assert_string_equal(json_string_value(golden_get(config, "unk_token")), "<s>");
    json_decref(v);
    json_decref(config);
    nb_tokenizer_close(t);
    spec.unknown = -1;
    assert_int_equal(open_spec(&spec, &t, &err), NB_OK);
    assert_int_equal(t->unknown, -1);
    nb_tokenizer_close(t);
}

static void check_spec(const gguf_spec *spec, nb_status status, const char *reason)
{
    nb_err err = {0};
    nb_tokenizer *t;
    const int64_t live = nb_alloc_live();
    const nb_status s = open_spec(spec, &t, &err);
    if (s == NB_OK)
        nb_tokenizer_close(t);
    if (s != status || (reason != NULL && strstr(err.text, reason) == NULL))
        fail_msg("expected '%s' (%s), found '%s' (%s)", reason, nb_status_name(status), err.text,
                 nb_status_name(s));
    const char *path = scratch_path("t.gguf");
    assert_true(s == NB_OK || strncmp(err.text, path, strlen(path)) == 0);
    assert_int_equal(nb_alloc_live(), live);
}

static void bad_gguf_keys(void **state)
{
    (void)state;
    gguf_spec s = good_spec;
    s.model = "llama";
    check_spec(&s, NB_UNSUPPORTED, "'llama'");
    s.model = NULL;
    check_spec(&s, NB_DATA, "tokenizer.ggml.model");
    static const char *const pres[] = {"default", "tekken", "", "smollm2"};
    for (int i = 0; i < 4; i++) {
        s = good_spec;
        s.pre = pres[i];
        check_spec(&s, NB_UNSUPPORTED, pres[i]);
    }
    s.pre = NULL;
    check_spec(&s, NB_UNSUPPORTED, "tokenizer.ggml.pre");
    s = good_spec;
    s.tokens[0] = NULL;
    s.n_types = 0;
    check_spec(&s, NB_DATA, "is empty");
    s = good_spec;
    s.n_types = 5;
    check_spec(&s, NB_DATA, "5 entries for 6 tokens");
    s.n_types = 7;
    check_spec(&s, NB_DATA, "7 entries for 6 tokens");
    s = good_spec;
    s.types[2] = 9;
    check_spec(&s, NB_DATA, "token 2 has type 9");
    s.types[2] = -1;
    check_spec(&s, NB_DATA, "token 2 has type -1");
    s = good_spec;
    s.tokens[2] = "a";
    check_spec(&s, NB_DATA, "tokens 1 and 2 are both 'a'");
    s.tokens[2] = "\xff";
    check_spec(&s, NB_DATA, "token 2 '\\xff' is not UTF-8");
    s = good_spec;
    s.merges[0] = "ab";
    check_spec(&s, NB_DATA, "merge 0 'ab'");
    s.merges[0] = "b a";
    check_spec(&s, NB_DATA, "merge 0 'b' + 'a'");
    s = good_spec;
    s.eos = 6;
    check_spec(&s, NB_DATA, "eos_token_id");
    s.eos = UINT32_MAX;
    check_spec(&s, NB_DATA, "eos_token_id");
    s = good_spec;
    s.unknown = 6;
    check_spec(&s, NB_DATA, "unknown_token_id");
    s = good_spec;
    s.n_rows = 7;
    check_spec(&s, NB_DATA, "6 tokens for 7 rows");
    s.n_rows = 5;
    check_spec(&s, NB_DATA, "6 tokens for 5 rows");
    s = good_spec;
    s.n_types = -1;
    check_spec(&s, NB_OK, NULL);
}

/* ---- export ---- */

static void assert_same_encoding(const nb_tokenizer *a, const nb_tokenizer *b, const char *what)
{
    json_t *golden = load_tiny();
    const json_t *texts = golden_get(golden, "texts");
    for (size_t i = 0; i < json_array_size(texts); i++) {
        const json_t *text = json_array_get(texts, i);
        for (int special = 0; special < 2; special++) {
            const nb_encode_options options = {
                .parse_special = special, .add_bos = special, .add_end = special};
            nb_tokens x = encode(a, json_string_value(text), json_string_length(text), options);
            nb_tokens y = encode(b, json_string_value(text), json_string_length(text), options);
            if (x.n != y.n || x.n_left_out != y.n_left_out ||
                (x.n > 0 && memcmp(x.ids, y.ids, (size_t)x.n * sizeof *x.ids) != 0))
                fail_msg("%s: other ids for \"%s\"", what, json_string_value(text));
            nb_tokens_free(&x);
            nb_tokens_free(&y);
        }
    }
    json_decref(golden);
}

/* Every variant written as tokenizer.json and read again gives the same ids. */
static void json_export_round_trip(void **state)
{
    (void)state;
    json_t *golden = load_tiny(), *variant;
    size_t i;
    json_array_foreach(golden_get(golden, "variants"), i, variant)
    {
        const char *name = json_string_value(golden_get(variant, "name"));
        nb_err err = {0};
        nb_tokenizer *t = load_variant(name), *back;
        json_t *v, *config;
        assert_int_equal(nb_tokenizer_to_json(t, &v, &err), NB_OK);
        assert_int_equal(nb_tokenizer_to_config(t, "{{ messages }}", &config, &err), NB_OK);
        assert_string_equal(json_string_value(json_object_get(config, "chat_template")),
                            "{{ messages }}");
        assert_int_equal(nb_tokenizer_from_json(&back, v, config, NULL, NULL, -1, &err), NB_OK);
        assert_int_equal(nb_tokenizer_n_tokens(t), nb_tokenizer_n_tokens(back));
        assert_int_equal(nb_tokenizer_bos(t), nb_tokenizer_bos(back));
        assert_int_equal(nb_tokenizer_adds_bos(t), nb_tokenizer_adds_bos(back));
        assert_int_equal(t->unknown, back->unknown);
        assert_int_equal(t->bpe.unknown, back->bpe.unknown);
        assert_same_encoding(t, back, name);
        nb_tokenizer_close(back);
        nb_tokenizer_close(t);
        json_decref(v);
        json_decref(config);
    }
    json_decref(golden);
}

/* tokenizer.json to GGUF keys and back, with rows that have no token. */
static void gguf_export_round_trip(void **state)
{
    (void)state;
    static const char *const names[] = {"gpt2", "smollm", "left_out"};
    for (int i = 0; i < 3; i++) {
        nb_err err = {0};
        nb_tokenizer *t = load_variant(names[i]), *back = NULL;
        const int64_t n_rows = nb_tokenizer_n_tokens(t) + 5;
        nb_tokenizer_add_stop(t, 3);
        t->unknown = 5;
        t->end = i == 1 ? 7 : -1; /* is written as eos, which only ends generation here */
        nb_buf file = {0};
        gguf_bytes g = {0};
        int64_t n_kv = 0;
        gb_text(&g, "general.architecture", "llama");
        assert_int_equal(nb_tokenizer_to_gguf(t, n_rows, &g.kv, &n_kv, &err), NB_OK);
        g.n_kv += (uint64_t)n_kv;
        gb_finish(&g, &file);
        scratch_write("out.gguf", file.data, file.len);
        nb_buf_free(&file);
        gb_free(&g);
        nb_store *store;
        if (nb_store_open(&store, scratch_path("out.gguf"), &err) != NB_OK ||
            nb_tokenizer_open(&back, store, &err) != NB_OK)
            fail_msg("%s", err.text);
        nb_store_close(store);
        assert_int_equal(nb_tokenizer_n_tokens(back), n_rows);
        char pad[32];
        snprintf(pad, sizeof pad, "[PAD%d]", (int)n_rows - 1);
        assert_int_equal(nb_tokenizer_find(back, pad, strlen(pad)), n_rows - 1);
        assert_true(nb_tokenizer_is_stop(back, 3));
        assert_int_equal(back->unknown, 5);
        assert_int_equal(back->end, t->end);
        assert_true(t->eos < 0 || nb_tokenizer_is_stop(back, t->eos));
        assert_same_encoding(t, back, names[i]);
        nb_tokenizer_close(back);
        nb_tokenizer_close(t);
    }
    /* What GGUF cannot say is refused. */
    static const struct {
        const char *name, *reason;
    } bad[] = {{"o200k", "no name"},
               {"nfc", "no name"},
               {"gpt2_prefix", "no name"},
               {"added", "single_word"},
               {"unknown", "'a' stands for bytes"}};
    for (int i = 0; i < 5; i++) {
        nb_err err = {0};
        nb_buf kv = {0};
        int64_t n_kv = 0;
        nb_tokenizer *t = load_variant(bad[i].name);
        assert_int_equal(nb_tokenizer_to_gguf(t, 1000, &kv, &n_kv, &err), NB_UNSUPPORTED);
        assert_non_null(strstr(err.text, bad[i].reason));
        assert_int_equal(n_kv, 0);
        assert_int_equal(kv.len, 0);
        nb_buf_free(&kv);
        nb_tokenizer_close(t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gguf_keys),
        cmocka_unit_test(bad_gguf_keys),
        cmocka_unit_test(json_export_round_trip),
        cmocka_unit_test(gguf_export_round_trip),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
