//! One name, searched for in the layers from the top, as the kernel's `ovl_lookup` does it (`fs/overlayfs/namei.c`).
//!
//! A part that was renamed says by a redirect where lower layers have the rest, relative to its directory or from the root; a
//! regular file without data of its own (metacopy) has that of the next file below. Both may come several times, each time with
//! only lower layers left to look in, so no search goes in circles. A path of a redirect is taken name by name inside one layer
//! and through no symlink, so it leads nowhere outside.

use std::ffi::OsString;
use std::io;
use std::sync::Arc;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::beneath::{Dir, Entry, Name};
use super::marks::{Marks, Redirect};
use super::{Layer, Leaf, LowerDir, Merged, Node, whiteout};

/// The state of a search.
struct Search {
    /// Where the next layer is asked.
    names: Vec<OsString>,
    /// Whether the names lead from the root of the layer, and not from the part that the directory has there.
    from_root: bool,
    /// Whether a redirect has been met.
    redirected: bool,
    /// A directory was found, so only directories count further down.
    is_dir: bool,
    /// A file was found whose data is further down.
    needs_data: bool,
    /// Lower layers have no say.
    stop: bool,
}

impl Merged {
    /// What is called `name` in these parts of this directory.
    pub(super) fn search(&self, upper: Option<&Arc<Dir>>, name: Name<'_>) -> io::Result<Option<Node>> {
        let mut search = Search {
            names: vec![name.as_os_str().to_owned()],
            from_root: false,
            redirected: false,
            is_dir: false,
            needs_data: false,
            stop: false,
        };
        let mut found = Found::new(self);
        if let Some(upper) = upper
            && let Some(entry) = search.in_layer(upper, false)?
        {
            found.add(entry, Layer::Upper, &search)?;
            found.merged.is_redirected = search.redirected;
        }
        let mut is_at_root = search.from_root;
        let mut parts = if is_at_root { &self.roots[..] } else { &self.lower[..] };
        while let Some((part, rest)) = parts.split_first().filter(|_| !search.stop) {
            parts = rest;
            let is_lowest = part.layer + 1 == self.roots.len();
            let Some(entry) = search.in_layer(&part.dir, is_lowest)? else { continue };
            found.add(entry, Layer::Lower(part.layer), &search)?;
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
        Ok(found.into_node())
    }
}

impl Search {
    /// The file in one layer, where `base` is its part of the directory, or its root. The names may change on the way: what is
    /// left of them is counted from their end.
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

    /// One name of the way, with `left` names after it.
    fn step(&mut self, dir: &Dir, left: usize, is_lowest: bool) -> io::Result<Option<Entry>> {
        let place = self.names.len() - 1 - left;
        let Some(entry) = dir.entry(Name::new(&self.names[place])?)? else { return Ok(None) };
        let is_last = left == 0;
        if entry.is_dir() {
            if is_last && self.needs_data {
                self.stop = true;
                return Ok(None);
            }
            self.is_dir |= is_last;
            // There is nothing below to hide, or to be sent to.
            if is_lowest {
                return Ok(Some(entry));
            }
            let marks = Marks::of(&entry)?;
            match marks.redirect {
                _ if marks.is_opaque => self.stop = true,
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
        self.needs_data = marks.is_metacopy;
        self.stop = !marks.is_metacopy;
        if let Some(redirect) = marks.redirect.filter(|_| marks.is_metacopy) {
            self.follow(place, redirect);
        }
        Ok(Some(entry))
    }

    /// Lower layers have what is at `place` elsewhere.
    fn follow(&mut self, place: usize, redirect: Redirect) {
        self.redirected = true;
        if redirect.is_absolute {
            self.names.splice(..=place, redirect.names);
            self.from_root = true;
            // What an opaque directory above hides, this reaches from the root.
            self.stop = false;
        } else {
            self.names.splice(place..=place, redirect.names);
        }
    }
}

/// What the layers had so far.
struct Found {
    merged: Merged,
    leaf: Option<Leaf>,
}

impl Found {
    fn new(parent: &Merged) -> Self {
        let roots = Arc::clone(&parent.roots);
        Self { merged: Merged { upper: None, lower: Vec::new(), roots, is_redirected: false }, leaf: None }
    }

    fn add(&mut self, entry: Entry, layer: Layer, search: &Search) -> io::Result<()> {
        if !search.is_dir {
            match &mut self.leaf {
                None => self.leaf = Some(Leaf { entry, layer, data: None }),
                // One without data in between has nothing to say.
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
