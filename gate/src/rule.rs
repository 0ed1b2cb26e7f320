//! One rule of a policy: `WHAT[:PORT[-PORT]][/tcp|/udp]`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::address::Prefix;

/// Why a rule is invalid.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{word:?}: {why}")]
pub struct RuleError {
    /// The invalid part of the rule.
    pub word: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl RuleError {
    fn new(word: &str, why: &'static str) -> Self {
        Self { word: word.to_owned(), why }
    }
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// An echo request of ICMP or ICMPv6, which has no port.
    Icmp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        })
    }
}

/// What a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// An address or a prefix.
    Prefix(Prefix),
    /// A name, in lower case.
    Name(String),
    /// A name and all names below it.
    Suffix(String),
    /// The addresses of the internet.
    Public,
    /// Private networks and those that the host is connected to.
    Private,
    /// The host's loopback, behind the gateway's address.
    Host,
    /// Link-local addresses and the metadata services of clouds.
    Metadata,
    /// Denied: every address. Allowed: those of `public` and `private`.
    All,
}

impl Target {
    /// Whether this names `name`, which is in lower case.
    pub(crate) fn names(&self, name: &str) -> bool {
        match self {
            Self::Name(own) => own == name,
            Self::Suffix(own) => {
                name.strip_suffix(own.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
            _ => false,
        }
    }

    /// Whether it is about names.
    pub(crate) fn is_name(&self) -> bool {
        matches!(self, Self::Name(_) | Self::Suffix(_))
    }
}

/// A rule, without whether it allows or denies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rule {
    /// What it is about.
    pub target: Target,
    /// The first and the last port; `None` for all.
    pub ports: Option<(u16, u16)>,
    /// The protocol; `None` for all.
    pub protocol: Option<Protocol>,
}

impl Rule {
    /// Whether it is about this protocol and port.
    pub(crate) fn covers(&self, protocol: Protocol, port: u16) -> bool {
        self.protocol.is_none_or(|own| own == protocol)
            && self.ports.is_none_or(|(first, last)| protocol != Protocol::Icmp && (first..=last).contains(&port))
    }

    /// Whether it is about all ports and protocols.
    pub(crate) fn covers_all(&self) -> bool {
        self.protocol.is_none() && self.ports.is_none()
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let (rest, protocol) = match text.rsplit_once('/') {
            Some((rest, "tcp")) => (rest, Some(Protocol::Tcp)),
            Some((rest, "udp")) => (rest, Some(Protocol::Udp)),
            _ => (text, None),
        };
        if rest.starts_with('[') && !rest.contains(']') {
            return Err(RuleError::new(rest, "the closing bracket is missing"));
        }
        // A bare IPv6 address has colons of its own, and so no port.
        let is_bare_ipv6 = !rest.starts_with('[') && rest.matches(':').count() > 1;
        let (what, ports) = match rest.rsplit_once(':') {
            Some((what, ports)) if !is_bare_ipv6 && !ports.contains(']') => (what, Some(parse_ports(ports)?)),
            _ => (rest, None),
        };
        Ok(Self { target: parse_target(what)?, ports, protocol })
    }
}

/// Parses a port, or two with a dash between them.
pub(crate) fn parse_ports(text: &str) -> Result<(u16, u16), RuleError> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (parse_port(first)?, parse_port(last)?);
    if first > last {
        return Err(RuleError::new(text, "the first port of a range is the lower one"));
    }
    Ok((first, last))
}

fn parse_port(text: &str) -> Result<u16, RuleError> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(port) if is_number && port != 0 => Ok(port),
        _ => Err(RuleError::new(text, "a port is a number from 1 to 65535")),
    }
}

