//! Digests, and the check of a stream against one. Nothing from a registry or an archive is used before it has passed this check.

use std::fmt;
use std::io;

use anyhow::{bail, ensure};
use serde::Deserialize;
use sha2::{Digest as _, Sha256, Sha512};

/// The algorithms that the OCI image specification registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    const ALL: [Self; 2] = [Self::Sha256, Self::Sha512];

    fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    fn hex_length(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// A digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct Digest {
    algorithm: Algorithm,
    hex: String,
}

impl Digest {
    /// Reads `sha256:` or `sha512:` and lower case hex digits.
    ///
    /// # Errors
    /// A message for anything else.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let (name, hex) = text.split_once(':').unwrap_or((text, ""));
        let Some(algorithm) = Algorithm::ALL.into_iter().find(|algorithm| algorithm.name() == name) else {
            bail!("digest {text:?}: neither sha256 nor sha512, and no other is supported");
        };
        let is_hex = hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let length = algorithm.hex_length();
        ensure!(hex.len() == length && is_hex, "digest {text:?}: not {length} lower case hex digits");
        Ok(Self { algorithm, hex: hex.to_owned() })
    }

    /// The SHA-256 digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hash = Hash::default();
        hash.update(bytes);
        hash.finish()
    }

    /// The hex digits; a file name that cannot lead anywhere else.
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// The path of the blob in an OCI layout.
    pub fn path_in_layout(&self) -> String {
        format!("blobs/{}/{}", self.algorithm.name(), self.hex)
    }

    /// The first hex digits, for people.
    pub fn short(&self) -> &str {
        &self.hex[..12]
    }

    /// Checks a document against this digest.
    ///
    /// # Errors
    /// A message with both digests.
    pub fn check(&self, bytes: &[u8]) -> anyhow::Result<()> {
        let mut hash = Hash::like(self);
        hash.update(bytes);
        self.expect("digest", &hash.finish())
    }

    /// Compares with a computed digest. `what` names its kind in the error message.
    ///
    /// # Errors
    /// A message with both digests.
    pub fn expect(&self, what: &str, actual: &Self) -> anyhow::Result<()> {
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
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

/// A digest that is being computed.
pub enum Hash {
    /// SHA-256.
    Sha256(Sha256),
    /// SHA-512.
    Sha512(Box<Sha512>),
}

impl Default for Hash {
    fn default() -> Self {
        Self::Sha256(Sha256::new())
    }
}

impl Hash {
    /// For a comparison with `digest`.
    pub fn like(digest: &Digest) -> Self {
        match digest.algorithm {
            Algorithm::Sha256 => Self::default(),
            Algorithm::Sha512 => Self::Sha512(Box::default()),
        }
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    /// The digest of all bytes.
    pub fn finish(self) -> Digest {
        match self {
            Self::Sha256(hash) => Digest { algorithm: Algorithm::Sha256, hex: hex::encode(hash.finalize()) },
            Self::Sha512(hash) => Digest { algorithm: Algorithm::Sha512, hex: hex::encode(hash.finalize()) },
        }
    }
}

/// Passes a blob on and checks its size and digest.
pub struct Verifier<W> {
    out: W,
    hash: Option<Hash>,
    size: u64,
    taken: u64,
}

impl<W: io::Write> Verifier<W> {
    /// For a blob of `size` bytes. A blob without a digest of its own (docker archives) is not hashed: its layer's
    /// diff_id covers the same bytes.
    pub fn new(out: W, digest: Option<&Digest>, size: u64) -> Self {
        Self { out, hash: digest.map(Hash::like), size, taken: 0 }
    }

    /// Ends the blob and hands the writer back.
    ///
    /// # Errors
    /// A message for a blob that ended early, or a wrong digest.
    pub fn finish(self, digest: Option<&Digest>) -> anyhow::Result<W> {
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
        assert_eq!(Digest::parse(&format!("sha256:{hex}")).unwrap().hex(), hex);
        assert_eq!(
            Digest::parse(&format!("sha256:0123456789abcdef{}", "0".repeat(48))).unwrap().short(),
            "0123456789ab"
        );
        let sha512 = Digest::parse(&format!("sha512:{hex}{hex}")).unwrap();
        assert_eq!((sha512.hex().len(), sha512.path_in_layout()), (128, format!("blobs/sha512/{hex}{hex}")));
        for bad in [
            hex.clone(),
            format!("sha512:{hex}"),
            format!("sha384:{}", "a".repeat(96)),
            format!("sha256:{}", "A".repeat(64)),
            "sha256:../..".into(),
        ] {
            assert!(Digest::parse(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_document_is_checked_with_the_algorithm_of_its_digest() {
        let mut hash = Hash::Sha512(Box::default());
        hash.update(b"abc");
        let digest = hash.finish();
        // The example of FIPS 180-4.
        assert!(digest.to_string().starts_with("sha512:ddaf35a193617abacc417349ae204131"));
        assert!(digest.check(b"abc").is_ok() && digest.check(b"abd").is_err());
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
        for (bytes, message) in
            [(&b"blo"[..], "3 of 4 bytes"), (b"blobs", "longer than the 4"), (b"blub", "got sha256:")]
        {
            assert!(verify(bytes).unwrap_err().to_string().contains(message));
        }
        // It comes in parts, which are passed on.
        let mut verifier = Verifier::new(io::BufWriter::new(Vec::new()), Some(&digest), 4);
        verifier.write_all(b"blo").unwrap();
        verifier.flush().unwrap();
        assert_eq!(verifier.out.get_ref(), b"blo");
        assert!(verifier.write_all(b"bs").unwrap_err().to_string().contains("longer than the 4"));
    }
}
