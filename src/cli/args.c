/* See args.h. */
#include "cli/args.h"

#include "cli/verbs.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const nb_isa_choices[] = {"auto", "scalar", "avx2", "avx512", "amx", "neon", NULL};
const char *const nb_compute_choices[] = {"auto", "f", "i8", "i16", NULL};
const char *const nb_kv_choices[] = {"auto",        "f16",      "f32",  "bf16",       "int8", "fp8",
                                     "fp8:dynamic", "fp8_e4m3", "int4", "int4_plain", "int2", NULL};

/* One option as typed (or its preset). */
typedef struct {
    const nb_opt *opt;
    const char *text; /* NULL for a flag */
    int64_t integer;
    double real;
    bool typed;
} given;

struct nb_args {
    const nb_verb *verb;
    given *given;
    int n_given;
    const char **operands;
    int n_operands;
};

/* ---- suggestions ---- */

#define WORD_MAX 64

/* Edits (insert, delete, replace, swap of neighbours) that turn a into b. Long words: a large
 * number, since nobody mistypes those. */
static int edit_distance(const char *a, const char *b)
{
    const size_t n = strlen(a), m = strlen(b);
    if (n >= WORD_MAX || m >= WORD_MAX)
        return WORD_MAX;
    int d[WORD_MAX + 1][WORD_MAX + 1];
    for (size_t i = 0; i <= n; i++)
        d[i][0] = (int)i;
    for (size_t j = 0; j <= m; j++)
        d[0][j] = (int)j;
    for (size_t i = 1; i <= n; i++) {
        for (size_t j = 1; j <= m; j++) {
            int best = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
            if (d[i - 1][j] + 1 < best)
                best = d[i - 1][j] + 1;
            if (d[i][j - 1] + 1 < best)
                best = d[i][j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                d[i - 2][j - 2] + 1 < best)
                best = d[i - 2][j - 2] + 1;
            d[i][j] = best;
        }
    }
    return d[n][m];
}

const char *nb_args_suggest(const char *word, nb_name_fn *names, const void *context)
{
    const size_t len = strlen(word);
    const char *best = NULL;
    /* One edit in short words, a third of the letters in longer ones. */
    int best_distance = len < 4 ? 2 : (int)(len / 3) + 2;
    for (int i = 0;; i++) {
        const char *name = names(context, i);
        if (name == NULL)
            return best;
        const bool is_start = len >= 2 && strncmp(name, word, len) == 0;
        const int distance = is_start ? 1 : edit_distance(word, name);
        if (distance < best_distance) {
            best_distance = distance;
            best = name;
        }
    }
}

static const char *option_name(const void *context, int i)
{
    const nb_opt *options = context;
    return options == NULL ? NULL : options[i].name;
}

/* ---- values ---- */

static bool is_named(const nb_opt *o, const char *name, size_t len)
{
    bool found = strlen(o->name) == len && memcmp(o->name, name, len) == 0;
    for (const char *const *also = o->also; also != NULL && *also != NULL; also++)
        found = found || (strlen(*also) == len && memcmp(*also, name, len) == 0);
    return found;
}

static const nb_opt *find_option(const nb_opt *options, const char *name, size_t len)
{
    for (const nb_opt *o = options; o != NULL && o->name != NULL; o++) {
        if (is_named(o, name, len))
            return o;
    }
    return NULL;
}

static const nb_opt *find_letter(const nb_opt *options, char letter)
{
    for (const nb_opt *o = options; o != NULL && o->name != NULL; o++) {
        if (o->letter != 0 && o->letter == letter)
            return o;
    }
    return NULL;
}

/* Digits with an optional sign, all of the text. Past int64 the nearest end, which is then
 * outside every range that is not the whole of int64. False: not a whole number. */
static bool parse_whole(const char *text, int64_t *out, bool *clipped)
{
    const char *p = text;
    if (*p == '+' || *p == '-')
        p++;
    if (*p == 0 || p[strspn(p, "0123456789")] != 0)
        return false;
    errno = 0;
    *out = strtoll(text, NULL, 10);
    *clipped = errno == ERANGE;
    return true;
}

