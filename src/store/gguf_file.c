/* See gguf_file.h.
 *
 * The header's length is not written anywhere: it ends where parsing ends. So the first bytes of
 * the file are parsed; if they do not reach, four times as many are, from the beginning. Nothing
 * has to be patched when the buffer moves, and the tensor data are never read. */
#include "store/gguf_file.h"
#include "store/gguf_names.h"
#include "store/sniff.h"

#include <stdlib.h>
#include <string.h>

/* Stated maxima. The largest vocabularies make headers of 20 MiB. */
#define MAX_HEADER    ((uint64_t)256 << 20)
#define MAX_PAIRS     ((uint64_t)1 << 20)
#define MAX_TENSORS   ((uint64_t)1 << 20)
#define MAX_KEY       65535
#define MAX_ALIGNMENT ((uint32_t)1 << 20)
#define FIRST_PIECE   ((uint64_t)64 << 10)

/* Nothing is shorter: magic, version, two counts; a one-letter key with a byte; a one-letter
 * tensor of one dimension. */
#define MIN_HEADER 24
#define MIN_PAIR   (8 + 1 + 4 + 1)
#define MIN_INFO   (8 + 1 + 4 + 8 + 4 + 8)

typedef struct {
    nb_reader r;        /* over the bytes in memory */
    uint64_t file_size; /* of which those are the first */
    uint64_t wanted;    /* not 0: parsing stopped for want of this many bytes */
} header;

static uint64_t left_in_file(const header *h)
{
    return h->file_size - h->r.pos;
}

/* NB_OK when the next n bytes are in memory. Otherwise the file ends before, or more of it has to
 * be read. */
static nb_status need(header *h, uint64_t n, nb_err *err)
{
    if (n > left_in_file(h))
        return nb_fail(err, NB_DATA, "%llu bytes are announced at byte %zu, and %llu are left",
                       (unsigned long long)n, h->r.pos, (unsigned long long)left_in_file(h));
    if (n > nb_reader_left(&h->r)) {
        h->wanted = h->r.pos + n;
        return nb_fail(err, NB_DATA, "the header is longer than %llu bytes",
                       (unsigned long long)MAX_HEADER);
    }
    return NB_OK;
}

static nb_status take(header *h, const uint8_t **out, uint64_t n, nb_err *err)
{
    NB_TRY(need(h, n, err));
    return nb_read_span(&h->r, out, n, err);
}

static nb_status take_u32(header *h, uint32_t *out, nb_err *err)
{
    const uint8_t *p = NULL;
    NB_TRY(take(h, &p, sizeof *out, err));
    memcpy(out, p, sizeof *out);
    return NB_OK;
}

static nb_status take_u64(header *h, uint64_t *out, nb_err *err)
{
    const uint8_t *p = NULL;
    NB_TRY(take(h, &p, sizeof *out, err));
    memcpy(out, p, sizeof *out);
    return NB_OK;
}

static nb_status take_text(header *h, nb_text *out, nb_err *err)
{
    uint64_t len;
    NB_TRY(take_u64(h, &len, err));
    const uint8_t *p = NULL;
    NB_TRY(take(h, &p, len, err));
    *out = (nb_text){.text = (const char *)p, .len = (size_t)len};
    return NB_OK;
}

/* ---- what stands at the front ---- */

static nb_status parse_magic(header *h, nb_err *err)
{
    const uint8_t *p = h->r.data;
    if (h->r.size >= 4 && memcmp(p, "GGUF", 4) != 0) {
        const char *what = nb_sniff(p, h->r.size);
        if (what != NULL)
            return nb_fail(err, NB_DATA, "not a GGUF file; it seems to be %s", what);
        return nb_fail(err, NB_DATA,
                       "not a GGUF file: it starts with bytes %02x %02x %02x %02x, expected 'GGUF'",
                       p[0], p[1], p[2], p[3]);
    }
    if (h->file_size < MIN_HEADER)
        return nb_fail(err, NB_DATA, "too short: %llu bytes, and a GGUF file has at least %d",
                       (unsigned long long)h->file_size, MIN_HEADER);
    h->r.pos = 4;
    uint32_t version;
    NB_TRY(take_u32(h, &version, err));
    if (version != 0 && (version & 0xffff) == 0)
        return nb_fail(
            err, NB_UNSUPPORTED,
            "a big-endian GGUF file (version bytes 0x%08x); only little-endian ones are read",
            version);
    if (version != 2 && version != 3)
        return nb_fail(err, NB_UNSUPPORTED, "GGUF version %u, expected 2 or 3", version);
    return NB_OK;
}

