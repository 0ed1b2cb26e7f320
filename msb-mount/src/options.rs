//! The command lines of mount(8) and of fuse-overlayfs, which name the layers in mount options and have no record.
//!
//! ```text
//! msb-mount -o lowerdir=A:B,upperdir=U,workdir=W TARGET
//! mount.fuse.msb SOURCE TARGET [-sfnv] [-o OPTIONS]
//! ```

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use msb::record::{Record, Rootfs, Upper};

/// The name under which mount(8) starts the tool for the type `fuse.msb`.
const HELPER: &[u8] = b"mount.fuse.msb";

/// Options with a meaning for mount(8) or another overlayfs, and none here.
const IGNORED: &[&str] = &[
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "nofail",
    "_netdev",
    "exec",
    "async",
    "atime",
    "diratime",
    "relatime",
    "noatime",
    "nodiratime",
    "lazytime",
    "volatile",
    "fast_ino",
    "noacl",
    "static_nlink",
    "squash_to_root",
    "userxattr",
    "allow_other",
    "default_permissions",
    "fsname",
    "subtype",
    "context",
    "xino",
    "index",
    "metacopy",
    "nfs_export",
    "uuid",
    "timeout",
    "max_threads",
    "threaded",
    "fsync",
    "xattr_permissions",
    "verity",
];

/// What mount options ask for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Top first.
    lower: Vec<PathBuf>,
    upper: Option<PathBuf>,
    work: Option<PathBuf>,
    /// The flags of the tool that say the same as an option.
    pub(crate) flags: Vec<&'static str>,
    /// Where to mount.
    pub(crate) target: PathBuf,
}

impl Options {
    /// Reads a command line, with the name of the tool first; `None` if it is not one of these.
    ///
    /// # Errors
    /// A message for the caller.
    pub(crate) fn of(line: &[OsString]) -> anyhow::Result<Option<Self>> {
        let (name, arguments) = line.split_first().map_or((OsStr::new(""), line), |(name, rest)| (name, rest));
        let is_helper = Path::new(name).file_name().is_some_and(|name| name.as_bytes() == HELPER);
        let until = arguments.iter().position(|argument| argument == "--").unwrap_or(arguments.len());
        let has_layers = arguments.get(..until).unwrap_or_default().iter().any(|argument| {
            let text = argument.as_bytes();
            let text = text.strip_prefix(b"-o").unwrap_or(text);
            split(text, b',').iter().any(|option| option.starts_with(b"lowerdir="))
        });
        if !is_helper && !has_layers {
            return Ok(None);
        }
        // As for every file system of mount(8), set-id bits and devices work unless they are refused. podman unpacks layers for
        // fuse-overlayfs, which reads OCI's whiteouts.
        let mut options = Self { flags: vec!["--oci-whiteouts", "--dev", "--suid"], ..Self::default() };
        let mut operands = Vec::new();
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            match argument.as_bytes() {
                b"-o" => options.read(rest.next().context("-o needs options")?)?,
                b"-t" => _ = rest.next(),
                b"-s" | b"-f" | b"-n" | b"-v" | b"--" => {}
                [b'-', b'o', joined @ ..] if !joined.is_empty() => options.read(OsStr::from_bytes(joined))?,
                [b'-', ..] => bail!(
                    "{argument:?}: not a flag of this form (msb-mount -o lowerdir=...,upperdir=...,workdir=... TARGET)"
                ),
                _ => operands.push(argument),
            }
        }
        // mount(8) gives a source, which may be anything.
        options.target = match operands[..] {
            [target] | [_, target] => target.into(),
            _ => bail!("a mount has one target (msb-mount -o lowerdir=... TARGET)"),
        };
        if options.lower.is_empty() {
            bail!("option lowerdir is missing (give the layers, the top one first: -o lowerdir=DIR:DIR)");
        }
        if options.upper.is_some() != options.work.is_some() {
            bail!("options upperdir and workdir go together (give both, or neither for a read-only mount)");
        }
        if options.upper.is_none() {
            options.set("--ro", true);
        }
        Ok(Some(options))
    }

    fn set(&mut self, flag: &'static str, is_set: bool) {
        self.flags.retain(|other| *other != flag);
        self.flags.extend(is_set.then_some(flag));
    }

    fn read(&mut self, text: &OsStr) -> anyhow::Result<()> {
        for option in split(text.as_bytes(), b',') {
            let (name, value) = match option.iter().position(|&byte| byte == b'=') {
                Some(at) => (&option[..at], &option[at + 1..]),
                None => (&option[..], &[][..]),
            };
            let path = || absolute(&unescape(value));
            match name {
                b"lowerdir" => {
                    let parts = split(value, b':');
                    self.lower = parts.iter().map(|part| absolute(&unescape(part))).collect::<anyhow::Result<_>>()?;
                }
                b"upperdir" => self.upper = Some(path()?),
                b"workdir" => self.work = Some(path()?),
                b"ro" => self.set("--ro", true),
                b"rw" => self.set("--ro", false),
                b"dev" => self.set("--dev", true),
                b"nodev" => self.set("--dev", false),
                b"suid" => self.set("--suid", true),
                b"nosuid" => self.set("--suid", false),
                b"redirect_dir" => self.set("--redirect-dir", value == b"on"),
                b"allow_root" => self.set("--allow=root", true),
                b"" => {}
                name if name.starts_with(b"x-") || name.starts_with(b"comment") => {}
                name if IGNORED.iter().any(|ignored| ignored.as_bytes() == name) => {}
                name => bail!("mount option {:?} is not known (leave it out)", OsStr::from_bytes(name)),
            }
        }
        Ok(())
    }

    /// The layers as a record.
    ///
    /// # Errors
    /// A path that is not UTF-8.
    pub(crate) fn record(&self) -> anyhow::Result<Record> {
        for path in self.lower.iter().chain(&self.upper).chain(&self.work) {
            msb::record::path::require_utf8(path)?;
        }
        let mut record = Record::new();
        record.rootfs = Some(Rootfs::layers(self.lower.clone()));
        if let (Some(upper), Some(work)) = (&self.upper, &self.work) {
            record.upper = Some(Upper::new(upper.clone(), work.clone()));
        }
        Ok(record)
    }
}

