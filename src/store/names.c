/* See names.h. */
#include "store/names.h"

#include <stdlib.h>
#include <string.h>

static int compare(const void *a, const void *b)
{
    const nb_name *x = a, *y = b;
    const int by_name = strcmp(x->name, y->name);
    return by_name != 0 ? by_name : (x->value > y->value) - (x->value < y->value);
}

void nb_names_sort(nb_name *names, int64_t n)
{
    if (n > 1)
        qsort(names, (size_t)n, sizeof *names, compare);
}

const nb_name *nb_names_find(const nb_name *names, int64_t n, const char *name)
{
    int64_t lo = 0, hi = n; /* the answer, if any, is the first entry that is not smaller */
    while (lo < hi) {
        const int64_t mid = lo + (hi - lo) / 2;
        if (strcmp(names[mid].name, name) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < n && strcmp(names[lo].name, name) == 0 ? &names[lo] : NULL;
}

const nb_name *nb_names_twice(const nb_name *names, int64_t n)
{
    for (int64_t i = 1; i < n; i++) {
        if (strcmp(names[i - 1].name, names[i].name) == 0)
            return &names[i];
    }
    return NULL;
}
