/* nibble chat: a conversation, on a terminal or from a script. */
#include "cli/answer.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define MESSAGE_LIMIT ((size_t)16 << 20)

static const nb_opt chat_options[] = {
    {.name = "message",
     .letter = 'm',
     .repeats = true,
     .kind = NB_OPT_TEXT,
     .value = "TEXT",
     .help = "say this instead of reading standard input; may be given more than once"},
    {.name = "system", .kind = NB_OPT_TEXT, .value = "TEXT", .help = "the system message"},
    {.name = "max-tokens",
     .letter = 'n',
     .kind = NB_OPT_INT,
     .value = "N",
     .max = INT32_MAX,
     .preset = "512",
     .help = "generate at most N tokens an answer (0: until the model ends it or the context is "
             "full)"},
    NB_ANSWER_OPTIONS,
    {0},
};

typedef struct {
    nb_answering a;
    nb_dialog dialog;
    nb_buf line;
    bool interactive;
    int64_t turn;
    uint8_t input[4096]; /* bytes of standard input; [at, n_input) are not yet read */
    size_t at, n_input;
    bool ended;
} chat;

/* ---- one turn ---- */

static nb_status print_json(chat *c, const nb_generation *r, int64_t n_dropped, const char *text,
                            size_t len, nb_err *err)
{
    json_t *members = nb_answering_json(&c->a, r, n_dropped);
    json_t *object = json_pack("{s:I, s:o}", "turn", (json_int_t)c->turn, "message",
                               nb_json_any_text(text, len));
    if (members == NULL || json_object_update(object, members) != 0) {
        json_decref(object);
        object = NULL;
    }
    json_decref(members);
    return nb_out_json(c->a.out, object, err);
}

static nb_status say(chat *c, const char *text, size_t len, nb_err *err)
{
    nb_generation r;
    int64_t n_dropped = 0;
    nb_status s = nb_dialog_answer(&c->dialog, &c->a.generator, text, len, c->a.policy,
                                   &c->a.options, &r, &n_dropped, err);
    NB_TRY(nb_answering_blame(&c->a, s, err));
    c->turn++;
    if (c->a.out->json)
        s = print_json(c, &r, n_dropped, text, len, err);
    nb_answering_summary(&c->a, &r, n_dropped);
    nb_generation_free(&r);
    nb_out_flush(c->a.out);
    return s;
}

/* ---- lines of standard input ---- */

/* Waits for bytes and reads them. A signal may arrive between a look at its flag and a read that
 * blocks, and may be handled on another thread: hence the look five times a second. */
static nb_status fill_input(chat *c, nb_err *err)
{
    struct pollfd wait = {.fd = STDIN_FILENO, .events = POLLIN};
    for (;;) {
        if (nb_interrupted())
            return nb_fail_interrupted(err);
        const int ready = poll(&wait, 1, 200);
        if (ready == 0 || (ready < 0 && errno == EINTR))
            continue;
        const ssize_t n = read(STDIN_FILENO, c->input, sizeof c->input);
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (n < 0)
            return nb_fail_errno(err, errno, "standard input");
        c->n_input = (size_t)n;
        c->at = 0;
        c->ended = n == 0;
        return NB_OK;
    }
}

/* Appends a line without its end to c->line; *end: there was none. */
static nb_status read_line(chat *c, bool *end, nb_err *err)
{
    *end = false;
    for (bool any = false;; any = true) {
        if (c->at == c->n_input && !c->ended)
            NB_TRY(fill_input(c, err));
        if (c->ended) {
            *end = !any;
            return NB_OK;
        }
        const uint8_t byte = c->input[c->at++];
        if (byte == '\n')
            return NB_OK;
        if (c->line.len == MESSAGE_LIMIT)
            return nb_fail(err, NB_LIMIT, "a line of standard input has more than %zu bytes",
                           MESSAGE_LIMIT);
        NB_TRY(nb_buf_u8(&c->line, byte, err));
    }
}

/* On a terminal: shows a prompt, and joins lines whose last character is a backslash. */
static nb_status read_message(chat *c, bool *end, nb_err *err)
{
    c->line.len = 0;
    for (bool more = false;;) {
        if (c->interactive) {
            fputs(more ? ". " : "> ", stderr);
            fflush(stderr);
        }
        NB_TRY(read_line(c, end, err));
        more = c->interactive && c->line.len > 0 && c->line.data[c->line.len - 1] == '\\';
        if (!more || *end)
            return nb_buf_reserve(&c->line, 1, err);
        c->line.data[c->line.len - 1] = '\n';
    }
}

/* ---- commands ---- */

static nb_status save(const chat *c, const char *path, nb_err *err)
{
    nb_buf text = {0};
    nb_outfile file = NB_OUTFILE_CLOSED;
    nb_status s = NB_OK;
    for (int64_t i = 0; i < c->dialog.n && s == NB_OK; i++) {
        const nb_message *m = &c->dialog.messages[i];
        json_t *object = json_pack("{s:s, s:o}", "role", m->role, "content",
                                   nb_json_any_text(m->content, m->len));
        s = object == NULL ? nb_fail(err, NB_MEMORY, "out of memory for a line of JSON")
                           : nb_json_write(&text, object, false, err);
        json_decref(object);
        if (s == NB_OK)
            s = nb_buf_text(&text, "\n", err);
    }
    if (s == NB_OK)
        s = nb_outfile_open(&file, path, false, err);
    if (s == NB_OK)
        s = nb_outfile_write(&file, text.data, text.len, err);
    if (s == NB_OK)
        s = nb_outfile_commit(&file, err);
    nb_outfile_abort(&file);
    nb_buf_free(&text);
    return s;
}

