//! `/proc/PID/mountinfo` (`proc_pid_mountinfo(5)`).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

/// The mount points in a table, in its order: a later one may cover an earlier one.
pub fn mount_points(table: &[u8]) -> impl DoubleEndedIterator<Item = OsString> {
    table.split(|&byte| byte == b'\n').filter_map(|line| line.split(|&byte| byte == b' ').nth(4)).map(unescape)
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
