/* See scheme.h. */
#define _POSIX_C_SOURCE 200809L
#include "quant/recipe/scheme.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#define MAX_GROUP 65536

/* What a name means without modifiers, and what to take instead in the other container. */
typedef struct {
    const char *name;
    const nb_format *fmt;
    nb_store_kind container;
    int64_t group_size;
    nb_act_spec act;
    const char *instead;
    int64_t scale_rows;
} preset;

#define INT8_TOKEN                                                                                 \
    {                                                                                              \
        .bits = 8, .per_token = true                                                               \
    }
#define FP8_TOKEN                                                                                  \
    {                                                                                              \
        .bits = 8, .per_token = true, .is_float = true                                             \
    }
#define FP8_BLOCKS                                                                                 \
    {                                                                                              \
        .bits = 8, .is_float = true, .group_size = 128                                             \
    }

static const preset presets[] = {
    {"W8A16", &nb_format_int8, NB_STORE_HF, NB_GROUP_CHANNEL, {0}, "Q8_0", 0},
    {"W4A16", &nb_format_int4, NB_STORE_HF, NB_GROUP_CHOOSE, {0}, "Q4_0", 0},
    {"W3A16", &nb_format_int3, NB_STORE_HF, NB_GROUP_CHOOSE, {0}, "Q4_0", 0},
    {"W2A16", &nb_format_int2, NB_STORE_HF, NB_GROUP_CHOOSE, {0}, "Q4_0", 0},
    {"W8A8", &nb_format_int8, NB_STORE_HF, NB_GROUP_CHANNEL, INT8_TOKEN, "Q8_0", 0},
    {"W4A8", &nb_format_int4, NB_STORE_HF, NB_GROUP_CHOOSE, INT8_TOKEN, "Q4_0", 0},
    {"Q4_0", &nb_format_q4_0, NB_STORE_GGUF, 0, {0}, "W4A16:g32", 0},
    {"Q4_1", &nb_format_q4_1, NB_STORE_GGUF, 0, {0}, "W4A16:g32,asym", 0},
    {"Q2_K", &nb_format_q2_k, NB_STORE_GGUF, 0, {0}, "W2A16:g32,asym", 0},
    {"Q3_K", &nb_format_q3_k, NB_STORE_GGUF, 0, {0}, "W3A16:g32", 0},
    {"Q4_K", &nb_format_q4_k, NB_STORE_GGUF, 0, {0}, "W4A16:g32,asym", 0},
    {"Q5_K", &nb_format_q5_k, NB_STORE_GGUF, 0, {0}, "W8A16:g32", 0},
    {"Q6_K", &nb_format_q6_k, NB_STORE_GGUF, 0, {0}, "W8A16:g32", 0},
    {"IQ4_NL", &nb_format_iq4_nl, NB_STORE_GGUF, 0, {0}, "W4A16:g32", 0},
    {"Q5_0", &nb_format_q5_0, NB_STORE_GGUF, 0, {0}, "W8A16:g32", 0},
    {"Q5_1", &nb_format_q5_1, NB_STORE_GGUF, 0, {0}, "W8A16:g32", 0},
    {"Q8_0", &nb_format_q8_0, NB_STORE_GGUF, 0, {0}, "W8A16:g32", 0},
    {"FP8", &nb_format_fp8_e4m3, NB_STORE_HF, NB_GROUP_CHANNEL, FP8_TOKEN, "Q8_0", 0},
    {"FP8_DYNAMIC", &nb_format_fp8_e4m3, NB_STORE_HF, NB_GROUP_CHANNEL, FP8_TOKEN, "Q8_0", 0},
    {"FP8_BLOCK", &nb_format_fp8_e4m3, NB_STORE_HF, 128, FP8_BLOCKS, "Q8_0", 128},
    {"NF4", &nb_format_nf4, NB_STORE_HF, 64, {0}, "Q4_0", 0},
};
#define N_PRESETS (sizeof presets / sizeof *presets)

/* Other names of the same, as users of llm-compressor know them. */
static const struct {
    const char *name, *means;
} aliases[] = {
    {"W4A16_ASYM", "W4A16:asym"},
    {"INT8", "W8A8"},
};
#define N_ALIASES (sizeof aliases / sizeof *aliases)

/* Names that users know, of formats that need an encoder which nibble lacks. */
static const struct {
    const char *name, *lacks, *instead;
} lacking[] = {
    {"IQ4_XS", "iq4_xs", "IQ4_NL"},
    {"MXFP4", "mxfp4", "W4A16:g32"},
    {"NVFP4", "nvfp4", "W4A16:g32"},
};
#define N_LACKING (sizeof lacking / sizeof *lacking)

const char *nb_container_name(nb_store_kind kind)
{
    return kind == NB_STORE_GGUF ? "gguf" : "hf";
}

