//! The member `image`.

use serde::{Deserialize, Serialize};

use super::unknown::Unknown;

/// The image that a root came from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Image {
    /// The reference as resolved, e.g. `docker.io/library/alpine:3.20`.
    #[serde(rename = "ref")]
    pub reference: String,
    /// The digest of the platform's manifest, `sha256:…`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// `os/architecture[/variant]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// The image's defaults for running it.
    #[serde(default)]
    pub config: ImageConfig,
    /// Members that this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl Image {
    /// An image with its reference; everything else is unknown.
    pub fn new(reference: String) -> Self {
        Self { reference, ..Self::default() }
    }
}

/// An image's defaults for running it: `config` of the OCI image configuration, with its member names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "PascalCase")]
#[non_exhaustive]
pub struct ImageConfig {
    /// Variables, `K=V` each.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub env: Vec<String>,
    /// The command's fixed first part.
    #[serde(default)]
    pub entrypoint: Option<Vec<String>>,
    /// The command, or the entrypoint's default arguments.
    #[serde(default)]
    pub cmd: Option<Vec<String>>,
    /// The working directory; empty for `/`.
    #[serde(default)]
    pub working_dir: String,
    /// `user[:group]` by name or number; empty for root.
    #[serde(default)]
    pub user: String,
    /// The signal that asks the command to stop.
    #[serde(default)]
    pub stop_signal: String,
    /// The rest of the image's configuration (Labels, ExposedPorts, …).
    #[serde(flatten)]
    pub unknown: Unknown,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(value)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_variables_may_be_null_as_go_writes_them() {
        for (text, expected) in
            [(r#"{"Env":null}"#, &[][..]), ("{}", &[]), (r#"{"Env":["A=1","B=2"]}"#, &["A=1", "B=2"])]
        {
            assert_eq!(serde_json::from_str::<ImageConfig>(text).unwrap().env, expected, "{text}");
        }
    }
}
