/* compressed-tensors' configuration: what nibble reads and refuses, and what it writes. */
#include "store/compressed_tensors.h"
#include "support/golden.h"

#include <stdlib.h>
#include <string.h>

/* ---- reading the configuration ---- */

static const char minimal[] =
    "{\"quant_method\":\"compressed-tensors\",\"format\":\"pack-quantized\","
    "\"quantization_status\":\"compressed\",\"ignore\":[\"lm_head\"],\"kv_cache_scheme\":null,"
    "\"global_compression_ratio\":null,\"config_groups\":{\"group_0\":{\"targets\":[\"Linear\"],"
    "\"input_activations\":null,\"output_activations\":null,\"weights\":{\"num_bits\":4,"
    "\"type\":\"int\",\"symmetric\":true,\"strategy\":\"group\",\"group_size\":128,"
    "\"block_structure\":null,\"dynamic\":false,\"actorder\":null,\"observer\":\"minmax\","
    "\"observer_kwargs\":{}}}}}";

static json_t *parse_json(const char *text)
{
    nb_err err;
    json_t *v;
    if (nb_json_parse(&v, text, strlen(text), &err) != NB_OK)
        fail_msg("%s: %s", err.text, text);
    return v;
}

/* The minimal configuration with one value replaced or added ("config_groups/group_0/weights/type",
 * "\"float\""), or removed (NULL). */
static json_t *changed(const char *path, const char *value)
{
    json_t *config = parse_json(minimal), *at = config;
    char part[64];
    for (;;) {
        const char *slash = strchr(path, '/');
        if (slash == NULL)
            break;
        memcpy(part, path, (size_t)(slash - path));
        part[slash - path] = 0;
        at = json_object_get(at, part);
        assert_non_null(at);
        path = slash + 1;
    }
    if (value == NULL)
        assert_int_equal(json_object_del(at, path), 0);
    else
        assert_int_equal(json_object_set_new(at, path, parse_json(value)), 0);
    return config;
}

static nb_status parse_ct(nb_ct *ct, nb_arena *arena, json_t *config, nb_err *err)
{
    const nb_status s = nb_ct_parse(ct, arena, config, 100, err);
    json_decref(config);
    return s;
}

#define W "config_groups/group_0/weights/"

#define G "config_groups/group_0/"

