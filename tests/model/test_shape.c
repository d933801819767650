/* Shapes: names and numbers in, a llama with random weights out, which computes the same on all
 * instruction sets and never leaves the finite numbers. */
#include "support/golden.h"
#include "base/alloc.h"
#include "model/forward.h"
#include "model/shape.h"

#include <math.h>
#include <string.h>

static void names_and_numbers(void **state)
{
    (void)state;
    nb_err err = {0};
    nb_shape s;
    for (const nb_shape *known = nb_shapes; known->name != NULL; known++) {
        assert_int_equal(nb_shape_parse(&s, known->name, &err), NB_OK);
        assert_memory_equal(&s, known, sizeof s);
    }
    assert_int_equal(nb_shape_parse(&s, "16x2048,32/8x64,8192,128256,tied", &err), NB_OK);
    const nb_shape *l = &nb_shapes[1];
    assert_true(s.name == NULL && s.tied_head);
    assert_true(s.n_layers == l->n_layers && s.d_model == l->d_model && s.n_heads == l->n_heads &&
                s.n_kv_heads == l->n_kv_heads && s.head_dim == l->head_dim && s.d_ff == l->d_ff &&
                s.vocab_size == l->vocab_size);
    assert_int_equal(nb_shape_parse(&s, "1x2,3/4x5,6,999999999", &err), NB_OK);
    assert_true(s.vocab_size == 999999999 && !s.tied_head);
}

static void what_is_no_shape(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "",
        "llama",
        "LLAMA2-7B",
        "16",
        "16x2048",
        "16x2048,32/8x64,8192",
        "16x2048,32/8x64,8192,",
        "16x2048,32/8x64,8192,128256,",
        "16x2048,32/8x64,8192,128256,Tied",
        "16x2048,32/8x64,8192,128256,tied ",
        "16x2048,32/8x64,8192,0",
        "0x2048,32/8x64,8192,128256",
        "-1x2048,32/8x64,8192,128256",
        " 16x2048,32/8x64,8192,128256",
        "16 x2048,32/8x64,8192,128256",
        "16x2048,32x64,8192,128256",
        "16x2048,32/8,8192,128256",
        "1000000000x2048,32/8x64,8192,128256",
        "99999999999999999999x2048,32/8x64,8192,128256",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        nb_err err = {0};
        nb_shape s = {.n_layers = 77};
        assert_int_equal(nb_shape_parse(&s, texts[i], &err), NB_USAGE);
        assert_int_equal(s.n_layers, 77);
        assert_non_null(strstr(err.text, "llama2-7b, and LAYERSxWIDTH"));
    }
}

static const nb_weight linears[] = {
    {.fmt = &nb_format_q4_0},
    {.fmt = &nb_format_q8_0},
    {.fmt = &nb_format_bf16},
    {.fmt = &nb_format_int4, .group_size = 32, .symmetric = true, .scale_type = NB_BF16},
    {.fmt = &nb_format_int4, .scale_type = NB_F16},
    {.fmt = &nb_format_int8,
     .symmetric = true,
     .scale_type = NB_BF16,
     .act = {.bits = 8, .per_token = true}},
};
#define N_LINEARS (sizeof linears / sizeof *linears)

/* The hash of the last of n tokens' logits. */
static uint64_t logits_of(const nb_shape *shape, const nb_weight *linear, unsigned isa)
{
    nb_err err = {0};
    nb_store *store;
    nb_pool *pool;
    nb_model m;
    nb_kernels k;
    nb_work work;
    nb_kv_pool kv;
    nb_kv_seq seq;
    int32_t tokens[40];
    for (int i = 0; i < 40; i++)
        tokens[i] = (int32_t)(i * 7 % shape->vocab_size);
    nb_kernels_init(&k, isa);
    assert_int_equal(nb_shape_open(&store, shape, "test", linear, 1, &err), NB_OK);
    assert_int_equal(nb_pool_open(&pool, 2, &err), NB_OK);
    const nb_model_options options = {NB_COMPUTE_AUTO, 64};
    assert_int_equal(nb_model_open(&m, store, &options, pool, &err), NB_OK);
    assert_int_equal(m.weight_bytes, nb_store_file_bytes(store));
    assert_int_equal(nb_work_init(&work, &m, &k, pool, 40, &err), NB_OK);
    assert_int_equal(nb_kv_pool_init(&kv, &m.config, NB_KV_F16, 2, &err), NB_OK);
    assert_int_equal(nb_kv_seq_init(&seq, &kv, 64, &err), NB_OK);
    float *hidden = NULL, *logits = NULL;
    assert_int_equal(NB_ALLOC(&hidden, shape->d_model, &err), NB_OK);
    assert_int_equal(NB_ALLOC(&logits, shape->vocab_size, &err), NB_OK);
    const nb_step_input in = {&seq, tokens, 40, 1};
    assert_int_equal(nb_forward(&work, &in, 1, hidden, &err), NB_OK);
    nb_logits(&work, hidden, 1, logits);
    float low = logits[0], high = logits[0];
    for (int64_t i = 0; i < shape->vocab_size; i++) {
        assert_true(isfinite(logits[i]));
        low = fminf(low, logits[i]);
        high = fmaxf(high, logits[i]);
    }
    assert_true(high - low > 0.1f && high < 1000 && low > -1000);
    const uint64_t hash = nb_logits_hash(logits, shape->vocab_size, 0);
    nb_free(hidden);
    nb_free(logits);
    nb_kv_seq_free(&seq);
    nb_kv_pool_free(&kv);
    nb_work_free(&work);
    nb_model_close(&m);
    nb_store_close(store);
    nb_pool_close(pool);
    return hash;
}

