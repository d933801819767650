/* Tokenizers small enough to check in, with what the reference library makes of them. */
#ifndef NB_TESTS_TINY_TOKENIZER_H
#define NB_TESTS_TINY_TOKENIZER_H

#include "support/golden.h"
#include "text/tokenizer_parts.h"

#include <string.h>

/* Texts may hold a zero byte, which jansson allows only when asked. */
static inline json_t *load_tiny(void)
{
    json_t *v = json_load_file(NIBBLE_GOLDEN "/tokenizer_tiny.json", JSON_ALLOW_NUL, NULL);
    assert_non_null(v);
    return v;
}

static inline nb_tokenizer *load(const json_t *v)
{
    nb_err err = {0};
    nb_tokenizer *t;
    if (nb_tokenizer_from_json(&t, v, NULL, NULL, NULL, -1, &err) != NB_OK)
        fail_msg("%s", err.text);
    return t;
}

/* The tokenizer.json of a variant: the base with members replaced. */
static inline json_t *variant_json(const json_t *golden, const json_t *variant)
{
    json_t *v = json_deep_copy(golden_get(golden, "base"));
    const json_t *top = json_object_get(variant, "tokenizer");
    const json_t *model = json_object_get(variant, "model");
    const json_t *extra = json_object_get(variant, "extra_vocab");
    if (top != NULL)
        json_object_update(v, (json_t *)(uintptr_t)top);
    if (model != NULL)
        json_object_update(json_object_get(v, "model"), (json_t *)(uintptr_t)model);
    if (extra != NULL)
        json_object_update(json_object_get(json_object_get(v, "model"), "vocab"),
                           (json_t *)(uintptr_t)extra);
    return v;
}

static inline const json_t *find_variant(const json_t *golden, const char *name)
{
    const json_t *variants = golden_get(golden, "variants");
    for (size_t i = 0; i < json_array_size(variants); i++) {
        const json_t *v = json_array_get(variants, i);
        if (strcmp(json_string_value(golden_get(v, "name")), name) == 0)
            return v;
    }
    fail_msg("no variant '%s'", name);
    return NULL;
}

static inline nb_tokenizer *load_variant(const char *name)
{
    json_t *golden = load_tiny();
    json_t *v = variant_json(golden, find_variant(golden, name));
    nb_tokenizer *t = load(v);
    json_decref(v);
    json_decref(golden);
    return t;
}

static inline nb_tokens encode(const nb_tokenizer *t, const char *text, size_t len,
                               nb_encode_options options)
{
    nb_err err = {0};
    nb_tokens out = {0};
    if (nb_tokenizer_encode(t, text, len, options, &out, &err) != NB_OK)
        fail_msg("%s", err.text);
    return out;
}

#endif