static void what_is_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *path, *value;
        nb_status status;
        const char *reason;
    } cases[] = {
        {"quant_method", "\"gptq\"", NB_UNSUPPORTED, "quant_method 'gptq'"},
        {"quant_method", "\"awq\"", NB_UNSUPPORTED, "quant_method 'awq'"},
        {"quant_method", "\"fp8\"", NB_UNSUPPORTED, "quant_method 'fp8'"},
        {"quant_method", "\"bitsandbytes\"", NB_UNSUPPORTED, "quant_method 'bitsandbytes'"},
        {"quant_method", "\"mxfp4\"", NB_UNSUPPORTED, "quant_method 'mxfp4'"},
        {"quant_method", "7", NB_DATA, "'quant_method' is an integer"},
        {"quant_method", NULL, NB_DATA, "'quant_method' is missing"},
        {"format", "\"float-quantized\"", NB_DATA, "type 'int' does not go with the format"},
        {"format", "\"nvfp4-pack-quantized\"", NB_UNSUPPORTED, "format 'nvfp4-pack-quantized'"},
        {"format", "\"naive-quantized\"", NB_DATA, "type 'int' does not go with the format"},
        {"format", "\"marlin-24\"", NB_UNSUPPORTED, "format 'marlin-24'"},
        {"format", "\"dense\"", NB_UNSUPPORTED, "format 'dense'"},
        {"format", "\"mixed-precision\"", NB_UNSUPPORTED, "format 'mixed-precision'"},
        {"format", NULL, NB_DATA, "'format' is missing"},
        {G "format", "\"mxfp8-quantized\"", NB_UNSUPPORTED, "format 'mxfp8-quantized'"},
        {"quantization_status", "\"frozen\"", NB_UNSUPPORTED, "quantization_status 'frozen'"},
        {"kv_cache_scheme", "{\"num_bits\":8}", NB_UNSUPPORTED, "kv_cache_scheme"},
        {"kv_cache_scheme", "{}", NB_UNSUPPORTED, "kv_cache_scheme"},
        {"sparsity_config", "{\"format\":\"dense\"}", NB_UNSUPPORTED, "sparsity_config"},
        {"transform_config", "{\"config_groups\":{}}", NB_UNSUPPORTED, "transform_config"},
        {"transform_config", "[]", NB_UNSUPPORTED, "transform_config"},
        {"config_groups", "{}", NB_DATA, "config_groups is empty"},
        {"config_groups", "[]", NB_DATA, "'config_groups' is an array"},
        {"config_groups", NULL, NB_DATA, "'config_groups' is missing"},
        {"config_groups", "{\"W4A16\":[\"Linear\"]}", NB_UNSUPPORTED, "preset"},
        {"ignore", "\"lm_head\"", NB_DATA, "'ignore' is a string"},
        {"ignore", "[\"lm_head\",7]", NB_DATA, "ignore: entry 1 is not a string"},
        {"ignore", "[\"re:(\"]", NB_DATA, "regular expression '('"},
        {G "targets", NULL, NB_DATA, "'targets' is missing"},
        {G "targets", "\"Linear\"", NB_DATA, "'targets' is a string"},
        {G "targets", "[null]", NB_DATA, "entry 0 is not a string"},
        {G "weights", "null", NB_DATA, "'weights' is missing"},
        {G "surprise", "1", NB_UNSUPPORTED, "key 'surprise'"},
        {G "output_activations", "{\"num_bits\":8}", NB_UNSUPPORTED, "output_activations"},
        {W "surprise", "1", NB_UNSUPPORTED, "key 'surprise'"},
        {W "num_bits", "5", NB_UNSUPPORTED, "num_bits 5"},
        {W "num_bits", "16", NB_UNSUPPORTED, "num_bits 16"},
        {W "num_bits", "4294967300", NB_DATA, "4294967300"},
        {W "num_bits", "4.0", NB_DATA, "'num_bits' is a number with a fraction"},
        {W "num_bits", "\"4\"", NB_DATA, "'num_bits' is a string"},
        {W "type", "\"float\"", NB_UNSUPPORTED, "type 'float'"},
        {W "symmetric", "1", NB_DATA, "'symmetric' is an integer"},
        {W "strategy", "\"block\"", NB_DATA, "strategy 'block'"},
        {W "strategy", "\"tensor_group\"", NB_UNSUPPORTED, "strategy 'tensor_group'"},
        {W "strategy", "\"channel\"", NB_DATA, "strategy 'channel'"},
        {W "group_size", "0", NB_DATA, "group_size is 0"},
        {W "group_size", "-2", NB_DATA, "-2"},
        {W "group_size", "-1", NB_DATA, "strategy 'group' does not go with a group_size of -1"},
        {W "group_size", "null", NB_DATA, "strategy 'group'"},
        {W "dynamic", "true", NB_UNSUPPORTED, "dynamic weights"},
        {W "dynamic", "\"local\"", NB_UNSUPPORTED, "dynamic 'local'"},
        {W "actorder", "\"group\"", NB_UNSUPPORTED, "actorder 'group'"},
        {W "actorder", "\"dynamic\"", NB_UNSUPPORTED, "actorder 'dynamic'"},
        {W "actorder", "true", NB_UNSUPPORTED, "actorder 'true'"},
        {W "actorder", "7", NB_UNSUPPORTED, "actorder"},
        {W "scale_dtype", "\"torch.float8_e4m3fn\"", NB_UNSUPPORTED, "torch.float8_e4m3fn"},
        {W "zp_dtype", "\"torch.uint8\"", NB_UNSUPPORTED, "torch.uint8"},
        {W "block_structure", "[128,128]", NB_DATA, "strategy 'group' does not go with a block"},
    };
    nb_err err;
    nb_ct ct;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        nb_arena arena = {0};
        const nb_status s = parse_ct(&ct, &arena, changed(cases[i].path, cases[i].value), &err);
        if (s != cases[i].status || strstr(err.text, cases[i].reason) == NULL)
            fail_msg("%s = %s: status %d: %s", cases[i].path, cases[i].value, s, err.text);
        assert_int_equal(strncmp(err.text, "quantization_config: ", 21), 0);
        nb_arena_free(&arena);
    }
    assert_int_equal(nb_ct_parse(&ct, NULL, json_null(), 1, &err), NB_DATA);
}

