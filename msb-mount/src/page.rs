//! What msb-mount's manual page and `--help` say apart from the flags.

use msb::tool::man::{self, Page};

fn mount_options() -> String {
    "With -o lowerdir=..., the layers are those of the options, the top one first, as for the kernel's overlayfs and for fuse-overlayfs. \
     There is no record then. A backslash precedes a comma, a colon or a backslash that belongs to a path. Without an upperdir the \
     mount is read-only. ro, nosuid, nodev, allow_root and redirect_dir=on are honoured; other options of mount(8), overlayfs and \
     fuse-overlayfs are accepted without an effect. As in fuse-overlayfs, files .wh.NAME and .wh..wh..opq of lower layers are \
     whiteouts, so msb-mount can be podman's mount_program.\n\n\
     mount(8) mounts the type fuse.msb if /sbin/mount.fuse.msb is a symlink to msb-mount."
        .to_owned()
}

fn limits() -> String {
    "A user's mount \
     does not keep the inode number of a file that was changed: after another mount, it has a new one.\n\n\
     A mount has no file handles (name_to_handle_at(2) fails), so it cannot be exported by NFS; no unnamed files (O_TMPFILE), times of \
     creation, inode flags (lsattr, chattr) or extent maps (FIEMAP); and fallocate(2) cannot insert or collapse ranges.\n\n\
     syncfs(2) on the mount writes what was changed through memory maps to the upper, and not the upper to its disk. fsync(2) does, \
     and so does the unmount.\n\n\
     A mount of --type overlay stays if the process that holds its locks is killed, but no lock keeps others from its upper then: \
     unmount it before the upper is used again. A mount of the type fuse ends with its server."
        .to_owned()
}

fn without_root() -> String {
    "For a user other than root, fusermount3(1) mounts, and the server runs in a user namespace, see msb(7). Other processes of the user \
     see the mount, and its files have the owners that they have on the host: those of the image's root belong to the user. Other users, \
     and a VM whose root it is, can enter it only if /etc/fuse.conf has the line \"user_allow_other\". --dev and --suid take root. \
     With CMD, the mount is made in the namespace, which takes a /dev/fuse that the user may open."
        .to_owned()
}

pub(crate) const PAGE: Page = Page {
    operands: "[MOUNTPOINT] [-- CMD...]",
    forms: &["-u MOUNTPOINT", "-o lowerdir=DIR[:DIR]...[,upperdir=DIR,workdir=DIR][,OPTION]... MOUNTPOINT"],
    notes: &[("Mount options", mount_options), ("Without root", without_root), ("Limits", limits)],
    exit_status: &[
        ("0", "success"),
        ("1", "failure"),
        ("2", "usage error"),
        ("125", "with CMD: msb-mount failed"),
        ("126", "CMD cannot be executed"),
        ("127", "CMD was not found"),
        ("128+N", "interrupted by signal N, or CMD was ended by it; otherwise the status of CMD"),
    ],
    environment: &[man::MSB_RECORD, man::MSB_HOME],
    files: &[("$MSB_HOME/sandboxes/ID", "The upper of a record that has none, with its work directory")],
    examples: &[
        ("an image's root, writable", "msb-pull alpine | msb-mount ./root > root.json"),
        (
            "run a program of the image on the host, and leave nothing behind",
            "msb-pull alpine | msb-mount -- cat /etc/passwd",
        ),
        ("the same in namespaces of its own, in a mount that stays", "unshare -fp --root ./root --mount-proc ls /proc"),
        ("unmount it", "msb-mount -u ./root"),
        ("only to look at", "msb-pull alpine | msb-mount --ro ./image > image-root.json"),
    ],
    see_also: &["msb-pull(1)", "msb-patch(1)", "msb-boot(1)", "msb-record(5)", "msb(7)"],
};
