//! The save: the files in a staging directory, their digests, and the name.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, bail};
use msb::lock::{self, Lock};
use msb::record::{self, Record};
use msb::store::snapshot::{self, Content, DESCRIPTION, Description, MEMORY, STATE};
use msb::store::snapshot_stamp::Stamp;
use msb::store::{erase, layout, publish};
use msb::tool::interrupt::{self, DeferExit};
use msb::vm::rundir;
use msb::vm::saving::{self, Answer, Request};

/// The message if the VM ends first, for example because of another msb-snapshot --stop.
const ENDED: &str = "not saved: the VM has ended (boot it again)";

/// A saved VM.
pub(crate) struct Saved {
    /// Where it is.
    pub path: PathBuf,
    /// Its digest.
    pub digest: String,
    /// How long the guest was paused, in milliseconds.
    pub paused_ms: u64,
    /// Its end lets the guest go on, if that waits.
    _connection: UnixStream,
}

/// Saves the VM with this run directory. If it `waits`, its guest does not go on until the result is dropped.
///
/// # Errors
/// Why it is not saved; nothing is left in the store then.
pub(crate) fn save(home: &Path, run_dir: &Path, record: &Record, waits: bool) -> anyhow::Result<Saved> {
    let dir = layout::snapshots(home);
    publish::make_private_dir(&dir).with_context(|| format!("{dir:?}"))?;
    let staging = publish::staging_path(&dir.join(layout::fresh_id()?));
    // An interrupted tool removes it before it ends; after a kill, msb-store gc does.
    let deferred = DeferExit::new();
    publish::make_private_dir(&staging).with_context(|| format!("{staging:?}"))?;
    let saved = fill(&dir, &staging, run_dir, record, waits);
    match saved {
        // The snapshot is complete. A late signal is ignored, so that its record is printed.
        Ok(_) => deferred.finish(),
        Err(_) => drop(erase::remove_tree(&staging)),
    }
    saved
}

fn fill(dir: &Path, staging: &Path, run_dir: &Path, record: &Record, waits: bool) -> anyhow::Result<Saved> {
    let lock = lock::open(staging, Lock::TryExclusive).with_context(|| format!("{staging:?}"))?;
    let socket = run_dir.join(rundir::SNAPSHOT_SOCKET);
    let connection = UnixStream::connect(&socket).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused if !run_dir.join(record::FILE_NAME).exists() => {
            anyhow::anyhow!("{ENDED}")
        }
        io::ErrorKind::NotFound => {
            anyhow::anyhow!("it cannot be saved: another release of msb has booted it (boot it again)")
        }
        _ => anyhow::Error::from(error).context(format!("{socket:?}")),
    })?;
    let asked = saving::ask(&connection, Request { wait: waits }, lock.as_fd());
    let answered = asked.and_then(|()| {
        interrupt::await_readable(connection.as_fd())?;
        saving::receive_answer(&connection)
    });
    let answer = answered.map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            anyhow::anyhow!("{ENDED}")
        }
        _ => anyhow::Error::from(error).context("supervisor"),
    })?;
    let saving::Saved { machine, paused_ms } = match answer {
        Answer::Saved(saved) => *saved,
        Answer::Failed(why) => bail!("not saved: {why}"),
    };
    for disk in machine.disks.iter().filter(|disk| !disk.writable) {
        let sync = || anyhow::Ok(snapshot::open(staging, &disk.file)?.sync_all()?);
        sync().with_context(|| format!("{:?}", staging.join(&disk.file)))?;
    }
    let mut files = BTreeMap::new();
    let written = machine.disks.iter().filter(|disk| disk.writable).map(|disk| disk.file.as_str());
    // The memory comes last, so that its last change is older than the read (see `Stamp::note`).
    for name in [STATE].into_iter().chain(written).chain([MEMORY]) {
        interrupt::check()?;
        files.insert(name.to_owned(), describe(staging, name).with_context(|| format!("{staging:?}"))?);
    }
    let description = Description { version: snapshot::VERSION, machine, files, record: record.clone() };
    let (text, hex) = description.to_text()?;
    publish::write_file(&staging.join(DESCRIPTION), &text, 0o600)?;
    File::open(staging)?.sync_all()?;
    let path = dir.join(&hex);
    fs::rename(staging, &path).with_context(|| format!("{path:?}"))?;
    publish::sync_parent(&path)?;
    Ok(Saved { path, digest: format!("sha256:{hex}"), paused_ms, _connection: connection })
}

/// Syncs a file and computes its digest. The stamp of the memory is noted, so that msb-boot need not read it again.
fn describe(staging: &Path, name: &str) -> anyhow::Result<Content> {
    let file = snapshot::open(staging, name)?;
    file.sync_all()?;
    let (stamp, since) = (Stamp::of(&file)?, SystemTime::now());
    let content = Content::of(&file)?;
    if name == MEMORY {
        stamp.note(staging, name, &file, since);
    }
    Ok(content)
}