fn parse_target(text: &str) -> Result<Target, RuleError> {
    match text {
        "public" => return Ok(Target::Public),
        "private" => return Ok(Target::Private),
        "host" => return Ok(Target::Host),
        "meta" => return Ok(Target::Metadata),
        "all" => return Ok(Target::All),
        _ => {}
    }
    let prefix = |address: &str| address.parse().map(Target::Prefix).map_err(|why| RuleError::new(text, why));
    if let Some(bracketed) = text.strip_prefix('[') {
        // [ADDRESS], [ADDRESS]/BITS and [ADDRESS/BITS]
        let (address, behind) =
            bracketed.split_once(']').ok_or_else(|| RuleError::new(text, "an IPv6 address is expected in brackets"))?;
        let is_ipv6 = address.split('/').next().is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok());
        if !is_ipv6 {
            return Err(RuleError::new(text, "an IPv6 address is expected in brackets"));
        }
        return prefix(&format!("{address}{behind}"));
    }
    let looks_like_address = text.contains('/') || text.contains(':') || text.parse::<IpAddr>().is_ok();
    // All top-level domains have a letter; 10.0.0 and 256.1.1.1 are mistyped addresses.
    let last = text.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    if looks_like_address || (!last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit())) {
        return prefix(text);
    }
    let (name, is_suffix) = match text.strip_prefix("*.") {
        Some(name) => (name, true),
        None => (text, false),
    };
    let name = check_name(name).map_err(|why| RuleError::new(text, why))?;
    Ok(if is_suffix { Target::Suffix(name) } else { Target::Name(name) })
}

/// The name in lower case, without the dot of the root.
fn check_name(name: &str) -> Result<String, &'static str> {
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() {
        return Err("a name, an address, public, private, host, meta or all is expected");
    }
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    if name.contains('*') {
        return Err("\"*\" stands for the first labels of a name only, as in *.example.org");
    }
    if name.len() > 253 || !name.split('.').all(is_label) {
        return Err("not a name: letters, digits, \"-\" and \"_\" between dots are expected");
    }
    Ok(name.to_ascii_lowercase())
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Prefix(prefix) => {
                let text = prefix.to_string();
                if text.contains(':') { write!(f, "[{text}]")? } else { write!(f, "{text}")? }
            }
            Target::Name(name) => write!(f, "{name}")?,
            Target::Suffix(name) => write!(f, "*.{name}")?,
            Target::Public => write!(f, "public")?,
            Target::Private => write!(f, "private")?,
            Target::Host => write!(f, "host")?,
            Target::Metadata => write!(f, "meta")?,
            Target::All => write!(f, "all")?,
        }
        match self.ports {
            Some((first, last)) if first == last => write!(f, ":{first}")?,
            Some((first, last)) => write!(f, ":{first}-{last}")?,
            None => {}
        }
        self.protocol.map_or(Ok(()), |protocol| write!(f, "/{protocol}"))
    }
}

impl TryFrom<String> for Rule {
    type Error = RuleError;

    fn try_from(text: String) -> Result<Self, RuleError> {
        text.parse()
    }
}

