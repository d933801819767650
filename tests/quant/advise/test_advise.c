/* Advice: arithmetic against numbers worked out by hand, sizes against what plans say, every leaf
 * of the tree, and configs that are no configs. */
#include "support/golden.h"

#include "model/shape.h"
#include "quant/advise/advise.h"
#include "quant/plan/plan.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static nb_advise_shape shape_of(const char *config)
{
    json_t *j;
    nb_err err = {0};
    nb_advise_shape s;
    assert_int_equal(nb_json_parse(&j, config, strlen(config), &err), NB_OK);
    if (nb_advise_shape_read(&s, j, &err) != NB_OK)
        fail_msg("%s", err.text);
    json_decref(j);
    return s;
}

static const char LLAMA2_7B[] =
    "{\"model_type\": \"llama\", \"num_hidden_layers\": 32, \"hidden_size\": 4096,"
    " \"intermediate_size\": 11008, \"vocab_size\": 32000, \"num_attention_heads\": 32,"
    " \"max_position_embeddings\": 4096}";
static const char LLAMA3_8B[] =
    "{\"model_type\": \"llama\", \"num_hidden_layers\": 32, \"hidden_size\": 4096,"
    " \"intermediate_size\": 14336, \"vocab_size\": 128256, \"num_attention_heads\": 32,"
    " \"num_key_value_heads\": 8, \"max_position_embeddings\": 8192}";
static const char QWEN25_7B[] =
    "{\"model_type\": \"qwen2\", \"num_hidden_layers\": 28, \"hidden_size\": 3584,"
    " \"intermediate_size\": 18944, \"vocab_size\": 152064, \"num_attention_heads\": 28,"
    " \"num_key_value_heads\": 4, \"tie_word_embeddings\": false}";
static const char MIXTRAL[] =
    "{\"model_type\": \"mixtral\", \"num_hidden_layers\": 32, \"hidden_size\": 4096,"
    " \"intermediate_size\": 14336, \"vocab_size\": 32000, \"num_attention_heads\": 32,"
    " \"num_key_value_heads\": 8, \"num_local_experts\": 8, \"num_experts_per_tok\": 2}";
static const char QWEN3_30B[] =
    "{\"model_type\": \"qwen3_moe\", \"num_hidden_layers\": 48, \"hidden_size\": 2048,"
    " \"intermediate_size\": 6144, \"moe_intermediate_size\": 768, \"vocab_size\": 151936,"
    " \"num_attention_heads\": 32, \"num_key_value_heads\": 4, \"head_dim\": 128,"
    " \"num_experts\": 128, \"num_experts_per_tok\": 8, \"mlp_only_layers\": []}";

/* Parameters as the models' cards and files have them; cells of a cache as the formula says: 2 *
 * layers * heads * dimensions * 2 bytes. With INT8 each head has a 2-byte scale besides. */
