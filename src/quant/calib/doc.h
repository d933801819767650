/* One line of JSON as a document: which members of it are calibration data.
 *
 *   {"messages": [{"role": r, "content": c}...]}    a conversation; c is a text, null, or a list of
 *                                                   {"type": "text", "text": t}
 *   {"conversations": [{"from": r, "value": c}...]} the same; human and gpt are user and assistant
 *   {"text": t}
 *   {"prompt": t, "completion": t}                  a conversation of two messages
 *   {"instruction": t, "input": t, "output": t}     the same: input (which may be missing or empty)
 *                                                   follows instruction after an empty line;
 *                                                   "response" may stand for "output"
 *   {"input_ids": [i...]} or {"tokens": [i...]}     token ids
 *   [i...]                                          token ids
 *
 * The first that is there counts, in this order, or the one member that --calib-field names: a
 * text, a conversation or ids. */
#ifndef NB_QUANT_CALIB_DOC_H
#define NB_QUANT_CALIB_DOC_H

#include "base/json.h"
#include "text/chat.h"

typedef enum { NB_CALIB_DOC_TEXT, NB_CALIB_DOC_CHAT, NB_CALIB_DOC_IDS } nb_calib_doc_kind;

typedef struct {
    const nb_tokenizer *tokenizer;
    const nb_jinja *template_; /* NULL: conversations are their contents, joined by empty lines */
    const char *field;         /* NULL: as above */
} nb_calib_doc_options;

/* Takes the document of line[0, len): text is left in `text`, which is emptied first; the ids of a
 * conversation or of a list are appended to `ids`, without looking whether there are such tokens.
 * NB_DATA says what was found instead. */
nb_status nb_calib_doc(const char *line, size_t len, const nb_calib_doc_options *options,
                       nb_calib_doc_kind *kind, nb_buf *text, nb_tokens *ids, nb_err *err);

#endif