static void a_shape_computes_and_stays_finite(void **state)
{
    (void)state;
    nb_err err = {0};
    nb_shape tied, untied;
    assert_int_equal(nb_shape_parse(&tied, "3x64,4/2x16,96,300,tied", &err), NB_OK);
    assert_int_equal(nb_shape_parse(&untied, "12x96,3/1x32,160,200", &err), NB_OK);
    for (size_t i = 0; i < N_LINEARS; i++) {
        assert_true(logits_of(&tied, &linears[i], 0) == logits_of(&tied, &linears[i], NB_ISA_ALL));
        assert_true(logits_of(&untied, &linears[i], NB_ISA_ALL) !=
                    logits_of(&tied, &linears[i], NB_ISA_ALL));
    }
}

/* What a config.json may not say, a shape may not either. */
static void limits_are_those_of_configs(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
    } rows[] = {
        {"1x64,3/2x32,64,64", "3 attention heads cannot share 2 key-value heads"},
        {"1x64,2/2x1024,64,64", "heads of 1024 dimensions"},
        {"1x64,2/2x33,64,64", "rotary dimensions"},
        {"100000x64,2/2x32,64,64", "num_hidden_layers"},
        {"1x999999999,2/2x32,64,64", "hidden_size"},
        {"1x64,2/2x32,999999999,64", "intermediate_size"},
        {"1x64,2/2x32,64,999999999", "vocab_size"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        nb_err err = {0};
        nb_shape s;
        nb_store *store = NULL;
        const int64_t live = nb_alloc_live();
        assert_int_equal(nb_shape_parse(&s, rows[i].text, &err), NB_OK);
        assert_int_not_equal(nb_shape_open(&store, &s, "here", &linears[0], 1, &err), NB_OK);
        assert_non_null(strstr(err.text, "here"));
        assert_non_null(strstr(err.text, rows[i].says));
        assert_null(store);
        assert_int_equal(nb_alloc_live(), live);
    }
}

static void out_of_memory_leaks_nothing(void **state)
{
    (void)state;
    nb_shape shape;
    nb_err err = {0};
    assert_int_equal(nb_shape_parse(&shape, "2x64,2/1x32,64,64", &err), NB_OK);
    const int64_t live = nb_alloc_live();
    int64_t n = 0;
    nb_status s;
    do {
        nb_store *store = NULL;
        nb_alloc_fail_at(++n);
        s = nb_shape_open(&store, &shape, "test", &linears[0], 1, &err);
        nb_alloc_fail_at(0);
        assert_true(s == NB_OK || s == NB_MEMORY);
        nb_store_close(store);
        assert_int_equal(nb_alloc_live(), live);
    } while (s != NB_OK);
    assert_true(n > 4);
}

/* The well-known ones are as large as their makers say. */
static void known_shapes_have_the_right_size(void **state)
{
    (void)state;
    static const int64_t want[] = {134515008, 1235814400, 6738415616};
    for (int i = 0; i < 3; i++) {
        nb_err err = {0};
        nb_store *store;
        assert_int_equal(
            nb_shape_open(&store, &nb_shapes[i], nb_shapes[i].name, &linears[0], 1, &err), NB_OK);
        int64_t n = 0;
        for (int64_t w = 0; w < nb_store_n_weights(store); w++)
            n += nb_store_weight(store, w)->n_rows * nb_store_weight(store, w)->n_cols;
        assert_int_equal(n, want[i]);
        nb_config c;
        assert_int_equal(nb_config_read(store, &c, &err), NB_OK);
        assert_int_equal(nb_model_check(store, &c, &err), NB_OK);
        nb_store_close(store);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_and_numbers),
        cmocka_unit_test(what_is_no_shape),
        cmocka_unit_test(a_shape_computes_and_stays_finite),
        cmocka_unit_test(limits_are_those_of_configs),
        cmocka_unit_test(out_of_memory_leaks_nothing),
        cmocka_unit_test(known_shapes_have_the_right_size),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