static void known_models_have_their_numbers(void **state)
{
    (void)state;
    const struct {
        const char *config;
        int64_t params, active, kv_f16, kv_int8;
        bool runs;
    } known[] = {
        {LLAMA2_7B, 6738415616, 6738415616 - 32000 * 4096, 512 * 1024, 2 * 32 * 32 * 130, true},
        {LLAMA3_8B, 8030261248, 8030261248 - 128256 * 4096, 128 * 1024, 2 * 32 * 8 * 130, true},
        {QWEN25_7B, 7615616512, 7615616512 - 152064 * 3584, 56 * 1024, 2 * 28 * 4 * 130, true},
        {MIXTRAL, 46702792704, 0, 128 * 1024, 2 * 32 * 8 * 130, false},
        {QWEN3_30B, 30532122624, 0, 96 * 1024, 2 * 48 * 4 * 130, false},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        const nb_advise_shape s = shape_of(known[i].config);
        assert_int_equal(nb_advise_params(&s), known[i].params);
        if (known[i].active != 0)
            assert_int_equal(nb_advise_active_params(&s), known[i].active);
        assert_int_equal(nb_advise_kv_bytes(&s, NB_KV_F16), known[i].kv_f16);
        assert_int_equal(nb_advise_kv_bytes(&s, NB_KV_INT8), known[i].kv_int8);
        assert_int_equal(s.runs, known[i].runs);
    }
    /* Of 8 experts 2 are met: 6 * 3 * 32 matrices less, and no embedding. */
    const nb_advise_shape m = shape_of(MIXTRAL);
    assert_int_equal(nb_advise_active_params(&m),
                     46702792704 - INT64_C(6) * 3 * 32 * 4096 * 14336 - 32000 * 4096);
    nb_config c;
    memset(&c, 0, sizeof c);
    c = (nb_config){.arch = nb_arch_by_hf("llama"),
                    .n_layers = 1,
                    .d_model = 8,
                    .n_heads = 2,
                    .n_kv_heads = 1,
                    .head_dim = 4,
                    .d_ff = 16,
                    .vocab_size = 10,
                    .tied_head = true};
    nb_advise_shape s;
    nb_advise_shape_of(&s, &c);
    assert_int_equal(nb_advise_params(&s), 10 * 8 + 8 * 8 + 2 * 4 * 8 + 8 * 8 + 3 * 8 * 16 + 3 * 8);
}

/* Shared experts, layers without experts, and steps between those with. */
static void layers_without_experts_are_dense(void **state)
{
    (void)state;
    const nb_advise_shape s =
        shape_of("{\"model_type\": \"qwen2_moe\", \"num_hidden_layers\": 6, \"hidden_size\": 8,"
                 " \"intermediate_size\": 32, \"moe_intermediate_size\": 4, \"vocab_size\": 10,"
                 " \"shared_expert_intermediate_size\": 16, \"num_attention_heads\": 2,"
                 " \"num_experts\": 5, \"num_experts_per_tok\": 2, \"decoder_sparse_step\": 2,"
                 " \"mlp_only_layers\": [3, 4], \"tie_word_embeddings\": true}");
    assert_int_equal(s.n_moe_layers, 2); /* 1 and 5: 3 is listed, 4 is no second one anyway */
    const int64_t attention = 4 * 8 * 8 + 3 * 8, norms = 16, dense = 3 * 8 * 32;
    const int64_t moe = 5 * 3 * 8 * 4 + 3 * 8 * 16 + (5 + 1) * 8;
    assert_int_equal(nb_advise_params(&s),
                     10 * 8 + 6 * (attention + norms) + 4 * dense + 2 * moe + 8);
}

/* What a plan of the real weights says is what the arithmetic says, scheme by scheme. */
static void sizes_are_those_of_a_plan(void **state)
{
    (void)state;
    nb_shape shape;
    nb_err err = {0};
    nb_store *store;
    nb_config config;
    nb_advise_shape s;
    nb_candidate candidates[NB_N_CANDIDATES];
    const nb_weight linear = {.fmt = &nb_format_bf16};
    assert_int_equal(nb_shape_parse(&shape, "2x128,4/2x32,384,1000", &err), NB_OK);
    assert_int_equal(nb_shape_open(&store, &shape, "m", &linear, 1, &err), NB_OK);
    assert_int_equal(nb_config_read(store, &config, &err), NB_OK);
    nb_advise_shape_of(&s, &config);
    assert_int_equal(nb_advise_candidates(candidates, &s, &err), NB_OK);
    for (int i = 1; i < NB_N_CANDIDATES; i++) {
        nb_scheme scheme;
        nb_plan plan;
        int64_t linears = 0, expected = 0;
        assert_int_equal(nb_scheme_parse(&scheme, candidates[i].scheme, &err), NB_OK);
        const nb_plan_request request = {.to = scheme.container, .scheme = &scheme};
        if (nb_plan_make(&plan, store, &request, &err) != NB_OK)
            fail_msg("%s", err.text);
        assert_true(candidates[i].possible);
        /* Of the store the embedding has 8 bits and vectors 32: only the rest is compared. */
        for (int64_t w = 0; w < plan.n; w++) {
            if (strstr(plan.weights[w].name, "_proj") != NULL)
                linears += plan.weights[w].bytes;
        }
        const double table = scheme.container == NB_STORE_GGUF ? 34.0 / 32 : 2;
        const int64_t vectors = (scheme.container == NB_STORE_GGUF ? 4 : 2) * 5 * 128;
        expected = linears + (int64_t)(2 * 1000 * 128 * table) + vectors;
        const double bytes = candidates[i].bpw * (double)nb_advise_params(&s) / 8;
        assert_int_equal((int64_t)(bytes + 0.5), expected);
        assert_true((double)candidates[i].bytes > bytes);
        nb_plan_free(&plan);
    }
    nb_store_close(store);
    /* Rows of 576 are no multiple of 128, and nothing of that kind is offered. */
    s = shape_of("{\"model_type\": \"llama\", \"num_hidden_layers\": 1, \"hidden_size\": 576,"
                 " \"intermediate_size\": 1536, \"vocab_size\": 100, \"num_attention_heads\": 9}");
    assert_int_equal(nb_advise_candidates(candidates, &s, &err), NB_OK);
    for (int i = 0; i < NB_N_CANDIDATES; i++)
        assert_int_equal(candidates[i].possible, strstr(candidates[i].scheme, "g128") == NULL);
}

