//! The command line, and the checked configuration that it becomes.

use std::path::PathBuf;

use clap::Parser;
use msb::tool::exit;
use msb::tool::output::Output;

use crate::page::PAGE;
use crate::platform::Platform;
use crate::reference::Source;

/// Fetch an image, unpack its layers and print its record
///
/// Layers are unpacked once, into $MSB_HOME, in the form that overlayfs mounts. Every digest and every diff_id is verified. The
/// record on stdout is the input of msb-patch, msb-mount and msb-boot.
#[derive(Debug, Parser)]
#[command(name = "msb-pull", version, after_help = PAGE.help())]
pub(crate) struct Args {
    /// The platform to pick from a multi-platform image, as os/architecture[/variant] [default: this host's]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// Use HTTP, without TLS, for the registry
    #[arg(long)]
    plain_http: bool,
    /// A certificate authority (PEM) to trust in addition to the system's
    #[arg(long, value_name = "FILE", conflicts_with = "plain_http")]
    ca_file: Option<PathBuf>,
    /// Credentials, in the format of docker's config.json [default: $REGISTRY_AUTH_FILE, else
    /// $XDG_RUNTIME_DIR/containers/auth.json, then $DOCKER_CONFIG/config.json or ~/.docker/config.json]
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
    /// Also make the EROFS image that a VM without a mount boots from; otherwise the first boot makes it
    #[arg(long)]
    erofs: bool,
    /// Fetch nothing: list what $MSB_HOME holds, as one JSON object per line with its size, and remove what no image and no
    /// sandbox needs
    #[arg(long, conflicts_with_all = ["source", "erofs", "output"])]
    pub(crate) gc: bool,
    /// With --gc: remove nothing
    #[arg(short = 'n', long, requires = "gc")]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) output: Output,
    /// The image: NAME[:TAG][@DIGEST], oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:TAG], - (an archive on stdin),
    /// ./DIR, or a disk file (./DISK.qcow2, .raw or .img)
    #[arg(value_name = "SOURCE", required_unless_present = "gc")]
    source: Option<String>,
}

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
            return Err(usage("--platform: a directory or disk has no platforms to choose from".into()).into());
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
