/* See path_list.h. */
#include "cli/path_list.h"

#include "base/file.h"

#include <string.h>

nb_status nb_path_list_take(nb_path_list *l, const nb_args *args, const char *option, nb_err *err)
{
    const int n_values = nb_args_n_values(args, option);
    size_t n_bytes = 0, n_names = 0;
    *l = (nb_path_list){0};
    if (n_values == 0)
        return NB_OK;
    for (int i = 0; i < n_values; i++) {
        const char *value = nb_args_value(args, option, i);
        n_bytes += strlen(value) + 1;
        for (n_names++; *value != 0; value++)
            n_names += *value == ',';
    }
    NB_TRY(NB_ALLOC(&l->names, n_bytes, err));
    NB_TRY(NB_ALLOC(&l->paths, n_names, err));
    char *at = l->names;
    for (int i = 0; i < n_values; i++) {
        const char *value = nb_args_value(args, option, i);
        const size_t len = strlen(value);
        memcpy(at, value, len + 1);
        const bool whole = nb_path_exists(value);
        for (char *next = at; next != NULL;) {
            char *comma = whole ? NULL : strchr(next, ',');
            if (comma != NULL)
                *comma = 0;
            if (*next == 0)
                return nb_fail(err, NB_USAGE, "--%s: an empty name in '%s'", option, value);
            l->paths[l->n++] = next;
            next = comma == NULL ? NULL : comma + 1;
        }
        at += len + 1;
    }
    return NB_OK;
}

void nb_path_list_free(nb_path_list *l)
{
    nb_free(l->names);
    nb_free(l->paths);
    *l = (nb_path_list){0};
}
