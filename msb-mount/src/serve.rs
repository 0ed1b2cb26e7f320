//! The server: locks the upper, mounts, reports that it is ready, and serves requests until it is unmounted or gets a signal.

use std::fs::File;
use std::io;
use std::num::NonZero;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{anyhow, bail};
use fuser::{Config as Options, MountOption, Notifier, Session, SessionACL};
use msb::overlay::upper::{Writer, in_use, lock_to_read};
use msb::overlay::{Merged, raise_open_files};
use msb::record::Mount;
use msb::store::layers;
use msb::store::sandbox::Hold;
use msb::tool::exit::warn;
use nix::sys::signal::{SigSet, Signal};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::config::Config;
use crate::fs::served::Served;
use crate::fs::{Fs, LARGEST_REQUEST};
use crate::fusermount::{Mounted, Watcher};
use crate::holder::{self, Watch};
use crate::kernel;
use crate::kind::Kind;
use crate::readers::Readers;
use crate::tree::Tree;
use crate::{host_ids, mountpoint};

/// Mounts unless `made` is a mount already, calls `ready` with the type of the mount when that responds, and serves it until it is
/// unmounted.
pub(crate) fn run(
    config: &Config,
    made: Option<Mounted>,
    ready: impl FnOnce(&str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let signals = block_signals()?;
    // The more descriptors there are, the fewer files are closed and opened again.
    raise_open_files();
    // The kernel has applied the umask of the caller already.
    rustix::process::umask(rustix::fs::Mode::empty());
    let path = &config.mountpoint;
    let _layers = layers::hold(&config.lower)?;
    let _sandbox = match &config.record.upper {
        Some(upper) => Hold::take(&upper.dir, |owner| owner.mount = Some(path.clone()))
            .map_err(|error| anyhow!("upper {:?}: {error}", upper.dir))?,
        None => None,
    };
    let upper = config.record.upper.as_ref().filter(|_| !config.access.is_read_only);
    let upper = upper.map(|upper| File::open(&upper.dir).map(Arc::new)).transpose()?;
    let (writer, lock) = lock(config)?;
    // Under the lock: the last mount of this upper may have made the same mount point, and removes it before it unlocks the upper.
    let is_new = config.is_new || (made.is_none() && mountpoint::make(path)?);
    let served = serve(config, is_new, made, (writer, lock.as_ref()), signals, upper, ready);
    // One that is mounted stays.
    mountpoint::remove(path, is_new);
    served
}

/// Mounts and serves. The caller keeps the locks, and removes the mount point if it `is_new`.
fn serve(
    config: &Config,
    is_new: bool,
    made: Option<Mounted>,
    (writer, lock): (Option<Writer>, Option<&OwnedFd>),
    signals: SigSet,
    upper: Option<Arc<File>>,
    ready: impl FnOnce(&str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let path = &config.mountpoint;
    if config.kind != Kind::Fuse && made.is_none() {
        match (kernel::mount(config), config.kind) {
            (Ok(()), _) => return hold_overlay(config, is_new, signals, upper, ready),
            (Err(_), Kind::Auto) => {}
            (Err(error), _) => bail!("mount point {path:?}: {error}"),
        }
    }
    let notifier = Arc::new(OnceLock::new());
    let tree = open(config, writer, notifier.clone())?;
    let (session, watcher, last) =
        session(config, tree, made).map_err(|error| anyhow!("mount point {path:?}: {error}"))?;
    // Of the files of a killed process the kernel releases the one with the highest number first: close(2) of each, from the lowest,
    // puts it at the head of a list (`task_work_add`). So the lock ends before the mount fails, and whoever notices that can mount
    // the upper at once. With the lock below the device, 76 of 100 attempts came up to 16 ms too early.
    let _lock = lock.and_then(|lock| rustix::io::fcntl_dupfd_cloexec(lock, last + 1).ok());
    let watcher = watcher.map(Arc::new);
    let _ = notifier.set(session.notifier());
    let ended = Arc::new(AtomicBool::new(false));
    std::thread::Builder::new().name("signals".into()).spawn({
        let (mountpoint, ended) = (config.mountpoint.clone(), ended.clone());
        let (watcher, upper) = (watcher.clone(), upper.clone());
        move || await_signal(&signals, &mountpoint, is_new, watcher.as_deref(), &ended, upper.as_deref())
    })?;
    let server = std::thread::Builder::new().name("session".into()).spawn(move || session.run())?;
    // The kernel has the reply to FUSE_INIT, so this request is served at once.
    let answered = rustix::fs::stat(path).map_err(io::Error::from);
    if let Ok(stat) = &answered {
        read_ahead(stat.st_dev);
    }
    if let Err(error) =
        answered.map_err(|error| anyhow!("mount point {path:?}: {error}")).and_then(|_| ready(Mount::FSTYPE))
    {
        let _ = mountpoint::detach(path);
        return Err(error);
    }
    let served = server.join();
    if let Some(watcher) = &watcher {
        watcher.dismiss();
    }
    sync_upper(upper.as_deref());
    ended.store(true, Ordering::Release);
    match served {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => bail!("mount point {path:?}: {error}"),
        Err(_) => bail!("mount point {path:?}: the server panicked"),
    }
}

/// The error of a mount, or that the device is missing, which gives the same errors as a missing mount point.
fn or_without_device(error: io::Error) -> io::Error {
    const REMEDY: &str = "in a container: docker run --device /dev/fuse";
    match File::options().read(true).write(true).open("/dev/fuse").map_err(|error| error.kind()) {
        Err(io::ErrorKind::NotFound) => io::Error::other(format!("there is no /dev/fuse (modprobe fuse; {REMEDY})")),
        Err(io::ErrorKind::PermissionDenied) => io::Error::other(format!("/dev/fuse may not be opened ({REMEDY})")),
        _ => error,
    }
}

/// The session, for a mount that was made already what keeps it, and the highest number of a descriptor of the device.
fn session(config: &Config, tree: Tree, made: Option<Mounted>) -> io::Result<(Session<Served>, Option<Watcher>, i32)> {
    let processors = std::thread::available_parallelism().map_or(2, NonZero::get);
    let threads = processors.clamp(2, 8);
    let readers = Readers::new(threads)?;
    let fs = Served::new(Fs::new(tree), readers.clone());
    let options = options(config, threads);
    let (session, watcher) = match made {
        None => (Session::new(fs, &config.mountpoint, &options).map_err(or_without_device)?, None),
        Some(made) => {
            host_ids::set_host()?;
            let (device, watcher) = made.split();
            // The kernel has been told who may enter.
            (Session::from_fd(fs, device, SessionACL::All, options)?, Some(watcher))
        }
    };
    // With one processor a client cannot send a request while this process polls, and a wakeup is no more than a switch.
    let mut last = session.as_fd().as_raw_fd();
    if processors > 1 {
        let device = session.as_fd().try_clone_to_owned()?;
        last = last.max(device.as_raw_fd());
        readers.read_from(device)?;
    }
    Ok((session, watcher, last))
}

/// The right to change the upper, unless the mount is read-only; and the lock that excludes other writers, if there is an upper.
fn lock(config: &Config) -> anyhow::Result<(Option<Writer>, Option<OwnedFd>)> {
    let Some(upper) = &config.record.upper else { return Ok((None, None)) };
    let refused = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock => anyhow!(in_use(&upper.dir)),
        _ => anyhow!("upper {:?}: {error}", upper.dir),
    };
    if config.access.is_read_only {
        return Ok((None, Some(lock_to_read(&upper.work).map_err(refused)?)));
    }
    let writer = Writer::open(&upper.work, true).map_err(refused)?;
    require_whiteouts(&writer, &upper.dir)?;
    let lock = writer.lock().map_err(refused)?;
    Ok((Some(writer), Some(lock)))
}

/// Reports an overlayfs that is mounted, and returns when it is unmounted. The caller keeps the locks.
fn hold_overlay(
    config: &Config,
    is_new: bool,
    signals: SigSet,
    upper: Option<Arc<File>>,
    ready: impl FnOnce(&str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let held = await_unmount(config, is_new, signals, upper.clone(), ready);
    // This process has the locks. Without it, the upper would be written without them.
    if held.is_err()
        && let Err(error) = mountpoint::detach(&config.mountpoint)
    {
        warn("msb-mount", &format!("{error:#}"));
    }
    sync_upper(upper.as_deref());
    held
}

/// Reports an overlayfs that is mounted, and returns when it is unmounted. After an error it may be mounted still.
fn await_unmount(
    config: &Config,
    is_new: bool,
    signals: SigSet,
    upper: Option<Arc<File>>,
    ready: impl FnOnce(&str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let path = &config.mountpoint;
    let failed = |error: io::Error| anyhow!("mount point {path:?}: {error}");
    let watched = Watch::new().map_err(failed)?;
    let ended = Arc::new(AtomicBool::new(false));
    let at_signal = {
        let (mountpoint, ended) = (path.clone(), ended.clone());
        move || await_signal(&signals, &mountpoint, is_new, None, &ended, upper.as_deref())
    };
    std::thread::Builder::new().name("signals".into()).spawn(at_signal).map_err(failed)?;
    ready(holder::FSTYPE)?;
    watched.wait().map_err(failed)?;
    ended.store(true, Ordering::Release);
    Ok(())
}

fn open(config: &Config, writer: Option<Writer>, notifier: Arc<OnceLock<Notifier>>) -> anyhow::Result<Tree> {
    let upper = config.record.upper.as_ref();
    let root = Merged::open_alone(&config.lower, upper.map(|upper| upper.dir.as_path()))?;
    let root = if config.access.has_oci_whiteouts { root.with_oci_whiteouts() } else { root };
    Ok(Tree::new(root, writer, config.access.can_redirect, notifier)?)
}

/// Refuses an upper in which no file of a lower layer could be removed or renamed, as the kernel's overlayfs does.
fn require_whiteouts(writer: &Writer, upper: &Path) -> anyhow::Result<()> {
    match writer.can_have_whiteouts() {
        Ok(true) => Ok(()),
        Ok(false) => bail!(
            "upper {upper:?}: its file system cannot have whiteouts, as an overlayfs or NFS cannot (put the upper on a disk's file \
             system such as ext4, or on a tmpfs: set MSB_HOME, or msb-patch --upper; or mount with --ro)"
        ),
        // A full disk, or one that is read-only: its files can be read.
        Err(_) => Ok(()),
    }
}

/// Writes what the upper's file system has in memory to its disk, as an unmount of the kernel's overlayfs does.
fn sync_upper(upper: Option<&File>) {
    if let Some(upper) = upper {
        let _ = rustix::fs::syncfs(upper);
    }
}

/// # What a request costs
///
/// The client of a request sleeps until the answer. With two processors that takes 24 µs at least (an xattr that does not exist; the
/// processor of the client halts, and is woken by an interrupt), or 13 µs if both are bound to one processor, which a server cannot do
/// to its clients. So the number of requests decides, and Linux 6.18 sends these (`fs/fuse/dir.c`):
///
/// - A new file: LOOKUP (before each CREATE of a name that is not cached), GETATTR of the directory (each change of a directory
///   invalidates all of its attributes, and the next permission check needs them), CREATE, GETXATTR of `security.capability` (at the
///   first write: `file_remove_privs`), and RELEASE, which no client waits for.
/// - A new directory: LOOKUP, MKDIR, GETATTR. A rename: LOOKUP, RENAME, GETATTR. A removal: UNLINK, GETATTR, and FORGET without an answer.
/// - A file of a warm tar: OPEN and RELEASE.
///
/// FLUSH, OPENDIR and RELEASEDIR were answered once with ENOSYS and are not sent. That would also save OPEN, for all files and
/// with it passthrough. ENOSYS to GETXATTR would end all xattrs. Without `default_permissions` there is no GETATTR, but then the server has
/// to check permissions, and it does not know the groups of a client.
///
/// Tried and dropped, besides what [`crate::readers`] has: a descriptor of its own for each thread, and two threads of which one polls (not
/// faster: a request wakes the other one nevertheless); processors that do not halt (`/dev/cpu_dma_latency`: 10k new files in 0.71 s in
/// place of 1.0 s, but all processors of the machine are busy then); a thread with SCHED_IDLE that keeps them awake (not faster).
/// Attributes of a listing that are read while the client looks at those before them would be faster, and outdated if the client
/// writes to a file meanwhile: passthrough tells the server nothing. FUSE over io_uring is off by default in the kernel, and the crate
/// has it not.
fn options(config: &Config, threads: usize) -> Options {
    let mut options = Options::default();
    options.mount_options = vec![
        MountOption::FSName("msb".into()),
        // An option of the kernel. The crate's own variant is only for fusermount.
        MountOption::CUSTOM("subtype=msb".into()),
        MountOption::DefaultPermissions,
    ];
    options.mount_options.extend(config.access.mount_options());
    options.acl = config.access.acl();
    options.n_threads = Some(threads);
    // One queue for all threads: cloned descriptors were not faster in any benchmark.
    options.clone_fd = false;
    options
}

/// Sets the kernel's read-ahead to the size of the largest request. FUSE_INIT can only lower it from the default of 128 KiB, with which
/// the kernel sends eight requests instead of one. If sysfs cannot be written, the default remains.
fn read_ahead(device: u64) {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let kib = (LARGEST_REQUEST / 1024).to_string();
    let _ = std::fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), kib);
}

fn block_signals() -> anyhow::Result<SigSet> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block()?;
    Ok(signals)
}

