//! edit: lines of a file, replaced.

use std::ffi::OsStr;
use std::io::Read;
use std::num::NonZeroUsize;

use anyhow::{anyhow, bail};
use msb::overlay::resolve::{End, Last};
use rustix::fs::FileType;
use serde::Deserialize;

use super::Operation;
use crate::attributes::Wanted;
use crate::content::Content;
use crate::lines::{Edited, Pattern, replace_lines};
use crate::lookup::kind;
use crate::member::RawPath;
use crate::target::{Done, Target};
use crate::write::{FILE_MODE, Over};

/// The largest file that is edited, in bytes: it is held in memory.
const MAX: u64 = 64 << 20;

/// The members of edit.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edit {
    /// Where.
    pub path: RawPath,
    /// The line that is replaced, all of it.
    #[serde(default)]
    pub line: Option<String>,
    /// Or a regular expression that finds something in it.
    #[serde(default)]
    pub regex: Option<String>,
    /// What takes the place of such a line.
    pub with: String,
    /// How many lines there are to be; one or more without it.
    #[serde(default)]
    pub count: Option<NonZeroUsize>,
}

impl Operation for Edit {
    fn path(&self) -> &OsStr {
        &self.path
    }

    fn run(&self, target: &mut Target) -> anyhow::Result<Done> {
        let pattern = match (&self.line, &self.regex) {
            (Some(line), None) => Pattern::line(line, &self.with),
            (None, Some(regex)) => Pattern::regex(regex, &self.with),
            _ => bail!("one of the members \"line\" and \"regex\" is expected"),
        };
        let pattern = pattern.map_err(|why| anyhow!(why))?;
        let at = target.look_up(&self.path, Last::Follow)?;
        let leaf = match &at.end {
            End::Dir => bail!("is a directory"),
            End::Missing(_) => bail!("does not exist"),
            End::Leaf(_, leaf) if leaf.entry.file_type() != FileType::RegularFile => bail!("is {}", kind(leaf)),
            End::Leaf(_, leaf) => leaf,
        };
        if leaf.entry.stat().st_size as u64 > MAX {
            bail!("is larger than {} MiB", MAX >> 20);
        }
        if target.is_hollow(&leaf.entry) {
            return Ok(Done::changed(target.found(&at, "replace")));
        }
        let mut text = Vec::new();
        leaf.data().open_to_read()?.take(MAX).read_to_end(&mut text)?;
        match replace_lines(&text, &pattern, self.count.map(NonZeroUsize::get)).map_err(|why| anyhow!(why))? {
            Edited::Already => Ok(Done::unchanged(target.found(&at, "replace"))),
            Edited::To(text) => {
                let over = Over { replace: true, create: false };
                target.write_at(&self.path, at, over, Wanted::default(), FILE_MODE, Content::Bytes(&text))
            }
        }
    }
}
