//! Owner, group and mode, as an operation asks for them.

use std::io;

use msb::overlay::attributes::Attributes;
use msb::overlay::beneath::Entry;
use rustix::fs::Stat;

/// Attributes that an operation asks for; `None` asks for nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// The permission bits, set-id and sticky bits included.
    pub mode: Option<u32>,
    /// The owner.
    pub uid: Option<u32>,
    /// The group.
    pub gid: Option<u32>,
}

impl Wanted {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.mode.is_none() && self.uid.is_none() && self.gid.is_none()
    }

    /// Whether a file has all of that already.
    pub fn is_had_by(&self, stat: &Stat) -> bool {
        self.mode.is_none_or(|mode| mode == stat.st_mode & 0o7777)
            && self.uid.is_none_or(|uid| uid == stat.st_uid)
            && self.gid.is_none_or(|gid| gid == stat.st_gid)
    }
}

/// Sets those attributes that differ from the file's current `stat`.
///
/// # Errors
/// The error of `fchownat(2)` or `chmod(2)`.
pub fn set_attributes(entry: &Entry, stat: &Stat, wanted: Wanted) -> io::Result<()> {
    let attributes = Attributes {
        uid: wanted.uid.unwrap_or(stat.st_uid),
        gid: wanted.gid.unwrap_or(stat.st_gid),
        mode: wanted.mode.unwrap_or(stat.st_mode & 0o7777),
        times: None,
    };
    attributes.apply(entry, stat, || Ok(false))
}
