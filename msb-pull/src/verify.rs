//! `--verify`: a command of the caller's decides whether an image is used.

use std::io::{ErrorKind, Write};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use msb_registry::digest::Digest;

/// Runs `command` in a shell, as git does with its hooks' settings. Its stdin is the document that the image's name stands for,
/// and the environment has its digest and name; its output goes to stderr, because stdout is for the record.
///
/// # Errors
/// A message if the command does not end with 0.
pub(crate) fn verify(command: &str, name: &str, digest: &Digest, document: &[u8]) -> anyhow::Result<()> {
    let run = || {
        let mut child = Command::new("/bin/sh")
            .args(["-c", command])
            .env("MSB_IMAGE", name)
            .env("MSB_DIGEST", digest.to_string())
            .stdin(Stdio::piped())
            .stdout(std::io::stderr())
            .spawn()?;
        // A command that needs only the digest may end without reading.
        let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(document));
        let status = child.wait()?;
        match written {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error),
            _ => Ok(status),
        }
    };
    let status = run().with_context(|| format!("--verify {command:?}"))?;
    if !status.success() {
        bail!("refused by --verify {command:?} ({status})");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_gets_the_document_and_decides() {
        let digest = Digest::of(b"text");
        let check = format!("[ \"$(sha256sum | cut -d' ' -f1)\" = {} ] && [ $MSB_DIGEST = {digest} ]", digest.hex());
        verify(&check, "a/b:v1", &digest, b"text").unwrap();
        let refused = verify(&check, "a/b:v1", &digest, b"other").unwrap_err().to_string();
        assert!(refused.contains("refused by --verify") && refused.contains("exit status: 1"), "{refused}");
        // More than a pipe holds.
        verify("exec true", "a/b:v1", &digest, &vec![0; 1 << 20]).unwrap();
    }
}
