//! `/run`: a tmpfs that starts with a copy of what the image and the patches have there. Images create socket directories in it when they
//! are built, and Docker keeps them; inits expect a file system that is empty after each boot. The image decides what is there, so the
//! copy is limited.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use msb::overlay::attributes::{Attributes, copy_attributes};
use msb::overlay::beneath::{Dir, Name};
use msb::overlay::{WHOLE, copy_leaf_as};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustix::fs::{FileType, Mode};

use crate::cleanup::Cleanup;
use crate::error::Error;
use crate::{console, path};

/// The most entries that are copied, and how deep the directories may be.
const MAX_ENTRIES: usize = 16 << 10;
const MAX_DEPTH: usize = 32;
/// The most bytes that are copied: the machine's memory divided by this.
const MEMORY_PART: u64 = 8;

/// Mounts the tmpfs with the content of the root's own directory, and returns its path. `None`: `/run` stays as the image has it, as in a
/// container, because there is too much to copy or it does not lead to a directory of the root. The reason is logged.
///
/// # Errors
/// Those of `mount(2)`.
pub fn mount_tmpfs(cleanup: &mut Cleanup) -> Result<Option<PathBuf>, Error> {
    let failed = |why: io::Error| Error::step("mount /run".into(), why);
    let (place, image) = match directory(cleanup) {
        Ok(found) => found,
        Err(error) => {
            console::log(&format!("/run stays as the image has it, without a tmpfs: {error}"));
            return Ok(None);
        }
    };
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), &place, Some("tmpfs"), flags, Some("mode=0755")).map_err(|error| failed(error.into()))?;
    let copied = Dir::open(&place).and_then(|tmpfs| copy_up(&image, &tmpfs));
    if let Err(error) = copied {
        console::log(&format!("/run stays the image's directory instead of a tmpfs: copying its content: {error}"));
        umount2(&place, MntFlags::MNT_DETACH).map_err(|error| failed(error.into()))?;
        return Ok(None);
    }
    Ok(Some(place))
}

/// Copies what is in a directory into a tmpfs, with the attributes of the directory itself.
///
/// # Errors
/// Too much to copy, or those of copying.
pub fn copy_up(from: &Dir, to: &Dir) -> io::Result<()> {
    let memory = nix::sys::sysinfo::sysinfo().map_or(0, |info| info.ram_total());
    Copy { entries: MAX_ENTRIES, bytes: memory / MEMORY_PART }.all(from, to, 0)
}

/// The root's own directory for `/run`, which is made if it is missing, and its path without symlinks.
fn directory(cleanup: &mut Cleanup) -> io::Result<(PathBuf, Dir)> {
    let root = Path::new("/");
    let place = path::follow(root, Path::new("/run"))?;
    if path::is_foreign(&place) {
        return Err(io::Error::other(format!("it is a symlink to {place:?}")));
    }
    path::make_directories(root, &place, cleanup)?;
    let dir = Dir::open(&place)?;
    Ok((place, dir))
}

/// A copy, and how many entries and bytes it may still have.
struct Copy {
    entries: usize,
    bytes: u64,
}

impl Copy {
    /// Copies the content of `from` to `to`, and then the attributes of `from` itself.
    fn all(&mut self, from: &Dir, to: &Dir, depth: usize) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(io::Error::other(format!("its directories are nested more than {MAX_DEPTH} deep")));
        }
        for child in from.read()? {
            let child = child?;
            // "." and ".." are not names.
            let Ok(name) = Name::new(OsStr::from_bytes(child.file_name().to_bytes())) else { continue };
            self.entries = self
                .entries
                .checked_sub(1)
                .ok_or_else(|| io::Error::other(format!("there are more than {MAX_ENTRIES} files and directories")))?;
            let Some(entry) = from.entry(name)? else { continue };
            match entry.file_type() {
                FileType::Directory => {
                    let made = to.mkdir(name, Mode::RWXU)?;
                    self.all(&entry.to_dir()?, &made, depth + 1)?;
                }
                // No process listens on it.
                FileType::Socket => {}
                kind => {
                    let size = u64::try_from(entry.stat().st_size).unwrap_or(0);
                    if kind == FileType::RegularFile {
                        self.bytes = self.bytes.checked_sub(size).ok_or_else(|| {
                            io::Error::other(format!("it is more than 1/{MEMORY_PART} of the memory"))
                        })?;
                    }
                    copy_leaf_as(&entry, to, name, WHOLE, &Attributes::of(entry.stat()))?;
                }
            }
        }
        copy_attributes(&from.to_entry()?, &to.to_entry()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;

    fn dirs() -> (tempfile::TempDir, Dir, Dir) {
        let scratch = tempfile::tempdir().unwrap();
        for name in ["from", "to"] {
            fs::create_dir(scratch.path().join(name)).unwrap();
        }
        let open = |name: &str| Dir::open(&scratch.path().join(name)).unwrap();
        let (from, to) = (open("from"), open("to"));
        (scratch, from, to)
    }

    #[test]
    fn a_copy_has_content_modes_times_and_symlinks_and_no_sockets() {
        let (scratch, from, to) = dirs();
        let at = |path: &str| scratch.path().join(path);
        fs::create_dir_all(at("from/app/inner")).unwrap();
        fs::write(at("from/app/token"), "secret\n").unwrap();
        fs::set_permissions(at("from/app/token"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(at("from/app"), fs::Permissions::from_mode(0o2775)).unwrap();
        fs::set_permissions(at("from"), fs::Permissions::from_mode(0o711)).unwrap();
        symlink("../nowhere", at("from/link")).unwrap();
        nix::unistd::mkfifo(&at("from/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let _socket = UnixListener::bind(at("from/socket")).unwrap();
        let mut copy = Copy { entries: 6, bytes: 7 };
        copy.all(&from, &to, 0).unwrap();
        assert_eq!((copy.entries, copy.bytes), (0, 0));
        assert_eq!(fs::read(at("to/app/token")).unwrap(), b"secret\n");
        assert_eq!(fs::read_link(at("to/link")).unwrap(), Path::new("../nowhere"));
        assert!(!at("to/socket").exists());
        for path in ["", "app", "app/inner", "app/token", "fifo"] {
            let (from, to) = (at("from").join(path), at("to").join(path));
            let look = |path: &Path| fs::metadata(path).map(|meta| (meta.mode(), meta.mtime(), meta.uid())).unwrap();
            assert_eq!(look(&from), look(&to), "{path:?}");
        }
    }

    #[test]
    fn a_copy_ends_at_each_of_its_limits() {
        for (entries, bytes, depth, reason) in [
            (2, 10, 3, ""),
            (1, 10, 3, "more than 16384 files"),
            (2, 9, 3, "of the memory"),
            (2, 10, MAX_DEPTH, "deep"),
        ] {
            let (scratch, from, to) = dirs();
            fs::create_dir(scratch.path().join("from/dir")).unwrap();
            fs::write(scratch.path().join("from/dir/file"), "0123456789").unwrap();
            let result = Copy { entries, bytes }.all(&from, &to, depth);
            match reason {
                "" => result.unwrap(),
                reason => assert!(result.unwrap_err().to_string().contains(reason)),
            }
        }
    }
}
