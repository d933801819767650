/* Aligned tables on standard output; see out.h. */
#include "cli/out.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <utf8proc.h>

/* Appends text that a terminal cannot misunderstand: UTF-8 stays, control characters and bytes
 * that are no UTF-8 become \xNN. */
static nb_status put_safe(nb_buf *out, const char *text, nb_err *err)
{
    const utf8proc_uint8_t *p = (const utf8proc_uint8_t *)text;
    size_t left = strlen(text);
    while (left > 0) {
        utf8proc_int32_t c;
        const utf8proc_ssize_t limit = left < 4 ? (utf8proc_ssize_t)left : 4;
        utf8proc_ssize_t n = utf8proc_iterate(p, limit, &c);
        const bool bad = n <= 0 || c < 0x20 || (c >= 0x7f && c < 0xa0);
        const utf8proc_category_t category = bad ? UTF8PROC_CATEGORY_CC : utf8proc_category(c);
        if (n <= 0)
            n = 1;
        /* CF: direction overrides and other invisible formatting. */
        if (bad || category == UTF8PROC_CATEGORY_CF || category == UTF8PROC_CATEGORY_ZL ||
            category == UTF8PROC_CATEGORY_ZP) {
            for (utf8proc_ssize_t i = 0; i < n; i++)
                NB_TRY(nb_buf_format(out, err, "\\x%02x", p[i]));
        } else {
            NB_TRY(nb_buf_put(out, p, (size_t)n, err));
        }
        p += n;
        left -= (size_t)n;
    }
    return nb_buf_u8(out, 0, err);
}

/* Columns that a cell takes on a terminal; the cell is valid UTF-8. */
static int cell_width(const char *cell)
{
    int width = 0;
    const utf8proc_uint8_t *p = (const utf8proc_uint8_t *)cell;
    while (*p != 0) {
        utf8proc_int32_t c;
        const utf8proc_ssize_t n = utf8proc_iterate(p, -1, &c);
        if (n <= 0)
            break;
        width += utf8proc_charwidth(c);
        p += n;
    }
    return width;
}

nb_status nb_table_begin(nb_table *t, const char *const *heads, int n_columns, nb_err *err)
{
    *t = (nb_table){.n_columns = n_columns};
    for (int c = 0; c < n_columns; c++) {
        const bool right = heads[c][0] == '>';
        if (right)
            t->right |= (uint64_t)1 << c;
        const nb_status s = nb_table_cell(t, err, "%s", heads[c] + right);
        if (s != NB_OK) {
            nb_table_free(t);
            return s;
        }
    }
    return NB_OK;
}

nb_status nb_table_cell(nb_table *t, nb_err *err, const char *format, ...)
{
    nb_buf raw = {0};
    char text[512];
    va_list args;
    va_start(args, format);
    const int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    const char *cell = text;
    nb_status s = NB_OK;
    if (n >= (int)sizeof text) { /* a long name from a file */
        s = nb_buf_reserve(&raw, (size_t)n + 1, err);
        if (s == NB_OK) {
            va_start(args, format);
            vsnprintf((char *)raw.data, (size_t)n + 1, format, args);
            va_end(args);
            cell = (const char *)raw.data;
        }
    }
    if (s == NB_OK)
        s = put_safe(&t->cells, cell, err);
    if (s == NB_OK)
        t->n_cells++;
    nb_buf_free(&raw);
    return s;
}

nb_status nb_table_print(nb_table *t, nb_out *out, nb_err *err)
{
    int *widths = NULL;
    nb_status s = NB_ALLOC(&widths, t->n_columns, err);
    const char *cell = (const char *)t->cells.data;
    for (int64_t i = 0; s == NB_OK && i < t->n_cells; i++) {
        const int w = cell_width(cell);
        if (w > widths[i % t->n_columns])
            widths[i % t->n_columns] = w;
        cell += strlen(cell) + 1;
    }
    cell = (const char *)t->cells.data;
    int blanks = 0;
    for (int64_t i = 0; s == NB_OK && i < t->n_cells; i++) {
        const int c = (int)(i % t->n_columns);
        const bool right = (t->right >> c & 1) != 0;
        const int pad = widths[c] - cell_width(cell);
        const bool head = i < t->n_columns && out->colour;
        if (c == 0)
            blanks = 0;
        if (*cell != 0) /* blanks wait for what follows them: no line ends in any */
            nb_out_text(out, "%*s%s%s%s", blanks + (right ? pad : 0), "", head ? "\033[1m" : "",
                        cell, head ? "\033[0m" : "");
        blanks = *cell != 0 ? 2 + (right ? 0 : pad) : blanks + widths[c] + 2;
        if (c + 1 == t->n_columns)
            nb_out_text(out, "\n");
        cell += strlen(cell) + 1;
    }
    nb_free(widths);
    nb_table_free(t);
    return s;
}

void nb_table_free(nb_table *t)
{
    nb_buf_free(&t->cells);
    *t = (nb_table){0};
}
