/* See calib/source.h. */
#define _GNU_SOURCE /* memmem */
#include "quant/calib/source.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define BLOCK      ((int64_t)1 << 20)
#define MAX_HEADER 65536 /* of a .npy */
/* A .bin with fewer pairs of ids may be anything. */
#define LEAST_PAIRS 8

const char *nb_calib_kind_name(nb_calib_kind kind)
{
    static const char *const names[] = {"text", "lines", "ids"};
    return names[kind];
}

/* ---- reading ---- */

/* Makes block hold the file from `at` on: as much as there is, up to BLOCK bytes. */
static nb_status load(nb_calib_source *s, int64_t at, nb_err *err)
{
    const int64_t left = s->file.size - at, n = left < BLOCK ? left : BLOCK;
    s->block.len = 0;
    NB_TRY(nb_buf_reserve(&s->block, (size_t)n, err));
    NB_TRY(nb_file_read(&s->file, s->block.data, (size_t)n, at, err));
    s->block.len = (size_t)n;
    s->block_at = at;
    return NB_OK;
}

/* *at = where `needle` starts, at or after `from`; the end of the file when nowhere. */
static nb_status find(nb_calib_source *s, int64_t from, const char *needle, size_t n, int64_t *at,
                      nb_err *err)
{
    while (from < s->file.size) {
        int64_t end = s->block_at + (int64_t)s->block.len;
        if (from < s->block_at || from + (int64_t)n > end) {
            NB_TRY(load(s, from, err));
            end = from + (int64_t)s->block.len;
        }
        const uint8_t *here = s->block.data + (from - s->block_at);
        const uint8_t *hit = memmem(here, (size_t)(end - from), needle, n);
        if (hit != NULL) {
            *at = from + (hit - here);
            return NB_OK;
        }
        if (end == s->file.size)
            break;
        from = end - (int64_t)n + 1; /* a needle may lie across the border of two blocks */
    }
    *at = s->file.size;
    return NB_OK;
}

static nb_status hash_file(nb_calib_source *s, nb_err *err)
{
    uint8_t digest[NB_SHA256_BYTES];
    NB_TRY(nb_file_sha256(&s->file, 0, digest, err));
    nb_sha256_hex_of(digest, s->sha256);
    return NB_OK;
}

/* ---- .npy ---- */

/* The text after "'key':" and spaces; NULL: there is none. */
static const char *npy_value(const char *header, const char *key)
{
    char quoted[32];
    snprintf(quoted, sizeof quoted, "'%s':", key);
    const char *at = strstr(header, quoted);
    return at == NULL ? NULL : at + strlen(quoted) + strspn(at + strlen(quoted), " ");
}

/* One number of "(3, 5)", (*at moves past it and a comma); false where there is none. */
static bool npy_extent(const char **at, int64_t *out)
{
    *at += strspn(*at, " ");
    if (**at < '0' || **at > '9')
        return false;
    char *end;
    const unsigned long long v = strtoull(*at, &end, 10);
    if (end - *at > 15)
        return false;
    *out = (int64_t)v;
    *at = end + strspn(end, " ");
    if (**at == ',')
        ++*at;
    return true;
}

