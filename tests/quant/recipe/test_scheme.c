/* What schemes mean, how they are spelled, and which containers hold them. */
#include "quant/recipe/scheme.h"
#include "support/golden.h"

#include <string.h>

static void names_and_modifiers(void **state)
{
    (void)state;
    static const struct {
        const char *text, *name;
        const nb_format *fmt;
        int64_t group_size;
        bool symmetric;
        int act_bits;
    } cases[] = {
        {"W8A16", "W8A16", &nb_format_int8, NB_GROUP_CHANNEL, true, 0},
        {"w8a16:channel", "W8A16", &nb_format_int8, NB_GROUP_CHANNEL, true, 0},
        {"W8A16:g128", "W8A16:g128", &nb_format_int8, 128, true, 0},
        {"W4A16", "W4A16", &nb_format_int4, NB_GROUP_CHOOSE, true, 0},
        {"W4A16:sym", "W4A16", &nb_format_int4, NB_GROUP_CHOOSE, true, 0},
        {"W4A16:g32,asym", "W4A16:g32,asym", &nb_format_int4, 32, false, 0},
        {"W4A16:ASYM,G32", "W4A16:g32,asym", &nb_format_int4, 32, false, 0},
        {"W4A16:channel", "W4A16:channel", &nb_format_int4, NB_GROUP_CHANNEL, true, 0},
        {"W4A16:channel,asym", "W4A16:channel,asym", &nb_format_int4, NB_GROUP_CHANNEL, false, 0},
        {"W4A16:asym", "W4A16:asym", &nb_format_int4, NB_GROUP_CHOOSE, false, 0},
        {"W3A16", "W3A16", &nb_format_int3, NB_GROUP_CHOOSE, true, 0},
        {"w3a16:asym,g64", "W3A16:g64,asym", &nb_format_int3, 64, false, 0},
        {"W2A16:g32", "W2A16:g32", &nb_format_int2, 32, true, 0},
        {"W2A16:channel,asym", "W2A16:channel,asym", &nb_format_int2, NB_GROUP_CHANNEL, false, 0},
        {"W8A8", "W8A8", &nb_format_int8, NB_GROUP_CHANNEL, true, 8},
        {"W4A8:g64", "W4A8:g64", &nb_format_int4, 64, true, 8},
        {"W8A8:static", "W8A8:static", &nb_format_int8, NB_GROUP_CHANNEL, true, 8},
        {"int8:STATIC", "W8A8:static", &nb_format_int8, NB_GROUP_CHANNEL, true, 8},
        {"W4A8:asym,static,g64", "W4A8:g64,static,asym", &nb_format_int4, 64, false, 8},
        {"W4A16:g65536", "W4A16:g65536", &nb_format_int4, 65536, true, 0},
        {"w4a16:g64,ZERO=float", "W4A16:g64,asym,zero=float", &nb_format_int4, 64, false, 0},
        {"W4A16:g65536,asym,zero=float", "W4A16:g65536,asym,zero=float", &nb_format_int4, 65536,
         false, 0},
        {"W2A16:zero=float,asym", "W2A16:asym,zero=float", &nb_format_int2, NB_GROUP_CHOOSE, false,
         0},
        {"q4_0", "Q4_0", &nb_format_q4_0, 0, true, 0},
        {"Q8_0", "Q8_0", &nb_format_q8_0, 0, true, 0},
        {"q2_k", "Q2_K", &nb_format_q2_k, 0, true, 0},
        {"Q3_K", "Q3_K", &nb_format_q3_k, 0, true, 0},
        {"Q5_K", "Q5_K", &nb_format_q5_k, 0, true, 0},
        {"Q6_K", "Q6_K", &nb_format_q6_k, 0, true, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        nb_scheme s;
        nb_err err = {0};
        if (nb_scheme_parse(&s, cases[i].text, &err) != NB_OK)
            fail_msg("%s: %s", cases[i].text, err.text);
        assert_string_equal(s.name, cases[i].name);
        assert_ptr_equal(s.fmt, cases[i].fmt);
        assert_int_equal(s.group_size, cases[i].group_size);
        assert_int_equal(s.symmetric, cases[i].symmetric);
        assert_int_equal(s.act.bits, cases[i].act_bits);
        assert_int_equal(s.act.per_token, cases[i].act_bits != 0);
        /* What nibble prints means the same again. */
        nb_scheme again;
        assert_int_equal(nb_scheme_parse(&again, s.name, &err), NB_OK);
        assert_string_equal(again.name, s.name);
        assert_int_equal(again.group_size, s.group_size);
        assert_int_equal(again.symmetric, s.symmetric);
        assert_int_equal(again.float_zeros, s.float_zeros);
        assert_int_equal(s.float_zeros, strstr(s.name, "zero=float") != NULL);
        assert_int_equal(again.act.is_static, s.act.is_static);
        assert_int_equal(s.act.is_static, strstr(s.name, "static") != NULL);
        assert_true(s.act.scale == 0);
    }
}

static void refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *reason;
    } cases[] = {
        {"", "unknown scheme ''"},
        {":g32", "unknown scheme ''"},
        {"W4", "unknown scheme 'W4'"},
        {"W4A16 ", "unknown scheme 'W4A16 '"},
        {"FP9", "there are W8A16, W4A16"},
        {"W4A16:", "unknown modifier ''"},
        {"W4A16:g32,", "unknown modifier ''"},
        {"W4A16:,g32", "unknown modifier ''"},
        {"W4A16:32", "unknown modifier '32'"},
        {"W4A16:g", "unknown modifier 'g'"},
        {"W4A16:g32x", "followed by a number"},
        {"W4A16:g-32", "followed by a number"},
        {"W4A16:g0", "a group has 8 to 65536"},
        {"W4A16:g4", "a group has 8 to 65536"},
        {"W4A16:g36", "a group has 8 to 65536"},
        {"W4A16:g65544", "a group has 8 to 65536"},
        {"W4A16:g99999999999999999999999999", "number of columns"},
        {"W4A16:g32,g64", "contradicts"},
        {"W4A16:g32,channel", "contradicts"},
        {"W4A16:sym,asym", "contradicts"},
        {"W4A16:sym,zero=float", "contradicts"},
        {"W4A16:zero=float,sym", "contradicts"},
        {"W4A16:zero=float,zero=float", "contradicts"},
        {"W4A16:zero=int", "unknown modifier 'zero=int'"},
        {"W8A8:zero=float", "beside quantized activations"},
        {"NF4:zero=float", "unknown modifier 'zero=float'"},
        {"Q4_0:g32", "takes no modifiers"},
        {"Q4_0:", "takes no modifiers"},
        {"BF16", "use nibble convert --dtype"},
        {"Q4_K_M", "'Q4_K_M' is no format, but a mixture"},
        {"q3_k_l", "a rule takes Q2_K, Q3_K"},
        {"Q7_K", "unknown scheme 'Q7_K'"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        nb_scheme s;
        nb_err err = {0};
        assert_int_equal(nb_scheme_parse(&s, cases[i].text, &err), NB_USAGE);
        if (strstr(err.text, cases[i].reason) == NULL)
            fail_msg("'%s': '%s' is not in: %s", cases[i].text, cases[i].reason, err.text);
    }
}

