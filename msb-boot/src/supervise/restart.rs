//! Whether a VM that has ended is started again, and when.

use std::time::Duration;

use msb::record::RestartPolicy;
use msb::vm::rundir::Cause;

/// Whether a VM that nobody stopped is to be started again.
pub(super) fn applies(policy: RestartPolicy, cause: Cause) -> bool {
    match policy {
        RestartPolicy::No => false,
        RestartPolicy::OnReboot => cause == Cause::Reboot,
        RestartPolicy::Always => true,
    }
}

/// The first delay, and the longest.
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(60);
/// A VM that lived so long did not crash because it was started.
const LONG_LIFE: Duration = Duration::from_secs(10);

/// How long a VM stays down: the delay doubles as long as it does not stay up.
#[derive(Debug, Default)]
pub(super) struct Delay(Option<Duration>);

impl Delay {
    /// The next one, behind so long a life.
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
