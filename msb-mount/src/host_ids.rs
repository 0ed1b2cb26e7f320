//! The IDs in requests and replies. They are those of the user namespace in which the file system was mounted. For a user other
//! than root, fusermount3(1) mounts in the host's namespace, and the server runs in the user's.

use std::ffi::OsStr;
use std::io;
use std::sync::OnceLock;

use msb::overlay::attributes::{ACCESS_ACL, DEFAULT_ACL};
use msb::store::id_map::{self, IdMap, Range};

/// The mapping between the two, unless they are the same namespace.
static MAP: OnceLock<IdMap> = OnceLock::new();

/// What an ID without a number in a namespace looks like there (`/proc/sys/kernel/overflowuid`).
const OVERFLOW: u32 = 65_534;

/// From now on, requests have IDs of the host.
///
/// # Errors
/// That /proc is not mounted.
pub(crate) fn set_host() -> io::Result<()> {
    let _ = MAP.set(IdMap::of_this_process()?);
    Ok(())
}

/// Whether requests have IDs of the host that are others here.
pub(crate) fn is_host() -> bool {
    MAP.get().is_some()
}

/// A user and a group of a reply, of the server's.
pub(crate) fn to_host(uid: u32, gid: u32) -> (u32, u32) {
    let Some(map) = MAP.get() else { return (uid, gid) };
    let translate = |ranges: &[Range], id| id_map::outside(ranges, id).unwrap_or(OVERFLOW);
    (translate(&map.uid, uid), translate(&map.gid, gid))
}

/// The server's user and group for those who make a request.
pub(crate) fn of_caller(uid: u32, gid: u32) -> (u32, u32) {
    let Some(map) = MAP.get() else { return (uid, gid) };
    let translate = |ranges: &[Range], id| id_map::inside(ranges, id).unwrap_or(OVERFLOW);
    (translate(&map.uid, uid), translate(&map.gid, gid))
}

/// The server's user and group for a new owner that a request names; `None` for one that it has no number for.
pub(crate) fn of_owner(uid: Option<u32>, gid: Option<u32>) -> Option<(Option<u32>, Option<u32>)> {
    let Some(map) = MAP.get() else { return Some((uid, gid)) };
    let translate = |ranges: &[Range], id: Option<u32>| match id {
        Some(id) => id_map::inside(ranges, id).map(Some),
        None => Some(None),
    };
    Some((translate(&map.uid, uid)?, translate(&map.gid, gid)?))
}

/// The value of an xattr of a reply. A POSIX ACL names users and groups.
pub(crate) fn xattr_to_host(name: &OsStr, value: Vec<u8>) -> Vec<u8> {
    match MAP.get().filter(|_| is_acl(name)) {
        Some(map) => translate_acl(value, map, |ranges, id| Some(id_map::outside(ranges, id).unwrap_or(OVERFLOW)))
            .unwrap_or_default(),
        None => value,
    }
}

/// The value of an xattr that a request sets; `None` for an ACL with an ID that the server has no number for.
pub(crate) fn xattr_of_request(name: &OsStr, value: &[u8]) -> Option<Vec<u8>> {
    match MAP.get().filter(|_| is_acl(name)) {
        Some(map) => translate_acl(value.to_owned(), map, id_map::inside),
        None => Some(value.to_owned()),
    }
}

fn is_acl(name: &OsStr) -> bool {
    name == ACCESS_ACL || name == DEFAULT_ACL
}

/// Translates the IDs of an ACL in the form of `linux/posix_acl_xattr.h`: a version of four bytes, then entries of a tag, permissions and
/// an ID, in little-endian order. What has another form is left as it is, and the kernel refuses it.
fn translate_acl(mut acl: Vec<u8>, map: &IdMap, id_of: impl Fn(&[Range], u32) -> Option<u32>) -> Option<Vec<u8>> {
    const VERSION: usize = 4;
    const USER: [u8; 2] = [2, 0];
    const GROUP: [u8; 2] = [8, 0];
    for entry in acl.get_mut(VERSION..).unwrap_or_default().chunks_exact_mut(8) {
        let ranges = match [entry[0], entry[1]] {
            USER => &map.uid,
            GROUP => &map.gid,
            _ => continue,
        };
        let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        entry[4..].copy_from_slice(&id_of(ranges, id)?.to_le_bytes());
    }
    Some(acl)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acl_names_users_and_groups_of_the_other_namespace() {
        let range = |inside, outside, count| Range { inside, outside, count };
        let map = IdMap { uid: vec![range(0, 1000, 1), range(1, 100_000, 10)], gid: vec![range(1, 200_000, 10)] };
        let acl = |user: u32, group: u32| {
            let entries = [(1_u16, u32::MAX), (2, user), (4, u32::MAX), (8, group), (0x10, u32::MAX)];
            let mut acl = 2_u32.to_le_bytes().to_vec();
            for (tag, id) in entries {
                acl.extend(tag.to_le_bytes().into_iter().chain([7, 0]).chain(id.to_le_bytes()));
            }
            acl
        };
        assert_eq!(translate_acl(acl(2, 3), &map, id_map::outside), Some(acl(100_001, 200_002)));
        assert_eq!(translate_acl(acl(1000, 200_000), &map, id_map::inside), Some(acl(0, 1)));
        assert_eq!(translate_acl(acl(77, 200_000), &map, id_map::inside), None);
        for odd in [&b""[..], b"\x02", b"\x02\0\0\0\x02\0\x07"] {
            assert_eq!(translate_acl(odd.to_vec(), &map, id_map::inside).as_deref(), Some(odd));
        }
    }
}
