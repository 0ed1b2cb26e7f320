//! The network of a VM: what msb-boot is asked for, and what the guest got.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::unknown::Unknown;

/// The network that msb-boot is asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
#[non_exhaustive]
pub struct Network {
    /// What the guest may reach where no rule matches. Null means none if there are `cards`; otherwise public if the machine can
    /// provide it, and none if not.
    pub mode: Option<NetworkMode>,
    /// Further network cards, each on a network that somebody else provides. No rule applies to them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cards: Vec<Card>,
    /// The rules, in order: the first one that matches decides.
    pub rules: Vec<NetworkRule>,
    /// Published ports, each `[IP:]PORT:GUEST[/udp]`.
    pub ports: Vec<String>,
    /// The addresses of name servers; empty for the host's.
    pub dns: Vec<IpAddr>,
    /// The domains in which short names are looked up.
    pub dns_search: Vec<String>,
    /// Lines of the guest's hosts(5), each `NAME:ADDRESS` or `NAME:host-gateway`.
    pub hosts: Vec<String>,
    /// The Ethernet address of the guest's network card; null for the default.
    pub mac: Option<String>,
    /// Members that this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// A network card on a network that somebody else provides, and how the guest configures it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Card {
    /// Where its frames go.
    #[serde(flatten)]
    pub backend: CardBackend,
    /// Its Ethernet address; null for one that follows from the VM's name.
    #[serde(default)]
    pub mac: Option<String>,
    /// The largest packet, in bytes; null for 1500.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// The guest's addresses, each `ADDRESS/PREFIX_LENGTH`.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Default routes, one for each family at most.
    #[serde(default)]
    pub gateways: Vec<IpAddr>,
    /// Further routes.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// Members that this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl Card {
    /// A card without addresses.
    pub fn new(backend: CardBackend) -> Self {
        let (addresses, gateways, routes) = (Vec::new(), Vec::new(), Vec::new());
        Self { backend, mac: None, mtu: None, addresses, gateways, routes, unknown: Unknown::new() }
    }
}

/// Where the frames of a card go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum CardBackend {
    /// A TAP interface of the host: its name, or the number of a descriptor of it that msb-boot inherits.
    Tap(String),
    /// A Unix stream socket that listens, on which each frame follows its length: four bytes, big-endian.
    Unix(PathBuf),
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Route {
    /// The destination, `ADDRESS/PREFIX_LENGTH`.
    pub to: String,
    /// The next hop.
    pub via: IpAddr,
}

/// What a guest may reach where no rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// The guest has no network card.
    None,
    /// The internet.
    Public,
    /// The internet, private networks and those that the host is connected to.
    Private,
    /// Nothing.
    Deny,
}

impl NetworkMode {
    /// All of them, with their names on a command line.
    pub const ALL: [(&str, Self); 4] =
        [("none", Self::None), ("public", Self::Public), ("private", Self::Private), ("deny", Self::Deny)];

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::ALL.into_iter().find(|(_, mode)| *mode == self).map_or("none", |(name, _)| name)
    }
}

/// A rule: `WHAT[:PORT[-PORT]][/tcp|/udp]`, and whether it allows or denies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum NetworkRule {
    /// What it matches is let through.
    Allow(String),
    /// What it matches is refused.
    Deny(String),
}

/// The network of a running VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Net {
    /// What the guest may reach where no rule matches.
    pub mode: NetworkMode,
    /// The program that opens the guest's connections on the host.
    pub backend: String,
    /// The Ethernet address of the guest's network card.
    pub mac: String,
    /// The largest packet, in bytes.
    pub mtu: u32,
    /// The guest's addresses with their prefix lengths.
    pub addresses: Vec<String>,
    /// The gateways.
    pub gateways: Vec<IpAddr>,
    /// The name servers that the guest uses.
    pub nameservers: Vec<IpAddr>,
    /// The ports of the host that lead to the guest.
    pub ports: Vec<PublishedPort>,
    /// The rules, in order.
    pub rules: Vec<NetworkRule>,
    /// The file with what was denied, a line of JSON each.
    pub log: PathBuf,
    /// Members that this version does not know.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl Net {
    /// A network without addresses, ports and rules.
    pub fn new(mode: NetworkMode, backend: String, mac: String, mtu: u32, log: PathBuf) -> Self {
        Self {
            mode,
            backend,
            mac,
            mtu,
            addresses: Vec::new(),
            gateways: Vec::new(),
            nameservers: Vec::new(),
            ports: Vec::new(),
            rules: Vec::new(),
            log,
            unknown: Unknown::new(),
        }
    }
}

/// A port of the host that leads to one of the guest's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct PublishedPort {
    /// The host's address and port.
    pub host: std::net::SocketAddr,
    /// The guest's port.
    pub guest: u16,
    /// `tcp` or `udp`.
    pub protocol: String,
}

impl PublishedPort {
    /// A port of the host, and where it leads.
    pub fn new(host: std::net::SocketAddr, guest: u16, protocol: String) -> Self {
        Self { host, guest, protocol }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_called_as_in_json() {
        for (name, mode) in NetworkMode::ALL {
            assert_eq!((mode.name(), serde_json::to_value(mode).unwrap()), (name, name.into()));
        }
    }
}