static const char token_args[] =
    "{\"num_bits\":8,\"type\":\"int\",\"symmetric\":true,\"strategy\":\"token\",\"dynamic\":true}";

static void activations(void **state)
{
    (void)state;
    static const char *const refused[] = {
        "{\"num_bits\":4,\"strategy\":\"token\",\"dynamic\":true}",
        "{\"num_bits\":8,\"strategy\":\"tensor\",\"dynamic\":true}",
        "{\"num_bits\":8,\"strategy\":\"token\",\"dynamic\":false}",
        "{\"num_bits\":8,\"strategy\":\"channel\",\"dynamic\":false}",
        "{\"num_bits\":8,\"strategy\":\"tensor\",\"dynamic\":false,\"symmetric\":false}",
        "{\"num_bits\":4,\"strategy\":\"tensor\",\"dynamic\":false}",
        "{\"num_bits\":8,\"strategy\":\"token\",\"dynamic\":true,\"symmetric\":false}",
        "{\"num_bits\":8,\"strategy\":\"group\",\"group_size\":128,\"dynamic\":true}",
        "{\"num_bits\":8,\"type\":\"float\",\"strategy\":\"token\",\"dynamic\":true}",
    };
    nb_err err;
    nb_ct ct;
    nb_arena arena = {0};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        assert_int_equal(parse_ct(&ct, &arena, changed(G "input_activations", refused[i]), &err),
                         NB_UNSUPPORTED);
        assert_non_null(strstr(err.text, "config_groups.group_0: input_activations: "));
    }
    assert_int_equal(parse_ct(&ct, &arena, changed(G "input_activations", token_args), &err),
                     NB_OK);
    assert_int_equal(ct.groups[0].act.bits, 8);
    assert_true(ct.groups[0].act.per_token);
    assert_false(ct.groups[0].act.is_static);
    nb_ct_free(&ct);
    assert_int_equal(parse_ct(&ct, &arena,
                              changed(G "input_activations",
                                      "{\"num_bits\":8,\"strategy\":\"tensor\",\"dynamic\":false}"),
                              &err),
                     NB_OK);
    assert_true(ct.groups[0].act.bits == 8 && ct.groups[0].act.is_static);
    assert_false(ct.groups[0].act.is_float);
    nb_ct_free(&ct);
    assert_int_equal(parse_ct(&ct, &arena, parse_json(minimal), &err), NB_OK);
    assert_int_equal(ct.groups[0].act.bits, 0);
    nb_ct_free(&ct);
    nb_arena_free(&arena);
}

