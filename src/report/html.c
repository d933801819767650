/* The report as one HTML page that needs nothing else: style and plots are inside. */
#include "report/table.h"

#include <string.h>

static const char style[] =
    ":root{color-scheme:light dark;--bg:#fcfcfa;--fg:#1d2125;--soft:#5c6570;--line:#d9dde1;"
    "--card:#fff;--accent:#0b6e8a;--accent2:#b4540a}"
    "@media(prefers-color-scheme:dark){:root{--bg:#15181b;--fg:#e6e8ea;--soft:#9aa4ae;"
    "--line:#30363c;--card:#1c2024;--accent:#58b6d3;--accent2:#f0a35e}}"
    "*{box-sizing:border-box}"
    "body{margin:0 auto;max-width:76rem;padding:1.5rem 1rem 4rem;background:var(--bg);"
    "color:var(--fg);font:16px/1.5 system-ui,sans-serif}"
    "h1{font-size:1.6rem;margin:0 0 .25rem}h2{font-size:1.15rem;margin:2.2rem 0 .6rem}"
    "p{margin:.25rem 0 1rem;color:var(--soft);max-width:46rem}"
    ".scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:8px}"
    "table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}"
    "caption{text-align:left;padding:.6rem .8rem 0;color:var(--soft)}"
    "th,td{padding:.42rem .65rem;text-align:right;white-space:nowrap;"
    "border-bottom:1px solid var(--line)}"
    "tbody tr:last-child>*{border-bottom:0}"
    "thead th{font-weight:600;vertical-align:bottom}"
    "thead small{display:block;font-weight:400;color:var(--soft)}"
    "th[scope=row]{text-align:left;font-weight:600;position:sticky;left:0;background:var(--card)}"
    ".t{text-align:left}"
    "tbody tr:hover{background:color-mix(in srgb,var(--accent) 8%,transparent)}"
    "figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:8px;"
    "padding:.8rem}"
    "figcaption{color:var(--soft);font-size:.9rem;margin-top:.3rem}"
    "svg{display:block;width:100%;height:auto;font:13px system-ui,sans-serif}"
    "svg text{fill:var(--fg)}svg .soft{fill:var(--soft)}"
    "svg .grid{stroke:var(--line);stroke-width:1}svg .lead{stroke:var(--soft);stroke-width:1}"
    "svg .dot{fill:var(--accent);stroke:var(--card);stroke-width:2}"
    "svg .bar{fill:var(--accent)}svg .bar.two{fill:var(--accent2)}"
    "svg polyline{fill:none;stroke-width:1.5}h3{font-size:1rem;margin:1.4rem 0 .4rem}"
    ".facts td{white-space:normal;overflow-wrap:anywhere}details{margin-top:1rem}"
    "summary{cursor:pointer}polyline.s0{stroke:#2f7fb8}circle.s0{fill:#2f7fb8}"
    "polyline.s1{stroke:#c2571a}circle.s1{fill:#c2571a}polyline.s2{stroke:#2a9d5c}"
    "circle.s2{fill:#2a9d5c}polyline.s3{stroke:#a8479a}circle.s3{fill:#a8479a}"
    "polyline.s4{stroke:#b38a00}circle.s4{fill:#b38a00}polyline.s5{stroke:#7a6ad0}"
    "circle.s5{fill:#7a6ad0}polyline.s6{stroke:#8a8f98}circle.s6{fill:#8a8f98}"
    ".pair{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(22rem,1fr))}"
    "@media print{body{max-width:none}.scroll,figure{break-inside:avoid}}";

nb_status nb_html_text(nb_buf *out, const char *text, nb_err *err)
{
    for (const unsigned char *p = (const unsigned char *)text; *p != 0; p++) {
        const char *entity = NULL;
        switch (*p) {
        case '&':
            entity = "&amp;";
            break;
        case '<':
            entity = "&lt;";
            break;
        case '>':
            entity = "&gt;";
            break;
        case '"':
            entity = "&quot;";
            break;
        case '\'':
            entity = "&#39;";
            break;
        default:
            if (*p < 0x20 || *p == 0x7f)
                entity = " ";
        }
        NB_TRY(entity != NULL ? nb_buf_text(out, entity, err) : nb_buf_u8(out, *p, err));
    }
    return NB_OK;
}

static nb_status put_head(const nb_column *c, nb_buf *out, nb_err *err)
{
    NB_TRY(nb_buf_format(out, err, "<th scope=\"col\"%s title=\"",
                         c->kind == COLUMN_TEXT ? " class=\"t\"" : ""));
    NB_TRY(nb_html_text(out, c->meaning, err));
    NB_TRY(nb_buf_text(out, "\">", err));
    NB_TRY(nb_html_text(out, c->title, err));
    if (c->unit[0] != 0)
        NB_TRY(nb_buf_format(out, err, " <small>%s</small>", c->unit));
    return nb_buf_text(out, "</th>", err);
}

