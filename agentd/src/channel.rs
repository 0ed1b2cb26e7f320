//! How the agent and the host reach each other: by vsock, or by a virtio-serial port that carries all connections. A connection is a
//! stream socket either way, and the rest of the agent does not know the difference.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use msb::vm::boot;
use msb::wire::channel::{Ends, Multiplexer, Side};
use msb::wire::{AGENT_PORT, READY_PORT};
use nix::sys::eventfd::{EfdFlags, EventFd};
use rustix::event::epoll;
use rustix::fs::{Mode, OFlags, inotify};
use rustix::io::Errno;
use vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};

use crate::{console, sys};

/// The kernel's receive buffer of a vsock connection, in bytes. Linux's default, 256 KiB, is too small for the latency of a VMM.
const BUFFER: u64 = 4 << 20;
/// The nice value of the threads that serve connections.
pub const NICE: i32 = -15;
/// How many connections may wait to be accepted. The kernel refuses more.
const BACKLOG: i32 = 4096;

/// The port, if boot.json says that there is one. Without it, vsock is used.
static PORT: OnceLock<Port> = OnceLock::new();

/// The port, and the agent's side of its multiplexer.
struct Port {
    /// The multiplexer's own part, until its thread starts.
    parked: Mutex<Option<(OwnedFd, PortEnds)>>,
    accepted: Arc<Accepted>,
    opened: Sender<OwnedFd>,
    /// Wakes the multiplexer: a connection was opened, or [`drain`] waits.
    has_opened: Arc<EventFd>,
    drained: Arc<Drained>,
}

/// Whether somebody waits until the multiplexer has sent everything.
#[derive(Default)]
struct Drained {
    is_awaited: Mutex<bool>,
    happened: Condvar,
}

/// Connections from the host that no thread serves yet. One waiting thread is woken for each.
#[derive(Default)]
pub struct Accepted {
    queue: Mutex<VecDeque<UnixStream>>,
    arrived: Condvar,
}

impl Accepted {
    fn put(&self, connection: UnixStream) {
        lock(&self.queue).push_back(connection);
        self.arrived.notify_one();
    }

