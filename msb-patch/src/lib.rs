//! msb-patch's parts. The tool is `main`; fuzz targets (tests/fuzz) call the parser and the operations by themselves.

pub mod args;
mod attributes;
pub mod caps;
mod content;
pub mod found;
mod hint;
mod kept;
pub mod lines;
mod lookup;
pub mod member;
mod names;
pub mod op;
pub mod page;
mod parse;
pub mod report;
mod same;
pub mod scripts;
pub mod stream;
pub mod target;
pub mod user;
mod write;
