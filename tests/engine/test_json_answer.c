/* Answers held to a schema: a model that knows nothing of JSON writes it, by any way of choosing,
 * and ends where the value ends. */
#include "opened.h"

#include "base/alloc.h"
#include "json_valid.h"

static const char form[] = "{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\","
                           "\"maxLength\":6},\"n\":{\"type\":"
                           "\"integer\",\"minimum\":-5,\"maximum\":500},\"of\":{\"anyOf\":[{"
                           "\"type\":\"null\"},{\"enum\":[\"red\","
                           "\"green\"]}]},\"list\":{\"type\":\"array\",\"items\":{\"type\":"
                           "\"boolean\"},\"maxItems\":2}},\"required\":"
                           "[\"name\",\"n\",\"of\",\"list\"],\"additionalProperties\":false}";

static nb_status generate(opened *o, const nb_generate_options *how, nb_generation *r, nb_err *err)
{
    nb_tokens ids = {0};
    encode(o, "the", &ids);
    const nb_status s = nb_generate(&o->generator, &ids, how, NULL, NULL, r, err);
    nb_tokens_free(&ids);
    return s;
}

static void answers_satisfy_the_schema(void **state)
{
    (void)state;
    opened o;
    must_open(&o, model_path("roomy", &(tiny_model){.n_ctx = 2048}), &(opening){0});
    json_t *schema = json_loads(form, 0, NULL);
    assert_non_null(schema);
    const int32_t special = 1;
    for (uint64_t seed = 0; seed < 24; seed++) {
        nb_err err = {0};
        nb_generation r;
        const nb_generate_options how = {
            .json_schema = form,
            .stop_ids = &special,
            .n_stop_ids = seed % 3 == 1,
            .sampling = {.temperature = seed % 4 == 0 ? 0 : 2, .seed = seed}};
        if (generate(&o, &how, &r, &err) != NB_OK)
            fail_msg("seed %d: %s", (int)seed, err.text);
        assert_int_equal(r.reason, NB_STOP_EOS);
        json_t *v = json_loadb(r.text, r.text_len, 0, NULL);
        if (v == NULL || !is_valid(schema, schema, v))
            fail_msg("seed %d: %s", (int)seed, r.text);
        json_decref(v);
        nb_generation_free(&r);
    }
    json_decref(schema);
    close_opened(&o);
}

static void bad_schemas_fail_before_the_first_token(void **state)
{
    (void)state;
    opened o;
    must_open(&o, model_path("brief", &(tiny_model){0}), &(opening){0});
    static const int32_t brace = TINY_BYTE('}');
    const struct {
        nb_generate_options how;
        nb_status status;
        const char *message;
    } rows[] = {
        {{.json_schema = "{\"pattern\":\"a\"}"}, NB_UNSUPPORTED, "'pattern' is not supported"},
        {{.json_schema = ""}, NB_DATA, "JSON schema: not valid JSON"},
        {{.json_schema = form, .ignore_eos = true}, NB_USAGE, "ignore_eos"},
        {{.json_schema = form, .stop_ids = &brace, .n_stop_ids = 1}, NB_USAGE, "is text, which"},
        {{.json_schema = form, .min_tokens = 2}, NB_USAGE, "min_tokens"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        nb_err err = {0};
        nb_generation r;
        assert_int_equal(generate(&o, &rows[i].how, &r, &err), rows[i].status);
        assert_non_null(strstr(err.text, rows[i].message));
        assert_int_equal(o.generator.held.n, 0);
    }
    close_opened(&o);
}

static void failing_allocations_leave_nothing(void **state)
{
    (void)state;
    opened o;
    must_open(&o, model_path("brief", &(tiny_model){0}), &(opening){0});
    const nb_generate_options how = {.json_schema = form, .max_tokens = 3, .n_guess = 2};
    int n_failed = 0;
    for (int64_t n = 1, done = 0; !done; n++) {
        nb_err err = {0};
        nb_generation r = {0};
        nb_generator_free(&o.generator); /* so that the vocabulary is prepared again */
        const nb_generator_setup setup = {.model = &o.model,
                                          .kernels = &o.kernels,
                                          .pool = o.pool,
                                          .tokenizer = o.tokenizer,
                                          .kv = NB_KV_F16};
        assert_int_equal(nb_generator_init(&o.generator, &setup, &err), NB_OK);
        const int64_t live = nb_alloc_live();
        nb_tokens ids = {0};
        encode(&o, "the", &ids);
        nb_alloc_fail_at(n);
        const nb_status s = nb_generate(&o.generator, &ids, &how, NULL, NULL, &r, &err);
        nb_alloc_fail_at(0);
        nb_tokens_free(&ids);
        done = s == NB_OK;
        n_failed += !done;
        if (!done) {
            assert_int_equal(s, NB_MEMORY);
            nb_json_tokens_free(&o.generator.json);
            assert_true(nb_alloc_live() <= live + 64); /* pages of the cache may stay */
        }
        nb_generation_free(&r);
    }
    assert_true(n_failed > 10);
    close_opened(&o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_satisfy_the_schema),
        cmocka_unit_test(bad_schemas_fail_before_the_first_token),
        cmocka_unit_test(failing_allocations_leave_nothing),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
