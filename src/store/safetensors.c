/* See safetensors.h. The rules are those of the format's own validator (formats.md 9.3), and more
 * strict where it is lax: no duplicate names, no unknown keys in an entry. */
#include "store/safetensors.h"

#include "store/json_scan.h"
#include "store/names.h"
#include "store/sniff.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_HEADER_BYTES 100000000

static const struct {
    const char *name;
    int bits;
} dtypes[] = {
#define X(id, text, bits) [id] = {text, bits},
    NB_ST_DTYPES(X)
#undef X
};
#define N_DTYPES ((int)(sizeof dtypes / sizeof *dtypes))

const char *nb_st_dtype_name(nb_st_dtype dtype)
{
    return dtypes[dtype].name;
}

int nb_st_dtype_bits(nb_st_dtype dtype)
{
    return dtypes[dtype].bits;
}

const char *nb_st_shape_text(char out[NB_ST_SHAPE_TEXT], int n_dims, const int64_t *dims)
{
    size_t n = (size_t)snprintf(out, NB_ST_SHAPE_TEXT, "[");
    for (int i = 0; i < n_dims; i++)
        n += (size_t)snprintf(out + n, NB_ST_SHAPE_TEXT - n, i == 0 ? "%lld" : ", %lld",
                              (long long)dims[i]);
    snprintf(out + n, NB_ST_SHAPE_TEXT - n, "]");
    return out;
}

nb_status nb_st_expect(const nb_st_tensor *t, nb_st_dtype dtype, int n_dims, const int64_t *dims,
                       nb_err *err)
{
    char wanted[NB_ST_SHAPE_TEXT], found[NB_ST_SHAPE_TEXT];
    bool same = t->dtype == dtype && t->n_dims == n_dims;
    for (int i = 0; i < n_dims && same; i++)
        same = t->dims[i] == dims[i];
    if (same)
        return NB_OK;
    return nb_fail(err, NB_DATA, "tensor '%.200s': wanted %s %s, found %s %s", t->name,
                   nb_st_dtype_name(dtype), nb_st_shape_text(wanted, n_dims, dims),
                   nb_st_dtype_name(t->dtype), nb_st_shape_text(found, t->n_dims, t->dims));
}

/* Bytes of a tensor of this dtype and shape. */
static nb_status tensor_bytes(const nb_st_tensor *t, int64_t *out, nb_err *err)
{
    int64_t bits = nb_st_dtype_bits(t->dtype);
    char shape[NB_ST_SHAPE_TEXT];
    for (int i = 0; i < t->n_dims; i++) {
        if (__builtin_mul_overflow(bits, t->dims[i], &bits))
            return nb_fail(err, NB_DATA, "tensor '%.200s': shape %s is too large", t->name,
                           nb_st_shape_text(shape, t->n_dims, t->dims));
    }
    if (bits % 8 != 0)
        return nb_fail(err, NB_DATA, "tensor '%.200s': %s elements of %d bits are no whole bytes",
                       t->name, nb_st_shape_text(shape, t->n_dims, t->dims),
                       nb_st_dtype_bits(t->dtype));
    *out = bits / 8;
    return NB_OK;
}

/* ---- the header ---- */

typedef struct {
    nb_scan scan;
    nb_buf text; /* of the string read last */
    nb_arena *arena;
} header_reader;

static nb_status read_dtype(header_reader *r, nb_st_tensor *t, nb_err *err)
{
    NB_TRY(nb_scan_text(&r->scan, &r->text, err));
    for (int i = 0; i < N_DTYPES; i++) {
        if (strcmp(dtypes[i].name, (const char *)r->text.data) == 0) {
            t->dtype = (nb_st_dtype)i;
            return NB_OK;
        }
    }
    return nb_fail(err, NB_UNSUPPORTED, "dtype '%.100s' is not known", (const char *)r->text.data);
}

static nb_status read_shape(header_reader *r, nb_st_tensor *t, nb_err *err)
{
    NB_TRY(nb_scan_expect(&r->scan, '[', err));
    t->n_dims = 0;
    if (nb_scan_take(&r->scan, ']'))
        return NB_OK;
    do {
        if (t->n_dims == NB_MAX_DIMS)
            return nb_fail(err, NB_UNSUPPORTED, "more than %d dimensions", NB_MAX_DIMS);
        NB_TRY(nb_scan_count(&r->scan, &t->dims[t->n_dims++], err));
    } while (nb_scan_take(&r->scan, ','));
    return nb_scan_expect(&r->scan, ']', err);
}

