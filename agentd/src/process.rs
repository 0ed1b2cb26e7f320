//! What `/proc/PID` says about a process (`proc_pid_stat(5)`, `proc_pid_status(5)`).

use std::fs;

use msb::signals::{Mask, Signals};

/// Some fields of `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The state, `R`, `S`, `Z` and so on.
    pub state: char,
    /// The parent's process ID.
    pub parent: i32,
    /// The session ID.
    pub session: i32,
    /// Whether it has a controlling terminal.
    pub has_terminal: bool,
}

impl Stat {
    /// Reads the file. `None`: the process is gone.
    pub fn read(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Parses the file's content. The second field, the name in parentheses, may contain anything.
    pub fn parse(text: &str) -> Option<Self> {
        let (_, fields) = text.rsplit_once(')')?;
        let mut fields = fields.split_whitespace();
        let state = fields.next()?.chars().next()?;
        let mut number = || fields.next()?.parse::<i32>().ok();
        let (parent, _group, session, terminal) = (number()?, number()?, number()?, number()?);
        Some(Self { state, parent, session, has_terminal: terminal != 0 })
    }

    /// Whether the process has ended.
    pub fn has_ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }
}

/// The IDs of all processes.
pub fn pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// Whether a process catches a signal or waits for it in a signalfd, according to its `/proc/PID/status`.
pub fn catches(status: &str, signal: i32) -> bool {
    [Mask::Caught, Mask::Blocked].iter().any(|&mask| has(status, mask, signal))
}

/// Whether a process ignores a signal, according to its `/proc/PID/status`.
pub fn ignores(status: &str, signal: i32) -> bool {
    has(status, Mask::Ignored, signal)
}

fn has(status: &str, mask: Mask, signal: i32) -> bool {
    Signals::in_status(status, mask).is_some_and(|signals| signals.contains(signal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_is_parsed_after_a_name_with_anything_in_it() {
        let stat = |state, parent, session, has_terminal| Some(Stat { state, parent, session, has_terminal });
        for (text, expected) in [
            ("7 (sh) S 1 7 7 34816 7", stat('S', 1, 7, true)),
            ("7 (a) S 2) S 1 7 9 0 -1", stat('S', 1, 9, false)),
            ("12 (a) b) (c) Z 77 12 7 0 -1", stat('Z', 77, 7, false)),
            ("7 (kworker/0:1) I 2 0 0 0 -1", stat('I', 2, 0, false)),
            ("7 (sh) S 1", None),
            ("", None),
        ] {
            assert_eq!(Stat::parse(text), expected, "{text:?}");
        }
        let own = Stat::read(std::process::id().cast_signed()).unwrap();
        assert!(!own.has_ended());
        assert_eq!(Stat::read(i32::MAX), None);
    }

    #[test]
    fn a_signal_is_caught_or_waited_for() {
        let status = "Name:\tx\nSigBlk:\t0000002000000000\nSigIgn:\t0000000000000001\nSigCgt:\t0000000000004000\n";
        assert!(catches(status, 38));
        assert!(catches(status, 15));
        assert!(!catches(status, 1));
        assert!(!catches("", 15));
        assert!(ignores(status, 1) && !ignores(status, 15) && !ignores("", 1));
    }
}
