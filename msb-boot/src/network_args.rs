//! The flags about the network.

use std::io::Read;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::Context;
use clap::{ArgMatches, Command, FromArgMatches};
use msb::record::{Card, Network, NetworkMode, NetworkRule};
use msb::tool::exit;
use msb::vm::boot;

use crate::network::{self, publish::Publish};

/// The largest file that --network-policy names, in bytes.
const MAX_POLICY: u64 = 1 << 20;

#[derive(Debug, clap::Args)]
pub(crate) struct NetworkArgs {
    /// What the guest can reach: nothing, as it has no network card (none), the internet (public), private networks too (private), or
    /// only what --allow permits (deny) [default: $MSB_NETWORK; otherwise public if passt is installed and the host has a default
    /// route, and none if not]. Or a card on a network of yours, a TAP interface or a Unix socket, with options behind commas:
    /// address=ADDR/LENGTH, gateway=ADDR, route=ADDR/LENGTH=ADDR, mac=ADDR, mtu=BYTES (repeatable)
    #[arg(long, value_name = "MODE|tap:NAME|tap:FD|unix:PATH", value_parser = choice)]
    pub network: Vec<NetworkChoice>,

    #[command(flatten)]
    pub rules: Rules,

    /// A file with the whole network as JSON, the member boot.network of the record; the other flags override it
    #[arg(long, value_name = "FILE")]
    pub network_policy: Option<PathBuf>,

    /// Forward a port of the host to a port of the guest. The default address is 127.0.0.1, port 0 is a free one, and a range is
    /// FIRST-LAST (repeatable)
    #[arg(short = 'p', long = "publish", value_name = "[IP:]PORT:GUEST[/udp]", value_parser = publish)]
    pub publish: Vec<String>,

    /// A name server instead of those of the host's resolv.conf (repeatable)
    #[arg(long, value_name = "ADDR")]
    pub dns: Vec<IpAddr>,

    /// A domain in which short names are looked up (repeatable)
    #[arg(long, value_name = "NAME", value_parser = network::check_name)]
    pub dns_search: Vec<String>,

    /// A line of the guest's /etc/hosts; host-gateway is the address of host.msb.internal (repeatable)
    #[arg(long, value_name = "NAME:ADDR|NAME:host-gateway", value_parser = host)]
    pub add_host: Vec<String>,

    /// The Ethernet address of the guest's network card
    #[arg(long, value_name = "ADDR", value_parser = mac)]
    pub mac: Option<String>,
}

/// A value of --network.
#[derive(Clone, Debug)]
pub(crate) enum NetworkChoice {
    /// What the guest reaches through the gate.
    Mode(NetworkMode),
    /// A card of another network.
    Card(Box<Card>),
}

/// The rules of --allow and --deny, in the order in which they were given.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules(pub Vec<NetworkRule>);

const ALLOW: &str = "allow";
const DENY: &str = "deny";

