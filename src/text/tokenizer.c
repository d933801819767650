/* See tokenizer.h: encoding and decoding. Loading and export have their own files. */
#include "text/tokenizer_parts.h"

#include "text/unicode.h"

#include <assert.h>
#include <string.h>

nb_status nb_tokens_push(nb_tokens *t, int32_t id, nb_err *err)
{
    if (t->n == t->cap) {
        const int64_t cap = t->cap == 0 ? 64 : 2 * t->cap;
        int32_t *ids;
        NB_TRY(NB_ALLOC(&ids, cap, err));
        if (t->n > 0)
            memcpy(ids, t->ids, (size_t)t->n * sizeof *ids);
        nb_free(t->ids);
        t->ids = ids;
        t->cap = cap;
    }
    t->ids[t->n++] = id;
    return NB_OK;
}

void nb_tokens_free(nb_tokens *t)
{
    nb_free(t->ids);
    *t = (nb_tokens){0};
}

/* ---- building ---- */

nb_status nb_tokenizer_new(nb_tokenizer **out, int64_t n_ids, size_t text_bytes, int64_t max_added,
                           nb_err *err)
{
    nb_tokenizer *t;
    nb_status s;
    *out = NULL;
    NB_TRY(NB_ALLOC(&t, 1, err));
    t->bos = t->eos = t->pad = t->unknown = t->end = -1;
    NB_TRY_GOTO(s, nb_vocab_init(&t->vocab, n_ids, text_bytes, err));
    NB_TRY_GOTO(s, NB_ALLOC(&t->added, max_added, err));
    NB_TRY_GOTO(s, NB_ALLOC(&t->kind, n_ids, err));
    *out = t;
    return NB_OK;
done:
    nb_tokenizer_close(t);
    return s;
}

void nb_tokenizer_add(nb_tokenizer *t, nb_added a)
{
    a.content = t->vocab.text[a.id];
    nb_vocab_set_literal(&t->vocab, a.id);
    t->kind[a.id] = a.special ? NB_KIND_SPECIAL : NB_KIND_ADDED;
    t->added[t->n_added++] = a;
}

void nb_tokenizer_add_stop(nb_tokenizer *t, int64_t id)
{
    if (id < 0 || id >= t->vocab.n_ids || t->n_stops == NB_MAX_STOPS ||
        nb_tokenizer_is_stop(t, (int32_t)id))
        return;
    t->stops[t->n_stops++] = (int32_t)id;
}

nb_status nb_tokenizer_finish(nb_tokenizer *t, nb_err *err)
{
    nb_normalize_fn *normalize = t->nfc ? nb_nfc : NULL;
    NB_TRY(nb_added_set_init(&t->raw, t->added, t->n_added, false, normalize, err));
    return nb_added_set_init(&t->normalized, t->added, t->n_added, true, normalize, err);
}

void nb_tokenizer_close(nb_tokenizer *t)
{
    if (t == NULL)
        return;
    nb_vocab_free(&t->vocab);
    nb_bpe_free(&t->bpe);
    nb_pretokenizer_free(&t->split);
    nb_added_set_free(&t->raw);
    nb_added_set_free(&t->normalized);
    nb_free(t->added);
    nb_free(t->kind);
    nb_free(t);
}

/* ---- questions ---- */

int64_t nb_tokenizer_n_tokens(const nb_tokenizer *t)
{
    return t->vocab.n_ids;
}

int32_t nb_tokenizer_bos(const nb_tokenizer *t)
{
    return t->bos;
}

int32_t nb_tokenizer_eos(const nb_tokenizer *t)
{
    return t->eos;
}

int32_t nb_tokenizer_pad(const nb_tokenizer *t)
{
    return t->pad;
}

bool nb_tokenizer_is_stop(const nb_tokenizer *t, int32_t id)
{
    for (int i = 0; i < t->n_stops; i++)
        if (t->stops[i] == id)
            return true;
    return false;
}

bool nb_tokenizer_is_special(const nb_tokenizer *t, int32_t id)
{
    return id >= 0 && id < t->vocab.n_ids && t->kind[id] == NB_KIND_SPECIAL;
}

bool nb_tokenizer_adds_bos(const nb_tokenizer *t)
{
    return t->adds_bos;
}

int32_t nb_tokenizer_find(const nb_tokenizer *t, const char *content, size_t len)
{
    return nb_vocab_find(&t->vocab, content, len);
}

nb_status nb_tokenizer_token(const nb_tokenizer *t, int32_t id, const char **bytes, size_t *len,
                             nb_err *err)
{
    if (id < 0 || id >= t->vocab.n_ids || t->vocab.text[id].text == NULL)
        return nb_fail(err, NB_DATA, "there is no token %d; the vocabulary has ids below %lld", id,
                       (long long)t->vocab.n_ids);
    *bytes = t->vocab.bytes[id].text;
    *len = t->vocab.bytes[id].len;
    return NB_OK;
}

/* ---- encoding ---- */

typedef struct {
    const nb_tokenizer *t;
    bool parse_special;
    nb_tokens *out;
    nb_bpe_scratch scratch;
    nb_buf spelled; /* a piece in byte characters */
} encoding;

/* The id of a piece that is a token as it stands; special tokens never come out of text. */
static nb_status whole_piece(encoding *e, const uint8_t *bytes, size_t len, int32_t *id,
                             nb_err *err)
{
    e->spelled.len = 0;
    for (size_t i = 0; i < len; i++) {
        uint8_t utf8[4];
        const size_t n = nb_utf8_put(nb_byte_char(bytes[i]), utf8);
        NB_TRY(nb_buf_put(&e->spelled, utf8, n, err));
    }
    *id = nb_vocab_find(&e->t->vocab, (const char *)e->spelled.data, e->spelled.len);
    if (nb_tokenizer_is_special(e->t, *id))
        *id = -1;
    return NB_OK;
}

