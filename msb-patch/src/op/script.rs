//! script: a script of the record, for /.msb/scripts. It is not a file of the root.

use serde::Deserialize;

/// The members of script.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// What it is called by.
    pub name: String,
    /// What is in it.
    pub content: String,
    /// Take the place of another script of that name.
    #[serde(default)]
    pub replace: bool,
}
