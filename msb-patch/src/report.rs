//! What each operation came to, as one JSON line: on stdout for a dry run, in a file for `--report`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use msb::overlay::Layer;
use msb::overlay::resolve::{End, Resolved};
use msb::{line, script, state};
use serde::Serialize;

use crate::apply::Done;
use crate::op::Op;
use crate::plan::Plan;

/// A line.
#[derive(Debug, Serialize)]
struct Line<'a> {
    n: usize,
    #[serde(flatten)]
    subject: Option<Subject<'a>>,
    #[serde(flatten)]
    outcome: Outcome<'a>,
}

#[derive(Debug, Serialize)]
struct Subject<'a> {
    op: &'static str,
    path: &'a str,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Outcome<'a> {
    Done {
        #[serde(flatten)]
        found: &'a Found,
        action: &'static str,
        bytes: u64,
    },
    Failed {
        error: &'a str,
    },
}

/// What was at an operation's path before.
#[derive(Debug, Serialize)]
pub struct Found {
    /// The path with all symlinks followed.
    resolved: String,
    exists: bool,
    /// The layer that answers: `upper`, or `lower N` from 0 at the top.
    #[serde(skip_serializing_if = "Option::is_none")]
    layer: Option<String>,
    /// What is done to it.
    #[serde(skip)]
    action: &'static str,
}

impl Found {
    /// From the plan, which the operation uses up.
    pub fn new(op: &Op, plan: &Plan) -> Self {
        match plan {
            Plan::Write(at) | Plan::Symlink(at) => Self::at(at, "replace"),
            Plan::MakeDirs(at) => Self::at(at, "set"),
            Plan::Append(at) => Self::at(at, "append"),
            Plan::CopyDir(at) => Self::at(at, "merge"),
            Plan::Remove(at) => Self::at(at, "remove"),
            Plan::Script => {
                let resolved = format!("{}/{}", script::GUEST_DIR, op.subject().1);
                Self { resolved, exists: false, layer: None, action: "create" }
            }
            Plan::Nothing(resolved) => {
                let exists = matches!(op, Op::Mkdir { .. });
                Self { resolved: resolved.clone(), exists, layer: None, action: "nothing" }
            }
        }
    }

    fn at(at: &Resolved, action: &'static str) -> Self {
        let layer = match &at.end {
            End::Leaf(_, leaf) => Some(leaf.layer),
            End::Dir => at.steps.last().map(|step| step.dir.top().1),
            End::Missing(_) => None,
        };
        let layer = layer.map(|layer| match layer {
            Layer::Upper => "upper".to_owned(),
            Layer::Lower(number) => format!("lower {number}"),
        });
        let exists = layer.is_some();
        let action = if exists { action } else { "create" };
        Self { resolved: at.path().to_string_lossy().into_owned(), exists, layer, action }
    }
}

/// Where the lines go.
#[derive(Debug)]
pub struct Report {
    dry_run: bool,
    file: Option<ReportFile>,
}

#[derive(Debug)]
struct ReportFile {
    to: PathBuf,
    /// Where it is until it is whole; nowhere else where `to` is no regular file.
    aside: Option<PathBuf>,
    file: BufWriter<File>,
}

impl Report {
    /// Opens the file, if there is to be one.
    ///
    /// # Errors
    /// What opening says.
    pub fn open(dry_run: bool, to: Option<&Path>) -> anyhow::Result<Self> {
        let file = to.map(|to| {
            if to == Path::new("-") {
                bail!("report: stdout has the record (name a file)");
            }
            let is_stream = to.metadata().is_ok_and(|meta| !meta.is_file());
            let aside = (!is_stream).then(|| state::aside(to));
            let file = match &aside {
                Some(aside) => File::create(aside),
                None => File::options().write(true).open(to),
            };
            let file = BufWriter::new(file.with_context(|| format!("report {to:?}"))?);
            Ok(ReportFile { to: to.to_owned(), aside, file })
        });
        Ok(Self { dry_run, file: file.transpose()? })
    }

    /// Whether anybody reads it.
    pub fn is_wanted(&self) -> bool {
        self.dry_run || self.file.is_some()
    }

    /// An operation that was carried out.
    ///
    /// # Errors
    /// What writing says.
    pub fn done(&mut self, n: usize, op: &Op, found: &Found, done: Done) -> anyhow::Result<()> {
        let action = if done.changed { found.action } else { "nothing" };
        self.put(&Line { n, subject: Some(op.into()), outcome: Outcome::Done { found, action, bytes: done.bytes } })
    }

    /// One that failed, or that was none.
    ///
    /// # Errors
    /// What writing says.
    pub fn failed(&mut self, n: usize, op: Option<&Op>, error: &str) -> anyhow::Result<()> {
        self.put(&Line { n, subject: op.map(Subject::from), outcome: Outcome::Failed { error } })
    }

    fn put(&mut self, what: &Line<'_>) -> anyhow::Result<()> {
        if self.dry_run {
            line::put(what)?;
        }
        if let Some(ReportFile { to, file, .. }) = &mut self.file {
            let written = serde_json::to_writer(&mut *file, what).map_err(Into::into);
            written.and_then(|()| file.write_all(b"\n")).with_context(|| format!("report {to:?}"))?;
        }
        Ok(())
    }

    /// Makes the file visible.
    ///
    /// # Errors
    /// What writing or renaming says.
    pub fn close(self) -> anyhow::Result<()> {
        let Some(mut report) = self.file else { return Ok(()) };
        let closed = report.file.flush().and_then(|()| match &report.aside {
            Some(aside) => {
                report.file.get_ref().sync_all()?;
                std::fs::rename(aside, &report.to)
            }
            None => Ok(()),
        });
        if closed.is_ok() {
            report.aside = None;
        }
        closed.with_context(|| format!("report {:?}", report.to))
    }
}

impl Drop for ReportFile {
    fn drop(&mut self) {
        if let Some(aside) = &self.aside {
            let _ = std::fs::remove_file(aside);
        }
    }
}

impl<'a> From<&'a Op> for Subject<'a> {
    fn from(op: &'a Op) -> Self {
        let (op, path) = op.subject();
        Self { op, path }
    }
}
