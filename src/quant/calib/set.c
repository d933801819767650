/* See calib/set.h. */
#include "quant/calib/set.h"

#include "quant/calib/doc.h"
#include "quant/calib/pick.h"
#include "text/unicode.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define PIECE  65536 /* bytes of a text that are encoded at a time */
#define N_READ 8192  /* ids that are read at a time */

/* A set on its way. */
typedef struct {
    nb_calib_options o; /* with the defaults filled in */
    const nb_tokenizer *tokenizer;
    nb_jinja *template_;
    int32_t bos; /* that each sequence starts with; -1: none */
    nb_calib_source *sources;
    nb_calib_picker picker;
    nb_buf raw, text; /* bytes of the file; text out of a line */
    nb_tokens ids, blank;

    nb_calib_set set;
    int64_t *starts; /* [n_samples + 1]: of sequences in set.ids */
    int64_t limit;   /* sequences that may be there for now */
    bool pack_known, doc_full, after_text;
    int64_t doc_n;
    int64_t n_cut, n_plain, n_left_out;
    bool seen_invalid;
} builder;

__attribute__((format(printf, 2, 3))) static void note(builder *b, const char *format, ...)
{
    if (b->set.n_notes == NB_CALIB_MAX_NOTES)
        return;
    va_list args;
    va_start(args, format);
    vsnprintf(b->set.notes[b->set.n_notes++], sizeof b->set.notes[0], format, args);
    va_end(args);
}

/* ---- windows ---- */

static bool has_enough(const builder *b)
{
    return b->doc_full || b->set.n >= b->limit;
}

static void close_sequence(builder *b)
{
    b->starts[++b->set.n] = b->set.ids.n;
    b->doc_full = !b->set.packed;
}

/* Ids of one document, or of what stands between two. *at = how many were looked at: on failure,
 * the place of the one that is refused. */
static nb_status put_ids(builder *b, const int32_t *ids, int64_t n, int64_t *at, nb_err *err)
{
    nb_tokens *out = &b->set.ids;
    for (*at = 0; *at < n && !has_enough(b); ++*at) {
        const int32_t id = ids[*at];
        if (id < 0 || id >= b->o.vocab_size)
            return nb_fail(err, NB_DATA, "token id %d is outside the vocabulary of %lld", id,
                           (long long)b->o.vocab_size);
        if (b->bos >= 0 && id != b->bos && out->n == b->starts[b->set.n])
            NB_TRY(nb_tokens_push(out, b->bos, err));
        NB_TRY(nb_tokens_push(out, id, err));
        if (out->n - b->starts[b->set.n] == b->o.length)
            close_sequence(b);
    }
    if (*at < n && b->doc_full)
        b->n_cut++;
    return NB_OK;
}

static void begin_document(builder *b, bool is_chat)
{
    if (!b->pack_known)
        b->set.packed =
            b->o.pack == NB_CALIB_PACK_ALL || (b->o.pack == NB_CALIB_PACK_AUTO && !is_chat);
    b->pack_known = true;
    b->doc_full = false;
    b->doc_n = 0;
}

static void end_document(builder *b, int file, bool is_text)
{
    if (!b->set.packed && !b->doc_full && b->set.ids.n > b->starts[b->set.n])
        close_sequence(b);
    b->doc_full = false;
    b->after_text = is_text;
    b->set.longest = b->doc_n > b->set.longest ? b->doc_n : b->set.longest;
    b->set.n_documents++;
    b->set.files[file].n_documents++;
}

/* ---- documents ---- */

static void look_at_utf8(builder *b, const nb_calib_source *s, const char *text, size_t n,
                         int64_t offset)
{
    for (size_t i = 0; i < n && !b->seen_invalid;) {
        if ((unsigned char)text[i] < 0x80) {
            i++;
            continue;
        }
        int32_t c;
        i += nb_utf8_next((const uint8_t *)text + i, n - i, &c);
        b->seen_invalid = c < 0;
        if (c < 0)
            note(b, "%.120s: line %lld: no UTF-8 here; such bytes are tokens one by one",
                 s->file.path, (long long)nb_calib_source_line(s, offset + (int64_t)i));
    }
}

