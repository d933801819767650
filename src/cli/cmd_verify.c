/* nibble verify: the same logits from every way to compute them, or the first operation that gives
 * others. */
#include "base/rng.h"
#include "cli/runtime.h"
#include "cli/verbs.h"
#include "engine/engine_verify.h"
#include "eval/verify.h"

#include <stdio.h>
#include <string.h>

#define TEXT_LIMIT    ((size_t)64 << 20)
#define SCALAR_TOKENS 16 /* of scalar code, which is slow, unless --tokens says how many */

static const nb_opt verify_options[] = {
    {.name = "tokens",
     .letter = 'n',
     .kind = NB_OPT_INT,
     .value = "N",
     .min = 1,
     .max = 1 << 20,
     .preset = "64",
     .help = "tokens of the text (scalar code takes at most 16 of them unless this is given)"},
    {.name = "text",
     .kind = NB_OPT_PATH,
     .value = "FILE",
     .help = "take the tokens from a text (default: random ones)"},
    {.name = "full",
     .kind = NB_OPT_FLAG,
     .help = "every combination of cuts, batches, threads and instruction sets"},
    {.name = "against",
     .kind = NB_OPT_PATH,
     .value = "OTHER",
     .help = "compare with another model instead, one way each: the same weights in another file"},
    {.name = "compute",
     .kind = NB_OPT_CHOICE,
     .value = "MODE",
     .choices = nb_compute_choices,
     .preset = "auto",
     .help = "only this mode; auto: what the model's formats say (default: f, i8 and i16, as far "
             "as the formats allow)"},
    {.name = "kv",
     .kind = NB_OPT_CHOICE,
     .value = "TYPE",
     .choices = &nb_kv_choices[1], /* without auto: all are what it does anyway */
     .preset = "f16",
     .help = "only this number type of the key-value cache (default: all)"},
    {.name = "threads",
     .letter = 't',
     .kind = NB_OPT_INT,
     .value = "N",
     .min = 1,
     .max = 256,
     .zero_word = "auto",
     .preset = "auto",
     .help = "only this number of threads; auto: 1, 2, 3 and 8"},
    {.name = "isa",
     .kind = NB_OPT_CHOICE,
     .value = "ISA",
     .choices = nb_isa_choices,
     .preset = "auto",
     .help = "only this instruction set; auto: the best one (default: all that this machine has)"},
    NB_OPT_ROW_JSON,
    NB_OPT_ROW_QUIET,
    {0},
};

enum { MAX_MODES = 3, MAX_KVS = NB_KV_N_FORMATS };

typedef struct {
    char compute[8]; /* the mode's name */
    nb_kv_format kv;
    int64_t n_ways;
    uint64_t hash, other_hash;
    int n_engine; /* ways of the engine that gave the hash */
} cell_result;

typedef struct {
    const nb_args *args;
    nb_out *out;
    nb_runtime rt; /* loads the models; each way has threads of its own */
    nb_opened model, other;
    nb_buf text;
    int32_t *tokens;
    nb_verify_isa isas[NB_VERIFY_MAX_ISAS];
    const char *missing[NB_VERIFY_MAX_ISAS]; /* instruction sets that this machine lacks */
    int n_missing;
    int threads[NB_VERIFY_MAX_THREADS];
    nb_verify_plan plan;
    nb_kv_format kvs[MAX_KVS];
    int n_kvs;
    nb_compute_choice modes[MAX_MODES];
    int n_modes;
    bool no_integers; /* i8 and i16 were left out: no weight has an integer form */
    cell_result cells[MAX_MODES * MAX_KVS];
    int n_cells;
    nb_difference difference; /* in the cell after the last of `cells` */
    bool engine_refuses;      /* logits that are not finite */
    bool engine_differs;      /* in that cell, in this way: */
    nb_engine_way engine_way;
    int64_t n_preempted, n_found, n_engine_ways; /* by the engine, in all cells */
    nb_progress progress;
    int64_t n_ways;
    double start;
} verify_run;

/* ---- the matrix ---- */

