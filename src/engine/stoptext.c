/* See stoptext.h. */
#include "engine/stoptext.h"

#include "text/unicode.h"

#include <assert.h>
#include <string.h>

static bool is_utf8(const char *text, size_t len)
{
    size_t i = 0;
    while (i < len) {
        int32_t c;
        i += nb_utf8_next((const uint8_t *)text + i, len - i, &c);
        if (c < 0)
            return false;
    }
    return true;
}

/* The state after byte c: how much of the string the text now ends with. */
static size_t advance(const nb_stop *s, size_t state, char c)
{
    while (state > 0 && s->text[state] != c)
        state = s->fail[state - 1];
    return s->text[state] == c ? state + 1 : 0;
}

static nb_status init_one(nb_stop *s, const char *text, nb_err *err)
{
    const size_t len = strlen(text);
    if (len == 0 || len > NB_STOP_MAX_BYTES)
        return nb_fail(err, NB_USAGE, "a stop string of %zu bytes: it must have 1 to %d", len,
                       NB_STOP_MAX_BYTES);
    if (!is_utf8(text, len))
        return nb_fail(err, NB_USAGE, "the stop string '%s' is not UTF-8", text);
    *s = (nb_stop){.text = text, .len = len};
    NB_TRY(NB_ALLOC(&s->fail, len, err));
    for (size_t i = 1, k = 0; i < len; i++) {
        k = advance(s, k, text[i]);
        s->fail[i] = (uint32_t)k;
    }
    return NB_OK;
}

nb_status nb_stoptext_init(nb_stoptext *st, const char *const *stops, int n, nb_err *err)
{
    memset(st, 0, sizeof *st);
    if (n < 0 || n > NB_MAX_STOPS)
        return nb_fail(err, NB_USAGE, "%d stop strings: there may be %d", n, NB_MAX_STOPS);
    if (n > 0)
        NB_TRY(NB_ALLOC(&st->stops, n, err));
    for (; st->n < n; st->n++) {
        if (init_one(&st->stops[st->n], stops[st->n], err) != NB_OK) {
            nb_stoptext_free(st);
            return err->status;
        }
    }
    return NB_OK;
}

void nb_stoptext_free(nb_stoptext *st)
{
    for (int i = 0; i < st->n; i++)
        nb_free(st->stops[i].fail);
    nb_free(st->stops);
    nb_buf_free(&st->held);
    memset(st, 0, sizeof *st);
}

/* Appends the held text but for its last `keep` bytes. */
static nb_status release(nb_stoptext *st, size_t keep, nb_buf *out, nb_err *err)
{
    const size_t n = st->held.len - keep;
    if (n == 0)
        return NB_OK;
    NB_TRY(nb_buf_put(out, st->held.data, n, err));
    memmove(st->held.data, st->held.data + n, keep);
    st->held.len = keep;
    return NB_OK;
}

nb_status nb_stoptext_push(nb_stoptext *st, const char *text, size_t len, nb_buf *out, bool *found,
                           nb_err *err)
{
    *found = false;
    size_t keep = 0;
    for (size_t i = 0; i < len; i++) {
        NB_TRY(nb_buf_u8(&st->held, (uint8_t)text[i], err));
        size_t matched = 0;
        keep = 0;
        for (int k = 0; k < st->n; k++) {
            nb_stop *s = &st->stops[k];
            s->state = advance(s, s->state, text[i]);
            keep = s->state > keep ? s->state : keep;
            if (s->state == s->len && s->len > matched) {
                matched = s->len;
                st->found = k;
            }
        }
        if (matched > 0) {
            *found = true;
            NB_TRY(release(st, matched, out, err));
            st->held.len = 0;
            return NB_OK;
        }
    }
    if (len == 0)
        return NB_OK;
    assert(keep <= st->held.len);
    return release(st, keep, out, err);
}

nb_status nb_stoptext_flush(nb_stoptext *st, nb_buf *out, nb_err *err)
{
    return release(st, 0, out, err);
}
