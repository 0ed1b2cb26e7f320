//! Published ports: `[IP:]PORT:GUEST[/udp]`, where PORT and GUEST are ports or ranges of one length.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::str::FromStr;

use anyhow::{Context, bail};
use msb::record::PublishedPort;
use serde::{Deserialize, Serialize};

/// Ports of the host that lead to ports of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Publish {
    pub address: IpAddr,
    /// The host's first port; 0 for a free one.
    pub host: u16,
    /// The guest's first port.
    pub guest: u16,
    /// How many there are.
    pub count: u16,
    pub is_udp: bool,
}

impl FromStr for Publish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (rest, is_udp) = match text.rsplit_once('/') {
            Some((rest, "udp")) => (rest, true),
            Some((rest, "tcp")) => (rest, false),
            Some((_, other)) => return Err(format!("{other:?}: tcp or udp is expected")),
            None => (text, false),
        };
        let Some((rest, guest)) = rest.rsplit_once(':') else {
            return Err(format!("{text:?}: [IP:]PORT:GUEST is expected"));
        };
        let (address, host) = match rest.rsplit_once(':') {
            Some((address, host)) => (parse_address(address)?, host),
            None => (Ipv4Addr::LOCALHOST.into(), rest),
        };
        let (first, last) = parse_ports(host)?;
        let (guest, guest_last) = parse_ports(guest)?;
        if guest == 0 {
            return Err("\"0\": a port of the guest is a number from 1 to 65535".into());
        }
        if last - first != guest_last - guest {
            return Err(format!("{text:?}: the two ranges have different lengths"));
        }
        if first == 0 && last != 0 {
            return Err(format!("{host:?}: a range begins at port 1"));
        }
        Ok(Self { address, host: first, guest, count: last - first + 1, is_udp })
    }
}

fn parse_address(text: &str) -> Result<IpAddr, String> {
    let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let address = match inner {
        Some(inner) => inner.parse().map(IpAddr::V6).ok(),
        None => text.parse().map(IpAddr::V4).ok(),
    };
    address.ok_or_else(|| format!("{text:?}: an IPv4 address, or an IPv6 address in brackets, is expected"))
}

/// A port, or the first and the last one of a range.
fn parse_ports(text: &str) -> Result<(u16, u16), String> {
    let port = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let port: Option<u16> = text.parse().ok().filter(|_| is_number);
        port.ok_or_else(|| format!("{text:?}: a port is a number from 0 to 65535"))
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    if first > last {
        return Err(format!("{text:?}: the first port of a range is the lower one"));
    }
    // A range of all ports would not fit its length.
    if last - first == u16::MAX { Err(format!("{text:?}: port 0 is not in a range")) } else { Ok((first, last)) }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range = |first: u16| match self.count {
            1 => first.to_string(),
            count => format!("{first}-{}", first + (count - 1)),
        };
        let address = SocketAddr::new(self.address, 0).to_string();
        let address = address.trim_end_matches(":0");
        write!(f, "{address}:{}:{}{}", range(self.host), range(self.guest), if self.is_udp { "/udp" } else { "" })
    }
}

impl Publish {
    /// Checks that the host's ports are free, and chooses one for port 0. passt binds them a moment later.
    ///
    /// # Errors
    /// The port that cannot be bound.
    pub(crate) fn choose_port(mut self) -> anyhow::Result<Self> {
        for offset in 0..self.count {
            let address = SocketAddr::new(self.address, self.host + offset);
            let bound = if self.is_udp {
                UdpSocket::bind(address).and_then(|socket| socket.local_addr())
            } else {
                TcpListener::bind(address).and_then(|listener| listener.local_addr())
            };
            let bound = bound.with_context(|| format!("port {address} of -p {self}"))?;
            if self.host == 0 {
                self.host = bound.port();
            }
        }
        Ok(self)
    }

    /// The ports of the guest.
    pub(crate) fn guest_ports(&self) -> (u16, u16) {
        (self.guest, self.guest + (self.count - 1))
    }

