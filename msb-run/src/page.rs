//! What msb-run's manual page and `--help` say apart from the flags.

use msb::tool::man::{self, Page};

/// The page's texts.
pub const PAGE: Page = Page {
    operands: "IMAGE [[--] CMD...]",
    forms: &[],
    notes: &[("What is kept", kept), ("Snapshots", snapshots), ("Steps of a build", steps)],
    exit_status: &[
        ("N", "the command's own status"),
        ("128+N", "signal N ended it, or msb-run before the command ran"),
        ("124", "it timed out"),
        ("125", "msb-run or one of its tools failed"),
        ("126", "the command cannot be executed"),
        ("127", "the command was not found"),
    ],
    environment: &[
        man::MSB_HOME,
        man::MSB_RUN,
        ("MSB_VMM", "What runs the VM if --vmm is not given: auto, krun or qemu"),
        ("MSB_NETWORK", "The network if --network is not given (see msb-network(7))"),
    ],
    files: &[
        ("$MSB_HOME/sandboxes/NAME", "The disk of the VM NAME, and its upper with --patch or --commit"),
        ("$MSB_HOME/snapshot-names/NAME", "The digest of the snapshot NAME of --snapshot, and that of its inputs"),
        ("$MSB_HOME/steps", "Which upper each step of --cache has made"),
    ],
    examples: &[
        ("a command, and nothing is left", "msb-run alpine -- cat /etc/os-release"),
        ("a shell with another init as PID 1", "msb-run jrei/systemd-debian:12 -m 1G --init auto -- bash"),
        (
            "a service in the background, and a command in it",
            "msb-run -d --name web nginx\nmsb-exec web -- nginx -v\nmsb-rm -f web",
        ),
        (
            "a prepared system, which is booted once",
            "msb-run --snapshot deb --patch ops.jsonl debian --init auto -- id",
        ),
        ("what it does, for a script", "msb-run -x alpine -- true"),
        (
            "a step of a build, and the image of its result",
            "msb-run --commit --cache debian -- apt-get update | msb-pack oci:out",
        ),
    ],
    see_also: &[
        "msb(1)",
        "msb-ls(1)",
        "msb-rm(1)",
        "msb-pull(1)",
        "msb-patch(1)",
        "msb-boot(1)",
        "msb-exec(1)",
        "msb-stop(1)",
        "msb-snapshot(1)",
        "msb-store(1)",
    ],
};

fn kept() -> String {
    "Without --name, and with --rm, nothing of the VM is kept when the command has
ended. A second process cleans up if msb-run is killed. With --name the VM is
stopped, and its disk stays for the next VM of that name. With --detach the VM
runs until msb-stop stops it, also when the command has ended."
        .into()
}

fn snapshots() -> String {
    "--snapshot NAME starts the VM from a snapshot. The first run boots a VM under
QEMU with a block root and without the command, saves it when its agent answers
(with --init: when the init is usable), and ends it. This run and later ones
start from the snapshot, as long as its inputs are the same: the image, the
operations of --patch, scripts, the flags of msb-boot, $MSB_NETWORK, agentd, the
guest kernel, QEMU and the release of msb. Otherwise a new snapshot replaces it.

The command, --hostname, --workdir, --user, --publish, the limits and, without
--init, --env, --env-file and --entrypoint belong to each run and are not saved.
Each run has a copy of the saved disk, which is removed when the VM ends, also
with --name. Volumes of the host, --restart and other VMMs, roots and channels
are refused. \"msb-store rm -t snapshot NAME\" removes a snapshot. msb-snapshot(1)
says what VMs from one snapshot have in common."
        .into()
}

fn steps() -> String {
    "--commit runs a command as RUN of a Dockerfile does: on a block root, without
the entrypoint, and what it has written becomes the upper of the record on
stdout. A command that fails leaves nothing. --cache finds an earlier result by
the content of the root, the flags, the command, and the files that they and the
operations of --patch name; what the network and volumes have is not a part of
that. With --cache the command has no stdin. The upper of a result stays until
msb-store rm removes it; a result whose upper has changed does not count any
more, so patch it with msb-patch --copy. examples/debian-app and
examples/dockerfile show both."
        .into()
}
