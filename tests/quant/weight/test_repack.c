/* Codes and scales between blocks and arrays: the same numbers, bit for bit, or nothing. */
#include "quant/weight/repack.h"

#include "base/rng.h"
#include "numeric/minifloat.h"
#include "support/golden.h"

#include <stdlib.h>
#include <string.h>

enum { ROWS = 5, MAX_COLS = 256 };

/* A matrix with room of its own. */
typedef struct {
    nb_mat m;
    uint8_t codes[ROWS * MAX_COLS * 2];
    float scales[ROWS * MAX_COLS];
    int8_t zeros[ROWS * MAX_COLS];
} matrix;

static void shape(matrix *x, const nb_format *fmt, int64_t n_cols, int64_t group_size,
                  nb_float_type scale_type, bool asym)
{
    nb_err err = {0};
    memset(x, 0, sizeof *x);
    x->m = (nb_mat){.fmt = fmt, .n_rows = ROWS, .n_cols = n_cols, .codes = x->codes};
    assert_int_equal(nb_format_row_bytes(fmt, n_cols, &x->m.row_bytes, &err), NB_OK);
    if (!fmt->affine)
        return;
    x->m.group_size = group_size;
    x->m.scale_type = scale_type;
    x->m.scales = x->scales;
    x->m.zeros = asym ? x->zeros : NULL;
}

/* Any codes; scales of both signs, zeros, subnormals and infinities of F16 among them. */
static void fill_blocks(matrix *x, uint64_t seed)
{
    const int64_t n = ROWS * x->m.row_bytes;
    for (int64_t i = 0; i < n; i++)
        x->codes[i] = (uint8_t)(256 * nb_rng_uniform(seed, 2, (uint64_t)i));
    for (int64_t b = 0; b < n; b += x->m.fmt->block_bytes) {
        uint16_t scale;
        memcpy(&scale, x->codes + b, 2);
        if ((scale & 0x7c00u) == 0x7c00u)
            scale = (uint16_t)(scale & 0x83ffu); /* finite, but tiny */
        memcpy(x->codes + b, &scale, 2);
    }
}

static void encode_random(matrix *x, uint64_t seed)
{
    float row[MAX_COLS];
    for (int64_t r = 0; r < ROWS; r++) {
        for (int64_t c = 0; c < x->m.n_cols; c++)
            row[c] = (float)(nb_rng_uniform(seed, 7, (uint64_t)(r * MAX_COLS + c)) - 0.5);
        x->m.fmt->encode_row(&x->m, r, row);
    }
}

static bool repack_all(matrix *to, const matrix *from)
{
    void *scratch = malloc(nb_repack_scratch_bytes(from->m.n_cols));
    bool all = true;
    for (int64_t r = 0; r < ROWS && all; r++)
        all = nb_repack_row(&to->m, &from->m, r, scratch);
    free(scratch);
    return all;
}

static void assert_same_values(const matrix *a, const matrix *b)
{
    float x[MAX_COLS], y[MAX_COLS];
    for (int64_t r = 0; r < ROWS; r++) {
        a->m.fmt->decode_row(&a->m, r, x);
        b->m.fmt->decode_row(&b->m, r, y);
        assert_memory_equal(x, y, (size_t)a->m.n_cols * sizeof *x);
    }
}

/* Blocks with any codes and scales, to arrays and back: the same bytes. */
static void blocks_there_and_back(void **state)
{
    (void)state;
    static const struct {
        const nb_format *block, *affine;
    } pairs[] = {{&nb_format_q4_0, &nb_format_int4}, {&nb_format_q8_0, &nb_format_int8}};
    for (int p = 0; p < 2; p++) {
        for (uint64_t seed = 0; seed < 50; seed++) {
            matrix blocks, arrays, back;
            const int64_t n_cols = 32 * (1 + (int64_t)(seed % 8));
            shape(&blocks, pairs[p].block, n_cols, 0, NB_F16, false);
            fill_blocks(&blocks, seed);
            shape(&arrays, pairs[p].affine, n_cols, 32, NB_F16, false);
            assert_true(repack_all(&arrays, &blocks));
            assert_same_values(&blocks, &arrays);
            shape(&back, pairs[p].block, n_cols, 0, NB_F16, false);
            assert_true(repack_all(&back, &arrays));
            assert_memory_equal(blocks.codes, back.codes, (size_t)(ROWS * blocks.m.row_bytes));
        }
    }
}

