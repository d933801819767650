/* A table of names, sorted: finding one is a binary search, and a name given twice is a neighbour.
 *
 * Sorted rather than hashed, because names come from files: nobody can choose 60,000 names that
 * make this slow. */
#ifndef NB_STORE_NAMES_H
#define NB_STORE_NAMES_H

#include <stdint.h>

typedef struct {
    const char *name; /* borrowed */
    int64_t value;    /* what the name stands for: an index, usually */
} nb_name;

/* By name (as bytes), then by value. */
void nb_names_sort(nb_name *names, int64_t n);
/* Of a sorted table: the first entry with this name; NULL when there is none. */
const nb_name *nb_names_find(const nb_name *names, int64_t n, const char *name);
/* Of a sorted table: the second of two entries with the same name; NULL when all differ. */
const nb_name *nb_names_twice(const nb_name *names, int64_t n);

#endif
