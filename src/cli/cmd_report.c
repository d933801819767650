/* nibble report: results side by side, as a table or as one HTML page. */
#include "cli/runtime.h"
#include "cli/verbs.h"
#include "base/file.h"
#include "report/report.h"

#include <stdio.h>
#include <string.h>

#define RESULTS_LIMIT ((size_t)64 << 20)

static const nb_opt report_options[] = {
    NB_OPT_ROW_OUTPUT("write a self-contained HTML page (- for standard output)"),
    {.name = "markdown", .kind = NB_OPT_FLAG, .help = "print the table as Markdown"},
    {.name = "title",
     .kind = NB_OPT_TEXT,
     .value = "TEXT",
     .preset = "nibble report",
     .help = "heading of the page"},
    NB_OPT_ROW_FORCE,
    NB_OPT_ROW_JSON,
    NB_OPT_ROW_QUIET,
    {0},
};

static const char artefact_name[] = "nibble-report.json";

static bool ends_with(const char *text, const char *end)
{
    const size_t n = strlen(text), n_end = strlen(end);
    return n >= n_end && strcmp(text + n - n_end, end) == 0;
}

/* A quantized model stands for the report that lies in its folder, or beside its file; `label` is
 * then what the model is called. Zero-terminated. */
static nb_status find_report(const char *path, nb_buf *file, char *label, size_t size, nb_err *err)
{
    const bool folder = nb_path_is_dir(path), gguf = ends_with(path, ".gguf");
    NB_TRY(nb_buf_text(file, path, err));
    if (folder || gguf)
        NB_TRY(nb_buf_format(file, err, "%s%s", folder ? "/" : ".", artefact_name));
    NB_TRY(nb_buf_u8(file, 0, err));
    if (folder || gguf || !ends_with(path, artefact_name)) {
        nb_path_label(path, label, size);
        return NB_OK;
    }
    /* FOLDER/nibble-report.json, or X.gguf.nibble-report.json */
    char model[4096];
    const size_t n = strlen(path) - strlen(artefact_name);
    snprintf(model, sizeof model, "%.*s", (int)(n > 0 ? n - 1 : 0), path);
    nb_path_label(model[0] != 0 ? model : path, label, size);
    return NB_OK;
}

static nb_status add_file(nb_report *report, const char *path, nb_err *err)
{
    nb_buf file = {0}, text = {0};
    char label[256];
    nb_status s = find_report(path, &file, label, sizeof label, err);
    const char *name = (const char *)file.data;
    if (s == NB_OK)
        s = nb_file_slurp(&text, name, RESULTS_LIMIT, err);
    if (s == NB_OK && (ends_with(name, artefact_name) ||
                       nb_report_is_artefact((const char *)text.data, text.len)))
        s = nb_report_add_artefact(report, (const char *)text.data, text.len, name, label, err);
    else if (s == NB_OK)
        s = nb_report_add(report, (const char *)text.data, text.len, name, err);
    nb_buf_free(&text);
    nb_buf_free(&file);
    return s;
}

static nb_status write_page(const nb_report *report, const nb_args *args, nb_out *out, nb_err *err)
{
    const char *path = nb_args_text(args, "output");
    nb_buf page = {0};
    nb_outfile file = NB_OUTFILE_CLOSED;
    nb_status s;
    NB_TRY_GOTO(s, nb_report_html(report, nb_args_text(args, "title"), &page, err));
    if (strcmp(path, "-") == 0) {
        nb_out_bytes(out, page.data, page.len);
        goto done;
    }
    NB_TRY_GOTO(s, nb_outfile_open(&file, path, nb_args_flag(args, "force"), err));
    NB_TRY_GOTO(s, nb_outfile_write(&file, page.data, page.len, err));
    NB_TRY_GOTO(s, nb_outfile_commit(&file, err));
    if (out->json)
        s = nb_out_json(out,
                        json_pack("{s:o, s:I, s:I}", "path", nb_json_any_text(path, strlen(path)),
                                  "rows", (json_int_t)nb_report_n_rows(report), "bytes",
                                  (json_int_t)page.len),
                        err);
    else
        nb_out_note(out, "wrote %s (%lld rows)", path, (long long)nb_report_n_rows(report));
done:
    nb_outfile_abort(&file);
    nb_buf_free(&page);
    return s;
}

static nb_status run_report(const nb_args *args, nb_out *out, nb_err *err)
{
    const bool page = nb_args_text(args, "output") != NULL;
    const bool markdown = nb_args_flag(args, "markdown");
    if (page && strcmp(nb_args_text(args, "output"), "-") == 0 && (out->json || markdown))
        return nb_fail(err, NB_USAGE,
                       "report: --output - leaves no room for --%s on standard output",
                       markdown ? "markdown" : "json");
    if (!page && out->json)
        return nb_fail(err, NB_USAGE, "report: --json says what was written, so it needs --output");
    nb_report *report;
    nb_buf text = {0};
    NB_TRY(nb_report_new(&report, err));
    nb_status s = NB_OK;
    for (int i = 0; s == NB_OK && i < nb_args_n_operands(args); i++)
        s = add_file(report, nb_args_operand(args, i), err);
    if (s == NB_OK && nb_report_n_rows(report) == 0)
        s = nb_fail(err, NB_DATA, "%s: no results in it", nb_args_operand(args, 0));
    if (s == NB_OK && page)
        s = write_page(report, args, out, err);
    if (s == NB_OK && (markdown || !page))
        s = markdown ? nb_report_markdown(report, &text, err) : nb_report_text(report, &text, err);
    if (s == NB_OK)
        nb_out_bytes(out, text.data, text.len);
    nb_buf_free(&text);
    nb_report_free(report);
    return s;
}

const nb_verb nb_verb_report = {
    .name = "report",
    .summary = "results side by side: a table, or one HTML page with plots",
    .example = "nibble report results.jsonl -o report.html\n"
               "nibble report model-w4 -o report.html\n"
               "nibble report eval.jsonl bench.jsonl --markdown",
    .about =
        "Reads JSON lines as 'nibble eval --json' and 'nibble bench --json' print them. Lines\n"
        "with the same \"name\" are one row. Known keys: file_bytes (or bytes), bpw, perplexity,\n"
        "perplexity_se, kl_mean, kl_mean_se, kl_median, kl_p99, kl_max, top1, top1_se,\n"
        "prefill_tok_s, decode_tok_s, load_s, peak_rss_bytes, compute, kv, protocol, n_tokens,\n"
        "logits_hash; and for a \"task\": acc, acc_norm, acc_se. Others are ignored.\n\n"
        "Reads also what 'nibble quantize' leaves with a model: give the folder, the .gguf, or\n"
        "the nibble-report.json itself. It is a row, and the page has a section about it with\n"
        "what it was made of, errors and KL by layer, and reasons.",
    .operands =
        (const nb_operand[]){{"RESULTS",
                              "files of JSON lines, or quantized models; '-' is standard input", 1,
                              NB_MANY},
                             {0}},
    .options = report_options,
    .run = run_report,
};
