//! Outputs that become visible when they are complete: a file without a name until then, or a directory under another name.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use msb::lock::{self, Lock};
use msb::record::path::absolute;
use msb::store::publish;
use msb::tool::interrupt::{self, DeferExit};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// A file without a name in the directory `dir`, with the permissions that the caller's umask leaves.
///
/// # Errors
/// The error of `open(2)`.
pub(crate) fn unnamed(dir: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(rustix::fs::open(dir, flags, Mode::from_raw_mode(0o666))?.into())
}

/// A file that is being made.
pub(crate) struct StagedFile {
    pub(crate) file: File,
    to: PathBuf,
    /// Whether `to` is a device or a pipe, which is written to as it is.
    is_stream: bool,
}

impl StagedFile {
    /// Starts the file `to`.
    ///
    /// # Errors
    /// A directory, a missing parent, and the error of creating.
    pub(crate) fn begin(to: &Path) -> anyhow::Result<Self> {
        let begin = || -> anyhow::Result<Self> {
            match fs::metadata(to) {
                Ok(meta) if meta.is_dir() => bail!("a directory"),
                Ok(meta) if !meta.is_file() => {
                    let file = File::options().write(true).open(to)?;
                    Ok(Self { file, to: to.to_owned(), is_stream: true })
                }
                found => {
                    // The target of a symlink is replaced.
                    let to = if found.is_ok() { to.canonicalize()? } else { absolute(to)? };
                    let dir = parent(&to);
                    if !dir.is_dir() {
                        bail!("no directory {dir:?} (make it first)");
                    }
                    Ok(Self { file: unnamed(dir)?, to, is_stream: false })
                }
            }
        };
        begin().with_context(|| format!("{to:?}"))
    }

    /// Gives the file its name, in place of an old one.
    ///
    /// # Errors
    /// The error of syncing or renaming; the old file stays then.
    pub(crate) fn commit(self) -> anyhow::Result<()> {
        if self.is_stream {
            return Ok(());
        }
        let put = || -> io::Result<()> {
            self.file.sync_all()?;
            publish::link_over(&self.file, &self.to)?;
            publish::sync_parent(&self.to)
        };
        put().with_context(|| format!("{:?}", self.to))
    }
}

/// The directory of a path.
pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// What the user can do about an error of the place that is written to.
pub(crate) fn remedy(error: &anyhow::Error) -> Option<&'static str> {
    error.chain().find_map(|cause| match cause.downcast_ref::<io::Error>()?.kind() {
        io::ErrorKind::StorageFull => Some("make room, or name a place elsewhere"),
        io::ErrorKind::ReadOnlyFilesystem => Some("name a place elsewhere"),
        _ => None,
    })
}

/// A directory that is being made. The lock tells it from one that a killed run has left.
pub(crate) struct StagedDir {
    pub(crate) path: PathBuf,
    to: PathBuf,
    _lock: OwnedFd,
}

impl StagedDir {
    /// Starts the directory `to`, which must not exist yet or be empty.
    ///
    /// # Errors
    /// A directory with content, a missing parent, and the error of making.
    pub(crate) fn begin(to: &Path) -> anyhow::Result<Self> {
        let begin = || -> anyhow::Result<Self> {
            let to = absolute(to)?;
            match fs::symlink_metadata(&to) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
                Ok(meta) if meta.is_dir() && fs::read_dir(&to)?.next().is_none() => {}
                Ok(_) => bail!("exists (remove it, or name another directory)"),
            }
            if !parent(&to).is_dir() {
                bail!("no directory {:?} (make it first)", parent(&to));
            }
            Ok(Self::beside(&to)?)
        };
        begin().with_context(|| format!("{to:?}"))
    }

    /// Makes a directory beside the absolute path `to`, which a drop removes, and removes what killed runs have left there.
    ///
    /// # Errors
    /// The error of making or locking.
    pub(crate) fn beside(to: &Path) -> io::Result<Self> {
        remove_abandoned(to);
        let path = publish::staging_path(&to.with_file_name(staging_name(to)));
        fs::create_dir(&path)?;
        let lock = lock::open(&path, Lock::TryExclusive)?;
        Ok(Self { path, to: to.to_owned(), _lock: lock })
    }

    /// Gives the directory its name.
    ///
    /// # Errors
    /// The error of syncing or renaming, and that of [`interrupt::check`]; it is removed then.
    pub(crate) fn commit(self) -> anyhow::Result<()> {
        let _deferred = DeferExit::new();
        // Declared after `_deferred`, so that the staging directory is removed before the tool exits.
        let staged = self;
        let put = || -> io::Result<()> {
            rustix::fs::syncfs(File::open(&staged.path)?)?;
            interrupt::check()?;
            fs::rename(&staged.path, &staged.to)?;
            publish::sync_parent(&staged.to)
        };
        put().with_context(|| format!("{:?}", staged.to))
    }
}

impl Drop for StagedDir {
    fn drop(&mut self) {
        // After a rename it is gone already. What cannot be removed now, the next run removes.
        let _ = publish::remove_tree(&self.path);
    }
}

/// The start of the names of staging directories for `to`, without the dot. The tool's name keeps them apart from directories of
/// the caller's, such as `.NAME.3.11`.
fn staging_name(to: &Path) -> String {
    format!("{}.{}", to.file_name().unwrap_or_default().to_string_lossy(), crate::page::TOOL)
}

/// Removes staging directories for `to` that nobody has locked: `.NAME.msb-pack.PID.NUMBER`, with more numbers behind.
fn remove_abandoned(to: &Path) {
    let prefix = format!(".{}.", staging_name(to));
    for child in fs::read_dir(parent(to)).into_iter().flatten().flatten() {
        let name = child.file_name().to_string_lossy().into_owned();
        // Further numbers are of directories below it, which a removal that was killed had moved up.
        let Some(numbers) = name.strip_prefix(&prefix) else { continue };
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if numbers.contains('.')
            && numbers.split('.').all(is_number)
            && child.file_type().is_ok_and(|kind| kind.is_dir())
            && let Ok(_lock) = lock::open(&child.path(), Lock::TryExclusive)
        {
            let _ = publish::remove_tree(&child.path());
        }
    }
}

/// Gives a file the name `path`, in place of a broken file that has it. A file on another file system is copied.
///
/// # Errors
/// The error of linking or copying.
pub(crate) fn link_or_copy(file: &File, path: &Path) -> io::Result<()> {
    let link = |file: &File| match publish::link(file, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => publish::link_over(file, path),
        other => other,
    };
    match link(file) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::XDEV) => {
            let copy = unnamed(parent(path))?;
            msb::overlay::copy_to_end(file, &copy)?;
            copy.sync_all()?;
            link(&copy)
        }
        other => other,
    }
}

/// Writes bytes to a file of the name `path`, as [`link_or_copy`] does.
///
/// # Errors
/// The error of writing.
pub(crate) fn write_blob(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = unnamed(parent(path))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    link_or_copy(&file, path)
}
