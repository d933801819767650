/* Writing a tokenizer down: as tokenizer.json and tokenizer_config.json, and as GGUF keys. */
#include "text/tokenizer_parts.h"

#include <stdio.h>
#include <string.h>

static nb_status no_memory(nb_err *err)
{
    return nb_fail(err, NB_MEMORY, "out of memory while writing the tokenizer down");
}

/* ---- tokenizer.json ---- */

/* In the order of ids. Texts are zero-terminated; one with a zero inside cannot be a key. */
static nb_status vocab_to_json(const nb_tokenizer *t, json_t **out, nb_err *err)
{
    *out = json_object();
    for (int64_t id = 0; id < t->vocab.n_ids && *out != NULL; id++) {
        const nb_text text = t->vocab.text[id];
        if (text.text == NULL || text.len == 0)
            continue;
        if (memchr(text.text, 0, text.len) != NULL)
            return nb_fail(err, NB_UNSUPPORTED, "token %lld has a zero byte inside", (long long)id);
        if (json_object_set_new(*out, text.text, json_integer(id)) != 0)
            return no_memory(err);
    }
    return *out != NULL ? NB_OK : no_memory(err);
}

/* "left right" is what every version of the reference library reads, but it cannot say a space
 * inside a text: then pairs are written. */
static bool merges_have_spaces(const nb_tokenizer *t)
{
    for (int64_t i = 0; i < t->bpe.n_merges; i++) {
        const nb_text left = t->vocab.text[t->bpe.merges[i].left];
        const nb_text right = t->vocab.text[t->bpe.merges[i].right];
        if (memchr(left.text, ' ', left.len) != NULL || memchr(right.text, ' ', right.len) != NULL)
            return true;
    }
    return false;
}

static nb_status put_merge(const nb_tokenizer *t, int64_t i, nb_buf *line, nb_err *err)
{
    const nb_text left = t->vocab.text[t->bpe.merges[i].left];
    const nb_text right = t->vocab.text[t->bpe.merges[i].right];
    line->len = 0;
    NB_TRY(nb_buf_put(line, left.text, left.len, err));
    NB_TRY(nb_buf_u8(line, ' ', err));
    return nb_buf_put(line, right.text, right.len, err);
}

static nb_status merges_to_json(const nb_tokenizer *t, json_t **out, nb_err *err)
{
    const bool pairs = merges_have_spaces(t);
    nb_buf line = {0};
    nb_status s = NB_OK;
    *out = json_array();
    for (int64_t i = 0; i < t->bpe.n_merges && s == NB_OK; i++) {
        json_t *one = NULL;
        if (pairs) {
            one = json_pack("[s, s]", t->vocab.text[t->bpe.merges[i].left].text,
                            t->vocab.text[t->bpe.merges[i].right].text);
        } else {
            NB_TRY_GOTO(s, put_merge(t, i, &line, err));
            one = json_stringn((const char *)line.data, line.len);
        }
        if (json_array_append_new(*out, one) != 0)
            s = no_memory(err);
    }
done:
    nb_buf_free(&line);
    return s;
}

static nb_status model_to_json(const nb_tokenizer *t, json_t **out, nb_err *err)
{
    json_t *vocab = NULL, *merges = NULL;
    nb_status s;
    *out = NULL;
    NB_TRY_GOTO(s, vocab_to_json(t, &vocab, err));
    NB_TRY_GOTO(s, merges_to_json(t, &merges, err));
    const char *unknown = t->bpe.unknown >= 0 ? t->vocab.text[t->bpe.unknown].text : NULL;
    *out = json_pack("{s:s, s:n, s:s?, s:n, s:n, s:b, s:b, s:b, s:O, s:O}", "type", "BPE",
                     "dropout", "unk_token", unknown, "continuing_subword_prefix",
                     "end_of_word_suffix", "fuse_unk", t->bpe.fuse_unknown, "byte_fallback", 0,
                     "ignore_merges", t->ignore_merges, "vocab", vocab, "merges", merges);
    if (*out == NULL)
        s = no_memory(err);
done:
    json_decref(vocab);
    json_decref(merges);
    return s;
}

static json_t *added_to_json(const nb_added *a)
{
    return json_pack("{s:i, s:s, s:b, s:b, s:b, s:b, s:b}", "id", a->id, "content", a->content.text,
                     "single_word", a->single_word, "lstrip", a->lstrip, "rstrip", a->rstrip,
                     "normalized", a->normalized, "special", a->special);
}

