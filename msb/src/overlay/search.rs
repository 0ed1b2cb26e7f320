//! The lookup of a name in the layers, from the top, as the kernel's `ovl_lookup` does it (`fs/overlayfs/namei.c`).
//!
//! A directory that was renamed has a redirect to its name in lower layers, relative to its parent or to the root. A regular file without
//! data (a metacopy) has the data of the next file below it. A search may meet several of each; only lower layers are left to search
//! each time, so it ends. The path of a redirect is walked name by name inside one layer and through no symlink, so it cannot leave it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::sync::Arc;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::beneath::{Dir, Entry, Name};
use super::listed::Listed;
use super::marks::{Marks, Redirect};
use super::merged::{Layer, Leaf, LowerDir, Merged, Node};
use super::whiteout::{self, OciName, oci_opaque, oci_whiteout, read_oci_name};

/// The state of a search.
struct Search {
    /// The path to look up in the next layer.
    names: Vec<OsString>,
    /// Whether the path starts at the root of the layer, and not at its part of the directory.
    from_root: bool,
    /// Whether a redirect has been met.
    redirected: bool,
    /// A directory was found, so only directories of lower layers count.
    is_dir: bool,
    /// A metacopy was found, so the data is searched for.
    needs_data: bool,
    /// Lower layers are not searched.
    stop: bool,
    /// Whether the layer may have whiteouts in OCI's form.
    reads_oci: bool,
    /// Whether the last file that was found may have an origin.
    has_origin: bool,
}

impl Merged {
    /// Looks `name` up by the merge rule.
    ///
    /// # Errors
    /// The error of opening in a layer, except ENOENT; EIO for a metacopy without data below it; a message for a mark that is refused.
    pub fn lookup(&self, name: Name<'_>) -> io::Result<Option<Node>> {
        self.search(self.upper.as_ref(), name, |_| true)
    }

    /// Looks a name up that [`Self::list`] has returned, in the layers that have it. No name in the directory may have changed since.
    ///
    /// # Errors
    /// As [`Self::lookup`].
    pub fn lookup_listed(&self, listed: &Listed) -> io::Result<Option<Node>> {
        let name = Name::new(&listed.name)?;
        // Marks in OCI's form are names of their own.
        if self.has_oci_whiteouts {
            return self.lookup(name);
        }
        self.search(self.upper.as_ref(), name, |layer| listed.may_be_in(layer))
    }

    /// Looks `name` up in the lower layers only: the result if the upper did not have the name.
    ///
    /// # Errors
    /// As [`Self::lookup`].
    pub fn lookup_lower(&self, name: Name<'_>) -> io::Result<Option<Node>> {
        self.search(None, name, |_| true)
    }

    /// Whether [`Self::lookup_lower`] finds something. Opens nothing, unless the answer depends on xattrs.
    ///
    /// # Errors
    /// As [`Self::lookup`].
    pub fn shows_through(&self, name: Name<'_>) -> io::Result<bool> {
        if self.has_oci_whiteouts {
            return Ok(self.lookup_lower(name)?.is_some());
        }
        for part in &self.lower {
            let Some(stat) = part.dir.stat_of(name)? else { continue };
            let may_be_marked = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_size == 0;
            return match may_be_marked {
                true => Ok(self.lookup_lower(name)?.is_some()),
                false => Ok(!whiteout::is_whiteout(&stat)),
            };
        }
        Ok(false)
    }

    /// Looks `name` up in this directory's lower parts, and in `upper`. `may_have`: whether a layer may have this name.
    fn search(
        &self,
        upper: Option<&Arc<Dir>>,
        name: Name<'_>,
        may_have: impl Fn(Layer) -> bool,
    ) -> io::Result<Option<Node>> {
        let mut search = Search {
            names: vec![name.as_os_str().to_owned()],
            from_root: false,
            redirected: false,
            is_dir: false,
            needs_data: false,
            stop: false,
            reads_oci: false,
            has_origin: false,
        };
        let mut answer = Answer::new(self);
        if let Some(upper) = upper.filter(|_| may_have(Layer::Upper))
            && let Some(entry) = search.in_layer(upper, false)?
        {
            answer.add(entry, Layer::Upper, &search)?;
            answer.merged.is_redirected = search.redirected;
        }
        search.reads_oci = self.has_oci_whiteouts;
        let mut is_at_root = search.from_root;
        let mut parts = if is_at_root { &self.roots[..] } else { &self.lower[..] };
        while let Some((part, rest)) = parts.split_first().filter(|_| !search.stop) {
            parts = rest;
            if !search.redirected && !may_have(Layer::Lower(part.layer)) {
                continue;
            }
            let is_lowest = part.layer + 1 == self.roots.len();
            let Some(entry) = search.in_layer(&part.dir, is_lowest)? else { continue };
            answer.add(entry, Layer::Lower(part.layer), &search)?;
            if search.from_root && !is_at_root {
                parts = self.roots.get(part.layer + 1..).unwrap_or_default();
                is_at_root = true;
            }
        }
        if search.needs_data {
            return Err(io::Error::new(
                Errno::IO.kind(),
                format!("{:?} is a metacopy, and no lower layer has its data", name.as_os_str()),
            ));
        }
        Ok(answer.into_node())
    }
}

