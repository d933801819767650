/* nibble bench: how fast a model runs here. Results are checked before anything is timed. */
#include "base/rng.h"
#include "cli/runtime.h"
#include "cli/verbs.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const nb_opt bench_options[] = {
    {.name = "prompt",
     .letter = 'p',
     .kind = NB_OPT_INT,
     .value = "N",
     .min = 1,
     .max = 1 << 20,
     .preset = "512",
     .help = "tokens of prefill"},
    {.name = "gen",
     .letter = 'n',
     .kind = NB_OPT_INT,
     .value = "N",
     .min = 1,
     .max = 1 << 20,
     .preset = "64",
     .help = "tokens of decode, one at a time"},
    {.name = "depth",
     .kind = NB_OPT_INT,
     .value = "N",
     .min = 0,
     .max = 1 << 24,
     .preset = "0",
     .help = "tokens in the context before the prompt or the first generated token"},
    {.name = "repeat",
     .letter = 'r',
     .kind = NB_OPT_INT,
     .value = "N",
     .min = 1,
     .max = 1000,
     .preset = "5",
     .help = "measurements; the median counts"},
    {.name = "name", .kind = NB_OPT_TEXT, .value = "LABEL", .help = "what to call the model"},
    NB_OPT_ROW_COMPUTE,
    NB_OPT_ROW_KV,
    NB_OPT_ROW_THREADS,
    NB_OPT_ROW_ISA,
    NB_OPT_ROW_JSON,
    NB_OPT_ROW_QUIET,
    {0},
};

#define STEP_TOKENS 512

typedef struct {
    nb_runtime rt;
    nb_opened o;
    nb_work work;
    nb_kv_pool kv;
    nb_kv_seq seq;
    int32_t *tokens;
    float *hidden, *logits;
    double *times;
} bench;

typedef struct {
    double median, low, high; /* tokens per second */
} speed;

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static speed speed_of(double *seconds, int64_t n, int64_t n_tokens)
{
    qsort(seconds, (size_t)n, sizeof *seconds, compare_doubles);
    const double middle = n % 2 != 0 ? seconds[n / 2] : 0.5 * (seconds[n / 2 - 1] + seconds[n / 2]);
    return (speed){(double)n_tokens / middle, (double)n_tokens / seconds[n - 1],
                   (double)n_tokens / seconds[0]};
}

/* Feeds tokens [from, from + n) in steps of `step`; the last one's logits are computed. */
static nb_status feed(bench *b, int64_t from, int64_t n, int64_t step, nb_err *err)
{
    for (int64_t i = 0; i < n; i += step) {
        const int64_t count = n - i < step ? n - i : step;
        const nb_step_input in = {&b->seq, b->tokens + from + i, count, i + count == n};
        NB_TRY(nb_forward(&b->work, &in, 1, b->hidden, err));
        if (nb_interrupted())
            return nb_fail_interrupted(err);
    }
    nb_logits(&b->work, b->hidden, 1, b->logits);
    return NB_OK;
}

/* The contract in small: the same tokens at once, and one by one, give the same logits. */
static nb_status check(bench *b, nb_err *err)
{
    const int64_t n = 9, vocab = b->o.model.config.vocab_size;
    uint64_t hash[2];
    for (int i = 0; i < 2; i++) {
        nb_kv_seq_truncate(&b->seq, 0);
        NB_TRY(feed(b, 0, n, i == 0 ? n : 1, err));
        hash[i] = nb_logits_hash(b->logits, vocab, 0);
        for (int64_t t = 0; t < vocab; t++) {
            if (!isfinite(b->logits[t]))
                return nb_fail(err, NB_DATA, "%s: the model's logits are not finite",
                               nb_store_path(b->o.store));
        }
    }
    if (hash[0] != hash[1])
        return nb_fail(err, NB_DATA, "prefill and decode disagree: this is a fault of nibble");
    return NB_OK;
}

static nb_status measure(bench *b, const nb_args *args, nb_out *out, speed *prefill, speed *decode,
                         nb_err *err)
{
    const int64_t prompt = nb_args_int(args, "prompt"), gen = nb_args_int(args, "gen");
    const int64_t depth = nb_args_int(args, "depth"), repeat = nb_args_int(args, "repeat");
    const int64_t vocab = b->o.model.config.vocab_size;
    nb_progress progress;
    nb_progress_begin(out, &progress, "timing", "runs", 2 * repeat);
    nb_kv_seq_truncate(&b->seq, 0);
    if (depth > 0)
        NB_TRY(feed(b, 0, depth, STEP_TOKENS, err));
    /* The first run warms up and is not counted. */
    for (int64_t r = -1; r < repeat; r++) {
        nb_kv_seq_truncate(&b->seq, depth);
        const double start = nb_clock();
        NB_TRY(feed(b, depth, prompt, STEP_TOKENS, err));
        if (r >= 0)
            b->times[r] = nb_clock() - start;
        nb_progress_update(out, &progress, r + 1);
    }
    *prefill = speed_of(b->times, repeat, prompt);
    for (int64_t r = -1; r < repeat; r++) {
        nb_kv_seq_truncate(&b->seq, depth);
        int32_t token = b->tokens[depth];
        const double start = nb_clock();
        for (int64_t i = 0; i < gen; i++) {
            const nb_step_input in = {&b->seq, &token, 1, 1};
            NB_TRY(nb_forward(&b->work, &in, 1, b->hidden, err));
            nb_logits(&b->work, b->hidden, 1, b->logits);
            token = (int32_t)b->rt.kernels.argmax(b->logits, vocab);
            if (nb_interrupted())
                return nb_fail_interrupted(err);
        }
        if (r >= 0)
            b->times[r] = nb_clock() - start;
        nb_progress_update(out, &progress, repeat + r + 1);
    }
    *decode = speed_of(b->times, repeat, gen);
    nb_progress_end(out, &progress);
    return NB_OK;
}

