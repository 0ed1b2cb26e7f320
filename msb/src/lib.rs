//! What the msb tools share, for the tools and for other programs: the record that flows through the pipe, the protocol between
//! host and guest, the merge rule of a root file system, the state on the host, and the conventions of a command-line tool.
//!
//! The tools depend on this crate and never on one another.
//!
//! # Modules and features
//!
//! Each module is a feature of the same name, which includes those above it in this table; imports run in the same
//! direction. `tool` is on by default.
//!
//! | module | what is in it | what it needs |
//! | --- | --- | --- |
//! | [`record`] | the types of the record, IDs of users, names of scripts | serde, serde_json, thiserror |
//! | `wire` | frames and messages between host and guest | and rustix |
//! | `architecture` | what depends on the processor of a host or guest; with `overlay` | |
//! | `cgroup` | the cgroup hierarchies of the host; with `store` | |
//! | `interrupt` | cancellation of long operations; with `overlay` | |
//! | `lock` | locks on files and directories; with `overlay` | |
//! | `signals` | the signal masks of a process; with `overlay` | |
//! | `overlay` | the merge rule: lowers, an upper, whiteouts, copy-up | |
//! | `inherited` | descriptors by their numbers; with `store` | and nix |
//! | `descriptor` | a descriptor on a Unix socket; with `store` | |
//! | `transfer` | copies of files between host and guest; with `overlay` | |
//! | `program` | where the programs are that msb runs; with `store` | |
//! | `regular_file` | opening a regular file at a path that may hold anything; with `store` | |
//! | `jail` | what the processes that face a guest may see and do; with `store` | and seccompiler, landlock |
//! | `store` | the state directories on the host, EROFS images | and sha2 |
//! | `vm` | run directories, supervisors, shared roots | |
//! | `tool` | command lines, exit statuses, records on stdin and stdout | and clap, nix, schemars |
//!
//! `vm::boot` alone, the document that msb-boot leaves for agentd, comes with `wire`. The feature `schema` derives a JSON Schema for
//! the record.
//!
//! # Errors and output
//!
//! An error is a type whose variants tell whose fault it was. Its `Display` does not repeat its source: print the chain, as
//! anyhow's `{:#}` does. Only `tool` writes to stdout or stderr, reads stdin, or ends the process. The environment says where state is
//! kept and where programs are, and is read for that in `store::home`, `vm::name` and `program`.
//!
//! # Types of other crates in signatures
//!
//! - [`serde_json::Map`] holds members of the record that this version does not know ([`record::Unknown`]).
//! - rustix's `Stat`, `FileType`, `Mode`, `Timestamps` and `XattrFlags` are in `overlay`, whose callers make system calls of
//!   their own on the same files; rustix's `Signal` is in `interrupt`.
//! - clap's traits are implemented in `tool`, and `nix`'s `SigSet` is returned there.

#[cfg(feature = "overlay")]
pub mod architecture;
#[cfg(feature = "store")]
pub mod cgroup;
#[cfg(feature = "store")]
mod container;
#[cfg(feature = "store")]
pub mod descriptor;
#[cfg(feature = "store")]
pub mod inherited;
#[cfg(feature = "overlay")]
pub mod interrupt;
#[cfg(feature = "store")]
pub mod jail;
#[cfg(feature = "overlay")]
pub mod lock;
#[cfg(feature = "overlay")]
pub mod overlay;
#[cfg(feature = "store")]
pub mod program;
#[cfg(feature = "record")]
pub mod record;
#[cfg(feature = "store")]
pub mod regular_file;
#[cfg(feature = "overlay")]
pub mod signals;
#[cfg(feature = "store")]
pub mod store;
#[cfg(feature = "tool")]
pub mod tool;
#[cfg(feature = "overlay")]
pub mod transfer;
#[cfg(feature = "wire")]
pub mod vm;
#[cfg(feature = "wire")]
pub mod wire;