/* ---- the tree ---- */

static nb_advice ask(const char *config, nb_purpose purpose, nb_accuracy accuracy, double gb,
                     int64_t ctx, int64_t batch)
{
    const nb_advise_shape s = shape_of(config);
    nb_candidate candidates[NB_N_CANDIDATES];
    nb_err err = {0};
    nb_advice out;
    assert_int_equal(nb_advise_candidates(candidates, &s, &err), NB_OK);
    const nb_advise_request request = {purpose, accuracy, (int64_t)(gb * 1e9), ctx, batch};
    nb_advise_decide(&out, &s, candidates, NULL, &request);
    const nb_kv_format kv = strcmp(out.kv, "int8") == 0 ? NB_KV_INT8 : NB_KV_F16;
    /* What is advised fits, where it is about fitting. */
    for (int i = 0; i < NB_N_CANDIDATES && purpose == NB_FOR_INFERENCE; i++) {
        if (strcmp(candidates[i].scheme, out.scheme) == 0)
            assert_true(candidates[i].possible &&
                        nb_advise_memory(&s, &candidates[i], ctx, batch, kv) <= request.memory);
    }
    return out;
}

static void every_leaf_is_reached(void **state)
{
    (void)state;
    const struct {
        nb_purpose purpose;
        nb_accuracy accuracy;
        double gb;
        int64_t batch;
        nb_leaf leaf;
        const char *scheme;
    } asked[] = {
        {NB_FOR_INFERENCE, NB_ACCURACY_EXACT, 20, 1, NB_LEAF_KEEP, ""},
        {NB_FOR_INFERENCE, NB_ACCURACY_EXACT, 10, 1, NB_LEAF_8_BIT, "W8A16"},
        {NB_FOR_INFERENCE, NB_ACCURACY_HIGH, 20, 1, NB_LEAF_8_BIT, "W8A16"},
        {NB_FOR_INFERENCE, NB_ACCURACY_HIGH, 60, 16, NB_LEAF_8_BIT_SERVER, "W8A8"},
        {NB_FOR_INFERENCE, NB_ACCURACY_HIGH, 7, 1, NB_LEAF_4_BIT, "W4A16:g32,asym"},
        {NB_FOR_INFERENCE, NB_ACCURACY_HIGH, 5.15, 1, NB_LEAF_4_BIT, "W4A16:g128"},
        {NB_FOR_INFERENCE, NB_ACCURACY_BALANCED, 20, 1, NB_LEAF_4_BIT_FIRST, "W4A16:g32,asym"},
        {NB_FOR_INFERENCE, NB_ACCURACY_BALANCED, 7, 1, NB_LEAF_4_BIT, "W4A16:g32,asym"},
        {NB_FOR_INFERENCE, NB_ACCURACY_SMALL, 20, 1, NB_LEAF_3_BIT, "W3A16:g64,asym"},
        {NB_FOR_INFERENCE, NB_ACCURACY_HIGH, 4.8, 1, NB_LEAF_3_BIT, "W3A16:g64,asym"},
        {NB_FOR_INFERENCE, NB_ACCURACY_HIGH, 4.1, 1, NB_LEAF_2_BIT, "W2A16:g32,asym"},
        {NB_FOR_INFERENCE, NB_ACCURACY_HIGH, 3.5, 1, NB_LEAF_NODES, ""},
        {NB_FOR_TRAINING, NB_ACCURACY_HIGH, 160, 1, NB_LEAF_TRAIN_FULL, "W8A16"},
        {NB_FOR_TRAINING, NB_ACCURACY_BALANCED, 160, 1, NB_LEAF_TRAIN_QAT, "W4A16:g32,asym"},
        {NB_FOR_TRAINING, NB_ACCURACY_HIGH, 16, 1, NB_LEAF_TRAIN_QLORA, "NF4"},
        {NB_FOR_TRAINING, NB_ACCURACY_HIGH, 4, 1, NB_LEAF_TRAIN_NODES, ""},
    };
    bool reached[NB_N_LEAVES] = {false};
    for (size_t i = 0; i < sizeof asked / sizeof *asked; i++) {
        const nb_advice a =
            ask(LLAMA2_7B, asked[i].purpose, asked[i].accuracy, asked[i].gb, 4096, asked[i].batch);
        assert_string_equal(nb_leaf_name(a.leaf), nb_leaf_name(asked[i].leaf));
        assert_string_equal(a.scheme, asked[i].scheme);
        assert_true(strlen(a.because) > 20);
        reached[a.leaf] = true;
    }
    for (int i = 0; i < NB_N_LEAVES; i++)
        assert_true(reached[i]);
}

