//! The record that flows through the pipe, and the values of its members. Types and the rules for their values belong here; reading and
//! printing records belongs in `tool`, and using them in the tools.
//!
//! ```
//! use msb::record::{Boot, Record, Rootfs};
//!
//! let mut record = Record::parse(br#"{"msb":1,"rootfs":{"kind":"dir","lower":["/srv/root"]},"later":[1]}"#)?;
//! assert_eq!(record.rootfs, Some(Rootfs::dir("/srv/root".into())));
//!
//! let mut boot = Boot::default();
//! boot.cpus = 4;
//! record.boot = Some(boot);
//!
//! // Members that this version does not know are kept.
//! let json = serde_json::to_value(&record).unwrap();
//! assert_eq!((&json["boot"]["cpus"], &json["later"][0]), (&4.into(), &1.into()));
//! # Ok::<(), msb::record::Error>(())
//! ```

mod boot;
mod document;
mod image;
mod mount;
mod network;
pub mod owner;
pub mod path;
mod rootfs;
pub mod script;
pub mod signal;
mod snapshot;
mod text;
mod unknown;
mod upper;
mod vm;
mod volume;

pub use boot::{Boot, Channel, Init, Limits, RestartPolicy, RootChoice, VmmChoice};
pub use document::{Error, FILE_NAME, Record, VERSION};
pub use image::{Image, ImageConfig};
pub use mount::Mount;
pub use network::{Card, CardBackend, Net, Network, NetworkMode, NetworkRule, PublishedPort, Route};
pub use rootfs::{DiskFormat, Rootfs};
pub use snapshot::Snapshot;
pub use text::{Text, printable};
pub use unknown::Unknown;
pub use upper::Upper;
pub use vm::{Endpoint, RootKind, Scratch, ScratchKind, Timings, Vm, Vmm};
pub use volume::{MountedVolume, Tmpfs, Volume, VolumeContent, check_volume_name};
