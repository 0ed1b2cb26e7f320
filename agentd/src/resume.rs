//! What makes a machine that was started from a snapshot another one. Any number of machines start from the same memory, so random
//! numbers come first: until the kernel's generator has begun anew, all of them would get the same.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, PoisonError};

use msb::wire::exec::{Ready, Resume};

use crate::agent::Agent;
use crate::clock::{self, uptime_ms};
use crate::{etc, sys};

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
    Ready { sent_ms: Some(uptime_ms()), ..ready }
}

fn reseed(entropy: &[u8]) -> io::Result<()> {
    let random = File::options().write(true).open("/dev/urandom")?;
    sys::reseed(random.as_fd(), entropy)
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
