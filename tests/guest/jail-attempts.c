// Tries, from within a jail, what a process that a guest has taken over would try against the host. Prints one line for each attempt that
// the jail did not refuse, and the number of attempts. The arguments are paths of the host that must not be there. In the place of a
// program that makes a file system it fails, with all that on stderr.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/keyctl.h>
#include <linux/netlink.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/mount.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
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

int main(int argc, char **argv) {
    char buffer[256];
    int descriptors = 0, parent_signal = 0;
    if (strcmp(argv[0], "second") == 0) {
        printf("reached: another program\n");
        return 1;
    }
    int is_mkfs = access("/tree", F_OK) == 0;
    if (is_mkfs)
        dup2(2, 1);
    static const struct { const char *name; long number; } calls[] = {
        {"setns", SYS_setns}, {"pivot_root", SYS_pivot_root}, {"open_tree", 428}, {"move_mount", 429}, {"fsopen", 430},
        {"add_key", SYS_add_key}, {"request_key", SYS_request_key}, {"bpf", SYS_bpf}, {"perf_event_open", SYS_perf_event_open},
        {"io_uring_setup", 425}, {"userfaultfd", SYS_userfaultfd}, {"fanotify_init", SYS_fanotify_init},
        {"process_vm_readv", SYS_process_vm_readv}, {"process_vm_writev", SYS_process_vm_writev}, {"pidfd_getfd", 438},
        {"open_by_handle_at", SYS_open_by_handle_at}, {"kexec_load", SYS_kexec_load}, {"init_module", SYS_init_module},
        {"finit_module", SYS_finit_module}, {"clone3", 435}, {"memfd_secret", 447}, {"execve", SYS_execve},
        {"mount_setattr", 442}, {"x32 getpid", 0x40000000 + SYS_getpid},
    };
    for (unsigned i = 0; i < sizeof calls / sizeof *calls; i++)
        filtered(calls[i].name, syscall(calls[i].number, 0, 0, 0, 0, 0, 0));
    static const int namespaces[] = {CLONE_NEWUSER, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWIPC, CLONE_NEWUTS, CLONE_NEWCGROUP};
    for (unsigned i = 0; i < sizeof namespaces / sizeof *namespaces; i++) {
        filtered("unshare", unshare(namespaces[i]));
        filtered("clone", syscall(SYS_clone, namespaces[i] | SIGCHLD, 0, 0, 0, 0));
    }
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
    for (int i = 1; i < argc && !is_mkfs; i++)
        fails(argv[i], open(argv[i], O_PATH));
    static const char *const elsewhere[] = {"/etc/passwd", "/root", "/home", "/dev/null", "/proc/self/root", "/proc/version", "/sys"};
    for (unsigned i = 0; i < sizeof elsewhere / sizeof *elsewhere; i++)
        fails(elsewhere[i], open(elsewhere[i], O_PATH));
    if (is_mkfs) {
        fails("a file in the tree", open("/tree/made", O_CREAT | O_WRONLY, 0600));
        fails("a mode in the tree", chmod("/tree", 0777));
        fails("an owner in the tree", chown("/tree", 1, 1));
        fails("another user", setuid(1));
    }
    if (access("/second", F_OK) == 0)
        execute_another();
    for (int fd = 3; fd < 65536; fd++)
        descriptors += fcntl(fd, F_GETFD) >= 0;
    prctl(PR_GET_PDEATHSIG, &parent_signal);
    fails("/proc/1/mem", open("/proc/1/mem", O_RDWR));
    fails("/dev/mem", open("/dev/mem", O_RDONLY));
    fails("a file of its own", open("/made", O_CREAT | O_WRONLY, 0600));
    fails("another root", chroot("/"));
    fails("the parent of the root", chdir("..") == 0 && getcwd(buffer, sizeof buffer) && strcmp(buffer, "/") ? 0 : -1);
    printf("attempts: %d, user: %d, descriptors: %d, at the parent's death: %d\n", attempts, (int)getuid(), descriptors, parent_signal);
    return is_mkfs;
}
