//! The parts of msb-patch. The tool is `main`; fuzz targets (tests/fuzz) call the parser and the operations directly.

pub mod args;
mod attributes;
pub mod caps;
mod compare;
mod content;
mod continued;
mod continued_files;
mod dir_times;
mod hint;
pub mod lines;
mod lookup;
pub mod member;
mod names;
pub mod op;
pub mod operation;
pub mod page;
mod parse;
pub mod path_state;
pub mod report;
pub mod scripts;
pub mod stream;
pub mod target;
pub mod user;
mod write;
