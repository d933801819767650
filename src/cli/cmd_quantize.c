/* nibble quantize: a model with fewer bits per weight. */
#include "cli/rewriting.h"

#include <string.h>

static const char *const nonfinite_choices[] = {"refuse", "zero", NULL};
static const char *const kv_choices[] = {"fp8", "fp8:head", NULL};
static const char *const flow_choices[] = {"auto", "original", "quantized", NULL};

static const nb_opt quantize_options[] = {
    NB_OPT_ROW_OUTPUT("where to write: X.gguf is a GGUF, anything else a Hugging Face folder"),
    {.name = "scheme",
     .letter = 's',
     .kind = NB_OPT_TEXT,
     .value = "SCHEME",
     .help = "W8A16, W4A16, W3A16, W2A16, W8A8, W4A8, with :gN or :channel, sym or asym, as in "
             "W4A16:g32,asym, or zero=float, and static, as in W8A8:static; FP8, FP8_BLOCK, NF4; "
             "Q4_0, Q4_1, IQ4_NL, Q5_0, Q5_1, Q8_0, Q3_K, Q4_K, Q5_K; or a mixture as in "
             "llama.cpp: Q2_K, Q3_K_S, Q3_K_M, Q3_K_L, Q4_K_S, Q4_K_M, Q5_K_S, Q5_K_M, Q6_K"},
    NB_OPT_ROWS_RECIPE,
    {.name = "method",
     .letter = 'm',
     .kind = NB_OPT_TEXT,
     .value = "METHOD",
     .preset = "rtn",
     .help = "how codes are chosen: rtn (round to nearest; rtn:search is the default of mixtures), "
             "hqq, gptq, gptaq, qronos, autoround"},
    {.name = "tune",
     .kind = NB_OPT_TEXT,
     .value = "METHOD",
     .help = "go on from the codes of --method, block by block: autoround:iters=50"},
    {.name = "distill",
     .kind = NB_OPT_TEXT,
     .value = "STEPS",
     .help = "at the end, tune the scales of all layers together, by the whole model's forward and "
             "backward pass, so that it predicts what the original does: 64, or "
             "64,batch=1,len=2048,lr=0.003"},
    {.name = "transform",
     .kind = NB_OPT_TEXT,
     .value = "TRANSFORM",
     .help = "change weights first, without changing the function: awq, smoothquant"},
    NB_OPT_ROWS_CALIB,
    NB_OPT_ROW_SEED,
    {.name = "calib-flow",
     .kind = NB_OPT_CHOICE,
     .value = "FLOW",
     .choices = flow_choices,
     .preset = "auto",
     .help = "what layers see while they are calibrated: the original model's activations, or "
             "those of the model as quantized so far; auto: as the method is meant"},
    {.name = "observer",
     .kind = NB_OPT_TEXT,
     .value = "OBSERVER",
     .help =
         "how static scales of activations (W8A8:static, FP8:static) and of the KV cache (--kv) "
         "follow from the values of the calibration text: minmax (default of --kv), average, "
         "percentile=99.99, entropy, mse (default)"},
    {.name = "kv",
     .kind = NB_OPT_CHOICE,
     .value = "TYPE",
     .choices = kv_choices,
     .help = "give the output static scales for an FP8 key-value cache, from the calibration text: "
             "fp8 (one for the keys and one for the values of a layer) or fp8:head (of each head)"},
    {.name = "guide",
     .kind = NB_OPT_FLAG,
     .help = "let tokens of the calibration text count by what their errors do to the model's "
             "predictions; costs about 3.5 forward passes"},
    {.name = "guide-outputs",
     .kind = NB_OPT_FLAG,
     .help = "the same, and rows of a layer make up for each other's errors as far as predictions "
             "go: gptq and qronos; costs about 4.5 forward passes"},
    {.name = "memory",
     .kind = NB_OPT_SIZE,
     .value = "BYTES",
     .max = INT64_MAX,
     .help = "stay under this much memory, or say at once that it cannot be done"},
    {.name = "check",
     .kind = NB_OPT_INT,
     .value = "N",
     .min = 0,
     .max = NB_CALIB_MAX_SEQUENCES,
     .preset = "4",
     .help = "after a calibrated run, measure what the output has lost on up to N held-out "
             "calibration sequences, for nibble-report.json; 0: do not"},
    NB_OPT_ROWS_CHECK_TASKS,
    {.name = "fresh",
     .kind = NB_OPT_FLAG,
     .help = "do not go on from what an interrupted run has left"},
    NB_OPT_ROW_TO,
    {.name = "nonfinite",
     .kind = NB_OPT_CHOICE,
     .value = "HOW",
     .choices = nonfinite_choices,
     .preset = "refuse",
     .help = "weights that are NaN or infinite: refuse the model, or take them for zero"},
    NB_OPT_ROW_DRY_RUN,
    NB_OPT_ROW_FORCE,
    NB_OPT_ROW_THREADS,
    NB_OPT_ROW_ISA,
    NB_OPT_ROW_JSON,
    NB_OPT_ROW_QUIET,
    {0},
};

