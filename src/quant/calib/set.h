/* The calibration set: sequences of token ids, taken from files of text, of JSON lines or of ids
 * (calib/source.h and calib/doc.h say what each may hold).
 *
 * Packing: documents follow each other, and the row of ids is cut into windows of `length`; between
 * two documents of text stands the id of an empty line ("\n\n"). What is left at the end and fills
 * no window is dropped, unless it is all there is. Not packing: a document is a sequence of its
 * own, cut at `length`. Where the tokenizer adds BOS by itself, each sequence starts with one,
 * which counts.
 *
 * Order: `first` takes documents as they come; of several files, file i of k gets the windows up to
 * (i + 1) / k of those asked for. `random` takes the documents of all files in the order of
 * Philox(seed, 0x63616c6962, number of the document); there, a text without separators and a file
 * of ids count as documents of about one window (4 bytes a token, cut at line ends), so that the
 * sequences come from everywhere. At most 2^18 documents are drawn, or as many as sequences were
 * asked for.
 *
 * Every eighth sequence (index 7, 15, ...) is held out: it judges choices, and makes none. Of 2 to
 * 7 sequences, the last one is.
 *
 * The hash of a set is the SHA-256 over little-endian numbers: the number of sequences as u64, then
 * of each one its length as u64 and its ids as u32. */
#ifndef NB_QUANT_CALIB_SET_H
#define NB_QUANT_CALIB_SET_H

#include "base/sha256.h"
#include "quant/calib/source.h"
#include "text/tokenizer.h"

#define NB_CALIB_SAMPLES       128
#define NB_CALIB_LENGTH        2048
#define NB_CALIB_MAX_SEQUENCES ((int64_t)1 << 20)
#define NB_CALIB_MAX_LENGTH    ((int64_t)1 << 20)
#define NB_CALIB_MAX_TOKENS    ((int64_t)1 << 28) /* of a whole set: 1 GiB of ids */
#define NB_CALIB_MAX_FILES     256

typedef enum {
    NB_CALIB_PACK_AUTO, /* by the first document taken: conversations each for itself, else packed
                         */
    NB_CALIB_PACK_ALL,
    NB_CALIB_PACK_NONE,
} nb_calib_pack;

/* `{0}` with paths is a good choice. */
typedef struct {
    const char *const *paths;
    int n_paths;
    int64_t n_samples; /* sequences; 0: 128 */
    int64_t length;    /* of a sequence, in tokens; 0: 2048 */
    nb_calib_pack pack;
    bool random;
    uint64_t seed;
    const char *field;  /* member of JSON lines; NULL: calib/doc.h */
    const char *split;  /* between documents of a text; NULL: the file is one */
    bool plain_chat;    /* conversations are their contents, not in the model's template */
    int64_t vocab_size; /* ids are below; 0: as many as the tokenizer has */
} nb_calib_options;

typedef struct {
    const int32_t *ids;
    int64_t n; /* 1 to length */
    bool held; /* held out */
} nb_calib_seq;

typedef struct {
    char *path; /* as given */
    nb_calib_kind kind;
    int64_t bytes;
    int64_t n_documents; /* that were taken */
    char sha256[NB_SHA256_HEX];
} nb_calib_file;

#define NB_CALIB_MAX_NOTES 12

/* `{0}` is empty. */
typedef struct {
    nb_calib_seq *seq;
    int64_t n, n_held;
    int64_t n_tokens, n_held_tokens; /* of all sequences; of those held out */
    int64_t length;                  /* that was asked for */
    bool packed;
    int64_t n_documents, longest; /* documents taken; tokens of the longest of them, as far as it
                                     was needed */
    nb_calib_file *files;
    int n_files;
    char sha256[NB_SHA256_HEX];
    /* One line each, for the user: less than was asked for, bytes without a token, ... */
    char notes[NB_CALIB_MAX_NOTES][200];
    int n_notes;
    nb_tokens ids; /* where seq points */
} nb_calib_set;

static inline bool nb_calib_is_held(int64_t index, int64_t n)
{
    return n < 8 ? n >= 2 && index == n - 1 : index % 8 == 7;
}

/* Reads a set. `tokenizer` NULL: the model has none, options say the size of its vocabulary, and
 * only token ids can be read. Files are streamed: memory is the ids, a few MiB, and with `random`
 * 40 bytes a document (up to twice as many as can be drawn). `chat_template` [n_template] is the
 * model's, NULL: it has none. All is checked that is taken, nothing else: a text's bytes that are
 * no UTF-8 are encoded as such and noted.
 *
 * NB_DATA: files that are missing, empty, or not what their names say, by file and line; ids
 * outside the vocabulary; nothing to take at all. NB_USAGE: options out of range. */
nb_status nb_calib_set_open(nb_calib_set *set, const nb_tokenizer *tokenizer,
                            const char *chat_template, size_t n_template,
                            const nb_calib_options *options, nb_err *err);
void nb_calib_set_free(nb_calib_set *set);

#endif
