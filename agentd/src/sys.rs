//! The calls for which no safe crate exists: what a child does between fork and exec, how one ended and what it took, and the
//! loopback interface.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::AtomicI32;

use msb::record::owner::Id;
use msb::wire::exec::Usage;
use nix::libc;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, WaitStatus};

/// The most descriptors that a process may have, and ask for: what container runtimes give.
pub const OPEN_FILES: u64 = 1 << 20;
/// The most descriptors that a command has without asking, for programs that use select(2) or close all of them.
pub const SOFT_OPEN_FILES: u64 = 1024;

/// Has the C library give back what many threads had: one heap, as what they ask for is little, and blocks for streams by
/// themselves.
pub fn keep_memory_small() {
    // SAFETY: mallopt takes two numbers, before there is a second thread.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 10);
    }
}

/// Who a child becomes.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// The user ID.
    pub uid: Id,
    /// The group ID.
    pub gid: Id,
    /// The supplementary group IDs.
    pub groups: Vec<u32>,
}

/// A command that is ready to be started, as the leader of a session of its own. All that a child needs has been made: between
/// its start and its exec it shares this process's memory, and may make system calls alone.
#[derive(Debug)]
pub struct Launch<'a> {
    /// The file to execute.
    pub file: CString,
    /// Its arguments, the first included.
    pub argv: Vec<CString>,
    /// Its environment, `NAME=VALUE` each.
    pub env: Vec<CString>,
    /// Its working directory.
    pub cwd: CString,
    /// Its stdin, stdout and stderr.
    pub stdio: [BorrowedFd<'a>; 3],
    /// Who it becomes.
    pub identity: Identity,
    /// Whether its stdin is its terminal.
    pub has_terminal: bool,
    /// The file mode creation mask.
    pub umask: u32,
    /// Limits over the default ones.
    pub limits: Vec<(Resource, Rlimit)>,
    /// Where its cgroup is entered.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// Why a command did not start.
#[derive(Debug)]
pub struct NotStarted {
    /// What failed before the command's own file was executed; `None` where executing it did.
    pub step: Option<&'static str>,
    /// The kernel's reason.
    pub why: io::Error,
}

/// A step before the exec, and why it failed.
type Failed = (Option<&'static str>, Errno);

/// What a child needs until its exec.
struct Child<'a> {
    launch: &'a Launch<'a>,
    argv: Vec<*const libc::c_char>,
    env: Vec<*const libc::c_char>,
    failed: Option<Failed>,
}

/// How much stack a child has until its exec, in bytes: some system calls.
const CHILD_STACK: usize = 32 << 10;

impl Launch<'_> {
    /// Starts the command, as vfork(2) does it: without a copy of this process's memory, and with this thread waiting until
    /// the child has become its command, which takes as long as the storage does that its file is on. Its process ID, which is also
    /// in `born` before the child runs.
    ///
    /// # Errors
    /// See [`NotStarted`]. The child, where there was one, is still to be waited for.
    pub fn start(&self, born: &AtomicI32) -> Result<i32, NotStarted> {
        let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
            strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
        };
        let mut child = Child { launch: self, argv: pointers(&self.argv), env: pointers(&self.env), failed: None };
        // Of 16 bytes each, as the stack's end has to be aligned (clone(2) does not see to it).
        let mut stack = vec![0u128; CHILD_STACK / 16];
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PARENT_SETTID | libc::SIGCHLD;
        // SAFETY: the child has a stack of its own, which grows down from its end, and shares the rest with this thread, which
        // waits meanwhile, so `child` and `born` outlive its use of them. It makes system calls alone: it neither allocates nor
        // takes a lock that another thread may hold.
        let pid = unsafe {
            let end = stack.as_mut_ptr().add(stack.len());
            libc::clone(become_command, end.cast(), flags, (&raw mut child).cast(), born.as_ptr())
        };
        if pid < 0 {
            return Err(NotStarted { step: Some("start a process"), why: io::Error::last_os_error() });
        }
        match child.failed {
            None => Ok(pid),
            Some((step, why)) => Err(NotStarted { step, why: why.into() }),
        }
    }

    /// What the child does before it becomes its command.
    fn become_it(&self) -> Result<(), Failed> {
        let at = |step: &'static str| move |why: Errno| (Some(step), why);
        let [stdin, stdout, stderr] = &self.stdio;
        rustix::stdio::dup2_stdin(stdin).map_err(at("stdin"))?;
        rustix::stdio::dup2_stdout(stdout).map_err(at("stdout"))?;
        rustix::stdio::dup2_stderr(stderr).map_err(at("stderr"))?;
        rustix::process::chdir(&self.cwd).map_err(at("enter the working directory"))?;
        rustix::process::setsid().map_err(at("make a session"))?;
        if self.has_terminal {
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin()).map_err(at("take the terminal"))?;
        }
        if let Some(cgroup) = &self.cgroup {
            rustix::io::write(cgroup, b"0").map_err(at("enter the cgroup"))?;
        }
        // The agent is not to be killed where memory runs out; its commands are.
        let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
        if let Ok(score) = rustix::fs::open(c"/proc/self/oom_score_adj", flags, rustix::fs::Mode::empty()) {
            let _ = rustix::io::write(score, b"0");
        }
        rustix::process::setpriority_process(None, 0).map_err(at("set the priority"))?;
        let files = Rlimit { current: Some(SOFT_OPEN_FILES), maximum: Some(OPEN_FILES) };
        rustix::process::setrlimit(Resource::Nofile, files).map_err(at("set the limit of open files"))?;
        for (resource, limit) in &self.limits {
            rustix::process::setrlimit(*resource, *limit).map_err(at("set a limit"))?;
        }
        let identity = &self.identity;
        // Plain system calls: they are this process's alone, and the C library's forms would tell the agent's threads.
        // SAFETY: the pointer and the length are those of a vector that outlives the call.
        check(unsafe { libc::syscall(libc::SYS_setgroups, identity.groups.len(), identity.groups.as_ptr()) })
            .map_err(at("set the supplementary groups"))?;
        let (uid, gid) = (identity.uid.get(), identity.gid.get());
        // SAFETY: setresgid takes three numbers and touches no memory.
        check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) }).map_err(at("set the group"))?;
        // SAFETY: setresuid takes three numbers and touches no memory.
        check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map_err(at("set the user"))?;
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(self.umask));
        // Rust programs ignore it, and others count on it.
        // SAFETY: the default is no function of ours, and who handles a signal is not shared with the agent.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        let unblocked = nix::sys::signal::SigSet::empty().thread_set_mask();
        unblocked.map_err(|error| (Some("unblock signals"), Errno::from_raw_os_error(error as i32)))
    }
}

