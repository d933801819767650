/* The options that say which weight becomes what: a scheme and a method for all, a file of rules,
 * or a budget within which measurement decides. */
#ifndef NB_CLI_RECIPE_OPTIONS_H
#define NB_CLI_RECIPE_OPTIONS_H

#include "cli/args.h"
#include "quant/recipe/preset.h"

#define NB_OPT_ROWS_RECIPE                                                                         \
    {.name = "recipe",                                                                             \
     .kind = NB_OPT_PATH,                                                                          \
     .value = "FILE",                                                                              \
     .help = "rules, one a line: PATTERN = SCHEME [method METHOD] [because \"REASON\"], or "       \
             "PATTERN = keep; the last one that matches wins, and --method is that of rules that " \
             "name none"},                                                                         \
        {.name = "print-recipe",                                                                   \
         .kind = NB_OPT_FLAG,                                                                      \
         .help = "print the rules, and nothing else, as --recipe takes them: with --dry-run, or "  \
                 "those of a mixture once it is measured; no model is written"},                   \
        {.name = "bpw",                                                                            \
         .kind = NB_OPT_FLOAT,                                                                     \
         .value = "BITS",                                                                          \
         .low = 1,                                                                                 \
         .high = 16,                                                                               \
         .help = "mix formats, at most so many bits per weight of the linear layers, scales and "  \
                 "zero points included: what each layer costs in each of --candidates is "         \
                 "measured on the calibration text"},                                              \
        {.name = "size",                                                                           \
         .kind = NB_OPT_SIZE,                                                                      \
         .value = "BYTES",                                                                         \
         .min = 1,                                                                                 \
         .max = INT64_MAX,                                                                         \
         .help = "mix formats, tensor files of at most this size"},                                \
        {.name = "max-kl",                                                                         \
         .kind = NB_OPT_FLOAT,                                                                     \
         .value = "NATS",                                                                          \
         .low = 0,                                                                                 \
         .high = 100,                                                                              \
         .help = "mix formats, as small as this divergence from the original allows"},             \
        {.name = "candidates",                                                                     \
         .kind = NB_OPT_TEXT,                                                                      \
         .value = "SCHEMES",                                                                       \
         .help = "formats to mix, separated by ';'; a folder: W3A16:g64,asym;W4A16:g64,asym;"      \
                 "W4A16:g32;W8A16, a GGUF: Q4_0;IQ4_NL;Q5_0;Q8_0"},                                \
    {                                                                                              \
        .name = "mix-tokens", .kind = NB_OPT_INT, .value = "N", .min = 16, .max = 1 << 20,         \
        .preset = "1024", .help = "tokens that each layer is measured on"                          \
    }

typedef enum { NB_MIX_NONE, NB_MIX_BPW, NB_MIX_SIZE, NB_MIX_KL } nb_mix;

/* `{0}` is empty. */
typedef struct {
    nb_recipe recipe; /* empty while a mixture has to be found, or a preset's model is not known */
    const nb_preset *preset; /* NULL: none */
    bool print;
    nb_mix mix;
    double bpw, max_kl;
    int64_t size, n_tokens;
    const char *candidates; /* NULL: what the container's are */
    const nb_method *method;
} nb_recipe_flags;

/* `method` is borrowed. NB_USAGE: neither of the ways to say it is given, or two of them; what a
 * recipe has wrong. */
nb_status nb_recipe_flags_read(nb_recipe_flags *f, const nb_args *args, const nb_method *method,
                               nb_err *err);
/* NB_USAGE: what was asked for does not go into such a container, as far as is known by now. */
nb_status nb_recipe_flags_check(const nb_recipe_flags *f, nb_store_kind to, nb_err *err);
/* Writes the rules of a preset, if there is one. */
nb_status nb_recipe_flags_resolve(nb_recipe_flags *f, const nb_config *config, nb_err *err);
void nb_recipe_flags_free(nb_recipe_flags *f);

#endif