/* The best set first: the longest text is computed there. */
static nb_status choose_isas(verify_run *run, nb_err *err)
{
    const nb_args *args = run->args;
    const bool one = nb_args_given(args, "isa");
    const char *wanted = nb_args_text(args, "isa");
    unsigned mask;
    if (one)
        NB_TRY(nb_isa_choose(wanted, &mask, err));
    int n = 0;
    while (nb_isa_choices[n] != NULL)
        n++;
    const int64_t n_tokens = nb_args_int(args, "tokens");
    for (int i = n - 1; i >= 0; i--) {
        const char *name = nb_isa_choices[i];
        if (strcmp(name, "auto") == 0 ||
            (one && strcmp(wanted, "auto") != 0 && strcmp(name, wanted) != 0))
            continue;
        nb_verify_isa isa = {.name = name, .n_tokens = n_tokens};
        NB_TRY(nb_isa_parse(name, &isa.mask, err));
        if ((nb_cpu_isa() & isa.mask) != isa.mask) {
            run->missing[run->n_missing++] = name;
            continue;
        }
        isa.slow = isa.mask == NB_ISA_SCALAR;
        if (isa.slow && !nb_args_given(args, "tokens") && n_tokens > SCALAR_TOKENS)
            isa.n_tokens = SCALAR_TOKENS;
        run->isas[run->plan.n_isas++] = isa;
        if (one)
            break;
    }
    if (one)
        run->n_missing = 0;
    return NB_OK;
}

static void choose_rest(verify_run *run)
{
    static const int threads[] = {1, 2, 3, 8};
    const nb_args *args = run->args;
    if (nb_args_int(args, "threads") > 0)
        run->threads[run->plan.n_threads++] = (int)nb_args_int(args, "threads");
    else
        for (size_t i = 0; i < sizeof threads / sizeof *threads; i++)
            run->threads[run->plan.n_threads++] = threads[i];
    run->plan.isas = run->isas;
    run->plan.threads = run->threads;
    run->plan.full = nb_args_flag(args, "full");
    for (int i = 0; nb_kv_choices[i] != NULL; i++) {
        nb_kv_format format;
        if (!nb_kv_format_named(nb_kv_choices[i], &format) ||
            strcmp(nb_kv_choices[i], nb_kv_format_name(format)) != 0)
            continue; /* another name for one that comes, too */
        nb_kv_format wanted = NB_KV_F16;
        (void)nb_kv_format_named(nb_args_text(args, "kv"), &wanted); /* one of the choices */
        if (!nb_args_given(args, "kv") || wanted == format)
            run->kvs[run->n_kvs++] = format;
    }
}

/* Modes that would repeat mode f are left out. */
static nb_status choose_modes(verify_run *run, nb_err *err)
{
    if (nb_args_given(run->args, "compute")) {
        run->modes[run->n_modes++] = nb_compute_option(run->args);
        return NB_OK;
    }
    nb_store *store;
    NB_TRY(nb_store_open(&store, nb_args_operand(run->args, 0), err));
    bool integers = false;
    for (int64_t i = 0; i < nb_store_n_weights(store); i++)
        integers = integers ||
                   nb_weight_compute(nb_store_weight(store, i), NB_COMPUTE_ALL_I8) != NB_COMPUTE_F;
    nb_store_close(store);
    run->modes[run->n_modes++] = NB_COMPUTE_ALL_F;
    if (integers) {
        run->modes[run->n_modes++] = NB_COMPUTE_ALL_I8;
        run->modes[run->n_modes++] = NB_COMPUTE_ALL_I16;
    }
    run->no_integers = !integers;
    return NB_OK;
}

static nb_status make_tokens(verify_run *run, nb_err *err)
{
    const int64_t vocab = run->model.model.config.vocab_size;
    const int64_t n = run->isas[0].n_tokens;
    NB_TRY(NB_ALLOC(&run->tokens, n, err));
    for (int64_t i = 0; i < n; i++) {
        uint32_t w[4];
        nb_philox(1, 0, (uint64_t)i, w);
        run->tokens[i] = (int32_t)(w[0] % (uint64_t)vocab);
    }
    if (nb_args_text(run->args, "text") == NULL)
        return NB_OK;
    nb_tokens found = {0};
    nb_status s = nb_tokenizer_encode(run->model.tokenizer, (const char *)run->text.data,
                                      run->text.len, (nb_encode_options){0}, &found, err);
    if (s == NB_OK && found.n < n)
        s = nb_fail(err, NB_DATA, "%s: %lld tokens, and --tokens is %lld",
                    nb_args_text(run->args, "text"), (long long)found.n, (long long)n);
    if (s == NB_OK)
        memcpy(run->tokens, found.ids, (size_t)n * sizeof *run->tokens);
    nb_tokens_free(&found);
    return s;
}