/* Added tokens in the order of their ids, as the reference library writes them. */
static nb_status all_added_to_json(const nb_tokenizer *t, json_t **out, nb_err *err)
{
    int32_t *index;
    NB_TRY(NB_ALLOC(&index, t->vocab.n_ids, err));
    for (int64_t i = 0; i < t->n_added; i++)
        index[t->added[i].id] = (int32_t)i + 1;
    nb_status s = NB_OK;
    *out = json_array();
    for (int64_t id = 0; id < t->vocab.n_ids && s == NB_OK; id++)
        if (index[id] > 0 &&
            json_array_append_new(*out, added_to_json(&t->added[index[id] - 1])) != 0)
            s = no_memory(err);
    nb_free(index);
    return s;
}

static json_t *byte_level(void)
{
    return json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0,
                     "trim_offsets", 1, "use_regex", 0);
}

static json_t *template_part(const char *kind, const char *id, int type)
{
    return json_pack("{s:{s:s, s:i}}", kind, "id", id, "type_id", type);
}

/* [BOS, A, END], or [BOS, A, END, B, END], each where there is one. NULL: no memory. */
static json_t *template_of(const nb_tokenizer *t, const char *texts)
{
    json_t *list = json_array();
    bool fine = list != NULL;
    if (t->adds_bos)
        fine = fine && json_array_append_new(
                           list, template_part("SpecialToken", t->vocab.text[t->bos].text, 0)) == 0;
    for (int i = 0; texts[i] != 0; i++) {
        const char name[2] = {texts[i], 0};
        fine = fine && json_array_append_new(list, template_part("Sequence", name, i)) == 0;
        if (t->end >= 0)
            fine = fine &&
                   json_array_append_new(
                       list, template_part("SpecialToken", t->vocab.text[t->end].text, i)) == 0;
    }
    if (fine)
        return list;
    json_decref(list);
    return NULL;
}

/* ByteLevel alone, or a template of what goes before and after the text behind it; NULL: no memory.
 */
static json_t *post_processor(const nb_tokenizer *t)
{
    if (!t->adds_bos && t->end < 0)
        return byte_level();
    json_t *tokens = json_object();
    const int32_t ids[] = {t->adds_bos ? t->bos : -1, t->end};
    for (int i = 0; i < 2; i++) {
        if (ids[i] < 0)
            continue;
        const char *text = t->vocab.text[ids[i]].text;
        json_t *one = json_pack("{s:s, s:[i], s:[s]}", "id", text, "ids", ids[i], "tokens", text);
        if (json_object_set_new(tokens, text, one) != 0) {
            json_decref(tokens);
            return NULL;
        }
    }
    json_t *template_ =
        json_pack("{s:s, s:o, s:o, s:o}", "type", "TemplateProcessing", "single",
                  template_of(t, "A"), "pair", template_of(t, "AB"), "special_tokens", tokens);
    return json_pack("{s:s, s:[o, o]}", "type", "Sequence", "processors", byte_level(), template_);
}

nb_status nb_tokenizer_to_json(const nb_tokenizer *t, json_t **tokenizer, nb_err *err)
{
    json_t *added = NULL, *split = NULL, *model = NULL;
    nb_status s;
    *tokenizer = NULL;
    NB_TRY_GOTO(s, all_added_to_json(t, &added, err));
    NB_TRY_GOTO(s, nb_pretokenizer_to_json(&t->split, &split, err));
    NB_TRY_GOTO(s, model_to_json(t, &model, err));
    json_t *nfc = t->nfc ? json_pack("{s:s}", "type", "NFC") : json_null();
    *tokenizer =
        json_pack("{s:s, s:n, s:n, s:O, s:o, s:O, s:o, s:o, s:O}", "version", "1.0", "truncation",
                  "padding", "added_tokens", added, "normalizer", nfc, "pre_tokenizer", split,
                  "post_processor", post_processor(t), "decoder", byte_level(), "model", model);
    if (*tokenizer == NULL)
        s = no_memory(err);
done:
    json_decref(added);
    json_decref(split);
    json_decref(model);
    return s;
}

/* ---- tokenizer_config.json ---- */