/* Text of `span`, or of memory [n] that came from it; in pieces, as far as there is room for it. */
static nb_status add_text(builder *b, const nb_calib_source *s, nb_calib_span span,
                          const char *memory, size_t n_memory, nb_err *err)
{
    int64_t put;
    const int64_t len = memory != NULL ? (int64_t)n_memory : span.len;
    if (b->tokenizer == NULL) {
        nb_fail(err, NB_DATA, "a text, and the model has no tokenizer; token ids need none");
        return nb_calib_source_blame(s, span.offset, err);
    }
    if (b->set.packed && b->after_text)
        NB_TRY(put_ids(b, b->blank.ids, b->blank.n, &put, err));
    for (int64_t at = 0; at < len && !has_enough(b);) {
        size_t n = len - at < 2 * PIECE ? (size_t)(len - at) : 2 * PIECE;
        const char *text = memory == NULL ? NULL : memory + at;
        if (memory == NULL) {
            b->raw.len = 0;
            NB_TRY(nb_buf_reserve(&b->raw, n, err));
            NB_TRY(nb_file_read(&s->file, b->raw.data, n, span.offset + at, err));
            text = (const char *)b->raw.data;
        }
        if (at + (int64_t)n < len)
            n = nb_calib_cut(text, n, PIECE);
        if (memory == NULL)
            look_at_utf8(b, s, text, n, span.offset + at);
        b->ids.n = b->ids.n_left_out = 0;
        NB_TRY(nb_tokenizer_encode(b->tokenizer, text, n, (nb_encode_options){0}, &b->ids, err));
        b->n_left_out += b->ids.n_left_out;
        b->doc_n += b->ids.n;
        if (put_ids(b, b->ids.ids, b->ids.n, &put, err) != NB_OK)
            return err->status == NB_DATA ? nb_calib_source_blame(s, span.offset + at, err)
                                          : err->status;
        at += (int64_t)n;
    }
    return NB_OK;
}

static nb_status add_ids(builder *b, const nb_calib_source *s, nb_calib_span span, nb_err *err)
{
    const int bytes = s->id_bytes;
    int32_t ids[N_READ];
    for (int64_t at = 0; at < span.len && !has_enough(b);) {
        const int64_t left = span.len - at;
        const int64_t take = left < (int64_t)N_READ * bytes ? left : (int64_t)N_READ * bytes;
        b->raw.len = 0;
        NB_TRY(nb_buf_reserve(&b->raw, (size_t)take, err));
        NB_TRY(nb_file_read(&s->file, b->raw.data, (size_t)take, span.offset + at, err));
        for (int64_t i = 0; i < take / bytes; i++) {
            uint64_t v = 0;
            for (int k = bytes - 1; k >= 0; k--)
                v = v << 8 | b->raw.data[i * bytes + k];
            ids[i] = v > INT32_MAX ? INT32_MAX : (int32_t)v; /* refused as it would be */
        }
        int64_t put;
        if (put_ids(b, ids, take / bytes, &put, err) != NB_OK)
            return err->status == NB_DATA
                       ? nb_calib_source_blame(s, span.offset + at + put * bytes, err)
                       : err->status;
        b->doc_n += take / bytes;
        at += take;
    }
    return NB_OK;
}

static nb_status add_line(builder *b, const nb_calib_source *s, nb_calib_span span, bool *is_text,
                          nb_err *err)
{
    const nb_calib_doc_options how = {
        .tokenizer = b->tokenizer, .template_ = b->template_, .field = b->o.field};
    nb_calib_doc_kind kind;
    b->raw.len = 0;
    NB_TRY(nb_buf_reserve(&b->raw, (size_t)span.len, err));
    NB_TRY(nb_file_read(&s->file, b->raw.data, (size_t)span.len, span.offset, err));
    b->ids.n = b->ids.n_left_out = 0;
    nb_status status = nb_calib_doc((const char *)b->raw.data, (size_t)span.len, &how, &kind,
                                    &b->text, &b->ids, err);
    if (status != NB_OK)
        return status == NB_MEMORY ? status : nb_calib_source_blame(s, span.offset, err);
    begin_document(b, kind == NB_CALIB_DOC_CHAT);
    *is_text = kind == NB_CALIB_DOC_TEXT;
    if (kind == NB_CALIB_DOC_TEXT || (kind == NB_CALIB_DOC_CHAT && b->template_ == NULL)) {
        b->n_plain += kind == NB_CALIB_DOC_CHAT;
        *is_text = true;
        const char *text = b->text.data == NULL ? "" : (const char *)b->text.data;
        return add_text(b, s, span, text, b->text.len, err);
    }
    int64_t put;
    b->n_left_out += b->ids.n_left_out;
    b->doc_n = b->ids.n;
    status = put_ids(b, b->ids.ids, b->ids.n, &put, err);
    return status == NB_DATA ? nb_calib_source_blame(s, span.offset, err) : status;
}

