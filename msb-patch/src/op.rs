//! The operations as they are written: one JSON object each, strict. `man/msb-ops.5` specifies them.

use std::io::Read;
use std::path::PathBuf;

use base64::Engine;
use serde::{Deserialize, Deserializer};

/// One operation.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Op {
    /// Write a text file.
    Text {
        /// Where.
        path: String,
        /// What.
        content: String,
        /// Permissions.
        #[serde(default)]
        mode: Option<Mode>,
        /// Owner.
        #[serde(default)]
        uid: Option<u32>,
        /// Group.
        #[serde(default)]
        gid: Option<u32>,
        /// Overwrite what is there.
        #[serde(default)]
        replace: bool,
    },
    /// Write a file of any bytes.
    File {
        /// Where.
        path: String,
        /// What.
        content_base64: Base64,
        /// Permissions.
        #[serde(default)]
        mode: Option<Mode>,
        /// Owner.
        #[serde(default)]
        uid: Option<u32>,
        /// Group.
        #[serde(default)]
        gid: Option<u32>,
        /// Overwrite what is there.
        #[serde(default)]
        replace: bool,
    },
    /// Make a directory and its parents.
    Mkdir {
        /// Where.
        path: String,
        /// Permissions, also of a directory that is there.
        #[serde(default)]
        mode: Option<Mode>,
        /// Owner.
        #[serde(default)]
        uid: Option<u32>,
        /// Group.
        #[serde(default)]
        gid: Option<u32>,
    },
    /// Add to the end of a file.
    Append {
        /// Where.
        path: String,
        /// What.
        content: String,
    },
    /// Copy a file of the host.
    CopyFile {
        /// On the host.
        src: PathBuf,
        /// In the image.
        dst: String,
        /// Permissions.
        #[serde(default)]
        mode: Option<Mode>,
        /// Owner.
        #[serde(default)]
        uid: Option<u32>,
        /// Group.
        #[serde(default)]
        gid: Option<u32>,
        /// Overwrite what is there.
        #[serde(default)]
        replace: bool,
    },
    /// Copy a directory of the host, with all below it, into one that may be there.
    CopyDir {
        /// On the host.
        src: PathBuf,
        /// In the image.
        dst: String,
        /// Overwrite files that are there.
        #[serde(default)]
        replace: bool,
    },
    /// Make a symlink.
    Symlink {
        /// What it holds.
        target: String,
        /// Where it is.
        link: String,
        /// Overwrite what is there.
        #[serde(default)]
        replace: bool,
    },
    /// Remove a file, or a directory with all below it.
    Remove {
        /// Where.
        path: String,
    },
    /// A script for /.msb/scripts.
    Script {
        /// What it is called by.
        name: String,
        /// What is in it.
        content: String,
    },
}

impl Op {
    /// The operation's name and the path it is about, for words and reports.
    pub fn subject(&self) -> (&'static str, &str) {
        match self {
            Self::Text { path, .. } => ("text", path),
            Self::File { path, .. } => ("file", path),
            Self::Mkdir { path, .. } => ("mkdir", path),
            Self::Append { path, .. } => ("append", path),
            Self::CopyFile { dst, .. } => ("copy_file", dst),
            Self::CopyDir { dst, .. } => ("copy_dir", dst),
            Self::Symlink { link, .. } => ("symlink", link),
            Self::Remove { path } => ("remove", path),
            Self::Script { name, .. } => ("script", name),
        }
    }
}

/// Permission bits: one to four octal digits in a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode(pub u32);

impl<'de> Deserialize<'de> for Mode {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)
            .map_err(|_| serde::de::Error::custom("mode: a quoted octal number is expected, as in \"0644\""))?;
        let is_octal = !text.is_empty() && text.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
        match u32::from_str_radix(&text, 8) {
            Ok(mode) if is_octal && mode <= 0o7777 => Ok(Self(mode)),
            _ => Err(serde::de::Error::custom(format!("mode {text:?}: not an octal number from \"0000\" to \"7777\""))),
        }
    }
}

/// Bytes, written in base64.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base64(pub Vec<u8>);

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let bytes = base64::engine::general_purpose::STANDARD.decode(text.trim());
        bytes.map(Self).map_err(|error| serde::de::Error::custom(format!("content_base64: {error}")))
    }
}

/// Reads operations one by one, however they are spaced. An error names the line; nothing can be read behind it.
pub fn read(from: impl Read) -> impl Iterator<Item = Result<Op, serde_json::Error>> {
    let mut values = serde_json::Deserializer::from_reader(from).into_iter::<Op>();
    let mut failed = false;
    std::iter::from_fn(move || {
        let next = if failed { None } else { values.next() };
        failed |= matches!(next, Some(Err(_)));
        next
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Result<Op, String> {
        let mut ops = read(text.as_bytes());
        let op = ops.next().expect("one op").map_err(|error| error.to_string());
        assert!(ops.next().is_none());
        op
    }

    #[test]
    fn every_op_is_read_with_its_members() {
        for (text, subject) in [
            (r#"{"op":"text","path":"/a","content":"x","mode":"0600","uid":1,"gid":2,"replace":true}"#, ("text", "/a")),
            (r#"{"op":"file","path":"/a","content_base64":"AAH/"}"#, ("file", "/a")),
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
    fn a_mistake_is_named() {
        for (text, words) in [
            (r#"{"op":"chmod","path":"/a"}"#, "unknown variant `chmod`"),
            (r#"{"path":"/a"}"#, "missing field `op`"),
            (r#"{"op":"text","path":"/a"}"#, "missing field `content`"),
            (r#"{"op":"text","path":"/a","content":"","modee":"0644"}"#, "unknown field `modee`"),
            (r#"{"op":"remove","path":"/a","replace":true}"#, "unknown field `replace`"),
            (r#"{"op":"text","path":7,"content":""}"#, "expected a string"),
            (r#"{"op":"mkdir","path":"/a","mode":755}"#, "quoted octal"),
            (r#"{"op":"mkdir","path":"/a","mode":"0o755"}"#, "not an octal number"),
            (r#"{"op":"mkdir","path":"/a","mode":"0888"}"#, "not an octal number"),
            (r#"{"op":"mkdir","path":"/a","mode":"+755"}"#, "not an octal number"),
            (r#"{"op":"mkdir","path":"/a","mode":"17777"}"#, "not an octal number"),
            (r#"{"op":"mkdir","path":"/a","uid":-1}"#, "invalid value"),
            (r#"{"op":"file","path":"/a","content_base64":"A*"}"#, "content_base64"),
            (r#"{"op":"text","#, "EOF"),
            ("[]", "missing field `op`"),
            ("7", "invalid type"),
        ] {
            let error = one(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn ops_may_be_pretty_or_one_a_line_and_a_mistake_names_its_line() {
        let text =
            "{\"op\":\"remove\",\"path\":\"/a\"}\n{\n  \"op\": \"remove\",\n  \"path\": \"/b\"\n}\n\n{\"op\":\"x\"}\n";
        let ops: Vec<_> = read(text.as_bytes()).collect();
        assert_eq!(ops.len(), 3);
        assert!(ops[0].is_ok() && ops[1].is_ok());
        assert_eq!(ops[2].as_ref().unwrap_err().line(), 7);
    }
}
