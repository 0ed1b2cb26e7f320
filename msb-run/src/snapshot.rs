//! msb-run --snapshot: the snapshot that a run starts from. The first run makes it: it boots a VM, saves it before any command runs, and
//! ends it. So the first run and all later ones start from the same state.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{ExitCode, Stdio};

use anyhow::{Context, anyhow, ensure};
use msb::lock::{self, Lock};
use msb::record::Record;
use msb::store::home;
use msb::store::snapshot::{self, Description, Error};
use msb::store::snapshot_name::{self, Named};
use msb::tool::{env as variable, exit};
use serde_json::Value;

use crate::args::Args;
use crate::caretaker::Caretaker;
use crate::children::Children;
use crate::plan::{Plan, Saving, Stage};
use crate::programs;
use crate::stages::{TOOL, end, finish, pull, shielded, spawn, stage};
use crate::step::Parts;

/// Part of the key. Change it when the key covers something else.
const VERSION: &[u8] = b"msb-run snapshot 2";

/// The argument that makes this program clean up after a snapshot that was not completed.
pub const ROLE: &str = "--as-cleanup";

/// A snapshot that a VM can start from. msb-store does not remove it before this is dropped.
#[derive(Debug)]
pub struct Held {
    /// The record to boot.
    pub record: Record,
    _lock: OwnedFd,
}

/// The role's main. The caretaker starts it after all other processes of the run have ended.
pub fn main() -> ExitCode {
    let mut args = std::env::args().skip(2);
    let (vm, replaced) = (args.next().unwrap_or_default(), args.next());
    let cleaned_up = replaced.map_or(Ok(()), |replaced| remove_unnamed(&replaced)).and_then(|()| discard(&vm));
    exit::report(TOOL, exit::TOOL_FAILED, cleaned_up.map(|()| 0))
}

/// The snapshot with this name. Makes it if there is none, or if its key differs.
///
/// # Errors
/// Those of starting processes, of records and of the store.
pub fn get(plan: &Plan, saving: &Saving, args: &Args, children: &Children) -> anyhow::Result<Result<Held, u8>> {
    let held = find_or_make(plan, saving, args, children)?;
    Ok(held.map_err(|code| children.exit_code(code)))
}

fn find_or_make(plan: &Plan, saving: &Saving, args: &Args, children: &Children) -> anyhow::Result<Result<Held, u8>> {
    let name = saving.name.as_str();
    let pulled = match pull(plan, args, children)? {
        Ok(pulled) => pulled,
        Err(code) => return Ok(Err(code)),
    };
    let key = key(&pulled, saving, args)?;
    if let Some(found) = find(name, &key)? {
        return Ok(Ok(found));
    }
    if !args.quiet {
        exit::warn(
            TOOL,
            &format!("snapshot {name:?}: booting under QEMU, with --root block and --channel serial, to make it"),
        );
    }
    let mut caretaker = Caretaker::start()?;
    caretaker.order(&[&Stage::new(TOOL, [ROLE, &saving.vm])])?;
    caretaker.share(true)?;
    let made = make(plan, saving, &pulled, children).and_then(|made| match made {
        Ok(digest) => take_name(saving, args, &pulled, Named { key: key.clone(), digest }, &mut caretaker).map(Ok),
        Err(code) => Ok(Err(code)),
    });
    caretaker.share(false)?;
    let failed = match made {
        Ok(Ok(lost)) => {
            if let Some(lost) = lost {
                // No name leads to it. The caretaker removes it if this process is killed.
                shielded(&removal(&lost.digest))?;
            }
            caretaker.dismiss()?;
            let found = find(name, &key)?;
            let replaced = || format!("snapshot {name:?}: another run has just replaced it (run the command again)");
            return Ok(Ok(found.with_context(replaced)?));
        }
        Ok(Err(code)) => Ok(Err(code)),
        Err(error) => Err(error),
    };
    discard(&saving.vm)?;
    caretaker.dismiss()?;
    failed
}

/// The snapshot with this name, if it has this key.
fn find(name: &str, key: &str) -> anyhow::Result<Option<Held>> {
    let home = home::home()?;
    let Some(named) = Named::read(&home, name).filter(|named| named.key == key) else { return Ok(None) };
    let Some(snapshot) = named.snapshot(&home) else { return Ok(None) };
    // A run with another key may be removing it.
    let lock = match lock::open(&snapshot.path, Lock::Shared) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.with_context(|| format!("snapshot {name:?}"))?,
    };
    match Description::read(&snapshot) {
        Ok(description) => {
            let mut record = description.record;
            record.snapshot = Some(snapshot);
            Ok(Some(Held { record, _lock: lock }))
        }
        Err(Error::Gone) => Ok(None),
        Err(error) => {
            exit::warn(TOOL, &format!("snapshot {name:?}: making it again: {error}"));
            drop(lock);
            shielded(&removal(&named.digest))?;
            Ok(None)
        }
    }
}