/* Strategy and defaults as formats.md 4.2 has them. */
static void arguments_and_their_defaults(void **state)
{
    (void)state;
    static const struct {
        const char *weights;
        int bits;
        bool symmetric;
        nb_ct_strategy strategy;
        int64_t group_size;
    } cases[] = {
        {"{}", 8, true, NB_CT_TENSOR, 0},
        {"{\"group_size\":-1}", 8, true, NB_CT_CHANNEL, 0},
        {"{\"group_size\":32,\"num_bits\":4}", 4, true, NB_CT_GROUP, 32},
        {"{\"strategy\":\"channel\",\"symmetric\":false}", 8, false, NB_CT_CHANNEL, 0},
        {"{\"strategy\":\"channel\",\"group_size\":-1}", 8, true, NB_CT_CHANNEL, 0},
        {"{\"strategy\":\"tensor\",\"group_size\":null}", 8, true, NB_CT_TENSOR, 0},
        {"{\"strategy\":\"group\",\"group_size\":128,\"actorder\":\"weight\","
         "\"scale_dtype\":\"torch.bfloat16\",\"zp_dtype\":\"torch.int8\",\"observer\":null}",
         8, true, NB_CT_GROUP, 128},
        {"{\"group_size\":64,\"actorder\":\"static\"}", 8, true, NB_CT_GROUP, 64},
        {"{\"group_size\":64,\"actorder\":false}", 8, true, NB_CT_GROUP, 64},
    };
    nb_err err;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        nb_ct ct;
        nb_arena arena = {0};
        if (parse_ct(&ct, &arena, changed(G "weights", cases[i].weights), &err) != NB_OK)
            fail_msg("%s: %s", cases[i].weights, err.text);
        assert_int_equal(ct.groups[0].bits, cases[i].bits);
        assert_int_equal(ct.groups[0].symmetric, cases[i].symmetric);
        assert_int_equal(ct.groups[0].strategy, cases[i].strategy);
        assert_int_equal(ct.groups[0].group_size, cases[i].group_size);
        nb_ct_free(&ct);
        nb_arena_free(&arena);
    }
}

/* ---- matching ---- */

static const char *group_for(const nb_ct *ct, const char *module)
{
    nb_err err;
    const nb_ct_group *group;
    if (nb_ct_match(ct, module, &group, &err) != NB_OK)
        fail_msg("%s", err.text);
    return group == NULL ? "none" : group->name;
}

static void targets_and_ignore(void **state)
{
    (void)state;
    json_t *config = changed("ignore", "[\"lm_head\",\"re:.*router\",\"model.l.3.up\"]");
    json_t *groups = json_object_get(config, "config_groups");
    static const char *const targets[] = {
        "[\"Linear\"]", "[\"re:model\\\\.l\\\\.1\\\\.\",\"re:.*down$\"]",
        "[\"model.l.1.gate\",\"model.l.3.up\",\"model.embed_tokens\"]"};
    for (int i = 0; i < 3; i++) {
        json_t *group = json_deep_copy(json_object_get(groups, "group_0"));
        json_object_set_new(group, "targets", parse_json(targets[i]));
        json_object_set_new(groups, i == 0 ? "class" : i == 1 ? "regex" : "exact", group);
    }
    json_object_del(groups, "group_0");
    nb_ct ct;
    nb_arena arena = {0};
    nb_err err;
    if (parse_ct(&ct, &arena, config, &err) != NB_OK)
        fail_msg("%s", err.text);
    assert_string_equal(group_for(&ct, "model.l.0.up"), "class");
    assert_string_equal(group_for(&ct, "model.l.1.up"), "regex");   /* before the class */
    assert_string_equal(group_for(&ct, "model.l.1.gate"), "exact"); /* before both */
    assert_string_equal(group_for(&ct, "model.l.10.up"), "class");
    assert_string_equal(group_for(&ct, "model.l.0.down"), "regex");
    assert_string_equal(group_for(&ct, "model.l.0.downs"), "class");
    assert_string_equal(group_for(&ct, "x.model.l.1.up"), "class");    /* anchored at the start */
    assert_string_equal(group_for(&ct, "model.l.1.up.more"), "regex"); /* not at the end */
    assert_string_equal(group_for(&ct, "lm_head"), "none");
    assert_string_equal(group_for(&ct, "lm_head2"), "class");
    assert_string_equal(group_for(&ct, "model.l.1.router"), "none");
    assert_string_equal(group_for(&ct, "model.l.3.up"), "none"); /* ignored after all */
    assert_string_equal(group_for(&ct, "model.embed_tokens"), "exact");
    assert_string_equal(group_for(&ct, "model.embed_positions"), "none"); /* no Linear */

    bool named;
    assert_int_equal(nb_ct_is_named(&ct, "model.l.1.gate", &named, &err), NB_OK);
    assert_true(named);
    assert_int_equal(nb_ct_is_named(&ct, "model.l.3.up", &named, &err), NB_OK);
    assert_false(named);
    assert_int_equal(nb_ct_is_named(&ct, "model.l.1.up", &named, &err), NB_OK);
    assert_false(named);
    nb_ct_free(&ct);
    nb_arena_free(&arena);
}

