//! Signals by name, as people, images and flags write them.

/// The signals of Linux on x86-64 and arm64 (`signal(7)`), from 1 on.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];
/// Aliases.
const ALIASES: [(&str, i32); 4] = [("IOT", 6), ("CLD", 17), ("POLL", 29), ("UNUSED", 31)];
/// The first real-time signal that the C library leaves to programs; docker and systemd count from it, too.
const RTMIN: i32 = 34;
/// The last one.
const RTMAX: i32 = 64;

/// The number of a signal that is given by its number, or by its name with or without `SIG`, in any case: `15`, `TERM`,
/// `SIGTERM`, `RTMIN+3`, `SIGRTMAX-1`. `None`: there is no such signal.
pub fn number(text: &str) -> Option<i32> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok().filter(|number| (1..=RTMAX).contains(number));
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    if let Some(place) = NAMES.iter().position(|known| *known == name) {
        return i32::try_from(place + 1).ok();
    }
    if let Some((_, number)) = ALIASES.iter().find(|(alias, _)| *alias == name) {
        return Some(*number);
    }
    let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(offset), _) => RTMIN + offset_of(offset, '+')?,
        (_, Some(offset)) => RTMAX - offset_of(offset, '-')?,
        _ => return None,
    };
    (RTMIN..=RTMAX).contains(&number).then_some(number)
}

/// What follows `RTMIN` or `RTMAX`: nothing, or the sign and a number.
fn offset_of(text: &str, sign: char) -> Option<i32> {
    if text.is_empty() {
        return Some(0);
    }
    let digits = text.strip_prefix(sign)?;
    (digits.len() <= 2 && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_a_number_or_a_name() {
        for (text, expected) in [
            ("15", Some(15)),
            ("1", Some(1)),
            ("64", Some(64)),
            ("TERM", Some(15)),
            ("SIGTERM", Some(15)),
            ("sigquit", Some(3)),
            ("HUP", Some(1)),
            ("SYS", Some(31)),
            ("WINCH", Some(28)),
            ("IOT", Some(6)),
            ("CLD", Some(17)),
            ("SIGPOLL", Some(29)),
            ("unused", Some(31)),
            ("SIGRTMIN", Some(34)),
            ("RTMIN+3", Some(37)),
            ("SIGRTMIN+30", Some(64)),
            ("RTMAX", Some(64)),
            ("SIGRTMAX-30", Some(34)),
            ("0", None),
            ("65", None),
            ("-1", None),
            ("+9", None),
            ("", None),
            ("SIG", None),
            ("SIGFOO", None),
            ("SIGSIGTERM", None),
            ("RTMIN+31", None),
            ("RTMAX-31", None),
            ("RTMIN-1", None),
            ("RTMAX+1", None),
            ("RTMIN3", None),
            ("RTMIN+", None),
            ("RTMIN++1", None),
            ("RTMIN+-1", None),
            ("RTMIN+4294967299", None),
            ("99999999999", None),
        ] {
            assert_eq!(number(text), expected, "{text:?}");
        }
    }
}
