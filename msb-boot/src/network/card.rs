//! A network card on a network that somebody else provides: a TAP interface, or a Unix socket with frames on it. There is no gate, and
//! no rule applies.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, bail};
use msb::jail::Profile;
use msb::record;
use msb::record::path::absolute;
use msb::tool::exit;
use msb::vm::boot;
use nix::net::if_::if_nametoindex;
use serde::{Deserialize, Serialize};

use super::relay;
use super::request::check_mac;
use super::socket_pair::socket_pair;
use crate::inherited_fd::InheritedFd;
use crate::krun::ffi::{close_on_exec, open_tap, set_plain_frames};
use crate::processes::{Processes, Vital};
use crate::role;
use crate::vm::{Card, Vm};

/// The largest packet if the request does not say: Ethernet's.
const MTU: u16 = 1500;
/// The least packet that IPv6 allows.
const LEAST_MTU: u16 = 1280;
/// The kernel's limit of an interface's name, without the NUL.
const MAX_NAME: usize = 15;

/// A card, as it was checked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ExternalCard {
    backend: Backend,
    mac: [u8; 6],
    mtu: u16,
    addresses: Vec<boot::Subnet>,
    routes: Vec<boot::Route>,
    /// As it was requested.
    request: record::Card,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Backend {
    /// A TAP interface of this name.
    Tap(String),
    /// An inherited descriptor of a TAP interface.
    TapFd(InheritedFd),
    /// A socket that listens.
    Unix(PathBuf),
}

/// Parses `tap:NAME`, `tap:FD` or `unix:PATH`, with options behind commas. `None` for something else, which may be a mode.
pub(crate) fn parse(text: &str) -> Option<Result<record::Card, String>> {
    let (backend, options) = text.split_once(',').unwrap_or((text, ""));
    let backend = match backend.split_once(':')? {
        ("tap", name) => check_tap(name).map(|()| record::CardBackend::Tap(name.into())),
        ("unix", "") => Err("\"unix:\": the path of a socket is expected".into()),
        ("unix", path) => absolute(Path::new(path)).map(record::CardBackend::Unix).map_err(|error| error.to_string()),
        _ => return None,
    };
    Some(backend.and_then(|backend| with_options(record::Card::new(backend), options)))
}

fn with_options(mut card: record::Card, options: &str) -> Result<record::Card, String> {
    for option in options.split(',').filter(|option| !option.is_empty()) {
        let wrong = |expected: &str| format!("{option:?}: {expected} is expected");
        let (key, value) = option.split_once('=').ok_or_else(|| wrong("KEY=VALUE"))?;
        match key {
            "address" => card.addresses.push(value.parse::<boot::Subnet>()?.to_string()),
            "gateway" => card.gateways.push(value.parse().map_err(|_| wrong("an address"))?),
            "route" => {
                let (to, via) = value.split_once('=').ok_or_else(|| wrong("route=PREFIX=GATEWAY"))?;
                let to = to.parse::<boot::Subnet>()?.to_string();
                card.routes.push(record::Route { to, via: via.parse().map_err(|_| wrong("route=PREFIX=GATEWAY"))? });
            }
            "mac" => card.mac = Some(check_mac(value).map(boot::format_mac)?),
            "mtu" => card.mtu = Some(value.parse().map_err(|_| wrong("a number of bytes"))?),
            _ => return Err(wrong("address, gateway, route, mac or mtu")),
        }
    }
    Ok(card)
}

/// Whether a descriptor is the device of a macvtap interface. The device can have any path.
fn is_macvtap(fd: InheritedFd) -> bool {
    let devices = fs::read_to_string("/proc/devices").unwrap_or_default();
    let is_macvtap_number =
        |rdev| devices.lines().any(|line| line.trim() == format!("{} macvtap", rustix::fs::major(rdev)));
    fs::metadata(fd.path()).is_ok_and(|meta| meta.file_type().is_char_device() && is_macvtap_number(meta.rdev()))
}

/// An interface's name, or the number of a descriptor.
fn check_tap(name: &str) -> Result<(), String> {
    let is_name = (1..=MAX_NAME).contains(&name.len())
        && ![".", ".."].contains(&name)
        && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/');
    if is_name {
        Ok(())
    } else {
        Err(format!("{name:?}: the name of an interface, or a descriptor's number, is expected"))
    }
}