/* Length guidance: below 1K nothing, below 2K with care, above 8K yes; an INT8 cache lets fit what
 * would not. */
static void long_contexts_get_a_smaller_cache(void **state)
{
    (void)state;
    const struct {
        int64_t ctx;
        const char *kv, *word;
    } known[] = {{1023, "f16", "1K"},       {1024, "f16", "care"},
                 {2047, "f16", "care"},     {2048, "f16", "2K to 8K"},
                 {8192, "f16", "2K to 8K"}, {8193, "int8", "more than 8K"}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        const nb_advice a = ask(LLAMA3_8B, NB_FOR_INFERENCE, NB_ACCURACY_HIGH, 64, known[i].ctx, 1);
        assert_string_equal(a.kv, known[i].kv);
        assert_non_null(strstr(a.kv_because, known[i].word));
    }
}

/* Of weights and cache the cache gives way first: beside an F16 cache the weights would lose more,
 * or not fit at all. Where both fit it stays, and where nothing may be lost, too. */
static void weights_and_cache_are_chosen_together(void **state)
{
    (void)state;
    nb_advice a = ask(LLAMA2_7B, NB_FOR_INFERENCE, NB_ACCURACY_HIGH, 6.2, 4096, 1);
    assert_string_equal(a.kv, "int8");
    assert_string_equal(a.scheme, "W4A16:g32,asym");
    assert_non_null(strstr(a.kv_because, "makes room"));
    a = ask(LLAMA2_7B, NB_FOR_INFERENCE, NB_ACCURACY_HIGH, 7, 4096, 1);
    assert_string_equal(a.kv, "f16");
    assert_string_equal(a.scheme, "W4A16:g32,asym");
    a = ask(LLAMA2_7B, NB_FOR_INFERENCE, NB_ACCURACY_HIGH, 8.5, 4096, 1);
    assert_string_equal(a.kv, "int8");
    assert_string_equal(a.scheme, "W8A16");
    a = ask(LLAMA2_7B, NB_FOR_INFERENCE, NB_ACCURACY_EXACT, 15, 4096, 1);
    assert_string_equal(a.kv, "f16");
    assert_string_equal(a.scheme, "W8A16");
}

