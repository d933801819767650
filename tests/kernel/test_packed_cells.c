/* Packed cells of the cache (int4, int2): read back within half a step for every position of every
 * page, quantized once, sealed when the page is full; and the rotation of heads. */
#include "attn_scene.h"

#include "kernel/hadamard.h"
#include "kernel/packed.h"

enum { N_POSITIONS = 200 };

/* A cache of one head and seven pages in mixed order, and what was stored. */
typedef struct {
    nb_kv_view view;
    int32_t table[7];
    size_t bytes;
    float *keys, *values; /* [position][head_dim], as they came */
} small;

static small small_open(nb_kv_format format, int head_dim)
{
    const size_t head_bytes = nb_kv_head_bytes(format, head_dim);
    const size_t recent = nb_kv_head_bytes(NB_KV_F16, head_dim);
    small s = {.table = {2, 0, 5, 3, 6, 4, 1}, .bytes = 7 * 2 * head_bytes};
    s.view = (nb_kv_view){.arena = check_alloc(s.bytes),
                          .page_bytes = 2 * head_bytes,
                          .v_offset = head_bytes,
                          .head_bytes = head_bytes,
                          .format = format,
                          .n_kv_heads = 1,
                          .head_dim = head_dim,
                          .recent = {.arena = check_alloc(7 * 2 * recent),
                                     .page_bytes = 2 * recent,
                                     .v_offset = recent,
                                     .head_bytes = recent}};
    s.keys = check_floats(N_POSITIONS * head_dim);
    s.values = check_floats(N_POSITIONS * head_dim);
    return s;
}

static void small_close(small *s)
{
    assert_true(check_guard_ok(s->view.arena));
    assert_true(check_guard_ok(s->view.recent.arena));
    check_free(s->view.arena);
    check_free(s->view.recent.arena);
    check_free(s->keys);
    check_free(s->values);
}

static void store(small *s, const nb_kernels *k, int64_t p)
{
    s->view.table = s->view.recent.table = s->table;
    k->kv_store(&s->view, p, 0, 1, s->keys + p * s->view.head_dim,
                s->values + p * s->view.head_dim);
}

static void fill(small *s, const nb_kernels *k, uint64_t seed, int exponent)
{
    const int64_t n = (int64_t)N_POSITIONS * s->view.head_dim;
    check_fill(s->keys, n, CHECK_RANDOM, seed);
    check_fill(s->values, n, seed % 3 ? CHECK_RANDOM : CHECK_EQUAL, seed + 1);
    for (int64_t i = 0; i < n; i++) {
        s->keys[i] = ldexpf(s->keys[i], exponent) + (float)(i % 3);
        s->values[i] = ldexpf(s->values[i], -exponent);
    }
    for (int64_t p = 0; p < N_POSITIONS; p++)
        store(s, k, p);
}

/* A number is off by half a step at most; outside the range that was chosen for its group by what
 * was taken off that at the end; by what fitting a line moved its level; and by what rounding scale
 * and minimum to F16 changes. */
static void check_number(double x, double got, double low, double high, int top)
{
    const double range = high - low, taken = (nb_pack_tries(top == 3 ? 2 : 4) - 1) / 32.0 * range;
    const double moved = (top == 3 ? 0.25 : 0.05) * range;
    const double cut = 0x1p-11 * (fmax(fabs(low), fabs(high)) + range) + 0x1p-24 * (top + 1);
    assert_true(fabs(x - got) <= 0.5001 * range / top + taken + moved + cut);
}

/* The range of numbers `stride` apart. */
static void range_of(const float *x, int64_t n, int64_t stride, double *low, double *high)
{
    *low = *high = (double)x[0];
    for (int64_t i = 0; i < n; i++) {
        *low = fmin(*low, (double)x[i * stride]);
        *high = fmax(*high, (double)x[i * stride]);
    }
}

/* Values of position p by groups of dimensions. */
static void check_position(const small *s, bool key, int64_t p, const float *x, int top)
{
    const int64_t dim = s->view.head_dim;
    for (int64_t d = 0; d < dim; d++) {
        const int64_t size = top == 3 ? 64 : 32, first = d / size * size;
        const int64_t n = dim - first < size ? dim - first : size;
        double low, high;
        range_of(x + first, n, 1, &low, &high);
        check_number((double)x[d], cell_value(&s->view, 7, key, 0, p, d), low, high, top);
    }
}