/// Unmounts at a signal. The session then ends by itself. A mount that is in use is detached instead, and its users get ENOTCONN.
/// `unmount` of `msb::vm` sends the signal after it has unmounted, for copies of the mount in other mount namespaces.
/// This process cannot unmount a mount with a `watcher`, which unmounts it once this process has ended.
fn await_signal(
    signals: &SigSet,
    path: &Path,
    is_new: bool,
    watcher: Option<&Watcher>,
    ended: &AtomicBool,
    upper: Option<&File>,
) {
    loop {
        let Ok(signal) = signals.wait() else { continue };
        if ended.load(Ordering::Acquire) {
            return;
        }
        match (rustix::mount::unmount(path, UnmountFlags::empty()), watcher) {
            (Ok(()), _) => return,
            (Err(Errno::PERM), Some(watcher)) => match mountpoint::is_mounted(path) {
                // It was unmounted, and what is mounted there later is not ours.
                Ok(false) | Err(Errno::NOENT) => watcher.dismiss(),
                _ => mountpoint::write_back(path),
            },
            // It was unmounted, and what is mounted there by now is not ours.
            (Err(Errno::INVAL | Errno::NOENT), _) => {}
            (Err(_), _) => {
                warn("msb-mount", &format!("mount point {path:?}: {signal}, still in use, taken away from its users"));
                mountpoint::write_back(path);
                let _ = mountpoint::detach(path);
            }
        }
        sync_upper(upper);
        mountpoint::remove(path, is_new);
        std::process::exit(0);
    }
}
