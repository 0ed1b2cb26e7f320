//! Scripts on their way into the record: one file each, in the sandbox's directory, never in the root.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use msb::staging::{Draft, Staging};
use msb::state;

/// The scripts of this run.
#[derive(Debug)]
pub struct Scripts {
    /// The state directory.
    home: PathBuf,
    /// A sandbox of their own, where the upper is in none that is being made.
    own: Option<Draft>,
    dirs: Option<Dirs>,
    names: Vec<String>,
}

#[derive(Debug)]
struct Dirs {
    aside: PathBuf,
    to: PathBuf,
}

impl Scripts {
    /// None yet; `home` is the state directory.
    pub fn new(home: &Path) -> Self {
        Self { home: home.to_owned(), own: None, dirs: None, names: Vec::new() }
    }

    /// Writes a script. Its name is checked already.
    ///
    /// # Errors
    /// A name that was given before; what writing says.
    pub fn add(&mut self, staging: Option<&Staging>, name: &str, content: &str) -> anyhow::Result<()> {
        if self.names.iter().any(|there| there == name) {
            bail!("there is a script of that name already");
        }
        let dirs = match &mut self.dirs {
            Some(dirs) => dirs,
            None => {
                let draft = match staging.and_then(Staging::draft) {
                    Some(draft) => draft,
                    None => self.own.insert(Draft::begin(&self.home)?),
                };
                let dirs = Dirs { aside: draft.aside.join("scripts"), to: draft.to.join("scripts") };
                state::make_private_dir(&dirs.aside)?;
                self.dirs.insert(dirs)
            }
        };
        let file = dirs.aside.join(name);
        state::write_file(&file, content.as_bytes(), 0o755).with_context(|| format!("{file:?}"))?;
        self.names.push(name.to_owned());
        Ok(())
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

    /// Where each script is once it is visible.
    pub fn files(&self) -> impl Iterator<Item = (String, PathBuf)> {
        let dir = self.dirs.as_ref().map(|dirs| dirs.to.clone()).unwrap_or_default();
        self.names.iter().map(move |name| (name.clone(), dir.join(name)))
    }

    /// Takes the scripts away again, visible or not.
    pub fn discard(&self) {
        if let Some(draft) = &self.own {
            draft.discard();
        }
    }
}
