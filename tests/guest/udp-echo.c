/* Sends each datagram back to its sender, on the port of the first argument, over IPv6 and IPv4. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/socket.h>

int main(int argc, char **argv) {
    struct sockaddr_in6 address = { .sin6_family = AF_INET6, .sin6_port = htons(argc > 1 ? atoi(argv[1]) : 0) };
    int fd = socket(AF_INET6, SOCK_DGRAM, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *) &address, sizeof address) < 0)
        return 1;
    for (;;) {
        char data[65536];
        struct sockaddr_in6 peer;
        socklen_t length = sizeof peer;
        ssize_t got = recvfrom(fd, data, sizeof data, 0, (struct sockaddr *) &peer, &length);
        if (got >= 0)
            sendto(fd, data, got, 0, (struct sockaddr *) &peer, length);
    }
}