/* A count from the file, against what is left of it. */
static nb_status check_count(const header *h, uint64_t count, uint64_t least_bytes, uint64_t most,
                             const char *what, nb_err *err)
{
    if (count > left_in_file(h) / least_bytes)
        return nb_fail(err, NB_DATA, "%llu %s are announced, too many for a file of %llu bytes",
                       (unsigned long long)count, what, (unsigned long long)h->file_size);
    if (count > most)
        return nb_fail(err, NB_DATA, "%llu %s are announced, and at most %llu are read",
                       (unsigned long long)count, what, (unsigned long long)most);
    return NB_OK;
}

/* ---- pairs ---- */

size_t nb_gguf_type_bytes(nb_gguf_type type)
{
    static const size_t bytes[] = {
        [NB_GGUF_U8] = 1,  [NB_GGUF_I8] = 1,  [NB_GGUF_U16] = 2, [NB_GGUF_I16] = 2,
        [NB_GGUF_U32] = 4, [NB_GGUF_I32] = 4, [NB_GGUF_F32] = 4, [NB_GGUF_BOOL] = 1,
        [NB_GGUF_U64] = 8, [NB_GGUF_I64] = 8, [NB_GGUF_F64] = 8,
    };
    return bytes[type];
}

static nb_status check_key(nb_text key, nb_err *err)
{
    if (key.len == 0)
        return nb_fail(err, NB_DATA, "an empty key");
    if (key.len > MAX_KEY)
        return nb_fail(err, NB_DATA, "a key of %zu bytes, expected at most %d", key.len, MAX_KEY);
    for (size_t i = 0; i < key.len; i++) {
        const unsigned char c = (unsigned char)key.text[i];
        if (c < 0x20 || c >= 0x7f)
            return nb_fail(err, NB_DATA, "key '%.*s' has byte 0x%02x in it", nb_text_precision(key),
                           key.text, c);
    }
    return NB_OK;
}

static nb_status take_type(header *h, nb_gguf_type *out, nb_err *err)
{
    uint32_t id;
    NB_TRY(take_u32(h, &id, err));
    if (id > NB_GGUF_F64)
        return nb_fail(err, NB_DATA, "value type %u, expected 0 to %d", id, NB_GGUF_F64);
    *out = (nb_gguf_type)id;
    return NB_OK;
}

/* Elements of one type, back to back; *kv has type, elem and count. */
static nb_status take_elements(header *h, nb_gguf_kv *kv, nb_gguf_type type, nb_err *err)
{
    const size_t start = h->r.pos;
    const uint8_t *p = NULL;
    if (type == NB_GGUF_STRING) {
        if (kv->count > left_in_file(h) / 8)
            return nb_fail(err, NB_DATA, "%llu strings are announced, and %llu bytes are left",
                           (unsigned long long)kv->count, (unsigned long long)left_in_file(h));
        NB_TRY(need(h, kv->count * 8, err)); /* their lengths alone; no walk through 2^30 of them */
        nb_text text;
        for (uint64_t i = 0; i < kv->count; i++)
            NB_TRY(take_text(h, &text, err));
    } else {
        const size_t each = nb_gguf_type_bytes(type);
        if (kv->count > left_in_file(h) / each)
            return nb_fail(err, NB_DATA, "%llu elements are announced, and %llu bytes are left",
                           (unsigned long long)kv->count, (unsigned long long)left_in_file(h));
        NB_TRY(take(h, &p, kv->count * each, err));
    }
    kv->data = h->r.data + start;
    kv->data_bytes = h->r.pos - start;
    return NB_OK;
}

