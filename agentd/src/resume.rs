//! What makes a machine that was started from a snapshot another one. Any number of machines start from the same memory, so random
//! numbers come first: until the kernel's generator has begun anew, all of them would get the same.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, PoisonError};

use msb::wire::exec::{Ready, Resume};

use crate::agent::Agent;
use crate::clock::{self, uptime_ms};
use crate::{etc, sys};

/// The files with the machine ID. The second one is a link to the first on most systems.
const MACHINE_IDS: [&str; 2] = ["/etc/machine-id", "/var/lib/dbus/machine-id"];

/// Makes this machine the one that the host describes. Returns the report for the host.
pub fn run(agent: &Agent, other: Resume) -> Ready {
    let now = uptime_ms();
    let ready = Ready { kernel_ms: now, agent_ms: now, ..Ready::default() };
    if let Err(error) = reseed(&other.entropy) {
        // Better no machine than two with the same random numbers.
        return Ready { error: Some(format!("reseed the random number generator: {error}")), ..ready };
    }
    clock::set(other.now_ms);
    rename(agent, &other.hostname);
    *agent.defaults.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(other.defaults);
    let warning = other.new_machine_id.then(new_machine_id).and_then(Result::err);
    let warning = warning.map(|error| format!("new machine ID: {error}"));
    Ready { sent_ms: Some(uptime_ms()), warning, ..ready }
}

fn reseed(entropy: &[u8]) -> io::Result<()> {
    let random = File::options().write(true).open("/dev/urandom")?;
    sys::reseed(random.as_fd(), entropy)
}

/// Replaces the machine ID, see machine-id(5). A missing file is not made.
fn new_machine_id() -> io::Result<()> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let id = machine_id(bytes);
    for path in MACHINE_IDS {
        match File::options().write(true).truncate(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            file => file?.write_all(id.as_bytes())?,
        }
    }
    Ok(())
}

/// Formats a machine ID. Like those of systemd, it is a UUID of version 4.
fn machine_id(mut bytes: [u8; 16]) -> String {
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    bytes.iter().map(|byte| format!("{byte:02x}")).chain(["\n".to_owned()]).collect()
}

fn rename(agent: &Agent, new: &str) {
    let old = nix::unistd::gethostname().unwrap_or_default();
    if let Err(error) = nix::unistd::sethostname(new) {
        crate::console::log(&format!("set the hostname: {error}"));
    }
    if !agent.is_bare() {
        etc::rename(&old.to_string_lossy(), new);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_id_is_a_random_uuid_without_dashes() {
        assert_eq!(machine_id([0; 16]), "00000000000040008000000000000000\n");
        assert_eq!(machine_id([0xff; 16]), "ffffffffffff4fffbfffffffffffffff\n");
        let bytes = [0, 1, 2, 3, 4, 5, 0x16, 7, 0x58, 9, 10, 11, 12, 13, 14, 15];
        assert_eq!(machine_id(bytes), "000102030405460798090a0b0c0d0e0f\n");
    }
}