/* ---- running it ---- */

static bool go_on(void *context)
{
    (void)context;
    return !nb_interrupted();
}

static bool on_way(void *context)
{
    verify_run *run = context;
    nb_progress_update(run->out, &run->progress, ++run->n_ways + run->n_engine_ways);
    return !nb_interrupted();
}

/* The text's hash once more, from answers to requests. */
static nb_status run_engine(verify_run *run, cell_result *c, nb_err *err)
{
    const nb_engine_setup base = {.model = &run->model.model,
                                  .kernels = &run->rt.kernels,
                                  .pool = run->rt.pool,
                                  .tokenizer = run->model.tokenizer,
                                  .kv = c->kv};
    for (int way = 0; way < NB_N_ENGINE_WAYS; way++) {
        uint64_t hash;
        int64_t n_preempted, n_found;
        const nb_status s =
            nb_engine_verify(&base, (nb_engine_way)way, run->tokens, run->isas[0].n_tokens, go_on,
                             run, &hash, &n_preempted, &n_found, err);
        /* Logits may hold Inf or NaN and be the same everywhere; but no token follows from them. */
        run->engine_refuses = run->engine_refuses || s == NB_DATA;
        if (s == NB_DATA)
            return NB_OK;
        NB_TRY(s);
        run->n_preempted += n_preempted;
        run->n_found += n_found;
        run->engine_differs = hash != c->hash;
        run->engine_way = (nb_engine_way)way;
        if (run->engine_differs)
            return NB_OK;
        c->n_engine++;
        nb_progress_update(run->out, &run->progress, run->n_ways + ++run->n_engine_ways);
        if (nb_interrupted())
            return nb_fail(err, NB_INTERRUPTED, "interrupted");
    }
    return NB_OK;
}

static nb_status run_cell(verify_run *run, int64_t cell, nb_kv_format kv, bool in_depth,
                          nb_err *err)
{
    const int64_t n = run->isas[0].n_tokens;
    const nb_way_job jobs[] = {
        {.model = &run->model.model, .kv = kv, .tokens = run->tokens, .n_tokens = n, go_on, run},
        {.model = &run->other.model, .kv = kv, .tokens = run->tokens, .n_tokens = n, go_on, run}};
    cell_result *c = &run->cells[run->n_cells];
    c->kv = kv;
    nb_status s;
    if (nb_args_given(run->args, "against")) {
        const nb_way way = {.isa = run->isas[0].name,
                            .mask = run->isas[0].mask,
                            .threads = nb_pool_n_threads(run->rt.pool),
                            .batch = 1};
        uint64_t hash[2];
        s = nb_verify_pair(&way, jobs, hash, &run->difference, err);
        if (s == NB_OK) {
            c->hash = hash[0];
            c->other_hash = hash[1];
            c->n_ways = 1;
            on_way(run);
        }
    } else {
        nb_verify_result r;
        s = nb_verify_cell(&run->plan, &jobs[0], cell, in_depth, on_way, run, &r, err);
        if (s == NB_OK) {
            c->hash = r.hash;
            for (int i = 0; i < run->plan.n_isas; i++)
                c->n_ways += r.n_ways[i];
            run->difference = r.difference;
        }
        if (s == NB_OK && !r.difference.differ)
            s = run_engine(run, c, err);
    }
    if (s == NB_OK && !run->difference.differ && !run->engine_differs)
        run->n_cells++;
    if (s == NB_INTERRUPTED)
        return nb_fail_interrupted(err);
    return s == NB_DATA ? nb_context(err, "%s", nb_args_operand(run->args, 0)) : s;
}