static nb_status add_document(builder *b, int file, nb_calib_span span, nb_err *err)
{
    const nb_calib_source *s = &b->sources[file];
    bool is_text = s->kind == NB_CALIB_TEXT;
    if (s->kind != NB_CALIB_LINES)
        begin_document(b, false);
    if (s->kind == NB_CALIB_LINES)
        NB_TRY(add_line(b, s, span, &is_text, err));
    else if (s->kind == NB_CALIB_TEXT)
        NB_TRY(add_text(b, s, span, NULL, 0, err));
    else
        NB_TRY(add_ids(b, s, span, err));
    end_document(b, file, is_text);
    return NB_OK;
}

/* ---- order ---- */

static nb_status take_first(builder *b, nb_err *err)
{
    for (int i = 0; i < b->o.n_paths; i++) {
        nb_calib_span span;
        bool more = true;
        const int64_t before = b->set.n;
        b->limit = b->o.n_samples * (i + 1) / b->o.n_paths;
        while (b->set.n < b->limit) {
            NB_TRY(nb_calib_source_next(&b->sources[i], &span, &more, err));
            if (!more)
                break;
            NB_TRY(add_document(b, i, span, err));
        }
        if (b->o.n_paths > 1 && b->set.n < b->limit)
            note(b, "%.120s: %lld sequences, where there was room for %lld", b->o.paths[i],
                 (long long)(b->set.n - before), (long long)(b->limit - before));
        nb_buf_free(&b->sources[i].block);
    }
    return NB_OK;
}

static nb_status take_random(builder *b, nb_err *err)
{
    for (int i = 0; i < b->o.n_paths; i++) {
        nb_calib_span span;
        for (bool more = true; more;) {
            NB_TRY(nb_calib_source_next(&b->sources[i], &span, &more, err));
            if (more)
                NB_TRY(nb_calib_pick_offer(&b->picker, i, span, err));
        }
        nb_buf_free(&b->sources[i].block);
    }
    const nb_calib_ticket *tickets;
    int64_t n;
    nb_calib_pick_draw(&b->picker, &tickets, &n);
    for (int64_t k = 0; k < n && b->set.n < b->limit; k++)
        NB_TRY(add_document(b, tickets[k].file, tickets[k].span, err));
    if (b->set.n < b->limit && n < b->picker.n_offered)
        note(b, "%lld documents were drawn of %lld: more are not kept", (long long)n,
             (long long)b->picker.n_offered);
    return NB_OK;
}

/* ---- the whole ---- */

static void hash_u64(nb_sha256 *hash, uint64_t v, int n_bytes)
{
    uint8_t bytes[8];
    for (int i = 0; i < n_bytes; i++)
        bytes[i] = (uint8_t)(v >> 8 * i);
    nb_sha256_update(hash, bytes, (size_t)n_bytes);
}

static void hash_set(nb_calib_set *set)
{
    nb_sha256 hash;
    nb_sha256_init(&hash);
    hash_u64(&hash, (uint64_t)set->n, 8);
    for (int64_t i = 0; i < set->n; i++) {
        hash_u64(&hash, (uint64_t)set->seq[i].n, 8);
        for (int64_t k = 0; k < set->seq[i].n; k++)
            hash_u64(&hash, (uint64_t)set->seq[i].ids[k], 4);
    }
    uint8_t digest[NB_SHA256_BYTES];
    nb_sha256_final(&hash, digest);
    nb_sha256_hex_of(digest, set->sha256);
}