static nb_status npy_header(nb_calib_source *s, const char *header, int64_t at, nb_err *err)
{
    static const struct {
        const char *name;
        int bytes;
    } types[] = {{"'<u2'", 2}, {"'<i2'", 2}, {"'<u4'", 4},
                 {"'<i4'", 4}, {"'<u8'", 8}, {"'<i8'", 8}};
    const char *type = npy_value(header, "descr"), *order = npy_value(header, "fortran_order");
    const char *shape = npy_value(header, "shape");
    if (type == NULL || order == NULL || shape == NULL || *shape != '(')
        return nb_fail(err, NB_DATA, "the header lacks descr, fortran_order or shape");
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (strncmp(type, types[i].name, 5) == 0)
            s->id_bytes = types[i].bytes;
    if (s->id_bytes == 0)
        return nb_fail(err, NB_UNSUPPORTED,
                       "elements of type %.*s; token ids are <u2, <i2, <u4, <i4, <u8 or <i8",
                       (int)strcspn(type, ",}"), type);
    int64_t n_rows = 1, n_cols = 0, more;
    shape++;
    bool fine = npy_extent(&shape, &n_cols);
    if (fine && *shape != ')') {
        n_rows = n_cols;
        fine = npy_extent(&shape, &n_cols);
        if (strncmp(order, "False", 5) != 0)
            return nb_fail(err, NB_UNSUPPORTED, "an array in Fortran order");
    }
    if (!fine || *shape != ')' || npy_extent(&shape, &more))
        return nb_fail(err, NB_UNSUPPORTED, "an array of another shape than (n) or (rows, n)");
    size_t bytes;
    if (!nb_mul_size((size_t)n_cols, (size_t)s->id_bytes, &bytes) ||
        !nb_mul_size(bytes, (size_t)n_rows, &bytes) || bytes != (uint64_t)(s->file.size - at))
        return nb_fail(err, NB_DATA,
                       "%lld bytes follow the header, which is not what %lld x %lld ids of %d take",
                       (long long)(s->file.size - at), (long long)n_rows, (long long)n_cols,
                       s->id_bytes);
    if (bytes == 0)
        return nb_fail(err, NB_DATA, "an array without elements");
    s->start = at;
    s->row_bytes = n_cols * s->id_bytes;
    return NB_OK;
}

/*   byte   0          6       7       8
 *        [ \x93NUMPY | major | minor | header length: 2 bytes, or 4 from version 2 on | header ] */
static nb_status open_npy(nb_calib_source *s, nb_err *err)
{
    uint8_t head[12] = {0};
    const size_t n = s->file.size < 12 ? (size_t)s->file.size : 12;
    NB_TRY(nb_file_read(&s->file, head, n, 0, err));
    if (memcmp(head, "\x93NUMPY", 6) != 0 || head[6] < 1 || head[6] > 3)
        return nb_fail(err, NB_DATA, "%s: not an array of NumPy's format 1 to 3", s->file.path);
    const int64_t at = head[6] == 1 ? 10 : 12;
    int64_t len = head[8] | head[9] << 8;
    if (head[6] > 1)
        len |= (int64_t)head[10] << 16 | (int64_t)head[11] << 24;
    if (len > MAX_HEADER)
        return nb_fail(err, NB_DATA, "%s: a header of %lld bytes; at most %d are possible",
                       s->file.path, (long long)len, MAX_HEADER);
    nb_buf header = {0};
    nb_status status;
    NB_TRY_GOTO(status, nb_buf_reserve(&header, (size_t)len + 1, err));
    NB_TRY_GOTO(status, nb_file_read(&s->file, header.data, (size_t)len, at, err));
    header.data[len] = 0;
    status = npy_header(s, (const char *)header.data, at + len, err);
    if (status != NB_OK)
        nb_context(err, "%s", s->file.path);
done:
    nb_buf_free(&header);
    return status;
}

/* Ids of 32 bits that are taken for ids of 16 are what was meant and zeros in turn. */
static nb_status check_width(nb_calib_source *s, nb_err *err)
{
    const int64_t n = s->file.size < BLOCK ? s->file.size / 4 : BLOCK / 4;
    uint16_t some = 0, others = 0;
    NB_TRY(load(s, 0, err));
    for (int64_t i = 0; i < n; i++) {
        const uint8_t *at = s->block.data + 4 * i;
        some |= (uint16_t)(at[0] | at[1] << 8);
        others |= (uint16_t)(at[2] | at[3] << 8);
    }
    if (n >= LEAST_PAIRS && some != 0 && others == 0)
        return nb_fail(err, NB_DATA,
                       "%s: every second id is 0, as if these were 32 bits each; for a vocabulary "
                       "of at most 65536 tokens a .bin has 16 (a .npy says how many)",
                       s->file.path);
    return NB_OK;
}

static nb_status open_bin(nb_calib_source *s, int64_t n_vocab, nb_err *err)
{
    s->id_bytes = n_vocab > 65536 ? 4 : 2;
    if (s->file.size % s->id_bytes != 0)
        return nb_fail(err, NB_DATA, "%s: %lld bytes are no whole ids of %d bytes", s->file.path,
                       (long long)s->file.size, s->id_bytes);
    s->row_bytes = s->file.size;
    return s->id_bytes == 2 ? check_width(s, err) : NB_OK;
}

