//! The operations, one file each, with their members as they are written: strict. `man/msb-ops.5` specifies them.

use std::ffi::OsStr;
use std::fmt;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess};

use crate::target::{Done, Target};

/// What an operation on the root does.
pub trait Operation: fmt::Debug {
    /// The path that it is about, for messages and reports.
    fn path(&self) -> &OsStr;

    /// Carries it out in an upper that nobody sees yet. What was asked for may be so already; then nothing changes.
    ///
    /// # Errors
    /// A message without the operation's name and path.
    fn run(&self, target: &mut Target) -> anyhow::Result<Done>;
}

/// Makes [`Op`] of the operations on the root, each of which is the struct of that name in the module that is called as the
/// operation is.
macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident::$Op:ident,)+) => {
        $(mod $name;)+
        mod script;

        $(pub use $name::$Op;)+
        pub use script::Script;

        /// One operation.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Op {
            $($(#[$doc])* $Op($Op),)+
            /// Put a script into the record, for /.msb/scripts.
            Script(Script),
        }

        impl Op {
            /// What `op` may be.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name),)+ "script"];

            /// What `op` says.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$Op(_) => stringify!($name),)+
                    Self::Script(_) => "script",
                }
            }

            /// The operation, if it changes the root.
            pub fn on_root(&self) -> Option<&dyn Operation> {
                match self {
                    $(Self::$Op(op) => Some(op),)+
                    Self::Script(_) => None,
                }
            }

            /// Reads the members of the operation that has this name.
            pub(crate) fn read<'de, A: MapAccess<'de>>(name: &str, members: A) -> Result<Self, A::Error> {
                let members = MapAccessDeserializer::new(members);
                match name {
                    $(stringify!($name) => $Op::deserialize(members).map(Self::$Op),)+
                    "script" => Script::deserialize(members).map(Self::Script),
                    _ => Err(A::Error::unknown_variant(name, Self::NAMES)),
                }
            }
        }
    };
}

operations! {
    /// Write a text file.
    text::Text,
    /// Write a file of any bytes.
    file::File,
    /// Make a directory and its parents.
    mkdir::Mkdir,
    /// Add to the end of a file.
    append::Append,
    /// Replace lines of a file.
    edit::Edit,
    /// Copy a file of the host.
    copy_file::CopyFile,
    /// Copy a directory of the host, with all below it.
    copy_dir::CopyDir,
    /// Make a symlink.
    symlink::Symlink,
    /// Give a file another name besides the one that it has.
    hardlink::Hardlink,
    /// Move a file or directory.
    rename::Rename,
    /// Remove a file, or a directory with all below it.
    remove::Remove,
    /// Set a mode.
    chmod::Chmod,
    /// Set an owner and group.
    chown::Chown,
    /// Set a modification time.
    touch::Touch,
    /// Set or remove an extended attribute.
    xattr::Xattr,
    /// Set or remove a file's capabilities.
    capability::Capability,
}

impl Op {
    /// The operation's name and what it is about, for messages and reports: the path; of a script the name.
    pub fn subject(&self) -> (&'static str, &OsStr) {
        let subject = match self {
            Self::Script(script) => script.name.as_ref(),
            op => op.on_root().expect("all others are on the root").path(),
        };
        (self.name(), subject)
    }
}

/// The default of members that are true without being written.
pub(crate) fn yes() -> bool {
    true
}
