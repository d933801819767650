/* Presets: for every number of layers each weight gets what llama.cpp gives it, said here once more
 * and in another way, and the rules are a recipe like any other. */
#include "quant/recipe/preset.h"

#include "support/golden.h"

#include <stdio.h>
#include <string.h>

static nb_method rtn(void)
{
    nb_method m;
    nb_err err;
    assert_int_equal(nb_method_parse(&m, "rtn", &err), NB_OK);
    return m;
}

/* ---- what llama.cpp does, weight by weight ---- */

static bool use_more_bits(int64_t i, int64_t n)
{
    return i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2;
}

static const char *v_type(const char *preset, int64_t i, const nb_config *c)
{
    const char *type;
    if (strcmp(preset, "Q2_K") == 0)
        type = c->n_heads / c->n_kv_heads >= 4 ? "Q4_K" : "Q3_K";
    else if (strcmp(preset, "Q3_K_S") == 0)
        type = "Q3_K";
    else if (strcmp(preset, "Q3_K_M") == 0)
        type = i < 2 ? "Q5_K" : "Q4_K";
    else if (strcmp(preset, "Q3_K_L") == 0 || strcmp(preset, "Q5_K_S") == 0)
        type = "Q5_K";
    else if (strcmp(preset, "Q4_K_S") == 0)
        type = i < 4 ? "Q5_K" : "Q4_K";
    else if (strcmp(preset, "Q6_K") == 0)
        type = "Q6_K";
    else if (use_more_bits(i, c->n_layers))
        type = "Q6_K";
    else
        type = strcmp(preset, "Q5_K_M") == 0 ? "Q5_K" : "Q4_K";
    const bool few = strcmp(type, "Q3_K") == 0 || strcmp(type, "Q4_K") == 0;
    return c->n_layers == 80 && few ? "Q5_K" : type;
}

static const char *down_type(const char *preset, int64_t i, int64_t n)
{
    if (strcmp(preset, "Q2_K") == 0 || strcmp(preset, "Q3_K_S") == 0)
        return "Q3_K";
    if (strcmp(preset, "Q3_K_M") == 0)
        return i < n / 16 ? "Q5_K" : "Q4_K";
    if (strcmp(preset, "Q3_K_L") == 0 || strcmp(preset, "Q5_K_S") == 0)
        return "Q5_K";
    if (strcmp(preset, "Q4_K_S") == 0)
        return i < n / 8 ? "Q5_K" : "Q4_K";
    if (strcmp(preset, "Q6_K") == 0 || use_more_bits(i, n))
        return "Q6_K";
    return strcmp(preset, "Q5_K_M") == 0 ? "Q5_K" : "Q4_K";
}

static const char *o_type(const char *preset, const char *rest)
{
    return strcmp(preset, "Q2_K") == 0     ? "Q3_K"
           : strcmp(preset, "Q3_K_M") == 0 ? "Q4_K"
           : strcmp(preset, "Q3_K_L") == 0 ? "Q5_K"
                                           : rest;
}

/* ---- what the recipe says ---- */

static void expect(const nb_recipe *r, const nb_preset *p, const nb_config *c, const char *name,
                   const char *type)
{
    char whole[128];
    snprintf(whole, sizeof whole, "%s.weight", name);
    const nb_weight w = {.name = whole, .n_dims = 2};
    const nb_rule *rule = nb_recipe_find(r, &w);
    if (rule == NULL || rule->scheme == NULL)
        fail_msg("%s: no rule for %s", p->name, name);
    else if (strcmp(rule->scheme->name, type) != 0)
        fail_msg("%s of %lld layers: %s becomes %s, not %s", p->name, (long long)c->n_layers, name,
                 rule->scheme->name, type);
}

static void every_weight_of_every_depth(void **state)
{
    (void)state;
    static const char *const others[] = {"self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj",
                                         "mlp.up_proj"};
    static const int64_t deeper[] = {48, 61, 79, 80, 81, 126};
    const nb_method method = rtn();
    int n_presets = 0;
    for (const nb_preset *p = nb_presets; p->name != NULL; p++, n_presets++) {
        for (int64_t k = 1; k <= 46; k++) {
            const int64_t n = k <= 40 ? k : deeper[k - 41];
            const nb_config c = {.n_layers = n,
                                 .n_heads = 8,
                                 .n_kv_heads = n % 3 == 0   ? 1
                                               : n % 3 == 1 ? 2
                                                            : 4,
                                 .tied_head = n % 2 == 0};
            nb_recipe r = {0};
            nb_err err = {0};
            if (nb_preset_recipe(p, &c, &method, &r, &err) != NB_OK)
                fail_msg("%s", err.text);
            for (int64_t i = 0; i < n; i++) {
                char name[96];
                snprintf(name, sizeof name, "model.layers.%lld.self_attn.v_proj", (long long)i);
                expect(&r, p, &c, name, v_type(p->name, i, &c));
                snprintf(name, sizeof name, "model.layers.%lld.mlp.down_proj", (long long)i);
                expect(&r, p, &c, name, down_type(p->name, i, n));
                snprintf(name, sizeof name, "model.layers.%lld.self_attn.o_proj", (long long)i);
                expect(&r, p, &c, name, o_type(p->name, p->main));
                for (size_t k = 0; k < sizeof others / sizeof *others; k++) {
                    snprintf(name, sizeof name, "model.layers.%lld.%s", (long long)i, others[k]);
                    expect(&r, p, &c, name, p->main);
                }
            }
            expect(&r, p, &c, "model.embed_tokens", c.tied_head ? "Q6_K" : p->main);
            if (!c.tied_head)
                expect(&r, p, &c, "lm_head", "Q6_K");
            nb_recipe_free(&r);
        }
    }
    assert_int_equal(n_presets, 9);
}

