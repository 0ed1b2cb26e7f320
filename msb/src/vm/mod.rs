//! What the host keeps of a running VM, and what it tells the guest's agent: the run directory, `boot.json`, and the mount points
//! in a shared root. Nothing here knows a VMM or starts a process.

pub mod boot;
pub mod inits;
#[cfg(feature = "vm")]
pub mod name;
#[cfg(feature = "vm")]
pub mod rundir;
#[cfg(feature = "vm")]
pub mod shared_root;
#[cfg(feature = "vm")]
pub mod supervisor;
