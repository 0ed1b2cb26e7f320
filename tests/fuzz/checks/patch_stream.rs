//! msb-patch's parser on any bytes: it ends, its numbers are right, the sizes of the reads make no difference, and values end where
//! serde_json says.

use std::io::{BufRead, BufReader};

use msb_patch::op::Op;
use msb_patch::stream;

/// # Panics
/// If one of these does not hold.
pub fn check(data: &[u8]) {
    let whole = values(data);
    let size = data.first().map_or(1, |&byte| usize::from(byte % 64) + 1);
    assert_eq!(values(BufReader::with_capacity(size, data)), whole, "read in blocks of {size}");

    let lines = 1 + data.iter().filter(|&&byte| byte == b'\n').count();
    let mut last = 1;
    for (place, (n, line, _)) in whole.iter().enumerate() {
        assert_eq!(*n, place + 1);
        assert!((last..=lines).contains(line), "value {n} at line {line} of {lines}, behind one at {last}");
        last = *line;
    }

    let theirs: Result<Vec<_>, _> =
        serde_json::Deserializer::from_slice(data).into_iter::<serde_json::Value>().collect();
    if let Ok(theirs) = theirs
        && theirs.iter().all(serde_json::Value::is_object)
    {
        assert_eq!(whole.len(), theirs.len());
    }
}

fn values(from: impl BufRead) -> Vec<(usize, usize, Result<Op, String>)> {
    stream::read(from).map(|value| (value.n, value.line, value.op.map_err(|error| error.to_string()))).collect()
}