/* A decimal number with an optional exponent: what strtod reads, without its hex, inf and nan. */
static bool parse_real(const char *text, double *out)
{
    if (*text == 0 || text[strspn(text, "0123456789+-.eE")] != 0)
        return false;
    char *end;
    *out = strtod(text, &end);
    return *end == 0 && end != text;
}

/* 4096, 512K, 4G, 1.5G, 4GiB; false when it reads like none. */
static bool parse_size(const char *text, double *out)
{
    char number[40];
    const size_t n = strspn(text, "0123456789.");
    if (n == 0 || n >= sizeof number)
        return false;
    memcpy(number, text, n);
    number[n] = 0;
    if (!parse_real(number, out))
        return false;
    const char *unit = text + n;
    static const char letters[] = "KMGT";
    double scale = 1.0;
    if (*unit != 0) {
        const char upper = *unit >= 'a' && *unit <= 'z' ? (char)(*unit - 'a' + 'A') : *unit;
        const char *at = strchr(letters, upper);
        if (at != NULL) {
            for (const char *l = letters; l <= at; l++)
                scale *= 1024.0;
            unit++;
            if (*unit == 'i')
                unit++;
        }
        if (*unit == 'B')
            unit++;
        if (*unit != 0)
            return false;
    }
    *out *= scale;
    return true;
}

/* "--threads", with the verb in front: how every message begins. */
static nb_status bad_option(nb_err *err, const nb_args *args, const nb_opt *o, const char *what)
{
    return nb_fail(err, NB_USAGE, "%s: --%s %s", args->verb->name, o->name, what);
}

static nb_status parse_choice(const nb_args *args, given *g, nb_err *err)
{
    const char *const *choices = g->opt->choices;
    char list[400];
    size_t n = 0;
    list[0] = 0;
    for (int i = 0; choices[i] != NULL; i++) {
        if (strcmp(choices[i], g->text) == 0) {
            g->text = choices[i];
            return NB_OK;
        }
        if (n + strlen(choices[i]) + 3 < sizeof list)
            n +=
                (size_t)snprintf(list + n, sizeof list - n, "%s%s", i == 0 ? "" : ", ", choices[i]);
    }
    char what[700];
    snprintf(what, sizeof what, "'%.200s': must be one of %s", g->text, list);
    return bad_option(err, args, g->opt, what);
}

static nb_status parse_value(const nb_args *args, given *g, nb_err *err)
{
    const nb_opt *o = g->opt;
    char what[400];
    bool is_number = true, in_range = true;
    double size = 0;
    switch (o->kind) {
    case NB_OPT_INT: {
        bool clipped = false;
        if (o->zero_word != NULL && strcmp(g->text, o->zero_word) == 0) {
            g->integer = 0;
            return NB_OK;
        }
        is_number = parse_whole(g->text, &g->integer, &clipped);
        in_range = !clipped && g->integer >= o->min && g->integer <= o->max;
        snprintf(what, sizeof what, "'%.200s': must be a whole number from %lld to %lld%s%s",
                 g->text, (long long)o->min, (long long)o->max, o->zero_word != NULL ? ", or " : "",
                 o->zero_word != NULL ? o->zero_word : "");
        break;
    }
    case NB_OPT_SIZE:
        is_number = parse_size(g->text, &size);
        in_range = is_number && size >= (double)o->min && size <= (double)o->max && size < 0x1p63;
        g->integer = in_range ? (int64_t)size : 0;
        snprintf(what, sizeof what,
                 "'%.200s': must be a size like 512M or 4G, from %lld to %lld bytes", g->text,
                 (long long)o->min, (long long)o->max);
        break;
    case NB_OPT_FLOAT:
        is_number = parse_real(g->text, &g->real);
        in_range = isfinite(g->real) && g->real >= o->low && g->real <= o->high;
        snprintf(what, sizeof what, "'%.200s': must be a number from %g to %g", g->text, o->low,
                 o->high);
        break;
    case NB_OPT_CHOICE:
        return parse_choice(args, g, err);
    case NB_OPT_TEXT:
        return NB_OK;
    case NB_OPT_PATH:
        if (g->text[0] != 0)
            return NB_OK;
        return bad_option(err, args, o, "'': an empty path");
    case NB_OPT_FLAG:
        break; /* parse_option never comes here with one */
    }
    return is_number && in_range ? NB_OK : bad_option(err, args, o, what);
}

