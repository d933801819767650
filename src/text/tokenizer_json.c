/* A tokenizer from a tokenizer.json and the files beside it (formats.md 10). What the file asks
 * for and we do not do is refused by name: silently other ids would be worse than none. */
#include "text/tokenizer_parts.h"

#include <string.h>

#define MAX_DEPTH 8 /* of sequences inside sequences */

static nb_text text_of(const json_t *v)
{
    return (nb_text){json_string_value(v), json_string_length(v)};
}

static nb_status type_of(const json_t *v, const char *what, const char **type, nb_err *err)
{
    if (!json_is_object(v))
        return nb_fail(err, NB_DATA, "%s is no object", what);
    if (nb_json_text(v, "type", true, type, err) != NB_OK)
        return nb_context(err, "%s", what);
    return NB_OK;
}

/* ---- sizes and ids ---- */

/* Ids may have gaps, but no table is sized by an id alone: without the embedding to compare with,
 * they may be spread over so many times the number of tokens, and a few more. */
#define MAX_SPREAD 4
#define MAX_GAP    4096

typedef struct {
    int64_t limit; /* ids must lie below */
    int64_t n_ids; /* one more than the highest seen */
    size_t text_bytes;
} sizes;

static nb_status count_token(sizes *z, nb_text text, const json_t *id, nb_err *err)
{
    const int shown = nb_quoted(text.len);
    if (!json_is_integer(id))
        return nb_fail(err, NB_DATA, "token '%.*s' has no integer for an id", shown, text.text);
    const json_int_t v = json_integer_value(id);
    if (v < 0 || v >= z->limit)
        return nb_fail(err, NB_DATA, "token '%.*s' has id %lld; ids from 0 to %lld were expected",
                       shown, text.text, (long long)v, (long long)z->limit - 1);
    if (v >= z->n_ids)
        z->n_ids = v + 1;
    z->text_bytes += text.len;
    return NB_OK;
}

static nb_status count_tokens(sizes *z, json_t *vocab, const json_t *added, nb_err *err)
{
    const char *key;
    size_t key_len;
    json_t *id;
    json_object_keylen_foreach(vocab, key, key_len, id)
        NB_TRY(count_token(z, (nb_text){key, key_len}, id, err));
    for (size_t i = 0; i < json_array_size(added); i++) {
        const json_t *a = json_array_get(added, i);
        const char *content;
        if (!json_is_object(a))
            return nb_fail(err, NB_DATA, "added_tokens[%zu] is no object", i);
        if (nb_json_text(a, "content", true, &content, err) != NB_OK)
            return nb_context(err, "added_tokens[%zu]", i);
        if (content[0] == '\0')
            return nb_fail(err, NB_DATA, "added_tokens[%zu] is empty", i);
        NB_TRY(
            count_token(z, text_of(json_object_get(a, "content")), json_object_get(a, "id"), err));
    }
    if (z->n_ids == 0)
        return nb_fail(err, NB_DATA, "the vocabulary is empty");
    return NB_OK;
}

static nb_status fill_vocab(nb_tokenizer *t, json_t *vocab, nb_err *err)
{
    const char *key;
    size_t key_len;
    json_t *id;
    json_object_keylen_foreach(vocab, key, key_len, id) NB_TRY(
        nb_vocab_put(&t->vocab, json_integer_value(id), (nb_text){key, key_len}, false, err));
    return NB_OK;
}

/* An added token is in the vocabulary under the same id, or nowhere. */
static nb_status read_added(nb_tokenizer *t, const json_t *a, nb_err *err)
{
    const nb_text content = text_of(json_object_get(a, "content"));
    const int64_t id = json_integer_value(json_object_get(a, "id"));
    nb_added token = {.id = (int32_t)id};
    NB_TRY(nb_json_bool(a, "special", false, &token.special, err));
    token.normalized = !token.special;
    NB_TRY(nb_json_bool(a, "single_word", false, &token.single_word, err));
    NB_TRY(nb_json_bool(a, "lstrip", false, &token.lstrip, err));
    NB_TRY(nb_json_bool(a, "rstrip", false, &token.rstrip, err));
    NB_TRY(nb_json_bool(a, "normalized", false, &token.normalized, err));
    if (t->kind[id] != NB_KIND_PLAIN)
        return nb_fail(err, NB_DATA, "token '%.*s' is added twice", nb_quoted(content.len),
                       content.text);
    if (nb_vocab_find(&t->vocab, content.text, content.len) != token.id)
        NB_TRY(nb_vocab_put(&t->vocab, id, content, true, err));
    nb_tokenizer_add(t, token);
    return NB_OK;
}

