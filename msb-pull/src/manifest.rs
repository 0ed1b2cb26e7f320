//! The documents of an image: index, manifest, configuration, in OCI's and docker's media types. It does no I/O.

use anyhow::{Context, anyhow, bail, ensure};
use msb::record::ImageConfig;
use msb::store::chain::MAX_LAYERS;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::platform::Platform;
use msb_registry::digest::Digest;
use msb_registry::json::null_is_default;

/// The largest index or manifest, in bytes: registries accept no larger ones.
pub(crate) const MAX_MANIFEST: u64 = 4 << 20;
/// The largest configuration, in bytes.
pub(crate) const MAX_CONFIG: u64 = 8 << 20;

/// The media types that a registry is asked for.
pub(crate) const MEDIA_TYPES: &[&str] = &[
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// A pointer to a blob.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor<D = Digest> {
    pub(crate) digest: D,
    pub(crate) size: u64,
    pub(crate) platform: Option<Platform>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) annotations: serde_json::Map<String, Value>,
}

/// An entry of an index. Its digest is read only if it is chosen: an index may have others with algorithms of the future.
pub(crate) type IndexEntry = Descriptor<String>;

impl<D> Descriptor<D> {
    /// The annotation of this name.
    pub(crate) fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.get(name)?.as_str().filter(|value| !value.is_empty())
    }

    /// Whether BuildKit marked it as an attestation of another image.
    pub(crate) fn is_attestation(&self) -> bool {
        self.annotation("vnd.docker.reference.type").is_some()
    }
}

/// An index or a manifest.
#[derive(Debug)]
pub(crate) enum Document {
    Index(Vec<IndexEntry>),
    Manifest { config: Descriptor, layers: Vec<Descriptor> },
}

impl Document {
    /// Reads an index or a manifest.
    ///
    /// # Errors
    /// A message for anything else.
    pub(crate) fn parse(text: &[u8]) -> anyhow::Result<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Either {
            schema_version: Option<u64>,
            /// Some(None) is null.
            #[serde(default, deserialize_with = "is_there")]
            manifests: Option<Option<Vec<IndexEntry>>>,
            config: Option<Descriptor>,
            layers: Option<Vec<Descriptor>>,
        }
        fn is_there<'de, D: Deserializer<'de>, T: Deserialize<'de>>(value: D) -> Result<Option<T>, D::Error> {
            T::deserialize(value).map(Some)
        }
        let either: Either = serde_json::from_slice(text).context("malformed manifest")?;
        ensure!(either.schema_version != Some(1), "manifest schema 1 is not supported (push the image again)");
        match either {
            // A document that is both would be read differently by different tools (CVE-2021-41190).
            Either { manifests: Some(Some(_)), config: Some(_), .. }
            | Either { manifests: Some(Some(_)), layers: Some(_), .. } => {
                bail!("malformed manifest: it is an index and a manifest at once")
            }
            // Go writes an empty list as null, or leaves it out.
            Either { config: Some(config), layers, .. } => {
                Ok(Self::Manifest { config, layers: layers.unwrap_or_default() })
            }
            Either { manifests: Some(manifests), layers: None, .. } => Ok(Self::Index(manifests.unwrap_or_default())),
            _ => bail!("malformed manifest: neither an index nor an image manifest"),
        }
    }
}

/// The entry of an index that fits best. Of several that fit equally well, it is the first.
///
/// # Errors
/// A message that lists what the index offers.
pub(crate) fn select<'a>(entries: &'a [IndexEntry], wanted: &Platform) -> anyhow::Result<&'a IndexEntry> {
    let images = || entries.iter().filter(|entry| !entry.is_attestation());
    let fit = |entry: &IndexEntry| match &entry.platform {
        // Before BuildKit had an annotation for them, attestations had the platform unknown/unknown.
        Some(offered) if offered.os == "unknown" && images().count() > 1 => None,
        Some(offered) => wanted.fit(offered),
        None => Some(0),
    };
    let best = images().rev().filter_map(|entry| Some((fit(entry)?, entry))).max_by_key(|(fit, _)| *fit);
    best.map(|(_, entry)| entry).ok_or_else(|| {
        let offered = images().filter_map(|entry| entry.platform.as_ref());
        let offered: Vec<String> = offered.filter(|platform| !platform.is_empty()).map(Platform::to_string).collect();
        let offered = if offered.is_empty() { "nothing".to_owned() } else { offered.join(", ") };
        anyhow!("no image for {wanted}: it offers {offered} (choose with --platform)")
    })
}

