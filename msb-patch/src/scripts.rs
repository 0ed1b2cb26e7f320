//! Scripts on their way into the record: one file each, in the sandbox's directory, never in the root.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use msb::record::script::check_name;
use msb::store::publish;
use msb::store::staging::{Draft, Staging};

use crate::op::Script;

/// The scripts of the record and of this run.
#[derive(Debug)]
pub struct Scripts {
    /// The state directory.
    home: PathBuf,
    /// Those that the record has.
    given: BTreeMap<String, PathBuf>,
    /// Whether those of the record count only where an operation of this run gives them again.
    is_fresh: bool,
    /// Which of those have been given again.
    again: BTreeSet<String>,
    /// A sandbox of their own, where the upper is in none that is being made.
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
    /// The scripts that a record has; with `is_fresh` it is as if it had none. `home` is the state directory.
    pub fn of_record(home: &Path, given: BTreeMap<String, PathBuf>, is_fresh: bool) -> Self {
        let (again, names) = (BTreeSet::new(), BTreeSet::new());
        Self { home: home.to_owned(), given, is_fresh, again, own: None, dirs: None, names }
    }

    /// Whether there is a script of that name.
    pub fn has(&self, name: &str) -> bool {
        self.names.contains(name) || self.given.contains_key(name) && (!self.is_fresh || self.again.contains(name))
    }

    /// Writes a script. False: it is there already.
    ///
    /// # Errors
    /// A bad name, or one that another script has; what writing says.
    pub fn add(&mut self, staging: Option<&Staging>, script: &Script) -> anyhow::Result<bool> {
        let name = &script.name;
        check_name(name).map_err(|why| anyhow!(why))?;
        let (new, given) = (self.names.contains(name), self.given.get(name));
        let there = if new { self.dirs.as_ref().map(|dirs| dirs.staging.join(name)) } else { given.cloned() };
        if there.is_some_and(|there| fs::read(there).is_ok_and(|there| there == script.content.as_bytes())) {
            self.again.insert(name.clone());
            return Ok(false);
        }
        if (new || given.is_some() && !self.is_fresh) && !script.replace {
            bail!("there is a script of that name already, and it is another (set \"replace\": true to overwrite it)");
        }
        let dirs = match &mut self.dirs {
            Some(dirs) => dirs,
            None => {
                let draft = match staging.and_then(Staging::draft) {
                    Some(draft) => draft,
                    None => self.own.insert(Draft::begin(&self.home)?),
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

    /// Makes the scripts visible that are in a sandbox of their own. Those in the upper's sandbox become visible with it.
    ///
    /// # Errors
    /// What renaming says; then nothing of them is left.
    pub fn publish(self) -> anyhow::Result<Self> {
        if let Some(draft) = &self.own
            && let Err(error) = draft.publish()
        {
            draft.discard();
            return Err(error).context("scripts");
        }
        Ok(self)
    }

    /// Where each script is once it is visible, those of the record that stay among them.
    pub fn files(&self) -> BTreeMap<String, PathBuf> {
        let mut files = self.given.clone();
        files.retain(|name, _| !self.is_fresh || self.again.contains(name));
        if let Some(dirs) = &self.dirs {
            files.extend(self.names.iter().map(|name| (name.clone(), dirs.to.join(name))));
        }
        files
    }

    /// Takes the scripts away again, visible or not.
    pub fn discard(&self) {
        if let Some(draft) = &self.own {
            draft.discard();
        }
    }
}
