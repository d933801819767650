/* Typed access to the pairs of a GGUF (gguf.h). The parser has checked that every value lies in
 * the file; here a value is checked against what the caller expects of the key. */
#include "store/gguf_file.h"

#include <inttypes.h>
#include <string.h>

static const char *type_name(const nb_gguf_kv *kv)
{
    static const char *const names[] = {
        [NB_GGUF_U8] = "a u8",        [NB_GGUF_I8] = "an i8",    [NB_GGUF_U16] = "a u16",
        [NB_GGUF_I16] = "an i16",     [NB_GGUF_U32] = "a u32",   [NB_GGUF_I32] = "an i32",
        [NB_GGUF_F32] = "an f32",     [NB_GGUF_BOOL] = "a bool", [NB_GGUF_STRING] = "a string",
        [NB_GGUF_ARRAY] = "an array", [NB_GGUF_U64] = "a u64",   [NB_GGUF_I64] = "an i64",
        [NB_GGUF_F64] = "an f64",
    };
    static const char *const arrays[] = {
        [NB_GGUF_U8] = "an array of u8",          [NB_GGUF_I8] = "an array of i8",
        [NB_GGUF_U16] = "an array of u16",        [NB_GGUF_I16] = "an array of i16",
        [NB_GGUF_U32] = "an array of u32",        [NB_GGUF_I32] = "an array of i32",
        [NB_GGUF_F32] = "an array of f32",        [NB_GGUF_BOOL] = "an array of bool",
        [NB_GGUF_STRING] = "an array of strings", [NB_GGUF_ARRAY] = "an array of arrays",
        [NB_GGUF_U64] = "an array of u64",        [NB_GGUF_I64] = "an array of i64",
        [NB_GGUF_F64] = "an array of f64",
    };
    return kv->type == NB_GGUF_ARRAY ? arrays[kv->elem] : names[kv->type];
}

int64_t nb_gguf_n_kv(const nb_gguf *g)
{
    return g->n_kv;
}

const nb_gguf_kv *nb_gguf_kv_at(const nb_gguf *g, int64_t i)
{
    return i >= 0 && i < g->n_kv ? &g->kv[i] : NULL;
}

const nb_gguf_kv *nb_gguf_find(const nb_gguf *g, const char *key)
{
    const size_t len = strlen(key);
    int64_t lo = 0, hi = g->n_kv;
    while (lo < hi) {
        const int64_t mid = lo + (hi - lo) / 2;
        const nb_gguf_kv *kv = g->sorted[mid];
        int c = memcmp(key, kv->key.text, len < kv->key.len ? len : kv->key.len);
        if (c == 0)
            c = (len > kv->key.len) - (len < kv->key.len);
        if (c == 0)
            return kv;
        if (c < 0)
            hi = mid;
        else
            lo = mid + 1;
    }
    return NULL;
}

static nb_status wrong_type(nb_err *err, const nb_gguf_kv *kv, const char *wanted)
{
    return nb_fail(err, NB_DATA, "key '%.*s' is %s, expected %s", nb_text_precision(kv->key),
                   kv->key.text, type_name(kv), wanted);
}

/* *kv is NULL, with NB_OK, when an optional key is missing. */
static nb_status find(const nb_gguf *g, const char *key, bool required, const nb_gguf_kv **kv,
                      nb_err *err)
{
    *kv = nb_gguf_find(g, key);
    if (*kv == NULL && required)
        return nb_fail(err, NB_DATA, "key '%.100s' is missing", key);
    return NB_OK;
}

/* An array whose elements are of exactly this type. */
static nb_status find_array(const nb_gguf *g, const char *key, bool required, nb_gguf_type elem,
                            const char *wanted, const nb_gguf_kv **kv, nb_err *err)
{
    NB_TRY(find(g, key, required, kv, err));
    if (*kv != NULL && ((*kv)->type != NB_GGUF_ARRAY || (*kv)->elem != elem))
        return wrong_type(err, *kv, wanted);
    return NB_OK;
}

/* An integer of any width: false if it is of another type. Above INT64_MAX, *huge is set. */
static bool read_integer(const nb_gguf_kv *kv, int64_t *out, bool *huge)
{
    uint64_t bits = 0; /* the file and the host are little-endian */
    const size_t n = nb_gguf_type_bytes(kv->type);
    if (n > sizeof bits)
        return false;
    memcpy(&bits, kv->data, n);
    *huge = false;
    switch (kv->type) {
    case NB_GGUF_U8:
    case NB_GGUF_U16:
    case NB_GGUF_U32:
        *out = (int64_t)bits;
        return true;
    case NB_GGUF_U64:
        *huge = bits > INT64_MAX;
        *out = (int64_t)bits;
        return true;
    case NB_GGUF_I8:
        *out = (int8_t)bits;
        return true;
    case NB_GGUF_I16:
        *out = (int16_t)bits;
        return true;
    case NB_GGUF_I32:
        *out = (int32_t)bits;
        return true;
    case NB_GGUF_I64:
        *out = (int64_t)bits;
        return true;
    case NB_GGUF_F32:
    case NB_GGUF_BOOL:
    case NB_GGUF_STRING:
    case NB_GGUF_ARRAY:
    case NB_GGUF_F64:
        break;
    }
    return false;
}