static nb_status print(const bench *b, const nb_args *args, nb_out *out, speed prefill,
                       speed decode, nb_err *err)
{
    const char *name = nb_args_text(args, "name");
    char label[256];
    if (name == NULL)
        name = nb_path_label(nb_args_operand(args, 0), label, sizeof label);
    const int64_t rss = nb_peak_rss();
    const char *compute = nb_model_compute_name(&b->o.model), *isa = nb_isa_name(b->rt.kernels.isa);
    const int threads = nb_pool_n_threads(b->rt.pool);
    if (out->json)
        return nb_out_json(
            out,
            json_pack("{s:o, s:f, s:f, s:f, s:I, s:I, s:f, s:s, s:s, s:i, s:s, s:I, s:I, s:I, "
                      "s:[ff], s:[ff]}",
                      "name", nb_json_any_text(name, strlen(name)), "prefill_tok_s", prefill.median,
                      "decode_tok_s", decode.median, "load_s", b->o.load_seconds, "peak_rss_bytes",
                      (json_int_t)rss, "bytes", (json_int_t)nb_store_file_bytes(b->o.store), "bpw",
                      nb_opened_bpw(&b->o), "compute", compute, "kv", nb_args_text(args, "kv"),
                      "threads", threads, "isa", isa, "prompt_tokens",
                      (json_int_t)nb_args_int(args, "prompt"), "gen_tokens",
                      (json_int_t)nb_args_int(args, "gen"), "depth",
                      (json_int_t)nb_args_int(args, "depth"), "prefill_range", prefill.low,
                      prefill.high, "decode_range", decode.low, decode.high),
            err);
    nb_out_text(out, "%s: %s on disk, %.2f bits per weight; mode %s, %s, %d threads, KV %s\n", name,
                nb_human_bytes(nb_store_file_bytes(b->o.store)).text, nb_opened_bpw(&b->o), compute,
                isa, threads, nb_args_text(args, "kv"));
    nb_out_text(out, "prefill %8.1f tok/s  (%.1f to %.1f; %lld tokens at depth %lld)\n",
                prefill.median, prefill.low, prefill.high, (long long)nb_args_int(args, "prompt"),
                (long long)nb_args_int(args, "depth"));
    nb_out_text(out, "decode  %8.1f tok/s  (%.1f to %.1f; %lld tokens)\n", decode.median,
                decode.low, decode.high, (long long)nb_args_int(args, "gen"));
    nb_out_text(out, "load    %8.3f s\nmemory  %s at the peak\n", b->o.load_seconds,
                nb_human_bytes(rss).text);
    return NB_OK;
}

static nb_status run_open(bench *b, const nb_args *args, nb_out *out, nb_err *err)
{
    const int64_t prompt = nb_args_int(args, "prompt"), gen = nb_args_int(args, "gen");
    const int64_t longest = prompt > gen ? prompt : gen;
    int64_t n_ctx = nb_args_int(args, "depth") + longest;
    n_ctx = n_ctx < 16 ? 16 : n_ctx;
    NB_TRY(nb_runtime_open(&b->rt, args, err));
    NB_TRY(nb_opened_open(&b->o, &b->rt, nb_args_operand(args, 0), nb_compute_option(args), n_ctx,
                          false, err));
    nb_opened_warn(&b->o, out);
    const nb_config *c = &b->o.model.config;
    NB_TRY(nb_work_init(&b->work, &b->o.model, &b->rt.kernels, b->rt.pool, STEP_TOKENS, err));
    NB_TRY(nb_kv_pool_init(&b->kv, c, nb_kv_option(args), nb_kv_pages_for(n_ctx), err));
    NB_TRY(nb_kv_seq_init(&b->seq, &b->kv, n_ctx, err));
    NB_TRY(NB_ALLOC(&b->tokens, n_ctx, err));
    NB_TRY(NB_ALLOC(&b->hidden, c->d_model, err));
    NB_TRY(NB_ALLOC(&b->logits, c->vocab_size, err));
    NB_TRY(NB_ALLOC(&b->times, nb_args_int(args, "repeat"), err));
    for (int64_t i = 0; i < n_ctx; i++) {
        uint32_t w[4];
        nb_philox(1, 0, (uint64_t)i, w);
        b->tokens[i] = (int32_t)(w[0] % (uint64_t)c->vocab_size);
    }
    NB_TRY(check(b, err));
    speed prefill, decode;
    NB_TRY(measure(b, args, out, &prefill, &decode, err));
    return print(b, args, out, prefill, decode, err);
}

static nb_status run_bench(const nb_args *args, nb_out *out, nb_err *err)
{
    bench b = {0};
    const nb_status s = run_open(&b, args, out, err);
    nb_kv_seq_free(&b.seq);
    nb_kv_pool_free(&b.kv);
    nb_work_free(&b.work);
    nb_free(b.tokens);
    nb_free(b.hidden);
    nb_free(b.logits);
    nb_free(b.times);
    nb_opened_close(&b.o);
    nb_runtime_close(&b.rt);
    return s;
}

const nb_verb nb_verb_bench = {
    .name = "bench",
    .summary = "measure prefill and decode speed, load time and memory",
    .example = "nibble bench small.gguf\nnibble bench small.gguf --depth 4096 --threads 2 --json",
    .about =
        "Speeds are medians, with the slowest and the fastest run. Before it times, it checks\n"
        "that prefill and decode give the same logits bit for bit.",
    .operands = (const nb_operand[]){{"MODEL", NB_MODEL_HELP, .min = 1, .max = 1}, {0}},
    .options = bench_options,
    .run = run_bench,
};
