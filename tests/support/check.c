/* See check.h. */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include "support/check.h"
#include "support/golden.h" /* cmocka, with what it wants first */
#include "base/rng.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* A region is whole pages, then one that cannot be read:
 *
 *   [ total, 16 bytes | guard 0xff, at least 64 | data ][ unreadable ]
 *
 * The start of the data minus 80 lies in the region's first page, so rounding finds the region. */
enum { HEAD = 16, GUARD = 64 };

static uint8_t *region_of(const void *buffer, size_t *total)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uint8_t *base = (uint8_t *)(((uintptr_t)buffer - HEAD - GUARD) / page * page);
    memcpy(total, base, sizeof *total);
    return base;
}

void *check_alloc(size_t bytes)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t total = (HEAD + GUARD + bytes + page - 1) / page * page;
    uint8_t *base =
        mmap(NULL, total + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED)
        fail_msg("no memory for a buffer of %zu bytes", bytes);
    assert_int_equal(mprotect(base + total, page, PROT_NONE), 0);
    memset(base, 0xff, total);
    memcpy(base, &total, sizeof total);
    return base + total - bytes;
}

float *check_floats(int64_t n)
{
    return check_alloc((size_t)n * sizeof(float));
}

bool check_guard_ok(const void *buffer)
{
    size_t total;
    const uint8_t *p = region_of(buffer, &total) + HEAD;
    while (p < (const uint8_t *)buffer && *p == 0xff)
        p++;
    return p == buffer;
}

void check_free(void *buffer)
{
    if (buffer == NULL)
        return;
    size_t total;
    uint8_t *base = region_of(buffer, &total);
    munmap(base, total + (size_t)sysconf(_SC_PAGESIZE));
}

const char *check_kind_name(check_kind kind)
{
    static const char *const names[CHECK_N_KINDS] = {"random",    "integers", "wide",  "extreme",
                                                     "subnormal", "equal",    "zeros", "special"};
    return names[kind];
}

static float from_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static float special(uint32_t pick, float ordinary)
{
    static const uint32_t odd[] = {0x7fc00000u, 0xffc12345u, 0x7f800000u, 0xff800000u, 0x00000000u,
                                   0x80000000u, 0x00000001u, 0x807fffffu, 0x7f7fffffu, 0xff7fffffu};
    const uint32_t n = sizeof odd / sizeof *odd;
    return pick < n ? from_bits(odd[pick]) : ordinary;
}

void check_fill(float *x, int64_t n, check_kind kind, uint64_t seed)
{
    for (int64_t i = 0; i < n; i++) {
        uint32_t w[4];
        nb_philox(seed, (uint64_t)kind, kind == CHECK_EQUAL ? 0 : (uint64_t)i, w);
        const float unit = (float)(int32_t)w[0] * 0x1p-31f;
        switch (kind) {
        case CHECK_RANDOM:
        case CHECK_EQUAL:
            x[i] = unit;
            break;
        case CHECK_INTEGERS:
            x[i] = (float)((int32_t)(w[0] % 17) - 8);
            break;
        case CHECK_WIDE:
            x[i] = from_bits((w[0] & 0x807fffffu) | (87 + w[1] % 81) << 23);
            break;
        case CHECK_EXTREME:
            x[i] = from_bits((w[0] & 0x7f800000u) == 0x7f800000u ? w[0] ^ 0x00800000u : w[0]);
            break;
        case CHECK_SUBNORMAL:
            x[i] = from_bits((w[0] & 0x807fffffu) | 1u);
            break;
        case CHECK_ZEROS:
            x[i] = from_bits(w[0] & 0x80000000u);
            break;
        case CHECK_SPECIAL:
        case CHECK_N_KINDS:
            x[i] = special(w[1] % 64, 4 * unit);
            break;
        }
    }
}

int64_t check_cases(int64_t n)
{
    const char *one_in = getenv("NIBBLE_CHECK_ONE_IN");
    const int64_t share = one_in == NULL ? 1 : atoll(one_in);
    assert_true(share >= 1 && share <= 100);
    return (n + share - 1) / share;
}

int64_t check_pick(uint64_t seed, uint64_t index, int64_t n)
{
    return (int64_t)(nb_rng_uniform(seed, UINT64_C(0x7069636b), index) * (double)n);
}

static void fault(check_run *run, const char *what, int64_t i, double got, double want)
{
    if (run->n_faults++ == 0)
        snprintf(run->first, sizeof run->first, "%s: %s: element %lld is %.9g (%a), not %.9g (%a)",
                 run->name, what, (long long)i, got, got, want, want);
}

bool check_same_f32(check_run *run, const char *what, const float *got, const float *want,
                    int64_t n)
{
    const int64_t before = run->n_faults;
    for (int64_t i = 0; i < n; i++) {
        run->n_compared++;
        run->n_nonzero += want[i] != 0;
        const bool same = memcmp(&got[i], &want[i], sizeof got[i]) == 0;
        if (!same && !(isnan(got[i]) && isnan(want[i])))
            fault(run, what, i, (double)got[i], (double)want[i]);
    }
    return run->n_faults == before;
}

bool check_same_f64(check_run *run, const char *what, double got, double want)
{
    run->n_compared++;
    run->n_nonzero += want != 0;
    if (memcmp(&got, &want, sizeof got) == 0 || (isnan(got) && isnan(want)))
        return true;
    fault(run, what, 0, got, want);
    return false;
}

bool check_same_bytes(check_run *run, const char *what, const void *got, const void *want, size_t n)
{
    const uint8_t *a = got, *b = want;
    const int64_t before = run->n_faults;
    for (size_t i = 0; i < n; i++) {
        run->n_compared++;
        run->n_nonzero += b[i] != 0;
        if (a[i] != b[i])
            fault(run, what, (int64_t)i, a[i], b[i]);
    }
    return run->n_faults == before;
}

bool check_near(check_run *run, const char *what, double got, double want, double bound)
{
    run->n_compared++;
    run->n_nonzero += want != 0;
    const bool ok = isnan(want) || isnan(got)   ? isnan(want) && isnan(got)
                    : isinf(want) || isinf(got) ? got == want
                                                : fabs(got - want) <= bound;
    if (!ok)
        fault(run, what, 0, got, want);
    return ok;
}

bool check_guard(check_run *run, const char *what, const void *buffer)
{
    if (check_guard_ok(buffer))
        return true;
    if (run->n_faults++ == 0)
        snprintf(run->first, sizeof run->first, "%s: %s: wrote before the start of a buffer",
                 run->name, what);
    return false;
}

bool check_clean(const check_run *run)
{
    return run->n_faults == 0 && run->n_compared > 0 && run->n_nonzero > 0;
}

void check_finish(const check_run *run)
{
    if (run->n_faults > 0)
        fail_msg("%lld faults, the first: %s", (long long)run->n_faults, run->first);
    if (!check_clean(run))
        fail_msg("%s: compared %lld values, %lld of them not zero: that shows nothing", run->name,
                 (long long)run->n_compared, (long long)run->n_nonzero);
}

void check_caught(const check_run *run)
{
    if (run->n_compared == 0 || run->n_faults == 0)
        fail_msg("%s: the planted fault was not caught", run->name);
}