static nb_status parse_value(header *h, nb_gguf_kv *kv, nb_err *err)
{
    NB_TRY(take_type(h, &kv->type, err));
    kv->elem = kv->type;
    kv->count = 1;
    if (kv->type == NB_GGUF_ARRAY) {
        NB_TRY(take_type(h, &kv->elem, err));
        if (kv->elem == NB_GGUF_ARRAY)
            return nb_fail(err, NB_DATA, "an array of arrays");
        NB_TRY(take_u64(h, &kv->count, err));
    }
    return take_elements(h, kv, kv->elem, err);
}

static int compare_texts(nb_text a, nb_text b)
{
    const int c = memcmp(a.text, b.text, a.len < b.len ? a.len : b.len);
    return c != 0 ? c : (a.len > b.len) - (a.len < b.len);
}

static int compare_keys(const void *a, const void *b)
{
    const nb_gguf_kv *const *x = a, *const *y = b;
    return compare_texts((*x)->key, (*y)->key);
}

/* Sorting finds duplicates in n log n whatever the keys are; a hash table would need a secret to
 * promise as much. */
static nb_status index_pairs(nb_gguf *g, nb_err *err)
{
    NB_TRY(NB_ALLOC(&g->sorted, g->n_kv, err));
    for (int64_t i = 0; i < g->n_kv; i++)
        g->sorted[i] = &g->kv[i];
    qsort(g->sorted, (size_t)g->n_kv, sizeof *g->sorted, compare_keys);
    for (int64_t i = 1; i < g->n_kv; i++) {
        const nb_text key = g->sorted[i]->key;
        if (compare_texts(g->sorted[i - 1]->key, key) == 0)
            return nb_fail(err, NB_DATA, "key '%.*s' is there twice", nb_text_precision(key),
                           key.text);
    }
    return NB_OK;
}

static nb_status parse_pairs(header *h, nb_gguf *g, uint64_t n_kv, nb_err *err)
{
    NB_TRY(NB_ALLOC(&g->kv, n_kv, err));
    for (uint64_t i = 0; i < n_kv; i++) {
        nb_gguf_kv *kv = &g->kv[i];
        nb_status s = take_text(h, &kv->key, err);
        if (s == NB_OK)
            s = check_key(kv->key, err);
        if (s != NB_OK)
            return nb_context(err, "key %llu of %llu", (unsigned long long)i + 1,
                              (unsigned long long)n_kv);
        if (parse_value(h, kv, err) != NB_OK)
            return nb_context(err, "key '%.*s'", nb_text_precision(kv->key), kv->key.text);
        g->n_kv++;
    }
    return index_pairs(g, err);
}

static nb_status find_alignment(nb_gguf *g, nb_err *err)
{
    g->alignment = NB_GGUF_ALIGNMENT;
    const nb_gguf_kv *kv = nb_gguf_find(g, "general.alignment");
    if (kv == NULL)
        return NB_OK;
    if (kv->type != NB_GGUF_U32)
        return nb_fail(err, NB_DATA, "key 'general.alignment' is of type %d, expected u32 (%d)",
                       (int)kv->type, NB_GGUF_U32);
    uint32_t v;
    memcpy(&v, kv->data, sizeof v);
    if (v == 0 || v > MAX_ALIGNMENT || (v & (v - 1)) != 0)
        return nb_fail(err, NB_DATA,
                       "key 'general.alignment' is %u, expected a power of two up to %u", v,
                       MAX_ALIGNMENT);
    g->alignment = v;
    return NB_OK;
}

/* ---- tensor infos ---- */

static nb_status parse_dims(header *h, nb_gguf_info *info, int64_t *n_elements, nb_err *err)
{
    uint32_t n_dims;
    NB_TRY(take_u32(h, &n_dims, err));
    if (n_dims < 1 || n_dims > NB_GGUF_MAX_DIMS)
        return nb_fail(err, NB_DATA, "%u dimensions, expected 1 to %d", n_dims, NB_GGUF_MAX_DIMS);
    info->n_dims = (int)n_dims;
    *n_elements = 1;
    for (uint32_t d = 0; d < n_dims; d++) {
        uint64_t n;
        NB_TRY(take_u64(h, &n, err));
        if (n < 1 || n > INT64_MAX)
            return nb_fail(err, NB_DATA, "dimension %u is %lld, expected at least 1", d,
                           (long long)n);
        info->ne[d] = (int64_t)n;
        if (__builtin_mul_overflow(*n_elements, info->ne[d], n_elements))
            return nb_fail(err, NB_DATA, "its dimensions multiply to more than 2^63");
    }
    return NB_OK;
}

