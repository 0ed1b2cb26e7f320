//! Messages for the user about a boot.

use msb::tool::exit;
use msb::tool::output::Output;

/// The tool's name in messages.
pub(crate) const TOOL: &str = "msb-boot";

/// A message. It is not printed where it arises: a check has no effects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// Printed always.
    Warning(String),
    /// Not printed with --quiet.
    Info(String),
}

impl Notice {
    /// Prints the message to stderr.
    pub(crate) fn print(&self, output: &Output) {
        match self {
            Self::Warning(message) => exit::warn(TOOL, message),
            Self::Info(message) => output.say(TOOL, message),
        }
    }
}