/// An image's configuration.
#[derive(Debug)]
pub(crate) struct Configuration {
    pub(crate) platform: Platform,
    pub(crate) config: ImageConfig,
    pub(crate) diff_ids: Vec<Digest>,
}

impl Configuration {
    /// Reads a configuration.
    ///
    /// # Errors
    /// A message for anything else, or has too many layers.
    pub(crate) fn parse(text: &[u8]) -> anyhow::Result<Self> {
        #[derive(Deserialize)]
        struct Raw {
            #[serde(flatten)]
            platform: Platform,
            #[serde(default)]
            config: Option<Value>,
            rootfs: Option<RootFs>,
        }
        #[derive(Default, Deserialize)]
        struct RootFs {
            #[serde(default, deserialize_with = "null_is_default")]
            diff_ids: Vec<Digest>,
        }
        let raw: Raw = serde_json::from_slice(text).context("malformed image configuration")?;
        let rootfs = raw.rootfs.context("not the configuration of an image: it has no \"rootfs\"")?;
        ensure!(rootfs.diff_ids.len() <= MAX_LAYERS, "the image has more than {MAX_LAYERS} layers");
        let mut config = raw.config.unwrap_or_default();
        // Go writes an empty list or string as null.
        match config.as_object_mut() {
            Some(members) => members.retain(|_, value| !value.is_null()),
            None => config = Value::Object(serde_json::Map::new()),
        }
        let config = serde_json::from_value(config).context("malformed image configuration")?;
        Ok(Self { platform: raw.platform, config, diff_ids: rootfs.diff_ids })
    }

