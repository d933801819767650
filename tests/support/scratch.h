/* A temporary folder for a test, with everything in it removed at the end. Failures fail the
 * test. */
#ifndef NB_TESTS_SCRATCH_H
#define NB_TESTS_SCRATCH_H

#include <stdbool.h>
#include <stddef.h>

/* cmocka's group or test set-up and tear-down. */
int scratch_setup(void **state);
int scratch_teardown(void **state);

/* The folder's path, and that of a name inside it; the last eight results stay valid. */
const char *scratch_folder(void);
const char *scratch_path(const char *name);

void scratch_write(const char *name, const void *bytes, size_t n);
void scratch_text(const char *name, const char *text);
void scratch_mkdir(const char *name);
/* True when the file `name` holds exactly `text`. */
bool scratch_holds(const char *name, const char *text);
bool scratch_exists(const char *name);
/* Entries of the folder `name` ("." for the scratch folder itself), dots not counted. */
int scratch_count(const char *name);

#endif
