//! The stream of operations: JSON values, pretty or one a line. Each is held by itself, so that a list may be of any length,
//! and a mistake in one leaves the others readable.

use std::cell::Cell;
use std::fmt;
use std::io::{self, BufRead, Read};
use std::rc::Rc;

use anyhow::{anyhow, bail};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::op::Op;

/// The most that one operation may take as text, in bytes. Larger contents are files, and `copy_file` streams those.
pub const MAX: usize = 64 << 20;

/// One value of the stream.
#[derive(Debug)]
pub struct Numbered {
    /// Its number, from 1.
    pub n: usize,
    /// The line that it starts at, or at which the stream broke, from 1.
    pub line: usize,
    /// The operation, or what is wrong with it.
    pub op: anyhow::Result<Op>,
}

/// Reads operations one by one, however they are spaced. Behind what is no JSON nothing can be read.
pub fn read(from: impl BufRead) -> impl Iterator<Item = Numbered> {
    let place = Rc::new(Cell::new(Place { line: 1, start: None, length: 0 }));
    let counted = Counted { from, place: Rc::clone(&place) };
    let mut values = serde_json::Deserializer::from_reader(counted).into_iter::<Box<RawValue>>();
    let mut n = 0;
    let mut broken = false;
    std::iter::from_fn(move || {
        place.set(Place { start: None, length: 0, ..place.get() });
        let value = if broken { None } else { values.next() }?;
        n += 1;
        let (line, op) = match value {
            Ok(value) => (place.get().start.unwrap_or(1), parse(value.get())),
            Err(error) => {
                broken = true;
                (if error.line() == 0 { place.get().line } else { error.line() }, Err(anyhow!(without_place(&error))))
            }
        };
        Some(Numbered { n, line, op })
    })
}

/// One operation.
///
/// # Errors
/// Words that name the member.
fn parse(text: &str) -> anyhow::Result<Op> {
    let Members(mut members) =
        serde_json::from_str(text).map_err(|error| anyhow!("{} (an operation is an object)", without_place(&error)))?;
    let op = match members.remove("op") {
        Some(Value::String(op)) => op,
        Some(_) => bail!("member \"op\": a string is expected"),
        None => bail!("member \"op\" is missing"),
    };
    let tagged = Value::Object(Map::from_iter([(op, Value::Object(members))]));
    serde_path_to_error::deserialize(tagged).map_err(|error| {
        let path = error.path().to_string();
        // The variants are the operations.
        let words = without_place(error.inner()).replace("unknown variant", "unknown operation");
        match path.split_once('.') {
            Some((_, member)) if !words.contains(member) => anyhow!("member {member:?}: {words}"),
            _ => anyhow!(words),
        }
    })
}

/// serde_json says the place in the value, and the caller knows the one in the stream.
fn without_place(error: &serde_json::Error) -> String {
    let words = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    words.strip_suffix(&place).unwrap_or(&words).to_owned()
}

/// The members of an object, each of which is there once.
struct Members(Map<String, Value>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Once;
        impl<'de> Visitor<'de> for Once {
            type Value = Map<String, Value>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an operation")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
                let mut members = Map::new();
                while let Some((name, value)) = entries.next_entry::<String, Value>()? {
                    if members.contains_key(&name) {
                        return Err(A::Error::custom(format!("member {name:?} is there twice")));
                    }
                    members.insert(name, value);
                }
                Ok(members)
            }
        }
        from.deserialize_map(Once).map(Self)
    }
}

/// Where the reader is.
#[derive(Clone, Copy)]
struct Place {
    line: usize,
    /// The line of the value's first byte.
    start: Option<usize>,
    /// How much of the value was read, in bytes.
    length: usize,
}

/// A reader that counts lines. serde_json takes a byte at a time, and none behind the end of a value.
struct Counted<R> {
    from: R,
    place: Rc<Cell<Place>>,
}

