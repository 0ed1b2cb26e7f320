//! PAX extended headers (POSIX.1-2024, pax, "pax Extended Header"): records of `LENGTH KEY=VALUE\n`. A value may hold
//! newlines (a capability does), so the length alone says where a record ends. Pure.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use anyhow::{anyhow, bail, ensure};
use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use msb::overlay::whiteout::is_private_xattr;

use crate::sparse;

/// The values of one extended header that matter here. They apply to the next member.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Pax {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<u64>,
    pub(crate) gid: Option<u64>,
    pub(crate) mtime: Option<(i64, u32)>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) sparse: Option<Sparse>,
}

/// What the `GNU.sparse` records say about the next member.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Sparse {
    /// The size of the file with its holes.
    pub(crate) size: Option<u64>,
    /// Offset and length in turn; version 1.0 has them in the member's data instead.
    pub(crate) numbers: Vec<u64>,
    /// Whether the member's data begins with the map.
    pub(crate) has_prefix: bool,
}

const XATTR: &[u8] = b"SCHILY.xattr.";
/// libarchive's own spelling: the name percent-encoded, the value in base64.
const LIBARCHIVE_XATTR: &[u8] = b"LIBARCHIVE.xattr.";
/// The longest value that the kernel takes (`XATTR_SIZE_MAX`).
const MAX_XATTR: usize = 1 << 16;
const SPARSE: &[u8] = b"GNU.sparse.";
/// libarchive leaves the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

impl Pax {
    /// Reads the records of one header.
    ///
    /// # Errors
    /// A message for a malformed record.
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
        if let Some(key) = key.strip_prefix(SPARSE) {
            return self.take_sparse(key, value);
        }
        // An empty value deletes the record, and the field of the ustar header applies.
        let is_empty = value.is_empty();
        match key {
            b"path" => self.path = (!is_empty).then(|| value.to_vec()),
            b"linkpath" => self.link = (!is_empty).then(|| value.to_vec()),
            b"size" => self.size = (!is_empty).then(number).transpose()?,
            b"uid" => self.uid = (!is_empty).then(number).transpose()?,
            b"gid" => self.gid = (!is_empty).then(number).transpose()?,
            b"mtime" => self.mtime = (!is_empty).then(|| parse_time(value)).transpose()?,
            _ => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    self.push_xattr(name.to_vec(), value.to_vec())?;
                } else if let Some(name) = key.strip_prefix(LIBARCHIVE_XATTR) {
                    let malformed = || anyhow!("malformed PAX record {:?}", String::from_utf8_lossy(key));
                    let name = percent_decode(name).ok_or_else(malformed)?;
                    self.push_xattr(name, BASE64.decode(value).map_err(|_| malformed())?)?;
                }
            }
        }
        Ok(())
    }

    fn push_xattr(&mut self, name: Vec<u8>, value: Vec<u8>) -> anyhow::Result<()> {
        // An image must not control the mount with overlayfs's own xattrs.
        if is_private_xattr(OsStr::from_bytes(&name)) {
            return Ok(());
        }
        ensure!(
            value.len() <= MAX_XATTR,
            "xattr {:?}: {} bytes, {MAX_XATTR} at most",
            String::from_utf8_lossy(&name),
            value.len()
        );
        // libarchive writes both forms.
        self.xattrs.retain(|(other, _)| *other != name);
        self.xattrs.push((name, value));
        Ok(())
    }

    fn take_sparse(&mut self, key: &[u8], value: &[u8]) -> anyhow::Result<()> {
        let sparse = self.sparse.get_or_insert_default();
        match key {
            b"major" => sparse.has_prefix = sparse::parse(value)? > 0,
            b"size" | b"realsize" => sparse.size = Some(sparse::parse(value)?),
            b"map" if value.is_empty() => {}
            b"map" => sparse.numbers = sparse::parse_list(value)?,
            b"offset" | b"numbytes" => sparse.numbers.push(sparse::parse(value)?),
            b"name" => self.path = Some(value.to_vec()),
            // The version's minor number and the count of regions.
            _ => {}
        }
        Ok(())
    }
}

