//! The operations, one file each. Unknown members are errors. `man/msb-ops.5` specifies them.

use std::ffi::OsStr;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess};

use crate::operation::Operation;
use crate::target::{Done, Target};

/// Defines [`Op`] from the operations on the root. Each is a struct in a module with the operation's name.
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
            /// Add a script to the record, for /.msb/scripts.
            Script(Script),
        }

        impl Op {
            /// The names of all operations.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name),)+ "script"];

            /// Its name, the member `op`.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$Op(_) => stringify!($name),)+
                    Self::Script(_) => "script",
                }
            }

            /// The operation, unless it is a script, which does not change the root.
            pub fn on_root(&self) -> Option<&dyn Operation> {
                match self {
                    $(Self::$Op(op) => Some(op),)+
                    Self::Script(_) => None,
                }
            }

            /// Deserializes the members of the operation with this name.
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
    /// Create a directory and its parents.
    mkdir::Mkdir,
    /// Append to a file.
    append::Append,
    /// Replace lines of a file.
    edit::Edit,
    /// Copy a file of the host.
    copy_file::CopyFile,
    /// Copy a directory tree of the host.
    copy_dir::CopyDir,
    /// Create a symlink.
    symlink::Symlink,
    /// Create a hardlink.
    hardlink::Hardlink,
    /// Move a file or directory.
    rename::Rename,
    /// Remove a file or a directory tree.
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
    /// Its name and its subject, for messages and reports: the path, or the name of a script.
    pub fn subject(&self) -> (&'static str, &OsStr) {
        let subject = match self {
            Self::Script(script) => script.name.as_ref(),
            op => op.on_root().expect("only a script is not on the root").path(),
        };
        (self.name(), subject)
    }

    /// Runs the operation. A script is not a file of the root, and nothing is done for it.
    ///
    /// # Errors
    /// A message without the operation's name and path.
    pub fn run(&self, target: &mut Target) -> anyhow::Result<Done> {
        match self.on_root() {
            Some(op) => op.run(target).map_err(|error| target.user.explain(error)),
            None => Ok(Done::default()),
        }
    }
}
