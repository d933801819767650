/* Command-line arguments: one const table of options per verb makes the parser and --help, so
 * that they cannot disagree.
 *
 * `--name=value` and `--name value`; `-o value`; `--` ends the options; `-` is standard input or
 * output where a path is expected. Wrong usage is NB_USAGE with one line that says what would be
 * right. Numbers use '.', whatever the locale. */
#ifndef NB_CLI_ARGS_H
#define NB_CLI_ARGS_H

#include "base/bytes.h"

typedef struct nb_verb nb_verb; /* verbs.h */

typedef enum {
    NB_OPT_FLAG = 1, /* no value */
    NB_OPT_INT,      /* a whole number in [min, max] */
    NB_OPT_SIZE,     /* bytes in [min, max]: 4096, 512M, 4G, 1.5G (powers of 1024) */
    NB_OPT_FLOAT,    /* a finite number in [low, high] */
    NB_OPT_CHOICE,   /* one of `choices` */
    NB_OPT_TEXT,
    NB_OPT_PATH, /* as text; may be "-" */
} nb_opt_kind;

typedef struct {
    const char *name;        /* without the dashes; NULL ends the table */
    char letter;             /* a short form, for what is typed daily; 0: none */
    bool repeats;            /* text and path only: may be given more than once */
    const char *const *also; /* long names that mean the same, of other programs; ends with NULL */
    nb_opt_kind kind;
    const char *value; /* what --help calls the value: "N", "FILE" */
    const char *help;
    const char *preset; /* the value when the option is not given, as it would be typed */
    int64_t min, max;
    const char *zero_word; /* whole numbers only: a word that may stand for 0, beside the range */
    double low, high;
    const char *const *choices; /* ends with NULL */
} nb_opt;

/* An operand: what is not an option. Only the last one may have max > 1. */
typedef struct {
    const char *name; /* "MODEL"; NULL ends the list */
    const char *help;
    int min, max;
} nb_operand;

#define NB_MANY 10000

/* Options that mean the same everywhere, declared once. */
extern const char *const nb_isa_choices[], *const nb_compute_choices[], *const nb_kv_choices[];
#define NB_OPT_ROW_JSON                                                                            \
    {                                                                                              \
        .name = "json", .kind = NB_OPT_FLAG, .help = "print JSON: one object a line, stable keys"  \
    }
#define NB_OPT_ROW_QUIET                                                                           \
    {                                                                                              \
        .name = "quiet", .letter = 'q', .kind = NB_OPT_FLAG, .help = "no progress, no notes"       \
    }
#define NB_OPT_ROW_SEED                                                                            \
    {                                                                                              \
        .name = "seed", .kind = NB_OPT_INT, .value = "N", .max = INT64_MAX,                        \
        .help = "seed of the random numbers"                                                       \
    }
#define NB_OPT_ROW_THREADS                                                                         \
    {                                                                                              \
        .name = "threads", .letter = 't', .kind = NB_OPT_INT, .value = "N", .min = 1, .max = 256,  \
        .zero_word = "auto", .preset = "auto",                                                     \
        .help = "threads to compute with, at most: fewer run while others need the processors; "   \
                "auto: one for each; results do not depend on it"                                  \
    }
#define NB_OPT_ROW_ISA                                                                             \
    {                                                                                              \
        .name = "isa", .kind = NB_OPT_CHOICE, .value = "ISA", .choices = nb_isa_choices,           \
        .preset = "auto", .help = "best instruction set to use; results do not depend on it"       \
    }
#define NB_OPT_ROW_COMPUTE                                                                         \
    {                                                                                              \
        .name = "compute", .kind = NB_OPT_CHOICE, .value = "MODE", .choices = nb_compute_choices,  \
        .preset = "auto",                                                                          \
        .help = "arithmetic of matrix products: f (floats), i8, i16 (integers); auto: as the "     \
                "model's formats say"                                                              \
    }
#define NB_OPT_ROW_KV                                                                              \
    {                                                                                              \
        .name = "kv", .kind = NB_OPT_CHOICE, .value = "TYPE", .choices = nb_kv_choices,            \
        .preset = "auto",                                                                          \
        .help = "number type of the key-value cache; int8 and fp8 halve its bytes, int4 and int2 " \
                "save more and cost more; auto: fp8 where the model says so, else f16; fp8 takes " \
                "the model's scales if it has some, fp8:dynamic finds its own"                     \
    }
#define NB_OPT_ROW_CTX                                                                             \
    {                                                                                              \
        .name = "ctx", .kind = NB_OPT_INT, .value = "N", .min = 1, .max = 1 << 24,                 \
        .help = "context length in tokens"                                                         \
    }
#define NB_OPT_ROW_OUTPUT(what)                                                                    \
    {                                                                                              \
        .name = "output", .letter = 'o', .kind = NB_OPT_PATH, .value = "PATH", .help = (what)      \
    }
#define NB_OPT_ROW_FORCE                                                                           \
    {                                                                                              \
        .name = "force", .kind = NB_OPT_FLAG, .help = "replace an existing output"                 \
    }

typedef struct nb_args nb_args;

/* Parses argv[0, argc) (without the program's and the verb's names). With --help or -h anywhere
 * before `--`, *help is true and nothing else was checked. Free with nb_args_free. */
nb_status nb_args_parse(nb_args **out, const nb_verb *verb, int argc, char *const *argv, bool *help,
                        nb_err *err);
void nb_args_free(nb_args *args); /* NULL is fine */

/* Does the verb have this option? */
bool nb_args_known(const nb_args *args, const char *name);
/* Was the option typed? Asking for a name or a kind that the table lacks is an assert. */
bool nb_args_given(const nb_args *args, const char *name);
/* The value typed, else the preset, else false, 0, 0.0 or NULL. */
bool nb_args_flag(const nb_args *args, const char *name);
int64_t nb_args_int(const nb_args *args, const char *name); /* NB_OPT_INT and NB_OPT_SIZE */
double nb_args_float(const nb_args *args, const char *name);
const char *nb_args_text(const nb_args *args, const char *name); /* text, path, choice */
/* Values of an option that repeats, in the order typed. */
int nb_args_n_values(const nb_args *args, const char *name);
const char *nb_args_value(const nb_args *args, const char *name, int i);

int nb_args_n_operands(const nb_args *args);
/* NULL when there are not so many. */
const char *nb_args_operand(const nb_args *args, int i);

/* Appends the verb's help: examples, usage, operands, options. */
nb_status nb_args_help(const nb_verb *verb, nb_buf *out, nb_err *err);

/* The name most like `word` (edit distance, prefixes); NULL when nothing is near. `names` is
 * called with 0, 1, ... until it returns NULL. */
typedef const char *nb_name_fn(const void *context, int i);
const char *nb_args_suggest(const char *word, nb_name_fn *names, const void *context);

#endif
