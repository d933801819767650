/* Encoding of GGUF pairs (gguf.h). Each call appends a whole pair or nothing. */
#include "store/gguf.h"

#include <string.h>

static nb_status put_string(nb_buf *kv, const char *text, size_t len, nb_err *err)
{
    NB_TRY(nb_buf_u64(kv, len, err));
    return nb_buf_put(kv, text, len, err);
}

static nb_status put_head(nb_buf *kv, const char *key, nb_gguf_type type, nb_err *err)
{
    NB_TRY(put_string(kv, key, strlen(key), err));
    return nb_buf_u32(kv, (uint32_t)type, err);
}

/* Takes back what a failed call has appended. */
static nb_status whole_or_nothing(nb_buf *kv, size_t before, nb_status status)
{
    if (status != NB_OK)
        kv->len = before;
    return status;
}

static nb_status put_scalar(nb_buf *kv, const char *key, nb_gguf_type type, const void *bytes,
                            size_t n, nb_err *err)
{
    const size_t before = kv->len;
    nb_status s = put_head(kv, key, type, err);
    if (s == NB_OK)
        s = nb_buf_put(kv, bytes, n, err);
    return whole_or_nothing(kv, before, s);
}

static nb_status put_array_head(nb_buf *kv, const char *key, nb_gguf_type elem, int64_t n,
                                nb_err *err)
{
    NB_TRY(put_head(kv, key, NB_GGUF_ARRAY, err));
    NB_TRY(nb_buf_u32(kv, (uint32_t)elem, err));
    return nb_buf_u64(kv, (uint64_t)n, err);
}

static nb_status put_words(nb_buf *kv, const char *key, nb_gguf_type elem, const void *v, int64_t n,
                           nb_err *err)
{
    const size_t before = kv->len;
    size_t bytes;
    if (!nb_mul_size((size_t)n, 4, &bytes))
        return nb_fail(err, NB_MEMORY, "an array of %lld numbers", (long long)n);
    nb_status s = put_array_head(kv, key, elem, n, err);
    if (s == NB_OK)
        s = nb_buf_put(kv, v, bytes, err);
    return whole_or_nothing(kv, before, s);
}

nb_status nb_gguf_put_u32(nb_buf *kv, const char *key, uint32_t v, nb_err *err)
{
    return put_scalar(kv, key, NB_GGUF_U32, &v, sizeof v, err);
}

nb_status nb_gguf_put_f32(nb_buf *kv, const char *key, float v, nb_err *err)
{
    return put_scalar(kv, key, NB_GGUF_F32, &v, sizeof v, err);
}

nb_status nb_gguf_put_bool(nb_buf *kv, const char *key, bool v, nb_err *err)
{
    const uint8_t byte = v ? 1 : 0;
    return put_scalar(kv, key, NB_GGUF_BOOL, &byte, sizeof byte, err);
}

nb_status nb_gguf_put_text(nb_buf *kv, const char *key, const char *text, size_t len, nb_err *err)
{
    const size_t before = kv->len;
    nb_status s = put_head(kv, key, NB_GGUF_STRING, err);
    if (s == NB_OK)
        s = put_string(kv, text, len, err);
    return whole_or_nothing(kv, before, s);
}

nb_status nb_gguf_put_texts(nb_buf *kv, const char *key, const nb_text *texts, int64_t n,
                            nb_err *err)
{
    const size_t before = kv->len;
    nb_status s = put_array_head(kv, key, NB_GGUF_STRING, n, err);
    for (int64_t i = 0; s == NB_OK && i < n; i++)
        s = put_string(kv, texts[i].text, texts[i].len, err);
    return whole_or_nothing(kv, before, s);
}

nb_status nb_gguf_put_i32s(nb_buf *kv, const char *key, const int32_t *v, int64_t n, nb_err *err)
{
    return put_words(kv, key, NB_GGUF_I32, v, n, err);
}

nb_status nb_gguf_put_f32s(nb_buf *kv, const char *key, const float *v, int64_t n, nb_err *err)
{
    return put_words(kv, key, NB_GGUF_F32, v, n, err);
}
