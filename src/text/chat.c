/* See chat.h.
 *
 * After rendering, nobody can tell a special token of the template from the same text in a
 * message. So messages are rendered with a mark, a code point that occurs nowhere else, put inside
 * whatever could be read as a special token; the rendered text is split at the special tokens that
 * are still whole, and the marks are taken out of the rest before it is encoded.
 *
 * A template may look at a content ("does it hold </think>?") and a mark could change the answer.
 * Therefore the marked rendering without its marks is compared with the plain one, and if they
 * differ, fewer marks are tried: only those inside complete special tokens and inside beginnings of
 * one at the end of a text. If these still differ, the template itself looks for special tokens in
 * messages, and the marked rendering is the safe one. */
#include "text/chat.h"

#include "text/jinja_text.h"
#include "text/tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>

/* ---- the texts of special tokens, sorted ---- */

typedef struct {
    nb_text *texts;
    int64_t n;
} specials;

static int by_bytes(const void *a, const void *b)
{
    const nb_text *x = a, *y = b;
    const size_t n = x->len < y->len ? x->len : y->len;
    const int c = memcmp(x->text, y->text, n);
    return c != 0 ? c : (x->len > y->len) - (x->len < y->len);
}

static nb_status collect_specials(specials *s, const nb_tokenizer *t, nb_err *err)
{
    *s = (specials){0};
    NB_TRY(NB_ALLOC(&s->texts, t->n_added, err));
    for (int64_t i = 0; i < t->n_added; i++)
        if (t->added[i].special && t->added[i].content.len > 0)
            s->texts[s->n++] = t->added[i].content;
    if (s->n > 0)
        qsort(s->texts, (size_t)s->n, sizeof *s->texts, by_bytes);
    return NB_OK;
}

/* The first of texts[from, to) whose byte number `at` is not below `byte`; all have `at` bytes in
 * common, and the one that ends there comes first. */
static int64_t lower_bound(const specials *s, int64_t from, int64_t to, size_t at, int byte)
{
    while (from < to) {
        const int64_t middle = from + (to - from) / 2;
        const nb_text t = s->texts[middle];
        if (t.len == at || (unsigned char)t.text[at] < byte)
            from = middle + 1;
        else
            to = middle;
    }
    return from;
}

/* Could a special token begin at text[0, len)? True when one is there in full, when `depth` bytes
 * of one are, and when the text ends before this is decided. */
static bool may_begin(const specials *s, const char *text, size_t len, size_t depth)
{
    int64_t from = 0, to = s->n;
    for (size_t i = 0; i < len && i < depth; i++) {
        const int byte = (unsigned char)text[i];
        from = lower_bound(s, from, to, i, byte);
        to = lower_bound(s, from, to, i, byte + 1);
        if (from == to)
            return false;
        if (s->texts[from].len == i + 1)
            return true;
    }
    return s->n > 0 && len > 0;
}

/* ---- marks ---- */

/* How much of a special token has to be seen: a hint of it, or as good as all. Tokens that are
 * longer than this are marked by their beginning, so that the search stays linear. */
typedef enum { MARK_NOTHING, MARK_HINTS, MARK_WHOLE } marking;
#define WHOLE_BYTES 256

/* The planes that are private use throughout: no model's text needs all of them. */
#define MARK_FIRST 0xF0000u
#define MARK_COUNT 0x20000u

static void note_marks(uint8_t *seen, const char *text, size_t len)
{
    for (size_t i = 0; i < len;) {
        uint32_t cp;
        i += nb_jtext_decode(text + i, len - i, &cp);
        if (cp >= MARK_FIRST)
            seen[(cp - MARK_FIRST) / 8] |= (uint8_t)(1u << (cp - MARK_FIRST) % 8);
    }
}

/* Of all strings and keys of a value; its depth is bounded by the parser. */
static void note_json(uint8_t *seen, const json_t *value)
{
    size_t i;
    json_t *v;
    const char *key;
    if (json_is_string(value))
        note_marks(seen, json_string_value(value), json_string_length(value));
    json_array_foreach(value, i, v) note_json(seen, v);
    json_object_foreach((json_t *)(uintptr_t)value, key, v)
    {
        note_marks(seen, key, strlen(key));
        note_json(seen, v);
    }
}

