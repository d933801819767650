/* Presets: the mixtures of K-quants that users of llama.cpp know by name, as recipes. Each is one
 * format for most weights and rules for those that need more bits, which depend on the number of
 * layers and of heads; so a preset becomes a recipe once the model is known. */
#ifndef NB_QUANT_RECIPE_PRESET_H
#define NB_QUANT_RECIPE_PRESET_H

#include "model/config.h"
#include "quant/recipe/recipe.h"

typedef struct nb_preset {
    const char *name;
    uint32_t file_type; /* general.file_type of such files (formats.md 8.7) */
    const struct nb_preset_rule *rules;
    int n_rules;
    const char *main; /* scheme of what no rule names */
} nb_preset;

/* All presets, ending with one that has no name. */
extern const nb_preset nb_presets[];

/* Letters may be of either case; NULL: none has this name. */
const nb_preset *nb_preset_by_name(const char *name);

/* Refuses what is no GGUF, and says what comes nearest. */
nb_status nb_preset_check_container(const nb_preset *preset, nb_store_kind kind, nb_err *err);

/* Fills an empty recipe with the rules for a model; every one of them has this method. */
nb_status nb_preset_recipe(const nb_preset *preset, const nb_config *config,
                           const nb_method *method, nb_recipe *out, nb_err *err);

#endif
