//! Reads tar archives, which may come from anywhere: layers, archives of images, and what msb-cp gets on stdin. It holds bounded memory,
//! reads the dialects of GNU tar, libarchive and Go, and touches no file system.

mod number;
mod pax;
mod sparse;
mod tape;

pub use sparse::Region;
pub use tape::{Kind, MAX_PATH, Member, Metadata, Skip, Tape, truncated};