static nb_status read_offsets(header_reader *r, nb_st_tensor *t, nb_err *err)
{
    int64_t end;
    NB_TRY(nb_scan_expect(&r->scan, '[', err));
    NB_TRY(nb_scan_count(&r->scan, &t->begin, err));
    NB_TRY(nb_scan_expect(&r->scan, ',', err));
    NB_TRY(nb_scan_count(&r->scan, &end, err));
    NB_TRY(nb_scan_expect(&r->scan, ']', err));
    if (end < t->begin)
        return nb_fail(err, NB_DATA, "data_offsets [%lld, %lld] end before they begin",
                       (long long)t->begin, (long long)end);
    t->bytes = end - t->begin;
    return NB_OK;
}

/* {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}, in any order. */
static nb_status read_entry(header_reader *r, nb_st_tensor *t, nb_err *err)
{
    static const struct {
        const char *key;
        nb_status (*read)(header_reader *r, nb_st_tensor *t, nb_err *err);
    } fields[] = {{"dtype", read_dtype}, {"shape", read_shape}, {"data_offsets", read_offsets}};
    enum { N_FIELDS = 3 };
    bool seen[N_FIELDS] = {false};

    NB_TRY(nb_scan_expect(&r->scan, '{', err));
    do {
        NB_TRY(nb_scan_text(&r->scan, &r->text, err));
        NB_TRY(nb_scan_expect(&r->scan, ':', err));
        const char *key = (const char *)r->text.data;
        int f = 0;
        while (f < N_FIELDS && strcmp(fields[f].key, key) != 0)
            f++;
        if (f == N_FIELDS)
            return nb_fail(err, NB_UNSUPPORTED, "key '%.100s' is not known", key);
        if (seen[f])
            return nb_fail(err, NB_DATA, "key '%s' is there twice", fields[f].key);
        seen[f] = true;
        NB_TRY(fields[f].read(r, t, err));
    } while (nb_scan_take(&r->scan, ','));
    NB_TRY(nb_scan_expect(&r->scan, '}', err));
    for (int f = 0; f < N_FIELDS; f++) {
        if (!seen[f])
            return nb_fail(err, NB_DATA, "key '%s' is missing", fields[f].key);
    }
    return NB_OK;
}

/* NB_DATA if two of the texts are the same. `names` is an array of nb_name. */
static nb_status check_distinct(nb_buf *names, const char *what, nb_err *err)
{
    nb_name *table = (nb_name *)names->data;
    const int64_t n = (int64_t)(names->len / sizeof *table);
    nb_names_sort(table, n);
    const nb_name *twice = nb_names_twice(table, n);
    if (twice != NULL)
        return nb_fail(err, NB_DATA, "%s '%.200s' is there twice", what, twice->name);
    return NB_OK;
}

/* __metadata__: an object whose values are all strings. nibble needs none of them. */
static nb_status read_metadata(header_reader *r, nb_buf *keys, nb_err *err)
{
    NB_TRY(nb_scan_expect(&r->scan, '{', err));
    if (nb_scan_take(&r->scan, '}'))
        return NB_OK;
    do {
        char *key;
        NB_TRY(nb_scan_text(&r->scan, &r->text, err));
        NB_TRY(nb_arena_text(r->arena, &key, (const char *)r->text.data, r->text.len, err));
        NB_TRY(nb_buf_put(keys, &(nb_name){.name = key}, sizeof(nb_name), err));
        NB_TRY(nb_scan_expect(&r->scan, ':', err));
        NB_TRY(nb_scan_text(&r->scan, &r->text, err));
    } while (nb_scan_take(&r->scan, ','));
    NB_TRY(nb_scan_expect(&r->scan, '}', err));
    return check_distinct(keys, "key", err);
}

/* The name in r->text, as a name that can be printed and compared. */
static nb_status keep_name(header_reader *r, nb_st_tensor *t, nb_err *err)
{
    if (r->text.len == 0)
        return nb_fail(err, NB_DATA, "a tensor without a name");
    for (size_t i = 0; i < r->text.len; i++) {
        if (r->text.data[i] < 0x20 || r->text.data[i] == 0x7f)
            return nb_fail(err, NB_DATA, "tensor '%.200s': a control character in its name",
                           (const char *)r->text.data);
    }
    char *name;
    NB_TRY(nb_arena_text(r->arena, &name, (const char *)r->text.data, r->text.len, err));
    t->name = name;
    return NB_OK;
}

