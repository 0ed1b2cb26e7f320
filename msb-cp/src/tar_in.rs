//! A tar archive as the source of a copy.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, bail, ensure};
use msb::transfer::MAX_DEPTH;
use msb::transfer::send::{CHUNK, Sink};
use msb::wire::Message;
use msb::wire::exec::Text;
use msb::wire::upper::{self, Attributes, What};
use msb_archive::{Kind, Metadata, Region, Skip, Tape, truncated};

/// How much is remembered of the directories of an archive, in bytes.
const MAX_REMEMBERED: usize = 64 << 20;
/// What compressed streams begin with.
const COMPRESSED: &[(&[u8], &str)] =
    &[(b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd")];

/// Sends what an archive contains. An archive may name its files in any order, and leave directories out.
///
/// # Errors
/// An archive that cannot be read, or with a path that leads out of it; those of the sink.
pub(crate) fn send<S: Sink>(sink: &mut S, mut archive: impl BufRead) -> anyhow::Result<()> {
    let start = archive.fill_buf()?;
    if let Some((_, tool)) = COMPRESSED.iter().find(|(magic, _)| start.starts_with(magic)) {
        bail!("the archive on stdin is compressed (decompress it first, with {tool} -dc)");
    }
    let mut tape = Tape::new(Stream(archive));
    put(sink, Some(OsStr::new(".")), What::Directory { opaque: false }, None)?;
    let mut tree = Tree { sink, open: Vec::new(), directories: BTreeMap::new(), remembered: 0 };
    while let Some(member) = tape.next_member().context("the archive on stdin")? {
        let path = PathBuf::from(OsString::from_vec(member.path));
        let mut names = names(&path)?;
        let attributes = attributes(member.metadata);
        if member.kind == Kind::Directory {
            tree.enter(&names, Some(attributes))?;
            continue;
        }
        // The archive's own root.
        let Some(last) = names.pop() else { continue };
        tree.enter(&names, None)?;
        let link = OsStr::from_bytes(&member.link);
        let what = match member.kind {
            Kind::Symlink => What::Symlink { target: link.into() },
            Kind::Hardlink => {
                let target: PathBuf = self::names(Path::new(link))?.iter().collect();
                What::Hardlink { path: target.as_os_str().into() }
            }
            Kind::CharDevice | Kind::BlockDevice => {
                let (major, minor) = member.device;
                What::Device { block: member.kind == Kind::BlockDevice, major, minor }
            }
            Kind::Fifo => What::Fifo,
            Kind::File | Kind::Directory => What::File { size: member.size },
        };
        put(tree.sink, Some(&last), what.clone(), Some(attributes))?;
        if let What::File { size } = what {
            let mut end = 0;
            let data = || -> anyhow::Result<()> {
                for region in member.regions.unwrap_or_else(|| vec![Region { offset: 0, length: size }]) {
                    hole(tree.sink, region.offset - end)?;
                    content(tree.sink, &mut tape, region.length)?;
                    end = region.offset + region.length;
                }
                Ok(hole(tree.sink, size - end)?)
            };
            data().with_context(|| format!("{path:?} in the archive"))?;
        }
    }
    tree.finish()?;
    // A program that writes the padding of an archive into a pipe must not get SIGPIPE.
    io::copy(&mut tape.into_inner().0, &mut io::sink())?;
    Ok(())
}

/// A stream, in which what is skipped has to be read.
struct Stream<R>(R);

impl<R: Read> Read for Stream<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }
}

impl<R: Read> Skip for Stream<R> {
    fn skip(&mut self, length: u64) -> io::Result<()> {
        let skipped = io::copy(&mut self.0.by_ref().take(length), &mut io::sink())?;
        if skipped == length { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

/// The directories that were sent.
struct Tree<'a, S> {
    sink: &'a mut S,
    /// The names of those that are open, from the archive's root.
    open: Vec<OsString>,
    /// Those that may come again, by path, as long as [`MAX_REMEMBERED`] lasts. Of the others the modification time can be lost, and all
    /// attributes of one that the archive describes after a file in it.
    directories: BTreeMap<PathBuf, Directory>,
    remembered: usize,
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
            let attributes = described.as_ref().filter(|_| depth + 1 == names.len());
            self.remember(names[..=depth].iter().collect(), attributes);
            put(self.sink, Some(&names[depth]), What::Directory { opaque: false }, attributes.cloned())?;
        }
        if common == names.len() && !names.is_empty() && described.is_some() {
            self.remember(names.iter().collect(), described.as_ref());
        }
        self.open = names.to_vec();
        Ok(())
    }

