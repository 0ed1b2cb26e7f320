//! The documents of images, as far as they name other documents and layers. The authors of images write them, so a name counts
//! only if it is a digest. It does no I/O.

use msb::store::{chain, layout};
use serde_json::Value;

/// The most names that one document may have. Real indexes have some dozens.
const MAX_NAMES: usize = 10_000;

/// What a document names.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Document {
    /// An index or a manifest: other documents, by digest in hex.
    Documents(Vec<String>),
    /// A configuration: the diff_ids of its layers, in hex, bottom first.
    Layers(Vec<String>),
}

impl Document {
    /// Reads a document; `None` for anything else.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let document: Value = serde_json::from_slice(text).ok()?;
        if let Some(diff_ids) = document.get("rootfs").and_then(|rootfs| rootfs.get("diff_ids")) {
            let diff_ids = diff_ids.as_array().map(Vec::as_slice).unwrap_or_default();
            let ids = diff_ids.iter().take(chain::MAX_LAYERS).map_while(|id| hex_of(id.as_str()?));
            return Some(Self::Layers(ids.collect()));
        }
        if let Some(manifests) = document.get("manifests").and_then(Value::as_array) {
            let digests = manifests.iter().take(MAX_NAMES).filter_map(|entry| hex_of(entry.get("digest")?.as_str()?));
            return Some(Self::Documents(digests.collect()));
        }
        let config = document.get("config")?.get("digest")?.as_str()?;
        // A configuration has a member "config" too, but without a digest.
        Some(Self::Documents(hex_of(config).into_iter().collect()))
    }
}

/// The hex of a digest such as `sha256:…`.
pub(crate) fn hex_of(digest: &str) -> Option<String> {
    let (algorithm, hex) = digest.split_once(':')?;
    (matches!(algorithm, "sha256" | "sha512") && layout::is_id(hex)).then(|| hex.to_owned())
}

/// The IDs under which each layer of a configuration may be stored: its diff_id, and its stacked ID.
pub(crate) fn stored_ids(diff_ids: &[String]) -> Vec<[String; 2]> {
    let mut below: Option<String> = None;
    let mut ids = Vec::new();
    for diff_id in diff_ids {
        let stacked_id = chain::stacked_id(below.as_deref(), diff_id);
        ids.push([diff_id.clone(), stacked_id.clone()]);
        below = Some(stacked_id);
    }
    // A diff_id that occurs twice is stored once, under the ID of its highest position.
    let highest = |diff_id: &str| ids.iter().rev().find(|[id, _]| id == diff_id).cloned().unwrap_or_default();
    ids.iter().map(|[diff_id, _]| highest(diff_id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(letter: char) -> String {
        letter.to_string().repeat(64)
    }

    fn parse(text: &str) -> Option<Document> {
        Document::parse(text.replace('A', &digest('a')).replace('B', &digest('b')).as_bytes())
    }

    #[test]
    fn documents_name_documents_and_layers() {
        let documents = |letters: &[char]| Some(Document::Documents(letters.iter().copied().map(digest).collect()));
        assert_eq!(parse(r#"{"manifests":[{"digest":"sha256:A"},{"digest":"sha256:B"}]}"#), documents(&['a', 'b']));
        assert_eq!(parse(r#"{"config":{"digest":"sha256:A"},"layers":[{"digest":"sha256:B"}]}"#), documents(&['a']));
        let layers = parse(r#"{"config":{"Cmd":["sh"]},"rootfs":{"diff_ids":["sha256:A","sha256:B"]}}"#);
        assert_eq!(layers, Some(Document::Layers(vec![digest('a'), digest('b')])));
    }

    #[test]
    fn what_is_not_a_digest_names_nothing() {
        for text in ["", "[]", "{}", r#"{"config":{"digest":7}}"#, r#"{"config":{}}"#] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(parse(r#"{"config":{"digest":"sha256:../../A"}}"#), Some(Document::Documents(Vec::new())));
        assert_eq!(parse(r#"{"manifests":[{"digest":"md5:A"},7]}"#), Some(Document::Documents(Vec::new())));
        let layers = parse(r#"{"rootfs":{"diff_ids":["sha256:A","..","sha256:B"]}}"#);
        assert_eq!(layers, Some(Document::Layers(vec![digest('a')])));
        assert_eq!(parse(r#"{"rootfs":{"diff_ids":null}}"#), Some(Document::Layers(Vec::new())));
    }

    #[test]
    fn a_layer_is_stored_under_its_diff_id_or_its_stacked_id() {
        let (a, b) = (digest('a'), digest('b'));
        let ids = stored_ids(&[a.clone(), b.clone()]);
        let bottom = chain::stacked_id(None, &a);
        assert_eq!(ids, [[a.clone(), bottom.clone()], [b.clone(), chain::stacked_id(Some(&bottom), &b)]]);
        let twice = stored_ids(&[a.clone(), b, a]);
        assert_eq!(twice[0], twice[2]);
    }
}