static nb_status read_header(header_reader *r, nb_safetensors *st, nb_err *err)
{
    bool metadata_seen = false;
    NB_TRY(nb_scan_expect(&r->scan, '{', err));
    if (nb_scan_take(&r->scan, '}'))
        return nb_scan_end(&r->scan, err);
    do {
        NB_TRY(nb_scan_text(&r->scan, &r->text, err));
        if (strcmp((const char *)r->text.data, "__metadata__") == 0) {
            if (metadata_seen)
                return nb_fail(err, NB_DATA, "key '__metadata__' is there twice");
            metadata_seen = true;
            NB_TRY(nb_scan_expect(&r->scan, ':', err));
            nb_buf keys = {0};
            const nb_status s = read_metadata(r, &keys, err);
            nb_buf_free(&keys);
            if (s != NB_OK)
                return nb_context(err, "__metadata__");
            continue;
        }
        nb_st_tensor t = {0};
        NB_TRY(keep_name(r, &t, err));
        NB_TRY(nb_scan_expect(&r->scan, ':', err));
        if (read_entry(r, &t, err) != NB_OK)
            return nb_context(err, "tensor '%.200s'", t.name);
        NB_TRY(nb_buf_put(&st->table, &t, sizeof t, err));
    } while (nb_scan_take(&r->scan, ','));
    NB_TRY(nb_scan_expect(&r->scan, '}', err));
    return nb_scan_end(&r->scan, err);
}

static int by_place(const void *a, const void *b)
{
    const nb_st_tensor *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? -1 : 1;
    return strcmp(x->name, y->name);
}

/* Tensors tile the data exactly: no hole, no overlap, nothing behind. */
static nb_status check_layout(const nb_safetensors *st, int64_t data_bytes, nb_err *err)
{
    int64_t end = 0;
    for (int64_t i = 0; i < st->n_tensors; i++) {
        const nb_st_tensor *t = &st->tensors[i];
        int64_t bytes;
        NB_TRY(tensor_bytes(t, &bytes, err));
        char shape[NB_ST_SHAPE_TEXT];
        if (bytes != t->bytes)
            return nb_fail(err, NB_DATA, "tensor '%.200s': %s %s needs %lld bytes and has %lld",
                           t->name, nb_st_dtype_name(t->dtype),
                           nb_st_shape_text(shape, t->n_dims, t->dims), (long long)bytes,
                           (long long)t->bytes);
        if (t->begin != end)
            return nb_fail(err, NB_DATA,
                           "tensor '%.200s' begins at byte %lld, and the one before ends at %lld",
                           t->name, (long long)t->begin, (long long)end);
        if (t->bytes > data_bytes - end)
            return nb_fail(err, NB_DATA, "tensor '%.200s' ends at byte %lld of %lld", t->name,
                           (long long)(end + t->bytes), (long long)data_bytes);
        end += t->bytes;
    }
    if (end != data_bytes)
        return nb_fail(err, NB_DATA, "%lld bytes of data, and the tensors end at %lld",
                       (long long)data_bytes, (long long)end);
    return NB_OK;
}

static nb_status check_names(const nb_safetensors *st, nb_err *err)
{
    nb_buf names = {0};
    nb_status s = nb_buf_reserve(&names, (size_t)st->n_tensors * sizeof(nb_name), err);
    if (s == NB_OK) {
        nb_name *table = (nb_name *)names.data;
        for (int64_t i = 0; i < st->n_tensors; i++)
            table[i] = (nb_name){.name = st->tensors[i].name, .value = i};
        names.len = (size_t)st->n_tensors * sizeof(nb_name);
        s = check_distinct(&names, "tensor", err);
    }
    nb_buf_free(&names);
    return s;
}

nb_status nb_st_parse(nb_safetensors *st, nb_arena *arena, const char *text, size_t len,
                      int64_t data_bytes, nb_err *err)
{
    header_reader r = {.scan = {.text = text, .len = len}, .arena = arena};
    nb_status s = read_header(&r, st, err);
    nb_buf_free(&r.text);
    if (s != NB_OK) {
        nb_context(err, "header");
    } else {
        st->tensors = (nb_st_tensor *)st->table.data;
        st->n_tensors = (int64_t)(st->table.len / sizeof *st->tensors);
        if (st->n_tensors > 1)
            qsort(st->tensors, (size_t)st->n_tensors, sizeof *st->tensors, by_place);
        s = check_names(st, err);
    }
    if (s == NB_OK)
        s = check_layout(st, data_bytes, err);
    if (s != NB_OK) {
        nb_buf_free(&st->table);
        st->tensors = NULL;
        st->n_tensors = 0;
    }
    return s;
}

/* ---- the file ---- */

