/* See recipe_options.h. */
#include "cli/recipe_options.h"

#include "base/file.h"

#include <string.h>

static nb_status read_file(nb_recipe_flags *f, const char *path, nb_err *err)
{
    nb_buf text = {0};
    nb_status s = nb_file_slurp(&text, path, NB_RECIPE_MAX_BYTES, err);
    if (s == NB_OK)
        s = nb_recipe_parse(&f->recipe, (const char *)text.data, text.len, path, f->method, err);
    nb_buf_free(&text);
    return s;
}

/* A scheme alone is the recipe of one rule, a preset that of several. */
static nb_status one_rule(nb_recipe_flags *f, const char *name, nb_err *err)
{
    nb_scheme scheme;
    f->preset = nb_preset_by_name(name);
    if (f->preset != NULL)
        return NB_OK;
    NB_TRY(nb_scheme_parse(&scheme, name, err));
    return nb_recipe_add(&f->recipe, "*", &scheme, f->method, NULL, err);
}

/* At most one way may be given. */
static nb_status the_way(const nb_args *args, const char **way, nb_err *err)
{
    static const char *const ways[] = {"scheme", "recipe", "bpw", "size", "max-kl"};
    *way = NULL;
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        if (!nb_args_given(args, ways[i]))
            continue;
        if (*way != NULL)
            return nb_fail(err, NB_USAGE,
                           "--%s and --%s both say what becomes of the weights: one "
                           "of them is enough",
                           *way, ways[i]);
        *way = ways[i];
    }
    if (*way == NULL)
        return nb_fail(err, NB_USAGE,
                       "no scheme given: --scheme W4A16, for example; or --recipe FILE, --bpw, "
                       "--size, --max-kl");
    return NB_OK;
}

static nb_status read(nb_recipe_flags *f, const nb_args *args, nb_err *err)
{
    const char *way;
    NB_TRY(the_way(args, &way, err));
    f->mix = strcmp(way, "bpw") == 0      ? NB_MIX_BPW
             : strcmp(way, "size") == 0   ? NB_MIX_SIZE
             : strcmp(way, "max-kl") == 0 ? NB_MIX_KL
                                          : NB_MIX_NONE;
    if (f->mix == NB_MIX_NONE && (f->candidates != NULL || nb_args_given(args, "mix-tokens")))
        return nb_fail(err, NB_USAGE, "--%s is for mixtures: --bpw, --size or --max-kl",
                       f->candidates != NULL ? "candidates" : "mix-tokens");
    if (f->print && f->mix == NB_MIX_NONE && !nb_args_flag(args, "dry-run"))
        return nb_fail(err, NB_USAGE,
                       "--print-recipe goes with --dry-run; a run keeps its rules in the report");
    if (strcmp(way, "scheme") == 0)
        return one_rule(f, nb_args_text(args, way), err);
    return strcmp(way, "recipe") == 0 ? read_file(f, nb_args_text(args, way), err) : NB_OK;
}

nb_status nb_recipe_flags_read(nb_recipe_flags *f, const nb_args *args, const nb_method *method,
                               nb_err *err)
{
    *f = (nb_recipe_flags){.print = nb_args_flag(args, "print-recipe"),
                           .bpw = nb_args_float(args, "bpw"),
                           .max_kl = nb_args_float(args, "max-kl"),
                           .size = nb_args_int(args, "size"),
                           .n_tokens = nb_args_int(args, "mix-tokens"),
                           .candidates = nb_args_text(args, "candidates"),
                           .method = method};
    const nb_status s = read(f, args, err);
    if (s != NB_OK)
        nb_recipe_flags_free(f);
    return s;
}

nb_status nb_recipe_flags_check(const nb_recipe_flags *f, nb_store_kind to, nb_err *err)
{
    if (f->mix != NB_MIX_NONE)
        return NB_OK;
    return f->preset != NULL ? nb_preset_check_container(f->preset, to, err)
                             : nb_recipe_check_container(&f->recipe, to, err);
}

nb_status nb_recipe_flags_resolve(nb_recipe_flags *f, const nb_config *config, nb_err *err)
{
    return f->preset != NULL ? nb_preset_recipe(f->preset, config, f->method, &f->recipe, err)
                             : NB_OK;
}

void nb_recipe_flags_free(nb_recipe_flags *f)
{
    nb_recipe_free(&f->recipe);
    *f = (nb_recipe_flags){0};
}