static nb_status run_mode(verify_run *run, int mode, nb_err *err)
{
    static const char *const names[] = {"f", "i8", "i16"};
    const nb_compute_choice choice = run->modes[mode];
    const char *against = nb_args_text(run->args, "against");
    const int64_t n = run->isas[0].n_tokens;
    const bool with_text = nb_args_text(run->args, "text") != NULL;
    nb_opened_close(&run->model);
    NB_TRY(nb_opened_open(&run->model, &run->rt, nb_args_operand(run->args, 0), choice, n,
                          with_text, err));
    if (against != NULL) {
        nb_opened_close(&run->other);
        NB_TRY(nb_opened_open(&run->other, &run->rt, against, choice, n, false, err));
    }
    if (mode == 0) {
        nb_opened_warn(&run->model, run->out);
        NB_TRY(make_tokens(run, err));
    }
    for (int k = 0; k < run->n_kvs; k++) {
        const char *name =
            choice == NB_COMPUTE_AUTO ? nb_model_compute_name(&run->model.model) : names[choice];
        snprintf(run->cells[run->n_cells].compute, sizeof run->cells[0].compute, "%s", name);
        NB_TRY(run_cell(run, mode * MAX_KVS + k, run->kvs[k], k == 0, err));
        if (run->difference.differ || run->engine_differs)
            return NB_OK;
    }
    return NB_OK;
}

static int64_t count_ways(const verify_run *run)
{
    if (nb_args_given(run->args, "against"))
        return run->n_modes * run->n_kvs;
    int64_t n = 0;
    for (int64_t mode = 0; mode < run->n_modes; mode++)
        for (int64_t k = 0; k < run->n_kvs; k++)
            for (int i = 0; i < run->plan.n_isas; i++)
                n += nb_verify_ways(&run->plan, i, mode * MAX_KVS + k, k == 0, NULL);
    n += (int64_t)run->n_modes * run->n_kvs * NB_N_ENGINE_WAYS;
    return n;
}

/* ---- results ---- */

static json_t *json_hash(uint64_t hash)
{
    char text[24];
    snprintf(text, sizeof text, "%016llx", (unsigned long long)hash);
    return json_string(text);
}

static json_t *json_difference(const verify_run *run)
{
    const nb_difference *d = &run->difference;
    const cell_result *c = &run->cells[run->n_cells];
    if (!d->differ)
        return json_null();
    json_t *o =
        json_pack("{s:s, s:s, s:I, s:n, s:n, s:[ss]}", "compute", c->compute, "kv",
                  nb_kv_format_name(c->kv), "token", (json_int_t)d->token, "layer", "op", "ways",
                  nb_way_describe(&d->ways[0]).text, nb_way_describe(&d->ways[1]).text);
    if (d->in_logits) {
        json_object_set_new(o, "op", json_string("logits"));
    } else if (d->found) {
        json_object_set_new(o, "layer", json_integer((json_int_t)d->place.layer));
        json_object_set_new(o, "op", json_string(nb_op_name(d->place.op)));
    }
    return o;
}

static nb_status print_json(const verify_run *run, nb_err *err)
{
    const char *path = nb_args_operand(run->args, 0), *against = nb_args_text(run->args, "against");
    char label[256];
    nb_path_label(path, label, sizeof label);
    json_t *hashes = json_array(), *isas = json_array(), *threads = json_array();
    json_t *skipped = json_array();
    for (int i = 0; i < run->n_cells; i++) {
        const cell_result *c = &run->cells[i];
        json_array_append_new(hashes, json_pack("{s:s, s:s, s:o, s:I, s:i}", "compute", c->compute,
                                                "kv", nb_kv_format_name(c->kv), "logits_hash",
                                                json_hash(c->hash), "n_ways", (json_int_t)c->n_ways,
                                                "n_engine_ways", c->n_engine));
    }
    for (int i = 0; i < run->plan.n_isas; i++)
        json_array_append_new(isas, json_pack("{s:s, s:I}", "isa", run->isas[i].name, "n_tokens",
                                              (json_int_t)run->isas[i].n_tokens));
    for (int i = 0; i < run->plan.n_threads; i++)
        json_array_append_new(threads, json_integer(run->threads[i]));
    for (int i = 0; i < run->n_missing; i++)
        json_array_append_new(skipped, json_string(run->missing[i]));
    if (run->no_integers) {
        json_array_append_new(skipped, json_string("i8"));
        json_array_append_new(skipped, json_string("i16"));
    }
    json_t *o = json_pack("{s:o, s:o, s:I, s:I, s:o, s:o, s:o, s:o, s:f}", "name",
                          nb_json_any_text(label, strlen(label)), "hashes", hashes, "n_ways",
                          (json_int_t)run->n_ways, "n_tokens", (json_int_t)run->isas[0].n_tokens,
                          "isas", isas, "threads", threads, "skipped", skipped, "mismatch",
                          json_difference(run), "seconds", nb_clock() - run->start);
    if (o != NULL && against != NULL)
        json_object_set_new(o, "against", nb_json_any_text(against, strlen(against)));
    return nb_out_json(run->out, o, err);
}

