//! The part of the store that pulls write: documents of images and unpacked layers. Each pull prepares them in a directory of its
//! own, and renames them when they are complete and on disk, so whatever has a name in the store is complete. A pull holds a lock
//! on its directory while it lives, and the next one removes directories that nobody has locked.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, bail};
use msb::lock::{self, Lock};
use msb::store::{checksums, layout, publish};
use rustix::fs::{IFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use msb_registry::digest::Digest;

/// The file name of a new reference in the scratch directory.
const REFERENCE: &str = "reference";

/// The store, opened for one pull.
pub(crate) struct Store {
    home: PathBuf,
    /// The directory of this pull.
    scratch: PathBuf,
    _lock: OwnedFd,
}

impl Store {
    /// Opens the store, makes its directories if they are missing, and removes the directories of killed pulls.
    ///
    /// # Errors
    /// The error names the store.
    pub(crate) fn open(home: &Path) -> anyhow::Result<Self> {
        Self::prepare(home).with_context(|| format!("store {home:?}"))
    }

    fn prepare(home: &Path) -> anyhow::Result<Self> {
        let pulls = layout::pulls(home);
        for dir in [&layout::blobs(home), &layout::layers(home), &pulls] {
            publish::make_private_dir(dir)?;
        }
        spread(&pulls);
        // While this lock is held, no other pull is between making its directory and locking it.
        let gate = lock::open(&pulls, Lock::Exclusive)?;
        let abandoned = Self::abandoned(&pulls)?;
        let scratch = pulls.join(layout::fresh_id()?);
        publish::make_private_dir(&scratch)?;
        let lock = lock::open(&scratch, Lock::TryExclusive)?;
        drop(gate);
        for (path, _lock) in &abandoned {
            if let Err(error) = publish::remove_tree(path) {
                msb::tool::exit::warn(
                    "msb-pull",
                    &format!("{path:?}: left by a killed pull, cannot be removed: {error}"),
                );
            }
        }
        Ok(Self { home: home.to_owned(), scratch, _lock: lock })
    }

    /// The directories of pulls that were killed, with a lock on each.
    fn abandoned(pulls: &Path) -> anyhow::Result<Vec<(PathBuf, OwnedFd)>> {
        let mut abandoned = Vec::new();
        for child in fs::read_dir(pulls)? {
            let path = child?.path();
            match lock::open(&path, Lock::TryExclusive) {
                Ok(lock) => abandoned.push((path, lock)),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotFound) => {}
                Err(error) => return Err(error).with_context(|| format!("{path:?}")),
            }
        }
        Ok(abandoned)
    }

    /// A path in the directory of this pull.
    pub(crate) fn scratch(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    /// A document in the store; `None` if it is missing or damaged.
    ///
    /// # Errors
    /// The error of reading.
    pub(crate) fn document(&self, digest: &Digest, limit: u64) -> anyhow::Result<Option<Vec<u8>>> {
        let path = layout::blob(&self.home, digest.hex());
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.with_context(|| format!("{path:?}"))?,
        };
        let mut text = Vec::new();
        file.take(limit).read_to_end(&mut text).with_context(|| format!("{path:?}"))?;
        Ok(digest.check(&text).is_ok().then_some(text))
    }

    /// The digest of the image that a reference last named, if it is known.
    pub(crate) fn reference(&self, reference: &str) -> Option<Digest> {
        let line = fs::read_to_string(layout::reference(&self.home, reference)).ok()?;
        let (name, digest) = line.trim_end().rsplit_once(' ')?;
        Digest::parse(digest).ok().filter(|_| name == reference)
    }

    /// Notes that a reference names an image and is used now. msb-store keeps an image as long as it has a reference.
    ///
    /// # Errors
    /// The error of writing.
    pub(crate) fn refer(&self, reference: &str, digest: &Digest) -> anyhow::Result<()> {
        self.commit(&[], &[], Some((reference, digest)))
    }

    /// Notes that a reference is used now. Returns false if it names another image, or does not exist.
    fn touch(&self, reference: &str, digest: &Digest) -> bool {
        let set_now = |file: File| file.set_modified(SystemTime::now());
        self.reference(reference).as_ref() == Some(digest)
            && File::open(layout::reference(&self.home, reference)).and_then(set_now).is_ok()
    }

    /// The unpacked layer with this ID, if the store has it.
    pub(crate) fn layer(&self, id: &str) -> Option<PathBuf> {
        Some(self.layer_path(id)).filter(|path| path.is_dir())
    }

    /// Where the layer with this ID will be.
    pub(crate) fn layer_path(&self, id: &str) -> PathBuf {
        layout::layer(&self.home, id)
    }

    /// Syncs unpacked layers and documents and makes them visible, layers before the documents that name them, and a reference last.
    ///
    /// # Errors
    /// The error of writing, syncing or renaming.
    pub(crate) fn commit(
        &self,
        layers: &[(PathBuf, String)],
        documents: &[(Digest, Vec<u8>)],
        reference: Option<(&str, &Digest)>,
    ) -> anyhow::Result<()> {
        let is_missing = |digest: &Digest, text: &[u8]| {
            self.document(digest, text.len() as u64).map_or(true, |stored| stored.is_none())
        };
        let missing: Vec<_> = documents.iter().filter(|(digest, text)| is_missing(digest, text)).collect();
        let reference = reference.filter(|(name, digest)| !self.touch(name, digest));
        if layers.is_empty() && missing.is_empty() && reference.is_none() {
            return Ok(());
        }
        let mut written = Vec::new();
        for (digest, text) in &missing {
            written.push(self.write(digest.hex(), text).context("writing a blob")?);
        }
        if let Some((name, digest)) = reference {
            publish::make_private_dir(&layout::references(&self.home))?;
            written.push(self.write(REFERENCE, line(name, digest).as_bytes()).context("writing the reference")?);
        }
        match layers {
            [] => written.iter().try_for_each(File::sync_all)?,
            _ => self.sync()?,
        }
        self.rename_layers(layers)?;
        for (digest, _) in &missing {
            // Replaces a damaged one, or that of another pull.
            let path = layout::blob(&self.home, digest.hex());
            fs::rename(self.scratch(digest.hex()), &path).with_context(|| format!("{path:?}"))?;
        }
        if let Some((name, _)) = reference {
            let path = layout::reference(&self.home, name);
            fs::rename(self.scratch(REFERENCE), &path).with_context(|| format!("{path:?}"))?;
        }
        // The first fsync(2) commits the journal with all renames, so the others take little time.
        for (dir, has_new) in [
            (layout::layers(&self.home), !layers.is_empty()),
            (layout::blobs(&self.home), !missing.is_empty()),
            (layout::references(&self.home), reference.is_some()),
        ] {
            if has_new {
                File::open(dir)?.sync_all()?;
            }
        }
        Ok(())
    }

    /// Writes a file in the directory of this pull.
    fn write(&self, name: &str, text: &[u8]) -> io::Result<File> {
        let mut file = File::create(self.scratch(name))?;
        file.write_all(text)?;
        Ok(file)
    }

    /// Writes everything to disk that was unpacked so far.
    ///
    /// # Errors
    /// The error of syncing.
    pub(crate) fn sync(&self) -> anyhow::Result<()> {
        rustix::fs::syncfs(&File::open(&self.scratch)?).context("sync")
    }

    /// Makes layers visible that are on disk.
    ///
    /// # Errors
    /// The error of renaming.
    pub(crate) fn publish(&self, layers: &[(PathBuf, String)]) -> anyhow::Result<()> {
        self.rename_layers(layers)?;
        if !layers.is_empty() {
            File::open(layout::layers(&self.home))?.sync_all()?;
        }
        Ok(())
    }

    fn rename_layers(&self, layers: &[(PathBuf, String)]) -> anyhow::Result<()> {
        for (scratch, id) in layers {
            let path = self.layer_path(id);
            // Another pull may have been faster, with the same content.
            if path.is_dir() {
                continue;
            }
            // First the checksums: every layer that is visible has them.
            checksums::publish(&checksums::beside(scratch), &layout::checksums(&self.home, id)).context("checksums")?;
            rename_if_missing(scratch, &path)?;
        }
        Ok(())
    }

    /// Claims a layer, so that this pull alone fetches it; `None` if another pull does.
    ///
    /// # Errors
    /// The error of locking.
    pub(crate) fn try_lock_layer(&self, diff_id: &Digest) -> anyhow::Result<Option<LayerLock>> {
        match LayerLock::take(layout::layer_lock(&self.home, diff_id.hex()), Lock::TryExclusive) {
            Ok(lock) => Ok(Some(lock)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error).with_context(|| format!("the lock of layer {diff_id}")),
        }
    }

    /// Claims a layer when no other pull is fetching it any more.
    ///
    /// # Errors
    /// The error of locking.
    pub(crate) fn lock_layer(&self, diff_id: &Digest) -> anyhow::Result<LayerLock> {
        LayerLock::take(layout::layer_lock(&self.home, diff_id.hex()), Lock::Exclusive)
            .with_context(|| format!("the lock of layer {diff_id}"))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // The next pull removes what cannot be removed now.
        let _ = publish::remove_tree(&self.scratch);
    }
}