/* Every candidate has a number; what was not measured lies where its neighbours put it. */
static void losses_are_measured_or_predicted(void **state)
{
    (void)state;
    int n_predicted = 0;
    for (int i = 0; i < NB_N_CANDIDATES; i++) {
        int bits;
        const char *scheme = nb_advise_scheme(i, &bits);
        const nb_advise_loss rtn = nb_advise_loss_of(scheme, "rtn");
        assert_true(isfinite(rtn.kl) && rtn.kl >= 0);
        n_predicted += !rtn.measured;
        static const char *const methods[] = {"gptq", "autoround"};
        for (int m = 0; m < 2; m++)
            assert_true(nb_advise_loss_of(scheme, methods[m]).kl <= rtn.kl);
    }
    assert_true(n_predicted > 0 && n_predicted < NB_N_CANDIDATES);
    const double g64 = nb_advise_loss_of("W4A16:g64", "rtn").kl;
    const double g128 = nb_advise_loss_of("W4A16:g128", "rtn").kl;
    const double q4 = nb_advise_loss_of("Q4_0", "rtn").kl;
    const double q5 = nb_advise_loss_of("Q5_0", "rtn").kl;
    const double q8 = nb_advise_loss_of("Q8_0", "rtn").kl;
    assert_true(g128 > g64 && g128 < nb_advise_loss_of("W3A16:g128", "rtn").kl);
    assert_true(q8 < q5 && q5 < q4);
    assert_true(isnan(nb_advise_loss_of("W4A16:g31", "rtn").kl));
    /* Fewer bits and longer groups lose more, whatever the numbers are. */
    for (int bits = 2; bits <= 8; bits++) {
        const double one = nb_advise_loss_like(bits, false, 32, false).kl;
        assert_true(nb_advise_loss_like(bits, false, 64, false).kl > one);
        assert_true(nb_advise_loss_like(bits, false, 0, false).kl > one);
        assert_true(bits == 2 || nb_advise_loss_like(bits - 1, false, 32, false).kl > one);
        assert_true(bits == 8 || nb_advise_loss_like(bits, false, 32, true).kl < one);
    }
}

static nb_advise_source source_of(const char *config, nb_status status, const char *word)
{
    json_t *j;
    nb_err err = {0};
    nb_advise_source source;
    assert_int_equal(nb_json_parse(&j, config, strlen(config), &err), NB_OK);
    const nb_advise_shape s = shape_of(LLAMA2_7B);
    assert_int_equal(nb_advise_source_read(&source, &s, j, &err), status);
    if (strstr(status == NB_OK ? source.what : err.text, word) == NULL)
        fail_msg("'%s' does not say %s", status == NB_OK ? source.what : err.text, word);
    json_decref(j);
    return source;
}

