//! The choice of the guest's root: which form it has, by the record and by --root, and whether the flags fit it.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow, bail};
use msb::overlay::{mountinfo, user_namespace};
use msb::record::{self, DiskFormat, Mount, Record, RootChoice, Rootfs, Upper};
use msb::store::home;

use crate::args::Args;
use crate::block::BlockRoot;
use crate::block::scratch::{Existing, Scratch};
use crate::disk::DiskRoot;
use crate::notice::Notice;
use crate::request;
use crate::root::Root;

/// The form of the root, and why it was chosen.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub root: RootChoice,
    pub why: &'static str,
}

/// Chooses the form of the root: what the record holds, or what --root asks for.
///
/// # Errors
/// A form that the record does not allow.
pub(crate) fn choose(record: &Record, requested: RootChoice) -> anyhow::Result<Choice> {
    let chosen = |root, why| Ok(Choice { root, why });
    let rootfs = if record.mount.is_some() { None } else { Some(record.rootfs()?) };
    match (requested, rootfs) {
        (RootChoice::Auto, None) => chosen(RootChoice::Share, "the record has a mount"),
        (RootChoice::Auto, Some(Rootfs::Layers { .. })) => {
            chosen(RootChoice::Block, "the record has layers and no mount")
        }
        (RootChoice::Auto, Some(Rootfs::Dir { .. })) => {
            chosen(RootChoice::Block, "the record has a directory and no mount")
        }
        (RootChoice::Auto, Some(Rootfs::Disk { format: DiskFormat::Erofs, .. })) => {
            chosen(RootChoice::Block, "the record has a read-only disk")
        }
        (RootChoice::Auto, Some(Rootfs::Disk { .. })) => chosen(RootChoice::Disk, "the record has a disk"),
        (RootChoice::Share, Some(Rootfs::Disk { path, .. })) => {
            bail!("disk {path:?} cannot be shared (leave --root out)")
        }
        (RootChoice::Share, Some(_)) => {
            bail!("a shared root is a mounted one, and the record has no mount (put msb-mount before msb-boot)")
        }
        (root, _) => match (root, record.rootfs()?) {
            (RootChoice::Block, Rootfs::Disk { format: DiskFormat::Erofs, .. }) => chosen(root, "--root says so"),
            (RootChoice::Disk, Rootfs::Disk { path, format: DiskFormat::Erofs, .. }) => {
                bail!("disk {path:?} is read-only, so it is the base of a block root (leave --root out)")
            }
            (RootChoice::Block, Rootfs::Disk { path, .. }) => {
                bail!("disk {path:?} is a root by itself (leave --root out)")
            }
            (RootChoice::Disk, Rootfs::Layers { .. } | Rootfs::Dir { .. }) => {
                bail!("--root disk: the record's root is not a disk (leave it out)")
            }
            (root, _) => chosen(root, "--root says so"),
        },
    }
}

/// Checks the flags that need a certain kind of root file system in the record.
///
/// # Errors
/// A flag that does not fit the record.
pub(crate) fn check_flags(record: &Record, request: &record::Boot) -> anyhow::Result<()> {
    match &record.rootfs {
        Some(Rootfs::Disk { format: DiskFormat::Erofs, .. }) if request.overlay.is_some() => {
            bail!("--overlay: an EROFS disk has a scratch disk in place of an overlay (use --name, which keeps it)")
        }
        Some(Rootfs::Disk { format: DiskFormat::Erofs, .. }) if request.commit_on_stop => {
            bail!("--commit-on-stop: an EROFS disk has no upper (leave it out)")
        }
        Some(Rootfs::Disk { .. }) => Ok(()),
        _ if request.overlay.is_some() => bail!("--overlay: the record's root is not a disk (leave it out)"),
        _ => Ok(()),
    }
}

/// Checks what the root is made of, and describes it.
///
/// # Errors
/// A flag that does not fit the root, or a part of it that is missing or in use.
pub(crate) fn root(
    record: &Record,
    args: &Args,
    request: &record::Boot,
    choice: RootChoice,
    notices: &mut Vec<Notice>,
) -> anyhow::Result<Root> {
    // A recorded --disk does not forbid another root. --ephemeral does, recorded or not: it promises that nothing is kept.
    let block_flags = [
        ("--disk", args.disk.is_some()),
        ("--fresh", args.fresh),
        ("--ephemeral", request.ephemeral),
        ("--commit-on-stop", args.commit_on_stop == Some(true)),
    ];
    if choice != RootChoice::Block
        && let Some((flag, _)) = block_flags.iter().find(|(_, given)| *given)
    {
        bail!("{flag} is for a block root, and this one is not (leave it out, or leave msb-mount out)");
    }
    match (choice, &record.mount) {
        (RootChoice::Share, Some(mount)) => {
            check_mount(mount)?;
            return Ok(Root::Share(mount.path.clone()));
        }
        (RootChoice::Share, None) => bail!("the record has no mount (put msb-mount before msb-boot)"),
        _ => {}
    }
    let scratch = |base: OsString, upper, notices: &mut Vec<Notice>| -> anyhow::Result<Scratch> {
        let size = request::disk_size(request)?;
        let scratch = match &request.name {
            _ if request.ephemeral => Scratch::Memory,
            // A VM from a snapshot has a copy of the saved disk.
            Some(name) if !args.rm && !args.dry_run && record.snapshot.is_none() => {
                Scratch::named(name, size, base.as_encoded_bytes(), args.fresh)?
            }
            _ => Scratch::unnamed(size),
        };
        if let (Some(existing), Some(name)) = (scratch.check(&home::home()?)?, &request.name) {
            notices.push(Notice::Info(reuse(name, &existing, upper)));
        }
        Ok(scratch)
    };
    let block = match record.rootfs()? {
        Rootfs::Disk { path, format: DiskFormat::Erofs, .. } => {
            let path = std::fs::canonicalize(path).with_context(|| format!("disk {path:?}"))?;
            let scratch = scratch(path.clone().into(), None, notices)?;
            BlockRoot::of_image(&path, scratch)?
        }
        Rootfs::Disk { path, format, .. } => {
            return Ok(Root::Disk(DiskRoot::check(path, *format, request.overlay.as_deref())?));
        }
        Rootfs::Layers { lower, .. } | Rootfs::Dir { lower, .. } => {
            let upper = record.upper.as_ref();
            upper.map(check_upper).transpose()?;
            let scratch = scratch(BlockRoot::base_name(lower)?, upper, notices)?;
            BlockRoot::check(lower, upper, scratch)?
        }
    };
    Ok(Root::Block(Box::new(block)))
}

