//! One operation, from its text.

use std::borrow::Cow;
use std::fmt;

use serde::de::value::{MapDeserializer, StrDeserializer};
use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, IntoDeserializer, MapAccess, Visitor};
use serde_json::{Map, Value};

use crate::hint::nearest;
use crate::member::Base64;
use crate::op::Op;

/// Members that hold paths. Each may be written in base64 instead, as that name and `_base64`.
const PATHS: [&str; 7] = ["path", "src", "dst", "link", "target", "from", "to"];
const CODED: &str = "_base64";

/// What is wrong with a text.
#[derive(Debug, thiserror::Error)]
pub enum Mistake {
    /// It is JSON but not an operation; the message names the member.
    #[error("{0}")]
    Operation(String),
    /// It is not JSON.
    #[error("{message}")]
    Json {
        /// The line of the text where it ceases to be, from 1.
        line: usize,
        /// Why.
        message: String,
    },
}

/// Reads an operation.
///
/// # Errors
/// See [`Mistake`].
pub fn parse(text: &[u8]) -> Result<Op, Mistake> {
    if let Ok(Written(op)) = serde_json::from_slice(text) {
        return Ok(op);
    }
    match serde_json::from_slice(text) {
        Ok(Object(members)) => from_members(members).map_err(Mistake::Operation),
        Err(error) if error.is_data() => Err(Mistake::Operation(without_place(&error))),
        Err(error) => Err(Mistake::Json { line: error.line(), message: not_json(&error) }),
    }
}

/// An operation as almost all are written: the member "op" first, and no mistake. It is read as it comes; all else goes the
/// long way of [`Object`] and [`from_members`], which has the messages.
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
                    Some("op") => Op::read(entries.next_value::<&'de str>()?, Members::of(entries)),
                    _ => Err(A::Error::custom("the operation's name does not come first")),
                }
            }
        }
        from.deserialize_map(OpFirst).map(Self)
    }
}

/// The operation that an object is.
///
/// # Errors
/// A message that names the member.
fn from_members(mut members: Map<String, Value>) -> Result<Op, String> {
    let op = match members.remove("op") {
        Some(Value::String(op)) => op,
        Some(_) => return Err("member \"op\": a string is expected".to_owned()),
        None => return Err("member \"op\" is missing".to_owned()),
    };
    for path in PATHS {
        if members.contains_key(path) && members.contains_key(&format!("{path}{CODED}")) {
            return Err(format!("members \"{path}\" and \"{path}{CODED}\": one of them is expected"));
        }
    }
    let members: MapDeserializer<'_, _, serde_json::Error> = MapDeserializer::new(members.into_iter());
    Op::read(&op, Members::of(members))
        .map_err(|error| with_hint(&error.to_string().replace("unknown variant", "unknown operation")))
}

/// A message of serde's about a name that is unknown, with the one that was probably meant in place of all there are.
fn with_hint(message: &str) -> String {
    let mut names = message.split('`').skip(1).step_by(2);
    if !message.starts_with("unknown ") {
        return message.to_owned();
    }
    let Some(written) = names.next() else { return message.to_owned() };
    let known: Vec<&str> = names.collect();
    match (nearest(written, &known), message.split_once(", ")) {
        (Some(meant), Some((unknown, _))) => format!("{unknown} (did you mean {meant}?)"),
        _ => message.to_owned(),
    }
}

/// That a text is not JSON, and why if more than its first character is at fault.
fn not_json(error: &serde_json::Error) -> String {
    let message = "not JSON (operations are JSON objects, see msb-ops(5))";
    match without_place(error) {
        why if why == "expected value" => message.to_owned(),
        why => format!("{message}: {why}"),
    }
}

/// serde_json says the place in the value, and the caller knows the one in the stream.
fn without_place(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    message.strip_suffix(&place).unwrap_or(&message).to_owned()
}

/// The members of an operation behind its name: paths in base64 are decoded, and an error names the member.
struct Members<'de, A> {
    entries: A,
    /// The member whose value comes next.
    name: Cow<'de, str>,
    is_coded: bool,
}