impl ExternalCard {
    /// Checks a request, and that there is such an interface or socket. `vm` is the VM's name and `number` the card's.
    ///
    /// # Errors
    /// A usage error for an invalid value. The interface or socket that is missing.
    pub(super) fn check(request: &record::Card, vm: &str, number: usize) -> anyhow::Result<Self> {
        let wrong = |why: String| exit::coded(exit::USAGE, format!("boot.network.cards[{number}]: {why}"));
        let backend = match &request.backend {
            record::CardBackend::Tap(name) => {
                check_tap(name).map_err(wrong)?;
                match name.parse() {
                    Ok(number) => Backend::TapFd(InheritedFd::inherited(number)),
                    Err(_) => Backend::Tap(name.clone()),
                }
            }
            // The supervisor has another working directory.
            record::CardBackend::Unix(path) if !path.is_absolute() => {
                return Err(wrong(format!("{path:?}: an absolute path is expected")).into());
            }
            record::CardBackend::Unix(path) => Backend::Unix(path.clone()),
        };
        let mut addresses = Vec::new();
        for address in &request.addresses {
            addresses.push(address.parse::<boot::Subnet>().map_err(wrong)?);
        }
        let mut routes: Vec<boot::Route> = request.gateways.iter().copied().map(boot::Route::default_by).collect();
        for route in &request.routes {
            let to: boot::Subnet = route.to.parse().map_err(wrong)?;
            if to.address.is_ipv4() != route.via.is_ipv4() {
                return Err(wrong(format!("route to {to} via {}: they are of different families", route.via)).into());
            }
            routes.push(boot::Route { to, via: route.via });
        }
        let mac = match &request.mac {
            Some(mac) => check_mac(mac).map_err(wrong)?,
            None => own_mac(vm, number),
        };
        let mtu = request.mtu.unwrap_or(MTU);
        if mtu < LEAST_MTU {
            return Err(wrong(format!("mtu {mtu}: at least {LEAST_MTU} is expected")).into());
        }
        let card = Self { backend, mac, mtu, addresses, routes, request: request.clone() };
        card.check_backend()?;
        Ok(card)
    }

    /// Whether the interface or the socket is there. Nothing is opened that would become visible on it.
    fn check_backend(&self) -> anyhow::Result<()> {
        match &self.backend {
            Backend::Tap(name) => {
                let remedy = format!("ip tuntap add {name} mode tap");
                if_nametoindex(name.as_str()).with_context(|| format!("--network tap:{name} ({remedy})"))?;
            }
            Backend::TapFd(fd) => {
                let target = fs::read_link(fd.path()).with_context(|| format!("--network tap:{fd}"))?;
                if target != Path::new("/dev/net/tun") && !is_macvtap(*fd) {
                    bail!(
                        "--network tap:{fd}: this descriptor is {target:?}, not a TAP interface (open /dev/net/tun with \
                         IFF_TAP and IFF_NO_PI, or the device of a macvtap interface)"
                    );
                }
                if fd.number() <= 2 {
                    bail!(
                        "--network tap:{fd}: descriptors 0 to 2 are the supervisor's own (pass the interface as another)"
                    );
                }
            }
            Backend::Unix(path) => {
                path.metadata().with_context(|| format!("--network unix:{}", path.display()))?;
            }
        }
        Ok(())
    }

    /// The descriptor of the caller that it uses.
    pub(super) fn inherited_fd(&self) -> Option<InheritedFd> {
        match self.backend {
            Backend::TapFd(fd) => Some(fd),
            _ => None,
        }
    }

    /// Keeps an inherited descriptor from the VM's other processes.
    ///
    /// # Errors
    /// There is no such descriptor.
    pub(super) fn close_on_exec(&self) -> anyhow::Result<()> {
        self.inherited_fd()
            .map_or(Ok(()), |fd| close_on_exec(fd.number()).with_context(|| format!("--network tap:{fd}")))
    }

    /// What agentd configures.
    pub(super) fn for_guest(&self) -> boot::Card {
        let (addresses, routes) = (self.addresses.clone(), self.routes.clone());
        boot::Card { mac: self.mac, mtu: self.mtu.into(), addresses, routes }
    }

    /// A member of the record's `vm.cards`.
    pub(super) fn in_record(&self) -> record::Card {
        let mut card = self.request.clone();
        (card.mac, card.mtu) = (Some(boot::format_mac(self.mac)), Some(self.mtu));
        card
    }

    /// The Ethernet address.
    pub(super) fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// The next hops of its default routes.
    pub(super) fn default_routes(&self) -> impl Iterator<Item = IpAddr> {
        self.routes.iter().filter(|route| route.to.prefix == 0).map(|route| route.via)
    }

    /// Connects the card. Returns it and the descriptor that the VMM inherits. A TAP interface has no stream of frames, so a relay
    /// makes one.
    ///
    /// # Errors
    /// Why the interface or the socket cannot be used.
    pub(super) fn start(&self, vm: &Vm, processes: &mut Processes) -> anyhow::Result<(Card, OwnedFd)> {
        let tap = match &self.backend {
            Backend::Tap(name) => {
                // It may be gone when the VM is started again, and the kernel would create another one.
                self.check_backend()?;
                open_tap(name).with_context(|| format!("--network tap:{name}"))?
            }
            Backend::TapFd(fd) => {
                let tap = fd.duplicate().with_context(|| format!("--network tap:{fd}"))?;
                if is_macvtap(*fd) {
                    set_plain_frames(&tap, "").with_context(|| format!("--network tap:{fd}"))?;
                }
                tap
            }
            Backend::Unix(path) => {
                let socket = UnixStream::connect(path).with_context(|| format!("--network unix:{}", path.display()))?;
                // A network of the usual MTU checks checksums, and takes no packet of several segments.
                return Ok((self.card(&socket, self.mtu > MTU), socket.into()));
            }
        };
        let (vmm, guest) = socket_pair().context("the network card's socket")?;
        let jail = vm.jail(Profile::Relay);
        let description = relay::Description { jail, guest: InheritedFd::of(&guest), tap: InheritedFd::of(&tap) };
        let description = serde_json::to_string(&description)?;
        processes.start_role(relay::NAME, Vital::Yes, role::RELAY, &description, Stdio::null(), &[guest, tap])?;
        // The relay writes frames as they are, and an interface cannot complete a checksum without a virtio-net header.
        Ok((self.card(&vmm, false), vmm))
    }

