/* Inside report: rows, the columns that they can have, and how a value is written. */
#ifndef NB_REPORT_TABLE_H
#define NB_REPORT_TABLE_H

#include "base/arena.h"
#include "report/artefact.h"
#include "report/report.h"

typedef enum {
    COLUMN_TEXT,
    COLUMN_BYTES,   /* shown in MB (10^6) */
    COLUMN_NUMBER,  /* `digits` after the point */
    COLUMN_SMALL,   /* spans decades: `digits` significant ones */
    COLUMN_PERCENT, /* a share of 1 */
    COLUMN_COUNT
} nb_column_kind;

typedef struct {
    const char *key, *title, *unit;
    const char *meaning; /* one sentence, for a tooltip */
    nb_column_kind kind;
    int digits;
    const char *error_key; /* a standard error that belongs to the value; NULL: none */
    bool detail;           /* for the second table */
} nb_column;

#define NB_REPORT_MAX_ROWS      1000
#define NB_REPORT_MAX_COLUMNS   64
#define NB_REPORT_MAX_ARTEFACTS 64

typedef struct {
    bool present;
    double number;
    const char *text;
} nb_value;

typedef struct {
    const char *name;
    nb_value value[NB_REPORT_MAX_COLUMNS]; /* by column */
    nb_value error[NB_REPORT_MAX_COLUMNS];
} nb_row;

struct nb_report {
    nb_arena arena;
    nb_column columns[NB_REPORT_MAX_COLUMNS];
    int n_columns;
    int n_tasks;
    nb_row **rows;
    int64_t n_rows;
    nb_artefact artefacts[NB_REPORT_MAX_ARTEFACTS];
    json_t *sources[NB_REPORT_MAX_ARTEFACTS]; /* where the artefacts' texts are */
    int64_t n_artefacts;
};

/* The index of a column; -1: no such key. */
int nb_report_column(const nb_report *r, const char *key);
/* Whether any row has a value there: empty columns are not shown. */
bool nb_report_column_used(const nb_report *r, int column);
/* A row's value as a reader sees it; "" when it has none. Not escaped. */
typedef struct {
    char text[160];
} nb_shown;
nb_shown nb_report_show(const nb_report *r, const nb_row *row, int column);

/* Appends text with the characters escaped that mean something in HTML (attributes included) and
 * control characters replaced. What is not UTF-8 becomes U+FFFD. */
nb_status nb_html_text(nb_buf *out, const char *text, nb_err *err);

/* svg.c: a plot of size against KL, and bars of a column; nothing when there is nothing to show. */
nb_status nb_svg_scatter(const nb_report *r, int x_column, int y_column, nb_buf *out, nb_err *err);
nb_status nb_svg_bars(const nb_report *r, int column, nb_buf *out, nb_err *err);

#endif
