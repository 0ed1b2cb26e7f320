//! The guest's clock, which stands still while the host sleeps or the VM is stopped, does not follow a host's clock that is set, and
//! loses time where the kernel could not find out how fast its processor counts (under an emulation that had to wait for the host's
//! processors).

use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};

/// What is left as it is.
const TOLERANCE: Duration = Duration::from_secs(1);

/// Sets the clock forward to the host's time, where it is behind. It never goes back: what comes with a request may have been under
/// way for as long as this VM stood still.
pub fn catch_up(now_ms: u64) {
    put(now_ms, |guest, host| host > guest.saturating_add(TOLERANCE));
}

/// Sets the clock to the host's time, in both directions. The host says it when it has heard from this agent on the same connection,
/// so it is not old.
pub fn set(now_ms: u64) {
    put(now_ms, |guest, host| host.abs_diff(guest) > TOLERANCE);
}

fn put(now_ms: u64, is_wrong: impl Fn(Duration, Duration) -> bool) {
    let host = Duration::from_millis(now_ms);
    let Ok(guest) = clock_gettime(ClockId::CLOCK_REALTIME).map(Duration::from) else { return };
    if is_wrong(guest, host)
        && let Err(error) = clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from(host))
    {
        crate::say(&format!("set the clock: {error}"));
    }
}
