/* A tokenizer from the keys of a GGUF file (formats.md 8.9, 8.10). */
#include "text/tokenizer_parts.h"

#include <string.h>

typedef struct {
    const nb_gguf *g;
    nb_arena arena; /* of what is read and then copied */
    nb_text *tokens, *merges;
    const int32_t *types; /* NULL: all normal */
    int64_t n_tokens, n_merges;
} source;

#define KEY(name) "tokenizer.ggml." name

static nb_status text_is(const nb_gguf *g, const char *key, const char *wanted, nb_err *err)
{
    nb_text t;
    NB_TRY(nb_gguf_text(g, key, true, &t, err));
    if (t.len == strlen(wanted) && memcmp(t.text, wanted, t.len) == 0)
        return NB_OK;
    return nb_fail(err, NB_UNSUPPORTED,
                   "tokenizer model '%.*s' is not supported: only byte-level BPE, '%s'",
                   nb_quoted(t.len), t.text, wanted);
}

static nb_status read_arrays(source *s, int64_t n_rows, nb_err *err)
{
    NB_TRY(text_is(s->g, KEY("model"), "gpt2", err));
    NB_TRY(nb_gguf_texts(s->g, KEY("tokens"), true, &s->arena, &s->tokens, &s->n_tokens, err));
    if (s->n_tokens == 0)
        return nb_fail(err, NB_DATA, KEY("tokens") " is empty");
    if (s->n_tokens > INT32_MAX - 1)
        return nb_fail(err, NB_LIMIT, "%lld tokens", (long long)s->n_tokens);
    if (n_rows >= 0 && s->n_tokens != n_rows)
        return nb_fail(err, NB_DATA, "%lld tokens for %lld rows of the embedding",
                       (long long)s->n_tokens, (long long)n_rows);
    int64_t n = s->n_tokens;
    NB_TRY(nb_gguf_i32s(s->g, KEY("token_type"), false, &s->types, &n, err));
    if (n != s->n_tokens)
        return nb_fail(err, NB_DATA, KEY("token_type") " has %lld entries for %lld tokens",
                       (long long)n, (long long)s->n_tokens);
    /* Scores mean nothing to BPE, but a file whose arrays disagree is damaged. */
    const float *scores = NULL;
    n = s->n_tokens;
    NB_TRY(nb_gguf_f32s(s->g, KEY("scores"), false, &scores, &n, err));
    if (n != s->n_tokens)
        return nb_fail(err, NB_DATA, KEY("scores") " has %lld entries for %lld tokens",
                       (long long)n, (long long)s->n_tokens);
    NB_TRY(nb_gguf_texts(s->g, KEY("merges"), true, &s->arena, &s->merges, &s->n_merges, err));
    return NB_OK;
}

/* Array elements need not be aligned in the file. */
static int32_t type_of(const source *s, int64_t id)
{
    int32_t type = NB_TOKEN_NORMAL;
    if (s->types != NULL)
        memcpy(&type, (const char *)s->types + id * (int64_t)sizeof type, sizeof type);
    return type;
}

static nb_status fill_vocab(nb_tokenizer *t, const source *s, nb_err *err)
{
    for (int64_t id = 0; id < s->n_tokens; id++) {
        const int32_t type = type_of(s, id);
        if (type < NB_TOKEN_UNDEFINED || type > NB_TOKEN_BYTE)
            return nb_fail(err, NB_DATA, "token %lld has type %d; 1 to 6 were expected",
                           (long long)id, type);
        const bool special = type == NB_TOKEN_CONTROL || type == NB_TOKEN_UNKNOWN;
        const bool added = (special || type == NB_TOKEN_USER_DEFINED) && s->tokens[id].len > 0;
        NB_TRY(nb_vocab_put(&t->vocab, id, s->tokens[id], added, err));
        if (added)
            nb_tokenizer_add(t, (nb_added){.id = (int32_t)id, .special = special});
    }
    return NB_OK;
}

