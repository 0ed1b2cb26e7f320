//! The content-addressed store: `blobs/sha256/HEX` for manifests and configurations, `layers/sha256/HEX/` for unpacked
//! layers (HEX of the diff_id, or of the chain ID where a layer's form depends on those below). Everything is made in a
//! directory of this pull's own under `tmp/` and renamed when it is whole and on disk; so what is there is whole. A
//! pull holds a lock on its directory while it lives, and the next one removes those whose lock nobody holds.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use msb::overlay::beneath::{Dir, Name};
use msb::store::home;
use rustix::fs::{FlockOperation, IFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::digest::Digest;

/// The store, opened for one pull.
pub(crate) struct Store {
    home: PathBuf,
    temp: PathBuf,
    _alive: OwnedFd,
}

impl Store {
    /// Opens the store, makes what is missing of it, and clears away what pulls that were killed left behind.
    ///
    /// # Errors
    /// Words that name the store.
    pub(crate) fn open(home: &Path) -> anyhow::Result<Self> {
        Self::prepare(home).with_context(|| format!("store {home:?}"))
    }

    fn prepare(home: &Path) -> anyhow::Result<Self> {
        for dir in ["blobs/sha256", "layers/sha256", "tmp"] {
            home::make_private_dir(&home.join(dir))?;
        }
        let all = home.join("tmp");
        spread(&all);
        // While this is held nobody is between making a directory and locking it.
        let gate = lock(&all, FlockOperation::LockExclusive)?;
        let stale = Self::stale(&all)?;
        let temp = all.join(home::fresh_id()?);
        home::make_private_dir(&temp)?;
        let alive = lock(&temp, FlockOperation::NonBlockingLockExclusive)?;
        drop(gate);
        for (name, _dead) in &stale {
            let removed = Name::new(name).and_then(|name| Dir::open(&all)?.remove_tree(name));
            if let Err(error) = removed {
                let left = all.join(name);
                msb::tool::exit::warn(
                    "msb-pull",
                    &format!("what a killed pull left in {left:?} cannot be removed: {error}"),
                );
            }
        }
        Ok(Self { home: home.to_owned(), temp, _alive: alive })
    }

    fn stale(all: &Path) -> anyhow::Result<Vec<(std::ffi::OsString, OwnedFd)>> {
        let mut stale = Vec::new();
        for left in fs::read_dir(all)? {
            let left = left?;
            match lock(&left.path(), FlockOperation::NonBlockingLockExclusive) {
                Ok(dead) => stale.push((left.file_name(), dead)),
                Err(Errno::WOULDBLOCK | Errno::NOENT) => {}
                Err(error) => return Err(error).with_context(|| format!("{:?}", left.path())),
            }
        }
        Ok(stale)
    }

    /// A path of this pull's own.
    pub(crate) fn scratch(&self, name: &str) -> PathBuf {
        self.temp.join(name)
    }

    /// A document that is in the store, checked again; `None` where it is missing.
    ///
    /// # Errors
    /// What reading says. A document that was damaged counts as missing.
    pub(crate) fn document(&self, digest: &Digest, limit: u64) -> anyhow::Result<Option<Vec<u8>>> {
        let path = self.blob_path(digest);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.with_context(|| format!("{path:?}"))?,
        };
        let mut text = Vec::new();
        file.take(limit).read_to_end(&mut text).with_context(|| format!("{path:?}"))?;
        Ok(digest.check(&text).is_ok().then_some(text))
    }

    /// The unpacked layer of this ID, if the store has it.
    pub(crate) fn layer(&self, id: &Digest) -> Option<PathBuf> {
        Some(self.layer_path(id)).filter(|path| path.is_dir())
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.home.join("blobs/sha256").join(digest.hex())
    }

    /// Where the layer of this ID is, once it is there.
    pub(crate) fn layer_path(&self, id: &Digest) -> PathBuf {
        self.home.join("layers/sha256").join(id.hex())
    }

    /// Makes unpacked layers and documents visible: first all is on disk, then it is renamed, layers before the documents
    /// that name them.
    ///
    /// # Errors
    /// What writing, syncing or renaming says.
    pub(crate) fn commit(&self, layers: &[(PathBuf, Digest)], documents: &[(Digest, Vec<u8>)]) -> anyhow::Result<()> {
        let is_missing = |digest: &Digest, text: &[u8]| {
            self.document(digest, text.len() as u64).map_or(true, |there| there.is_none())
        };
        let missing: Vec<_> = documents.iter().filter(|(digest, text)| is_missing(digest, text)).collect();
        if layers.is_empty() && missing.is_empty() {
            return Ok(());
        }
        for (digest, text) in &missing {
            fs::write(self.scratch(digest.hex()), text).context("writing a blob")?;
        }
        let temp = File::open(&self.temp)?;
        rustix::fs::syncfs(&temp).context("sync")?;
        for (scratch, id) in layers {
            publish(scratch, &self.layer_path(id))?;
        }
        for (digest, _) in &missing {
            // Over one that was damaged, or one that another pull was faster with.
            let path = self.blob_path(digest);
            fs::rename(self.scratch(digest.hex()), &path).with_context(|| format!("{path:?}"))?;
        }
        for dir in ["layers/sha256", "blobs/sha256"] {
            File::open(self.home.join(dir))?.sync_all()?;
        }
        Ok(())
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let gone = || -> io::Result<()> {
            let (Some(all), Some(name)) = (self.temp.parent(), self.temp.file_name()) else { return Ok(()) };
            Dir::open(all)?.remove_tree(Name::new(name)?)
        };
        // What stays behind now, the next pull removes.
        let _ = gone();
    }
}