/* K17 and K18: a page is quantized when its last position came, keys by channel and values by
 * position, from F16; nothing that comes later changes a byte of it. */
static void check_format(const nb_kernels *k, nb_kv_format format, int dim, int i)
{
    const int top = format == NB_KV_INT2 ? 3 : 15, n_full = N_POSITIONS / 32 * 32;
    small s = small_open(format, dim);
    fill(&s, k, (uint64_t)i, i % 7 - 3);
    for (int64_t p = 0; format != NB_KV_INT4_PLAIN && p < N_POSITIONS; p++)
        if ((dim & (dim - 1)) == 0)
            nb_hadamard(s.values + p * dim, dim);
    for (int64_t j = 0; j < (int64_t)N_POSITIONS * dim; j++) { /* as `recent` has them */
        s.keys[j] = nb_f16_to_f32(nb_f16_from_f32(s.keys[j]));
        s.values[j] = nb_f16_to_f32(nb_f16_from_f32(s.values[j]));
    }
    for (int64_t p = 0; p < N_POSITIONS; p++) {
        for (int64_t d = 0; d < dim; d++) {
            assert_true(cell_value(&s.view, 0, true, 0, p, d) == (double)s.keys[p * dim + d]);
            assert_true(cell_value(&s.view, 0, false, 0, p, d) == (double)s.values[p * dim + d]);
            if (p >= n_full)
                continue;
            double low, high;
            range_of(s.keys + p / 32 * 32 * dim + d, 32, dim, &low, &high);
            check_number((double)s.keys[p * dim + d], cell_value(&s.view, 7, true, 0, p, d), low,
                         high, top);
        }
        if (p < n_full)
            check_position(&s, false, p, s.values + p * dim, top);
    }
    uint8_t *before = check_alloc(s.bytes);
    memcpy(before, s.view.arena, s.bytes);
    for (int64_t p = n_full; p < N_POSITIONS; p++) { /* the last page again, with other numbers */
        for (int64_t d = 0; d < dim; d++)
            s.keys[p * dim + d] = s.values[p * dim + d] = (float)(p + d);
        store(&s, k, p);
    }
    assert_memory_equal(before, s.view.arena, s.bytes);
    check_free(before);
    small_close(&s);
}

static const nb_kv_format formats[] = {NB_KV_INT4, NB_KV_INT4_PLAIN, NB_KV_INT2};

static void pages_are_sealed_once_within_half_a_step(void **state)
{
    (void)state;
    static const int dims[] = {1, 2, 3, 16, 31, 32, 33, 64, 80, 127, 128, 200, 256};
    enum { N_DIMS = sizeof dims / sizeof *dims };
    nb_kernels tables[N_ISA_MASKS + 1];
    nb_kernels_init(&tables[0], NB_ISA_SCALAR);
    const int n_tables = 1 + isa_tables(tables + 1);
    for (int i = 0; i < N_DIMS * n_tables * 3; i++)
        check_format(&tables[i / 3 / N_DIMS], formats[i % 3], dims[i / 3 % N_DIMS], i);
}

/* What nb_pack chooses: the nearest level for each number, no worse a range than the whole, and a
 * better fit than that of any range. */