nb_status nb_gguf_int(const nb_gguf *g, const char *key, bool required, int64_t min, int64_t max,
                      int64_t *out, nb_err *err)
{
    const nb_gguf_kv *kv;
    NB_TRY(find(g, key, required, &kv, err));
    if (kv == NULL)
        return NB_OK;
    int64_t v;
    bool huge;
    if (!read_integer(kv, &v, &huge))
        return wrong_type(err, kv, "an integer");
    if (huge)
        return nb_fail(err, NB_DATA, "key '%.100s' is %" PRIu64 ", expected %lld to %lld", key,
                       (uint64_t)v, (long long)min, (long long)max);
    if (v < min || v > max)
        return nb_fail(err, NB_DATA, "key '%.100s' is %lld, expected %lld to %lld", key,
                       (long long)v, (long long)min, (long long)max);
    *out = v;
    return NB_OK;
}

nb_status nb_gguf_number(const nb_gguf *g, const char *key, bool required, double *out, nb_err *err)
{
    const nb_gguf_kv *kv;
    NB_TRY(find(g, key, required, &kv, err));
    if (kv == NULL)
        return NB_OK;
    if (kv->type == NB_GGUF_F32) {
        float f;
        memcpy(&f, kv->data, sizeof f);
        *out = (double)f;
        return NB_OK;
    }
    if (kv->type != NB_GGUF_F64)
        return wrong_type(err, kv, "an f32 or f64");
    memcpy(out, kv->data, sizeof *out);
    return NB_OK;
}

nb_status nb_gguf_bool(const nb_gguf *g, const char *key, bool required, bool *out, nb_err *err)
{
    const nb_gguf_kv *kv;
    NB_TRY(find(g, key, required, &kv, err));
    if (kv == NULL)
        return NB_OK;
    if (kv->type != NB_GGUF_BOOL)
        return wrong_type(err, kv, "a bool");
    if (kv->data[0] > 1)
        return nb_fail(err, NB_DATA, "key '%.100s' is the bool %u, expected 0 or 1", key,
                       kv->data[0]);
    *out = kv->data[0] != 0;
    return NB_OK;
}

/* The string at p, which the parser has walked over before; returns where the next one starts. */
static const uint8_t *text_at(const uint8_t *p, nb_text *out)
{
    uint64_t len;
    memcpy(&len, p, sizeof len);
    *out = (nb_text){.text = (const char *)p + sizeof len, .len = (size_t)len};
    return p + sizeof len + len;
}

nb_status nb_gguf_text(const nb_gguf *g, const char *key, bool required, nb_text *out, nb_err *err)
{
    const nb_gguf_kv *kv;
    NB_TRY(find(g, key, required, &kv, err));
    if (kv == NULL)
        return NB_OK;
    if (kv->type != NB_GGUF_STRING)
        return wrong_type(err, kv, "a string");
    text_at(kv->data, out);
    return NB_OK;
}

nb_status nb_gguf_texts(const nb_gguf *g, const char *key, bool required, nb_arena *arena,
                        nb_text **out, int64_t *count, nb_err *err)
{
    const nb_gguf_kv *kv;
    NB_TRY(find_array(g, key, required, NB_GGUF_STRING, "an array of strings", &kv, err));
    if (kv == NULL)
        return NB_OK;
    nb_text *texts;
    NB_TRY(NB_ARENA_ALLOC(arena, &texts, kv->count, err));
    const uint8_t *p = kv->data;
    for (uint64_t i = 0; i < kv->count; i++)
        p = text_at(p, &texts[i]);
    *out = texts;
    *count = (int64_t)kv->count;
    return NB_OK;
}

nb_status nb_gguf_i32s(const nb_gguf *g, const char *key, bool required, const int32_t **out,
                       int64_t *count, nb_err *err)
{
    const nb_gguf_kv *kv;
    NB_TRY(find_array(g, key, required, NB_GGUF_I32, "an array of i32", &kv, err));
    if (kv == NULL)
        return NB_OK;
    *out = (const int32_t *)(const void *)kv->data; /* nb_gguf_open has aligned it */
    *count = (int64_t)kv->count;
    return NB_OK;
}

nb_status nb_gguf_f32s(const nb_gguf *g, const char *key, bool required, const float **out,
                       int64_t *count, nb_err *err)
{
    const nb_gguf_kv *kv;
    NB_TRY(find_array(g, key, required, NB_GGUF_F32, "an array of f32", &kv, err));
    if (kv == NULL)
        return NB_OK;
    *out = (const float *)(const void *)kv->data; /* nb_gguf_open has aligned it */
    *count = (int64_t)kv->count;
    return NB_OK;
}
