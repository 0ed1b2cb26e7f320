//! The record's scripts as files of the root.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use msb::overlay::Merged;
use msb::overlay::beneath::Entry;
use msb::overlay::resolve::{End, Last, resolve};
use msb::record::script::GUEST_DIR;

use crate::tar_out::TarOut;
use crate::walk::{Item, Sink};

const MODE: u32 = 0o755;

/// Scripts, and the directory that they go to.
pub(crate) struct Scripts {
    /// The root directory.
    root: Entry,
    /// The directories down to theirs, with the attributes of those that exist. The paths are relative to the root.
    dirs: Vec<(PathBuf, Option<Entry>)>,
    /// Name and content.
    files: Vec<(String, Vec<u8>)>,
    /// Whether their directory has to be added to PATH.
    pub(crate) needs_path: bool,
}

impl Scripts {
    /// Reads the scripts of a record; `None` if there are none. `to` is a directory in the root, in place of the guest's own.
    ///
    /// # Errors
    /// Those of reading, and for a directory that is a file.
    pub(crate) fn read(
        scripts: &BTreeMap<String, PathBuf>,
        to: Option<&Path>,
        root: &Merged,
    ) -> anyhow::Result<Option<Self>> {
        if scripts.is_empty() {
            return Ok(None);
        }
        let dir = to.unwrap_or(Path::new(GUEST_DIR));
        let found = resolve(root, dir, Last::Follow).with_context(|| format!("scripts: {dir:?}"))?;
        let mut dirs = Vec::new();
        let mut path = PathBuf::new();
        for step in found.steps.iter().skip(1) {
            path.push(&step.name);
            dirs.push((path.clone(), Some(step.dir.top().0.to_entry()?)));
        }
        match found.end {
            End::Dir => {}
            End::Leaf(..) => bail!("scripts: {dir:?} is not a directory in the root (name another with --scripts-to)"),
            End::Missing(names) => {
                for name in names {
                    path.push(name);
                    dirs.push((path.clone(), None));
                }
            }
        }
        let mut files = Vec::new();
        for (name, file) in scripts {
            let content = fs::read(file).with_context(|| format!("script {name:?}: {file:?}"))?;
            files.push((name.clone(), content));
        }
        Ok(Some(Self { root: root.top().0.to_entry()?, dirs, files, needs_path: to.is_none() }))
    }

    /// Adds them to an archive. With `with_dirs`, also the directories that the root has.
    ///
    /// # Errors
    /// Those of writing.
    pub(crate) fn add_to<W: Write>(&self, out: &mut TarOut<W>, mtime: i64, with_dirs: bool) -> anyhow::Result<()> {
        for (path, entry) in &self.dirs {
            match entry {
                Some(entry) if with_dirs => out.put(path, Item::Dir { entry, is_opaque: false })?,
                Some(_) => {}
                None => out.add_dir(path, mtime)?,
            }
        }
        for (name, content) in &self.files {
            out.add_file(&self.dir().join(name), MODE, mtime, content)?;
        }
        Ok(())
    }

    /// Writes them below a directory, with their directories. A directory that exists in the root has the same attributes here.
    ///
    /// # Errors
    /// Those of writing.
    pub(crate) fn write_below(&self, root: &Path, mtime: i64) -> anyhow::Result<()> {
        use msb::overlay::attributes::copy_attributes;
        use msb::overlay::beneath::{Dir, Name};
        use rustix::fs::{Mode, Timespec, Timestamps};
        let time = Timespec { tv_sec: mtime, tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        let mut dir = Dir::open(root)?;
        let mut dirs = vec![(dir.try_clone()?, Some(&self.root))];
        for (path, entry) in &self.dirs {
            let name = Name::new(path.file_name().unwrap_or_default())?;
            dir = match dir.dir(name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => dir.mkdir(name, Mode::from_raw_mode(0o755))?,
                other => other?,
            };
            dirs.push((dir.try_clone()?, entry.as_ref()));
        }
        for (name, content) in &self.files {
            // A file of the root by that name is replaced, and never followed.
            dir.remove_tree(Name::new(name.as_ref())?)?;
            let mut file = dir.create(Name::new(name.as_ref())?, Mode::from_raw_mode(MODE))?;
            file.write_all(content)?;
            let file = Entry::of_open(file)?;
            file.set_mode(Mode::from_raw_mode(MODE))?;
            file.set_times(&times)?;
        }
        for (dir, entry) in dirs.iter().rev() {
            match entry {
                Some(entry) => copy_attributes(entry, &dir.to_entry()?)?,
                None => dir.to_entry()?.set_times(&times)?,
            }
        }
        Ok(())
    }

    fn dir(&self) -> &Path {
        self.dirs.last().map_or(Path::new(""), |(path, _)| path)
    }
}
