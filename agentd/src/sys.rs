//! The system calls for which there is no safe wrapper: starting a child and waiting for it, ptrace, signals by number, and the loopback
//! interface. This is the only file of agentd with unsafe code.

#![allow(unsafe_code)]

use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::AtomicI32;

use msb::record::owner::Id;
use msb::wire::exec::{Capabilities, Usage};
use nix::libc;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};
use rustix::thread::{self, CapabilitySet, CapabilitySets};

use crate::barrier::Barrier;
use crate::container::LateMounts;
use crate::not_started::{Failed, NotStarted};
use crate::program;

/// The hard limit of open files, as container runtimes set it.
pub const OPEN_FILES: u64 = 1 << 20;
/// The soft limit of open files of a command. Programs that use select(2) or close all descriptors need a low one.
pub const SOFT_OPEN_FILES: u64 = 1024;

/// Makes malloc return memory to the kernel: with one arena for all threads, and with the buffers of streams in mappings of their own.
pub fn limit_malloc() {
    // SAFETY: mallopt takes two numbers, and there is no second thread yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 10);
    }
}

/// The IDs of a child.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// The user ID.
    pub uid: Id,
    /// The group ID.
    pub gid: Id,
    /// The supplementary group IDs.
    pub groups: Vec<u32>,
}

impl Identity {
    /// Whether it is root without supplementary groups.
    fn is_root_alone(&self) -> bool {
        self.uid.get() == 0 && self.gid.get() == 0 && self.groups.is_empty()
    }

    /// Gives these IDs to the calling process. Plain system calls: the C library's functions would change the IDs of the agent's threads.
    fn assume(&self) -> Result<(), Failed> {
        let at = |step: &'static str| move |why: Errno| (Some(step), why);
        // SAFETY: the pointer and the length are those of a vector that outlives the call.
        check(unsafe { libc::syscall(libc::SYS_setgroups, self.groups.len(), self.groups.as_ptr()) })
            .map_err(at("set the supplementary groups"))?;
        let (uid, gid) = (self.uid.get(), self.gid.get());
        // SAFETY: setresgid takes three numbers and touches no memory.
        check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) }).map_err(at("set the group"))?;
        // SAFETY: setresuid takes three numbers and touches no memory.
        check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map_err(at("set the user"))
    }
}

/// A command that is ready to be started, as the leader of a new session. Everything is allocated in advance: between its start and its
/// exec, the child shares this process's memory and may only make system calls.
#[derive(Debug)]
pub struct Launch<'a> {
    /// The file to execute.
    pub file: CString,
    /// Its arguments, `argv[0]` included.
    pub argv: Vec<CString>,
    /// Its environment, `NAME=VALUE` each.
    pub env: Vec<CString>,
    /// Its working directory.
    pub cwd: CString,
    /// Its stdin, stdout and stderr.
    pub stdio: [BorrowedFd<'a>; 3],
    /// Its user and groups.
    pub identity: Identity,
    /// Whether its stdin becomes its controlling terminal.
    pub has_terminal: bool,
    /// The file mode creation mask.
    pub umask: u32,
    /// Resource limits besides the default ones.
    pub limits: Vec<(Resource, Rlimit)>,
    /// The open `cgroup.procs` of its cgroup.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Its capabilities; `None` for those that its user has.
    pub capabilities: Option<Capabilities>,
    /// Whether execve(2) grants it no privileges.
    pub no_new_privileges: bool,
    /// The adjustment of the OOM killer's score. `None`: it is that of the agent.
    pub oom_score_adj: Option<CString>,
    /// For a command in a container: what it mounts there. It also has a new cgroup namespace, and signals go to it alone.
    pub contained: Option<&'a LateMounts>,
    /// Where it waits before it executes its file. `None`: it does not wait.
    pub barrier: Option<&'a Barrier>,
}

/// The shell that runs files of an unknown format, as a shell itself does.
const SHELL: &CStr = c"/bin/sh";

/// The data of a child until its exec.
struct Child<'a> {
    launch: &'a Launch<'a>,
    argv: Vec<*const libc::c_char>,
    /// The arguments of [`SHELL`]: the file, and its arguments.
    shell_argv: Vec<*const libc::c_char>,
    env: Vec<*const libc::c_char>,
    failed: Option<Failed>,
}

