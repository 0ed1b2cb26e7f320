//! What msb-fork's manual page and `--help` say apart from the flags.

use msb::tool::man::{self, Page};

/// The page's texts.
pub const PAGE: Page = Page {
    operands: "[VM]",
    forms: &[],
    notes: &[("Copies", copies)],
    exit_status: man::EXIT_STATUS,
    environment: &[man::MSB_RECORD, man::MSB_HOME, man::MSB_RUN],
    files: &[],
    examples: &[
        ("three VMs that go on where worker is", "msb-fork -n 3 worker"),
        (
            "a command in each of them",
            "msb-fork -n 3 --name job worker | while read -r vm\n\
             do msb-exec -r - -d -- /job <<<\"$vm\"\ndone",
        ),
    ],
    see_also: &["msb-snapshot(1)", "msb-boot(1)", "msb-exec(1)", "msb-rm(1)", "msb(7)"],
};

fn copies() -> String {
    "What can be saved, what a copy has of its own, and what all copies have in common
is said in msb-snapshot(1). A copy publishes no ports, has its VM's name as its
hostname, is not started again, and is not committed. Its disk disappears with
it. Copies share the pages of memory that they have not written to.

If one copy does not start, or msb-fork gets a signal, the others are removed. The
snapshot is removed in any case, so none of the records starts another VM. If
msb-fork itself is killed, copies that are up stay, and so may the snapshot:
\"msb-store ls -t snapshot\" shows it."
        .into()
}
