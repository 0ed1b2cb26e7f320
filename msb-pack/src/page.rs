//! What msb-pack's manual page and `--help` say apart from the flags.

use msb::tool::man::{self, Page};

/// The tool's name in messages.
pub(crate) const TOOL: &str = "msb-pack";

pub(crate) const PAGE: Page = Page {
    operands: "TARGET...",
    forms: &[],
    notes: &[("Targets", targets), ("Layers", layers), ("The record", record)],
    exit_status: man::EXIT_STATUS,
    environment: &[
        man::MSB_RECORD,
        man::MSB_HOME,
        (
            "SOURCE_DATE_EPOCH",
            "The image's time, and the modification time of files that are newer, in seconds since 1970",
        ),
    ],
    files: &[("$MSB_HOME/blobs/sha256", "The manifests and configurations of images")],
    examples: &[
        ("an image of what was prepared", "msb-pack -r patched.json --cmd '[\"/bin/sh\"]' oci:out:v1 > new.json"),
        ("an archive for docker load", "msb-pack -r patched.json docker-archive:demo.tar:demo > new.json"),
        ("an image to a registry", "msb-pack -r patched.json docker://localhost:5000/demo:v2 > new.json"),
        ("the root as a tar file", "msb-pack -r patched.json tar:- | tar -t > names"),
        ("the upper alone, as a layer", "msb-pack -r patched.json layer:layer.tar.gz > new.json"),
    ],
    see_also: &["msb-pull(1)", "msb-patch(1)", "msb-diff(1)", "msb-boot(1)", "msb-record(5)", "msb(7)"],
};

fn targets() -> String {
    r#"  docker://NAME[:TAG]         a registry
  oci:DIR[:TAG]               an OCI layout, new or with one image more
  oci-archive:FILE[:TAG]      an OCI layout in a tar file
  docker-archive:FILE[:NAME]  what docker load reads
  tar:FILE                    the merged root, as tar -c writes it
  layer:FILE                  the upper as an OCI layer
  dir:DIR                     the merged root; DIR is new or empty
  raw:FILE                    an ext4 disk
  qcow2:FILE                  the same in QEMU's format
  erofs:FILE                  an EROFS disk; VMs write to a disk above it

A registry gets the blobs that it does not have, and the manifest last. Layers of
another repository of the same registry are mounted, not sent. A file or directory
gets its name when it is complete, and replaces an old one then.
A run that fails or is killed leaves the old one. Disks need the programs mke2fs,
qemu-img or mkfs.erofs.

Nothing may change the root meanwhile. msb-pack holds a lock on the upper, so a
mount, a running VM or msb-patch is in the way, but a root that is a directory
has no lock. A file that changes while it is read is an error, and so is, for a
disk, any change. In other targets a file that comes or goes may be missing."#
        .into()
}

fn layers() -> String {
    r#"The layers of the base are copied from where the record says that the image is from, and
checked. If that is gone, --repack writes them anew from the store, with other digests,
and --squash needs none of them. The base of a directory, a docker archive or the tar
file of a root is always written anew.

Whiteouts and opaque directories have OCI's form. Hardlinks, xattrs, capabilities and
times of files are kept; holes are zeros in an archive. Sockets are left out. The same
root and the same flags give the same digests, with any number of processors: without
SOURCE_DATE_EPOCH the image has the time of its base."#
        .into()
}

fn record() -> String {
    r#"The record on stdout has the image of the first TARGET that is one: its reference,
digest and configuration. Root, upper and scripts stay, so the next stage boots or
changes the same tree. If the first TARGET is a directory or a disk, the record's
rootfs is that, and it has no upper. If an archive goes to stdout, the record is only
written with -o."#
        .into()
}