/// The stack of a child until its exec, in bytes.
const CHILD_STACK: usize = 32 << 10;

impl Launch<'_> {
    /// Starts the command as vfork(2) does: the child shares this process's memory, and this thread waits until the child has executed its
    /// file, which takes as long as its storage takes. Returns the process ID, which is also stored in `child_id` before the child runs.
    ///
    /// A child that waits at a barrier has a copy of the memory instead, because it may wait for days, and the OOM killer ends all processes
    /// that share memory. This thread does not wait for it.
    ///
    /// # Errors
    /// See [`NotStarted`]. If there was a child, it still has to be waited for.
    pub fn start(&self, child_id: &AtomicI32) -> Result<i32, NotStarted> {
        let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
            strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
        };
        let arguments = pointers(self.argv.get(1..).unwrap_or_default());
        let shell_argv = [SHELL.as_ptr(), self.file.as_ptr()].into_iter().chain(arguments).collect();
        let mut child =
            Child { launch: self, argv: pointers(&self.argv), shell_argv, env: pointers(&self.env), failed: None };
        // Units of 16 bytes: the end of the stack has to be aligned, and clone(2) does not align it.
        let mut stack = vec![0u128; CHILD_STACK / 16];
        let sharing = if self.barrier.is_some() { 0 } else { libc::CLONE_VM | libc::CLONE_VFORK };
        let flags = sharing | libc::CLONE_PARENT_SETTID | libc::SIGCHLD;
        // SAFETY: the child has its own stack, which grows down from its end. All other memory is its own copy, or it is shared with this
        // thread, which waits meanwhile, so `child` and `child_id` outlive their use. The child only makes system calls: it neither
        // allocates nor takes a lock that another thread may hold.
        let pid = unsafe {
            let end = stack.as_mut_ptr().add(stack.len());
            libc::clone(become_command, end.cast(), flags, (&raw mut child).cast(), child_id.as_ptr())
        };
        if pid < 0 {
            return Err(NotStarted::at("start a process", io::Error::last_os_error()));
        }
        match child.failed {
            None => Ok(pid),
            Some((step, why)) => Err(NotStarted { step: step.map(Cow::Borrowed), why: why.into() }),
        }
    }

    /// The system calls of the child before its exec.
    fn set_up(&self) -> Result<(), Failed> {
        let at = |step: &'static str| move |why: Errno| (Some(step), why);
        let [stdin, stdout, stderr] = &self.stdio;
        rustix::stdio::dup2_stdin(stdin).map_err(at("stdin"))?;
        rustix::stdio::dup2_stdout(stdout).map_err(at("stdout"))?;
        rustix::stdio::dup2_stderr(stderr).map_err(at("stderr"))?;
        if let Some(late) = self.contained {
            late.mount()?;
        }
        rustix::process::chdir(&self.cwd).map_err(at("enter the working directory"))?;
        rustix::process::setsid().map_err(at("make a session"))?;
        if self.has_terminal {
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin()).map_err(at("take the terminal"))?;
        }
        if let Some(cgroup) = &self.cgroup {
            rustix::io::write(cgroup, b"0").map_err(at("enter the cgroup"))?;
        }
        if self.contained.is_some() && self.cgroup.is_some() {
            let unshared = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWCGROUP);
            unshared.map_err(|error| (Some("new cgroup namespace"), Errno::from_raw_os_error(error as i32)))?;
        }
        // The OOM killer may end commands, but not the agent.
        let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
        if let Some(adjustment) = &self.oom_score_adj
            && let Ok(score) = rustix::fs::open(c"/proc/self/oom_score_adj", flags, rustix::fs::Mode::empty())
        {
            let _ = rustix::io::write(score, adjustment.as_bytes());
        }
        rustix::process::setpriority_process(None, 0).map_err(at("set the priority"))?;
        let files = Rlimit { current: Some(SOFT_OPEN_FILES), maximum: Some(OPEN_FILES) };
        rustix::process::setrlimit(Resource::Nofile, files).map_err(at("set the limit of open files"))?;
        for (resource, limit) in &self.limits {
            rustix::process::setrlimit(*resource, *limit).map_err(at("set a limit"))?;
        }
        if let Some(capabilities) = &self.capabilities {
            limit_bounding_set(capabilities).map_err(at("limit the bounding set of capabilities"))?;
            // Without this, another user would have none.
            thread::set_keep_capabilities(true).map_err(at("keep capabilities"))?;
        }
        // Outside of containers the agent is root and has no supplementary groups.
        if self.contained.is_some() || !self.identity.is_root_alone() {
            self.identity.assume()?;
        }
        if let Some(capabilities) = &self.capabilities {
            set_capabilities(capabilities).map_err(at("set the capabilities"))?;
        }
        if self.no_new_privileges {
            thread::set_no_new_privs(true).map_err(at("set no_new_privs"))?;
        }
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(self.umask));
        // Rust programs ignore SIGPIPE; other programs rely on its default.
        // SAFETY: SIG_DFL is not a function, and signal handlers are not shared with the agent.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        let unblocked = nix::sys::signal::SigSet::empty().thread_set_mask();
        unblocked.map_err(|error| (Some("unblock signals"), Errno::from_raw_os_error(error as i32)))?;
        match self.barrier {
            Some(barrier) => self.wait_at(barrier),
            None => Ok(()),
        }
    }

    /// Checks that the user may execute the file, reports that, and waits at the barrier. If the barrier is not opened, the process ends.
    fn wait_at(&self, barrier: &Barrier) -> Result<(), Failed> {
        // The agent's descriptors would be open in this process as long as it waits.
        close_all_but(barrier.child_ends().map(|end| end.as_raw_fd()))
            .map_err(|why| (Some("close the agent's descriptors"), why))?;
        rustix::fs::access(&self.file, rustix::fs::Access::EXEC_OK).map_err(|why| (None, why))?;
        if !barrier.wait() {
            // SAFETY: _exit ends this process, and runs nothing of the agent.
            unsafe { libc::_exit(127) };
        }
        Ok(())
    }
}

