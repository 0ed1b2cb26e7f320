//! The programs that a VM needs.

use std::path::PathBuf;

use crate::unusable::Unusable;

/// Finds a program: beside this one or in `../libexec/msb`, on PATH, or in one of `dirs`.
///
/// # Errors
/// A message that the program is not installed, with `remedy`.
pub(crate) fn find(name: &str, dirs: &[&str], remedy: &str) -> Result<PathBuf, Unusable> {
    msb::program::find(name, dirs).ok_or_else(|| Unusable::new(format!("{name} is not installed"), remedy))
}
