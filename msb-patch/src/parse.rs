//! One operation, from its text.

use std::fmt;

use anyhow::{anyhow, bail};
use serde::de::value::StrDeserializer;
use serde::de::{Deserialize, DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, VariantAccess, Visitor};
use serde_json::{Map, Value};

use crate::op::Op;

/// What is wrong with a text.
#[derive(Debug, thiserror::Error)]
pub enum Mistake {
    /// It is JSON, and no operation; the words name the member.
    #[error("{0}")]
    Operation(String),
    /// It is no JSON.
    #[error("{words}")]
    Json {
        /// The line of the text where it ceases to be, from 1.
        line: usize,
        /// Why.
        words: String,
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
        Ok(Members(members)) => tagged(members).map_err(|error| Mistake::Operation(error.to_string())),
        Err(error) if error.is_data() => {
            Err(Mistake::Operation(format!("{} (an operation is an object)", without_place(&error))))
        }
        Err(error) => Err(Mistake::Json { line: error.line(), words: without_place(&error) }),
    }
}

/// An operation as almost all are written: the member "op" first, and no mistake. It is read as it comes; all else goes the
/// long way of [`Members`] and [`tagged`], which has the words.
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

/// The operation that an object is, the long way.
fn tagged(mut members: Map<String, Value>) -> anyhow::Result<Op> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Result<Op, String> {
        // The short way is never another way.
        if let Ok(Written(op)) = serde_json::from_str(text) {
            let Members(members) = serde_json::from_str(text).unwrap();
            assert_eq!(tagged(members).unwrap(), op);
        }
        parse(text.as_bytes()).map_err(|error| error.to_string())
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
}
