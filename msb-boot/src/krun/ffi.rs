//! The C interfaces of libkrun, libkrunfw, keyrings, the TAP driver and seccomp's user notifications, the time-stamp counter, and all
//! unsafe code of this program. Every function that this file exports is safe.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;

use libloading::Library;
use msb::architecture::KernelFormat;
use msb::record::DiskFormat;
use nix::libc;
use rustix::io::FdFlags;
use rustix::ioctl::{Opcode, Setter, Updater, ioctl, opcode};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// The features of a network card that leaves checksums and TCP segmentation to the host: libkrun's `NET_COMPAT_FEATURES`. Without them,
/// libkrun gives the guest's kernel receive buffers of 1514 bytes, and drops every larger frame.
const OFFLOAD_FEATURES: u32 = 0x4c83;

/// An anonymous mapping of so many bytes is memory of a guest. No other one is as large.
const GUEST_MEMORY: usize = 32 << 20;

/// A kernel image in the library's own pages, which stay mapped.
pub(crate) struct KernelImage {
    /// The raw image.
    pub bytes: &'static [u8],
    /// The physical address at which it must be loaded.
    pub load: u64,
    /// The entry for a processor in 64-bit mode.
    pub entry: u64,
}

/// The processor's time-stamp counter; `None` on an architecture without it.
#[cfg(target_arch = "x86_64")]
pub(crate) fn time_stamp() -> Option<u64> {
    // SAFETY: every processor of this architecture has the instruction. It reads a register, and nothing else.
    Some(unsafe { std::arch::x86_64::_rdtsc() })
}

/// The processor's time-stamp counter; `None` on an architecture without it.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn time_stamp() -> Option<u64> {
    None
}

fn open(name: &Path) -> io::Result<Library> {
    // SAFETY: loading runs the library's initialisers. The library is a libkrunfw of the user's choice, as for any program that is
    // linked to one, and its only initialisers are those of the C runtime.
    unsafe { Library::new(name) }.map_err(io::Error::other)
}

/// The path at which the dynamic loader finds a library.
pub(crate) fn loaders_path(name: &str) -> Option<PathBuf> {
    let _loaded = open(Path::new(name)).ok()?;
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let path = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..])).find(|path| {
        let file = path.rsplit('/').next().unwrap_or_default();
        file.starts_with(name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.'))
    })?;
    Some(path.into())
}

/// The kernel in a libkrunfw. The library is never unloaded.
///
/// # Errors
/// A file that is not a libkrunfw, or holds no kernel.
pub(crate) fn kernel_image(library: &Path) -> io::Result<KernelImage> {
    type GetKernel = unsafe extern "C" fn(*mut u64, *mut u64, *mut usize) -> *const u8;
    let library = std::mem::ManuallyDrop::new(open(library)?);
    // SAFETY: this is the type of the symbol in version 5 of libkrunfw's interface.
    let get_kernel = unsafe { library.get::<GetKernel>(b"krunfw_get_kernel\0") }.map_err(io::Error::other)?;
    let (mut load, mut entry, mut size) = (0, 0, 0);
    // SAFETY: the function writes one value through each of the three pointers, which are valid.
    let start = unsafe { get_kernel(&raw mut load, &raw mut entry, &raw mut size) };
    if start.is_null() || size == 0 {
        return Err(io::Error::other("it holds no kernel"));
    }
    // SAFETY: the library gives the start and size of memory that is never written and never unmapped.
    let bytes = unsafe { std::slice::from_raw_parts(start, size) };
    Ok(KernelImage { bytes, load, entry })
}

/// The address that the kernel would choose for a new mapping of `length` bytes.
///
/// # Errors
/// Those of `mmap(2)`.
pub(crate) fn next_mapping_address(length: usize) -> io::Result<usize> {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new mapping, which is unmapped before anything uses it.
    unsafe {
        let start = mmap_anonymous(ptr::null_mut(), length, ProtFlags::empty(), flags)?;
        munmap(start, length)?;
        Ok(start.addr())
    }
}

