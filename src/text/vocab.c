/* See vocab.h. Open addressing, linear probing, at most half full. */
#define _DEFAULT_SOURCE
#include "text/vocab.h"

#include "store/json_scan.h"
#include "text/unicode.h"

#include <assert.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

uint64_t nb_hash_key(void)
{
    uint64_t key;
    /* Without a random source the clock and the address layout have to do. */
    if (getentropy(&key, sizeof key) != 0)
        key = (uint64_t)time(NULL) * 0x9e3779b97f4a7c15u ^ (uint64_t)(uintptr_t)&key;
    return key | 1;
}

int32_t nb_byte_char(uint8_t byte)
{
    if ((byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173))
        return byte;
    /* The other 68 follow U+0100 in their order: 0..32, 127..160, 173. */
    return 256 + (byte <= 32 ? byte : byte <= 160 ? byte - 127 + 33 : 67);
}

int nb_byte_of_char(int32_t c)
{
    if (c < 256)
        return c >= 0 && nb_byte_char((uint8_t)c) == c ? (int)c : -1;
    const int32_t k = c - 256;
    if (k > 67)
        return -1;
    return k <= 32 ? (int)k : k < 67 ? (int)k - 33 + 127 : 173;
}

/* Multiply and fold the two halves together. */
static uint64_t fold(uint64_t a, uint64_t b)
{
    __extension__ typedef unsigned __int128 wide;
    const wide p = (wide)a * b;
    return (uint64_t)p ^ (uint64_t)(p >> 64);
}

static uint64_t hash_text(const nb_vocab *v, const char *text, size_t len)
{
    uint64_t h = fold(v->key[0] ^ len, v->key[1]);
    while (len > 0) {
        uint64_t word = 0;
        const size_t n = len < 8 ? len : 8;
        memcpy(&word, text, n);
        h = fold(h ^ word ^ v->key[0], v->key[1]);
        text += n;
        len -= n;
    }
    return h;
}

nb_status nb_vocab_init(nb_vocab *v, int64_t n_ids, size_t text_bytes, nb_err *err)
{
    *v = (nb_vocab){.n_ids = n_ids, .key = {nb_hash_key(), nb_hash_key()}};
    size_t n_slots = 16;
    while (n_slots < 2 * (size_t)n_ids)
        n_slots *= 2;
    v->mask = n_slots - 1;
    nb_status s;
    /* Each text twice, as spelled and as bytes, with a zero behind the first. */
    if (!nb_mul_size(text_bytes, 2, &v->blob_size) ||
        !nb_add_size(v->blob_size, (size_t)n_ids, &v->blob_size))
        return nb_fail(err, NB_LIMIT, "%zu bytes of token texts do not fit in memory", text_bytes);
    NB_TRY_GOTO(s, NB_ALLOC(&v->text, n_ids, err));
    NB_TRY_GOTO(s, NB_ALLOC(&v->bytes, n_ids, err));
    NB_TRY_GOTO(s, NB_ALLOC(&v->blob, v->blob_size, err));
    NB_TRY_GOTO(s, NB_ALLOC(&v->slots, n_slots, err));
    return NB_OK;
done:
    nb_vocab_free(v);
    return s;
}

void nb_vocab_free(nb_vocab *v)
{
    nb_free(v->text);
    nb_free(v->bytes);
    nb_free(v->blob);
    nb_free(v->slots);
    *v = (nb_vocab){0};
}

/* The slot where the text is, or where it would go. */
static size_t slot_of(const nb_vocab *v, const char *text, size_t len)
{
    for (size_t i = (size_t)hash_text(v, text, len);; i++) {
        const uint32_t held = v->slots[i & v->mask];
        if (held == 0)
            return i & v->mask;
        const nb_text *t = &v->text[held - 1];
        if (t->len == len && memcmp(t->text, text, len) == 0)
            return i & v->mask;
    }
}

int32_t nb_vocab_find(const nb_vocab *v, const char *text, size_t len)
{
    if (len == 0 || v->slots == NULL)
        return -1;
    return (int32_t)v->slots[slot_of(v, text, len)] - 1;
}

/* Writes the bytes that a text of byte characters stands for; false when one of its characters
 * stands for none. */
static bool bytes_of_text(nb_text text, char *out, size_t *n)
{
    const uint8_t *p = (const uint8_t *)text.text;
    *n = 0;
    for (size_t i = 0; i < text.len;) {
        int32_t c;
        i += nb_utf8_next(p + i, text.len - i, &c);
        const int byte = nb_byte_of_char(c);
        if (byte < 0)
            return false;
        out[(*n)++] = (char)byte;
    }
    return true;
}

void nb_vocab_set_literal(nb_vocab *v, int32_t id)
{
    v->bytes[id] = v->text[id];
}

nb_status nb_vocab_put(nb_vocab *v, int64_t id, nb_text text, bool literal, nb_err *err)
{
    const int shown = nb_quoted(text.len);
    if (id < 0 || id >= v->n_ids)
        return nb_fail(err, NB_DATA, "token '%.*s' has id %lld of %lld", shown, text.text,
                       (long long)id, (long long)v->n_ids);
    if (v->text[id].text != NULL)
        return nb_fail(err, NB_DATA, "tokens '%.*s' and '%.*s' have the same id %lld",
                       nb_quoted(v->text[id].len), v->text[id].text, shown, text.text,
                       (long long)id);
    if (!nb_utf8_valid(text.text, text.len))
        return nb_fail(err, NB_DATA, "token %lld '%.*s' is not UTF-8", (long long)id, shown,
                       text.text);
    const size_t slot = text.len == 0 ? 0 : slot_of(v, text.text, text.len);
    if (text.len > 0 && v->slots[slot] != 0)
        return nb_fail(err, NB_DATA, "tokens %u and %lld are both '%.*s'", v->slots[slot] - 1,
                       (long long)id, shown, text.text);
    assert(v->blob_size - v->blob_used > 2 * text.len);
    char *copy = v->blob + v->blob_used;
    if (text.len > 0) {
        memcpy(copy, text.text, text.len);
        v->slots[slot] = (uint32_t)id + 1;
    }
    v->text[id] = (nb_text){copy, text.len};
    v->bytes[id] = v->text[id];
    v->blob_used += text.len + 1; /* the blob is zeroed */
    v->n_tokens++;
    size_t n;
    if (!literal && bytes_of_text(v->text[id], copy + text.len + 1, &n)) {
        v->bytes[id] = (nb_text){copy + text.len + 1, n};
        v->blob_used += n;
    }
    return NB_OK;
}