static void write_notes(builder *b)
{
    const nb_calib_set *set = &b->set;
    if (set->n < b->o.n_samples)
        note(b, "%lld sequence%s, %lld tokens; %lld sequences of %lld were asked for",
             (long long)set->n, set->n == 1 ? "" : "s", (long long)set->n_tokens,
             (long long)b->o.n_samples, (long long)set->length);
    for (int i = 0; i < set->n_files; i++)
        if (set->files[i].n_documents == 0)
            note(b, "%.120s: nothing was taken from it", set->files[i].path);
    if (b->n_cut > 0)
        note(b, "%lld of %lld documents are longer than %lld tokens and were cut",
             (long long)b->n_cut, (long long)set->n_documents, (long long)set->length);
    if (b->n_plain > 0 && !b->o.plain_chat)
        note(b, "%lld conversation%s taken as text: the model has no chat template",
             (long long)b->n_plain, b->n_plain == 1 ? " was" : "s were");
    if (b->n_left_out > 0)
        note(b, "%lld bytes have no token and were left out", (long long)b->n_left_out);
}

static nb_status finish(builder *b, nb_err *err)
{
    nb_calib_set *set = &b->set;
    if (set->n == 0 && set->ids.n > 0)
        close_sequence(b);
    if (set->n == 0 || set->longest == 0) /* what stands between empty texts is nothing */
        return nb_fail(err, NB_DATA, "%s: nothing to calibrate with: no tokens in %s",
                       b->o.paths[0], b->o.n_paths == 1 ? "it" : "this and the other files");
    set->ids.n = b->starts[set->n]; /* without the rest that fills no window */
    NB_TRY(NB_ALLOC(&set->seq, set->n, err));
    for (int64_t i = 0; i < set->n; i++) {
        nb_calib_seq *seq = &set->seq[i];
        *seq = (nb_calib_seq){.ids = set->ids.ids + b->starts[i],
                              .n = b->starts[i + 1] - b->starts[i],
                              .held = nb_calib_is_held(i, set->n)};
        set->n_tokens += seq->n;
        set->n_held += seq->held;
        set->n_held_tokens += seq->held ? seq->n : 0;
    }
    hash_set(set);
    for (int i = 0; i < b->o.n_paths; i++)
        NB_TRY(nb_file_check_unchanged(&b->sources[i].file, err));
    write_notes(b);
    return NB_OK;
}

static nb_status open_sources(builder *b, nb_err *err)
{
    const nb_calib_source_options how = {
        .split = b->o.split,
        .piece_text = b->o.random ? 4 * b->o.length : 0,
        .piece_ids = b->o.random ? b->o.length : 0,
        .n_vocab = b->o.vocab_size,
    };
    NB_TRY(NB_ALLOC(&b->sources, b->o.n_paths, err));
    for (int i = 0; i < b->o.n_paths; i++)
        b->sources[i] = (nb_calib_source){.file = NB_FILE_CLOSED};
    NB_TRY(NB_ALLOC(&b->set.files, b->o.n_paths, err));
    for (int i = 0; i < b->o.n_paths; i++) {
        nb_calib_source *s = &b->sources[i];
        nb_calib_file *f = &b->set.files[b->set.n_files];
        NB_TRY(nb_calib_source_open(s, b->o.paths[i], &how, err));
        const size_t n = strlen(b->o.paths[i]) + 1;
        NB_TRY(NB_ALLOC(&f->path, n, err));
        memcpy(f->path, b->o.paths[i], n);
        memcpy(f->sha256, s->sha256, sizeof f->sha256);
        f->kind = s->kind;
        f->bytes = s->file.size;
        b->set.n_files++;
    }
    return NB_OK;
}

