//! The IDs in requests and replies. They are those of the user namespace in which the file system was mounted. For a user other
//! than root, fusermount3(1) mounts in the host's namespace, and the server runs in the user's.

use std::io;
use std::sync::OnceLock;

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