/// The message about a scratch disk that is used again.
fn reuse(name: &str, disk: &Existing, upper: Option<&Upper>) -> String {
    let newer = upper.is_some_and(|upper| {
        let changed = std::fs::metadata(&upper.dir).map(|meta| {
            SystemTime::UNIX_EPOCH + Duration::new(meta.ctime().unsigned_abs(), meta.ctime_nsec().unsigned_abs() as u32)
        });
        changed.is_ok_and(|changed| changed > disk.last_written)
    });
    let hidden = if newer { ", which hides patches that were made since to the same files" } else { "" };
    let mib = disk.written as f64 / f64::from(1 << 20);
    format!("{name}: reusing its disk, {mib:.1} MiB written{hidden}; --fresh starts a new one")
}

fn check_upper(upper: &Upper) -> anyhow::Result<()> {
    match [&upper.dir, &upper.work].into_iter().find(|dir| !dir.is_dir()) {
        Some(dir) => bail!("upper {dir:?} is gone (run msb-patch again)"),
        None => Ok(()),
    }
}

fn check_mount(mount: &Mount) -> anyhow::Result<()> {
    // The kernel may have cached the attributes of the root, so stat(2) succeeds although the FUSE server is dead. statvfs(3) is always
    // sent to the server.
    let answer = std::fs::metadata(&mount.path).and_then(|meta| Ok((meta, rustix::fs::statvfs(&mount.path)?)));
    match answer {
        Ok((meta, _)) if meta.is_dir() => check_entry(mount),
        Ok(_) => Err(anyhow!("mount {:?}: not a directory", mount.path)),
        Err(error) => Err(anyhow!("mount {:?}: {error} (run msb-mount again)", mount.path)),
    }
}

/// Checks that a user's mount lets the processes of the VM in, which act for the users of the guest.
fn check_entry(mount: &Mount) -> anyhow::Result<()> {
    if user_namespace::is_initial() {
        return Ok(());
    }
    let table = std::fs::read("/proc/self/mountinfo")?;
    let there = mountinfo::mounts(&table).rfind(|there| Path::new(&there.point) == mount.path);
    match there {
        Some(there) if there.fstype == msb::record::Mount::FSTYPE && !there.allows_others => bail!(
            "mount {:?}: only its user can enter it, and a VM acts for all users of its guest (leave msb-mount out, or choose --root block; \
             or have the administrator add the line \"user_allow_other\" to /etc/fuse.conf, and mount again)",
            mount.path
        ),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;
    use msb::record::DiskFormat;

    use super::*;

    #[test]
    fn the_record_or_the_caller_chooses_the_root() {
        let dir = std::env::temp_dir();
        let layers = || Some(Rootfs::layers(vec![dir.clone()]));
        let directory = || Some(Rootfs::dir(dir.clone()));
        let disk = || Some(Rootfs::disk(dir.clone(), DiskFormat::Raw));
        let read_only = || Some(Rootfs::disk(dir.clone(), DiskFormat::Erofs));
        let mount = || Mount::new(dir.clone(), 1, "x".into());
        let record = |rootfs, mount| {
            let mut record = Record::new();
            (record.rootfs, record.mount) = (rootfs, mount);
            record
        };
        for (record, flag, expected) in [
            (record(layers(), None), "auto", Ok(RootChoice::Block)),
            (record(directory(), None), "auto", Ok(RootChoice::Block)),
            (record(disk(), None), "auto", Ok(RootChoice::Disk)),
            (record(layers(), Some(mount())), "auto", Ok(RootChoice::Share)),
            (record(None, Some(mount())), "auto", Ok(RootChoice::Share)),
            (record(layers(), Some(mount())), "block", Ok(RootChoice::Block)),
            (record(None, None), "auto", Err("start with msb-pull")),
            (record(None, Some(mount())), "block", Err("start with msb-pull")),
            (record(layers(), None), "share", Err("put msb-mount before")),
            (record(directory(), None), "share", Err("put msb-mount before")),
            (record(disk(), None), "share", Err("cannot be shared")),
            (record(disk(), None), "block", Err("is a root by itself")),
            (record(layers(), None), "disk", Err("root is not a disk")),
            (record(read_only(), None), "auto", Ok(RootChoice::Block)),
            (record(read_only(), None), "block", Ok(RootChoice::Block)),
            (record(read_only(), None), "disk", Err("is read-only")),
        ] {
            let requested = RootChoice::from_str(flag, false).unwrap();
            match (choose(&record, requested), expected) {
                (Ok(choice), Ok(root)) => assert_eq!(choice.root, root, "{record:?} {flag}"),
                (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
                (other, _) => panic!("{record:?} {flag}: {other:?}"),
            }
        }
    }
}
