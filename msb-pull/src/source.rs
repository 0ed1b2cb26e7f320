//! Parses SOURCE, the argument of msb-pull. Pure: nothing here touches a file or the network.

use std::path::PathBuf;

use msb_registry::reference::{Reference, ShortName};

/// The suffixes of a tar file. A path with one is read as an archive.
const TAR_SUFFIXES: &[&str] =
    &[".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz", ".tar.zst", ".tzst"];

/// Another tool that keeps images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keeper {
    ContainersStorage,
    DockerDaemon,
}

impl Keeper {
    pub(crate) const ALL: [Self; 2] = [Self::ContainersStorage, Self::DockerDaemon];

    /// How a SOURCE of this kind begins; skopeo has the same.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Self::ContainersStorage => "containers-storage:",
            Self::DockerDaemon => "docker-daemon:",
        }
    }
}

/// Where an image comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A registry; and the name itself, if it is short.
    Registry(Reference, Option<ShortName>),
    /// The store of another tool, and the name of an image there.
    Foreign(Keeper, String),
    /// An OCI layout in a directory.
    OciDir(PathBuf, Option<String>),
    /// An OCI layout in a tar file.
    OciArchive(PathBuf, Option<String>),
    /// What `docker save` writes.
    DockerArchive(PathBuf, Option<String>),
    /// An archive of either kind or of a root file system, on stdin.
    Stdin(Option<String>),
    /// An archive of either kind or of a root file system, in a file.
    TarFile(PathBuf),
    /// A directory or a disk image of the caller's.
    Path(PathBuf),
}

impl Source {
    /// Reads a SOURCE.
    ///
    /// # Errors
    /// A message for anything else.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text == "-" {
            return Ok(Self::Stdin(None));
        }
        if let Some(tag) = text.strip_prefix("-:").filter(|tag| !tag.is_empty()) {
            return Ok(Self::Stdin(Some(tag.to_owned())));
        }
        // Before everything else: a file name may hold anything, so a path begins like one.
        if text.starts_with(['.', '/']) {
            let is_tar = TAR_SUFFIXES.iter().any(|suffix| text.ends_with(suffix));
            return Ok(if is_tar { Self::TarFile(text.into()) } else { Self::Path(text.into()) });
        }
        for (prefix, make) in [
            ("oci:", Self::OciDir as fn(PathBuf, Option<String>) -> Self),
            ("oci-archive:", Self::OciArchive),
            ("docker-archive:", Self::DockerArchive),
        ] {
            if let Some(rest) = text.strip_prefix(prefix) {
                // At the first colon, as skopeo does: a tag may hold more of them (docker-archive:f.tar:host:5000/a:b).
                let (path, tag) = rest.split_once(':').map_or((rest, None), |(path, tag)| (path, Some(tag)));
                if path.is_empty() || tag == Some("") {
                    return Err(format!("source {text:?}: {prefix} needs a path, and may have :TAG"));
                }
                return Ok(make(path.into(), tag.map(str::to_owned)));
            }
        }
        for keeper in Keeper::ALL {
            if let Some(name) = text.strip_prefix(keeper.prefix()) {
                if name.is_empty() {
                    return Err(format!("source {text:?}: {} needs the name of an image", keeper.prefix()));
                }
                return Ok(Self::Foreign(keeper, name.to_owned()));
            }
        }
        // skopeo's form leaves nothing open.
        let (name, is_docker) = text.strip_prefix("docker://").map_or((text, false), |name| (name, true));
        match Reference::parse(name) {
            Ok(reference) => Ok(Self::Registry(reference, ShortName::parse(name).filter(|_| !is_docker))),
            Err(error) => Err(format!("source {text:?}: {error} (write a directory or disk as ./NAME)")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    #[test]
    fn registry_names_are_completed_as_docker_does() {
        for (text, whole) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("alpine:3.20", "docker.io/library/alpine:3.20"),
            ("grafana/loki", "docker.io/grafana/loki:latest"),
            ("docker.io/alpine", "docker.io/library/alpine:latest"),
            ("index.docker.io/library/alpine", "docker.io/library/alpine:latest"),
            ("localhost/a", "localhost/a:latest"),
            ("127.0.0.1:5000/demo", "127.0.0.1:5000/demo:latest"),
            ("host:5000/a/b/c:v1", "host:5000/a/b/c:v1"),
            ("docker://alpine", "docker.io/library/alpine:latest"),
            ("docker://quay.io/a/b:v1", "quay.io/a/b:v1"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            ("[2001:db8::1]/a/b:v1", "[2001:db8::1]/a/b:v1"),
            ("a__b/c.d-e---f", "docker.io/a__b/c.d-e---f:latest"),
            (&format!("quay.io/a/b@sha256:{HEX}"), &format!("quay.io/a/b@sha256:{HEX}")),
            (&format!("quay.io/a/b:v1@sha256:{HEX}"), &format!("quay.io/a/b:v1@sha256:{HEX}")),
        ] {
            match Source::parse(text) {
                Ok(Source::Registry(reference, _)) => assert_eq!(reference.whole(), whole, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_short_name_is_left_to_registries_conf_unless_its_form_says_otherwise() {
        for (text, is_short) in
            [("alpine:3", true), ("a/b", true), ("quay.io/a/b", false), ("docker://alpine", false), ("h:5/a", false)]
        {
            match Source::parse(text) {
                Ok(Source::Registry(_, short)) => assert_eq!(short.is_some(), is_short, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn archives_and_paths_are_told_from_names() {
        let tag = |tag: &str| Some(tag.to_owned());
        for (text, source) in [
            ("-", Source::Stdin(None)),
            ("-:a:v1", Source::Stdin(tag("a:v1"))),
            ("./root.tar.gz", Source::TarFile("./root.tar.gz".into())),
            ("/srv/root.tzst", Source::TarFile("/srv/root.tzst".into())),
            ("./root", Source::Path("./root".into())),
            ("..", Source::Path("..".into())),
            ("/srv/a:b.qcow2", Source::Path("/srv/a:b.qcow2".into())),
            ("oci:dir", Source::OciDir("dir".into(), None)),
            ("oci:/srv/dir:v1", Source::OciDir("/srv/dir".into(), tag("v1"))),
            ("oci-archive:a.tar:v1", Source::OciArchive("a.tar".into(), tag("v1"))),
            ("docker-archive:a.tar:h:5/a:b", Source::DockerArchive("a.tar".into(), tag("h:5/a:b"))),
            ("docker-daemon:a:b", Source::Foreign(Keeper::DockerDaemon, "a:b".into())),
            ("containers-storage:localhost/a", Source::Foreign(Keeper::ContainersStorage, "localhost/a".into())),
        ] {
            assert_eq!(Source::parse(text).unwrap(), source, "{text}");
        }
    }

    #[test]
    fn a_malformed_source_is_refused() {
        for text in [
            "",
            "Upper",
            "a b",
            "oci:",
            "oci::v1",
            "oci:dir:",
            "name@sha256:12",
            "a//b",
            "a/-b",
            "a.._b",
            "a/b___c",
            "a:-v",
            "a:",
            "[::1/a",
            "[::g]:5/a",
            "host:x/a",
            "-h.com/a",
            "oci-archive:",
            "docker://",
            "docker-daemon:",
            "containers-storage:",
            "-:",
        ] {
            assert!(Source::parse(text).is_err(), "{text:?}");
        }
    }
}
