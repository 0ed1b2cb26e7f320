//! The guest's network: the loopback interface, and the cards that boot.json describes.

use std::fs;
use std::io;
use std::path::Path;

use msb::vm::boot::{self, Card};
use nix::net::if_::if_nametoindex;

use crate::netlink::Netlink;

const INTERFACES: &str = "/sys/class/net";

/// IPv6 parameters of a card, which has the configured addresses only: it would prefer one from an advertisement as its source, and the
/// gate drops what has another source.
const IPV6_PARAMETERS: [(&str, &str); 3] = [("accept_ra", "0"), ("autoconf", "0"), ("addr_gen_mode", "1")];

/// Brings the loopback interface up.
///
/// # Errors
/// The kernel's.
pub fn bring_loopback_up() -> io::Result<()> {
    Netlink::open()?.set_up(if_nametoindex("lo")?, None)
}

/// Configures a card.
///
/// # Errors
/// The step that failed.
pub fn configure(card: &Card) -> io::Result<()> {
    let failed = |step: String| move |error: io::Error| io::Error::other(format!("{step}: {error}"));
    let name = find(Path::new(INTERFACES), card.mac)?;
    let index = if_nametoindex(name.as_str()).map_err(io::Error::from).map_err(failed(name.clone()))?;
    for (parameter, value) in IPV6_PARAMETERS {
        // The kernel may have no IPv6.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/{parameter}"), value);
    }
    let mut netlink = Netlink::open()?;
    netlink.set_up(index, Some(card.mtu)).map_err(failed(format!("bring {name} up")))?;
    for subnet in &card.addresses {
        netlink
            .add_address(index, subnet.address, subnet.prefix)
            .map_err(failed(format!("address {subnet} of {name}")))?;
    }
    for route in &card.routes {
        netlink
            .add_route(index, route)
            .map_err(failed(format!("route to {} via {} of {name}", route.to, route.via)))?;
    }
    Ok(())
}

/// The name of the interface with this Ethernet address. The order does not identify it: a kernel may have other interfaces.
fn find(interfaces: &Path, mac: [u8; 6]) -> io::Result<String> {
    let mac = boot::format_mac(mac);
    for entry in fs::read_dir(interfaces)? {
        let entry = entry?;
        let address = fs::read_to_string(entry.path().join("address")).unwrap_or_default();
        if let (true, Ok(name)) = (address.trim_end() == mac, entry.file_name().into_string()) {
            return Ok(name);
        }
    }
    Err(io::Error::other(format!("no network card with the address {mac}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_card_is_found_by_its_address() {
        let scratch = tempfile::tempdir().unwrap();
        for (name, address) in [("dummy0", "aa:bb:cc:dd:ee:ff\n"), ("eth0", "52:55:00:00:00:02\n")] {
            fs::create_dir(scratch.path().join(name)).unwrap();
            fs::write(scratch.path().join(name).join("address"), address).unwrap();
        }
        fs::create_dir(scratch.path().join("odd")).unwrap();
        assert_eq!(find(scratch.path(), [0x52, 0x55, 0, 0, 0, 2]).unwrap(), "eth0");
        let error = find(scratch.path(), [0x52, 0x55, 0, 0, 0, 3]).unwrap_err().to_string();
        assert_eq!(error, "no network card with the address 52:55:00:00:00:03");
    }
}
