//! `/proc/PID/mountinfo` (`proc_pid_mountinfo(5)`).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The ID that `statx(2)` shows.
    pub id: u64,
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
        let &[id, _, _, _, point, options, ..] = &fields[..] else { return None };
        // The fields between the options and the separator vary in number.
        let separator = fields.iter().skip(6).position(|field| *field == b"-")? + 6;
        let has = |name: &[u8]| options.split(|&byte| byte == b',').any(|option| option == name);
        Some(Mount {
            id: std::str::from_utf8(id).ok()?.parse().ok()?,
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
                (mount.id, flags, mount.fstype.into_string().unwrap(), mount.source.into_string().unwrap())
            })
            .collect();
        let expected = [
            (36, (true, true, true), "fuse.msb".to_owned(), "-".to_owned()),
            (37, (false, false, false), "ext4".to_owned(), "/dev/ro".to_owned()),
        ];
        assert_eq!(mounts, expected);
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