/// Reserves the page at `address` for the rest of the process's life.
///
/// # Errors
/// EEXIST if something is mapped there already.
pub(crate) fn occupy(address: usize) -> io::Result<()> {
    let flags = MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE;
    // SAFETY: a new mapping that replaces no other, and that cannot be read or written.
    unsafe { mmap_anonymous(ptr::without_provenance_mut(address), 1, ProtFlags::empty(), flags) }?;
    Ok(())
}

/// The C library's `mmap`, in its place for all Rust code of this program. libkrun maps the guest's memory with it, and does not ask for
/// huge pages, which most distributions give only on request (`madvise` in /sys/kernel/mm/transparent_hugepage/enabled).
///
/// # Safety
/// That of `mmap(2)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn mmap(
    address: *mut libc::c_void,
    length: libc::size_t,
    protection: libc::c_int,
    flags: libc::c_int,
    fd: libc::c_int,
    offset: libc::off_t,
) -> *mut libc::c_void {
    // SAFETY: the arguments are the caller's.
    let mapped = unsafe { libc::syscall(libc::SYS_mmap, address, length, protection, flags, fd, offset) };
    let mapped = ptr::with_exposed_provenance_mut(mapped.cast_unsigned() as usize);
    if flags & libc::MAP_ANONYMOUS != 0 && length >= GUEST_MEMORY && mapped != libc::MAP_FAILED {
        // SAFETY: the mapping is new, and the advice does not change its content. Without huge pages the VM is slower, and that is all.
        let _ = unsafe { libc::madvise(mapped, length, libc::MADV_HUGEPAGE) };
    }
    mapped
}

/// Maps memory as libkrun maps a guest's, and returns the address.
#[cfg(test)]
pub(super) fn map_as_libkrun(length: usize) -> usize {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping, which nothing uses and nothing unmaps.
    unsafe { libc::mmap(ptr::null_mut(), length, protection, flags, -1, 0) }.addr()
}

/// Keeps an inherited descriptor from programs that this process executes.
///
/// # Errors
/// EBADF if there is no such descriptor.
pub(crate) fn close_on_exec(number: RawFd) -> io::Result<()> {
    if number < 0 {
        return Err(io::Error::from_raw_os_error(rustix::io::Errno::BADF.raw_os_error()));
    }
    // SAFETY: the descriptor is borrowed for one system call, which fails if it is not open.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    Ok(rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC)?)
}

/// Gives this thread the policy SCHED_BATCH (sched(7)): when it wakes, it does not preempt the running thread.
///
/// # Errors
/// Those of `sched_setscheduler(2)`.
pub(crate) fn schedule_in_batches() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the call reads the parameters, which outlive it. Zero is this thread.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameters) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives this thread, and what it starts, a session keyring of its own, which is empty. None is needed where there are no keyrings: in a
/// kernel without them, and in a container whose filter forbids them.
///
/// # Errors
/// Those of `keyctl(2)`: EDQUOT.
pub(crate) fn join_new_session_keyring() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    let no_name = ptr::null::<libc::c_char>();
    // SAFETY: the operation takes a name, which may be null, and writes nothing.
    match unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, no_name) } {
        -1 => match io::Error::last_os_error() {
            error if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => Ok(()),
            error => Err(error),
        },
        _ => Ok(()),
    }
}

/// Opens a TAP interface of this process's network namespace. It must exist: the kernel would create it.
///
/// # Errors
/// Those of `open(2)` of `/dev/net/tun` and of its `TUNSETIFF`: EBUSY if another process has it.
pub(crate) fn open_tap(name: &str) -> io::Result<OwnedFd> {
    let tap = fs::File::options().read(true).write(true).open("/dev/net/tun")?;
    set_plain_frames(&tap, name)?;
    Ok(tap.into())
}