static bool set_named(const nb_tokenizer *t, json_t *config, const char *key, int32_t id)
{
    return id < 0 || json_object_set_new(config, key, json_string(t->vocab.text[id].text)) == 0;
}

nb_status nb_tokenizer_to_config(const nb_tokenizer *t, const char *chat_template, json_t **config,
                                 nb_err *err)
{
    json_t *c = json_pack("{s:s, s:b, s:b}", "tokenizer_class", "PreTrainedTokenizerFast",
                          "clean_up_tokenization_spaces", 0, "add_prefix_space", 0);
    json_t *decoder = json_object();
    bool fine = c != NULL && decoder != NULL;
    for (int64_t i = 0; i < t->n_added && fine; i++) {
        char id[16];
        snprintf(id, sizeof id, "%d", t->added[i].id);
        json_t *one = added_to_json(&t->added[i]);
        if (one != NULL)
            json_object_del(one, "id");
        fine = json_object_set_new(decoder, id, one) == 0;
    }
    fine = fine && json_object_set(c, "added_tokens_decoder", decoder) == 0;
    fine = fine && set_named(t, c, "bos_token", t->bos) && set_named(t, c, "eos_token", t->eos) &&
           set_named(t, c, "pad_token", t->pad) && set_named(t, c, "unk_token", t->unknown);
    if (fine && chat_template != NULL)
        fine = json_object_set_new(c, "chat_template", json_string(chat_template)) == 0;
    json_decref(decoder);
    *config = fine ? c : NULL;
    if (!fine) {
        json_decref(c);
        return no_memory(err);
    }
    return NB_OK;
}

/* ---- GGUF ---- */

#define KEY(name) "tokenizer.ggml." name

/* "[PAD{id}]", which stands for an id without a token. */
static int pad_text(char text[32], int64_t id)
{
    return snprintf(text, 32, "[PAD%lld]", (long long)id);
}

/* The texts and types of all rows; texts of ids without a token lie in the arena. */
static nb_status rows_to_gguf(const nb_tokenizer *t, int64_t n_rows, nb_arena *arena,
                              nb_text *texts, int32_t *types, nb_err *err)
{
    for (int64_t id = 0; id < n_rows; id++) {
        char pad[32];
        const size_t pad_len = (size_t)pad_text(pad, id);
        const nb_text text = id < t->vocab.n_ids ? t->vocab.text[id] : (nb_text){0};
        texts[id] = text;
        types[id] = NB_TOKEN_NORMAL;
        if (text.len == pad_len && memcmp(text.text, pad, pad_len) == 0)
            types[id] = NB_TOKEN_UNUSED;
        if (text.text != NULL)
            continue;
        char *copy;
        NB_TRY(nb_arena_text(arena, &copy, pad, pad_len, err));
        texts[id] = (nb_text){copy, pad_len};
        types[id] = NB_TOKEN_UNUSED;
    }
    for (int64_t i = 0; i < t->n_added; i++) {
        const nb_added *a = &t->added[i];
        if (a->single_word || a->lstrip || a->rstrip)
            return nb_fail(err, NB_UNSUPPORTED,
                           "GGUF cannot say single_word, lstrip or rstrip of token '%.*s'",
                           nb_quoted(a->content.len), a->content.text);
        types[a->id] = a->special ? NB_TOKEN_CONTROL : NB_TOKEN_USER_DEFINED;
    }
    return NB_OK;
}

static nb_status merges_to_gguf(const nb_tokenizer *t, nb_arena *arena, nb_text *merges,
                                nb_err *err)
{
    if (merges_have_spaces(t))
        return nb_fail(err, NB_UNSUPPORTED, "GGUF cannot say a merge of texts with spaces");
    nb_buf line = {0};
    nb_status s = NB_OK;
    for (int64_t i = 0; i < t->bpe.n_merges; i++) {
        char *copy;
        NB_TRY_GOTO(s, put_merge(t, i, &line, err));
        NB_TRY_GOTO(s, nb_arena_text(arena, &copy, (const char *)line.data, line.len, err));
        merges[i] = (nb_text){copy, line.len};
    }
done:
    nb_buf_free(&line);
    return s;
}

static nb_status put_id(nb_buf *kv, const char *key, int32_t id, int64_t *n_kv, nb_err *err)
{
    if (id < 0)
        return NB_OK;
    ++*n_kv;
    return nb_gguf_put_u32(kv, key, (uint32_t)id, err);
}

