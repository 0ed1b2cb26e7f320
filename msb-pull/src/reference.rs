//! What a SOURCE means. Pure: nothing here touches a file or the network.

use std::path::PathBuf;

use oci_distribution::Reference;

/// Where an image comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A registry.
    Registry(Reference),
    /// An OCI layout in a directory.
    OciDir(PathBuf, Option<String>),
    /// An OCI layout in a tar file.
    OciArchive(PathBuf, Option<String>),
    /// What `docker save` writes.
    DockerArchive(PathBuf, Option<String>),
    /// An archive of either kind, on stdin.
    Stdin,
    /// A directory or a disk image of the caller's.
    Path(PathBuf),
}

impl Source {
    /// Reads a SOURCE.
    ///
    /// # Errors
    /// Words for what is no source.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text == "-" {
            return Ok(Self::Stdin);
        }
        // Before everything else: a file name may hold anything, so a path begins like one.
        if text.starts_with(['.', '/']) {
            return Ok(Self::Path(text.into()));
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
                    return Err(format!("source {text:?}: {prefix} wants a path and perhaps :TAG"));
                }
                return Ok(make(path.into(), tag.map(str::to_owned)));
            }
        }
        match text.parse::<Reference>() {
            Ok(reference) if reference.digest().is_none_or(|digest| digest.starts_with("sha256:")) => {
                Ok(Self::Registry(reference))
            }
            Ok(_) => Err(format!("source {text:?}: only sha256 digests are supported")),
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
            (&format!("quay.io/a/b@sha256:{HEX}"), &format!("quay.io/a/b@sha256:{HEX}")),
            (&format!("quay.io/a/b:v1@sha256:{HEX}"), &format!("quay.io/a/b:v1@sha256:{HEX}")),
        ] {
            match Source::parse(text) {
                Ok(Source::Registry(reference)) => assert_eq!(reference.whole(), whole, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn archives_and_paths_are_told_from_names() {
        let tag = |tag: &str| Some(tag.to_owned());
        for (text, source) in [
            ("-", Source::Stdin),
            ("./root", Source::Path("./root".into())),
            ("..", Source::Path("..".into())),
            ("/srv/a:b.qcow2", Source::Path("/srv/a:b.qcow2".into())),
            ("oci:dir", Source::OciDir("dir".into(), None)),
            ("oci:/srv/dir:v1", Source::OciDir("/srv/dir".into(), tag("v1"))),
            ("oci-archive:a.tar:v1", Source::OciArchive("a.tar".into(), tag("v1"))),
            ("docker-archive:a.tar:h:5/a:b", Source::DockerArchive("a.tar".into(), tag("h:5/a:b"))),
        ] {
            assert_eq!(Source::parse(text).unwrap(), source, "{text}");
        }
    }

    #[test]
    fn what_is_no_source_is_refused() {
        for text in [
            "",
            "Upper",
            "a b",
            "oci:",
            "oci::v1",
            "oci:dir:",
            "name@sha256:12",
            "a//b",
            &format!("a@sha512:{HEX}{HEX}"),
        ] {
            assert!(Source::parse(text).is_err(), "{text:?}");
        }
    }
}
