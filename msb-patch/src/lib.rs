//! msb-patch's parts. The tool is `main`; fuzz targets (tests/fuzz) call the parser, the plan and its carrying out by themselves.

pub mod apply;
pub mod args;
mod content;
mod copy;
mod kept;
pub mod op;
mod parse;
pub mod plan;
pub mod report;
pub mod scripts;
pub mod stream;
pub mod user;