static nb_status fill_merges(nb_tokenizer *t, const source *s, nb_err *err)
{
    NB_TRY(nb_bpe_init(&t->bpe, &t->vocab, s->n_merges, err));
    for (int64_t i = 0; i < s->n_merges; i++) {
        const nb_text m = s->merges[i];
        const char *space = m.len > 2 ? memchr(m.text + 1, ' ', m.len - 2) : NULL;
        if (space == NULL)
            return nb_fail(err, NB_DATA, "merge %lld '%.*s' is not two texts and a space",
                           (long long)i, nb_quoted(m.len), m.text);
        const nb_text left = {m.text, (size_t)(space - m.text)};
        const nb_text right = {space + 1, m.len - left.len - 1};
        NB_TRY(nb_bpe_add(&t->bpe, &t->vocab, left, right, err));
    }
    return NB_OK;
}

static nb_status read_id(const nb_tokenizer *t, const nb_gguf *g, const char *key, int32_t *out,
                         nb_err *err)
{
    int64_t id = -1;
    NB_TRY(nb_gguf_int(g, key, false, 0, t->vocab.n_ids - 1, &id, err));
    *out = (int32_t)id;
    return NB_OK;
}

/* Names in `eot`, `eom` end a turn or a message, so they end generation as eos does. The unknown
 * token is only named: byte-level BPE built from these keys has none, so it stands for no byte. */
static nb_status read_ids(nb_tokenizer *t, const nb_gguf *g, nb_err *err)
{
    int32_t eot, eom;
    NB_TRY(read_id(t, g, KEY("bos_token_id"), &t->bos, err));
    NB_TRY(read_id(t, g, KEY("eos_token_id"), &t->eos, err));
    NB_TRY(read_id(t, g, KEY("padding_token_id"), &t->pad, err));
    NB_TRY(read_id(t, g, KEY("unknown_token_id"), &t->unknown, err));
    NB_TRY(read_id(t, g, KEY("eot_token_id"), &eot, err));
    NB_TRY(read_id(t, g, KEY("eom_token_id"), &eom, err));
    nb_tokenizer_add_stop(t, t->eos);
    nb_tokenizer_add_stop(t, eot);
    nb_tokenizer_add_stop(t, eom);
    return NB_OK;
}

static nb_status read_family(nb_tokenizer *t, const nb_gguf *g, nb_err *err)
{
    nb_text name = {0};
    NB_TRY(nb_gguf_text(g, KEY("pre"), false, &name, err));
    if (name.text == NULL)
        return nb_fail(err, NB_UNSUPPORTED, "no " KEY("pre") " says how text is cut into pieces");
    const nb_split_family *family = nb_split_family_by_name(name.text, name.len);
    if (family == NULL)
        return nb_fail(err, NB_UNSUPPORTED, "pre-tokenizer '%.*s' is not supported",
                       nb_quoted(name.len), name.text);
    for (int i = 0; i < family->n_steps; i++)
        NB_TRY(nb_pretokenizer_add(&t->split, family->steps[i], NULL, err));
    t->nfc = family->nfc;
    t->ignore_merges = family->ignore_merges;
    t->adds_bos = family->adds_bos;
    bool adds_end = false;
    NB_TRY(nb_gguf_bool(g, KEY("add_bos_token"), false, &t->adds_bos, err));
    NB_TRY(nb_gguf_bool(g, KEY("add_eos_token"), false, &adds_end, err));
    t->adds_bos = t->adds_bos && t->bos >= 0;
    t->end = adds_end ? t->eos : -1;
    return NB_OK;
}

nb_status nb_tokenizer_from_gguf(nb_tokenizer **out, const nb_gguf *g, int64_t n_rows, nb_err *err)
{
    source s = {.g = g};
    nb_tokenizer *t = NULL;
    nb_status status;
    *out = NULL;
    NB_TRY_GOTO(status, read_arrays(&s, n_rows, err));
    size_t text_bytes = 0;
    int64_t n_added = 0;
    for (int64_t i = 0; i < s.n_tokens; i++) {
        text_bytes += s.tokens[i].len;
        n_added += type_of(&s, i) != NB_TOKEN_NORMAL;
    }
    NB_TRY_GOTO(status, nb_tokenizer_new(&t, s.n_tokens, text_bytes, n_added, err));
    NB_TRY_GOTO(status, fill_vocab(t, &s, err));
    NB_TRY_GOTO(status, fill_merges(t, &s, err));
    NB_TRY_GOTO(status, read_ids(t, g, err));
    NB_TRY_GOTO(status, read_family(t, g, err));
    status = nb_tokenizer_finish(t, err);
done:
    nb_arena_free(&s.arena);
    if (status == NB_OK)
        *out = t;
    else
        nb_tokenizer_close(t);
    return status;
}
