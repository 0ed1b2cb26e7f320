//! Whether a file system can hold the store, for the message of a tool that failed. Overlayfs as the file system below refuses
//! the marks of another overlayfs, some file systems have no owners, device nodes or xattrs, and some cannot be written at all.

use std::error::Error;
use std::io;
use std::iter;
use std::path::Path;

use rustix::fs::{Access, Mode, XattrFlags};
use rustix::io::Errno;

use super::publish::unnamed_file;
use crate::overlay::beneath::{Dir, Name};
use crate::overlay::whiteout;

/// What to do about an error of the system, if the store at `home` is the cause: its disk is full, or it is on a file system that
/// cannot hold it. The text names MSB_HOME. `None` if the store is not at fault.
pub fn advice(home: &Path, error: &(dyn Error + 'static)) -> Option<String> {
    let mut causes = iter::successors(Some(error), |error: &&(dyn Error + 'static)| (*error).source());
    let kind = causes.find_map(|cause| match cause.downcast_ref::<io::Error>() {
        Some(error) if error.raw_os_error().is_some() || error.kind() == io::ErrorKind::StorageFull => {
            Some(error.kind())
        }
        Some(_) => None,
        None => cause.downcast_ref::<Errno>().map(|errno| io::Error::from(*errno).kind()),
    })?;
    if kind == io::ErrorKind::StorageFull {
        return Some(format!("make room in {home:?}, or set MSB_HOME"));
    }
    Some(format!("MSB_HOME is {home:?}: {}; set it to a directory elsewhere", missing(home)?))
}

/// What the file system of the store at `home` lacks; `None` if it lacks nothing.
fn missing(home: &Path) -> Option<String> {
    let there = home.ancestors().find(|path| path.symlink_metadata().is_ok())?;
    if !there.is_dir() {
        return Some(format!("{there:?} is not a directory"));
    }
    if let Err(error) = rustix::fs::access(there, Access::WRITE_OK | Access::EXEC_OK) {
        return Some(format!("{there:?} cannot be written: {error}"));
    }
    if there != home {
        return None;
    }
    let (what, error) = match try_out(home) {
        Ok(lacking) => lacking?,
        Err(error) => return Some(format!("it cannot be written: {error}")),
    };
    let file_system = rustix::fs::statfs(home).map_or(0, |stat| stat.f_type as u64);
    Some(format!("{} cannot hold {what}: {error}", name(file_system)))
}

/// Tries what layers and uppers need in a directory that is removed again. Returns the first that fails.
fn try_out(home: &Path) -> io::Result<Option<(&'static str, io::Error)>> {
    let home_dir = Dir::open(home)?;
    let scratch = format!(".marks.{}", std::process::id());
    let scratch = Name::new(scratch.as_ref())?;
    let dir = home_dir.mkdir(scratch, Mode::RWXU)?;
    let name = |name: &'static str| Name::new(name.as_ref());
    let tried = (|| {
        let step = |what, tried: io::Result<()>| tried.map_err(|error| (what, error));
        step("overlayfs's whiteouts", name("whiteout").and_then(|name| whiteout::make_whiteout(&dir, name)))?;
        step("overlayfs's opaque directories", whiteout::make_opaque(&dir))?;
        let entry = dir.to_entry();
        let entry = entry.as_ref().map_err(|error| ("directories", io::Error::from(error.kind())))?;
        step("xattrs", entry.set_xattr("user.msb".as_ref(), b"1", XattrFlags::empty()))?;
        if rustix::process::geteuid().is_root() {
            step("owners", entry.set_owner(Some(1), Some(1)))?;
        }
        step("files without a name", unnamed_file(home).map(drop))
    })();
    home_dir.remove_tree(scratch)?;
    Ok(tried.err())
}

/// The name of a file system by its magic (`statfs(2)`).
fn name(magic: u64) -> &'static str {
    match magic {
        0x794c_7630 => "its file system, overlayfs,",
        0x8584_58f6 => "its file system, ramfs,",
        0x0102_1994 => "its file system, tmpfs,",
        0x4d44 => "its file system, vfat,",
        0x6969 => "its file system, NFS,",
        0x6573_5546 => "its file system, a FUSE one,",
        0x0102_1997 => "its file system, 9p,",
        _ => "its file system",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_of_the_system_are_blamed_on_the_store() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("file");
        std::fs::write(&file, "").unwrap();
        let home = file.join("home");
        let of_system = io::Error::from(Errno::NOTDIR);
        let advised = advice(&home, &of_system).unwrap();
        assert!(advised.contains("MSB_HOME") && advised.contains("is not a directory"), "{advised}");
        assert_eq!(advice(&home, &io::Error::other("a malformed layer")), None);
        assert_eq!(advice(&home, &io::Error::from(io::ErrorKind::InvalidData)), None);
        let full = advice(&home, &io::Error::from(Errno::NOSPC)).unwrap();
        assert!(full.contains("make room") && full.contains("MSB_HOME"), "{full}");
    }

    #[test]
    fn a_link_that_leads_nowhere_is_no_directory_and_trying_leaves_nothing() {
        let scratch = tempfile::tempdir().unwrap();
        let link = scratch.path().join("link");
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        assert!(missing(&link).unwrap().contains("is not a directory"));
        assert_eq!(missing(&scratch.path().join("new/home")), None);
        let _ = missing(scratch.path());
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 1);
    }
}