/* ---- parsing ---- */

static given *find_given(const nb_args *args, const nb_opt *o)
{
    for (int i = 0; i < args->n_given; i++) {
        if (args->given[i].opt == o)
            return &args->given[i];
    }
    return NULL;
}

/* A word that cannot be a value of `o`: it looks like the next option. */
static bool looks_like_option(const nb_opt *o, const char *word)
{
    if (word[0] != '-' || word[1] == 0)
        return false;
    const bool is_number =
        o->kind == NB_OPT_INT || o->kind == NB_OPT_FLOAT || o->kind == NB_OPT_SIZE;
    return !(is_number && strchr("0123456789.", word[1]) != NULL);
}

static nb_status unknown_option(const nb_args *args, const char *word, const char *name,
                                nb_err *err)
{
    const char *near = nb_args_suggest(name, option_name, args->verb->options);
    if (near != NULL)
        return nb_fail(err, NB_USAGE, "%s: unknown option '%s'; did you mean '--%s'?",
                       args->verb->name, word, near);
    return nb_fail(err, NB_USAGE, "%s: unknown option '%s'; 'nibble %s --help' lists them",
                   args->verb->name, word, args->verb->name);
}

/* Parses the option at argv[*at]; leaves *at on its last word. */
static nb_status parse_option(nb_args *args, int argc, char *const *argv, int *at, nb_err *err)
{
    const char *word = argv[*at];
    const nb_opt *o;
    const char *value = NULL;
    if (word[1] == '-') {
        const char *equals = strchr(word, '=');
        const size_t len = equals != NULL ? (size_t)(equals - word) - 2 : strlen(word) - 2;
        o = find_option(args->verb->options, word + 2, len);
        if (o == NULL) {
            char name[WORD_MAX + 1];
            snprintf(name, sizeof name, "%.*s", len < WORD_MAX ? (int)len : WORD_MAX, word + 2);
            return unknown_option(args, word, name, err);
        }
        value = equals != NULL ? equals + 1 : NULL;
    } else {
        o = find_letter(args->verb->options, word[1]);
        if (o == NULL)
            return unknown_option(args, word, word + 1, err);
        if (word[2] != 0)
            value = word[2] == '=' ? word + 3 : word + 2;
    }
    if (!o->repeats && find_given(args, o) != NULL)
        return bad_option(err, args, o, "is given twice");
    given g = {.opt = o, .typed = true, .text = value};
    if (o->kind == NB_OPT_FLAG) {
        if (value != NULL)
            return bad_option(err, args, o, "takes no value");
    } else {
        if (value == NULL) {
            if (*at + 1 >= argc || looks_like_option(o, argv[*at + 1])) {
                char what[200];
                snprintf(what, sizeof what, "needs a value: --%s %s%s", o->name, o->value,
                         *at + 1 < argc ? " (write --option=-x for one that starts with a dash)"
                                        : "");
                return bad_option(err, args, o, what);
            }
            g.text = argv[++*at];
        }
        NB_TRY(parse_value(args, &g, err));
    }
    args->given[args->n_given++] = g;
    return NB_OK;
}

static nb_status check_operands(const nb_args *args, nb_err *err)
{
    const nb_verb *verb = args->verb;
    int least = 0, most = 0;
    for (const nb_operand *p = verb->operands; p != NULL && p->name != NULL; p++) {
        least += p->min;
        most += p->max;
        if (args->n_operands < least)
            return nb_fail(err, NB_USAGE, "%s: %s is missing (%s); try: %.*s", verb->name, p->name,
                           p->help, (int)strcspn(verb->example, "\n"), verb->example);
    }
    if (args->n_operands > most)
        return nb_fail(err, NB_USAGE, "%s: unexpected argument '%s'", verb->name,
                       args->operands[most]);
    return NB_OK;
}

/* Presets go through the same parser as what is typed. */
static nb_status add_presets(nb_args *args, nb_err *err)
{
    for (const nb_opt *o = args->verb->options; o != NULL && o->name != NULL; o++) {
        if (o->preset == NULL || find_given(args, o) != NULL)
            continue;
        given g = {.opt = o, .text = o->preset};
        NB_TRY(parse_value(args, &g, err));
        args->given[args->n_given++] = g;
    }
    return NB_OK;
}

