//! Where the store is.

use std::io;
use std::path::PathBuf;

use crate::record::path::absolute;

/// The state directory, for what outlives a VM: `$MSB_HOME`, else `$XDG_DATA_HOME/msb`, else `~/.local/share/msb`. It may not exist
/// yet. [`super::layout`] names what is in it.
///
/// # Errors
/// If none of the three variables is set, and as [`absolute`].
pub fn home() -> io::Result<PathBuf> {
    let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = from("MSB_HOME")
        .or_else(|| from("XDG_DATA_HOME").map(|dir| dir.join("msb")))
        .or_else(|| from("HOME").map(|dir| dir.join(".local/share/msb")))
        .ok_or_else(|| io::Error::other("neither MSB_HOME nor XDG_DATA_HOME nor HOME is set"))?;
    absolute(&home)
}
