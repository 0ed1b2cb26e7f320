//! Parses SOURCE, the argument of msb-pull. Pure: nothing here touches a file or the network.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;

use crate::digest::Digest;

/// docker's own registry, which has several names and is the default.
const DOCKER: &str = "docker.io";
const DOCKER_ALIASES: &[&str] = &["index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"];
/// The suffixes of a tar file that a root file system comes in.
const TAR_SUFFIXES: &[&str] =
    &[".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz", ".tar.zst", ".tzst"];

/// The name of an image in a registry, completed as docker completes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    /// `docker.io`, `host:5000`, `[::1]:5000`.
    pub(crate) registry: String,
    pub(crate) repository: String,
    pub(crate) tag: Option<String>,
    pub(crate) digest: Option<Digest>,
}

/// A name without a registry, which registries.conf may complete otherwise than docker does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ShortName {
    pub(crate) repository: String,
    /// `:TAG`, `@DIGEST`, both, or empty.
    pub(crate) suffix: String,
}

impl ShortName {
    /// The parts of a well-formed name; `None` if a registry is in it.
    fn parse(text: &str) -> Option<Self> {
        if text.split_once('/').is_some_and(|(first, _)| is_registry(first)) {
            return None;
        }
        let (repository, suffix) = text.split_at(text.find([':', '@']).unwrap_or(text.len()));
        Some(Self { repository: repository.to_owned(), suffix: suffix.to_owned() })
    }
}

impl Reference {
    /// As [`Self::parse`], for a name that has to have a registry.
    ///
    /// # Errors
    /// A message for anything else.
    pub(crate) fn parse_full(text: &str) -> Result<Self, String> {
        match ShortName::parse(text) {
            Some(_) => Err(format!("{text:?} names no registry")),
            None => Self::parse(text),
        }
    }

    /// Reads `[REGISTRY/]REPOSITORY[:TAG][@DIGEST]` (the distribution project's `reference` grammar).
    ///
    /// # Errors
    /// A message for anything else.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(Digest::parse(digest).map_err(|error| error.to_string())?)),
            None => (text, None),
        };
        let (registry, rest) = match name.split_once('/') {
            Some((first, rest)) if is_registry(first) => (first, rest),
            _ => (DOCKER, name),
        };
        let (repository, tag) = rest.split_once(':').map_or((rest, None), |(name, tag)| (name, Some(tag)));
        if !is_host(registry) {
            return Err(format!("not a registry: {registry:?}"));
        }
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            return Err(format!("not a tag: {tag:?}"));
        }
        if repository.chars().any(|char| char.is_ascii_uppercase()) {
            return Err("a repository's name has no upper case letters".into());
        }
        if repository.len() > 255 || !repository.split('/').all(is_component) {
            return Err(format!("not a repository: {repository:?}"));
        }
        let registry = if DOCKER_ALIASES.contains(&registry) { DOCKER } else { registry };
        let implied = if registry == DOCKER && !repository.contains('/') { "library/" } else { "" };
        let tag = tag.or(if digest.is_none() { Some("latest") } else { None });
        Ok(Self {
            registry: registry.to_owned(),
            repository: format!("{implied}{repository}"),
            tag: tag.map(str::to_owned),
            digest,
        })
    }

    /// The whole name.
    pub(crate) fn whole(&self) -> String {
        self.to_string()
    }

    /// The host, perhaps with a port, that serves the registry's API.
    pub(crate) fn host(&self) -> &str {
        if self.registry == DOCKER { "registry-1.docker.io" } else { &self.registry }
    }

    /// Whether the registry is on this host.
    pub(crate) fn is_loopback(&self) -> bool {
        let host = match self.registry.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, _)) => address,
            None => self.registry.rsplit_once(':').map_or(self.registry.as_str(), |(host, _)| host),
        };
        host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest.as_ref().map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

/// Whether the first component of a name is a registry: docker tells it by a dot, a port or brackets.
fn is_registry(first: &str) -> bool {
    first.contains(['.', ':', '[']) || first == "localhost" || first.chars().any(|char| char.is_ascii_uppercase())
}

fn is_host(text: &str) -> bool {
    let is_port = |port: &str| port.parse::<u16>().is_ok() && port.bytes().all(|byte| byte.is_ascii_digit());
    if let Some((address, port)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        let is_port = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        return is_port && address.parse::<Ipv6Addr>().is_ok();
    }
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let is_label = |label: &str| {
        let is_inner = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
        !label.is_empty() && is_inner && !label.starts_with('-') && !label.ends_with('-')
    };
    host.split('.').all(is_label) && port.is_none_or(is_port)
}

fn is_tag(tag: &str) -> bool {
    let is_inner = tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
    !tag.is_empty() && tag.len() <= 128 && is_inner && !tag.starts_with(['.', '-'])
}

/// Lower case letters and digits, with separators between them: one dot, one or two underscores, any number of dashes.
fn is_component(component: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let separators = component.split(|char: char| is_word(char as u8) && char.is_ascii());
    let is_separator = |text: &str| matches!(text, "" | "." | "_" | "__") || text.bytes().all(|byte| byte == b'-');
    let ends_in_word = |byte: Option<&u8>| byte.copied().is_some_and(is_word);
    ends_in_word(component.as_bytes().first())
        && ends_in_word(component.as_bytes().last())
        && separators.into_iter().all(is_separator)
}

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
    /// A root file system in a tar file.
    RootArchive(PathBuf),
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
            return Ok(if is_tar { Self::RootArchive(text.into()) } else { Self::Path(text.into()) });
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
    fn archives_and_paths_are_told_from_names() {
        let tag = |tag: &str| Some(tag.to_owned());
        for (text, source) in [
            ("-", Source::Stdin(None)),
            ("-:a:v1", Source::Stdin(tag("a:v1"))),
            ("./root.tar.gz", Source::RootArchive("./root.tar.gz".into())),
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
        ] {
            assert!(Source::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_registry_on_this_host_is_told_from_others() {
        for (name, is_loopback) in [
            ("localhost/a", true),
            ("localhost:5000/a", true),
            ("127.1.2.3/a", true),
            ("[::1]:5000/a", true),
            ("127.0.0.1.example.com/a", false),
            ("[2001:db8::1]/a", false),
            ("a", false),
        ] {
            assert_eq!(Reference::parse(name).unwrap().is_loopback(), is_loopback, "{name}");
        }
    }
}