/// Renames unless another pull was faster: then the same content is there.
fn publish(from: &Path, to: &Path) -> anyhow::Result<()> {
    match rustix::fs::renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => bail!("{to:?}: {error}"),
    }
}

/// Asks ext4 to put each pull's directory into a block group of its own choice (`chattr(1)`, attribute T). Else it picks
/// one near the last, and in a group where a tree was deleted within minutes it passes over every inode of it, one by
/// one, for each file it makes. Other file systems know no such attribute.
fn spread(dir: &Path) {
    let ask = || -> rustix::io::Result<()> {
        let fd = rustix::fs::open(dir, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let flags = rustix::fs::ioctl_getflags(&fd)?;
        rustix::fs::ioctl_setflags(&fd, flags | IFlags::TOPDIR)
    };
    // Nothing but time is lost without it.
    let _ = ask();
}

fn lock(dir: &Path, how: FlockOperation) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = rustix::fs::open(dir, flags, Mode::empty())?;
    rustix::fs::flock(&fd, how)?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_pull_is_cleared_away_and_a_live_one_is_left_alone() {
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
    fn of_two_pulls_of_one_layer_the_first_stays() {
        let home = tempfile::tempdir().unwrap();
        let (one, two) = (Store::open(home.path()).unwrap(), Store::open(home.path()).unwrap());
        let id = Digest::of(b"layer");
        for (store, text) in [(&one, "one"), (&two, "two")] {
            let layer = store.scratch("layer");
            fs::create_dir(&layer).unwrap();
            fs::write(layer.join("file"), text).unwrap();
            store.commit(&[(layer, id.clone())], &[]).unwrap();
        }
        assert_eq!(fs::read_to_string(two.layer(&id).unwrap().join("file")).unwrap(), "one");
    }

    #[test]
    fn a_damaged_document_counts_as_missing_until_it_is_written_again() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path()).unwrap();
        let digest = Digest::of(b"text");
        store.commit(&[], &[(digest.clone(), b"text".to_vec())]).unwrap();
        assert_eq!(store.document(&digest, 100).unwrap().unwrap(), b"text");
        fs::write(home.path().join("blobs/sha256").join(digest.hex()), "tixt").unwrap();
        assert!(store.document(&digest, 100).unwrap().is_none());
        store.commit(&[], &[(digest.clone(), b"text".to_vec())]).unwrap();
        assert_eq!(store.document(&digest, 100).unwrap().unwrap(), b"text");
    }
}
