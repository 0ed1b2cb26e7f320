// Exhausts a resource of the guest, for tests of the limits of a session.
//
//   greedy orphans N     makes N processes whose parent has exited
//   greedy forks         makes processes, which stay, until fork(2) fails; then prints "full"
//   greedy memory        allocates memory until there is none
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static int orphans(int wanted) {
    int made = 0;
    while (made < wanted) {
        // In small groups, to stay below the limits.
        pid_t parent = fork();
        if (parent < 0)
            return 1;
        if (parent == 0) {
            for (int i = 0; i < 100; i++)
                if (fork() == 0)
                    _exit(0);
            _exit(0);
        }
        waitpid(parent, NULL, 0);
        made += 100;
    }
    printf("made %d\n", made);
    return 0;
}

static int forks(void) {
    for (;;) {
        pid_t child = fork();
        if (child < 0)
            break;
        if (child == 0) {
            signal(SIGTERM, SIG_IGN);
            signal(SIGHUP, SIG_IGN);
            for (;;)
                pause();
        }
    }
    puts("full");
    fflush(stdout);
    for (;;)
        if (fork() == 0)
            for (;;)
                pause();
}

static int memory(void) {
    for (;;) {
        char *block = malloc(1 << 20);
        if (!block)
            return 1;
        memset(block, 1, 1 << 20);
    }
}

int main(int argc, char **argv) {
    if (argc == 3 && !strcmp(argv[1], "orphans"))
        return orphans(atoi(argv[2]));
    if (argc == 2 && !strcmp(argv[1], "forks"))
        return forks();
    if (argc == 2 && !strcmp(argv[1], "memory"))
        return memory();
    fputs("greedy: orphans N, forks or memory\n", stderr);
    return 2;
}
