//! Writing a whole file, for text, file, copy_file and edit, and for append and touch if the file is missing.

use anyhow::bail;
use msb::overlay::Leaf;
use msb::overlay::attributes::copy_xattrs;
use msb::overlay::beneath::Entry;
use msb::overlay::resolve::{End, Last, Resolved};
use rustix::fs::{FileType, Mode};

use crate::attributes::{RequestedAttributes, set_attributes};
use crate::content::Content;
use crate::member::RawPath;
use crate::target::{Done, Target};

/// The mode of a new file.
pub(crate) const FILE_MODE: u32 = 0o644;

/// Which states of the path are allowed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Overwrite {
    /// Overwrite an existing file.
    pub(crate) replace: bool,
    /// Create a missing file.
    pub(crate) create: bool,
}

impl Target {
    /// Writes a file at a path.
    ///
    /// # Errors
    /// A message without the path.
    pub(crate) fn write(
        &mut self,
        path: &RawPath,
        over: Overwrite,
        requested: RequestedAttributes,
        default_mode: u32,
        content: Content<'_>,
    ) -> anyhow::Result<Done> {
        let at = self.look_up(path, Last::Follow)?;
        self.write_at(path, at, over, requested, default_mode, content)
    }

    /// The same for a path that has been resolved. A file that has the content and the requested attributes is not changed.
    ///
    /// # Errors
    /// A message without the path.
    pub(crate) fn write_at(
        &mut self,
        path: &RawPath,
        at: Resolved,
        over: Overwrite,
        requested: RequestedAttributes,
        default_mode: u32,
        content: Content<'_>,
    ) -> anyhow::Result<Done> {
        let before = self.state_before(&at, "replace");
        match &at.end {
            End::Dir => bail!("exists and is a directory"),
            End::Leaf(_, leaf)
                if leaf.entry.file_type() == FileType::RegularFile
                    && requested.match_stat(leaf.entry.stat())
                    && self.holds(leaf, content)? =>
            {
                return Ok(Done { bytes: content.length()?, ..Done::unchanged(before) });
            }
            End::Leaf(_, leaf) if !over.replace => bail!("{}", self.exists(leaf)),
            End::Missing(_) if path.ends_with_slash() => bail!("a file's path does not end with \"/\""),
            End::Missing(_) if !over.create => bail!("does not exist, and \"create\" is false"),
            _ => {}
        }
        let bytes = self.put(at, requested, default_mode, content)?;
        Ok(Done { bytes, ..Done::changed(before) })
    }

    /// Whether a file has exactly the content. If a dry run has left out its data, only the length is compared.
    fn holds(&self, file: &Leaf, content: Content<'_>) -> anyhow::Result<bool> {
        if self.has_no_data(&file.entry) {
            return Ok(content.length()? == file.entry.stat().st_size as u64);
        }
        Ok(content.is_in(&file.data().open_to_read()?)?)
    }

    /// Creates or replaces the file, and returns its size. As with `cat > file`, an existing file keeps its owner, mode and xattrs.
    fn put(
        &mut self,
        at: Resolved,
        requested: RequestedAttributes,
        default_mode: u32,
        content: Content<'_>,
    ) -> anyhow::Result<u64> {
        let at = self.parent(at)?;
        let old = at.old.as_ref().map(|leaf| &leaf.entry).filter(|entry| entry.file_type() == FileType::RegularFile);
        let mode = if old.is_some() { 0o600 } else { requested.mode.unwrap_or(default_mode) & 0o777 };
        let epoch = self.epoch.map(|_| self.now());
        // A file of /proc has no length, and later operations do not read its data.
        let length = match content {
            Content::File(from) if self.dry_run && from.metadata()?.len() == 0 => 0,
            content => self.copied_length(content.length()?),
        };
        let new = self.create(&at, |dir, name| {
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
                let mode = requested.mode.or(Some(mode));
                let requested =
                    RequestedAttributes { mode, uid: requested.uid.or(Some(uid)), gid: requested.gid.or(Some(gid)) };
                // The copy of an ACL has changed the mode.
                set_attributes(&new, &new.stat_now()?, requested)?;
            }
            None => set_attributes(&new, new.stat(), self.new_attributes(requested, default_mode))?,
        }
        if let Some(times) = epoch {
            new.set_times(&times)?;
        }
        Ok(new.stat().st_size as u64)
    }
}