static nb_status put_table(const nb_report *r, bool detail, const char *caption, nb_buf *out,
                           nb_err *err)
{
    NB_TRY(nb_buf_format(out, err,
                         "<div class=\"scroll\" tabindex=\"0\" role=\"region\" "
                         "aria-label=\"%s\"><table><caption>%s</caption>\n<thead><tr>"
                         "<th scope=\"col\" class=\"t\">model</th>",
                         caption, caption));
    for (int c = 0; c < r->n_columns; c++) {
        if (r->columns[c].detail == detail && nb_report_column_used(r, c))
            NB_TRY(put_head(&r->columns[c], out, err));
    }
    NB_TRY(nb_buf_text(out, "</tr></thead>\n<tbody>\n", err));
    for (int64_t i = 0; i < r->n_rows; i++) {
        NB_TRY(nb_buf_text(out, "<tr><th scope=\"row\">", err));
        NB_TRY(nb_html_text(out, r->rows[i]->name, err));
        NB_TRY(nb_buf_text(out, "</th>", err));
        for (int c = 0; c < r->n_columns; c++) {
            if (r->columns[c].detail != detail || !nb_report_column_used(r, c))
                continue;
            NB_TRY(nb_buf_text(out, r->columns[c].kind == COLUMN_TEXT ? "<td class=\"t\">" : "<td>",
                               err));
            const nb_shown shown = nb_report_show(r, r->rows[i], c);
            NB_TRY(nb_html_text(out, shown.text[0] != 0 ? shown.text : "\xe2\x80\x93", err));
            NB_TRY(nb_buf_text(out, "</td>", err));
        }
        NB_TRY(nb_buf_text(out, "</tr>\n", err));
    }
    return nb_buf_text(out, "</tbody></table></div>\n", err);
}

static bool has_details(const nb_report *r)
{
    for (int c = 0; c < r->n_columns; c++) {
        if (r->columns[c].detail && nb_report_column_used(r, c))
            return true;
    }
    return false;
}

static nb_status put_figure(const char *heading, const char *caption, const nb_buf *svg,
                            nb_buf *out, nb_err *err)
{
    if (svg->len == 0)
        return NB_OK;
    NB_TRY(nb_buf_format(out, err, "<section><h2>%s</h2>\n<figure>", heading));
    NB_TRY(nb_buf_put(out, svg->data, svg->len, err));
    return nb_buf_format(out, err, "<figcaption>%s</figcaption></figure></section>\n", caption);
}

static nb_status put_plots(const nb_report *r, nb_buf *out, nb_err *err)
{
    nb_buf svg = {0};
    nb_status s;
    NB_TRY_GOTO(s, nb_svg_scatter(r, nb_report_column(r, "file_bytes"),
                                  nb_report_column(r, "kl_mean"), &svg, err));
    NB_TRY_GOTO(s, put_figure("Size against loss",
                              "Down and to the left is better: fewer bytes, and predictions closer "
                              "to the original's. Same numbers as in the table.",
                              &svg, out, err));
    NB_TRY_GOTO(s, nb_buf_text(out, "<div class=\"pair\">\n", err));
    svg.len = 0;
    NB_TRY_GOTO(s, nb_svg_bars(r, nb_report_column(r, "prefill_tok_s"), &svg, err));
    NB_TRY_GOTO(s, put_figure("Prefill", "Tokens of a prompt read per second; longer is better.",
                              &svg, out, err));
    svg.len = 0;
    NB_TRY_GOTO(s, nb_svg_bars(r, nb_report_column(r, "decode_tok_s"), &svg, err));
    NB_TRY_GOTO(
        s, put_figure("Decode", "Tokens written per second; longer is better.", &svg, out, err));
    s = nb_buf_text(out, "</div>\n", err);
done:
    nb_buf_free(&svg);
    return s;
}

nb_status nb_report_html(const nb_report *r, const char *title, nb_buf *out, nb_err *err)
{
    NB_TRY(nb_buf_text(out,
                       "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
                       "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n"
                       "<meta name=\"generator\" content=\"nibble " NIBBLE_VERSION "\">\n<title>",
                       err));
    NB_TRY(nb_html_text(out, title, err));
    NB_TRY(nb_buf_text(out, "</title>\n<style>", err));
    NB_TRY(nb_buf_text(out, style, err));
    NB_TRY(nb_buf_text(out, "</style>\n</head>\n<body>\n<main>\n<h1>", err));
    NB_TRY(nb_html_text(out, title, err));
    NB_TRY(nb_buf_text(out,
                       "</h1>\n<p>Size, speed and loss side by side. KL is the divergence of each "
                       "model's predictions from the original's: 0 means the same.</p>\n",
                       err));
    NB_TRY(put_table(r, false, "Results", out, err));
    NB_TRY(put_plots(r, out, err));
    if (has_details(r)) {
        NB_TRY(nb_buf_text(out, "<h2>More numbers</h2>\n", err));
        NB_TRY(put_table(r, true, "Details", out, err));
    }
    for (int64_t i = 0; i < r->n_artefacts; i++)
        NB_TRY(nb_artefact_html(&r->artefacts[i], out, err));
    return nb_buf_text(out, "</main>\n</body>\n</html>\n", err);
}
