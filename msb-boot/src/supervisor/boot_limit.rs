//! Until when the agent must have reported.

use std::time::Duration;

use msb::vm::patience::Patience;

use crate::config::now;

/// The limit of a boot. The time in which the VM's processes wait for a processor does not count.
pub(super) struct BootLimit {
    limit: Duration,
    /// When to look whether it has passed.
    pub(super) until: Duration,
    patience: Patience,
}

impl BootLimit {
    /// From now on, for processes that were started just now.
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, until: now() + limit, patience: Patience::with_new_children(limit) }
    }

    /// Why the boot has failed, if the limit has passed. Otherwise [`BootLimit::until`] may have moved.
    pub(super) fn passed(&mut self) -> Option<String> {
        if now() < self.until {
            return None;
        }
        if let Some(left) = self.patience.left() {
            self.until = now() + left;
            return None;
        }
        Some(format!("the agent did not report within {} s", self.limit.as_secs()))
    }
}
