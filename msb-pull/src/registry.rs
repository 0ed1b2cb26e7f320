//! A registry, over HTTP or HTTPS. The only room with an async runtime in it: the rest of the tool is threads, and waits
//! here.

use std::io::{self, Write};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context as Task, Poll};
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use msb::tool::exit::printable;
use oci_distribution::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_distribution::errors::{OciDistributionError, OciErrorCode};
use oci_distribution::secrets::RegistryAuth;
use oci_distribution::{Client, Reference, RegistryOperation};
use tokio::io::AsyncWrite;
use tokio::runtime::Runtime;

use crate::credentials::Credentials;
use crate::digest::Digest;
use crate::image::{Blob, Origin};
use crate::manifest::{MAX_MANIFEST, MEDIA_TYPES};

/// How long a registry may be silent. Not a limit for a download that moves.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one document or the authentication may take as a whole, for a registry that sends a byte now and then.
const DOCUMENT_LIMIT: Duration = Duration::from_secs(120);

/// One repository of a registry.
pub(crate) struct Registry {
    runtime: Runtime,
    client: Client,
    reference: Reference,
    plain_http: bool,
}

impl Registry {
    /// Gets ready, and authenticates where the registry asks for it.
    ///
    /// # Errors
    /// Words for a registry that cannot be reached or refuses.
    pub(crate) fn connect(
        reference: &Reference,
        plain_http: bool,
        ca_file: Option<&Path>,
        credentials: Option<Credentials>,
    ) -> anyhow::Result<Self> {
        let certificates = ca_file.map(certificate).transpose()?;
        let proxies = Proxies::of_environment();
        let config = ClientConfig {
            http_proxy: proxies.http,
            https_proxy: proxies.https,
            no_proxy: Some(proxies.none),
            protocol: if plain_http { ClientProtocol::Http } else { ClientProtocol::Https },
            extra_root_certificates: certificates.into_iter().collect(),
            connect_timeout: Some(PATIENCE),
            read_timeout: Some(PATIENCE),
            user_agent: concat!("msb-pull/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        // The client leaves the choice to the program. An error: it is made already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::try_from(config).map_err(|error| anyhow!("cannot set TLS up: {}", deepest(&error)))?;
        // One thread moves the bytes of all connections; the processors are for decompressing and writing.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let registry = Self { runtime, client, reference: reference.clone(), plain_http };
        let auth = credentials.map_or(RegistryAuth::Anonymous, |it| RegistryAuth::Basic(it.user, it.password));
        let authenticated = registry.client.auth(reference, &auth, RegistryOperation::Pull);
        registry.wait(authenticated)?;
        Ok(registry)
    }

    /// What the reference stands for now, as the registry says. Moves no document.
    ///
    /// # Errors
    /// Words for an image that is not there.
    pub(crate) fn resolve(&self) -> anyhow::Result<Digest> {
        let digest = self.client.fetch_manifest_digest(&self.reference, &RegistryAuth::Anonymous);
        Digest::parse(&self.wait(digest)?)
    }

    fn wait<T>(&self, answer: impl Future<Output = Result<T, OciDistributionError>>) -> anyhow::Result<T> {
        match self.runtime.block_on(async { tokio::time::timeout(DOCUMENT_LIMIT, answer).await }) {
            Ok(answer) => answer.map_err(|error| self.words(error)),
            Err(_) => bail!("registry {:?}: no answer (timed out)", self.reference.resolve_registry()),
        }
    }

    fn words(&self, error: OciDistributionError) -> anyhow::Error {
        let registry = self.reference.resolve_registry();
        match error {
            // The error of whoever takes the bytes, or of the connection in the middle of a blob.
            OciDistributionError::IoError(error) => anyhow::Error::new(error),
            OciDistributionError::UnauthorizedError { .. } => {
                anyhow!("registry {registry:?}: not authorized (log in, or name credentials with --authfile)")
            }
            OciDistributionError::AuthenticationFailure(_) => {
                anyhow!("registry {registry:?}: the credentials were refused (log in again, or use --authfile)")
            }
            OciDistributionError::RegistryError { envelope, .. } => {
                let is = |code: &OciErrorCode| envelope.errors.iter().any(|error| error.code == *code);
                if is(&OciErrorCode::ManifestUnknown) || is(&OciErrorCode::NameUnknown) || is(&OciErrorCode::NotFound) {
                    return anyhow!("not found in registry {registry:?} (is name and tag right?)");
                }
                if is(&OciErrorCode::BlobUnknown) {
                    return anyhow!("registry {registry:?} does not have it (push the image again)");
                }
                if is(&OciErrorCode::Denied) || is(&OciErrorCode::Unauthorized) {
                    return anyhow!(
                        "registry {registry:?}: access denied (log in, or name credentials with --authfile)"
                    );
                }
                let said: Vec<&str> = envelope.errors.iter().map(|error| error.message.as_str()).collect();
                anyhow!("registry {registry:?}: {}", printable(&said.join(", ")))
            }
            OciDistributionError::ServerError { code: 404, .. } => {
                anyhow!("not found in registry {registry:?} (is name and tag right?)")
            }
            OciDistributionError::ServerError { code, .. } => anyhow!("registry {registry:?}: HTTP status {code}"),
            OciDistributionError::DigestError(error) => anyhow!("registry {registry:?}: {}", lower(&error.to_string())),
            OciDistributionError::RequestError(error) => self.connection_words(&error),
            other => anyhow!("registry {registry:?}: {}", lower(&deepest(&other))),
        }
    }

    fn connection_words(&self, error: &(dyn std::error::Error + 'static)) -> anyhow::Error {
        let registry = self.reference.resolve_registry();
        let chain: Vec<_> = std::iter::successors(Some(error), |error| error.source()).collect();
        let kind = chain.iter().find_map(|error| error.downcast_ref::<io::Error>()).map(io::Error::kind);
        let text = chain.iter().map(ToString::to_string).collect::<Vec<_>>().join(": ");
        let why = if kind == Some(io::ErrorKind::ConnectionRefused) {
            "connection refused (is it running, and is the port right?)".to_owned()
        } else if text.contains("dns error") {
            "unknown host (is the name right?)".to_owned()
        } else if text.contains("UnknownIssuer") {
            "its certificate is of an unknown authority (name it with --ca-file)".to_owned()
        } else if text.contains("InvalidContentType") {
            "it does not speak TLS (use --plain-http if that is meant)".to_owned()
        } else if text.contains("certificate") {
            format!("its certificate is not good: {}", lower(&deepest(error)))
        } else if text.contains("timed out") {
            "no answer (timed out)".to_owned()
        } else if self.plain_http && text.contains("invalid HTTP") {
            "it does not speak plain HTTP (leave --plain-http out)".to_owned()
        } else {
            lower(&deepest(error))
        };
        anyhow!("registry {registry:?}: {why}")
    }
}

impl Origin for Registry {
    fn manifest(&self, digest: &Digest) -> anyhow::Result<Vec<u8>> {
        let reference = self.reference.clone_with_digest(digest.to_string());
        let pulled = self.client.pull_manifest_raw(&reference, &RegistryAuth::Anonymous, MEDIA_TYPES);
        let (text, _) = self.wait(pulled)?;
        ensure!(text.len() as u64 <= MAX_MANIFEST, "manifest of {} bytes, {MAX_MANIFEST} at most", text.len());
        Ok(text.to_vec())
    }

    fn copy_blob(&self, blob: &Blob, out: &mut dyn Write) -> anyhow::Result<()> {
        let name = blob.name_in(Digest::to_string);
        let pulled = self.client.pull_blob(&self.reference, name.as_str(), Blocking(out));
        match self.runtime.block_on(pulled) {
            // The digest is checked by the caller, who has better words for it.
            Ok(()) | Err(OciDistributionError::DigestError(_)) => Ok(()),
            Err(OciDistributionError::RequestError(error)) if error.is_body() || error.is_decode() => {
                bail!("truncated: the connection broke")
            }
            Err(error) => Err(self.words(error)),
        }
    }
}

/// A writer that blocks. Each blob is waited for on a thread of its own, so only that thread is held up, and the registry
/// slows down with it.
struct Blocking<'a>(&'a mut dyn Write);

impl AsyncWrite for Blocking<'_> {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Task<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(self.0.write_all(bytes).map(|()| bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Task<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.flush())
    }

