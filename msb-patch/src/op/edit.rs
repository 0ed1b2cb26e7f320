//! edit: replaces lines of a file.

use std::ffi::OsStr;
use std::io::Read;
use std::num::NonZeroUsize;

use anyhow::{anyhow, bail};
use msb::overlay::resolve::{End, Last};
use rustix::fs::FileType;
use serde::Deserialize;

use crate::attributes::RequestedAttributes;
use crate::content::Content;
use crate::lines::{Edited, Pattern, replace_lines};
use crate::lookup::kind;
use crate::member::RawPath;
use crate::operation::Operation;
use crate::target::{Done, Target};
use crate::write::{FILE_MODE, Overwrite};

/// The largest file that is edited, in bytes. It is read into memory.
const MAX: u64 = 64 << 20;

/// The members of edit.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edit {
    /// The path in the root.
    pub path: RawPath,
    /// The whole line to replace.
    #[serde(default)]
    pub line: Option<String>,
    /// A regular expression that matches a part of the line.
    #[serde(default)]
    pub regex: Option<String>,
    /// The replacement of the line or of the whole line that matches.
    pub with: String,
    /// The expected number of lines. Default: at least one.
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
        if target.has_no_data(&leaf.entry) {
            return Ok(Done::changed(target.state_before(&at, "replace")));
        }
        let mut text = Vec::new();
        leaf.data().open_to_read()?.take(MAX).read_to_end(&mut text)?;
        match replace_lines(&text, &pattern, self.count.map(NonZeroUsize::get)).map_err(|why| anyhow!(why))? {
            Edited::Already => Ok(Done::unchanged(target.state_before(&at, "replace"))),
            Edited::To(text) => {
                let over = Overwrite { replace: true, create: false };
                target.write_at(&self.path, at, over, RequestedAttributes::default(), FILE_MODE, Content::Bytes(&text))
            }
        }
    }
}
