//! What msb-exec's manual page and `--help` say apart from the flags.

use msb::tool::man::{self, Page};

/// The page's texts.
pub const PAGE: Page = Page {
    operands: "[NAME] [-- CMD...]",
    forms: &["[OPTION...] -r NAME|FILE [--] [CMD...]", "--rsh [-l USER] [USER@]HOST CMD..."],
    notes: &[],
    exit_status: &[
        ("N", "the command's own status"),
        ("128+N", "signal N ended it"),
        ("124", "it timed out"),
        ("125", "the VM or msb-exec failed"),
        ("126", "the command cannot be executed"),
        ("127", "the command was not found"),
    ],
    environment: &[man::MSB_RECORD, man::MSB_RUN, ("TERM", "The type of the terminal, for a command that has one")],
    files: &[("/run/msb/NAME", "The run directory of the VM NAME, with its record and the agent's socket")],
    examples: &[
        ("a command in the VM of a record", "msb-exec -r vm.json -- uname -a"),
        ("a shell in the VM of that name", "msb-exec worker -- sh"),
        ("a line for the guest's shell", "msb-exec worker --shell 'cd /etc && ls | wc -l'"),
        (
            "a detached command, and its exit status",
            "id=$(msb-exec worker -d -- sleep 1 | jq .id)\nmsb-exec worker --wait \"$id\"",
        ),
        (
            "a loop that reads stdin, which msb-exec must not read",
            "while read -r x; do msb-exec -n worker -- echo \"$x\"; done < list",
        ),
        (
            "a tree into the guest, and out of it",
            "tar -C src -c . | msb-exec worker -w /srv -- tar -x\nmsb-exec worker -w /srv -- tar -c . | tar -C dst -x",
        ),
        ("a file into the guest", "msb-exec worker -- tee /etc/motd < motd > /dev/null"),
        ("only what is new, with rsync in the guest", "rsync -a -e 'msb-exec -r worker --rsh' src/ vm:/srv/"),
        (
            "a repository, with git in the guest",
            "GIT_SSH_COMMAND='msb-exec -r worker --rsh' \\\n  git clone vm:/srv/repository\ngit -c protocol.ext.allow=always clone \\\n  'ext::msb-exec -r worker -- git-upload-pack /srv/repository' copy",
        ),
    ],
    see_also: &["msb-boot(1)", "msb-stop(1)", "msb-logs(1)", "msb-wire(5)", "msb(7)", "agentd(8)"],
};
