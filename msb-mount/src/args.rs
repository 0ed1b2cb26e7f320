//! The command line.

use std::path::PathBuf;

use clap::Parser;
use msb::tool::output::Output;
use msb::tool::source::StageRecord;

const LONG_ABOUT: &str = "\
Mount a record's root on the host: its lower layers and its upper as one tree, by FUSE.

Takes a record, adds the members \"upper\" (where the record had none) and \"mount\", and prints the record once the mount \
is up. The server stays in the background and ends with the mount. What is changed below MOUNTPOINT lands in the \
upper, in overlayfs form; the layers are never written. Set-id bits and device nodes have no effect on the host.";

const EXAMPLES: &str = "\
Examples:
  msb-pull alpine | msb-mount ./root                     mount an image's root
  msb-pull alpine | msb-mount --ro ./root > root.json    to look at only
  msb-mount -u ./root                                    unmount it; a server that died leaves nothing behind

Exit status: 0 success, 1 failure, 2 usage error.";

/// Mount a record's root on the host
#[derive(Debug, Parser)]
#[command(name = "msb-mount", version, long_about = LONG_ABOUT, after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) record: StageRecord,

    #[command(flatten)]
    pub(crate) output: Output,

    /// Mount read-only, without an upper if the record has none
    #[arg(long)]
    pub(crate) ro: bool,

    /// Serve in the foreground, until SIGTERM, SIGINT or an unmount
    #[arg(short, long)]
    pub(crate) foreground: bool,

    /// Unmount MOUNTPOINT, also after a crash of its server
    #[arg(short, long, requires = "mountpoint", conflicts_with_all = ["record", "output", "ro", "foreground"])]
    pub(crate) unmount: bool,

    /// Serve what stdin says, for the process that started this one
    #[arg(long, hide = true, requires = "mountpoint")]
    pub(crate) serve: bool,

    /// The mount point was made for this mount, so it is removed after it
    #[arg(long, hide = true, requires = "serve")]
    pub(crate) is_new: bool,

    /// The directory to mount on, made if it is missing [default: "root" beside the upper]
    pub(crate) mountpoint: Option<PathBuf>,
}