static nb_status print_table(const verify_run *run, nb_err *err)
{
    static const char *const heads[] = {"mode", "KV", "logits hash", ">ways"};
    nb_table t = {0};
    nb_status s = nb_table_begin(&t, heads, 4, err);
    for (int i = 0; s == NB_OK && i < run->n_cells; i++) {
        const cell_result *c = &run->cells[i];
        s = nb_table_cell(&t, err, "%s", c->compute);
        if (s == NB_OK)
            s = nb_table_cell(&t, err, "%s", nb_kv_format_name(c->kv));
        if (s == NB_OK)
            s = nb_table_cell(&t, err, "%016llx", (unsigned long long)c->hash);
        if (s == NB_OK)
            s = nb_table_cell(&t, err, "%lld", (long long)c->n_ways);
    }
    if (s == NB_OK && run->n_cells > 0)
        return nb_table_print(&t, run->out, err);
    nb_table_free(&t);
    return s;
}

/* What was covered, and what was not. */
static void print_cover(const verify_run *run)
{
    nb_out *out = run->out;
    if (nb_args_given(run->args, "against")) {
        nb_out_text(out, "%lld tokens, %s\n", (long long)run->isas[0].n_tokens, run->isas[0].name);
        return;
    }
    nb_out_text(out, "in one piece, cuts of 64, 7 and 1, decoded; 1, 2, 7 and 32 sequences; ");
    for (int i = 0; i < run->plan.n_threads; i++)
        nb_out_text(out, "%s%d",
                    i == 0                        ? ""
                    : i + 1 < run->plan.n_threads ? ", "
                                                  : " and ",
                    run->threads[i]);
    nb_out_text(out, " thread%s\n", run->plan.n_threads + run->threads[0] == 2 ? "" : "s");
    const nb_verify_isa *last = &run->isas[run->plan.n_isas - 1];
    if (run->plan.full)
        nb_out_text(out, "every combination");
    else if (run->isas[0].slow)
        nb_out_text(out, "each of them, with 1 and 2 sequences");
    else
        nb_out_text(out, "every pair of them");
    if (!run->plan.full && !run->isas[0].slow && run->n_kvs > 1)
        nb_out_text(out, " with KV %s, each of them with the others",
                    nb_kv_format_name(run->kvs[0]));
    if (!run->plan.full && run->plan.n_isas > 1 && last->slow)
        nb_out_text(out, "; %s code one way a row", last->name);
    nb_out_text(out, "\n");
    for (int i = 0; i < run->plan.n_isas; i++)
        nb_out_text(out, "%s%s (%lld token%s)", i == 0 ? "" : ", ", run->isas[i].name,
                    (long long)run->isas[i].n_tokens, run->isas[i].n_tokens == 1 ? "" : "s");
    nb_out_text(out, "\n");
    if (run->engine_refuses)
        nb_out_text(out, "the engine answers no request: the logits are not finite\n");
    else
        nb_out_text(
            out,
            "the engine: a request for each beginning of the text, all at once, in few and "
            "in many\nsequences and steps; %lld preempted, %lld tokens found in the cache\n",
            (long long)run->n_preempted, (long long)run->n_found);
    if (run->n_missing > 0 || run->no_integers) {
        nb_out_text(out, "skipped:");
        for (int i = 0; i < run->n_missing; i++)
            nb_out_text(out, " %s", run->missing[i]);
        if (run->n_missing > 0)
            nb_out_text(out, " (not on this machine)%s", run->no_integers ? "," : "");
        if (run->no_integers)
            nb_out_text(out, " i8 i16 (no weight has an integer form)");
        nb_out_text(out, "\n");
    }
}

