//! What msb-store's manual page and `--help` say apart from the flags.

use msb::tool::man::{self, Page};

pub(crate) const PAGE: Page = Page {
    operands: "ACTION [NAME...]",
    forms: &[],
    notes: &[("What is kept", kept), ("Members", members)],
    exit_status: &[
        ("0", "success"),
        ("1", "failure; for check also: something is damaged"),
        ("2", "usage error"),
        ("128+N", "interrupted by signal N"),
    ],
    environment: &[man::MSB_HOME, man::MSB_RUN],
    files: &[
        ("$MSB_HOME/references", "The digest of each image, by its reference; written when the image is used"),
        ("$MSB_HOME/checksums", "The checksums of the files of each layer"),
        ("$MSB_HOME/sandboxes/ID/owner.json", "What a sandbox belongs to"),
        ("$MSB_HOME/snapshots/HEX", "A saved VM, see msb-snapshot(1)"),
        ("$MSB_HOME/snapshot-names/NAME", "The digest of the snapshot of \"msb-run --snapshot NAME\""),
    ],
    examples: &[
        ("what is there", "msb-store ls"),
        (
            "images that were not used for 30 days, as JSON",
            "msb-store ls -t image | jq -c 'select(.last_use < now - 30 * 86400)'",
        ),
        ("remove an image", "msb-store rm -f alpine"),
        ("what gc would remove", "msb-store gc -n"),
        ("a machine for CI: only what was used this week stays", "msb-store gc --all --older-than 7d"),
        ("look for damage", "msb-store check"),
    ],
    see_also: &["msb(1)", "msb-pull(1)", "msb-rm(1)", "msb-mount(1)", "msb-boot(1)", "msb(7)"],
};

fn kept() -> String {
    "gc removes layers and documents that no image has, EROFS images without their
layers, the agents for guests (initramfs) of installations that are gone, and what
tools left unfinished when they were killed. It never removes volumes, disks and
snapshots, and nothing that a VM, a mount, msb-patch, msb-pack or a running pull
uses. All of these but pulls hold a shared lock, as flock(1) takes it, on each
layer. Layers that another program uses, such as mount(8), need such a lock too.

An image is kept as long as it has a reference. When a tag names another image,
the old one has none, and gc removes its layers unless a sandbox, a disk or a VM
needs them. A snapshot, too, keeps the layers and the upper of its VM. ls and rm
accept the name that msb-run --snapshot gave a snapshot; rm removes the name
too.

The upper that msb-patch or msb-mount made in the store belongs to the mount or
the VM that uses it. msb-rm removes it with the VM, and gc when nobody has used
it for a day. A stopped VM that has a disk still needs it. The directory of
--upper and the upper of a commit stay."
        .into()
}

fn members() -> String {
    "The members of a line of ls are type, name, digest, bytes, shared_bytes (of these,
what other images have too), last_use (in seconds since 1970), used_by, complete
(false for an image of which something is missing) and path. Those of gc and rm
are type, name, path, bytes, state (kept, removed or, with -n, unneeded) and why;
those of check are type, name, path, problem (changed, missing, added, damaged or
unknown) and members, which lists what of a file was changed; those of du are
type, count, bytes and reclaimable_bytes. A member that is not known is null."
        .into()
}
