/* The AMX instructions, in software: where the processor does not know them, each one stops with
 * SIGILL, and a handler decodes it, does what Intel's manual says (SDM volume 2, the pseudo-code of
 * each instruction) to tile registers of its own, one set a thread, and steps over it. So the
 * machine code of amx_*.c itself runs on any x86-64 Linux machine.
 *
 * What the processor would refuse (#UD and #GP: shapes that do not fit, tiles that are not
 * configured) is recorded as a fault and not done. Memory is touched byte for byte where the
 * instruction would touch it, so that pages with no access and the address sanitizer bite. */
#ifndef NB_TESTS_AMX_EMULATOR_H
#define NB_TESTS_AMX_EMULATOR_H

#include <stdbool.h>
#include <stdint.h>

typedef enum {
    AMX_ABSENT,   /* this machine cannot run the kernels' code at all; the reason was printed */
    AMX_EMULATED, /* the handler is in place */
    AMX_NATIVE,   /* the processor has them: nothing was done */
} amx_kind;

/* Puts the handler in place of SIGILL's, on a machine that has `isa` (nb_cpu_isa). Inside each
 * test, because cmocka sets its own before it. */
amx_kind amx_begin(unsigned isa);
/* Restores what was there, and fails the test with the first fault, if there was one. */
void amx_end(void);

/* The first fault since amx_begin, NULL if none. */
const char *amx_fault(void);
/* It was wanted: amx_end shall not fail over it. */
void amx_expect_fault(void);
/* The calling thread's tiles have shapes: emulated ones, that is. */
bool amx_configured(void);
/* Instructions emulated since amx_begin, by all threads; of those, multiplies. */
int64_t amx_n_instructions(void);
int64_t amx_n_products(void);

/* Planted faults: what a wrong kernel, or a wrong reading of the manual, would do. */
typedef enum {
    AMX_RIGHT,
    AMX_B_UNSIGNED,     /* the weights' sign is lost */
    AMX_A_UNSIGNED,     /* the activations' sign is lost */
    AMX_LAST_DWORD_OUT, /* the last four columns of each multiply are left out */
    AMX_STORE_SHORT,    /* the last row of a tile is not stored */
    AMX_LOAD_STALE,     /* loads to register 5 are ignored */
    AMX_KEEPS_SUMS,     /* tilezero does nothing to register 2 */
    AMX_N_PLANTED,
} amx_planted;
void amx_plant(amx_planted fault);

#endif
