/* See gguf_bytes.h. */
#include "support/gguf_bytes.h"
#include "support/golden.h"

#include <string.h>

void gb_raw(nb_buf *b, const void *bytes, size_t n)
{
    nb_err err = {0};
    assert_int_equal(nb_buf_put(b, bytes, n, &err), NB_OK);
}

void gb_raw_u8(nb_buf *b, uint8_t v)
{
    gb_raw(b, &v, sizeof v);
}

void gb_raw_u32(nb_buf *b, uint32_t v)
{
    gb_raw(b, &v, sizeof v);
}

void gb_raw_u64(nb_buf *b, uint64_t v)
{
    gb_raw(b, &v, sizeof v);
}

void gb_raw_string(nb_buf *b, const char *text)
{
    gb_raw_u64(b, strlen(text));
    gb_raw(b, text, strlen(text));
}

void gb_free(gguf_bytes *g)
{
    nb_buf_free(&g->kv);
    nb_buf_free(&g->infos);
    nb_buf_free(&g->data);
    *g = (gguf_bytes){0};
}

void gb_key(gguf_bytes *g, const char *key, uint32_t type)
{
    gb_raw_string(&g->kv, key);
    gb_raw_u32(&g->kv, type);
    g->n_kv++;
}

void gb_u32(gguf_bytes *g, const char *key, uint32_t v)
{
    gb_key(g, key, 4);
    gb_raw_u32(&g->kv, v);
}

void gb_u16(gguf_bytes *g, const char *key, uint16_t v)
{
    gb_key(g, key, 2);
    gb_raw(&g->kv, &v, sizeof v);
}

void gb_f32(gguf_bytes *g, const char *key, float v)
{
    gb_key(g, key, 6);
    gb_raw(&g->kv, &v, sizeof v);
}

void gb_text(gguf_bytes *g, const char *key, const char *text)
{
    gb_key(g, key, 8);
    gb_raw_string(&g->kv, text);
}

void gb_array(gguf_bytes *g, const char *key, uint32_t elem, uint64_t count)
{
    gb_key(g, key, 9);
    gb_raw_u32(&g->kv, elem);
    gb_raw_u64(&g->kv, count);
}

void gb_info(gguf_bytes *g, const char *name, uint32_t n_dims, const uint64_t *ne, uint32_t type,
             uint64_t offset)
{
    gb_raw_string(&g->infos, name);
    gb_raw_u32(&g->infos, n_dims);
    for (uint32_t d = 0; d < n_dims; d++)
        gb_raw_u64(&g->infos, ne[d]);
    gb_raw_u32(&g->infos, type);
    gb_raw_u64(&g->infos, offset);
    g->n_tensors++;
}

static void pad(nb_buf *b, uint32_t alignment)
{
    while (b->len % alignment != 0)
        gb_raw_u8(b, 0);
}

void gb_tensor(gguf_bytes *g, const char *name, uint64_t ne0, uint64_t ne1, uint32_t type,
               const void *data, size_t n)
{
    const uint64_t ne[2] = {ne0, ne1};
    gb_info(g, name, ne1 == 0 ? 1 : 2, ne, type, g->data.len);
    gb_raw(&g->data, data, n);
    pad(&g->data, g->alignment == 0 ? 32 : g->alignment);
}

void gb_finish(const gguf_bytes *g, nb_buf *out)
{
    gb_raw(out, "GGUF", 4);
    gb_raw_u32(out, g->version == 0 ? 3 : g->version);
    gb_raw_u64(out, g->n_tensors);
    gb_raw_u64(out, g->n_kv);
    gb_raw(out, g->kv.data, g->kv.len);
    gb_raw(out, g->infos.data, g->infos.len);
    pad(out, g->alignment == 0 ? 32 : g->alignment);
    gb_raw(out, g->data.data, g->data.len);
}