/* The text of a recipe, as --print-recipe gives it, is read as the same rules. */
static void rules_are_text(void **state)
{
    (void)state;
    const nb_method method = rtn();
    const nb_config c = {.n_layers = 30, .n_heads = 9, .n_kv_heads = 3, .tied_head = true};
    for (const nb_preset *p = nb_presets; p->name != NULL; p++) {
        nb_recipe r = {0}, again = {0};
        nb_buf text = {0}, twice = {0};
        nb_err err = {0};
        assert_int_equal(nb_preset_recipe(p, &c, &method, &r, &err), NB_OK);
        assert_int_equal(nb_recipe_print(&r, &text, &err), NB_OK);
        if (nb_recipe_parse(&again, (const char *)text.data, text.len, "r", &method, &err) != NB_OK)
            fail_msg("%s: %s", p->name, err.text);
        assert_int_equal(nb_recipe_print(&again, &twice, &err), NB_OK);
        assert_int_equal(text.len, twice.len);
        assert_memory_equal(text.data, twice.data, text.len);
        nb_recipe_free(&r);
        nb_recipe_free(&again);
        nb_buf_free(&text);
        nb_buf_free(&twice);
    }
}

static void one_recipe_word_by_word(void **state)
{
    (void)state;
    static const char want[] =
        "* = Q4_K method rtn\n"
        "model.layers.{0,1,4,7,10,13,14,15}.{self_attn.v_proj,mlp.down_proj} = Q6_K method rtn "
        "because \"the first and last eighth of the layers, and every third between\"\n"
        "model.embed_tokens = Q6_K method rtn because \"is the output as well\"\n";
    const nb_method method = rtn();
    const nb_config c = {.n_layers = 16, .n_heads = 8, .n_kv_heads = 2, .tied_head = true};
    nb_recipe r = {0};
    nb_buf text = {0};
    nb_err err = {0};
    assert_int_equal(nb_preset_recipe(nb_preset_by_name("q4_k_m"), &c, &method, &r, &err), NB_OK);
    assert_int_equal(nb_recipe_print(&r, &text, &err), NB_OK);
    assert_int_equal(nb_buf_u8(&text, 0, &err), NB_OK);
    assert_string_equal((const char *)text.data, want);
    nb_recipe_free(&r);
    nb_buf_free(&text);
}

static void names(void **state)
{
    (void)state;
    nb_err err = {0};
    assert_ptr_equal(nb_preset_by_name("q2_k"), nb_preset_by_name("Q2_K"));
    assert_null(nb_preset_by_name("Q4_K")); /* a format */
    assert_null(nb_preset_by_name("Q4_K_X"));
    assert_null(nb_preset_by_name(""));
    const nb_preset *p = nb_preset_by_name("Q5_K_M");
    assert_int_equal(nb_preset_check_container(p, NB_STORE_GGUF, &err), NB_OK);
    assert_int_equal(nb_preset_check_container(p, NB_STORE_HF, &err), NB_USAGE);
    assert_non_null(strstr(err.text, "Q5_K_M"));
    assert_non_null(strstr(err.text, "W8A16:g32 comes nearest"));
}

/* More layers than a pattern has room for, and no memory: refused, and nothing is left. */
static void what_does_not_fit(void **state)
{
    (void)state;
    const nb_method method = rtn();
    const nb_config endless = {.n_layers = 4000, .n_heads = 8, .n_kv_heads = 2};
    const nb_config c = {.n_layers = 32, .n_heads = 8, .n_kv_heads = 2};
    const nb_preset *p = nb_preset_by_name("Q4_K_M");
    nb_recipe r = {0};
    nb_err err = {0};
    const int64_t live = nb_alloc_live();
    assert_int_equal(nb_preset_recipe(p, &endless, &method, &r, &err), NB_USAGE);
    assert_int_equal(nb_alloc_live(), live);
    int n_failed = 0;
    for (int64_t at = 1;; at++) {
        nb_alloc_fail_at(at);
        const nb_status s = nb_preset_recipe(p, &c, &method, &r, &err);
        nb_alloc_fail_at(0);
        if (s == NB_OK)
            break;
        assert_int_equal(s, NB_MEMORY);
        assert_int_equal(nb_alloc_live(), live);
        n_failed++;
    }
    nb_recipe_free(&r);
    assert_true(n_failed >= 2);
    assert_int_equal(nb_alloc_live(), live);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_weight_of_every_depth), cmocka_unit_test(rules_are_text),
        cmocka_unit_test(one_recipe_word_by_word),     cmocka_unit_test(names),
        cmocka_unit_test(what_does_not_fit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
