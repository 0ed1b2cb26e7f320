//! The policy: rules in order, the first that matches decides; a mode for what no rule matches; addresses that no rule opens.

use std::net::{IpAddr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::address::{self, Class, Prefix};
use crate::rule::{Protocol, Rule, Target};

/// What may be reached where no rule says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The internet.
    Public,
    /// The internet, private networks and those that the host is connected to.
    Private,
    /// Nothing.
    Deny,
}

impl Mode {
    /// As it is written in the log.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Private => "private",
            Self::Deny => "deny",
        }
    }
}

/// A rule, and whether it allows or denies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyRule {
    /// What it matches is let through.
    Allow(Rule),
    /// What it matches is refused.
    Deny(Rule),
}

impl PolicyRule {
    fn rule(&self) -> &Rule {
        match self {
            Self::Allow(rule) | Self::Deny(rule) => rule,
        }
    }

    fn is_allow(&self) -> bool {
        matches!(self, Self::Allow(_))
    }
}

/// All that decides where a guest's traffic may go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// For what no rule matches.
    pub mode: Mode,
    /// In order.
    pub rules: Vec<PolicyRule>,
    /// The gateways' addresses, which are the host's loopback.
    pub gateways: Vec<IpAddr>,
    /// The host's own addresses.
    pub own: Vec<IpAddr>,
    /// The networks that the host is connected to.
    pub links: Vec<Prefix>,
}

/// One destination of a guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Destination<'n> {
    pub address: IpAddr,
    pub protocol: Protocol,
    pub port: u16,
    /// The names that the guest knows the address by.
    pub names: &'n [String],
}

/// What the policy says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    pub allowed: bool,
    /// A rule by name was looked at: the name that the client itself sends may change the decision.
    pub by_name: bool,
    /// The rule or the mode that decided.
    pub reason: String,
}

impl Policy {
    /// Decides about a connection, a datagram or an echo request.
    pub(crate) fn decide(&self, to: &Destination<'_>) -> Decision {
        if address::is_never(to.address) {
            return Decision { allowed: false, by_name: false, reason: "never".into() };
        }
        let mut by_name = false;
        for policy_rule in self.rules.iter().filter(|policy_rule| policy_rule.rule().covers(to.protocol, to.port)) {
            by_name |= policy_rule.rule().target.is_name();
            if self.matches(policy_rule, to.address, to.protocol, to.names) {
                return Decision { allowed: policy_rule.is_allow(), by_name, reason: describe(policy_rule) };
            }
        }
        Decision { allowed: self.is_open(to.address), by_name, reason: self.mode.name().into() }
    }

    /// The gateway's IPv6 address.
    pub(crate) fn ipv6_gateway(&self) -> Option<Ipv6Addr> {
        self.gateways.iter().find_map(|gateway| match gateway {
            IpAddr::V6(gateway) => Some(*gateway),
            IpAddr::V4(_) => None,
        })
    }

    /// Whether any rule is about a name.
    pub(crate) fn has_names(&self) -> bool {
        self.rules.iter().any(|policy_rule| policy_rule.rule().target.is_name())
    }

    /// Whether the guest may ask for a name.
    pub(crate) fn allows_name(&self, name: &str) -> bool {
        for policy_rule in &self.rules {
            let rule = policy_rule.rule();
            let is_about_it = match &rule.target {
                Target::Name(_) | Target::Suffix(_) => rule.target.names(name),
                Target::All => true,
                Target::Public | Target::Private => policy_rule.is_allow(),
                Target::Prefix(_) | Target::Host | Target::Metadata => false,
            };
            // A name whose port 25 is denied may be asked for.
            if is_about_it && (policy_rule.is_allow() || rule.covers_all()) {
                return policy_rule.is_allow();
            }
        }
        self.mode != Mode::Deny
    }

    /// Whether an answer may give this address to the name: whether any port of it can be reached.
    pub(crate) fn allows_answer(&self, address: IpAddr, name: &str) -> bool {
        if address::is_never(address) {
            return false;
        }
        let names = [name.to_owned()];
        let decisive = self.rules.iter().find(|policy_rule| {
            self.matches(policy_rule, address, Protocol::Tcp, &names)
                && (policy_rule.is_allow() || policy_rule.rule().covers_all())
        });
        decisive.map_or_else(|| self.is_open(address), PolicyRule::is_allow)
    }

