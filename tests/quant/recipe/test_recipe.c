/* Recipes: what is printed means the same again, the last rule wins, and what is wrong is named by
 * file and line. */
#include "quant/plan/fallback.h"

#include "support/golden.h"
#include "support/scratch.h"
#include "support/tiny_model.h"

#include <stdio.h>
#include <string.h>

static nb_method rtn(void)
{
    nb_method m;
    nb_err err;
    assert_int_equal(nb_method_parse(&m, "rtn", &err), NB_OK);
    return m;
}

static nb_status parse(nb_recipe *r, const char *text, nb_err *err)
{
    const nb_method m = rtn();
    *err = (nb_err){0};
    return nb_recipe_parse(r, text, strlen(text), "r.txt", &m, err);
}

static void parse_well(nb_recipe *r, const char *text)
{
    nb_err err;
    if (parse(r, text, &err) != NB_OK)
        fail_msg("%s", err.text);
}

static void print(const nb_recipe *r, nb_buf *out)
{
    nb_err err;
    out->len = 0;
    assert_int_equal(nb_recipe_print(r, out, &err), NB_OK);
    assert_int_equal(nb_buf_u8(out, 0, &err), NB_OK);
}

/* ---- text ---- */

/* However it was written, it is printed in one way, and that is read as the same. */
static void one_canonical_text(void **state)
{
    (void)state;
    static const struct {
        const char *text, *canonical;
    } cases[] = {
        {"* = W4A16:g32", "* = W4A16:g32 method rtn\n"},
        {"\xEF\xBB\xBF* = W4A16:g32\n", "* = W4A16:g32 method rtn\n"},
        {"*=w4a16:ASYM,g32\n", "* = W4A16:g32,asym method rtn\n"},
        {"# first\n\n \t*\t=  W4A16 # end\r\n", "* = W4A16 method rtn\n"},
        {"*.q_proj = keep", "*.q_proj = keep\n"},
        {"* = keep because \"a # b\"", "* = keep because \"a # b\"\n"},
        {"* = W8A8 method gptq:shrink=0.3,act-order because \"\"",
         "* = W8A8 method gptq:act-order,shrink=0.3 because \"\"\n"},
        {"a = W4A16_ASYM because \"he said \\\"8\\\", and \\\\\"\nlm_head = Q8_0 method hqq",
         "a = W4A16:asym method rtn because \"he said \\\"8\\\", and \\\\\"\n"
         "lm_head = Q8_0 method hqq\n"},
    };
    nb_buf text = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        nb_recipe r, again;
        parse_well(&r, cases[i].text);
        print(&r, &text);
        assert_string_equal((const char *)text.data, cases[i].canonical);
        parse_well(&again, cases[i].canonical);
        assert_int_equal(again.n, r.n);
        for (int64_t k = 0; k < r.n; k++) {
            assert_string_equal(again.rule[k].pattern, r.rule[k].pattern);
            assert_int_equal(again.rule[k].scheme == NULL, r.rule[k].scheme == NULL);
            assert_int_equal(again.rule[k].because == NULL, r.rule[k].because == NULL);
        }
        print(&again, &text);
        assert_string_equal((const char *)text.data, cases[i].canonical);
        nb_recipe_free(&r);
        nb_recipe_free(&again);
    }
    nb_buf_free(&text);
}