    fn take(&self) -> UnixStream {
        let mut queue = lock(&self.queue);
        loop {
            match queue.pop_front() {
                Some(connection) => return connection,
                None => queue = self.arrived.wait(queue).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// The multiplexer's side.
struct PortEnds {
    accepted: Arc<Accepted>,
    opened: Receiver<OwnedFd>,
    has_opened: Arc<EventFd>,
    drained: Arc<Drained>,
}

/// Opens the port. Nothing is read from it before the first connection.
///
/// # Errors
/// Those of open(2).
pub fn use_port() -> io::Result<()> {
    let port = open_port()?;
    let has_opened = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
    let (accepted, (open, opened)) = (Arc::<Accepted>::default(), channel());
    let drained = Arc::<Drained>::default();
    let ends = PortEnds {
        accepted: Arc::clone(&accepted),
        opened,
        has_opened: Arc::clone(&has_opened),
        drained: Arc::clone(&drained),
    };
    let parked = Mutex::new(Some((port, ends)));
    let _ = PORT.set(Port { parked, accepted, opened: open, has_opened, drained });
    Ok(())
}

/// Opens the port's node. The kernel makes it when the host has announced the port, which may be later than the start of this process.
fn open_port() -> io::Result<OwnedFd> {
    let events = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    inotify::add_watch(&events, "/dev", inotify::WatchFlags::CREATE)?;
    loop {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::open(boot::PORT, flags, Mode::empty()) {
            Err(Errno::NOENT) => rustix::io::read(&events, &mut [0u8; 4096])?,
            other => return Ok(other?),
        };
    }
}

impl Port {
    /// Starts the multiplexer, if it does not run yet.
    fn start(&self) -> io::Result<()> {
        let Some((port, ends)) = lock(&self.parked).take() else {
            return Ok(());
        };
        let run = move || {
            let _ = rustix::process::setpriority_process(None, NICE);
            let ended = await_host(&port)
                .and_then(|()| Multiplexer::new(Side::Guest, port, ends, None))
                .and_then(|mut multiplexer| multiplexer.run());
            match ended {
                Ok(()) => console::log("the host has closed the port"),
                Err(error) => console::log(&format!("the port to the host: {error}")),
            }
        };
        thread::Builder::new().name("channel".into()).spawn(run).map(drop)
    }
}

/// Waits until the host is connected to the port. Before, a read would be at the end of the file.
fn await_host(port: &OwnedFd) -> io::Result<()> {
    let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    // The kernel reports a port without a host as hung up, all the time; edge-triggered events come only when it changes.
    let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
    epoll::add(&events, port, epoll::EventData::new_u64(0), flags)?;
    let mut happened = Vec::with_capacity(1);
    loop {
        happened.clear();
        match epoll::wait(&events, rustix::buffer::spare_capacity(&mut happened), None) {
            Err(Errno::INTR) => continue,
            other => other?,
        };
        if happened.iter().any(|event: &epoll::Event| !{ event.flags }.contains(epoll::EventFlags::HUP)) {
            return Ok(());
        }
    }
}

impl Ends for PortEnds {
    fn accepting(&self) -> BorrowedFd<'_> {
        self.has_opened.as_fd()
    }

    fn accept(&mut self) -> io::Result<OwnedFd> {
        let _ = self.has_opened.read();
        Ok(self.opened.try_recv().map_err(|_| io::ErrorKind::WouldBlock)?)
    }

    fn connect(&mut self) -> io::Result<OwnedFd> {
        let (agents, ours) = UnixStream::pair()?;
        self.accepted.put(agents);
        Ok(ours.into())
    }

    fn awaits_drained(&self) -> bool {
        *lock(&self.drained.is_awaited)
    }

    fn drained(&mut self) {
        *lock(&self.drained.is_awaited) = false;
        self.drained.happened.notify_all();
    }
}

/// Where the host's connections arrive.
pub enum Listener {
    Vsock(VsockListener),
    Port(&'static Accepted),
}

impl Listener {
    /// Starts to listen for the host.
    ///
    /// # Errors
    /// Those of `socket(2)` and `bind(2)`.
    pub fn start() -> io::Result<Self> {
        if let Some(port) = PORT.get() {
            port.start()?;
            return Ok(Self::Port(&port.accepted));
        }
        let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, AGENT_PORT)?;
        // The crate sets 128, and a hundred callers at once are possible.
        rustix::net::listen(&listener, BACKLOG)?;
        // Connections inherit it from the listener.
        sys::set_vsock_buffer(listener.as_fd(), BUFFER)?;
        Ok(Self::Vsock(listener))
    }

    /// Waits for a connection from the host.
    pub fn accept(&self) -> UnixStream {
        match self {
            Self::Vsock(listener) => loop {
                match listener.accept() {
                    Ok((connection, peer)) if peer.cid() == VMADDR_CID_HOST => return as_stream(connection),
                    // Connections from inside the guest are closed.
                    Ok(_) => {}
                    Err(error) => console::log(&format!("accept: {error}")),
                }
            },
            // Once the multiplexer has ended, this waits forever. The multiplexer has logged the reason.
            Self::Port(accepted) => accepted.take(),
        }
    }
}

/// Connects to the host.
///
/// # Errors
/// Those of `connect(2)`.
pub fn connect() -> io::Result<UnixStream> {
    let Some(port) = PORT.get() else {
        return Ok(as_stream(VsockStream::connect(&VsockAddr::new(VMADDR_CID_HOST, READY_PORT))?));
    };
    port.start()?;
    let (ours, theirs) = UnixStream::pair()?;
    port.opened.send(theirs.into()).map_err(|_| io::ErrorKind::ConnectionRefused)?;
    port.has_opened.write(1)?;
    Ok(ours)
}

/// Whether connections go through a thread of the agent, which must run until they are at their end.
pub fn is_port() -> bool {
    PORT.get().is_some()
}

/// Waits until the multiplexer has sent everything that was written to connections. It is called before this process or the machine ends.
/// It waits no longer than `limit`, because the host may not read.
pub fn drain(limit: Duration) {
    let Some(port) = PORT.get() else { return };
    *lock(&port.drained.is_awaited) = true;
    let _ = port.has_opened.write(1);
    let is_awaited = lock(&port.drained.is_awaited);
    let _ = port.drained.happened.wait_timeout_while(is_awaited, limit, |is_awaited| *is_awaited);
}

/// Locks a mutex, even after a thread has panicked while it held it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection of vsock as the type for any stream socket.
fn as_stream(connection: VsockStream) -> UnixStream {
    OwnedFd::from(connection).into()
}
