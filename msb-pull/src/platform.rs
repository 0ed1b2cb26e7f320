//! Platforms, and which entry of an index fits one. Pure.

use std::fmt;

use serde::Deserialize;

/// An operating system, an architecture, perhaps a variant of it, in the OCI specification's words (Go's).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) variant: Option<String>,
}

impl Platform {
    /// Reads `os/architecture[/variant]`.
    ///
    /// # Errors
    /// Words for anything else.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        let is_word = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        match parts.as_slice() {
            [os, architecture, variant @ ..] if variant.len() < 2 && parts.iter().all(is_word) => Ok(Self {
                os: (*os).to_owned(),
                architecture: (*architecture).to_owned(),
                variant: variant.first().map(|&variant| variant.to_owned()),
            }),
            _ => Err(format!("--platform {text:?}: not os/architecture[/variant] (linux/amd64, linux/arm/v7)")),
        }
    }

    /// This host's.
    pub(crate) fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: None }
    }

    /// How well an image for `offered` runs where `self` is wanted; `None` where it does not.
    pub(crate) fn fit(&self, offered: &Self) -> Option<u8> {
        if self.os != offered.os || self.architecture != offered.architecture {
            return None;
        }
        // What a variant is when nobody says.
        let usual = if self.architecture == "arm64" { Some("v8") } else { None };
        let offered_variant = offered.variant.as_deref().filter(|variant| !variant.is_empty());
        match (self.variant.as_deref().or(usual), offered_variant) {
            (wanted, offered) if wanted == offered => Some(3),
            (_, None) => Some(2),
            // A host that names no variant runs the baseline: of amd64 v1, of arm the highest it may be offered.
            (None, Some(variant)) => match (self.architecture.as_str(), variant) {
                ("amd64", "v1") | ("arm", "v7") => Some(1),
                ("arm", _) => Some(0),
                _ => None,
            },
            (Some(_), Some(_)) => None,
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match self.variant.as_deref() {
            Some(variant) if !variant.is_empty() => write!(f, "/{variant}"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_fit_is_taken() {
        for (wanted, offered, best) in [
            ("linux/amd64", &["linux/arm64", "linux/amd64"][..], Some(1)),
            ("linux/amd64", &["linux/amd64/v3", "linux/amd64"], Some(1)),
            ("linux/amd64", &["linux/amd64/v3"], None),
            ("linux/amd64/v3", &["linux/amd64", "linux/amd64/v3"], Some(1)),
            ("linux/arm64", &["linux/arm64/v8"], Some(0)),
            ("linux/arm64/v8", &["linux/arm64"], Some(0)),
            ("linux/arm/v6", &["linux/arm/v7", "linux/arm/v6"], Some(1)),
            ("linux/arm", &["linux/arm/v6", "linux/arm/v7"], Some(1)),
            ("linux/amd64", &["windows/amd64", "unknown/unknown"], None),
        ] {
            let wanted = Platform::parse(wanted).unwrap();
            let fits = offered.iter().enumerate();
            let fits = fits.filter_map(|(at, text)| Some((wanted.fit(&Platform::parse(text).unwrap())?, at)));
            assert_eq!(fits.max().map(|(_, at)| at), best, "{wanted} of {offered:?}");
        }
    }

    #[test]
    fn other_forms_are_refused() {
        for bad in ["", "amd64", "linux/", "/amd64", "a/b/c/d", "linux/amd 64"] {
            assert!(Platform::parse(bad).is_err(), "{bad:?}");
        }
    }
}
