//! The state of a running VM on the host, and its instructions to the guest's agent: the run directory, `boot.json`, the table of
//! inits, and the mount points in a shared root. Nothing here depends on a VMM.

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
#[cfg(feature = "vm")]
pub mod unmount;