/* Ids that end generation besides eos: there is room for two, end of turn and of message. */
static nb_status put_stops(const nb_tokenizer *t, int32_t eos, nb_buf *kv, int64_t *n_kv,
                           nb_err *err)
{
    static const char *const keys[] = {KEY("eot_token_id"), KEY("eom_token_id")};
    int n = 0;
    for (int i = 0; i < t->n_stops && n < 2; i++)
        if (t->stops[i] != eos)
            NB_TRY(put_id(kv, keys[n++], t->stops[i], n_kv, err));
    return NB_OK;
}

/* With a token for each byte the unknown token never comes up, and naming it says enough. */
static bool lacks_bytes(const nb_bpe *b)
{
    for (int i = 0; i < 256; i++)
        if (b->byte_id[i] < 0)
            return true;
    return false;
}

nb_status nb_tokenizer_to_gguf(const nb_tokenizer *t, int64_t n_rows, nb_buf *kv, int64_t *n_kv,
                               nb_err *err)
{
    const nb_split_family *family = nb_split_family_of(&t->split, t->nfc, t->ignore_merges);
    if (family == NULL)
        return nb_fail(err, NB_UNSUPPORTED, "GGUF has no name for this pre-tokenizer");
    if (t->bpe.unknown >= 0 && lacks_bytes(&t->bpe))
        return nb_fail(err, NB_UNSUPPORTED,
                       "GGUF cannot say that '%.60s' stands for bytes without a token",
                       t->vocab.text[t->bpe.unknown].text);
    if (n_rows < t->vocab.n_ids)
        return nb_fail(err, NB_DATA, "%lld tokens for %lld rows of the embedding",
                       (long long)t->vocab.n_ids, (long long)n_rows);
    nb_arena arena = {0};
    nb_text *texts, *merges;
    int32_t *types;
    const size_t before = kv->len;
    const int32_t eos = t->end >= 0 ? t->end : t->eos; /* what is put last has no other name */
    int64_t n = 0;
    nb_status s;
    NB_TRY_GOTO(s, NB_ARENA_ALLOC(&arena, &texts, n_rows, err));
    NB_TRY_GOTO(s, NB_ARENA_ALLOC(&arena, &types, n_rows, err));
    NB_TRY_GOTO(s, NB_ARENA_ALLOC(&arena, &merges, t->bpe.n_merges, err));
    NB_TRY_GOTO(s, rows_to_gguf(t, n_rows, &arena, texts, types, err));
    NB_TRY_GOTO(s, merges_to_gguf(t, &arena, merges, err));
    NB_TRY_GOTO(s, nb_gguf_put_text(kv, KEY("model"), "gpt2", 4, err));
    NB_TRY_GOTO(s, nb_gguf_put_text(kv, KEY("pre"), family->name, strlen(family->name), err));
    NB_TRY_GOTO(s, nb_gguf_put_texts(kv, KEY("tokens"), texts, n_rows, err));
    NB_TRY_GOTO(s, nb_gguf_put_i32s(kv, KEY("token_type"), types, n_rows, err));
    NB_TRY_GOTO(s, nb_gguf_put_texts(kv, KEY("merges"), merges, t->bpe.n_merges, err));
    NB_TRY_GOTO(s, nb_gguf_put_bool(kv, KEY("add_bos_token"), t->adds_bos, err));
    n = 6;
    if (t->end >= 0) {
        NB_TRY_GOTO(s, nb_gguf_put_bool(kv, KEY("add_eos_token"), true, err));
        n++;
    }
    NB_TRY_GOTO(s, put_id(kv, KEY("bos_token_id"), t->bos, &n, err));
    NB_TRY_GOTO(s, put_id(kv, KEY("eos_token_id"), eos, &n, err));
    NB_TRY_GOTO(s, put_id(kv, KEY("padding_token_id"), t->pad, &n, err));
    NB_TRY_GOTO(s, put_id(kv, KEY("unknown_token_id"), t->unknown, &n, err));
    NB_TRY_GOTO(s, put_stops(t, eos, kv, &n, err));
done:
    nb_arena_free(&arena);
    if (s == NB_OK)
        *n_kv += n;
    else
        kv->len = before;
    return s;
}
