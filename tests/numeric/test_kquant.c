/* The encoders of the K-quants: what they write is read back as published, parameters stay in their
 * ranges on any data, and the error is that of a good search. */
#include "numeric/mat.h"

#include "numeric/fit_super.h"
#include "numeric/grid.h"

#include <float.h>

#define SUPER  256
#define N_COLS (2 * SUPER)

static const nb_format *const KINDS[] = {&nb_format_q2_k, &nb_format_q3_k, &nb_format_q4_k,
                                         &nb_format_q5_k, &nb_format_q6_k};
#define N_KINDS 5

static float half(const uint8_t *b)
{
    return nb_f16_to_f32((uint16_t)(b[0] | b[1] << 8));
}

/* ---- a second reading of a super-block, code by code, by formats.md 8.6 ---- */

static void six_bits(const uint8_t *s, int k, int *scale, int *min)
{
    *scale = k < 4 ? s[k] & 63 : (s[k + 4] & 15) | s[k - 4] >> 6 << 4;
    *min = k < 4 ? s[k + 4] & 63 : s[k + 4] >> 4 | s[k] >> 6 << 4;
}

static double published_value(const nb_format *f, const uint8_t *b, int i)
{
    const int n = i / 128, j = i % 128 / 32, l = i % 32, k = i / 32;
    int scale, min;
    switch (f->bits) {
    case 2:
        scale = b[i / 16];
        return (double)(half(b + 80) * (float)(scale & 15)) * (b[16 + 32 * n + l] >> 2 * j & 3) -
               (double)(half(b + 82) * (float)(scale >> 4));
    case 3: {
        const uint8_t *s = b + 96;
        const int g = i / 16, low = g < 8 ? s[g] & 15 : s[g - 8] >> 4;
        scale = (low | (s[8 + g % 4] >> 2 * (g / 4) & 3) << 4) - 32;
        return (double)(half(b + 108) * (float)scale) *
               ((b[32 + 32 * n + l] >> 2 * j & 3) - ((b[l] >> (4 * n + j) & 1) != 0 ? 0 : 4));
    }
    case 4:
    case 5: {
        const uint8_t *low = b + (f->bits == 4 ? 16 : 48) + k / 2 * 32;
        const int high = f->bits == 4 ? 0 : (b[16 + l] >> k & 1) * 16;
        six_bits(b + 4, k, &scale, &min);
        return (double)(half(b) * (float)scale) * ((low[l] >> k % 2 * 4 & 15) + high) -
               (double)(half(b + 2) * (float)min);
    }
    default: {
        const int nibble = b[64 * n + 32 * (j & 1) + l] >> (j < 2 ? 0 : 4) & 15;
        const int q = (nibble | (b[128 + 32 * n + l] >> 2 * j & 3) << 4) - 32;
        return (double)(half(b + 208) * (float)(int8_t)b[192 + i / 16]) * q;
    }
    }
}

/* ---- data ---- */

typedef enum {
    BELL,
    TAILED,
    ONE_SIDED,
    ZEROS,
    ONE_ZERO_GROUP,
    CONSTANT,
    SUBNORMAL,
    TINY,
    HUGE,
    LARGEST,
    BITS,
    LONE,
    N_DATA
} data_kind;

static void fill(float *w, data_kind what, uint64_t seed)
{
    test_random_weights(w, N_COLS, 0.02, what == TAILED ? 0.05 : 0, seed);
    for (int c = 0; c < N_COLS; c++) {
        const uint32_t u = test_random_u32(seed + 500, (uint64_t)c);
        switch (what) {
        case ONE_SIDED:
            w[c] = (seed % 2 == 0 ? 1.0f : -1.0f) * (1 + w[c]);
            break;
        case ZEROS:
            w[c] = u % 2 == 0 ? 0.0f : -0.0f;
            break;
        case ONE_ZERO_GROUP:
            w[c] = c / 32 == (int)(seed % 8) ? 0 : w[c];
            break;
        case CONSTANT:
            w[c] = (seed % 2 == 0 ? 1.0f : -1.0f) * 0.037f;
            break;
        case SUBNORMAL:
            w[c] = nb_f32_from_bits(u & 0x807fffffu);
            break;
        case TINY: /* scales are next to the least number that a half has */
            w[c] *= 3e-5f;
            break;
        case HUGE:
            w[c] *= 1e7f;
            break;
        case LARGEST:
            w[c] = u % 2 == 0 ? FLT_MAX : -FLT_MAX;
            break;
        case BITS:
            w[c] = nb_f32_from_bits((u & 0x7f800000u) == 0x7f800000u ? u & 0xbfffffffu : u);
            break;
        case LONE:
            w[c] = c % SUPER == (int)(seed * 37 % SUPER) ? 0.5f : 0;
            break;
        default:
            break;
        }
    }
}

