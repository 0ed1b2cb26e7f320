//! A disk as the guest's root: a base, which is never written to, and a qcow2 overlay, whose backing file is the base and which holds
//! what the guest writes. The overlay is the caller's file, or an unlinked file that disappears with the VM.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use imago::file::File as ImageFile;
use imago::qcow2::Qcow2CreateBuilder;
use imago::{FormatCreateBuilder, StorageOpenOptions};
use msb::lock::{self, Lock};
use msb::record::{DiskFormat, path};
use msb::store::{home, publish};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

/// A disk root.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct DiskRoot {
    /// The base. The path is the real one, which is in the overlay's header.
    pub base: PathBuf,
    /// The format of the base.
    pub format: DiskFormat,
    /// The overlay.
    pub overlay: Overlay,
}

/// Where the overlay is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Overlay {
    /// The caller's file, which is made if it is missing.
    File(PathBuf),
    /// An unlinked file in this directory.
    Unnamed(PathBuf),
}

impl DiskRoot {
    /// Checks the base, and the overlay if it exists.
    ///
    /// # Errors
    /// A file that no VM could use, or a base that refers to other files of the host.
    pub(crate) fn check(base: &Path, format: DiskFormat, overlay: Option<&Path>) -> anyhow::Result<Self> {
        let base = std::fs::canonicalize(base).with_context(|| format!("disk {base:?}"))?;
        if base.to_str().is_none() {
            bail!("disk {base:?}: its path is not UTF-8, which the overlay's header needs");
        }
        let overlay = match overlay {
            Some(path) => Overlay::File(path::absolute(path)?),
            None => Overlay::Unnamed(home::home()?),
        };
        let disk = Self { base, format, overlay };
        disk.size()?;
        match &disk.overlay {
            Overlay::File(path) if path.exists() => {
                disk.check_overlay(path, &open(path).with_context(|| subject(path))?)?;
            }
            _ => {}
        }
        Ok(disk)
    }

    /// Opens the overlay, and makes it if it is missing. It is locked as long as the file is open.
    ///
    /// # Errors
    /// An overlay that another VM uses, or that cannot be made.
    pub(crate) fn open_overlay(&self) -> anyhow::Result<OwnedFd> {
        let path = match &self.overlay {
            Overlay::File(path) => path,
            Overlay::Unnamed(dir) => {
                publish::make_private_dir(dir).with_context(|| format!("{dir:?}"))?;
                return Ok(self.make_overlay(dir).with_context(|| format!("overlay in {dir:?}"))?.into());
            }
        };
        let opened = match File::options().read(true).write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.make_named_overlay(path),
            other => other.map_err(anyhow::Error::from),
        };
        let file = opened.with_context(|| subject(path))?;
        if lock::take(&file, Lock::TryExclusive).is_err() {
            bail!("{}: another VM has it (stop that one, or name another file)", subject(path));
        }
        self.check_overlay(path, &file)?;
        Ok(file.into())
    }

    /// The size that the guest sees, in bytes.
    fn size(&self) -> anyhow::Result<u64> {
        let subject = || format!("disk {:?}", self.base);
        let mut file = open(&self.base).with_context(subject)?;
        match self.format {
            DiskFormat::Raw | DiskFormat::Erofs => {
                Ok(io::Seek::seek(&mut file, io::SeekFrom::End(0)).with_context(subject)?)
            }
            DiskFormat::Qcow2 => {
                let header = Header::read(&file).with_context(subject)?;
                if let Some(backing) = header.backing {
                    bail!(
                        "{}: it has a backing file, {backing:?}, which could be any file of this machine (make one \
                         image of both: qemu-img convert -O qcow2)",
                        subject()
                    );
                }
                Ok(header.size)
            }
        }
    }

    fn check_overlay(&self, path: &Path, file: &File) -> anyhow::Result<()> {
        let header = Header::read(file).with_context(|| subject(path))?;
        if header.backing.as_deref() != Some(&*self.base) {
            let backing = header.backing.map_or("none".into(), |backing| format!("{backing:?}"));
            bail!("{}: its backing file is {backing} and not {:?} (name another file)", subject(path), self.base);
        }
        Ok(())
    }

    /// Makes an unlinked overlay in `dir`.
    fn make_overlay(&self, dir: &Path) -> anyhow::Result<File> {
        let file = publish::unnamed_file(dir)?;
        let storage = ImageFile::from_open_file(file.try_clone()?, StorageOpenOptions::new().write(true))?;
        let format = match self.format {
            DiskFormat::Raw | DiskFormat::Erofs => "raw",
            DiskFormat::Qcow2 => "qcow2",
        };
        let base = self.base.to_str().context("its base's path is not UTF-8")?;
        let made = Qcow2CreateBuilder::<ImageFile>::new(storage)
            .size(self.size()?)
            .backing(base.into(), format.into())
            .create();
        tokio::runtime::Builder::new_current_thread().build()?.block_on(made)?;
        Ok(file)
    }

    /// Makes the overlay and links it at `path` when it is complete.
    fn make_named_overlay(&self, path: &Path) -> anyhow::Result<File> {
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("/"));
        let file = self.make_overlay(dir)?;
        file.sync_all()?;
        publish::link(&file, path)?;
        Ok(file)
    }
}

/// Opens a disk of the caller's for reading.
///
/// # Errors
/// The error of `open(2)`; [`io::ErrorKind::InvalidInput`] for a file of another kind.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    // Without the flag, a FIFO would be waited for. On a disk it has no effect.
    let file = File::options().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(file);
    }
    let message = "neither a regular file nor a block device (name a disk)";
    Err(io::Error::new(io::ErrorKind::InvalidInput, message))
}

