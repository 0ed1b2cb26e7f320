//! The processes that have a jail, and what each of them may do: one table, from which the jails are built and msb-security(7) is
//! generated.

use nix::libc;
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

use super::syscalls::{self, Syscall};

/// The capabilities for serving a tree to a guest with many users: acting as each of them, and as root.
///
/// What serves a tree is root of the user namespace that the tools are in, which is the host's for root. Neither alternative is good
/// enough on Linux 6.18:
///
/// - As another user, behind an idmapped mount (`mount_setattr(2)`). Each file system decides whether it has such mounts. ext4 and
///   tmpfs do. overlayfs gives EINVAL, and so does a mount of msb-mount. Since Linux 6.12 a FUSE server can ask for them
///   (FUSE_ALLOW_IDMAP), but is not told then who makes a request, and msb-mount clears set-id bits depending on that. A root, and each
///   volume and mount in it, may be on any of these file systems, and a server has one user for all.
/// - As root of a user namespace that maps each number to itself. All requests of a guest work but `mknod(2)` of a device node (EPERM),
///   which guests with a shared root make, such as debootstrap(8). What is gained is that capabilities have no effect outside of the
///   files; the root directory, the network namespace and the filter leave nothing else that they could be used on.
///
/// So the mounts make set-id bits and device nodes ineffective: all of the jail have nosuid and nodev, and so has a mount of msb-mount,
/// which only root may enter; an upper is in a directory of mode 0700. A user's own namespace has both limits anyway.
const SERVE_FILES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP);

/// The capabilities that virtiofsd needs for its own sandbox within the jail. It drops both.
const SANDBOX: CapabilitySet = CapabilitySet::SYS_CHROOT.union(CapabilitySet::SETPCAP);

/// A process that has a jail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// libkrun, with a block or disk root.
    Krun,
    /// libkrun, with a disk image that only its owner may read.
    KrunPrivateDisk,
    /// libkrun, serving a shared root or volumes.
    KrunShares,
    /// QEMU.
    Qemu,
    /// QEMU, with a disk image that only its owner may read.
    QemuPrivateDisk,
    /// virtiofsd.
    Virtiofsd,
    /// vhost-device-vsock.
    Vsock,
    /// The multiplexer of the guest's port.
    Channel,
    /// The gate between the guest's card and passt.
    Gate,
    /// The resolver that asks name servers.
    Resolver,
    /// The relay between the guest's card and a TAP interface.
    Relay,
    /// passt.
    Passt,
    /// passt, with a port below 1024.
    PasstLowPort,
    /// mkfs.erofs or mke2fs, reading a tree.
    Mkfs,
    /// The same, reading a tree with xattrs in `trusted.`, which takes CAP_SYS_ADMIN.
    MkfsTrusted,
}

/// Who a process is on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum User {
    /// Root: the guest's users are users of the host.
    Root,
    /// A user that only this VM has.
    OfVm,
}

/// The programs that a process may execute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Execution {
    /// None: the process is msb-boot.
    Never,
    /// Its own program, when it starts. Afterwards `execve(2)` and nearly all of `execveat(2)` are refused, see `Jail::try_execute`.
    Once,
    /// Its own program has a filter that forbids it.
    Free,
}

/// Which system calls a process may make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Syscalls {
    /// Only those in the lists, for a program of our own.
    Only(&'static [&'static [Syscall]]),
    /// All but those that no process may make, for a program of others.
    AllBut,
}

/// A family of socket addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Unix,
    Inet,
    Inet6,
    Netlink,
}

impl Family {
    /// Its number for `socket(2)`.
    pub(super) fn number(self) -> u64 {
        let number = match self {
            Self::Unix => libc::AF_UNIX,
            Self::Inet => libc::AF_INET,
            Self::Inet6 => libc::AF_INET6,
            Self::Netlink => libc::AF_NETLINK,
        };
        u64::from(number.cast_unsigned())
    }
}

/// What a process may do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub user: User,
    pub capabilities: CapabilitySet,
    /// Whether it has the network of the host.
    pub has_network: bool,
    /// Whether it has the descriptors above 2 that it has inherited.
    pub inherits_files: bool,
    /// Whether Landlock limits what it may do with files. It could not mount anything then.
    pub limits_files: bool,
    pub execution: Execution,
    pub syscalls: Syscalls,
    /// What it may call besides, to confine itself once more.
    pub own_sandbox: &'static [Syscall],
    /// The sockets that it may make.
    pub sockets: &'static [Family],
    /// How many files it may have open; `None` for as many as the host lets it.
    pub open_files: Option<u16>,
}

