//! What the sessions share.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use msb::vm::boot::Defaults;

use crate::execs::Execs;
use crate::reap::Reaper;
use crate::recorder::Recorder;
use crate::sessions::Sessions;
use crate::shutdown_request::ShutdownRequest;

/// The state of the agent.
#[derive(Debug)]
pub struct Agent {
    /// Where the root is: `/`, or elsewhere if only containers run in it.
    pub guest_root: &'static Path,
    /// Waits for child processes.
    pub reaper: Reaper,
    /// The connections that are being served.
    pub sessions: Sessions,
    /// The commands.
    pub execs: Execs,
    /// Where the output of detached commands is recorded.
    pub recorder: Recorder,
    /// What a command gets if its request does not say otherwise.
    pub defaults: RwLock<Arc<Defaults>>,
    /// The number of the signal with which the image wants its init to be stopped.
    pub init_stop_signal: i32,
    /// The shutdown that the host has asked for.
    pub shutdown: ShutdownRequest,
}

impl Agent {
    /// Whether it is PID 1, which the OOM killer never ends.
    pub fn is_init(&self) -> bool {
        std::process::id() == 1
    }

    /// What a command gets if its request does not say otherwise.
    pub fn defaults(&self) -> Arc<Defaults> {
        Arc::clone(&self.defaults.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the root is not the agent's, so that commands run in containers alone.
    pub fn is_bare(&self) -> bool {
        self.guest_root != Path::new("/")
    }
}

impl AsRef<Sessions> for Agent {
    fn as_ref(&self) -> &Sessions {
        &self.sessions
    }
}