/* A code point that occurs neither in the plain rendering nor in any message, tool or special
 * token. */
static nb_status choose_mark(const specials *s, const nb_conversation *talk, const nb_buf *plain,
                             nb_buf *mark, nb_err *err)
{
    const nb_message *messages = talk->messages;
    uint8_t *seen;
    NB_TRY(NB_ALLOC(&seen, MARK_COUNT / 8, err));
    note_marks(seen, (const char *)plain->data, plain->len);
    for (int64_t i = 0; i < talk->n; i++) {
        note_marks(seen, messages[i].content, messages[i].len);
        note_marks(seen, messages[i].role, strlen(messages[i].role));
        note_json(seen, messages[i].more);
    }
    note_json(seen, talk->tools);
    for (int64_t i = 0; i < s->n; i++)
        note_marks(seen, s->texts[i].text, s->texts[i].len);
    uint32_t at = 0;
    while (at < MARK_COUNT && (seen[at / 8] >> at % 8 & 1) != 0)
        at++;
    nb_free(seen);
    if (at == MARK_COUNT)
        return nb_fail(err, NB_DATA, "the conversation uses every private code point there is");
    char bytes[4];
    return nb_buf_put(mark, bytes, nb_jtext_encode(MARK_FIRST + at, bytes), err);
}

static bool space_at_end(const char *text, size_t len, size_t *n)
{
    uint32_t cp;
    *n = nb_jtext_last(text, len);
    nb_jtext_decode(text + len - *n, *n, &cp);
    return nb_jtext_is_space(cp);
}

/* Appends text with bad UTF-8 replaced and marks put in; sets *marked if there were any. */
static nb_status put_marked(nb_buf *out, const specials *s, marking how, const nb_buf *mark,
                            const char *text, size_t len, bool *marked, nb_err *err)
{
    /* Templates trim, so what a special token could be continued behind is the end of the text
     * with and without white space. */
    size_t trimmed = len, step;
    while (trimmed > 0 && space_at_end(text, trimmed, &step))
        trimmed -= step;
    for (size_t i = 0; i < len; i += step) {
        uint32_t cp;
        step = nb_jtext_decode(text + i, len - i, &cp);
        if (cp == 0xFFFD)
            NB_TRY(nb_buf_text(out, "\xEF\xBF\xBD", err));
        else
            NB_TRY(nb_buf_put(out, text + i, step, err));
        const size_t end = i < trimmed ? trimmed : len;
        const size_t depth = how == MARK_WHOLE ? WHOLE_BYTES : step + 1;
        if (how == MARK_NOTHING || !may_begin(s, text + i, end - i, depth))
            continue;
        NB_TRY(nb_buf_put(out, mark->data, mark->len, err));
        *marked = true;
    }
    return NB_OK;
}

/* ---- rendering ---- */

typedef struct {
    const nb_tokenizer *t;
    const nb_jinja *template_;
    nb_conversation talk;
    specials special;
    nb_buf mark;
} chat;

static nb_status out_of_memory(nb_err *err)
{
    return nb_fail(err, NB_MEMORY, "out of memory while a conversation was put together");
}

static nb_status make_text(const chat *c, marking how, const char *text, size_t len, json_t **out,
                           bool *marked, nb_err *err)
{
    nb_buf b = {0};
    *out = NULL;
    nb_status s = put_marked(&b, &c->special, how, &c->mark, text, len, marked, err);
    if (s == NB_OK) {
        *out = json_stringn(b.len == 0 ? "" : (const char *)b.data, b.len);
        s = *out != NULL ? NB_OK : out_of_memory(err);
    }
    nb_buf_free(&b);
    return s;
}

