/* A verb of the command line, as data.
 *
 * To add one:
 *   1. write src/cli/cmd_NAME.c, which ends with
 *          const nb_verb nb_verb_NAME = {
 *              .name = "NAME",
 *              .summary = "what it does, in one line",
 *              .example = "nibble NAME model.gguf --ctx 2048",
 *              .operands = (const nb_operand[]){{"MODEL", NB_MODEL_HELP, .min = 1, .max = 1}, {0}},
 *              .options = name_options,       // const nb_opt[], ends with {0}; see args.h
 *              .run = run_name,
 *          };
 *      A name may have two words ("bench serve"); then files and symbols write bench_serve.
 *   2. add X(NAME) to verbs.def, where the top-level help should list it.
 *   3. add tests/cli/test_NAME.py.
 *
 * `run` gets parsed and range-checked arguments, prints results through `out` (out.h) and returns
 * a status. It never exits and never prints an error: main does both. A verb that takes long
 * polls nb_interrupted() and returns NB_INTERRUPTED after it tidied up. */
#ifndef NB_CLI_VERBS_H
#define NB_CLI_VERBS_H

#include "cli/args.h"
#include "cli/out.h"

struct nb_verb {
    const char *name;
    const char *summary;        /* one line, lower case, no full stop */
    const char *example;        /* one or more lines, each a whole command */
    const char *about;          /* optional paragraph below the usage, wrapped by hand at 78 */
    const nb_operand *operands; /* ends with {0}; NULL: takes none */
    const nb_opt *options;      /* ends with {0}; --help is added by itself */
    nb_status (*run)(const nb_args *args, nb_out *out, nb_err *err);
};

#define NB_MODEL_HELP "a .gguf file or a Hugging Face folder"

#define X(id) extern const nb_verb nb_verb_##id;
#include "cli/verbs.def"
#undef X

#endif