/// Makes a descriptor carry Ethernet frames without a header. A descriptor of `/dev/net/tun` is attached to the TAP interface `name`. A
/// macvtap descriptor has its interface already, and the name is ignored.
///
/// # Errors
/// Those of `TUNSETIFF`.
pub(crate) fn set_plain_frames(tap: &impl AsFd, name: &str) -> io::Result<()> {
    /// `struct ifreq`: the name and, in the union after it, the flags.
    #[repr(C)]
    struct InterfaceRequest {
        name: [u8; 16],
        flags: u16,
        rest: [u8; 22],
    }
    const TUNSETIFF: Opcode = opcode::write::<i32>(b'T', 202);
    const IFF_TAP: u16 = 0x2;
    const IFF_NO_PI: u16 = 0x1000;
    let mut request = InterfaceRequest { name: [0; 16], flags: IFF_TAP | IFF_NO_PI, rest: [0; 22] };
    let length = name.len().min(request.name.len() - 1);
    request.name[..length].copy_from_slice(&name.as_bytes()[..length]);
    // SAFETY: TUNSETIFF takes a pointer to a `struct ifreq`, reads it and may write the name, and this one outlives the call.
    unsafe { ioctl(tap, Updater::<TUNSETIFF, InterfaceRequest>::new(&mut request)) }?;
    Ok(())
}

/// A call of openat(2) that waits for an answer.
pub(crate) struct Opening {
    id: u64,
    /// The process ID of the caller.
    pub process: u32,
    /// The address of the path in its memory.
    pub path: u64,
}

/// Installs a filter for this thread and the program that it executes. Each openat(2) with `O_RDWR` alone waits for an answer on the
/// returned descriptor. fallocate(2) on the descriptor `memory` returns 0 and does nothing. The filters of a jail apply as well.
///
/// # Errors
/// Those of seccomp(2): EBUSY if another process answers already.
pub(crate) fn divert_opens(memory: RawFd) -> io::Result<OwnedFd> {
    const LOAD: u16 = 0x20;
    const AND: u16 = 0x54;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    // Offsets in `struct seccomp_data`: the number of the call, and the lower halves of its first and third argument.
    const NUMBER: u32 = 0;
    const FIRST: u32 = 16;
    const THIRD: u32 = 32;
    /// O_LARGEFILE of x86-64 and of arm64, which musl sets. Each bit is O_NOFOLLOW on the other architecture, and is ignored too.
    const LARGE_FILE: u32 = 0o500_000;
    let call = |number: libc::c_long| u32::try_from(number).unwrap_or(u32::MAX);
    let statement = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut filter = [
        statement(LOAD, 0, 0, NUMBER),
        statement(JUMP_IF_EQUAL, 1, 0, call(libc::SYS_openat)),
        statement(JUMP_IF_EQUAL, 3, 6, call(libc::SYS_fallocate)),
        statement(LOAD, 0, 0, THIRD),
        statement(AND, 0, 0, !LARGE_FILE),
        statement(JUMP_IF_EQUAL, 2, 3, libc::O_RDWR.cast_unsigned()),
        statement(LOAD, 0, 0, FIRST),
        statement(JUMP_IF_EQUAL, 2, 1, memory.cast_unsigned()),
        statement(RETURN, 0, 0, libc::SECCOMP_RET_USER_NOTIF),
        statement(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        // With the error 0 the call returns 0.
        statement(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO),
    ];
    let len = u16::try_from(filter.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    // SAFETY: the kernel copies the program, whose pointer and length are those of an array that outlives the call.
    match unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) } {
        -1 => Err(io::Error::last_os_error()),
        number => {
            let number = RawFd::try_from(number).map_err(io::Error::other)?;
            // SAFETY: the descriptor is new, and nothing else owns it.
            Ok(unsafe { OwnedFd::from_raw_fd(number) })
        }
    }
}

/// Waits for the next call.
///
/// # Errors
/// ENOENT from a process that has ended.
pub(crate) fn next_opening(listener: BorrowedFd<'_>) -> io::Result<Opening> {
    const RECEIVE: Opcode = opcode::read_write::<libc::seccomp_notif>(b'!', 0);
    let data = libc::seccomp_data { nr: 0, arch: 0, instruction_pointer: 0, args: [0; 6] };
    let mut notice = libc::seccomp_notif { id: 0, pid: 0, flags: 0, data };
    // SAFETY: SECCOMP_IOCTL_NOTIF_RECV takes a pointer to a `struct seccomp_notif` of zeroes and fills it.
    unsafe { ioctl(listener, Updater::<RECEIVE, libc::seccomp_notif>::new(&mut notice)) }?;
    Ok(Opening { id: notice.id, process: notice.pid, path: notice.data.args[1] })
}