/* Sets key to a text with marks; takes what it makes. */
static nb_status set_text(const chat *c, marking how, json_t *object, const char *key,
                          const char *text, size_t len, bool *marked, nb_err *err)
{
    json_t *v;
    NB_TRY(make_text(c, how, text, len, &v, marked, err));
    return json_object_set_new(object, key, v) == 0 ? NB_OK : out_of_memory(err);
}

static nb_status make_json(const chat *c, marking how, const json_t *value, json_t **out,
                           bool *marked, nb_err *err);

static nb_status make_array(const chat *c, marking how, const json_t *value, json_t *to,
                            bool *marked, nb_err *err)
{
    size_t i;
    json_t *v, *copy;
    json_array_foreach(value, i, v)
    {
        NB_TRY(make_json(c, how, v, &copy, marked, err));
        if (json_array_append_new(to, copy) != 0)
            return out_of_memory(err);
    }
    return NB_OK;
}

static nb_status make_object(const chat *c, marking how, const json_t *value, json_t *to,
                             bool *marked, nb_err *err)
{
    const char *key;
    json_t *v, *name, *copy;
    json_object_foreach((json_t *)(uintptr_t)value, key, v)
    {
        NB_TRY(make_text(c, how, key, strlen(key), &name, marked, err));
        nb_status s = make_json(c, how, v, &copy, marked, err);
        if (s == NB_OK && json_object_set_new(to, json_string_value(name), copy) != 0)
            s = out_of_memory(err);
        json_decref(name);
        NB_TRY(s);
    }
    return NB_OK;
}

/* A copy with marks in all strings and keys. Depth is bounded by the parser. */
static nb_status make_json(const chat *c, marking how, const json_t *value, json_t **out,
                           bool *marked, nb_err *err)
{
    if (json_is_string(value))
        return make_text(c, how, json_string_value(value), json_string_length(value), out, marked,
                         err);
    nb_status s = NB_OK;
    *out = json_is_array(value)    ? json_array()
           : json_is_object(value) ? json_object()
                                   : json_deep_copy(value);
    if (*out == NULL)
        s = out_of_memory(err);
    if (s == NB_OK && json_is_array(value))
        s = make_array(c, how, value, *out, marked, err);
    if (s == NB_OK && json_is_object(value))
        s = make_object(c, how, value, *out, marked, err);
    if (s != NB_OK) {
        json_decref(*out);
        *out = NULL;
    }
    return s;
}

static nb_status set_json(const chat *c, marking how, json_t *object, const char *key,
                          const json_t *value, bool *marked, nb_err *err)
{
    json_t *v;
    NB_TRY(make_json(c, how, value, &v, marked, err));
    return json_object_set_new(object, key, v) == 0 ? NB_OK : out_of_memory(err);
}

static nb_status set_token(const chat *c, json_t *object, const char *key, int32_t id, nb_err *err)
{
    const char *text;
    size_t len;
    bool marked = false;
    if (id < 0)
        return NB_OK;
    NB_TRY(nb_tokenizer_token(c->t, id, &text, &len, err));
    return set_text(c, MARK_NOTHING, object, key, text, len, &marked, err);
}

static nb_status add_messages(const chat *c, marking how, json_t *list, bool *marked, nb_err *err)
{
    for (int64_t i = 0; i < c->talk.n; i++) {
        const nb_message *m = &c->talk.messages[i];
        const char *key;
        json_t *v;
        json_t *object = json_object();
        if (json_array_append_new(list, object) != 0)
            return out_of_memory(err);
        NB_TRY(set_text(c, how, object, "role", m->role, strlen(m->role), marked, err));
        NB_TRY(set_text(c, how, object, "content", m->content, m->len, marked, err));
        json_object_foreach((json_t *)(uintptr_t)m->more, key, v)
            NB_TRY(set_json(c, how, object, key, v, marked, err));
    }
    return NB_OK;
}

