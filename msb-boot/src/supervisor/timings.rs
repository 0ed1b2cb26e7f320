//! The times of a boot, in the record.

use std::time::Duration;

use msb::record::Timings;
use msb::wire::exec::Ready;

/// When each step of the boot was reached. The guest's clock starts at a moment that the host does not know, so the guest's times are
/// counted back from the arrival of the report, which has the time at which it was sent.
pub(super) fn timings(started: Duration, spawned: Duration, arrived: Duration, ready: &Ready) -> Timings {
    let since = |time: Duration| u64::try_from(time.saturating_sub(started).as_millis()).unwrap_or(u64::MAX);
    let (spawn, arrival) = (since(spawned), since(arrived));
    let guest = |ms: u64| match ready.sent_ms {
        // The guest may send any number.
        Some(sent) => arrival.saturating_sub(sent.saturating_sub(ms)).max(spawn),
        None => spawn.saturating_add(ms),
    };
    let mut timings = Timings::default();
    timings.spawn = spawn;
    timings.kernel = guest(ready.kernel_ms);
    timings.agent = guest(ready.agent_ms);
    timings.init = ready.init_ms.map(guest);
    timings.ready = arrival;
    timings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_times_are_counted_back_from_the_arrival_of_its_report() {
        let ms = Duration::from_millis;
        for (sent, kernel, agent, init, expected) in [
            // Started at 1000, the VMM at 1100; the report arrived at 3000.
            (Some(900), 400, 800, None, (100, 1500, 1900, None, 2000)),
            (Some(900), 400, 600, Some(850), (100, 1500, 1700, Some(1950), 2000)),
            // A guest whose clock was running before, and one that sends nonsense.
            (Some(5000), 400, 800, None, (100, 100, 100, None, 2000)),
            (Some(0), u64::MAX, 1, Some(u64::MAX), (100, 2000, 2000, Some(2000), 2000)),
            (None, 400, 800, None, (100, 500, 900, None, 2000)),
        ] {
            let ready = Ready { kernel_ms: kernel, agent_ms: agent, init_ms: init, sent_ms: sent, ..Ready::default() };
            let Timings { spawn, kernel, agent, init, ready, .. } = timings(ms(1000), ms(1100), ms(3000), &ready);
            assert_eq!((spawn, kernel, agent, init, ready), expected);
        }
    }
}
