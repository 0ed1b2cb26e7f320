// Tries, from within a jail, what a process that a guest has taken over would try against the host. Prints one line for each attempt that
// the jail did not refuse, and the number of attempts. The arguments are paths of the host that must not be there, names of abstract
// sockets (@NAME) and a key (key:SERIAL). In the place of a program that makes a file system it fails, with all that on stderr.
//
// A process that may execute nothing makes the attempts by itself: this file is then a library that has been loaded before the jail, and
// whose execve is called in it. /data and /given are what a jail may have: directories of another user, the latter read-only.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/keyctl.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <unistd.h>

static int attempts;

// A refusal by the filter is EPERM or ENOSYS. Any other error comes from the kernel's code behind it.
static void filtered(const char *what, long result) {
    attempts++;
    if (result >= 0 || (errno != EPERM && errno != ENOSYS))
        printf("reached: %s: %s\n", what, result >= 0 ? "success" : strerror(errno));
}

static void fails(const char *what, long result) {
    attempts++;
    if (result >= 0)
        printf("reached: %s\n", what);
}

// Executes another file of the jail, with the one number that the filter lets through: the limit of open files.
static void execute_another(void) {
    struct rlimit limit;
    char *args[] = {"second", NULL};
    getrlimit(RLIMIT_NOFILE, &limit);
    fails("another program", syscall(SYS_execveat, limit.rlim_cur, "/second", args, environ, 0));
}

// Connects to a socket of the host, whose name begins with @ if it is abstract.
static void connects(const char *name) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    strncpy(address.sun_path, name, sizeof address.sun_path - 1);
    if (*name == '@')
        address.sun_path[0] = 0;
    fails("a socket of the host", connect(fd, (struct sockaddr *)&address, offsetof(struct sockaddr_un, sun_path) + strlen(name)));
    close(fd);
}

