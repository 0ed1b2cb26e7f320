//! script: adds a script to the record, for /.msb/scripts. It is not a file of the root.

use serde::Deserialize;

/// The members of script.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// Its name.
    pub name: String,
    /// Its content.
    pub content: String,
    /// Overwrite an existing script.
    #[serde(default)]
    pub replace: bool,
}