/// Lets the process open the file itself.
///
/// # Errors
/// ENOENT from a process that has ended.
pub(crate) fn leave_opening(listener: BorrowedFd<'_>, opening: &Opening) -> io::Result<()> {
    const SEND: Opcode = opcode::read_write::<libc::seccomp_notif_resp>(b'!', 1);
    let flags = u32::try_from(libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE).map_err(io::Error::other)?;
    let mut answer = libc::seccomp_notif_resp { id: opening.id, val: 0, error: 0, flags };
    // SAFETY: SECCOMP_IOCTL_NOTIF_SEND reads a `struct seccomp_notif_resp`.
    Ok(unsafe { ioctl(listener, Updater::<SEND, libc::seccomp_notif_resp>::new(&mut answer)) }?)
}

/// Adds `file` to the process as the descriptor `number`, which its call returns.
///
/// # Errors
/// ENOENT from a process that has ended; EINVAL from Linux before 5.14.
pub(crate) fn answer_opening(
    listener: BorrowedFd<'_>,
    opening: &Opening,
    file: BorrowedFd<'_>,
    number: RawFd,
) -> io::Result<()> {
    const ADD: Opcode = opcode::write::<libc::seccomp_notif_addfd>(b'!', 3);
    let flags = libc::SECCOMP_ADDFD_FLAG_SETFD | libc::SECCOMP_ADDFD_FLAG_SEND;
    let answer = libc::seccomp_notif_addfd {
        id: opening.id,
        flags: u32::try_from(flags).map_err(io::Error::other)?,
        srcfd: file.as_raw_fd().cast_unsigned(),
        newfd: number.cast_unsigned(),
        newfd_flags: libc::O_CLOEXEC.cast_unsigned(),
    };
    // SAFETY: SECCOMP_IOCTL_NOTIF_ADDFD reads a `struct seccomp_notif_addfd`.
    Ok(unsafe { ioctl(listener, Setter::<ADD, libc::seccomp_notif_addfd>::new(answer)) }?)
}

/// The configuration of a VM of libkrun.
pub(crate) struct Context(u32);

impl Context {
    /// An empty configuration. libkrun logs errors only, to stderr, regardless of the environment.
    ///
    /// # Errors
    /// Those of libkrun, as for all methods.
    pub(crate) fn new() -> io::Result<Self> {
        const STDERR: i32 = 2;
        const ERRORS: u32 = 1;
        const NEVER_COLOUR: u32 = 2;
        const NO_ENVIRONMENT: u32 = 1;
        // SAFETY: for stderr no ownership of a descriptor is passed.
        check(unsafe { krun::krun_init_log(STDERR, ERRORS, NEVER_COLOUR, NO_ENVIRONMENT) })?;
        Ok(Self(check(krun::krun_create_ctx())?))
    }

    /// Sets the processors and the memory.
    pub(crate) fn set_size(&self, cpus: u8, memory_mib: u32) -> io::Result<()> {
        check(krun::krun_set_vm_config(self.0, cpus, memory_mib)).map(drop)
    }

    /// Sets the file of the guest's kernel, its initramfs and its command line. libkrun reads both files when the VM starts, copies them to
    /// the guest's memory, and enters the kernel in 64-bit mode.
    pub(crate) fn set_kernel(
        &self,
        file: &Path,
        format: KernelFormat,
        initramfs: &Path,
        command_line: &CStr,
    ) -> io::Result<()> {
        let format = match format {
            KernelFormat::Image => 0,
            KernelFormat::Elf => 1,
        };
        let (file, initramfs) = (c_path(file)?, c_path(initramfs)?);
        let (file, initramfs, command_line) = (file.as_ptr(), initramfs.as_ptr(), command_line.as_ptr());
        // SAFETY: three C strings that outlive the call.
        check(unsafe { krun::krun_set_kernel(self.0, file, format, initramfs, command_line) }).map(drop)
    }