impl clap::Args for Rules {
    fn augment_args(command: Command) -> Command {
        let rule = |name: &'static str| {
            clap::Arg::new(name)
                .long(name)
                .value_name("WHAT[:PORT[-PORT]][/tcp|/udp]")
                .action(clap::ArgAction::Append)
                .value_parser(|text: &str| network::parse_rule(text).map(|rule| rule.to_string()))
        };
        command
            .arg(rule(ALLOW).help(
                "Let the guest reach an address, a prefix, a name, *.NAME, public, private, host (the host's loopback, behind \
                 host.msb.internal), meta or all. The first of --allow and --deny that matches decides (repeatable)",
            ))
            .arg(rule(DENY).help("Keep the guest from it (repeatable)"))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Rules {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut rules = Vec::new();
        for (name, make) in [(ALLOW, NetworkRule::Allow as fn(String) -> NetworkRule), (DENY, NetworkRule::Deny)] {
            let texts = matches.get_many::<String>(name).unwrap_or_default();
            rules.extend(matches.indices_of(name).unwrap_or_default().zip(texts.cloned().map(make)));
        }
        rules.sort_by_key(|(index, _)| *index);
        Ok(Self(rules.into_iter().map(|(_, rule)| rule).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl NetworkArgs {
    /// The recorded network, overridden by the file and by the flags.
    ///
    /// # Errors
    /// A usage error for a file that cannot be read.
    pub(crate) fn override_recorded(&self, recorded: &Network) -> anyhow::Result<Network> {
        let mut network = match &self.network_policy {
            Some(file) => {
                let read = || -> anyhow::Result<Network> {
                    let mut text = Vec::new();
                    std::fs::File::open(file)?.take(MAX_POLICY + 1).read_to_end(&mut text)?;
                    anyhow::ensure!(text.len() as u64 <= MAX_POLICY, "larger than {MAX_POLICY} bytes");
                    let network: Network = serde_json::from_slice(&text)?;
                    let of_cards = network.cards.iter().flat_map(|card| card.unknown.iter());
                    if let Some((member, _)) = network.unknown.iter().chain(of_cards).next() {
                        anyhow::bail!("unknown member {member:?}");
                    }
                    Ok(network)
                };
                read()
                    .with_context(|| format!("--network-policy {file:?}"))
                    .map_err(|error| exit::coded(exit::USAGE, format!("{error:#}")))?
            }
            None => recorded.clone(),
        };
        let modes: Vec<NetworkMode> = self.network.iter().filter_map(NetworkChoice::mode).collect();
        let mode = match modes[..] {
            [] => None,
            [mode] => Some(mode),
            _ => return Err(exit::coded(exit::USAGE, "--network: one mode is expected").into()),
        };
        if !self.network.is_empty() {
            network.mode = mode;
            network.cards = self.network.iter().filter_map(NetworkChoice::card).cloned().collect();
        }
        // Rules are one list, whose order matters.
        override_list(&mut network.rules, &self.rules.0);
        override_list(&mut network.ports, &self.publish);
        override_list(&mut network.dns, &self.dns);
        override_list(&mut network.dns_search, &self.dns_search);
        override_list(&mut network.hosts, &self.add_host);
        network.mac = self.mac.clone().or(network.mac);
        if mode == Some(NetworkMode::None) || (mode.is_none() && !self.network.is_empty()) {
            // What was recorded with another mode was meant for that one.
            network.rules.retain(|_| !self.rules.0.is_empty());
            network.ports.retain(|_| !self.publish.is_empty());
            network.dns.retain(|_| !self.dns.is_empty());
            network.dns_search.retain(|_| !self.dns_search.is_empty());
            network.hosts.retain(|_| !self.add_host.is_empty());
            network.mac = network.mac.filter(|_| self.mac.is_some());
        }
        Ok(network)
    }
}

impl NetworkChoice {
    fn mode(&self) -> Option<NetworkMode> {
        match self {
            Self::Mode(mode) => Some(*mode),
            Self::Card(_) => None,
        }
    }

    fn card(&self) -> Option<&Card> {
        match self {
            Self::Mode(_) => None,
            Self::Card(card) => Some(card),
        }
    }
}

fn override_list<T: Clone>(list: &mut Vec<T>, flags: &[T]) {
    if !flags.is_empty() {
        *list = flags.to_vec();
    }
}

/// The mode of `$MSB_NETWORK`.
///
/// # Errors
/// A usage error if the variable does not name a mode.
pub(crate) fn default_mode() -> anyhow::Result<Option<NetworkMode>> {
    match std::env::var_os("MSB_NETWORK").filter(|value| !value.is_empty()) {
        None => Ok(None),
        Some(value) => mode(&value.to_string_lossy())
            .map(Some)
            .map_err(|why| exit::coded(exit::USAGE, format!("MSB_NETWORK {value:?}: {why}")).into()),
    }
}

fn choice(text: &str) -> Result<NetworkChoice, String> {
    match network::parse_card(text) {
        Some(card) => card.map(|card| NetworkChoice::Card(Box::new(card))),
        None => match mode(text) {
            Ok(mode) => Ok(NetworkChoice::Mode(mode)),
            Err(expected) => Err(format!("{expected}, or tap:NAME, tap:FD or unix:PATH")),
        },
    }
}

fn mode(text: &str) -> Result<NetworkMode, &'static str> {
    let mode = NetworkMode::ALL.into_iter().find(|(name, _)| *name == text);
    mode.map(|(_, mode)| mode).ok_or("none, public, private or deny is expected")
}

fn publish(text: &str) -> Result<String, String> {
    text.parse().map(|publish: Publish| publish.to_string())
}

fn host(text: &str) -> Result<String, String> {
    network::parse_host(text).map(|_| text.to_owned())
}

fn mac(text: &str) -> Result<String, String> {
    network::check_mac(text).map(boot::format_mac)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Tool {
        #[command(flatten)]
        network: NetworkArgs,
    }

    fn parse(flags: &[&str]) -> Result<NetworkArgs, String> {
        let parsed = Tool::try_parse_from([&["tool"], flags].concat());
        parsed.map(|tool| tool.network).map_err(|error| error.to_string())
    }

    #[test]
    fn rules_keep_their_order() {
        let args = parse(&["--allow", "a.test", "--deny", "b.test:80", "--allow", "*.C.test"]).unwrap();
        let expected = [
            NetworkRule::Allow("a.test".into()),
            NetworkRule::Deny("b.test:80".into()),
            NetworkRule::Allow("*.c.test".into()),
        ];
        assert_eq!(args.rules.0, expected);
    }

    #[test]
    fn a_wrong_word_is_named() {
        for (flags, word) in [
            (["--network", "open"], "'open'"),
            (["--network", "tap:t,speed=1"], "\"speed=1\""),
            (["--allow", "a..b"], "\"a..b\""),
            (["--deny", "a.test:http"], "\"http\""),
            (["-p", "80"], "\"80\""),
            (["--add-host", "db"], "\"db\""),
            (["--dns", "resolver"], "'resolver'"),
            (["--dns-search", "a b"], "\"a b\""),
            (["--mac", "x"], "\"x\""),
        ] {
            let error = parse(&flags).unwrap_err();
            assert!(error.contains(word), "{flags:?}: {error}");
        }
    }

    #[test]
    fn flags_override_the_record_and_the_file() {
        let recorded: Network =
            serde_json::from_str(r#"{"mode":"deny","rules":[{"allow":"a.test"}],"ports":["8080:80"],"dns_search":["test"],"hosts":["db:10.0.0.1"]}"#)
                .unwrap();
        assert_eq!(parse(&[]).unwrap().override_recorded(&recorded).unwrap(), recorded);
        let none = parse(&["--network", "none"]).unwrap().override_recorded(&recorded).unwrap();
        assert_eq!((none.mode, none.rules.len(), none.ports.len()), (Some(NetworkMode::None), 0, 0));
        assert_eq!((none.dns_search.len(), none.hosts.len()), (0, 0));
        let card =
            parse(&["--network", "tap:tap0", "--dns", "192.0.2.1"]).unwrap().override_recorded(&recorded).unwrap();
        assert_eq!((card.mode, card.cards.len(), card.rules.len(), card.dns.len()), (None, 1, 0, 1));
        assert_eq!(parse(&[]).unwrap().override_recorded(&card).unwrap(), card);
        let both =
            parse(&["--network", "tap:tap0", "--network", "deny"]).unwrap().override_recorded(&recorded).unwrap();
        assert_eq!((both.mode, both.cards.len(), both.rules.len()), (Some(NetworkMode::Deny), 1, 1));
        assert!(parse(&["--network", "none", "--network", "deny"]).unwrap().override_recorded(&recorded).is_err());
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("policy.json");
        let with_file = |text: &str| {
            std::fs::write(&file, text).unwrap();
            let args = parse(&["--network-policy", file.to_str().unwrap(), "--deny", "b.test"]).unwrap();
            args.override_recorded(&recorded)
        };
        let network = with_file(r#"{"mode":"private","dns":["192.0.2.1"]}"#).unwrap();
        assert_eq!((network.mode, network.ports.len(), network.dns.len()), (Some(NetworkMode::Private), 0, 1));
        assert_eq!(network.rules, [NetworkRule::Deny("b.test".into())]);
        for (text, word) in [
            ("{", "EOF"),
            (r#"{"modes":1}"#, "\"modes\""),
            (r#"{"cards":[{"tap":"t","speed":1}]}"#, "\"speed\""),
            (r#"{"mode":"open"}"#, "`open`"),
        ] {
            let error = with_file(text).unwrap_err().to_string();
            assert!(error.starts_with("--network-policy") && error.contains(word), "{error}");
        }
    }
}