static nb_status print(const verify_run *run, nb_err *err)
{
    if (run->out->json) {
        NB_TRY(print_json(run, err));
    } else {
        NB_TRY(print_table(run, err));
        if (!run->difference.differ && !run->engine_differs)
            print_cover(run);
    }
    const nb_difference *d = &run->difference;
    const cell_result *c = &run->cells[run->n_cells];
    const char *path = nb_args_operand(run->args, 0), *against = nb_args_text(run->args, "against");
    if (run->engine_differs)
        return nb_fail(
            err, NB_DATA, "%s: mode %s, KV %s: the engine answers from other logits (%s requests)",
            path, c->compute, nb_kv_format_name(c->kv), nb_engine_way_name(run->engine_way));
    if (!d->differ)
        return NB_OK;
    if (against != NULL)
        return nb_fail(err, NB_DATA, "%s: mode %s, KV %s: %s differs from that of %s", path,
                       c->compute, nb_kv_format_name(c->kv), nb_difference_place(d).text, against);
    return nb_fail(err, NB_DATA, "%s: mode %s, KV %s: %s: (%s) and (%s) differ", path, c->compute,
                   nb_kv_format_name(c->kv), nb_difference_place(d).text,
                   nb_way_describe(&d->ways[0]).text, nb_way_describe(&d->ways[1]).text);
}

static nb_status run_all(verify_run *run, nb_err *err)
{
    const nb_args *args = run->args;
    const char *text = nb_args_text(args, "text");
    if (nb_args_given(args, "against") && nb_args_flag(args, "full"))
        return nb_fail(err, NB_USAGE, "verify: --against runs one way, and --full would run all");
    if (text != NULL)
        NB_TRY(nb_file_slurp(&run->text, text, TEXT_LIMIT, err));
    NB_TRY(choose_isas(run, err));
    choose_rest(run);
    NB_TRY(choose_modes(run, err));
    NB_TRY(nb_runtime_open(&run->rt, args, err));
    nb_progress_begin(run->out, &run->progress, "verifying", "ways", count_ways(run));
    nb_status s = NB_OK;
    for (int m = 0;
         s == NB_OK && m < run->n_modes && !run->difference.differ && !run->engine_differs; m++)
        s = run_mode(run, m, err);
    nb_progress_end(run->out, &run->progress);
    return s == NB_OK ? print(run, err) : s;
}

static nb_status run_verify(const nb_args *args, nb_out *out, nb_err *err)
{
    verify_run *run;
    NB_TRY(NB_ALLOC(&run, 1, err));
    run->args = args;
    run->out = out;
    run->start = nb_clock();
    const nb_status s = run_all(run, err);
    nb_opened_close(&run->model);
    nb_opened_close(&run->other);
    nb_runtime_close(&run->rt);
    nb_buf_free(&run->text);
    nb_free(run->tokens);
    nb_free(run);
    return s;
}

const nb_verb nb_verb_verify = {
    .name = "verify",
    .summary = "check that every way to compute a model gives the same bits",
    .example = "nibble verify small.gguf\n"
               "nibble verify small.gguf --compute i8 --kv f16 --full --json\n"
               "nibble verify small.gguf --against the-same-in-a-folder/",
    .about =
        "One hash of the logits for each compute mode and cache format, the same from prefill in\n"
        "one piece, in chunks and by single tokens, alone and beside other sequences, on any\n"
        "number of threads and every instruction set, and from requests to the engine in all\n"
        "sorts of company. Else the first operation that differs.",
    .operands = (const nb_operand[]){{"MODEL", NB_MODEL_HELP, .min = 1, .max = 1}, {0}},
    .options = verify_options,
    .run = run_verify,
};
