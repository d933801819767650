/* See calib_options.h. */
#include "cli/calib_options.h"

#include "quant/calib/source.h"

#include <string.h>

const char *const nb_calib_pack_choices[] = {"auto", "all", "none", NULL};
const char *const nb_calib_sample_choices[] = {"first", "random", NULL};
const char *const nb_calib_chat_choices[] = {"template", "text", NULL};

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

nb_status nb_calib_unescape(char *out, size_t size, const char *text, nb_err *err)
{
    size_t n = 0;
    for (const char *at = text; *at != 0; at++) {
        int byte = (unsigned char)*at;
        if (*at == '\\') {
            at++;
            if (*at == 'n')
                byte = '\n';
            else if (*at == 't')
                byte = '\t';
            else if (*at == '\\')
                byte = '\\';
            else if (*at == 'x' && hex_digit(at[1]) >= 0 && hex_digit(at[2]) >= 0) {
                byte = 16 * hex_digit(at[1]) + hex_digit(at[2]);
                at += 2;
            } else
                return nb_fail(err, NB_USAGE,
                               "--calib-split: '\\' stands before n, t, \\ or x and two digits");
        }
        if (byte == 0)
            return nb_fail(err, NB_USAGE, "--calib-split: a byte of 0 cannot separate documents");
        if (n + 1 >= size)
            return nb_fail(err, NB_USAGE, "--calib-split: more than %zu bytes", size - 1);
        out[n++] = (char)byte;
    }
    if (n == 0)
        return nb_fail(err, NB_USAGE, "--calib-split: an empty text separates nothing");
    out[n] = 0;
    return NB_OK;
}

/* Options about one kind of file do nothing where there is none of it. */
static nb_status check_kinds(const nb_calib_options *o, nb_err *err)
{
    bool any_lines = false, any_text = false;
    for (int i = 0; i < o->n_paths; i++) {
        const bool lines = nb_calib_names_lines(o->paths[i]);
        any_lines = any_lines || lines;
        any_text = any_text || (!lines && !nb_calib_names_ids(o->paths[i]));
    }
    if (o->field != NULL && !any_lines)
        return nb_fail(err, NB_USAGE,
                       "--calib-field names a member of JSON lines, and no file of --calib has "
                       "any (.jsonl, .ndjson, .json)");
    if (o->split != NULL && !any_text)
        return nb_fail(err, NB_USAGE,
                       "--calib-split separates the documents of a text, and no file of --calib "
                       "is one");
    return NB_OK;
}

nb_status nb_calib_request_init(nb_calib_request *r, const nb_args *args, nb_err *err)
{
    static const char *const others[] = {"calib-samples", "calib-len",   "calib-pack",
                                         "calib-sample",  "calib-field", "calib-split",
                                         "calib-chat"};
    *r = (nb_calib_request){0};
    if (nb_args_n_values(args, "calib") == 0) {
        for (size_t i = 0; i < sizeof others / sizeof *others; i++)
            if (nb_args_given(args, others[i]))
                return nb_fail(err, NB_USAGE, "--%s needs --calib FILE", others[i]);
        return NB_OK;
    }
    NB_TRY(nb_path_list_take(&r->files, args, "calib", err));
    nb_calib_options *o = &r->options;
    o->paths = r->files.paths;
    o->n_paths = r->files.n;
    const char *pack = nb_args_text(args, "calib-pack"), *split = nb_args_text(args, "calib-split");
    o->n_samples = nb_args_int(args, "calib-samples");
    o->length = nb_args_int(args, "calib-len");
    o->pack = strcmp(pack, "all") == 0    ? NB_CALIB_PACK_ALL
              : strcmp(pack, "none") == 0 ? NB_CALIB_PACK_NONE
                                          : NB_CALIB_PACK_AUTO;
    o->random = strcmp(nb_args_text(args, "calib-sample"), "random") == 0;
    o->plain_chat = strcmp(nb_args_text(args, "calib-chat"), "text") == 0;
    o->seed = (uint64_t)nb_args_int(args, "seed");
    o->field = nb_args_text(args, "calib-field");
    if (split != NULL) {
        NB_TRY(nb_calib_unescape(r->split, sizeof r->split, split, err));
        o->split = r->split;
    }
    return check_kinds(o, err);
}

void nb_calib_request_free(nb_calib_request *r)
{
    nb_path_list_free(&r->files);
    *r = (nb_calib_request){0};
}
