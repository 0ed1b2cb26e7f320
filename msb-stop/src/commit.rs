//! The commit of the guest's writes into the record's upper. The VM's supervisor does it; here it is requested and reported.

use std::path::Path;

use anyhow::{Context, anyhow, bail};
use msb::overlay::reach;
use msb::record::{ScratchKind, Upper, Vm};
use msb::vm::rundir::Committed;

use crate::vm::{End, Stopped};

/// Checks that the VM can be committed, before it is stopped.
///
/// # Errors
/// A root without a writable disk, and an upper that other users can enter.
pub(crate) fn check(vm: &Vm, upper: Option<&Upper>) -> anyhow::Result<()> {
    if let Some(upper) = upper {
        reach::require_private(&upper.dir).with_context(|| format!("{}: not stopped: --commit", vm.name))?;
    }
    match &vm.scratch {
        Some(scratch) if scratch.kind == ScratchKind::Disk => Ok(()),
        Some(_) => {
            bail!("{}: --commit needs a disk, and this VM keeps what it writes in its memory (--ephemeral)", vm.name)
        }
        None => bail!(
            "{}: --commit is for a block root, and this one is \"{}\": what the guest writes is in its place already",
            vm.name,
            vm.root
        ),
    }
}

/// The upper with the guest's writes, if there was a commit.
///
/// # Errors
/// A commit that failed, or was wanted and not made; the upper is unchanged then.
pub(crate) fn outcome(vm: &Vm, stopped: &Stopped, wanted: bool) -> anyhow::Result<Option<Upper>> {
    let why = match stopped.end {
        End::SupervisorKilled | End::Abandoned => "its supervisor was killed",
        _ => "it had ended before",
    };
    match stopped.committed.clone() {
        Some(Committed::Into { dir, work }) => Ok(Some(Upper::new(dir, work))),
        Some(Committed::Failed(reason)) => Err(anyhow!("{}: not committed: {reason}", vm.name)),
        None if !wanted => Ok(None),
        None if disk(vm).is_some_and(Path::exists) => Err(anyhow!(
            "{0}: not committed: {why} (its disk is still there: \"msb-boot --name {0}\" with this record, then \
             \"msb-stop -r {0} --commit\")",
            vm.name
        )),
        None if disk(vm).is_some() => {
            Err(anyhow!("{}: not committed: {why}, and its disk is gone (a commit removes it)", vm.name))
        }
        None => Err(anyhow!("{}: not committed: {why}, and its disk had no name (see msb-boot --name)", vm.name)),
    }
}

/// The file of the disk that outlives the VM.
fn disk(vm: &Vm) -> Option<&Path> {
    vm.scratch.as_ref()?.path.as_deref()
}
