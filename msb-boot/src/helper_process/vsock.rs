//! vhost-device-vsock, the helper process that serves the vsock device.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use msb::jail::Profile;
use msb::vm::patience::Patience;
use msb::vm::rundir;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;

use crate::jail;
use crate::processes::{Processes, Vital};
use crate::program;
use crate::unusable::Unusable;
use crate::vm::Vm;

/// The guest's context identifier. It need not be unique: each VM has a device of its own, and the host's vsock is not used.
const GUEST_CID: &str = "3";
/// The size of the buffer for data to a client, in bytes. With the default of 64 KiB a full connection gets stuck; this is more than the
/// credit that the wire gives.
const TX_BUFFER_SIZE: &str = "1048576";
/// The name of its vhost-user socket.
const VHOST_SOCKET: &str = "vsock.sock";
/// How long it may take to listen, without the time in which it waits for a processor. It takes milliseconds.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// Finds the program.
///
/// # Errors
/// How to install it.
pub(crate) fn find() -> Result<PathBuf, Unusable> {
    program::find("vhost-device-vsock", &[], "make deps build; else: cargo install vhost-device-vsock")
}

/// A process that was started. It makes its socket itself.
pub(super) struct Starting {
    socket: PathBuf,
    /// An inotify descriptor for the directory of the socket.
    events: OwnedFd,
    process: OwnedFd,
}

impl Starting {
    /// Starts the process.
    pub(super) fn start(vm: &Vm, program: &Path, processes: &mut Processes) -> anyhow::Result<Self> {
        let (inside, outside) = (Path::new(jail::SOCKET_DIR), vm.socket_dir());
        let socket = outside.join(VHOST_SOCKET);
        let events = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        inotify::add_watch(&events, &outside, inotify::WatchFlags::CREATE)?;
        let (vhost, agent) = (inside.join(VHOST_SOCKET), inside.join(rundir::AGENT_SOCKET));
        let args = [
            OsStr::new("--guest-cid"),
            OsStr::new(GUEST_CID),
            OsStr::new("--socket"),
            vhost.as_os_str(),
            OsStr::new("--uds-path"),
            agent.as_os_str(),
            OsStr::new("--tx-buffer-size"),
            OsStr::new(TX_BUFFER_SIZE),
        ];
        let jail = vm.jail(Profile::Vsock).ro_bind_program(program).bind(&outside, inside);
        processes.start_helper("vhost-device-vsock", Vital::Yes, &jail, program, &args, &[])?;
        Ok(Self { socket, events, process: processes.last_pidfd()? })
    }

    /// Waits until the process listens, and connects to it.
    pub(super) fn connect(self) -> anyhow::Result<OwnedFd> {
        let mut patience = Patience::with_new_children(START_TIMEOUT);
        loop {
            let has_ended = poll(&mut [PollFd::new(&self.process, PollFlags::IN)], Some(&Timespec::default()))? > 0;
            let Some(left) = patience.left().filter(|_| !has_ended) else {
                bail!("vhost-device-vsock did not come up");
            };
            match UnixStream::connect(&self.socket) {
                Ok(connection) => {
                    // The process removes its socket too, maybe earlier.
                    let _ = fs::remove_file(&self.socket);
                    return Ok(connection.into());
                }
                // It is between bind(2), which makes the socket, and listen(2).
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
