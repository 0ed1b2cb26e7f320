//! Mount points that agents make in a shared root. A guest loses what it has mounted on one that another guest takes away, so they
//! stay as long as any VM has that root: each supervisor writes down what its agent made, and the last one to end removes all.
//! They are the guests' words, so nothing goes but what is empty, beneath its root.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use crate::overlay::attributes::keeping_times;
use crate::overlay::beneath::{Dir, Name};
use crate::record::{self, Record, RootKind};
use crate::store::publish;

/// The roots' lists, a file for each, are in a directory beside the VMs' own; it is no name of a VM. Who holds or lets go of a list
/// locks it meanwhile.
const LISTS: &str = ".roots";
/// How long removing may take: whoever serves the root may have stopped.
const PATIENCE: Duration = Duration::from_secs(1);
/// The most that is read of a list, in bytes.
const LONGEST: u64 = 1 << 20;

/// What agents made in a root, held by one of the VMs that have it. When the last one is dropped, it goes.
#[derive(Debug)]
pub struct Leftovers {
    root: PathBuf,
    path: PathBuf,
    /// A JSON array for each VM. Who has the root has a shared lock on it.
    list: File,
}

impl Leftovers {
    /// Holds what there is in `root`, where the VM of the run directory `vm` is about to start.
    ///
    /// # Errors
    /// What making the list says.
    pub fn hold(vm: &Path, root: &Path) -> io::Result<Self> {
        let path = list_of(vm, root)?;
        let _gate = loop {
            publish::make_private_dir(path.parent().unwrap_or(vm))?;
            if let Some(gate) = gate(&path)? {
                break gate;
            }
        };
        let list = File::options().create(true).read(true).append(true).mode(0o600).open(&path)?;
        if flock(&list, FlockOperation::NonBlockingLockExclusive).is_ok() {
            // Nobody has it: supervisors that were killed left it, perhaps of a root that had this number before.
            list.set_len(0)?;
        }
        flock(&list, FlockOperation::LockShared)?;
        Ok(Self { root: root.to_owned(), path, list })
    }

    /// Writes down `made`, paths in the guest.
    ///
    /// # Errors
    /// What writing says.
    pub fn add(&mut self, made: &[PathBuf]) -> io::Result<()> {
        let mut line = serde_json::to_vec(made)?;
        line.push(b'\n');
        self.list.write_all(&line)
    }
}

impl Drop for Leftovers {
    fn drop(&mut self) {
        let (root, path) = (self.root.clone(), self.path.clone());
        if let Ok(list) = self.list.try_clone() {
            patiently(move || let_go(list, &path, &root));
        }
    }
}

/// Removes the mount points that a VM whose supervisor was killed has left in its shared root, unless another VM uses that root.
/// `vm` is the run directory, whose record names the root: call this before the directory is cleared.
pub fn remove_leftovers(vm: &Path) {
    if let Some(root) = recorded_root(vm)
        && vm.with_file_name(LISTS).exists()
    {
        let vm = vm.to_owned();
        patiently(move || {
            let path = list_of(&vm, &root)?;
            let_go(File::options().read(true).append(true).open(&path)?, &path, &root)
        });
    }
}

/// The shared root that the record in a run directory names.
fn recorded_root(vm: &Path) -> Option<PathBuf> {
    let text = fs::read(vm.join(record::FILE_NAME)).ok()?;
    let record = Record::parse(text.trim_ascii_end()).ok()?;
    record.vm.filter(|vm| vm.root == RootKind::Share)?;
    Some(record.mount?.path)
}

/// The list of a root, by its number.
fn list_of(vm: &Path, root: &Path) -> io::Result<PathBuf> {
    let stat = rustix::fs::stat(root)?;
    Ok(vm.with_file_name(LISTS).join(format!("{:x}-{:x}", stat.st_dev, stat.st_ino)))
}

/// While this is held nobody else holds or lets go of a list in the directory of `path`. `None`: that is gone.
fn gate(path: &Path) -> io::Result<Option<File>> {
    let gate = match File::open(path.parent().unwrap_or(path)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    flock(&gate, FlockOperation::LockExclusive)?;
    // Whoever had it before may have removed it.
    Ok((rustix::fs::fstat(&gate)?.st_nlink > 0).then_some(gate))
}

/// Removes what is on the list, and the list, unless somebody has the root.
fn let_go(mut list: File, path: &Path, root: &Path) -> io::Result<()> {
    let Some(_gate) = gate(path)? else { return Ok(()) };
    let is_held = flock(&list, FlockOperation::NonBlockingLockExclusive).is_err();
    // Where it is removed already, the path may lead to a newer one.
    if is_held || rustix::fs::fstat(&list)?.st_nlink == 0 {
        return Ok(());
    }
    fs::remove_file(path)?;
    list.rewind()?;
    for line in BufReader::new(list.take(LONGEST)).lines() {
        for made in serde_json::from_str::<Vec<PathBuf>>(&line?).unwrap_or_default() {
            // What does not go stays.
            let _ = remove_one(root, &made);
        }
    }
    // Other roots' lists keep it.
    let _ = path.parent().map(fs::remove_dir);
    Ok(())
}

/// Does what may hang, and does not wait longer than that.
fn patiently(work: impl FnOnce() -> io::Result<()> + Send + 'static) {
    let (done, wait) = mpsc::channel();
    std::thread::spawn(move || {
        let _ = done.send(work());
    });
    let _ = wait.recv_timeout(PATIENCE);
}

fn remove_one(root: &Path, path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let parent = Dir::open(root)?.descend(parent.strip_prefix("/").unwrap_or(parent))?;
    let name = Name::new(name)?;
    match parent.entry(name)? {
        Some(entry) if entry.is_dir() => keeping_times(&parent, || parent.rmdir(name)),
        Some(entry) if entry.file_type().is_file() && entry.stat().st_size == 0 => {
            keeping_times(&parent, || parent.unlink(name))
        }
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
        for path in paths {
            let _ = remove_one(&root, Path::new(path));
        }
        assert!(!root.join("empty").exists() && !root.join("full/nothing").exists());
        assert!(root.join("full/words").exists() && root.join("link").exists());
        assert!(scratch.path().join("outside/empty").exists());
    }
}
