/* nibble bench: how fast a model runs here, and what part of this machine's limits that is. Results
 * are checked before anything is timed. */
#include "base/memory.h"
#include "cli/bench.h"
#include "cli/verbs.h"
#include "model/shape.h"
#include "quant/recipe/scheme.h"

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
    {.name = "batch",
     .letter = 'b',
     .kind = NB_OPT_TEXT,
     .value = "LIST",
     .preset = "1,4,8,16,32",
     .help = "numbers of sequences that decode together, each with its own cache; or none"},
    {.name = "batch-prompt",
     .kind = NB_OPT_INT,
     .value = "N",
     .min = 1,
     .max = 1 << 20,
     .preset = "128",
     .help = "tokens in each sequence of a batch before it decodes"},
    {.name = "batch-gen",
     .kind = NB_OPT_INT,
     .value = "N",
     .min = 1,
     .max = 1 << 20,
     .preset = "32",
     .help = "tokens that each sequence of a batch decodes"},
    {.name = "depth",
     .letter = 'd',
     .kind = NB_OPT_TEXT,
     .value = "LIST",
     .preset = "0",
     .help = "tokens in the context before all of that; each depth of a list is measured"},
    {.name = "repeat",
     .letter = 'r',
     .kind = NB_OPT_INT,
     .value = "N",
     .min = 1,
     .max = 1000,
     .help = "measurements of each figure; the median counts (default: 5, or as many as begin "
             "within 10 seconds, but 2)"},
    {.name = "shape",
     .kind = NB_OPT_TEXT,
     .value = "SHAPE",
     .help = "in place of MODEL, random weights in memory: smollm2-135m, llama3.2-1b, llama2-7b, "
             "or LAYERSxWIDTH,HEADS/KV_HEADSxHEAD_DIM,FFN,VOCAB[,tied]"},
    {.name = "scheme",
     .kind = NB_OPT_TEXT,
     .value = "SCHEME",
     .preset = "Q4_0",
     .help = "formats of a shape's linear layers, as for quantize; embedding and output are q8_0"},
    {.name = "limits",
     .kind = NB_OPT_FLAG,
     .help = "measure this machine's limits; without MODEL, nothing else"},
    {.name = "name", .kind = NB_OPT_TEXT, .value = "LABEL", .help = "what to call the model"},
    NB_OPT_ROW_COMPUTE,
    NB_OPT_ROW_KV,
    NB_OPT_ROW_THREADS,
    NB_OPT_ROW_ISA,
    NB_OPT_ROW_JSON,
    NB_OPT_ROW_QUIET,
    {0},
};

#define MAX_DEPTH         (1 << 24)
#define DEFAULT_REPEAT    5
#define DEFAULT_PATIENCE  10.0
#define UNLIMITED_SECONDS 1e18

/* ---- what is wanted ---- */

/* "0,4096": whole numbers in [min, max], each once. */
static nb_status read_list(nb_bench_list *out, const char *option, const char *text, int64_t min,
                           int64_t max, nb_err *err)
{
    *out = (nb_bench_list){0};
    for (const char *at = text;; at++) {
        int64_t v = 0;
        const size_t digits = strspn(at, "0123456789");
        for (size_t i = 0; i < digits && v <= max; i++)
            v = 10 * v + (at[i] - '0');
        at += digits;
        bool bad = digits == 0 || v < min || v > max || out->n == NB_BENCH_LISTS ||
                   (*at != 0 && *at != ',');
        for (int i = 0; i < out->n; i++)
            bad = bad || out->of[i] == v;
        if (bad)
            return nb_fail(
                err, NB_USAGE,
                "--%s '%.80s': up to %d different numbers from %lld to %lld, with commas "
                "between them",
                option, text, NB_BENCH_LISTS, (long long)min, (long long)max);
        out->of[out->n++] = v;
        if (*at == 0)
            return NB_OK;
    }
}

