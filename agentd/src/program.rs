//! The file of a command's program: its place in the command's PATH, which is cached.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use msb::wire::exec::Failure;
use msb::wire::exit_status::{NOT_EXECUTABLE, NOT_FOUND, TOOL_FAILED};

use crate::stamp::Stamp;

/// The most programs that are cached.
const MOST: usize = 64;

/// How much of a file [`is_text`] looks at, in bytes.
pub const SAMPLE: usize = 128;

/// Whether a file that begins so is text. As in bash, the first line of text has no NUL, and an ELF file is none.
pub fn is_text(start: &[u8]) -> bool {
    let line = start.split(|&byte| byte == b'\n').next().unwrap_or_default();
    !start.starts_with(b"\x7fELF") && !line.contains(&0)
}

/// Finds the file of a program in the command's PATH, as `execvp(3)` does.
///
/// # Errors
/// The failure to send to the caller: 126 or 127 as in `env(1)`, or 125 for an error of the storage.
pub fn locate(program: &OsStr, path: &OsStr, cwd: &Path) -> Result<PathBuf, Failure> {
    static CACHE: Cache = Cache(Mutex::new(Vec::new()));
    if program.is_empty() {
        return Err(failure(NOT_FOUND, "the command is an empty string"));
    }
    if program.as_bytes().contains(&b'/') {
        let file = PathBuf::from(program);
        return check(program, &file, cwd).map(|()| file);
    }
    CACHE.locate(program, path, cwd)
}

/// Whether an error is that of the storage or its server, and so says nothing about the file.
pub fn is_storage_error(error: &io::Error) -> bool {
    use nix::libc::{ECONNABORTED, EHOSTDOWN, EIO, ENOTCONN, EREMOTEIO, ESTALE, ETIMEDOUT};
    let storage_errors = [EIO, ENOTCONN, ECONNABORTED, ESTALE, ETIMEDOUT, EREMOTEIO, EHOSTDOWN];
    error.raw_os_error().is_some_and(|error| storage_errors.contains(&error))
}

/// The message about such an error.
pub fn storage_failed(program: &OsStr, why: &io::Error) -> String {
    format!("{program:?}: its storage does not answer: {why}")
}

fn failure(code: u8, message: impl Into<String>) -> Failure {
    Failure::new(code, message)
}

/// Results of [`search`]. On virtiofs, every name that does not exist is a round trip to the host, because the guest's kernel may not
/// cache it. The attributes of a directory are cached, and show whether names have been added to it.
struct Cache(Mutex<Vec<Arc<Found>>>);

/// A program that was found.
struct Found {
    program: OsString,
    path: OsString,
    cwd: PathBuf,
    file: PathBuf,
    /// The directories before that of the file. In place of one that does not exist, its nearest ancestor that does.
    searched: Vec<(PathBuf, Stamp)>,
}

impl Found {
    fn is_for(&self, program: &OsStr, path: &OsStr, cwd: &Path) -> bool {
        self.program == program && self.path == path && self.cwd == cwd
    }

    /// Whether a search would find it again.
    fn is_current(&self) -> bool {
        self.searched.iter().all(|(dir, then)| Stamp::of(dir) == Some(*then))
            && check(&self.program, &self.file, &self.cwd).is_ok()
    }
}

impl Cache {
    fn locate(&self, program: &OsStr, path: &OsStr, cwd: &Path) -> Result<PathBuf, Failure> {
        let cached = {
            let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.iter().find(|found| found.is_for(program, path, cwd)).map(Arc::clone)
        };
        if let Some(found) = cached
            && found.is_current()
        {
            return Ok(found.file.clone());
        }
        let (file, searched) = search(program, path, cwd)?;
        let searched = searched.and_then(|searched| searched.into_iter().collect::<Option<Vec<_>>>());
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|found| !found.is_for(program, path, cwd));
        if let Some(searched) = searched {
            let (program, path, cwd) = (program.to_owned(), path.to_owned(), cwd.to_owned());
            all.insert(0, Arc::new(Found { program, path, cwd, file: file.clone(), searched }));
            all.truncate(MOST);
        }
        Ok(file)
    }
}

/// A directory, or its nearest ancestor, with a stamp that changes when something is added to it. `None`: there is no such stamp.
fn settled(dir: &Path) -> Option<(PathBuf, Stamp)> {
    for dir in dir.ancestors() {
        match fs::symlink_metadata(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => return None,
            // A symlink that leads nowhere has no stamp.
            Ok(_) => return Stamp::of(dir).filter(Stamp::is_settled).map(|stamp| (dir.to_owned(), stamp)),
        }
    }
    None
}