static void groups_are_packed_well(void **state)
{
    (void)state;
    int64_t n_narrower = 0, n_fitted = 0;
    for (int i = 0; i < 4000; i++) {
        const int n = 1 + i % 64, bits = i % 3 ? 2 : 4, top = (1 << bits) - 1;
        float x[64];
        check_fill(x, n, i % 7 ? CHECK_RANDOM : CHECK_EQUAL, (uint64_t)i);
        for (int j = 0; j < n; j++)
            x[j] = ldexpf(x[j], i % 41 - 20) + (float)(i % 5);
        nb_packed group, whole;
        nb_pack(&group, x, n, bits);
        double low, high, off = 0, whole_off = 0;
        range_of(x, n, 1, &low, &high);
        (void)nb_pack_range(&whole, x, n, bits, (float)low, (float)high);
        const double s = (double)nb_f16_to_f32(group.scale), m = (double)nb_f16_to_f32(group.least);
        const double s0 = (double)nb_f16_to_f32(whole.scale);
        const double m0 = (double)nb_f16_to_f32(whole.least);
        for (int j = 0; j < 64; j++) {
            assert_in_range(group.code[j], 0, j < n ? top : 0);
            if (j >= n)
                continue;
            const double own = fabs((double)x[j] - (s * group.code[j] + m));
            for (int c = 0; c <= top; c++)
                assert_true(own <=
                            fabs((double)x[j] - (s * c + m)) + 0x1p-20 * (fabs(m) + top * s));
            off += own * own;
            whole_off += pow((double)x[j] - (s0 * whole.code[j] + m0), 2);
        }
        /* up to the roundings of values to binary32 */
        const double place = 0x1p-23 * (fabs(m) + top * s + fabs(m0) + top * s0);
        assert_true(sqrt(off) <= sqrt(whole_off) * (1 + 1e-5) + 8 * place);
        n_narrower += off < 0.9 * whole_off;
        float best = INFINITY;
        for (int t = 0; t < nb_pack_tries(bits); t++) {
            nb_packed range;
            const float cut = (float)t * ((float)high - (float)low) / 32;
            best =
                fminf(best, nb_pack_range(&range, x, n, bits, (float)low + cut, (float)high - cut));
        }
        assert_true(sqrt(off) <= sqrt((double)best) * (1 + 1e-5) + 8 * place);
        n_fitted += off < 0.95 * (double)best;
    }
    assert_true(n_narrower > 500 && n_fitted > 500);
}

/* Of int2 a quarter of the dimensions, those that 2 bits are worst for, have keys within half a
 * step of 4 bits. */
static void outliers_of_keys_have_four_bits(void **state)
{
    (void)state;
    nb_kernels tables[N_ISA_MASKS + 1];
    nb_kernels_init(&tables[0], NB_ISA_SCALAR);
    const int n_tables = 1 + isa_tables(tables + 1);
    static const int dims[] = {4, 64, 80, 128, 256};
    for (int i = 0; i < 5 * n_tables; i++) {
        const int dim = dims[i % 5], n_wide = (dim + 63) / 64 * 16;
        small s = small_open(NB_KV_INT2, dim);
        check_fill(s.keys, (int64_t)N_POSITIONS * dim, CHECK_RANDOM, (uint64_t)i);
        for (int64_t p = 0; p < N_POSITIONS; p++) {
            for (int64_t d = 0; d < dim; d++) /* a few large ones, one of them the same always */
                s.keys[p * dim + d] = d == 3 ? 1000 : s.keys[p * dim + d] * (d % 5 == 2 ? 20 : 1);
            store(&s, &tables[i / 5], p);
        }
        for (int64_t page = 2; page < N_POSITIONS / 32; page++) {
            int n = 0;
            for (int64_t d = 0; d < dim; d++) {
                const uint8_t *keys = s.view.arena + (size_t)s.table[page] * s.view.page_bytes;
                const size_t at = nb_kv_scales_at(NB_KV_INT2, dim);
                const bool wide = signbit(nb_float_get(keys + at, NB_F16, d));
                const int64_t largest = (dim + 2) / 5;
                n += wide;
                if (d == 3 || (largest <= n_wide && d % 5 == 2))
                    assert_int_equal(wide, d != 3);
                double low, high;
                range_of(s.keys + page * 32 * dim + d, 32, dim, &low, &high);
                for (int64_t p = page * 32; wide && p < page * 32 + 32; p++)
                    check_number((double)nb_f16_to_f32(nb_f16_from_f32(s.keys[p * dim + d])),
                                 cell_value(&s.view, 7, true, 0, p, d), low, high, 15);
            }
            assert_int_equal(n, dim - 1 < n_wide ? dim - 1 : n_wide);
        }
        small_close(&s);
    }
}

/* What is not finite makes the numbers of its scale NaN, and no others. */
static void what_is_not_finite_spoils_its_scale(void **state)
{
    (void)state;
    nb_kernels tables[N_ISA_MASKS + 1];
    nb_kernels_init(&tables[0], NB_ISA_SCALAR);
    const int n_tables = 1 + isa_tables(tables + 1);
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3 * n_tables * 3; i++) {
        small s = small_open(formats[i % 3], 80);
        const nb_kernels *k = &tables[i / 9];
        fill(&s, k, 7, 0);
        s.keys[72 * 80 + 50] = s.values[72 * 80 + 50] = bad[i / 3 % 3];
        store(&s, k, 72);
        store(&s, k, 95); /* the page's last seals it again */
        for (int64_t p = 0; p < 192; p++) {
            for (int64_t d = 0; d < 80; d++) {
                assert_int_equal(isnan(cell_value(&s.view, 7, true, 0, p, d)),
                                 p / 32 == 2 && d == 50);
                assert_int_equal(isnan(cell_value(&s.view, 7, false, 0, p, d)),
                                 p == 72 && (formats[i % 3] == NB_KV_INT2 ? d < 64 : d / 32 == 1));
            }
        }
        small_close(&s);
    }
}

