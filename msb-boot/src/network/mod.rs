//! The guest's network: its card's frames go through the gate to passt, which opens ordinary sockets for them. The host's network is not
//! changed, and nothing is left to clean up.
//!
//! Imports run one way: this module uses the jail and the processes, and the VMMs know no more than the card's descriptor.

mod address;
pub(crate) mod control;
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
use msb_gate::{Config, Lease, Policy, PolicyRule};
use nix::sys::socket::{setsockopt, sockopt};
use serde::{Deserialize, Serialize};

use crate::inherited_fd::InheritedFd;
use crate::jail::Capabilities;
use crate::processes::Processes;
use crate::unusable::Unusable;
use crate::vm::{Card, Vm};
use address::{Address, IPV4, IPV6, MTU};
use control::Control;
use passt::Passt;
use publish::Publish;

pub(crate) use request::{check_mac, check_name, parse_host, parse_rule};

/// The card's Ethernet address. It is seen by passt alone, so all VMs may have the same.
const MAC: [u8; 6] = [0x52, 0x55, 0, 0, 0, 2];

/// The size of the sockets' send buffers, in bytes. passt drops what does not fit, and TCP slows down.
const SEND_BUFFER: usize = 4 << 20;

/// The log of what was denied, in the VM's run directory.
const LOG: &str = "net.log";

/// The name of the gateway in the guest. If a rule allows it, the gateway leads to the host's loopback.
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

/// The network that a guest gets.
#[derive(Debug, Default)]
pub(crate) struct Choice {
    /// `None` if it gets none.
    pub network: Option<Network>,
    /// Why it gets none although nobody asked for that.
    pub fallback: Option<String>,
}

/// Chooses the network: the mode that was requested, else `default`, else public. Where the machine cannot provide public, the guest
/// gets no network, unless the request has a mode, or ports, rules or others that need one.
///
/// # Errors
/// The first invalid value of the request, a port that is taken, or why the guest cannot have the network that was requested.
pub(crate) fn choose(request: &record::Network, default: Option<NetworkMode>) -> anyhow::Result<Choice> {
    let parsed = request::parse(request)?;
    let needs_network = request::first_need(request);
    let requested = request.mode.or(default);
    match (requested, needs_network) {
        (Some(NetworkMode::None), Some(member)) => {
            anyhow::bail!(
                "{member} needs a network, but the mode is none (use --network public, or leave {member} out)"
            )
        }
        (Some(NetworkMode::None), None) => return Ok(Choice::default()),
        _ => {}
    }
    let (passt, addresses) = match available() {
        Ok(available) => available,
        Err(why) if requested.is_none() && needs_network.is_none() => {
            let fallback = Some(format!("no network for the guest: {why}"));
            return Ok(Choice { network: None, fallback });
        }
        Err(why) => return Err(anyhow!(why).context("network")),
    };
    let mode = requested.unwrap_or(NetworkMode::Public);
    let network = Network::new(request, parsed, mode, passt, addresses)?;
    Ok(Choice { network: Some(network), fallback: None })
}

impl Network {
    fn new(
        request: &record::Network,
        parsed: request::Parsed,
        mode: NetworkMode,
        passt: Passt,
        addresses: Vec<Address>,
    ) -> anyhow::Result<Self> {
        let ports = publish::choose_ports(parsed.ports)?;
        let gateway = addresses.first().map_or(IPV4.gateway, |address: &Address| address.gateway);
        let host = |(name, address): (String, Option<IpAddr>)| (address.unwrap_or(gateway), name);
        let mut hosts: Vec<(IpAddr, String)> = parsed.hosts.into_iter().map(host).collect();
        hosts.push((gateway, HOST_NAME.into()));
        Ok(Self {
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
        })
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
            mtu: MTU.into(),
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
        let mac = boot::format_mac(self.mac);
        let mut net = record::Net::new(self.mode, passt::NAME.into(), mac, MTU.into(), self.log(vm));
        net.addresses = self.addresses.iter().map(|address| format!("{}/{}", address.guest, address.prefix)).collect();
        net.gateways = self.addresses.iter().map(|address| address.gateway).collect();
        net.nameservers = self.resolvers();
        net.ports = self.ports.iter().flat_map(Publish::in_record).collect();
        net.rules = self.written_rules.clone();
        net
    }

