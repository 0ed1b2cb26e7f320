//! Mount points that agents create in a shared root. A guest would lose its mounts if another guest removed their mount points, so
//! they stay while any VM uses that root: each supervisor lists what its agent has created, and the last one removes all of it.
//! The lists come from guests and are not trusted: only empty files and directories beneath the root are removed.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use crate::lock::{self, Lock};
use crate::overlay::attributes::keeping_times;
use crate::overlay::beneath::{Dir, Name};
use crate::store::publish;
use crate::vm::rundir::SHARED_ROOT;

/// The directory of the lists, a file for each root, beside the run directories; a VM cannot have this name. It is locked while a
/// list is opened or released.
const LISTS: &str = ".roots";
/// How long removing may take: the server of the root may hang.
const TIMEOUT: Duration = Duration::from_secs(1);
/// The maximum length of a list, in bytes.
const MAX_LIST: u64 = 1 << 20;

/// The mount points that agents have created in a root, for one of the VMs that use it. The last one to be dropped removes them.
#[derive(Debug)]
pub struct Leftovers {
    root: PathBuf,
    path: PathBuf,
    /// A JSON array for each VM. Every VM that uses the root has a shared lock on it.
    list: File,
}

impl Leftovers {
    /// Opens the list of `root`, for the VM with the run directory `vm`, before it starts.
    ///
    /// # Errors
    /// Those of creating and locking the list.
    pub fn hold(vm: &Path, root: &Path) -> io::Result<Self> {
        let path = list_of(vm, root)?;
        // Written before the list: if the supervisor is killed, the list is found through this file.
        publish::write_volatile_file(&vm.join(SHARED_ROOT), root.as_os_str().as_bytes(), 0o600)?;
        let _gate = loop {
            publish::make_private_dir(path.parent().unwrap_or(vm))?;
            if let Some(gate) = lock_lists(&path)? {
                break gate;
            }
        };
        let list = File::options().create(true).read(true).append(true).mode(0o600).open(&path)?;
        if lock::take(&list, Lock::TryExclusive).is_ok() {
            // No VM uses it: killed supervisors left it, perhaps for another root that had this inode number.
            list.set_len(0)?;
        }
        lock::take(&list, Lock::Shared)?;
        Ok(Self { root: root.to_owned(), path, list })
    }

    /// Adds paths in the guest to the list.
    ///
    /// # Errors
    /// Those of writing.
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
            with_timeout(move || release(list, &path, &root));
        }
    }
}

/// Removes the mount points that a VM whose supervisor was killed has left in its shared root, unless another VM uses that root.
/// `vm` is the run directory, which names the root: call this before the directory is cleared.
pub fn remove_leftovers(vm: &Path) {
    if let Ok(root) = fs::read(vm.join(SHARED_ROOT)).map(|path| PathBuf::from(OsString::from_vec(path)))
        && vm.with_file_name(LISTS).exists()
    {
        let vm = vm.to_owned();
        with_timeout(move || {
            let path = list_of(&vm, &root)?;
            release(File::options().read(true).append(true).open(&path)?, &path, &root)
        });
    }
}

/// The list of a root, named by device and inode number.
fn list_of(vm: &Path, root: &Path) -> io::Result<PathBuf> {
    let stat = rustix::fs::stat(root)?;
    Ok(vm.with_file_name(LISTS).join(format!("{:x}-{:x}", stat.st_dev, stat.st_ino)))
}

/// Locks the directory of `path`: no other process opens or releases a list meanwhile. `None`: the directory was removed.
fn lock_lists(path: &Path) -> io::Result<Option<OwnedFd>> {
    let gate = match lock::open(path.parent().unwrap_or(path), Lock::Exclusive) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    // The process that had the lock before may have removed the directory.
    Ok((rustix::fs::fstat(&gate)?.st_nlink > 0).then_some(gate))
}

/// Removes the listed mount points and the list, unless a VM uses the root.
fn release(mut list: File, path: &Path, root: &Path) -> io::Result<()> {
    let Some(_gate) = lock_lists(path)? else { return Ok(()) };
    let is_held = lock::take(&list, Lock::TryExclusive).is_err();
    // If it was removed already, the path may lead to a newer one.
    if is_held || rustix::fs::fstat(&list)?.st_nlink == 0 {
        return Ok(());
    }
    fs::remove_file(path)?;
    list.rewind()?;
    for line in BufReader::new(list.take(MAX_LIST)).lines() {
        for made in serde_json::from_str::<Vec<PathBuf>>(&line?).unwrap_or_default() {
            // A mount point that cannot be removed stays.
            let _ = remove_one(root, &made);
        }
    }
    // This fails while there are lists of other roots.
    let _ = path.parent().map(fs::remove_dir);
    Ok(())
}

/// Runs `work` in a thread, and waits for it up to the timeout.
fn with_timeout(work: impl FnOnce() -> io::Result<()> + Send + 'static) {
    let (done, wait) = mpsc::channel();
    std::thread::spawn(move || {
        let _ = done.send(work());
    });
    let _ = wait.recv_timeout(TIMEOUT);
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
    fn the_list_of_a_supervisor_that_was_killed_is_found_and_one_that_another_vm_uses_stays() {
        let run = tempfile::tempdir().unwrap();
        let (root, lists) = (run.path().join("root"), run.path().join(LISTS));
        fs::create_dir_all(root.join("made")).unwrap();
        let vms = ["a", "b"].map(|name| run.path().join(name));
        vms.iter().for_each(|vm| fs::create_dir(vm).unwrap());
        let [mut killed, other] = vms.each_ref().map(|vm| Leftovers::hold(vm, &root).unwrap());
        killed.add(&["/made".into()]).unwrap();
        // Without its destructor, as by SIGKILL.
        lock::release(&killed.list).unwrap();
        std::mem::forget(killed);
        remove_leftovers(&vms[0]);
        assert!(root.join("made").exists() && lists.exists());
        lock::release(&other.list).unwrap();
        std::mem::forget(other);
        remove_leftovers(&vms[1]);
        assert!(!root.join("made").exists() && !lists.exists());
        remove_leftovers(&vms[1]);
    }

    #[test]
    fn only_empty_files_and_directories_beneath_the_root_are_removed() {
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
