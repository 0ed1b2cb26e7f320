/* Sends raw frames on eth0, past the guest's own network stack, which would refuse many of them.
 *
 *   raw-frames REPEAT <FRAMES     each line is a frame in hexadecimal; all of them are sent REPEAT times
 *
 * Prints how many were sent. A card whose queue is full is waited for.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define MAX_FRAMES 256
#define MAX_FRAME 1514

static unsigned char frames[MAX_FRAMES][MAX_FRAME];
static size_t lengths[MAX_FRAMES];

int main(int argc, char **argv)
{
    char line[2 * MAX_FRAME + 2];
    size_t count = 0;
    long sent = 0;
    int fd = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL));
    struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_ifindex = (int)if_nametoindex("eth0"), .sll_halen = 6};

    if (argc != 2 || fd < 0 || to.sll_ifindex == 0 || bind(fd, (struct sockaddr *)&to, sizeof to) != 0) {
        perror("raw-frames");
        return 1;
    }
    while (count < MAX_FRAMES && fgets(line, sizeof line, stdin)) {
        size_t length = strspn(line, "0123456789abcdef") / 2;
        for (size_t at = 0; at < length; at++)
            sscanf(line + 2 * at, "%2hhx", &frames[count][at]);
        lengths[count++] = length;
    }
    for (long round = atol(argv[1]); round > 0; round--) {
        for (size_t at = 0; at < count; at++) {
            while (send(fd, frames[at], lengths[at], 0) < 0) {
                struct pollfd ready = {.fd = fd, .events = POLLOUT};
                if (errno != ENOBUFS && errno != EAGAIN) {
                    perror("send");
                    return 1;
                }
                poll(&ready, 1, 10);
            }
            sent++;
        }
    }
    printf("%ld\n", sent);
    return 0;
}
