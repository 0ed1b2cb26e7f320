/*
 * Tests a file system, in the working directory of a guest:
 *
 *     files calls       makes system calls, and prints "ok NAME" or "not ok NAME: why" for each
 *     files open N      has N files open at once
 *     files make N      makes N small files
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

static int failed;

static void judge(const char *name, int good)
{
    if (good) {
        printf("ok %s\n", name);
    } else {
        printf("not ok %s: %s\n", name, strerror(errno));
        failed = 1;
    }
}

/* Whether another process cannot take a lock. */
static int is_kept_out(int (*try)(int), const char *file)
{
    int status;
    pid_t child = fork();
    if (child == 0) {
        int fd = open(file, O_RDWR);
        _exit(fd >= 0 && try(fd) != 0 && (errno == EAGAIN || errno == EACCES) ? 0 : 1);
    }
    return waitpid(child, &status, 0) == child && status == 0;
}

static int try_flock(int fd) { return flock(fd, LOCK_EX | LOCK_NB); }

static int try_fcntl(int fd)
{
    struct flock lock = { .l_type = F_WRLCK, .l_len = 10 };
    return fcntl(fd, F_SETLK, &lock);
}

static int calls(void)
{
    char buffer[64] = "";
    struct stat meta;
    struct statvfs system;
    struct flock lock = { .l_type = F_WRLCK, .l_len = 10 };
    struct sockaddr_un address = { .sun_family = AF_UNIX, .sun_path = "socket" };
    int fd = open("file", O_RDWR | O_CREAT | O_TRUNC, 0644), again, socket_fd;
    char *map;

    judge("ftruncate", fd >= 0 && ftruncate(fd, 100000) == 0 && fstat(fd, &meta) == 0 && meta.st_size == 100000);
    map = mmap(NULL, 100000, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    judge("mmap", map != MAP_FAILED);
    if (map != MAP_FAILED) {
        memcpy(map + 50000, "mapped", 6);
        judge("msync", msync(map, 100000, MS_SYNC) == 0 && pread(fd, buffer, 6, 50000) == 6 && !memcmp(buffer, "mapped", 6));
        judge("write seen in the map", pwrite(fd, "written", 7, 70000) == 7 && !memcmp(map + 70000, "written", 7));
        munmap(map, 100000);
    }
    map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    judge("private map", map != MAP_FAILED && (map[0] = 'x') && pread(fd, buffer, 1, 0) == 1 && buffer[0] == 0);
    judge("flock", flock(fd, LOCK_EX) == 0 && is_kept_out(try_flock, "file") && flock(fd, LOCK_UN) == 0);
    judge("fcntl lock", fcntl(fd, F_SETLK, &lock) == 0 && is_kept_out(try_fcntl, "file"));
    again = open("file", O_WRONLY | O_APPEND);
    judge("append", again >= 0 && write(again, "end", 3) == 3 && fstat(fd, &meta) == 0 && meta.st_size == 100003);
    judge("hole", pwrite(fd, "x", 1, 50 << 20) == 1 && fstat(fd, &meta) == 0 && meta.st_blocks < 20000);
    judge("fsync", fsync(fd) == 0 && fdatasync(fd) == 0);
    judge("xattr", fsetxattr(fd, "user.note", "value", 5, 0) == 0 && fgetxattr(fd, "user.note", buffer, 64) == 5 &&
        !memcmp(buffer, "value", 5) && flistxattr(fd, buffer, 64) > 0 && fremovexattr(fd, "user.note") == 0 &&
        fgetxattr(fd, "user.note", buffer, 64) < 0 && errno == ENODATA);
    judge("times", futimens(fd, (struct timespec[]){ { 1000000000, 5 }, { 1000000001, 123456789 } }) == 0 &&
        fstat(fd, &meta) == 0 && meta.st_mtim.tv_sec == 1000000001 && meta.st_mtim.tv_nsec == 123456789);
    judge("exclusive", open("file", O_CREAT | O_EXCL | O_RDWR, 0644) < 0 && errno == EEXIST);
    memset(buffer, 'n', 50);
    judge("mknod", mkfifo("fifo", 0600) == 0 && mknod("null", S_IFCHR | 0666, 259) == 0 && stat("null", &meta) == 0 && meta.st_rdev == 259);
    socket_fd = socket(AF_UNIX, SOCK_STREAM, 0);
    judge("socket", bind(socket_fd, (void *)&address, sizeof address) == 0 && listen(socket_fd, 1) == 0 &&
        connect(socket(AF_UNIX, SOCK_STREAM, 0), (void *)&address, sizeof address) == 0);
    judge("statvfs", statvfs(".", &system) == 0 && system.f_blocks > 0 && system.f_namemax == 255);
    judge("unlink while open", unlink("file") == 0 && pwrite(fd, "still", 5, 0) == 5 && pread(fd, buffer, 5, 0) == 5 &&
        !memcmp(buffer, "still", 5) && fstat(fd, &meta) == 0 && meta.st_nlink == 0);
    return failed;
}

int main(int argc, char **argv)
{
    int count = argc > 2 ? atoi(argv[2]) : 0, number;
    int open_them = argc > 1 && !strcmp(argv[1], "open");
    char name[32];
    if (argc == 2 && !strcmp(argv[1], "calls"))
        return calls();
    if (open_them)
        setrlimit(RLIMIT_NOFILE, &(struct rlimit){ count + 100, count + 100 });
    for (number = 0; number < count; number++) {
        int fd;
        snprintf(name, sizeof name, "file-%d", number);
        fd = open(name, O_RDWR | O_CREAT | O_EXCL, 0644);
        if (fd < 0 || write(fd, name, strlen(name)) < 0) {
            perror(name);
            return 1;
        }
        if (!open_them)
            close(fd);
    }
    printf("%s %d\n", open_them ? "opened" : "made", number);
    return 0;
}
