//! Mount points that the agent made in a shared root. It removes them when it ends the machine; where an init did, or nobody, they
//! are removed here. They are the guest's words, so nothing goes but what is empty, beneath its root.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use msb::overlay::beneath::{Dir, Name};

/// How long it may take: whoever serves the root may have stopped.
const PATIENCE: Duration = Duration::from_secs(1);

/// Removes `made`, paths in the guest, from the directory that was its root. What does not go stays.
pub(super) fn remove(root: &Path, made: Vec<PathBuf>) {
    if made.is_empty() {
        return;
    }
    let root = root.to_owned();
    let (done, wait) = mpsc::channel();
    std::thread::spawn(move || {
        for path in &made {
            let _ = remove_one(&root, path);
        }
        let _ = done.send(());
    });
    let _ = wait.recv_timeout(PATIENCE);
}

fn remove_one(root: &Path, path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let parent = Dir::open(root)?.descend(parent.strip_prefix("/").unwrap_or(parent))?;
    let name = Name::new(name)?;
    match parent.entry(name)? {
        Some(entry) if entry.is_dir() => parent.rmdir(name),
        Some(entry) if entry.file_type().is_file() && entry.stat().st_size == 0 => parent.unlink(name),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn only_what_is_empty_goes_and_only_beneath_the_root() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().join("root");
        fs::create_dir_all(root.join("empty")).unwrap();
        fs::create_dir_all(root.join("full")).unwrap();
        fs::create_dir_all(scratch.path().join("outside/empty")).unwrap();
        fs::write(root.join("full/words"), "words").unwrap();
        fs::write(root.join("full/nothing"), "").unwrap();
        std::os::unix::fs::symlink("../outside", root.join("link")).unwrap();
        let paths =
            ["/empty", "/full", "/full/words", "/full/nothing", "/link/empty", "/../outside/empty", "/none", "/"];
        remove(&root, paths.map(PathBuf::from).to_vec());
        assert!(!root.join("empty").exists() && !root.join("full/nothing").exists());
        assert!(root.join("full/words").exists() && root.join("link").exists());
        assert!(scratch.path().join("outside/empty").exists());
    }
}
