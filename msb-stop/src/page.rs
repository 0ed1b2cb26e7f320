//! What msb-stop's manual page and `--help` say apart from the flags.

use msb::tool::man::{self, Page};

pub(crate) const PAGE: Page = Page {
    operands: "[NAME...]",
    forms: &[],
    notes: &[],
    exit_status: &[
        ("0", "success"),
        ("1", "failure, or the guest had to be killed"),
        ("2", "usage error"),
        ("128+N", "interrupted by signal N"),
    ],
    environment: &[man::MSB_RECORD, man::MSB_RUN],
    files: &[("/run/msb/NAME", "The run directory of the VM NAME, which msb-stop removes")],
    examples: &[
        ("keep what the guest wrote, and mount it", "msb-stop -r vm.json --commit | msb-mount ./result > root.json"),
        ("by name, within two seconds", "msb-stop worker -t 2"),
        ("also unmount the root", "msb-stop -r shared.json --unmount > stopped.json"),
    ],
    see_also: &["msb-boot(1)", "msb-exec(1)", "msb-mount(1)", "msb-record(5)", "msb(7)"],
};
