//! passt, the process that opens ordinary sockets of the host for the guest. It has the host's network, so it runs as the VM's
//! user, without capabilities unless a low port is published.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use msb::jail::{FIRST_USER, LAST_USER, Profile};
use serde::{Deserialize, Serialize};

use super::address::{Address, MTU};
use super::publish::{self, Publish};
use crate::processes::{Processes, Vital, fd_flag};
use crate::program;
use crate::unusable::Unusable;
use crate::vm::Vm;

/// The process's name in messages.
pub(crate) const NAME: &str = "passt";

/// The groups that may open ICMP sockets, icmp(7).
const PING_GROUP_RANGE: &str = "/proc/sys/net/ipv4/ping_group_range";

/// The ports below it need a capability.
const FIRST_UNPRIVILEGED_PORT: u16 = 1024;

/// The program.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Passt {
    program: PathBuf,
    /// It has the flag `--stderr`, and logs to syslog without it.
    has_stderr_flag: bool,
}

/// Finds the program.
///
/// # Errors
/// The package to install.
pub(crate) fn find_program() -> Result<PathBuf, Unusable> {
    program::find("passt", &[], "apt-get install passt")
}

/// What the program says about its version.
pub(crate) fn version(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Some(text.lines().next()?.trim_start_matches(NAME).trim().to_owned())
}

/// Whether guests can ping. passt uses ICMP sockets, which take no privilege but a group in this range.
///
/// # Errors
/// The setting.
pub(crate) fn check_ping() -> Result<PathBuf, Unusable> {
    let range = fs::read_to_string(PING_GROUP_RANGE).unwrap_or_default();
    let numbers: Vec<u32> = range.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    match numbers[..] {
        [first, last] if first <= FIRST_USER && LAST_USER <= last => Ok(PING_GROUP_RANGE.into()),
        _ => Err(Unusable::new(
            format!("guests cannot ping: net.ipv4.ping_group_range is {}", range.trim().replace('\t', " ")),
            "sysctl -w net.ipv4.ping_group_range=\"0 2147483647\"",
        )),
    }
}

/// What passt is to do for a VM.
pub(super) struct Options<'n> {
    /// The guest's addresses.
    pub addresses: &'n [Address],
    /// The ports of the host that lead to the guest.
    pub ports: &'n [Publish],
    /// Whether the gateway's address leads to the host's loopback.
    pub maps_loopback: bool,
}

impl Passt {
    /// Finds it.
    ///
    /// # Errors
    /// The package to install.
    pub(crate) fn find() -> Result<Self, Unusable> {
        let program = find_program()?;
        let help = Command::new(&program).arg("--help").output();
        let has_stderr_flag = help.is_ok_and(|help| {
            [help.stdout, help.stderr].iter().any(|text| String::from_utf8_lossy(text).contains("--stderr"))
        });
        Ok(Self { program, has_stderr_flag })
    }

    /// Starts it, with the guest's frames on `socket`.
    ///
    /// # Errors
    /// Why it did not start.
    pub(super) fn start(
        &self,
        vm: &Vm,
        options: &Options,
        socket: OwnedFd,
        processes: &mut Processes,
    ) -> anyhow::Result<()> {
        let needs_low_port = options.ports.iter().any(|publish| publish.host < FIRST_UNPRIVILEGED_PORT);
        let profile = if needs_low_port { Profile::PasstLowPort } else { Profile::Passt };
        let itself = Path::new("/proc/self");
        let mut jail = vm.jail(profile).ro_bind_program(&self.program).ro_bind(itself, itself).dir("/tmp".as_ref());
        // It executes this one by itself, if the processor has the instructions.
        let mut faster = self.program.clone().into_os_string();
        faster.push(".avx2");
        let faster = Path::new(&faster);
        if faster.exists() {
            jail = jail.ro_bind(faster, faster);
        }
        let args = self.arguments(options, &socket);
        let args: Vec<&OsStr> = args.iter().map(OsString::as_os_str).collect();
        processes.start_helper(NAME, Vital::No, &jail, &self.program, &args, &[socket])
    }

    fn arguments(&self, options: &Options, socket: &OwnedFd) -> Vec<OsString> {
        let Options { addresses, ports, maps_loopback, .. } = *options;
        let mut args: Vec<OsString> = Vec::new();
        let mut push = |more: &[&str]| args.extend(more.iter().map(OsString::from));
        push(&[
            "--foreground",
            "--quiet",
            "--no-ra",
            "--no-dhcp",
            "--no-dhcpv6",
            "--dns",
            "none",
            "--mtu",
            &MTU.to_string(),
        ]);
        if self.has_stderr_flag {
            push(&["--stderr"]);
        }
        if !maps_loopback {
            push(&["--no-map-gw"]);
        }
        for address in addresses {
            push(&["--address", &address.guest.to_string(), "--gateway", &address.gateway.to_string()]);
            if address.guest.is_ipv4() {
                push(&["--netmask", &address.prefix.to_string()]);
            }
        }
        match addresses {
            [only] if only.guest.is_ipv4() => push(&["--ipv4-only"]),
            [_] => push(&["--ipv6-only"]),
            _ => {}
        }
        for (flag, is_udp) in [("--tcp-ports", false), ("--udp-ports", true)] {
            let specifiers = publish::specifiers(ports, is_udp);
            if specifiers.is_empty() {
                push(&[flag, "none"]);
            }
            for specifier in specifiers {
                push(&[flag, &specifier]);
            }
        }
        args.push(fd_flag("--fd=", socket));
        args
    }
}