static nb_status parse_format(header *h, nb_gguf_info *info, int64_t n_elements, nb_err *err)
{
    uint32_t id;
    NB_TRY(take_u32(h, &id, err));
    const char *type_name = nb_gguf_type_name((int32_t)id);
    if (type_name == NULL)
        return nb_fail(err, NB_DATA, "type %d, which ggml does not have", (int)(int32_t)id);
    info->fmt = nb_format_by_ggml((int32_t)id);
    if (info->fmt == NULL)
        return nb_fail(err, NB_UNSUPPORTED, "it is %s, which is not supported", type_name);
    const int64_t block_len = info->fmt->block_len;
    if (info->ne[0] % block_len != 0)
        return nb_fail(err, NB_DATA, "rows of %lld are no whole %s blocks of %lld",
                       (long long)info->ne[0], type_name, (long long)block_len);
    if (__builtin_mul_overflow(n_elements / block_len, (int64_t)info->fmt->block_bytes,
                               &info->bytes))
        return nb_fail(err, NB_DATA, "it takes more than 2^63 bytes");
    return NB_OK;
}

/* One info; *end is where the tensors before it end, padded, and moves past it. */
static nb_status parse_info(header *h, nb_gguf_info *info, int64_t alignment, uint64_t *end,
                            nb_err *err)
{
    int64_t n_elements = 0;
    NB_TRY(parse_dims(h, info, &n_elements, err));
    NB_TRY(parse_format(h, info, n_elements, err));
    uint64_t offset;
    NB_TRY(take_u64(h, &offset, err));
    if (offset > h->file_size || (uint64_t)info->bytes > h->file_size - offset)
        return nb_fail(
            err, NB_DATA, "%lld bytes at offset %llu are past the end of the file (%llu bytes)",
            (long long)info->bytes, (unsigned long long)offset, (unsigned long long)h->file_size);
    if (offset != *end)
        return nb_fail(err, NB_DATA, "its offset is %llu, expected %llu, where the one before ends",
                       (unsigned long long)offset, (unsigned long long)*end);
    info->offset = (int64_t)offset;
    *end += nb_gguf_pad((uint64_t)info->bytes, alignment);
    return NB_OK;
}

static nb_status parse_infos(header *h, nb_gguf *g, uint64_t n_infos, nb_err *err)
{
    NB_TRY(NB_ALLOC(&g->infos, n_infos, err));
    uint64_t end = 0;
    for (uint64_t i = 0; i < n_infos; i++) {
        nb_gguf_info *info = &g->infos[i];
        nb_status s = take_text(h, &info->name, err);
        if (s == NB_OK)
            s = nb_gguf_check_name(info->name.text, info->name.len, err);
        if (s != NB_OK)
            return nb_context(err, "tensor %llu of %llu", (unsigned long long)i + 1,
                              (unsigned long long)n_infos);
        if (parse_info(h, info, g->alignment, &end, err) != NB_OK)
            return nb_context(err, "tensor '%.*s'", (int)info->name.len, info->name.text);
        g->n_infos++;
    }
    return NB_OK;
}

/* Every tensor, with its padding, must be inside the file. */
static nb_status check_ends(nb_gguf *g, const header *h, nb_err *err)
{
    const uint64_t start = nb_gguf_pad(h->r.pos, g->alignment);
    for (int64_t i = 0; i < g->n_infos; i++) {
        const nb_gguf_info *info = &g->infos[i];
        const uint64_t end =
            start + nb_gguf_pad((uint64_t)(info->offset + info->bytes), g->alignment);
        if (end > h->file_size)
            return nb_fail(
                err, NB_DATA,
                "tensor '%.*s' ends, with its padding, at byte %llu, past the end of the "
                "file (%llu bytes)",
                (int)info->name.len, info->name.text, (unsigned long long)end,
                (unsigned long long)h->file_size);
    }
    g->data_start = (int64_t)start;
    return NB_OK;
}

