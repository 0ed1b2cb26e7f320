//! append: adds text to the end of a file.

use std::ffi::OsStr;
use std::io::{self, Write};

use anyhow::bail;
use msb::overlay::beneath::{Entry, times_of};
use msb::overlay::resolve::{End, Last, Resolved};
use rustix::fs::{FileType, OFlags};
use serde::Deserialize;

use crate::attributes::RequestedAttributes;
use crate::content::{Content, contains};
use crate::lookup::kind;
use crate::member::RawPath;
use crate::operation::Operation;
use crate::target::{Done, Target};
use crate::write::{FILE_MODE, Overwrite};

/// The members of append.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Append {
    /// The path in the root.
    pub path: RawPath,
    /// The content.
    pub content: String,
    /// Add nothing if the file contains the text.
    #[serde(default)]
    pub once: bool,
    /// Create a missing file.
    #[serde(default)]
    pub create: bool,
}

impl Operation for Append {
    fn path(&self) -> &OsStr {
        &self.path
    }

    fn run(&self, target: &mut Target) -> anyhow::Result<Done> {
        let at = target.look_up(&self.path, Last::Follow)?;
        let content = self.content.as_bytes();
        let is_there = match &at.end {
            End::Dir => bail!("is a directory"),
            End::Missing(_) if !self.create => {
                bail!("does not exist (append adds to a file that is there; set \"create\": true to make it)")
            }
            End::Missing(_) => {
                let over = Overwrite { replace: false, create: true };
                return target.write_at(
                    &self.path,
                    at,
                    over,
                    RequestedAttributes::default(),
                    FILE_MODE,
                    Content::Bytes(content),
                );
            }
            End::Leaf(_, leaf) if leaf.entry.file_type() != FileType::RegularFile => bail!("is {}", kind(leaf)),
            End::Leaf(_, leaf) => {
                content.is_empty()
                    || self.once && !target.has_no_data(&leaf.entry) && contains(&leaf.data().open_to_read()?, content)?
            }
        };
        let before = target.state_before(&at, "append");
        if is_there {
            return Ok(Done::unchanged(before));
        }
        append(target, at, content)?;
        Ok(Done { bytes: content.len() as u64, ..Done::changed(before) })
    }
}

fn append(target: &mut Target, at: Resolved, content: &[u8]) -> anyhow::Result<()> {
    let file = target.writable_file(at)?;
    let before = file.stat_now()?;
    let mut open = file.open(OFlags::WRONLY | OFlags::APPEND)?;
    open.write_all(content)?;
    // As in the guest, a write by root keeps set-id bits and drops capabilities. The times are restored, so that the result does not depend
    // on the clock.
    let restored: io::Result<()> = Entry::of_open(open)?.set_times(&times_of(&before));
    Ok(restored?)
}
