//! The manual page msb-security(7). Its tables are those from which the jails are built.

use std::fmt::Write;

use rustix::thread::CapabilitySet;

use super::profile::{Execution, Family, Profile, Rules, Syscalls, User};
use super::syscalls::{self, Syscall};

const HEAD: &str = r#".SH NAME
msb-security \- what separates a guest from its host
.SH DESCRIPTION
A guest is taken to be hostile: its kernel, its programs, and every image.
Two boundaries separate it from the host.
The first is the virtual machine: the processor, KVM or QEMU's emulation, and
the devices of the VMM.
The second is a jail around each process that serves the machine, described
here.
.PP
Each of these processes is the only one in its PID namespace, and has mount, IPC
and UTS namespaces of its own, and a network namespace with nothing in it unless
the table says otherwise.
Its root directory holds only what it serves.
Apart from the listed ones it has no capability, and it cannot get any:
no_new_privs is set.
Its session keyring is the VM's own and empty, its environment holds only PATH,
and it inherits no descriptor of the caller's.
It leaves no core dump, locks no memory, and is killed when the supervisor dies.
mkfs.erofs and mke2fs, which msb-pull and msb-pack start too, are killed when
their caller dies, have the time of the image in their environment, and a
keyring of the caller's that they may not ask for.
.PP
Landlock is a second layer, on a kernel that has it (Linux 5.19 and later, see
.B msb-boot
.BR \-\-probe ).
What is read-only in a root directory can only be read, and no file of it can be
executed but the process's own program and its dynamic loader.
An inherited file may be opened again.
A process without a network has no TCP (6.7), and none can signal a process
outside or connect to an abstract socket there (6.12).
.PP
.I The VM's user
has the number 1879048192 (0x70000000) plus the supervisor's process ID, and a
group of the same number.
It owns the VM's disk, sockets and console while the VM runs, and no other
process of the host has it.
In a user namespace without that number it is 65534.
.PP
With a limit of
.BR msb-boot (1),
such as
.B \-\-memory\-max
or
.BR \-\-cpu\-quota ,
these processes and the supervisor are in a cgroup that has it.
In version 2 of cgroups it is beside the caller's, whose own limits then hold
for them no longer.
Without one they are in the caller's cgroup.
What a guest writes to its console is kept up to a size and a rate.
"#;

const CALLS: &str = "A program of msb may make only the calls of its lists.
The others do not exist for it (ENOSYS).
Another program may make all but the forbidden ones, which fail with EPERM.
No process may make a namespace with clone or unshare, use clone3 or the x32
ABI, type into a terminal, or make a socket of a family that its row lacks.
A filter sees no paths.
A program that may be executed once could therefore execute another file of its
root directory, with an absolute path and the one descriptor number that is let
through to execveat.
Landlock forbids that.
On a kernel without it, such a file runs under the same filter, as the same
user, with the same capabilities.
";

/// Rows of the table that are not built from [`Profile`].
const UNCONFINED: &str = r#".SH WITHOUT A JAIL
.TP
.B supervisor
Runs as the caller.
It takes messages of bounded size from the guest's agent, the console's text,
and the files of a commit, whose names are opened one component at a time.
.TP
.B msb-mount
Runs as the caller.
It takes requests for files from the kernel, on the layers and the upper.
.TP
.B msb-exec
Runs as the caller.
It takes messages of bounded size from the guest's agent, and passes the output
of the command on as it is: a terminal obeys it.
.TP
.B msb-oci
Runs as the caller, a container engine.
It takes a configuration, hooks and a root from its caller, and of the guest
only what msb-exec takes.
.TP
.BR msb-pull ", " msb-patch ", " msb-pack ", " msb-diff ", " msb-store " and " msb-cp
Run as the caller.
They read archives, images and trees, and follow no symlink out of a root.
msb-pack starts qemu-img, which copies the blocks of a disk and reads nothing of
them.
msb-pull decompresses in a process that has only its streams, and may make only
the calls of the list
.IR base .
The result is checked against its digest.
.SH SEE ALSO
.BR msb-boot (1),
.BR msb-network (7),
.BR msb (7)
"#;

