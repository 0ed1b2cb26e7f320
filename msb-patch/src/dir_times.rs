//! The times of the directory that is being changed. They are restored when another directory is changed, so that many new files in one
//! directory need only one restoration.

use std::io;
use std::sync::Arc;

use msb::overlay::attributes::DEFAULT_ACL;
use msb::overlay::beneath::{Dir, times_of};
use rustix::fs::Timestamps;

/// A directory whose times will be restored, if there is one.
#[derive(Debug, Default)]
pub struct DirTimes(Option<Saved>);

#[derive(Debug)]
struct Saved {
    dir: Arc<Dir>,
    times: Timestamps,
    has_default_acl: bool,
}

impl DirTimes {
    /// Saves the times of `dir` before something in it changes, and restores those of the previous directory.
    ///
    /// # Errors
    /// Those of reading and setting times.
    pub fn save(&mut self, dir: &Arc<Dir>) -> io::Result<()> {
        if let Some(saved) = &self.0
            && Arc::ptr_eq(&saved.dir, dir)
        {
            return Ok(());
        }
        self.restore()?;
        let entry = dir.to_entry()?;
        let has_default_acl = entry.xattr(DEFAULT_ACL.as_ref()).is_ok();
        self.0 = Some(Saved { dir: Arc::clone(dir), times: times_of(entry.stat()), has_default_acl });
        Ok(())
    }

    /// Whether new files in the directory inherit an ACL.
    pub fn has_default_acl(&self) -> bool {
        self.0.as_ref().is_some_and(|saved| saved.has_default_acl)
    }

    /// Restores the times of the directory.
    ///
    /// # Errors
    /// Those of `utimensat(2)`.
    pub fn restore(&mut self) -> io::Result<()> {
        match self.0.take() {
            Some(Saved { dir, times, .. }) => dir.to_entry()?.set_times(&times),
            None => Ok(()),
        }
    }
}
