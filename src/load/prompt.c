/* See prompt.h. */
#include "load/prompt.h"

#include "base/rng.h"

#include <math.h>
#include <string.h>

static const char *const all_words[] = {
    "the",     "of",      "and",     "to",      "in",       "is",        "was",     "for",
    "on",      "that",    "with",    "as",      "by",       "at",        "from",    "his",
    "it",      "an",      "are",     "were",    "which",    "this",      "be",      "or",
    "has",     "had",     "first",   "one",     "their",    "its",       "new",     "after",
    "but",     "who",     "not",     "they",    "have",     "her",       "she",     "two",
    "been",    "other",   "when",    "there",   "all",      "during",    "into",    "school",
    "time",    "may",     "years",   "more",    "most",     "only",      "over",    "city",
    "some",    "world",   "would",   "where",   "later",    "up",        "such",    "used",
    "many",    "can",     "state",   "about",   "national", "out",       "known",   "university",
    "united",  "then",    "made",    "between", "three",    "under",     "former",  "part",
    "season",  "team",    "year",    "work",    "through",  "both",      "war",     "life",
    "film",    "people",  "since",   "family",  "before",   "name",      "high",    "music",
    "well",    "against", "number",  "house",   "while",    "day",       "long",    "game",
    "group",   "members", "second",  "back",    "area",     "early",     "several", "him",
    "end",     "you",     "born",    "being",   "until",    "called",    "same",    "what",
    "home",    "company", "so",      "series",  "became",   "any",       "each",    "south",
    "north",   "album",   "however", "general", "town",     "following", "own",     "based",
    "around",  "best",    "system",  "four",    "west",     "due",       "major",   "public",
    "village", "water",   "without", "found",   "book",     "line",      "east",    "small",
    "great",   "local",   "form",    "much",    "these",    "law",       "way",     "power",
    "now",     "road",    "church",  "case",    "old",      "like",      "will",    "place",
    "than",    "left",    "set",     "party",   "last",     "black",     "white",   "red",
    "play",    "body",    "side",    "service", "air",      "land",      "king",    "court",
    "large",   "common",  "field",   "station", "point",    "within",    "member",  "released",
    "history", "men",     "women",   "young",   "children", "language",  "country", "government",
    "office",  "late",    "off",     "down",    "order",    "just",      "very",    "good",
    "head",    "live",    "right",
};

#define N_WORDS      ((int)(sizeof all_words / sizeof *all_words))
#define WORDS_ENOUGH 16

/* Streams of the random numbers; those of arrivals begin at 1 << 60. */
#define LENGTHS  ((uint64_t)2 << 60)
#define PREFIXES ((uint64_t)3 << 60)
#define BODIES   ((uint64_t)4 << 60)

void nb_words_init(nb_words *words)
{
    *words = (nb_words){.n = N_WORDS, .tokens_per_word = 1};
    for (int i = 0; i < N_WORDS; i++)
        words->of[i] = all_words[i];
}

/* ---- words that are one token ---- */

typedef struct {
    nb_count_fn *count;
    void *context;
    const nb_words *words;
    int64_t n_special;
    int64_t n_first; /* tokens of the word that stands in front, which may differ at the start */
    int64_t n_tokens;
    nb_words *kept;
} fitting;

/* Tokens of "the", then the words [from, to), then again "the". */
static nb_status count_words(const fitting *f, int from, int to, int64_t *n, nb_err *err)
{
    nb_buf text = {0};
    nb_status s = nb_buf_text(&text, "the", err);
    for (int i = from; i < to && s == NB_OK; i++)
        s = nb_buf_format(&text, err, " %s", f->words->of[i]);
    if (s == NB_OK)
        s = nb_buf_put(&text, " the", 5, err);
    if (s == NB_OK)
        s = f->count(f->context, (const char *)text.data, n, err);
    nb_buf_free(&text);
    return s;
}

/* As many tokens as words: each of them is one, since none can be less. Else the halves are asked
 * for, down to single words. */