static void ignoring_the_class_ignores_every_linear(void **state)
{
    (void)state;
    nb_ct ct;
    nb_arena arena = {0};
    nb_err err;
    assert_int_equal(parse_ct(&ct, &arena, changed("ignore", "[\"Linear\"]"), &err), NB_OK);
    assert_string_equal(group_for(&ct, "model.l.0.up"), "none");
    nb_ct_free(&ct);
    nb_arena_free(&arena);
}

static void embeddings(void **state)
{
    (void)state;
    static const char *const yes[] = {"embed_tokens", "model.embed_tokens", "transformer.wte",
                                      "a.wpe",        "gpt_neox.embed_in",  "tok_embeddings"};
    static const char *const no[] = {"lm_head", "model.l.0.up", "x.embed.y", "wtex", "swte", ""};
    for (size_t i = 0; i < sizeof yes / sizeof *yes; i++)
        assert_true(nb_ct_is_embedding(yes[i], strlen(yes[i])));
    for (size_t i = 0; i < sizeof no / sizeof *no; i++)
        assert_false(nb_ct_is_embedding(no[i], strlen(no[i])));
    assert_true(nb_ct_is_embedding("a.wte.weight", 5));
}

/* A pattern that backtracks without end, and lists that are too long, stop with a message. */
static void expressions_are_bounded(void **state)
{
    (void)state;
    nb_ct ct;
    nb_arena arena = {0};
    nb_err err;
    const nb_ct_group *group;
    assert_int_equal(parse_ct(&ct, &arena, changed(G "targets", "[\"re:(a+)+$\"]"), &err), NB_OK);
    assert_int_equal(
        nb_ct_match(&ct, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", &group, &err), NB_DATA);
    assert_non_null(strstr(err.text, "regular expression '(a+)+$' on 'aaaa"));
    nb_ct_free(&ct);

    /* The more modules there are, the fewer steps each may take. */
    json_t *slow = changed(G "targets", "[\"re:(a+)+$\"]");
    for (int64_t n_modules = 1; n_modules <= 100000; n_modules *= 100000) {
        assert_int_equal(nb_ct_parse(&ct, &arena, slow, n_modules, &err), NB_OK);
        assert_int_equal(nb_ct_match(&ct, "aaaaaaaaaaaaaab", &group, &err),
                         n_modules == 1 ? NB_OK : NB_DATA);
        nb_ct_free(&ct);
    }
    json_decref(slow);

    json_t *list = json_array();
    for (int i = 0; i < 101; i++)
        json_array_append_new(list, json_string("re:a"));
    json_t *config = parse_json(minimal);
    json_object_set(config, "ignore", list);
    assert_int_equal(nb_ct_parse(&ct, &arena, config, 10000, &err), NB_UNSUPPORTED);
    assert_non_null(strstr(err.text, "101 regular expressions for 10000 tensors are too many"));
    assert_int_equal(nb_ct_parse(&ct, &arena, config, 9900, &err), NB_OK);
    nb_ct_free(&ct);
    json_decref(config);
    json_decref(list);

    char *longer = malloc(6000);
    assert_non_null(longer);
    memset(longer, 'a', 6000);
    memcpy(longer, "[\"re:", 5);
    memcpy(longer + 5997, "\"]", 3);
    assert_int_equal(parse_ct(&ct, &arena, changed("ignore", longer), &err), NB_UNSUPPORTED);
    free(longer);
    nb_arena_free(&arena);
}

/* ---- writing the configuration ---- */

static nb_weight planned(const char *name, const nb_format *fmt, int64_t n_rows, int64_t n_cols,
                         int64_t group_size, bool symmetric, int act_bits)
{
    return (nb_weight){.name = name,
                       .n_dims = n_rows > 1 ? 2 : 1,
                       .dims = {n_rows > 1 ? n_rows : n_cols, n_cols},
                       .n_rows = n_rows,
                       .n_cols = n_cols,
                       .fmt = fmt,
                       .group_size = group_size,
                       .symmetric = symmetric,
                       .scale_type = NB_BF16,
                       .act = {.bits = act_bits, .per_token = act_bits != 0}};
}

static void expect_config(const nb_weight *plan, int64_t n, const char *expected)
{
    nb_err err;
    json_t *config = NULL;
    if (nb_ct_config(&config, plan, n, &err) != NB_OK)
        fail_msg("%s", err.text);
    json_t *want = parse_json(expected);
    if (!json_equal(config, want)) {
        char *text = json_dumps(config, 0);
        fail_msg("%s", text);
        free(text);
    }
    json_decref(config);
    json_decref(want);
}

#define I4 &nb_format_int4

#define I8 &nb_format_int8

#define B16 &nb_format_bf16

#define A "model.layers.0.mlp.up_proj.weight"

#define B "model.layers.0.mlp.down_proj.weight"

#define EMBED "model.embed_tokens.weight"

#define HEAD                                                                                       \
    "{\"quant_method\":\"compressed-tensors\",\"quantization_status\":\"compressed\","             \
    "\"kv_cache_scheme\":null,\"global_compression_ratio\":null,"

#define SCHEME "\"output_activations\":null,\"input_activations\":"

#define NO_ACT SCHEME "null,"

#define ACT                                                                                        \
    SCHEME "{\"num_bits\":8,\"type\":\"int\",\"symmetric\":true,\"strategy\":\"token\","           \
           "\"group_size\":null,\"block_structure\":null,\"dynamic\":true,\"actorder\":null,"      \
           "\"observer\":null,\"observer_kwargs\":{}},"

#define ARGS(bits, sym, strategy, size)                                                            \
    "\"weights\":{\"num_bits\":" bits ",\"type\":\"int\",\"symmetric\":" sym                       \
    ",\"strategy\":\"" strategy "\",\"group_size\":" size                                          \
    ",\"block_structure\":null,\"dynamic\":false,\"actorder\":null,\"observer\":\"minmax\","       \
    "\"observer_kwargs\":{}}"

static void configurations_written(void **state)
{
    (void)state;
    const nb_weight w4[] = {planned(EMBED, B16, 100, 256, 0, false, 0),
                            planned(A, I4, 64, 256, 128, true, 0),
                            planned(B, I4, 64, 128, 128, true, 0), /* one group: still a group */
                            planned("model.norm.weight", B16, 1, 256, 0, false, 0)};
    expect_config(w4, 4,
                  HEAD "\"format\":\"pack-quantized\",\"ignore\":[\"lm_head\"],\"config_groups\":{"
                       "\"group_0\":{\"targets\":[\"Linear\"]," NO_ACT ARGS("4", "true", "group",
                                                                            "128") "}}}");

    const nb_weight w8a8[] = {planned(A, I8, 64, 256, 256, true, 8),
                              planned(B, I8, 64, 128, 128, true, 8),
                              planned("model.layers.0.router.weight", B16, 8, 256, 0, false, 0),
                              planned("lm_head.weight", B16, 100, 256, 0, false, 0)};
    expect_config(w8a8, 4,
                  HEAD
                  "\"format\":\"int-quantized\",\"ignore\":[\"model.layers.0.router\","
                  "\"lm_head\"],\"config_groups\":{\"group_0\":{\"targets\":[\"Linear\"]," ACT ARGS(
                      "8", "true", "channel", "null") "}}}");

    const nb_weight w4a8[] = {planned(A, I4, 64, 256, 64, false, 8)};
    expect_config(w4a8, 1,
                  HEAD
                  "\"format\":\"pack-quantized\",\"ignore\":[\"lm_head\"],\"config_groups\":{"
                  "\"group_0\":{\"format\":\"pack-quantized\",\"targets\":[\"Linear\"]," ACT ARGS(
                      "4", "false", "group", "64") "}}}");

    const nb_weight mixed[] = {planned(A, I4, 64, 256, 32, true, 0),
                               planned(B, I8, 64, 128, 128, true, 8),
                               planned("lm_head.weight", I4, 100, 256, 32, true, 0)};
    expect_config(mixed, 3,
                  HEAD "\"format\":\"mixed-precision\",\"ignore\":[],\"config_groups\":{"
                       "\"group_0\":{\"format\":\"pack-quantized\",\"targets\":["
                       "\"model.layers.0.mlp.up_proj\",\"lm_head\"]," NO_ACT ARGS(
                           "4", "true", "group",
                           "32") "},\"group_1\":{\"format\":\"int-quantized\",\"targets\":["
                                 "\"model.layers.0.mlp.down_proj\"]," ACT ARGS(
                                     "8", "true", "channel", "null") "}}}");

    /* Two kinds with one layout: older readers need not know of formats of groups. */
    const nb_weight two[] = {planned(A, I4, 64, 256, 32, true, 0),
                             planned(B, I8, 64, 128, 128, false, 0)};
    expect_config(two, 2,
                  HEAD
                  "\"format\":\"pack-quantized\",\"ignore\":[\"lm_head\"],\"config_groups\":{"
                  "\"group_0\":{\"targets\":[\"model.layers.0.mlp.up_proj\"]," NO_ACT ARGS(
                      "4", "true", "group",
                      "32") "},\"group_1\":{\"targets\":[\"model.layers.0.mlp.down_proj\"]," NO_ACT
                      ARGS("8", "false", "channel", "null") "}}}");

    /* An embedding is no Linear, so everything is named. */
    const nb_weight embed[] = {planned(EMBED, I8, 100, 256, 256, true, 0),
                               planned(A, I8, 64, 256, 256, true, 0)};
    expect_config(
        embed, 2,
        HEAD "\"format\":\"pack-quantized\",\"ignore\":[\"lm_head\"],\"config_groups\":{"
             "\"group_0\":{\"targets\":[\"model.embed_tokens\","
             "\"model.layers.0.mlp.up_proj\"]," NO_ACT ARGS("8", "true", "channel", "null") "}}}");
}

static void plans_without_a_configuration(void **state)
{
    (void)state;
    nb_err err;
    json_t *config = json_true();
    const nb_weight plain[] = {planned(A, B16, 64, 256, 0, false, 0)};
    assert_int_equal(nb_ct_config(&config, plain, 1, &err), NB_OK);
    assert_null(config);
    assert_int_equal(nb_ct_config(&config, NULL, 0, &err), NB_OK);
    assert_null(config);

    nb_weight per_group = planned(A, I8, 64, 256, 256, true, 8);
    per_group.act.per_token = false;
    assert_int_equal(nb_ct_config(&config, &per_group, 1, &err), NB_UNSUPPORTED);
    assert_non_null(strstr(err.text, "activations of 8 bits per group"));
    const nb_weight nameless = planned("experts", I8, 64, 256, 256, true, 0);
    assert_int_equal(nb_ct_config(&config, &nameless, 1, &err), NB_UNSUPPORTED);
    assert_null(config);
}

/* Everything that is written is read back as the same groups. */
static void written_is_read_back(void **state)
{
    (void)state;
    static const int64_t sizes[] = {32, 64, 128, 256};
    for (int i = 0; i < 32; i++) {
        const nb_format *fmt = i & 1 ? I4 : I8;
        const bool symmetric = (i & 2) != 0;
        const int act = i & 4 ? 8 : 0;
        const int64_t group_size = sizes[i >> 3];
        const nb_weight plan[] = {planned(A, fmt, 64, 256, group_size, symmetric, act),
                                  planned(B, I4, 64, 512, 32, !symmetric, act)};
        for (int64_t n = 1; n <= 2; n++) {
            nb_err err;
            nb_ct ct;
            nb_arena arena = {0};
            json_t *config;
            assert_int_equal(nb_ct_config(&config, plan, n, &err), NB_OK);
            if (parse_ct(&ct, &arena, config, &err) != NB_OK)
                fail_msg("%s", err.text);
            const nb_ct_group *g;
            assert_int_equal(nb_ct_match(&ct, "model.layers.0.mlp.up_proj", &g, &err), NB_OK);
            assert_non_null(g);
            assert_int_equal(g->bits, fmt->bits);
            assert_int_equal(g->symmetric, symmetric);
            assert_int_equal(g->act.bits, act);
            assert_int_equal(g->layout, fmt == I8 && act ? NB_CT_INT8 : NB_CT_PACKED);
            assert_int_equal(g->strategy, group_size == 256 ? NB_CT_CHANNEL : NB_CT_GROUP);
            assert_int_equal(g->group_size, group_size == 256 ? 0 : group_size);
            nb_ct_free(&ct);
            nb_arena_free(&arena);
        }
    }
}

/* ---- failures ---- */

static int64_t json_countdown;

static void *failing_malloc(size_t n)
{
    return json_countdown > 0 && --json_countdown == 0 ? NULL : malloc(n);
}

static void every_allocation_of_the_configuration_may_fail(void **state)
{
    (void)state;
    const nb_weight plan[] = {planned(A, I4, 64, 256, 32, true, 0),
                              planned(B, I8, 64, 128, 128, true, 8),
                              planned("x.weight", B16, 64, 128, 0, true, 0)};
    json_set_alloc_funcs(failing_malloc, free);
    int64_t n = 1;
    for (;; n++) {
        nb_err err;
        json_t *config;
        json_countdown = n;
        const nb_status s = nb_ct_config(&config, plan, 3, &err);
        const bool failed = json_countdown == 0;
        json_countdown = 0;
        assert_int_equal(s, failed ? NB_MEMORY : NB_OK);
        assert_int_equal(config == NULL, failed);
        json_decref(config);
        if (!failed)
            break;
    }
    json_set_alloc_funcs(malloc, free);
    assert_true(n > 50);
}

static void every_allocation_of_parsing_may_fail(void **state)
{
    (void)state;
    json_t *config = changed("ignore", "[\"a\",\"re:b\"]");
    int64_t n = 1;
    for (;; n++) {
        nb_err err;
        nb_ct ct;
        nb_arena arena = {0};
        nb_alloc_fail_at(n);
        const nb_status s = nb_ct_parse(&ct, &arena, config, 10, &err);
        nb_alloc_fail_at(0);
        nb_ct_free(&ct);
        nb_arena_free(&arena);
        if (s == NB_OK)
            break;
        assert_int_equal(s, NB_MEMORY);
    }
    assert_true(n > 1);
    json_decref(config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_refused_by_name),
        cmocka_unit_test(activations),
        cmocka_unit_test(arguments_and_their_defaults),
        cmocka_unit_test(targets_and_ignore),
        cmocka_unit_test(ignoring_the_class_ignores_every_linear),
        cmocka_unit_test(embeddings),
        cmocka_unit_test(expressions_are_bounded),
        cmocka_unit_test(configurations_written),
        cmocka_unit_test(plans_without_a_configuration),
        cmocka_unit_test(written_is_read_back),
        cmocka_unit_test(every_allocation_of_the_configuration_may_fail),
        cmocka_unit_test(every_allocation_of_parsing_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