/* ---- opening ---- */

static bool ends_in(const char *path, const char *ending)
{
    const size_t n = strlen(path), m = strlen(ending);
    return n > m && strcasecmp(path + n - m, ending) == 0;
}

bool nb_calib_names_ids(const char *path)
{
    return ends_in(path, ".npy") || ends_in(path, ".bin");
}

bool nb_calib_names_lines(const char *path)
{
    return ends_in(path, ".jsonl") || ends_in(path, ".ndjson") || ends_in(path, ".json");
}

static nb_status open_kind(nb_calib_source *s, const char *path,
                           const nb_calib_source_options *options, nb_err *err)
{
    if (nb_calib_names_ids(path)) {
        s->kind = NB_CALIB_IDS;
        if (ends_in(path, ".npy"))
            NB_TRY(open_npy(s, err));
        else
            NB_TRY(open_bin(s, options->n_vocab, err));
        s->piece = options->piece_ids * s->id_bytes;
    } else {
        s->kind = nb_calib_names_lines(path) ? NB_CALIB_LINES : NB_CALIB_TEXT;
        char mark[3];
        if (s->file.size >= 3) {
            NB_TRY(nb_file_read(&s->file, mark, 3, 0, err));
            if (memcmp(mark, "\xEF\xBB\xBF", 3) == 0)
                s->start = 3;
        }
        s->split = options->split;
        s->piece = s->kind == NB_CALIB_LINES || options->split != NULL ? 0 : options->piece_text;
    }
    s->next = s->start;
    return NB_OK;
}

nb_status nb_calib_source_open(nb_calib_source *s, const char *path,
                               const nb_calib_source_options *options, nb_err *err)
{
    *s = (nb_calib_source){.file = NB_FILE_CLOSED};
    nb_calib_source opened = *s;
    NB_TRY(nb_file_open(&opened.file, path, err));
    nb_status status = NB_OK;
    if (opened.file.size == 0)
        status = nb_fail(err, NB_DATA, "%s: an empty file", path);
    if (status == NB_OK)
        status = hash_file(&opened, err);
    if (status == NB_OK)
        status = open_kind(&opened, path, options, err);
    if (status != NB_OK) {
        nb_calib_source_close(&opened);
        return status;
    }
    nb_buf_free(&opened.block); /* many files may be open */
    *s = opened;
    return NB_OK;
}

void nb_calib_source_close(nb_calib_source *s)
{
    nb_file_close(&s->file);
    nb_buf_free(&s->block);
    *s = (nb_calib_source){.file = NB_FILE_CLOSED};
}

/* ---- documents ---- */

static nb_status next_line(nb_calib_source *s, nb_calib_span *out, nb_err *err)
{
    int64_t end;
    NB_TRY(find(s, s->next, "\n", 1, &end, err));
    *out = (nb_calib_span){s->next, end - s->next};
    if (out->len > NB_CALIB_MAX_LINE) {
        nb_fail(err, NB_DATA, "%lld bytes; a line may have %lld", (long long)out->len,
                (long long)NB_CALIB_MAX_LINE);
        return nb_calib_source_blame(s, out->offset, err);
    }
    s->next = end + 1;
    return NB_OK;
}

/* A piece of about s->piece bytes, and at most twice that. */
static nb_status next_piece(nb_calib_source *s, int64_t end, nb_calib_span *out, nb_err *err)
{
    const int64_t left = end - s->next;
    int64_t n = left;
    if (s->kind == NB_CALIB_IDS) {
        n = left < s->piece ? left : s->piece;
    } else if (left > s->piece) {
        const int64_t look = left < 2 * s->piece ? left : 2 * s->piece;
        s->block.len = 0; /* the block serves as room: what it held is not looked for again */
        NB_TRY(nb_buf_reserve(&s->block, (size_t)look, err));
        NB_TRY(nb_file_read(&s->file, s->block.data, (size_t)look, s->next, err));
        const char *text = (const char *)s->block.data;
        const char *line_end = memchr(text + s->piece, '\n', (size_t)(look - s->piece));
        n = line_end != NULL ? line_end + 1 - text
                             : (int64_t)nb_calib_cut(text, (size_t)look, (size_t)s->piece);
    }
    *out = (nb_calib_span){s->next, n};
    s->next += n;
    return NB_OK;
}