/* The rotation is its own inverse, keeps products, and spreads one dimension over all. */
static void the_rotation_is_one(void **state)
{
    (void)state;
    for (int64_t n = 1; n <= 256; n *= 2) {
        float x[256], y[256], was[256];
        double before = 0, after = 0, size = 0;
        check_fill(x, n, CHECK_RANDOM, (uint64_t)n);
        check_fill(y, n, CHECK_RANDOM, (uint64_t)n + 1);
        memcpy(was, x, sizeof was);
        for (int64_t i = 0; i < n; i++) {
            before += (double)x[i] * (double)y[i];
            size += fabs((double)x[i]) + fabs((double)y[i]);
        }
        nb_hadamard(x, n);
        nb_hadamard(y, n);
        for (int64_t i = 0; i < n; i++)
            after += (double)x[i] * (double)y[i];
        assert_true(fabs(before - after) <= 0x1p-20 * size * size);
        nb_hadamard(x, n);
        for (int64_t i = 0; i < n; i++)
            assert_true(fabs((double)x[i] - (double)was[i]) <= 0x1p-20 * size);
        memset(x, 0, sizeof x);
        x[n - 1] = 3;
        nb_hadamard(x, n);
        for (int64_t i = 0; i < n; i++)
            assert_true(fabs(fabs((double)x[i]) - 3 / sqrt((double)n)) < 1e-6);
    }
}

/* Attention over int4 is attention over int4_plain with rotated values, rotated back, bit for bit.
 * Some of the pages are sealed. */
static void a_rotated_cache_is_a_plain_one_of_rotated_values(void **state)
{
    (void)state;
    enum { DIM = 64, GROUP = 3 };
    nb_kernels tables[N_ISA_MASKS + 1];
    nb_kernels_init(&tables[0], NB_ISA_SCALAR);
    const int n_tables = 1 + isa_tables(tables + 1);
    for (int i = 0; i < n_tables; i++) {
        const nb_kernels *k = &tables[i];
        small turned = small_open(NB_KV_INT4, DIM), plain = small_open(NB_KV_INT4_PLAIN, DIM);
        fill(&turned, k, 5, 0);
        memcpy(plain.keys, turned.keys, N_POSITIONS * DIM * sizeof(float));
        memcpy(plain.values, turned.values, N_POSITIONS * DIM * sizeof(float));
        for (int64_t p = 0; p < N_POSITIONS; p++) {
            nb_hadamard(plain.values + p * DIM, DIM);
            store(&plain, k, p);
        }
        assert_memory_equal(plain.view.arena, turned.view.arena, plain.bytes);
        float q[GROUP * DIM], out[2][GROUP * DIM];
        float *scratch = check_floats(nb_attn_scratch_floats(DIM, N_POSITIONS));
        check_fill(q, GROUP * DIM, CHECK_RANDOM, 77);
        for (int j = 0; j < 2; j++) {
            const nb_attn_args args = {.q = q,
                                       .out = out[j],
                                       .ld = GROUP * DIM,
                                       .n_q = 1,
                                       .n_group = GROUP,
                                       .pos0 = N_POSITIONS - 1,
                                       .scale = 0.125f,
                                       .kv = j == 0 ? turned.view : plain.view,
                                       .scratch = scratch};
            k->attention(&args);
        }
        for (int h = 0; h < GROUP; h++)
            nb_hadamard(out[1] + h * DIM, DIM);
        assert_memory_equal(out[0], out[1], sizeof out[0]);
        check_free(scratch);
        small_close(&turned);
        small_close(&plain);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pages_are_sealed_once_within_half_a_step),
        cmocka_unit_test(groups_are_packed_well),
        cmocka_unit_test(outliers_of_keys_have_four_bits),
        cmocka_unit_test(what_is_not_finite_spoils_its_scale),
        cmocka_unit_test(the_rotation_is_one),
        cmocka_unit_test(a_rotated_cache_is_a_plain_one_of_rotated_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