/* Squared error of a matrix of one row, by the second reading, which equals decode_row. */
static double loss_of(const nb_mat *m, const float *w)
{
    float y[N_COLS];
    double loss = 0;
    m->fmt->decode_row(m, 0, y);
    for (int c = 0; c < N_COLS; c++) {
        const uint8_t *block = (const uint8_t *)m->codes + c / SUPER * m->fmt->block_bytes;
        const float want = (float)published_value(m->fmt, block, c % SUPER);
        assert_true(fabsf(y[c]) <= FLT_MAX);
        if (want != y[c])
            fail_msg("%s, column %d: %a is decoded as %a", m->fmt->name, c, (double)want,
                     (double)y[c]);
        const double e = (double)y[c] - (double)w[c];
        loss += e * e;
    }
    return loss;
}

/* Every byte is written, and means the same to a reader of the specification, on any data. */
static void what_is_written_is_read_as_published(void **state)
{
    (void)state;
    float w[N_COLS];
    for (int f = 0; f < N_KINDS; f++) {
        nb_mat m = test_mat_block(KINDS[f], 1, N_COLS), again = test_mat_block(KINDS[f], 1, N_COLS);
        for (int what = 0; what < N_DATA; what++) {
            for (uint64_t seed = 0; seed < 6; seed++) {
                double power = 0;
                fill(w, (data_kind)what, seed);
                memset(m.codes, 0x00, (size_t)m.row_bytes);
                memset(again.codes, 0xff, (size_t)m.row_bytes);
                m.fmt->encode_row(&m, 0, w);
                m.fmt->encode_row(&again, 0, w);
                assert_memory_equal(m.codes, again.codes, (size_t)m.row_bytes);
                for (int c = 0; c < N_COLS; c++)
                    power += (double)w[c] * (double)w[c];
                const double loss = loss_of(&m, w);
                /* Never worse than zeros, and nothing is made of nothing. */
                if (!(loss <= power))
                    fail_msg("%s, data %d: loss %g of %g", m.fmt->name, what, loss, power);
            }
        }
        test_mat_free(&m);
        test_mat_free(&again);
    }
}

/* What each data loses at most, as a share of its power: limits that a careless search exceeds. */
static void losses_are_small(void **state)
{
    (void)state;
    static const struct {
        data_kind what;
        double share[N_KINDS]; /* of q2_k .. q6_k */
    } limits[] = {
        {BELL, {0.066, 0.0202, 0.0047, 0.0011, 0.00028}},
        {TAILED, {0.056, 0.036, 0.0112, 0.0027, 0.0009}},
        {ONE_SIDED, {2.2e-4, 4.1e-4, 1.5e-4, 4.2e-5, 6.7e-5}},
        {ONE_ZERO_GROUP, {0.066, 0.0202, 0.0047, 0.0011, 0.00028}},
        {CONSTANT, {2e-7, 2e-7, 2e-7, 2e-7, 2e-7}},
        {TINY, {0.068, 0.0222, 0.01, 0.005, 0.00086}},
        {HUGE, {0.066, 0.0202, 0.0047, 0.0011, 0.00028}},
        {LONE, {2e-7, 2e-7, 2e-7, 2e-7, 2e-7}},
    };
    float w[N_COLS];
    for (int f = 0; f < N_KINDS; f++) {
        nb_mat m = test_mat_block(KINDS[f], 1, N_COLS);
        for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
            double loss = 0, power = 0;
            for (uint64_t seed = 0; seed < 8; seed++) {
                fill(w, limits[i].what, seed);
                m.fmt->encode_row(&m, 0, w);
                loss += loss_of(&m, w);
                for (int c = 0; c < N_COLS; c++)
                    power += (double)w[c] * (double)w[c];
            }
            if (!(loss <= limits[i].share[f] * power))
                fail_msg("%s, data %d: %g of the power is lost", m.fmt->name, limits[i].what,
                         loss / power);
        }
        test_mat_free(&m);
    }
}

/* Zeros are exact. */
static void zeros_stay_zeros(void **state)
{
    (void)state;
    float w[N_COLS];
    fill(w, ZEROS, 1);
    for (int f = 0; f < N_KINDS; f++) {
        nb_mat m = test_mat_block(KINDS[f], 1, N_COLS);
        m.fmt->encode_row(&m, 0, w);
        assert_true(loss_of(&m, w) == 0);
        test_mat_free(&m);
    }
}

/* ---- the searches themselves ---- */

/* Every pair of six-bit and eight-bit integers, wherever it lies, decodes to what was stored: all
 * scales of a signed super-block, with each group in each place. */
