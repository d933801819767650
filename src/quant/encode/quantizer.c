/* See quantizer.h. */
#include "quant/encode/quantizer.h"

#include "base/bytes.h"

#include <stdlib.h>
#include <string.h>

#define X(id) extern const nb_quantizer nb_quantizer_##id;
#include "quant/encode/quantizers.def"
#undef X

const nb_quantizer *const nb_quantizers[] = {
#define X(id) &nb_quantizer_##id,
#include "quant/encode/quantizers.def"
#undef X
    NULL,
};

/* "a, b, c" of what `name_at` gives until NULL, in a message with `format`: what was wrong, where
 * it was, the list. */
typedef const char *name_at_fn(const void *list, int64_t i);

static const char *quantizer_at(const void *list, int64_t i)
{
    (void)list;
    return nb_quantizers[i] == NULL ? NULL : nb_quantizers[i]->name;
}

static const char *word_at(const void *list, int64_t i)
{
    return ((const char *const *)list)[i];
}

static nb_status names(nb_buf *out, name_at_fn *name_at, const void *list, nb_err *err)
{
    for (int64_t i = 0; name_at(list, i) != NULL; i++)
        NB_TRY(nb_buf_format(out, err, "%s%s", i == 0 ? "" : ", ", name_at(list, i)));
    return NB_OK;
}

static nb_status unknown(const char *name, size_t len, nb_err *err)
{
    nb_buf list = {0};
    nb_status s = names(&list, quantizer_at, NULL, err);
    if (s == NB_OK)
        s = nb_fail(err, NB_USAGE, "unknown method '%.*s'; there are: %s", len < 40 ? (int)len : 40,
                    name, (const char *)list.data);
    nb_buf_free(&list);
    return s;
}

static const nb_quantizer *find(const char *name, size_t len)
{
    for (const nb_quantizer *const *q = nb_quantizers; *q != NULL; q++) {
        if (strlen((*q)->name) == len && strncmp((*q)->name, name, len) == 0)
            return *q;
    }
    return NULL;
}

/* ---- options ---- */

static int compare_options(const void *a, const void *b)
{
    return strcmp(((const nb_method_option *)a)->name, ((const nb_method_option *)b)->name);
}

/* "act-order" or "shrink=0.3". */
static nb_status read_option(nb_method *m, const char *text, size_t len, nb_err *err)
{
    const char *equals = memchr(text, '=', len);
    const size_t n_name = equals == NULL ? len : (size_t)(equals - text);
    const size_t n_value = equals == NULL ? 0 : len - n_name - 1;
    if (n_name == 0 || n_name >= NB_METHOD_MAX_WORD || n_value >= NB_METHOD_MAX_WORD)
        return nb_fail(err, NB_USAGE, "option '%.*s' of a method is no NAME or NAME=VALUE",
                       len < 40 ? (int)len : 40, text);
    if (m->n_options == NB_METHOD_MAX_OPTIONS)
        return nb_fail(err, NB_USAGE, "a method takes at most %d options", NB_METHOD_MAX_OPTIONS);
    nb_method_option *o = &m->options[m->n_options];
    *o = (nb_method_option){0};
    memcpy(o->name, text, n_name);
    if (n_value > 0)
        memcpy(o->value, equals + 1, n_value);
    if (nb_method_option_of(m, o->name) != NULL)
        return nb_fail(err, NB_USAGE, "option '%s' of a method is given twice", o->name);
    m->n_options++;
    return NB_OK;
}

const char *nb_method_option_of(const nb_method *method, const char *name)
{
    for (int i = 0; i < method->n_options; i++) {
        if (strcmp(method->options[i].name, name) == 0)
            return method->options[i].value;
    }
    return NULL;
}

