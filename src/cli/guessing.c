/* See guessing.h. */
#include "cli/guessing.h"

#include <assert.h>
#include <string.h>

static_assert(NB_DRAFT_TOKENS == 6, "--help says so");

/* As users of llama.cpp and vLLM know them. */
const char *const nb_draft_model_names[] = {"model-draft", "speculative-model", NULL};
const char *const nb_draft_tokens_names[] = {"draft-max", "num-speculative-tokens", NULL};

static nb_status read_ngram(nb_guessing *g, const char *how, nb_err *err)
{
    const char *k = strncmp(how, "ngram:", 6) == 0 ? how + 6 : "";
    if (k[0] >= '0' && k[0] <= '9' && (k[1] == 0 || (k[1] >= '0' && k[1] <= '9' && k[2] == 0)))
        g->n = k[1] == 0 ? k[0] - '0' : 10 * (k[0] - '0') + k[1] - '0';
    if (g->n < 1 || g->n > NB_MAX_GUESS)
        return nb_fail(err, NB_USAGE, "--speculate: '%s' is not ngram:K with K from 1 to %d", how,
                       NB_MAX_GUESS);
    return NB_OK;
}

nb_status nb_guessing_read(nb_guessing *g, const nb_args *args, nb_err *err)
{
    const char *how = nb_args_text(args, "speculate"), *path = nb_args_text(args, "draft-model");
    if (how != NULL && path != NULL)
        return nb_fail(err, NB_USAGE, "--speculate and --draft-model: give one of them");
    if (path == NULL && nb_args_given(args, "draft-tokens"))
        return nb_fail(err, NB_USAGE, "--draft-tokens belongs to --draft-model");
    if (how != NULL)
        return read_ngram(g, how, err);
    if (path != NULL)
        g->n = nb_args_given(args, "draft-tokens") ? (int)nb_args_int(args, "draft-tokens")
                                                   : NB_DRAFT_TOKENS;
    return NB_OK;
}

nb_status nb_guessing_open(nb_guessing *g, const nb_args *args, const nb_runtime *rt,
                           const nb_opened *target, nb_out *out, nb_err *err)
{
    const char *path = nb_args_text(args, "draft-model");
    if (path == NULL)
        return NB_OK;
    NB_TRY(nb_opened_open(&g->draft, rt, path, nb_compute_option(args), target->model.n_ctx, true,
                          err));
    g->has_draft = true;
    nb_opened_warn(&g->draft, out);
    if (nb_draft_check(target->tokenizer, g->draft.tokenizer, err) != NB_OK)
        return nb_context(err, "%s", path);
    return NB_OK;
}

void nb_guessing_close(nb_guessing *g)
{
    nb_opened_close(&g->draft);
    *g = (nb_guessing){0};
}
