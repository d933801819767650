/* How pre-tokenizers are written down: in tokenizer.json, and by name in GGUF files. */
#include "text/pretokenizer.h"

#include <assert.h>
#include <string.h>

/* The regular expressions that are scanned by hand (formats.md 10.3), by kind. */
static const char *const known_pattern[] = {
    [NB_SPLIT_GPT2] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+"
                      "|\\s+(?!\\S)|\\s+",
    [NB_SPLIT_LLAMA3] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}"
                        "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    [NB_SPLIT_QWEN2] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}"
                       "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
};
#define N_KNOWN (sizeof known_pattern / sizeof *known_pattern)

nb_status nb_pretokenizer_add(nb_pretokenizer *p, nb_split_kind kind, const char *pattern,
                              nb_err *err)
{
    assert((kind == NB_SPLIT_REGEX) == (pattern != NULL));
    if (p->n_steps == NB_MAX_SPLITS)
        return nb_fail(err, NB_DATA, "pre_tokenizer: more than %d steps", NB_MAX_SPLITS);
    for (size_t k = 0; k < N_KNOWN && pattern != NULL; k++) {
        if (strcmp(pattern, known_pattern[k]) == 0) {
            kind = (nb_split_kind)k;
            pattern = NULL;
        }
    }
    nb_split step = {.kind = kind};
    if (pattern != NULL) {
        const size_t size = strlen(pattern) + 1;
        NB_TRY(nb_splitregex_compile(&step.regex, pattern, err));
        if (NB_ALLOC(&step.pattern, size, err) != NB_OK) {
            nb_splitregex_free(step.regex);
            return NB_MEMORY;
        }
        memcpy(step.pattern, pattern, size);
    }
    p->steps[p->n_steps++] = step;
    return NB_OK;
}

void nb_pretokenizer_free(nb_pretokenizer *p)
{
    for (int i = 0; i < p->n_steps; i++) {
        nb_free(p->steps[i].pattern);
        nb_splitregex_free(p->steps[i].regex);
    }
    *p = (nb_pretokenizer){0};
}

/* ---- tokenizer.json ---- */

#define MAX_DEPTH 8 /* of sequences inside sequences */

static nb_status read_byte_level(nb_pretokenizer *p, const json_t *v, nb_err *err)
{
    bool add_prefix_space = true, use_regex = true; /* what files that leave them out mean */
    NB_TRY(nb_json_bool(v, "add_prefix_space", false, &add_prefix_space, err));
    NB_TRY(nb_json_bool(v, "use_regex", false, &use_regex, err));
    if (add_prefix_space)
        NB_TRY(nb_pretokenizer_add(p, NB_SPLIT_PREFIX_SPACE, NULL, err));
    if (use_regex)
        NB_TRY(nb_pretokenizer_add(p, NB_SPLIT_GPT2, NULL, err));
    return NB_OK;
}

static nb_status read_split(nb_pretokenizer *p, const json_t *v, nb_err *err)
{
    json_t *pattern = NULL;
    const char *behavior = NULL, *regex = NULL;
    bool invert = false;
    NB_TRY(nb_json_object(v, "pattern", true, &pattern, err));
    NB_TRY(nb_json_text(v, "behavior", true, &behavior, err));
    NB_TRY(nb_json_bool(v, "invert", false, &invert, err));
    NB_TRY(nb_json_text(pattern, "Regex", false, &regex, err));
    if (regex == NULL)
        return nb_fail(err, NB_UNSUPPORTED, "pre_tokenizer: a Split whose pattern is no Regex");
    if (strcmp(behavior, "Isolated") != 0)
        return nb_fail(err, NB_UNSUPPORTED,
                       "pre_tokenizer: Split behavior '%.60s'; only Isolated is supported",
                       behavior);
    if (invert)
        return nb_fail(err, NB_UNSUPPORTED, "pre_tokenizer: an inverted Split");
    if (nb_pretokenizer_add(p, NB_SPLIT_REGEX, regex, err) != NB_OK)
        return nb_context(err, "pre_tokenizer");
    return NB_OK;
}

/* *ended is set by ByteLevel: text behind it is spelled in byte characters, so nothing we know
 * can follow. */
static nb_status read_step(nb_pretokenizer *p, const json_t *v, int depth, bool *ended, nb_err *err)
{
    const char *type = NULL;
    NB_TRY(nb_json_text(v, "type", true, &type, err));
    if (depth > MAX_DEPTH)
        return nb_fail(err, NB_DATA, "pre_tokenizer: more than %d nested sequences", MAX_DEPTH);
    if (*ended)
        return nb_fail(err, NB_UNSUPPORTED, "pre_tokenizer: '%.60s' after ByteLevel", type);
    if (strcmp(type, "Sequence") == 0) {
        json_t *list = NULL;
        NB_TRY(nb_json_array(v, "pretokenizers", true, &list, err));
        for (size_t i = 0; i < json_array_size(list); i++)
            NB_TRY(read_step(p, json_array_get(list, i), depth + 1, ended, err));
        return NB_OK;
    }
    if (strcmp(type, "Split") == 0)
        return read_split(p, v, err);
    if (strcmp(type, "Digits") == 0) {
        bool each = false;
        NB_TRY(nb_json_bool(v, "individual_digits", false, &each, err));
        return nb_pretokenizer_add(p, each ? NB_SPLIT_EACH_DIGIT : NB_SPLIT_DIGIT_RUNS, NULL, err);
    }
    if (strcmp(type, "ByteLevel") == 0) {
        *ended = true;
        return read_byte_level(p, v, err);
    }
    return nb_fail(err, NB_UNSUPPORTED, "pre_tokenizer '%.60s' is not supported", type);
}