/// The directories of a PATH.
fn directories(path: &OsStr) -> impl Iterator<Item = &Path> {
    path.as_bytes().split(|&byte| byte == b':').map(|dir| match dir {
        [] => Path::new("."),
        dir => Path::new(OsStr::from_bytes(dir)),
    })
}

/// What [`settled`] returned for each directory that was searched.
type Searched = Vec<Option<(PathBuf, Stamp)>>;

/// Searches the directories of a PATH. Returns the file, and the directories before its own. `None`: one of those has something else of
/// that name, which may become executable.
fn search(program: &OsStr, path: &OsStr, cwd: &Path) -> Result<(PathBuf, Option<Searched>), Failure> {
    let (mut worst, mut searched) = (None, Some(Searched::new()));
    for dir in directories(path) {
        // The stamp comes first, so that it is older than what is added during the search. Directories after that of the file are left
        // alone: their storage may hang.
        let stamp = settled(&cwd.join(dir));
        let file = dir.join(program);
        let is_absent =
            |error: &io::Error| matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
        if fs::symlink_metadata(cwd.join(&file)).is_err_and(|error| is_absent(&error)) {
            if let Some(searched) = &mut searched {
                searched.push(stamp);
            }
            continue;
        }
        match check(program, &file, cwd) {
            Ok(()) => return Ok((file, searched)),
            Err(why) if why.code == NOT_EXECUTABLE => worst = worst.or(Some(why)),
            // A file in a later directory may not be the one that the caller means.
            Err(why) if why.code == TOOL_FAILED => return Err(why),
            Err(_) => {}
        }
        searched = None;
    }
    Err(worst.unwrap_or_else(|| failure(NOT_FOUND, format!("{program:?}: not found in the guest's PATH"))))
}