/* What a code of a table stands for is an 8-bit code; four bits do not hold it. */
static void codes_of_a_table(void **state)
{
    (void)state;
    static const nb_format *const targets[] = {&nb_format_q8_0, &nb_format_int8};
    for (uint64_t seed = 0; seed < 20; seed++) {
        matrix places, to;
        shape(&places, &nb_format_iq4_nl, 64, 0, NB_F16, false);
        fill_blocks(&places, seed);
        for (int t = 0; t < 2; t++) {
            shape(&to, targets[t], 64, 32, NB_F16, false);
            assert_true(repack_all(&to, &places));
            assert_same_values(&places, &to);
        }
        shape(&to, &nb_format_q4_0, 64, 0, NB_F16, false);
        assert_false(repack_all(&to, &places));
    }
}

/* Wide groups repeat their scale in every block. */
static void wide_groups_to_blocks(void **state)
{
    (void)state;
    static const int64_t groups[] = {32, 64, 128, 256};
    static const nb_float_type types[] = {NB_F16, NB_BF16};
    for (int bits = 4; bits <= 8; bits += 4) {
        for (size_t g = 0; g < 4; g++) {
            for (size_t t = 0; t < 2; t++) {
                matrix arrays, blocks;
                shape(&arrays, bits == 4 ? &nb_format_int4 : &nb_format_int8, 256, groups[g],
                      types[t], false);
                encode_random(&arrays, g + 10 * t);
                shape(&blocks, bits == 4 ? &nb_format_q4_0 : &nb_format_q8_0, 256, 0, NB_F16,
                      false);
                assert_true(repack_all(&blocks, &arrays));
                assert_same_values(&arrays, &blocks);
            }
        }
    }
}

/* 8-bit codes that happen to fit are 4-bit codes; one that does not is noticed. */
static void narrow_codes(void **state)
{
    (void)state;
    matrix wide, narrow;
    shape(&wide, &nb_format_int8, 64, 32, NB_F16, false);
    for (int i = 0; i < ROWS * 2; i++)
        nb_float_put(wide.scales, NB_F16, i, 0.25f);
    for (int i = 0; i < ROWS * 64; i++)
        ((int8_t *)wide.codes)[i] = (int8_t)(i % 16 - 8);
    shape(&narrow, &nb_format_int4, 64, 32, NB_F16, false);
    assert_true(repack_all(&narrow, &wide));
    assert_same_values(&wide, &narrow);
    for (int code = -128; code < 128; code++) {
        ((int8_t *)wide.codes)[ROWS * 64 - 1] = (int8_t)code;
        assert_int_equal(repack_all(&narrow, &wide), code >= -8 && code <= 7);
    }
}

/* Every BF16 scale: carried over exactly when F16 has it, refused when not. */
static void scales_fit_or_are_refused(void **state)
{
    (void)state;
    matrix arrays, blocks;
    shape(&arrays, &nb_format_int8, 32, 32, NB_BF16, false);
    memset(arrays.codes, 1, ROWS * 32);
    shape(&blocks, &nb_format_q8_0, 32, 0, NB_F16, false);
    void *scratch = malloc(nb_repack_scratch_bytes(32));
    int n_fit = 0;
    for (uint32_t bits = 0; bits < 0x10000; bits++) {
        const uint16_t scale = (uint16_t)bits;
        memcpy(arrays.scales, &scale, 2);
        const float was = nb_bf16_to_f32(scale), is = nb_f16_to_f32(nb_f16_from_f32(was));
        const bool fits = memcmp(&was, &is, 4) == 0;
        n_fit += fits;
        if (nb_repack_row(&blocks.m, &arrays.m, 0, scratch) != fits)
            fail_msg("scale %04x: wanted %d", (unsigned)bits, fits);
    }
    free(scratch);
    assert_true(n_fit > 1000 && n_fit < 0x8000);
}