impl<'de, A: MapAccess<'de>> Members<'de, A> {
    fn of(entries: A) -> Self {
        Self { entries, name: Cow::Borrowed(""), is_coded: false }
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Members<'de, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        let Some(Text(name)) = self.entries.next_key()? else { return Ok(None) };
        self.name = name;
        let decoded = self.name.strip_suffix(CODED).filter(|path| PATHS.contains(path));
        self.is_coded = decoded.is_some();
        let key: StrDeserializer<'_, A::Error> = decoded.unwrap_or(&self.name).into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        let value = if self.is_coded {
            self.entries.next_value().and_then(|Base64(path)| seed.deserialize(Bytes(path, std::marker::PhantomData)))
        } else {
            self.entries.next_value_seed(seed)
        };
        value.map_err(|error| A::Error::custom(format!("member {:?}: {error}", self.name)))
    }
}

/// A string that is borrowed where the text has it without escapes.
struct Text<'de>(Cow<'de, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }

            fn visit_string<E: Error>(self, text: String) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text)))
            }
        }
        from.deserialize_str(Either)
    }
}

/// Bytes for a visitor that takes them.
struct Bytes<E>(Vec<u8>, std::marker::PhantomData<E>);

impl<'de, E: Error> Deserializer<'de> for Bytes<E> {
    type Error = E;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, E> {
        visitor.visit_byte_buf(self.0)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct seq tuple
        tuple_struct map struct enum identifier ignored_any
    }
}

