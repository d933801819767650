/* nibble run: one prompt, one answer. */
#include "cli/answer.h"

#include <string.h>

#define PROMPT_LIMIT ((size_t)64 << 20)

static const nb_opt run_options[] = {
    {.name = "file",
     .letter = 'f',
     .kind = NB_OPT_PATH,
     .value = "FILE",
     .help = "read the prompt from a file, byte for byte; '-' is standard input"},
    {.name = "max-tokens",
     .letter = 'n',
     .kind = NB_OPT_INT,
     .value = "N",
     .max = INT32_MAX,
     .preset = "256",
     .help = "generate at most N tokens (0: until the model ends or the context is full)"},
    {.name = "chat",
     .kind = NB_OPT_FLAG,
     .help = "the prompt is a user's message, put into the model's chat template"},
    {.name = "system",
     .kind = NB_OPT_TEXT,
     .value = "TEXT",
     .help = "with --chat: the system message"},
    {.name = "special",
     .kind = NB_OPT_FLAG,
     .help = "special tokens written in the prompt become their ids (without --chat), and those "
             "that are generated are printed"},
    NB_ANSWER_OPTIONS,
    {0},
};

typedef struct {
    nb_answering a;
    nb_buf text; /* the prompt */
    nb_dialog dialog;
    nb_tokens ids;
    nb_generation result;
    int64_t n_dropped;
} run_state;

static nb_status read_prompt(const nb_args *args, nb_buf *text, nb_err *err)
{
    const char *given = nb_args_operand(args, 1), *file = nb_args_text(args, "file");
    if ((given == NULL) == (file == NULL))
        return nb_fail(err, NB_USAGE,
                       "run: give one prompt: \"TEXT\", --file FILE, or '-' for "
                       "standard input");
    if (given == NULL || strcmp(given, "-") == 0)
        return nb_file_slurp(text, file != NULL ? file : "-", PROMPT_LIMIT, err);
    return nb_buf_text(text, given, err);
}

/* The prompt as plain text to be continued. */
static nb_status complete(run_state *r, nb_err *err)
{
    const nb_tokenizer *t = r->a.o.tokenizer;
    const nb_encode_options how = {.parse_special = nb_args_flag(r->a.args, "special"),
                                   .add_bos = true};
    NB_TRY(nb_tokenizer_encode(t, (const char *)r->text.data, r->text.len, how, &r->ids, err));
    /* From nothing, a text begins at its begin-of-sequence token. */
    if (r->ids.n == 0 && nb_tokenizer_bos(t) >= 0)
        NB_TRY(nb_tokens_push(&r->ids, nb_tokenizer_bos(t), err));
    const nb_status s =
        nb_generate(&r->a.generator, &r->ids, &r->a.options, NULL, NULL, &r->result, err);
    return nb_answering_blame(&r->a, s, err);
}

static nb_status answer(run_state *r, nb_err *err)
{
    NB_TRY(nb_answering_dialog(&r->a, &r->dialog, err));
    const nb_status s =
        nb_dialog_answer(&r->dialog, &r->a.generator, (const char *)r->text.data, r->text.len,
                         r->a.policy, &r->a.options, &r->result, &r->n_dropped, err);
    return nb_answering_blame(&r->a, s, err);
}

static nb_status run_one(run_state *r, const nb_args *args, nb_out *out, nb_err *err)
{
    const bool chat = nb_args_flag(args, "chat");
    if (nb_args_given(args, "system") && !chat)
        return nb_fail(err, NB_USAGE, "run: --system belongs to a conversation: add --chat");
    NB_TRY(read_prompt(args, &r->text, err));
    r->a.options.with_special = nb_args_flag(args, "special");
    NB_TRY(nb_answering_open(&r->a, args, out, err));
    NB_TRY(chat ? answer(r, err) : complete(r, err));
    if (out->json)
        NB_TRY(nb_out_json(out, nb_answering_json(&r->a, &r->result, r->n_dropped), err));
    nb_answering_summary(&r->a, &r->result, r->n_dropped);
    return r->result.reason == NB_STOP_CALLER && nb_interrupted() ? nb_fail_interrupted(err)
                                                                  : NB_OK;
}

static nb_status run_run(const nb_args *args, nb_out *out, nb_err *err)
{
    run_state r = {0};
    const nb_status s = run_one(&r, args, out, err);
    nb_generation_free(&r.result);
    nb_tokens_free(&r.ids);
    nb_dialog_free(&r.dialog);
    nb_buf_free(&r.text);
    nb_answering_close(&r.a);
    return s;
}

const nb_verb nb_verb_run = {
    .name = "run",
    .summary = "complete a text, or answer one message with --chat",
    .example = "nibble run model.gguf \"The capital of France is\" -n 16\n"
               "nibble run model.gguf --chat \"What is the capital of France?\"\n"
               "nibble run model-folder --file prompt.txt --temperature 0.8 --top-p 0.9 --seed 7",
    .about =
        "Continues the prompt as plain text, after the begin-of-sequence token if the model's\n"
        "tokenizer adds one; prints the continuation alone. With --chat the prompt is a message\n"
        "in the model's chat template. Without sampling options the model's\n"
        "generation_config.json decides how tokens are chosen; a model that has none is greedy.\n"
        "The same seed gives the same text, on any machine and with any number of threads.",
    .operands = (const nb_operand[]){{"MODEL", NB_MODEL_HELP, .min = 1, .max = 1},
                                     {"PROMPT", "the text; '-' is standard input", 0, 1},
                                     {0}},
    .options = run_options,
    .run = run_run,
};
