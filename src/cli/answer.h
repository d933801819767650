/* What `run` and `chat` share: the options of generation, a model opened for it, its plan, text
 * that streams out, and the account of an answer. */
#ifndef NB_CLI_ANSWER_H
#define NB_CLI_ANSWER_H

#include "cli/guessing.h"
#include "cli/verbs.h"
#include "engine/dialog.h"

extern const char *const nb_ctx_policy_choices[];

#define NB_ANSWER_OPTIONS                                                                          \
    {.name = "temperature",                                                                        \
     .kind = NB_OPT_FLOAT,                                                                         \
     .value = "T",                                                                                 \
     .low = 0,                                                                                     \
     .high = 1000,                                                                                 \
     .help = "0: always the most likely token; else draw, the more evenly the higher (default: "   \
             "generation_config.json if it says do_sample, else 0; 1 if one of the next three is " \
             "given)"},                                                                            \
        {.name = "top-k",                                                                          \
         .kind = NB_OPT_INT,                                                                       \
         .value = "K",                                                                             \
         .max = INT32_MAX,                                                                         \
         .help = "draw from the K most likely tokens (0: all)"},                                   \
        {.name = "top-p",                                                                          \
         .kind = NB_OPT_FLOAT,                                                                     \
         .value = "P",                                                                             \
         .low = 0,                                                                                 \
         .high = 1,                                                                                \
         .help = "draw from the fewest tokens that together have the share P (1: all)"},           \
        {.name = "min-p",                                                                          \
         .kind = NB_OPT_FLOAT,                                                                     \
         .value = "P",                                                                             \
         .low = 0,                                                                                 \
         .high = 1,                                                                                \
         .help = "never draw what is less likely than P times the most likely token"},             \
        {.name = "repeat-penalty",                                                                 \
         .kind = NB_OPT_FLOAT,                                                                     \
         .value = "R",                                                                             \
         .low = 0.001,                                                                             \
         .high = 1000,                                                                             \
         .help = "make tokens of prompt and answer less likely (1: off)"},                         \
        {.name = "frequency-penalty",                                                              \
         .kind = NB_OPT_FLOAT,                                                                     \
         .value = "F",                                                                             \
         .low = -1000,                                                                             \
         .high = 1000,                                                                             \
         .help = "subtract F from a logit for each time its token was generated"},                 \
        {.name = "presence-penalty",                                                               \
         .kind = NB_OPT_FLOAT,                                                                     \
         .value = "F",                                                                             \
         .low = -1000,                                                                             \
         .high = 1000,                                                                             \
         .help = "subtract F from a logit when its token was generated at all"},                   \
        {.name = "greedy",                                                                         \
         .kind = NB_OPT_FLAG,                                                                      \
         .help = "always the most likely token, whatever generation_config.json says"},            \
        {.name = "seed",                                                                           \
         .kind = NB_OPT_INT,                                                                       \
         .value = "N",                                                                             \
         .max = INT64_MAX,                                                                         \
         .help = "seed of the draws (default: a new one, which is printed)"},                      \
        {.name = "stop",                                                                           \
         .repeats = true,                                                                          \
         .kind = NB_OPT_TEXT,                                                                      \
         .value = "TEXT",                                                                          \
         .help = "end before this text; may be given more than once"},                             \
        {.name = "stop-id",                                                                        \
         .repeats = true,                                                                          \
         .kind = NB_OPT_TEXT,                                                                      \
         .value = "ID",                                                                            \
         .help = "end before this token, too; may be given more than once"},                       \
        {.name = "min-tokens",                                                                     \
         .kind = NB_OPT_INT,                                                                       \
         .value = "N",                                                                             \
         .max = INT32_MAX,                                                                         \
         .help = "nothing ends the answer before N tokens"},                                       \
        {.name = "ignore-eos",                                                                     \
         .kind = NB_OPT_FLAG,                                                                      \
         .help = "go on when the model ends its answer"},                                          \
        {.name = "logit-bias",                                                                     \
         .repeats = true,                                                                          \
         .kind = NB_OPT_TEXT,                                                                      \
         .value = "ID=B",                                                                          \
         .help = "add B (-100 to 100) to the logit of a token; may be given more than once"},      \
        {.name = "logprobs",                                                                       \
         .kind = NB_OPT_INT,                                                                       \
         .value = "K",                                                                             \
         .max = NB_MAX_LOGPROBS,                                                                   \
         .help = "with --json: of each token, and of the K likeliest in its place, the logarithm " \
                 "of the probability"},                                                            \
        {.name = "json-schema",                                                                    \
         .kind = NB_OPT_PATH,                                                                      \
         .value = "FILE",                                                                          \
         .help = "the answer is JSON that this JSON schema allows (docs/json.md)"},                \
        {.name = "json-object", .kind = NB_OPT_FLAG, .help = "the answer is a JSON object"},       \
        NB_GUESS_OPTIONS,                                                                          \
        {.name = "ctx",                                                                            \
         .kind = NB_OPT_INT,                                                                       \
         .value = "N",                                                                             \
         .min = 1,                                                                                 \
         .max = 1 << 24,                                                                           \
         .help = "tokens that prompt and answer may have together (default: what the model was "   \
                 "trained for, at most 8192)"},                                                    \
        {.name = "ctx-policy",                                                                     \
         .kind = NB_OPT_CHOICE,                                                                    \
         .value = "POLICY",                                                                        \
         .choices = nb_ctx_policy_choices,                                                         \
         .preset = "stop",                                                                         \
         .help = "when the context is full: stop, or forget the oldest turn of the conversation"}, \
        NB_OPT_ROW_COMPUTE, NB_OPT_ROW_KV, NB_OPT_ROW_THREADS, NB_OPT_ROW_ISA, NB_OPT_ROW_JSON,    \
        NB_OPT_ROW_QUIET

/* Everything that answering holds. `{0}` is empty. */
typedef struct {
    const nb_args *args;
    nb_out *out;
    nb_runtime rt;
    nb_opened o;
    nb_guessing guessing;
    nb_generator generator;
    nb_generate_options options;
    const char *stops[NB_MAX_STOPS];
    int32_t stop_ids[NB_MAX_STOPS];
    nb_logit_bias *bias;
    nb_buf schema;
    nb_ctx_policy policy;
    bool to_terminal; /* control characters of the text are made visible */
    bool streams;     /* text is printed as it comes */
    bool line_open;   /* what was printed last does not end a line */
    bool planned;     /* the plan was printed */
} nb_answering;

/* Opens the model as the options say. */
nb_status nb_answering_open(nb_answering *a, const nb_args *args, nb_out *out, nb_err *err);
/* A conversation in the model's template, with the message of --system. */
nb_status nb_answering_dialog(nb_answering *a, nb_dialog *d, nb_err *err);
/* Says on standard error, once, what runs; the first text does so too. */
void nb_answering_plan(nb_answering *a);
/* The status of an answer; what the model is to blame for names its file. */
nb_status nb_answering_blame(const nb_answering *a, nb_status s, nb_err *err);
void nb_answering_close(nb_answering *a);

/* After an answer: ends the line, and says on standard error how fast it was and why it ended, or
 * that the context was full. n_dropped turns were forgotten. */
void nb_answering_summary(nb_answering *a, const nb_generation *r, int64_t n_dropped);

/* The answer as the members of a JSON object; NULL when jansson is out of memory. */
json_t *nb_answering_json(const nb_answering *a, const nb_generation *r, int64_t n_dropped);

#endif
