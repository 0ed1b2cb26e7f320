//! The stream of operations: JSON values, pretty or one a line. Each is held by itself, so that a list may be of any length,
//! and a mistake in one leaves the others readable.

use std::fmt;
use std::io::{self, BufRead};

use anyhow::{anyhow, bail};
use serde::de::value::StrDeserializer;
use serde::de::{Deserialize, DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, VariantAccess, Visitor};
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
    let mut values = Values { from, line: 1, text: Vec::new() };
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
            Ok(line) => match serde_json::from_slice(&values.text) {
                Ok(Written(op)) => (line, Ok(op)),
                Err(_) => match serde_json::from_slice(&values.text) {
                    Ok(Members(members)) => (line, parse(members)),
                    Err(error) if error.is_data() => {
                        (line, Err(anyhow!("{} (an operation is an object)", without_place(&error))))
                    }
                    Err(error) => {
                        broken = true;
                        (line + error.line() - 1, Err(anyhow!(without_place(&error))))
                    }
                },
            },
        };
        Some(Numbered { n, line, op })
    })
}

/// An operation as almost all are written: the member "op" first, and no mistake. It is read as it comes; all else goes the
/// long way of [`Members`] and [`parse`], which has the words.
struct Written(Op);

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct OpFirst;
        impl<'de> Visitor<'de> for OpFirst {
            type Value = Op;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an operation")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Op, A::Error> {
                match entries.next_key::<&'de str>()? {
                    Some("op") => Op::deserialize(Tagged { op: entries.next_value()?, rest: entries }),
                    _ => Err(A::Error::custom("the operation's name does not come first")),
                }
            }
        }
        from.deserialize_map(OpFirst).map(Self)
    }
}

/// An operation's name, and its members behind it.
struct Tagged<'de, A> {
    op: &'de str,
    rest: A,
}

impl<'de, A: MapAccess<'de>> Deserializer<'de> for Tagged<'de, A> {
    type Error = A::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, A::Error> {
        visitor.visit_enum(self)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct seq tuple
        tuple_struct map struct enum identifier ignored_any
    }
}

impl<'de, A: MapAccess<'de>> EnumAccess<'de> for Tagged<'de, A> {
    type Error = A::Error;
    type Variant = Rest<A>;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Rest<A>), A::Error> {
        Ok((seed.deserialize(StrDeserializer::new(self.op))?, Rest(self.rest)))
    }
}

/// The members of an operation whose name is known.
struct Rest<A>(A);

impl<'de, A: MapAccess<'de>> VariantAccess<'de> for Rest<A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        Err(A::Error::custom("every operation has members"))
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, A::Error> {
        Err(A::Error::custom("every operation has members"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, A::Error> {
        Err(A::Error::custom("every operation has members"))
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], visitor: V) -> Result<V::Value, A::Error> {
        visitor.visit_map(self.0)
    }
}

/// One operation.
///
/// # Errors
/// Words that name the member.
fn parse(mut members: Map<String, Value>) -> anyhow::Result<Op> {
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

/// The stream, cut into values. Where one ends is all that is decided here; whether it is one is the parser's to say.
struct Values<R> {
    from: R,
    /// Where the reader is, from 1.
    line: usize,
    /// The value that was read last.
    text: Vec<u8>,
}

/// Where in a value a reader is.
#[derive(Clone, Copy)]
enum Within {
    /// Between values.
    Nothing,
    /// A word or a number, which ends before what can be no part of it.
    Word,
    /// A string; `escaped`: behind a backslash.
    String { escaped: bool },
    /// An array or an object, between strings.
    Brackets,
}

impl<R: BufRead> Values<R> {
    /// Reads one value into `text`; says the line that it begins at. What is cut off at the end of the stream is one too.
    fn next(&mut self) -> io::Result<Option<usize>> {
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
                let words = format!("an operation of more than {} MiB (copy_file takes files of any size)", MAX >> 20);
                return Err(io::Error::new(io::ErrorKind::InvalidData, words));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn one(text: &str) -> Result<Op, String> {
        // The short way is never another way.
        if let Ok(Written(op)) = serde_json::from_str(text) {
            let Members(members) = serde_json::from_str(text).unwrap();
            assert_eq!(parse(members).unwrap(), op);
        }
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
        let Ok(Op::Text { path, .. }) = one(r#"{"\u006fp":"te\u0078t","path":"/\u0061","content":""}"#) else {
            panic!()
        };
        assert_eq!(path, "/a");
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
            (r#"{"op":"remove","op":"remove","path":"/a"}"#, "member \"op\" is there twice"),
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
    fn where_a_value_ends_does_not_depend_on_how_it_is_read() {
        let text = "{\"op\":\"text\",\"path\":\"/a\\\"}\",\"content\":\"\\\\\"}[{}]7\n\"x\\\"{\" {\"op\":\"remove\",\"path\":\"/[\"}\n null{}";
        let values = |from: &mut dyn BufRead| -> Vec<_> {
            read(from).map(|value| (value.n, value.line, value.op.map_err(|error| error.to_string()))).collect()
        };
        let whole = values(&mut text.as_bytes());
        assert_eq!(whole.iter().map(|(_, line, _)| *line).collect::<Vec<_>>(), [1, 1, 1, 2, 2, 3, 3]);
        assert!(matches!(&whole[0].2, Ok(Op::Text { path, content, .. }) if path == "/a\"}" && content == "\\"));
        for size in 1..20 {
            assert_eq!(values(&mut io::BufReader::with_capacity(size, text.as_bytes())), whole);
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