fn percent_decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = text.iter();
    let mut plain = Vec::new();
    while let Some(&byte) = bytes.next() {
        plain.push(match byte {
            b'%' => {
                let digits = [*bytes.next()?, *bytes.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            other => other,
        });
    }
    Some(plain)
}

fn split_record(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = text.iter().position(|&byte| byte == b' ').filter(|&at| at < 20)?;
    let length: usize = std::str::from_utf8(&text[..space]).ok()?.parse().ok()?;
    // A record whose last byte is a newline is longer than the digits and the space.
    if length == 0 || length > text.len() || text[length - 1] != b'\n' {
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
    fn libarchive_spells_xattrs_in_its_own_way() {
        let text = [
            record("LIBARCHIVE.xattr.user.a%3Db", b"dmFsdWU"),
            record("SCHILY.xattr.user.k", b"v"),
            record("LIBARCHIVE.xattr.user.k", b"dg=="),
            record("LIBARCHIVE.xattr.trusted.overlay.opaque", b"eQ"),
        ];
        let xattrs = [(b"user.a=b".to_vec(), b"value".to_vec()), (b"user.k".to_vec(), b"v".to_vec())];
        assert_eq!(Pax::parse(&text.concat()).unwrap().xattrs, xattrs);
        for (key, value) in [("LIBARCHIVE.xattr.user.%3", &b"dg"[..]), ("LIBARCHIVE.xattr.user.k", b"?")] {
            assert!(Pax::parse(&record(key, value)).is_err(), "{key}");
        }
    }

    #[test]
    fn an_empty_value_takes_a_record_back() {
        let keys = ["path", "linkpath", "size", "uid", "gid", "mtime"];
        let text: Vec<u8> = keys.iter().flat_map(|key| [record(key, b"1"), record(key, b"")].concat()).collect();
        assert_eq!(Pax::parse(&text).unwrap(), Pax::default());
        let text: Vec<u8> = keys.iter().flat_map(|key| record(key, b"1")).collect();
        let (path, link) = (Some(b"1".to_vec()), Some(b"1".to_vec()));
        let (size, uid, gid, mtime) = (Some(1), Some(1), Some(1), Some((1, 0)));
        assert_eq!(Pax::parse(&text).unwrap(), Pax { path, link, size, uid, gid, mtime, ..Pax::default() });
        let xattr = Pax::parse(&record("SCHILY.xattr.user.empty", b"")).unwrap().xattrs;
        assert_eq!(xattr, [(b"user.empty".to_vec(), Vec::new())]);
    }

    #[test]
    fn the_versions_of_sparse_records_are_told_apart() {
        let sparse = |size, numbers: &[u64], has_prefix| {
            let sparse = Sparse { size, numbers: numbers.to_vec(), has_prefix };
            Pax { sparse: Some(sparse), ..Pax::default() }
        };
        for (records, expected) in [
            (
                &[("size", "9"), ("offset", "1"), ("numbytes", "2"), ("offset", "5"), ("numbytes", "0")][..],
                sparse(Some(9), &[1, 2, 5, 0], false),
            ),
            (&[("size", "9"), ("numblocks", "1"), ("map", "1,2")], sparse(Some(9), &[1, 2], false)),
            (&[("major", "0"), ("minor", "1"), ("size", "9"), ("map", "")], sparse(Some(9), &[], false)),
            (&[("major", "1"), ("minor", "0"), ("realsize", "9")], sparse(Some(9), &[], true)),
        ] {
            let text = records.iter().flat_map(|(key, value)| record(&format!("GNU.sparse.{key}"), value.as_bytes()));
            assert_eq!(Pax::parse(&text.collect::<Vec<u8>>()).unwrap(), expected);
        }
        assert!(Pax::parse(&record("GNU.sparse.map", b"1,x")).is_err());
        // The header's own name is one that readers without sparse files get.
        assert_eq!(Pax::parse(&record("GNU.sparse.name", b"a")).unwrap().path.unwrap(), b"a");
    }

    #[test]
    fn times_have_nanoseconds() {
        for (text, time) in [
            ("12", (12, 0)),
            ("-1", (-1, 0)),
            ("-0", (0, 0)),
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
    fn a_length_has_up_to_19_digits() {
        let record = |digits: usize| format!("{:0digits$} uid=7\n", digits + 7);
        assert_eq!(Pax::parse(record(19).as_bytes()).unwrap().uid, Some(7));
        assert!(Pax::parse(record(20).as_bytes()).is_err());
    }

    #[test]
    fn what_is_no_record_is_refused() {
        for bad in ["x", "5 a=b", "99 a=b\n", "0 a=b\n", "6 a=bc", "5 ab\n", "6 abc\n", "999999999999999999999 a=b\n"] {
            assert!(Pax::parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(Pax::parse(&record("uid", b"-1")).is_err());
    }
}
