/* The options that say what a model is calibrated with; every verb that calibrates has these rows.
 */
#ifndef NB_CLI_CALIB_OPTIONS_H
#define NB_CLI_CALIB_OPTIONS_H

#include "cli/path_list.h"
#include "quant/calib/set.h"

extern const char *const nb_calib_pack_choices[], *const nb_calib_sample_choices[],
                                                      *const nb_calib_chat_choices[];

/* NB_OPT_ROWS_CALIB are all of them, one after the other; NB_OPT_ROW_SEED goes with them. */
#define NB_OPT_ROW_CALIB                                                                           \
    {                                                                                              \
        .name = "calib", .repeats = true, .kind = NB_OPT_PATH, .value = "FILE",                    \
        .help = "calibration data: a text, JSON lines (.jsonl: text, messages, prompt and "        \
                "completion, instruction and output, input_ids), or token ids (.npy; .bin: 16 "    \
                "bits each, 32 where the vocabulary has more than 65536); "                        \
                "several by commas, or given more than once"                                       \
    }
#define NB_OPT_ROW_CALIB_SAMPLES                                                                   \
    {                                                                                              \
        .name = "calib-samples", .kind = NB_OPT_INT, .value = "N", .min = 1,                       \
        .max = NB_CALIB_MAX_SEQUENCES, .preset = "128",                                            \
        .help = "sequences to calibrate with; every eighth judges and does not choose"             \
    }
#define NB_OPT_ROW_CALIB_LEN                                                                       \
    {                                                                                              \
        .name = "calib-len", .kind = NB_OPT_INT, .value = "N", .min = 2,                           \
        .max = NB_CALIB_MAX_LENGTH, .preset = "2048", .help = "tokens of a sequence"               \
    }
#define NB_OPT_ROW_CALIB_PACK                                                                      \
    {                                                                                              \
        .name = "calib-pack", .kind = NB_OPT_CHOICE, .value = "HOW",                               \
        .choices = nb_calib_pack_choices, .preset = "auto",                                        \
        .help = "all: documents follow each other and are cut into sequences; none: each is a "    \
                "sequence, cut at the length; auto: none for conversations"                        \
    }
#define NB_OPT_ROW_CALIB_SAMPLE                                                                    \
    {                                                                                              \
        .name = "calib-sample", .kind = NB_OPT_CHOICE, .value = "HOW",                             \
        .choices = nb_calib_sample_choices, .preset = "first",                                     \
        .help = "take documents as they come, or at random by --seed"                              \
    }
#define NB_OPT_ROW_CALIB_CHAT                                                                      \
    {                                                                                              \
        .name = "calib-chat", .kind = NB_OPT_CHOICE, .value = "HOW",                               \
        .choices = nb_calib_chat_choices, .preset = "template",                                    \
        .help = "conversations in the model's chat template, or as plain text"                     \
    }
#define NB_OPT_ROW_CALIB_FIELD                                                                     \
    {                                                                                              \
        .name = "calib-field", .kind = NB_OPT_TEXT, .value = "NAME",                               \
        .help = "member of each JSON line that is the document"                                    \
    }
#define NB_OPT_ROW_CALIB_SPLIT                                                                     \
    {                                                                                              \
        .name = "calib-split", .kind = NB_OPT_TEXT, .value = "TEXT",                               \
        .help =                                                                                    \
            "what separates documents in a text, \\n, \\t, \\\\ and \\xNN standing for bytes; "    \
            "default: the file is one document"                                                    \
    }
#define NB_OPT_ROWS_CALIB                                                                          \
    NB_OPT_ROW_CALIB, NB_OPT_ROW_CALIB_SAMPLES, NB_OPT_ROW_CALIB_LEN, NB_OPT_ROW_CALIB_PACK,       \
        NB_OPT_ROW_CALIB_SAMPLE, NB_OPT_ROW_CALIB_CHAT, NB_OPT_ROW_CALIB_FIELD,                    \
        NB_OPT_ROW_CALIB_SPLIT

/* The options with the texts they point to. `{0}` is empty. */
typedef struct {
    nb_calib_options options; /* n_paths is 0 when --calib was not given */
    char split[NB_CALIB_MAX_SEPARATOR + 1];
    nb_path_list files; /* where options.paths point */
} nb_calib_request;

/* From the rows above and SEED. NB_USAGE: an option that would do nothing, since --calib was not
 * given; an empty name; a separator that is not one. Free after failures, too. */
nb_status nb_calib_request_init(nb_calib_request *r, const nb_args *args, nb_err *err);
void nb_calib_request_free(nb_calib_request *r);

/* The bytes that a text with escapes stands for: out [size], with a terminating zero. NB_USAGE. */
nb_status nb_calib_unescape(char *out, size_t size, const char *text, nb_err *err);

#endif