nb_status nb_pretokenizer_from_json(nb_pretokenizer *p, const json_t *v, nb_err *err)
{
    *p = (nb_pretokenizer){0};
    bool ended = false;
    nb_status s = NB_OK;
    if (!json_is_object(v))
        return nb_fail(err, json_is_null(v) ? NB_UNSUPPORTED : NB_DATA,
                       "pre_tokenizer: %s, where an object was expected",
                       json_is_null(v) ? "null" : "no object");
    NB_TRY_GOTO(s, read_step(p, v, 0, &ended, err));
    if (!ended)
        s = nb_fail(err, NB_UNSUPPORTED, "pre_tokenizer without ByteLevel at its end");
done:
    if (s != NB_OK)
        nb_pretokenizer_free(p);
    return s;
}

static json_t *step_to_json(const nb_split *step)
{
    const char *pattern = step->pattern;
    if (step->kind < N_KNOWN)
        pattern = known_pattern[step->kind];
    if (pattern != NULL)
        return json_pack("{s:s, s:{s:s}, s:s, s:b}", "type", "Split", "pattern", "Regex", pattern,
                         "behavior", "Isolated", "invert", 0);
    return json_pack("{s:s, s:b}", "type", "Digits", "individual_digits",
                     step->kind == NB_SPLIT_EACH_DIGIT);
}

nb_status nb_pretokenizer_to_json(const nb_pretokenizer *p, json_t **out, nb_err *err)
{
    /* A GPT-2 split at the end and a prefix space before it are options of ByteLevel. */
    int n = p->n_steps;
    const bool use_regex = n > 0 && p->steps[n - 1].kind == NB_SPLIT_GPT2;
    n -= use_regex;
    const bool add_prefix_space = n > 0 && p->steps[n - 1].kind == NB_SPLIT_PREFIX_SPACE;
    n -= add_prefix_space;
    json_t *list = json_array();
    bool fine = list != NULL;
    for (int i = 0; i < n && fine; i++)
        fine = json_array_append_new(list, step_to_json(&p->steps[i])) == 0;
    json_t *last = json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space",
                             add_prefix_space, "trim_offsets", 1, "use_regex", use_regex);
    fine = json_array_append_new(list, last) == 0 && fine;
    *out = NULL;
    if (fine && n == 0)
        *out = json_incref(json_array_get(list, 0));
    else if (fine)
        *out = json_pack("{s:s, s:O}", "type", "Sequence", "pretokenizers", list);
    json_decref(list);
    if (*out == NULL)
        return nb_fail(err, NB_MEMORY, "out of memory for the pre_tokenizer");
    return NB_OK;
}

/* ---- GGUF ---- */

/* Of the families that are the same, the first is the one that is written. */
static const nb_split_family families[] = {
    {"gpt-2", 1, {NB_SPLIT_GPT2}, false, false, false},
    {"smollm", 2, {NB_SPLIT_EACH_DIGIT, NB_SPLIT_GPT2}, false, false, false},
    {"llama-bpe", 1, {NB_SPLIT_LLAMA3}, false, true, true},
    {"llama3", 1, {NB_SPLIT_LLAMA3}, false, true, true},
    {"llama-v3", 1, {NB_SPLIT_LLAMA3}, false, true, true},
    {"qwen2", 1, {NB_SPLIT_QWEN2}, true, false, false},
    {"deepseek-r1-qwen", 1, {NB_SPLIT_QWEN2}, true, false, false},
};
#define N_FAMILIES (sizeof families / sizeof *families)

const nb_split_family *nb_split_family_by_name(const char *name, size_t len)
{
    for (size_t i = 0; i < N_FAMILIES; i++)
        if (strlen(families[i].name) == len && memcmp(families[i].name, name, len) == 0)
            return &families[i];
    return NULL;
}

const nb_split_family *nb_split_family_of(const nb_pretokenizer *p, bool nfc, bool ignore_merges)
{
    for (size_t i = 0; i < N_FAMILIES; i++) {
        const nb_split_family *f = &families[i];
        bool same = f->n_steps == p->n_steps && f->nfc == nfc && f->ignore_merges == ignore_merges;
        for (int k = 0; k < p->n_steps && same; k++)
            same = f->steps[k] == p->steps[k].kind;
        if (same)
            return f;
    }
    return NULL;
}
