//! The guest's network: its card's frames go through the gate to passt, which opens ordinary sockets for them. The host's network is not
//! changed, and nothing is left to clean up.
//!
//! Imports run one way: this module uses the jail and the processes, and the VMMs know no more than the card's descriptor.

mod address;
pub(crate) mod gate;
mod host;
pub(crate) mod passt;
pub(crate) mod publish;
mod request;

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use anyhow::{Context, anyhow};
use msb::record::{self, NetworkMode};
use msb::vm::boot;
use msb_gate::{Config, Policy, PolicyRule};
use nix::sys::socket::{setsockopt, sockopt};
use serde::{Deserialize, Serialize};

use crate::inherited_fd::InheritedFd;
use crate::jail::Capabilities;
use crate::processes::Processes;
use crate::unusable::Unusable;
use crate::vm::{Card, Vm};
use address::{Address, IPV4, IPV6, MTU};
use host::Host;
use passt::Passt;
use publish::Publish;

pub(crate) use request::{check_mac, check_name, parse_host, parse_rule};

/// The card's Ethernet address. It is seen by passt alone, so all VMs may have the same.
const MAC: [u8; 6] = [0x52, 0x55, 0, 0, 0, 2];

/// The size of the sockets' send buffers, in bytes. passt drops what does not fit, and TCP slows down.
const SEND_BUFFER: usize = 4 << 20;

/// The log of what was denied, in the VM's run directory.
const LOG: &str = "net.log";

/// The name of the gateway in the guest, behind which is the host's loopback, if a rule opens it.
const HOST_NAME: &str = "host.msb.internal";

/// The network of a VM, as it was checked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Network {
    passt: Passt,
    mode: NetworkMode,
    rules: Vec<PolicyRule>,
    /// The same, as they were written.
    written_rules: Vec<record::NetworkRule>,
    addresses: Vec<Address>,
    ports: Vec<Publish>,
    dns: Vec<IpAddr>,
    search: Vec<String>,
    hosts: Vec<(IpAddr, String)>,
    mac: [u8; 6],
}

impl Network {
    /// Checks the request, and finds what it needs. `None` if the guest gets no network, which is the default unless the request has
    /// ports, rules or name servers.
    ///
    /// # Errors
    /// The first invalid value of the request, a port that is taken, or why the guest cannot have the network that was requested.
    pub(crate) fn check(request: &record::Network, default: Option<NetworkMode>) -> anyhow::Result<Option<Self>> {
        let parsed = request::parse(request)?;
        let needs_network = request::first_need(request);
        let mode = match (request.mode.or(default), needs_network) {
            (Some(NetworkMode::None), Some(member)) => {
                anyhow::bail!(
                    "{member} needs a network, but the mode is none (use --network public, or leave {member} out)"
                )
            }
            (None | Some(NetworkMode::None), None) => return Ok(None),
            (None, Some(_)) => NetworkMode::Public,
            (Some(mode), _) => mode,
        };
        let (passt, addresses) = available().map_err(|why| anyhow!(why).context("network"))?;
        publish::check_distinct(&parsed.ports)?;
        let ports = parsed.ports.into_iter().map(Publish::choose_port).collect::<Result<_, _>>()?;
        let gateway = addresses.first().map_or(IPV4.gateway, |address: &Address| address.gateway);
        let host = |(name, address): (String, Option<IpAddr>)| (address.unwrap_or(gateway), name);
        let mut hosts: Vec<(IpAddr, String)> = parsed.hosts.into_iter().map(host).collect();
        hosts.push((gateway, HOST_NAME.into()));
        Ok(Some(Self {
            passt,
            mode,
            rules: parsed.rules,
            written_rules: request.rules.clone(),
            addresses,
            ports,
            dns: request.dns.clone(),
            search: request.dns_search.clone(),
            hosts,
            mac: parsed.mac.unwrap_or(MAC),
        }))
    }

    /// What agentd configures.
    pub(crate) fn for_guest(&self) -> boot::Network {
        let address = |address: &Address| boot::NetworkAddress {
            address: address.guest,
            prefix: address.prefix,
            gateway: address.gateway,
        };
        boot::Network {
            mac: self.mac,
            mtu: MTU,
            addresses: self.addresses.iter().map(address).collect(),
            nameservers: self.resolvers(),
            search: self.search.clone(),
            hosts: self.hosts.clone(),
        }
    }

    fn resolvers(&self) -> Vec<IpAddr> {
        self.addresses.iter().take(1).map(|address| address.resolver).collect()
    }

