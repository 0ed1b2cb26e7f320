//! `boot.json`: the instructions for agentd, which msb-boot puts into the initramfs, and which is read once. Both are of one release.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::record::Text;

/// The file's name in the initramfs.
pub const FILE_NAME: &str = "boot.json";
/// agentd's name in the initramfs. The kernel's command line has it.
pub const AGENT_NAME: &str = "agentd";
/// Where the guest's real root is after [`Boot::mounts`], before it becomes `/`.
pub const NEW_ROOT: &str = "/mnt";
/// The mount point of the image's disk, for a block root.
pub const BASE: &str = "/base";
/// The mount points of the disks with layers on top of that, the lowest first.
pub const LAYERS: [&str; 3] = ["/layer1", "/layer2", "/layer3"];
/// The mount point of the patches' disk.
pub const PATCHES: &str = "/patches";
/// The mount point of the scratch disk, which holds the guest's writes.
pub const SCRATCH: &str = "/top";
/// The directory of the initramfs that becomes the guest's `/.msb`.
pub const MSB_DIR: &str = "msb";
/// The tag of the share with the volumes of the host, each named by its number, and the directory of the initramfs where it is mounted.
pub const VOLUMES_DIR: &str = "volumes";
/// The virtio-serial port to the host, for [`Boot::port`].
pub const PORT: &str = "/dev/vport0p1";
/// The version that this crate reads and writes.
pub const VERSION: u32 = 4;

/// The instructions for a boot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Boot {
    /// [`VERSION`].
    pub version: u32,
    /// When this start of the VM was requested, in milliseconds since 1970. The guest's own clock starts later.
    pub requested_at_ms: u64,
    /// The guest's hostname.
    pub hostname: String,
    /// The mounts that make up the real root, in order; the last one is on [`NEW_ROOT`].
    pub mounts: Vec<MountStep>,
    /// Defaults for commands.
    pub defaults: Defaults,
    /// Absolute paths of directories to create in the root if they are missing: the image's volumes.
    #[serde(default)]
    pub directories: Vec<String>,
    /// What is mounted in the root, in this order.
    #[serde(default)]
    pub volumes: Vec<Volume>,
    /// Nothing is run: agentd sends the upper on [`SCRATCH`] to the host and powers off.
    #[serde(default)]
    pub commit: bool,
    /// The root stays on [`NEW_ROOT`] as it is: nothing is mounted or created in it, and only containers run in it.
    #[serde(default)]
    pub bare: bool,
    /// The init to run as PID 1.
    #[serde(default)]
    pub init: Option<Init>,
    /// The network; `None` for the loopback interface alone.
    #[serde(default)]
    pub network: Option<Network>,
    /// The connections to the host are on [`PORT`], and not on vsock.
    #[serde(default)]
    pub port: bool,
}

/// A volume: a directory or file of the host, or a file system in memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Volume {
    /// Where it is mounted: an absolute path, whose symlinks are followed inside the root.
    pub target: String,
    /// What is mounted.
    pub source: VolumeSource,
    /// Whether it is read-only. The host enforces that.
    pub readonly: bool,
}

/// What a volume holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeSource {
    /// The directory of this number in [`VOLUMES_DIR`].
    Directory(usize),
    /// The file of this number in [`VOLUMES_DIR`].
    File(usize),
    /// An empty file system in memory, with these options of tmpfs(5).
    Tmpfs(String),
}

/// The configuration of the guest's network.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Network {
    /// Its network cards.
    pub cards: Vec<Card>,
    /// For resolv.conf(5); empty to leave the image's as it is.
    pub nameservers: Vec<IpAddr>,
    /// For resolv.conf(5).
    pub search: Vec<String>,
    /// For hosts(5).
    pub hosts: Vec<(IpAddr, String)>,
}

/// Checks where a volume is mounted, given a path without `..` and symlinks: it must not cover what the agent and later mounts
/// need.
///
/// # Errors
/// Why nothing is mounted there.
pub fn check_volume_target(target: &Path) -> Result<(), &'static str> {
    let mut names = target.components().skip(1).map(|component| component.as_os_str().to_str().unwrap_or_default());
    match [names.next(), names.next(), names.next()] {
        [None, ..] => Err("a volume cannot replace the guest's root"),
        [Some(".msb"), ..] => Err("/.msb belongs to msb"),
        [Some("proc"), None, _] => Err("/proc is what the guest's kernel says about itself (mount a file below it)"),
        [Some("proc"), Some(name), _]
            if ["self", "thread-self"].contains(&name) || name.bytes().all(|byte| byte.is_ascii_digit()) =>
        {
            Err("a process of the guest is there")
        }
        [Some("sys"), None, _] => Err("/sys is what the guest's kernel says about its devices (mount below it)"),
        [Some("sys"), Some("fs"), None | Some("cgroup")] => Err("the cgroups of the guest are there"),
        _ => Ok(()),
    }
}

/// An Ethernet address as it is written.
pub fn format_mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Card {
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// The largest packet, in bytes.
    pub mtu: u32,
    /// Its addresses.
    pub addresses: Vec<Subnet>,
    /// The routes through it.
    pub routes: Vec<Route>,
}