impl Search {
    /// Looks the path up in one layer, from `base`, which is its part of the directory or its root. A redirect on the way changes the
    /// path, so the position in it is counted from its end.
    fn in_layer(&mut self, base: &Dir, is_lowest: bool) -> io::Result<Option<Entry>> {
        let mut left = self.names.len();
        let mut dir: Option<Dir> = None;
        loop {
            left -= 1;
            let Some(entry) = self.step(dir.as_ref().unwrap_or(base), left, is_lowest)? else { return Ok(None) };
            if left == 0 {
                return Ok(Some(entry));
            }
            dir = Some(entry.into_dir()?);
        }
    }

    /// Looks one name of the path up; `left` names follow it.
    fn step(&mut self, dir: &Dir, left: usize, is_lowest: bool) -> io::Result<Option<Entry>> {
        let place = self.names.len() - 1 - left;
        let name = Name::new(&self.names[place])?;
        if self.reads_oci && read_oci_name(name.as_os_str()) != OciName::Plain {
            return Ok(None);
        }
        let hides_others = self.reads_oci && has(dir, &oci_whiteout(name))?;
        let Some(entry) = dir.entry(name)? else {
            self.stop |= hides_others;
            return Ok(None);
        };
        let is_last = left == 0;
        if entry.is_dir() {
            if is_last && self.needs_data {
                self.stop = true;
                return Ok(None);
            }
            self.is_dir |= is_last;
            // In the lowest layer marks mean nothing.
            if is_lowest {
                return Ok(Some(entry));
            }
            let marks = Marks::of(&entry)?;
            let hides_others = hides_others || self.reads_oci && has(&entry.to_dir()?, oci_opaque())?;
            match marks.redirect {
                _ if marks.is_opaque || hides_others => self.stop = true,
                Some(redirect) => self.follow(place, redirect),
                None => {}
            }
            return Ok(Some(entry));
        }
        let is_regular = entry.file_type() == FileType::RegularFile;
        let marks = Marks::of(&entry)?;
        let hides = whiteout::is_whiteout(entry.stat()) || marks.is_whiteout;
        if hides || !is_last || self.is_dir || self.needs_data && !is_regular {
            self.stop = true;
            return Ok(None);
        }
        // The marks of a file that is not regular are not read, so it may have an origin.
        self.has_origin = marks.has_origin || !is_regular;
        self.needs_data = marks.is_metacopy;
        self.stop = !marks.is_metacopy;
        if let Some(redirect) = marks.redirect.filter(|_| marks.is_metacopy) {
            self.follow(place, redirect);
        }
        Ok(Some(entry))
    }

    /// Replaces the name at `place` by its redirect, for lower layers.
    fn follow(&mut self, place: usize, redirect: Redirect) {
        self.redirected = true;
        if redirect.is_absolute {
            self.names.splice(..=place, redirect.names);
            self.from_root = true;
            // An opaque directory above it does not hide what is reached from the root.
            self.stop = false;
        } else {
            self.names.splice(place..=place, redirect.names);
        }
    }
}

/// Whether a directory has a file of this name. A name that is too long for its file system is that of none.
fn has(dir: &Dir, name: &OsStr) -> io::Result<bool> {
    let Ok(name) = Name::new(name) else { return Ok(false) };
    match dir.entry(name) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::NAMETOOLONG) => Ok(false),
        found => Ok(found?.is_some()),
    }
}

/// The files that the search has found.
struct Answer {
    merged: Merged,
    leaf: Option<Leaf>,
}

impl Answer {
    fn new(parent: &Merged) -> Self {
        let (roots, has_oci_whiteouts) = (Arc::clone(&parent.roots), parent.has_oci_whiteouts);
        let merged = Merged { upper: None, lower: Vec::new(), roots, is_redirected: false, has_oci_whiteouts };
        Self { merged, leaf: None }
    }

    fn add(&mut self, entry: Entry, layer: Layer, search: &Search) -> io::Result<()> {
        if !search.is_dir {
            match &mut self.leaf {
                None => {
                    self.leaf = Some(Leaf { entry, layer, data: None, may_have_origin: search.has_origin });
                }
                // A metacopy below a metacopy has no data either.
                Some(leaf) => leaf.data = Some(Box::new(entry)).filter(|_| !search.needs_data),
            }
            return Ok(());
        }
        let dir = Arc::new(entry.into_dir()?);
        match layer {
            Layer::Upper => self.merged.upper = Some(dir),
            Layer::Lower(layer) => self.merged.lower.push(LowerDir { layer, dir }),
        }
        Ok(())
    }

    fn into_node(self) -> Option<Node> {
        let is_dir = self.merged.upper.is_some() || !self.merged.lower.is_empty();
        self.leaf.map(Node::Leaf).or_else(|| is_dir.then_some(Node::Dir(self.merged)))
    }
}
