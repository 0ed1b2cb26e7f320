//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser;
use msb::tool::output::Output;
use msb::tool::source::StageRecord;

use crate::access::Access;
use crate::kind::Kind;
use crate::page::PAGE;

/// Mount a record's root on the host
///
/// Serves the lower layers and the upper of a record as one tree, over FUSE. Adds the members "upper" (if the record has none) and
/// "mount", and prints the record once the mount is up. The server stays in the background and ends with the mount. Changes
/// below MOUNTPOINT go into the upper, in overlayfs form; the layers are never written. Set-id bits and device nodes have no
/// effect on the host without --suid and --dev.
#[derive(Debug, Parser)]
#[command(name = "msb-mount", version, after_help = PAGE.help())]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) record: StageRecord,

    #[command(flatten)]
    pub(crate) output: Output,

    #[command(flatten)]
    pub(crate) access: Access,

    /// Which file system merges the layers. overlayfs takes Linux 6.7 and root, or CMD, and is faster. It refuses files that are
    /// metacopies; a copy of the mount in another mount namespace outlives the unmount
    #[arg(long = "type", value_name = "TYPE", value_enum, default_value = "fuse", hide_default_value = false)]
    pub(crate) kind: Kind,

    /// Serve in the foreground, until SIGTERM, SIGINT or an unmount
    #[arg(short, long)]
    pub(crate) foreground: bool,

    /// Unmount MOUNTPOINT; this also works after its server has crashed
    #[arg(short, long, requires = "mountpoint", conflicts_with_all = ["record", "output", "is_read_only", "foreground"])]
    pub(crate) unmount: bool,

    /// Run CMD in the host's tree, with MOUNTPOINT as its working directory, and not with the root as its own
    #[arg(long, requires = "command")]
    pub(crate) in_place: bool,

    /// Serve what the parent process describes on stdin
    #[arg(long, hide = true, requires = "mountpoint")]
    pub(crate) serve: bool,

    /// Remove MOUNTPOINT after the unmount: it was made for this mount
    #[arg(long, hide = true, requires = "serve")]
    pub(crate) is_new: bool,

    /// The inherited descriptor of a mount that fusermount3 has made
    #[arg(long, hide = true, requires = "serve", requires = "fuse_watcher")]
    pub(crate) fuse_device: Option<i32>,

    /// The inherited socket to the process that unmounts
    #[arg(long, hide = true, requires = "fuse_device")]
    pub(crate) fuse_watcher: Option<i32>,

    /// Unmount when the parent process ends, which has this ID
    #[arg(long, value_name = "PID", hide = true, requires = "serve")]
    pub(crate) with_parent: Option<i32>,

    /// Become CMD, with MOUNTPOINT as its root
    #[arg(long, hide = true, requires = "command", requires = "mountpoint")]
    pub(crate) enter: bool,

    /// The directory to mount on, created if it is missing [default: "root" beside the upper]
    #[arg(value_name = "MOUNTPOINT")]
    pub(crate) mountpoint: Option<PathBuf>,

    /// Mount for a program: run it with the root as its own, and with the host's /dev, /proc, /sys and resolv.conf; unmount when it
    /// ends, and exit with its status. The mount is in a namespace of its own, so no other process sees it. No record is printed; an
    /// upper made for the program is removed, unless -o keeps it
    #[arg(value_name = "CMD", last = true, conflicts_with_all = ["foreground", "unmount"])]
    pub(crate) command: Vec<OsString>,
}