    fn remember(&mut self, path: PathBuf, described: Option<&Attributes>) {
        let before = self.directories.remove(&path);
        self.remembered -= before.as_ref().map_or(0, |before| size(&path, before));
        let is_again = before.is_some();
        let Directory { attributes, is_late } = before.unwrap_or_default();
        let attributes = described.cloned().or(attributes);
        let directory = Directory { is_late: is_late || (is_again && attributes.is_some()), attributes };
        let size = size(&path, &directory);
        if self.remembered + size <= MAX_REMEMBERED {
            self.remembered += size;
            self.directories.insert(path, directory);
        }
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
        for (path, directory) in late.collect::<Vec<_>>().into_iter().rev() {
            let names: Vec<_> = path.iter().map(OsStr::to_owned).collect();
            self.leave_to(&[])?;
            self.enter(&names, directory.attributes)?;
        }
        self.leave_to(&[])?;
        put(self.sink, None, What::Leave, None)
    }
}

/// About how much memory is needed to remember a directory, in bytes.
fn size(path: &Path, directory: &Directory) -> usize {
    let xattrs = directory.attributes.iter().flat_map(|attributes| &attributes.xattrs);
    let length = |text: &Text| match text {
        Text::Utf8(text) => text.len(),
        Text::Bytes(bytes) => bytes.len(),
    };
    let xattrs = xattrs.map(|(name, value)| size_of::<(Text, Text)>() + length(name) + length(value)).sum::<usize>();
    path.as_os_str().len() + size_of::<(PathBuf, Directory)>() + xattrs
}

fn put(sink: &mut impl Sink, name: Option<&OsStr>, what: What, attributes: Option<Attributes>) -> io::Result<()> {
    sink.send(&Message::Entry(Box::new(upper::Entry { name: name.map(Text::from), what, attributes, number: None })))
}

/// The components of a path. A slash at its beginning does not count, as with tar(1).
fn names(path: &Path) -> anyhow::Result<Vec<OsString>> {
    let mut names = Vec::new();
    let depth = path.components().count();
    let start = || path.to_string_lossy().chars().take(80).collect::<String>();
    ensure!(depth <= MAX_DEPTH, "{:?}… in the archive: deeper than {MAX_DEPTH} directories", start());
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name.to_owned()),
            Component::ParentDir => bail!("{path:?} in the archive: it leads out of it"),
            _ => {}
        }
    }
    Ok(names)
}

fn attributes(metadata: Metadata) -> Attributes {
    let Metadata { mode, uid, gid, mtime, xattrs } = metadata;
    let text = |bytes: Vec<u8>| Text::from(OsStr::from_bytes(&bytes));
    let xattrs = xattrs.into_iter().map(|(name, value)| (text(name), text(value))).collect();
    Attributes { mode, uid, gid, mtime: (mtime.tv_sec, u32::try_from(mtime.tv_nsec).unwrap_or(0)), xattrs }
}

fn content<S: Sink, R: Skip>(sink: &mut S, tape: &mut Tape<R>, length: u64) -> anyhow::Result<()> {
    let mut block = vec![0u8; CHUNK];
    let mut left = length;
    while left > 0 {
        let wanted = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        let got = tape.data().0.read(&mut block[..wanted])?;
        if got == 0 {
            return Err(truncated(io::ErrorKind::UnexpectedEof.into()));
        }
        tape.consumed(got as u64);
        left -= got as u64;
        // Zeros become holes again.
        if block[..got].iter().all(|&byte| byte == 0) {
            hole(sink, got as u64)?;
        } else {
            sink.send(&Message::Data(S::STREAM, block[..got].to_vec()))?;
        }
    }
    Ok(())
}

fn hole(sink: &mut impl Sink, length: u64) -> io::Result<()> {
    if length > 0 { sink.send(&Message::Hole(length)) } else { Ok(()) }
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
            header.set_entry_type(if path.ends_with('/') {
                tar::EntryType::Directory
            } else {
                tar::EntryType::Regular
            });
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
}
