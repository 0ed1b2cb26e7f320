//! The result of a step of a build, in `steps/HEX`: the upper that the step made, under the digest of all that it depends on.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::publish;
use crate::record::Upper;

/// The result of a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepResult {
    /// What the step has made.
    pub upper: Upper,
    /// The record's scripts after the step.
    pub scripts: BTreeMap<String, PathBuf>,
    /// The digest of the upper's content ([`super::checksums::digest`]). The result counts only as long as the upper has it.
    pub digest: String,
}

impl StepResult {
    /// Reads a result.
    ///
    /// # Errors
    /// The error of reading; [`io::ErrorKind::InvalidData`] or [`io::ErrorKind::UnexpectedEof`] for a file that is no result.
    pub fn read(path: &Path) -> io::Result<Self> {
        serde_json::from_slice(&fs::read(path)?).map_err(io::Error::from)
    }

    /// Writes it, in place of an older one.
    ///
    /// # Errors
    /// The error of making the directory, or of writing.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        if let Some(steps) = path.parent() {
            publish::make_private_dir(steps)?;
        }
        publish::write_file(path, &serde_json::to_vec(self)?, 0o600)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_read_as_it_was_written_and_another_file_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("steps/0a");
        assert_eq!(StepResult::read(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        let scripts = BTreeMap::from([("hello".to_owned(), PathBuf::from("/s/hello"))]);
        let made = StepResult { upper: Upper::new("/u".into(), "/w".into()), scripts, digest: "0b".into() };
        made.write(&path).unwrap();
        assert_eq!(StepResult::read(&path).unwrap(), made);
        fs::write(&path, "{\"upper\":{").unwrap();
        assert!(StepResult::read(&path).is_err());
    }
}