/// Patches the root, boots it, saves the VM, and ends it. Returns the digest of the snapshot.
fn make(plan: &Plan, saving: &Saving, pulled: &Record, children: &Children) -> anyhow::Result<Result<String, u8>> {
    let mut record = serde_json::to_vec(pulled)?;
    if let Some(patch) = &plan.patch {
        record = match stage(patch, Stdio::piped(), record, children)? {
            Ok(patched) => serde_json::to_vec(&patched)?,
            Err(code) => return Ok(Err(code)),
        };
    }
    let mut boot = spawn(&saving.boot, Stdio::piped(), Stdio::null(), children)?;
    let booted = finish(&saving.boot, &mut boot, record, children)?;
    children.forget();
    if let Err(code) = booted {
        return Ok(Err(code));
    }
    match stage(&saving.save, Stdio::null(), Vec::new(), children)? {
        Ok(saved) => {
            let snapshot = saved.snapshot.context("msb-snapshot: a record without a snapshot")?;
            Ok(Ok(snapshot.digest))
        }
        Err(code) => Ok(Err(code)),
    }
}

/// Gives a new snapshot its name. Returns the snapshot that nobody needs then, if there is one, which the caretaker knows too.
fn take_name(
    saving: &Saving,
    args: &Args,
    pulled: &Record,
    named: Named,
    caretaker: &mut Caretaker,
) -> anyhow::Result<Option<Named>> {
    let subject = || format!("snapshot {:?}", saving.name);
    // A file may have been changed before msb-patch or msb-boot has read it.
    ensure!(
        key(pulled, saving, args)? == named.key,
        "{}: what it depends on has changed while it was made (run the command again)",
        subject()
    );
    let order = |there: &Named| caretaker.order(&[&Stage::new(TOOL, [ROLE, &saving.vm, &there.digest])]);
    named.assign(&home::home()?, &saving.name, order).with_context(subject)
}

/// Removes the VM that was to be saved, its upper and its snapshot, unless the snapshot has a name.
fn discard(vm: &str) -> anyhow::Result<()> {
    let home = home::home()?;
    for (path, record) in snapshot::records(&home).context("snapshots")? {
        let is_own = record.boot.is_some_and(|boot| boot.name.as_deref() == Some(vm));
        let Some(digest) = snapshot::digest_of(&path).filter(|_| is_own) else { continue };
        if snapshot_name::has_name(&home, &digest) {
            return Ok(());
        }
        shielded(&removal(&digest))?;
    }
    end(&Stage::new("msb-rm", ["-f", vm]))
}

/// Removes a snapshot, unless it has a name.
fn remove_unnamed(digest: &str) -> anyhow::Result<()> {
    if snapshot_name::has_name(&home::home()?, digest) {
        return Ok(());
    }
    shielded(&removal(digest)).map(drop)
}

/// Removes a snapshot and its upper, which VMs that were started from it do not need. msb-store reports its errors. They do not stop the
/// run.
fn removal(digest: &str) -> Stage {
    Stage::new("msb-store", ["rm", "-f", "-t", "snapshot", digest])
}

/// The digest of everything that a snapshot depends on.
fn key(record: &Record, saving: &Saving, args: &Args) -> anyhow::Result<String> {
    let mut parts = Parts::new("--snapshot");
    parts.add(VERSION);
    parts.add(env!("CARGO_PKG_VERSION").as_bytes());
    parts.add_record(record)?;
    match &args.patch {
        Some(ops) => parts.add_ops(ops)?,
        None => parts.add(b"no operations"),
    }
    parts.add_list(&saving.flags);
    parts.add_named(&saving.flags)?;
    // The record contains the paths of scripts, so the key covers them.
    for script in args.boot.values("script") {
        let file = variable::value_of(&script).and_then(|file| fs::canonicalize(file).ok());
        parts.add(file.unwrap_or_default().as_os_str().as_bytes());
    }
    parts.add(std::env::var_os("MSB_NETWORK").unwrap_or_default().as_bytes());
    add_machine(&mut parts)?;
    Ok(parts.digest())
}

/// Adds the agent, the kernel and the QEMU that msb-boot would use.
fn add_machine(parts: &mut Parts) -> anyhow::Result<()> {
    let mut probe = programs::command("msb-boot")?;
    probe.args(["--probe", "--vmm", "qemu"]).stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = probe.output().context("msb-boot --probe")?;
    let found: Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| anyhow!("msb-boot --probe: {error} (is it of another release?)"))?;
    parts.add(found["vmms"]["qemu"]["by"].to_string().as_bytes());
    for part in ["agentd", "libkrunfw", "qemu"] {
        let path = found["parts"][part]["by"].as_str().unwrap_or_default();
        parts.add(path.as_bytes());
        // msb-boot reports a missing part.
        let identity = fs::metadata(Path::new(OsStr::new(path)))
            .map(|file| format!("{} {} {}.{}", file.ino(), file.size(), file.mtime(), file.mtime_nsec()));
        parts.add(identity.unwrap_or_default().as_bytes());
    }
    Ok(())
}