/// A child's whole life until its exec; where it returns, the child ends.
extern "C" fn become_command(child: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `Launch::start` passes a pointer to its own `Child`, and does not touch that until this process has become its
    // command or has ended.
    let child = unsafe { &mut *child.cast::<Child<'_>>() };
    child.failed = Some(match child.launch.become_it() {
        Err(failed) => failed,
        Ok(()) => {
            // SAFETY: the strings end with a zero, both lists with a null pointer, and all of it outlives the call.
            unsafe { libc::execve(child.launch.file.as_ptr(), child.argv.as_ptr(), child.env.as_ptr()) };
            (None, Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::NOEXEC))
        }
    });
    127
}

fn check(result: libc::c_long) -> Result<(), Errno> {
    if result < 0 { Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::PERM)) } else { Ok(()) }
}

/// A child that was reaped.
#[derive(Clone, Copy, Debug)]
pub struct Dead {
    /// Its process ID.
    pub pid: i32,
    /// How it ended; or, of a process that this one traces, how it has stopped.
    pub status: WaitStatus,
    /// What it took, the time it lived left out.
    pub usage: Usage,
}

/// Reaps a child that has ended. `None`: there are children, and none has.
///
/// # Errors
/// What `wait4(2)` says: ECHILD where there are no children.
pub fn reap_one() -> Result<Option<Dead>, Errno> {
    let mut status = 0;
    // SAFETY: rusage is plain data, for which all zeroes are valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers lead to variables of the types that wait4 writes.
    let pid = unsafe { libc::wait4(-1, &raw mut status, libc::WNOHANG, &raw mut usage) };
    if pid < 0 {
        return Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::CHILD));
    }
    let microseconds = |time: libc::timeval| {
        u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(time.tv_usec).unwrap_or(0)
    };
    Ok((pid > 0).then(|| Dead {
        pid,
        // SAFETY: it is the number, and nothing else (repr(transparent)); the crate only makes it in calls of its own.
        status: unsafe { std::mem::transmute::<i32, WaitStatus>(status) },
        usage: Usage {
            wall_us: 0,
            user_us: microseconds(usage.ru_utime),
            system_us: microseconds(usage.ru_stime),
            max_rss_kib: u64::try_from(usage.ru_maxrss).unwrap_or(0),
        },
    }))
}

/// Sends a signal by its number, real-time ones included, to a process group that the caller knows to be its child's.
pub fn signal_group(group: i32, signal: i32) {
    // SAFETY: kill takes two numbers and touches no memory. A group or a signal that does not exist is its error.
    unsafe {
        libc::kill(-group, signal);
    }
}