/// The parts of a list, whose separator may be escaped with a backslash.
fn split(text: &[u8], separator: u8) -> Vec<Vec<u8>> {
    let mut parts = vec![Vec::new()];
    let mut is_escaped = false;
    for &byte in text {
        if byte == separator && !is_escaped {
            parts.push(Vec::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(byte);
        }
        is_escaped = byte == b'\\' && !is_escaped;
    }
    parts
}

fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    let mut bytes = text.iter();
    while let Some(&byte) = bytes.next() {
        plain.push(if byte == b'\\' { bytes.next().copied().unwrap_or(byte) } else { byte });
    }
    plain
}

fn absolute(path: &[u8]) -> anyhow::Result<PathBuf> {
    let path = PathBuf::from(OsString::from_vec(path.to_vec()));
    std::path::absolute(&path).with_context(|| format!("{path:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &[&str]) -> anyhow::Result<Option<Options>> {
        Options::of(&line.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn other_command_lines_are_left_alone() {
        for line in [
            &["msb-mount"][..],
            &["msb-mount", "-o", "out.json", "root"],
            &["msb-mount", "-r", "x", "--", "mount", "-olowerdir=a"],
        ] {
            assert_eq!(read(line).unwrap(), None, "{line:?}");
        }
    }

    #[test]
    fn layers_are_read_with_escapes() {
        let layers =
            read(&["msb-mount", "-o", r"lowerdir=/a\:b:/c\,d:/e\\,upperdir=/u,workdir=/w", "-o", "nodev,suid", "/t"]);
        let layers = layers.unwrap().unwrap();
        assert_eq!(layers.lower, ["/a:b", "/c,d", r"/e\"].map(PathBuf::from));
        assert_eq!((layers.upper.as_deref(), layers.work.as_deref()), (Some(Path::new("/u")), Some(Path::new("/w"))));
        assert_eq!(layers.flags, ["--oci-whiteouts", "--suid"]);
        let redirecting = read(&["msb-mount", "-olowerdir=x,redirect_dir=on,ro", "t"]).unwrap().unwrap();
        assert_eq!(redirecting.flags, ["--oci-whiteouts", "--dev", "--suid", "--redirect-dir", "--ro"]);
        let last = read(&["msb-mount", "-olowerdir=x,redirect_dir=on,redirect_dir=nofollow", "t"]).unwrap().unwrap();
        assert!(!last.flags.contains(&"--redirect-dir"));
        assert_eq!(layers.target, Path::new("/t"));
        let here = std::env::current_dir().unwrap();
        assert_eq!(read(&["msb-mount", "-olowerdir=x", "t"]).unwrap().unwrap().lower, [here.join("x")]);
    }

    #[test]
    fn the_helper_of_mount_takes_a_source_and_its_flags() {
        let line = ["/sbin/mount.fuse.msb", "msb", "/t", "-s", "-n", "-o", "rw,nofail,x-systemd.automount,lowerdir=/a"];
        let layers = read(&line).unwrap().unwrap();
        assert_eq!(
            (layers.target.as_path(), &layers.flags[..]),
            (Path::new("/t"), &["--oci-whiteouts", "--dev", "--suid", "--ro"][..])
        );
    }

    #[test]
    fn what_makes_no_mount_is_refused() {
        for (line, expected) in [
            (&["mount.fuse.msb", "msb", "/t"][..], "lowerdir is missing"),
            (&["msb-mount", "-o", "lowerdir=/a,upperdir=/u", "/t"], "go together"),
            (&["msb-mount", "-o", "lowerdir=/a,nonsense=1", "/t"], "nonsense"),
            (&["msb-mount", "-o", "lowerdir=/a"], "one target"),
            (&["msb-mount", "-o", "lowerdir=/a", "--frob", "/t"], "--frob"),
        ] {
            let error = read(line).unwrap_err().to_string();
            assert!(error.contains(expected), "{line:?}: {error}");
        }
    }
}