fn subject(overlay: &Path) -> String {
    format!("overlay {overlay:?}")
}

/// The header of a qcow2 file (QEMU's docs/interop/qcow2.txt).
#[derive(Debug, PartialEq, Eq)]
struct Header {
    size: u64,
    backing: Option<PathBuf>,
}

impl Header {
    fn read(file: &File) -> anyhow::Result<Self> {
        const MAGIC: &[u8] = b"QFI\xfb";
        const EXTERNAL_DATA: u64 = 1 << 2;
        const MAX_NAME: u32 = 1023;
        let mut bytes = [0u8; 104];
        let mut filled = 0;
        while filled < bytes.len() {
            match file.read_at(&mut bytes[filled..], filled as u64)? {
                0 => break,
                got => filled += got,
            }
        }
        if !bytes.starts_with(MAGIC) {
            bail!("it is not a qcow2 image");
        }
        let wide = |at: usize| bytes[at..at + 8].iter().fold(0, |number, &byte| number << 8 | u64::from(byte));
        let narrow = |at: usize| bytes[at..at + 4].iter().fold(0, |number, &byte| number << 8 | u32::from(byte));
        let version = narrow(4);
        if !(2..=3).contains(&version) {
            bail!("qcow2 of version {version} is not supported");
        }
        if narrow(32) != 0 {
            bail!("it is encrypted, which is not supported");
        }
        if version == 3 && wide(72) & EXTERNAL_DATA != 0 {
            bail!("its data is in another file, which could be any file of this machine (qemu-img convert -O qcow2)");
        }
        let backing = match (wide(8), narrow(16)) {
            (0, _) => None,
            (_, length) if length > MAX_NAME => bail!("its header is damaged"),
            (at, length) => {
                let mut name = vec![0; length as usize];
                file.read_exact_at(&mut name, at).map_err(|_| anyhow!("its header is damaged"))?;
                Some(Path::new(std::ffi::OsStr::from_bytes(&name)).to_owned())
            }
        };
        Ok(Self { size: wide(24), backing })
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, FileType, Mode};

    use super::*;

    fn raw(dir: &Path) -> PathBuf {
        let path = dir.join("base.raw");
        File::create(&path).unwrap().set_len(3 << 20).unwrap();
        path
    }

    #[test]
    fn an_overlay_names_its_base_and_has_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let overlay = dir.path().join("overlay.qcow2");
        let disk = DiskRoot::check(&raw(dir.path()), DiskFormat::Raw, Some(&overlay)).unwrap();
        let first = disk.open_overlay().unwrap();
        let header = Header::read(&File::open(&overlay).unwrap()).unwrap();
        assert_eq!(header, Header { size: 3 << 20, backing: Some(disk.base.clone()) });
        let error = format!("{:#}", disk.open_overlay().unwrap_err());
        assert!(error.contains("another VM has it"), "{error}");
        drop(first);
        disk.open_overlay().unwrap();
    }

    #[test]
    fn an_overlay_of_another_base_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let overlay = dir.path().join("overlay.qcow2");
        drop(DiskRoot::check(&raw(dir.path()), DiskFormat::Raw, Some(&overlay)).unwrap().open_overlay().unwrap());
        let other = dir.path().join("other.raw");
        std::fs::copy(dir.path().join("base.raw"), &other).unwrap();
        let error = format!("{:#}", DiskRoot::check(&other, DiskFormat::Raw, Some(&overlay)).unwrap_err());
        assert!(error.contains("base.raw\" and not "), "{error}");
    }

    #[test]
    fn a_base_that_refers_to_other_files_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let overlay = dir.path().join("overlay.qcow2");
        drop(DiskRoot::check(&raw(dir.path()), DiskFormat::Raw, Some(&overlay)).unwrap().open_overlay().unwrap());
        let error = format!("{:#}", DiskRoot::check(&overlay, DiskFormat::Qcow2, None).unwrap_err());
        assert!(error.contains("it has a backing file"), "{error}");

        let mut header = std::fs::read(&overlay).unwrap();
        header[8..16].fill(0);
        header[79] |= 1 << 2;
        std::fs::write(&overlay, &header).unwrap();
        let error = format!("{:#}", DiskRoot::check(&overlay, DiskFormat::Qcow2, None).unwrap_err());
        assert!(error.contains("its data is in another file"), "{error}");
    }

    #[test]
    fn a_fifo_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
            let error = format!("{:#}", DiskRoot::check(&fifo, format, None).unwrap_err());
            assert!(error.contains("neither a regular file"), "{error}");
        }
        let error = format!("{:#}", DiskRoot::check(&raw(dir.path()), DiskFormat::Raw, Some(&fifo)).unwrap_err());
        assert!(error.contains("neither a regular file"), "{error}");
    }

    #[test]
    fn a_file_that_is_not_qcow2_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (content, expected) in [
            (&b""[..], "not a qcow2 image"),
            (b"QFI\xfb", "version 0"),
            (b"QFI\xfb\0\0\0\x02\0\0\0\0\0\0\x01\0\0\0\xff\xff", "damaged"),
            (b"QFI\xfb\0\0\0\x02\0\0\0\0\0\0\x01\0\0\0\0\x08", "damaged"),
        ] {
            let path = dir.path().join("odd.qcow2");
            std::fs::write(&path, content).unwrap();
            let error = format!("{:#}", DiskRoot::check(&path, DiskFormat::Qcow2, None).unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
    }
}
