//! The guest's clocks. Its wall clock stops while the host sleeps or the VM is paused, does not follow when the host's clock is set, and
//! loses time if the kernel could not calibrate the TSC, as can happen under emulation on a busy host.

use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};

use crate::console;

/// How long the machine has been running, in milliseconds since power-on.
pub fn uptime_ms() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// A smaller difference is not corrected.
const TOLERANCE: Duration = Duration::from_secs(1);

/// Sets the clock forward to the host's time, in milliseconds since 1970, if it is behind. It is never set back: a request may have been
/// under way for as long as the VM was paused.
pub fn catch_up(now_ms: u64) {
    set_if(now_ms, |guest, host| host > guest.saturating_add(TOLERANCE));
}

/// Sets the clock to the host's time, in milliseconds since 1970, forward or back. The host sends the time after it has received a frame
/// on the same connection, so the time is recent.
pub fn set(now_ms: u64) {
    set_if(now_ms, |guest, host| host.abs_diff(guest) > TOLERANCE);
}

fn set_if(now_ms: u64, is_wrong: impl Fn(Duration, Duration) -> bool) {
    let host = Duration::from_millis(now_ms);
    let Ok(guest) = clock_gettime(ClockId::CLOCK_REALTIME).map(Duration::from) else { return };
    if is_wrong(guest, host)
        && let Err(error) = clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from(host))
    {
        console::log(&format!("set the clock: {error}"));
    }
}
