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
        ("three copies of the VM worker", "msb-fork -n 3 worker"),
        (
            "a command in each of them",
            "msb-fork -n 3 --name job worker | while read -r vm\n\
             do msb-exec -r - -d -- /job <<<\"$vm\"\ndone",
        ),
    ],
    see_also: &["msb-snapshot(1)", "msb-boot(1)", "msb-exec(1)", "msb-rm(1)", "msb(7)"],
};

fn copies() -> String {
    "msb-snapshot(1) says which VMs can be saved, what a copy has of its own, and
what all copies have in common. A copy publishes no ports, has its VM's name as
hostname, and is neither restarted nor committed. Its disk is removed with it.
Copies share the pages of memory that they have not written to.

If a copy does not start, or msb-fork gets a signal, the other copies are removed.
The snapshot is always removed, so the records start no further VMs. Only if
msb-fork itself is killed, copies that are up stay, and so may the snapshot:
\"msb-store ls -t snapshot\" shows it."
        .into()
}