static nb_status next_any(nb_calib_source *s, nb_calib_span *out, nb_err *err)
{
    int64_t end = s->file.size;
    if (s->kind == NB_CALIB_LINES)
        return next_line(s, out, err);
    if (s->kind == NB_CALIB_IDS) /* the row that s->next lies in */
        end = s->start + ((s->next - s->start) / s->row_bytes + 1) * s->row_bytes;
    if (s->piece > 0)
        return next_piece(s, end, out, err);
    if (s->kind == NB_CALIB_TEXT && s->split != NULL)
        NB_TRY(find(s, s->next, s->split, strlen(s->split), &end, err));
    *out = (nb_calib_span){s->next, end - s->next};
    s->next = end;
    if (s->kind == NB_CALIB_TEXT && s->split != NULL)
        s->next += (int64_t)strlen(s->split);
    return NB_OK;
}

/* A line of nothing but white space. */
static nb_status is_blank(const nb_calib_source *s, nb_calib_span span, bool *blank, nb_err *err)
{
    char first[16];
    *blank = span.len == 0;
    if (*blank || s->kind != NB_CALIB_LINES)
        return NB_OK;
    int64_t at = 0;
    for (*blank = true; *blank && at < span.len; at += (int64_t)sizeof first) {
        const size_t n = span.len - at < 16 ? (size_t)(span.len - at) : sizeof first;
        NB_TRY(nb_file_read(&s->file, first, n, span.offset + at, err));
        for (size_t i = 0; i < n; i++)
            *blank = *blank && strchr(" \t\r", first[i]) != NULL && first[i] != 0;
    }
    return NB_OK;
}

nb_status nb_calib_source_next(nb_calib_source *s, nb_calib_span *out, bool *more, nb_err *err)
{
    while (s->next < s->file.size) {
        nb_calib_span span;
        bool blank;
        NB_TRY(next_any(s, &span, err));
        NB_TRY(is_blank(s, span, &blank, err));
        if (!blank) {
            *out = span;
            *more = true;
            return NB_OK;
        }
    }
    *more = false;
    return NB_OK;
}

/* ---- messages ---- */

int64_t nb_calib_source_line(const nb_calib_source *s, int64_t offset)
{
    char block[4096];
    int64_t line = 1;
    nb_err ignored;
    for (int64_t at = 0; at < offset;) {
        const int64_t left = offset - at;
        const size_t n = left < (int64_t)sizeof block ? (size_t)left : sizeof block;
        if (nb_file_read(&s->file, block, n, at, &ignored) != NB_OK)
            return 0;
        for (size_t i = 0; i < n; i++)
            line += block[i] == '\n';
        at += (int64_t)n;
    }
    return line;
}

nb_status nb_calib_source_blame(const nb_calib_source *s, int64_t offset, nb_err *err)
{
    if (s->kind == NB_CALIB_IDS)
        return nb_context(err, "%s: id %lld", s->file.path,
                          (long long)((offset - s->start) / s->id_bytes));
    return nb_context(err, "%s: line %lld", s->file.path,
                      (long long)nb_calib_source_line(s, offset));
}

/* ---- cutting ---- */

static bool is_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

size_t nb_calib_cut(const char *text, size_t len, size_t least)
{
    if (least == 0)
        least = 1;
    for (size_t i = least; i + 1 < len; i++)
        if (text[i] == ' ' && is_letter(text[i - 1]) && is_letter(text[i + 1]))
            return i;
    for (size_t i = len; i > least; i--)
        if (text[i - 1] == '\n')
            return i;
    size_t n = len;
    while (n > 0 && len - n < 4 && ((unsigned char)text[n - 1] & 0xc0) == 0x80)
        n--; /* back over what continues a character, to its first byte */
    if (n == 0 || len - n >= 4)
        return len;
    const unsigned char head = (unsigned char)text[n - 1];
    const size_t whole = head < 0x80 ? 1 : head >= 0xf0 ? 4 : head >= 0xe0 ? 3 : 2;
    return len - (n - 1) >= whole || n == 1 ? len : n - 1;
}