    fn poll_shutdown(self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(task)
    }
}

/// The proxies of the environment. Loopback goes without one, as docker and skopeo have it.
struct Proxies {
    http: Option<String>,
    https: Option<String>,
    none: String,
}

impl Proxies {
    fn of_environment() -> Self {
        let variable = |upper: &str| {
            let value = std::env::var(upper.to_lowercase()).or_else(|_| std::env::var(upper)).ok();
            value.filter(|value| !value.is_empty())
        };
        let all = variable("ALL_PROXY");
        let none = [variable("NO_PROXY").as_deref().unwrap_or_default(), "localhost,127.0.0.0/8,::1"].join(",");
        Self { http: variable("HTTP_PROXY").or_else(|| all.clone()), https: variable("HTTPS_PROXY").or(all), none }
    }
}

fn certificate(path: &Path) -> anyhow::Result<Certificate> {
    let data = std::fs::read(path).with_context(|| format!("--ca-file {path:?}"))?;
    let has_one = data.windows(27).any(|line| line == b"-----BEGIN CERTIFICATE-----");
    ensure!(has_one, "--ca-file {path:?}: no PEM certificate in it");
    Ok(Certificate { encoding: CertificateEncoding::Pem, data })
}

fn deepest(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(Some(error), |error| error.source()).last().unwrap_or(error).to_string()
}

/// Words of somebody else, which may quote the registry, in the grammar of ours.
fn lower(words: &str) -> String {
    let words = printable(words);
    let mut chars = words.trim_end_matches('.').chars();
    chars.next().map_or_else(String::new, |first| first.to_ascii_lowercase().to_string() + chars.as_str())
}
