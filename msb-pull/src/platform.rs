//! Platforms, and which entry of an index fits one. Pure.

use std::fmt;

use msb::architecture::Architecture;
use serde::Deserialize;

use msb_registry::json::null_is_default;

/// The systems and architectures that images are built for. Each may be given without the other.
const SYSTEMS: &[&str] = &["linux", "windows", "darwin", "freebsd", "netbsd", "openbsd", "wasi"];
const ARCHITECTURES: &[&str] = &[
    "amd64", "arm64", "arm", "386", "ppc64le", "ppc64", "s390x", "riscv64", "mips64le", "mips64", "mipsle", "mips",
    "loong64", "wasm",
];

/// An operating system, an architecture and perhaps its variant, with the names of the OCI specification (Go's).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Platform {
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) os: String,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) variant: Option<String>,
    /// For a platform that is wanted without a variant: the highest level that is taken if the index offers no lower one.
    #[serde(skip)]
    highest: Option<u8>,
}

impl Platform {
    /// Reads `os/architecture[/variant]`, `os` or `architecture`; missing parts are those of this host. The
    /// architecture may have the kernel's name (`x86_64`, `aarch64`).
    ///
    /// # Errors
    /// A message for anything else.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        let is_word = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        let malformed = || format!("--platform {text:?}: not os/architecture[/variant] (linux/amd64, linux/arm/v7)");
        if parts.len() > 3 || !parts.iter().all(is_word) {
            return Err(malformed());
        }
        let host = Self::host();
        let new = |os: &str, architecture: &str, variant: Option<&&str>| {
            let (os, architecture) = (os.to_ascii_lowercase(), architecture.to_ascii_lowercase());
            let variant = variant.map(|variant| variant.to_ascii_lowercase());
            let named = Self { os, architecture, variant, highest: None }.normalized();
            let highest = host.highest.filter(|_| named.architecture == host.architecture);
            Self { highest, ..named }
        };
        match parts.as_slice() {
            [os] if SYSTEMS.contains(&os.to_ascii_lowercase().as_str()) => Ok(new(os, &host.architecture, None)),
            [architecture] => {
                let platform = new(&host.os, architecture, None);
                let is_known = ARCHITECTURES.contains(&platform.architecture.as_str());
                is_known.then_some(platform).ok_or_else(malformed)
            }
            [os, architecture, variant @ ..] => Ok(new(os, architecture, variant.first())),
            [] => Err(malformed()),
        }
    }

    /// This host's.
    pub(crate) fn host() -> Self {
        let (os, architecture) = ("linux".into(), Architecture::HOST.oci_name().into());
        Self { os, architecture, variant: None, highest: Architecture::level() }
    }

    /// The same platform in Go's names, as containerd normalizes it; `unknown` becomes empty.
    pub(crate) fn normalized(&self) -> Self {
        let known = |name: &str| if name == "unknown" { String::new() } else { name.to_ascii_lowercase() };
        let variant = self.variant.as_deref().filter(|variant| !variant.is_empty()).map(str::to_ascii_lowercase);
        let (architecture, variant) = match (known(&self.architecture).as_str(), variant.as_deref()) {
            ("x86_64" | "x86-64", _) => ("amd64".to_owned(), variant),
            ("i386" | "i486" | "i586" | "i686", _) => ("386".to_owned(), None),
            ("armhf", _) => ("arm".to_owned(), Some("v7".to_owned())),
            ("armel", _) => ("arm".to_owned(), Some("v6".to_owned())),
            ("arm", Some("5" | "6" | "7" | "8")) => ("arm".to_owned(), variant.map(|variant| format!("v{variant}"))),
            ("aarch64" | "arm64", Some("8")) => ("arm64".to_owned(), Some("v8".to_owned())),
            ("aarch64", _) => ("arm64".to_owned(), variant),
            (architecture, _) => (architecture.to_owned(), variant),
        };
        Self { os: known(&self.os), architecture, variant, highest: self.highest }
    }

    /// Whether neither the system nor the architecture is known.
    pub(crate) fn is_empty(&self) -> bool {
        let known = self.normalized();
        known.os.is_empty() && known.architecture.is_empty()
    }

    /// Whether both the system and the architecture are known.
    pub(crate) fn is_complete(&self) -> bool {
        let known = self.normalized();
        !known.os.is_empty() && !known.architecture.is_empty()
    }

    /// Whether an image for `offered` is for this system and architecture, as far as it says.
    pub(crate) fn covers(&self, offered: &Self) -> bool {
        let (wanted, offered) = (self.normalized(), offered.normalized());
        let same = |offered: &str, wanted: &str| offered.is_empty() || offered == wanted;
        same(&offered.os, &wanted.os) && same(&offered.architecture, &wanted.architecture)
    }

    /// How well an image for `offered` runs where `self` is wanted; `None` where it does not. An incomplete platform may be
    /// the right one, but a complete one is preferred.
    pub(crate) fn fit(&self, offered: &Self) -> Option<u8> {
        if !self.covers(offered) {
            return None;
        }
        let (wanted, offered) = (self.normalized(), offered.normalized());
        if !offered.is_complete() {
            return Some(0);
        }
        let highest = wanted.highest.unwrap_or(1);
        let (wanted, offered) = (wanted.level(), offered.level());
        match (wanted, offered) {
            (wanted, offered) if wanted == offered => Some(u8::MAX),
            (_, None) => Some(1),
            // A processor runs programs that were built for a lower level of its architecture.
            (Some(wanted), Some(offered)) => (offered < wanted).then_some(offered.saturating_add(2)),
            // Every processor of the architecture has the lowest level. The lower it is, the more machines have it.
            (None, Some(offered)) => (offered <= highest).then_some(u8::MAX - offered.max(1)),
        }
    }

    /// The number of the variant, or of the one that the name alone means; `None` where it means none.
    fn level(&self) -> Option<u8> {
        let usual = match self.architecture.as_str() {
            "arm" => Some(7),
            "arm64" => Some(8),
            _ => None,
        };
        let variant = self.variant.as_deref().and_then(|variant| variant.strip_prefix('v')?.parse().ok());
        variant.or(usual)
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
            ("linux/amd64/v3", &["linux/amd64/v4", "linux/amd64/v1", "linux/amd64/v2"], Some(2)),
            ("linux/amd64", &["linux/amd64/v2", "linux/amd64/v1"], Some(1)),
            ("linux/arm/v7", &["linux/arm/v8", "linux/arm/v5", "linux/arm/v6"], Some(2)),
            ("arm64", &["Linux/aarch64"], Some(0)),
            ("x86_64", &["linux/arm64", "linux/amd64"], Some(1)),
            ("linux/amd64", &["windows/amd64", "linux/riscv64"], None),
            ("linux/amd64", &["linux/amd64", "linux/amd64/v1"], Some(0)),
            ("linux/amd64", &["linux/amd64", "linux/amd64/v0"], Some(0)),
            ("linux/amd64/v3", &["linux/amd64/v1", "linux/amd64"], Some(0)),
        ] {
            let wanted = Platform { highest: None, ..Platform::parse(wanted).unwrap() };
            let fits = offered.iter().enumerate();
            let fits = fits.filter_map(|(at, text)| Some((wanted.fit(&Platform::parse(text).unwrap())?, at)));
            assert_eq!(fits.max().map(|(_, at)| at), best, "{wanted} of {offered:?}");
        }
    }

    #[test]
    fn a_variant_that_this_machine_has_will_do_where_none_is_wanted() {
        for (highest, offered, best) in [
            (2, &["linux/amd64/v2"][..], Some(0)),
            (2, &["linux/amd64/v3"], None),
            (3, &["linux/amd64/v3", "linux/amd64/v2"], Some(1)),
            (3, &["linux/amd64/v3", "linux/amd64/v1"], Some(1)),
            (3, &["linux/amd64/v2", "linux/amd64"], Some(1)),
            (3, &["linux/amd64/v4", "linux/arm64/v2"], None),
        ] {
            let wanted = Platform { highest: Some(highest), ..Platform::parse("linux/amd64").unwrap() };
            let fits = offered.iter().enumerate();
            let fits = fits.filter_map(|(at, text)| Some((wanted.fit(&Platform::parse(text).unwrap())?, at)));
            assert_eq!(fits.max().map(|(_, at)| at), best, "v{highest} of {offered:?}");
        }
        // A variant that is named is the highest one, and this machine's says nothing about other architectures.
        let host = Platform::host();
        assert_eq!(Platform::parse("linux").unwrap().highest, host.highest);
        let other = if host.architecture == "amd64" { "linux/386" } else { "linux/amd64" };
        assert_eq!(Platform::parse(other).unwrap().highest, None);
    }

    #[test]
    fn an_incomplete_platform_fits_less_well_than_a_complete_one() {
        let wanted = Platform::parse("linux/amd64").unwrap();
        let offer = |os: &str, architecture: &str| {
            let offered = Platform { os: os.into(), architecture: architecture.into(), ..Platform::default() };
            (wanted.fit(&offered), wanted.covers(&offered), offered.is_empty())
        };
        assert_eq!(offer("linux", "amd64"), (Some(u8::MAX), true, false));
        assert_eq!(offer("", "x86_64"), (Some(0), true, false));
        assert_eq!(offer("linux", "x86-64"), (Some(u8::MAX), true, false));
        assert_eq!(offer("linux", ""), (Some(0), true, false));
        assert_eq!(offer("unknown", "unknown"), (Some(0), true, true));
        assert_eq!(offer("", "arm64"), (None, false, false));
    }

    #[test]
    fn a_platform_is_read_in_all_its_spellings() {
        let host = Platform::host();
        for (text, platform) in [
            ("linux", host.to_string()),
            ("amd64", "linux/amd64".into()),
            ("Linux/X86_64", "linux/amd64".into()),
            ("linux/armhf", "linux/arm/v7".into()),
            ("armel", "linux/arm/v6".into()),
            ("linux/arm/6", "linux/arm/v6".into()),
            ("linux/arm64/8", "linux/arm64/v8".into()),
            ("aarch64", "linux/arm64".into()),
            ("i386", "linux/386".into()),
            ("linux/i686/v2", "linux/386".into()),
            ("windows/amd64", "windows/amd64".into()),
            ("Windows", format!("windows/{}", host.architecture)),
            ("linux/some_thing", "linux/some_thing".into()),
        ] {
            assert_eq!(Platform::parse(text).unwrap().to_string(), platform, "{text}");
        }
        let silent = Platform { variant: Some(String::new()), ..Platform::parse("linux/amd64").unwrap() };
        assert_eq!((silent.to_string(), silent.normalized().variant), ("linux/amd64".to_owned(), None));
    }

    #[test]
    fn other_forms_are_refused() {
        for bad in ["", "x", "linux/", "/amd64", "a/b/c/d", "linux/amd 64"] {
            assert!(Platform::parse(bad).is_err(), "{bad:?}");
        }
    }
}
