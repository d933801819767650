/* nibble tokenize: token ids of a text, and the text of token ids. */
#include "cli/verbs.h"
#include "store/store.h"
#include "text/tokenizer.h"

#include <string.h>

/* Larger than any text somebody tokenizes in one piece, and still an honest bound. */
#define TEXT_LIMIT ((size_t)4 << 30)

static const nb_opt tokenize_options[] = {
    {.name = "text", .kind = NB_OPT_TEXT, .value = "STRING", .help = "this text instead of a file"},
    {.name = "decode",
     .letter = 'd',
     .kind = NB_OPT_FLAG,
     .help =
         "the input is token ids (decimal, or the JSON that encoding prints); print their text"},
    {.name = "special",
     .kind = NB_OPT_FLAG,
     .help = "special tokens in a text become their ids; when decoding, they are printed"},
    {.name = "add-bos",
     .kind = NB_OPT_FLAG,
     .help = "put the begin-of-sequence token first, if this tokenizer adds one by itself"},
    {.name = "add-end",
     .kind = NB_OPT_FLAG,
     .help =
         "put last what this tokenizer puts after a whole text, as models of embeddings have it"},
    {.name = "count",
     .letter = 'c',
     .kind = NB_OPT_FLAG,
     .help = "print only the number of tokens"},
    NB_OPT_ROW_JSON,
    NB_OPT_ROW_QUIET,
    {0},
};

/* The input: --text, a file, or standard input. `name` is what messages call it. */
static nb_status read_input(const nb_args *args, nb_buf *text, const char **name, nb_err *err)
{
    const char *given = nb_args_text(args, "text");
    const char *path = nb_args_operand(args, 1);
    if (given != NULL && path != NULL)
        return nb_fail(err, NB_USAGE, "tokenize: give a file or --text, not both");
    if (given == NULL && path == NULL)
        return nb_fail(err, NB_USAGE,
                       "tokenize: no text: give a FILE, '-' for standard input, or --text STRING");
    *name = given != NULL ? "--text" : path;
    if (given == NULL)
        return nb_file_slurp(text, path, TEXT_LIMIT, err);
    NB_TRY(nb_buf_text(text, given, err));
    NB_TRY(nb_buf_u8(text, 0, err));
    text->len--;
    return NB_OK;
}

static nb_status print_count(nb_out *out, const nb_tokens *tokens, nb_err *err)
{
    if (out->json) {
        json_t *left_out = tokens->n_left_out > 0 ? json_integer(tokens->n_left_out) : NULL;
        return nb_out_json(
            out, json_pack("{s:I, s:o*}", "count", (json_int_t)tokens->n, "left_out", left_out),
            err);
    }
    nb_out_text(out, "%lld\n", (long long)tokens->n);
    return NB_OK;
}

/* Written as they come, not through a JSON value: a long text has millions of them. */
static void print_ids(nb_out *out, const nb_tokens *tokens)
{
    const char *between = out->json ? "," : " ";
    nb_out_text(out, "%s", out->json ? "{\"ids\":[" : "");
    for (int64_t i = 0; i < tokens->n; i++)
        nb_out_text(out, "%s%d", i == 0 ? "" : between, (int)tokens->ids[i]);
    if (!out->json) {
        nb_out_text(out, "\n");
        return;
    }
    nb_out_text(out, "],\"count\":%lld", (long long)tokens->n);
    if (tokens->n_left_out > 0)
        nb_out_text(out, ",\"left_out\":%lld", (long long)tokens->n_left_out);
    nb_out_text(out, "}\n");
}

static nb_status encode(const nb_args *args, const nb_tokenizer *t, const nb_buf *text, nb_out *out,
                        nb_err *err)
{
    nb_tokens tokens = {0};
    const nb_encode_options how = {.parse_special = nb_args_flag(args, "special"),
                                   .add_bos = nb_args_flag(args, "add-bos"),
                                   .add_end = nb_args_flag(args, "add-end")};
    nb_status s = nb_tokenizer_encode(t, (const char *)text->data, text->len, how, &tokens, err);
    if (s == NB_OK && tokens.n_left_out > 0)
        nb_out_warn(out,
                    "%lld bytes have no token in this vocabulary and were left out, as Hugging "
                    "Face does",
                    (long long)tokens.n_left_out);
    if (s == NB_OK && nb_args_flag(args, "count"))
        s = print_count(out, &tokens, err);
    else if (s == NB_OK)
        print_ids(out, &tokens);
    nb_tokens_free(&tokens);
    return s;
}

static bool is_separator(char c)
{
    return c == ' ' || c == '\n' || c == '\r' || c == '\t' || c == ',' || c == '[' || c == ']';
}

