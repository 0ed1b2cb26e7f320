//! rtnetlink(7): the few requests that configure a network interface.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use msb::vm::boot::Route;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, socket,
};

const NLM_F_REQUEST_ACK: u16 = 0x1 | 0x4;
const NLM_F_CREATE_EXCL: u16 = 0x400 | 0x200;
const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const IFF_UP: u32 = 1;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_F_NODAD: u8 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RTN_UNICAST: u8 = 1;
const RTNH_F_ONLINK: u32 = 4;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// The length of `struct nlmsghdr`.
const HEADER: usize = 16;

/// A socket to the kernel's network configuration.
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens it.
    ///
    /// # Errors
    /// Those of `socket(2)` and `bind(2)`.
    pub fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Brings an interface up, with another MTU if there is one to set.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_up(&mut self, index: u32, mtu: Option<u32>) -> io::Result<()> {
        // ifinfomsg: the family and type, the index, the flags, and those of them that change.
        let mut header = vec![0; 4];
        for word in [index, IFF_UP, IFF_UP] {
            header.extend(word.to_ne_bytes());
        }
        let mtu = mtu.map(u32::to_ne_bytes);
        let attributes: Vec<(u16, &[u8])> = mtu.iter().map(|mtu| (IFLA_MTU, &mtu[..])).collect();
        self.request(RTM_NEWLINK, 0, &header, &attributes)
    }

    /// Adds an address. An IPv6 address is usable at once, without a search for duplicates.
    ///
    /// # Errors
    /// The kernel's.
    pub fn add_address(&mut self, index: u32, address: IpAddr, prefix: u8) -> io::Result<()> {
        let (family, flags, octets) = match address {
            IpAddr::V4(address) => (AF_INET, 0, address.octets().to_vec()),
            IpAddr::V6(address) => (AF_INET6, IFA_F_NODAD, address.octets().to_vec()),
        };
        let mut header = vec![family, prefix, flags, RT_SCOPE_UNIVERSE];
        header.extend(index.to_ne_bytes());
        self.request(RTM_NEWADDR, NLM_F_CREATE_EXCL, &header, &[(IFA_LOCAL, &octets), (IFA_ADDRESS, &octets)])
    }

    /// Adds a route through an interface. The next hop need not be in one of its networks.
    ///
    /// # Errors
    /// The kernel's.
    pub fn add_route(&mut self, index: u32, route: &Route) -> io::Result<()> {
        let octets = |address| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let family = if route.via.is_ipv4() { AF_INET } else { AF_INET6 };
        let mut header =
            vec![family, route.to.prefix, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_UNICAST];
        header.extend(RTNH_F_ONLINK.to_ne_bytes());
        let (to, via, index) = (octets(route.to.address), octets(route.via), index.to_ne_bytes());
        let attributes: [(u16, &[u8]); 3] = [(RTA_GATEWAY, &via), (RTA_OIF, &index), (RTA_DST, &to)];
        // A default route has no destination.
        let count = if route.to.prefix == 0 { 2 } else { 3 };
        self.request(RTM_NEWROUTE, NLM_F_CREATE_EXCL, &header, &attributes[..count])
    }

    /// Sends a request and waits for the kernel's acknowledgment.
    fn request(&mut self, kind: u16, flags: u16, header: &[u8], attributes: &[(u16, &[u8])]) -> io::Result<()> {
        self.sequence += 1;
        let message = message(kind, NLM_F_REQUEST_ACK | flags, self.sequence, header, attributes);
        sendto(self.socket.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut buffer = [0; 4096];
        let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        acknowledgment(&buffer[..length])
    }
}

/// A message with a header of its kind and attributes, each padded to four bytes.
fn message(kind: u16, flags: u16, sequence: u32, header: &[u8], attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut body = header.to_vec();
    for (kind, value) in attributes {
        // All values are numbers and addresses.
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        body.extend(length.to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(*value);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    message.extend([0; 4]);
    message.extend(body);
    message
}

/// The result in an acknowledgment: an error message with a negative errno, or with 0.
fn acknowledgment(message: &[u8]) -> io::Result<()> {
    let is_error = message.get(4..6) == Some(&NLMSG_ERROR.to_ne_bytes());
    let code = message.get(HEADER..HEADER + 4).filter(|_| is_error).and_then(|code| code.try_into().ok());
    match code.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(-error)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_counted() {
        let message = message(RTM_NEWLINK, 5, 7, &[1, 2, 3, 4], &[(4, &[9; 5]), (5, &[8; 4])]);
        let mut expected = 40_u32.to_ne_bytes().to_vec();
        expected.extend([16_u16.to_ne_bytes(), 5_u16.to_ne_bytes()].concat());
        expected.extend([7_u32.to_ne_bytes(), [0; 4], [1, 2, 3, 4]].concat());
        expected.extend([9_u16.to_ne_bytes(), 4_u16.to_ne_bytes()].concat());
        expected.extend([9, 9, 9, 9, 9, 0, 0, 0]);
        expected.extend([8_u16.to_ne_bytes(), 5_u16.to_ne_bytes()].concat());
        expected.extend([8; 4]);
        assert_eq!(message, expected);
    }

    #[test]
    fn an_acknowledgment_has_an_error_or_none() {
        let answer = |kind: u16, code: i32| [&[0; 4][..], &kind.to_ne_bytes(), &[0; 10], &code.to_ne_bytes()].concat();
        assert!(acknowledgment(&answer(NLMSG_ERROR, 0)).is_ok());
        assert_eq!(acknowledgment(&answer(NLMSG_ERROR, -17)).unwrap_err().raw_os_error(), Some(17));
        assert!(acknowledgment(&answer(3, 0)).is_err());
        assert!(acknowledgment(&answer(NLMSG_ERROR, 0)[..19]).is_err());
    }
}