static void wrong_lines_are_named(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"", "r.txt: a recipe without a rule"},
        {"# nothing\n\n", "r.txt: a recipe without a rule"},
        {"\n\n* = W5A16\n", "r.txt:3: unknown scheme 'W5A16'"},
        {"* = Q4_K_M\n", "r.txt:1: 'Q4_K_M' is no format, but a mixture of several"},
        {"* = IQ4_XS\n", "r.txt:1: scheme IQ4_XS takes iq4_xs, for which nibble has no encoder"},
        {"* = W4A16\n* W8A16\n", "r.txt:2: after the pattern '*' comes '= SCHEME'"},
        {"* =\n", "r.txt:1: the line ends where a scheme should be"},
        {"= W4A16", "r.txt:1: a pattern of no characters"},
        {"* = W4A16 method", "r.txt:1: the line ends where a method should be"},
        {"* = W4A16 method magic", "r.txt:1: unknown method 'magic'"},
        {"* = W4A16 method gptq:magic", "r.txt:1: "},
        {"* = keep method rtn", "r.txt:1: what is kept has no method"},
        {"* = W4A16 method rtn method rtn", "r.txt:1: 'method' is one too many"},
        {"* = W4A16 W8A16", "r.txt:1: 'W8A16' is one too many"},
        {"* = W4A16 because", "r.txt:1: after 'because' comes a reason in double quotes"},
        {"* = W4A16 because x", "r.txt:1: after 'because' comes a reason in double quotes"},
        {"* = W4A16 because \"x", "r.txt:1: a reason without its second quote"},
        {"* = W4A16 because \"x\\", "r.txt:1: a reason without its second quote"},
        {"* = W4A16 because \"x\" method rtn", "r.txt:1: 'method' is one too many"},
        {"* = W4A16 because \"\x01\"", "r.txt:1: a reason is one line of text"},
        {"a{b = W4A16", "r.txt:1: pattern 'a{b': a '{' without the other half"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        nb_recipe r;
        nb_err err;
        if (parse(&r, cases[i].text, &err) == NB_OK)
            fail_msg("taken: %s", cases[i].text);
        if (strncmp(err.text, cases[i].message, strlen(cases[i].message)) != 0)
            fail_msg("'%s': %s", cases[i].text, err.text);
        assert_int_equal(r.n, 0);
    }
    /* A zero byte, and a line that does not end. */
    static char endless[10000];
    const nb_method m = rtn();
    nb_recipe r;
    nb_err err = {0};
    assert_int_equal(nb_recipe_parse(&r, "* = keep\0", 9, "z", &m, &err), NB_USAGE);
    assert_non_null(strstr(err.text, "z:1: a zero byte"));
    memset(endless, 'x', sizeof endless);
    assert_int_equal(nb_recipe_parse(&r, endless, sizeof endless, "z", &m, &err), NB_USAGE);
    assert_non_null(strstr(err.text, "z:1: a line of 10000 bytes"));
}

/* Any bytes at all: refused or read, and then printed and read again. */
static void any_bytes(void **state)
{
    (void)state;
    static const char *const parts[] = {"*",    " = ",       "W4A16", "keep", " method ", "rtn",
                                        "\n",   " because ", "\"",    "\\",   "#",        "{",
                                        "a,b}", "Q4_0",      ":g32",  "\xff", "=",        " "};
    const uint64_t n_parts = sizeof parts / sizeof *parts;
    int64_t n_read = 0;
    const int64_t live = nb_alloc_live();
    uint64_t x = 1;
    for (int i = 0; i < 30000; i++) {
        char text[256] = "";
        nb_recipe r, again;
        nb_err err;
        if (i % 2 == 0)
            strcat(text, "* = W4A16");
        for (int k = 0; k < 1 + i / 2 % 6; k++) {
            x = x * 6364136223846793005u + 1442695040888963407u;
            strcat(text, parts[(x >> 33) % n_parts]);
        }
        if (parse(&r, text, &err) != NB_OK)
            continue;
        n_read++;
        nb_buf out = {0}, second = {0};
        print(&r, &out);
        parse_well(&again, (const char *)out.data);
        print(&again, &second);
        assert_string_equal((const char *)out.data, (const char *)second.data);
        nb_buf_free(&out);
        nb_buf_free(&second);
        nb_recipe_free(&r);
        nb_recipe_free(&again);
    }
    assert_int_equal(nb_alloc_live(), live);
    assert_true(n_read > 300);
}

/* ---- plans ---- */

static nb_store *open_tiny(const tiny_model *how)
{
    static int n_opened;
    nb_store *store;
    nb_err err;
    char name[32];
    snprintf(name, sizeof name, "tiny%d", n_opened++);
    assert_int_equal(nb_store_open(&store, tiny_model_write(name, how), &err), NB_OK);
    return store;
}

static nb_status plan_of(nb_plan *plan, nb_store *store, const nb_recipe *r, nb_store_kind to,
                         nb_err *err)
{
    const nb_plan_request request = {
        .to = to, .recipe = r, .scheme = nb_recipe_main(r)->scheme, .layout = NB_LAYOUT_CT};
    *err = (nb_err){0};
    NB_TRY(nb_recipe_check_container(r, to, err));
    return nb_plan_make(plan, store, &request, err);
}

static int64_t index_of(const nb_plan *plan, const char *name)
{
    for (int64_t i = 0; i < plan->n; i++) {
        if (strcmp(plan->weights[i].name, name) == 0)
            return i;
    }
    fail_msg("no %s", name);
    return -1;
}

