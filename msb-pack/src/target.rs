//! Parses TARGET, the argument of msb-pack. Pure.

use std::path::PathBuf;
use std::str::FromStr;

use msb_registry::reference::Reference;

/// What a TARGET has to be.
const EXPECTED: &str = "FORM:PATH is expected (docker://NAME:TAG, oci:DIR, oci-archive:FILE, docker-archive:FILE, tar:FILE, \
                        layer:FILE, dir:DIR, raw:FILE, qcow2:FILE or erofs:FILE)";

/// Where the result goes, and in which form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A repository of a registry, and the tag.
    Registry(Reference),
    /// An OCI layout in a directory, and the tag.
    OciDir(PathBuf, Option<String>),
    /// An OCI layout in a tar file, and the tag.
    OciArchive(PathBuf, Option<String>),
    /// What `docker load` reads, and the name.
    DockerArchive(PathBuf, Option<String>),
    /// The merged root as a tar file; `None` is stdout.
    Tar(Option<PathBuf>),
    /// The upper as a layer; `None` is stdout.
    Layer(Option<PathBuf>),
    /// The merged root as a directory.
    Dir(PathBuf),
    /// The merged root as a disk.
    Disk(Disk, PathBuf),
}

/// The form of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disk {
    /// ext4 in a sparse file.
    Raw,
    /// ext4 in QEMU's format.
    Qcow2,
    /// EROFS.
    Erofs,
}

impl Target {
    /// Whether it is an image, with documents.
    pub(crate) fn is_image(&self) -> bool {
        matches!(self, Self::Registry(_) | Self::OciDir(..) | Self::OciArchive(..) | Self::DockerArchive(..))
    }

    /// Whether it is a disk, which the kernel's overlayfs merges the layers for.
    pub(crate) fn is_disk(&self) -> bool {
        matches!(self, Self::Disk(..))
    }

    /// Whether it goes to stdout.
    pub(crate) fn is_stdout(&self) -> bool {
        matches!(self, Self::Tar(None) | Self::Layer(None))
    }

    /// The file or directory.
    pub(crate) fn path(&self) -> Option<&PathBuf> {
        match self {
            Self::OciDir(path, _) | Self::OciArchive(path, _) | Self::DockerArchive(path, _) => Some(path),
            Self::Tar(path) | Self::Layer(path) => path.as_ref(),
            Self::Dir(path) | Self::Disk(_, path) => Some(path),
            Self::Registry(_) => None,
        }
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(name) = text.strip_prefix("docker://") {
            // Otherwise HOST:PORT would be parsed as an official image of Docker Hub with a tag.
            if !name.is_empty() && !name.contains('/') {
                return Err(format!("{name:?} has no repository (docker://HOST[:PORT]/REPOSITORY[:TAG] is expected)"));
            }
            let reference = Reference::parse(name)?;
            if reference.digest.is_some() {
                return Err("a digest cannot be pushed to (name a tag)".into());
            }
            return Ok(Self::Registry(reference));
        }
        let (form, rest) = text.split_once(':').unwrap_or((text, ""));
        // At the first colon, as msb-pull reads it: a tag may hold more of them.
        let (path, tag) = rest.split_once(':').map_or((rest, None), |(path, tag)| (path, Some(tag.to_owned())));
        if rest.is_empty() || path.is_empty() || tag.as_deref() == Some("") {
            return Err(EXPECTED.into());
        }
        let stream = || Some(rest).filter(|rest| *rest != "-").map(PathBuf::from);
        Ok(match form {
            "oci" => Self::OciDir(path.into(), tag),
            "oci-archive" => Self::OciArchive(path.into(), tag),
            "docker-archive" => Self::DockerArchive(path.into(), tag),
            "tar" => Self::Tar(stream()),
            "layer" => Self::Layer(stream()),
            "dir" => Self::Dir(rest.into()),
            "raw" => Self::Disk(Disk::Raw, rest.into()),
            "qcow2" => Self::Disk(Disk::Qcow2, rest.into()),
            "erofs" => Self::Disk(Disk::Erofs, rest.into()),
            _ => return Err(format!("unknown form {form:?}: {EXPECTED}")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_form_and_a_place() {
        let tag = |tag: &str| Some(tag.to_owned());
        for (text, target) in [
            ("oci:out", Target::OciDir("out".into(), None)),
            ("oci:/srv/out:v1", Target::OciDir("/srv/out".into(), tag("v1"))),
            ("oci-archive:a.tar:v1", Target::OciArchive("a.tar".into(), tag("v1"))),
            ("docker-archive:a.tar:h:5/a:b", Target::DockerArchive("a.tar".into(), tag("h:5/a:b"))),
            ("tar:-", Target::Tar(None)),
            ("tar:a:b.tar", Target::Tar(Some("a:b.tar".into()))),
            ("layer:l.tar.gz", Target::Layer(Some("l.tar.gz".into()))),
            ("dir:d", Target::Dir("d".into())),
            ("raw:d", Target::Disk(Disk::Raw, "d".into())),
            ("qcow2:d", Target::Disk(Disk::Qcow2, "d".into())),
            ("erofs:d", Target::Disk(Disk::Erofs, "d".into())),
        ] {
            assert_eq!(text.parse(), Ok(target), "{text}");
        }
        let pushed = Target::Registry(Reference::parse("localhost:5000/a:v1").unwrap());
        assert_eq!("docker://localhost:5000/a:v1".parse(), Ok(pushed));
        let pushed = Target::Registry(Reference::parse("user/a").unwrap());
        assert_eq!("docker://user/a".parse(), Ok(pushed));
        for text in ["", "docker://", "docker:a", "out", "oci:", "oci::v1", "oci:d:", "tar:", "zip:x"] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
        for text in ["docker://localhost:5000", "docker://[::1]:5000", "docker://alpine"] {
            assert!(text.parse::<Target>().unwrap_err().contains("has no repository"), "{text}");
        }
    }
}
