//! Whether a VM that has ended is started again, and when.

use std::fmt;
use std::time::Duration;

use msb::record::RestartPolicy;
use msb::vm::rundir::Cause;

/// Whether the policy starts a VM again that ended for this cause, without a request to stop.
pub(super) fn applies(policy: RestartPolicy, cause: Cause) -> bool {
    match policy {
        RestartPolicy::No => false,
        RestartPolicy::OnReboot => cause == Cause::Reboot,
        RestartPolicy::Always => true,
    }
}

/// The error for a guest that has ended before its agent reported, without a message or by a fault in its kernel.
///
/// QEMU's emulator is a cause: rarely it continues a guest after an interrupt with wrong processor flags. With QEMU 7.2, a kernel was found
/// that had trapped as if it were single-stepped, and then copied backwards. With two processors, up to one boot in ten traps while the
/// kernel patches its own code, because a processor still runs the old code. So an emulated VM is started again, at most [`REPEATS`] times.
#[derive(Debug)]
pub(super) struct KernelFault(String);

impl KernelFault {
    /// The same error as one of these.
    pub(super) fn error(error: anyhow::Error) -> anyhow::Error {
        Self(error.to_string()).into()
    }
}

impl fmt::Display for KernelFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for KernelFault {}

/// How often a VM is started again after a [`KernelFault`].
pub(super) const REPEATS: u32 = 2;

/// The first delay.
const FIRST: Duration = Duration::from_millis(100);
/// The longest delay.
const LONGEST: Duration = Duration::from_secs(60);
/// After a run of this length the delay starts again at [`FIRST`].
const LONG_LIFE: Duration = Duration::from_secs(10);

/// The delay before a restart. It doubles with each restart after a short run.
#[derive(Debug, Default)]
pub(super) struct Delay(Option<Duration>);

impl Delay {
    /// The next delay, after a run of length `life`.
    pub(super) fn next(&mut self, life: Duration) -> Duration {
        let delay = match self.0 {
            Some(last) if life < LONG_LIFE => (last * 2).min(LONGEST),
            _ => FIRST,
        };
        self.0 = Some(delay);
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_policy_applies_to_its_ends() {
        let causes = [Cause::Stop, Cause::PowerOff, Cause::Reboot, Cause::Panic, Cause::Failure];
        for (policy, expected) in [
            (RestartPolicy::No, [false; 5]),
            (RestartPolicy::OnReboot, [false, false, true, false, false]),
            (RestartPolicy::Always, [true; 5]),
        ] {
            assert_eq!(causes.map(|cause| applies(policy, cause)), expected, "{policy:?}");
        }
    }

    #[test]
    fn the_delay_doubles_up_to_a_minute_and_begins_again_after_a_long_life() {
        let mut delay = Delay::default();
        let (short, long) = (Duration::from_millis(9_999), Duration::from_secs(10));
        let delays: Vec<u128> = (0..12).map(|_| delay.next(short).as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 51_200, 60_000, 60_000]);
        assert_eq!(
            [delay.next(long), delay.next(short), delay.next(long)].map(|delay| delay.as_millis()),
            [100, 200, 100]
        );
    }
}
