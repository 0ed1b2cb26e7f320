//! Capabilities by name, as the OCI runtime specification has them.

use msb::wire::exec::Capabilities;
use rustix::thread::CapabilitySet;
use serde::Deserialize;

/// The member `capabilities` of a process object.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Sets {
    bounding: Vec<String>,
    effective: Vec<String>,
    inheritable: Vec<String>,
    permitted: Vec<String>,
    ambient: Vec<String>,
}

impl Sets {
    /// The sets as the kernel has them. A name that is not known stands for a privilege that the guest does not have, and is ignored, as
    /// runc does.
    pub fn masks(&self) -> Capabilities {
        Capabilities {
            bounding: mask(&self.bounding),
            effective: mask(&self.effective),
            permitted: mask(&self.permitted),
            inheritable: mask(&self.inheritable),
            ambient: mask(&self.ambient),
        }
    }
}

fn mask(names: &[String]) -> u64 {
    let known = names.iter().filter_map(|name| CapabilitySet::from_name(name.strip_prefix("CAP_")?));
    known.fold(CapabilitySet::empty(), CapabilitySet::union).bits()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_kernels_numbers() {
        for (names, expected) in [
            (&[][..], 0),
            (&["CAP_CHOWN"], 1),
            (&["CAP_SYS_ADMIN", "CAP_CHOWN", "CAP_CHOWN"], 1 << 21 | 1),
            (&["CAP_CHECKPOINT_RESTORE"], 1 << 40),
            (&["CAP_MKNOD", "CAP_SETFCAP", "CAP_AUDIT_READ"], 1 << 27 | 1 << 31 | 1 << 37),
            (&["CHOWN", "CAP_chown", "CAP_", "CAP_NONE"], 0),
        ] {
            assert_eq!(mask(&names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>()), expected, "{names:?}");
        }
    }
}
