//! `/proc/PID/mountinfo` (`proc_pid_mountinfo(5)`).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The ID that `statx(2)` shows.
    pub id: u64,
    /// The ID of the mount that has its mount point.
    pub parent: u64,
    /// The mount point.
    pub point: OsString,
    /// Whether the mount is read-only, whatever its file system is.
    pub is_readonly: bool,
    /// Whether programs in it cannot be executed.
    pub is_noexec: bool,
    /// Whether users other than the owner of a FUSE mount may enter it.
    pub allows_others: bool,
    /// The type of the file system.
    pub fstype: OsString,
    /// What is mounted: a device, or any text.
    pub source: OsString,
}

/// The mounts in a table, in its order: a later one may cover an earlier one. Lines that cannot be read are left out.
pub fn mounts(table: &[u8]) -> impl DoubleEndedIterator<Item = Mount> {
    table.split(|&byte| byte == b'\n').filter_map(|line| {
        let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
        let &[id, parent, _, _, point, options, ..] = &fields[..] else { return None };
        let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse().ok();
        // The fields between the options and the separator vary in number.
        let separator = fields.iter().skip(6).position(|field| *field == b"-")? + 6;
        let has = |name: &[u8]| options.split(|&byte| byte == b',').any(|option| option == name);
        Some(Mount {
            id: number(id)?,
            parent: number(parent)?,
            point: unescape(point),
            is_readonly: has(b"ro"),
            is_noexec: has(b"noexec"),
            allows_others: fields
                .get(separator + 3)
                .is_some_and(|options| options.split(|&byte| byte == b',').any(|option| option == b"allow_other")),
            fstype: unescape(fields.get(separator + 1)?),
            source: fields.get(separator + 2).map(|field| unescape(field)).unwrap_or_default(),
        })
    })
}

/// The mount points in a table, in its order.
pub fn mount_points(table: &[u8]) -> impl DoubleEndedIterator<Item = OsString> {
    mounts(table).map(|mount| mount.point)
}

/// Whether a path does not reach a mount, because one of `mounts` was mounted on it, or later on a directory above it. All of them are
/// below one directory.
pub fn is_covered(mount: &Mount, mounts: &[Mount]) -> bool {
    if mounts.iter().any(|other| other.parent == mount.id && other.point == mount.point && other.id != mount.id) {
        return true;
    }
    let mut next = Some(mount);
    // The first root of all has itself as its parent.
    let with_parent = || mounts.iter().filter(|other| other.id != other.parent);
    while let Some(mount) = next {
        // What is mounted below an earlier mount has that as its parent, so of two with one parent the upper one is the later.
        let is_above = |other: &Mount| other.point != mount.point && Path::new(&mount.point).starts_with(&other.point);
        if with_parent().any(|other| other.parent == mount.parent && is_above(other)) {
            return true;
        }
        next = with_parent().find(|other| other.id == mount.parent);
    }
    false
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut plain = Vec::new();
    let mut rest = field;
    while let Some((&first, behind)) = rest.split_first() {
        let digits = behind.get(..3).filter(|_| first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(byte);
                rest = &behind[3..];
            }
            None => {
                plain.push(first);
                rest = behind;
            }
        }
    }
    OsString::from_vec(plain)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn a_mount_has_an_id_options_and_a_type() {
        let table = b"36 35 98:0 /a /mnt ro,noexec,noatime master:1 shared:2 - fuse.msb - rw,allow_other\n37 36 0:1 / /x rw,relatime - ext4 /dev/ro ro\nodd\n";
        let mounts: Vec<_> = super::mounts(table)
            .map(|mount| {
                let flags = (mount.is_readonly, mount.is_noexec, mount.allows_others);
                (
                    (mount.id, mount.parent),
                    flags,
                    mount.fstype.into_string().unwrap(),
                    mount.source.into_string().unwrap(),
                )
            })
            .collect();
        let expected = [
            ((36, 35), (true, true, true), "fuse.msb".to_owned(), "-".to_owned()),
            ((37, 36), (false, false, false), "ext4".to_owned(), "/dev/ro".to_owned()),
        ];
        assert_eq!(mounts, expected);
    }

    #[test]
    fn a_later_mount_covers_those_at_its_place_and_below_it() {
        // ID, parent and mount point.
        let table: String = [
            (1, 1, "/"),
            (10, 1, "/t"),
            (11, 10, "/t/rootfs"),
            // Before /t/rootfs/a.
            (12, 11, "/t/rootfs/a/b"),
            (13, 12, "/t/rootfs/a/b/c"),
            (14, 11, "/t/rootfs/a"),
            (15, 14, "/t/rootfs/a/b"),
            // Twice at a place, and one that was below the first.
            (16, 11, "/t/rootfs/d"),
            (17, 16, "/t/rootfs/d/e"),
            (18, 16, "/t/rootfs/d"),
            (19, 18, "/t/rootfs/d/f"),
            (20, 11, "/t/rootfs/ab"),
        ]
        .iter()
        .map(|(id, parent, point)| format!("{id} {parent} 0:1 / {point} rw - tmpfs none rw\n"))
        .collect();
        let mounts: Vec<_> = super::mounts(table.as_bytes()).collect();
        let covered = mounts.iter().filter(|mount| super::is_covered(mount, &mounts)).map(|mount| mount.id);
        assert_eq!(covered.collect::<Vec<_>>(), [12, 13, 16, 17]);
    }

    #[test]
    fn mount_points_are_read_as_mountinfo_writes_them() {
        for (field, plain) in [
            (&b"/a"[..], &b"/a"[..]),
            (br"/a\040b", b"/a b"),
            (br"/\134x", br"/\x"),
            (br"/a\", br"/a\"),
            (br"/\9", br"/\9"),
            (b"/\xff", b"/\xff"),
        ] {
            let table = [b"36 35 98:0 / ", field, b" rw - ext4 /dev/root rw\n"].concat();
            let points: Vec<_> = super::mount_points(&table).collect();
            assert_eq!(points.iter().map(|point| point.as_bytes()).collect::<Vec<_>>(), [plain]);
        }
    }
}
