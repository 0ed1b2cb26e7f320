//! The command line, and what it asks for.

// Doc comments of flags are help texts, in which brackets do not make links.
#![allow(rustdoc::broken_intra_doc_links)]

use std::path::PathBuf;

use anyhow::bail;
use clap::{ArgAction, Parser};
use msb::tool::exit;
use msb::tool::output::Output;
use msb::tool::size;
use msb::tool::source::StageRecord;
use msb_registry::client::Options;

use crate::compression::Compression;
use crate::document::Changes;
use crate::page::PAGE;
use crate::registry::Access;
use crate::target::Target;

/// The room on a disk besides its content, in bytes.
const FREE: u64 = 256 << 20;

/// Write a root as an image, an archive, a directory or a disk
///
/// Reads a record, and writes its root to every TARGET. In an image the layers of the base stay as they are, the upper becomes
/// one layer, and the record's scripts another. A TARGET gets its name when it is complete. Prints the record of the new image.
#[derive(Debug, Parser)]
#[command(name = "msb-pack", version, after_help = PAGE.help())]
pub(crate) struct Args {
    /// The record.
    #[command(flatten)]
    pub record: StageRecord,

    /// Where the record of the new image goes.
    #[command(flatten)]
    pub output: Output,

    /// Write the whole root as one layer, in place of the layers of the base and the upper
    #[arg(long)]
    pub squash: bool,

    /// Write the layers of the base anew from the store, for a base that is not where it was pulled from any more
    #[arg(long, conflicts_with = "squash")]
    pub repack: bool,

    /// How new layers and archives are compressed [default: gzip for images, by the file's name for others]
    #[arg(long, value_name = "HOW")]
    pub compression: Option<Compression>,

    /// Put the record's scripts into the directory DIR of the root, in place of /.msb/scripts on PATH
    #[arg(long, value_name = "DIR", value_parser = absolute)]
    pub scripts_to: Option<PathBuf>,

    /// The command's fixed first part, as a JSON array or a line for /bin/sh -c; without --cmd there are no arguments
    #[arg(long, value_name = "COMMAND", value_parser = command)]
    pub entrypoint: Option<std::vec::Vec<String>>,

    /// The command, in the form of --entrypoint
    #[arg(long, value_name = "COMMAND", value_parser = command)]
    pub cmd: Option<std::vec::Vec<String>>,

    /// A variable of the command's environment (repeatable)
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub env: Vec<(String, String)>,

    /// The command's working directory
    #[arg(long, value_name = "DIR")]
    pub workdir: Option<String>,

    /// The command's user, as USER[:GROUP]
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,

    /// A label (repeatable)
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub label: Vec<(String, String)>,

    /// A port that the command serves, as PORT[/PROTOCOL] (repeatable)
    #[arg(long, value_name = "PORT", value_parser = port)]
    pub expose: Vec<String>,

    /// A directory for data that outlives a container (repeatable)
    #[arg(long, value_name = "DIR")]
    pub volume: Vec<String>,

    /// The signal that asks the command to stop
    #[arg(long, value_name = "SIGNAL")]
    pub stop_signal: Option<String>,

    /// An annotation of the image's manifest (repeatable)
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub annotation: Vec<(String, String)>,

    /// The room on a disk besides its content [default: 256M]
    #[arg(long, value_name = "SIZE", value_parser = size::parse_bytes)]
    pub free: Option<u64>,

    /// Use HTTP, without TLS, for the registry
    #[arg(long)]
    pub plain_http: bool,

    /// Whether to check the registry's certificate; without the check a registry may also speak HTTP [default: true, unless
    /// registries.conf says that the registry is insecure]
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    pub tls_verify: Option<bool>,

    /// A certificate authority (PEM) to trust in addition to the system's
    #[arg(long, value_name = "FILE", conflicts_with = "plain_http")]
    pub ca_file: Option<PathBuf>,

    /// The directory of the registry's certificates, in the form of certs.d (see msb-pull(1))
    #[arg(long, value_name = "DIR", conflicts_with = "plain_http")]
    pub cert_dir: Option<PathBuf>,

    /// Credentials, in the format of docker's config.json [default: as for msb-pull]
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,

    /// Where to and in which form: docker://NAME[:TAG], oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME[:TAG]],
    /// tar:FILE or layer:FILE (- for stdout), dir:DIR, raw:FILE, qcow2:FILE, erofs:FILE
    #[arg(value_name = "TARGET", required = true)]
    pub targets: Vec<Target>,
}