nb_status nb_method_number(const nb_method *method, const char *name, double preset, double low,
                           double high, double *out, nb_err *err)
{
    const char *text = nb_method_option_of(method, name);
    *out = preset;
    if (text == NULL)
        return NB_OK;
    char *end;
    const double value = strtod(text, &end);
    if (*text == 0 || *end != 0 || !(value >= low && value <= high))
        return nb_fail(err, NB_USAGE, "option %s of method %s is a number from %g to %g, not '%s'",
                       name, method->quantizer->name, low, high, text);
    *out = value;
    return NB_OK;
}

nb_status nb_method_only(const nb_method *method, const char *const *known, nb_err *err)
{
    for (int i = 0; i < method->n_options; i++) {
        const char *name = method->options[i].name;
        int64_t j = 0;
        while (known[j] != NULL && strcmp(known[j], name) != 0)
            j++;
        if (known[j] != NULL)
            continue;
        nb_buf list = {0};
        nb_status s = names(&list, word_at, known, err);
        if (s == NB_OK && known[0] == NULL)
            s = nb_fail(err, NB_USAGE, "method %s takes no options, and '%s' is given",
                        method->quantizer->name, name);
        else if (s == NB_OK)
            s = nb_fail(err, NB_USAGE, "method %s has no option '%s'; there are: %s",
                        method->quantizer->name, name, (const char *)list.data);
        nb_buf_free(&list);
        return s;
    }
    return NB_OK;
}

nb_status nb_method_spell(const nb_method *method, nb_buf *out, nb_err *err)
{
    NB_TRY(nb_buf_format(out, err, "%s", method->quantizer->name));
    for (int i = 0; i < method->n_options; i++) {
        const nb_method_option *o = &method->options[i];
        NB_TRY(nb_buf_format(out, err, "%s%s%s%s", i == 0 ? ":" : ",", o->name,
                             o->value[0] != 0 ? "=" : "", o->value));
    }
    return NB_OK;
}

unsigned nb_method_needs(const nb_method *method)
{
    unsigned needs = method->quantizer->needs;
    nb_err ignored = {0}; /* options were checked when they were parsed */
    if (method->quantizer->check != NULL)
        (void)method->quantizer->check(method, &needs, &ignored);
    return needs;
}

bool nb_method_same(const nb_method *a, const nb_method *b)
{
    bool same = a->quantizer == b->quantizer && a->n_options == b->n_options;
    for (int i = 0; same && i < a->n_options; i++)
        same = strcmp(a->options[i].name, b->options[i].name) == 0 &&
               strcmp(a->options[i].value, b->options[i].value) == 0;
    return same;
}

/* ---- the whole ---- */

nb_status nb_method_of(nb_method *out, const nb_quantizer *quantizer, const char *options,
                       nb_err *err)
{
    nb_method m = {.quantizer = quantizer};
    for (const char *at = options; *at != 0;) {
        const size_t len = strcspn(at, ",");
        NB_TRY(read_option(&m, at, len, err));
        at += len;
        if (*at == ',' && *++at == 0)
            return nb_fail(err, NB_USAGE, "options of a method end with a comma");
    }
    qsort(m.options, (size_t)m.n_options, sizeof m.options[0], compare_options);
    static const char *const none[] = {NULL};
    unsigned needs = m.quantizer->needs;
    NB_TRY(m.quantizer->check != NULL ? m.quantizer->check(&m, &needs, err)
                                      : nb_method_only(&m, none, err));
    *out = m;
    return NB_OK;
}

nb_status nb_method_parse(nb_method *out, const char *text, nb_err *err)
{
    const size_t n_name = strcspn(text, ":");
    const nb_quantizer *quantizer = find(text, n_name);
    if (quantizer == NULL)
        return unknown(text, n_name, err);
    if (text[n_name] == ':' && text[n_name + 1] == 0)
        return nb_fail(err, NB_USAGE, "method '%.60s': options follow a colon", text);
    if (nb_method_of(out, quantizer, text + n_name + (text[n_name] == ':'), err) != NB_OK)
        return nb_context(err, "method '%.60s'", text);
    return NB_OK;
}
