//! The certificates for one registry: an authority that the caller names, and the directories of containers-certs.d(5).

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use reqwest::{Certificate, Identity};

/// Where directories of registries are, in the order in which they are looked for; the user's own comes first.
const SYSTEM: [&str; 2] = ["/etc/containers/certs.d", "/etc/docker/certs.d"];

/// The certificates for a registry besides the system's authorities.
#[derive(Default)]
pub(super) struct Certificates {
    /// Authorities to trust in addition.
    pub(super) authorities: Vec<Certificate>,
    /// The client's own certificate and its key.
    pub(super) identity: Option<Identity>,
}

impl Certificates {
    /// Those for a registry (`host:5000`): of `dir`, or else of the directory that has the registry's name.
    ///
    /// # Errors
    /// A message for a certificate that cannot be read, or a client certificate without its key.
    pub(super) fn find(registry: &str, dir: Option<&Path>) -> anyhow::Result<Self> {
        if let Some(dir) = dir {
            return Self::read(dir).with_context(|| format!("--cert-dir {dir:?}"));
        }
        let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
        let user = home.map(|home| Path::new(&home).join(".config/containers/certs.d"));
        let dirs = user.into_iter().chain(SYSTEM.map(PathBuf::from)).map(|dir| dir.join(registry));
        let Some(dir) = dirs.into_iter().find(|dir| dir.is_dir()) else { return Ok(Self::default()) };
        Self::read(&dir).with_context(|| format!("certificates {dir:?}"))
    }

    /// Reads `*.crt` as authorities, and `*.cert` with the `*.key` of the same name as the client's.
    fn read(dir: &Path) -> anyhow::Result<Self> {
        let mut paths = fs::read_dir(dir)?.map(|child| Ok(child?.path())).collect::<std::io::Result<Vec<_>>>()?;
        paths.sort();
        let mut found = Self::default();
        for path in &paths {
            match path.extension().and_then(OsStr::to_str) {
                Some("crt") => found.authorities.extend(authorities(path)?),
                // reqwest takes one identity, and a registry has one.
                Some("cert") if found.identity.is_none() => found.identity = Some(identity(path)?),
                Some("key") => {
                    ensure!(path.with_extension("cert").exists(), "{path:?} is a key without its certificate, .cert");
                }
                _ => {}
            }
        }
        Ok(found)
    }

    /// Whether nothing was found.
    pub(super) fn is_empty(&self) -> bool {
        self.authorities.is_empty() && self.identity.is_none()
    }
}

/// The certificates of a file in PEM form.
///
/// # Errors
/// A message with the file's name.
pub(super) fn authorities(path: &Path) -> anyhow::Result<Vec<Certificate>> {
    let text = fs::read(path).with_context(|| format!("{path:?}"))?;
    let certificates = Certificate::from_pem_bundle(&text).with_context(|| format!("{path:?}"))?;
    ensure!(!certificates.is_empty(), "{path:?}: no PEM certificate in it");
    Ok(certificates)
}

fn identity(certificate: &Path) -> anyhow::Result<Identity> {
    let key = certificate.with_extension("key");
    let mut pem = fs::read(certificate).with_context(|| format!("{certificate:?}"))?;
    let key_pem = match fs::read(&key) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            anyhow::bail!("{certificate:?} is a certificate without its key, {key:?}")
        }
        other => other.with_context(|| format!("{key:?}"))?,
    };
    pem.push(b'\n');
    pem.extend(key_pem);
    Identity::from_pem(&pem).with_context(|| format!("{certificate:?} and {key:?}: not a PEM certificate and its key"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_incomplete_is_an_error() {
        for (file, message) in [
            ("client.cert", "without its key"),
            ("client.key", "without its certificate"),
            ("ca.crt", "no PEM certificate"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(file), "").unwrap();
            let error = Certificates::find("host", Some(dir.path())).err().map(|error| format!("{error:#}")).unwrap();
            assert!(error.starts_with("--cert-dir ") && error.contains(message), "{error}");
        }
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("README"), "").unwrap();
        assert!(Certificates::find("host", Some(dir.path())).unwrap().is_empty());
    }
}