static nb_status fit(fitting *f, int from, int to, nb_err *err)
{
    int64_t n = 0;
    NB_TRY(count_words(f, from, to, &n, err));
    n -= f->n_special + f->n_first;
    if (to - from == N_WORDS)
        f->n_tokens = n;
    if (n == to - from) {
        for (int i = from; i < to; i++)
            f->kept->of[f->kept->n++] = f->words->of[i];
        return NB_OK;
    }
    if (to - from == 1)
        return NB_OK;
    const int half = from + (to - from) / 2;
    NB_TRY(fit(f, from, half, err));
    return fit(f, half, to, err);
}

nb_status nb_words_fit(nb_words *words, nb_count_fn *count, void *context, nb_err *err)
{
    nb_words kept = {.tokens_per_word = 1, .exact = true};
    nb_words all;
    nb_words_init(&all);
    fitting f = {.count = count, .context = context, .words = &all, .kept = &kept};
    int64_t none = 0, two = 0, three = 0;
    NB_TRY(count(context, "", &none, err));
    NB_TRY(count(context, "the the", &two, err));
    NB_TRY(count(context, "the the the", &three, err));
    if (none < 0 || two <= none || three <= two)
        return nb_fail(err, NB_DATA,
                       "the server counts %lld, %lld and %lld tokens in 0, 2 and 3 words",
                       (long long)none, (long long)two, (long long)three);
    f.n_special = none;
    f.n_first = two - none;
    NB_TRY(fit(&f, 0, N_WORDS, err));
    kept.n_special = all.n_special = none;
    /* The first word of a prompt has no space before it and should be a token nevertheless. */
    kept.exact = f.n_first == 2;
    all.tokens_per_word = (double)f.n_tokens / N_WORDS;
    if (!(all.tokens_per_word > 0))
        all.tokens_per_word = 1;
    *words = kept.n >= WORDS_ENOUGH && kept.exact ? kept : all;
    return NB_OK;
}

/* ---- prompts ---- */

/* Even in [0, n): the upper bits of a product, as good as 53 bits allow. */
static int64_t pick(uint64_t seed, uint64_t stream, uint64_t index, int64_t n)
{
    return (int64_t)(nb_rng_uniform(seed, stream, index) * (double)n);
}

static int64_t draw_length(const nb_prompt_plan *plan, nb_lengths of, int64_t i, uint64_t which)
{
    return of.low + pick(plan->seed, LENGTHS | (uint64_t)i, which, of.high - of.low + 1);
}

int64_t nb_prompt_input_len(const nb_prompt_plan *plan, int64_t i)
{
    return plan->prefix_len + draw_length(plan, plan->input, i, 0);
}

int64_t nb_prompt_output_len(const nb_prompt_plan *plan, int64_t i)
{
    return draw_length(plan, plan->output, i, 1);
}

static nb_status put_words(nb_buf *out, const nb_words *words, uint64_t seed, uint64_t stream,
                           int64_t n, nb_err *err)
{
    for (int64_t j = 0; j < n; j++) {
        const char *word = words->of[pick(seed, stream, (uint64_t)j, words->n)];
        if (out->len > 0)
            NB_TRY(nb_buf_put(out, " ", 1, err));
        NB_TRY(nb_buf_text(out, word, err));
    }
    return NB_OK;
}

nb_status nb_prompt_text(nb_buf *out, const nb_prompt_plan *plan, const nb_words *words, int64_t i,
                         nb_err *err)
{
    const int64_t n_tokens = nb_prompt_input_len(plan, i) - words->n_special;
    const int64_t n_prefix = (int64_t)rint((double)plan->prefix_len / words->tokens_per_word);
    int64_t n_body = (int64_t)rint((double)n_tokens / words->tokens_per_word) - n_prefix;
    if (n_body < 1) /* what the server adds fills a short prompt alone */
        n_body = 1;
    const uint64_t which = plan->n_prefixes > 0 ? (uint64_t)(i % plan->n_prefixes) : 0;
    NB_TRY(put_words(out, words, plan->seed, PREFIXES | which, n_prefix, err));
    return put_words(out, words, plan->seed, BODIES | (uint64_t)i, n_body, err);
}
