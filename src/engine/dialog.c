/* See dialog.h. */
#include "engine/dialog.h"

#include <string.h>

static bool has_role(const nb_message *m, const char *role)
{
    return strcmp(m->role, role) == 0;
}

nb_status nb_dialog_init(nb_dialog *d, nb_store *store, const nb_tokenizer *tokenizer, nb_err *err)
{
    *d = (nb_dialog){.tokenizer = tokenizer};
    const char *text;
    size_t len;
    NB_TRY(nb_store_chat_template(store, &text, &len, err));
    if (text == NULL)
        return nb_fail(err, NB_UNSUPPORTED, "%s: the model has no chat template",
                       nb_store_path(store));
    if (nb_jinja_parse(&d->template_, text, len, err) != NB_OK)
        return nb_context(err, "%s: chat template", nb_store_path(store));
    return NB_OK;
}

void nb_dialog_free(nb_dialog *d)
{
    for (int64_t i = 0; i < d->n; i++)
        nb_free((void *)(uintptr_t)d->messages[i].content);
    nb_free(d->messages);
    nb_jinja_free(d->template_);
    *d = (nb_dialog){0};
}

/* Inserts a copy of the text before message `at`; the role is static. */
static nb_status insert(nb_dialog *d, int64_t at, const char *role, const char *text, size_t len,
                        nb_err *err)
{
    if (d->n == d->cap) {
        const int64_t cap = d->cap == 0 ? 16 : 2 * d->cap;
        nb_message *messages;
        NB_TRY(NB_ALLOC(&messages, cap, err));
        for (int64_t i = 0; i < d->n; i++)
            messages[i] = d->messages[i];
        nb_free(d->messages);
        d->messages = messages;
        d->cap = cap;
    }
    char *copy;
    NB_TRY(NB_ALLOC(&copy, len + 1, err));
    memcpy(copy, text, len);
    memmove(d->messages + at + 1, d->messages + at, (size_t)(d->n - at) * sizeof *d->messages);
    d->messages[at] = (nb_message){.role = role, .content = copy, .len = len};
    d->n++;
    return NB_OK;
}

/* Removes messages [from, to). */
static void erase(nb_dialog *d, int64_t from, int64_t to)
{
    for (int64_t i = from; i < to; i++)
        nb_free((void *)(uintptr_t)d->messages[i].content);
    if (to < d->n)
        memmove(d->messages + from, d->messages + to, (size_t)(d->n - to) * sizeof *d->messages);
    d->n -= to - from;
}

static int64_t first_turn(const nb_dialog *d)
{
    return d->n > 0 && has_role(&d->messages[0], "system") ? 1 : 0;
}

nb_status nb_dialog_system(nb_dialog *d, const char *text, nb_err *err)
{
    const int64_t old = first_turn(d);
    if (text != NULL)
        NB_TRY(insert(d, 0, "system", text, strlen(text), err));
    if (old == 1)
        erase(d, text != NULL ? 1 : 0, text != NULL ? 2 : 1);
    return NB_OK;
}

void nb_dialog_clear(nb_dialog *d)
{
    erase(d, first_turn(d), d->n);
}

bool nb_dialog_drop_oldest(nb_dialog *d)
{
    const int64_t first = first_turn(d);
    for (int64_t i = first + 1; i < d->n; i++) {
        if (has_role(&d->messages[i], "user")) {
            erase(d, first, i);
            return true;
        }
    }
    return false;
}

nb_status nb_dialog_encode(const nb_dialog *d, nb_tokens *out, nb_err *err)
{
    return nb_chat_encode(d->tokenizer, d->template_, d->messages, d->n, true, out, err);
}

typedef struct {
    nb_dialog *dialog;
    int64_t n_dropped;
} dropping;

static nb_status drop_turns(void *context, nb_tokens *prompt, bool *shorter, nb_err *err)
{
    dropping *drop = context;
    const int64_t before = prompt->n;
    nb_tokens ids = {0};
    nb_status s = NB_OK;
    /* A template may write what is left at greater length: go on until it is shorter. */
    while (s == NB_OK && !*shorter && nb_dialog_drop_oldest(drop->dialog)) {
        drop->n_dropped++;
        ids.n = 0;
        s = nb_dialog_encode(drop->dialog, &ids, err);
        *shorter = s == NB_OK && ids.n < before;
    }
    if (!*shorter) {
        nb_tokens_free(&ids);
        return s;
    }
    nb_tokens_free(prompt);
    *prompt = ids;
    return NB_OK;
}

nb_status nb_dialog_answer(nb_dialog *d, nb_generator *g, const char *text, size_t len,
                           nb_ctx_policy policy, const nb_generate_options *options,
                           nb_generation *out, int64_t *n_dropped, nb_err *err)
{
    dropping drop = {.dialog = d};
    nb_tokens prompt = {0};
    nb_generation answer = {0};
    NB_TRY(insert(d, d->n, "user", text, len, err));
    nb_status s = nb_dialog_encode(d, &prompt, err);
    if (s == NB_OK)
        s = nb_generate(g, &prompt, options, policy == NB_CTX_STOP ? NULL : drop_turns, &drop,
                        &answer, err);
    nb_tokens_free(&prompt);
    if (s == NB_OK)
        s = insert(d, d->n, "assistant", answer.text, answer.text_len, err);
    if (s != NB_OK) {
        nb_generation_free(&answer);
        erase(d, d->n - 1, d->n);
        return s;
    }
    *out = answer;
    *n_dropped = drop.n_dropped;
    return NB_OK;
}
