//! What msb-mount's manual page and `--help` say apart from the flags.

use msb::tool::man::{self, Page};

fn limits() -> String {
    "A mount has no file handles (name_to_handle_at(2) fails), so it cannot be exported by NFS; no unnamed files (O_TMPFILE), times of \
     creation, inode flags (lsattr, chattr) or extent maps (FIEMAP); and fallocate(2) cannot insert or collapse ranges.\n\n\
     syncfs(2) on the mount writes what was changed through memory maps to the upper, and not the upper to its disk. fsync(2) does, \
     and so does the unmount."
        .to_owned()
}

pub(crate) const PAGE: Page = Page {
    operands: "[MOUNTPOINT]",
    forms: &["-u MOUNTPOINT"],
    notes: &[("Limits", limits)],
    exit_status: man::EXIT_STATUS,
    environment: &[man::MSB_RECORD, man::MSB_HOME],
    files: &[("$MSB_HOME/sandboxes/ID", "The upper of a record that has none, with its work directory")],
    examples: &[
        ("an image's root, writable", "msb-pull alpine | msb-mount ./root > root.json"),
        ("run a program of the image on the host", "unshare -fp --root ./root --mount-proc ls /proc"),
        ("unmount it", "msb-mount -u ./root"),
        ("only to look at", "msb-pull alpine | msb-mount --ro ./image > image-root.json"),
    ],
    see_also: &["msb-pull(1)", "msb-patch(1)", "msb-boot(1)", "msb-record(5)", "msb(7)"],
};
