//! The record that flows through the pipe, and what its members are made of. Types and the rules for their values belong here;
//! reading and printing records is the business of `tool`, using them that of the tools.

mod boot;
mod document;
pub mod owner;
pub mod path;
pub mod script;
pub mod signal;
mod text;

pub use boot::{Boot, Init, RestartPolicy, RootChoice, VmmChoice};
pub use document::*;
pub use text::{Text, printable};
