/* See child.h. */
#define _POSIX_C_SOURCE 200809L
#include "support/child.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

pid_t child_start(bool (*work)(int argument), int argument)
{
    int ready[2];
    assert_int_equal(pipe(ready), 0);
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        if (!work(argument) || write(ready[1], "r", 1) != 1)
            _exit(1);
        for (;;)
            pause();
    }
    /* Our end has to go, or a child that gave up would leave us waiting. */
    close(ready[1]);
    char r = 0;
    assert_int_equal(read(ready[0], &r, 1), 1);
    close(ready[0]);
    return child;
}

void child_kill(pid_t child)
{
    assert_int_equal(kill(child, SIGKILL), 0);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status));
}
