//! The stream of operations: JSON values, on one line or several. Each is read separately, so the stream may have any length, and an error
//! in one operation does not affect the others.

use std::io::{self, BufRead};

use anyhow::anyhow;

use crate::op::Op;
use crate::parse::{ParseError, parse};

/// The largest text of one operation, in bytes. `copy_file` copies larger files.
pub const MAX: usize = 64 << 20;

/// One value of the stream.
#[derive(Debug)]
pub struct StreamItem {
    /// Its number, from 1.
    pub n: usize,
    /// The line at which it starts, or at which the JSON is invalid, from 1.
    pub line: usize,
    /// The operation, or why it is invalid.
    pub op: anyhow::Result<Op>,
}

/// The UTF-8 byte order mark with which some editors start a file.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Reads operations one by one, separated by any white space. A byte order mark is skipped. Nothing is read after invalid JSON.
pub fn read(from: impl BufRead) -> impl Iterator<Item = StreamItem> {
    let mut values = Values { from, line: 1, is_first: true, text: Vec::new() };
    let mut n = 0;
    let mut broken = false;
    std::iter::from_fn(move || {
        if broken {
            return None;
        }
        let value = values.next().transpose()?;
        n += 1;
        let (line, op) = match value {
            Err(error) => {
                broken = true;
                (values.line, Err(anyhow!(error)))
            }
            Ok(line) => match parse(&values.text) {
                Ok(op) => (line, Ok(op)),
                Err(ParseError::Operation(message)) => (line, Err(anyhow!(message))),
                Err(ParseError::Json { line: within, message }) => {
                    broken = true;
                    (line + within - 1, Err(anyhow!(message)))
                }
            },
        };
        Some(StreamItem { n, line, op })
    })
}

/// Whether a value is an operation and not a record, by its members.
pub fn is_operation(value: &[u8]) -> bool {
    let value = value.strip_prefix(BYTE_ORDER_MARK).unwrap_or(value);
    let value: Option<serde_json::Value> = serde_json::from_slice(value).ok();
    value.is_some_and(|value| value.get("op").is_some() && value.get("msb").is_none())
}

/// Splits the stream into values. Only the end of each is found here; the parser checks it.
struct Values<R> {
    from: R,
    /// The current line, from 1.
    line: usize,
    /// Whether no value has been read yet.
    is_first: bool,
    /// The value that was read last.
    text: Vec<u8>,
}

/// The position within a value.
#[derive(Clone, Copy)]
enum Within {
    /// Between values.
    Nothing,
    /// A literal or a number, which ends before a character that cannot be part of it.
    Word,
    /// A string; `escaped`: after a backslash.
    String { escaped: bool },
    /// An array or an object, between strings.
    Brackets,
}

impl<R: BufRead> Values<R> {
    /// Reads one value into `text`, and returns the line at which it starts. An incomplete value at the end of the stream counts.
    fn next(&mut self) -> io::Result<Option<usize>> {
        let begin = self.cut()?;
        // The mark was split off as a literal, together with what follows it, which may be the whole value.
        if self.is_first && self.text.starts_with(BYTE_ORDER_MARK) {
            self.is_first = false;
            self.text.drain(..BYTE_ORDER_MARK.len());
            if self.text.is_empty() {
                return self.cut();
            }
        }
        self.is_first = false;
        Ok(begin)
    }

