/* From a budget to a recipe: measures what each layer costs in each candidate format, lets the
 * allocation choose, measures the choice, and writes it down as rules with reasons. */
#ifndef NB_CLI_MIXING_H
#define NB_CLI_MIXING_H

#include "cli/calibrating.h"
#include "cli/recipe_options.h"

/* What was done, for nibble-report.json; NULL: nothing was mixed. */
typedef struct {
    json_t *report;
} nb_mixing;

/* Fills f->recipe, for the target of `request`. What is measured stays in OUT.nibble-mix, from
 * where the same command goes on. */
nb_status nb_mixing_run(nb_mixing *m, nb_recipe_flags *f, const nb_calibrating_flags *flags,
                        const nb_plan_request *request, nb_store *store, const nb_runtime *rt,
                        const char *output, nb_out *out, nb_err *err);
/* The output stands: the folder goes. */
void nb_mixing_done(const char *output);
void nb_mixing_free(nb_mixing *m);

#endif
