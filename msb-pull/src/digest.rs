//! Digests, and the check of a stream against one. Nothing from a registry or an archive is used before it has passed this check.

use std::fmt;
use std::io;

use anyhow::{bail, ensure};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

/// A SHA-256 digest: the only algorithm that images in the field use.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Digest(String);

impl Digest {
    /// Reads `sha256:` and 64 lower case hex digits.
    ///
    /// # Errors
    /// A message for anything else.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let Some(hex) = text.strip_prefix("sha256:") else {
            bail!("digest {text:?}: not a sha256 digest, and no other is supported");
        };
        let is_hex = hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        ensure!(hex.len() == 64 && is_hex, "digest {text:?}: not 64 lower case hex digits");
        Ok(Self(hex.to_owned()))
    }

    /// The digest of `bytes`.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let mut hash = Hash::default();
        hash.update(bytes);
        hash.finish()
    }

    /// The hex digits; a file name that cannot lead anywhere else.
    pub(crate) fn hex(&self) -> &str {
        &self.0
    }

    /// Checks a document against this digest.
    ///
    /// # Errors
    /// A message with both digests.
    pub(crate) fn check(&self, bytes: &[u8]) -> anyhow::Result<()> {
        self.expect("digest", &Self::of(bytes))
    }

    /// Compares with a computed digest. `what` names its kind in the error message.
    ///
    /// # Errors
    /// A message with both digests.
    pub(crate) fn expect(&self, what: &str, actual: &Self) -> anyhow::Result<()> {
        ensure!(self == actual, "wrong {what}: expected {self}, got {actual}");
        Ok(())
    }
}

impl TryFrom<String> for Digest {
    type Error = anyhow::Error;

    fn try_from(text: String) -> anyhow::Result<Self> {
        Self::parse(&text)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

/// A digest that is being computed.
#[derive(Default)]
pub(crate) struct Hash(Sha256);

impl Hash {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> Digest {
        Digest(hex::encode(self.0.finalize()))
    }
}

/// Passes a blob on and checks its size and digest.
pub(crate) struct Verifier<W> {
    out: W,
    hash: Option<Hash>,
    size: u64,
    taken: u64,
}

impl<W: io::Write> Verifier<W> {
    /// For a blob of `size` bytes. A blob without a digest of its own (docker archives) is not hashed: its layer's
    /// diff_id covers the same bytes.
    pub(crate) fn new(out: W, digest: Option<&Digest>, size: u64) -> Self {
        Self { out, hash: digest.map(|_| Hash::default()), size, taken: 0 }
    }

    /// Ends the blob and hands the writer back.
    ///
    /// # Errors
    /// A message for a blob that ended early, or a wrong digest.
    pub(crate) fn finish(self, digest: Option<&Digest>) -> anyhow::Result<W> {
        ensure!(self.taken == self.size, "truncated: {} of {} bytes came", self.taken, self.size);
        if let (Some(expected), Some(hash)) = (digest, self.hash) {
            expected.expect("digest", &hash.finish())?;
        }
        Ok(self.out)
    }
}

impl<W: io::Write> io::Write for Verifier<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.size - self.taken {
            return Err(io::Error::other(format!("longer than the {} bytes that its descriptor says", self.size)));
        }
        if let Some(hash) = &mut self.hash {
            hash.update(bytes);
        }
        self.taken += bytes.len() as u64;
        self.out.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_digest_is_a_safe_file_name() {
        let hex = "a".repeat(64);
        assert!(Digest::parse(&format!("sha256:{hex}")).is_ok());
        for bad in [hex.clone(), format!("sha512:{hex}"), format!("sha256:{}", "A".repeat(64)), "sha256:../..".into()] {
            assert!(Digest::parse(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_blob_is_neither_shorter_nor_longer_nor_other() {
        let digest = Digest::of(b"blob");
        let verify = |bytes: &[u8]| {
            let mut verifier = Verifier::new(Vec::new(), Some(&digest), 4);
            verifier.write_all(bytes)?;
            verifier.finish(Some(&digest))
        };
        assert_eq!(verify(b"blob").unwrap(), b"blob");
        for (bytes, words) in [(&b"blo"[..], "3 of 4 bytes"), (b"blobs", "longer than the 4"), (b"blub", "got sha256:")]
        {
            assert!(verify(bytes).unwrap_err().to_string().contains(words));
        }
    }
}