/* ---- the model ---- */

static nb_status check_plain(const json_t *model, nb_err *err)
{
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    const char *type;
    NB_TRY(type_of(model, "model", &type, err));
    if (strcmp(type, "BPE") != 0)
        return nb_fail(err, NB_UNSUPPORTED, "model '%.60s' is not supported: only BPE", type);
    for (int i = 0; i < 2; i++) {
        const char *affix = "";
        NB_TRY(nb_json_text(model, affixes[i], false, &affix, err));
        if (affix[0] != '\0')
            return nb_fail(err, NB_UNSUPPORTED, "model: %s '%.60s'", affixes[i], affix);
    }
    double dropout = 0;
    bool byte_fallback = false;
    NB_TRY(nb_json_number(model, "dropout", false, &dropout, err));
    NB_TRY(nb_json_bool(model, "byte_fallback", false, &byte_fallback, err));
    if (dropout != 0)
        return nb_fail(err, NB_UNSUPPORTED, "model: dropout %g makes encoding random", dropout);
    if (byte_fallback)
        return nb_fail(err, NB_UNSUPPORTED, "model: byte_fallback");
    return NB_OK;
}

/* "left right", or ["left", "right"] as written since 2024. */
static nb_status read_merge(nb_tokenizer *t, const json_t *v, size_t i, nb_err *err)
{
    nb_text left, right;
    if (json_is_string(v)) {
        const nb_text m = text_of(v);
        const char *space = m.len > 2 ? memchr(m.text + 1, ' ', m.len - 2) : NULL;
        if (space == NULL)
            return nb_fail(err, NB_DATA, "merge %zu '%.*s' is not two texts and a space", i,
                           nb_quoted(m.len), m.text);
        left = (nb_text){m.text, (size_t)(space - m.text)};
        right = (nb_text){space + 1, m.len - left.len - 1};
    } else if (json_array_size(v) == 2 && json_is_string(json_array_get(v, 0)) &&
               json_is_string(json_array_get(v, 1))) {
        left = text_of(json_array_get(v, 0));
        right = text_of(json_array_get(v, 1));
    } else {
        return nb_fail(err, NB_DATA, "merge %zu is neither a text nor a pair of texts", i);
    }
    return nb_bpe_add(&t->bpe, &t->vocab, left, right, err);
}

static nb_status read_model(nb_tokenizer *t, const json_t *model, nb_err *err)
{
    json_t *merges;
    NB_TRY(nb_json_array(model, "merges", true, &merges, err));
    NB_TRY(nb_bpe_init(&t->bpe, &t->vocab, (int64_t)json_array_size(merges), err));
    for (size_t i = 0; i < json_array_size(merges); i++)
        NB_TRY(read_merge(t, json_array_get(merges, i), i, err));
    NB_TRY(nb_json_bool(model, "fuse_unk", false, &t->bpe.fuse_unknown, err));
    NB_TRY(nb_json_bool(model, "ignore_merges", false, &t->ignore_merges, err));
    const char *unknown = NULL;
    NB_TRY(nb_json_text(model, "unk_token", false, &unknown, err));
    if (unknown != NULL) {
        t->bpe.unknown = nb_vocab_find(&t->vocab, unknown, strlen(unknown));
        if (t->bpe.unknown < 0)
            return nb_fail(err, NB_DATA, "unk_token '%.60s' is no token", unknown);
        t->unknown = t->bpe.unknown;
    }
    return NB_OK;
}

/* ---- around the model ---- */

static nb_status read_normalizer(nb_tokenizer *t, const json_t *v, int depth, nb_err *err)
{
    const char *type;
    if (v == NULL || json_is_null(v))
        return NB_OK;
    NB_TRY(type_of(v, "normalizer", &type, err));
    if (depth > MAX_DEPTH)
        return nb_fail(err, NB_DATA, "normalizer: more than %d nested sequences", MAX_DEPTH);
    if (strcmp(type, "Sequence") == 0) {
        json_t *list;
        NB_TRY(nb_json_array(v, "normalizers", true, &list, err));
        for (size_t i = 0; i < json_array_size(list); i++)
            NB_TRY(read_normalizer(t, json_array_get(list, i), depth + 1, err));
        return NB_OK;
    }
    if (strcmp(type, "NFC") != 0)
        return nb_fail(err, NB_UNSUPPORTED, "normalizer '%.60s' is not supported", type);
    t->nfc = true;
    return NB_OK;
}

