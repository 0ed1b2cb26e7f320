//! The record that flows through the pipe, and what its members are made of. Types and the rules for their values belong here;
//! reading and printing records is the business of `tool`, using them that of the tools.

#[cfg(feature = "cli")]
mod boot;
#[cfg(feature = "cli")]
mod document;
pub mod owner;
pub mod script;

#[cfg(feature = "cli")]
pub use boot::{Boot, Init, RestartPolicy, RootChoice, VmmChoice};
#[cfg(feature = "cli")]
pub use document::*;
