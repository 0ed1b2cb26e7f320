//! The guest's network: its card's frames go through the gate to passt, which opens ordinary sockets for them, and its questions
//! about names to the resolver. The host's network is not changed, and nothing is left to clean up. Further cards are on networks
//! that somebody else provides.
//!
//! Imports run one way: this module uses the jail and the processes, and the VMMs know no more than the card's descriptor.

mod address;
mod card;
pub(crate) mod control;
mod exchange;
pub(crate) mod gate;
mod gated;
mod host;
mod message;
mod name_servers;
pub(crate) mod passt;
mod port;
pub(crate) mod publish;
pub(crate) mod relay;
mod request;
pub(crate) mod resolver;
mod socket_pair;

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use anyhow::{anyhow, bail};
use msb::record::{self, NetworkMode};
use msb::vm::boot;
use serde::{Deserialize, Serialize};

use crate::inherited_fd::InheritedFd;
use crate::processes::Processes;
use crate::unusable::Unusable;
use crate::vm::Vm;
use address::{Address, HOST_GATEWAY, IPV4, IPV6};
use card::ExternalCard;
use control::Control;
use gated::Gated;
use passt::Passt;

pub(crate) use card::parse as parse_card;
pub(crate) use request::{check_mac, check_name, parse_host, parse_rule};

/// The name of the gateway in the guest. If a rule allows it, the gateway leads to the host's loopback.
const HOST_NAME: &str = "host.msb.internal";

/// The networks of a VM, as they were checked.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Networks {
    gated: Option<Gated>,
    cards: Vec<ExternalCard>,
    /// For resolv.conf(5) in the guest, if there is no resolver behind the gate.
    dns: Vec<IpAddr>,
    search: Vec<String>,
    hosts: Vec<(IpAddr, String)>,
}

/// The networks that a guest gets.
#[derive(Debug)]
pub(crate) struct Choice {
    /// They may be none.
    pub networks: Networks,
    /// Why there are none although nobody asked for that.
    pub fallback: Option<String>,
}

/// Chooses the network: the mode that was requested, else `default`, else none if there are cards of other networks, else public.
/// Where the machine cannot provide public, the guest gets no network, unless the request has a mode, or ports, rules or others
/// that need one. `vm` is the VM's name. With `ports_are_free`, the host's ports are not tried.
///
/// # Errors
/// The first invalid value of the request, a port that is taken, or why the guest cannot have the network that was requested.
pub(crate) fn choose(
    request: &record::Network,
    default: Option<NetworkMode>,
    vm: &str,
    ports_are_free: bool,
) -> anyhow::Result<Choice> {
    let parsed = request::parse(request)?;
    let numbered = request.cards.iter().enumerate();
    let cards: Vec<ExternalCard> =
        numbered.map(|(number, card)| ExternalCard::check(card, vm, number)).collect::<Result<_, _>>()?;
    let needs_network = request::first_need(request);
    let requested = if cards.is_empty() { request.mode.or(default) } else { request.mode.or(Some(NetworkMode::None)) };
    if requested == Some(NetworkMode::None) {
        if let Some(member) = needs_network {
            bail!("{member} needs a network, but the mode is none (use --network public, or leave {member} out)");
        }
        return Ok(Choice { networks: Networks::new(None, cards, request, parsed)?, fallback: None });
    }
    let (passt, addresses) = match available() {
        Ok(available) => available,
        Err(why) if requested.is_none() && needs_network.is_none() => {
            let fallback = Some(format!("no network for the guest: {why}"));
            return Ok(Choice { networks: Networks::default(), fallback });
        }
        Err(why) => return Err(anyhow!(why).context("network")),
    };
    let mode = requested.unwrap_or(NetworkMode::Public);
    let guest: Vec<IpAddr> = addresses.iter().map(|address| address.guest).collect();
    publish::check_families(&parsed.ports, &guest).map_err(|why| anyhow!(why))?;
    let ports = publish::choose_ports(parsed.ports.clone(), ports_are_free)?;
    let gated = Gated::new(request, &parsed, mode, passt, addresses, ports);
    Ok(Choice { networks: Networks::new(Some(gated), cards, request, parsed)?, fallback: None })
}

