//! The agent's report, from any bytes: the sizes of the reads make no difference, and the result is what was sent.

use msb::wire::{Message, Report};

/// # Panics
/// If one of these does not hold.
pub fn check(data: &[u8]) {
    let whole = taken(data, data.len().max(1));
    let size = data.first().map_or(1, |&byte| usize::from(byte) + 1);
    assert_eq!(taken(data, size), whole, "in portions of {size}");
    if let Ok(Some(ready)) = whole {
        let again =
            [Message::hello(), Message::Ready(ready.clone())].iter().flat_map(Message::to_frame).collect::<Vec<_>>();
        assert_eq!(taken(&again, again.len()), Ok(Some(ready)));
    }
}

fn taken(data: &[u8], size: usize) -> Result<Option<msb::wire::exec::Ready>, String> {
    let mut report = Report::default();
    for portion in data.chunks(size) {
        match report.take(portion) {
            Ok(None) => {}
            other => return other.map_err(|error| error.to_string()),
        }
    }
    Ok(None)
}