/* The words of the configs that are about, and the sizes of the schemes that are like them. */
static void what_is_quantized_already_is_seen(void **state)
{
    (void)state;
    nb_candidate like;
    nb_err err = {0};
    const nb_advise_shape s = shape_of(LLAMA2_7B);
    const struct {
        const char *config, *word, *scheme;
        int bits;
    } known[] = {
        {"{\"quantization_config\": {\"quant_method\": \"gptq\", \"bits\": 4,"
         " \"group_size\": 128}}",
         "gptq, 4 bits in groups of 128", "W4A16:g128", 4},
        {"{\"quantization_config\": {\"quant_method\": \"awq\", \"w_bit\": 4,"
         " \"group_size\": 64, \"zero_point\": true}}",
         "awq, 4 bits in groups of 64", "W4A16:g64,asym", 4},
        {"{\"quantization_config\": {\"quant_method\": \"gptq\", \"bits\": 8,"
         " \"group_size\": -1}}",
         "gptq, 8 bits", "W8A16", 8},
        {"{\"quantization_config\": {\"quant_method\": \"bitsandbytes\","
         " \"load_in_4bit\": true}}",
         "bitsandbytes, 4 bits", "NF4", 4},
        {"{\"quantization_config\": {\"quant_method\": \"fp8\"}}", "fp8, 8 bits", "FP8", 8},
        {"{\"quantization_config\": {\"quant_method\": \"compressed-tensors\","
         " \"config_groups\": {\"group_0\": {\"weights\": {\"num_bits\": 3,"
         " \"group_size\": 64, \"symmetric\": false}}}}}",
         "compressed-tensors, 3 bits in groups of 64", "W3A16:g64,asym", 3},
        {"{\"quantization_config\": {\"quant_method\": \"novel\"}}", "4 bits as it seems",
         "W4A16:channel", 4},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        const nb_advise_source source = source_of(known[i].config, NB_OK, known[i].word);
        assert_true(source.quantized);
        assert_int_equal(source.as.bits, known[i].bits);
        assert_int_equal(nb_advise_candidate_like(&like, &s, known[i].scheme, &err), NB_OK);
        assert_int_equal(source.as.bytes, like.bytes);
        assert_true(isfinite(source.as.loss.kl) && !source.as.loss.measured);
    }
    assert_false(source_of("{}", NB_OK, "").quantized);
    assert_false(source_of("{\"quantization_config\": null}", NB_OK, "").quantized);
    source_of("{\"quantization_config\": []}", NB_DATA, "quantization_config");
    source_of("{\"quantization_config\": {\"quant_method\": 4}}", NB_DATA, "quant_method");
    source_of("{\"quantization_config\": {\"quant_method\": \"gptq\", \"bits\": -4}}", NB_DATA,
              "quantization_config: key 'bits'");
    source_of("{\"quantization_config\": {\"quant_method\": \"gptq\", \"bits\": 4,"
              " \"group_size\": 1e99}}",
              NB_DATA, "group_size");
    source_of("{\"quantization_config\": {\"quant_method\": \"compressed-tensors\","
              " \"config_groups\": {\"g\": 4}}}",
              NB_DATA, "config_groups");
}

/* Nothing larger, whatever is asked for; nothing at all where it fits and little may be lost. */
static void what_is_quantized_is_only_made_smaller(void **state)
{
    (void)state;
    nb_err err = {0};
    nb_candidate candidates[NB_N_CANDIDATES];
    const nb_advise_shape s = shape_of(LLAMA2_7B);
    const nb_advise_source q4 = source_of(
        "{\"quantization_config\": {\"quant_method\": \"gptq\", \"bits\": 4, \"group_size\": 64}}",
        NB_OK, "gptq");
    bool kept = false, smaller = false, none = false;
    assert_int_equal(nb_advise_candidates(candidates, &s, &err), NB_OK);
    for (int accuracy = NB_ACCURACY_EXACT; accuracy <= NB_ACCURACY_SMALL; accuracy++) {
        for (int64_t memory = 1000000000; memory < 40000000000; memory += 500000000) {
            nb_advice a;
            const nb_advise_request request = {NB_FOR_INFERENCE, (nb_accuracy)accuracy, memory,
                                               4096, 1};
            nb_advise_decide(&a, &s, candidates, &q4, &request);
            for (int i = 0; i < NB_N_CANDIDATES; i++) {
                if (strcmp(candidates[i].scheme, a.scheme) == 0)
                    assert_true(candidates[i].bytes < q4.as.bytes);
            }
            if (a.fits_source && accuracy <= NB_ACCURACY_HIGH)
                assert_int_equal(a.leaf, NB_LEAF_KEEP);
            kept = kept || a.leaf == NB_LEAF_KEEP;
            smaller = smaller || a.scheme[0] != 0;
            none = none || a.leaf == NB_LEAF_NODES;
        }
    }
    assert_true(kept && smaller && none);
}