/* The last matching rule decides about format, groups and method; what none matches stays. */
static void the_last_rule_wins(void **state)
{
    (void)state;
    nb_store *store = open_tiny(&(tiny_model){.tied = true});
    nb_recipe r;
    nb_plan plan;
    nb_err err;
    parse_well(&r, "model.layers.0.* = W4A16:g32\n"
                   "*.{q,k}_proj = W8A16 method hqq\n"
                   "*.0.*.k_proj = keep\n"
                   "model.layers.1.mlp.up_proj = W4A16:asym\n");
    if (plan_of(&plan, store, &r, NB_STORE_HF, &err) != NB_OK)
        fail_msg("%s", err.text);
    static const struct {
        const char *name;
        const nb_format *fmt;
        int64_t group;
        bool symmetric;
        const char *method;
    } wanted[] = {
        {"model.layers.0.self_attn.q_proj.weight", &nb_format_int8, 64, true, "hqq"},
        {"model.layers.0.self_attn.k_proj.weight", NULL, 0, true, NULL},
        {"model.layers.0.self_attn.v_proj.weight", &nb_format_int4, 32, true, "rtn"},
        {"model.layers.0.mlp.down_proj.weight", &nb_format_int4, 32, true, "rtn"},
        {"model.layers.1.self_attn.k_proj.weight", &nb_format_int8, 64, true, "hqq"},
        {"model.layers.1.self_attn.v_proj.weight", NULL, 0, true, NULL},
        {"model.layers.1.mlp.up_proj.weight", &nb_format_int4, 64, false, "rtn"},
        {"model.embed_tokens.weight", NULL, 0, true, NULL},
        {"model.norm.weight", NULL, 0, true, NULL},
    };
    const nb_method otherwise = {0};
    for (size_t k = 0; k < sizeof wanted / sizeof *wanted; k++) {
        const int64_t i = index_of(&plan, wanted[k].name);
        const nb_weight *w = &plan.weights[i];
        const nb_method *m = nb_plan_method(&plan, i, &otherwise);
        if (wanted[k].fmt == NULL) {
            assert_int_equal(plan.how[i], NB_HOW_COPY);
            assert_ptr_equal(m, &otherwise);
            continue;
        }
        assert_int_equal(plan.how[i], NB_HOW_QUANTIZE);
        assert_ptr_equal(w->fmt, wanted[k].fmt);
        assert_int_equal(w->group_size, wanted[k].group);
        assert_int_equal(w->symmetric, wanted[k].symmetric);
        assert_string_equal(m->quantizer->name, wanted[k].method);
    }
    nb_plan_free(&plan);
    nb_recipe_free(&r);
    nb_store_close(store);
}

/* Every weight is found where it stands, and nothing else is found. */
static void weights_are_found_by_name(void **state)
{
    (void)state;
    static const char *const none[] = {"", "model", "model.layers.0.mlp.up_proj.weigh",
                                       "model.layers.0.mlp.up_proj.weights", "~"};
    nb_store *store = open_tiny(&(tiny_model){.n_layers = 11});
    nb_recipe r;
    nb_plan plan;
    nb_err err;
    parse_well(&r, "* = W4A16:g32");
    assert_int_equal(plan_of(&plan, store, &r, NB_STORE_HF, &err), NB_OK);
    for (int64_t i = 0; i < plan.n; i++)
        assert_int_equal(nb_plan_find(&plan, plan.weights[i].name), i);
    for (size_t i = 0; i < sizeof none / sizeof *none; i++)
        assert_int_equal(nb_plan_find(&plan, none[i]), -1);
    assert_int_equal(nb_plan_linear(&plan, 10, NB_LINEAR_DOWN),
                     index_of(&plan, "model.layers.10.mlp.down_proj.weight"));
    assert_int_equal(nb_plan_linear(&plan, 1, NB_LINEAR_Q),
                     index_of(&plan, "model.layers.1.self_attn.q_proj.weight"));
    assert_int_equal(nb_plan_linear(&plan, 11, NB_LINEAR_Q), -1);
    nb_plan_free(&plan);
    nb_recipe_free(&r);
    nb_store_close(store);
}