static nb_status read_file(nb_safetensors *st, nb_arena *arena, nb_buf *header, nb_err *err)
{
    const nb_file *file = &st->file;
    uint8_t start[NB_SNIFF_BYTES] = {0};
    if (file->size < 8)
        return nb_fail(err, NB_DATA, "%s: %lld bytes are too short for a safetensors file",
                       file->path, (long long)file->size);
    const size_t n_start = file->size < NB_SNIFF_BYTES ? (size_t)file->size : NB_SNIFF_BYTES;
    NB_TRY(nb_file_read(file, start, n_start, 0, err));
    uint64_t len;
    memcpy(&len, start, 8);
    const char *other = start[8] == '{' ? NULL : nb_sniff(start, n_start);
    if (other != NULL)
        return nb_fail(err, NB_UNSUPPORTED, "%s: no safetensors file; it seems to be %s",
                       file->path, other);
    if (len > MAX_HEADER_BYTES || (int64_t)len > file->size - 8)
        return nb_fail(err, NB_DATA,
                       "%s: a header of %llu bytes is announced in a file of %lld (and at most %d "
                       "are allowed)",
                       file->path, (unsigned long long)len, (long long)file->size,
                       MAX_HEADER_BYTES);
    if (len < 2 || start[8] != '{')
        return nb_fail(err, NB_DATA, "%s: the header is no JSON object", file->path);
    NB_TRY(nb_buf_reserve(header, (size_t)len, err));
    NB_TRY(nb_file_read(file, header->data, (size_t)len, 8, err));
    st->data_start = 8 + (int64_t)len;
    if (nb_st_parse(st, arena, (const char *)header->data, (size_t)len, file->size - st->data_start,
                    err) != NB_OK)
        return nb_context(err, "%s", file->path);
    return NB_OK;
}

nb_status nb_st_open(nb_safetensors *st, nb_arena *arena, const char *path, nb_err *err)
{
    *st = NB_SAFETENSORS_CLOSED;
    NB_TRY(nb_file_open(&st->file, path, err));
    nb_buf header = {0};
    const nb_status s = read_file(st, arena, &header, err);
    nb_buf_free(&header);
    if (s != NB_OK)
        nb_st_close(st);
    return s;
}

void nb_st_close(nb_safetensors *st)
{
    nb_file_close(&st->file);
    nb_buf_free(&st->table);
    *st = NB_SAFETENSORS_CLOSED;
}

nb_status nb_st_read(const nb_safetensors *st, const nb_st_tensor *t, void *out, nb_err *err)
{
    return nb_file_read(&st->file, out, (size_t)t->bytes, st->data_start + t->begin, err);
}

/* ---- writing ---- */

/* A name as a JSON string. */
static nb_status write_text(nb_buf *out, const char *text, nb_err *err)
{
    NB_TRY(nb_buf_u8(out, '"', err));
    for (const char *p = text; *p != 0; p++) {
        if ((uint8_t)*p < 0x20) {
            NB_TRY(nb_buf_format(out, err, "\\u%04x", (unsigned)*p));
            continue;
        }
        if (*p == '"' || *p == '\\')
            NB_TRY(nb_buf_u8(out, '\\', err));
        NB_TRY(nb_buf_u8(out, (uint8_t)*p, err));
    }
    return nb_buf_u8(out, '"', err);
}

static nb_status write_entry(nb_buf *out, const nb_st_tensor *t, nb_err *err)
{
    NB_TRY(nb_buf_u8(out, ',', err));
    NB_TRY(write_text(out, t->name, err));
    NB_TRY(nb_buf_format(out, err, ":{\"dtype\":\"%s\",\"shape\":[", nb_st_dtype_name(t->dtype)));
    for (int i = 0; i < t->n_dims; i++)
        NB_TRY(nb_buf_format(out, err, i == 0 ? "%lld" : ",%lld", (long long)t->dims[i]));
    return nb_buf_format(out, err, "],\"data_offsets\":[%lld,%lld]}", (long long)t->begin,
                         (long long)(t->begin + t->bytes));
}

nb_status nb_st_write_header(nb_buf *out, nb_st_tensor *tensors, int64_t n, int64_t *data_bytes,
                             nb_err *err)
{
    const size_t start = out->len;
    int64_t end = 0;
    NB_TRY(nb_buf_u64(out, 0, err));
    NB_TRY(nb_buf_text(out, "{\"__metadata__\":{\"format\":\"pt\"}", err));
    for (int64_t i = 0; i < n; i++) {
        nb_st_tensor *t = &tensors[i];
        NB_TRY(tensor_bytes(t, &t->bytes, err));
        t->begin = end;
        if (__builtin_add_overflow(end, t->bytes, &end))
            return nb_fail(err, NB_DATA, "tensor '%.200s': the file is too large", t->name);
        NB_TRY(write_entry(out, t, err));
    }
    NB_TRY(nb_buf_u8(out, '}', err));
    while ((out->len - start) % 8 != 0)
        NB_TRY(nb_buf_u8(out, ' ', err));
    const uint64_t len = out->len - start - 8;
    if (len > MAX_HEADER_BYTES)
        return nb_fail(err, NB_UNSUPPORTED, "a header of %llu bytes: %lld tensors do not fit",
                       (unsigned long long)len, (long long)n);
    memcpy(out->data + start, &len, 8);
    *data_bytes = end;
    return NB_OK;
}
