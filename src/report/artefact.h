/* What a quantized model says of itself: nibble-report.json, read into numbers and written as a
 * section of the page. Every key is optional but those that make it one: nibble, source, scheme,
 * method. Types are checked, texts are taken as texts. */
#ifndef NB_REPORT_ARTEFACT_H
#define NB_REPORT_ARTEFACT_H

#include "base/arena.h"
#include "base/json.h"

#define NB_ARTEFACT_KINDS      7 /* q, k, v, o, gate, up, down */
#define NB_ARTEFACT_MAX_LAYERS 4096

extern const char *const nb_artefact_kinds[NB_ARTEFACT_KINDS];

/* A linear layer. What the report does not say is NAN, -1 or NULL. */
typedef struct {
    const char *name, *format, *note;
    int64_t layer; /* of its name */
    int kind;      /* of nb_artefact_kinds */
    double params, bytes, loss, held_out_loss, seconds;
    double rms_error;    /* of the weights */
    double predicted_kl; /* by the guide */
    double coverage;     /* how far held-out inputs are from the rest: mean |ln| of the squares */
} nb_artefact_linear;

typedef struct {
    const char *what, *text;
} nb_artefact_line;

/* A task that the original and the quantized model have answered. NAN: not said. */
typedef struct {
    const char *name;
    double n; /* items */
    double acc, acc_se, acc_norm, acc_norm_se;
    double base_acc, base_acc_se, base_acc_norm, base_acc_norm_se;
    double flips, lost, won; /* answers that changed; right ones that went and came */
} nb_artefact_task;

typedef struct {
    const char *name;       /* what a table calls it */
    nb_artefact_line *head; /* [n_head] facts: source, scheme, hashes, ... */
    int64_t n_head;
    nb_artefact_line *notes; /* [n_notes] notes, and reasons why something is not as the rest */
    int64_t n_notes;
    nb_artefact_linear *linears; /* [n_linears] */
    int64_t n_linears;
    nb_artefact_task *tasks; /* [n_tasks] */
    int64_t n_tasks;
    double *layer_kl; /* [n_layers]: of the block alone; NAN: not measured */
    int64_t n_layers; /* of what is known by layer */
    double kl_mean, floor_kl;
    /* Why there is no evaluation, or there are no tasks; NULL: there are, or no word of it. */
    const char *left_out, *tasks_left_out;
} nb_artefact;

/* True for an object that says it is one. */
bool nb_artefact_is(const json_t *object);
/* Everything lives in the arena or in `object`. NB_DATA names the key. */
nb_status nb_artefact_read(nb_artefact *out, nb_arena *arena, const json_t *object, nb_err *err);

/* Appends the section: facts, tasks, notes, plots by layer, the table of linear layers. */
nb_status nb_artefact_html(const nb_artefact *a, nb_buf *out, nb_err *err);

#endif