static void every_scale_in_every_place(void **state)
{
    (void)state;
    static const struct {
        const nb_format *fmt;
        int least, most;
    } kinds[] = {{&nb_format_q3_k, -32, 31}, {&nb_format_q6_k, -128, 127}};
    float w[SUPER];
    for (size_t f = 0; f < 2; f++) {
        nb_mat m = test_mat_block(kinds[f].fmt, 1, SUPER);
        nb_grid grid;
        nb_err err = {0};
        assert_int_equal(nb_grid_of(&grid, &m, &err), NB_OK);
        const int low = (int)grid.level[0], n_levels = grid.n_levels;
        for (int place = 0; place < 16; place++) {
            for (int scale = kinds[f].least; scale <= kinds[f].most; scale++) {
                /* One group has the longest scale there is, so that d is 1; all codes occur. */
                for (int i = 0; i < SUPER; i++) {
                    const int u = low + (i % 16 == 0 ? 0 : i * 37 % n_levels);
                    const int s = i / 16 == place ? scale : kinds[f].least;
                    w[i] = (float)(s * u);
                }
                m.fmt->encode_row(&m, 0, w);
                nb_grid_group g;
                float y[SUPER];
                m.fmt->decode_row(&m, 0, y);
                for (int i = 0; i < SUPER; i++) {
                    if (y[i] != w[i])
                        fail_msg("%s: scale %d in place %d, column %d: %g, not %g", m.fmt->name,
                                 scale, place, i, (double)y[i], (double)w[i]);
                }
                nb_grid_group_at(&grid, &m, 0, place * 16, &g);
                assert_true(g.scale == (float)scale);
            }
        }
        test_mat_free(&m);
    }
}

static double signed_loss(const nb_signed_form *form, const nb_signed *s, const float *w,
                          const float *p)
{
    double loss = 0;
    for (int i = 0; i < SUPER; i++) {
        const int k = i / form->group_len;
        assert_in_range(s->scale[k] + 128, form->scale_least + 128, form->scale_most + 128);
        const double scale = (double)(s->d * (float)s->scale[k]);
        double least = (double)w[i] * (double)w[i];
        for (int u = 0; u <= form->top; u++)
            least = fmin(least, pow(scale * (u + form->least) - (double)w[i], 2));
        loss += (p != NULL ? (double)p[i] : 1) * least;
    }
    return loss;
}

/* On every data: the search is about as good as the quick one or better, both are better than the
 * extremes, and heed their ranges. */
static void signed_searches_are_worth_their_time(void **state)
{
    (void)state;
    static const nb_signed_form forms[] = {{16, 16, -4, 7, -32, 31}, {16, 16, -32, 63, -128, 127}};
    float w[N_COLS], p[SUPER];
    for (size_t f = 0; f < 2; f++) {
        double plain = 0, quick = 0, full = 0, weighted = 0, unweighted = 0;
        for (uint64_t seed = 0; seed < 20; seed++) {
            nb_signed a, b, c, d;
            fill(w, seed % 2 == 0 ? BELL : TAILED, seed);
            for (uint64_t i = 0; i < SUPER; i++)
                p[i] = (float)pow(10, 3 * nb_rng_uniform(1, seed, i));
            nb_signed_extremes(&a, &forms[f], w);
            nb_signed_quick(&b, &forms[f], w);
            nb_signed_search(&c, &forms[f], w, NULL);
            nb_signed_search(&d, &forms[f], w, p);
            plain += signed_loss(&forms[f], &a, w, NULL);
            quick += signed_loss(&forms[f], &b, w, NULL);
            full += signed_loss(&forms[f], &c, w, NULL);
            unweighted += signed_loss(&forms[f], &c, w, p);
            weighted += signed_loss(&forms[f], &d, w, p);
        }
        assert_true(full < 1.001 * quick && quick < 0.95 * plain);
        assert_true(weighted < 0.9 * unweighted);
    }
}

/* Where even the least half is more than a 127th of a scale, integers take its place. */
static void tiny_scales_use_the_integers(void **state)
{
    (void)state;
    float w[N_COLS];
    for (int c = 0; c < N_COLS; c++)
        w[c] = (float)((c * 5 % 8 - 4) * 9) * 0x1p-24f;
    nb_mat m = test_mat_block(&nb_format_q3_k, 1, N_COLS);
    m.fmt->encode_row(&m, 0, w);
    assert_true(loss_of(&m, w) == 0);
    test_mat_free(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_is_read_as_published),
        cmocka_unit_test(losses_are_small),
        cmocka_unit_test(zeros_stay_zeros),
        cmocka_unit_test(every_scale_in_every_place),
        cmocka_unit_test(signed_searches_are_worth_their_time),
        cmocka_unit_test(tiny_scales_use_the_integers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
