//! The guest kernel's last console message about the end of the machine. Any process in the guest can write to the console, so a line
//! counts only if it has the kernel's format, with a time stamp, and is the last one. The supervisor asks the agent before it acts on it.

/// How the kernel ends the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It has halted. The VMM does not notice, because not every machine has a power button.
    Halted,
    /// It resets because PID 1 has ended. That does not count as a reboot.
    InitEnded,
    /// It resets for a reboot. The agent also ends the machine with a reset, but makes sure that this message appears only for a reboot
    /// that somebody in the guest asked for.
    Rebooting,
    /// It panicked.
    Panicked,
    /// It panicked because of a fault of its own (an oops).
    Faulted,
}

impl Verdict {
    /// The verdict in one line of the console.
    pub(super) fn of(line: &[u8]) -> Option<Self> {
        // A process may have written text without a line feed before the kernel's message.
        (0..line.len()).filter(|&at| line[at] == b'[').find_map(|at| Self::of_message(kernel_message(&line[at..])?))
    }

    fn of_message(message: &[u8]) -> Option<Self> {
        if message.starts_with(b"Kernel panic - not syncing: Fatal exception") {
            return Some(Self::Faulted);
        }
        if message.starts_with(b"Kernel panic - not syncing") {
            return Some(Self::Panicked);
        }
        match message {
            b"reboot: System halted"
            | b"reboot: Power down"
            | b"reboot: Power off not available: System halted instead" => Some(Self::Halted),
            // libkrunfw's kernel reboots where other kernels panic.
            b"reboot: Failed to start orderly reboot: forcing the issue" => Some(Self::InitEnded),
            b"reboot: machine restart" | b"reboot: Restarting system" | b"sysrq: Resetting" => Some(Self::Rebooting),
            _ => None,
        }
    }

    /// The verdict after one more line.
    pub(super) fn after(earlier: Option<Self>, line: &[u8]) -> Option<Self> {
        match Self::of(line) {
            None if line.trim_ascii().is_empty() => earlier,
            // More lines follow a panic and the end of PID 1, but not the other messages.
            None => earlier.filter(|&verdict| matches!(verdict, Self::Panicked | Self::Faulted | Self::InitEnded)),
            Some(Self::Rebooting) if earlier == Some(Self::InitEnded) => earlier,
            verdict => verdict,
        }
    }
}

/// The message in a line of the kernel's log: `[   12.345678] message`, or `[   12.345678][    T1] message` from a kernel with
/// `CONFIG_PRINTK_CALLER`.
fn kernel_message(line: &[u8]) -> Option<&[u8]> {
    let digits = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let (stamp, mut rest) = bracket(line)?;
    let point = stamp.iter().position(|&byte| byte == b'.')?;
    if !digits(&stamp[..point]) || !digits(&stamp[point + 1..]) {
        return None;
    }
    if let Some((caller, after)) = bracket(rest) {
        let Some((b'T' | b'C', id)) = caller.split_first() else { return None };
        if !digits(id) {
            return None;
        }
        rest = after;
    }
    Some(rest.strip_prefix(b" ")?.trim_ascii_end())
}

/// Splits a line that begins with brackets: their content, without the padding, and the text after them.
fn bracket(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let inside = line.strip_prefix(b"[")?;
    let end = inside.iter().position(|&byte| byte == b']')?;
    Some((inside[..end].trim_ascii_start(), &inside[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_line_in_the_kernels_format_counts() {
        for (line, expected) in [
            ("[    1.012345] reboot: System halted", Some(Verdict::Halted)),
            ("[12345.012345] reboot: System halted\r", Some(Verdict::Halted)),
            ("[    1.0] reboot: Power down", Some(Verdict::Halted)),
            ("[    1.0] reboot: Power off not available: System halted instead", Some(Verdict::Halted)),
            ("[    1.0][    T1] reboot: Power down", Some(Verdict::Halted)),
            ("[    1.0][   C10] reboot: Power down", Some(Verdict::Halted)),
            ("[    1a.0] reboot: Power down", None),
            ("[    1.0x] reboot: Power down", None),
            ("[    1.0][   T1x] reboot: Power down", None),
            ("[    1.0][    X1] reboot: Power down", None),
            ("[    1.0][     T] reboot: Power down", None),
            ("[    1.0][      ] reboot: Power down", None),
            ("[    1.0] [    T1] reboot: Power down", None),
            ("login: [    1.0] reboot: Restarting system", Some(Verdict::Rebooting)),
            ("[x] [    1.0] reboot: machine restart", Some(Verdict::Rebooting)),
            ("[    1.0] sysrq: Resetting", Some(Verdict::Rebooting)),
            ("[    1.0] reboot: Failed to start orderly reboot: forcing the issue", Some(Verdict::InitEnded)),
            ("[    1.0] Kernel panic - not syncing: Attempted to kill init!", Some(Verdict::Panicked)),
            ("[    1.0] Kernel panic - not syncing: Fatal exception in interrupt", Some(Verdict::Faulted)),
            ("Kernel panic - not syncing: VFS", None),
            ("reboot: System halted", None),
            ("Power off not available", None),
            ("[    1.0] reboot: System halted soon", None),
            ("[    1.0] text: reboot: System halted", None),
            ("[    one] reboot: System halted", None),
            ("[    1.] reboot: System halted", None),
            ("[    .1] reboot: System halted", None),
            ("[    10] reboot: System halted", None),
            ("[    1.0]reboot: System halted", None),
            ("[    1.0", None),
            ("[", None),
            ("", None),
        ] {
            assert_eq!(Verdict::of(line.as_bytes()), expected, "{line:?}");
        }
    }

    #[test]
    fn a_line_after_the_end_shows_that_it_was_not_the_end() {
        let last = |lines: &[&str]| lines.iter().fold(None, |verdict, line| Verdict::after(verdict, line.as_bytes()));
        let (halted, panic) = ("[    1.0] reboot: System halted", "[    1.0] Kernel panic - not syncing: x");
        assert_eq!(last(&[halted]), Some(Verdict::Halted));
        assert_eq!(last(&[halted, "", "\r"]), Some(Verdict::Halted));
        assert_eq!(last(&[halted, "login: "]), None);
        let (reboot, exit) = (
            "[    1.0] reboot: machine restart",
            "[    1.0] reboot: Failed to start orderly reboot: forcing the issue",
        );
        assert_eq!(last(&[halted, reboot]), Some(Verdict::Rebooting));
        assert_eq!(last(&[exit, "[    1.0] kvm: exiting hardware virtualization", reboot]), Some(Verdict::InitEnded));
        assert_eq!(last(&[exit, halted]), Some(Verdict::Halted));
        assert_eq!(last(&[panic, "CPU: 0 PID: 1", "---[ end Kernel panic"]), Some(Verdict::Panicked));
        let oops = "[    1.0] Kernel panic - not syncing: Fatal exception";
        assert_eq!(last(&[oops, "Shutting down cpus with NMI"]), Some(Verdict::Faulted));
        assert_eq!(last(&[panic, halted]), Some(Verdict::Halted));
    }
}