/* The id that a template's token stands for. */
static nb_status read_template_token(const nb_tokenizer *t, const json_t *v, const json_t *token,
                                     int32_t *out, nb_err *err)
{
    json_t *specials = NULL, *ids = NULL;
    const char *name;
    NB_TRY(nb_json_text(token, "id", true, &name, err));
    NB_TRY(nb_json_object(v, "special_tokens", true, &specials, err));
    const json_t *entry = json_object_get(specials, name);
    if (!json_is_object(entry))
        return nb_fail(err, NB_DATA, "post_processor: no special token '%.60s'", name);
    NB_TRY(nb_json_array(entry, "ids", true, &ids, err));
    const json_t *id = json_array_get(ids, 0);
    if (json_array_size(ids) != 1 || !json_is_integer(id))
        return nb_fail(err, NB_UNSUPPORTED, "post_processor: '%.60s' is not one id", name);
    if (json_integer_value(id) < 0 || json_integer_value(id) >= t->vocab.n_ids)
        return nb_fail(err, NB_DATA, "post_processor: '%.60s' has id %lld of %lld", name,
                       (long long)json_integer_value(id), (long long)t->vocab.n_ids);
    *out = (int32_t)json_integer_value(id);
    return NB_OK;
}

/* A template may put one token before the text, and one after it: [BOS, A, END]. */
static nb_status read_template(nb_tokenizer *t, const json_t *v, nb_err *err)
{
    json_t *single;
    NB_TRY(nb_json_array(v, "single", true, &single, err));
    const size_t n = json_array_size(single);
    size_t text = 0;
    while (text < n && json_object_get(json_array_get(single, text), "Sequence") == NULL)
        text++;
    const json_t *before = json_object_get(json_array_get(single, 0), "SpecialToken");
    const json_t *after = json_object_get(json_array_get(single, text + 1), "SpecialToken");
    if (text == n || text > 1 || n > text + 2 || (text == 1) != (before != NULL) ||
        (n == text + 2) != (after != NULL))
        return nb_fail(err, NB_UNSUPPORTED,
                       "post_processor: a template that is not the text, with one token before it, "
                       "after it, or both");
    if (before != NULL) {
        NB_TRY(read_template_token(t, v, before, &t->bos, err));
        t->adds_bos = true;
    }
    return after == NULL ? NB_OK : read_template_token(t, v, after, &t->end, err);
}

static nb_status read_post_processor(nb_tokenizer *t, const json_t *v, int depth, nb_err *err)
{
    const char *type;
    if (v == NULL || json_is_null(v))
        return NB_OK;
    NB_TRY(type_of(v, "post_processor", &type, err));
    if (depth > MAX_DEPTH)
        return nb_fail(err, NB_DATA, "post_processor: more than %d nested sequences", MAX_DEPTH);
    if (strcmp(type, "Sequence") == 0) {
        json_t *list;
        NB_TRY(nb_json_array(v, "processors", true, &list, err));
        for (size_t i = 0; i < json_array_size(list); i++)
            NB_TRY(read_post_processor(t, json_array_get(list, i), depth + 1, err));
        return NB_OK;
    }
    if (strcmp(type, "TemplateProcessing") == 0)
        return read_template(t, v, err);
    /* ByteLevel trims offsets, which we do not report. */
    if (strcmp(type, "ByteLevel") != 0)
        return nb_fail(err, NB_UNSUPPORTED, "post_processor '%.60s' is not supported", type);
    return NB_OK;
}

static nb_status check_decoder(const json_t *v, nb_err *err)
{
    const char *type;
    NB_TRY(type_of(v, "decoder", &type, err));
    if (strcmp(type, "ByteLevel") != 0)
        return nb_fail(err, NB_UNSUPPORTED, "decoder '%.60s' is not supported: only ByteLevel",
                       type);
    return NB_OK;
}

/* ---- the files beside it ---- */

/* "bos_token" and the like: a text, or {"content": text}. Left alone when absent or no token. */
static void read_named(const nb_tokenizer *t, const json_t *config, const char *key, int32_t *id)
{
    const json_t *v = json_object_get(config, key);
    if (json_is_object(v))
        v = json_object_get(v, "content");
    if (!json_is_string(v))
        return;
    const nb_text content = text_of(v);
    const int32_t found = nb_vocab_find(&t->vocab, content.text, content.len);
    if (found >= 0)
        *id = found;
}

/* "eos_token_id" of a model's configuration: an id or a list of them. Ids that no token has are
 * left out: published files name tokens of the model they were made from. */