    /// Whether the mode lets it through.
    fn is_open(&self, address: IpAddr) -> bool {
        match self.mode {
            Mode::Public => self.is_public(address),
            Mode::Private => self.is_public(address) || self.is_private(address),
            Mode::Deny => false,
        }
    }

    fn is_host(&self, address: IpAddr) -> bool {
        self.gateways.contains(&address) || self.own.contains(&address)
    }

    fn is_public(&self, address: IpAddr) -> bool {
        address::class(address) == Class::Public && !self.is_host(address) && !self.is_link(address)
    }

    fn is_private(&self, address: IpAddr) -> bool {
        let is_near = match address::class(address) {
            Class::Private => true,
            Class::Public => self.is_link(address),
            Class::Metadata | Class::Never => false,
        };
        is_near && !self.is_host(address)
    }

    fn is_link(&self, address: IpAddr) -> bool {
        self.links.iter().any(|link| link.contains(address))
    }

    fn matches(&self, policy_rule: &PolicyRule, address: IpAddr, protocol: Protocol, names: &[String]) -> bool {
        let (allow, rule) = (policy_rule.is_allow(), policy_rule.rule());
        match &rule.target {
            // A network is not the host: that takes its exact address, or the word for it.
            Target::Prefix(prefix) => {
                prefix.contains(address) && (!allow || prefix.is_one_address() || !self.is_host(address))
            }
            target @ (Target::Name(_) | Target::Suffix(_)) => {
                // The owner of a name must not open a private network with it. And the name that a client sends cannot be read
                // in UDP, so that takes a rule of its own.
                let is_reachable = self.is_public(address) || (self.mode == Mode::Private && self.is_private(address));
                let is_checked = protocol != Protocol::Udp || rule.protocol == Some(Protocol::Udp);
                (!allow || (is_reachable && is_checked)) && names.iter().any(|name| target.names(name))
            }
            Target::Public => self.is_public(address),
            Target::Private => self.is_private(address),
            Target::Host => self.gateways.contains(&address) || (!allow && self.own.contains(&address)),
            Target::Metadata => address::class(address) == Class::Metadata,
            Target::All => !allow || self.is_public(address) || self.is_private(address),
        }
    }
}

