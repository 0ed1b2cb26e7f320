//! The documents of an image: its configuration and its manifest (the OCI image specification's `config.md` and `manifest.md`).
//! They depend on the record and the flags alone. Does no I/O.

use msb::architecture::Architecture;
use msb::record::Image;
use msb::tool::timestamp::rfc3339;
use serde_json::{Map, Value, json};

use crate::base::Base;
use crate::digest::digest;
use crate::layer::Layer;

pub(crate) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Changes to the configuration of an image, as the flags have them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Changes {
    pub(crate) entrypoint: Option<Vec<String>>,
    pub(crate) cmd: Option<Vec<String>>,
    /// Name and value each.
    pub(crate) env: Vec<(String, String)>,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) workdir: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) stop_signal: Option<String>,
    /// `PORT/PROTOCOL` each.
    pub(crate) expose: Vec<String>,
    pub(crate) volumes: Vec<String>,
    /// A directory that has to be first in PATH.
    pub(crate) path: Option<String>,
}

/// An image: its two documents and its layers.
pub(crate) struct NewImage {
    pub(crate) manifest: Vec<u8>,
    pub(crate) config: Vec<u8>,
    /// Bottom first.
    pub(crate) layers: Vec<Layer>,
}

impl NewImage {
    /// The digest of the manifest.
    pub(crate) fn digest(&self) -> String {
        digest(&self.manifest)
    }
}

/// What an image is made of.
pub(crate) struct Parts<'a> {
    /// The record's image: its configuration may have been edited.
    pub(crate) image: Option<&'a Image>,
    pub(crate) base: Option<&'a Base>,
    /// All layers, bottom first.
    pub(crate) layers: Vec<Layer>,
    pub(crate) changes: &'a Changes,
    pub(crate) annotations: &'a [(String, String)],
    /// The time of the image, in seconds; `None` for that of the base.
    pub(crate) epoch: Option<i64>,
    /// Whether the layers of the base are in one new layer, so that its history does not describe them.
    pub(crate) is_squashed: bool,
}

/// Makes the documents. An image without any change is the base, byte for byte.
///
/// # Errors
/// The error of writing JSON.
pub(crate) fn image(parts: Parts<'_>) -> anyhow::Result<NewImage> {
    let Parts { image, base, layers, changes, annotations, epoch, is_squashed } = parts;
    let before = base.map_or_else(|| json!({}), |base| base.config.clone());
    let mut config = before.clone();
    let run = run_config(&config["config"], image, changes)?;
    let has_new_layers = layers.iter().any(|layer| layer.created_by.is_some());
    let is_changed = run != config["config"] && !(run == json!({}) && config["config"].is_null());
    if let Some(base) = base
        && base.is_whole
        && !is_changed
        && !has_new_layers
        && annotations.is_empty()
        && let Some(text) = unchanged(base, &before)
    {
        return Ok(NewImage { manifest: base.manifest.clone(), config: text, layers });
    }
    let members = config.as_object_mut().expect("an object");
    let created = epoch.map(|seconds| Value::String(rfc3339(seconds, None)));
    let created = created.or_else(|| before.get("created").cloned()).unwrap_or_else(|| json!(rfc3339(0, None)));
    members.insert("created".into(), created.clone());
    let platform = image.and_then(|image| image.platform.clone()).unwrap_or_else(|| Architecture::HOST.platform());
    let mut platform = platform.split('/');
    for name in ["os", "architecture", "variant"] {
        if let Some(value) = platform.next()
            && !members.contains_key(name)
        {
            members.insert(name.into(), json!(value));
        }
    }
    members.insert("config".into(), run);
    let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
    members.insert("rootfs".into(), json!({"type": "layers", "diff_ids": diff_ids}));
    let mut history = match before.get("history").and_then(Value::as_array) {
        Some(history) if !is_squashed => history.clone(),
        _ => Vec::new(),
    };
    for layer in &layers {
        if let Some(by) = &layer.created_by {
            history.push(json!({"created": created, "created_by": by}));
        }
    }
    if !has_new_layers {
        history.push(json!({"created": created, "created_by": "msb-pack", "empty_layer": true}));
    }
    members.insert("history".into(), Value::Array(history));
    let config = serde_json::to_vec(&config)?;
    let mut manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": digest(&config), "size": config.len()},
        "layers": layers.iter().map(|layer| layer.descriptor.clone()).collect::<Vec<_>>(),
    });
    if !annotations.is_empty() {
        manifest["annotations"] = Value::Object(pairs(annotations));
    }
    Ok(NewImage { manifest: serde_json::to_vec(&manifest)?, config, layers })
}

/// The bytes of the base's configuration, if they are known to be those of its digest.
fn unchanged(base: &Base, config: &Value) -> Option<Vec<u8>> {
    let manifest: Value = serde_json::from_slice(&base.manifest).ok()?;
    let text = base.config_text.clone();
    // Manifests of OCI may leave it out. Those of docker become OCI's.
    let is_oci = manifest["mediaType"].is_null() || manifest["mediaType"] == MANIFEST_TYPE;
    (is_oci && serde_json::from_slice::<Value>(&text).ok()? == *config).then_some(text)
}

