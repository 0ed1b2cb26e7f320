//! What msb-diff's manual page and `--help` say apart from the flags.

use msb::tool::man::{self, Page};

pub(crate) const PAGE: Page = Page {
    operands: "[OLD]",
    forms: &["[-r NAME|FILE] --which PATH..."],
    notes: &[("Differences", differences), ("Layers", layers)],
    exit_status: &[
        ("0", "no difference, or every PATH was found"),
        ("1", "differences, or a PATH that does not exist"),
        ("2", "failure or usage error"),
        ("128+N", "interrupted by signal N"),
    ],
    environment: &[man::MSB_RECORD, man::MSB_HOME],
    files: &[("$MSB_HOME/blobs/sha256", "The configurations of images, which have their histories")],
    examples: &[
        ("what the operations changed", "msb-diff -r patched.json"),
        ("one record against another", "msb-diff -r patched.json image.json"),
        ("the layer of a path", "msb-diff -r patched.json --which /etc/motd"),
    ],
    see_also: &["msb-patch(1)", "msb-pack(1)", "msb-record(5)", "msb(7)"],
};

fn differences() -> String {
    r#"  {"path":"/etc/motd","change":"changed","what":["content"],"type":"file",
   "mode":"0644","uid":0,"gid":0,"size":3,"layer":"upper",
   "before":{"type":"file","mode":"0644","uid":0,"gid":0,"size":9,
   "layer":"lower 0"}}

"change" is added, changed or removed. "what" lists what has changed: type, content,
target (of a symlink), device, mode, owner, xattrs, mtime. A path that has another type
now is a changed one. Times of directories are not compared. The entries of an added
directory are listed, and those of a removed directory are not. A path that is not UTF-8
is an array of its bytes. On a terminal the lines are "A", "C" or "D" and the path."#
        .into()
}

fn layers() -> String {
    r#"A layer is "upper", or "lower N", where lower 0 is the topmost directory of the record's
rootfs. With --which, a line has the layer's directory too, and the layer's entry in the
image's history if the store has the image's configuration. Symlinks above the last component of a PATH are
followed inside the root."#
        .into()
}
