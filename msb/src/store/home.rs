//! Where state lives on the host, and how a file of it becomes visible: written aside, synced, renamed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::interrupt::DeferExit;

/// The directory for what outlives a VM (blobs, layers, sandboxes): `$MSB_HOME`, else `$XDG_DATA_HOME/msb`, else
/// `~/.local/share/msb`.
///
/// # Errors
/// When none of the three variables says where, or as [`absolute`].
pub fn home() -> io::Result<PathBuf> {
    let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = from("MSB_HOME")
        .or_else(|| from("XDG_DATA_HOME").map(|dir| dir.join("msb")))
        .or_else(|| from("HOME").map(|dir| dir.join(".local/share/msb")))
        .ok_or_else(|| io::Error::other("neither MSB_HOME nor XDG_DATA_HOME nor HOME is set"))?;
    absolute(&home)
}

/// A caller's path, made absolute, for a record to hold. A record is JSON, so the path must be UTF-8: tools call this before
/// they create anything.
///
/// # Errors
/// What `getcwd(2)` says, and [`io::ErrorKind::InvalidInput`] for an empty path or one that is not UTF-8.
pub fn absolute(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    require_utf8(&path)?;
    Ok(path)
}

/// Checks that a record can hold a path.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] for a path that is not UTF-8.
pub fn require_utf8(path: &Path) -> io::Result<()> {
    match path.to_str() {
        Some(_) => Ok(()),
        None => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{path:?} is not UTF-8, and a record cannot hold such a path (choose another)"),
        )),
    }
}

/// The directory that holds the run directories: `$MSB_RUN`, else `/run/msb` for root and `$XDG_RUNTIME_DIR/msb` for others.
///
/// For root the variable of a login session does not count: the session ends before a VM does, and sudo, cron and services
/// have another or none.
///
/// # Errors
/// When the user is not root and neither variable is set.
pub fn run_base() -> io::Result<PathBuf> {
    let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = match (from("MSB_RUN"), rustix::process::geteuid().is_root()) {
        (Some(dir), _) => dir,
        (None, true) => PathBuf::from("/run/msb"),
        (None, false) => match from("XDG_RUNTIME_DIR") {
            Some(dir) => dir.join("msb"),
            None => return Err(io::Error::other("neither MSB_RUN nor XDG_RUNTIME_DIR is set")),
        },
    };
    absolute(&base)
}

/// The directory for what lives as long as the VM `name`, in [`run_base`].
///
/// # Errors
/// As for [`run_base`].
pub fn run_dir(name: &str) -> io::Result<PathBuf> {
    Ok(run_base()?.join(name))
}

/// Checks the name of a VM. It becomes a directory and the guest's hostname: letters, digits, `-`, `_`, `.`, at most
/// 63 bytes, a letter or digit first.
///
/// # Errors
/// The reason in words.
pub fn check_vm_name(name: &str) -> Result<(), &'static str> {
    let starts_well = name.starts_with(|first: char| first.is_ascii_alphanumeric());
    let is_plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if starts_well && is_plain && name.len() <= 63 {
        Ok(())
    } else {
        Err("a name is 1 to 63 letters, digits, \"-\", \"_\" or \".\", the first a letter or digit")
    }
}

/// A name for something that must not meet another of its kind: 12 hex digits from the kernel's random source.
///
/// # Errors
/// What `getrandom(2)` says.
pub fn fresh_id() -> io::Result<String> {
    let mut bytes = [0u8; 6];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Makes a directory and its parents with mode 0700: images hold files (a shadow) that are for root alone.
///
/// # Errors
/// What `mkdir(2)` says.
pub fn make_private_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// The name beside `path` under which it is prepared: a dot, the name, this process, a counter.
pub fn aside(path: &Path) -> PathBuf {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(".{name}.{}.{count}", std::process::id()))
}

/// Writes a file so that readers see the old content or the new one, also after a crash.
///
/// # Errors
/// What writing, syncing or renaming says; then nothing is left beside `path`.
pub fn write_file(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    // Not to be left beside it by who is interrupted.
    let _deferred = DeferExit::new();
    let aside = aside(path);
    let written = (|| {
        let mut file = File::options().write(true).create_new(true).mode(mode).open(&aside)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&aside, path)?;
        sync_parent(path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&aside);
    }
    written
}

/// Whether something was not said before on this machine: it is said once, and again when it changes. `subject` is the name
/// of a file in [`home`]. Where nothing can be kept, everything is news.
pub fn is_news(subject: &str, text: &str) -> bool {
    let Ok(file) = home().map(|home| home.join("news").join(subject)) else { return true };
    if fs::read(&file).is_ok_and(|said| said == text.as_bytes()) {
        return false;
    }
    let dir = file.parent().unwrap_or(Path::new("/"));
    let _ = make_private_dir(dir).and_then(|()| write_file(&file, text.as_bytes(), 0o600));
    true
}

/// Syncs the directory that holds `path`, so that a rename in it survives a crash.
///
/// # Errors
/// What opening or `fsync(2)` says.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_vms_are_safe_as_directories_and_hostnames() {
        for bad in ["", ".", "..", "a/b", "-a", "a b", "a\n", &"x".repeat(64)] {
            assert!(check_vm_name(bad).is_err(), "{bad:?}");
        }
        for good in ["worker", "a", "9.b-c_d"] {
            assert!(check_vm_name(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn a_path_that_a_record_cannot_hold_is_refused() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        assert_eq!(absolute(Path::new("/a/b")).unwrap(), Path::new("/a/b"));
        assert!(absolute(Path::new("\u{fc}")).unwrap().is_absolute());
        for bad in [&b"/a/\xff"[..], b"\xff/a", b"/a\xc3"] {
            let refused = absolute(Path::new(OsStr::from_bytes(bad))).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
            assert!(refused.to_string().contains("is not UTF-8"), "{refused}");
        }
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record.json");
        write_file(&path, b"old", 0o600).unwrap();
        fs::create_dir(dir.path().join("full")).unwrap();
        assert!(write_file(&dir.path().join("full"), b"new", 0o600).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
