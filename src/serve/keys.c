/* See keys.h. */
#include "serve/keys.h"

#include "base/file.h"

#include <string.h>
#include <strings.h>

static void digest_of(const char *text, size_t len, uint8_t digest[NB_SHA256_BYTES])
{
    nb_sha256 s;
    nb_sha256_init(&s);
    nb_sha256_update(&s, text, len);
    nb_sha256_final(&s, digest);
}

static nb_status add(nb_keys *keys, const char *key, size_t len, nb_err *err)
{
    if (len == 0 || len > NB_MAX_KEY_BYTES)
        return nb_fail(err, NB_USAGE, "an API key of %zu characters: 1 to %d are possible", len,
                       NB_MAX_KEY_BYTES);
    for (size_t i = 0; i < len; i++)
        if (key[i] <= 0x20 || key[i] >= 0x7f)
            return nb_fail(err, NB_USAGE,
                           "an API key holds a byte that is no printable ASCII, at %zu", i);
    if (keys->n == NB_MAX_KEYS)
        return nb_fail(err, NB_USAGE, "more than %d API keys", NB_MAX_KEYS);
    digest_of(key, len, keys->digests[keys->n++]);
    return NB_OK;
}

nb_status nb_keys_add(nb_keys *keys, const char *key, nb_err *err)
{
    return add(keys, key, strlen(key), err);
}

nb_status nb_keys_load(nb_keys *keys, const char *path, nb_err *err)
{
    nb_buf text = {0};
    NB_TRY(nb_file_slurp(&text, path, (size_t)1 << 20, err));
    const int before = keys->n;
    nb_status s = NB_OK;
    const char *data = (const char *)text.data;
    for (size_t at = 0; at < text.len && s == NB_OK;) {
        const char *end = memchr(data + at, '\n', text.len - at);
        const size_t next = end != NULL ? (size_t)(end - data) + 1 : text.len;
        size_t len = next - at - (end != NULL);
        if (len > 0 && data[at + len - 1] == '\r')
            len--;
        if (len > 0 && data[at] != '#')
            s = add(keys, data + at, len, err);
        at = next;
    }
    nb_buf_free(&text);
    if (s == NB_OK && keys->n == before)
        s = nb_fail(err, NB_DATA, "holds no API key");
    if (s != NB_OK) {
        keys->n = before;
        return nb_context(err, "%s", path);
    }
    return NB_OK;
}

bool nb_keys_allow(const nb_keys *keys, const char *authorization)
{
    if (keys->n == 0)
        return true;
    const char *key = "";
    if (authorization != NULL && strncasecmp(authorization, "Bearer ", 7) == 0)
        key = authorization + 7;
    while (*key == ' ')
        key++;
    uint8_t digest[NB_SHA256_BYTES];
    digest_of(key, strlen(key), digest);
    unsigned found = 0;
    for (int k = 0; k < keys->n; k++) {
        unsigned differ = 0;
        for (int i = 0; i < NB_SHA256_BYTES; i++)
            differ |= (unsigned)(digest[i] ^ keys->digests[k][i]);
        found |= (differ - 1) >> 31; /* 1 where nothing differs */
    }
    return found != 0;
}