/// Whether a file can be the program.
fn check(program: &OsStr, file: &Path, cwd: &Path) -> Result<(), Failure> {
    let meta = fs::metadata(cwd.join(file)).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => failure(NOT_EXECUTABLE, format!("{program:?}: {error}")),
        _ if is_storage_error(&error) => failure(TOOL_FAILED, storage_failed(program, &error)),
        _ => failure(NOT_FOUND, format!("{program:?}: not found in the guest")),
    })?;
    if meta.is_dir() {
        return Err(failure(NOT_EXECUTABLE, format!("{program:?}: is a directory")));
    }
    if meta.permissions().mode() & 0o111 == 0 {
        return Err(failure(NOT_EXECUTABLE, format!("{program:?}: not executable (its mode has no x)")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_whose_first_line_has_no_nul_is_text_and_an_elf_file_is_not() {
        for (start, expected) in [
            (&b""[..], true),
            (b"echo x", true),
            (b"echo x\n\0\0", true),
            (b"\xff\xfe\n", true),
            (b"echo\0x\n", false),
            (b"\0", false),
            (b"\x7fELF\n", false),
            (b"\x7fEL", true),
            (b"MZ\x90\0", false),
        ] {
            assert_eq!(is_text(start), expected, "{start:?}");
        }
    }

    #[test]
    fn an_error_of_storage_says_nothing_about_the_file() {
        use nix::libc::{EACCES, EIO, ELOOP, ENOENT, ENOTCONN, ENOTDIR, ESTALE, ETXTBSY};
        for (error, is_one) in [
            (EIO, true),
            (ENOTCONN, true),
            (ESTALE, true),
            (ENOENT, false),
            (ENOTDIR, false),
            (EACCES, false),
            (ELOOP, false),
            (ETXTBSY, false),
        ] {
            assert_eq!(is_storage_error(&io::Error::from_raw_os_error(error)), is_one, "{error}");
        }
        assert!(!is_storage_error(&io::Error::other("of no number")));
    }

    #[test]
    fn a_command_is_found_as_a_shell_finds_it() {
        let scratch = tempfile::tempdir().unwrap();
        fs::create_dir_all(scratch.path().join("a/dir")).unwrap();
        fs::create_dir(scratch.path().join("b")).unwrap();
        fs::write(scratch.path().join("a/plain"), "").unwrap();
        for file in ["b/plain", "b/tool"] {
            fs::write(scratch.path().join(file), "").unwrap();
            fs::set_permissions(scratch.path().join(file), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let path = OsString::from(format!("{0}/a:{0}/b", scratch.path().display()));
        let find = |program: &str| locate(OsStr::new(program), &path, scratch.path());
        assert_eq!(find("tool").unwrap(), scratch.path().join("b/tool"));
        assert_eq!(find("plain").unwrap(), scratch.path().join("b/plain"), "what cannot be executed is passed over");
        assert_eq!(find("b/tool").unwrap(), Path::new("b/tool"));
        assert_eq!(find("none").unwrap_err().code, NOT_FOUND);
        assert_eq!(find("").unwrap_err().code, NOT_FOUND);
        assert_eq!(find("dir").unwrap_err().code, NOT_EXECUTABLE);
        assert_eq!(find("./a/plain").unwrap_err().code, NOT_EXECUTABLE);
        assert_eq!(find("./none").unwrap_err().code, NOT_FOUND);
    }

    #[test]
    fn a_cached_program_is_searched_again_if_an_earlier_directory_or_the_file_has_changed() {
        let scratch = tempfile::tempdir().unwrap();
        let place = |name: &str| scratch.path().join(name);
        for dir in ["a", "b"] {
            fs::create_dir(place(dir)).unwrap();
        }
        for name in ["b/tool", "b/cached"] {
            fs::write(place(name), "").unwrap();
            fs::set_permissions(place(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let path = OsString::from("/usr:/usr/none/deep:b");
        let look = |cache: &Cache| cache.locate(OsStr::new("tool"), &path, scratch.path()).unwrap();
        let all = |cache: &Cache| cache.0.lock().unwrap().clone();
        let empty = Cache(Mutex::default());
        assert_eq!(look(&empty), Path::new("b/tool"));
        let dirs = |found: &Found| found.searched.iter().map(|(dir, _)| dir.clone()).collect::<Vec<_>>();
        assert_eq!(dirs(&all(&empty)[0]), [Path::new("/usr"), Path::new("/usr")]);
        for (file, dir, stamp_of, expected) in [
            ("b/cached", "a", "a", "b/cached"),
            // The stamp is another one.
            ("b/cached", "a", "b", "b/tool"),
            ("b/cached", "none", "a", "b/tool"),
            ("b/gone", "a", "a", "b/tool"),
        ] {
            let searched = vec![(place(dir), Stamp::of(&place(stamp_of)).unwrap())];
            let (program, path, cwd) = ("tool".into(), path.clone(), scratch.path().to_owned());
            let cache = Cache(Mutex::new(vec![Arc::new(Found { program, path, cwd, file: file.into(), searched })]));
            assert_eq!(look(&cache), Path::new(expected), "{file} {dir} {stamp_of}");
            assert_eq!(all(&cache).len(), 1);
        }
    }

    #[test]
    fn a_directory_that_has_just_changed_has_no_stamp() {
        let scratch = tempfile::tempdir().unwrap();
        assert_eq!(settled(&scratch.path().join("none/deep")), None);
        std::os::unix::fs::symlink("/nowhere", scratch.path().join("link")).unwrap();
        assert_eq!(settled(&scratch.path().join("link/deep")), None);
        assert!(settled(Path::new("/usr/none/deep")).is_some_and(|(dir, _)| dir == Path::new("/usr")));
    }

    #[test]
    fn a_directory_with_something_else_of_that_name_is_not_cached() {
        let scratch = tempfile::tempdir().unwrap();
        for dir in ["a", "b"] {
            fs::create_dir(scratch.path().join(dir)).unwrap();
        }
        fs::write(scratch.path().join("b/tool"), "").unwrap();
        fs::set_permissions(scratch.path().join("b/tool"), fs::Permissions::from_mode(0o755)).unwrap();
        let find = || {
            let found = search(OsStr::new("tool"), OsStr::new("none:a:b/tool:b"), scratch.path());
            let (file, searched) = found.unwrap();
            (file, searched.map(|searched| searched.len()))
        };
        assert_eq!(find(), ("b/tool".into(), Some(3)));
        std::os::unix::fs::symlink("nowhere", scratch.path().join("a/tool")).unwrap();
        assert_eq!(find(), ("b/tool".into(), None));
        fs::remove_file(scratch.path().join("a/tool")).unwrap();
        fs::write(scratch.path().join("a/tool"), "").unwrap();
        assert_eq!(find(), ("b/tool".into(), None));
    }
}