impl Profile {
    pub(super) const ALL: [Self; 15] = [
        Self::Krun,
        Self::KrunPrivateDisk,
        Self::KrunShares,
        Self::Qemu,
        Self::QemuPrivateDisk,
        Self::Virtiofsd,
        Self::Vsock,
        Self::Channel,
        Self::Gate,
        Self::Resolver,
        Self::Relay,
        Self::Passt,
        Self::PasstLowPort,
        Self::Mkfs,
        Self::MkfsTrusted,
    ];

    /// The process, and when it has this profile.
    const fn title(self) -> &'static str {
        match self {
            Self::Krun => "libkrun, with disks alone",
            Self::KrunPrivateDisk => "libkrun, with a disk image that others may not read",
            Self::KrunShares => "libkrun, with a shared root or volumes",
            Self::Qemu => "QEMU",
            Self::QemuPrivateDisk => "QEMU, with a disk image that others may not read",
            Self::Virtiofsd => "virtiofsd, under QEMU: one for a shared root, one for volumes",
            Self::Vsock => "vhost-device-vsock, under QEMU",
            Self::Channel => "the multiplexer of the port to the agent, with --channel serial",
            Self::Gate => "the gate between the guest's card and passt",
            Self::Resolver => "the resolver, which asks name servers for the guest",
            Self::Relay => "the relay between the guest's card and a TAP interface",
            Self::Passt => "passt",
            Self::PasstLowPort => "passt, with a published port below 1024",
            Self::Mkfs => "mkfs.erofs and mke2fs, for disks that are made of a tree",
            Self::MkfsTrusted => "the same, of a tree with trusted xattrs",
        }
    }

    /// What it has in its root directory, besides its program and the system's libraries.
    const fn files(self) -> &'static str {
        match self {
            Self::Krun => "socket directory, kernel (read-only), /dev/kvm, links to its descriptors",
            Self::KrunPrivateDisk => "the same, and the image (read-only)",
            Self::KrunShares => "the same, the shared root, and volumes",
            Self::Qemu => {
                "kernel (read-only), /dev/kvm, links to its descriptors; the disks, the initramfs and the sockets are \
                 descriptors"
            }
            Self::QemuPrivateDisk => "the same, and the image (read-only)",
            Self::Virtiofsd => "the share; its own /proc/PID; the limit of open files",
            Self::Vsock => "the socket directory, which is removed when the VM is up",
            Self::Channel => "the socket directory, which is removed when the VM is up; its sockets are descriptors",
            Self::Gate => "nothing; its log, its counters and its sockets are descriptors",
            Self::Resolver => "nothing; its sockets are descriptors",
            Self::Relay => "nothing; the interface and the socket are descriptors",
            Self::Mkfs | Self::MkfsTrusted => {
                "the tree (read-only), an empty /tmp, links to its descriptors; the image is a descriptor"
            }
            Self::Passt | Self::PasstLowPort => "an empty /tmp, its own /proc/PID",
        }
    }
}

/// The text in lines of at most 79 bytes, as mandoc wants them.
fn filled(text: &str) -> String {
    let mut lines = String::new();
    let mut length = 0;
    for word in text.split_whitespace() {
        if length + word.len() > 78 {
            lines.push('\n');
            length = 0;
        } else if length > 0 {
            lines.push(' ');
            length += 1;
        }
        lines.push_str(word);
        length += word.len();
    }
    lines
}