/* In a GGUF embedding and head follow rules that name them, and no others. */
static void ends_are_named(void **state)
{
    (void)state;
    nb_store *store = open_tiny(&(tiny_model){0});
    static const struct {
        const char *text;
        const nb_format *embed, *head;
    } cases[] = {
        {"* = Q4_0", &nb_format_q8_0, &nb_format_q8_0},
        {"* = Q4_0\nmodel.embed_tokens = Q4_1", &nb_format_q4_1, &nb_format_q8_0},
        {"* = Q4_0\nlm_head = keep", &nb_format_q8_0, &nb_format_f32},
        {"* = IQ4_NL\nlm_head = Q5_1\nmodel.embed_tokens = keep", &nb_format_f32, &nb_format_q5_1},
    };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        nb_recipe r;
        nb_plan plan;
        nb_err err;
        parse_well(&r, cases[k].text);
        if (plan_of(&plan, store, &r, NB_STORE_GGUF, &err) != NB_OK)
            fail_msg("%s: %s", cases[k].text, err.text);
        assert_ptr_equal(plan.weights[index_of(&plan, "model.embed_tokens.weight")].fmt,
                         cases[k].embed);
        assert_ptr_equal(plan.weights[index_of(&plan, "lm_head.weight")].fmt, cases[k].head);
        nb_plan_free(&plan);
        nb_recipe_free(&r);
    }
    nb_store_close(store);
}

static void plans_refuse(void **state)
{
    (void)state;
    nb_store *store = open_tiny(&(tiny_model){.d_model = 96, .d_ff = 128});
    static const struct {
        const char *text;
        nb_store_kind to;
        const char *message;
    } cases[] = {
        {"* = W4A16\n*.x_proj = W8A16", NB_STORE_HF, "r.txt:2: '*.x_proj' matches no linear"},
        {"* = W4A16\n*.input_layernorm = keep", NB_STORE_HF, "r.txt:2: '*.input_layernorm'"},
        {"* = W4A16\n*_head = keep", NB_STORE_HF, "r.txt:2: '*_head' matches no linear"},
        {"* = W4A16\n\n*.q_proj = Q4_0", NB_STORE_HF,
         "r.txt:3: scheme Q4_0 is for gguf, and W4A16 before it for hf"},
        {"* = Q4_0", NB_STORE_HF, "r.txt:1: scheme Q4_0: a Hugging Face folder cannot hold it"},
        {"* = W8A16\n*.q_proj = W4A16:g64", NB_STORE_HF, "r.txt:2: "},
        {"* = W8A16\nlm_head = W8A16", NB_STORE_HF, "r.txt:2: lm_head stays floats in a folder"},
    };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        nb_recipe r;
        nb_plan plan;
        nb_err err;
        parse_well(&r, cases[k].text);
        if (plan_of(&plan, store, &r, cases[k].to, &err) == NB_OK)
            fail_msg("taken: %s", cases[k].text);
        if (strncmp(err.text, cases[k].message, strlen(cases[k].message)) != 0)
            fail_msg("'%s': %s", cases[k].text, err.text);
        nb_recipe_free(&r);
    }
    nb_recipe all;
    nb_err err;
    parse_well(&all, "* = keep");
    assert_null(nb_recipe_main(&all));
    assert_int_equal(nb_recipe_check_container(&all, NB_STORE_HF, &err), NB_USAGE);
    nb_recipe_free(&all);
    nb_store_close(store);
}

/* Blocks of 256 columns do not fit rows of 64: smaller ones do, and the plan says so. */
static void smaller_blocks(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        const nb_format *wanted, *became;
        const char *note;
    } cases[] = {
        {"* = Q2_K", &nb_format_q2_k, &nb_format_iq4_nl, "become iq4_nl instead of q2_k"},
        {"* = Q3_K", &nb_format_q3_k, &nb_format_iq4_nl, "become iq4_nl instead of q3_k"},
        {"* = Q4_K", &nb_format_q4_k, &nb_format_q5_0, "12 tensors become q5_0 instead of q4_k"},
        {"* = Q5_K", &nb_format_q5_k, &nb_format_q5_1, "become q5_1 instead of q5_k"},
        {"* = Q6_K", &nb_format_q6_k, &nb_format_q8_0, "become q8_0 instead of q6_k"},
    };
    nb_store *store = open_tiny(&(tiny_model){.d_ff = 256});
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        nb_recipe r;
        nb_plan plan;
        nb_err err;
        bool told = false;
        parse_well(&r, cases[k].text);
        assert_int_equal(plan_of(&plan, store, &r, NB_STORE_GGUF, &err), NB_OK);
        const int64_t down = index_of(&plan, "model.layers.0.mlp.down_proj.weight");
        const int64_t up = index_of(&plan, "model.layers.0.mlp.up_proj.weight");
        assert_ptr_equal(plan.weights[down].fmt, cases[k].wanted);
        assert_null(plan.wanted[down]);
        assert_ptr_equal(plan.weights[up].fmt, cases[k].became);
        assert_ptr_equal(plan.wanted[up], cases[k].wanted);
        for (int i = 0; i < plan.n_notes; i++)
            told = told || strstr(plan.notes[i], cases[k].note) != NULL;
        assert_true(told);
        int64_t at = 0;
        nb_fallback f;
        assert_true(nb_fallback_next(&plan, &at, &f));
        assert_int_equal(f.n, 12);
        assert_ptr_equal(f.wanted, cases[k].wanted);
        assert_false(nb_fallback_next(&plan, &at, &f));
        nb_plan_free(&plan);
        nb_recipe_free(&r);
    }
    nb_store_close(store);
}

