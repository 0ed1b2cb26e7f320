//! The sandboxes of the store, and whether something needs them.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use msb::lock::{self, Lock};
use msb::store::layout::{self, SCRATCH_BASE, SCRATCH_DISK, UPPER};
use msb::store::sandbox::{self, Held, Owner};

use crate::size;
use crate::vm::Vm;

/// How long an upper that a pipe made is kept after its last user.
const GRACE: Duration = Duration::from_secs(86_400);

/// A sandbox.
#[derive(Debug)]
pub(crate) struct Sandbox {
    /// Its ID, or the name of its VM.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) owner: Owner,
    /// Whether the scratch disk of a VM with a name is in it.
    pub(crate) has_disk: bool,
    /// Whether an upper or scripts are in it.
    pub(crate) has_upper: bool,
    /// The stopped VMs whose disks need it.
    pub(crate) stopped: Vec<String>,
    /// Who uses it or may need it, for a person.
    pub(crate) users: Vec<String>,
    pub(crate) state: State,
    pub(crate) last_use: Option<SystemTime>,
}

/// Whether a sandbox is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It stays, for this reason.
    Needed(&'static str),
    /// It is being made or removed.
    Unfinished {
        /// Whether the process that does so is there.
        is_running: bool,
    },
    /// A pipe made it, and nobody has used it since this long.
    Unused(Duration),
}

impl State {
    /// Whether gc removes it, and why it does or does not.
    pub(crate) fn verdict(self, older_than: Duration) -> Result<&'static str, &'static str> {
        match self {
            Self::Needed(why) => Ok(why),
            Self::Unfinished { is_running: true } => Ok("it is being made or removed"),
            Self::Unfinished { is_running: false } => Err("it was never finished"),
            Self::Unused(since) if since < GRACE => Ok("it was used or made less than a day ago"),
            Self::Unused(since) if since < older_than => Ok("it was used in the time of --older-than"),
            Self::Unused(_) => Err("nobody has used it for a day"),
        }
    }
}

/// The sandboxes, sorted by name.
///
/// # Errors
/// A sandbox that cannot be read.
pub(crate) fn sandboxes(home: &Path, vms: &[Vm]) -> anyhow::Result<Vec<Sandbox>> {
    let mut paths = size::children(&layout::sandboxes(home))?;
    // A file here is not ours.
    paths.retain(|path| path.is_dir() && !path.is_symlink());
    let needs = sandbox::all_needs(home).with_context(|| format!("{:?}", layout::sandboxes(home)))?;
    let mut sandboxes = Vec::new();
    for path in paths {
        let needed_by = needs.iter().filter(|(_, needs)| needs.contains(&path)).map(|(name, _)| name.clone());
        let stopped = needed_by.filter(|name| vms.iter().all(|vm| vm.name != *name)).collect();
        sandboxes.push(sandbox(path.clone(), vms, stopped).with_context(|| format!("{path:?}"))?);
    }
    Ok(sandboxes)
}