/* What cannot mean the same is not written as if it could. */
static void refused(void **state)
{
    (void)state;
    matrix from, to;
    shape(&to, &nb_format_q4_0, 64, 0, NB_F16, false);

    shape(&from, &nb_format_int4, 64, 32, NB_F16, true); /* zero points */
    encode_random(&from, 1);
    assert_false(repack_all(&to, &from));

    shape(&from, &nb_format_q4_1, 64, 0, NB_F16, false); /* minima */
    encode_random(&from, 1);
    assert_false(repack_all(&to, &from));

    shape(&from, &nb_format_bf16, 64, 0, NB_F16, false); /* no codes at all */
    assert_false(repack_all(&to, &from));

    shape(&from, &nb_format_int4, 64, 16, NB_F16, false); /* two scales in a block */
    encode_random(&from, 1);
    assert_false(repack_all(&to, &from));
    for (int i = 0; i < ROWS * 4; i++) /* but not if they are one number */
        nb_float_put(from.scales, NB_F16, i, 0.5f);
    assert_true(repack_all(&to, &from));
    assert_same_values(&from, &to);

    shape(&from, &nb_format_int4, 64, 64, NB_F32, false); /* a scale with too many bits */
    encode_random(&from, 1);
    from.scales[ROWS - 1] = 0.1f;
    assert_false(repack_all(&to, &from));

    shape(&from, &nb_format_int4, 64, 32, NB_F16, false);
    encode_random(&from, 1);
    shape(&to, &nb_format_int4, 64, 32, NB_F16, true); /* a target with zero points has zeros */
    memset(to.zeros, 7, ROWS * 2);
    assert_true(repack_all(&to, &from));
    assert_same_values(&from, &to);
    for (int i = 0; i < ROWS * 2; i++)
        assert_int_equal(to.zeros[i], 0);
}

/* Zero points move with the codes, into wider groups only where they are one. */
static void zero_points(void **state)
{
    (void)state;
    static const nb_format *const formats[] = {&nb_format_int2, &nb_format_int3, &nb_format_int4,
                                               &nb_format_int8};
    static matrix from, to;
    for (int f = 0; f < 4; f++) {
        for (int t = f; t < 4; t++) {
            shape(&from, formats[f], 64, 32, NB_F16, true);
            encode_random(&from, 5);
            shape(&to, formats[t], 64, 16, NB_F32, true);
            assert_true(repack_all(&to, &from));
            assert_same_values(&from, &to);
            shape(&to, formats[t], 64, 32, NB_F16, false);
            assert_false(repack_all(&to, &from));
        }
    }
    shape(&from, &nb_format_int4, 64, 16, NB_F16, true);
    encode_random(&from, 6);
    for (int i = 0; i < ROWS * 4; i++) {
        nb_float_put(from.scales, NB_F16, i, 0.5f);
        from.zeros[i] = 3;
    }
    shape(&to, &nb_format_int4, 64, 32, NB_F16, true);
    assert_true(repack_all(&to, &from));
    assert_same_values(&from, &to);
    from.zeros[1] = 2; /* two zero points in a group of the target */
    assert_false(repack_all(&to, &from));
    memset(from.codes, 0x88, sizeof from.codes); /* codes of 0 fit, but not these zero points */
    memset(from.zeros, 3, sizeof from.zeros);
    shape(&to, &nb_format_int3, 64, 32, NB_F16, true);
    assert_true(repack_all(&to, &from));
    from.zeros[1] = from.zeros[0] = 4;
    assert_false(repack_all(&to, &from));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(codes_of_a_table),
        cmocka_unit_test(blocks_there_and_back),
        cmocka_unit_test(wide_groups_to_blocks),
        cmocka_unit_test(narrow_codes),
        cmocka_unit_test(scales_fit_or_are_refused),
        cmocka_unit_test(refused),
        cmocka_unit_test(zero_points),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
