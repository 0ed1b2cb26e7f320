//! Cancellation of long operations by SIGINT, SIGTERM and SIGHUP. An operation calls [`check`] now and then, starts programs with
//! [`output`], and holds a [`DeferExit`] while it has something to undo or to finish. Nothing here installs a signal handler:
//! that is the business of a program, see `tool::interrupt`. Without one, all of this does nothing.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The first signal that arrived; 0 for none.
static SIGNAL: AtomicI32 = AtomicI32::new(0);
/// How many [`DeferExit`] there are.
static DEFERRED: AtomicUsize = AtomicUsize::new(0);
/// Processes that are signalled when this one is interrupted.
static CHILDREN: Mutex<Vec<(u64, OwnedFd, Signal)>> = Mutex::new(Vec::new());
/// Called when the last [`DeferExit`] of an interrupted process is dropped.
static ON_RELEASE: Mutex<Option<fn()>> = Mutex::new(None);

fn children() -> MutexGuard<'static, Vec<(u64, OwnedFd, Signal)>> {
    CHILDREN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The number of the signal that interrupted this process.
pub fn signal() -> Option<i32> {
    Some(SIGNAL.load(Ordering::SeqCst)).filter(|&signal| signal != 0)
}

/// Fails once this process has been interrupted.
///
/// # Errors
/// [`io::ErrorKind::Other`], because loops retry after `Interrupted`.
pub fn check() -> io::Result<()> {
    if signal().is_some() { Err(io::Error::other("interrupted")) } else { Ok(()) }
}

/// Marks this process as interrupted by `signal`, and passes that on to the registered children. The first signal counts.
#[cfg(feature = "tool")]
pub(crate) fn interrupt(signal: i32) {
    let _ = SIGNAL.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst);
    for (_, process, signal) in children().iter() {
        let _ = pidfd_send_signal(process, *signal);
    }
}

/// Whether nothing defers the end of this process.
#[cfg(feature = "tool")]
pub(crate) fn may_exit() -> bool {
    DEFERRED.load(Ordering::SeqCst) == 0
}

/// Has `end` called when an interrupted process no longer defers its end.
#[cfg(feature = "tool")]
pub(crate) fn on_release(end: Option<fn()>) {
    *ON_RELEASE.lock().unwrap_or_else(PoisonError::into_inner) = end;
}

/// While one exists, an interrupt does not end the process: its holder has something to undo or to finish.
#[derive(Debug)]
pub struct DeferExit(());

impl DeferExit {
    /// Defers the end. Call this before anything is created.
    #[expect(clippy::new_without_default, reason = "it counts")]
    pub fn new() -> Self {
        DEFERRED.fetch_add(1, Ordering::SeqCst);
        Self(())
    }

    /// The operation is complete: a signal that came too late to stop it is ignored.
    pub fn finish(self) {
        SIGNAL.store(0, Ordering::SeqCst);
    }
}

impl Drop for DeferExit {
    fn drop(&mut self) {
        let is_last = DEFERRED.fetch_sub(1, Ordering::SeqCst) == 1;
        if is_last && signal().is_some() {
            let end = *ON_RELEASE.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(end) = end {
                end();
            }
        }
    }
}

/// A child that is signalled when this process is interrupted, until this is dropped.
#[derive(Debug)]
pub struct Registered(u64);

impl Drop for Registered {
    fn drop(&mut self) {
        children().retain(|(number, ..)| *number != self.0);
    }
}

/// Sends `signal` to a child when this process is interrupted.
///
/// # Errors
/// Those of `pidfd_open(2)`.
pub fn register(child: &Child, signal: Signal) -> io::Result<Registered> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let number = NUMBER.fetch_add(1, Ordering::SeqCst);
    let mut children = children();
    if check().is_err() {
        let _ = pidfd_send_signal(process.as_fd(), signal);
    }
    children.push((number, process, signal));
    Ok(Registered(number))
}

/// Runs a program to its end, as [`Command::output`] does, and kills it when this process is interrupted.
///
/// # Errors
/// Those of starting the program, and of [`check`].
pub fn output(command: &mut Command) -> io::Result<Output> {
    check()?;
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let registered = match register(&child, Signal::KILL) {
        Ok(registered) => registered,
        Err(error) => {
            let _ = child.kill().and_then(|()| child.wait());
            return Err(error);
        }
    };
    let output = child.wait_with_output();
    drop(registered);
    check()?;
    output
}
