/* nibble convert: a model in another container, or as other floats. */
#include "cli/rewriting.h"

#include <string.h>

static const char *const dtype_choices[] = {"auto", "keep", "f32", "f16", "bf16", NULL};
static const char *const nonfinite_choices[] = {"refuse", "zero", "keep", NULL};

static const nb_opt convert_options[] = {
    NB_OPT_ROW_OUTPUT("where to write: X.gguf is a GGUF, anything else a Hugging Face folder"),
    NB_OPT_ROW_TO,
    {.name = "dtype",
     .kind = NB_OPT_CHOICE,
     .value = "TYPE",
     .choices = dtype_choices,
     .preset = "auto",
     .help = "f32, f16, bf16: every matrix in this type; keep: formats as they are, or refused; "
             "auto: keep, but GGUF blocks become 16-bit floats in a folder"},
    {.name = "requantize",
     .kind = NB_OPT_FLAG,
     .help = "where codes cannot be carried over exactly, choose new ones"},
    {.name = "nonfinite",
     .kind = NB_OPT_CHOICE,
     .value = "HOW",
     .choices = nonfinite_choices,
     .preset = "refuse",
     .help =
         "weights that are NaN or infinite: refuse the model, take them for zero, or keep them"},
    NB_OPT_ROW_DRY_RUN,
    NB_OPT_ROW_FORCE,
    NB_OPT_ROW_THREADS,
    NB_OPT_ROW_ISA,
    NB_OPT_ROW_JSON,
    NB_OPT_ROW_QUIET,
    {0},
};

/* The index of a choice in its list. */
static int index_of(const nb_args *args, const char *option, const char *const *choices)
{
    const char *value = nb_args_text(args, option);
    int i = 0;
    while (choices[i] != NULL && strcmp(choices[i], value) != 0)
        i++;
    return i;
}

static nb_status run_convert(const nb_args *args, nb_out *out, nb_err *err)
{
    nb_method method;
    NB_TRY(nb_method_parse(&method, "rtn", err));
    const nb_plan_request request = {.dtype = (nb_dtype)index_of(args, "dtype", dtype_choices),
                                     .requantize = nb_args_flag(args, "requantize")};
    const nb_nonfinite nonfinite = (nb_nonfinite)index_of(args, "nonfinite", nonfinite_choices);
    return nb_rewriting_run(args, request, NULL, &method, NULL, nonfinite, out, err);
}

const nb_verb nb_verb_convert = {
    .name = "convert",
    .summary = "write a model in another container; lossless where both can say it",
    .example = "nibble convert model.gguf -o model-folder\n"
               "nibble convert model-folder -o model.gguf",
    .about = "Floats stay what they are. From a folder to a GGUF, symmetric 4- and 8-bit\n"
             "codes become q4_0 and q8_0, exactly. From a GGUF to a folder, blocks become\n"
             "16-bit floats, and what that loses is printed; with --dtype keep, q4_0 and\n"
             "q8_0 become 4- and 8-bit codes in groups of 32, exactly.\n\n"
             "--json prints one object, with the keys of 'nibble quantize'.",
    .operands = (const nb_operand[]){{"MODEL", NB_MODEL_HELP, 1, 1}, {0}},
    .options = convert_options,
    .run = run_convert,
};
