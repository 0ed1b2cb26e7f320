//! The files of the upper that is continued, in the upper that the operations write to. To the user the two are one upper.

use std::io;
use std::path::Path;

use msb::overlay::attributes::keeping_times;
use msb::overlay::beneath::{Dir, Entry, Name};
use msb::overlay::resolve::{End, Last, resolve};
use msb::overlay::upper::upper_of;
use msb::overlay::{Layer, Leaf};

use crate::target::Target;

impl Target {
    /// The layer as the user counts: without the one that operations write to above the upper.
    pub(crate) fn shown_layer(&self, layer: Layer) -> Layer {
        match layer {
            Layer::Lower(0) if self.continued.is_some() => Layer::Upper,
            Layer::Lower(number) if self.continued.is_some() => Layer::Lower(number - 1),
            layer => layer,
        }
    }

    /// Whether a file is in the upper that is continued.
    fn is_continued(&self, leaf: &Leaf) -> bool {
        leaf.layer == Layer::Lower(0) && self.continued.is_some()
    }

    /// Gives a file of the continued upper a name in the upper above it. It is the same file until it is changed. False: it is a file of
    /// another layer, or cannot be moved as it is.
    pub(crate) fn share(&mut self, dir: &Dir, name: Name<'_>, leaf: &Leaf) -> io::Result<bool> {
        if !self.is_continued(leaf) || leaf.is_metacopy() {
            return Ok(false);
        }
        keeping_times(dir, || self.writer.replace_with_link(dir, name, &leaf.entry))?;
        self.shared_data.insert(leaf.entry.stat().st_ino);
        Ok(true)
    }

    /// After a copy of a file of the continued upper: its other names lead to the copy too, as they do within one upper.
    pub(crate) fn copy_other_names(&mut self, leaf: &Leaf, copy: &Entry) -> io::Result<()> {
        let stat = leaf.entry.stat();
        if stat.st_nlink < 2 || !self.is_continued(leaf) {
            return Ok(());
        }
        let names = match &mut self.continued {
            Some(continued) => continued.names(stat.st_ino)?,
            None => return Ok(()),
        };
        for path in names {
            // A name may be hidden or replaced by now.
            let Ok(mut at) = resolve(&self.root, Path::new("/").join(&path).as_path(), Last::Keep) else { continue };
            let End::Leaf(name, there) = &at.end else { continue };
            if !self.is_continued(there)
                || there.entry.stat().st_ino != stat.st_ino
                || at.path() != Path::new("/").join(&path)
            {
                continue;
            }
            self.writer.copy_up_steps(&mut at.steps)?;
            let parent = at.steps.last().map(|step| step.dir.clone()).ok_or(rustix::io::Errno::NOENT)?;
            let parent = upper_of(&parent)?;
            keeping_times(parent, || self.writer.replace_with_link(parent, Name::new(name)?, copy))?;
        }
        // Cached paths may lead through directories that have been copied up.
        self.trail.forget();
        Ok(())
    }
}