static int64_t max64(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static nb_status read_wants(nb_bench_wants *w, const nb_args *args, nb_err *err)
{
    const bool given = nb_args_given(args, "repeat");
    *w = (nb_bench_wants){.prompt = nb_args_int(args, "prompt"),
                          .gen = nb_args_int(args, "gen"),
                          .batch_prompt = nb_args_int(args, "batch-prompt"),
                          .batch_gen = nb_args_int(args, "batch-gen"),
                          .repeat = given ? nb_args_int(args, "repeat") : DEFAULT_REPEAT,
                          .patience = given ? UNLIMITED_SECONDS : DEFAULT_PATIENCE};
    NB_TRY(read_list(&w->depths, "depth", nb_args_text(args, "depth"), 0, MAX_DEPTH, err));
    if (strcmp(nb_args_text(args, "batch"), "none") != 0)
        NB_TRY(read_list(&w->batches, "batch", nb_args_text(args, "batch"), 1, NB_BENCH_STEP, err));
    int64_t longest = max64(max64(w->prompt, w->gen), NB_BENCH_CHECK_CTX);
    if (w->batches.n > 0)
        longest = max64(longest, w->batch_prompt + w->batch_gen);
    for (int i = 0; i < w->depths.n; i++)
        w->n_ctx = max64(w->n_ctx, w->depths.of[i] + longest);
    return NB_OK;
}

static nb_status check_usage(const nb_args *args, nb_err *err)
{
    const bool model = nb_args_n_operands(args) > 0, shape = nb_args_given(args, "shape");
    if (model && shape)
        return nb_fail(err, NB_USAGE, "--shape stands in the place of MODEL: give one of them");
    if (nb_args_given(args, "scheme") && !shape)
        return nb_fail(err, NB_USAGE, "--scheme belongs to --shape");
    if (!model && !shape && !nb_args_flag(args, "limits"))
        return nb_fail(err, NB_USAGE,
                       "MODEL is missing; --shape makes one up, and --limits needs none");
    return NB_OK;
}

/* ---- a shape ---- */

/* The largest usual group that divides every row, as quantize chooses it. */
static int64_t choose_group(const nb_shape *s)
{
    for (int64_t g = 128; g > 8; g /= 2) {
        if (s->d_model % g == 0 && s->d_ff % g == 0 && s->n_heads * s->head_dim % g == 0)
            return g;
    }
    return 8;
}

static nb_status open_shape(nb_store **out, const nb_args *args, nb_scheme *scheme, nb_err *err)
{
    nb_shape shape;
    NB_TRY(nb_shape_parse(&shape, nb_args_text(args, "shape"), err));
    NB_TRY(nb_scheme_parse(scheme, nb_args_text(args, "scheme"), err));
    nb_weight linear = {.fmt = scheme->fmt,
                        .group_size = scheme->group_size,
                        .symmetric = scheme->symmetric,
                        .float_zeros = scheme->float_zeros,
                        .scale_type = NB_BF16,
                        .act = scheme->act};
    if (scheme->fmt->affine && scheme->group_size == NB_GROUP_CHOOSE)
        linear.group_size = choose_group(&shape);
    return nb_shape_open(out, &shape, nb_args_text(args, "shape"), &linear, 1, err);
}

/* ---- the verb ---- */

/* Before anything is read: memory for the weights, the longest context, and its RoPE table. Packed,
 * weights take what they take in a file; while one is packed, it is there twice. */
static nb_status check_memory(nb_store *store, int64_t n_ctx, const nb_args *args, nb_err *err)
{
    nb_config c;
    NB_TRY(nb_config_read(store, &c, err));
    const nb_kv_format kv = nb_kv_option(args, &c);
    int64_t weights = 0, largest = 0;
    for (int64_t i = 0; i < nb_store_n_weights(store); i++) {
        weights += nb_store_weight(store, i)->bytes;
        largest = max64(largest, nb_store_weight(store, i)->bytes);
    }
    const int64_t context = n_ctx * (nb_config_kv_bytes(&c, kv) + 4 * c.rot_dim);
    const int64_t available = nb_memory_available();
    if (weights + largest + context <= available)
        return NB_OK;
    return nb_fail(err, NB_LIMIT,
                   "%s: weights take %s and a context of %lld tokens %s, and %s of memory are free",
                   nb_store_path(store), nb_human_bytes(weights + largest).text, (long long)n_ctx,
                   nb_human_bytes(context).text, nb_human_bytes(available).text);
}

/* With all threads, whatever else runs: a limit of fewer would be none. */
static nb_status measure_limits(nb_bench *b, nb_err *err)
{
    nb_pool_back_off(b->rt.pool, false);
    const nb_status s = nb_limits_measure(&b->limits, b->rt.kernels.isa, b->rt.pool, err);
    nb_pool_back_off(b->rt.pool, true);
    return s;
}

static nb_status open_model(nb_bench *b, const nb_args *args, nb_scheme *scheme, nb_err *err)
{
    const double start = nb_clock();
    nb_store *store;
    if (nb_args_given(args, "shape")) {
        NB_TRY(open_shape(&store, args, scheme, err));
        b->scheme = scheme->name;
    } else {
        NB_TRY(nb_store_open(&store, nb_args_operand(args, 0), err));
    }
    const nb_status s = check_memory(store, b->wants.n_ctx, args, err);
    if (s != NB_OK) {
        nb_store_close(store);
        return s;
    }
    NB_TRY(
        nb_opened_load(&b->o, &b->rt, store, nb_compute_option(args), b->wants.n_ctx, false, err));
    b->o.load_seconds = nb_clock() - start;
    return NB_OK;
}

static nb_status run_open(nb_bench *b, const nb_args *args, nb_out *out, nb_err *err)
{
    NB_TRY(nb_runtime_open(&b->rt, args, err));
    if (nb_args_n_operands(args) == 0 && !nb_args_given(args, "shape")) {
        NB_TRY(measure_limits(b, err));
        return nb_bench_print_limits(&b->limits, &b->rt, out, err);
    }
    nb_scheme scheme;
    char label[256];
    b->label = nb_args_text(args, "name");
    if (b->label == NULL)
        b->label = nb_args_given(args, "shape")
                       ? nb_args_text(args, "shape")
                       : nb_path_label(nb_args_operand(args, 0), label, sizeof label);
    NB_TRY(open_model(b, args, &scheme, err));
    nb_opened_warn(&b->o, out);
    NB_TRY(nb_bench_prepare(b, nb_kv_option(args, &b->o.model.config), err));
    NB_TRY(nb_bench_check(b, err));
    NB_TRY(nb_bench_measure(b, out, err));
    b->peak_rss = nb_peak_rss();
    NB_TRY(measure_limits(b, err));
    if (nb_interrupted())
        return nb_fail_interrupted(err);
    return nb_bench_print(b, nb_kv_name(args, &b->o.model.config), out, err);
}

static nb_status run_bench(const nb_args *args, nb_out *out, nb_err *err)
{
    nb_bench b = {0};
    NB_TRY(check_usage(args, err));
    NB_TRY(read_wants(&b.wants, args, err));
    const nb_status s = run_open(&b, args, out, err);
    nb_bench_free(&b);
    return s;
}

const nb_verb nb_verb_bench = {
    .name = "bench",
    .summary = "measure prefill and decode speed, load time and memory",
    .example = "nibble bench small.gguf\n"
               "nibble bench small.gguf --depth 0,4096 --batch none --json\n"
               "nibble bench --shape llama3.2-1b --scheme W4A16:g128 --compute i8\n"
               "nibble bench --limits",
    .about =
        "Speeds are medians, with the slowest and the fastest run; those of batches count the\n"
        "tokens of all sequences. Shares are of this machine's limits, measured in the same\n"
        "run: what linear layers compute, of the peak of the multiply unit; what a step reads,\n"
        "weights and caches, of the bandwidth of memory. Before it times, it checks that\n"
        "prefill, decode and batches give the same logits bit for bit.",
    .operands = (const nb_operand[]){{"MODEL", NB_MODEL_HELP, .min = 0, .max = 1}, {0}},
    .options = bench_options,
    .run = run_bench,
};