/// The content of the file of a reference.
fn line(reference: &str, digest: &Digest) -> String {
    format!("{reference} {digest}\n")
}

/// The lock on a layer that is being fetched.
pub(crate) struct LayerLock {
    path: PathBuf,
    _file: File,
}

impl LayerLock {
    fn take(path: PathBuf, mode: Lock) -> io::Result<Self> {
        loop {
            let file = lock::make(&path, mode)?;
            // The last holder removed its file: a lock on that one excludes nobody.
            if file.metadata()?.nlink() > 0 {
                return Ok(Self { path, _file: file });
            }
        }
    }
}

impl Drop for LayerLock {
    fn drop(&mut self) {
        // A file that stays is removed with the directories of killed pulls.
        let _ = fs::remove_file(&self.path);
    }
}

/// Renames a layer, unless another pull was faster: then the same content has the name.
fn rename_if_missing(from: &Path, to: &Path) -> anyhow::Result<()> {
    match rustix::fs::renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => bail!("{to:?}: {error}"),
    }
}

/// Sets the attribute T of `chattr(1)`, with which ext4 chooses a block group for each pull's directory. Otherwise it uses one
/// near the last, and in a group where a tree was deleted minutes ago it passes over every inode of that tree, one by one, for
/// each file that it makes. Other file systems do not have the attribute.
fn spread(dir: &Path) {
    let set = || -> rustix::io::Result<()> {
        let fd = rustix::fs::open(dir, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let flags = rustix::fs::ioctl_getflags(&fd)?;
        rustix::fs::ioctl_setflags(&fd, flags | IFlags::TOPDIR)
    };
    // Without it, unpacking is slower.
    let _ = set();
}

#[cfg(test)]
mod tests {
    use super::*;
    use msb::store::checksums::Contents;

    #[test]
    fn the_directory_of_a_killed_pull_is_removed_and_that_of_a_running_one_stays() {
        let home = tempfile::tempdir().unwrap();
        let live = Store::open(home.path()).unwrap();
        fs::create_dir_all(home.path().join("tmp/dead/layer/etc")).unwrap();
        fs::write(live.scratch("half"), "half").unwrap();
        let next = Store::open(home.path()).unwrap();
        assert!(!home.path().join("tmp/dead").exists());
        assert!(live.scratch("half").exists());
        drop(live);
        drop(next);
        assert_eq!(fs::read_dir(home.path().join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn the_digest_of_a_reference_is_known_once_a_registry_gave_it() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path()).unwrap();
        let (one, other) = ("oci:/a layout:v1", "oci:/a layout:v2");
        let (first, second) = (Digest::of(b"1"), Digest::of(b"2"));
        assert_eq!(store.reference(one), None);
        for digest in [&first, &first, &second] {
            store.refer(one, digest).unwrap();
            assert_eq!(store.reference(one).as_ref(), Some(digest));
        }
        assert_eq!(store.reference(other), None);
        for digest in [&first, &first, &second] {
            store.commit(&[], &[], Some((other, digest))).unwrap();
            assert_eq!(store.reference(other).as_ref(), Some(digest));
            assert!(!store.scratch(REFERENCE).exists());
        }
    }

    #[test]
    fn a_layer_is_claimed_by_one_pull_and_its_lock_leaves_no_file() {
        let home = tempfile::tempdir().unwrap();
        let (one, two) = (Store::open(home.path()).unwrap(), Store::open(home.path()).unwrap());
        let digest = Digest::of(b"layer");
        let claim = one.try_lock_layer(&digest).unwrap().unwrap();
        assert!(two.try_lock_layer(&digest).unwrap().is_none());
        // A third pull does not remove its file as that of a killed pull.
        drop(Store::open(home.path()).unwrap());
        assert!(two.try_lock_layer(&digest).unwrap().is_none());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| two.lock_layer(&digest).unwrap());
            drop(claim);
            let _lock = waiting.join().unwrap();
            assert!(one.try_lock_layer(&digest).unwrap().is_none());
        });
        assert!(!layout::layer_lock(home.path(), digest.hex()).exists());
    }

    #[test]
    fn of_two_pulls_of_a_layer_the_first_one_counts() {
        let home = tempfile::tempdir().unwrap();
        let (one, two) = (Store::open(home.path()).unwrap(), Store::open(home.path()).unwrap());
        let id = Digest::of(b"layer").hex().to_owned();
        for (store, text) in [(&one, "one"), (&two, "two")] {
            let layer = store.scratch("layer");
            fs::create_dir(&layer).unwrap();
            fs::write(layer.join("file"), text).unwrap();
            checksums::write(&layer, &Contents::default(), &checksums::beside(&layer)).unwrap();
            store.commit(&[(layer, id.clone())], &[], None).unwrap();
        }
        let layer = two.layer(&id).unwrap();
        assert_eq!(fs::read_to_string(layer.join("file")).unwrap(), "one");
        assert_eq!(checksums::verify(&layer, &layout::checksums(home.path(), &id)).unwrap(), []);
    }

    #[test]
    fn a_damaged_document_counts_as_missing_until_it_is_written_again() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path()).unwrap();
        let digest = Digest::of(b"text");
        store.commit(&[], &[(digest.clone(), b"text".to_vec())], None).unwrap();
        assert_eq!(store.document(&digest, 100).unwrap().unwrap(), b"text");
        fs::write(layout::blob(home.path(), digest.hex()), "tixt").unwrap();
        assert!(store.document(&digest, 100).unwrap().is_none());
        store.commit(&[], &[(digest.clone(), b"text".to_vec())], None).unwrap();
        assert_eq!(store.document(&digest, 100).unwrap().unwrap(), b"text");
    }
}