/// Removes what is not in the new bounding set from the old one.
fn limit_bounding_set(capabilities: &Capabilities) -> Result<(), Errno> {
    for number in 0..u64::BITS {
        let capability = 1 << number;
        if capabilities.bounding & capability == 0 {
            match thread::remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(capability)) {
                // The kernel has no capability with this number, and so none above it.
                Err(Errno::INVAL) => break,
                other => other?,
            }
        }
    }
    Ok(())
}

/// Sets all sets but the bounding one.
fn set_capabilities(capabilities: &Capabilities) -> Result<(), Errno> {
    let [effective, permitted, inheritable] =
        [capabilities.effective, capabilities.permitted, capabilities.inheritable].map(CapabilitySet::from_bits_retain);
    thread::set_capabilities(None, CapabilitySets { effective, permitted, inheritable })?;
    thread::clear_ambient_capability_set()?;
    for number in 0..u64::BITS {
        let capability = 1 << number;
        if capabilities.ambient & capability != 0 {
            // One that is not both permitted and inheritable cannot be ambient. runc and crun ignore it, too.
            let _ = thread::configure_capability_in_ambient_set(CapabilitySet::from_bits_retain(capability), true);
        }
    }
    Ok(())
}

/// Closes all descriptors from 3 on, except two.
fn close_all_but(mut kept: [i32; 2]) -> Result<(), Errno> {
    kept.sort_unstable();
    let [low, high] = kept;
    for (first, last) in [(3, low - 1), (low + 1, high - 1), (high + 1, i32::MAX)] {
        if first <= last {
            // SAFETY: close_range takes numbers. The process executes another file or exits before it uses one of these descriptors.
            check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
        }
    }
    Ok(())
}