    fn cut(&mut self) -> io::Result<Option<usize>> {
        self.text.clear();
        let (mut within, mut depth, mut begin) = (Within::Nothing, 0usize, 0);
        loop {
            let block = self.from.fill_buf()?;
            if block.is_empty() {
                return Ok((!self.text.is_empty()).then_some(begin));
            }
            let (mut from, mut to, mut is_whole) = (0, 0, false);
            for &byte in block {
                if matches!((within, byte), (Within::Word, b' ' | b'\t' | b'\r' | b'\n' | b'{' | b'[' | b'"')) {
                    is_whole = true;
                    break;
                }
                to += 1;
                self.line += usize::from(byte == b'\n');
                within = match (within, byte) {
                    (Within::Nothing, b' ' | b'\t' | b'\r' | b'\n') => {
                        from = to;
                        continue;
                    }
                    (Within::String { escaped: false }, b'\\') => Within::String { escaped: true },
                    (Within::String { escaped: false }, b'"') => Within::Brackets,
                    (Within::String { .. }, _) => Within::String { escaped: false },
                    (within, byte) => {
                        if matches!(within, Within::Nothing) {
                            begin = self.line;
                        }
                        match (within, byte) {
                            (Within::Nothing | Within::Brackets, b'"') => Within::String { escaped: false },
                            (Within::Nothing | Within::Brackets, b'{' | b'[') => {
                                depth += 1;
                                Within::Brackets
                            }
                            (Within::Brackets, b'}' | b']') => {
                                depth -= 1;
                                Within::Brackets
                            }
                            (Within::Nothing, _) => Within::Word,
                            (within, _) => within,
                        }
                    }
                };
                if matches!(within, Within::Brackets) && depth == 0 {
                    is_whole = true;
                    break;
                }
            }
            self.text.extend_from_slice(&block[from..to]);
            self.from.consume(to);
            if is_whole {
                return Ok(Some(begin));
            }
            if self.text.len() > MAX {
                let message =
                    format!("an operation of more than {} MiB (copy_file copies files of any size)", MAX >> 20);
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn ops_may_be_pretty_or_one_a_line_and_a_mistake_names_its_number_and_line() {
        let text = "{\"op\":\"remove\",\"path\":\"/a\"}\n{\n  \"op\": \"remove\",\n  \"path\": \"/b\"\n}\n\n{\"op\":\"x\"}\n\
                    {\"op\":\"remove\",\"path\":\"/c\"} {\"op\":\"y\"}\n\n  oops\n{}";
        let ops: Vec<_> = read(text.as_bytes()).map(|value| (value.n, value.line, value.op.is_ok())).collect();
        assert_eq!(ops, [(1, 1, true), (2, 2, true), (3, 7, false), (4, 8, true), (5, 8, false), (6, 10, false)]);
    }

    #[test]
    fn an_operation_is_told_from_a_record() {
        for (value, expected) in [
            (r#"{"op":"remove","path":"/a"}"#, true),
            (r#"{"path":"/a","op":1}"#, true),
            (r#"{"msb":1}"#, false),
            (r#"{"msb":1,"op":"x"}"#, false),
            ("{}", false),
            ("oops", false),
            ("[]", false),
        ] {
            assert_eq!(is_operation(value.as_bytes()), expected, "{value}");
        }
    }

    #[test]
    fn where_a_value_ends_does_not_depend_on_how_it_is_read() {
        let text = "{\"op\":\"text\",\"path\":\"/a\\\"}\",\"content\":\"\\\\\"}[{}]7\n\"x\\\"{\" {\"op\":\"remove\",\"path\":\"/[\"}\n null{}";
        let values = |from: &mut dyn BufRead| -> Vec<_> {
            read(from).map(|value| (value.n, value.line, value.op.map_err(|error| error.to_string()))).collect()
        };
        let whole = values(&mut text.as_bytes());
        assert_eq!(whole.iter().map(|(_, line, _)| *line).collect::<Vec<_>>(), [1, 1, 1, 2, 2, 3, 3]);
        assert!(matches!(&whole[0].2, Ok(Op::Text(text)) if *text.path == *"/a\"}" && text.content == "\\"));
        for size in 1..20 {
            assert_eq!(values(&mut io::BufReader::with_capacity(size, text.as_bytes())), whole);
        }
    }

    #[test]
    fn a_byte_order_mark_and_carriage_returns_count_for_nothing() {
        let remove = "{\"op\":\"remove\",\"path\":\"/a\"}";
        for (text, expected) in [
            (format!("\u{feff}{remove}\r\n{remove}\r\n"), vec![(1, true), (2, true)]),
            (format!("\u{feff}\r\n {remove}"), vec![(2, true)]),
            ("\u{feff}{\r\n\"op\":\r\n\"remove\",\"path\":\"/a\"}\r\n".to_string(), vec![(1, true)]),
            ("\u{feff}".to_owned(), vec![]),
            ("\u{feff}\n".to_owned(), vec![]),
            (format!("\u{feff}\u{feff}{remove}"), vec![(1, false)]),
            (format!("{remove}\u{feff}{remove}"), vec![(1, true), (1, false)]),
            (format!("\u{feff}oops {remove}"), vec![(1, false)]),
        ] {
            for size in 1..8 {
                let values: Vec<_> = read(io::BufReader::with_capacity(size, text.as_bytes())).collect();
                let values: Vec<_> = values.iter().map(|value| (value.line, value.op.is_ok())).collect();
                assert_eq!(values, expected, "{text:?} in blocks of {size}");
            }
        }
    }

    #[test]
    fn an_operation_without_an_end_is_refused() {
        let endless = br#"{"op":"text","path":"/a","content":""#.chain(io::repeat(b'x'));
        let values: Vec<_> = read(io::BufReader::new(endless)).map(|value| value.op.unwrap_err().to_string()).collect();
        assert_eq!(values.len(), 1);
        assert!(values[0].contains("more than 64 MiB"), "{values:?}");
    }
}
