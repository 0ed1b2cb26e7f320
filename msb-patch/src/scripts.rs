//! The scripts of the record: one file each, in the sandbox's directory and not in the root.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, anyhow, bail};
use msb::record::script::check_name;
use msb::store::draft::Draft;
use msb::store::staging::Staging;
use msb::store::{publish, sandbox};

use crate::op::Script;

/// The scripts of the record and of this run.
#[derive(Debug)]
pub struct Scripts {
    /// The directory of sandboxes.
    sandboxes: PathBuf,
    /// Whether this run has made that directory.
    is_new: bool,
    /// The scripts of the record.
    given: BTreeMap<String, PathBuf>,
    /// With `--fresh`: scripts of the record are dropped unless an operation of this run adds them again.
    is_fresh: bool,
    /// The scripts of the record that were added again.
    readded: BTreeSet<String>,
    /// A sandbox for the scripts, if no sandbox is created for the upper.
    own: Option<Draft>,
    dirs: Option<Dirs>,
    names: BTreeSet<String>,
}

#[derive(Debug)]
struct Dirs {
    staging: PathBuf,
    to: PathBuf,
}

impl Scripts {
    /// The scripts of a record. Without a new sandbox for the upper, new scripts get one of their own in `sandboxes`.
    pub fn of_record(sandboxes: PathBuf, given: BTreeMap<String, PathBuf>, is_fresh: bool) -> Self {
        let (readded, names) = (BTreeSet::new(), BTreeSet::new());
        Self { sandboxes, is_new: false, given, is_fresh, readded, own: None, dirs: None, names }
    }

    /// Whether there is a script of that name.
    pub fn has(&self, name: &str) -> bool {
        self.names.contains(name) || self.given.contains_key(name) && (!self.is_fresh || self.readded.contains(name))
    }

    /// Writes a script. False: it exists with the same content.
    ///
    /// # Errors
    /// An invalid name, or that of another script. Those of writing.
    pub fn add(&mut self, staging: Option<&Staging>, script: &Script) -> anyhow::Result<bool> {
        let name = &script.name;
        check_name(name).map_err(|why| anyhow!(why))?;
        let (new, given) = (self.names.contains(name), self.given.get(name));
        let there = if new { self.dirs.as_ref().map(|dirs| dirs.staging.join(name)) } else { given.cloned() };
        if there.is_some_and(|there| fs::read(there).is_ok_and(|there| there == script.content.as_bytes())) {
            self.readded.insert(name.clone());
            return Ok(false);
        }
        if (new || given.is_some() && !self.is_fresh) && !script.replace {
            bail!("exists with other content (set \"replace\": true to overwrite it)");
        }
        let dirs = match &mut self.dirs {
            Some(dirs) => dirs,
            None => {
                let draft = match staging.and_then(Staging::draft) {
                    Some(draft) => draft,
                    None => {
                        self.is_new = !self.sandboxes.exists();
                        let draft = self.own.insert(Draft::begin(&self.sandboxes)?);
                        sandbox::make_held(&draft.dir)?;
                        draft
                    }
                };
                let dirs = Dirs { staging: draft.dir.join("scripts"), to: draft.to.join("scripts") };
                publish::make_private_dir(&dirs.staging)?;
                self.dirs.insert(dirs)
            }
        };
        let file = dirs.staging.join(name);
        publish::write_file(&file, script.content.as_bytes(), 0o755).with_context(|| format!("{file:?}"))?;
        self.names.insert(name.clone());
        Ok(true)
    }

    /// Publishes the scripts' own sandbox. Scripts in the upper's sandbox are published with the upper.
    ///
    /// # Errors
    /// Those of renaming. The scripts are removed then.
    pub fn publish(self) -> anyhow::Result<Self> {
        if let Some(draft) = &self.own
            && let Err(error) = draft.publish()
        {
            self.discard();
            return Err(error).context("scripts");
        }
        Ok(self)
    }

    /// The path of each script after publishing, with those of the record.
    pub fn files(&self) -> BTreeMap<String, PathBuf> {
        let mut files = self.given.clone();
        files.retain(|name, _| !self.is_fresh || self.readded.contains(name));
        if let Some(dirs) = &self.dirs {
            files.extend(self.names.iter().map(|name| (name.clone(), dirs.to.join(name))));
        }
        files
    }

    /// Removes the scripts, even after publishing.
    pub fn discard(&self) {
        if let Some(draft) = &self.own {
            draft.discard();
        }
        if self.is_new {
            // Fails if another run has put something there.
            let _ = fs::remove_dir(&self.sandboxes);
        }
    }
}