static const preset *find_preset(const char *text, size_t len)
{
    for (size_t i = 0; i < N_PRESETS; i++) {
        if (strlen(presets[i].name) == len && strncasecmp(presets[i].name, text, len) == 0)
            return &presets[i];
    }
    return NULL;
}

/* One modifier, text[0, len). Each kind may be given once. */
static bool modifier_is(const char *text, size_t len, const char *word)
{
    return strlen(word) == len && strncasecmp(text, word, len) == 0;
}

static nb_status read_group(const char *text, size_t len, int64_t *out, nb_err *err)
{
    int64_t n = 0;
    for (size_t i = 1; i < len; i++) {
        if (text[i] < '0' || text[i] > '9' || n > MAX_GROUP)
            return nb_fail(err, NB_USAGE, "modifier '%.*s': g is followed by a number of columns",
                           (int)len, text);
        n = 10 * n + (text[i] - '0');
    }
    /* Packed words hold eight 4-bit codes; a group that splits one has no reader in the field. */
    if (n < 8 || n > MAX_GROUP || n % 8 != 0)
        return nb_fail(err, NB_USAGE, "modifier '%.*s': a group has 8 to %d columns, in eights",
                       (int)len, text, MAX_GROUP);
    *out = n;
    return NB_OK;
}

typedef struct {
    bool group, symmetry, act, zero;
} seen;

/* The modifiers of float codes. */
static nb_status read_float_modifier(nb_scheme *s, seen *had, const char *text, size_t len,
                                     nb_err *err)
{
    const bool nf4 = s->fmt == &nb_format_nf4, block = s->scale_rows > 1;
    const bool tensor = modifier_is(text, len, "tensor"), fixed = modifier_is(text, len, "static");
    const bool single = modifier_is(text, len, "single");
    const bool group = len > 1 && (text[0] == 'g' || text[0] == 'G');
    if (nf4 ? !single && !group : !fixed && (block || !tensor))
        return nb_fail(err, NB_USAGE, "unknown modifier '%.*s'; there %s", len < 40 ? (int)len : 40,
                       text,
                       nf4     ? "are gN (g64, g128) and single"
                       : block ? "is static"
                               : "are tensor and static");
    bool *twice = tensor || group ? &had->group : fixed ? &had->act : &had->symmetry;
    if (*twice)
        return nb_fail(err, NB_USAGE, "modifier '%.*s' is given twice", (int)len, text);
    *twice = true;
    if (group)
        return read_group(text, len, &s->group_size, err);
    if (tensor)
        s->scale_rows = NB_ROWS_ALL;
    else if (single)
        s->nested = false;
    else
        s->act = (nb_act_spec){.bits = 8, .per_token = true, .is_float = true, .is_static = true};
    return NB_OK;
}

static nb_status read_modifier(nb_scheme *s, seen *had, const char *text, size_t len, nb_err *err)
{
    if (s->fmt->levels != NULL)
        return read_float_modifier(s, had, text, len, err);
    const bool channel = modifier_is(text, len, "channel");
    const bool sym = modifier_is(text, len, "sym"), asym = modifier_is(text, len, "asym");
    const bool group = !channel && len > 1 && (text[0] == 'g' || text[0] == 'G');
    const bool fixed = modifier_is(text, len, "static");
    const bool floats = modifier_is(text, len, "zero=float");
    if (!channel && !sym && !asym && !group && !fixed && !floats)
        return nb_fail(err, NB_USAGE,
                       "unknown modifier '%.*s'; there are gN (g32, g64, g128), channel, sym, asym,"
                       " %s",
                       len < 40 ? (int)len : 40, text, s->act.bits != 0 ? "static" : "zero=float");
    if (fixed && s->act.bits == 0)
        return nb_fail(err, NB_USAGE,
                       "modifier '%.*s': activations are not quantized here, and have no scales; "
                       "W8A8 and W4A8 have",
                       (int)len, text);
    if (floats && s->act.bits != 0)
        return nb_fail(err, NB_USAGE,
                       "modifier '%.*s': no file holds float zero points beside quantized "
                       "activations; W4A16 has them",
                       (int)len, text);
    bool *twice = channel || group ? &had->group
                  : fixed          ? &had->act
                  : floats         ? &had->zero
                                   : &had->symmetry;
    if (*twice || (sym && had->zero) || (floats && had->symmetry && s->symmetric))
        return nb_fail(err, NB_USAGE, "modifier '%.*s' contradicts one before it", (int)len, text);
    *twice = true;
    if (group)
        return read_group(text, len, &s->group_size, err);
    if (channel)
        s->group_size = NB_GROUP_CHANNEL;
    else if (fixed)
        s->act.is_static = true;
    else
        s->symmetric = sym;
    s->float_zeros = s->float_zeros || floats;
    return NB_OK;
}

