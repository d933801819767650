/* See limits.h. */
#include "kernel/limits.h"

#include "base/clock.h"
#include "base/memory.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#define PASSES        6    /* of each figure; the best counts */
#define CHUNKS        24   /* for each thread in a pass: who loses his CPU delays one chunk */
#define CHUNK_SECONDS 1e-3 /* of computing */
#define CHUNK_BYTES   (1 << 20)
#define MIN_BUFFER    (32 << 20)

void nb_limit_loops_init(nb_limit_loops *loops, unsigned allow)
{
    nb_limits_ref(loops);
    const unsigned isa = nb_cpu_isa() & allow;
    (void)isa;
#if defined(__x86_64__)
    if (isa & NB_ISA_AVX2)
        nb_limits_avx2(loops);
    if (isa & NB_ISA_AVX512)
        nb_limits_avx512(loops);
    if (isa & NB_ISA_AMX)
        nb_limits_amx(loops);
#elif defined(__aarch64__)
    if (isa & NB_ISA_NEON)
        nb_limits_neon(loops);
#endif
}

/* What came of the loops: read by nobody, so that they cannot be left out. */
static atomic_uint sink;

/* ---- computing ---- */

typedef struct {
    const nb_peak_loop *loop;
    int64_t n_steps;
} peak_job;

static void peak_task(void *context, int64_t chunk, int thread)
{
    (void)chunk;
    (void)thread;
    const peak_job *job = context;
    atomic_fetch_or_explicit(&sink, job->loop->run(job->n_steps), memory_order_relaxed);
}

static double peak(const nb_peak_loop *loop, nb_pool *pool)
{
    peak_job job = {loop, 256};
    for (;;) {
        const double start = nb_clock();
        peak_task(&job, 0, 0);
        if (nb_clock() - start > CHUNK_SECONDS / 2)
            break;
        job.n_steps *= 2;
    }
    const int64_t n_chunks = (int64_t)CHUNKS * nb_pool_n_threads(pool);
    double best = 0;
    for (int pass = 0; pass < PASSES; pass++) {
        const double start = nb_clock();
        nb_pool_run(pool, n_chunks, peak_task, &job);
        const double ops = (double)(n_chunks * job.n_steps * loop->ops);
        const double rate = ops / (nb_clock() - start);
        best = rate > best ? rate : best;
    }
    return best;
}

/* ---- reading ---- */

/* Chunk i reads `times` over bytes [i * chunk_bytes, (i + 1) * chunk_bytes). */
typedef struct {
    nb_read_loop *read;
    const uint8_t *bytes;
    int64_t chunk_bytes, times;
} read_job;

static void read_task(void *context, int64_t chunk, int thread)
{
    (void)thread;
    const read_job *job = context;
    for (int64_t i = 0; i < job->times; i++)
        atomic_fetch_or_explicit(&sink,
                                 job->read(job->bytes + chunk * job->chunk_bytes, job->chunk_bytes),
                                 memory_order_relaxed);
}

/* Without a pool: on this thread. */
static double read_rate(read_job *job, int64_t n_chunks, nb_pool *pool)
{
    double best = 0;
    for (int pass = 0; pass < PASSES; pass++) {
        const double start = nb_clock();
        if (pool != NULL)
            nb_pool_run(pool, n_chunks, read_task, job);
        for (int64_t c = 0; pool == NULL && c < n_chunks; c++)
            read_task(job, c, 0);
        const double bytes = (double)(n_chunks * job->chunk_bytes * job->times);
        const double rate = bytes / (nb_clock() - start);
        best = rate > best ? rate : best;
    }
    return best;
}

/* Half of each thread's own cache, so that the other half holds whatever else there is. The chunks
 * may go to any thread, whose cache then has to take them once: `times` makes that small. */
static double l2_rate(read_job job, int64_t l2, nb_pool *pool)
{
    if (l2 < 4096)
        return 0;
    job.chunk_bytes = l2 / 2 / 1024 * 1024;
    job.times = 1 + (64 << 20) / job.chunk_bytes;
    return read_rate(&job, nb_pool_n_threads(pool), pool);
}