    /// Starts passt and the gate. Returns the card, the descriptor that the VMM inherits for it, and what keeps the gate informed.
    ///
    /// # Errors
    /// The process that did not start, and why.
    pub(crate) fn start(&self, vm: &Vm, processes: &mut Processes) -> anyhow::Result<(Card, OwnedFd, Control)> {
        let (vmm, guest) = socket_pair().context("the network card's socket")?;
        let (host, passt_end) = socket_pair().context("passt's socket")?;
        self.start_passt(vm, passt_end, processes)?;
        let config = Config {
            ipv4: self.addresses.iter().find_map(|address| match address.guest {
                IpAddr::V4(address) => Some(address),
                IpAddr::V6(_) => None,
            }),
            ipv6: self.addresses.iter().find_map(|address| match address.guest {
                IpAddr::V6(address) => Some(address),
                IpAddr::V4(_) => None,
            }),
            lease: self.lease(),
            resolvers: self.addresses.iter().map(|address| address.resolver).collect(),
            udp_ports: self.ports.iter().filter(|publish| publish.is_udp).map(Publish::guest_ports).collect(),
            policy: self.policy(),
        };
        let (control, gate_end) = Control::open(&[guest, host])?;
        let description =
            gate::Description { jail: vm.jail(Capabilities::None), config, mac: self.mac, log: self.log(vm) };
        processes.start_gate(gate::NAME, &serde_json::to_string(&description)?, gate_end)?;
        Ok((Card { fd: InheritedFd::of(&vmm), mac: self.mac }, vmm, control))
    }

    /// Starts another passt in the place of one that has ended. The guest's connections are lost, and new ones work.
    ///
    /// # Errors
    /// Why it did not start.
    pub(crate) fn replace_passt(&self, vm: &Vm, control: &Control, processes: &mut Processes) -> anyhow::Result<()> {
        let (host, passt_end) = socket_pair().context("passt's socket")?;
        self.start_passt(vm, passt_end, processes)?;
        control.replace_passt(&host)
    }

    fn start_passt(&self, vm: &Vm, socket: OwnedFd, processes: &mut Processes) -> anyhow::Result<()> {
        let options = passt::Options {
            addresses: &self.addresses,
            ports: &self.ports,
            dns: &self.dns,
            maps_loopback: self.maps_loopback(),
        };
        self.passt.start(vm, &options, socket, processes)
    }

    fn lease(&self) -> Option<Lease> {
        self.addresses.iter().find_map(|address| match (address.guest, address.gateway, address.resolver) {
            (IpAddr::V4(guest), IpAddr::V4(gateway), IpAddr::V4(resolver)) => {
                Some(Lease { address: guest, prefix: address.prefix, gateway, resolver, mtu: MTU })
            }
            _ => None,
        })
    }

    /// Whether passt is to lead the gateway's address to the host's loopback: a rule may open it. Early versions also lose the answers
    /// of published UDP ports without it. The gate lets nothing else through to it.
    fn maps_loopback(&self) -> bool {
        let opens_host =
            |rule: &PolicyRule| matches!(rule, PolicyRule::Allow(rule) if rule.target == msb_gate::Target::Host);
        self.rules.iter().any(opens_host) || self.ports.iter().any(|publish| publish.is_udp)
    }

    /// The policy without the host's addresses, which the gate gets on its control socket.
    fn policy(&self) -> Policy {
        Policy {
            mode: match self.mode {
                NetworkMode::Public => msb_gate::Mode::Public,
                NetworkMode::Private => msb_gate::Mode::Private,
                NetworkMode::Deny | NetworkMode::None => msb_gate::Mode::Deny,
            },
            rules: self.rules.clone(),
            gateways: self.addresses.iter().map(|address| address.gateway).collect(),
            own: Vec::new(),
            links: Vec::new(),
        }
    }
}

/// passt, and the addresses of the families that the host has a route for.
fn available() -> Result<(Passt, Vec<Address>), Unusable> {
    let passt = Passt::find()?;
    let families = [(IPV4, host::has_ipv4_route()), (IPV6, host::has_ipv6_route())];
    let addresses: Vec<Address> = families.into_iter().filter(|(_, has)| *has).map(|(address, _)| address).collect();
    if addresses.is_empty() {
        return Err(Unusable::new("this machine has no default route", "connect it, or boot with --network none"));
    }
    Ok((passt, addresses))
}

fn socket_pair() -> anyhow::Result<(OwnedFd, OwnedFd)> {
    let (one, other) = UnixStream::pair()?;
    for socket in [&one, &other] {
        setsockopt(socket, sockopt::SndBufForce, &SEND_BUFFER)?;
    }
    Ok((one.into(), other.into()))
}
