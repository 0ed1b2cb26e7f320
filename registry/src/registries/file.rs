//! The format of containers-registries.conf(5), in version 2 and in the deprecated version 1. It does no I/O.

use std::collections::BTreeMap;

use anyhow::ensure;
use serde::Deserialize;

/// One file, or several that were merged.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(super) struct File {
    pub(super) unqualified_search_registries: Option<Vec<String>>,
    pub(super) credential_helpers: Option<Vec<String>>,
    pub(super) short_name_mode: Option<String>,
    #[serde(rename = "registry")]
    pub(super) tables: Vec<Table>,
    pub(super) aliases: BTreeMap<String, String>,
    registries: Version1,
}

/// How the images whose names begin with a prefix are fetched.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(super) struct Table {
    pub(super) prefix: String,
    pub(super) location: String,
    pub(super) insecure: bool,
    pub(super) blocked: bool,
    #[serde(rename = "mirror")]
    pub(super) mirrors: Vec<Mirror>,
    mirror_by_digest_only: bool,
}

/// A place to try before the registry itself.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(super) struct Mirror {
    pub(super) location: String,
    pub(super) insecure: bool,
    pub(super) pull_from_mirror: Use,
}

/// Which references a mirror is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Use {
    #[default]
    #[serde(alias = "")]
    All,
    DigestOnly,
    TagOnly,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Version1 {
    search: List,
    insecure: List,
    block: List,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct List {
    registries: Vec<String>,
}

impl File {
    /// Reads a file.
    ///
    /// # Errors
    /// A message for a malformed file, and for one that mixes both versions.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let mut file: Self = toml::from_str(text).map_err(|error| anyhow::anyhow!("{}", one_line(&error)))?;
        file.take_version1()?;
        for table in &mut file.tables {
            table.complete()?;
        }
        Ok(file)
    }

    fn take_version1(&mut self) -> anyhow::Result<()> {
        let Version1 { search, insecure, block } = std::mem::take(&mut self.registries);
        if [&search, &insecure, &block].iter().all(|list| list.registries.is_empty()) {
            return Ok(());
        }
        ensure!(
            self.tables.is_empty() && self.unqualified_search_registries.is_none(),
            "versions 1 and 2 of the format at once (write all of it as [[registry]] tables)"
        );
        self.unqualified_search_registries = Some(search.registries);
        let mut tables: BTreeMap<String, Table> = BTreeMap::new();
        for location in insecure.registries {
            tables.entry(location).or_default().insecure = true;
        }
        for location in block.registries {
            tables.entry(location).or_default().blocked = true;
        }
        self.tables = tables.into_iter().map(|(location, table)| Table { location, ..table }).collect();
        Ok(())
    }

    /// Lets a file that is read later override what this one has.
    pub(super) fn override_with(&mut self, later: Self) {
        self.unqualified_search_registries =
            later.unqualified_search_registries.or(self.unqualified_search_registries.take());
        self.credential_helpers = later.credential_helpers.or(self.credential_helpers.take());
        self.short_name_mode = later.short_name_mode.or(self.short_name_mode.take());
        for table in later.tables {
            self.tables.retain(|earlier| earlier.prefix != table.prefix);
            self.tables.push(table);
        }
        self.aliases.extend(later.aliases);
    }
}

impl Table {
    /// Fills in what may be left out, and checks the rest.
    fn complete(&mut self) -> anyhow::Result<()> {
        for location in [&mut self.location, &mut self.prefix]
            .into_iter()
            .chain(self.mirrors.iter_mut().map(|mirror| &mut mirror.location))
        {
            ensure!(!location.contains("://"), "{location:?} is an URL (write HOST[:PORT][/NAMESPACE])");
            location.truncate(location.trim_end_matches('/').len());
        }
        if self.prefix.is_empty() {
            self.prefix.clone_from(&self.location);
        }
        ensure!(!self.prefix.is_empty(), "a [[registry]] has neither \"prefix\" nor \"location\"");
        let (is_wildcard, rest) = self.prefix.strip_prefix("*.").map_or((false, &self.prefix[..]), |rest| (true, rest));
        let is_host = !rest.contains(['/', ':', '@']);
        ensure!(!rest.contains('*') && (is_host || !is_wildcard), "prefix {:?}: a wildcard is *.HOST", self.prefix);
        ensure!(is_wildcard || !self.location.is_empty(), "prefix {:?} has no \"location\"", self.prefix);
        for mirror in &mut self.mirrors {
            ensure!(!mirror.location.is_empty(), "prefix {:?}: a mirror has no \"location\"", self.prefix);
            if self.mirror_by_digest_only {
                ensure!(
                    mirror.pull_from_mirror == Use::All,
                    "prefix {:?}: \"mirror-by-digest-only\" and \"pull-from-mirror\" at once",
                    self.prefix
                );
                mirror.pull_from_mirror = Use::DigestOnly;
            }
        }
        Ok(())
    }

