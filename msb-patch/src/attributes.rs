//! The owner, group and mode that an operation requests.

use std::io;

use msb::overlay::attributes::Attributes;
use msb::overlay::beneath::Entry;
use rustix::fs::Stat;

/// Requested attributes. `None`: the attribute is not changed.
#[derive(Clone, Copy, Debug, Default)]
pub struct RequestedAttributes {
    /// The permission bits, with set-id and sticky bits.
    pub mode: Option<u32>,
    /// The owner.
    pub uid: Option<u32>,
    /// The group.
    pub gid: Option<u32>,
}

impl RequestedAttributes {
    /// Whether nothing is requested.
    pub fn is_empty(&self) -> bool {
        self.mode.is_none() && self.uid.is_none() && self.gid.is_none()
    }

    /// Whether a file has all of these attributes.
    pub fn match_stat(&self, stat: &Stat) -> bool {
        self.mode.is_none_or(|mode| mode == stat.st_mode & 0o7777)
            && self.uid.is_none_or(|uid| uid == stat.st_uid)
            && self.gid.is_none_or(|gid| gid == stat.st_gid)
    }
}

/// Sets those attributes that differ from the file's current `stat`.
///
/// # Errors
/// The error of `fchownat(2)` or `chmod(2)`.
pub fn set_attributes(entry: &Entry, stat: &Stat, requested: RequestedAttributes) -> io::Result<()> {
    let attributes = Attributes {
        uid: requested.uid.unwrap_or(stat.st_uid),
        gid: requested.gid.unwrap_or(stat.st_gid),
        mode: requested.mode.unwrap_or(stat.st_mode & 0o7777),
        times: None,
    };
    attributes.apply(entry, stat, || Ok(false))
}
