//! Device numbers of Linux: 12 bits of major and 20 bits of minor number (`MAJOR` and `MINOR` in the kernel's `linux/kdev_t.h`).
//! mknod(2) ignores higher bits, so a larger number would make another device, or a whiteout.

/// The number of a device, for mknod(2); `None` if Linux has no such device.
pub fn number(major: u32, minor: u32) -> Option<u64> {
    (major < 1 << 12 && minor < 1 << 20).then(|| rustix::fs::makedev(major, minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_linux_truncates_is_refused() {
        for (major, minor, is_one) in [
            (1, 3, true),
            (0, 0, true),
            (4095, 1_048_575, true),
            (4096, 0, false),
            (4097, 3, false),
            (1, 1_048_576, false),
            (u32::MAX, u32::MAX, false),
        ] {
            let number = number(major, minor);
            assert_eq!(number.is_some(), is_one, "{major}:{minor}");
            assert!(
                number.is_none_or(|number| (rustix::fs::major(number), rustix::fs::minor(number)) == (major, minor))
            );
        }
    }
}
