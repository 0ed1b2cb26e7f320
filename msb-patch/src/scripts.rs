//! Scripts on their way into the record: one file each, in the sandbox's directory, never in the root.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, bail};
use msb::staging::{Draft, Staging};
use msb::state;

/// The scripts of this run.
#[derive(Debug, Default)]
pub struct Scripts {
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
                    None => self.own.insert(Draft::begin(&state::home()?)?),
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

    /// Makes the scripts visible, after the upper is. Says where each is.
    ///
    /// # Errors
    /// What renaming says.
    pub fn publish(self) -> anyhow::Result<BTreeMap<String, PathBuf>> {
        if let Some(draft) = &self.own {
            draft.publish().context("scripts")?;
        }
        let Some(dirs) = self.dirs else { return Ok(BTreeMap::new()) };
        Ok(self.names.into_iter().map(|name| (name.clone(), dirs.to.join(name))).collect())
    }

    /// Takes away what [`Self::publish`] would have shown.
    pub fn discard(&self) {
        if let Some(draft) = &self.own {
            let _ = std::fs::remove_dir_all(&draft.aside);
        }
    }
}
