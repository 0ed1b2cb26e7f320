/* A file that cannot be read, as on storage that no longer answers: a FUSE file system on DIRECTORY with one executable, "hung", whose
 * reads get no reply. Prints "asked" at the first read. A signal ends it, and the file system with it.
 *
 *   hung-file DIRECTORY
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

static int device;

static void answer(const struct fuse_in_header *in, int error, const void *body, size_t size)
{
    char reply[4096];
    struct fuse_out_header out = { .len = sizeof out + size, .error = -error, .unique = in->unique };
    memcpy(reply, &out, sizeof out);
    if (size > 0)
        memcpy(reply + sizeof out, body, size);
    if (write(device, reply, out.len) < 0)
        perror("write");
}

static struct fuse_attr attributes(unsigned long long inode)
{
    struct fuse_attr attr = { .ino = inode, .nlink = 1, .blksize = 4096 };
    attr.mode = inode == FUSE_ROOT_ID ? S_IFDIR | 0755 : S_IFREG | 0755;
    attr.size = inode == FUSE_ROOT_ID ? 0 : 65536;
    return attr;
}

int main(int argc, char **argv)
{
    static char request[1 << 20] __attribute__((aligned(8)));
    char options[128];
    if (argc != 2)
        return 2;
    device = open("/dev/fuse", O_RDWR);
    if (device < 0)
        return perror("/dev/fuse"), 1;
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", device);
    if (mount("hung", argv[1], "fuse", MS_NOSUID | MS_NODEV, options) < 0)
        return perror("mount"), 1;
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (;;) {
        if (read(device, request, sizeof request) < 0) {
            if (errno == EINTR || errno == ENOENT)
                continue;
            return errno == ENODEV ? 0 : (perror("read"), 1);
        }
        const struct fuse_in_header *in = (const void *)request;
        const char *body = request + sizeof *in;
        switch (in->opcode) {
        case FUSE_INIT: {
            const struct fuse_init_in *theirs = (const void *)body;
            struct fuse_init_out ours = { .major = FUSE_KERNEL_VERSION, .minor = theirs->minor, .max_write = 65536 };
            answer(in, 0, &ours, sizeof ours);
            break;
        }
        case FUSE_LOOKUP: {
            struct fuse_entry_out entry = { .nodeid = 2, .attr = attributes(2) };
            answer(in, strcmp(body, "hung") ? ENOENT : 0, &entry, strcmp(body, "hung") ? 0 : sizeof entry);
            break;
        }
        case FUSE_GETATTR: {
            struct fuse_attr_out out = { .attr = attributes(in->nodeid) };
            answer(in, 0, &out, sizeof out);
            break;
        }
        case FUSE_OPEN: {
            struct fuse_open_out out = { .fh = 1 };
            answer(in, 0, &out, sizeof out);
            break;
        }
        case FUSE_READ:
            puts("asked");
            break;
        case FUSE_FORGET:
        case FUSE_BATCH_FORGET:
        case FUSE_INTERRUPT:
            break;
        case FUSE_FLUSH:
        case FUSE_RELEASE:
            answer(in, 0, NULL, 0);
            break;
        default:
            answer(in, ENOSYS, NULL, 0);
        }
    }
}
