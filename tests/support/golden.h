/* Loading of the golden vectors of tests/golden, and hex, for tests. Failures fail the test. */
#ifndef NB_TESTS_GOLDEN_H
#define NB_TESTS_GOLDEN_H

/* cmocka wants these first. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>

/* tests/golden/NAME parsed; free with json_decref. */
json_t *golden_load(const char *name);
/* A member that must be there. Borrowed. */
json_t *golden_get(const json_t *object, const char *key);
/* Bytes of a hex string member; free() them. */
uint8_t *golden_hex(const json_t *object, const char *key, size_t *n);
uint8_t *hex_bytes(const char *hex, size_t *n);
/* A float: a number, or "nan", "inf", "-inf". */
double golden_number(const json_t *v);

#endif