/* Two machines in BF16, one in 4 bits: the case of a mixture of experts. */
static void machines_are_counted(void **state)
{
    (void)state;
    nb_advice a = ask(MIXTRAL, NB_FOR_INFERENCE, NB_ACCURACY_HIGH, 48, 4096, 1);
    assert_int_equal(a.nodes_16, 2);
    assert_int_equal(a.nodes_4, 1);
    assert_false(a.fits_16);
    assert_int_equal(a.leaf, NB_LEAF_8_BIT); /* barely */
    a = ask(MIXTRAL, NB_FOR_INFERENCE, NB_ACCURACY_HIGH, 96, 4096, 1);
    assert_int_equal(a.nodes_16, 1);
    assert_true(a.fits_16);
    a = ask(MIXTRAL, NB_FOR_INFERENCE, NB_ACCURACY_HIGH, 0.01, 4096, 1);
    assert_int_equal(a.leaf, NB_LEAF_NODES);
    assert_int_equal(a.nodes_16, 1000000000); /* not even what each needs for itself fits */
}

/* Speeds are the stated shares of the machine's limits, and the cache counts. */
static void speeds_are_shares_of_limits(void **state)
{
    (void)state;
    const nb_advise_shape s = shape_of(LLAMA2_7B);
    nb_candidate candidates[NB_N_CANDIDATES];
    nb_err err = {0};
    assert_int_equal(nb_advise_candidates(candidates, &s, &err), NB_OK);
    const nb_advise_machine m = {.read = 40e9, .int8_ops = 2e12, .fma_ops = 400e9};
    const double all = 2.0 * (6738415616.0 - 32000.0 * 4096), work = all - 2.0 * 32000 * 4096;
    const nb_candidate *bf16 = &candidates[0], *w8 = &candidates[1], *w8a8 = &candidates[2];
    assert_true(fabs(nb_advise_decode(&s, bf16, &m, 0, NB_KV_F16) / (0.7 * 40e9 / all) - 1) <
                1e-12);
    assert_true(fabs(nb_advise_decode(&s, bf16, &m, 4096, NB_KV_F16) /
                         (0.7 * 40e9 / (all + 4096 * 524288.0)) -
                     1) < 1e-12);
    assert_true(fabs(nb_advise_prefill(&s, bf16, &m) / (0.5 * 400e9 / work) - 1) < 1e-12);
    assert_true(fabs(nb_advise_prefill(&s, w8, &m) / (0.5 * 1e12 / work) - 1) < 1e-12);
    assert_true(fabs(nb_advise_prefill(&s, w8a8, &m) / (0.5 * 2e12 / work) - 1) < 1e-12);
    assert_string_equal(nb_loss_name(nb_loss_of(0)), "none");
    assert_string_equal(nb_loss_name(nb_loss_of(0.005)), "small");
    assert_string_equal(nb_loss_name(nb_loss_of(0.05)), "visible");
    assert_string_equal(nb_loss_name(nb_loss_of(0.3)), "large");
    assert_string_equal(nb_loss_name(nb_loss_of(1)), "broken");
}

/* ---- hostile configs ---- */

static void refuses(const char *config, nb_status status, const char *word)
{
    json_t *j;
    nb_err err = {0};
    nb_advise_shape s;
    memset(&s, 0x5a, sizeof s);
    const nb_advise_shape before = s;
    assert_int_equal(nb_json_parse(&j, config, strlen(config), &err), NB_OK);
    assert_int_equal(nb_advise_shape_read(&s, j, &err), status);
    if (strstr(err.text, word) == NULL)
        fail_msg("'%s' does not say %s", err.text, word);
    assert_memory_equal(&s, &before, sizeof s);
    json_decref(j);
}

