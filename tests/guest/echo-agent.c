// A bare vsock peer for benchmarks: what msb-exec's figures are held against. On port PORT, each connection may say
//
//   "e" and then bytes, which come back;  "s" and it sends blocks of zeroes, each for a byte that came, six ahead (VMMs get stuck where
//   vsock's own flow control has to act);  "t", a number of 8 bytes and so many bytes, and
//   it says a byte when it has all;  "f" and it runs /bin/true and says a byte.
//
//   echo-agent PORT
#include <linux/vm_sockets.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

// Six of them are less than what Linux sends ahead.
enum { AHEAD = 6 };
static char block[31 << 10];

static void serve(int fd) {
    ssize_t got = read(fd, block, 1);
    if (got != 1)
        return;
    switch (block[0]) {
    case 'e':
        while ((got = read(fd, block, sizeof block)) > 0)
            if (write(fd, block, got) != got)
                return;
        return;
    case 's': {
        char answers[AHEAD];
        memset(block, 0, sizeof block);
        for (int ahead = 0;; ahead -= got) {
            for (; ahead < AHEAD; ahead++)
                if (write(fd, block, sizeof block) != sizeof block)
                    return;
            if ((got = read(fd, answers, sizeof answers)) <= 0)
                return;
        }
    }
    case 't': {
        uint64_t left;
        if (read(fd, &left, sizeof left) != sizeof left)
            return;
        while (left > 0 && (got = read(fd, block, sizeof block)) > 0)
            left -= got;
        if (write(fd, "t", 1) != 1)
            return;
        return;
    }
    case 'f': {
        pid_t child = fork();
        if (child == 0) {
            execl("/bin/true", "true", NULL);
            _exit(127);
        }
        waitpid(child, NULL, 0);
        if (write(fd, "f", 1) != 1)
            return;
    }
    }
}

int main(int argc, char **argv) {
    if (argc != 2)
        return 2;
    int listener = socket(AF_VSOCK, SOCK_STREAM, 0);
    struct sockaddr_vm here = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = atoi(argv[1])};
    if (listener < 0 || bind(listener, (struct sockaddr *)&here, sizeof here) < 0 || listen(listener, 16) < 0) {
        perror("echo-agent");
        return 1;
    }
    puts("listening");
    fflush(stdout);
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0)
            continue;
        if (fork() == 0) {
            serve(fd);
            _exit(0);
        }
        close(fd);
        while (waitpid(-1, NULL, WNOHANG) > 0)
            ;
    }
}
