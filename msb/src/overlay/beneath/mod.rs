//! File descriptors that cannot leave a root file system.
//!
//! A [`Dir`] is opened by a path that the caller trusts. Every further step takes one [`Name`], which is not `..` and has no slash, and
//! follows no symlink. So an operation acts inside the tree, whatever an image or another process puts there. Longer paths are resolved
//! with `openat2(2)` and `RESOLVE_IN_ROOT`, or by [`super::resolve`], which knows all layers.

mod dir;
mod entry;
mod name;

pub use dir::Dir;
pub use entry::{Entry, times_of};
pub use name::{NAME_MAX, Name};
