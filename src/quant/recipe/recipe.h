/* A recipe: rules in text that say which weight gets which format and by which method.
 *
 *   # comments and empty lines are skipped
 *   * = W4A16:g32 method gptq:act-order
 *   model.layers.*.mlp.down_proj = W8A16 method rtn because "KL +0.0031 at 4 bits"
 *   model.layers.{0,29}.* = keep
 *
 * A rule is PATTERN = SCHEME [method METHOD] [because "REASON"], or PATTERN = keep [because ...]:
 * the weight stays as it is. Patterns (pattern.h) are over the names that Hugging Face folders
 * have, without ".weight". Of the rules that match a weight the last one wins; a weight that none
 * matches is kept.
 *
 * Rules are about the linear layers of the blocks. Embedding and head are reached only by rules
 * that name them without * ? { }, and only in a GGUF; norms and biases by none. */
#ifndef NB_QUANT_RECIPE_RECIPE_H
#define NB_QUANT_RECIPE_RECIPE_H

#include "base/arena.h"
#include "base/bytes.h"
#include "quant/encode/quantizer.h"
#include "quant/recipe/scheme.h"

#define NB_RECIPE_MAX_BYTES  ((size_t)16 << 20)
#define NB_RECIPE_MAX_RULES  100000
#define NB_RECIPE_MAX_REASON 400

typedef struct {
    const char *pattern;
    const nb_scheme *scheme; /* NULL: keep */
    const nb_method *method; /* NULL: keep */
    const char *because;     /* NULL: no reason given */
    int64_t line;            /* in the file; 0: the rule was not read from one */
} nb_rule;

/* `{0}` is empty. Rules that say the same have the same scheme and method, by pointer. */
typedef struct {
    const char *name; /* of the file, for messages; NULL: none */
    nb_rule *rule;
    int64_t n, cap;
    nb_arena arena;
} nb_recipe;

void nb_recipe_free(nb_recipe *r);

/* Appends a rule; texts are copied. `scheme` NULL: keep. NB_USAGE: the pattern, or a reason that
 * has control characters or is too long. */
nb_status nb_recipe_add(nb_recipe *r, const char *pattern, const nb_scheme *scheme,
                        const nb_method *method, const char *because, nb_err *err);

/* Reads rules from text[0, len) into an empty recipe. `method` is that of rules that name none.
 * NB_USAGE names `name` and the line. */
nb_status nb_recipe_parse(nb_recipe *r, const char *text, size_t len, const char *name,
                          const nb_method *method, nb_err *err);
/* The canonical text: a line a rule, methods always said, nothing in it that depends on how the
 * rules were written. Reading it gives the same rules. */
nb_status nb_recipe_print(const nb_recipe *r, nb_buf *out, nb_err *err);

/* The rule that decides about a weight; NULL: none, it is kept. */
const nb_rule *nb_recipe_find(const nb_recipe *r, const nb_weight *w);
/* The first rule that is not `keep`; NULL: all are. */
const nb_rule *nb_recipe_main(const nb_recipe *r);

/* "r.txt:3: " before the message, or the pattern where the rule has no line. Returns err's status.
 */
nb_status nb_rule_context(const nb_recipe *r, const nb_rule *rule, nb_err *err);

/* NB_USAGE: a rule whose scheme the container does not hold, two that need different ones, or a
 * recipe that keeps everything. */
nb_status nb_recipe_check_container(const nb_recipe *r, nb_store_kind kind, nb_err *err);
/* NB_USAGE: a rule that matches no weight of the model. */
nb_status nb_recipe_check_matches(const nb_recipe *r, const nb_store *store, nb_err *err);

#endif