/* Decimal ids separated by blanks or commas; brackets are ignored, so a JSON array works too. */
static nb_status parse_ids(const char *text, size_t len, nb_tokens *tokens, nb_err *err)
{
    size_t i = 0;
    while (i < len) {
        if (is_separator(text[i])) {
            i++;
            continue;
        }
        const size_t first = i;
        int64_t id = 0;
        while (i < len && text[i] >= '0' && text[i] <= '9' && id <= INT32_MAX)
            id = id * 10 + (text[i++] - '0');
        if (i == first || id > INT32_MAX || (i < len && !is_separator(text[i])))
            return nb_fail(err, NB_DATA, "byte %zu: a token id was expected, a whole number",
                           first);
        NB_TRY(nb_tokens_push(tokens, (int32_t)id, err));
    }
    return NB_OK;
}

/* The "ids" of an object that encoding printed. */
static nb_status parse_json_ids(const nb_buf *text, nb_tokens *tokens, nb_err *err)
{
    json_t *object, *ids = NULL;
    NB_TRY(nb_json_parse(&object, (const char *)text->data, text->len, err));
    nb_status s = nb_json_array(object, "ids", true, &ids, err);
    for (size_t i = 0; s == NB_OK && i < json_array_size(ids); i++) {
        const json_t *id = json_array_get(ids, i);
        const json_int_t v = json_integer_value(id);
        if (!json_is_integer(id) || v < 0 || v > INT32_MAX)
            s = nb_fail(err, NB_DATA, "ids[%zu] is not a token id", i);
        else
            s = nb_tokens_push(tokens, (int32_t)v, err);
    }
    json_decref(object);
    return s;
}

static nb_status decode(const nb_args *args, const nb_tokenizer *t, const nb_buf *input,
                        const char *name, nb_out *out, nb_err *err)
{
    nb_tokens tokens = {0};
    nb_buf text = {0};
    nb_decoder state = {0};
    const char *start = (const char *)input->data;
    const bool is_json = input->len > 0 && start[strspn(start, " \t\r\n")] == '{';
    nb_status s =
        is_json ? parse_json_ids(input, &tokens, err) : parse_ids(start, input->len, &tokens, err);
    if (s != NB_OK)
        nb_context(err, "%s", name);
    if (s == NB_OK && nb_args_flag(args, "count")) {
        s = print_count(out, &tokens, err);
    } else if (s == NB_OK) {
        s = nb_tokenizer_decode(t, &state, tokens.ids, tokens.n, nb_args_flag(args, "special"),
                                true, &text, err);
        if (s == NB_OK && out->json)
            s = nb_out_json(
                out, json_pack("{s:o}", "text", nb_json_any_text((char *)text.data, text.len)),
                err);
        else if (s == NB_OK)
            nb_out_bytes(out, text.data, text.len);
    }
    nb_buf_free(&text);
    nb_tokens_free(&tokens);
    return s;
}

static nb_status run_tokenize(const nb_args *args, nb_out *out, nb_err *err)
{
    nb_buf text = {0};
    nb_store *store = NULL;
    nb_tokenizer *t = NULL;
    const char *name = NULL;
    nb_status s;
    NB_TRY_GOTO(s, nb_store_open(&store, nb_args_operand(args, 0), err));
    NB_TRY_GOTO(s, nb_tokenizer_open(&t, store, err));
    NB_TRY_GOTO(s, read_input(args, &text, &name, err));
    if (nb_args_flag(args, "decode"))
        s = decode(args, t, &text, name, out, err);
    else
        s = encode(args, t, &text, out, err);
done:
    nb_tokenizer_close(t);
    nb_store_close(store);
    nb_buf_free(&text);
    return s;
}

const nb_verb nb_verb_tokenize = {
    .name = "tokenize",
    .summary = "token ids of a text, and back",
    .example = "nibble tokenize model.gguf text.txt\n"
               "nibble tokenize model.gguf --text 'Hello, world' --json\n"
               "nibble tokenize model.gguf --decode --text '19556 28 905'",
    .about =
        "The text is encoded byte for byte as it is. Special tokens in it are text unless\n"
        "--special is given. --json prints {\"ids\": [...], \"count\": N} or {\"text\": ...}.\n"
        "Bytes without a token are left out, with a warning and \"left_out\": N in the JSON.",
    .operands = (const nb_operand[]){{"MODEL", NB_MODEL_HELP, 1, 1},
                                     {"FILE", "the input; '-' is standard input", 0, 1},
                                     {0}},
    .options = tokenize_options,
    .run = run_tokenize,
};