/* A name longer than any message is cut, not overrun. */
static void endless_names(void **state)
{
    (void)state;
    char text[5000];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = 0;
    nb_scheme s;
    nb_err err = {0};
    assert_int_equal(nb_scheme_parse(&s, text, &err), NB_USAGE);
    memcpy(text, "W4A16:", 6);
    assert_int_equal(nb_scheme_parse(&s, text, &err), NB_USAGE);
    assert_true(strlen(err.text) < 400);
}

static void containers(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        nb_store_kind fits;
        const char *instead;
    } cases[] = {
        {"W8A8", NB_STORE_HF, "Q8_0"},        {"W4A16:g64,asym", NB_STORE_HF, "Q4_0"},
        {"W3A16", NB_STORE_HF, "Q4_0"},       {"Q4_0", NB_STORE_GGUF, "W4A16:g32"},
        {"Q8_0", NB_STORE_GGUF, "W8A16:g32"}, {"Q3_K", NB_STORE_GGUF, "W3A16:g32"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        nb_scheme s;
        nb_err err = {0};
        assert_int_equal(nb_scheme_parse(&s, cases[i].text, &err), NB_OK);
        assert_int_equal(nb_scheme_check_container(&s, cases[i].fits, &err), NB_OK);
        const nb_store_kind other = cases[i].fits == NB_STORE_HF ? NB_STORE_GGUF : NB_STORE_HF;
        assert_int_equal(nb_scheme_check_container(&s, other, &err), NB_USAGE);
        assert_non_null(strstr(err.text, cases[i].text));
        assert_non_null(strstr(err.text, cases[i].instead));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_and_modifiers),
        cmocka_unit_test(refused),
        cmocka_unit_test(endless_names),
        cmocka_unit_test(containers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
