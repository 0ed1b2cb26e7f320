//! The time in the form of RFC 3339.

use std::time::{SystemTime, UNIX_EPOCH};

use msb::tool::timestamp::rfc3339;

/// The current time in UTC, to the second.
pub(crate) fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    rfc3339(since.as_secs().cast_signed(), None)
}
