//! A registry, as the OCI distribution specification describes it: which document a tag names, documents and blobs.
//! Requests, retries and authentication are in [`msb_registry::client`].

use std::io::Write;

use anyhow::{bail, ensure};
use reqwest::header::CONTENT_RANGE;
use reqwest::{Method, StatusCode};

use crate::image::Blob;
use crate::manifest::{MAX_MANIFEST, MEDIA_TYPES};
use msb_registry::client::{Body, Client, Failure, Options};
use msb_registry::credentials::Lookup;
use msb_registry::digest::Digest;
use msb_registry::reference::Reference;
use msb_registry::retry::Retry;

/// How much of a blob must come between two failures for it to count as progress, in bytes.
const PROGRESS: u64 = 1 << 16;

/// One repository of a registry.
pub(crate) struct Registry {
    client: Client,
    reference: Reference,
    /// Whether another endpoint can be asked instead.
    has_alternative: bool,
}

impl Registry {
    /// Sets up a client. The first request authenticates if the registry asks for it.
    ///
    /// # Errors
    /// A message for certificates that cannot be used.
    pub(crate) fn connect(
        reference: &Reference,
        options: &Options,
        lookup: Lookup,
        has_alternative: bool,
    ) -> anyhow::Result<Self> {
        Ok(Self { client: Client::new(reference, options, lookup)?, reference: reference.clone(), has_alternative })
    }

    fn retry(&self) -> Retry {
        if self.has_alternative { Retry::once() } else { Retry::new() }
    }

    /// The digest that the reference names now. Fetches no document if the registry sends the digest in a header.
    ///
    /// # Errors
    /// A message for an image that is not there.
    pub(crate) fn resolve(&self) -> anyhow::Result<Digest> {
        let path = self.path_by_tag();
        match self.client.send(Method::HEAD, &path, Some(MEDIA_TYPES), None, &mut Retry::none()) {
            Ok(answer) => {
                if let Some(Ok(digest)) = answer.header("docker-content-digest").map(Digest::parse) {
                    return Ok(digest);
                }
            }
            // The body of a GET has the reason, and some servers fail at HEAD alone. Only the GET is made again.
            Err(error) if self.client.is_answer(&error) || self.client.is_transient(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(Digest::of(&self.document(&path)?))
    }

    fn path_by_tag(&self) -> String {
        format!("manifests/{}", self.reference.tag.as_deref().unwrap_or("latest"))
    }

    fn document(&self, path: &str) -> anyhow::Result<Vec<u8>> {
        let mut retry = self.retry();
        loop {
            let answer = self.client.send(Method::GET, path, Some(MEDIA_TYPES), None, &mut retry)?;
            match self.client.read(answer, MAX_MANIFEST) {
                Ok(Body::Whole(text)) => return Ok(text),
                Ok(Body::TooLong) => bail!("the registry's manifest has more than {MAX_MANIFEST} bytes"),
                Err(failure) => self.client.pause(failure, &mut retry, &mut std::io::sink())?,
            }
        }
    }

    /// The manifest with this digest. `is_tagged`: the tag of the reference names it.
    ///
    /// # Errors
    /// A message that names the registry, or has both digests.
    pub(crate) fn manifest(&self, digest: &Digest, is_tagged: bool) -> anyhow::Result<Vec<u8>> {
        let text = match self.document(&format!("manifests/{digest}")) {
            // A tree of files on a web server may have manifests by tag only.
            Err(error) if is_tagged && self.client.is_answer(&error) => self.document(&self.path_by_tag())?,
            other => other?,
        };
        digest.check(&text).map(|()| text)
    }

    /// Writes a blob without its first `done` bytes to `out`, not verified, and counts in `done` what was written. Continues
    /// after a broken connection: what has arrived is already hashed and decompressed.
    ///
    /// # Errors
    /// A message that names the registry; the writer's [`std::io::Error`].
    pub(crate) fn copy_blob(&self, blob: &Blob, done: &mut u64, out: &mut dyn Write) -> anyhow::Result<()> {
        let path = format!("blobs/{}", blob.name_in(Digest::to_string));
        let (mut retry, mut mark) = (self.retry(), *done);
        let (mut is_short, mut has_ranges) = (false, true);
        loop {
            let range = (*done > 0 && has_ranges).then_some(*done);
            let answer = match self.client.send(Method::GET, &path, None, range, &mut retry) {
                // The registry refuses ranges, or has less than the descriptor says, which the caller reports.
                Ok(answer) if answer.status() == StatusCode::RANGE_NOT_SATISFIABLE => match range {
                    Some(_) => {
                        has_ranges = false;
                        continue;
                    }
                    None => return Ok(()),
                },
                other => other?,
            };
            // A registry without ranges starts again, and so does one that sends another range.
            let skip = match answer.status() {
                StatusCode::PARTIAL_CONTENT => {
                    let start = answer.header(CONTENT_RANGE.as_str()).and_then(parse_range_start);
                    if range.is_some() && start.is_none_or(|start| start > *done) {
                        has_ranges = false;
                        continue;
                    }
                    ensure!(start.is_some_and(|start| start <= *done), "the registry answers with another range");
                    *done - start.unwrap_or_default()
                }
                _ => *done,
            };
            let ended = self.client.copy(answer, skip, done, out);
            if *done - mark >= PROGRESS {
                (retry, mark) = (self.retry(), *done);
            }
            match ended {
                Err(Failure::Output(error)) => return Err(error.into()),
                _ if *done >= blob.size => return Ok(()),
                // The registry may have less than the descriptor says, which the caller reports.
                Ok(()) if is_short => return Ok(()),
                Ok(()) => is_short = true,
                Err(failure) => self.client.pause(failure, &mut retry, out)?,
            }
        }
    }
}

/// The start of a `Content-Range`: `bytes 100-199/200`.
fn parse_range_start(value: &str) -> Option<u64> {
    value.trim().strip_prefix("bytes")?.trim_start().split('-').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_begins_at_its_first_number() {
        for (value, start) in
            [("bytes 100-199/200", Some(100)), ("bytes 0-9/*", Some(0)), ("bytes */200", None), ("100-", None)]
        {
            assert_eq!(parse_range_start(value), start, "{value}");
        }
    }
}