/// What to do, checked.
pub(crate) struct Config {
    pub(crate) targets: Vec<Target>,
    pub(crate) changes: Changes,
    pub(crate) annotations: Vec<(String, String)>,
    pub(crate) squash: bool,
    pub(crate) repack: bool,
    pub(crate) compression: Option<Compression>,
    pub(crate) scripts_to: Option<PathBuf>,
    pub(crate) free: u64,
    /// `SOURCE_DATE_EPOCH`.
    pub(crate) epoch: Option<i64>,
    /// How registries are reached.
    pub(crate) access: Access,
}

impl Args {
    /// Checks the flags.
    ///
    /// # Errors
    /// Flags that do not fit together.
    pub(crate) fn config(&self) -> anyhow::Result<Config> {
        let usage = |message: &str| exit::coded(exit::USAGE, message);
        let streams = self.targets.iter().filter(|target| target.is_stdout()).count();
        if streams > 1 {
            return Err(usage("several targets are stdout (name files)").into());
        }
        if streams == 1 && std::io::IsTerminal::is_terminal(&std::io::stdout()) {
            return Err(usage("stdout is a terminal (redirect the archive)").into());
        }
        let changes = Changes {
            entrypoint: self.entrypoint.clone(),
            cmd: self.cmd.clone(),
            env: self.env.clone(),
            labels: self.label.clone(),
            workdir: self.workdir.clone(),
            user: self.user.clone(),
            stop_signal: self.stop_signal.clone(),
            expose: self.expose.clone(),
            volumes: self.volume.clone(),
            path: None,
        };
        Ok(Config {
            targets: self.targets.clone(),
            changes,
            annotations: self.annotation.clone(),
            squash: self.squash,
            repack: self.repack,
            compression: self.compression,
            scripts_to: self.scripts_to.clone(),
            free: self.free.unwrap_or(FREE),
            epoch: source_date_epoch()?,
            access: Access {
                options: Options {
                    plain_http: self.plain_http,
                    tls_verify: self.tls_verify,
                    ca_file: self.ca_file.clone(),
                    cert_dir: self.cert_dir.clone(),
                },
                authfile: self.authfile.clone(),
            },
        })
    }
}

/// The time of everything that is newer, for reproducible results (reproducible-builds.org's convention).
fn source_date_epoch() -> anyhow::Result<Option<i64>> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Err(_) => Ok(None),
        Ok(text) => match text.parse() {
            Ok(seconds) if (0..=253_402_300_799).contains(&seconds) => Ok(Some(seconds)),
            _ => bail!("SOURCE_DATE_EPOCH {text:?}: not a number of seconds until the year 9999"),
        },
    }
}

fn absolute(text: &str) -> Result<PathBuf, &'static str> {
    if text.starts_with('/') { Ok(text.into()) } else { Err("an absolute path in the root is expected") }
}

/// A command: a JSON array of strings, or a line for a shell, as in a Dockerfile.
fn command(text: &str) -> Result<Vec<String>, String> {
    if text.trim_start().starts_with('[') {
        return serde_json::from_str(text).map_err(|error| format!("not an array of strings: {error}"));
    }
    Ok(vec!["/bin/sh".to_owned(), "-c".to_owned(), text.to_owned()])
}

fn pair(text: &str) -> Result<(String, String), &'static str> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("NAME=VALUE is expected"),
    }
}

fn port(text: &str) -> Result<String, &'static str> {
    let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let is_port = port.parse::<u16>().is_ok_and(|port| port > 0);
    if is_port && matches!(protocol, "tcp" | "udp" | "sctp") {
        Ok(format!("{port}/{protocol}"))
    } else {
        Err("PORT or PORT/tcp, /udp or /sctp is expected")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_flags_are_checked() {
        assert_eq!(command("[\"a\", \"b c\"]").unwrap(), ["a", "b c"]);
        assert_eq!(command("a b").unwrap(), ["/bin/sh", "-c", "a b"]);
        assert!(command("[1]").is_err() && command("[").is_err());
        assert_eq!(pair("a=b=c").unwrap(), ("a".into(), "b=c".into()));
        assert!(pair("a").is_err() && pair("=a").is_err());
        assert_eq!(port("80").unwrap(), "80/tcp");
        assert_eq!(port("53/udp").unwrap(), "53/udp");
        assert!(port("0").is_err() && port("80/x").is_err() && port("http").is_err());
        assert!(absolute("bin").is_err());
    }

    #[test]
    fn the_flags_fit_together() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }
}
