//! JSON as Go writes it: an absent value may be null.

use serde::{Deserialize, Deserializer};

/// Reads null as the default.
///
/// # Errors
/// The errors of deserializing any other value.
pub fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(value: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(value)?.unwrap_or_default())
}
