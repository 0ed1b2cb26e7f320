//! Digests of what is written.

use std::io::{self, Write};

use anyhow::Context;
use sha2::{Digest as _, Sha256};

/// The SHA-256 digest of `bytes`, `sha256:…`.
pub(crate) fn digest(bytes: &[u8]) -> String {
    name(Sha256::digest(bytes).as_slice())
}

/// The hex digits of a SHA-256 digest; `None` for anything else. They are a safe file name.
pub(crate) fn hex_of(digest: &str) -> Option<&str> {
    let hex = digest.strip_prefix("sha256:")?;
    let is_hex = hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    (hex.len() == 64 && is_hex).then_some(hex)
}

/// The place of a blob in an OCI layout.
///
/// # Errors
/// A digest of another kind.
pub(crate) fn blob_path(digest: &str) -> anyhow::Result<String> {
    Ok(format!("blobs/sha256/{}", hex_of(digest).context("not a sha256 digest")?))
}

fn name(hash: &[u8]) -> String {
    format!("sha256:{}", hex::encode(hash))
}

/// Passes bytes on, and computes their digest.
pub(crate) struct Hashing<W> {
    out: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Hashing<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, hash: Sha256::new(), size: 0 }
    }

    /// The writer, the digest and the number of bytes.
    pub(crate) fn finish(self) -> (W, String, u64) {
        (self.out, name(self.hash.finalize().as_slice()), self.size)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
