//! overlayfs in user space: the merge rule, which says what layer answers for a name, and changes to the upper layer.
//!
//! A root is a stack of directories in overlayfs form: any number of lower layers, and at most one upper layer on top. A lookup in a
//! merged directory searches the layers from the top. The first file that is not a directory is the answer. Directories merge, down to
//! one that is opaque or a layer that has another file there. A whiteout ends the search. Everything that reads or writes layers uses
//! this module, and no other module decides what is visible.
//!
//! The form of the layers, and the rule, are those of the kernel's `Documentation/filesystems/overlayfs.rst`:
//!
//! | feature of overlayfs | layers that have it | changes made here |
//! | --- | --- | --- |
//! | whiteouts: character devices 0/0 | are read | make them |
//! | whiteouts: empty files with the xattr `overlay.whiteout`, in directories with `overlay.opaque=x` | are read | do not make them |
//! | opaque directories: `overlay.opaque=y` | are read | make them |
//! | whiteouts and opaque directories in OCI's form (not of overlayfs, but of fuse-overlayfs) | are read if the caller asks for it | do not make them |
//! | renamed directories: `overlay.redirect` (`redirect_dir`) | are read, `trusted.` only | make them if the caller asks for it (`Writer::redirect`); else renaming a directory that a lower layer has fails with EXDEV |
//! | files without data: `overlay.metacopy` (`metacopy`) | are read, `trusted.` only | do not make them; a copy-up copies all data |
//! | fs-verity digests of a metacopy (`verity`) | are ignored | |
//! | the `user.` prefix (`userxattr`) | is read for whiteouts and opaque directories; a redirect or metacopy is refused | is used if `trusted.` is not permitted |
//! | data-only lower layers | are not supported | |
//! | `overlay.origin`, `overlay.impure` | give a file its inode number (`origin`) | are written by the copy-ups of a mount |
//! | `index`, `nfs_export`: `overlay.nlink` and the like | are ignored | as with `index=off`: copying one name of a lower hardlink up leaves the others below |
//! | xattrs of a nested overlayfs: `overlay.overlay.*` | are not shown | are copied up |
//!
//! # Example
//!
//! ```
//! use std::{ffi::OsStr, fs};
//! use msb::overlay::{Layer, Merged, Node, beneath::Name};
//!
//! let dir = tempfile::tempdir()?;
//! let (upper, lower) = (dir.path().join("upper"), dir.path().join("lower"));
//! fs::create_dir(&upper)?;
//! fs::create_dir_all(lower.join("etc"))?;
//! fs::write(lower.join("etc/hostname"), "lower")?;
//!
//! let root = Merged::open(&[&lower], Some(&upper))?;
//! let Some(Node::Dir(etc)) = root.lookup(Name::new(OsStr::new("etc"))?)? else { panic!("a directory") };
//! let names = etc.list()?;
//! assert_eq!((names[0].name.to_str(), names[0].layer), (Some("hostname"), Layer::Lower(0)));
//! # std::io::Result::Ok(())
//! ```

pub mod attributes;
pub mod beneath;
mod changes;
#[cfg(feature = "store")]
pub mod commit;
mod copy_data;
mod copy_up;
pub mod device;
pub mod error;
#[cfg(feature = "store")]
pub mod fold;
pub mod journal;
mod listed;
mod make;
mod marks;
mod merged;
pub mod mountinfo;
mod open_files;
#[cfg(feature = "store")]
pub mod origin;
#[cfg(feature = "store")]
pub mod reach;
mod rename;
pub mod resolve;
mod search;
pub mod upper;
pub mod user_namespace;
pub mod whiteout;

pub use changes::{Changes, Visit};
pub use copy_data::{copy_data, copy_to_end};
pub use copy_up::{Prepared, WHOLE, clone_leaf, copy_leaf_as};
pub use listed::Listed;
pub use merged::{Layer, Leaf, LowerDir, Merged, Node, is_plain};
pub use open_files::raise_open_files;