/// The members of an object, each of which is there once.
struct Object(Map<String, Value>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Once;
        impl<'de> Visitor<'de> for Once {
            type Value = Map<String, Value>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an operation, which is an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
                let mut members = Map::new();
                while let Some((name, value)) = entries.next_entry::<String, Value>()? {
                    if members.contains_key(&name) {
                        return Err(A::Error::custom(format!("duplicate member {name:?}")));
                    }
                    members.insert(name, value);
                }
                Ok(members)
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, _: A) -> Result<Self::Value, A::Error> {
                Err(A::Error::custom(
                    "an array, and an operation is an object (write one behind the other, without brackets and commas)",
                ))
            }
        }
        from.deserialize_any(Once).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    fn one(text: &str) -> Result<Op, String> {
        // The short way is never another way.
        if let Ok(Written(op)) = serde_json::from_str(text) {
            let Object(members) = serde_json::from_str(text).unwrap();
            assert_eq!(from_members(members).unwrap(), op);
        }
        parse(text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn every_op_is_read_with_its_members() {
        let mut names = Vec::new();
        for (text, subject) in [
            (
                r#"{"op":"text","path":"/a","content":"x","mode":"0600","uid":1,"gid":"adm","replace":true,"create":false}"#,
                ("text", "/a"),
            ),
            (r#"{"path":"/a","content_base64":"AAH/","op":"file"}"#, ("file", "/a")),
            (r#"{"op":"mkdir","path":"/a","mode":"1777"}"#, ("mkdir", "/a")),
            (r#"{"op":"append","path":"/a","content":"x","once":true,"create":true}"#, ("append", "/a")),
            (r#"{"op":"edit","path":"/a","line":"x","with":"y","count":1}"#, ("edit", "/a")),
            (r#"{"op":"edit","path":"/a","regex":"^x","with":"y"}"#, ("edit", "/a")),
            (r#"{"op":"copy_file","src":"s","dst":"/d","mode":"644"}"#, ("copy_file", "/d")),
            (
                r#"{"op":"copy_dir","src":"s","dst":"/d","replace":false,"mode":"0640","uid":1,"gid":2}"#,
                ("copy_dir", "/d"),
            ),
            (r#"{"op":"symlink","target":"t","link":"/l"}"#, ("symlink", "/l")),
            (r#"{"op":"hardlink","target":"/t","link":"/l","replace":true}"#, ("hardlink", "/l")),
            (r#"{"op":"rename","from":"/f","to":"/t","replace":true}"#, ("rename", "/f")),
            (r#"{"op":"remove","path":"/a"}"#, ("remove", "/a")),
            (r#"{"op":"chmod","path":"/a","mode":"0700"}"#, ("chmod", "/a")),
            (r#"{"op":"chown","path":"/a","uid":"root","recursive":true,"follow":false}"#, ("chown", "/a")),
            (r#"{"op":"touch","path":"/a","mtime":-1,"create":false,"follow":false}"#, ("touch", "/a")),
            (r#"{"op":"touch","path":"/a","mtime":"2026-01-31T12:00:00Z"}"#, ("touch", "/a")),
            (r#"{"op":"xattr","path":"/a","name":"user.a","value":"x"}"#, ("xattr", "/a")),
            (r#"{"op":"xattr","path":"/a","name":"user.a","value_base64":"AA=="}"#, ("xattr", "/a")),
            (r#"{"op":"xattr","path":"/a","name":"user.a","remove":true,"follow":false}"#, ("xattr", "/a")),
            (r#"{"op":"capability","path":"/a","caps":"cap_kill=ep","rootid":5}"#, ("capability", "/a")),
            (r#"{"op":"script","name":"setup","content":"","replace":true}"#, ("script", "setup")),
        ] {
            let op = one(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(op.subject(), (subject.0, OsStr::new(subject.1)));
            names.push(op.name());
        }
        names.dedup();
        assert_eq!(names, Op::NAMES);
        let Ok(Op::Text(text)) = one(r#"{"\u006fp":"te\u0078t","path":"/\u0061","con\u0074ent":""}"#) else { panic!() };
        assert_eq!(*text.path, *OsStr::new("/a"));
        assert!(text.create && !text.replace);
        let Ok(Op::File(file)) = one(r#"{"op":"file","path":"/a","content_base64":"AA\nH/"}"#) else { panic!() };
        assert_eq!(file.content_base64.0, [0, 1, 255]);
    }

    #[test]
    fn every_path_may_be_in_base64() {
        use std::os::unix::ffi::OsStrExt;
        for (plain, coded) in [
            (r#"{"op":"remove","path":"/a"}"#, r#"{"op":"remove","path_base64":"L2E="}"#),
            (
                r#"{"op":"copy_file","src":"/a","dst":"/a"}"#,
                r#"{"op":"copy_file","src_base64":"L2E=","dst_base64":"L2\nE="}"#,
            ),
            (
                r#"{"op":"symlink","target":"/a","link":"/a"}"#,
                r#"{"target_base64":"L2E=","link_base64":"L2E=","op":"symlink"}"#,
            ),
            (
                r#"{"op":"rename","from":"/a","to":"/a"}"#,
                r#"{"op":"rename","fro\u006d_base64":"L2E=","to_base64":"L2E="}"#,
            ),
        ] {
            assert_eq!(one(coded).unwrap(), one(plain).unwrap(), "{coded}");
        }
        let Ok(Op::Remove(remove)) = one(r#"{"op":"remove","path_base64":"L/8="}"#) else { panic!() };
        assert_eq!(remove.path.as_bytes(), b"/\xff");
    }

    #[test]
    fn a_mistake_names_its_member() {
        for (text, message) in [
            (r#"{"op":"teleport","path":"/a"}"#, "unknown operation `teleport`, expected one of `text`, `file`"),
            (r#"{"op":"copyFile","src":"a","dst":"/a"}"#, "unknown operation `copyFile` (did you mean copy_file?)"),
            (r#"{"op":"Chmod","path":"/a"}"#, "unknown operation `Chmod` (did you mean chmod?)"),
            (r#"{"path":"/a"}"#, "member \"op\" is missing"),
            (r#"{"op":7}"#, "member \"op\": a string is expected"),
            (r#"{"op":"remove","op":"remove","path":"/a"}"#, "duplicate member \"op\""),
            (r#"{"op":"text","path":"/a"}"#, "missing field `content`"),
            (r#"{"op":"text","path":"/a","content":"","modee":"0644"}"#, "unknown field `modee` (did you mean mode?)"),
            (r#"{"op":"remove","path":"/a","replace":true}"#, "unknown field `replace`, expected `path`"),
            (
                r#"{"op":"file","path":"/a","contentBase64":""}"#,
                "unknown field `contentBase64` (did you mean content_base64?)",
            ),
            (r#"{"op":"copy_file","source":"a","dst":"/a"}"#, "unknown field `source` (did you mean src?)"),
            (r#"{"op":"remove","path":"/a","path":"/b"}"#, "duplicate member \"path\""),
            (
                r#"{"op":"remove","path":"/a","path_base64":"L2E="}"#,
                "members \"path\" and \"path_base64\": one of them is expected",
            ),
            (
                r#"{"op":"remove","path_base64":"@2E="}"#,
                "member \"path_base64\": not base64: invalid character \"@\" at offset 0",
            ),
            (
                r#"{"op":"remove","path_base64":7}"#,
                "member \"path_base64\": invalid type: integer `7`, expected a string",
            ),
            (r#"{"op":"text","path":7,"content":""}"#, "member \"path\": invalid type: integer `7`, expected a string"),
            (r#"{"op":"text","path":"/a","content":null}"#, "member \"content\": invalid type: null"),
            (r#"{"op":"text","path":"/a","content":"","replace":"yes"}"#, "member \"replace\": invalid type"),
            (r#"{"op":"chmod","path":"/a"}"#, "missing field `mode`"),
            (
                r#"{"op":"chmod","path":"/a","mode":null}"#,
                "member \"mode\": invalid type: null, expected an octal number",
            ),
            (r#"{"op":"mkdir","path":"/a","mode":755}"#, "member \"mode\": a quoted octal number"),
            (r#"{"op":"mkdir","path":"/a","mode":"0o755"}"#, "member \"mode\": \"0o755\" is not an octal number"),
            (r#"{"op":"mkdir","path":"/a","mode":"0888"}"#, "member \"mode\": \"0888\" is not an octal number"),
            (r#"{"op":"mkdir","path":"/a","mode":"+755"}"#, "member \"mode\": \"+755\" is not an octal number"),
            (r#"{"op":"mkdir","path":"/a","mode":"17777"}"#, "member \"mode\": \"17777\" is not an octal number"),
            (r#"{"op":"mkdir","path":"/a","mode":""}"#, "member \"mode\": \"\" is not an octal number"),
            (
                r#"{"op":"mkdir","path":"/a","uid":-1}"#,
                "member \"uid\": invalid value: -1: not a number from 0 to 4294967294",
            ),
            (
                r#"{"op":"mkdir","path":"/a","uid":4294967295}"#,
                "member \"uid\": invalid value: 4294967295: 4294967295 is reserved",
            ),
            (
                r#"{"op":"mkdir","path":"/a","gid":"4294967295"}"#,
                "member \"gid\": invalid value: \"4294967295\": 4294967295 is reserved",
            ),
            (
                r#"{"op":"mkdir","path":"/a","gid":4294967296}"#,
                "member \"gid\": invalid value: 4294967296: not a number",
            ),
            (r#"{"op":"chown","path":"/a","uid":"a:b"}"#, "member \"uid\": \"a:b\": one user or group is expected"),
            (r#"{"op":"chown","path":"/a","uid":""}"#, "member \"uid\": a number or a name is expected"),
            (
                r#"{"op":"chown","path":"/a","uid":1.5}"#,
                "member \"uid\": invalid type: floating point `1.5`, expected a number or a name",
            ),
            (r#"{"op":"capability","path":"/a","caps":"cap_x=ep"}"#, "member \"caps\": unknown capability \"cap_x\""),
            (
                r#"{"op":"capability","path":"/a","caps":"","rootid":4294967295}"#,
                "member \"rootid\": 4294967295 is reserved",
            ),
            (
                r#"{"op":"touch","path":"/a","mtime":"now"}"#,
                "member \"mtime\": \"now\": seconds since 1970 or a time as in",
            ),
            (
                r#"{"op":"touch","path":"/a","mtime":18446744073709551615}"#,
                "member \"mtime\": 18446744073709551615: out of range",
            ),
            (
                r#"{"op":"edit","path":"/a","line":"a","with":"b","count":0}"#,
                "member \"count\": invalid value: integer `0`",
            ),
            (
                r#"{"op":"file","path":"/a","content_base64":"A*"}"#,
                "member \"content_base64\": not base64: invalid character \"*\" at offset 1",
            ),
            (r#"{"op":"text","#, "not JSON (operations are JSON objects, see msb-ops(5)): EOF"),
            ("# comment", "not JSON (operations are JSON objects, see msb-ops(5))"),
            ("[]", "an array, and an operation is an object"),
            ("7", "invalid type: integer `7`, expected an operation, which is an object"),
        ] {
            let error = one(text).unwrap_err();
            assert!(error.starts_with(message), "{text}: {error}");
        }
    }
}
