//! System calls by name: what no jail allows, and what the processes need whose filter allows nothing else.

/// A system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Syscall {
    name: &'static str,
    /// The number on this architecture, if it has the call.
    pub number: Option<i64>,
}

impl Syscall {
    /// Its name in the manual pages.
    pub(super) fn name(self) -> &'static str {
        self.name.trim_start_matches("SYS_")
    }
}

/// The numbers of the system calls, or -1 for a call that this architecture lacks. arm64 lacks the calls that Linux had replaced before the
/// port, and those for x86's I/O ports and segments.
mod numbers {
    pub(super) use nix::libc::*;

    macro_rules! absent {
        ($($name:ident)*) => { $(#[allow(non_upper_case_globals)] pub(super) const $name: c_long = -1;)* };
    }

    #[cfg(target_arch = "aarch64")]
    absent![
        SYS_access SYS_arch_prctl SYS_chmod SYS_chown SYS_dup2 SYS_epoll_wait SYS_ioperm SYS_iopl SYS_lchown SYS_link SYS_lstat SYS_mkdir
        SYS_mknod SYS_modify_ldt SYS_open SYS_poll SYS_readlink SYS_rename SYS_rmdir SYS_select SYS_stat SYS_symlink SYS_time SYS_unlink
    ];
    #[cfg(target_arch = "x86_64")]
    absent![];
}

macro_rules! syscalls {
    ($($name:ident)*) => { &[$(Syscall { name: stringify!($name), number: present(numbers::$name) }),*] };
}

const fn present(number: i64) -> Option<i64> {
    if number < 0 { None } else { Some(number) }
}

/// What no process of a VM may call. A few more are restricted by their arguments, see [`super::seccomp`].
pub(super) const FORBIDDEN: &[Syscall] = syscalls![
    // Namespaces and mounts.
    SYS_setns SYS_chroot SYS_mount SYS_umount2 SYS_pivot_root SYS_open_tree SYS_move_mount SYS_fsopen SYS_fsconfig SYS_fsmount SYS_fspick
    SYS_mount_setattr SYS_swapon SYS_swapoff SYS_quotactl SYS_quotactl_fd
    // Keyrings are not in a namespace.
    SYS_add_key SYS_request_key SYS_keyctl
    // Large parts of the kernel that none of these programs needs.
    SYS_bpf SYS_perf_event_open SYS_io_uring_setup SYS_io_uring_enter SYS_io_uring_register SYS_userfaultfd SYS_fanotify_init
    // Other processes.
    SYS_ptrace SYS_process_vm_readv SYS_process_vm_writev SYS_process_madvise SYS_process_mrelease SYS_kcmp SYS_pidfd_getfd
    SYS_move_pages SYS_migrate_pages
    // Files by their handles, past every directory.
    SYS_open_by_handle_at
    // The machine.
    SYS_kexec_load SYS_kexec_file_load SYS_init_module SYS_finit_module SYS_delete_module SYS_reboot SYS_iopl SYS_ioperm SYS_modify_ldt
    SYS_acct SYS_syslog SYS_vhangup SYS_settimeofday SYS_clock_settime SYS_clock_adjtime SYS_adjtimex SYS_sethostname
    SYS_setdomainname SYS_personality SYS_memfd_secret
];

/// What virtiofsd needs for its own sandbox within the jail. Its own filter forbids it afterwards.
pub(super) const CHROOT: &[Syscall] = syscalls![SYS_chroot];

/// The same for passt.
pub(super) const NAMESPACES: &[Syscall] = syscalls![SYS_unshare SYS_mount SYS_umount2 SYS_pivot_root];

/// Memory, threads, time and signals: what every program needs.
pub(super) const BASE: &[Syscall] = syscalls![
    SYS_mmap SYS_munmap SYS_mremap SYS_mprotect SYS_madvise SYS_brk SYS_membarrier SYS_futex SYS_set_robust_list SYS_get_robust_list SYS_rseq
    SYS_set_tid_address SYS_sched_yield SYS_sched_getaffinity SYS_gettid SYS_getpid SYS_getppid SYS_getuid SYS_geteuid SYS_getgid SYS_getegid
    SYS_exit SYS_exit_group SYS_rt_sigaction SYS_rt_sigprocmask SYS_rt_sigreturn SYS_sigaltstack SYS_tgkill SYS_restart_syscall
    SYS_clock_gettime SYS_clock_getres SYS_clock_nanosleep SYS_nanosleep SYS_gettimeofday SYS_time SYS_getrandom SYS_arch_prctl
    SYS_read SYS_write SYS_readv SYS_writev SYS_pread64 SYS_pwrite64 SYS_close SYS_fcntl SYS_fstat SYS_lseek SYS_poll SYS_ppoll
];

/// Messages and descriptors on sockets that are connected.
pub(super) const MESSAGES: &[Syscall] = syscalls![
    SYS_sendto SYS_recvfrom SYS_sendmsg SYS_recvmsg SYS_getsockopt SYS_setsockopt SYS_shutdown
];

/// Connecting a socket.
pub(super) const CONNECTIONS: &[Syscall] = syscalls![SYS_connect];

/// Accepting connections.
pub(super) const CALLERS: &[Syscall] = syscalls![SYS_accept4];

/// Waiting for many descriptors.
pub(super) const EVENTS: &[Syscall] = syscalls![SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait];

/// Threads, and everything that a VMM waits for.
pub(super) const VMM: &[Syscall] = syscalls![
    SYS_epoll_wait SYS_epoll_pwait2 SYS_eventfd2 SYS_timerfd_create SYS_timerfd_settime
    SYS_timerfd_gettime SYS_signalfd4 SYS_rt_sigtimedwait SYS_pipe2 SYS_dup SYS_dup2 SYS_dup3 SYS_close_range SYS_memfd_create SYS_mincore
    SYS_uname SYS_sysinfo SYS_getrlimit SYS_prlimit64 SYS_getrusage SYS_preadv SYS_pwritev SYS_preadv2 SYS_pwritev2 SYS_bind SYS_listen
    SYS_accept SYS_socketpair SYS_getsockname SYS_getpeername SYS_capget SYS_tkill SYS_select SYS_pselect6
];

/// Opening files and working on their data.
pub(super) const FILES: &[Syscall] = syscalls![
    SYS_open SYS_openat SYS_openat2 SYS_stat SYS_lstat SYS_newfstatat SYS_statx SYS_statfs SYS_fstatfs SYS_access SYS_faccessat SYS_faccessat2
    SYS_readlink SYS_readlinkat SYS_getdents64 SYS_getcwd SYS_umask SYS_flock SYS_ftruncate SYS_fallocate SYS_fadvise64 SYS_readahead
    SYS_fsync SYS_fdatasync SYS_sync_file_range SYS_copy_file_range SYS_sendfile SYS_splice SYS_unlink SYS_unlinkat
    SYS_getxattr SYS_lgetxattr SYS_fgetxattr SYS_listxattr SYS_llistxattr SYS_flistxattr
];

/// Serving a tree to a guest: files of all types and owners.
pub(super) const SERVE_FILES: &[Syscall] = syscalls![
    SYS_chmod SYS_fchmod SYS_fchmodat SYS_chown SYS_lchown SYS_fchown SYS_fchownat SYS_mknod SYS_mknodat SYS_mkdir SYS_mkdirat SYS_rmdir
    SYS_rename SYS_renameat SYS_renameat2 SYS_link SYS_linkat SYS_symlink SYS_symlinkat SYS_truncate SYS_utimensat SYS_syncfs
    SYS_setxattr SYS_lsetxattr SYS_fsetxattr SYS_removexattr SYS_lremovexattr SYS_fremovexattr
    SYS_setresuid SYS_setresgid SYS_setfsuid SYS_setfsgid SYS_capset SYS_name_to_handle_at
];
