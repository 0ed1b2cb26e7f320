//! The upper that is continued, while it is the topmost lower layer and the operations write above it.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use msb::overlay::Merged;
use msb::overlay::beneath::Dir;

/// The upper that is continued.
#[derive(Debug)]
pub(crate) struct Continued {
    root: Arc<Dir>,
    /// The names of the files that have several, by inode, once they were asked for.
    names: Option<HashMap<u64, Vec<PathBuf>>>,
}

impl Continued {
    /// The topmost lower layer of a root.
    pub(crate) fn new(root: &Merged) -> Self {
        Self { root: Arc::clone(&root.lower[0].dir), names: None }
    }

    /// All names of a file.
    ///
    /// # Errors
    /// The error of reading the upper, the first time.
    pub(crate) fn names(&mut self, inode: u64) -> io::Result<Vec<PathBuf>> {
        if self.names.is_none() {
            let mut names: HashMap<u64, Vec<PathBuf>> = HashMap::new();
            self.root.walk(|path, entry| {
                if !entry.is_dir() && entry.stat().st_nlink > 1 {
                    names.entry(entry.stat().st_ino).or_default().push(path.to_owned());
                }
                Ok(())
            })?;
            self.names = Some(names);
        }
        Ok(self.names.as_ref().and_then(|names| names.get(&inode)).cloned().unwrap_or_default())
    }
}
