//! When an init is usable: when what it starts at boot has started. systemd sends a message; for other inits, the system calls of PID 1
//! or the FIFOs of their services show it. agentd(8) has the list.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use msb::vm::inits::Usable;
use nix::libc::c_long;

use super::{inittab, pid_1, services, systemd};

/// How often services are checked: there is no event for a FIFO that gets a reader.
pub const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A check whether an init is usable.
#[derive(Debug)]
pub enum Probe {
    /// It has started. Nothing more can be checked.
    Started,
    /// systemd sends a message to this socket.
    Notification(UnixDatagram),
    /// The system call that PID 1 has entered shows it.
    SystemCall(fn(c_long) -> Result<(), String>),
    /// The same for sysvinit, with the time since when it has waited without a child.
    Sysvinit(Cell<Option<Instant>>),
    /// Files show it, which are checked at intervals.
    Files(fn() -> Result<(), String>),
}

impl Probe {
    /// The probe for the init that PID 1 runs now.
    pub fn of_pid_1() -> Self {
        let Ok((init, _)) = pid_1::init_system() else { return Self::Started };
        match init.usable {
            Usable::BusyBoxActions => Self::SystemCall(inittab::busybox),
            Usable::SysvinitActions => Self::Sysvinit(Cell::new(None)),
            Usable::OpenRcFifo => Self::SystemCall(services::openrc),
            Usable::RunitServices => Self::Files(services::runit),
            Usable::S6Services => Self::Files(services::s6),
            Usable::FinitCondition => Self::Files(services::finit),
            // The socket is bound before systemd starts, or another process has it.
            Usable::Notification | Usable::Started => Self::Started,
        }
    }

    /// A descriptor that becomes readable when the probe has to be checked.
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Notification(socket) => Some(socket.as_fd()),
            _ => None,
        }
    }

    /// Whether the system calls of PID 1 have to be traced.
    pub fn needs_system_calls(&self) -> bool {
        matches!(self, Self::SystemCall(_) | Self::Sysvinit(_))
    }

    /// Whether it has to be checked at intervals.
    pub fn needs_polling(&self) -> bool {
        self.needs_system_calls() || matches!(self, Self::Files(_))
    }

    /// Checks whether the init is usable, while PID 1 is in the system call `call`. systemd's message is reported only once.
    ///
    /// # Errors
    /// What is missing.
    pub fn check(&self, call: Option<c_long>) -> Result<(), String> {
        match (self, call) {
            (Self::Started, _) => Ok(()),
            (Self::Notification(socket), _) => systemd::is_ready(socket),
            (Self::SystemCall(check), Some(call)) => check(call),
            (Self::Sysvinit(alone), Some(call)) => inittab::sysvinit(call, alone),
            (Self::SystemCall(_) | Self::Sysvinit(_), None) => Err("its boot scripts still run".into()),
            (Self::Files(check), _) => check(),
        }
    }

    /// Adds details about what is missing, for an init that did not become usable.
    pub fn explain(&self, missing: String) -> String {
        match self {
            Self::Notification(_) => match systemd::pending_jobs() {
                Some(jobs) => format!("{missing} ({jobs})"),
                None => missing,
            },
            _ => missing,
        }
    }

    /// A warning about an init that is usable although some of its units failed.
    pub fn warning(&self) -> Option<String> {
        let Self::Notification(_) = self else { return None };
        systemd::failed_units().map(|units| format!("systemd is degraded: {units} failed"))
    }
}
