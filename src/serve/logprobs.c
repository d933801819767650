/* See logprobs.h. */
#include "serve/logprobs.h"

#include "text/unicode.h"

#include <stdio.h>
#include <string.h>

static void token_bytes(const nb_tokenizer *t, int32_t id, const char **bytes, size_t *len)
{
    nb_err err = {0};
    if (id < 0 || nb_tokenizer_token(t, id, bytes, len, &err) != NB_OK) {
        *bytes = ""; /* an id behind the vocabulary has no text */
        *len = 0;
    }
}

static bool is_utf8(const char *text, size_t len)
{
    for (size_t i = 0; i < len;) {
        int32_t c;
        i += nb_utf8_next((const uint8_t *)text + i, len - i, &c);
        if (c < 0)
            return false;
    }
    return true;
}

void nb_write_token(const nb_tokenizer *t, int32_t id, nb_wire *out)
{
    const char *bytes;
    size_t len;
    token_bytes(t, id, &bytes, &len);
    if (is_utf8(bytes, len)) {
        nb_wire_string(out, bytes, len);
        return;
    }
    nb_wire_raw(out, "\"bytes:");
    for (size_t i = 0; i < len; i++) {
        char hex[8];
        snprintf(hex, sizeof hex, "\\\\x%02x", (uint8_t)bytes[i]);
        nb_wire_raw(out, hex);
    }
    nb_wire_raw(out, "\"");
}

/* ---- completions ---- */

/* Rows of the prompt, then those of the answer. */
typedef struct {
    const nb_rows *prompt, *answer;
    int64_t n_prompt, first, n; /* of the answer: from `first` */
    int64_t width;
} row_list;

static int32_t row_id(const row_list *l, int64_t i)
{
    return i < l->n_prompt ? l->prompt->ids[i] : l->answer->ids[l->first + i - l->n_prompt];
}

static const nb_logprob *row_logprobs(const row_list *l, int64_t i)
{
    return i < l->n_prompt ? l->prompt->logprobs + i * l->width
                           : l->answer->logprobs + (l->first + i - l->n_prompt) * l->width;
}

/* The likeliest tokens, and the one that was taken when it is not among them. */
static void write_top(const nb_tokenizer *t, const nb_logprob *lp, int64_t width, nb_wire *out)
{
    if (lp[0].id < 0) {
        nb_wire_raw(out, "null");
        return;
    }
    bool taken = false, any = false;
    nb_wire_raw(out, "{");
    for (int64_t k = 1; k <= width; k++) {
        const nb_logprob *one = k < width ? &lp[k] : &lp[0];
        if ((k == width && taken) || one->id < 0)
            continue;
        taken |= one->id == lp[0].id;
        nb_wire_raw(out, any ? "," : "");
        any = true;
        nb_write_token(t, one->id, out);
        nb_wire_raw(out, ":");
        nb_wire_real(out, (double)one->logprob);
    }
    nb_wire_raw(out, "}");
}

/* Moves past the text of a token; of -1 past the end, where half a character becomes a whole one. A
 * token that ends within a character leaves it to the one that completes it, so the tokens of one
 * character begin where it does. */
static void pass_token(const nb_tokenizer *t, int32_t id, bool with_special, nb_choice *c,
                       nb_buf *text, nb_wire *out)
{
    nb_err err;
    if (out->status != NB_OK || id >= nb_tokenizer_n_tokens(t))
        return; /* an id behind the vocabulary has no text */
    text->len = 0;
    out->status =
        nb_tokenizer_decode(t, &c->decoder, &id, id < 0 ? 0 : 1, with_special, id < 0, text, &err);
    if (out->status == NB_OK && text->len > 0)
        c->n_chars += nb_wire_count((const char *)text->data, text->len);
}

/* Special tokens count where the text that is answered has them: those that were put around a
 * client's text are not in what is echoed. */