static nb_status parse_all(nb_args *args, int argc, char *const *argv, nb_err *err)
{
    bool options_ended = false;
    for (int i = 0; i < argc; i++) {
        const char *word = argv[i];
        if (!options_ended && strcmp(word, "--") == 0)
            options_ended = true;
        else if (!options_ended && word[0] == '-' && word[1] != 0)
            NB_TRY(parse_option(args, argc, argv, &i, err));
        else
            args->operands[args->n_operands++] = word;
    }
    NB_TRY(check_operands(args, err));
    return add_presets(args, err);
}

nb_status nb_args_parse(nb_args **out, const nb_verb *verb, int argc, char *const *argv, bool *help,
                        nb_err *err)
{
    *help = false;
    for (int i = 0; i < argc && strcmp(argv[i], "--") != 0; i++)
        *help = *help || strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0;
    nb_args *args;
    NB_TRY(NB_ALLOC(&args, 1, err));
    args->verb = verb;
    int n_options = 0;
    while (verb->options != NULL && verb->options[n_options].name != NULL)
        n_options++;
    nb_status s = NB_ALLOC(&args->given, n_options + argc, err);
    if (s == NB_OK)
        s = NB_ALLOC(&args->operands, argc + 1, err);
    if (s == NB_OK && !*help)
        s = parse_all(args, argc, argv, err);
    if (s != NB_OK) {
        nb_args_free(args);
        return s;
    }
    *out = args;
    return NB_OK;
}

void nb_args_free(nb_args *args)
{
    if (args == NULL)
        return;
    nb_free(args->given);
    nb_free(args->operands);
    nb_free(args);
}

/* ---- what was given ---- */

static const nb_opt *the_option(const nb_args *args, const char *name)
{
    const nb_opt *o = find_option(args->verb->options, name, strlen(name));
    assert(o != NULL);
    return o;
}

static const given *lookup(const nb_args *args, const char *name, nb_opt_kind kind)
{
    const nb_opt *o = the_option(args, name);
    const bool is_text =
        kind == NB_OPT_TEXT && (o->kind == NB_OPT_PATH || o->kind == NB_OPT_CHOICE);
    assert(o->kind == kind || is_text || (kind == NB_OPT_INT && o->kind == NB_OPT_SIZE));
    return find_given(args, o);
}

bool nb_args_known(const nb_args *args, const char *name)
{
    return find_option(args->verb->options, name, strlen(name)) != NULL;
}

bool nb_args_given(const nb_args *args, const char *name)
{
    const given *g = find_given(args, the_option(args, name));
    return g != NULL && g->typed;
}

bool nb_args_flag(const nb_args *args, const char *name)
{
    return lookup(args, name, NB_OPT_FLAG) != NULL;
}

int64_t nb_args_int(const nb_args *args, const char *name)
{
    const given *g = lookup(args, name, NB_OPT_INT);
    return g == NULL ? 0 : g->integer;
}

double nb_args_float(const nb_args *args, const char *name)
{
    const given *g = lookup(args, name, NB_OPT_FLOAT);
    return g == NULL ? 0.0 : g->real;
}

const char *nb_args_text(const nb_args *args, const char *name)
{
    const given *g = lookup(args, name, NB_OPT_TEXT);
    return g == NULL ? NULL : g->text;
}

int nb_args_n_values(const nb_args *args, const char *name)
{
    const nb_opt *o = the_option(args, name);
    int n = 0;
    for (int i = 0; i < args->n_given; i++)
        n += args->given[i].opt == o;
    return n;
}

const char *nb_args_value(const nb_args *args, const char *name, int i)
{
    const nb_opt *o = the_option(args, name);
    for (int g = 0; g < args->n_given; g++) {
        if (args->given[g].opt == o && i-- == 0)
            return args->given[g].text;
    }
    return NULL;
}

int nb_args_n_operands(const nb_args *args)
{
    return args->n_operands;
}

const char *nb_args_operand(const nb_args *args, int i)
{
    return i < args->n_operands ? args->operands[i] : NULL;
}