/* The text after "/name " when the line is that command, else NULL. */
static const char *after(const char *line, const char *name)
{
    const size_t n = strlen(name);
    if (strncmp(line, name, n) != 0 || (line[n] != 0 && line[n] != ' '))
        return NULL;
    return line[n] == ' ' ? line + n + 1 : line + n;
}

/* A line that begins with a slash, on a terminal. */
static nb_status command(chat *c, const char *line, bool *exits, nb_err *err)
{
    nb_out *out = c->a.out;
    const char *rest;
    if (after(line, "/exit") != NULL || after(line, "/quit") != NULL) {
        *exits = true;
    } else if (after(line, "/clear") != NULL) {
        nb_dialog_clear(&c->dialog);
        nb_out_note(out, "the conversation starts anew");
    } else if ((rest = after(line, "/system")) != NULL) {
        NB_TRY(nb_dialog_system(&c->dialog, *rest != 0 ? rest : NULL, err));
        nb_out_note(out, *rest != 0 ? "the system message is set" : "there is no system message");
    } else if ((rest = after(line, "/save")) != NULL && *rest != 0) {
        NB_TRY(save(c, rest, err));
        nb_out_note(out, "saved, one message a line");
    } else {
        if (after(line, "/help") == NULL)
            nb_out_warn(out, "there is no such command");
        nb_out_note(out, "/clear         forget the conversation");
        nb_out_note(out, "/system TEXT   set the system message; without a text, remove it");
        nb_out_note(out, "/save FILE     write the messages, one JSON object a line");
        nb_out_note(out, "/exit          end, as Ctrl-D does");
        nb_out_note(out, "A \\ at the end of a line continues it; Ctrl-C ends an answer.");
    }
    return NB_OK;
}

/* ---- the conversation ---- */

/* On a terminal a message that fails is no reason to lose the conversation. */
static nb_status forgive(chat *c, nb_status s, nb_err *err)
{
    if (s == NB_OK && nb_interrupted() && !(c->interactive && nb_interrupt_forgive()))
        return nb_fail_interrupted(err);
    if (s == NB_OK || !c->interactive || s == NB_MEMORY || s == NB_INTERRUPTED)
        return s;
    nb_out_warn(c->a.out, "%.900s", err->text);
    return NB_OK;
}

static nb_status converse(chat *c, nb_err *err)
{
    for (bool end = false, exits = false; !exits;) {
        NB_TRY(read_message(c, &end, err));
        if (end)
            return NB_OK;
        if (c->line.len == 0)
            continue;
        c->line.data[c->line.len] = 0; /* read_message left room */
        const char *line = (const char *)c->line.data;
        const nb_status s = c->interactive && line[0] == '/' ? command(c, line, &exits, err)
                                                             : say(c, line, c->line.len, err);
        NB_TRY(forgive(c, s, err));
        if (c->a.out->write_errno != 0)
            return NB_OK; /* main reports it */
    }
    return NB_OK;
}

static nb_status chat_all(chat *c, const nb_args *args, nb_out *out, nb_err *err)
{
    const int n = nb_args_n_values(args, "message");
    NB_TRY(nb_answering_open(&c->a, args, out, err));
    NB_TRY(nb_answering_dialog(&c->a, &c->dialog, err));
    for (int i = 0; i < n; i++) {
        const char *text = nb_args_value(args, "message", i);
        NB_TRY(forgive(c, say(c, text, strlen(text), err), err));
    }
    if (n > 0)
        return NB_OK;
    c->interactive = isatty(STDIN_FILENO) && isatty(STDERR_FILENO);
    if (c->interactive) {
        nb_answering_plan(&c->a);
        nb_out_note(out, "/help lists the commands");
    }
    return converse(c, err);
}

static nb_status run_chat(const nb_args *args, nb_out *out, nb_err *err)
{
    chat c = {0};
    const nb_status s = chat_all(&c, args, out, err);
    nb_dialog_free(&c.dialog);
    nb_buf_free(&c.line);
    nb_answering_close(&c.a);
    return s;
}

const nb_verb nb_verb_chat = {
    .name = "chat",
    .summary = "talk with a model",
    .example = "nibble chat model.gguf\n"
               "nibble chat model-folder --system \"Answer in one sentence.\" --temperature 0.7\n"
               "echo \"What is the capital of France?\" | nibble chat model.gguf --quiet",
    .about =
        "On a terminal, type messages; /help lists the commands. Otherwise every line of standard\n"
        "input (or every --message) is a message, answered in turn. The conversation is kept, and\n"
        "only what is new of it is computed. Without sampling options the model's\n"
        "generation_config.json decides how tokens are chosen; a model that has none is greedy.",
    .operands = (const nb_operand[]){{"MODEL", NB_MODEL_HELP, .min = 1, .max = 1}, {0}},
    .options = chat_options,
    .run = run_chat,
};