fn describe(policy_rule: &PolicyRule) -> String {
    match policy_rule {
        PolicyRule::Allow(rule) => format!("allow {rule}"),
        PolicyRule::Deny(rule) => format!("deny {rule}"),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A policy from `allow RULE` and `deny RULE`; the host has 198.51.100.2 in 198.51.100.0/24, and the gateway is 10.0.2.2.
    pub(crate) fn policy(mode: Mode, rules: &[&str]) -> Policy {
        let rules = rules.iter().map(|text| match text.split_once(' ').unwrap() {
            ("allow", rule) => PolicyRule::Allow(rule.parse().unwrap()),
            (_, rule) => PolicyRule::Deny(rule.parse().unwrap()),
        });
        Policy {
            mode,
            rules: rules.collect(),
            gateways: vec!["10.0.2.2".parse().unwrap(), "fd00:6d73::2".parse().unwrap()],
            own: vec!["198.51.100.2".parse().unwrap()],
            links: vec!["198.51.100.0/24".parse().unwrap()],
        }
    }

    fn allowed(policy: &Policy, address: &str, port: u16, names: &[&str]) -> bool {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let address = address.parse().unwrap();
        policy.decide(&Destination { address, protocol: Protocol::Tcp, port, names: &names }).allowed
    }

    #[test]
    fn a_mode_decides_where_no_rule_matches() {
        for (address, public, private) in [
            ("203.0.113.9", true, true),
            ("2001:db8::9", true, true),
            ("198.51.100.3", false, true),
            ("10.9.9.9", false, true),
            ("fd99::9", false, true),
            ("198.51.100.2", false, false),
            ("10.0.2.2", false, false),
            ("fd00:6d73::2", false, false),
            ("169.254.169.254", false, false),
            ("127.0.0.1", false, false),
            ("::ffff:127.0.0.1", false, false),
        ] {
            for (mode, expected) in [(Mode::Public, public), (Mode::Private, private), (Mode::Deny, false)] {
                assert_eq!(allowed(&policy(mode, &[]), address, 80, &[]), expected, "{mode:?} {address}");
            }
        }
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        use Mode::{Deny, Private, Public};
        for (mode, rules, address, port, names, expected) in [
            (Deny, &["allow 192.0.2.1"][..], "192.0.2.1", 80, &[][..], true),
            (Deny, &["allow 192.0.2.1"], "192.0.2.2", 80, &[], false),
            (Deny, &["allow 192.0.2.1:443"], "192.0.2.1", 80, &[], false),
            (Deny, &["allow 192.0.2.1/udp"], "192.0.2.1", 80, &[], false),
            (Deny, &["deny 192.0.2.1:80", "allow 192.0.2.0/24"], "192.0.2.1", 80, &[], false),
            (Deny, &["deny 192.0.2.1:80", "allow 192.0.2.0/24"], "192.0.2.1", 81, &[], true),
            (Public, &["allow 192.0.2.0/24", "deny 192.0.2.1"], "192.0.2.1", 80, &[], true),
            (Public, &["deny all:25"], "192.0.2.1", 25, &[], false),
            (Public, &["allow 10.0.0.0/8"], "10.9.9.9", 80, &[], true),
            (Public, &["allow 198.51.100.2"], "198.51.100.2", 80, &[], true),
            (Deny, &["allow public"], "192.0.2.1", 80, &[], true),
            (Deny, &["allow public"], "10.9.9.9", 80, &[], false),
            (Deny, &["allow private"], "10.9.9.9", 80, &[], true),
            (Deny, &["allow private"], "198.51.100.3", 80, &[], true),
            (Deny, &["allow all"], "10.9.9.9", 80, &[], true),
            (Deny, &["allow all"], "203.0.113.9", 80, &[], true),
            (Public, &["deny all", "allow host"], "10.0.2.2", 80, &[], false),
            // What "all" does not open:
            (Deny, &["allow all"], "10.0.2.2", 80, &[], false),
            (Deny, &["allow all"], "198.51.100.2", 80, &[], false),
            (Deny, &["allow all"], "169.254.169.254", 80, &[], false),
            (Public, &["deny all", "allow 192.0.2.1"], "192.0.2.1", 80, &[], false),
            (Public, &["allow host:5432"], "10.0.2.2", 5432, &[], true),
            (Public, &["allow host:5432"], "10.0.2.2", 5433, &[], false),
            (Public, &["allow host:5432"], "198.51.100.2", 5432, &[], false),
            // A prefix that contains the host does not open it.
            (Deny, &["allow 198.51.100.0/24"], "198.51.100.2", 80, &[], false),
            (Deny, &["allow 198.51.100.0/24"], "198.51.100.3", 80, &[], true),
            (Deny, &["allow 0.0.0.0/0"], "10.0.2.2", 80, &[], false),
            (Deny, &["allow 198.51.100.2/32"], "198.51.100.2", 80, &[], true),
            (Private, &["deny 198.51.100.0/24", "allow 198.51.100.2"], "198.51.100.2", 80, &[], false),
            (Public, &["allow meta:80"], "169.254.169.254", 80, &[], true),
            // A rule that denies the host is for all of its addresses, and for no others.
            (Public, &["deny host", "allow 198.51.100.2"], "198.51.100.2", 80, &[], false),
            (Public, &["deny host", "allow host"], "10.0.2.2", 80, &[], false),
            (Public, &["deny host"], "203.0.113.9", 80, &[], true),
            // Never, whatever the rules:
            (Public, &["allow 127.0.0.0/8", "allow host", "allow all"], "127.0.0.1", 80, &[], false),
            (Public, &["allow [::]/0"], "::ffff:127.0.0.1", 80, &[], false),
            (Deny, &["allow a.test"], "192.0.2.1", 80, &["a.test"], true),
            (Deny, &["allow a.test"], "192.0.2.1", 80, &["b.test"], false),
            (Deny, &["allow *.test:443"], "192.0.2.1", 443, &["b.test", "x.y"], true),
            (Public, &["deny a.test"], "192.0.2.1", 80, &["a.test"], false),
            // A name does not open a private network, unless the mode does:
            (Deny, &["allow a.test"], "10.9.9.9", 80, &["a.test"], false),
            (Deny, &["allow a.test"], "10.0.2.2", 80, &["a.test"], false),
            (Private, &["allow a.test", "deny all"], "10.9.9.9", 80, &["a.test"], true),
        ] {
            assert_eq!(
                allowed(&policy(mode, rules), address, port, names),
                expected,
                "{mode:?} {rules:?} {address} {port} {names:?}"
            );
        }
    }

    #[test]
    fn a_name_opens_udp_only_where_its_rule_says_so() {
        let names = ["a.test".to_owned()];
        let address = "192.0.2.1".parse().unwrap();
        for (mode, rule, expected) in [
            (Mode::Deny, "allow a.test", false),
            (Mode::Deny, "allow a.test/udp", true),
            (Mode::Public, "deny a.test", false),
            (Mode::Public, "deny a.test/tcp", true),
        ] {
            let to = Destination { address, protocol: Protocol::Udp, port: 443, names: &names };
            assert_eq!(policy(mode, &[rule]).decide(&to).allowed, expected, "{rule}");
        }
    }

    #[test]
    fn a_decision_says_whether_a_name_could_change_it() {
        let address = "192.0.2.1".parse().unwrap();
        for (rules, port, expected) in [
            (&["deny a.test"][..], 80, true),
            (&["deny a.test:443"], 80, false),
            (&["allow 192.0.2.1", "deny a.test"], 80, false),
            (&["deny a.test", "allow 192.0.2.1"], 80, true),
            (&["deny a.test", "deny b.test"], 80, true),
            (&["allow 192.0.2.1"], 80, false),
            (&[], 80, false),
        ] {
            let to = Destination { address, protocol: Protocol::Tcp, port, names: &[] };
            let policy = policy(Mode::Public, rules);
            assert_eq!(policy.decide(&to).by_name, expected, "{rules:?} {port}");
            assert_eq!(policy.has_names(), rules.iter().any(|rule| rule.contains("test")), "{rules:?}");
        }
    }

    #[test]
    fn a_decision_names_what_has_decided() {
        let address = "192.0.2.1".parse().unwrap();
        let to = Destination { address, protocol: Protocol::Tcp, port: 80, names: &[] };
        for (mode, rules, expected) in [
            (Mode::Deny, &["allow 192.0.2.1:80"][..], "allow 192.0.2.1:80"),
            (Mode::Public, &["deny a.test", "deny 192.0.2.0/24"], "deny 192.0.2.0/24"),
            (Mode::Public, &["deny a.test"], "public"),
            (Mode::Private, &[], "private"),
            (Mode::Deny, &[], "deny"),
        ] {
            assert_eq!(policy(mode, rules).decide(&to).reason, expected);
        }
    }

    #[test]
    fn names_are_asked_for_by_the_rules() {
        use Mode::{Deny, Public};
        for (mode, rules, name, expected) in [
            (Public, &[][..], "a.test", true),
            (Deny, &[], "a.test", false),
            (Deny, &["allow a.test:443"], "a.test", true),
            (Deny, &["allow a.test"], "b.test", false),
            (Deny, &["allow *.test"], "b.test", true),
            (Deny, &["allow public:443"], "a.test", true),
            (Deny, &["allow private"], "a.test", true),
            (Deny, &["allow all:443"], "a.test", true),
            (Deny, &["allow 192.0.2.1"], "a.test", false),
            (Deny, &["allow host"], "a.test", false),
            (Public, &["deny a.test"], "a.test", false),
            (Public, &["deny a.test:25"], "a.test", true),
            (Public, &["deny private"], "a.test", true),
            (Public, &["deny all"], "a.test", false),
            (Public, &["deny all:25"], "a.test", true),
            (Public, &["allow a.test", "deny all"], "a.test", true),
        ] {
            assert_eq!(policy(mode, rules).allows_name(name), expected, "{mode:?} {rules:?} {name}");
        }
    }

    #[test]
    fn an_answer_gives_only_what_can_be_reached() {
        use Mode::{Deny, Private, Public};
        for (mode, rules, address, expected) in [
            (Public, &[][..], "192.0.2.1", true),
            (Public, &[], "10.9.9.9", false),
            (Public, &[], "127.0.0.1", false),
            (Public, &[], "198.51.100.2", false),
            (Private, &[], "10.9.9.9", true),
            (Public, &["allow 10.0.0.0/8:443"], "10.9.9.9", true),
            (Public, &["allow 127.0.0.0/8"], "127.0.0.1", false),
            (Deny, &["allow a.test:443"], "192.0.2.1", true),
            (Deny, &["allow a.test"], "10.9.9.9", false),
            (Public, &["deny 192.0.2.1:25"], "192.0.2.1", true),
            (Public, &["deny 192.0.2.1"], "192.0.2.1", false),
        ] {
            let answer = policy(mode, rules).allows_answer(address.parse().unwrap(), "a.test");
            assert_eq!(answer, expected, "{mode:?} {rules:?} {address}");
        }
    }
}