static nb_status encode_piece(void *context, const uint8_t *bytes, size_t len, nb_err *err)
{
    encoding *e = context;
    if (e->t->ignore_merges) {
        int32_t id;
        NB_TRY(whole_piece(e, bytes, len, &id, err));
        if (id >= 0)
            return nb_tokens_push(e->out, id, err);
    }
    return nb_bpe_encode(&e->t->bpe, &e->scratch, bytes, len, e->out, err);
}

static nb_status encode_normalized(void *context, int32_t id, const char *text, size_t len,
                                   nb_err *err)
{
    encoding *e = context;
    if (id >= 0)
        return nb_tokens_push(e->out, id, err);
    return nb_pretokenize(&e->t->split, text, len, encode_piece, e, err);
}

static nb_status encode_raw(void *context, int32_t id, const char *text, size_t len, nb_err *err)
{
    encoding *e = context;
    if (id >= 0)
        return nb_tokens_push(e->out, id, err);
    const nb_added_set *set = &e->t->normalized;
    if (!e->t->nfc)
        return nb_added_split(set, text, len, e->parse_special, encode_normalized, e, err);
    nb_buf b = {0};
    nb_status s = nb_nfc(&b, text, len, err);
    if (s == NB_OK)
        s = nb_added_split(set, (const char *)b.data, b.len, e->parse_special, encode_normalized, e,
                           err);
    nb_buf_free(&b);
    return s;
}

nb_status nb_tokenizer_encode(const nb_tokenizer *t, const char *text, size_t len,
                              nb_encode_options options, nb_tokens *out, nb_err *err)
{
    encoding e = {.t = t, .parse_special = options.parse_special, .out = out};
    const int64_t before = out->n, left_out = out->n_left_out;
    nb_status s = NB_OK;
    if (options.add_bos && t->adds_bos && t->bos >= 0)
        NB_TRY_GOTO(s, nb_tokens_push(out, t->bos, err));
    NB_TRY_GOTO(s, nb_bpe_scratch_init(&e.scratch, len, err));
    NB_TRY_GOTO(s, nb_added_split(&t->raw, text, len, options.parse_special, encode_raw, &e, err));
    if (options.add_end && t->end >= 0)
        s = nb_tokens_push(out, t->end, err);
done:
    nb_bpe_scratch_free(&e.scratch);
    nb_buf_free(&e.spelled);
    if (s != NB_OK) {
        out->n = before;
        out->n_left_out = left_out;
    }
    return s;
}

/* ---- decoding ---- */

static nb_status put_replacement(nb_decoder *d, nb_buf *out, nb_err *err)
{
    d->n_pending = 0;
    return nb_buf_text(out, "\xef\xbf\xbd", err);
}

/* The number of bytes of the character that starts with this byte; 0: none does. */
static int sequence_len(uint8_t b)
{
    return b < 0x80 ? 1 : b < 0xc2 ? 0 : b < 0xe0 ? 2 : b < 0xf0 ? 3 : b < 0xf5 ? 4 : 0;
}

/* Whether `b` may be the byte number `at` >= 1 of a sequence that starts with `first`. */
static bool continues(uint8_t first, int at, uint8_t b)
{
    const uint8_t lo = at > 1 ? 0x80 : first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
    const uint8_t hi = at > 1 ? 0xbf : first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
    return b >= lo && b <= hi;
}

/* One byte: U+FFFD stands for each longest beginning of a sequence that is not continued, as the
 * Unicode Standard recommends (chapter 3, "U+FFFD Substitution of Maximal Subparts"). */
static nb_status decode_byte(nb_decoder *d, uint8_t b, nb_buf *out, nb_err *err)
{
    if (d->n_pending > 0 && !continues(d->pending[0], d->n_pending, b))
        NB_TRY(put_replacement(d, out, err));
    if (d->n_pending == 0 && sequence_len(b) < 2)
        return b < 0x80 ? nb_buf_u8(out, b, err) : put_replacement(d, out, err);
    d->pending[d->n_pending++] = b;
    if (d->n_pending < sequence_len(d->pending[0]))
        return NB_OK;
    const size_t n = (size_t)d->n_pending;
    d->n_pending = 0;
    return nb_buf_put(out, d->pending, n, err);
}

nb_status nb_tokenizer_decode(const nb_tokenizer *t, nb_decoder *state, const int32_t *ids,
                              int64_t n, bool with_special, bool final, nb_buf *out, nb_err *err)
{
    nb_decoder d = *state;
    const size_t before = out->len;
    nb_status s = NB_OK;
    for (int64_t i = 0; i < n; i++) {
        const char *bytes;
        size_t len;
        NB_TRY_GOTO(s, nb_tokenizer_token(t, ids[i], &bytes, &len, err));
        if (!with_special && nb_tokenizer_is_special(t, ids[i]))
            continue;
        for (size_t k = 0; k < len; k++)
            NB_TRY_GOTO(s, decode_byte(&d, (uint8_t)bytes[k], out, err));
    }
    if (final && d.n_pending > 0)
        NB_TRY_GOTO(s, put_replacement(&d, out, err));
done:
    if (s == NB_OK)
        *state = d;
    else
        out->len = before;
    return s;
}
