//! The process between the callers of the agent and a virtio-serial port of the guest: it carries all connections on the port. It has
//! the listening socket and the port as descriptors, and the VM's socket directory for the agent's report.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{ExitCode, Stdio};

use anyhow::Context;
use msb::jail::{Jail, Profile};
use msb::record::Channel;
use msb::tool::exit;
use msb::vm::rundir;
use msb::wire::channel::{Ends, Multiplexer, Side};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use crate::inherited_fd::InheritedFd;
use crate::processes::{Processes, Vital};
use crate::vm::{self, Vm};
use crate::{jail, role};

/// The process's name in messages.
pub(crate) const NAME: &str = "channel";

/// How many callers may wait. connect(2) waits while it is full.
const BACKLOG: i32 = 4096;

/// What the process is told, as JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Description {
    jail: Jail,
    /// Where callers connect.
    listener: InheritedFd,
    /// The guest's port.
    port: InheritedFd,
    /// Where the supervisor freezes the channel.
    control: InheritedFd,
}

/// Starts the process, if the VM has such a port. It listens on the agent's socket in the VM's socket directory, and ends when its
/// control socket, which is returned, is closed. The socket that the VMM inherits for the port is added to `fds`.
///
/// # Errors
/// Those of bind(2), and of starting the process.
pub(crate) fn start(
    vm: &mut Vm,
    fds: &mut Vec<OwnedFd>,
    processes: &mut Processes,
) -> anyhow::Result<Option<UnixStream>> {
    if vm.channel == Channel::Vsock {
        return Ok(None);
    }
    let (inside, outside) = (Path::new(jail::SOCKET_DIR), vm.socket_dir());
    let path = outside.join(rundir::AGENT_SOCKET);
    let listener = UnixListener::bind(&path).with_context(|| format!("{path:?}"))?;
    listener.set_nonblocking(true)?;
    rustix::net::listen(&listener, BACKLOG)?;
    let (port, multiplexed) = UnixStream::pair()?;
    let (control, controlled) = UnixStream::pair()?;
    vm.port = Some(InheritedFd::of(&port));
    fds.push(port.into());
    let inherited: [OwnedFd; 3] = [listener.into(), multiplexed.into(), controlled.into()];
    let [listener, multiplexed, controlled] = inherited.each_ref().map(InheritedFd::of);
    let jail = vm.jail(Profile::Channel).bind(&outside, inside);
    let description = Description { jail, listener, port: multiplexed, control: controlled };
    let description = serde_json::to_string(&description).context(NAME)?;
    processes.start_role(NAME, Vital::Yes, role::CHANNEL, &description, Stdio::null(), &inherited)?;
    Ok(Some(control))
}

/// The process's main function.
pub(crate) fn run(description: &str) -> ExitCode {
    exit::report(NAME, exit::FAILED, carry(description).map(|()| 0))
}

fn carry(description: &str) -> anyhow::Result<()> {
    let Description { jail, listener, port, control } = serde_json::from_str(description).context("its description")?;
    let (port, control) = (port.duplicate()?, UnixStream::from(control.duplicate()?));
    let ends = Sockets { listener: listener.duplicate()?.into() };
    jail.enter().context("jail")?;
    Multiplexer::new(Side::Host, port, ends, Some(control))?.run().context("the guest's port")
}

/// The host's ends of connections.
struct Sockets {
    listener: UnixListener,
}

impl Ends for Sockets {
    fn accepting(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    fn accept(&mut self) -> io::Result<OwnedFd> {
        Ok(rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC)?)
    }

    /// Connects to the socket for the agent's report, which is gone once the agent has reported.
    fn connect(&mut self) -> io::Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(vm::ready_socket(Path::new(jail::SOCKET_DIR)))?)?;
        Ok(socket)
    }
}