static nb_status unknown_scheme(const char *text, size_t len, nb_err *err)
{
    if (modifier_is(text, len, "bf16") || modifier_is(text, len, "f16") ||
        modifier_is(text, len, "f32"))
        return nb_fail(err, NB_USAGE, "'%.*s' is no quantization: use nibble convert --dtype",
                       (int)len, text);
    for (size_t i = 0; i < N_LACKING; i++) {
        if (modifier_is(text, len, lacking[i].name))
            return nb_fail(err, NB_UNSUPPORTED,
                           "scheme %s takes %s, for which nibble has no encoder; %s comes nearest",
                           lacking[i].name, lacking[i].lacks, lacking[i].instead);
    }
    if (len > 5 && strncasecmp(text, "Q", 1) == 0 && strncasecmp(text + 2, "_K_", 3) == 0)
        return nb_fail(err, NB_USAGE,
                       "'%.*s' is no format, but a mixture of several, for --scheme and for whole "
                       "models; a rule takes Q2_K, Q3_K, Q4_K, Q5_K or Q6_K",
                       len < 40 ? (int)len : 40, text);
    return nb_fail(err, NB_USAGE,
                   "unknown scheme '%.*s'; there are W8A16, W4A16, W3A16, W2A16, W8A8, W4A8 "
                   "(with modifiers, as in W4A16:g32,asym), FP8, FP8_BLOCK, NF4, Q2_K to Q6_K, "
                   "Q4_0, Q4_1, IQ4_NL, Q5_0, Q5_1 and Q8_0",
                   len < 40 ? (int)len : 40, text);
}

/* The name with what differs from the preset. */
static void spell(nb_scheme *s, const preset *p)
{
    size_t n = (size_t)snprintf(s->name, sizeof s->name, "%s", p->name);
    const char *before = ":";
    if (s->group_size != p->group_size) {
        if (s->group_size == NB_GROUP_CHANNEL)
            n += (size_t)snprintf(s->name + n, sizeof s->name - n, ":channel");
        else
            n += (size_t)snprintf(s->name + n, sizeof s->name - n, ":g%lld",
                                  (long long)s->group_size);
        before = ",";
    }
    if (s->scale_rows != p->scale_rows) {
        n += (size_t)snprintf(s->name + n, sizeof s->name - n, "%stensor", before);
        before = ",";
    }
    if (s->act.is_static != p->act.is_static) {
        n += (size_t)snprintf(s->name + n, sizeof s->name - n, "%sstatic", before);
        before = ",";
    }
    if (p->fmt == &nb_format_nf4 && !s->nested)
        n += (size_t)snprintf(s->name + n, sizeof s->name - n, "%ssingle", before);
    if (p->fmt->affine && !s->symmetric)
        snprintf(s->name + n, sizeof s->name - n, "%sasym%s", before,
                 s->float_zeros ? ",zero=float" : "");
}

/* The text without aliases, in `room`: what follows an alias is added to what it means. */
static const char *without_alias(const char *text, char *room, size_t size)
{
    const size_t len = strcspn(text, ":");
    for (size_t i = 0; i < N_ALIASES && strlen(text) < size / 2; i++) {
        if (!modifier_is(text, len, aliases[i].name))
            continue;
        const bool joins = text[len] == ':' && strchr(aliases[i].means, ':') != NULL;
        snprintf(room, size, "%s%s%s", aliases[i].means, joins ? "," : "",
                 text + len + (joins ? 1 : 0));
        return room;
    }
    return text;
}

nb_status nb_scheme_parse(nb_scheme *out, const char *given, nb_err *err)
{
    char room[128];
    const char *text = without_alias(given, room, sizeof room);
    const size_t name_len = strcspn(text, ":");
    const preset *p = find_preset(text, name_len);
    if (p == NULL)
        return unknown_scheme(text, name_len, err);
    nb_scheme s = {.fmt = p->fmt,
                   .container = p->container,
                   .group_size = p->group_size,
                   .symmetric = true,
                   .scale_rows = p->scale_rows,
                   .nested = p->fmt == &nb_format_nf4,
                   .act = p->act};
    const char *at = text + name_len;
    if (*at == ':' && !p->fmt->affine)
        return nb_fail(err, NB_USAGE, "scheme %s takes no modifiers", p->name);
    seen had = {0};
    while (*at != 0) { /* at the colon, or at a comma */
        at++;
        const size_t len = strcspn(at, ",");
        if (read_modifier(&s, &had, at, len, err) != NB_OK)
            return nb_context(err, "scheme '%.40s'", text);
        at += len;
    }
    spell(&s, p);
    *out = s;
    return NB_OK;
}

nb_status nb_scheme_check_container(const nb_scheme *scheme, nb_store_kind kind, nb_err *err)
{
    if (scheme->container == kind)
        return NB_OK;
    const preset *p = find_preset(scheme->name, strcspn(scheme->name, ":"));
    return nb_fail(err, NB_USAGE, "scheme %s: %s cannot hold it; %s comes nearest there",
                   scheme->name, kind == NB_STORE_GGUF ? "a GGUF" : "a Hugging Face folder",
                   p->instead);
}