static void write_offsets(const nb_reply *r, const nb_tokenizer *t, const row_list *l, nb_choice *c,
                          nb_wire *out)
{
    const nb_prompt *prompt =
        l->prompt != NULL ? &r->ask->prompts[(c - r->choices) / r->ask->n] : NULL;
    nb_buf text = {0};
    for (int64_t i = 0; i < l->n; i++) {
        const bool echoed = i < l->n_prompt;
        nb_wire_raw(out, i > 0 ? "," : "");
        nb_wire_int(out, c->n_chars);
        pass_token(t, row_id(l, i), echoed ? prompt->text == NULL : r->ask->options.with_special, c,
                   &text, out);
        if (!echoed || i + 1 < l->n_prompt)
            continue;
        pass_token(t, -1, true, c, &text, out);
        if (prompt->text != NULL) /* to some tokenizers it begins with a space */
            c->n_chars = nb_wire_count(prompt->text, prompt->len);
    }
    nb_buf_free(&text);
}

void nb_write_logprobs(const nb_reply *r, const nb_tokenizer *t, const nb_rows *prompt,
                       nb_choice *c, nb_wire *out)
{
    const row_list l = {.prompt = prompt,
                        .answer = &c->rows,
                        .n_prompt = prompt != NULL ? prompt->n : 0,
                        .first = c->rows_taken,
                        .n = (prompt != NULL ? prompt->n : 0) + c->rows.n - c->rows_taken,
                        .width = 1 + r->n_top};
    nb_wire_raw(out, "{\"tokens\":[");
    for (int64_t i = 0; i < l.n; i++) {
        nb_wire_raw(out, i > 0 ? "," : "");
        nb_write_token(t, row_id(&l, i), out);
    }
    nb_wire_raw(out, "],\"token_logprobs\":[");
    for (int64_t i = 0; i < l.n; i++) {
        const nb_logprob *lp = row_logprobs(&l, i);
        nb_wire_raw(out, i > 0 ? "," : "");
        if (lp[0].id < 0)
            nb_wire_raw(out, "null");
        else
            nb_wire_real(out, (double)lp[0].logprob);
    }
    nb_wire_raw(out, "],\"top_logprobs\":[");
    for (int64_t i = 0; i < l.n; i++) {
        nb_wire_raw(out, i > 0 ? "," : "");
        write_top(t, row_logprobs(&l, i), l.width, out);
    }
    nb_wire_raw(out, "],\"text_offset\":[");
    write_offsets(r, t, &l, c, out);
    nb_wire_raw(out, "]}");
}

/* ---- chat ---- */

/* Without its closing brace. */
static void write_chat_token(const nb_tokenizer *t, int32_t id, double logprob, nb_wire *out)
{
    const char *bytes;
    size_t len;
    token_bytes(t, id, &bytes, &len);
    nb_wire_raw(out, "{\"token\":");
    nb_wire_string(out, bytes, len);
    nb_wire_raw(out, ",\"logprob\":");
    nb_wire_real(out, logprob);
    nb_wire_raw(out, ",\"bytes\":[");
    for (size_t i = 0; i < len; i++) {
        nb_wire_raw(out, i > 0 ? "," : "");
        nb_wire_int(out, (uint8_t)bytes[i]);
    }
    nb_wire_raw(out, "]");
}

void nb_write_chat_logprobs(const nb_reply *r, const nb_tokenizer *t, const nb_choice *c,
                            nb_wire *out)
{
    const int64_t width = 1 + r->n_top;
    nb_wire_raw(out, "{\"content\":[");
    for (int64_t i = c->rows_taken; i < c->rows.n; i++) {
        const nb_logprob *lp = c->rows.logprobs + i * width;
        nb_wire_raw(out, i > c->rows_taken ? "," : "");
        write_chat_token(t, c->rows.ids[i], (double)lp[0].logprob, out);
        nb_wire_raw(out, ",\"top_logprobs\":[");
        for (int64_t k = 1; k < width && lp[k].id >= 0; k++) {
            nb_wire_raw(out, k > 1 ? "," : "");
            write_chat_token(t, lp[k].id, (double)lp[k].logprob, out);
            nb_wire_raw(out, "}");
        }
        nb_wire_raw(out, "]}");
    }
    nb_wire_raw(out, "]}");
}
