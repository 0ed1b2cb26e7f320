//! touch: sets a modification time, or creates an empty file.

use std::ffi::OsStr;

use anyhow::bail;
use msb::overlay::resolve::{End, Last};
use rustix::fs::{Timespec, Timestamps};
use serde::Deserialize;

use crate::attributes::RequestedAttributes;
use crate::content::Content;
use crate::lookup::stat_of;
use crate::member::{RawPath, Timestamp};
use crate::operation::{Operation, yes};
use crate::target::{Done, Target};
use crate::write::{FILE_MODE, Overwrite};

/// The members of touch.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Touch {
    /// The path in the root.
    pub path: RawPath,
    /// The time. Without it, an existing file keeps its own.
    #[serde(default)]
    pub mtime: Option<Timestamp>,
    /// Create a missing file.
    #[serde(default = "yes")]
    pub create: bool,
    /// Follow a symlink at the end of the path.
    #[serde(default = "yes")]
    pub follow: bool,
}

impl Operation for Touch {
    fn path(&self) -> &OsStr {
        &self.path
    }

    fn run(&self, target: &mut Target) -> anyhow::Result<Done> {
        let last = if self.follow { Last::Follow } else { Last::Keep };
        let mut at = target.look_up(&self.path, last)?;
        let mut done = if matches!(at.end, End::Missing(_)) {
            let over = Overwrite { replace: false, create: self.create };
            let done = target.write_at(
                &self.path,
                at,
                over,
                RequestedAttributes::default(),
                FILE_MODE,
                Content::Bytes(b""),
            )?;
            at = target.look_up(&self.path, last)?;
            done
        } else {
            Done::unchanged(target.state_before(&at, "set"))
        };
        let Some(Timestamp { seconds, nanoseconds }) = self.mtime else { return Ok(done) };
        let is_set =
            |stat: &rustix::fs::Stat| (stat.st_mtime, stat.st_mtime_nsec as i64) == (seconds, nanoseconds.into());
        if !is_set(&stat_of(&at)?) {
            let file = target.writable_entry(at)?;
            let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
            file.set_times(&Timestamps { last_access: time, last_modification: time })?;
            if file.stat_now()?.st_mtime != seconds {
                bail!("mtime: the upper's file system has no such time");
            }
            done.changed = true;
        }
        Ok(done)
    }
}
