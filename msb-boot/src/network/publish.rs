//! Published ports: `[IP:]PORT:GUEST[/udp]`, where PORT and GUEST are ports or ranges of one length.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::str::FromStr;

use anyhow::{Context, anyhow};
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
        // passt cannot bind an IPv4-mapped IPv6 address.
        Some(inner) => inner.parse().map(|address: Ipv6Addr| address.to_canonical()).ok(),
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
    /// Binds a port of the host. The port is taken as long as the descriptor is open.
    fn bind(&self, port: u16) -> anyhow::Result<(OwnedFd, u16)> {
        let address = SocketAddr::new(self.address, port);
        let bind = || -> io::Result<(OwnedFd, SocketAddr)> {
            if self.is_udp {
                let socket = UdpSocket::bind(address)?;
                let bound = socket.local_addr()?;
                Ok((socket.into(), bound))
            } else {
                let listener = TcpListener::bind(address)?;
                let bound = listener.local_addr()?;
                Ok((listener.into(), bound))
            }
        };
        let bound = bind().map_err(|error| match error.kind() {
            // A capability in the user namespace of a user counts for nothing on the host's network.
            io::ErrorKind::PermissionDenied => anyhow!(
                "{error} (choose a port that users may listen on, from net.ipv4.ip_unprivileged_port_start on, or lower that)"
            ),
            _ => error.into(),
        });
        let (fd, bound) = bound.with_context(|| format!("port {address} of -p {self}"))?;
        Ok((fd, bound.port()))
    }

    /// Whether it has this port of the host, on any address.
    fn has(&self, port: u16, is_udp: bool) -> bool {
        self.host != 0 && self.is_udp == is_udp && (self.host..=self.host + (self.count - 1)).contains(&port)
    }

    /// The ports of the guest.
    pub(crate) fn guest_ports(&self) -> (u16, u16) {
        (self.guest, self.guest + (self.count - 1))
    }

    /// The lowest port that both have, on any address.
    fn common_port(&self, other: &Self) -> Option<u16> {
        let port = self.host.max(other.host);
        (self.has(port, self.is_udp) && other.has(port, self.is_udp)).then_some(port)
    }

    /// Whether the two differ only in the address, and one is `0.0.0.0` and the other `[::]`. passt has one specifier for that.
    fn is_same_for_other_family(&self, other: &Self) -> bool {
        self.address != other.address
            && self.address.is_unspecified()
            && other.address.is_unspecified()
            && *self == Self { address: self.address, ..other.clone() }
    }

    /// The argument of passt's `-t` or `-u`. With `on_all` it has no address, which means all addresses of both families.
    fn specifier(&self, on_all: bool) -> String {
        let (host, guest) = (self.host, self.guest);
        let address = if on_all { String::new() } else { format!("{}/", self.address) };
        match self.count - 1 {
            0 => format!("{address}{host}:{guest}"),
            more => format!("{address}{host}-{}:{guest}-{}", host + more, guest + more),
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

/// Whether one port cannot be bound on both addresses. passt binds an IPv6 address for IPv6 alone.
fn overlap(one: IpAddr, other: IpAddr) -> bool {
    one.is_ipv4() == other.is_ipv4() && (one == other || one.is_unspecified() || other.is_unspecified())
}

/// Checks that no port of the host is used twice. passt keeps one list of ports for all addresses, so a port is on one address, or on all
/// addresses of both families.
///
/// # Errors
/// The port that two entries use, and both entries if passt cannot have both.
pub(super) fn check_ports(ports: &[Publish]) -> Result<(), String> {
    for (index, publish) in ports.iter().enumerate() {
        for other in &ports[..index] {
            let Some(port) = publish.common_port(other) else { continue };
            if overlap(publish.address, other.address) {
                let port = SocketAddr::new(publish.address, port);
                return Err(format!("-p {publish}: port {port} is published twice (leave one of them out)"));
            }
            if !publish.is_same_for_other_family(other) {
                return Err(format!(
                    "-p {other} and -p {publish}: passt can listen on a port on one address or on all (use 0.0.0.0 and [::] with the same \
                     ports, or another port for one of them)"
                ));
            }
        }
    }
    Ok(())
}

/// Checks that the guest has an address of each port's family: passt forwards within a family.
///
/// # Errors
/// The first entry of another family.
pub(super) fn check_families(ports: &[Publish], guest: &[IpAddr]) -> Result<(), String> {
    let is_missing = |publish: &&Publish| !guest.iter().any(|address| address.is_ipv4() == publish.address.is_ipv4());
    let Some(publish) = ports.iter().find(is_missing) else { return Ok(()) };
    let (own, other) = if publish.address.is_ipv4() { ("IPv4", "IPv6") } else { ("IPv6", "IPv4") };
    Err(format!(
        "-p {publish}: the guest has no {own} address, since this machine has no default route for {own} (publish an {other} address)"
    ))
}

/// The arguments of passt's `-t` or `-u`, for ports that have passed [`check_ports`].
pub(super) fn specifiers(ports: &[Publish], is_udp: bool) -> Vec<String> {
    let of_protocol: Vec<&Publish> = ports.iter().filter(|publish| publish.is_udp == is_udp).collect();
    let mut specifiers = Vec::new();
    for (index, publish) in of_protocol.iter().enumerate() {
        let is_pair = |other: &&Publish| publish.is_same_for_other_family(other);
        if !of_protocol[..index].iter().any(is_pair) {
            specifiers.push(publish.specifier(of_protocol[index..].iter().any(is_pair)));
        }
    }
    specifiers
}

/// Checks, unless `are_free`, that the host's ports are free, and chooses one for each port 0. passt binds them a moment later.
///
/// # Errors
/// The port that cannot be bound.
pub(crate) fn choose_ports(mut ports: Vec<Publish>, are_free: bool) -> anyhow::Result<Vec<Publish>> {
    if !are_free {
        for publish in ports.iter().filter(|publish| publish.host != 0) {
            publish.in_record().try_for_each(|port| publish.bind(port.host.port()).map(drop))?;
        }
    }
    // The kernel gives out a port again once it is closed.
    let mut held = Vec::new();
    for index in 0..ports.len() {
        while ports[index].host == 0 {
            let (fd, port) = ports[index].bind(0)?;
            held.push(fd);
            if !ports.iter().any(|other| other.has(port, ports[index].is_udp)) {
                ports[index].host = port;
            }
        }
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_published_port_is_printed_in_full() {
        for (text, printed, passt) in [
            ("8080:80", "127.0.0.1:8080:80", "127.0.0.1/8080:80"),
            ("0:80/tcp", "127.0.0.1:0:80", "127.0.0.1/0:80"),
            ("0.0.0.0:53:5353/udp", "0.0.0.0:53:5353/udp", "0.0.0.0/53:5353"),
            ("[::1]:8080:80", "[::1]:8080:80", "::1/8080:80"),
            ("[::ffff:127.0.0.1]:8080:80", "127.0.0.1:8080:80", "127.0.0.1/8080:80"),
            ("8000-8010:80-90", "127.0.0.1:8000-8010:80-90", "127.0.0.1/8000-8010:80-90"),
            ("1-65535:1-65535", "127.0.0.1:1-65535:1-65535", "127.0.0.1/1-65535:1-65535"),
        ] {
            let publish: Publish = text.parse().unwrap_or_else(|why| panic!("{why}"));
            assert_eq!((publish.to_string().as_str(), publish.specifier(false).as_str()), (printed, passt));
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

    fn parse(texts: &[&str]) -> Vec<Publish> {
        texts.iter().map(|text| text.parse().unwrap_or_else(|why| panic!("{why}"))).collect()
    }

    fn choose(texts: &[&str]) -> Result<Vec<Publish>, String> {
        choose_ports(parse(texts), false).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn ports_are_chosen_and_are_free_and_different() {
        let chosen = choose(&["0:80"; 50]).unwrap();
        let different: HashSet<u16> = chosen.iter().map(|publish| publish.host).collect();
        assert!(different.len() == 50 && !different.contains(&0), "{different:?}");
        let port = chosen[0].host;
        let taken = TcpListener::bind(SocketAddr::new(chosen[0].address, port)).unwrap();
        let error = choose(&[&format!("{port}:80")]).unwrap_err();
        assert!(error.starts_with(&format!("port 127.0.0.1:{port} of -p 127.0.0.1:{port}:80: ")), "{error}");
        assert!(choose_ports(vec![format!("{port}:80").parse().unwrap()], true).is_ok(), "it is not tried");
        drop(taken);
        assert!(choose(&[&format!("{port}:80"), &format!("{port}:80/udp")]).is_ok());
    }

    #[test]
    fn a_port_of_the_host_is_published_once() {
        for (texts, expected) in [
            (&["8080:80", "8081:80", "8080:80/udp", "0:80", "[::1]:0:80"][..], ""),
            (&["8080:80", "0:80", "8080:81"], "-p 127.0.0.1:8080:81: port 127.0.0.1:8080 is published twice"),
            (&["127.0.0.2:8080:80", "0.0.0.0:8080:80"], "-p 0.0.0.0:8080:80: port 0.0.0.0:8080 is published twice"),
            (
                &["[::ffff:127.0.0.1]:8080:80", "8080:80"],
                "-p 127.0.0.1:8080:80: port 127.0.0.1:8080 is published twice",
            ),
            (
                &["8000-8010:80-90", "8010-8011:90-91"],
                "-p 127.0.0.1:8010-8011:90-91: port 127.0.0.1:8010 is published twice",
            ),
            (&["8000-8010:80-90", "8011-8012:90-91", "7999:80"], ""),
            (&["8080:80", "[::1]:8080:80"], "-p 127.0.0.1:8080:80 and -p [::1]:8080:80: passt can listen"),
            (&["8080:80", "127.0.0.2:8080:80"], "-p 127.0.0.1:8080:80 and -p 127.0.0.2:8080:80: passt can listen"),
            (&["0.0.0.0:8080:80", "[::1]:8080:80"], "-p 0.0.0.0:8080:80 and -p [::1]:8080:80: passt can listen"),
            (&["[::]:8080:80", "8080:80"], "-p [::]:8080:80 and -p 127.0.0.1:8080:80: passt can listen"),
            (&["0.0.0.0:8080:80", "[::]:8080:81"], "-p 0.0.0.0:8080:80 and -p [::]:8080:81: passt can listen"),
            (&["0.0.0.0:8-9:8-9", "[::]:9:9"], "-p 0.0.0.0:8-9:8-9 and -p [::]:9:9: passt can listen"),
            (&["0.0.0.0:8080:80", "[::]:8080:80", "[::]:8080:80/udp"], ""),
            (
                &["0.0.0.0:8080:80", "[::]:8080:80", "[::]:8080:80"],
                "-p [::]:8080:80: port [::]:8080 is published twice",
            ),
        ] {
            let why = check_ports(&parse(texts)).err().unwrap_or_default();
            assert!(why.starts_with(expected) && why.is_empty() == expected.is_empty(), "{texts:?}: {why}");
        }
        assert_eq!(
            check_ports(&parse(&["8080:80", "[::1]:8080:80"])).unwrap_err(),
            "-p 127.0.0.1:8080:80 and -p [::1]:8080:80: passt can listen on a port on one address or on all (use 0.0.0.0 and [::] with \
             the same ports, or another port for one of them)"
        );
    }

    #[test]
    fn a_port_has_the_family_of_an_address_of_the_guest() {
        let (four, six): (IpAddr, IpAddr) = ("10.0.2.15".parse().unwrap(), "fd00:6d73::15".parse().unwrap());
        for (texts, guest, expected) in [
            (&[][..], &[][..], ""),
            (&["8080:80", "[::1]:8081:80"], &[four, six], ""),
            (&["8080:80"], &[four], ""),
            (&["8080:80", "[::1]:8081:80"], &[four], "-p [::1]:8081:80: the guest has no IPv6 address, "),
            (&["[::1]:8081:80", "8080:80/udp"], &[six], "-p 127.0.0.1:8080:80/udp: the guest has no IPv4 address, "),
        ] {
            let why = check_families(&parse(texts), guest).err().unwrap_or_default();
            assert!(why.starts_with(expected) && why.is_empty() == expected.is_empty(), "{texts:?}: {why}");
        }
    }

    #[test]
    fn all_addresses_of_both_families_are_one_specifier() {
        for (texts, tcp, udp) in [
            (&[][..], &[][..], &[][..]),
            (&["8080:80", "[::1]:8081:80"], &["127.0.0.1/8080:80", "::1/8081:80"], &[]),
            (&["0.0.0.0:8080:80", "[::]:8080:80/udp"], &["0.0.0.0/8080:80"], &["::/8080:80"]),
            (&["[::]:8-9:8-9", "1:1", "0.0.0.0:8-9:8-9"], &["8-9:8-9", "127.0.0.1/1:1"], &[]),
            (&["0.0.0.0:8:9/udp", "[::]:8:9/udp"], &[], &["8:9"]),
            (&["0.0.0.0:8:9", "[::]:9:9"], &["0.0.0.0/8:9", "::/9:9"], &[]),
        ] {
            let ports = parse(texts);
            assert_eq!(
                (specifiers(&ports, false), specifiers(&ports, true)),
                (strings(tcp), strings(udp)),
                "{texts:?}"
            );
        }
    }

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn addresses_that_share_a_port_are_told_apart() {
        for (one, other, expected) in [
            ("127.0.0.1", "127.0.0.1", true),
            ("127.0.0.1", "127.0.0.2", false),
            ("127.0.0.1", "0.0.0.0", true),
            ("::", "::1", true),
            ("::1", "127.0.0.1", false),
            ("::", "0.0.0.0", false),
        ] {
            assert_eq!(overlap(one.parse().unwrap(), other.parse().unwrap()), expected, "{one} {other}");
            assert_eq!(overlap(other.parse().unwrap(), one.parse().unwrap()), expected, "{other} {one}");
        }
    }

    #[test]
    fn an_entry_has_the_ports_of_its_range() {
        let range: Publish = "8000-8010:80-90".parse().unwrap();
        assert_eq!([7999, 8000, 8010, 8011].map(|port| range.has(port, false)), [false, true, true, false]);
        assert!(!range.has(8000, true));
        let to_choose: Publish = "0:80".parse().unwrap();
        assert!(!to_choose.has(0, false));
        let last: Publish = "65535:1".parse().unwrap();
        assert!(last.has(65535, false));
    }
}
