// A plain vsock server, the baseline of the benchmarks of msb-exec.
//
//   echo-agent PORT
//
// The first byte of a connection chooses what it does:
//
//   e   sends back each byte that it receives
//   s   sends a block of zeros for each byte that it receives, up to six blocks ahead (VMMs get stuck in vsock's own flow control)
//   t   receives a number (8 bytes) and that many bytes, then sends a byte
//   f   runs /bin/true, then sends a byte
//   S   as s, with the blocks from a command's pipe
//   T   as t, with the bytes to a command's pipe
//
// As PID 1 it mounts the shared root and listens on port 2000.
#include <sys/socket.h>
#include <linux/vm_sockets.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

// Six of them are less than the buffer of a vsock connection in Linux.
enum { AHEAD = 6 };
static char block[31 << 10];

// Starts a command with a pipe as its stdin (0) or stdout (1), and returns the other end of the pipe.
static int command(int end, const char *operand) {
    int ends[2];
    if (pipe(ends) < 0)
        return -1;
    if (fork() == 0) {
        dup2(ends[end], end);
        close(ends[0]);
        close(ends[1]);
        execlp("dd", "dd", "bs=64k", operand, NULL);
        _exit(127);
    }
    close(ends[end]);
    return ends[!end];
}

// Reads exactly this many bytes, fewer only at the end of the stream.
static ssize_t fill(int fd, char *bytes, size_t wanted) {
    size_t had = 0;
    ssize_t got = 1;
    while (had < wanted && (got = read(fd, bytes + had, wanted - had)) > 0)
        had += got;
    return had;
}

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
    case 's':
    case 'S': {
        char answers[AHEAD];
        int source = block[0] == 'S' ? command(1, "if=/dev/zero") : -1;
        memset(block, 0, sizeof block);
        for (int ahead = 0;; ahead -= got) {
            for (; ahead < AHEAD; ahead++)
                if ((source >= 0 && fill(source, block, sizeof block) != sizeof block) || write(fd, block, sizeof block) != sizeof block)
                    return;
            if ((got = read(fd, answers, sizeof answers)) <= 0)
                return;
        }
    }
    case 't':
    case 'T': {
        int sink = block[0] == 'T' ? command(0, "of=/dev/null") : -1;
        uint64_t left;
        if (read(fd, &left, sizeof left) != sizeof left)
            return;
        for (; left > 0 && (got = read(fd, block, sizeof block)) > 0; left -= got)
            if (sink >= 0 && write(sink, block, got) != got)
                return;
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
    int port = 2000;
    if (getpid() == 1) {
        if (mount("rootfs", "/mnt", "virtiofs", 0, NULL) || mount("devtmpfs", "/mnt/dev", "devtmpfs", 0, NULL) ||
            chroot("/mnt") || chdir("/"))
            return 1;
    } else if (argc != 2) {
        return 2;
    } else {
        port = atoi(argv[1]);
    }
    int listener = socket(AF_VSOCK, SOCK_STREAM, 0);
    struct sockaddr_vm here = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = port};
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
