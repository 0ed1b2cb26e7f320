//! The command line, and the checked configuration that it becomes.

// Doc comments of flags are help texts, in which brackets do not make links.
#![allow(rustdoc::broken_intra_doc_links)]

use std::path::PathBuf;

use clap::{ArgAction, Parser, ValueEnum};
use msb::record::ImageConfig;
use msb::tool::exit;
use msb::tool::output::Output;
use msb::tool::size;

use crate::budget::Limits;
use crate::page::PAGE;
use crate::platform::Platform;
use crate::root::parse_command;
use crate::source::Source;
use msb_registry::client::Options;

/// Fetch an image, unpack its layers and print its record
///
/// Layers are unpacked once, into $MSB_HOME, in the form that overlayfs mounts. Every digest and every diff_id is verified. The
/// record on stdout is the input of msb-patch, msb-mount and msb-boot.
#[derive(Debug, Parser)]
#[command(name = "msb-pull", version, after_help = PAGE.help())]
pub(crate) struct Args {
    /// For a registry: whether to ask it what a tag names now
    #[arg(long, alias = "pull", value_name = "WHEN", value_enum, default_value_t = Policy::Always)]
    policy: Policy,
    /// The platform to pick from a multi-platform image, as os/architecture[/variant] [default: this host's]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// Use HTTP, without TLS, for the registry
    #[arg(long)]
    plain_http: bool,
    /// Whether to check the registry's certificate; without the check a registry may also speak HTTP [default: true, unless
    /// registries.conf says that the registry is insecure]
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    tls_verify: Option<bool>,
    /// A certificate authority (PEM) to trust in addition to the system's
    #[arg(long, value_name = "FILE", conflicts_with = "plain_http")]
    ca_file: Option<PathBuf>,
    /// The directory of the registry's certificates: authorities (*.crt), and what the client proves itself with (*.cert, *.key)
    /// [default: the directory HOST:PORT in ~/.config/containers/certs.d, /etc/containers/certs.d or /etc/docker/certs.d]
    #[arg(long, value_name = "DIR", conflicts_with = "plain_http")]
    cert_dir: Option<PathBuf>,
    /// Credentials, in the format of docker's config.json [default: $REGISTRY_AUTH_FILE, else
    /// $XDG_RUNTIME_DIR/containers/auth.json, then $DOCKER_CONFIG/config.json or ~/.docker/config.json]
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
    /// Pull only what is named by its digest: NAME@DIGEST
    #[arg(long)]
    require_digest: bool,
    /// A command for /bin/sh -c that decides whether the image is used: it gets the manifest or index that the name stands for on
    /// stdin, $MSB_IMAGE and $MSB_DIGEST, and ends with 0 if the image may be used
    #[arg(long, value_name = "COMMAND")]
    verify: Option<String>,
    /// The size that the image may unpack to, e.g. 8G [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = size::parse_bytes)]
    max_size: Option<u64>,
    /// The number of files that the image may unpack to [default: no limit]
    #[arg(long, value_name = "COUNT")]
    max_files: Option<u64>,
    /// For the tar archive of a root: the command, as a JSON array or a line for /bin/sh -c [default: /bin/sh]
    #[arg(long, value_name = "COMMAND", value_parser = parse_command)]
    cmd: Option<std::vec::Vec<String>>,
    /// For the tar archive of a root: the command's fixed first part, in the form of --cmd
    #[arg(long, value_name = "COMMAND", value_parser = parse_command)]
    entrypoint: Option<std::vec::Vec<String>>,
    /// For the tar archive of a root: a variable of the command's environment (repeatable)
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// For the tar archive of a root: the command's working directory [default: /]
    #[arg(long, value_name = "DIR")]
    workdir: Option<String>,
    /// For the tar archive of a root: the command's user, as USER[:GROUP] [default: root]
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Also make the EROFS images that a VM without a mount boots from; otherwise the first boot makes them
    #[arg(long)]
    erofs: bool,
    #[command(flatten)]
    pub(crate) output: Output,
    /// The image: NAME[:TAG][@DIGEST], oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:TAG], containers-storage:NAME
    /// and docker-daemon:NAME (with podman, docker or skopeo), ./FILE.tar[.gz] (an archive of images or of a root),
    /// - (such an archive on stdin; or -- -:TAG), ./DIR, or a disk file (./DISK.qcow2, .raw, .img or .erofs)
    #[arg(value_name = "SOURCE")]
    source: String,
}

/// When a registry is asked what a tag names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Policy {
    /// Each time
    Always,
    /// If the image is not in the store
    Missing,
    /// Never; fail if the image is not in the store
    Never,
}

/// What to do, checked.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) source: Source,
    pub(crate) policy: Policy,
    pub(crate) platform: Option<Platform>,
    pub(crate) registry: Options,
    /// The command of `--verify`.
    pub(crate) verify: Option<String>,
    pub(crate) limits: Limits,
    /// How to run a root that comes without a configuration, where the caller says so.
    pub(crate) config: Option<ImageConfig>,
    pub(crate) authfile: Option<PathBuf>,
    pub(crate) quiet: bool,
    pub(crate) erofs: bool,
}

impl TryFrom<Args> for Config {
    type Error = anyhow::Error;

    fn try_from(args: Args) -> anyhow::Result<Self> {
        let usage = |message: String| exit::coded(exit::USAGE, message);
        let source = Source::parse(&args.source).map_err(usage)?;
        let platform = args.platform.as_deref().map(Platform::parse).transpose().map_err(usage)?;
        if platform.is_some() && matches!(source, Source::Path(_)) {
            return Err(usage("--platform: a directory or disk has no platforms to choose from".into()).into());
        }
        let has_digest = matches!(&source, Source::Registry(reference, _) if reference.digest.is_some());
        if args.require_digest && !has_digest {
            return Err(usage("--require-digest: SOURCE has no digest (write NAME@sha256:…)".into()).into());
        }
        if args.verify.is_some() && matches!(source, Source::Path(_)) {
            return Err(usage("--verify: a directory or disk has no manifest".into()).into());
        }
        let mut config = ImageConfig::default();
        config.env = args.env;
        config.entrypoint = args.entrypoint;
        config.cmd = args.cmd;
        config.working_dir = args.workdir.unwrap_or_default();
        config.user = args.user.unwrap_or_default();
        if let Some(variable) = config.env.iter().find(|variable| !variable.contains('=')) {
            return Err(usage(format!("--env {variable:?}: not NAME=VALUE")).into());
        }
        Ok(Self {
            source,
            policy: args.policy,
            platform,
            registry: Options {
                plain_http: args.plain_http,
                tls_verify: args.tls_verify,
                ca_file: args.ca_file,
                cert_dir: args.cert_dir,
            },
            verify: args.verify,
            limits: Limits { size: args.max_size.unwrap_or(u64::MAX), files: args.max_files.unwrap_or(u64::MAX) },
            config: (config != ImageConfig::default()).then_some(config),
            authfile: args.authfile,
            quiet: args.output.quiet,
            erofs: args.erofs,
        })
    }
}
