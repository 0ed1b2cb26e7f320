//! Owner, group and mode, as an operation asks for them.

use std::io;

use msb::overlay::beneath::Entry;
use rustix::fs::{FileType, Mode, Stat};

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

/// Sets what is different, by the file's `stat` of now. Owner first: a change of it clears set-id bits.
///
/// # Errors
/// What `fchownat(2)` or `chmod(2)` says.
pub fn set_attributes(entry: &Entry, stat: &Stat, wanted: Wanted) -> io::Result<()> {
    let mode = stat.st_mode & 0o7777;
    let is_given_away =
        wanted.uid.is_some_and(|uid| uid != stat.st_uid) || wanted.gid.is_some_and(|gid| gid != stat.st_gid);
    if is_given_away {
        entry.set_owner(wanted.uid, wanted.gid)?;
    }
    match wanted.mode.unwrap_or(mode) {
        wanted if wanted != mode || is_given_away && entry.file_type() != FileType::Symlink => {
            entry.set_mode(Mode::from_raw_mode(wanted))
        }
        _ => Ok(()),
    }
}
