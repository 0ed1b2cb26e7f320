//! The container's network: interfaces of a network namespace that somebody else has made and configured, given to the VM.
//!
//! Each interface gets a TAP interface, and tc(8) redirects all frames between the two, or it gets a macvtap interface. The guest gets the
//! interface's Ethernet address, MTU, addresses and routes.

use std::collections::HashSet;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::iproute::{ip, list, tc};
use crate::neighbour::{self, Neighbour};
use crate::{inherited, macvtap};

/// What this program's TAP interfaces are called, with a number.
const TAP: &str = "msb";

/// An interface that a VM has taken over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plugged {
    pub interface: String,
    pub tap: String,
    /// The address that was taken from the namespace for the guest alone.
    #[serde(default)]
    pub taken: Option<IpAddr>,
}

/// An interface as `ip -json -details address` shows it.
#[derive(Clone, Debug, Deserialize)]
struct Link {
    ifname: String,
    #[serde(default)]
    address: String,
    #[serde(default)]
    link_type: String,
    #[serde(default)]
    mtu: u32,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    addr_info: Vec<Address>,
    #[serde(default)]
    linkinfo: LinkInfo,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct LinkInfo {
    #[serde(default)]
    info_kind: String,
}

#[derive(Clone, Debug, Deserialize)]
struct Address {
    local: Option<IpAddr>,
    #[serde(default)]
    prefixlen: u8,
    #[serde(default)]
    scope: String,
}

/// A route as `ip -json route` shows it.
#[derive(Clone, Debug, Deserialize)]
struct Route {
    dst: String,
    gateway: Option<IpAddr>,
    dev: Option<String>,
}

/// How the guest is connected to an interface.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Plug<'a> {
    /// Through a TAP interface. tc(8) redirects frames between the two.
    Tap,
    /// Through a macvtap interface. Its device node is made in this directory, in a mount namespace of the caller's own.
    Macvtap(&'a Path),
}

/// The network cards of a VM.
#[derive(Debug, Default)]
pub(crate) struct Cards {
    /// The values of msb-boot's --network.
    pub flags: Vec<String>,
    /// The descriptors that they name.
    pub fds: Vec<OwnedFd>,
}

/// Plugs the interfaces of this thread's network namespace. Calls `save` with what [`unplug`] has to undo, whenever that grows.
///
/// # Errors
/// An interface that another VM has, or that cannot be plugged. Those of `save`.
pub(crate) fn plug(plug: Plug<'_>, mut save: impl FnMut(&[Plugged]) -> anyhow::Result<()>) -> anyhow::Result<Cards> {
    let links: Vec<Link> = list(&["-details", "address", "show"])?;
    let links: Vec<&Link> = links.iter().filter(|link| is_pluggable(link)).collect();
    if links.is_empty() {
        return Ok(Cards::default());
    }
    let mut routes: Vec<Route> = list(&["-4", "route", "show"])?;
    routes.extend(list::<Route>(&["-6", "route", "show"])?);
    let (mut plugged, mut backends, mut fds) = (Vec::new(), Vec::new(), Vec::new());
    for (number, link) in links.iter().enumerate() {
        // With macvtap the namespace receives no frames, so there is no neighbour.
        let neighbour = neighbour(link, &routes).filter(|_| matches!(plug, Plug::Tap));
        let taken = neighbour.as_ref().map(|(address, _)| *address);
        let one = Plugged { interface: link.ifname.clone(), tap: format!("{TAP}{number}"), taken };
        let subject = || format!("network interface {:?}", link.ifname);
        // Also with macvtap, since another VM may have it through a TAP interface. Only what is this VM's is unplugged later.
        take(link).with_context(subject)?;
        plugged.push(one.clone());
        save(&plugged)?;
        if let Plug::Macvtap(place) = plug {
            let fd = macvtap::make(&link.ifname, &link.address, link.mtu, &one.tap, place).with_context(subject)?;
            backends.push(inherited::number(&fd).to_string());
            fds.push(fd);
            continue;
        }
        backends.push(one.tap.clone());
        connect(link, &one.tap).with_context(subject)?;
        if let Some((_, neighbour)) = neighbour {
            neighbour.connect(&link.ifname, &one.tap).with_context(subject)?;
        }
    }
    Ok(Cards { flags: cards(&links, &routes, &backends), fds })
}

/// Ethernet interfaces, except for TAP interfaces of this program.
fn is_pluggable(link: &Link) -> bool {
    link.link_type == "ether" && !link.flags.iter().any(|flag| flag == "NOARP") && !is_own(&link.ifname)
}

fn is_own(name: &str) -> bool {
    name.strip_prefix(TAP).is_some_and(|number| number.parse::<u32>().is_ok())
}

/// The address of the guest and its neighbour, if the network is in user space: a TAP interface of another program.
fn neighbour(link: &Link, routes: &[Route]) -> Option<(IpAddr, Neighbour)> {
    let gateways: Vec<IpAddr> = routes.iter().filter_map(|route| route.gateway).collect();
    let addresses = link.addr_info.iter().filter(|address| address.scope == "global");
    let of = |address: &Address| {
        let local = address.local?;
        Some((local, Neighbour::of(local, address.prefixlen, &link.address, &gateways)?))
    };
    addresses.filter(|_| link.linkinfo.info_kind == "tun").find_map(of)
}

/// Takes an interface for this VM: the kernel gives it one ingress qdisc.
fn take(link: &Link) -> anyhow::Result<()> {
    tc(&["qdisc", "add", "dev", &link.ifname, "ingress"]).map_err(|error| match error.to_string() {
        text if text.contains("File exists") || text.contains("Exclusivity") => anyhow::anyhow!(
            "the VM of another container has it (a pod can have one container with a network: give each a pod of its own)"
        ),
        _ => error,
    })
}

/// Makes the TAP interface, and redirects between the two.
fn connect(link: &Link, tap: &str) -> anyhow::Result<()> {
    ip(&["tuntap", "add", "dev", tap, "mode", "tap"])?;
    ip(&["link", "set", "dev", tap, "mtu", &link.mtu.to_string(), "up"])?;
    tc(&["qdisc", "add", "dev", tap, "ingress"])?;
    for (from, to) in [(link.ifname.as_str(), tap), (tap, link.ifname.as_str())] {
        // matchall is not in every kernel.
        let redirect = ["match", "u32", "0", "0", "action", "mirred", "egress", "redirect", "dev", to];
        let filter = ["filter", "add", "dev", from, "parent", "ffff:", "protocol", "all", "u32"];
        tc(&[filter.as_slice(), &redirect].concat())?;
    }
    Ok(())
}

/// Removes what [`plug`] has made in this thread's network namespace. What is gone already is no error.
pub(crate) fn unplug(plugged: &[Plugged]) {
    for Plugged { interface, tap, taken } in plugged {
        let _ = tc(&["qdisc", "del", "dev", interface, "ingress"]);
        let _ = ip(&["link", "del", "dev", tap]);
        if let Some(address) = taken {
            neighbour::restore(interface, *address);
        }
    }
}

/// The values of --network, one for each interface. `backends` has the TAP interface or the descriptor of each.
///
/// Of several default routes of a family the guest gets the first, which the kernel prefers.
fn cards(links: &[&Link], routes: &[Route], backends: &[String]) -> Vec<String> {
    let mut families_with_default = HashSet::new();
    let mut cards = Vec::new();
    for (link, backend) in links.iter().zip(backends) {
        let mut card = format!("tap:{backend},mac={},mtu={}", link.address, link.mtu.clamp(1280, 65_535));
        for address in link.addr_info.iter().filter(|address| address.scope == "global") {
            if let Some(local) = address.local {
                card.push_str(&format!(",address={local}/{}", address.prefixlen));
            }
        }
        for route in routes.iter().filter(|route| route.dev.as_ref() == Some(&link.ifname)) {
            let Some(gateway) = route.gateway else { continue };
            if route.dst != "default" {
                let length = if gateway.is_ipv4() { 32 } else { 128 };
                let prefix =
                    if route.dst.contains('/') { route.dst.clone() } else { format!("{}/{length}", route.dst) };
                card.push_str(&format!(",route={prefix}={gateway}"));
            } else if families_with_default.insert(gateway.is_ipv4()) {
                card.push_str(&format!(",gateway={gateway}"));
            }
        }
        cards.push(card);
    }
    cards
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_has_the_address_the_mtu_and_the_routes_of_its_interface() {
        let links: Vec<Link> = serde_json::from_str(
            r#"[{"ifname":"lo","link_type":"loopback"},
                {"ifname":"eth0","link_type":"ether","address":"02:00:00:00:00:01","mtu":1400,"flags":["UP"],
                 "addr_info":[{"local":"10.88.0.2","prefixlen":16,"scope":"global"},{"local":"fd00::2","prefixlen":64,"scope":"global"},
                              {"local":"fe80::1","prefixlen":64,"scope":"link"}]},
                {"ifname":"eth1","link_type":"ether","address":"02:00:00:00:00:02","mtu":70000,
                 "addr_info":[{"local":"10.89.0.2","prefixlen":24,"scope":"global"}]},
                {"ifname":"msb0","link_type":"ether"},{"ifname":"dummy0","link_type":"ether","flags":["NOARP"]}]"#,
        )
        .unwrap();
        let links: Vec<&Link> = links.iter().filter(|link| is_pluggable(link)).collect();
        let routes: Vec<Route> = serde_json::from_str(
            r#"[{"dst":"default","gateway":"10.88.0.1","dev":"eth0","metric":100},
                {"dst":"default","gateway":"10.89.0.1","dev":"eth1","metric":200},
                {"dst":"10.88.0.0/16","dev":"eth0","scope":"link"},
                {"dst":"10.99.0.0/24","gateway":"10.89.0.9","dev":"eth1"},
                {"dst":"10.99.1.1","gateway":"10.89.0.9","dev":"eth1"},
                {"dst":"default","gateway":"fd00::1","dev":"eth0"}]"#,
        )
        .unwrap();
        let backends = ["msb0", "7"].map(str::to_owned);
        assert_eq!(
            cards(&links, &routes, &backends),
            [
                "tap:msb0,mac=02:00:00:00:00:01,mtu=1400,address=10.88.0.2/16,address=fd00::2/64,gateway=10.88.0.1,gateway=fd00::1",
                "tap:7,mac=02:00:00:00:00:02,mtu=65535,address=10.89.0.2/24,route=10.99.0.0/24=10.89.0.9,route=10.99.1.1/32=10.89.0.9",
            ]
        );
    }
}