/// Brings the loopback interface up.
///
/// # Errors
/// What `socket(2)` or `ioctl(2)` says.
pub fn bring_loopback_up() -> io::Result<()> {
    let socket: OwnedFd = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    // SAFETY: ifreq is plain data, for which all zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = libc::c_char::from_ne_bytes([b'l']);
    request.ifr_name[1] = libc::c_char::from_ne_bytes([b'o']);
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads the name and the flags of the ifreq that the pointer leads to.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sets how far the kernel reads ahead of who reads a block device's files, in KiB.
///
/// # Errors
/// What opening it or `ioctl(2)` says.
pub fn set_read_ahead(device: &Path, kib: usize) -> io::Result<()> {
    // _IO(0x12, 98) in the kernel's linux/fs.h; its argument is a number of sectors of 512 bytes.
    const BLKRASET: rustix::ioctl::Opcode = rustix::ioctl::opcode::none(0x12, 98);
    let device = std::fs::File::open(device)?;
    // SAFETY: BLKRASET takes a number and touches no memory.
    unsafe { rustix::ioctl::ioctl(&device, rustix::ioctl::IntegerSetter::<BLKRASET>::new_usize(kib * 2)) }?;
    Ok(())
}

/// Sets how much the kernel buffers for a vsock connection until it is read, in bytes, and for those that a listener accepts.
///
/// # Errors
/// What `setsockopt(2)` says.
pub fn set_vsock_buffer(socket: BorrowedFd<'_>, bytes: u64) -> io::Result<()> {
    // In the kernel's linux/vm_sockets.h. The size is cut to the most, so that is first.
    const SO_VM_SOCKETS_BUFFER_SIZE: libc::c_int = 0;
    const SO_VM_SOCKETS_BUFFER_MAX_SIZE: libc::c_int = 2;
    for option in [SO_VM_SOCKETS_BUFFER_MAX_SIZE, SO_VM_SOCKETS_BUFFER_SIZE] {
        let length = size_of_val(&bytes) as libc::socklen_t;
        // SAFETY: the kernel reads so many bytes of a number that outlives the call.
        let result =
            unsafe { libc::setsockopt(socket.as_raw_fd(), libc::AF_VSOCK, option, (&raw const bytes).cast(), length) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Sends a signal by its number, real-time ones included, to one process.
pub fn signal_process(pid: i32, signal: i32) {
    // SAFETY: kill takes two numbers and touches no memory. A process or a signal that does not exist is its error.
    unsafe {
        libc::kill(pid, signal);
    }
}

/// Which side of a fork this is.
#[derive(Debug, PartialEq, Eq)]
pub enum Side {
    /// The process that was there before.
    Parent,
    /// The new one.
    Child,
}

/// Makes a second process of this one, which must have one thread.
///
/// # Errors
/// What `fork(2)` says.
pub fn fork() -> io::Result<Side> {
    // SAFETY: with one thread there is no lock that somebody else holds, so the child may go on as if nothing had happened.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Side::Child),
        _ => Ok(Side::Parent),
    }
}

/// How a traced process goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// To the next event.
    Event,
    /// To the next event, or the next system call's begin or end.
    SystemCall,
    /// Traced no more.
    Free,
}

/// Lets a stopped process go on that the calling thread traces, with a signal, or 0 for none.
///
/// # Errors
/// What `ptrace(2)` says: ESRCH where it is gone, or not stopped.
pub fn resume(pid: i32, how: Resume, signal: i32) -> io::Result<()> {
    let request = match how {
        Resume::Event => libc::PTRACE_CONT,
        Resume::SystemCall => libc::PTRACE_SYSCALL,
        Resume::Free => libc::PTRACE_DETACH,
    };
    // SAFETY: these requests take numbers; the address is not used, and data is the signal.
    if unsafe { libc::ptrace(request, pid, std::ptr::null_mut::<libc::c_void>(), signal as libc::c_long) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The system call that a process begins which stopped for one; `None` where it ends one.
///
/// # Errors
/// What `ptrace(2)` says: EIO from a kernel before 5.3.
pub fn begun_system_call(pid: i32) -> io::Result<Option<libc::c_long>> {
    // SAFETY: the structure is plain data, for which all zeroes are valid.
    let mut info: libc::ptrace_syscall_info = unsafe { std::mem::zeroed() };
    let size = size_of_val(&info);
    // SAFETY: the kernel writes at most `size` bytes to the structure, which is that large.
    if unsafe { libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO, pid, size, &raw mut info) } < 0 {
        return Err(io::Error::last_os_error());
    }
    if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return Ok(None);
    }
    // SAFETY: `op` says that the kernel filled this member in.
    Ok(libc::c_long::try_from(unsafe { info.u.entry.nr }).ok())
}
