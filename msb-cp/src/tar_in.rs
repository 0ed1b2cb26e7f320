//! A tar archive as the source of a copy.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use msb::record::owner::Id;
use msb::transfer::send::{CHUNK, Sink};
use msb::wire::Message;
use msb::wire::exec::Text;
use msb::wire::upper::{self, Attributes, What};
use tar::EntryType;

/// The records of PAX with xattrs begin like this.
const XATTR: &[u8] = b"SCHILY.xattr.";

/// Sends what an archive contains. An archive may name its files in any order, and leave directories out.
///
/// # Errors
/// An archive that cannot be read, or with a path that leads out of it; those of the sink.
pub(crate) fn send<S: Sink>(sink: &mut S, archive: impl Read) -> anyhow::Result<()> {
    let mut archive = tar::Archive::new(archive);
    put(sink, Some(OsStr::new(".")), What::Directory { opaque: false }, None)?;
    let mut tree = Tree { sink, open: Vec::new(), directories: BTreeMap::new() };
    for entry in archive.entries()? {
        let mut entry = entry.context("the archive on stdin")?;
        let path = PathBuf::from(OsString::from_vec(entry.path_bytes().into_owned()));
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            continue;
        }
        let mut names = names(&path)?;
        let attributes = attributes(&mut entry).with_context(|| format!("{path:?} in the archive"))?;
        if kind == EntryType::Directory {
            tree.enter(&names, Some(attributes))?;
            continue;
        }
        // The archive's own root.
        let Some(last) = names.pop() else { continue };
        tree.enter(&names, None)?;
        let link = || -> anyhow::Result<OsString> {
            let target =
                entry.link_name_bytes().ok_or_else(|| anyhow!("{path:?} in the archive: a link to nothing"))?;
            Ok(OsString::from_vec(target.into_owned()))
        };
        let number = |number: Option<u32>| number.unwrap_or(0);
        let what = match kind {
            EntryType::Symlink => What::Symlink { target: link()?.as_os_str().into() },
            EntryType::Link => {
                let target: PathBuf = self::names(Path::new(&link()?))?.iter().collect();
                What::Hardlink { path: target.as_os_str().into() }
            }
            EntryType::Char | EntryType::Block => What::Device {
                block: kind == EntryType::Block,
                major: number(entry.header().device_major()?),
                minor: number(entry.header().device_minor()?),
            },
            EntryType::Fifo => What::Fifo,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => What::File { size: entry.size() },
            other => bail!("{path:?} in the archive: type {:?} is not known", char::from(other.as_byte())),
        };
        put(tree.sink, Some(&last), what.clone(), Some(attributes))?;
        if let What::File { size } = what {
            content(tree.sink, &mut entry, size).with_context(|| format!("{path:?} in the archive"))?;
        }
    }
    tree.finish()?;
    Ok(())
}

/// The directories that were sent.
struct Tree<'a, S> {
    sink: &'a mut S,
    /// The names of those that are open, from the archive's root.
    open: Vec<OsString>,
    directories: BTreeMap<Vec<OsString>, Directory>,
}

#[derive(Default)]
struct Directory {
    attributes: Option<Attributes>,
    /// It was described after it was made, or changed after it was described. Its attributes are sent again at the end.
    is_late: bool,
}

impl<S: Sink> Tree<'_, S> {
    /// Opens a directory, and leaves those that it is not in. `described`: what the archive says about it, where it does.
    fn enter(&mut self, names: &[OsString], described: Option<Attributes>) -> io::Result<()> {
        let common = self.leave_to(names)?;
        for depth in common..names.len() {
            let directory = self.directories.entry(names[..=depth].to_vec());
            let is_new = matches!(directory, Entry::Vacant(_));
            let directory = directory.or_default();
            let attributes = described.as_ref().filter(|_| depth + 1 == names.len());
            if attributes.is_some() {
                directory.attributes = attributes.cloned();
            }
            directory.is_late |= !is_new && directory.attributes.is_some();
            put(self.sink, Some(&names[depth]), What::Directory { opaque: false }, attributes.cloned())?;
        }
        if common == names.len()
            && let Some(directory) = self.directories.get_mut(names)
            && described.is_some()
        {
            *directory = Directory { attributes: described, is_late: true };
        }
        self.open = names.to_vec();
        Ok(())
    }

    /// Leaves the directories that `names` is not in, and returns how many remain open.
    fn leave_to(&mut self, names: &[OsString]) -> io::Result<usize> {
        let common = self.open.iter().zip(names).take_while(|(one, other)| one == other).count();
        for _ in common..self.open.len() {
            put(self.sink, None, What::Leave, None)?;
        }
        self.open.truncate(common);
        Ok(common)
    }

    /// Sends the attributes that have to be sent again, those of the deepest directories first, and leaves all.
    fn finish(mut self) -> io::Result<()> {
        let late = std::mem::take(&mut self.directories).into_iter().filter(|(_, directory)| directory.is_late);
        for (names, directory) in late.collect::<Vec<_>>().into_iter().rev() {
            self.leave_to(&[])?;
            self.enter(&names, directory.attributes)?;
        }
        self.leave_to(&[])?;
        put(self.sink, None, What::Leave, None)
    }
}

fn put(sink: &mut impl Sink, name: Option<&OsStr>, what: What, attributes: Option<Attributes>) -> io::Result<()> {
    sink.send(&Message::Entry(Box::new(upper::Entry { name: name.map(Text::from), what, attributes, number: None })))
}