/* Half of the shared cache, read in turn: it passes through the private ones and stays in none. */
static double l3_rate(read_job job, int64_t l2, int64_t l3, int64_t buffer, nb_pool *pool)
{
    int64_t bytes = l3 / 2 < buffer / 4 ? l3 / 2 : buffer / 4;
    bytes = bytes / CHUNK_BYTES * CHUNK_BYTES;
    if (bytes < 4 * l2 * nb_pool_n_threads(pool))
        return 0;
    job.chunk_bytes = 64 << 10;
    return read_rate(&job, bytes / job.chunk_bytes, pool);
}

/* ---- the machine ---- */

/* Size of the cache of a level as one processor sees it; 0 where the system does not say. */
static int64_t cache_bytes(int level)
{
    for (int i = 0; i < 8; i++) {
        char path[80];
        int found = 0;
        long long kib = 0;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/level", i);
        FILE *f = fopen(path, "re");
        if (f == NULL)
            break;
        const bool is_it = fscanf(f, "%d", &found) == 1 && found == level;
        fclose(f);
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", i);
        f = is_it ? fopen(path, "re") : NULL;
        if (f == NULL)
            continue;
        const bool said = fscanf(f, "%lldK", &kib) == 1;
        fclose(f);
        if (said && kib > 0 && kib < 1 << 21)
            return kib << 10;
    }
    return 0;
}

static void touch_task(void *context, int64_t chunk, int thread)
{
    (void)thread;
    memset((uint8_t *)context + chunk * CHUNK_BYTES, 1, CHUNK_BYTES);
}

/* The largest buffer that can be had: many times what caches could keep of it, at most a quarter
 * of what is free. Written once, because memory that was never written is one page of zeros. */
static nb_status make_buffer(uint8_t **out, int64_t *bytes, int64_t l3, nb_pool *pool, nb_err *err)
{
    int64_t n = 16 * l3 > (256 << 20) ? 16 * l3 : 256 << 20;
    n = n > NB_LIMITS_BUFFER ? NB_LIMITS_BUFFER : n;
    while (n > MIN_BUFFER && n > nb_memory_available() / 4)
        n /= 2;
    nb_status s;
    while ((s = nb_alloc((void **)out, (size_t)n, 1, err)) == NB_MEMORY && n > MIN_BUFFER)
        n /= 2;
    NB_TRY(s);
    *bytes = n / CHUNK_BYTES * CHUNK_BYTES;
    nb_pool_run(pool, *bytes / CHUNK_BYTES, touch_task, *out);
    return NB_OK;
}

nb_status nb_limits_measure(nb_limits *out, unsigned isa, nb_pool *pool, nb_err *err)
{
    nb_limit_loops loops;
    nb_limit_loops_init(&loops, isa);
    const int64_t l2 = cache_bytes(2), l3 = cache_bytes(3);
    int64_t bytes = 0;
    uint8_t *buffer;
    if (make_buffer(&buffer, &bytes, l3, pool, err) != NB_OK)
        return nb_context(err, "measuring this machine's limits");
    read_job job = {.read = loops.read, .bytes = buffer, .chunk_bytes = CHUNK_BYTES, .times = 1};
    *out = (nb_limits){.n_threads = nb_pool_n_threads(pool),
                       .int8_unit = loops.int8.unit,
                       .fma_unit = loops.fma.unit,
                       .l2_bytes = l2,
                       .l3_bytes = l3};
    out->read = read_rate(&job, bytes / CHUNK_BYTES, pool);
    out->read_one = out->n_threads > 1 ? read_rate(&job, bytes / CHUNK_BYTES, NULL) : out->read;
    out->l2 = l2_rate(job, l2, pool);
    out->l3 = l3_rate(job, l2, l3, bytes, pool);
    nb_free(buffer);
    out->int8_ops = peak(&loops.int8, pool);
    out->fma_ops = peak(&loops.fma, pool);
    return NB_OK;
}