impl Networks {
    fn new(
        gated: Option<Gated>,
        cards: Vec<ExternalCard>,
        request: &record::Network,
        parsed: request::Parsed,
    ) -> anyhow::Result<Self> {
        let mut macs: Vec<[u8; 6]> =
            cards.iter().map(ExternalCard::mac).chain(gated.as_ref().map(Gated::mac)).collect();
        macs.sort_unstable();
        if let Some(pair) = macs.windows(2).find(|pair| pair[0] == pair[1]) {
            bail!("two network cards have the Ethernet address {}", boot::format_mac(pair[0]));
        }
        let mut routes: Vec<bool> =
            cards.iter().flat_map(ExternalCard::default_routes).map(|via| via.is_ipv4()).collect();
        routes.extend(gated.iter().flat_map(Gated::gateways).map(|via| via.is_ipv4()));
        if [true, false].iter().any(|family| routes.iter().filter(|route| *route == family).count() > 1) {
            bail!(
                "two network cards have a default route of one family (give one of them routes to what is behind it instead)"
            );
        }
        let gateway = gated.as_ref().and_then(Gated::gateway);
        let mut hosts = Vec::new();
        for (name, address) in parsed.hosts {
            let Some(address) = address.or(gateway) else {
                bail!(
                    "--add-host {name}:{HOST_GATEWAY}: there is no such gateway with --network none (give an address)"
                );
            };
            hosts.push((address, name));
        }
        hosts.extend(gateway.map(|gateway| (gateway, HOST_NAME.into())));
        Ok(Self { gated, cards, dns: request.dns.clone(), search: request.dns_search.clone(), hosts })
    }

    /// What agentd configures; `None` for the loopback interface alone.
    pub(crate) fn for_guest(&self) -> Option<boot::Network> {
        let cards: Vec<boot::Card> =
            self.gated.iter().map(Gated::for_guest).chain(self.cards.iter().map(ExternalCard::for_guest)).collect();
        let nameservers = self.gated.as_ref().map_or_else(|| self.dns.clone(), Gated::resolvers);
        let (search, hosts) = (self.search.clone(), self.hosts.clone());
        (!cards.is_empty()).then_some(boot::Network { cards, nameservers, search, hosts })
    }

    /// The descriptors of the caller that the cards use.
    pub(crate) fn inherited_fds(&self) -> impl Iterator<Item = InheritedFd> {
        self.cards.iter().filter_map(ExternalCard::inherited_fd)
    }

    /// Whether there are cards on networks that somebody else provides.
    pub(crate) fn has_external_cards(&self) -> bool {
        !self.cards.is_empty()
    }

    /// The number of network cards.
    pub(crate) fn count(&self) -> usize {
        self.cards.len() + usize::from(self.gated.is_some())
    }

    /// The members `net` and `cards` of the record.
    pub(crate) fn in_record(&self, vm: &Vm) -> (Option<record::Net>, Vec<record::Card>) {
        let net = self.gated.as_ref().map(|gated| gated.in_record(vm));
        (net, self.cards.iter().map(ExternalCard::in_record).collect())
    }

    /// Starts the processes of the cards and connects them. Sets [`Vm::cards`]. Returns the descriptors that the VMM inherits for
    /// them, and what keeps the gate and the resolver informed.
    ///
    /// # Errors
    /// The process that did not start, and why.
    pub(crate) fn start(
        &self,
        vm: &mut Vm,
        processes: &mut Processes,
    ) -> anyhow::Result<(Vec<OwnedFd>, Option<Control>)> {
        self.cards.iter().try_for_each(ExternalCard::close_on_exec)?;
        let (mut cards, mut fds, mut control) = (Vec::new(), Vec::new(), None);
        if let Some(gated) = &self.gated {
            let (card, fd, gate) = gated.start(vm, processes)?;
            cards.push(card);
            fds.push(fd);
            control = Some(gate);
        }
        for card in &self.cards {
            let (card, fd) = card.start(vm, processes)?;
            cards.push(card);
            fds.push(fd);
        }
        vm.cards = cards;
        Ok((fds, control))
    }

    /// Starts passt or the resolver again after its end. The guest's connections or questions are lost, and new ones work.
    ///
    /// # Errors
    /// Why it did not start.
    pub(crate) fn replace(
        &self,
        name: &str,
        vm: &Vm,
        control: &mut Control,
        processes: &mut Processes,
    ) -> anyhow::Result<()> {
        match &self.gated {
            Some(gated) if name == resolver::NAME => gated.replace_resolver(vm, control, processes),
            Some(gated) => gated.replace_passt(vm, control, processes),
            None => Ok(()),
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