/* A mixture is measured with what it is written with. */
static const char *method_text(const nb_args *args)
{
    const bool mixes =
        nb_args_given(args, "bpw") || nb_args_given(args, "size") || nb_args_given(args, "max-kl");
    return mixes && !nb_args_given(args, "method") ? "rtn:search" : nb_args_text(args, "method");
}

static nb_status run_quantize(const nb_args *args, nb_out *out, nb_err *err)
{
    nb_method method;
    nb_recipe_flags recipes = {0};
    nb_calibrating_flags flags = {0};
    const bool zero = strcmp(nb_args_text(args, "nonfinite"), "zero") == 0;
    NB_TRY(nb_method_parse(&method, method_text(args), err));
    nb_status s = nb_recipe_flags_read(&recipes, args, &method, err);
    if (s == NB_OK)
        s = nb_calibrating_flags_read(&flags, args, err);
    flags.mixes = recipes.mix != NB_MIX_NONE;
    const nb_kv_scales_kind kv = flags.kv == NULL               ? NB_KV_SCALES_NONE
                                 : strcmp(flags.kv, "fp8") == 0 ? NB_KV_SCALES_LAYER
                                                                : NB_KV_SCALES_HEAD;
    if (s == NB_OK)
        s = nb_rewriting_run(args, (nb_plan_request){.kv = kv}, &recipes, &method, &flags,
                             zero ? NB_NONFINITE_ZERO : NB_NONFINITE_REFUSE, out, err);
    nb_calibrating_flags_free(&flags);
    nb_recipe_flags_free(&recipes);
    return s;
}

const nb_verb nb_verb_quantize = {
    .name = "quantize",
    .summary = "write a model with fewer bits per weight",
    .example = "nibble quantize model-folder -o model-w4 --scheme W4A16\n"
               "nibble quantize model.gguf -o model-q4.gguf --scheme Q4_0 --dry-run",
    .about =
        "W schemes quantize the linear layers of the blocks and write a Hugging Face\n"
        "folder in the layout of compressed-tensors, or of GPTQ or AWQ (--to), and with\n"
        "zero=float of HQQ; Q schemes write a GGUF, embeddings included. By default\n"
        "8-bit weights share a scale per row, narrower ones per group of 128, or of 64\n"
        "or 32 where 128 does not divide every row.\n\n"
        "--json prints one object: source, source_container, output, container, scheme,\n"
        "method, group_size, n_tensors, n_quantized, n_requantized, n_rounded, n_params,\n"
        "source_bytes, bytes (of the tensor files), side_bytes, weight_bytes, bpw,\n"
        "linear_bpw, memory_bytes, notes; then rms_error, max_error, rounding_rms_error,\n"
        "rounding_max_error, zeroed, seconds, peak_rss_bytes, and kv_cache with --kv; or, with\n"
        "--dry-run, dry_run, seconds, and tensors with name, shape, from, format, how, bytes.",
    .operands = (const nb_operand[]){{"MODEL", NB_MODEL_HELP, 1, 1}, {0}},
    .options = quantize_options,
    .run = run_quantize,
};
