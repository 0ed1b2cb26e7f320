//! Capabilities of a file: the text format of `setcap(8)`, and the xattr that the kernel reads.
//!
//! Sources: cap_text_formats(7) and cap_from_text(3) for the text, capabilities(7) and `linux/capability.h` for the names and
//! for `struct vfs_ns_cap_data`.

use msb::record::owner::Id;
use serde::{Deserialize, Deserializer};

/// The names by number, without `cap_`.
const NAMES: [&str; 41] = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
];

const ALL: u64 = (1 << NAMES.len()) - 1;
const REVISION_2: u32 = 0x0200_0000;
const REVISION_3: u32 = 0x0300_0000;
const EFFECTIVE: u32 = 1;

/// The capabilities of a file, a bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileCaps {
    permitted: u64,
    inheritable: u64,
    /// One flag for all of them.
    effective: bool,
}

impl FileCaps {
    /// Parses a text such as `cap_net_bind_service=ep` or `cap_chown,cap_fowner+ep cap_kill+i`.
    ///
    /// # Errors
    /// A message that quotes the invalid part.
    pub fn from_text(text: &str) -> Result<Self, String> {
        // Permitted, inheritable, effective.
        let mut sets = [0u64; 3];
        for clause in text.split_ascii_whitespace() {
            apply(clause, &mut sets)?;
        }
        let [permitted, inheritable, effective] = sets;
        if effective != 0 && effective != permitted | inheritable {
            return Err(format!(
                "{text:?}: a file has the flag \"e\" for all of its capabilities or for none (capabilities(7))"
            ));
        }
        Ok(Self { permitted, inheritable, effective: effective != 0 })
    }

    /// The value of the xattr `security.capability`: revision 3 with a `rootid`, else revision 2. `None`: there are no
    /// capabilities.
    pub fn xattr(&self, rootid: Option<Id>) -> Option<Vec<u8>> {
        if self.permitted | self.inheritable == 0 {
            return None;
        }
        let revision = if rootid.is_some() { REVISION_3 } else { REVISION_2 };
        let mut value = Vec::with_capacity(24);
        let mut put = |word: u32| value.extend(word.to_le_bytes());
        put(revision | if self.effective { EFFECTIVE } else { 0 });
        for shift in [0, 32] {
            put((self.permitted >> shift) as u32);
            put((self.inheritable >> shift) as u32);
        }
        if let Some(rootid) = rootid {
            put(rootid.get());
        }
        Some(value)
    }
}

/// Applies a clause: names, separated by commas, then one or more actions, each an operator and flags.
fn apply(clause: &str, sets: &mut [u64; 3]) -> Result<(), String> {
    let is_operator = |c: char| matches!(c, '=' | '+' | '-');
    let Some(end) = clause.find(is_operator) else {
        return Err(format!("{clause:?}: an operator and flags are expected, as in \"cap_net_raw=ep\""));
    };
    let (names, mut actions) = clause.split_at(end);
    let caps = match names {
        "" if actions.starts_with('=') => ALL,
        "" => return Err(format!("{clause:?}: the name of a capability is expected before the operator")),
        names if names.eq_ignore_ascii_case("all") => ALL,
        names => names.split(',').try_fold(0, |caps, name| Ok::<_, String>(caps | capability(name)?))?,
    };
    while let Some(operator) = actions.chars().next() {
        let flags = &actions[1..];
        let (flags, rest) = flags.split_at(flags.find(is_operator).unwrap_or(flags.len()));
        if operator == '=' {
            sets.iter_mut().for_each(|set| *set &= !caps);
        } else if flags.is_empty() {
            return Err(format!("{clause:?}: flags are expected after {operator:?}: \"e\", \"i\" and \"p\""));
        }
        for flag in flags.chars() {
            let Some(which) = "pie".find(flag) else {
                return Err(format!("{clause:?}: unknown flag {flag:?} (flags are \"e\", \"i\" and \"p\")"));
            };
            if operator == '-' {
                sets[which] &= !caps;
            } else {
                sets[which] |= caps;
            }
        }
        actions = rest;
    }
    Ok(())
}