    /// The argument of passt's `-t` and `-u`.
    pub(crate) fn for_passt(&self) -> String {
        let (host, guest) = (self.host, self.guest);
        match self.count - 1 {
            0 => format!("{}/{host}:{guest}", self.address),
            more => format!("{}/{host}-{}:{guest}-{}", self.address, host + more, guest + more),
        }
    }

    /// One entry for each port.
    pub(crate) fn in_record(&self) -> impl Iterator<Item = PublishedPort> + '_ {
        let protocol = if self.is_udp { "udp" } else { "tcp" };
        (0..self.count).map(move |offset| {
            let host = SocketAddr::new(self.address, self.host + offset);
            PublishedPort::new(host, self.guest + offset, protocol.into())
        })
    }
}

/// Checks that no two entries use one port of the host.
///
/// # Errors
/// The second entry.
pub(crate) fn check_distinct(ports: &[Publish]) -> anyhow::Result<()> {
    let mut used = std::collections::HashSet::new();
    for publish in ports.iter().filter(|publish| publish.host != 0) {
        for port in publish.in_record() {
            if !used.insert((port.host, publish.is_udp)) {
                bail!("-p {publish}: port {} is published twice", port.host);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_published_port_is_printed_in_full() {
        for (text, printed, passt) in [
            ("8080:80", "127.0.0.1:8080:80", "127.0.0.1/8080:80"),
            ("0:80/tcp", "127.0.0.1:0:80", "127.0.0.1/0:80"),
            ("0.0.0.0:53:5353/udp", "0.0.0.0:53:5353/udp", "0.0.0.0/53:5353"),
            ("[::1]:8080:80", "[::1]:8080:80", "::1/8080:80"),
            ("8000-8010:80-90", "127.0.0.1:8000-8010:80-90", "127.0.0.1/8000-8010:80-90"),
            ("1-65535:1-65535", "127.0.0.1:1-65535:1-65535", "127.0.0.1/1-65535:1-65535"),
        ] {
            let publish: Publish = text.parse().unwrap_or_else(|why| panic!("{why}"));
            assert_eq!((publish.to_string().as_str(), publish.for_passt().as_str()), (printed, passt));
            assert_eq!(printed.parse(), Ok(publish));
        }
    }

    #[test]
    fn a_wrong_word_is_named() {
        for (text, word) in [
            ("80", "\"80\": [IP:]PORT:GUEST"),
            ("", "\"\": [IP:]PORT:GUEST"),
            ("8080:80/sctp", "\"sctp\": tcp or udp"),
            ("x:80", "\"x\": a port"),
            ("8080:65536", "\"65536\": a port"),
            ("8080:+1", "\"+1\": a port"),
            ("8080:0", "\"0\": a port of the guest"),
            ("2-1:2-1", "\"2-1\": the first port"),
            ("1-2:1-3", "\"1-2:1-3\": the two ranges"),
            ("0-1:1-2", "\"0-1\": a range begins"),
            ("0-65535:1-2", "\"0-65535\": port 0"),
            ("::1:8080:80", "\"::1\": an IPv4 address, or an IPv6 address in brackets"),
            ("[127.0.0.1]:8080:80", "\"[127.0.0.1]\": an IPv4 address"),
            ("host:8080:80", "\"host\": an IPv4 address"),
        ] {
            let why = text.parse::<Publish>().unwrap_err();
            assert!(why.starts_with(word), "{text}: {why}");
        }
    }

    #[test]
    fn a_port_is_chosen_and_is_free() {
        let chosen = "0:80".parse::<Publish>().unwrap().choose_port().unwrap();
        assert_ne!(chosen.host, 0);
        let taken = TcpListener::bind(SocketAddr::new(chosen.address, chosen.host)).unwrap();
        let error = format!("{:#}", chosen.clone().choose_port().unwrap_err());
        assert!(error.starts_with(&format!("port 127.0.0.1:{0} of -p 127.0.0.1:{0}:80: ", chosen.host)), "{error}");
        drop(taken);
        assert!(check_distinct(&[chosen.clone(), "0:80".parse().unwrap(), "0:80".parse().unwrap()]).is_ok());
        assert!(check_distinct(&[chosen.clone(), Publish { guest: 81, ..chosen }]).is_err());
    }
}
