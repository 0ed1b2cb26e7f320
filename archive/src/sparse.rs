//! Sparse members: which parts of a file the archive holds. GNU tar has four spellings: an old header of type `S`, and
//! PAX records of the versions 0.0, 0.1 and 1.0 (GNU tar manual, "Storing Sparse Files"). Pure.

use anyhow::{anyhow, ensure};

use crate::number::number;

/// The most regions of one file: a map of 4 MiB in memory.
const MAX_REGIONS: usize = 1 << 18;

/// A part of a file that holds data, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where it begins in the file.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
}

/// Makes a map of `numbers`, offset and length in turn. The regions must ascend within a file of `size` bytes and hold
/// `stored` bytes together.
///
/// # Errors
/// A message for any other map.
pub(crate) fn map(numbers: &[u64], size: u64, stored: u64) -> anyhow::Result<Vec<Region>> {
    let malformed = || anyhow!("malformed sparse map");
    ensure!(numbers.len().is_multiple_of(2), malformed());
    let (mut end, mut sum) = (0, 0u64);
    let mut regions = Vec::new();
    for pair in numbers.chunks_exact(2) {
        let region = Region { offset: pair[0], length: pair[1] };
        let next = region.offset.checked_add(region.length).filter(|&next| next <= size).ok_or_else(malformed)?;
        ensure!(region.offset >= end, malformed());
        (end, sum) = (next, sum + region.length);
        regions.push(region);
    }
    ensure!(sum == stored, malformed());
    Ok(regions)
}

/// The numbers of a comma-separated map (version 0.1).
///
/// # Errors
/// A message for anything but numbers.
pub(crate) fn parse_list(text: &[u8]) -> anyhow::Result<Vec<u64>> {
    text.split(|&byte| byte == b',').map(parse).collect()
}

/// A decimal number.
///
/// # Errors
/// A message for anything else.
pub(crate) fn parse(digits: &[u8]) -> anyhow::Result<u64> {
    let text = std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    text.and_then(|text| text.parse().ok()).ok_or_else(|| anyhow!("malformed sparse map"))
}

/// Collects the map at the start of a member's data (version 1.0): lines of decimal numbers, the first of which counts the
/// regions. The map fills whole blocks.
#[derive(Default)]
pub(crate) struct Prefix {
    line: Vec<u8>,
    expected: Option<usize>,
    numbers: Vec<u64>,
}

impl Prefix {
    /// Takes one block. Returns the numbers, offset and length in turn, with the last block.
    ///
    /// # Errors
    /// A message for a malformed or an overlong map.
    pub(crate) fn push(&mut self, block: &[u8]) -> anyhow::Result<Option<Vec<u64>>> {
        for &byte in block {
            if byte != b'\n' {
                self.line.push(byte);
                ensure!(self.line.len() <= 20, "malformed sparse map");
                continue;
            }
            let number = parse(&self.line)?;
            self.line.clear();
            match self.expected {
                None => {
                    let regions = usize::try_from(number).ok().filter(|&regions| regions <= MAX_REGIONS);
                    self.expected = regions.map(|regions| regions * 2);
                    ensure!(regions.is_some(), "sparse map of {number} regions, {MAX_REGIONS} at most");
                }
                Some(_) => self.numbers.push(number),
            }
            if self.expected == Some(self.numbers.len()) {
                return Ok(Some(std::mem::take(&mut self.numbers)));
            }
        }
        Ok(None)
    }
}

/// Collects the map of an old GNU header and its extension blocks.
#[derive(Default)]
pub(crate) struct Old(Vec<u64>);

impl Old {
    /// Takes the entries of a header or an extension block. Each has two numeric fields of 12 bytes; a blank one ends the
    /// map.
    ///
    /// # Errors
    /// A message for a malformed or an overlong map.
    pub(crate) fn push(&mut self, entries: &[u8]) -> anyhow::Result<()> {
        for entry in entries.chunks_exact(24) {
            if entry[12] == 0 {
                break;
            }
            for field in [&entry[..12], &entry[12..]] {
                let number = number(field).and_then(|number| u64::try_from(number).ok());
                self.0.push(number.ok_or_else(|| anyhow!("malformed sparse map"))?);
            }
        }
        ensure!(self.0.len() <= MAX_REGIONS * 2, "sparse map of more than {MAX_REGIONS} regions");
        Ok(())
    }

    /// The numbers, offset and length in turn.
    pub(crate) fn finish(self) -> Vec<u64> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_ascends_within_the_file_and_accounts_for_all_data() {
        let region = |offset, length| Region { offset, length };
        assert_eq!(map(&[0, 5, 10, 0], 10, 5).unwrap(), [region(0, 5), region(10, 0)]);
        assert_eq!(map(&[0, 5, 5, 1], 10, 6).unwrap(), [region(0, 5), region(5, 1)]);
        assert_eq!(map(&[], 10, 0).unwrap(), []);
        for (numbers, size, stored) in [
            (&[0][..], 10, 0),
            (&[0, 5, 4, 1], 10, 6),
            (&[5, 1, 0, 1], 10, 2),
            (&[8, 3], 10, 3),
            (&[u64::MAX, 1], u64::MAX, 1),
            (&[0, 5], 10, 4),
            (&[0, 5], 10, 6),
        ] {
            assert!(map(numbers, size, stored).is_err(), "{numbers:?}");
        }
    }

    #[test]
    fn a_prefix_may_end_in_any_block() {
        for (text, expected) in [
            ("0\n", Some(vec![])),
            ("1\n0\n5\n", Some(vec![0, 5])),
            ("2\n0\n5\n10\n0\nrest", Some(vec![0, 5, 10, 0])),
            ("1\n18446744073709551615\n0\n", Some(vec![u64::MAX, 0])),
            ("262144\n", None),
        ] {
            for size in [1, 3, 512] {
                let mut prefix = Prefix::default();
                let numbers = text.as_bytes().chunks(size).find_map(|block| prefix.push(block).unwrap());
                assert_eq!(numbers, expected, "{text:?}");
            }
        }
        for bad in ["x\n", "1\n\u{0}\n", "262145\n", "111111111111111111111", "1\n-1\n"] {
            assert!(Prefix::default().push(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_old_map_ends_at_a_blank_entry_and_is_bounded() {
        let entry = b"00000000010\x0000000000002\0";
        let mut old = Old::default();
        old.push(&[&entry[..], &[0; 24], entry].concat()).unwrap();
        assert_eq!(old.finish(), [8, 2]);
        let mut old = Old::default();
        old.push(&entry.repeat(MAX_REGIONS)).unwrap();
        assert!(old.push(entry).unwrap_err().to_string().contains("more than 262144 regions"));
        assert!(Old::default().push(&[b'x'; 24]).is_err());
    }
}
