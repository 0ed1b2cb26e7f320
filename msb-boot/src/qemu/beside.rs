//! The processes that serve QEMU's vhost-user devices. Their sockets are connected here and handed to QEMU as fds, so
//! nobody waits for a path to appear and none is left over.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use msb::vm::rundir;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;

use super::{GUEST_CID, Parts};
use crate::cell::{self, Cell, Powers};
use crate::supervise::crew::{Crew, fd_flag};
use crate::vmm::{Root, Vm};

/// vhost-device-vsock's own socket.
const VHOST_SOCKET: &str = "vsock.sock";
/// How long vhost-device-vsock may take to listen. It takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// Starts them, the agent's first: it takes longest. Returns the sockets in the order of [`Vm::links`].
pub(super) fn start(vm: &mut Vm, crew: &mut Crew) -> anyhow::Result<Vec<OwnedFd>> {
    let parts = vm.qemu.clone().ok_or_else(|| anyhow!("qemu: its parts were not looked for"))?;
    let vsock = Vsock::start(vm, &parts, crew)?;
    let boot = vm.cell(Powers::ServeConfined).show(&vm.boot_share(), cell::ROOT, false);
    let mut links = vec![share(&vm.dir, &parts, boot, crew)?];
    if let Root::Share(root) = &vm.root {
        let root = vm.cell(Powers::ServeConfined).show(root, cell::ROOT, true);
        links.push(share(&vm.dir, &parts, root, crew)?);
    }
    links.insert(0, vsock.connect()?);
    vm.links = links.iter().map(AsRawFd::as_raw_fd).collect();
    Ok(links)
}

/// Starts a virtiofsd for the root that `cell` shows. It gets a socket that listens already, so the connection is made at
/// once.
fn share(run: &Path, parts: &Parts, cell: Cell, crew: &mut Crew) -> anyhow::Result<OwnedFd> {
    let path = run.join("virtiofs.sock");
    let listener = OwnedFd::from(UnixListener::bind(&path).with_context(|| format!("{path:?}"))?);
    let link = UnixStream::connect(&path).with_context(|| format!("{path:?}"));
    fs::remove_file(&path)?;
    let link = link?;
    // QEMU's own virtiofsd (it left QEMU with 8.0) keeps what the guest has cached over an open, and still lets it see
    // the host's changes within a second. The one in Rust does the one or the other.
    let caching = if parts.virtiofsd.ends_with("qemu/virtiofsd") { "cache=always,timeout=1" } else { "cache=auto" };
    let socket = fd_flag("--fd=", &listener);
    let options = format!("source={},{caching},sandbox=chroot,xattr", cell::ROOT);
    // It opens by descriptors' links, and looks at its own threads. It has as many files open as the cell lets it, and wants
    // to know how many there may be all the same.
    let (itself, most_files) = (Path::new("/proc/self"), Path::new("/proc/sys/fs/file-max"));
    let cell = cell.show_program(&parts.virtiofsd).show(itself, itself, false).show(most_files, most_files, false);
    let args = [&socket, OsStr::new("--rlimit-nofile=0"), OsStr::new("-o"), OsStr::new(&options)];
    crew.start("virtiofsd", &cell, &parts.virtiofsd, &args, &[listener])?;
    Ok(link.into())
}

/// A vhost-device-vsock that was started. It makes its socket itself.
struct Vsock {
    socket: std::path::PathBuf,
    events: OwnedFd,
    process: OwnedFd,
}

impl Vsock {
    fn start(vm: &Vm, parts: &Parts, crew: &mut Crew) -> anyhow::Result<Self> {
        let (inside, outside) = (Path::new(cell::DOOR), vm.door());
        let socket = outside.join(VHOST_SOCKET);
        let events = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        inotify::add_watch(&events, &outside, inotify::WatchFlags::CREATE)?;
        let (vhost, agent) = (inside.join(VHOST_SOCKET), inside.join(rundir::AGENT_SOCKET));
        let cid = GUEST_CID.to_string();
        let args = [
            OsStr::new("--guest-cid"),
            OsStr::new(&cid),
            OsStr::new("--socket"),
            vhost.as_os_str(),
            OsStr::new("--uds-path"),
            agent.as_os_str(),
            // At its own 64 KiB it gets stuck when a connection is full; what the wire gives credit for never fills this.
            OsStr::new("--tx-buffer-size"),
            OsStr::new("1048576"),
        ];
        let cell = vm.cell(Powers::None).show_program(&parts.vsock).show(&outside, inside, true);
        crew.start("vhost-device-vsock", &cell, &parts.vsock, &args, &[])?;
        Ok(Self { socket, events, process: crew.last_pidfd()? })
    }

    /// Connects once it listens.
    fn connect(self) -> anyhow::Result<OwnedFd> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let died = poll(&mut [PollFd::new(&self.process, PollFlags::IN)], Some(&Timespec::default()))? > 0;
            if died || left.is_zero() {
                return Err(anyhow!("vhost-device-vsock did not come up"));
            }
            match UnixStream::connect(&self.socket) {
                Ok(link) => {
                    // It removes the socket itself, and maybe did already.
                    let _ = fs::remove_file(&self.socket);
                    return Ok(link.into());
                }
                // Between its bind(2), which shows the socket, and its listen(2): the next instruction or so.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::thread::yield_now(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let mut fds = [PollFd::new(&self.events, PollFlags::IN), PollFd::new(&self.process, PollFlags::IN)];
                    poll(&mut fds, Some(&Timespec::try_from(left)?))?;
                    let mut buffer = [0u8; 4096];
                    let _ = rustix::io::read(&self.events, &mut buffer);
                }
                Err(error) => return Err(error).with_context(|| format!("{:?}", self.socket)),
            }
        }
    }
}