// What only some may do with the files of another user, and with ports.
static void use_files(void) {
    char buffer[16];
    struct sockaddr_in port = {.sin_family = AF_INET, .sin_port = htons(7), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    static const char *const given[] = {"/given/public", "/given/private"};
    if (open("/data/public", O_RDONLY) < 0 && errno != ENOSYS)
        printf("missing: a file of the jail\n");
    fails("reading another user's file", open("/data/private", O_RDONLY));
    fails("writing another user's file", open("/data/private", O_WRONLY));
    fails("making a file", open("/data/made", O_CREAT | O_WRONLY, 0600));
    fails("making a device node", mknod("/data/node", S_IFBLK | 0600, makedev(7, 0)));
    fails("changing a mode", chmod("/data/public", 0755));
    fails("changing an owner", chown("/data/public", 12346, 12346));
    fails("trusted xattrs", getxattr("/data/public", "trusted.msb-test", buffer, sizeof buffer));
    fails("a device node", open("/data/zero", O_RDONLY));
    fails("the node that it has made", open("/data/node", O_RDONLY));
    for (unsigned i = 0; i < sizeof given / sizeof *given; i++)
        fails("writing what is read-only", open(given[i], O_WRONLY));
    fails("making a file in what is read-only", open("/given/made", O_CREAT | O_WRONLY, 0600));
    fails("a mode of what is read-only", chmod("/given/public", 0777));
    fails("a port below 1024", bind(socket(AF_INET, SOCK_STREAM, 0), (struct sockaddr *)&port, sizeof port));
}

static int attempt(int argc, char **argv) {
    char buffer[256];
    int descriptors = 0, parent_signal = -1, key, user;
    struct rlimit core = {1, 1};
    user = getuid();
    if (strcmp(argv[0], "second") == 0) {
        printf("reached: another program\n");
        return 0;
    }
    int is_mkfs = access("/tree", F_OK) == 0;
    if (is_mkfs)
        dup2(2, 1);
    static const struct { const char *name; long number; } calls[] = {
        {"setns", SYS_setns}, {"pivot_root", SYS_pivot_root}, {"open_tree", 428}, {"move_mount", 429}, {"fsopen", 430},
        {"fsconfig", 431}, {"fsmount", 432}, {"fspick", 433}, {"umount2", SYS_umount2}, {"swapon", SYS_swapon}, {"quotactl", SYS_quotactl},
        {"add_key", SYS_add_key}, {"request_key", SYS_request_key}, {"bpf", SYS_bpf}, {"perf_event_open", SYS_perf_event_open},
        {"io_uring_setup", 425}, {"io_uring_enter", 426}, {"io_uring_register", 427},
        {"userfaultfd", SYS_userfaultfd}, {"fanotify_init", SYS_fanotify_init},
        {"process_vm_readv", SYS_process_vm_readv}, {"process_vm_writev", SYS_process_vm_writev}, {"pidfd_getfd", 438}, {"kcmp", SYS_kcmp},
        {"process_madvise", 440},
        {"move_pages", SYS_move_pages}, {"migrate_pages", SYS_migrate_pages}, {"delete_module", SYS_delete_module},
        {"kexec_file_load", SYS_kexec_file_load}, {"reboot", SYS_reboot}, {"syslog", SYS_syslog}, {"adjtimex", SYS_adjtimex},
        {"open_by_handle_at", SYS_open_by_handle_at}, {"kexec_load", SYS_kexec_load}, {"init_module", SYS_init_module},
        {"finit_module", SYS_finit_module}, {"clone3", 435}, {"memfd_secret", 447}, {"execve", SYS_execve},
        {"mount_setattr", 442}, {"x32 getpid", 0x40000000 + SYS_getpid},
    };
    for (unsigned i = 0; i < sizeof calls / sizeof *calls; i++)
        filtered(calls[i].name, syscall(calls[i].number, 0, 0, 0, 0, 0, 0));
    // That of users is the last: in it, a process has all capabilities.
    static const int namespaces[] = {CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWIPC, CLONE_NEWUTS, CLONE_NEWCGROUP, CLONE_NEWUSER};
    for (unsigned i = 0; i < sizeof namespaces / sizeof *namespaces; i++)
        filtered("clone", syscall(SYS_clone, namespaces[i] | SIGCHLD, 0, 0, 0, 0));
    filtered("typing into a terminal", ioctl(0, TIOCSTI, "x"));
    filtered("mount", mount("none", "/", "tmpfs", 0, ""));
    filtered("ptrace", ptrace(PTRACE_TRACEME, 0, 0, 0));
    filtered("the user's keyring", syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_USER_KEYRING, 0));
    filtered("the session's keyring", syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0));
    filtered("netfilter", socket(AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER));
    filtered("packets", socket(AF_PACKET, SOCK_RAW, 0));
    filtered("IPv4", socket(AF_INET, SOCK_STREAM, 0));
    filtered("IPv6", socket(AF_INET6, SOCK_DGRAM, 0));
    filtered("vsock", socket(AF_VSOCK, SOCK_STREAM, 0));
    filtered("crypto", socket(AF_ALG, SOCK_SEQPACKET, 0));
    // Other processes: this is the first of its namespace, and there is nobody else.
    for (int pid = 2; pid < 400; pid++)
        if (kill(pid, 0) == 0)
            printf("reached: process %d\n", pid);
    fails("all processes", kill(-1, 0));
    for (int pid = 1; pid < 400; pid++)
        filtered("another process", ptrace(PTRACE_ATTACH, pid, 0, 0));
    for (int i = 1; i < argc && !is_mkfs; i++) {
        if (sscanf(argv[i], "key:%d", &key) == 1) {
            filtered("a key of the caller", syscall(SYS_keyctl, KEYCTL_READ, key, buffer, sizeof buffer));
            filtered("a key by its name", syscall(SYS_request_key, "user", "msb-test", NULL, 0));
            continue;
        }
        if (*argv[i] != '@')
            fails(argv[i], open(argv[i], O_PATH));
        connects(argv[i]);
    }
    if (access("/data", F_OK) == 0 || errno != ENOENT)
        use_files();
    static const char *const elsewhere[] = {"/etc/passwd", "/root", "/home", "/dev/null", "/proc/self/root", "/proc/version", "/sys",
        "/proc/self/fd/../root", "/proc/self/fd/../../1/root", "/proc/keys", "/run/msb", "/.."  "/etc/passwd"};
    for (unsigned i = 0; i < sizeof elsewhere / sizeof *elsewhere; i++)
        fails(elsewhere[i], open(elsewhere[i], O_PATH));
    if (is_mkfs) {
        fails("a file in the tree", open("/tree/made", O_CREAT | O_WRONLY, 0600));
        fails("a mode in the tree", chmod("/tree", 0777));
        fails("an owner in the tree", chown("/tree", 1, 1));
    }
    for (int fd = 3; fd < 65536; fd++)
        descriptors += fcntl(fd, F_GETFD) >= 0;
    prctl(PR_GET_PDEATHSIG, &parent_signal);
    fails("/proc/1/mem", open("/proc/1/mem", O_RDWR));
    fails("/dev/mem", open("/dev/mem", O_RDONLY));
    fails("a file of its own", open("/made", O_CREAT | O_WRONLY, 0600));
    fails("the parent of the root", chdir("..") == 0 && getcwd(buffer, sizeof buffer) && strcmp(buffer, "/") ? 0 : -1);
    fails("a core dump", setrlimit(RLIMIT_CORE, &core));
    fails("another root", chroot("/"));
    for (unsigned i = 0; i < sizeof namespaces / sizeof *namespaces; i++)
        filtered(namespaces[i] == CLONE_NEWUSER ? "a user namespace" : "unshare", unshare(namespaces[i]));
    // Its capabilities are gone then.
    fails("another user", setresuid(1, 1, 1));
    printf("attempts: %d, user: %d, descriptors: %d, at the parent's death: %d\n", attempts, user, descriptors, parent_signal);
    fflush(stdout);
    if (access("/second", F_OK) == 0)
        execute_another();
    return is_mkfs;
}

#ifdef LIBRARY
// In the place of the C library's.
int execve(const char *path, char *const argv[], char *const env[]) {
    int argc = 0;
    syscall(SYS_execve, path, argv, env);
    while (argv[argc])
        argc++;
    attempt(argc, (char **)argv);
    fflush(NULL);
    _exit(0);
}
#else
int main(int argc, char **argv) {
    return attempt(argc, argv);
}
#endif
