//! What msb-snapshot's manual page and `--help` say apart from the flags.

use msb::tool::man::{self, Page};

pub(crate) const PAGE: Page = Page {
    operands: "[NAME]",
    forms: &[],
    notes: &[("What can be saved", what), ("What another VM keeps", keeps), ("Secrets", secrets)],
    exit_status: man::EXIT_STATUS,
    environment: &[man::MSB_RECORD, man::MSB_HOME, man::MSB_RUN],
    files: &[
        (
            "$MSB_HOME/snapshots/HEX",
            "A saved VM: snapshot.json, state, memory, a file for each disk, and verified, which records for which files the \
             digest was checked",
        ),
        ("/run/msb/NAME/snapshot.sock", "Where the supervisor of the VM NAME takes the request"),
    ],
    examples: &[
        ("prepare a VM, and save it", "msb-snapshot worker > snap.json"),
        ("start two others from it", "for n in 1 2; do msb-boot -r snap.json --name job$n -o $n.json; done"),
        ("what is saved, and what it takes", "msb-store ls -t snapshot"),
    ],
    see_also: &["msb-boot(1)", "msb-fork(1)", "msb-stop(1)", "msb-store(1)", "msb-record(5)", "msb(7)"],
};

fn what() -> String {
    "QEMU alone can save a VM, on KVM or in software emulation, and only devices that it
has itself. So the agent must be reached by a virtio-serial port, and the root
must be on disks:

  msb-pull alpine | msb-boot --name worker --vmm qemu --channel serial

A shared root, volumes of the host, a disk root, network cards on other networks,
and libkrun are refused before anything is paused. Files that the guest only
reads are shared with the store where they can be, so a snapshot takes about as
much as the guest has used of its memory and written to its disk.

All of a snapshot appears in the store, or nothing. Its name is the digest of its
description, which has the digests of the other files. msb-boot checks them
before a VM starts, and refuses a file that was truncated or modified. It reads
the memory again only if size, inode number or times of the file have changed
since the last check; the kernel changes the times with each write."
        .into()
}

fn keeps() -> String {
    "A VM that starts from a snapshot has a name, a hostname, a run directory and
variables of its own, and a copy of the disk, which disappears with it. It maps
the memory: VMs of one snapshot share the pages that they have not written to.
The snapshot can be removed while they run; its files must not be changed. The
guest gets the time, and its kernel's random number generator begins anew with
bytes of the host, before the agent answers. Connections to the saved VM have no
other end in it: commands that had a caller get the end of their streams, and
detached ones go on.

Processors, memory, disk, root, scripts, init and network are those of the saved
VM. All VMs of a snapshot have the same MAC and IP addresses; each is alone on a
network of its own. msb-boot refuses another version of QEMU, another model of
the processor and another guest kernel."
        .into()
}

fn secrets() -> String {
    "A snapshot holds all of the guest's memory: keys, passwords, the environment of
every process, and files that were read. Its directory has mode 0700, its files
0600 (memory: 0400); they are not encrypted. \"msb-store rm -t snapshot\"
overwrites the files with zeros before it removes them. If VMs that have started
from the snapshot still run, the last of them does that when it ends. Old blocks
may remain on a file system that writes to new ones (Btrfs, or XFS after a copy
with shared blocks), on the device, and after a kill of the last VM's supervisor.
\"msb-store gc\" does the same for a save that was not completed.

VMs from one snapshot have in common what was in memory: private keys and
session keys of running services, tokens, host keys of ssh, and /etc/machine-id,
unless msb-boot has --new-machine-id. The kernel's random numbers differ, and so
do those of programs that ask the kernel for each. A program that has seeded a
generator of its own before goes on with the same numbers in each VM: save the
VM before such programs start, or let them begin anew."
        .into()
}
