//! The exit statuses that a caller can tell apart from a command's own, as `env(1)`, `timeout(1)` and `docker exec` use them. agentd
//! sends them in a [`Failure`](super::exec::Failure), and msb-exec exits with them.

/// The command ran into its time limit.
pub const TIMED_OUT: u8 = 124;
/// The tool, the agent or the VM failed, not the command.
pub const TOOL_FAILED: u8 = 125;
/// The command was found but cannot be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// The command was not found.
pub const NOT_FOUND: u8 = 127;
/// Added to the number of the signal that ended a command.
pub const SIGNAL_BASE: u8 = 128;