/// The configuration for running the image: that of the record, with the changes.
fn run_config(base: &Value, image: Option<&Image>, changes: &Changes) -> anyhow::Result<Value> {
    let mut config = base.clone();
    if let Some(image) = image {
        let recorded = serde_json::to_value(&image.config)?;
        let parsed: msb::record::ImageConfig = serde_json::from_value(without_nulls(base)).unwrap_or_default();
        // The record's form fills in what the base leaves out, so the base's own is kept if they mean the same.
        if serde_json::to_value(parsed)? != recorded {
            config = without_empty(recorded);
        }
    }
    if !config.is_object() {
        config = json!({});
    }
    let members = config.as_object_mut().expect("an object");
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            members.insert(name.into(), value);
        }
    };
    set("User", changes.user.as_ref().map(|user| json!(user)));
    set("WorkingDir", changes.workdir.as_ref().map(|dir| json!(dir)));
    set("StopSignal", changes.stop_signal.as_ref().map(|signal| json!(signal)));
    set("Entrypoint", changes.entrypoint.as_ref().map(|command| json!(command)));
    // As in a Dockerfile: a new entrypoint does not get the arguments of the old one.
    match (&changes.cmd, &changes.entrypoint) {
        (Some(command), _) => set("Cmd", Some(json!(command))),
        (None, Some(_)) => drop(members.remove("Cmd")),
        (None, None) => {}
    }
    if !changes.env.is_empty() || changes.path.is_some() {
        let variables = members.get("Env").and_then(Value::as_array).cloned().unwrap_or_default();
        let mut variables: Vec<(String, String)> = variables
            .iter()
            .filter_map(Value::as_str)
            .map(|variable| variable.split_once('=').unwrap_or((variable, "")))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        for (name, value) in &changes.env {
            set_variable(&mut variables, name, value);
        }
        if let Some(dir) = &changes.path {
            let old = variables.iter().find(|(name, _)| name == "PATH").map_or(PATH, |(_, value)| value).to_owned();
            if !old.split(':').any(|part| part == dir) {
                set_variable(&mut variables, "PATH", &format!("{dir}:{old}"));
            }
        }
        let variables: Vec<String> = variables.iter().map(|(name, value)| format!("{name}={value}")).collect();
        members.insert("Env".into(), json!(variables));
    }
    for (name, keys) in [("ExposedPorts", &changes.expose), ("Volumes", &changes.volumes)] {
        for key in keys {
            object(members, name).insert(key.clone(), json!({}));
        }
    }
    if !changes.labels.is_empty() {
        object(members, "Labels").extend(pairs(&changes.labels));
    }
    Ok(config)
}

fn object<'a>(members: &'a mut Map<String, Value>, name: &str) -> &'a mut Map<String, Value> {
    let value = members.entry(name).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("an object")
}

fn set_variable(variables: &mut Vec<(String, String)>, name: &str, value: &str) {
    match variables.iter_mut().find(|(other, _)| other == name) {
        Some((_, old)) => value.clone_into(old),
        None => variables.push((name.to_owned(), value.to_owned())),
    }
}

fn pairs(pairs: &[(String, String)]) -> Map<String, Value> {
    pairs.iter().map(|(name, value)| (name.clone(), json!(value))).collect()
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(members) => members
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect::<Map<_, _>>()
            .into(),
        _ => json!({}),
    }
}

fn without_empty(mut value: Value) -> Value {
    if let Some(members) = value.as_object_mut() {
        members.retain(|_, value| !value.is_null() && *value != json!("") && *value != json!([]));
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_change_members_and_keep_the_others() {
        let base =
            json!({"Env": ["PATH=/bin", "A=1"], "Cmd": ["sh"], "Healthcheck": {"Test": ["NONE"]}, "Labels": null});
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let changes = Changes {
            entrypoint: Some(vec!["/init".into()]),
            env: vec![pair("A", "2"), pair("B", "=")],
            labels: vec![pair("l", "v")],
            expose: vec!["80/tcp".into()],
            path: Some("/.msb/scripts".into()),
            ..Changes::default()
        };
        let config = run_config(&base, None, &changes).unwrap();
        let expected = json!({"Env": ["PATH=/.msb/scripts:/bin", "A=2", "B=="], "Healthcheck": {"Test": ["NONE"]},
            "Labels": {"l": "v"}, "Entrypoint": ["/init"], "ExposedPorts": {"80/tcp": {}}});
        assert_eq!(config, expected);
        assert_eq!(
            run_config(&expected, None, &Changes { path: changes.path, ..Changes::default() }).unwrap(),
            expected
        );
    }

    #[test]
    fn a_record_that_was_edited_counts_and_one_that_was_not_leaves_the_base_as_it_is() {
        let base = json!({"Cmd": ["sh"], "Env": null, "Labels": {"a": "b"}});
        let mut image = Image::new("x".into());
        image.config = serde_json::from_value(json!({"Cmd": ["sh"], "Labels": {"a": "b"}})).unwrap();
        assert_eq!(run_config(&base, Some(&image), &Changes::default()).unwrap(), base);
        image.config.user = "nobody".into();
        let expected = json!({"Cmd": ["sh"], "User": "nobody", "Labels": {"a": "b"}});
        assert_eq!(run_config(&base, Some(&image), &Changes::default()).unwrap(), expected);
    }
}