impl<R: BufRead> Read for Counted<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let got = self.from.read(into)?;
        let mut place = self.place.get();
        for &byte in into.get(..got).unwrap_or_default() {
            if place.start.is_none() && !byte.is_ascii_whitespace() {
                place.start = Some(place.line);
            }
            place.length += usize::from(place.start.is_some());
            place.line += usize::from(byte == b'\n');
        }
        self.place.set(place);
        if place.length > MAX {
            let words = format!("an operation of more than {} MiB (copy_file takes files of any size)", MAX >> 20);
            return Err(io::Error::new(io::ErrorKind::InvalidData, words));
        }
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Result<Op, String> {
        let mut ops = read(text.as_bytes());
        let op = ops.next().expect("one op").op.map_err(|error| error.to_string());
        assert!(ops.next().is_none());
        op
    }

    #[test]
    fn every_op_is_read_with_its_members() {
        for (text, subject) in [
            (r#"{"op":"text","path":"/a","content":"x","mode":"0600","uid":1,"gid":2,"replace":true}"#, ("text", "/a")),
            (r#"{"path":"/a","content_base64":"AAH/","op":"file"}"#, ("file", "/a")),
            (r#"{"op":"mkdir","path":"/a","mode":"1777"}"#, ("mkdir", "/a")),
            (r#"{"op":"append","path":"/a","content":"x"}"#, ("append", "/a")),
            (r#"{"op":"copy_file","src":"s","dst":"/d","mode":"644"}"#, ("copy_file", "/d")),
            (r#"{"op":"copy_dir","src":"s","dst":"/d","replace":false}"#, ("copy_dir", "/d")),
            (r#"{"op":"symlink","target":"t","link":"/l"}"#, ("symlink", "/l")),
            (r#"{"op":"remove","path":"/a"}"#, ("remove", "/a")),
            (r#"{"op":"script","name":"setup","content":""}"#, ("script", "setup")),
        ] {
            let op = one(text).unwrap();
            assert_eq!(op.subject(), subject);
        }
        let Ok(Op::File { content_base64, .. }) = one(r#"{"op":"file","path":"/a","content_base64":"AAH/"}"#) else {
            panic!()
        };
        assert_eq!(content_base64.0, [0, 1, 255]);
    }

    #[test]
    fn a_mistake_names_its_member() {
        for (text, words) in [
            (r#"{"op":"chmod","path":"/a"}"#, "unknown operation `chmod`"),
            (r#"{"path":"/a"}"#, "member \"op\" is missing"),
            (r#"{"op":7}"#, "member \"op\": a string is expected"),
            (r#"{"op":"text","path":"/a"}"#, "missing field `content`"),
            (r#"{"op":"text","path":"/a","content":"","modee":"0644"}"#, "unknown field `modee`"),
            (r#"{"op":"remove","path":"/a","replace":true}"#, "unknown field `replace`"),
            (r#"{"op":"remove","path":"/a","path":"/b"}"#, "member \"path\" is there twice"),
            (r#"{"op":"text","path":7,"content":""}"#, "member \"path\": invalid type: integer `7`, expected a string"),
            (r#"{"op":"text","path":"/a","content":null}"#, "member \"content\": invalid type: null"),
            (r#"{"op":"text","path":"/a","content":"","replace":"yes"}"#, "member \"replace\": invalid type"),
            (r#"{"op":"mkdir","path":"/a","mode":755}"#, "member \"mode\": a quoted octal number"),
            (r#"{"op":"mkdir","path":"/a","mode":"0o755"}"#, "not an octal number"),
            (r#"{"op":"mkdir","path":"/a","mode":"0888"}"#, "not an octal number"),
            (r#"{"op":"mkdir","path":"/a","mode":"+755"}"#, "not an octal number"),
            (r#"{"op":"mkdir","path":"/a","mode":"17777"}"#, "not an octal number"),
            (r#"{"op":"mkdir","path":"/a","uid":-1}"#, "member \"uid\": invalid value"),
            (r#"{"op":"file","path":"/a","content_base64":"A*"}"#, "member \"content_base64\": "),
            (r#"{"op":"text","#, "EOF"),
            ("[]", "an operation is an object"),
            ("7", "an operation is an object"),
        ] {
            let error = one(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn ops_may_be_pretty_or_one_a_line_and_a_mistake_names_its_number_and_line() {
        let text = "{\"op\":\"remove\",\"path\":\"/a\"}\n{\n  \"op\": \"remove\",\n  \"path\": \"/b\"\n}\n\n{\"op\":\"x\"}\n\
                    {\"op\":\"remove\",\"path\":\"/c\"} {\"op\":\"y\"}\n\n  oops\n{}";
        let ops: Vec<_> = read(text.as_bytes()).map(|value| (value.n, value.line, value.op.is_ok())).collect();
        assert_eq!(ops, [(1, 1, true), (2, 2, true), (3, 7, false), (4, 8, true), (5, 8, false), (6, 10, false)]);
    }

    #[test]
    fn an_operation_without_an_end_is_refused() {
        let endless = br#"{"op":"text","path":"/a","content":""#.chain(io::repeat(b'x'));
        let values: Vec<_> = read(io::BufReader::new(endless)).map(|value| value.op.unwrap_err().to_string()).collect();
        assert_eq!(values.len(), 1);
        assert!(values[0].contains("more than 64 MiB"), "{values:?}");
    }
}
