//! containers-registries.conf(5): where the images of a registry are fetched, and what a name without a registry means.

mod file;

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use self::file::{File, Table, Use};
use crate::reference::{Reference, ShortName};

const SYSTEM: &str = "/etc/containers/registries.conf";
/// The answers that users gave podman, which override what is configured.
const RECORDED_ALIASES: &str = "/var/cache/containers/short-name-aliases.conf";
/// The entry of "credential-helpers" that stands for the files of containers-auth.json(5).
const FILES: &str = "containers-auth.json";

/// The configuration of all registries.
#[derive(Debug, Default)]
pub struct Registries(File);

/// A place that serves an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The name of the image there.
    pub reference: Reference,
    /// Whether HTTP, and certificates that cannot be checked, are accepted.
    pub insecure: bool,
}

impl Registries {
    /// Reads the files of this machine and user. Without any, names are completed as docker does.
    ///
    /// # Errors
    /// A message with the file's name.
    pub fn load() -> anyhow::Result<Self> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let chosen = variable("CONTAINERS_REGISTRIES_CONF");
        let user = variable("HOME").map(|home| home.join(".config/containers/registries.conf"));
        let mut merged = File::default();
        if let Some(chosen) = &chosen {
            // A file that the caller names has to exist.
            let text = fs::read_to_string(chosen).with_context(|| format!("{chosen:?}"))?;
            merged = File::parse(&text).with_context(|| format!("{chosen:?}"))?;
        }
        let mut files: Vec<PathBuf> = Vec::new();
        let of_user = user.iter().filter(|_| chosen.is_none()).any(|path| path.exists());
        if chosen.is_none() {
            files.extend(user.clone().filter(|_| of_user).or_else(|| Some(SYSTEM.into())));
        }
        if !of_user {
            files.extend(drop_ins(Path::new(SYSTEM))?);
        }
        if let Some(user) = &user {
            files.extend(drop_ins(user)?);
        }
        files.push(RECORDED_ALIASES.into());
        for path in files {
            let read = || match fs::read_to_string(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(File::default()),
                other => File::parse(&other?),
            };
            merged.override_with(read().with_context(|| format!("{path:?}"))?);
        }
        Ok(Self(merged))
    }

    /// The images that a name may mean, in the order in which they are tried.
    ///
    /// # Errors
    /// A message for a name that is ambiguous, and for an alias that is not a name.
    pub fn candidates(&self, reference: &Reference, short: Option<&ShortName>) -> anyhow::Result<Vec<Reference>> {
        let Some(ShortName { repository, suffix }) = short else { return Ok(vec![reference.clone()]) };
        let parse = |name: &str| Reference::parse_full(&format!("{name}{suffix}")).map_err(anyhow::Error::msg);
        if let Some(alias) = self.0.aliases.get(repository).filter(|alias| !alias.is_empty()) {
            return Ok(vec![parse(alias).with_context(|| format!("alias {repository:?} of registries.conf"))?]);
        }
        let search = self.0.unqualified_search_registries.as_deref().unwrap_or_default();
        let completed = search.iter().map(|registry| parse(&format!("{registry}/{repository}")));
        let completed = completed.collect::<anyhow::Result<Vec<_>>>().context("unqualified-search-registries")?;
        match completed.len() {
            0 => Ok(vec![reference.clone()]),
            2.. if self.0.short_name_mode.as_deref() == Some("enforcing") => {
                let names: Vec<String> = completed.iter().map(Reference::whole).collect();
                bail!("image {repository:?} is ambiguous: {} (write one of them)", names.join(", "))
            }
            _ => Ok(completed),
        }
    }

    /// The places to fetch an image from, in the order in which they are tried: mirrors, then the registry.
    ///
    /// # Errors
    /// A message for a registry that is blocked, or a location that makes no name.
    pub fn endpoints(&self, reference: &Reference) -> anyhow::Result<Vec<Endpoint>> {
        let whole = reference.whole();
        let covering = self.0.tables.iter().filter_map(|table| Some((table.covers(&whole)?, table)));
        let Some((covered, table)) = covering.max_by_key(|(covered, table)| (*covered, table.prefix.len())) else {
            return Ok(vec![Endpoint { reference: reference.clone(), insecure: false }]);
        };
        if table.blocked {
            bail!("registries.conf blocks {:?} (remove \"blocked\" there, or use another registry)", table.prefix);
        }
        let wanted = if reference.digest.is_some() { Use::DigestOnly } else { Use::TagOnly };
        let mirrors = table.mirrors.iter().filter(|mirror| [Use::All, wanted].contains(&mirror.pull_from_mirror));
        let places = mirrors.map(|mirror| (mirror.location.as_str(), mirror.insecure));
        places
            .chain([(table.location.as_str(), table.insecure)])
            .map(|(location, insecure)| {
                let reference = rewrite(table, location, reference, &whole[covered..])?;
                Ok(Endpoint { reference, insecure })
            })
            .collect()
    }

    /// The credential helpers to ask, where `None` stands for the files of containers-auth.json(5).
    pub fn credential_helpers(&self) -> Vec<Option<&str>> {
        match self.0.credential_helpers.as_deref() {
            None | Some([]) => vec![None],
            Some(helpers) => {
                helpers.iter().map(|helper| Some(helper.as_str()).filter(|helper| *helper != FILES)).collect()
            }
        }
    }
}

/// The name of an image at a location, where `rest` is what the prefix does not cover.
fn rewrite(table: &Table, location: &str, reference: &Reference, rest: &str) -> anyhow::Result<Reference> {
    // A prefix with a wildcard may come without a location.
    if location.is_empty() || location == table.prefix {
        return Ok(reference.clone());
    }
    Reference::parse_full(&format!("{location}{rest}"))
        .map_err(anyhow::Error::msg)
        .with_context(|| format!("location {location:?} of registries.conf"))
}