impl From<Rule> for String {
    fn from(rule: Rule) -> Self {
        rule.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_printed_as_it_is_written() {
        for (text, printed) in [
            ("all", "all"),
            ("public:443", "public:443"),
            ("private/udp", "private/udp"),
            ("host:5432", "host:5432"),
            ("meta:80/tcp", "meta:80/tcp"),
            ("192.0.2.1", "192.0.2.1"),
            ("192.0.2.1:1-65535", "192.0.2.1:1-65535"),
            ("10.0.0.0/8:443/tcp", "10.0.0.0/8:443/tcp"),
            ("10.0.0.0/8/udp", "10.0.0.0/8/udp"),
            ("192.0.2.1/32", "192.0.2.1"),
            ("2001:db8::1", "[2001:db8::1]"),
            ("fd00::/8", "[fd00::/8]"),
            ("fd00::/8/tcp", "[fd00::/8]/tcp"),
            ("[fd00::]/8:443", "[fd00::/8]:443"),
            ("[fd00::/8]:443", "[fd00::/8]:443"),
            ("[2001:db8::1]", "[2001:db8::1]"),
            ("[2001:db8::1]:80-81/udp", "[2001:db8::1]:80-81/udp"),
            ("Example.ORG.", "example.org"),
            ("*.example.org:443/tcp", "*.example.org:443/tcp"),
            ("localhost:80", "localhost:80"),
            ("x_y.example", "x_y.example"),
            ("1.example", "1.example"),
            ("example.2x", "example.2x"),
        ] {
            let rule: Rule = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(rule.to_string(), printed, "{text}");
            let json = serde_json::to_string(&rule).unwrap();
            assert_eq!((json.trim_matches('"'), serde_json::from_str(&json).unwrap()), (printed, rule.clone()));
            assert_eq!(printed.parse(), Ok(rule), "{printed}");
        }
    }

    #[test]
    fn a_wrong_word_is_named() {
        const PORT: &str = "a port is a number from 1 to 65535";
        const NAME: &str = "not a name: letters, digits, \"-\" and \"_\" between dots are expected";
        const BITS: &str = "a prefix length is a number from 0 to 32, or to 128 for IPv6";
        const STAR: &str = "\"*\" stands for the first labels of a name only, as in *.example.org";
        const EMPTY: &str = "a name, an address, public, private, host, meta or all is expected";
        for (text, word, why) in [
            ("", "", EMPTY),
            (":80", "", EMPTY),
            ("/tcp", "", EMPTY),
            ("*.", "*.", EMPTY),
            ("example.org:", "", PORT),
            ("example.org:0", "0", PORT),
            ("example.org:65536", "65536", PORT),
            ("example.org:+1", "+1", PORT),
            ("example.org:http", "http", PORT),
            ("example.org:80-", "", PORT),
            ("example.org:81-80", "81-80", "the first port of a range is the lower one"),
            ("*", "*", STAR),
            ("a.*.org", "a.*.org", STAR),
            ("*example.org", "*example.org", STAR),
            ("a..b", "a..b", NAME),
            ("a b", "a b", NAME),
            ("exämple.org", "exämple.org", NAME),
            ("10.0.0.0/33", "10.0.0.0/33", BITS),
            ("[fd00::/129]", "[fd00::/129]", BITS),
            ("10.0.0", "10.0.0", "an IP address is expected"),
            ("256.1.1.1:80", "256.1.1.1", "an IP address is expected"),
            ("example.org/sctp", "example.org/sctp", "an IP address is expected"),
            ("fd00:::1", "fd00:::1", "an IP address is expected"),
            ("[fd00::1", "[fd00::1", "the closing bracket is missing"),
            ("[1.2.3.4]", "[1.2.3.4]", "an IPv6 address is expected in brackets"),
            ("[fd00::1]x", "[fd00::1]x", "an IP address is expected"),
        ] {
            assert_eq!(text.parse::<Rule>(), Err(RuleError::new(word, why)), "{text:?}");
        }
        let label = "x".repeat(63);
        let longest = [label.as_str(), &label, &label, &label[..61]].join(".");
        assert!(longest.parse::<Rule>().is_ok() && format!("{longest}x").parse::<Rule>().is_err());
        assert!(format!("{label}x").parse::<Rule>().is_err());
    }

    #[test]
    fn a_keyword_is_no_name_and_a_rule_without_ports_and_protocol_covers_all_of_them() {
        for (text, target, covers_all) in [
            ("public", Target::Public, true),
            ("private:80", Target::Private, false),
            ("host/tcp", Target::Host, false),
            ("meta", Target::Metadata, true),
            ("all:1-65535/udp", Target::All, false),
        ] {
            let rule: Rule = text.parse().unwrap();
            assert_eq!((&rule.target, rule.covers_all()), (&target, covers_all), "{text}");
            assert!(!rule.target.names(text) && !rule.target.is_name(), "{text}");
        }
    }

    #[test]
    fn a_suffix_names_the_name_itself_and_those_below_it() {
        let target = parse_target("*.example.org").unwrap();
        for (name, expected) in [
            ("example.org", true),
            ("a.example.org", true),
            ("a.b.example.org", true),
            ("anexample.org", false),
            ("org", false),
        ] {
            assert_eq!(target.names(name), expected, "{name}");
        }
        let name = parse_target("example.org").unwrap();
        assert!(name.names("example.org") && !name.names("a.example.org"));
    }

    #[test]
    fn a_rule_covers_its_ports_and_protocol() {
        for (rule, protocol, port, expected) in [
            ("all", Protocol::Icmp, 0, true),
            ("all", Protocol::Tcp, 1, true),
            ("all/tcp", Protocol::Udp, 1, false),
            ("all/tcp", Protocol::Icmp, 0, false),
            ("all:80", Protocol::Icmp, 80, false),
            ("all:80-82", Protocol::Udp, 79, false),
            ("all:80-82", Protocol::Udp, 80, true),
            ("all:80-82", Protocol::Tcp, 82, true),
            ("all:80-82", Protocol::Tcp, 83, false),
        ] {
            assert_eq!(rule.parse::<Rule>().unwrap().covers(protocol, port), expected, "{rule} {protocol} {port}");
        }
    }
}