    fn card(&self, socket: &impl std::os::fd::AsRawFd, is_offloaded: bool) -> Card {
        Card { fd: InheritedFd::of(socket), mac: self.mac, is_offloaded }
    }
}

/// An Ethernet address that is the same at each boot, and that other VMs on the network do not have.
fn own_mac(vm: &str, number: usize) -> [u8; 6] {
    let mut hasher = DefaultHasher::new();
    (vm, number).hash(&mut hasher);
    let [a, b, c, d, ..] = hasher.finish().to_be_bytes();
    // The address is locally administered, like that of the card behind the gate.
    [0x52, 0x55, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_parsed_with_its_options() {
        let card = parse(
            "tap:tap0,address=192.0.2.2/24,address=2001:db8::2/64,gateway=192.0.2.1,\
             route=198.51.100.0/24=192.0.2.9,mac=52:55:00:00:00:0A,mtu=9000",
        );
        let card = card.unwrap().unwrap();
        assert_eq!(card.backend, record::CardBackend::Tap("tap0".into()));
        assert_eq!((card.mac.as_deref(), card.mtu), (Some("52:55:00:00:00:0a"), Some(9000)));
        assert_eq!(card.addresses, ["192.0.2.2/24", "2001:db8::2/64"]);
        assert_eq!(card.gateways, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(card.routes[0].to, "198.51.100.0/24");
        let unix = parse("unix:/run/net.sock").unwrap().unwrap();
        assert_eq!(unix.backend, record::CardBackend::Unix("/run/net.sock".into()));
        assert!(parse("public").is_none() && parse("tun:x").is_none());
    }

    #[test]
    fn a_wrong_word_is_named() {
        for (text, word) in [
            ("tap:", "\"\""),
            ("tap:a/b", "\"a/b\""),
            ("tap:name-of-16-bytes", "\"name-of-16-bytes\""),
            ("unix:", "\"unix:\""),
            ("tap:t,address=192.0.2.2", "\"192.0.2.2\""),
            ("tap:t,gateway=x", "\"gateway=x\""),
            ("tap:t,route=192.0.2.0/24", "\"route=192.0.2.0/24\""),
            ("tap:t,mac=x", "\"x\""),
            ("tap:t,mtu=x", "\"mtu=x\""),
            ("tap:t,speed=1", "\"speed=1\""),
            ("tap:t,up", "\"up\""),
        ] {
            let why = parse(text).unwrap().unwrap_err();
            assert!(why.starts_with(word), "{text}: {why}");
        }
    }

    #[test]
    fn a_request_is_checked() {
        let check = |text: &str| {
            let card = parse(text).unwrap().unwrap();
            ExternalCard::check(&card, "vm", 0).map_err(|error| format!("{error:#}"))
        };
        let error = check("tap:msb-missing").unwrap_err();
        assert!(error.starts_with("--network tap:msb-missing (ip tuntap add msb-missing mode tap): "), "{error}");
        assert!(check("unix:/nonexistent/socket").unwrap_err().starts_with("--network unix:/nonexistent/socket: "));
        assert!(check("tap:0").unwrap_err().starts_with("--network tap:0: this descriptor is "));
        for (text, why) in [
            ("unix:/dev/null,mtu=1279", "mtu 1279: at least 1280"),
            ("unix:/dev/null,route=192.0.2.0/24=fe80::1", "route to 192.0.2.0/24 via fe80::1: they are of different"),
        ] {
            assert!(check(text).unwrap_err().starts_with(&format!("boot.network.cards[0]: {why}")), "{text}");
        }
        let relative = record::Card::new(record::CardBackend::Unix("socket".into()));
        let error = ExternalCard::check(&relative, "vm", 1).unwrap_err().to_string();
        assert_eq!(error, "boot.network.cards[1]: \"socket\": an absolute path is expected");
        let card = check("unix:/dev/null,address=192.0.2.2/24,gateway=192.0.2.1,route=0.0.0.0/0=192.0.2.9").unwrap();
        assert_eq!(card.default_routes().count(), 2);
        assert_eq!(card.for_guest().mtu, 1500);
        assert_eq!(card.in_record().mac, Some(boot::format_mac(card.mac())));
    }

    #[test]
    fn cards_without_an_address_get_different_ones() {
        let macs = [own_mac("a", 0), own_mac("a", 1), own_mac("b", 0)];
        assert!(macs[0] != macs[1] && macs[0] != macs[2] && macs[0] == own_mac("a", 0));
    }
}
