//! The report: one JSON line for each operation, on stdout for a dry run, and in a file for `--report`.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use msb::overlay::Layer;
use msb::{store::publish, tool::line};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use crate::op::Op;
use crate::target::Done;

/// A line of the report.
#[derive(Debug, Serialize)]
struct Line<'a> {
    n: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    op: Option<&'static str>,
    #[serde(flatten)]
    path: PathMember<'a>,
    #[serde(flatten)]
    outcome: Outcome<'a>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Outcome<'a> {
    Done {
        #[serde(flatten)]
        resolved: PathMember<'a>,
        #[serde(flatten)]
        to: PathMember<'a>,
        exists: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        layer: Option<String>,
        action: &'static str,
        bytes: u64,
    },
    Failed {
        line: usize,
        error: &'a str,
    },
}

/// A member with a path, and a second one in base64 if the path is not UTF-8.
#[derive(Debug)]
struct PathMember<'a>(&'static str, Option<&'a OsStr>);

impl Serialize for PathMember<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut members = to.serialize_map(None)?;
        if let Some(path) = self.1 {
            members.serialize_entry(self.0, &path.to_string_lossy())?;
            if path.to_str().is_none() {
                members.serialize_entry(&format!("{}_base64", self.0), &STANDARD.encode(path.as_bytes()))?;
            }
        }
        members.end()
    }
}

/// The outputs of the report.
#[derive(Debug)]
pub struct Report {
    dry_run: bool,
    file: Option<ReportFile>,
}

#[derive(Debug)]
struct ReportFile {
    to: PathBuf,
    /// The temporary file that is renamed to `to`. `None`: `to` is not a regular file.
    temporary: Option<PathBuf>,
    file: BufWriter<File>,
}

impl Report {
    /// Opens the file, if there is one.
    ///
    /// # Errors
    /// Those of opening it.
    pub fn open(dry_run: bool, to: Option<&Path>) -> anyhow::Result<Self> {
        let file = to.map(|to| {
            if to == Path::new("-") {
                bail!("report: stdout has the record (name a file)");
            }
            let is_stream = to.metadata().is_ok_and(|meta| !meta.is_file());
            let temporary = (!is_stream).then(|| publish::staging_path(to));
            let file = match &temporary {
                Some(temporary) => File::create(temporary),
                None => File::options().write(true).open(to),
            };
            let file = BufWriter::new(file.with_context(|| format!("report {to:?}"))?);
            Ok(ReportFile { to: to.to_owned(), temporary, file })
        });
        Ok(Self { dry_run, file: file.transpose()? })
    }

    /// Whether there is any output.
    pub fn is_wanted(&self) -> bool {
        self.dry_run || self.file.is_some()
    }

    /// Reports an operation that succeeded.
    ///
    /// # Errors
    /// Those of writing.
    pub fn done(&mut self, n: usize, op: &Op, done: &Done) -> anyhow::Result<()> {
        let Some(before) = &done.before else { return Ok(()) };
        let (name, subject) = op.subject();
        let outcome = Outcome::Done {
            resolved: PathMember("resolved", Some(before.resolved.as_ref())),
            to: PathMember("to", before.to.as_deref().map(AsRef::as_ref)),
            exists: before.exists,
            layer: before.layer.map(|layer| match layer {
                Layer::Upper => "upper".to_owned(),
                Layer::Lower(number) => format!("lower {number}"),
            }),
            action: if done.changed { before.action } else { "nothing" },
            bytes: done.bytes,
        };
        self.put(&Line { n, op: Some(name), path: PathMember("path", Some(subject)), outcome })
    }

    /// Reports an operation that failed or could not be parsed, and the line at which it starts.
    ///
    /// # Errors
    /// Those of writing.
    pub fn failed(&mut self, n: usize, line: usize, op: Option<&Op>, error: &str) -> anyhow::Result<()> {
        let (name, subject) = op.map(Op::subject).unzip();
        self.put(&Line { n, op: name, path: PathMember("path", subject), outcome: Outcome::Failed { line, error } })
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

    /// Completes the file and renames it to its name.
    ///
    /// # Errors
    /// Those of writing and renaming.
    pub fn close(self) -> anyhow::Result<()> {
        let Some(mut report) = self.file else { return Ok(()) };
        let closed = report.file.flush().and_then(|()| match &report.temporary {
            Some(temporary) => {
                report.file.get_ref().sync_all()?;
                std::fs::rename(temporary, &report.to)
            }
            None => Ok(()),
        });
        if closed.is_ok() {
            report.temporary = None;
        }
        closed.with_context(|| format!("report {:?}", report.to))
    }
}

impl Drop for ReportFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = std::fs::remove_file(temporary);
        }
    }
}
