//! The state of a running VM on the host, and its instructions to the guest's agent: the run directory, `boot.json`, the table of
//! inits, the mount points in a shared root, and how long a guest may take to answer. Nothing here depends on a VMM.

pub mod boot;
pub mod inits;
#[cfg(feature = "vm")]
pub mod name;
pub mod patience;
#[cfg(feature = "vm")]
pub mod rundir;
#[cfg(feature = "vm")]
pub mod saving;
#[cfg(feature = "vm")]
pub mod shared_root;
#[cfg(feature = "vm")]
pub mod supervisor;
#[cfg(feature = "vm")]
pub mod unmount;
