//! A file as the body of one request, however long that takes: it fails when nothing moves, not when a time has passed.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use anyhow::anyhow;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use reqwest::header::CONTENT_TYPE;
use reqwest::{Method, RequestBuilder, Response};

use super::transport::PATIENCE;
use super::{Answer, Client, DOCUMENT_LIMIT};
use crate::retry::Retry;

/// How much of the file is in memory at once, in bytes.
const BLOCK: u64 = 256 << 10;

impl Client {
    /// Sends the first `size` bytes of a file with PATCH, once.
    ///
    /// # Errors
    /// A message that names the registry, also if it takes nothing for a while.
    pub fn upload(&self, url: &str, file: &Arc<File>, size: u64) -> anyhow::Result<Answer> {
        // The registry answers after the whole blob, so the answer has no timeout.
        let http = self.transport.client(None)?;
        let sent = Arc::new(AtomicU64::new(0));
        let build = |request: RequestBuilder| {
            sent.store(0, Ordering::Relaxed);
            let body = Blob { file: file.clone(), size, sent: sent.clone() };
            request.header(CONTENT_TYPE, "application/octet-stream").body(reqwest::Body::wrap(body))
        };
        let exchange = |request| self.exchange_while_sending(request, &sent, size);
        self.request_with(&http, Method::PATCH, url, &build, &exchange, &mut Retry::once())
    }

    fn exchange_while_sending(
        &self,
        request: RequestBuilder,
        sent: &AtomicU64,
        size: u64,
    ) -> anyhow::Result<reqwest::Result<Response>> {
        self.runtime.block_on(async {
            let mut answer = std::pin::pin!(request.send());
            loop {
                let before = sent.load(Ordering::Relaxed);
                // A registry may take its time to store what it has.
                let limit = if before == size { DOCUMENT_LIMIT } else { PATIENCE };
                if let Ok(answer) = tokio::time::timeout(limit, &mut answer).await {
                    return Ok(answer);
                }
                if sent.load(Ordering::Relaxed) == before {
                    let registry = &self.reference.registry;
                    return Err(anyhow!("registry {registry:?}: it took nothing for {} s", limit.as_secs()));
                }
            }
        })
    }
}

/// The body: the first `size` bytes of a file. `sent` is how many have been handed over.
struct Blob {
    file: Arc<File>,
    size: u64,
    sent: Arc<AtomicU64>,
}

impl Body for Blob {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let at = self.sent.load(Ordering::Relaxed);
        if at >= self.size {
            return Poll::Ready(None);
        }
        let mut block = vec![0; usize::try_from(BLOCK.min(self.size - at)).unwrap_or_default()];
        Poll::Ready(Some(self.file.read_exact_at(&mut block, at).map(|()| {
            self.sent.store(at + block.len() as u64, Ordering::Relaxed);
            Frame::data(block.into())
        })))
    }

    fn is_end_stream(&self) -> bool {
        self.sent.load(Ordering::Relaxed) >= self.size
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.size.saturating_sub(self.sent.load(Ordering::Relaxed)))
    }
}