static nb_status make_context(const chat *c, marking how, json_t **out, bool *marked, nb_err *err)
{
    *marked = false;
    json_t *context = json_object(), *list = json_array();
    nb_status s = NB_OK;
    if (context == NULL || list == NULL ||
        json_object_set_new(context, "add_generation_prompt",
                            json_boolean(c->talk.add_generation_prompt)) != 0)
        s = out_of_memory(err);
    if (s == NB_OK)
        s = add_messages(c, how, list, marked, err);
    if (s == NB_OK && c->talk.tools != NULL)
        s = set_json(c, how, context, "tools", c->talk.tools, marked, err);
    if (s == NB_OK)
        s = set_token(c, context, "bos_token", nb_tokenizer_bos(c->t), err);
    if (s == NB_OK)
        s = set_token(c, context, "eos_token", nb_tokenizer_eos(c->t), err);
    if (s == NB_OK && json_object_set(context, "messages", list) != 0)
        s = out_of_memory(err);
    json_decref(list);
    if (s != NB_OK) {
        json_decref(context);
        context = NULL;
    }
    *out = context;
    return s;
}

static nb_status render(const chat *c, marking how, nb_buf *out, bool *marked, nb_err *err)
{
    json_t *context;
    if (c->template_ == NULL)
        return nb_fail(err, NB_UNSUPPORTED, "this model has no chat template");
    NB_TRY(make_context(c, how, &context, marked, err));
    nb_status s = NB_OK;
    if (how == MARK_NOTHING || *marked) /* else it would be the plain one again */
        s = nb_jinja_render(c->template_, context, NULL, out, err);
    json_decref(context);
    return s;
}

/* Appends text without its marks. */
static nb_status put_unmarked(nb_buf *out, const nb_buf *mark, const char *text, size_t len,
                              nb_err *err)
{
    const nb_jspan needle = {(const char *)mark->data, mark->len};
    nb_jspan rest = {text, len};
    while (needle.n > 0) {
        const int64_t at = nb_jtext_find(rest, needle);
        if (at < 0)
            break;
        NB_TRY(nb_buf_put(out, rest.p, (size_t)at, err));
        rest = (nb_jspan){rest.p + at + needle.n, rest.n - (size_t)at - needle.n};
    }
    return nb_buf_put(out, rest.p, rest.n, err);
}

static nb_status same_without_marks(const chat *c, const nb_buf *marked, const nb_buf *plain,
                                    bool *same, nb_err *err)
{
    nb_buf b = {0};
    const nb_status s = put_unmarked(&b, &c->mark, (const char *)marked->data, marked->len, err);
    *same = s == NB_OK && b.len == plain->len &&
            (b.len == 0 || memcmp(b.data, plain->data, b.len) == 0);
    nb_buf_free(&b);
    return s;
}

/* The rendering to encode, of which the head of this file tells. `plain` comes in as the plain
 * one and leaves as the one to use. */
static nb_status render_marked(chat *c, nb_buf *plain, nb_err *err)
{
    nb_buf out = {0};
    nb_status s = choose_mark(&c->special, &c->talk, plain, &c->mark, err);
    for (marking how = MARK_HINTS; s == NB_OK && how <= MARK_WHOLE; how++) {
        bool marked, same = false;
        out.len = 0;
        s = render(c, how, &out, &marked, err);
        if (s == NB_OK && !marked)
            break;
        if (s == NB_DATA && how == MARK_HINTS) { /* a marked text was refused, the plain one not */
            s = NB_OK;
            continue;
        }
        if (s == NB_OK)
            s = same_without_marks(c, &out, plain, &same, err);
        if (s == NB_OK && (same || how == MARK_WHOLE)) {
            const nb_buf swap = *plain;
            *plain = out;
            out = swap;
            break;
        }
    }
    nb_buf_free(&out);
    return s;
}

/* ---- encoding ---- */

typedef struct {
    const chat *c;
    nb_tokens *out;
    const char *end; /* of the rendered text */
    nb_buf text;     /* since the last token, without marks */
} encoding;

static nb_status flush_text(encoding *e, nb_err *err)
{
    const nb_status s = nb_tokenizer_encode(e->c->t, (const char *)e->text.data, e->text.len,
                                            (nb_encode_options){0}, e->out, err);
    e->text.len = 0;
    return s;
}

