//! The name of an image in a registry. Pure: nothing here touches a file or the network.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use crate::digest::Digest;

/// docker's own registry, which has several names and is the default.
const DOCKER: &str = "docker.io";
const DOCKER_ALIASES: &[&str] = &["index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"];

/// The name of an image in a registry, completed as docker completes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// `docker.io`, `host:5000`, `[::1]:5000`.
    pub registry: String,
    /// `library/alpine`.
    pub repository: String,
    /// `latest`, unless there is a digest.
    pub tag: Option<String>,
    /// The digest of an index or a manifest.
    pub digest: Option<Digest>,
}

/// A name without a registry, which registries.conf may complete otherwise than docker does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShortName {
    /// The name without tag and digest.
    pub repository: String,
    /// `:TAG`, `@DIGEST`, both, or empty.
    pub suffix: String,
}

impl ShortName {
    /// The parts of a well-formed name; `None` if a registry is in it.
    pub fn parse(text: &str) -> Option<Self> {
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
    pub fn parse_full(text: &str) -> Result<Self, String> {
        match ShortName::parse(text) {
            Some(_) => Err(format!("{text:?} names no registry")),
            None => Self::parse(text),
        }
    }

    /// Reads `[REGISTRY/]REPOSITORY[:TAG][@DIGEST]` (the distribution project's `reference` grammar).
    ///
    /// # Errors
    /// A message for anything else.
    pub fn parse(text: &str) -> Result<Self, String> {
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
    pub fn whole(&self) -> String {
        self.to_string()
    }

    /// The host, perhaps with a port, that serves the registry's API.
    pub fn host(&self) -> &str {
        if self.registry == DOCKER { "registry-1.docker.io" } else { &self.registry }
    }

    /// Whether the registry is on this host.
    pub fn is_loopback(&self) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

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

    const HEX: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    #[test]
    fn a_name_is_completed_as_docker_completes_it() {
        for (text, whole, host) in [
            ("a", "docker.io/library/a:latest", "registry-1.docker.io"),
            ("b/a:v1", "docker.io/b/a:v1", "registry-1.docker.io"),
            ("registry.hub.docker.com/a", "docker.io/library/a:latest", "registry-1.docker.io"),
            ("localhost/a", "localhost/a:latest", "localhost"),
            ("Host/a", "Host/a:latest", "Host"),
            ("h:5000/a/b:v1", "h:5000/a/b:v1", "h:5000"),
            ("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000"),
            (&format!("h.x/a@sha256:{HEX}"), &format!("h.x/a@sha256:{HEX}"), "h.x"),
            (&format!("h.x/a:v1@sha256:{HEX}"), &format!("h.x/a:v1@sha256:{HEX}"), "h.x"),
        ] {
            let reference = Reference::parse(text).unwrap();
            assert_eq!((reference.whole(), reference.host()), (whole.to_owned(), host), "{text}");
        }
    }

    #[test]
    fn each_part_of_a_name_has_its_grammar() {
        let long = |length: usize| "a".repeat(length);
        for (text, is_good) in [
            (format!("a:{}", long(128)), true),
            (format!("a:{}", long(129)), false),
            ("a:_b.c-D".into(), true),
            ("a:".into(), false),
            ("a:.b".into(), false),
            ("a:-b".into(), false),
            ("a:b!".into(), false),
            (format!("h.x/{}", long(255)), true),
            (format!("h.x/{}", long(256)), false),
            ("h.x/a.b/c_d/e__f/g---h/1".into(), true),
            ("h.x/a..b".into(), false),
            ("h.x/a___b".into(), false),
            ("h.x/a-_b".into(), false),
            ("h.x/_a".into(), false),
            ("h.x/a_".into(), false),
            ("h.x/".into(), false),
            ("h.x/aB".into(), false),
            // Its low byte is that of a letter.
            ("h.x/a\u{161}b".into(), false),
            ("a_b-c.x/a".into(), true),
            ("-a.x/a".into(), false),
            ("a-.x/a".into(), false),
            ("a..x/a".into(), false),
            ("a!.x/a".into(), false),
            ("h:65535/a".into(), true),
            ("h:65536/a".into(), false),
            ("h:+1/a".into(), false),
            ("h:/a".into(), false),
            ("[::1]/a".into(), true),
            ("[::1]x/a".into(), false),
            ("[::1]:/a".into(), false),
            ("[1.2.3.4]/a".into(), false),
            (format!("a@sha256:{}", long(63)), false),
        ] {
            assert_eq!(Reference::parse(&text).is_ok(), is_good, "{text}");
        }
    }

    #[test]
    fn a_short_name_has_no_registry() {
        for (text, expected) in [
            ("a", Some(("a", ""))),
            ("b/a:v1", Some(("b/a", ":v1"))),
            ("a@sha256:12", Some(("a", "@sha256:12"))),
            ("a:v1@sha256:12", Some(("a", ":v1@sha256:12"))),
            ("h.x/a", None),
            ("h:5/a", None),
            ("localhost/a", None),
            ("Host/a", None),
        ] {
            let short = ShortName::parse(text);
            let parts = short.as_ref().map(|short| (short.repository.as_str(), short.suffix.as_str()));
            assert_eq!(parts, expected, "{text}");
        }
        assert!(Reference::parse_full("a:v1").unwrap_err().contains("names no registry"));
        assert_eq!(Reference::parse_full("h.x/a:v1"), Reference::parse("h.x/a:v1"));
    }
}
