//! The places that may serve an image: the mirrors of its registry, then the registry itself. The first one that answers is asked
//! first from then on, and a blob that breaks off at one continues at the next.

use std::io::Write;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::anyhow;

use crate::image::{Blob, Origin};
use crate::registry::Registry;
use msb_registry::client::Options;
use msb_registry::credentials;
use msb_registry::digest::Digest;
use msb_registry::registries::{Endpoint, Registries};

/// The endpoints of one image.
pub(crate) struct Endpoints<'a> {
    registries: &'a Registries,
    options: &'a Options,
    authfile: Option<&'a Path>,
    endpoints: Vec<Lazy>,
    /// What the tag of the reference names.
    tagged: OnceLock<Digest>,
    /// The one that answered last.
    first: AtomicUsize,
}

/// An endpoint. Its client is made when it is needed.
struct Lazy {
    endpoint: Endpoint,
    registry: OnceLock<Result<Registry, String>>,
}

impl<'a> Endpoints<'a> {
    /// The endpoints of `list`, in the order in which they are tried.
    pub(crate) fn new(
        registries: &'a Registries,
        list: Vec<Endpoint>,
        options: &'a Options,
        authfile: Option<&'a Path>,
    ) -> Self {
        let endpoints = list.into_iter().map(|endpoint| Lazy { endpoint, registry: OnceLock::new() }).collect();
        Self { registries, options, authfile, endpoints, tagged: OnceLock::new(), first: AtomicUsize::new(0) }
    }

    /// The digest that the reference names now.
    ///
    /// # Errors
    /// A message for an image that is not there.
    pub(crate) fn resolve(&self) -> anyhow::Result<Digest> {
        let digest = self.ask(|registry| registry.resolve())?;
        Ok(self.tagged.get_or_init(|| digest).clone())
    }

    fn connect(&self, Endpoint { reference, insecure }: &Endpoint) -> anyhow::Result<Registry> {
        let image = format!("{}/{}", reference.registry, reference.repository);
        let lookup = credentials::find(&image, self.authfile, &self.registries.credential_helpers())?;
        let options = Options { tls_verify: self.options.tls_verify.or(Some(!insecure)), ..self.options.clone() };
        Registry::connect(reference, &options, lookup, self.endpoints.len() > 1)
    }

    /// Asks one endpoint after the other until one has an answer.
    fn ask<T>(&self, mut question: impl FnMut(&Registry) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let count = self.endpoints.len();
        let first = self.first.load(Ordering::Relaxed);
        let mut failures = Vec::new();
        for at in (0..count).map(|step| (first + step) % count) {
            let Lazy { endpoint, registry } = &self.endpoints[at];
            let registry = registry.get_or_init(|| self.connect(endpoint).map_err(|error| format!("{error:#}")));
            match registry.as_ref().map_err(|message| anyhow!(message.clone())).and_then(&mut question) {
                Ok(answer) => {
                    self.first.store(at, Ordering::Relaxed);
                    return Ok(answer);
                }
                // The disk is full, or another layer has failed: no registry can help.
                Err(error) if error.chain().any(|cause| cause.is::<std::io::Error>()) => return Err(error),
                Err(error) => failures.push(error),
            }
        }
        let last = failures.pop().unwrap_or_else(|| anyhow!("no registry serves it"));
        if failures.is_empty() {
            return Err(last);
        }
        let all: Vec<String> = failures.iter().chain([&last]).map(|error| format!("{error:#}")).collect();
        Err(anyhow!(all.join("; ")))
    }
}

impl Origin for Endpoints<'_> {
    fn manifest(&self, digest: &Digest) -> anyhow::Result<Vec<u8>> {
        self.ask(|registry| registry.manifest(digest, self.tagged.get() == Some(digest)))
    }

    fn copy_blob(&self, blob: &Blob, out: &mut dyn Write) -> anyhow::Result<()> {
        let mut done = 0;
        self.ask(|registry| registry.copy_blob(blob, &mut done, out))
    }
}