static bool mark_follows(const encoding *e, const char *text)
{
    const nb_buf *mark = &e->c->mark;
    return mark->len > 0 && (size_t)(e->end - text) >= mark->len &&
           memcmp(text, mark->data, mark->len) == 0;
}

static nb_status encode_part(void *context, int32_t id, const char *text, size_t len, nb_err *err)
{
    encoding *e = context;
    /* A mark stands behind the first character. Where that is the whole token, it says that the
     * token is a message's. */
    if (id < 0 || mark_follows(e, text + len))
        return put_unmarked(&e->text, &e->c->mark, text, len, err);
    NB_TRY(flush_text(e, err));
    return nb_tokens_push(e->out, id, err);
}

/* Between the tokens of the raw text: those that are looked for in normalized text. */
static nb_status encode_between(void *context, int32_t id, const char *text, size_t len,
                                nb_err *err)
{
    encoding *e = context;
    if (id >= 0)
        return encode_part(e, id, text, len, err);
    return nb_added_split(&e->c->t->normalized, text, len, true, encode_part, e, err);
}

static nb_status encode_rendered(const chat *c, const nb_buf *text, nb_tokens *out, nb_err *err)
{
    const char *begin = (const char *)text->data;
    encoding e = {.c = c, .out = out, .end = begin + text->len};
    nb_status s = nb_added_split(&c->t->raw, begin, text->len, true, encode_between, &e, err);
    if (s == NB_OK)
        s = flush_text(&e, err);
    nb_buf_free(&e.text);
    return s;
}

static nb_status encode(chat *c, nb_tokens *out, nb_err *err)
{
    nb_buf text = {0};
    bool marked = false;
    nb_status s = collect_specials(&c->special, c->t, err);
    if (s == NB_OK)
        s = render(c, MARK_NOTHING, &text, &marked, err);
    if (s == NB_OK && c->special.n > 0)
        s = render_marked(c, &text, err);
    if (s == NB_OK)
        s = encode_rendered(c, &text, out, err);
    nb_buf_free(&text);
    nb_buf_free(&c->mark);
    nb_free(c->special.texts);
    return s;
}

nb_status nb_chat_context(const nb_tokenizer *t, const nb_message *messages, int64_t n,
                          bool add_generation_prompt, json_t **out, nb_err *err)
{
    const chat c = {.t = t, .talk = {messages, n, NULL, add_generation_prompt}};
    bool marked;
    return make_context(&c, MARK_NOTHING, out, &marked, err);
}

nb_status nb_conversation_render(const nb_tokenizer *t, const nb_jinja *template_,
                                 const nb_conversation *talk, nb_buf *out, nb_err *err)
{
    const chat c = {.t = t, .template_ = template_, .talk = *talk};
    bool marked;
    return render(&c, MARK_NOTHING, out, &marked, err);
}

nb_status nb_chat_render(const nb_tokenizer *t, const nb_jinja *template_,
                         const nb_message *messages, int64_t n, bool add_generation_prompt,
                         nb_buf *out, nb_err *err)
{
    const nb_conversation talk = {messages, n, NULL, add_generation_prompt};
    return nb_conversation_render(t, template_, &talk, out, err);
}

nb_status nb_conversation_encode(const nb_tokenizer *t, const nb_jinja *template_,
                                 const nb_conversation *talk, nb_tokens *out, nb_err *err)
{
    chat c = {.t = t, .template_ = template_, .talk = *talk};
    const int64_t before = out->n, left_out = out->n_left_out;
    const nb_status s = encode(&c, out, err);
    if (s != NB_OK) {
        out->n = before;
        out->n_left_out = left_out;
    }
    return s;
}

nb_status nb_chat_encode(const nb_tokenizer *t, const nb_jinja *template_,
                         const nb_message *messages, int64_t n, bool add_generation_prompt,
                         nb_tokens *out, nb_err *err)
{
    const nb_conversation talk = {messages, n, NULL, add_generation_prompt};
    return nb_conversation_encode(t, template_, &talk, out, err);
}
