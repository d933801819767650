/* The documents of one calibration file, found without holding the file in memory: a document is
 * a place in the file, read when it is its turn.
 *
 *   text     any name: UTF-8 (a byte order mark is skipped). The document is the whole file, or
 *            what lies between separators.
 *   lines    .jsonl, .ndjson, .json: one JSON value a line; empty lines are none
 *   ids      .npy: an array of token ids of NumPy's format 1 to 3, <u2 <i2 <u4 <i4 <u8 <i8, in C
 *            order: one document, or one a row if it has two dimensions
 *            .bin: nothing but ids of two bytes, little-endian; of four where the vocabulary has
 *            more than 65,536: one document */
#ifndef NB_QUANT_CALIB_SOURCE_H
#define NB_QUANT_CALIB_SOURCE_H

#include "base/file.h"
#include "base/sha256.h"

typedef enum { NB_CALIB_TEXT, NB_CALIB_LINES, NB_CALIB_IDS } nb_calib_kind;
const char *nb_calib_kind_name(nb_calib_kind kind); /* "text", "lines", "ids" */

/* A line of JSON may have so many bytes. */
#define NB_CALIB_MAX_LINE      ((int64_t)16 << 20)
#define NB_CALIB_MAX_SEPARATOR 64

typedef struct {
    int64_t offset, len; /* bytes of the file */
} nb_calib_span;

typedef struct {
    nb_file file;
    nb_calib_kind kind;
    int64_t start;     /* of the first document, past a byte order mark or a header */
    int64_t next;      /* where the search for documents goes on */
    int64_t row_bytes; /* ids: of a document, 0: all that is left */
    int id_bytes;      /* ids: 2, 4 or 8 */
    const char *split; /* text: separator, NULL: none; borrowed */
    int64_t piece;     /* > 0: documents of text and ids are cut into pieces of so many
                          bytes (text: up to the next line end, at most twice as many) */
    nb_buf block;      /* the part of the file that is looked at */
    int64_t block_at;
    char sha256[NB_SHA256_HEX]; /* of the whole file */
} nb_calib_source;

typedef struct {
    const char *split;
    int64_t piece_text, piece_ids; /* bytes, ids; 0: whole documents */
    int64_t n_vocab;               /* decides the width of ids in .bin */
} nb_calib_source_options;

/* Whether a name says that the file holds token ids: .npy, .bin. */
bool nb_calib_names_ids(const char *path);
/* Whether it says that the file holds JSON lines: .jsonl, .ndjson, .json. Others are texts. */
bool nb_calib_names_lines(const char *path);

/* Opens the file and hashes it. NB_DATA: not a file, empty, or a header that is wrong. */
nb_status nb_calib_source_open(nb_calib_source *s, const char *path,
                               const nb_calib_source_options *options, nb_err *err);
void nb_calib_source_close(nb_calib_source *s);

/* The next document; *more is false, and nothing else is set, after the last one. Documents
 * without a byte are passed over. NB_DATA: a line that is too long. */
nb_status nb_calib_source_next(nb_calib_source *s, nb_calib_span *out, bool *more, nb_err *err);

/* Line of the byte at `offset`, from 1: for messages, so it reads the file up to there. 0 when
 * that fails. */
int64_t nb_calib_source_line(const nb_calib_source *s, int64_t offset);
/* Puts "FILE: line N" (text and lines) or "FILE: id N" before the message; returns its status. */
nb_status nb_calib_source_blame(const nb_calib_source *s, int64_t offset, nb_err *err);

/* Where text[0, len) may be cut so that the ids of the two parts are those of the whole: before the
 * first space at or after `least` that stands alone between two ASCII letters. Pre-tokenizers cut
 * there too. Without such a place: after the last line end, else the last character that is whole,
 * and ids near the cut may differ. At least 1 if len is. */
size_t nb_calib_cut(const char *text, size_t len, size_t least);

#endif
