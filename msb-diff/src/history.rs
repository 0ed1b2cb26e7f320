//! The history of an image, from its configuration in the store.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use msb::record::Record;
use msb::store::layout;
use serde_json::Value;

/// The largest document that is read, in bytes.
const MAX_DOCUMENT: u64 = 8 << 20;

/// The entry of every layer, top first. The list is empty if the store does not have the configuration, or if that has another
/// number of layers.
pub(crate) fn of_layers(home: &Path, record: &Record, layers: usize) -> Vec<Value> {
    entries(home, record).filter(|entries| entries.len() == layers).unwrap_or_default()
}

fn entries(home: &Path, record: &Record) -> Option<Vec<Value>> {
    let manifest = document(home, record.image.as_ref()?.digest.as_deref()?)?;
    let config = document(home, manifest["config"]["digest"].as_str()?)?;
    let entries = config["history"].as_array()?.iter();
    Some(entries.filter(|entry| entry["empty_layer"] != true).rev().cloned().collect())
}

fn document(home: &Path, digest: &str) -> Option<Value> {
    let hex = digest.strip_prefix("sha256:").filter(|hex| layout::is_id(hex))?;
    let mut text = Vec::new();
    File::open(layout::blob(home, hex)).ok()?.take(MAX_DOCUMENT).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use msb::record::Image;

    #[test]
    fn entries_without_a_layer_are_left_out_and_the_last_comes_first() {
        let home = tempfile::tempdir().unwrap();
        let (manifest, config) = ("a".repeat(64), "b".repeat(64));
        std::fs::create_dir_all(layout::blobs(home.path())).unwrap();
        let write = |hex: &str, text: &str| std::fs::write(layout::blob(home.path(), hex), text).unwrap();
        write(&manifest, &format!(r#"{{"config":{{"digest":"sha256:{config}"}}}}"#));
        write(&config, r#"{"history":[{"created_by":"1"},{"empty_layer":true},{"created_by":"2"}]}"#);
        let mut record = Record::new();
        let mut image = Image::new("x".into());
        image.digest = Some(format!("sha256:{manifest}"));
        record.image = Some(image);
        let entries = of_layers(home.path(), &record, 2);
        assert_eq!(entries.iter().map(|entry| &entry["created_by"]).collect::<Vec<_>>(), ["2", "1"]);
        assert!(of_layers(home.path(), &record, 3).is_empty());
        record.image.as_mut().unwrap().digest = Some("sha256:../../x".into());
        assert!(of_layers(home.path(), &record, 2).is_empty());
    }
}
