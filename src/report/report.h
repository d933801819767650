/* Tables and plots from numbers: results of `nibble eval` and `nibble bench` become one table, as
 * text, Markdown, or a self-contained HTML page. No model code.
 *
 * The input is JSON lines: one object a line, each with a "name". Objects with the same name are
 * one row; a later value replaces an earlier one. Keys that are known become columns:
 *
 *   file_bytes (or bytes)  bpw  perplexity  perplexity_se  kl_mean  kl_mean_se  kl_median  kl_p99
 *   kl_max  top1 (0 to 1)  top1_se  prefill_tok_s  decode_tok_s  load_s  peak_rss_bytes  compute
 *   kv  protocol  n_tokens  logits_hash
 *
 * A line with a "task" (acc, acc_norm, acc_se) adds columns named after the task. Other keys are
 * ignored. Everything that comes from a file is escaped for where it is written. */
#ifndef NB_REPORT_REPORT_H
#define NB_REPORT_REPORT_H

#include "base/bytes.h"

typedef struct nb_report nb_report;

nb_status nb_report_new(nb_report **out, nb_err *err);
void nb_report_free(nb_report *report); /* NULL is fine */

/* Adds the lines of text[0, len); `name` is for messages ("results.jsonl:3: ..."). Blank lines
 * are skipped. NB_DATA for a line that is no object, has no name, or a number of another type;
 * NB_LIMIT past 1,000 rows or 20 tasks. After a failure the lines before it were added. */
nb_status nb_report_add(nb_report *report, const char *text, size_t len, const char *name,
                        nb_err *err);
/* Whether text[0, len) is the nibble-report.json of a quantized model: one object, over many lines.
 */
bool nb_report_is_artefact(const char *text, size_t len);
/* Adds one: a row, called `label`, with its tasks, and a section of the page. Messages name `name`.
 * NB_DATA for what it may not hold, NB_LIMIT past 64 of them. */
nb_status nb_report_add_artefact(nb_report *report, const char *text, size_t len, const char *name,
                                 const char *label, nb_err *err);
int64_t nb_report_n_rows(const nb_report *report);

/* Each appends the whole report. `title` is text, not markup. */
nb_status nb_report_text(const nb_report *report, nb_buf *out, nb_err *err);
nb_status nb_report_markdown(const nb_report *report, nb_buf *out, nb_err *err);
nb_status nb_report_html(const nb_report *report, const char *title, nb_buf *out, nb_err *err);

#endif