static nb_status check_options(const nb_calib_options *o, nb_err *err)
{
    if (o->n_paths < 1 || o->n_paths > NB_CALIB_MAX_FILES)
        return nb_fail(err, NB_USAGE, "%d calibration files; 1 to %d are possible", o->n_paths,
                       NB_CALIB_MAX_FILES);
    if (o->n_samples < 1 || o->n_samples > NB_CALIB_MAX_SEQUENCES)
        return nb_fail(err, NB_USAGE, "%lld calibration sequences; 1 to %lld are possible",
                       (long long)o->n_samples, (long long)NB_CALIB_MAX_SEQUENCES);
    if (o->length < 2 || o->length > NB_CALIB_MAX_LENGTH)
        return nb_fail(err, NB_USAGE,
                       "calibration sequences of %lld tokens; 2 to %lld are possible",
                       (long long)o->length, (long long)NB_CALIB_MAX_LENGTH);
    if (o->n_samples * o->length > NB_CALIB_MAX_TOKENS)
        return nb_fail(err, NB_USAGE, "%lld x %lld calibration tokens; at most %lld are possible",
                       (long long)o->n_samples, (long long)o->length,
                       (long long)NB_CALIB_MAX_TOKENS);
    if (o->split != NULL && (*o->split == 0 || strlen(o->split) > NB_CALIB_MAX_SEPARATOR))
        return nb_fail(err, NB_USAGE, "a separator of documents has 1 to %d bytes",
                       NB_CALIB_MAX_SEPARATOR);
    return NB_OK;
}

static nb_status build(builder *b, const char *chat_template, size_t n_template, nb_err *err)
{
    NB_TRY(check_options(&b->o, err));
    if (b->tokenizer != NULL)
        NB_TRY(
            nb_tokenizer_encode(b->tokenizer, "\n\n", 2, (nb_encode_options){0}, &b->blank, err));
    NB_TRY(NB_ALLOC(&b->starts, b->o.n_samples + 1, err));
    NB_TRY(open_sources(b, err));
    bool may_talk = false; /* else a template that cannot be read is no obstacle */
    for (int i = 0; i < b->o.n_paths; i++)
        may_talk = may_talk || b->sources[i].kind == NB_CALIB_LINES;
    if (chat_template != NULL && b->tokenizer != NULL && !b->o.plain_chat && may_talk)
        NB_TRY(nb_jinja_parse(&b->template_, chat_template, n_template, err));
    NB_TRY(b->o.random ? take_random(b, err) : take_first(b, err));
    return finish(b, err);
}

nb_status nb_calib_set_open(nb_calib_set *set, const nb_tokenizer *tokenizer,
                            const char *chat_template, size_t n_template,
                            const nb_calib_options *options, nb_err *err)
{
    builder b = {.o = *options, .tokenizer = tokenizer, .picker = {.seed = options->seed}};
    *set = (nb_calib_set){0};
    if (b.o.n_samples == 0)
        b.o.n_samples = NB_CALIB_SAMPLES;
    if (b.o.length == 0)
        b.o.length = NB_CALIB_LENGTH;
    b.bos = -1;
    if (tokenizer != NULL && b.o.vocab_size <= 0)
        b.o.vocab_size = nb_tokenizer_n_tokens(tokenizer);
    if (tokenizer != NULL && nb_tokenizer_adds_bos(tokenizer))
        b.bos = nb_tokenizer_bos(tokenizer);
    b.set.length = b.o.length;
    b.limit = b.o.n_samples;
    b.picker.most = b.o.n_samples > NB_CALIB_PICKED ? b.o.n_samples : NB_CALIB_PICKED;
    const nb_status s = build(&b, chat_template, n_template, err);
    for (int i = 0; b.sources != NULL && i < b.o.n_paths; i++)
        nb_calib_source_close(&b.sources[i]);
    nb_free(b.sources);
    nb_jinja_free(b.template_);
    nb_buf_free(&b.picker.tickets);
    nb_buf_free(&b.raw);
    nb_buf_free(&b.text);
    nb_tokens_free(&b.ids);
    nb_tokens_free(&b.blank);
    nb_free(b.starts);
    if (s == NB_OK)
        *set = b.set;
    else
        nb_calib_set_free(&b.set);
    return s;
}

void nb_calib_set_free(nb_calib_set *set)
{
    for (int i = 0; set->files != NULL && i < set->n_files; i++)
        nb_free(set->files[i].path);
    nb_free(set->files);
    nb_free(set->seq);
    nb_tokens_free(&set->ids);
    *set = (nb_calib_set){0};
}
