//! The command line, and the checked configuration that it becomes.

use std::path::PathBuf;

use clap::Parser;
use msb::tool::exit;
use msb::tool::output::Output;

use crate::platform::Platform;
use crate::reference::Source;

/// Fetch an image, unpack its layers and print its record
///
/// Layers are unpacked once, into $MSB_HOME (else $XDG_DATA_HOME/msb, else ~/.local/share/msb), in the form that
/// overlayfs mounts. Every digest and every diff_id is checked. The record on stdout is what msb-patch, msb-mount and
/// msb-boot read.
#[derive(Debug, Parser)]
#[command(name = "msb-pull", version, after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The platform to pick from a multi-platform image, as os/architecture[/variant] [default: this host's]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// Speak HTTP to the registry, without TLS
    #[arg(long)]
    plain_http: bool,
    /// A certificate authority (PEM) to trust besides the system's
    #[arg(long, value_name = "FILE", conflicts_with = "plain_http")]
    ca_file: Option<PathBuf>,
    /// Credentials, in the form of docker's config.json [default: $REGISTRY_AUTH_FILE, else
    /// $XDG_RUNTIME_DIR/containers/auth.json, then $DOCKER_CONFIG/config.json or ~/.docker/config.json]
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
    /// Also make the EROFS image that a VM without a mount boots from; otherwise the first boot makes it
    #[arg(long)]
    erofs: bool,
    /// Fetch nothing: print what $MSB_HOME holds, a JSON object a line with its size, and remove what no image and no sandbox needs
    #[arg(long, conflicts_with_all = ["source", "erofs", "output"])]
    pub(crate) gc: bool,
    /// With --gc: remove nothing
    #[arg(short = 'n', long, requires = "gc")]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) output: Output,
    /// What to fetch: NAME[:TAG][@DIGEST], oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:TAG],
    /// - (an archive on stdin), ./DIR, or ./DISK.qcow2, .raw or .img
    #[arg(value_name = "SOURCE", required_unless_present = "gc")]
    source: Option<String>,
}

const EXAMPLES: &str = "\
Examples:
  msb-pull alpine                                  docker.io/library/alpine:latest
  msb-pull --plain-http 127.0.0.1:5000/demo:v1     a private registry
  msb-pull name@sha256:…                           fetches nothing if the store has it
  msb-pull oci:./layout:v1                         an OCI layout, by tag
  docker save alpine | msb-pull -                  an archive on stdin
  msb-pull ./rootfs                                a directory as the root
  msb-pull alpine | msb-mount ./root               feed the next stage
  msb-pull --gc -n                                 what is in the store, and what of it could go";

/// What to do, checked.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) source: Source,
    pub(crate) platform: Option<Platform>,
    pub(crate) plain_http: bool,
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) authfile: Option<PathBuf>,
    pub(crate) quiet: bool,
    pub(crate) erofs: bool,
}

impl TryFrom<Args> for Config {
    type Error = anyhow::Error;

    fn try_from(args: Args) -> anyhow::Result<Self> {
        let usage = |words: String| exit::coded(exit::USAGE, words);
        let source = Source::parse(&args.source.unwrap_or_default()).map_err(usage)?;
        let platform = args.platform.as_deref().map(Platform::parse).transpose().map_err(usage)?;
        if platform.is_some() && matches!(source, Source::Path(_)) {
            return Err(usage("--platform: a directory or disk has no platforms to choose from".into()));
        }
        Ok(Self {
            source,
            platform,
            plain_http: args.plain_http,
            ca_file: args.ca_file,
            authfile: args.authfile,
            quiet: args.output.quiet,
            erofs: args.erofs,
        })
    }
}