/* Rows of 48 columns are blocks of no kind: they stay floats, and none is said to have another
 * format instead. */
static void no_blocks_at_all(void **state)
{
    (void)state;
    nb_store *store = open_tiny(&(tiny_model){.d_model = 48});
    nb_recipe r;
    nb_plan plan;
    nb_err err;
    int64_t at = 0;
    nb_fallback f;
    parse_well(&r, "* = Q4_K");
    assert_int_equal(plan_of(&plan, store, &r, NB_STORE_GGUF, &err), NB_OK);
    const int64_t up = index_of(&plan, "model.layers.0.mlp.up_proj.weight");
    assert_ptr_equal(plan.weights[up].fmt, &nb_format_f32);
    assert_true(nb_fallback_next(&plan, &at, &f)); /* down has rows of 128 */
    assert_int_equal(f.n, 2);
    assert_false(nb_fallback_next(&plan, &at, &f));
    nb_plan_free(&plan);
    nb_recipe_free(&r);
    nb_store_close(store);
}

/* Where rows are blocks of 256, embedding and head have six bits under every block format but
 * q8_0. */
static void ends_of_six_bits(void **state)
{
    (void)state;
    nb_store *store = open_tiny(&(tiny_model){.d_model = 256, .d_ff = 256});
    static const char *const texts[] = {"* = Q4_0", "* = Q2_K", "* = IQ4_NL", "* = Q5_1",
                                        "* = Q8_0"};
    for (size_t k = 0; k < sizeof texts / sizeof *texts; k++) {
        nb_recipe r;
        nb_plan plan;
        nb_err err;
        parse_well(&r, texts[k]);
        assert_int_equal(plan_of(&plan, store, &r, NB_STORE_GGUF, &err), NB_OK);
        const nb_format *want = k == 4 ? &nb_format_q8_0 : &nb_format_q6_k;
        assert_ptr_equal(plan.weights[index_of(&plan, "model.embed_tokens.weight")].fmt, want);
        assert_ptr_equal(plan.weights[index_of(&plan, "lm_head.weight")].fmt, want);
        assert_int_equal(plan.n_notes, 0);
        nb_plan_free(&plan);
        nb_recipe_free(&r);
    }
    nb_store_close(store);
}

static void no_memory(void **state)
{
    (void)state;
    nb_store *store = open_tiny(&(tiny_model){0});
    const int64_t live = nb_alloc_live();
    const char *text = "* = W4A16:g32 because \"x\"\n*.q_proj = W8A16 method hqq\n";
    const nb_method m = rtn();
    int n_failed = 0;
    for (int64_t at = 1;; at++) {
        nb_recipe r = {0};
        nb_plan plan = {0};
        nb_buf out = {0};
        nb_err err = {0};
        nb_alloc_fail_at(at);
        nb_status s = nb_recipe_parse(&r, text, strlen(text), "r", &m, &err);
        if (s == NB_OK)
            s = plan_of(&plan, store, &r, NB_STORE_HF, &err);
        if (s == NB_OK)
            s = nb_recipe_print(&r, &out, &err);
        nb_alloc_fail_at(0);
        nb_buf_free(&out);
        nb_plan_free(&plan);
        nb_recipe_free(&r);
        assert_int_equal(nb_alloc_live(), live);
        if (s == NB_OK)
            break;
        assert_int_equal(s, NB_MEMORY);
        n_failed++;
    }
    assert_true(n_failed >= 4);
    nb_store_close(store);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_canonical_text),
        cmocka_unit_test(wrong_lines_are_named),
        cmocka_unit_test(any_bytes),
        cmocka_unit_test(the_last_rule_wins),
        cmocka_unit_test(weights_are_found_by_name),
        cmocka_unit_test(ends_are_named),
        cmocka_unit_test(plans_refuse),
        cmocka_unit_test(smaller_blocks),
        cmocka_unit_test(no_blocks_at_all),
        cmocka_unit_test(ends_of_six_bits),
        cmocka_unit_test(no_memory),
    };
    return cmocka_run_group_tests_name("recipe", tests, scratch_setup, scratch_teardown);
}
