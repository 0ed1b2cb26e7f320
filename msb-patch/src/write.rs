//! Writing a whole file: what text, file, copy_file, edit, and append and touch on a file that is missing, do.

use anyhow::bail;
use msb::overlay::Leaf;
use msb::overlay::attributes::copy_xattrs;
use msb::overlay::beneath::Entry;
use msb::overlay::resolve::{End, Last, Resolved};
use rustix::fs::{FileType, Mode};

use crate::attributes::{Wanted, set_attributes};
use crate::content::Content;
use crate::lookup::exists;
use crate::member::RawPath;
use crate::target::{Done, Target};

/// The mode of a new file.
pub(crate) const FILE_MODE: u32 = 0o644;

/// What may be written over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Over {
    /// A file that is there.
    pub(crate) replace: bool,
    /// Nothing.
    pub(crate) create: bool,
}

impl Target {
    /// Puts a file at the end of a path.
    ///
    /// # Errors
    /// A message without the path.
    pub(crate) fn write(
        &mut self,
        path: &RawPath,
        over: Over,
        wanted: Wanted,
        default_mode: u32,
        content: Content<'_>,
    ) -> anyhow::Result<Done> {
        let at = self.look_up(path, Last::Follow)?;
        self.write_at(path, at, over, wanted, default_mode, content)
    }

    /// The same where the path has been looked up. A file that holds just the content, with what is asked for, stays as it is.
    ///
    /// # Errors
    /// A message without the path.
    pub(crate) fn write_at(
        &mut self,
        path: &RawPath,
        at: Resolved,
        over: Over,
        wanted: Wanted,
        default_mode: u32,
        content: Content<'_>,
    ) -> anyhow::Result<Done> {
        let found = self.found(&at, "replace");
        match &at.end {
            End::Dir => bail!("exists and is a directory"),
            End::Leaf(_, leaf)
                if leaf.entry.file_type() == FileType::RegularFile
                    && wanted.is_had_by(leaf.entry.stat())
                    && self.holds(leaf, content)? =>
            {
                return Ok(Done { bytes: content.length()?, ..Done::unchanged(found) });
            }
            End::Leaf(_, leaf) if !over.replace => bail!("{}", exists(leaf)),
            End::Missing(_) if path.ends_with_slash() => bail!("a file's path does not end with \"/\""),
            End::Missing(_) if !over.create => bail!("does not exist, and \"create\" is false"),
            _ => {}
        }
        let bytes = self.put(at, wanted, default_mode, content)?;
        Ok(Done { bytes, ..Done::changed(found) })
    }

    /// Whether a file holds just the content. Of one whose data a dry run has left out, the length has to do.
    fn holds(&self, file: &Leaf, content: Content<'_>) -> anyhow::Result<bool> {
        if self.is_hollow(&file.entry) {
            return Ok(content.length()? == file.entry.stat().st_size as u64);
        }
        Ok(content.is_in(&file.data().open_to_read()?)?)
    }

    /// Puts a new file in place; says its size. One that it replaces leaves it its owner, mode and xattrs, as `cat > file` would.
    fn put(&mut self, at: Resolved, wanted: Wanted, default_mode: u32, content: Content<'_>) -> anyhow::Result<u64> {
        let at = self.parent(at)?;
        let old = at.old.as_ref().map(|leaf| &leaf.entry).filter(|entry| entry.file_type() == FileType::RegularFile);
        let mode = if old.is_some() { 0o600 } else { wanted.mode.unwrap_or(default_mode) & 0o777 };
        let epoch = self.epoch.map(|_| self.now());
        // A file of /proc has no length, and its data is not what an operation behind would look into.
        let length = match content {
            Content::File(from) if self.dry_run && from.metadata()?.len() == 0 => 0,
            content => self.copied_length(content.length()?),
        };
        let new = self.place(&at, |dir, name| {
            let mut file = dir.create(name, Mode::from_raw_mode(mode))?;
            match content {
                Content::File(from) if length == 0 => file.set_len(from.metadata()?.len())?,
                content => content.put(&mut file)?,
            }
            let new = Entry::of_open(file)?;
            if let Some(old) = old {
                copy_xattrs(old, &new, |name| name != "security.capability")?;
            }
            Ok(new)
        })?;
        if matches!(content, Content::File(_)) {
            self.note_copy(&new, length);
        }
        match old.map(Entry::stat) {
            Some(old) => {
                let (mode, uid, gid) = (old.st_mode & 0o7777, old.st_uid, old.st_gid);
                let mode = wanted.mode.or(Some(mode));
                let wanted = Wanted { mode, uid: wanted.uid.or(Some(uid)), gid: wanted.gid.or(Some(gid)) };
                // An ACL that it had has changed the mode.
                set_attributes(&new, &new.stat_now()?, wanted)?;
            }
            None => set_attributes(&new, new.stat(), self.new_attributes(wanted, default_mode))?,
        }
        if let Some(times) = epoch {
            new.set_times(&times)?;
        }
        Ok(new.stat().st_size as u64)
    }
}
