//! What msb-boot's manual page and `--help` say apart from the flags.

use msb::tool::man::{self, Page};
use msb::vm::inits;

pub(crate) const PAGE: Page = Page {
    operands: "[-- CMD...]",
    forms: &["--probe"],
    notes: &[
        ("Booting again", booting_again),
        ("Snapshots", snapshots),
        ("Other architectures", other_architectures),
        ("Volumes", volumes),
        ("Busy hosts", busy_hosts),
        ("Inits", inits),
    ],
    exit_status: man::EXIT_STATUS,
    environment: &[
        man::MSB_RECORD,
        man::MSB_HOME,
        man::MSB_RUN,
        ("MSB_VMM", "What runs the VM if --vmm is not given: auto, krun or qemu"),
        ("MSB_AGENTD", "Another agentd, for the guest's architecture. Default: beside msb-boot, or in ../libexec/msb"),
        (
            "MSB_LIBKRUNFW",
            "Another libkrunfw, with the guest's kernel. Default: beside msb-boot, in ../lib/msb, or the system's",
        ),
    ],
    files: &[
        ("/run/msb/NAME", "The run directory of the VM NAME: its record, agent socket and logs (see msb(7))"),
        ("$MSB_HOME/erofs", "EROFS images of layers, each made once"),
        ("$MSB_HOME/sandboxes/NAME", "The scratch disk of the VM NAME, with what its guest wrote"),
        ("$MSB_HOME/volumes/NAME", "The content of the volume NAME. msb never removes it"),
        ("$MSB_HOME/logs/NAME", "The logs of a boot that failed"),
    ],
    examples: &[
        ("what this machine has for a VM", "msb-boot --probe"),
        ("an image, booted from disks", "msb-pull alpine | msb-boot --name worker > vm.json"),
        ("a mounted root, shared with the host", "msb-pull alpine | msb-mount ./root | msb-boot -m 1G > shared.json"),
        ("a VM that has ended, with more memory", "msb-boot -r vm.json -m 1G -o vm.json"),
        ("a VM that goes on where a saved one was", "msb-snapshot worker | msb-boot --name other > other.json"),
        (
            "a directory of the host, and a cache that outlives the VM",
            "msb-pull alpine | msb-boot -v .:/src:ro -v cache:/cache > vm.json",
        ),
        ("a guest of another architecture", "msb-pull --platform linux/arm64 alpine | msb-boot > arm64.json"),
        ("the image's init as PID 1", "msb-boot -r systemd.json -m 1G --init auto > vm.json"),
        (
            "an init with an argument",
            "msb-boot -r systemd.json -m 1G --init /lib/systemd/systemd \\\n  --init-arg --unit=multi-user.target > vm.json",
        ),
    ],
    see_also: &[
        "msb-mount(1)",
        "msb-exec(1)",
        "msb-stop(1)",
        "msb-snapshot(1)",
        "msb-record(5)",
        "msb(7)",
        "agentd(8)",
    ],
};

fn booting_again() -> String {
    "The member \"boot\" of the printed record holds what was asked for, so booting the
record of a VM that has ended boots it again the same way. Flags override it."
        .into()
}

fn snapshots() -> String {
    "A record with the member \"snapshot\", as msb-snapshot(1) prints it, starts a VM that
goes on where the saved one was. It needs --name if the saved VM still runs. -e,
-w, -u and --hostname may differ; processors, memory, root, scripts, init, volumes
and network may not. QEMU runs it. It has a copy of the saved disk, which
disappears with it, unless msb-stop --commit commits it, and --restart is refused."
        .into()
}

fn other_architectures() -> String {
    "The guest has the architecture of the record's image.platform, linux/amd64 or
linux/arm64; without it, this machine's. QEMU emulates the processor if it is
not this machine's. The guest's agentd and libkrunfw.so.5 are in the directory
x86_64 or aarch64, beside msb-boot or in ../libexec/msb (\"make guest-arm64\"
makes them); QEMU is in the package qemu-system-x86 or qemu-system-arm."
        .into()
}

fn volumes() -> String {
    "A volume shows the host's files as they are: owners are numbers, and the guest's
root can give a file any owner and mode. Both sides see each other's changes,
the guest those of the host after at most a second. Mounts below SRC are
included, those of later not. The mount points that the root lacks are made for
the VM alone, and removed again when it ends in order; a mount point inside
another volume is made in that volume.

SRC must not be a symlink, the store, a run directory, or in a root that
msb-mount has mounted. A path in it is resolved once: if it leads elsewhere when
the VM starts, or starts again, the VM does not start.

A new volume of the store is empty, and belongs to root."
        .into()
}

fn busy_hosts() -> String {
    "The time in which a VM waits for a processor of the host does not count for
--timeout, nor for the limits in which msb-exec expects an answer of the agent.
So a VM on a busy host, or with a small --cpu-quota, has as much time on
processors as it would have on an idle one, and one that hangs is still
reported. An init has half of --timeout to start, and three quarters until it
is usable, by the guest's clock, for which all time counts."
        .into()
}

/// How each init of the table is asked to power off.
fn inits() -> String {
    let rows: String = inits::INIT_SYSTEMS
        .iter()
        .chain([&inits::OTHER])
        .map(|init| format!("  {}: {}\n", init.name, init.power_off))
        .collect();
    format!(
        "msb-stop asks each init to power off in its own way:

{rows}
An init that has not powered off within the grace is killed. One that exits, as
the inits of containers do, ends the machine in order. Most slim images have no
init: use an image that has one, or build one (examples/systemd)."
    )
}
