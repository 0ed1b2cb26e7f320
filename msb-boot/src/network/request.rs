//! Parses the values of a request for a network, which are the same on the command line and in the record.

use std::net::IpAddr;

use msb::record::{Network, NetworkRule};
use msb::tool::exit;
use msb_gate::PolicyRule;

use super::address::HOST_GATEWAY;
use super::publish::{self, Publish};

/// The request, parsed.
pub(super) struct Parsed {
    pub rules: Vec<PolicyRule>,
    pub ports: Vec<Publish>,
    /// Names with their addresses; `None` for the gateway's.
    pub hosts: Vec<(String, Option<IpAddr>)>,
    pub mac: Option<[u8; 6]>,
}

/// Parses the request.
///
/// # Errors
/// A usage error: the first invalid value, with its member.
pub(super) fn parse(request: &Network) -> anyhow::Result<Parsed> {
    let wrong = |member: &str, why: String| exit::coded(exit::USAGE, format!("boot.network.{member}: {why}"));
    let rules = request.rules.iter().map(|rule| match rule {
        NetworkRule::Allow(text) => parse_rule(text).map(PolicyRule::Allow),
        NetworkRule::Deny(text) => parse_rule(text).map(PolicyRule::Deny),
    });
    for name in &request.dns_search {
        check_name(name).map_err(|why| wrong("dns_search", why))?;
    }
    let ports: Vec<Publish> =
        request.ports.iter().map(|text| text.parse()).collect::<Result<_, _>>().map_err(|why| wrong("ports", why))?;
    publish::check_ports(&ports).map_err(|why| wrong("ports", why))?;
    Ok(Parsed {
        rules: rules.collect::<Result<_, _>>().map_err(|why| wrong("rules", why))?,
        ports,
        hosts: request
            .hosts
            .iter()
            .map(|text| parse_host(text))
            .collect::<Result<_, _>>()
            .map_err(|why| wrong("hosts", why))?,
        mac: request.mac.as_deref().map(check_mac).transpose().map_err(|why| wrong("mac", why))?,
    })
}

/// The first member that needs a network. Some do with a card of another network than the gate's.
pub(super) fn first_need(request: &Network) -> Option<&'static str> {
    let is_alone = request.cards.is_empty();
    let needs = [
        ("-p", !request.ports.is_empty()),
        ("--allow or --deny", !request.rules.is_empty()),
        ("--dns", is_alone && !request.dns.is_empty()),
        ("--dns-search", is_alone && !request.dns_search.is_empty()),
        ("--add-host", is_alone && !request.hosts.is_empty()),
        ("--mac", request.mac.is_some()),
    ];
    needs.into_iter().find(|(_, is_there)| *is_there).map(|(member, _)| member)
}

/// Parses a rule.
///
/// # Errors
/// The invalid value, and why it is invalid.
pub(crate) fn parse_rule(text: &str) -> Result<msb_gate::Rule, String> {
    text.parse().map_err(|error: msb_gate::RuleError| error.to_string())
}

/// Parses `NAME:ADDRESS` or `NAME:host-gateway`.
///
/// # Errors
/// The invalid value.
pub(crate) fn parse_host(text: &str) -> Result<(String, Option<IpAddr>), String> {
    let (name, address) = text.split_once(':').ok_or_else(|| format!("{text:?}: NAME:ADDRESS is expected"))?;
    check_name(name)?;
    if address == HOST_GATEWAY {
        return Ok((name.into(), None));
    }
    let inner = address.strip_prefix('[').and_then(|address| address.strip_suffix(']')).unwrap_or(address);
    let parsed = inner.parse().map_err(|_| format!("{address:?}: an address or {HOST_GATEWAY} is expected"))?;
    Ok((name.into(), Some(parsed)))
}

/// Checks a host name or domain.
///
/// # Errors
/// A message with what is expected.
pub(crate) fn check_name(name: &str) -> Result<String, String> {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    match name.len() <= 253 && name.strip_suffix('.').unwrap_or(name).split('.').all(is_label) {
        true => Ok(name.into()),
        false => Err(format!("{name:?}: a name of letters, digits, \"-\" and \"_\" between dots is expected")),
    }
}

/// Parses an Ethernet address of one interface.
///
/// # Errors
/// A message with what is expected.
pub(crate) fn check_mac(text: &str) -> Result<[u8; 6], String> {
    let octet = |text: &str| {
        let is_octet = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        u8::from_str_radix(text, 16).ok().filter(|_| is_octet)
    };
    let octets: Option<Vec<u8>> = text.split(':').map(octet).collect();
    match octets.and_then(|octets| <[u8; 6]>::try_from(octets).ok()) {
        Some(mac) if mac[0] & 1 == 0 && mac != [0; 6] => Ok(mac),
        Some(_) => Err(format!("{text:?}: the address of one card is expected, not that of a group")),
        None => {
            Err(format!("{text:?}: an Ethernet address is six pairs of hexadecimal digits with colons between them"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_parsed_or_named() {
        assert_eq!(parse_host("db:10.0.0.1").unwrap(), ("db".into(), Some("10.0.0.1".parse().unwrap())));
        assert_eq!(parse_host("db:[fd00::1]").unwrap().1, Some("fd00::1".parse().unwrap()));
        assert_eq!(parse_host("db:fd00::1").unwrap().1, Some("fd00::1".parse().unwrap()));
        assert_eq!(parse_host("h:host-gateway").unwrap(), ("h".into(), None));
        assert_eq!(check_mac("52:55:00:00:00:0A").unwrap(), [0x52, 0x55, 0, 0, 0, 10]);
        for (text, word) in [("db", "\"db\""), ("a b:10.0.0.1", "\"a b\""), ("db:x", "\"x\""), (":10.0.0.1", "\"\"")] {
            assert!(parse_host(text).unwrap_err().starts_with(word), "{text}");
        }
        for text in
            ["", "52:55:00:00:00", "52:55:00:00:00:0g", "52:55:00:00:00:000", "+5:55:00:00:00:02", "01:00:5e:00:00:01"]
        {
            assert!(check_mac(text).unwrap_err().starts_with(&format!("{text:?}")), "{text}");
        }
    }
}
