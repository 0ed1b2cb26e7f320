//! What an operation will do, decided against the merged view as it is now, before anything is written.

use std::path::Path;

use anyhow::{Context, anyhow, bail};
use msb::overlay::resolve::{End, Error, Last, Resolved, Trail};
use msb::overlay::{Layer, Leaf, Merged};
use msb::script;
use rustix::fs::FileType;

use crate::op::Op;

/// A decided operation.
#[derive(Debug)]
pub enum Plan {
    /// Write a file at the end of the way.
    Write(Resolved),
    /// Make the missing directories, and set what is asked for on the last.
    MakeDirs(Resolved),
    /// Add to the file at the end of the way.
    Append(Resolved),
    /// Copy a directory's content into the directory at the end of the way.
    CopyDir(Resolved),
    /// Put a symlink at the end of the way.
    Symlink(Resolved),
    /// Remove what is at the end of the way.
    Remove(Resolved),
    /// Write a script.
    Script,
    /// What is asked for is so already.
    Nothing(String),
}

/// Decides what `op` does.
///
/// # Errors
/// Words, without the operation's name and path.
pub fn plan(root: &Merged, trail: &mut Trail, op: &Op) -> anyhow::Result<Plan> {
    let mut way = Way { root, trail };
    Ok(match op {
        Op::Text { path, replace, .. } | Op::File { path, replace, .. } => {
            Plan::Write(way.for_writing(path, *replace)?)
        }
        Op::CopyFile { src, dst, replace, .. } => {
            let meta = std::fs::metadata(src).with_context(|| format!("src {src:?}"))?;
            if meta.is_dir() {
                bail!("src {src:?}: is a directory (use copy_dir)");
            }
            if !meta.is_file() {
                bail!("src {src:?}: not a regular file");
            }
            Plan::Write(way.for_writing(dst, *replace)?)
        }
        Op::Mkdir { path, mode, uid, gid } => {
            let resolved = way.follow(path)?;
            match &resolved.end {
                End::Leaf(_, leaf) => bail!("exists{} and is {}", whereabouts(leaf), kind(leaf)),
                End::Dir if mode.is_none() && uid.is_none() && gid.is_none() => Plan::Nothing(display(&resolved)),
                _ => Plan::MakeDirs(resolved),
            }
        }
        Op::Append { path, .. } => {
            let resolved = way.follow(path)?;
            match &resolved.end {
                End::Dir => bail!("is a directory"),
                End::Missing(_) => bail!("does not exist (append adds to a file that is there; text makes one)"),
                End::Leaf(_, leaf) if leaf.entry.file_type() != FileType::RegularFile => bail!("is {}", kind(leaf)),
                End::Leaf(..) => Plan::Append(resolved),
            }
        }
        Op::CopyDir { src, dst, .. } => {
            let meta = std::fs::metadata(src).with_context(|| format!("src {src:?}"))?;
            if !meta.is_dir() {
                bail!("src {src:?}: not a directory (use copy_file)");
            }
            let resolved = way.follow(dst)?;
            if let End::Leaf(_, leaf) = &resolved.end {
                bail!("exists{} and is {}", whereabouts(leaf), kind(leaf));
            }
            Plan::CopyDir(resolved)
        }
        Op::Symlink { link, target, replace } => {
            if target.is_empty() {
                bail!("the target is empty");
            }
            let resolved = way.keep(link)?;
            match &resolved.end {
                End::Dir => bail!("exists and is a directory (remove it first)"),
                End::Leaf(_, leaf) if !replace => bail!("{}", exists(leaf)),
                End::Missing(_) if link.ends_with('/') => bail!("a symlink's path does not end with \"/\""),
                _ => Plan::Symlink(resolved),
            }
        }
        Op::Remove { path } => match way.keep_maybe(path)? {
            Some(resolved) if matches!(resolved.end, End::Missing(_)) => Plan::Nothing(display(&resolved)),
            Some(resolved) if resolved.steps.len() == 1 && matches!(resolved.end, End::Dir) => {
                bail!("is the root, which stays")
            }
            Some(resolved) => Plan::Remove(resolved),
            None => Plan::Nothing(path.clone()),
        },
        Op::Script { name, .. } => {
            script::check_name(name).map_err(|why| anyhow!(why))?;
            Plan::Script
        }
    })
}

/// Looks paths up.
struct Way<'a> {
    root: &'a Merged,
    trail: &'a mut Trail,
}

impl Way<'_> {
    fn for_writing(&mut self, path: &str, replace: bool) -> anyhow::Result<Resolved> {
        let resolved = self.follow(path)?;
        match &resolved.end {
            End::Dir => bail!("exists and is a directory"),
            End::Leaf(_, leaf) if !replace => bail!("{}", exists(leaf)),
            _ if path.ends_with('/') => bail!("a file's path does not end with \"/\""),
            _ => Ok(resolved),
        }
    }

    fn follow(&mut self, path: &str) -> anyhow::Result<Resolved> {
        directory_if_slash(path, self.trail.resolve(self.root, Path::new(path), Last::Follow)?)
    }

    fn keep(&mut self, path: &str) -> anyhow::Result<Resolved> {
        directory_if_slash(path, self.trail.resolve(self.root, Path::new(path), Last::Keep)?)
    }

    /// `None` for a path that nothing can be at, as below a file.
    fn keep_maybe(&mut self, path: &str) -> anyhow::Result<Option<Resolved>> {
        match self.trail.resolve(self.root, Path::new(path), Last::Keep) {
            Ok(resolved) => directory_if_slash(path, resolved).map(Some),
            Err(Error::NotDirectory(_) | Error::Missing(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// A path that ends with a slash names a directory, or nothing yet.
fn directory_if_slash(path: &str, resolved: Resolved) -> anyhow::Result<Resolved> {
    match resolved.end {
        End::Leaf(..) if path.ends_with('/') => bail!("{:?} is not a directory", display(&resolved)),
        _ => Ok(resolved),
    }
}

fn exists(leaf: &Leaf) -> String {
    format!("exists{} (set \"replace\": true to overwrite it)", whereabouts(leaf))
}

fn whereabouts(leaf: &Leaf) -> &'static str {
    match leaf.layer {
        Layer::Lower(_) => " in the image",
        Layer::Upper => "",
    }
}

fn kind(leaf: &Leaf) -> &'static str {
    match leaf.entry.file_type() {
        FileType::RegularFile => "a file",
        FileType::Symlink => "a symlink",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        _ => "a device",
    }
}

fn display(resolved: &Resolved) -> String {
    resolved.path().to_string_lossy().into_owned()
}