/// A VMM or helper without any power.
const NOTHING: Rules = Rules {
    user: User::OfVm,
    capabilities: CapabilitySet::empty(),
    has_network: false,
    inherits_files: true,
    limits_files: true,
    execution: Execution::Never,
    syscalls: Syscalls::AllBut,
    own_sandbox: &[],
    sockets: &[Family::Unix],
    open_files: Some(4096),
};

/// A process that needs no more than its memory and the descriptors that it has, see [`super::seal`].
pub(super) const SEALED: Rules =
    Rules { syscalls: Syscalls::Only(&[syscalls::BASE]), sockets: &[], open_files: Some(16), ..NOTHING };

impl Profile {
    /// What the process may do.
    pub(super) const fn rules(self) -> Rules {
        match self {
            Self::Krun => {
                let syscalls = Syscalls::Only(&[
                    syscalls::BASE,
                    syscalls::MESSAGES,
                    syscalls::CONNECTIONS,
                    syscalls::CALLERS,
                    syscalls::EVENTS,
                    syscalls::VMM,
                    syscalls::FILES,
                ]);
                Rules { syscalls, ..NOTHING }
            }
            Self::KrunPrivateDisk => Rules { capabilities: CapabilitySet::DAC_READ_SEARCH, ..Self::Krun.rules() },
            Self::KrunShares => Rules {
                user: User::Root,
                capabilities: SERVE_FILES,
                syscalls: Syscalls::Only(&[
                    syscalls::BASE,
                    syscalls::MESSAGES,
                    syscalls::CONNECTIONS,
                    syscalls::CALLERS,
                    syscalls::EVENTS,
                    syscalls::VMM,
                    syscalls::FILES,
                    syscalls::SERVE_FILES,
                ]),
                open_files: None,
                ..NOTHING
            },
            Self::Qemu => Rules { execution: Execution::Once, ..NOTHING },
            Self::QemuPrivateDisk => Rules { capabilities: CapabilitySet::DAC_READ_SEARCH, ..Self::Qemu.rules() },
            Self::Virtiofsd => Rules {
                user: User::Root,
                capabilities: SERVE_FILES.union(SANDBOX),
                execution: Execution::Free,
                own_sandbox: syscalls::CHROOT,
                open_files: None,
                ..NOTHING
            },
            Self::Vsock => Rules { execution: Execution::Once, open_files: Some(16384), ..NOTHING },
            Self::Channel => Rules {
                syscalls: Syscalls::Only(&[
                    syscalls::BASE,
                    syscalls::MESSAGES,
                    syscalls::CONNECTIONS,
                    syscalls::CALLERS,
                    syscalls::EVENTS,
                ]),
                open_files: Some(16384),
                ..NOTHING
            },
            Self::Gate | Self::Relay => Rules {
                syscalls: Syscalls::Only(&[syscalls::BASE, syscalls::MESSAGES]),
                sockets: &[],
                open_files: Some(64),
                ..NOTHING
            },
            Self::Resolver => Rules {
                has_network: true,
                syscalls: Syscalls::Only(&[syscalls::BASE, syscalls::MESSAGES, syscalls::CONNECTIONS]),
                sockets: &[Family::Inet, Family::Inet6],
                open_files: Some(256),
                ..NOTHING
            },
            Self::Passt => Rules {
                has_network: true,
                limits_files: false,
                execution: Execution::Free,
                own_sandbox: syscalls::NAMESPACES,
                sockets: &[Family::Unix, Family::Inet, Family::Inet6, Family::Netlink],
                open_files: None,
                ..NOTHING
            },
            Self::Mkfs => Rules {
                user: User::Root,
                capabilities: CapabilitySet::DAC_READ_SEARCH,
                inherits_files: false,
                execution: Execution::Once,
                sockets: &[],
                open_files: Some(16384),
                ..NOTHING
            },
            Self::MkfsTrusted => Rules {
                capabilities: CapabilitySet::DAC_READ_SEARCH.union(CapabilitySet::SYS_ADMIN),
                ..Self::Mkfs.rules()
            },
            Self::PasstLowPort => Rules { capabilities: CapabilitySet::NET_BIND_SERVICE, ..Self::Passt.rules() },
        }
    }
}