/// The names of capabilities, as capabilities(7) has them.
fn capabilities(set: CapabilitySet) -> String {
    let names: Vec<String> = set.iter_names().map(|(name, _)| format!("CAP_{name}")).collect();
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

fn calls(list: &[Syscall]) -> String {
    let mut names: Vec<_> = list.iter().map(|call| call.name()).collect();
    names.sort_unstable();
    names.join(", ")
}

/// The names of the lists, in the order of the page.
const LISTS: [(&str, &[Syscall]); 8] = [
    ("base", syscalls::BASE),
    ("messages", syscalls::MESSAGES),
    ("connections", syscalls::CONNECTIONS),
    ("callers", syscalls::CALLERS),
    ("events", syscalls::EVENTS),
    ("vmm", syscalls::VMM),
    ("files", syscalls::FILES),
    ("serve", syscalls::SERVE_FILES),
];

fn system_calls(rules: &Rules) -> String {
    match rules.syscalls {
        Syscalls::AllBut if rules.own_sandbox.is_empty() => "all but the forbidden".into(),
        Syscalls::AllBut => {
            format!(
                "all but the forbidden; for a sandbox of its own, whose filter forbids them, {}",
                calls(rules.own_sandbox)
            )
        }
        Syscalls::Only(lists) => {
            let is_used = |(_, list): &&(&str, &[Syscall])| lists.contains(list);
            let names: Vec<_> = LISTS.iter().filter(is_used).map(|(name, _)| *name).collect();
            format!("only the lists {}", names.join(", "))
        }
    }
}

fn row(page: &mut String, profile: Profile) -> std::fmt::Result {
    let rules = profile.rules();
    let family = |family: &Family| match family {
        Family::Unix => "Unix",
        Family::Inet => "IPv4",
        Family::Inet6 => "IPv6",
        Family::Netlink => "netlink",
    };
    let sockets: Vec<_> = rules.sockets.iter().map(family).collect();
    writeln!(page, ".SS {}", profile.title())?;
    let mut line = |name: &str, value: &str| writeln!(page, ".TP 16\n{name}\n{}", filled(value));
    line("user", if rules.user == User::Root { "root of the supervisor's user namespace" } else { "the VM's user" })?;
    line("capabilities", &capabilities(rules.capabilities))?;
    line("network", if rules.has_network { "the host's" } else { "none" })?;
    line(
        "Landlock",
        match (rules.limits_files, rules.has_network) {
            (true, false) => "files, programs, TCP, signals and abstract sockets",
            (true, true) => "files, programs, signals and abstract sockets",
            (false, _) => "signals and abstract sockets; it mounts a sandbox of its own",
        },
    )?;
    line("system calls", &system_calls(&rules))?;
    line("new sockets", if sockets.is_empty() { "none".into() } else { sockets.join(", ") }.as_str())?;
    line(
        "programs",
        match rules.execution {
            Execution::Never => "none",
            Execution::Once => "its own, once",
            Execution::Free => "its own, whose filter then forbids it",
        },
    )?;
    line("open files", &rules.open_files.map_or("as many as the host lets it".into(), |limit| limit.to_string()))?;
    line("files", profile.files())
}

fn render(date: &str) -> Result<String, std::fmt::Error> {
    let mut page = format!(".TH MSB-SECURITY 7 {date} \"msb\" \"Miscellaneous\"\n{HEAD}");
    writeln!(page, ".SH PROCESSES")?;
    for profile in Profile::ALL {
        row(&mut page, profile)?;
    }
    writeln!(page, ".SH SYSTEM CALLS")?;
    page.push_str(CALLS);
    writeln!(page, ".TP\n.B forbidden\n{}", filled(&calls(syscalls::FORBIDDEN)))?;
    for (name, list) in LISTS {
        writeln!(page, ".TP\n.B {name}\n{}", filled(&calls(list)))?;
    }
    page.push_str(UNCONFINED);
    Ok(page)
}

/// The manual page msb-security(7) of a date, in roff.
pub fn security_page(date: &str) -> String {
    render(date).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_list_has_a_forbidden_call_or_one_twice() {
        let mut seen = std::collections::BTreeSet::new();
        for call in LISTS.iter().flat_map(|(_, list)| *list).chain(syscalls::FORBIDDEN) {
            assert!(seen.insert(call.name()), "{}", call.name());
        }
    }

    #[test]
    fn every_process_that_may_make_only_some_calls_names_its_lists() {
        for profile in Profile::ALL {
            if let Syscalls::Only(lists) = profile.rules().syscalls {
                assert_eq!(system_calls(&profile.rules()).matches(',').count() + 1, lists.len(), "{profile:?}");
            }
        }
    }
}