static void configs_are_refused_by_name(void **state)
{
    (void)state;
    refuses("[]", NB_DATA, "object");
    refuses("{}", NB_DATA, "model_type");
    refuses("{\"model_type\": 3}", NB_DATA, "model_type");
    refuses("{\"model_type\": \"t5\"}", NB_UNSUPPORTED, "t5");
    refuses("{\"model_type\": \"llama\"}", NB_DATA, "num_hidden_layers");
    refuses("{\"model_type\": \"deepseek_v3\", \"kv_lora_rank\": 512}", NB_UNSUPPORTED, "latent");
    refuses("{\"model_type\": \"llama\", \"text_config\": {}}", NB_UNSUPPORTED, "text_config");
    static const char *const keys[] = {"num_hidden_layers",
                                       "hidden_size",
                                       "intermediate_size",
                                       "vocab_size",
                                       "num_attention_heads",
                                       "num_key_value_heads",
                                       "head_dim",
                                       "max_position_embeddings"};
    static const char *const bad[] = {"0", "-1", "1.5", "\"8\"", "9223372036854775807", "[]"};
    for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) {
        for (size_t b = 0; b < sizeof bad / sizeof *bad; b++) {
            char config[700];
            int n = snprintf(config, sizeof config, "{\"model_type\": \"llama\"");
            for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
                n += snprintf(config + n, sizeof config - (size_t)n, ", \"%s\": %s", keys[i],
                              i == k ? bad[b] : "8");
            snprintf(config + n, sizeof config - (size_t)n, "}");
            refuses(config, NB_DATA, keys[k]);
        }
    }
    refuses("{\"model_type\": \"mixtral\", \"num_hidden_layers\": 1, \"hidden_size\": 8,"
            " \"intermediate_size\": 8, \"vocab_size\": 8, \"num_attention_heads\": 1,"
            " \"num_local_experts\": 8, \"num_experts_per_tok\": 9}",
            NB_DATA, "num_experts_per_tok");
    refuses("{\"model_type\": \"llama\", \"num_hidden_layers\": 1, \"hidden_size\": 10,"
            " \"intermediate_size\": 8, \"vocab_size\": 8, \"num_attention_heads\": 3}",
            NB_DATA, "no multiple");
    refuses("{\"model_type\": \"llama\", \"num_hidden_layers\": 1, \"hidden_size\": 12,"
            " \"intermediate_size\": 8, \"vocab_size\": 8, \"num_attention_heads\": 3,"
            " \"num_key_value_heads\": 2}",
            NB_DATA, "share");
}

/* The largest config that is let in overflows nothing. */
static void the_largest_config_stays_a_number(void **state)
{
    (void)state;
    const nb_advise_shape s = shape_of(
        "{\"model_type\": \"qwen3_moe\", \"num_hidden_layers\": 4096, \"hidden_size\": 1048576,"
        " \"intermediate_size\": 4194304, \"moe_intermediate_size\": 4194304,"
        " \"vocab_size\": 16777216, \"num_attention_heads\": 4096, \"head_dim\": 1048576,"
        " \"num_experts\": 16384, \"num_experts_per_tok\": 16384}");
    nb_candidate candidates[NB_N_CANDIDATES];
    nb_err err = {0};
    nb_advice a;
    assert_int_equal(nb_advise_params(&s), INT64_MAX);
    assert_int_equal(nb_advise_candidates(candidates, &s, &err), NB_OK);
    assert_int_equal(candidates[0].bytes, INT64_MAX);
    assert_true(nb_advise_kv_bytes(&s, NB_KV_F32) > 0);
    const nb_advise_request request = {NB_FOR_INFERENCE, NB_ACCURACY_HIGH, INT64_MAX - 1, 1 << 24,
                                       1 << 16};
    nb_advise_decide(&a, &s, candidates, NULL, &request);
    assert_int_equal(a.leaf, NB_LEAF_NODES);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_models_have_their_numbers),
        cmocka_unit_test(layers_without_experts_are_dense),
        cmocka_unit_test(sizes_are_those_of_a_plan),
        cmocka_unit_test(every_leaf_is_reached),
        cmocka_unit_test(long_contexts_get_a_smaller_cache),
        cmocka_unit_test(weights_and_cache_are_chosen_together),
        cmocka_unit_test(losses_are_measured_or_predicted),
        cmocka_unit_test(what_is_quantized_already_is_seen),
        cmocka_unit_test(what_is_quantized_is_only_made_smaller),
        cmocka_unit_test(machines_are_counted),
        cmocka_unit_test(speeds_are_shares_of_limits),
        cmocka_unit_test(configs_are_refused_by_name),
        cmocka_unit_test(the_largest_config_stays_a_number),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
