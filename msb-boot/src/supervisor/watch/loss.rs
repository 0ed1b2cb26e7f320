//! The end of a process that the VM can do without.

use std::process::ExitStatus;

use anyhow::bail;

use super::{HELPER_LOSS_GRACE, Phase, Watch, now};
use crate::log;
use crate::network::resolver;
use crate::processes;

/// How often passt, and how often the resolver, is started again.
const MAX_REPLACEMENTS: u32 = 3;

impl Watch<'_, '_> {
    /// The load of a saved state has ended.
    pub(super) fn check_loaded(&mut self) -> anyhow::Result<()> {
        let Some(failure) = self.loaded.take().and_then(|loaded| loaded.failure()) else { return Ok(()) };
        // A VMM that does not take the state ends, and its own message is the better one.
        let vmm = self.config.vmm.name();
        if self.processes.id(vmm).is_none() || self.lost.is_some() {
            return Ok(());
        }
        self.lost = Some((now(), format!("the snapshot was not loaded: {failure}")));
        Ok(())
    }

    /// A process has ended that the VM can do without. While it boots, that is an error all the same.
    pub(super) fn lose(&mut self, name: &'static str, status: ExitStatus) {
        let end = format!("{name} {}", processes::describe(status));
        if matches!(self.phase, Phase::Booting(_)) {
            // It may have ended because the VMM has, whose own end says why.
            self.lost.get_or_insert((now() + HELPER_LOSS_GRACE, self.helper_stderr.quoted_after(&end)));
        } else {
            let (lost, missing) = match name {
                resolver::NAME => ("questions", "name server"),
                _ => ("connections", "network"),
            };
            log::note(format_args!("{end}: the guest's {lost} are lost"));
            if let Err(error) = self.replace(name) {
                log::note(format_args!("the guest has no {missing} until the VM is started again: {error:#}"));
            }
        }
    }

    /// Starts a process again. A guest that can end one gets so many.
    fn replace(&mut self, name: &'static str) -> anyhow::Result<()> {
        let Some(control) = &mut self.network else { return Ok(()) };
        let count = self.replacements.entry(name).or_default();
        *count += 1;
        if *count > MAX_REPLACEMENTS {
            bail!("it was restarted {MAX_REPLACEMENTS} times");
        }
        self.config.networks.replace(name, &self.machine.vm, control, &mut self.processes)
    }
}
