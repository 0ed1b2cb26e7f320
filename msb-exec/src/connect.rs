//! The way to the agent, and words for where it ends.

use std::io;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use msb::exit::{self, coded};
use msb::record::Vm;
use msb::wire::{self, dial::dial};

use crate::ended;

/// How long a connection that was turned away is tried again: the VMM and the guest's kernel take only so many at once.
const RETRY: Duration = Duration::from_secs(10);
/// The first pause before another try, which doubles up to the last one.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LAST_PAUSE: Duration = Duration::from_millis(320);

/// Connects and exchanges hellos.
///
/// # Errors
/// Words for a VM that is gone or does not answer.
pub fn connect(vm: &Vm) -> anyhow::Result<UnixStream> {
    let deadline = Instant::now() + RETRY;
    let mut pause = FIRST_PAUSE;
    loop {
        match dial(&vm.endpoint) {
            Ok(connection) => return Ok(connection),
            // Nothing tells when there is room again, so this is a pause and no wait.
            Err(error) if is_turned_away(&error) && Instant::now() + pause < deadline && ended::is_alive(vm) => {
                thread::sleep(pause);
                pause = (pause * 2).min(LAST_PAUSE);
            }
            Err(error) => return Err(coded(exit::TOOL_FAILED, gone(vm, error))),
        }
    }
}

/// Whether somebody was there, and too busy. A socket that nobody listens on is another matter.
fn is_turned_away(error: &wire::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof, WouldBlock};
    matches!(error, wire::Error::Io(error) if matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
        || error.kind() == WouldBlock && error.raw_os_error() == Some(nix::libc::EAGAIN))
}

/// Words for a connection that was refused or broke.
pub fn gone(vm: &Vm, error: wire::Error) -> String {
    let name = &vm.name;
    match error {
        wire::Error::Io(error) => match error.kind() {
            io::ErrorKind::NotFound
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof => {
                let why = ended::reason(vm).map_or(", or its agent is".into(), |reason| format!(": {reason}"));
                format!("vm {name:?}: it is gone{why} (see {:?}, then msb-stop and msb-boot)", vm.kernel_log)
            }
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                format!("vm {name:?}: its agent does not answer (see {:?})", vm.kernel_log)
            }
            _ => format!("vm {name:?}: {error}"),
        },
        nonsense => format!("vm {name:?}: its agent speaks nonsense: {}", exit::printable(&nonsense.to_string())),
    }
}