/// An address with the length of its network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// The address.
    pub address: IpAddr,
    /// The prefix length.
    pub prefix: u8,
}

/// A route. A default route leads to the unspecified address with a prefix length of 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The destination.
    pub to: Subnet,
    /// The next hop.
    pub via: IpAddr,
}

impl Route {
    /// The default route of the gateway's family.
    pub fn default_by(gateway: IpAddr) -> Self {
        let address = match gateway {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Self { to: Subnet { address, prefix: 0 }, via: gateway }
    }
}

impl FromStr for Subnet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(address, prefix)| {
            let address: IpAddr = address.parse().ok()?;
            let is_number = prefix.bytes().all(|byte| byte.is_ascii_digit());
            let prefix = prefix
                .parse()
                .ok()
                .filter(|prefix| is_number && *prefix <= if address.is_ipv4() { 32 } else { 128 })?;
            Some(Self { address, prefix })
        });
        parsed.ok_or_else(|| format!("{text:?}: an address with a prefix length, as 192.0.2.7/24, is expected"))
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// One mount.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MountStep {
    /// A virtiofs tag, a device, or the type of the file system.
    pub source: String,
    /// An existing directory, in the initramfs or in an earlier mount.
    pub target: PathBuf,
    /// The file system's type.
    pub fstype: String,
    /// Mount options as in fstab(5): `ro`, `nosuid`, `nodev`, `noexec`, and those of the file system.
    #[serde(default)]
    pub options: Vec<String>,
    /// Directories to create in it once it is mounted, if they are missing.
    #[serde(default)]
    pub directories: Vec<Directory>,
}

/// A directory that a later mount needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Directory {
    /// Its path.
    pub path: PathBuf,
    /// The directory from which owner, mode, times and xattrs are copied; without one, it is private to root.
    #[serde(default)]
    pub like: Option<PathBuf>,
}

/// Defaults for commands: the image's configuration, overridden by msb-boot's flags.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Defaults {
    /// Variables, `K=V` each.
    pub env: Vec<Text>,
    /// The working directory, created if it is missing; empty for `/`.
    pub cwd: String,
    /// `user[:group]`; empty for root.
    pub user: String,
    /// The default command: entrypoint and cmd.
    pub argv: Vec<Text>,
    /// The number of the signal that asks commands to end when the machine stops.
    pub stop_signal: i32,
}

/// An init to run as PID 1.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Init {
    /// An absolute path in the guest; `None` to look for one.
    pub path: Option<String>,
    /// The image's entrypoint and cmd if they contain an init, which a search tries first.
    #[serde(default)]
    pub entrypoint: Vec<Text>,
    /// The arguments after the path.
    pub args: Vec<Text>,
    /// Variables, `K=V` each; they override inherited ones.
    pub env: Vec<Text>,
    /// How long it may take until it first waits for an event, in milliseconds.
    pub limit_ms: u64,
    /// The number of the image's stop signal.
    pub stop_signal: i32,
    /// When it must be usable, in milliseconds since power-on; `None` not to wait for it.
    #[serde(default)]
    pub usable_ms: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_covers_nothing_that_the_agent_needs() {
        for good in [
            "/a",
            "/.msbx",
            "/proc/version",
            "/proc/sys/a",
            "/procs",
            "/sys/kernel/x",
            "/sys/fs/x",
            "/a/proc",
            "/dev/x",
        ] {
            assert_eq!(check_volume_target(Path::new(good)), Ok(()), "{good}");
        }
        for bad in [
            "/",
            "/.msb",
            "/.msb/scripts",
            "/proc",
            "/proc/self",
            "/proc/self/fd",
            "/proc/thread-self/x",
            "/proc/1",
            "/proc/12/root",
            "/sys",
            "/sys/fs",
            "/sys/fs/cgroup",
            "/sys/fs/cgroup/x",
        ] {
            assert!(check_volume_target(Path::new(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_subnet_is_parsed_and_printed() {
        for text in ["192.0.2.7/24", "0.0.0.0/0", "192.0.2.7/32", "2001:db8::7/64", "::/0", "::1/128"] {
            assert_eq!(text.parse::<Subnet>().unwrap().to_string(), text);
        }
        for text in ["", "192.0.2.7", "192.0.2.7/", "192.0.2.7/33", "::/129", "192.0.2.7/+1", "192.0.2/24", "a/1"] {
            assert!(text.parse::<Subnet>().unwrap_err().starts_with(&format!("{text:?}")), "{text}");
        }
    }

    #[test]
    fn an_ethernet_address_has_two_digits_a_byte() {
        assert_eq!(format_mac([0x52, 0x55, 0, 0xa, 0xff, 2]), "52:55:00:0a:ff:02");
    }

    #[test]
    fn a_default_route_is_of_its_gateways_family() {
        for (gateway, to) in [("192.0.2.1", "0.0.0.0/0"), ("fe80::1", "::/0")] {
            let route = Route::default_by(gateway.parse().unwrap());
            assert_eq!((route.to, route.via), (to.parse().unwrap(), gateway.parse().unwrap()));
        }
    }
}
