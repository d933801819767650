/* Files that an option names, which is given more than once or has several by commas. */
#ifndef NB_CLI_PATH_LIST_H
#define NB_CLI_PATH_LIST_H

#include "cli/args.h"

/* `{0}` is empty. */
typedef struct {
    const char **paths; /* [n] */
    int n;
    char *names; /* where paths point */
} nb_path_list;

/* "a,b" is two files, unless there is a file of that name. NB_USAGE: an empty name. Free after
 * failures, too. */
nb_status nb_path_list_take(nb_path_list *l, const nb_args *args, const char *option, nb_err *err);
void nb_path_list_free(nb_path_list *l);

#endif