/// The bit of a capability, given by name or number.
fn capability(name: &str) -> Result<u64, String> {
    let lower = name.to_ascii_lowercase();
    let number = match lower.strip_prefix("cap_") {
        Some(short) => NAMES.iter().position(|&known| known == short),
        None if !lower.is_empty() && lower.bytes().all(|byte| byte.is_ascii_digit()) => {
            lower.parse().ok().filter(|&number: &usize| number < NAMES.len())
        }
        None => None,
    };
    match number {
        Some(number) => Ok(1 << number),
        None => Err(format!("unknown capability {name:?} (capabilities(7) lists them)")),
    }
}

impl<'de> Deserialize<'de> for FileCaps {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::from_text(&String::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_as_setcap_reads_them() {
        const BIND: u64 = 1 << 10;
        const RAW: u64 = 1 << 13;
        for (text, permitted, inheritable, effective) in [
            ("cap_net_bind_service=ep", BIND, 0, true),
            ("cap_net_bind_service+ep", BIND, 0, true),
            ("CAP_Net_Raw=pe", RAW, 0, true),
            ("13=p", RAW, 0, false),
            ("cap_net_bind_service,cap_net_raw=eip", BIND | RAW, BIND | RAW, true),
            ("cap_net_raw=i", 0, RAW, false),
            ("cap_net_raw=ei", 0, RAW, true),
            ("  cap_net_raw=p \t cap_net_bind_service=p\n", BIND | RAW, 0, false),
            ("cap_net_raw=eip-i", RAW, 0, true),
            ("cap_net_raw=p+i-p", 0, RAW, false),
            ("cap_net_raw=p=i", 0, RAW, false),
            ("=p cap_net_raw-p", ALL & !RAW, 0, false),
            ("all=ep", ALL, 0, true),
            ("cap_checkpoint_restore=p", 1 << 40, 0, false),
            ("40=p", 1 << 40, 0, false),
            ("cap_chown=p", 1, 0, false),
            ("", 0, 0, false),
            ("=", 0, 0, false),
            ("cap_net_raw=", 0, 0, false),
            ("cap_net_raw=ep cap_net_raw=", 0, 0, false),
        ] {
            assert_eq!(FileCaps::from_text(text), Ok(FileCaps { permitted, inheritable, effective }), "{text:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_quoted() {
        for (text, message) in [
            ("cap_net_raw", "\"cap_net_raw\": an operator and flags are expected"),
            ("+ep", "\"+ep\": the name of a capability is expected"),
            ("cap_net_raw+", "\"cap_net_raw+\": flags are expected after '+'"),
            ("cap_net_raw-", "\"cap_net_raw-\": flags are expected after '-'"),
            ("cap_net_raw=ex", "\"cap_net_raw=ex\": unknown flag 'x'"),
            ("cap_net_raw=eé", "unknown flag 'é'"),
            ("net_raw=p", "unknown capability \"net_raw\""),
            ("cap_=p", "unknown capability \"cap_\""),
            ("cap_net_raw,=p", "unknown capability \"\""),
            ("41=p", "unknown capability \"41\""),
            ("cap_13=p", "unknown capability \"cap_13\""),
            ("cap_kill,all=p", "unknown capability \"all\""),
            ("cap_net_raw=p cap_kill=e", "has the flag \"e\" for all of its capabilities or for none"),
            ("cap_kill=e", "has the flag \"e\" for all"),
        ] {
            let error = FileCaps::from_text(text).unwrap_err();
            assert!(error.contains(message), "{text:?}: {error}");
        }
    }

    #[test]
    fn the_xattr_is_the_kernels_struct() {
        let caps = FileCaps { permitted: 1 << 10 | 1 << 40, inheritable: 1 << 13 | 1 << 33, effective: true };
        let words = [0x0200_0001u32, 1 << 10, 1 << 13, 1 << 8, 1 << 1];
        let bytes = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
        assert_eq!(caps.xattr(None), Some(bytes(&words)));
        let caps = FileCaps { effective: false, ..caps };
        let words = [0x0300_0000u32, 1 << 10, 1 << 13, 1 << 8, 1 << 1, 100_000];
        assert_eq!(caps.xattr(Some(Id::new(100_000).unwrap())), Some(bytes(&words)));
        assert_eq!(FileCaps::default().xattr(Some(Id::ROOT)), None);
        assert!(FileCaps { permitted: 1, ..FileCaps::default() }.xattr(None).is_some());
        assert!(FileCaps { inheritable: 1, ..FileCaps::default() }.xattr(None).is_some());
    }
}