    /// Checks that the image is for the platform that was asked for.
    ///
    /// # Errors
    /// A message with both platforms.
    pub(crate) fn check_platform(&self, wanted: &Platform) -> anyhow::Result<()> {
        // A lone manifest offers no choice of variants.
        let offered = &self.platform;
        ensure!(wanted.covers(offered), "the image is for {offered}, not for {wanted} (choose with --platform)");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(platform: &str) -> Value {
        let (os, architecture) = platform.split_once('/').unwrap();
        serde_json::json!({"mediaType": "m", "digest": Digest::of(platform.as_bytes()).to_string(), "size": 1,
            "platform": {"os": os, "architecture": architecture}})
    }

    #[test]
    fn an_index_is_searched_and_says_what_it_has() {
        let mut future = entry("linux/riscv64");
        future["digest"] = "blake3:00".into();
        let text = serde_json::json!({"schemaVersion": 2, "manifests":
            [entry("linux/arm64"), entry("linux/amd64"), entry("unknown/unknown"), future]});
        let Document::Index(entries) = Document::parse(text.to_string().as_bytes()).unwrap() else {
            panic!("no index")
        };
        let chosen = select(&entries, &Platform::parse("linux/amd64").unwrap()).unwrap();
        assert_eq!(chosen.digest, Digest::of(b"linux/amd64").to_string());
        let error = select(&entries, &Platform::parse("linux/s390x").unwrap()).unwrap_err().to_string();
        assert!(
            error.contains("no image for linux/s390x: it offers linux/arm64, linux/amd64, linux/riscv64 ("),
            "{error}"
        );
    }

    #[test]
    fn an_attestation_is_no_image_and_a_platform_of_one_image_alone_may_be_unknown() {
        let annotated = |value: &str| {
            let mut entry = entry("linux/amd64");
            entry["annotations"] = serde_json::json!({"vnd.docker.reference.type": value});
            entry
        };
        let chosen = |entries: &[Value]| {
            let entries: Vec<IndexEntry> =
                entries.iter().map(|entry| serde_json::from_value(entry.clone()).unwrap()).collect();
            select(&entries, &Platform::parse("linux/amd64").unwrap())
                .map(|entry| Digest::parse(&entry.digest).unwrap())
                .ok()
        };
        assert_eq!(chosen(&[annotated("attestation-manifest")]), None);
        assert_eq!(chosen(&[annotated("")]), Some(Digest::of(b"linux/amd64")));
        let unknown = entry("unknown/unknown");
        assert_eq!(chosen(std::slice::from_ref(&unknown)), Some(Digest::of(b"unknown/unknown")));
        assert_eq!(chosen(&[unknown, entry("linux/arm64")]), None);
        // An incomplete platform is worse than a complete one, and better than none.
        let mut incomplete = entry("linux/");
        incomplete["digest"] = Digest::of(b"incomplete").to_string().into();
        assert_eq!(chosen(&[incomplete.clone(), annotated("attestation-manifest")]), Some(Digest::of(b"incomplete")));
        assert_eq!(chosen(&[incomplete, entry("linux/amd64")]), Some(Digest::of(b"linux/amd64")));
    }

    #[test]
    fn a_manifest_has_its_configuration_and_layers() {
        let descriptor =
            |bytes: &[u8]| serde_json::json!({"digest": Digest::of(bytes).to_string(), "size": bytes.len()});
        let text = serde_json::json!({"schemaVersion": 2, "config": descriptor(b"c"), "layers": [descriptor(b"l"), descriptor(b"ll")]});
        let Document::Manifest { config, layers } = Document::parse(text.to_string().as_bytes()).unwrap() else {
            panic!("no manifest")
        };
        assert_eq!(config.digest, Digest::of(b"c"));
        assert_eq!(layers.iter().map(|layer| layer.size).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn a_list_that_is_null_is_empty() {
        let config = format!(r#""config":{{"digest":"{}","size":1}}"#, Digest::of(b"c"));
        for text in [
            format!(r#"{{{config}}}"#),
            format!(r#"{{{config},"layers":null}}"#),
            format!(r#"{{{config},"layers":[],"manifests":null}}"#),
        ] {
            let parsed = Document::parse(text.as_bytes());
            assert!(
                matches!(&parsed, Ok(Document::Manifest { layers, .. }) if layers.is_empty()),
                "{text}: {parsed:?}"
            );
        }
        for text in [r#"{"manifests":null}"#, r#"{"manifests":null,"config":null,"layers":null}"#] {
            let parsed = Document::parse(text.as_bytes());
            assert!(matches!(&parsed, Ok(Document::Index(entries)) if entries.is_empty()), "{text}: {parsed:?}");
        }
    }

    #[test]
    fn what_is_no_manifest_is_refused() {
        let digest = Digest::of(b"").to_string();
        let descriptor = format!(r#"{{"digest":"{digest}","size":1}}"#);
        for (text, words) in [
            ("", "malformed manifest"),
            ("[]", "malformed manifest"),
            (r#"{"schemaVersion":2}"#, "neither"),
            (r#"{"layers":[]}"#, "neither"),
            (r#"{"manifests":null,"layers":[]}"#, "neither"),
            (r#"{"manifests":[],"layers":[]}"#, "at once"),
            (r#"{"schemaVersion":1,"fsLayers":[]}"#, "schema 1"),
            (&format!(r#"{{"manifests":[],"layers":[],"config":{descriptor}}}"#), "at once"),
            (r#"{"config":{"digest":"sha256:../../etc","size":1},"layers":[]}"#, "hex digits"),
            (&format!(r#"{{"config":{{"digest":"{digest}","size":-1}},"layers":[]}}"#), "malformed manifest"),
        ] {
            let error = format!("{:#}", Document::parse(text.as_bytes()).unwrap_err());
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn a_configuration_keeps_what_it_knows_not_and_drops_nulls() {
        let text = format!(
            r#"{{"os":"linux","architecture":"amd64","config":{{"Env":null,"Cmd":["sh"],"WorkingDir":null,"Labels":{{"a":"b"}}}},
                "rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
            Digest::of(b"")
        );
        let configuration = Configuration::parse(text.as_bytes()).unwrap();
        assert_eq!(configuration.config.cmd.unwrap(), ["sh"]);
        assert_eq!(configuration.config.unknown["Labels"]["a"], "b");
        let arm = Platform::parse("linux/arm64").unwrap();
        let error = Configuration::parse(text.as_bytes()).unwrap().check_platform(&arm).unwrap_err().to_string();
        assert!(error.contains("for linux/amd64, not for linux/arm64"), "{error}");
    }
}