    fn log(&self, vm: &Vm) -> PathBuf {
        vm.dir.join(LOG)
    }

    /// The member `net` of the record.
    pub(crate) fn in_record(&self, vm: &Vm) -> record::Net {
        record::Net {
            mode: self.mode,
            backend: passt::NAME.into(),
            mac: format_mac(self.mac),
            mtu: MTU,
            addresses: self.addresses.iter().map(|address| format!("{}/{}", address.guest, address.prefix)).collect(),
            gateways: self.addresses.iter().map(|address| address.gateway).collect(),
            nameservers: self.resolvers(),
            ports: self.ports.iter().flat_map(Publish::in_record).collect(),
            rules: self.written_rules.clone(),
            log: self.log(vm),
            unknown: record::Unknown::new(),
        }
    }

    /// Starts passt and the gate. Returns the card, and the descriptor that the VMM inherits for it.
    ///
    /// # Errors
    /// The process that did not start, and why.
    pub(crate) fn start(&self, vm: &Vm, processes: &mut Processes) -> anyhow::Result<(Card, OwnedFd)> {
        let (vmm, guest) = socket_pair().context("the network card's socket")?;
        let (host, passt_end) = socket_pair().context("passt's socket")?;
        let policy = self.policy()?;
        let options = passt::Options {
            addresses: &self.addresses,
            ports: &self.ports,
            dns: &self.dns,
            maps_loopback: self.maps_loopback(),
        };
        self.passt.start(vm, &options, passt_end, processes)?;
        let config = Config {
            ipv4: self.addresses.iter().find_map(|address| match address.guest {
                IpAddr::V4(address) => Some(address),
                IpAddr::V6(_) => None,
            }),
            ipv6: self.addresses.iter().find_map(|address| match address.guest {
                IpAddr::V6(address) => Some(address),
                IpAddr::V4(_) => None,
            }),
            resolvers: self.addresses.iter().map(|address| address.resolver).collect(),
            udp_ports: self.ports.iter().filter(|publish| publish.is_udp).map(Publish::guest_ports).collect(),
            policy,
        };
        let description =
            gate::Description { jail: vm.jail(Capabilities::None), config, mac: self.mac, log: self.log(vm) };
        processes.start_gate(gate::NAME, &serde_json::to_string(&description)?, guest, host)?;
        Ok((Card { fd: InheritedFd::of(&vmm), mac: self.mac }, vmm))
    }

    /// Whether passt is to lead the gateway's address to the host's loopback: a rule may open it. Early versions also lose the answers
    /// of published UDP ports without it. The gate lets nothing else through to it.
    fn maps_loopback(&self) -> bool {
        let opens_host =
            |rule: &PolicyRule| matches!(rule, PolicyRule::Allow(rule) if rule.target == msb_gate::Target::Host);
        self.rules.iter().any(opens_host) || self.ports.iter().any(|publish| publish.is_udp)
    }

    fn policy(&self) -> anyhow::Result<Policy> {
        let host = Host::read().context("the host's addresses")?;
        Ok(Policy {
            mode: match self.mode {
                NetworkMode::Public => msb_gate::Mode::Public,
                NetworkMode::Private => msb_gate::Mode::Private,
                NetworkMode::Deny | NetworkMode::None => msb_gate::Mode::Deny,
            },
            rules: self.rules.clone(),
            gateways: self.addresses.iter().map(|address| address.gateway).collect(),
            own: host.addresses,
            links: host.networks,
        })
    }
}

/// passt, and the addresses of the families that the host has a route for.
fn available() -> Result<(Passt, Vec<Address>), Unusable> {
    let passt = Passt::find()?;
    let families = [(IPV4, host::has_ipv4_route()), (IPV6, host::has_ipv6_route())];
    let addresses: Vec<Address> = families.into_iter().filter(|(_, has)| *has).map(|(address, _)| address).collect();
    if addresses.is_empty() {
        return Err(Unusable::new(
            "this machine has no default route",
            "connect it, or leave the guest without: --network none",
        ));
    }
    Ok((passt, addresses))
}

/// An Ethernet address as it is written.
pub(crate) fn format_mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn socket_pair() -> anyhow::Result<(OwnedFd, OwnedFd)> {
    let (one, other) = UnixStream::pair()?;
    for socket in [&one, &other] {
        setsockopt(socket, sockopt::SndBufForce, &SEND_BUFFER)?;
    }
    Ok((one.into(), other.into()))
}
