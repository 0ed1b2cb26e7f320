//! PAX extended headers (POSIX.1-2024, pax, "pax Extended Header"): records of `LENGTH KEY=VALUE\n`. A value may hold
//! newlines (a capability does), so the length alone says where a record ends. Pure.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use anyhow::{anyhow, bail, ensure};
use msb::overlay::whiteout::is_private_xattr;

/// What one extended header says about the next member, as far as we care.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Pax {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<u64>,
    pub(crate) gid: Option<u64>,
    pub(crate) mtime: Option<(i64, u32)>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) sparse: bool,
}

const XATTR: &[u8] = b"SCHILY.xattr.";
/// The longest value that the kernel takes (`XATTR_SIZE_MAX`).
const MAX_XATTR: usize = 1 << 16;
const SPARSE: &[u8] = b"GNU.sparse.";

impl Pax {
    /// Reads the records of one header.
    ///
    /// # Errors
    /// Words for what is no record.
    pub(crate) fn parse(mut text: &[u8]) -> anyhow::Result<Self> {
        let mut pax = Self::default();
        while !text.is_empty() {
            let (record, rest) = split_record(text).ok_or_else(|| anyhow!("malformed PAX record"))?;
            let equals = record.iter().position(|&byte| byte == b'=').ok_or_else(|| anyhow!("malformed PAX record"))?;
            pax.take(&record[..equals], &record[equals + 1..])?;
            text = rest;
        }
        Ok(pax)
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> anyhow::Result<()> {
        let number = || {
            let text = std::str::from_utf8(value).ok();
            text.and_then(|text| text.parse().ok())
                .ok_or_else(|| anyhow!("malformed PAX number {:?}", String::from_utf8_lossy(value)))
        };
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number()?),
            b"uid" => self.uid = Some(number()?),
            b"gid" => self.gid = Some(number()?),
            b"mtime" => self.mtime = Some(parse_time(value)?),
            _ if key.starts_with(SPARSE) => self.sparse = true,
            _ => {
                // Overlayfs's own xattrs would let an image play tricks with the mount.
                if let Some(name) = key.strip_prefix(XATTR)
                    && !is_private_xattr(OsStr::from_bytes(name))
                {
                    ensure!(
                        value.len() <= MAX_XATTR,
                        "xattr {:?}: {} bytes, {MAX_XATTR} at most",
                        String::from_utf8_lossy(name),
                        value.len()
                    );
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

fn split_record(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = text.iter().position(|&byte| byte == b' ').filter(|&at| at < 20)?;
    let length: usize = std::str::from_utf8(&text[..space]).ok()?.parse().ok()?;
    if length <= space + 1 || length > text.len() || text[length - 1] != b'\n' {
        return None;
    }
    Some((&text[space + 1..length - 1], &text[length..]))
}

/// Seconds and nanoseconds since the epoch, the latter always counted forward.
fn parse_time(value: &[u8]) -> anyhow::Result<(i64, u32)> {
    let text = String::from_utf8_lossy(value);
    let (seconds, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let whole: i64 = seconds.parse().map_err(|_| anyhow!("malformed PAX time {text:?}"))?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        bail!("malformed PAX time {text:?}");
    }
    let nanos: u32 = format!("{fraction:0<9}")[..9].parse()?;
    Ok(if seconds.starts_with('-') && nanos > 0 {
        (whole.saturating_sub(1), 1_000_000_000 - nanos)
    } else {
        (whole, nanos)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let body = key.len() + value.len() + 3;
        let length = (1..).map(|digits| body + digits).find(|length| length.to_string().len() + body == *length);
        let mut record = format!("{} {key}=", length.unwrap()).into_bytes();
        record.extend_from_slice(value);
        record.push(b'\n');
        record
    }

    #[test]
    fn a_value_may_hold_newlines_and_equals_signs() {
        let text = [record("path", b"a=b\n9 x=y"), record("SCHILY.xattr.user.k", b"\n\0\xff"), record("uid", b"70000")];
        let pax = Pax::parse(&text.concat()).unwrap();
        assert_eq!(pax.path.unwrap(), b"a=b\n9 x=y");
        assert_eq!(pax.xattrs, [(b"user.k".to_vec(), b"\n\0\xff".to_vec())]);
        assert_eq!(pax.uid, Some(70000));
    }

    #[test]
    fn xattrs_are_those_that_an_image_may_set_and_the_kernel_takes() {
        let text = [record("SCHILY.xattr.trusted.overlay.redirect", b"/etc"), record("SCHILY.xattr.user.k", b"v")];
        assert_eq!(Pax::parse(&text.concat()).unwrap().xattrs, [(b"user.k".to_vec(), b"v".to_vec())]);
        assert!(Pax::parse(&record("SCHILY.xattr.user.k", &[b'x'; MAX_XATTR])).is_ok());
        let error = Pax::parse(&record("SCHILY.xattr.user.k", &[b'x'; MAX_XATTR + 1])).unwrap_err().to_string();
        assert!(error.contains("65537 bytes, 65536 at most"), "{error}");
    }

    #[test]
    fn times_have_nanoseconds() {
        for (text, time) in [
            ("12", (12, 0)),
            ("12.5", (12, 500_000_000)),
            ("1.0000000019", (1, 1)),
            ("-1.25", (-2, 750_000_000)),
            ("-0.5", (-1, 500_000_000)),
            ("-9223372036854775808.5", (i64::MIN, 500_000_000)),
        ] {
            assert_eq!(parse_time(text.as_bytes()).unwrap(), time, "{text}");
        }
        for bad in ["", "x", "1.x", "1e9"] {
            assert!(parse_time(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_no_record_is_refused() {
        for bad in ["x", "5 a=b", "99 a=b\n", "0 a=b\n", "6 a=bc", "5 ab\n", "6 abc\n", "999999999999999999999 a=b\n"] {
            assert!(Pax::parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(Pax::parse(&record("uid", b"-1")).is_err());
    }
}
