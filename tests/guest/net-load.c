/* Load for tests/bench-net.sh, both ends.
 *
 *   net-load serve PORT                              serves all of the following, in a process for each connection
 *   net-load up|down ADDRESS PORT STREAMS SECONDS    prints megabits per second, of all streams
 *   net-load ask ADDRESS PORT STREAMS SECONDS        prints requests of one byte with replies of one byte, per second
 *   net-load connect ADDRESS PORT STREAMS SECONDS    prints connections with one byte and a reply, per second
 */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char buffer[256 << 10];

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

/* The first byte says what a connection is for: u, d, or anything else, which is answered as all that follow. */
static void serve_one(int fd)
{
    ssize_t length;

    if (read(fd, buffer, 1) != 1)
        return;
    switch (buffer[0]) {
    case 'u':
        while (read(fd, buffer, sizeof buffer) > 0)
            ;
        return;
    case 'd':
        while (write(fd, buffer, sizeof buffer) > 0)
            ;
        return;
    }
    for (length = 1; length > 0; length = read(fd, buffer, sizeof buffer))
        if (write(fd, buffer, length) != length)
            return;
}

static int serve(int port)
{
    struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    int one = 1, listener = socket(AF_INET6, SOCK_STREAM, 0);

    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 512) != 0) {
        perror("net-load");
        return 1;
    }
    signal(SIGCHLD, SIG_IGN);
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0)
            continue;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (fork() == 0) {
            close(listener);
            serve_one(fd);
            _exit(0);
        }
        close(fd);
    }
}

static int dial(const struct sockaddr_in *to)
{
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);

    if (connect(fd, (const struct sockaddr *)to, sizeof *to) != 0) {
        perror("net-load: connect");
        exit(1);
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

/* What one stream does until the time is over: bytes, or requests. */
static double load(const char *mode, const struct sockaddr_in *to, double until)
{
    double count = 0;
    ssize_t length;
    int fd;

    if (strcmp(mode, "connect") == 0) {
        for (; now() < until; count++) {
            fd = dial(to);
            if (write(fd, "c", 1) != 1 || read(fd, buffer, 1) != 1)
                exit(1);
            close(fd);
        }
        return count;
    }
    fd = dial(to);
    if (write(fd, mode, 1) != 1)
        exit(1);
    if (strcmp(mode, "ask") == 0) {
        for (; read(fd, buffer, 1) == 1 && now() < until; count++)
            if (write(fd, "a", 1) != 1)
                exit(1);
        return count;
    }
    while (now() < until) {
        length = mode[0] == 'u' ? write(fd, buffer, sizeof buffer) : read(fd, buffer, sizeof buffer);
        if (length <= 0)
            break;
        count += length;
    }
    return count;
}

int main(int argc, char **argv)
{
    struct sockaddr_in to = {.sin_family = AF_INET};
    double total = 0, count, start = now();
    int streams, seconds, ends[2];

    signal(SIGPIPE, SIG_IGN);
    if (argc == 3 && strcmp(argv[1], "serve") == 0)
        return serve(atoi(argv[2]));
    if (argc != 6 || inet_pton(AF_INET, argv[2], &to.sin_addr) != 1)
        return 2;
    to.sin_port = htons(atoi(argv[3]));
    streams = atoi(argv[4]);
    seconds = atoi(argv[5]);
    if (pipe(ends) != 0)
        return 1;
    for (int stream = 0; stream < streams; stream++) {
        if (fork() == 0) {
            count = load(argv[1], &to, start + seconds);
            _exit(write(ends[1], &count, sizeof count) != sizeof count);
        }
    }
    close(ends[1]);
    while (read(ends[0], &count, sizeof count) == sizeof count)
        total += count;
    if (argv[1][0] == 'u' || argv[1][0] == 'd')
        total *= 8e-6;
    printf("%.0f\n", total / (now() - start));
    return 0;
}
