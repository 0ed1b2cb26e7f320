//! ARP: the guest may ask and answer for its own address only.

use std::net::Ipv4Addr;

use crate::frame::{ETHERNET, ETHERTYPE_ARP, be16, be32};

/// The length of a message about IPv4 on Ethernet.
const LENGTH: usize = 28;

/// Whether a frame, which says that it is ARP, has a message whose sender's address is the guest's or, as in a probe, none.
pub(crate) fn is_own(frame: &[u8], guest: Ipv4Addr) -> bool {
    let Some(message) = frame.get(ETHERNET..ETHERNET + LENGTH) else { return false };
    // Ethernet, IPv4, six bytes, four bytes, a request or a reply.
    let has_shape = message[..6] == [0, 1, 8, 0, 6, 4] && matches!(be16(message, 6), 1 | 2);
    let sender = Ipv4Addr::from(be32(message, 14));
    has_shape && (sender == guest || sender.is_unspecified())
}

/// A frame with which the guest announces its address. passt learns the guest's Ethernet address from the first frame: before that it
/// sends to all, and Linux ignores a TCP segment to all.
pub fn announcement(mac: [u8; 6], guest: Ipv4Addr) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, 1];
    let ethertype = ETHERTYPE_ARP.to_be_bytes();
    [&[0xff; 6][..], &mac, &ethertype, &head, &mac, &guest.octets(), &[0; 6], &guest.octets()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sender_is_the_guest() {
        let guest = Ipv4Addr::new(10, 0, 2, 15);
        let message = |operation: u8, sender: [u8; 4]| {
            let head = [0, 1, 8, 0, 6, 4, 0, operation];
            [&[0; ETHERNET][..], &head, &[0x52, 0x55, 0, 0, 0, 2], &sender, &[0; 10]].concat()
        };
        for (frame, expected) in [
            (message(1, [10, 0, 2, 15]), true),
            (message(2, [10, 0, 2, 15]), true),
            (message(1, [0; 4]), true),
            (message(3, [10, 0, 2, 15]), false),
            (message(1, [10, 0, 2, 2]), false),
            (message(1, [10, 0, 2, 15])[..41].to_vec(), false),
            (vec![0; 42], false),
        ] {
            assert_eq!(is_own(&frame, guest), expected, "{frame:?}");
        }
        assert!(is_own(&announcement([2; 6], guest), guest));
    }
}