/// The entry point of the child. If it returns, the child exits.
extern "C" fn become_command(child: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `Launch::start` passes a pointer to its own `Child` and does not use it until the child has executed its file or exited.
    let child = unsafe { &mut *child.cast::<Child<'_>>() };
    let failed = match child.launch.set_up() {
        Err(failed) => failed,
        Ok(()) => {
            let mut error = child.execute(&child.launch.file, &child.argv);
            if error == Errno::NOEXEC && is_script(&child.launch.file) {
                // One without "#!": a shell would run it itself.
                error = child.execute(SHELL, &child.shell_argv);
            }
            (None, error)
        }
    };
    if let Some(barrier) = child.launch.barrier {
        barrier.fail(&failed);
    }
    child.failed = Some(failed);
    127
}

/// Whether a file that the kernel does not execute is text. It may be a program of another architecture. False for one that cannot be read.
fn is_script(file: &CStr) -> bool {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let Ok(file) = rustix::fs::open(file, flags, Mode::empty()) else { return false };
    let mut start = [0; program::SAMPLE];
    rustix::io::read(&file, &mut start).is_ok_and(|length| program::is_text(start.get(..length).unwrap_or_default()))
}

impl Child<'_> {
    /// Executes a file. Returns only if that fails.
    fn execute(&self, file: &CStr, argv: &[*const libc::c_char]) -> Errno {
        // SAFETY: the strings end with a NUL, both lists end with a null pointer, and all of them outlive the call.
        unsafe { libc::execve(file.as_ptr(), argv.as_ptr(), self.env.as_ptr()) };
        Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::NOEXEC)
    }
}

fn check(result: libc::c_long) -> Result<(), Errno> {
    if result < 0 { Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::PERM)) } else { Ok(()) }
}

/// A child that was reaped.
#[derive(Clone, Copy, Debug)]
pub struct Dead {
    /// Its process ID.
    pub pid: i32,
    /// Its status of `wait(2)`. A process that is traced may have stopped instead of ended.
    pub status: i32,
    /// Its resource usage, without the wall-clock time.
    pub usage: Usage,
}

/// Waits for a child that has ended: the one with this process ID, or any. `None`: it has not ended, or none has.
///
/// # Errors
/// Those of `wait4(2)`: ECHILD if there are no such children.
pub fn reap_one(child: Option<i32>) -> Result<Option<Dead>, Errno> {
    let mut status = 0;
    // SAFETY: rusage is plain data, for which all zeroes are valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to variables of the types that wait4 writes.
    let pid = unsafe { libc::wait4(child.unwrap_or(-1), &raw mut status, libc::WNOHANG, &raw mut usage) };
    if pid < 0 {
        return Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::CHILD));
    }
    let microseconds = |time: libc::timeval| {
        u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(time.tv_usec).unwrap_or(0)
    };
    Ok((pid > 0).then(|| Dead {
        pid,
        status,
        usage: Usage {
            wall_us: 0,
            user_us: microseconds(usage.ru_utime),
            system_us: microseconds(usage.ru_stime),
            max_rss_kib: u64::try_from(usage.ru_maxrss).unwrap_or(0),
        },
    }))
}

/// Sends a signal by its number, which may be a real-time signal, to a process group. The caller knows that it is a child's.
pub fn signal_group(group: i32, signal: i32) {
    // SAFETY: kill takes two numbers and accesses no memory. A group or signal that does not exist is an error.
    unsafe {
        libc::kill(-group, signal);
    }
}

/// Sets how far the kernel reads ahead on a block device, in KiB.
///
/// # Errors
/// Those of `open(2)` and `ioctl(2)`.
pub fn set_read_ahead(device: &Path, kib: usize) -> io::Result<()> {
    // _IO(0x12, 98) in the kernel's linux/fs.h; its argument is a number of sectors of 512 bytes.
    const BLKRASET: rustix::ioctl::Opcode = rustix::ioctl::opcode::none(0x12, 98);
    let device = std::fs::File::open(device)?;
    // SAFETY: BLKRASET takes a number and accesses no memory.
    unsafe { rustix::ioctl::ioctl(&device, rustix::ioctl::IntegerSetter::<BLKRASET>::new_usize(kib * 2)) }?;
    Ok(())
}