/// The components of a path. A slash at its beginning does not count, as with tar(1).
fn names(path: &Path) -> anyhow::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name.to_owned()),
            Component::ParentDir => bail!("{path:?} in the archive: it leads out of it"),
            _ => {}
        }
    }
    Ok(names)
}

fn attributes(entry: &mut tar::Entry<'_, impl Read>) -> anyhow::Result<Attributes> {
    let mut xattrs = Vec::new();
    let mut mtime = (entry.header().mtime()?.cast_signed(), 0);
    for record in entry.pax_extensions()?.into_iter().flatten() {
        let record = record?;
        if let Some(name) = record.key_bytes().strip_prefix(XATTR) {
            xattrs.push((OsStr::from_bytes(name).into(), OsStr::from_bytes(record.value_bytes()).into()));
        } else if record.key_bytes().starts_with(b"GNU.sparse.") {
            bail!("a sparse file in the PAX format (make the archive with --format=gnu, or without -S)");
        } else if record.key_bytes() == b"mtime" {
            mtime = time(record.value().unwrap_or_default()).unwrap_or(mtime);
        }
    }
    let header = entry.header();
    let (uid, gid) = (Id::new(header.uid()?)?, Id::new(header.gid()?)?);
    Ok(Attributes { mode: header.mode()? & 0o7777, uid, gid, mtime, xattrs })
}

/// Parses a time of PAX: seconds, maybe with a fraction.
fn time(text: &str) -> Option<(i64, u32)> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let (seconds, nanoseconds): (i64, u32) = (seconds.parse().ok()?, digits.parse().ok()?);
    match nanoseconds {
        0 => Some((seconds, 0)),
        // The fraction of a time before 1970 counts away from it.
        _ if text.starts_with('-') => Some((seconds - 1, 1_000_000_000 - nanoseconds)),
        _ => Some((seconds, nanoseconds)),
    }
}

fn content<S: Sink>(sink: &mut S, from: &mut impl Read, size: u64) -> io::Result<()> {
    let mut block = vec![0u8; CHUNK];
    let mut left = size;
    while left > 0 {
        let wanted = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        let got = from.read(&mut block[..wanted])?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // The zeros of a sparse file become holes again.
        let is_hole = block[..got].iter().all(|&byte| byte == 0);
        sink.send(&if is_hole { Message::Hole(got as u64) } else { Message::Data(S::STREAM, block[..got].to_vec()) })?;
        left -= got as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use msb::wire::Stream;

    use super::*;

    struct Sent(Vec<String>);

    impl Sink for Sent {
        const STREAM: Stream = Stream::Stdin;

        fn send(&mut self, message: &Message) -> io::Result<()> {
            let Message::Entry(entry) = message else { return Ok(()) };
            let name = entry.name.clone().map(OsString::from).unwrap_or_default();
            self.0.push(match &entry.what {
                What::Leave => "..".into(),
                What::Directory { .. } if entry.attributes.is_some() => format!("{}/!", name.to_string_lossy()),
                What::Directory { .. } => format!("{}/", name.to_string_lossy()),
                _ => name.to_string_lossy().into_owned(),
            });
            Ok(())
        }
    }

    fn sent(paths: &[&str]) -> anyhow::Result<Vec<String>> {
        let mut builder = tar::Builder::new(Vec::new());
        for path in paths {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(if path.ends_with('/') { EntryType::Directory } else { EntryType::Regular });
            header.set_size(0);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            let name = &mut header.as_old_mut().name;
            name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_cksum();
            builder.append(&header, io::empty())?;
        }
        let mut sent = Sent(Vec::new());
        send(&mut sent, &builder.into_inner()?[..])?;
        Ok(sent.0)
    }

    #[test]
    fn paths_in_any_order_become_a_tree() {
        assert_eq!(sent(&["a", "d/", "d/b"]).unwrap(), ["./", "a", "d/!", "b", "..", ".."]);
        assert_eq!(sent(&["./", "./x/y/z", "x/w", "/v"]).unwrap(), ["./", "x/", "y/", "z", "..", "w", "..", "v", ".."]);
        assert_eq!(sent(&[]).unwrap(), ["./", ".."]);
    }

    /// What is sent has a `!` behind a directory that comes with its attributes.
    #[test]
    fn attributes_of_a_directory_are_sent_again_at_the_end_if_it_was_made_or_changed_out_of_order() {
        for (paths, expected) in [
            (&["d/a", "d/"][..], "./ d/ a .. d/! .. .."),
            (&["d/", "a", "d/b"], "./ d/! .. a d/ b .. d/! .. .."),
            (&["d/e/", "d/", "d/f"], "./ d/ e/! .. f .. d/! .. .."),
            (&["d/", "d/e/f", "g", "d/e/"], "./ d/! e/ f .. .. g d/ e/! .. .. d/ e/! .. .. d/! .. .."),
            (&["d/", "d/"], "./ d/! .. d/! .. .."),
            (&["d/e/f", "g", "d/e/h"], "./ d/ e/ f .. .. g d/ e/ h .. .. .."),
        ] {
            assert_eq!(sent(paths).unwrap().join(" "), expected, "{paths:?}");
        }
    }

    #[test]
    fn a_path_out_of_the_archive_is_refused() {
        for path in ["../x", "a/../../x", "a/.."] {
            assert!(sent(&[path]).unwrap_err().to_string().contains("leads out of it"), "{path}");
        }
    }

    #[test]
    fn times_have_fractions() {
        for (text, expected) in
            [("5", Some((5, 0))), ("5.25", Some((5, 250_000_000))), ("-1.5", Some((-2, 500_000_000))), ("x", None)]
        {
            assert_eq!(time(text), expected, "{text}");
        }
    }
}
