//! The connection to the agent: retries, and the reasons why there is none.

use std::io;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use anyhow::anyhow;
use msb::record::Vm;
use msb::tool::exit;
use msb::vm::patience::Patience;
use msb::wire::{self, dial};

use crate::ended::{self, Fate};

/// How long a refused connection is retried. As with the other limits here, the time in which the VM waits for a processor does not count
/// ([`Patience`]).
const RETRY: Duration = Duration::from_secs(10);
/// How long a VM may take to restart.
const RESTART: Duration = Duration::from_secs(90);
/// The first pause before a retry. It doubles with each retry, up to the last one.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LAST_PAUSE: Duration = Duration::from_millis(320);

/// Connects, sends `frames`, and returns when the agent's hello has arrived.
///
/// # Errors
/// A VM that has ended or does not answer.
pub fn connect(vm: &Vm, frames: &[u8]) -> anyhow::Result<UnixStream> {
    let mut patience = Patience::with(&vm.endpoint, RETRY);
    let mut pause = FIRST_PAUSE;
    loop {
        match dial::ask(&vm.endpoint, frames) {
            Ok(connection) => return Ok(connection),
            // No event announces free room in the queue. The agent has not read the frames, so they can be sent again.
            Err(error) if is_refused(&error) && patience.left().is_some() && ended::is_alive(vm) => {
                thread::sleep(pause);
                pause = (pause * 2).min(LAST_PAUSE);
            }
            Err(error) if is_gone(&error) && matches!(ended::fate(vm), Fate::Restarting(_)) => {
                if !ended::await_restart(vm, Patience::with(&vm.endpoint, RESTART)) {
                    return Err(anyhow!(describe(vm, error)));
                }
            }
            Err(error) => return Err(anyhow!(describe(vm, error))),
        }
    }
}

/// Whether nothing answered the connection.
pub fn is_gone(error: &wire::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, NotFound, UnexpectedEof};
    matches!(error, wire::Error::Io(error) if matches!(error.kind(),
        BrokenPipe | ConnectionAborted | ConnectionRefused | ConnectionReset | NotFound | UnexpectedEof))
}

/// Whether the guest refused the connection because thousands of others wait for its agent. The VMM's own queue is shorter, and
/// connect(2) waits while it is full.
fn is_refused(error: &wire::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error, wire::Error::Io(error) if matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof))
}

/// Why a connection was refused or broke, as a message.
pub fn describe(vm: &Vm, error: wire::Error) -> String {
    let name = &vm.name;
    let log = || if vm.kernel_log.exists() { format!("see {:?}", vm.kernel_log) } else { String::new() };
    match error {
        wire::Error::Io(error) => match error.kind() {
            io::ErrorKind::NotFound
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof => {
                let what = match ended::fate(vm) {
                    Fate::Ended(reason) => format!("it is gone: {reason}"),
                    Fate::Restarting(reason) => {
                        return format!("vm {name:?}: it is being started again: {reason} (try again in a moment)");
                    }
                    Fate::Unknown if ended::is_alive(vm) && error.kind() == io::ErrorKind::NotFound => {
                        format!("it runs, but its socket {:?} is gone", vm.endpoint.unix)
                    }
                    Fate::Unknown if ended::is_alive(vm) => "its agent does not answer".to_owned(),
                    Fate::Unknown => "it is not running".to_owned(),
                };
                let remedy = [log(), "then msb-stop and msb-boot".to_owned()];
                let remedy =
                    remedy.iter().filter(|part| !part.is_empty()).map(String::as_str).collect::<Vec<_>>().join(", ");
                format!("vm {name:?}: {what} ({})", remedy.trim_start_matches("then "))
            }
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                let log = log();
                let log = if log.is_empty() { log } else { format!(" ({log})") };
                format!("vm {name:?}: its agent does not answer{log}")
            }
            _ => format!("vm {name:?}: {error}"),
        },
        broken => format!("vm {name:?}: its agent breaks the protocol: {}", exit::printable(&broken.to_string())),
    }
}