/// Sets the size of a vsock socket's receive buffer, in bytes. Connections that a listener accepts inherit it.
///
/// # Errors
/// Those of `setsockopt(2)`.
pub fn set_vsock_buffer(socket: BorrowedFd<'_>, bytes: u64) -> io::Result<()> {
    // From the kernel's linux/vm_sockets.h. The size is limited by the maximum, so the maximum is set first.
    const SO_VM_SOCKETS_BUFFER_SIZE: libc::c_int = 0;
    const SO_VM_SOCKETS_BUFFER_MAX_SIZE: libc::c_int = 2;
    for option in [SO_VM_SOCKETS_BUFFER_MAX_SIZE, SO_VM_SOCKETS_BUFFER_SIZE] {
        let length = size_of_val(&bytes) as libc::socklen_t;
        // SAFETY: the kernel reads `length` bytes of a number that outlives the call.
        let result =
            unsafe { libc::setsockopt(socket.as_raw_fd(), libc::AF_VSOCK, option, (&raw const bytes).cast(), length) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Sends a signal by its number, which may be a real-time signal, to one process.
pub fn signal_process(pid: i32, signal: i32) {
    // SAFETY: kill takes two numbers and accesses no memory. A process or signal that does not exist is an error.
    unsafe {
        libc::kill(pid, signal);
    }
}

/// Adds random bytes to the kernel's pool, counted as random, and makes its random number generator begin anew with them.
///
/// # Errors
/// Those of the two requests of random(4).
pub fn reseed(random: BorrowedFd<'_>, entropy: &[u8]) -> io::Result<()> {
    /// `RNDADDENTROPY` and `RNDRESEEDCRNG` of linux/random.h, which are the same for all architectures of this program.
    const ADD: libc::Ioctl = 0x4008_5203_u32 as libc::Ioctl;
    const RESEED: libc::Ioctl = 0x5207;
    let length = libc::c_int::try_from(entropy.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // struct rand_pool_info: the entropy in bits, the size in bytes, the bytes.
    let info = [&(8 * length).to_ne_bytes()[..], &length.to_ne_bytes(), entropy].concat();
    // SAFETY: the kernel reads the two numbers, and as many bytes as the second one says, which are there.
    if unsafe { libc::ioctl(random.as_raw_fd(), ADD, info.as_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the request has no argument.
    if unsafe { libc::ioctl(random.as_raw_fd(), RESEED) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The side of a fork.
#[derive(Debug, PartialEq, Eq)]
pub enum Side {
    /// The process that called it.
    Parent,
    /// The new one.
    Child,
}

/// Forks this process, which must have one thread.
///
/// # Errors
/// Those of `fork(2)`.
pub fn fork() -> io::Result<Side> {
    // SAFETY: with one thread, no lock is held by another one, so the child may use everything.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Side::Child),
        _ => Ok(Side::Parent),
    }
}

/// How far a traced process is resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// To the next event.
    Event,
    /// To the next event, or the entry to or exit from a system call.
    SystemCall,
    /// For good: it is not traced any more.
    Detach,
}

/// Resumes a stopped process that the calling thread traces, with a signal, or 0 for none.
///
/// # Errors
/// Those of `ptrace(2)`: ESRCH if it is gone or not stopped.
pub fn resume(pid: i32, how: Resume, signal: i32) -> io::Result<()> {
    let request = match how {
        Resume::Event => libc::PTRACE_CONT,
        Resume::SystemCall => libc::PTRACE_SYSCALL,
        Resume::Detach => libc::PTRACE_DETACH,
    };
    // SAFETY: these requests take numbers: the address is unused, and the data is the signal.
    if unsafe { libc::ptrace(request, pid, std::ptr::null_mut::<libc::c_void>(), signal as libc::c_long) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The system call that a process has stopped to enter. `None`: it has stopped to leave one.
///
/// # Errors
/// Those of `ptrace(2)`: EIO from a kernel before 5.3.
pub fn entered_system_call(pid: i32) -> io::Result<Option<libc::c_long>> {
    // SAFETY: the structure is plain data, for which all zeroes are valid.
    let mut info: libc::ptrace_syscall_info = unsafe { std::mem::zeroed() };
    let size = size_of_val(&info);
    // SAFETY: the kernel writes at most `size` bytes to the structure, which has that size.
    if unsafe { libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO, pid, size, &raw mut info) } < 0 {
        return Err(io::Error::last_os_error());
    }
    if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return Ok(None);
    }
    // SAFETY: `op` says that the kernel has set this member.
    Ok(libc::c_long::try_from(unsafe { info.u.entry.nr }).ok())
}
