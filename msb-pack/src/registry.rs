//! A repository of a registry, as the OCI distribution specification describes it: blobs out of it, blobs and manifests into it.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail, ensure};
use msb::tool::interrupt;
use msb_registry::client::{Answer, Client, Options};
use msb_registry::credentials;
use msb_registry::reference::Reference;
use msb_registry::registries::{Endpoint, Registries};
use msb_registry::retry::Retry;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Method, StatusCode, Url};

use crate::digest::digest;

/// How often the upload of a blob is begun before its error counts.
const ATTEMPTS: usize = 3;
const OCTETS: &str = "application/octet-stream";

/// How registries are reached.
#[derive(Clone, Debug, Default)]
pub(crate) struct Access {
    pub(crate) options: Options,
    pub(crate) authfile: Option<PathBuf>,
}

/// One repository.
pub(crate) struct Registry {
    client: Client,
    /// Where its registry is, which registries.conf may say.
    reference: Reference,
}

impl Registry {
    /// Sets up a client. The first request authenticates if the registry asks for it.
    ///
    /// # Errors
    /// A message for certificates or credentials that cannot be used.
    pub(crate) fn connect(reference: &Reference, access: &Access) -> anyhow::Result<Self> {
        let registries = Registries::load()?;
        // The mirrors come first, and they only serve.
        let endpoint = registries.endpoints(reference)?.pop();
        let Endpoint { reference, insecure } = endpoint.context("registries.conf has no place for it")?;
        let image = format!("{}/{}", reference.registry, reference.repository);
        let lookup = credentials::find(&image, access.authfile.as_deref(), &registries.credential_helpers())?;
        let tls_verify = access.options.tls_verify.or(Some(!insecure));
        let client = Client::new(&reference, &Options { tls_verify, ..access.options.clone() }, lookup)?;
        Ok(Self { client, reference })
    }

    /// Writes a blob of `size` bytes to `out`. A broken connection is continued. The caller checks the digest.
    ///
    /// # Errors
    /// A message that names the registry.
    pub(crate) fn fetch(&self, digest: &str, size: u64, out: &mut dyn Write) -> anyhow::Result<()> {
        let (mut retry, mut done) = (Retry::new(), 0);
        let mut out = AtMost { out, left: size };
        loop {
            let range = (done > 0).then_some(done);
            let answer = self.client.send(Method::GET, &format!("blobs/{digest}"), None, range, &mut retry)?;
            let skip = if answer.status() == StatusCode::PARTIAL_CONTENT { 0 } else { done };
            match self.client.copy(answer, skip, &mut done, &mut out) {
                Ok(()) if out.left == 0 => return Ok(()),
                Ok(()) => bail!("truncated: {done} of {size} bytes came"),
                Err(failure) => self.client.pause(failure, &mut retry, &mut io::sink())?,
            }
        }
    }

    /// Stores a manifest, by which `tag` names an image.
    ///
    /// # Errors
    /// A message that names the registry.
    pub(crate) fn put_manifest(&self, tag: &str, kind: &str, text: &[u8]) -> anyhow::Result<()> {
        let url = self.client.url(&format!("manifests/{tag}"));
        let build = |request: reqwest::RequestBuilder| request.header(CONTENT_TYPE, kind).body(text.to_vec());
        let answer = self.client.request(Method::PUT, &url, &build, &mut Retry::new())?;
        if let Some(stored) = answer.header("docker-content-digest") {
            ensure!(stored == digest(text), "registry {:?} stored another manifest", self.reference.registry);
        }
        Ok(())
    }

    /// Sends a blob that is in memory.
    ///
    /// # Errors
    /// A message that names the registry.
    pub(crate) fn upload_bytes(&self, digest: &str, bytes: &[u8]) -> anyhow::Result<()> {
        self.with_retries(|| self.put(digest, &self.begin()?, bytes.to_vec()))
    }

    /// Whether the repository has a blob.
    ///
    /// # Errors
    /// A message that names the registry, for trouble on the way to it.
    pub(crate) fn has(&self, digest: &str) -> anyhow::Result<bool> {
        interrupt::check()?;
        match self.client.send(Method::HEAD, &format!("blobs/{digest}"), None, None, &mut Retry::new()) {
            Ok(_) => Ok(true),
            // It is missing, or a message of the registry follows when it is sent.
            Err(error) if self.client.is_answer(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Asks the registry for a blob of its repository `from`. It may begin an upload instead, which expires.
    ///
    /// # Errors
    /// As [`Self::has`].
    pub(crate) fn mount(&self, digest: &str, from: &str) -> anyhow::Result<bool> {
        let mut url = Url::parse(&self.client.url("blobs/uploads/"))?;
        url.query_pairs_mut().append_pair("mount", digest).append_pair("from", from);
        match self.client.request(Method::POST, url.as_str(), &|request| request, &mut Retry::new()) {
            Ok(answer) => Ok(answer.status() == StatusCode::CREATED),
            Err(error) if self.client.is_answer(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Begins an upload, and returns where it continues.
    fn begin(&self) -> anyhow::Result<Url> {
        let url = self.client.url("blobs/uploads/");
        self.location(&self.client.request(Method::POST, &url, &|request| request, &mut Retry::new())?)
    }

    fn location(&self, answer: &Answer) -> anyhow::Result<Url> {
        let location = answer.header("location");
        let location =
            location.with_context(|| format!("registry {:?}: an upload without a place", self.reference.registry))?;
        Ok(Url::parse(&self.client.url(""))?.join(location)?)
    }

    /// Sends a blob: the first `size` bytes of a file.
    ///
    /// # Errors
    /// A message that names the registry.
    pub(crate) fn upload(&self, digest: &str, size: u64, file: &Arc<File>) -> anyhow::Result<()> {
        self.with_retries(|| {
            let answer = self.client.upload(self.begin()?.as_str(), file, size)?;
            ensure!(answer.status().is_success(), "the registry has another part of it");
            self.put(digest, &self.location(&answer)?, Vec::new())
        })
    }

    /// Sends the rest of a blob, and ends its upload.
    fn put(&self, digest: &str, place: &Url, rest: Vec<u8>) -> anyhow::Result<()> {
        let mut url = place.clone();
        url.query_pairs_mut().append_pair("digest", digest);
        let build = |request: reqwest::RequestBuilder| request.header(CONTENT_TYPE, OCTETS).body(rest.clone());
        let answer = self.client.request(Method::PUT, url.as_str(), &build, &mut Retry::once())?;
        ensure!(answer.status().is_success(), "the registry has another part of it");
        Ok(())
    }

    /// Begins an upload again after a failure: what has arrived of one that broke is not known.
    fn with_retries(&self, upload: impl Fn() -> anyhow::Result<()>) -> anyhow::Result<()> {
        let mut last = anyhow!("no attempt");
        for _ in 0..ATTEMPTS {
            interrupt::check()?;
            match upload() {
                Ok(()) => return Ok(()),
                Err(error) if self.client.is_answer(&error) || error.is::<io::Error>() => return Err(error),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// Refuses more than a blob may have.
struct AtMost<'a> {
    out: &'a mut dyn Write,
    left: u64,
}

impl Write for AtMost<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            return Err(io::Error::other("longer than its descriptor says"));
        }
        self.left -= bytes.len() as u64;
        self.out.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
