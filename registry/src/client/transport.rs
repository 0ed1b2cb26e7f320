//! How connections to one registry are made: TLS and proxies.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow};

use super::certificates::{Certificates, authorities};
use super::proxies::proxies;
use super::trouble::deepest;

/// How long a registry may be silent before the connection counts as broken.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// How to reach a registry.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whether to speak HTTP without TLS.
    pub plain_http: bool,
    /// `None` unless the caller says so.
    pub tls_verify: Option<bool>,
    /// Authorities besides those of the system, as PEM.
    pub ca_file: Option<PathBuf>,
    /// The directory with the registry's certificates, in place of those of `certs.d`.
    pub cert_dir: Option<PathBuf>,
}

/// The settings of all connections to a registry.
pub(super) struct Transport {
    certificates: Certificates,
    tls_verify: bool,
}

impl Transport {
    /// Finds the certificates for a registry (`host:5000`).
    ///
    /// # Errors
    /// A message for certificates that cannot be used.
    pub(super) fn find(registry: &str, options: &Options) -> anyhow::Result<Self> {
        // reqwest leaves the choice to the program. An error: it is made already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut certificates = Certificates::default();
        if !options.plain_http {
            certificates = Certificates::find(registry, options.cert_dir.as_deref())?;
        }
        if let Some(path) = &options.ca_file {
            certificates.authorities.extend(authorities(path).context("--ca-file")?);
        }
        Ok(Self { certificates, tls_verify: options.tls_verify.unwrap_or(true) })
    }

    /// Whether HTTP without TLS would do as well, as far as these settings say.
    pub(super) fn needs_no_tls(&self) -> bool {
        self.certificates.is_empty()
    }

    /// An HTTP client. With `patience` a request fails when the registry is silent for that long.
    ///
    /// # Errors
    /// A message for settings that the TLS library refuses.
    pub(super) fn client(&self, patience: Option<Duration>) -> anyhow::Result<reqwest::Client> {
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("msb/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(PATIENCE)
            .tls_danger_accept_invalid_certs(!self.tls_verify);
        if let Some(patience) = patience {
            builder = builder.read_timeout(patience);
        }
        if !self.certificates.authorities.is_empty() {
            builder = builder.tls_certs_merge(self.certificates.authorities.clone());
        }
        if let Some(identity) = &self.certificates.identity {
            builder = builder.identity(identity.clone());
        }
        for proxy in proxies()? {
            builder = builder.proxy(proxy);
        }
        builder.build().map_err(|error| anyhow!("cannot set up TLS: {}", deepest(&error)))
    }
}