/// The files beside a registries.conf, in alphabetic order.
fn drop_ins(file: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let dir = file.with_extension("conf.d");
    let children = match fs::read_dir(&dir) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Vec::new()),
        other => other.with_context(|| format!("{dir:?}"))?,
    };
    let mut files = children.map(|child| Ok(child?.path())).collect::<std::io::Result<Vec<_>>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "conf") && !path.is_dir());
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registries(text: &str) -> Registries {
        Registries(File::parse(text).unwrap())
    }

    fn candidates(config: &str, text: &str) -> Vec<String> {
        let name = text.strip_prefix("docker://");
        let short = if name.is_some() { None } else { ShortName::parse(text) };
        let reference = Reference::parse(name.unwrap_or(text)).unwrap();
        let found = registries(config).candidates(&reference, short.as_ref()).unwrap();
        found.iter().map(Reference::whole).collect()
    }

    fn endpoints(config: &str, text: &str) -> Vec<(String, bool)> {
        let endpoints = registries(config).endpoints(&Reference::parse(text).unwrap()).unwrap();
        endpoints.iter().map(|endpoint| (endpoint.reference.whole(), endpoint.insecure)).collect()
    }

    #[test]
    fn a_short_name_is_an_alias_or_searched_or_dockers() {
        let aliases = "[aliases]\nfedora = \"registry.test/fedora\"\n\"a/b\" = \"registry.test/c\"\ngone = \"\"";
        let search = "unqualified-search-registries = [\"one.test\", \"two.test:5000\"]";
        let hex = "a".repeat(64);
        for (config, text, expected) in [
            ("", "fedora", &["docker.io/library/fedora:latest"][..]),
            (aliases, "fedora", &["registry.test/fedora:latest"]),
            (aliases, "fedora:v1", &["registry.test/fedora:v1"]),
            (aliases, &format!("fedora@sha256:{hex}"), &[&format!("registry.test/fedora@sha256:{hex}")]),
            (aliases, "a/b", &["registry.test/c:latest"]),
            (aliases, "gone", &["docker.io/library/gone:latest"]),
            (aliases, "docker.io/library/fedora", &["docker.io/library/fedora:latest"]),
            (aliases, "docker://fedora", &["docker.io/library/fedora:latest"]),
            (search, "a/b:v1", &["one.test/a/b:v1", "two.test:5000/a/b:v1"]),
            (search, "quay.io/a", &["quay.io/a:latest"]),
            ("unqualified-search-registries = [\"docker.io\"]", "a", &["docker.io/library/a:latest"]),
        ] {
            assert_eq!(candidates(config, text), expected, "{config} {text}");
        }
        let enforcing = registries(&format!("short-name-mode = \"enforcing\"\n{search}"));
        let (reference, short) = (Reference::parse("a").unwrap(), ShortName::parse("a"));
        let error = enforcing.candidates(&reference, short.as_ref()).unwrap_err().to_string();
        assert!(error.contains("one.test/a:latest, two.test:5000/a:latest"), "{error}");
    }

    #[test]
    fn mirrors_come_before_the_registry_that_the_longest_prefix_names() {
        let config = r#"
            [[registry]]
            prefix = "a.test"
            location = "b.test/all"
            [[registry.mirror]]
            location = "m.test:5000"
            insecure = true
            [[registry.mirror]]
            location = "d.test"
            pull-from-mirror = "digest-only"
            [[registry.mirror]]
            location = "t.test"
            pull-from-mirror = "tag-only"
            [[registry]]
            prefix = "a.test/x"
            location = "localhost/x"
            insecure = true
            [[registry]]
            prefix = "*.w.test"
            insecure = true
            [[registry]]
            location = "docker.io/library"
            [[registry.mirror]]
            location = "hub.test/library"
        "#;
        let secure = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), false)).collect::<Vec<_>>();
        let hex = "a".repeat(64);
        let mut expected = secure(&["m.test:5000/i:v1", "t.test/i:v1", "b.test/all/i:v1"]);
        expected[0].1 = true;
        assert_eq!(endpoints(config, "a.test/i:v1"), expected);
        let by_digest = endpoints(config, &format!("a.test/i@sha256:{hex}"));
        assert_eq!(by_digest[1].0, format!("d.test/i@sha256:{hex}"));
        assert_eq!(by_digest.len(), 3);
        assert_eq!(endpoints(config, "a.test/x/i"), [("localhost/x/i:latest".to_owned(), true)]);
        assert_eq!(endpoints(config, "c.w.test:5/i"), [("c.w.test:5/i:latest".to_owned(), true)]);
        assert_eq!(
            endpoints(config, "alpine"),
            secure(&["hub.test/library/alpine:latest", "docker.io/library/alpine:latest"])
        );
        assert_eq!(endpoints(config, "group/i"), secure(&["docker.io/group/i:latest"]));
    }

    #[test]
    fn a_blocked_registry_and_a_location_without_a_host_are_errors() {
        for (config, message) in [
            ("[[registry]]\nlocation = \"a.test\"\nblocked = true", "blocks \"a.test\""),
            ("[[registry]]\nprefix = \"a.test\"\nlocation = \"nohost/x\"", "location \"nohost/x\""),
        ] {
            let error = registries(config).endpoints(&Reference::parse("a.test/i").unwrap()).unwrap_err();
            assert!(format!("{error:#}").contains(message), "{error:#}");
        }
    }

    #[test]
    fn helpers_stand_beside_the_files() {
        assert_eq!(registries("").credential_helpers(), [None]);
        let both = registries("credential-helpers = [\"containers-auth.json\", \"pass\"]");
        assert_eq!(both.credential_helpers(), [None, Some("pass")]);
    }
}