    /// How many bytes of an image's full name the prefix covers.
    pub(super) fn covers(&self, name: &str) -> Option<usize> {
        if let Some(domain) = self.prefix.strip_prefix('*') {
            let host = &name[..name.find([':', '/', '@']).unwrap_or(name.len())];
            return host.ends_with(domain).then_some(host.len());
        }
        let rest = name.strip_prefix(&self.prefix)?;
        // A host without a port is another registry than the same one with a port.
        let ends: &[char] = if self.prefix.contains('/') { &['/', ':', '@'] } else { &['/'] };
        (rest.is_empty() || rest.starts_with(ends)).then_some(self.prefix.len())
    }
}

/// Where in the file the error is, and what it is, on one line.
fn one_line(error: &toml::de::Error) -> String {
    let text = error.to_string();
    let mut lines = text.lines();
    let place = lines.next().unwrap_or_default();
    match (place.strip_prefix("TOML parse error "), lines.last()) {
        (Some(place), Some(what)) => format!("{what} ({})", place.trim_start_matches("at ")),
        _ => place.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_defaults_to_the_location_and_covers_whole_parts() {
        for (prefix, name, covered) in [
            ("example.com", "example.com/a:v1", Some(11)),
            ("example.com", "example.com.evil/a", None),
            ("example.com", "example.com:5000/a", None),
            ("example.com:5000", "example.com:5000/a", Some(16)),
            ("example.com/a", "example.com/a:v1", Some(13)),
            ("example.com/a", "example.com/a/b", Some(13)),
            ("example.com/a", "example.com/ab", None),
            ("example.com/a:v1", "example.com/a:v1@sha256:12", Some(16)),
            ("*.example.com", "a.b.example.com:5000/x", Some(15)),
            ("*.example.com", "example.com/x", None),
            ("*.example.com", "evil.com/a.example.com", None),
        ] {
            let file = File::parse(&format!("[[registry]]\nprefix = {prefix:?}\nlocation = \"l\"")).unwrap();
            assert_eq!(file.tables[0].covers(name), covered, "{prefix} {name}");
        }
        assert_eq!(File::parse("[[registry]]\nlocation = \"h/a/\"").unwrap().tables[0].prefix, "h/a");
    }

    #[test]
    fn later_files_override_single_settings() {
        let mut first = File::parse(
            "unqualified-search-registries = [\"a\"]\nshort-name-mode = \"enforcing\"\n[aliases]\nx = \"a/x\"\ny = \"a/y\"
             [[registry]]\nlocation = \"h\"\ninsecure = true\n[[registry]]\nlocation = \"i\"",
        )
        .unwrap();
        first.override_with(
            File::parse("unqualified-search-registries = []\n[aliases]\nx = \"\"\n[[registry]]\nlocation = \"h\"")
                .unwrap(),
        );
        assert_eq!(first.unqualified_search_registries, Some(Vec::new()));
        assert_eq!(first.short_name_mode.as_deref(), Some("enforcing"));
        assert_eq!((first.aliases["x"].as_str(), first.aliases["y"].as_str()), ("", "a/y"));
        let insecure: Vec<_> = first.tables.iter().map(|table| (table.prefix.as_str(), table.insecure)).collect();
        assert_eq!(insecure, [("i", false), ("h", false)]);
    }

    #[test]
    fn version_1_has_three_lists() {
        let file = File::parse(
            "[registries.search]\nregistries = ['a']\n[registries.insecure]\nregistries = ['b', 'c']\n[registries.block]\nregistries = ['c']",
        )
        .unwrap();
        assert_eq!(file.unqualified_search_registries.unwrap(), ["a"]);
        let tables: Vec<_> = file.tables.iter().map(|t| (t.prefix.as_str(), t.insecure, t.blocked)).collect();
        assert_eq!(tables, [("b", true, false), ("c", true, true)]);
    }

    #[test]
    fn a_malformed_file_says_where() {
        for (text, message) in [
            ("[[registry]]", "neither \"prefix\" nor \"location\""),
            ("[[registry]]\nprefix = \"a/b\"", "has no \"location\""),
            ("[[registry]]\nlocation = \"https://a\"", "is an URL"),
            ("[[registry]]\nprefix = \"a.*.com\"\nlocation = \"a\"", "a wildcard is"),
            ("[[registry]]\nprefix = \"*.com/a\"\nlocation = \"a\"", "a wildcard is"),
            ("[[registry]]\nlocation = 5", "line 2"),
            ("[[registry]]\nlocation = 5", "invalid type: integer"),
            (
                "[[registry]]\nlocation = \"a\"\n[[registry.mirror]]\nlocation = \"b\"\npull-from-mirror = \"never\"",
                "line 5",
            ),
            ("[registries.search]\nregistries = ['a']\n[[registry]]\nlocation = \"a\"", "at once"),
            ("=", "line 1"),
        ] {
            let error = File::parse(text).unwrap_err().to_string();
            assert!(error.contains(message) && !error.contains('\n'), "{text}: {error}");
        }
    }
}
