// Connects to a vsock port from within the guest, and says what comes of it: "connect: WHY", "closed", or the bytes that came.
//
//   vsock-client CID PORT
#include <errno.h>
#include <sys/socket.h>
#include <linux/vm_sockets.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc != 3)
        return 2;
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
    struct sockaddr_vm to = {.svm_family = AF_VSOCK, .svm_cid = atoi(argv[1]), .svm_port = atoi(argv[2])};
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) < 0) {
        printf("connect: %s\n", strerror(errno));
        return 1;
    }
    char bytes[64];
    ssize_t got = read(fd, bytes, sizeof bytes);
    if (got <= 0)
        puts("closed");
    else
        printf("%zd bytes\n", got);
    return 0;
}