static int64_t read_stops(nb_tokenizer *t, const json_t *config)
{
    const json_t *v = json_object_get(config, "eos_token_id");
    int64_t first = -1;
    const size_t n = json_is_array(v) ? json_array_size(v) : 1;
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_is_array(v) ? json_array_get(v, i) : v;
        if (!json_is_integer(id))
            continue;
        const json_int_t k = json_integer_value(id);
        nb_tokenizer_add_stop(t, k);
        if (first < 0 && k >= 0 && k < t->vocab.n_ids)
            first = k;
    }
    return first;
}

static nb_status read_configs(nb_tokenizer *t, const json_t *config, const json_t *generation,
                              const json_t *model, nb_err *err)
{
    read_named(t, config, "bos_token", &t->bos);
    read_named(t, config, "eos_token", &t->eos);
    read_named(t, config, "pad_token", &t->pad);
    read_named(t, config, "unk_token", &t->unknown);
    nb_tokenizer_add_stop(t, t->eos);
    int64_t eos = read_stops(t, generation);
    if (eos < 0)
        eos = read_stops(t, model);
    if (t->eos < 0)
        t->eos = (int32_t)eos;
    if (config != NULL)
        NB_TRY(nb_json_bool(config, "add_bos_token", false, &t->adds_bos, err));
    t->adds_bos = t->adds_bos && t->bos >= 0;
    return NB_OK;
}

/* ---- the whole ---- */

static nb_status fill(nb_tokenizer *t, const json_t *tokenizer, const json_t *model,
                      const json_t *added, nb_err *err)
{
    NB_TRY(fill_vocab(t, json_object_get(model, "vocab"), err));
    for (size_t i = 0; i < json_array_size(added); i++)
        if (read_added(t, json_array_get(added, i), err) != NB_OK)
            return nb_context(err, "added_tokens[%zu]", i);
    NB_TRY(read_model(t, model, err));
    NB_TRY(read_normalizer(t, json_object_get(tokenizer, "normalizer"), 0, err));
    NB_TRY(nb_pretokenizer_from_json(&t->split, json_object_get(tokenizer, "pre_tokenizer"), err));
    NB_TRY(check_decoder(json_object_get(tokenizer, "decoder"), err));
    return read_post_processor(t, json_object_get(tokenizer, "post_processor"), 0, err);
}

nb_status nb_tokenizer_from_json(nb_tokenizer **out, const json_t *tokenizer, const json_t *config,
                                 const json_t *generation, const json_t *model_config,
                                 int64_t n_rows, nb_err *err)
{
    *out = NULL;
    json_t *model, *vocab, *added = NULL;
    const char *version;
    if (!json_is_object(tokenizer))
        return nb_fail(err, NB_DATA, "no JSON object");
    NB_TRY(nb_json_text(tokenizer, "version", true, &version, err));
    if (strcmp(version, "1.0") != 0)
        return nb_fail(err, NB_UNSUPPORTED, "version '%.60s' is not supported: only 1.0", version);
    NB_TRY(nb_json_object(tokenizer, "model", true, &model, err));
    NB_TRY(check_plain(model, err));
    NB_TRY(nb_json_object(model, "vocab", true, &vocab, err));
    NB_TRY(nb_json_array(tokenizer, "added_tokens", false, &added, err));
    const int64_t n_entries = (int64_t)(json_object_size(vocab) + json_array_size(added));
    sizes z = {.limit = MAX_SPREAD * n_entries + MAX_GAP};
    if (z.limit > INT32_MAX - 1)
        z.limit = INT32_MAX - 1;
    int64_t n_vocab = n_rows;
    if (n_rows < 0 && model_config != NULL)
        NB_TRY(nb_json_int(model_config, "vocab_size", false, 1, INT32_MAX, &n_vocab, err));
    if (n_rows >= 0 || (n_vocab >= 0 && n_vocab < z.limit))
        z.limit = n_vocab;
    NB_TRY(count_tokens(&z, vocab, added, err));

    nb_tokenizer *t = NULL;
    nb_status s;
    NB_TRY_GOTO(s,
                nb_tokenizer_new(&t, z.n_ids, z.text_bytes, (int64_t)json_array_size(added), err));
    NB_TRY_GOTO(s, fill(t, tokenizer, model, added, err));
    NB_TRY_GOTO(s, read_configs(t, config, generation, model_config, err));
    s = nb_tokenizer_finish(t, err);
done:
    if (s == NB_OK)
        *out = t;
    else
        nb_tokenizer_close(t);
    return s;
}
