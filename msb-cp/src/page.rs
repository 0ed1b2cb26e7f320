//! What msb-cp's manual page and `--help` say apart from the flags.

use msb::tool::man::{self, Page};

pub(crate) const PAGE: Page = Page {
    operands: "SRC DST",
    forms: &[],
    notes: &[("Where it goes", where_it_goes), ("What is copied", what_is_copied)],
    exit_status: man::EXIT_STATUS,
    environment: &[man::MSB_RUN],
    files: &[("/run/msb/NAME", "The run directory of the VM NAME, with its record and the agent's socket")],
    examples: &[
        ("a file into the guest", "msb-cp motd worker:/etc/motd"),
        ("a tree into the guest, with its owners", "msb-cp -a src/. worker:/srv"),
        ("a tree out of the guest", "msb-cp worker:/var/log ./log"),
        ("from one guest to another", "msb-cp one:/srv/. - | msb-cp - two:/srv"),
    ],
    see_also: &["msb-exec(1)", "msb-boot(1)", "msb-wire(5)", "msb(7)", "agentd(8)"],
};

fn where_it_goes() -> String {
    "As with docker cp: a file replaces the file at DST, goes into the directory at DST,
or gets that name. A directory goes into the directory at DST, or gets that name;
SRC/. stands for what it contains. The directory above DST must exist. Symlinks
in DST are followed inside the root. Below DST none is: one that is in the way of
a file is replaced, and one in the way of a directory is an error.

A file gets its name when it is complete, so an interrupted copy leaves files that
are old or new."
        .into()
}

fn what_is_copied() -> String {
    "Files of all types but sockets, with permissions, modification times, hardlinks,
holes and xattrs of \"user.\". Owners are the receiver's, in the guest root, unless
-a is given. Without it, set-id bits and other xattrs of a guest are left out on
the host; device nodes of a guest always are."
        .into()
}
