/* A child process that does something and is then killed in the middle of it. */
#ifndef NB_TESTS_CHILD_H
#define NB_TESTS_CHILD_H

#include <stdbool.h>
#include <sys/types.h>

/* Forks; the child calls work(argument) and, if that returned true, waits to be killed. Returns
 * when the child waits; a child whose work returned false fails the test. */
pid_t child_start(bool (*work)(int argument), int argument);
/* SIGKILL, and the end of it. */
void child_kill(pid_t child);

#endif