    /// Keeps libkrun from adding an `init.krun` of its own to a share that is the guest's first root.
    pub(crate) fn disable_implicit_init(&self) -> io::Result<()> {
        check(krun::krun_disable_implicit_init(self.0)).map(drop)
    }

    /// Shares a directory under a tag.
    pub(crate) fn add_share(&self, tag: &str, dir: &Path, read_only: bool) -> io::Result<()> {
        const NO_WINDOW: u64 = 0;
        const LINUX_SEMANTICS: u32 = 0;
        let (tag, dir) = (CString::new(tag)?, c_path(dir)?);
        let (tag, dir) = (tag.as_ptr(), dir.as_ptr());
        // SAFETY: two C strings that outlive the call.
        check(unsafe { krun::krun_add_virtiofs4(self.0, tag, dir, NO_WINDOW, read_only, LINUX_SEMANTICS) }).map(drop)
    }

    /// Adds a disk. libkrun also opens the backing file that a qcow2 image names.
    pub(crate) fn add_disk(&self, id: &str, file: &Path, format: DiskFormat, read_only: bool) -> io::Result<()> {
        const FLUSHES_REACH_THE_DISK: u32 = 2;
        let format = match format {
            DiskFormat::Raw | DiskFormat::Erofs => 0,
            DiskFormat::Qcow2 => 1,
        };
        let (id, file) = (CString::new(id)?, c_path(file)?);
        // SAFETY: two C strings that outlive the call.
        check(unsafe {
            krun::krun_add_disk3(self.0, id.as_ptr(), file.as_ptr(), format, read_only, false, FLUSHES_REACH_THE_DISK)
        })
        .map(drop)
    }

    /// Adds a vsock device without TSI, with which libkrun would give the guest the host's network.
    pub(crate) fn add_plain_vsock(&self) -> io::Result<()> {
        check(krun::krun_disable_implicit_vsock(self.0))?;
        check(krun::krun_add_vsock(self.0, 0)).map(drop)
    }

    /// Maps a vsock port to a Unix socket on the host. With `listen` the host connects to the guest, else the guest to the host.
    pub(crate) fn add_port(&self, port: u32, socket: &Path, listen: bool) -> io::Result<()> {
        let socket = c_path(socket)?;
        // SAFETY: a C string that outlives the call.
        check(unsafe { krun::krun_add_vsock_port2(self.0, port, socket.as_ptr(), listen) }).map(drop)
    }

    /// Adds a network card, whose frames are on a connected stream socket. libkrun owns the descriptor from then on.
    pub(crate) fn add_card(&self, fd: i32, mac: [u8; 6], is_offloaded: bool) -> io::Result<()> {
        let features = if is_offloaded { OFFLOAD_FEATURES } else { 0 };
        // SAFETY: there is no path, the descriptor is inherited for this and nothing else uses it, and libkrun copies the six bytes.
        check(unsafe { krun::krun_add_net_unixstream(self.0, ptr::null(), fd, mac.as_ptr(), features, 0) }).map(drop)
    }

    /// Sets the file to which the guest's console is written.
    pub(crate) fn set_console(&self, file: &Path) -> io::Result<()> {
        let file = c_path(file)?;
        // SAFETY: a C string that outlives the call.
        check(unsafe { krun::krun_set_console_output(self.0, file.as_ptr()) }).map(drop)
    }

    /// Runs the VM. The process exits with the VM; this returns only if the VM did not start.
    pub(crate) fn enter(self) -> io::Error {
        match check(krun::krun_start_enter(self.0)) {
            Ok(_) => io::Error::other("libkrun returned"),
            Err(error) => error,
        }
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    // libkrun answers EINVAL to a path that is not UTF-8.
    if path.to_str().is_none() {
        return Err(io::Error::other(format!("path {path:?} is not UTF-8, which libkrun needs")));
    }
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Converts a result of libkrun: a number, or a negative errno.
fn check(answer: i32) -> io::Result<u32> {
    u32::try_from(answer).map_err(|_| io::Error::from_raw_os_error(-answer))
}