fn name_of(sandbox: &Path) -> String {
    sandbox.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn sandbox(path: PathBuf, vms: &[Vm], stopped: Vec<String>) -> anyhow::Result<Sandbox> {
    let name = name_of(&path);
    let owner = Owner::read(&path);
    let has_disk = path.join(SCRATCH_DISK).exists();
    let users = vms.iter().filter(|vm| vm.name == name && has_disk || vm.has_sandbox(&path));
    let mut users: Vec<String> = users.map(|vm| vm.label()).collect();
    users.extend(stopped.iter().map(|name| format!("stopped VM {name}")));
    let mut last_use = path.symlink_metadata().and_then(|meta| meta.modified()).ok();
    let state = if layout::is_staging(&path) {
        State::Unfinished { is_running: lock::open(&path, Lock::TryExclusive).is_err() }
    } else {
        match sandbox::held(&path)? {
            _ if !users.is_empty() => State::Needed("a VM or a snapshot has it"),
            _ if has_disk => State::Needed("it is the disk of a VM's name"),
            Held::Now => {
                users.extend(owner.mount.iter().map(|mount| format!("mount {}", mount.display())));
                State::Needed("it is in use")
            }
            Held::Kept => State::Needed("a record may have it"),
            Held::Since(since, _) => {
                last_use = Some(since);
                State::Unused(SystemTime::now().duration_since(since).unwrap_or_default())
            }
        }
    };
    if users.is_empty() {
        users.extend(owner.vm.as_ref().map(|vm| format!("VM {vm}, which has ended")));
        users.extend(owner.image.as_ref().map(|image| format!("a record of {image}")));
    }
    let has_upper = !has_disk || path.join(UPPER).exists();
    Ok(Sandbox { name, path, owner, has_disk, has_upper, stopped, users, state, last_use })
}

impl Sandbox {
    /// The chain ID of the image below its scratch disk.
    pub(crate) fn chain_id(&self) -> Option<String> {
        let base = std::fs::read(self.path.join(SCRATCH_BASE)).ok().filter(|_| self.has_disk)?;
        String::from_utf8(base).ok()?.trim_end().strip_prefix("sha256:").map(str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use msb::record::{Record, Upper};

    #[test]
    fn an_upper_of_a_pipe_is_garbage_after_a_day_and_after_the_time_that_was_asked_for() {
        let hours = |hours: u64| State::Unused(Duration::from_secs(hours * 3600));
        let older_than = |days: u64| Duration::from_secs(days * 86_400);
        assert!(hours(23).verdict(older_than(0)).is_ok());
        assert!(hours(24).verdict(older_than(0)).is_err());
        assert!(hours(47).verdict(older_than(2)).is_ok());
        assert!(hours(48).verdict(older_than(2)).is_err());
        assert!(State::Needed("it is in use").verdict(older_than(0)).is_ok());
        assert!(State::Unfinished { is_running: true }.verdict(older_than(0)).is_ok());
        assert!(State::Unfinished { is_running: false }.verdict(older_than(9)).is_err());
    }

    #[test]
    fn the_owner_of_a_sandbox_is_shown_and_what_a_killed_tool_left_is_unfinished() {
        let home = tempfile::tempdir().unwrap();
        let dir = |name: &str| {
            let dir = layout::sandbox(home.path(), name);
            std::fs::create_dir_all(dir.join(UPPER)).unwrap();
            dir
        };
        let pipe = dir("0123456789ab");
        sandbox::make_held(&pipe).unwrap();
        Owner { image: Some("alpine".into()), ..Owner::default() }.create(&pipe).unwrap();
        std::fs::write(dir("worker").join(SCRATCH_DISK), "").unwrap();
        std::fs::write(dir("worker").join(SCRATCH_BASE), format!("sha256:{}", "a".repeat(64))).unwrap();
        dir(".half.1.0");
        dir("old");
        let found = sandboxes(home.path(), &[]).unwrap();
        let states: Vec<_> =
            found.iter().map(|sandbox| (sandbox.name.as_str(), sandbox.state.verdict(Duration::ZERO))).collect();
        assert_eq!(
            states,
            [
                (".half.1.0", Err("it was never finished")),
                ("0123456789ab", Ok("it was used or made less than a day ago")),
                ("old", Ok("a record may have it")),
                ("worker", Ok("it is the disk of a VM's name")),
            ]
        );
        assert_eq!(found[1].users, ["a record of alpine"]);
        // A stopped VM needs its upper, however long ago that was used.
        let mut record = Record::new();
        record.upper = Some(Upper::new(pipe.join(UPPER), pipe.join(layout::WORK)));
        sandbox::note_needs(&layout::sandbox(home.path(), "worker"), &record).unwrap();
        let needed = &sandboxes(home.path(), &[]).unwrap()[1];
        assert_eq!((&needed.users, &needed.stopped), (&vec!["stopped VM worker".into()], &vec!["worker".into()]));
        assert_eq!(needed.state.verdict(Duration::ZERO), Ok("a VM or a snapshot has it"));
        assert_eq!(found[3].chain_id(), Some("a".repeat(64)));
        assert!(found[3].has_disk && found[3].has_upper && !found[1].has_disk);
    }
}
