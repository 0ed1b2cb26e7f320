//! The signal masks of a process, as the kernel shows them in `/proc/PID/status` (`proc_pid_status(5)`).

/// What a process does with the signals of a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// It blocks them.
    Blocked,
    /// It ignores them.
    Ignored,
    /// It has handlers for them.
    Caught,
}

/// A set of signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signals(u64);

impl Signals {
    /// A mask in the text of `/proc/PID/status`; `None` if the text does not have it.
    pub fn in_status(status: &str, mask: Mask) -> Option<Self> {
        let label = match mask {
            Mask::Blocked => "SigBlk:",
            Mask::Ignored => "SigIgn:",
            Mask::Caught => "SigCgt:",
        };
        let mask = status.lines().find_map(|line| line.strip_prefix(label))?;
        u64::from_str_radix(mask.trim(), 16).ok().map(Self)
    }

    /// Whether the set has the signal with this number, from 1 on.
    pub fn contains(self, signal: i32) -> bool {
        signal > 0 && self.0.checked_shr(signal.cast_unsigned() - 1).is_some_and(|mask| mask & 1 == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_read_from_the_kernels_masks() {
        let status = "SigBlk:\t01\nSigIgn:\t8000000000001001\nSigCgt:\tx\n";
        let numbers = |mask| {
            let signals = Signals::in_status(status, mask).unwrap();
            (-1..100).filter(|&signal| signals.contains(signal)).collect::<Vec<_>>()
        };
        assert_eq!(numbers(Mask::Blocked), [1]);
        assert_eq!(numbers(Mask::Ignored), [1, 13, 64]);
        assert_eq!(Signals::in_status(status, Mask::Caught), None);
        assert_eq!(Signals::in_status("SigCgt:\t01\n", Mask::Ignored), None);
    }
}
