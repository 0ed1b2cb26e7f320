//! The times of the directory that is being written into. They come back when another one is, so that many new files in one
//! directory cost it one change of times.

use std::io;
use std::sync::Arc;

use msb::overlay::attributes::DEFAULT_ACL;
use msb::overlay::beneath::{Dir, times_of};
use rustix::fs::Timestamps;

/// A directory whose times are to come back, if there is one.
#[derive(Debug, Default)]
pub struct Kept(Option<Held>);

#[derive(Debug)]
struct Held {
    dir: Arc<Dir>,
    times: Timestamps,
    bequeaths: bool,
}

impl Kept {
    /// Takes note of the times of `dir`, before something in it changes.
    ///
    /// # Errors
    /// What reading these, or giving another directory its own back, says.
    pub fn hold(&mut self, dir: &Arc<Dir>) -> io::Result<()> {
        if let Some(held) = &self.0
            && Arc::ptr_eq(&held.dir, dir)
        {
            return Ok(());
        }
        self.release()?;
        let entry = dir.to_entry()?;
        let bequeaths = entry.xattr(DEFAULT_ACL.as_ref()).is_ok();
        self.0 = Some(Held { dir: Arc::clone(dir), times: times_of(entry.stat()), bequeaths });
        Ok(())
    }

    /// Whether what is made in the directory inherits an ACL.
    pub fn bequeaths(&self) -> bool {
        self.0.as_ref().is_some_and(|held| held.bequeaths)
    }

    /// Gives the directory its times back.
    ///
    /// # Errors
    /// What `utimensat(2)` says.
    pub fn release(&mut self) -> io::Result<()> {
        match self.0.take() {
            Some(Held { dir, times, .. }) => dir.to_entry()?.set_times(&times),
            None => Ok(()),
        }
    }
}
