//! The network behind the gate: the guest's card's frames go through the gate to passt, and its questions to the resolver.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use anyhow::Context;
use msb::jail::Profile;
use msb::record::{self, NetworkMode};
use msb::vm::{boot, rundir};
use msb_gate::{Config, Lease, Policy, PolicyRule};
use serde::{Deserialize, Serialize};

use super::address::{Address, MTU};
use super::control::{Control, Socket};
use super::message;
use super::name_servers::NameServers;
use super::passt::{self, Passt};
use super::publish::Publish;
use super::socket_pair::socket_pair;
use super::{gate, request, resolver};
use crate::inherited_fd::InheritedFd;
use crate::processes::{Processes, Vital};
use crate::role;
use crate::vm::{Card, Vm};

/// The card's Ethernet address. It is seen by passt alone, so all VMs may have the same.
const MAC: [u8; 6] = [0x52, 0x55, 0, 0, 0, 2];

/// The log of what was denied, in the VM's run directory.
const LOG: &str = "net.log";

/// The network, as it was checked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Gated {
    passt: Passt,
    mode: NetworkMode,
    rules: Vec<PolicyRule>,
    /// The same, as they were written.
    written_rules: Vec<record::NetworkRule>,
    addresses: Vec<Address>,
    ports: Vec<Publish>,
    dns: Vec<IpAddr>,
    mac: [u8; 6],
}

impl Gated {
    /// A network with these ports of the host.
    pub(super) fn new(
        request: &record::Network,
        parsed: &request::Parsed,
        mode: NetworkMode,
        passt: Passt,
        addresses: Vec<Address>,
        ports: Vec<Publish>,
    ) -> Self {
        Self {
            passt,
            mode,
            rules: parsed.rules.clone(),
            written_rules: request.rules.clone(),
            addresses,
            ports,
            dns: request.dns.clone(),
            mac: parsed.mac.unwrap_or(MAC),
        }
    }

    /// What agentd configures.
    pub(super) fn for_guest(&self) -> boot::Card {
        let subnet = |address: &Address| boot::Subnet { address: address.guest, prefix: address.prefix };
        let addresses = self.addresses.iter().map(subnet).collect();
        let routes = self.gateways().map(boot::Route::default_by).collect();
        boot::Card { mac: self.mac, mtu: MTU.into(), addresses, routes }
    }

    /// The address of the host in the guest's network.
    pub(super) fn gateway(&self) -> Option<IpAddr> {
        self.gateways().next()
    }

    /// The next hops of its default routes.
    pub(super) fn gateways(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().map(|address| address.gateway)
    }

    /// The Ethernet address.
    pub(super) fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// The resolver that the guest is told.
    pub(super) fn resolvers(&self) -> Vec<IpAddr> {
        self.addresses.iter().take(1).map(|address| address.resolver).collect()
    }

    fn log(&self, vm: &Vm) -> PathBuf {
        vm.dir.join(LOG)
    }

    /// The member `net` of the record.
    pub(super) fn in_record(&self, vm: &Vm) -> record::Net {
        let mac = boot::format_mac(self.mac);
        let mut net = record::Net::new(self.mode, passt::NAME.into(), mac, MTU.into(), self.log(vm));
        net.addresses = self.addresses.iter().map(|address| format!("{}/{}", address.guest, address.prefix)).collect();
        net.gateways = self.gateways().collect();
        net.nameservers = self.resolvers();
        net.ports = self.ports.iter().flat_map(Publish::in_record).collect();
        net.rules = self.written_rules.clone();
        net
    }

    /// Starts passt, the resolver and the gate. Returns the card, the descriptor that the VMM inherits for it, and what keeps
    /// them informed.
    ///
    /// # Errors
    /// The process that did not start, and why.
    pub(super) fn start(&self, vm: &Vm, processes: &mut Processes) -> anyhow::Result<(Card, OwnedFd, Control)> {
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
        let (gate_link, link) = message::packet_sockets().context("the resolver's socket")?;
        let sockets = [(Socket::Guest, &guest), (Socket::Passt, &host), (Socket::Resolver, &gate_link)];
        let (control, resolver_end, gate_end) = Control::open(NameServers::new(&self.dns), &link, &sockets)?;
        start_resolver(vm, resolver_end, processes)?;
        let description = gate::Description {
            jail: vm.jail(Profile::Gate),
            config,
            mac: self.mac,
            log: self.log(vm),
            traffic: vm.dir.join(rundir::TRAFFIC),
        };
        let description = serde_json::to_string(&description)?;
        processes.start_role(gate::NAME, Vital::Yes, role::GATE, &description, gate_end.into(), &[])?;
        Ok((Card { fd: InheritedFd::of(&vmm), mac: self.mac, is_offloaded: true }, vmm, control))
    }

    /// Starts another passt in the place of one that has ended. The guest's connections are lost, and new ones work.
    ///
    /// # Errors
    /// Why it did not start.
    pub(super) fn replace_passt(&self, vm: &Vm, control: &Control, processes: &mut Processes) -> anyhow::Result<()> {
        let (host, passt_end) = socket_pair().context("passt's socket")?;
        self.start_passt(vm, passt_end, processes)?;
        control.replace(Socket::Passt, &host)
    }

    /// Starts another resolver in the place of one that has ended.
    ///
    /// # Errors
    /// Why it did not start.
    pub(super) fn replace_resolver(
        &self,
        vm: &Vm,
        control: &mut Control,
        processes: &mut Processes,
    ) -> anyhow::Result<()> {
        let (gate_link, link) = message::packet_sockets().context("the resolver's socket")?;
        let end = control.reopen_resolver(&link)?;
        start_resolver(vm, end, processes)?;
        control.replace(Socket::Resolver, &gate_link)
    }

    fn start_passt(&self, vm: &Vm, socket: OwnedFd, processes: &mut Processes) -> anyhow::Result<()> {
        let options =
            passt::Options { addresses: &self.addresses, ports: &self.ports, maps_loopback: self.maps_loopback() };
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

    /// Whether passt is to lead the gateway's address to the host's loopback: a rule may open it. Early versions also lose the
    /// answers of published UDP ports without it. The gate lets nothing else through to it.
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
            gateways: self.gateways().collect(),
            own: Vec::new(),
            links: Vec::new(),
        }
    }
}

/// Starts the resolver with its end of the control socket.
fn start_resolver(vm: &Vm, control: OwnedFd, processes: &mut Processes) -> anyhow::Result<()> {
    let description = resolver::Description { jail: vm.jail(Profile::Resolver) };
    let description = serde_json::to_string(&description)?;
    processes.start_role(resolver::NAME, Vital::No, role::RESOLVER, &description, control.into(), &[])
}