static nb_status parse_header(nb_gguf *g, header *h, nb_err *err)
{
    NB_TRY(parse_magic(h, err));
    uint64_t n_infos, n_kv;
    NB_TRY(take_u64(h, &n_infos, err));
    NB_TRY(take_u64(h, &n_kv, err));
    NB_TRY(check_count(h, n_infos, MIN_INFO, MAX_TENSORS, "tensors", err));
    NB_TRY(check_count(h, n_kv, MIN_PAIR, MAX_PAIRS, "keys", err));
    NB_TRY(parse_pairs(h, g, n_kv, err));
    NB_TRY(find_alignment(g, err));
    NB_TRY(parse_infos(h, g, n_infos, err));
    return check_ends(g, h, err);
}

/* ---- the whole ---- */

static void drop_tables(nb_gguf *g)
{
    nb_free(g->kv);
    nb_free(g->sorted);
    nb_free(g->infos);
    *g = (nb_gguf){.bytes = g->bytes};
}

void nb_gguf_close(nb_gguf *g)
{
    if (g == NULL)
        return;
    drop_tables(g);
    nb_buf_free(&g->bytes);
    nb_free(g);
}

/* Moves the elements of arrays back over the array's own count, which has been read, so that they
 * are aligned for their type. The file aligns nothing. */
static void align_arrays(nb_gguf *g)
{
    for (int64_t i = 0; i < g->n_kv; i++) {
        nb_gguf_kv *kv = &g->kv[i];
        const size_t each = nb_gguf_type_bytes(kv->elem);
        if (kv->type != NB_GGUF_ARRAY || each < 2)
            continue;
        const size_t at = (size_t)(kv->data - g->bytes.data), aligned = at & ~(each - 1);
        memmove(g->bytes.data + aligned, g->bytes.data + at, kv->data_bytes);
        kv->data = g->bytes.data + aligned;
    }
}

static nb_status read_header(nb_gguf *g, const nb_file *file, nb_err *err)
{
    const uint64_t file_size = (uint64_t)file->size;
    const uint64_t most = file_size < MAX_HEADER ? file_size : MAX_HEADER;
    uint64_t size = most < FIRST_PIECE ? most : FIRST_PIECE;
    for (;;) {
        const size_t have = g->bytes.len;
        NB_TRY(nb_buf_reserve(&g->bytes, (size_t)size - have + 1, err)); /* never NULL */
        NB_TRY(nb_file_read(file, g->bytes.data + have, (size_t)size - have, (int64_t)have, err));
        g->bytes.len = (size_t)size;
        header h = {.r = {.data = g->bytes.data, .size = g->bytes.len}, .file_size = file_size};
        const nb_status s = parse_header(g, &h, err);
        if (s == NB_OK)
            return nb_file_check_unchanged(file, err);
        if (h.wanted == 0 || h.wanted > most)
            return nb_context(err, "%s", file->path);
        drop_tables(g);
        size = h.wanted > 4 * size ? h.wanted : 4 * size;
        size = size < most ? size : most;
    }
}

nb_status nb_gguf_open(nb_gguf **out, const nb_file *file, nb_err *err)
{
    nb_gguf *g;
    NB_TRY(NB_ALLOC(&g, 1, err));
    const nb_status s = read_header(g, file, err);
    if (s != NB_OK) {
        nb_gguf_close(g);
        return s;
    }
    align_arrays(g);
    *out = g;
    return NB_OK;
}

nb_status nb_gguf_open_pairs(nb_gguf **out, const uint8_t *bytes, size_t len, int64_t n_kv,
                             nb_err *err)
{
    nb_gguf *g;
    NB_TRY(NB_ALLOC(&g, 1, err));
    header h = {.r = {.data = bytes, .size = len}, .file_size = len};
    nb_status s = check_count(&h, (uint64_t)n_kv, MIN_PAIR, MAX_PAIRS, "keys", err);
    if (s == NB_OK)
        s = parse_pairs(&h, g, (uint64_t)n_kv, err);
    if (s == NB_OK && h.r.pos != len)
        s = nb_fail(err, NB_DATA, "%zu bytes follow the last of %lld keys", len - h.r.pos,
                    (long long)n_kv);
    if (s == NB_OK)
        s = find_alignment(g, err);
    if (s != NB_OK) {
        nb_gguf_close(g);
        return s;
    }
    *out = g;
    return NB_OK;
}
