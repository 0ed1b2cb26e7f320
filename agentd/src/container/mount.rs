//! The mounts of a container, in the order of its description, and afterwards what is read-only.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use msb::overlay::beneath::{Dir, Entry};
use msb::wire::container::{Container, Mount};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use super::failed::{Failed, at};
use super::late::{LateMounts, Proc, read_only_flags};
use super::options::Options;
use super::place::{self, Root};
use crate::{console, run};

/// Mounts everything but what the first process has to mount, which is returned. What is to be read-only is not yet.
///
/// # Errors
/// The mount that failed.
pub fn all(container: &Container, root: &Root, guest: &Dir, cgroup: Option<&Path>) -> Result<LateMounts, Failed> {
    let c_strings = |paths: &[String]| paths.iter().map(|path| c_string(path)).collect::<io::Result<Vec<_>>>();
    let mut late = LateMounts {
        procs: Vec::new(),
        readonly: c_strings(&container.readonly_paths).map_err(at("read-only paths"))?,
        masked: c_strings(&container.masked_paths).map_err(at("masked paths"))?,
    };
    let mut covered: Vec<&Path> = Vec::new();
    for described in &container.mounts {
        let target = Path::new(&described.target);
        let mounted = match described.fstype.as_str() {
            _ if covered.iter().any(|proc| target.starts_with(proc)) => Err(io::Error::other("proc would cover it")),
            "proc" => {
                covered.push(target);
                proc(described, root).map(|proc| late.procs.push(proc))
            }
            _ => one(described, root, guest, cgroup),
        };
        mounted.map_err(at(format!("mount on {target:?}")))?;
    }
    Ok(late)
}

fn c_string(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(io::Error::from)
}

/// A proc, whose mount point is made.
fn proc(described: &Mount, root: &Root) -> io::Result<Proc> {
    let options = Options::parse(&described.options);
    place::make_directory(root, Path::new(&described.target))?;
    let read_only = if options.is_read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
    Ok(Proc { target: c_string(&described.target)?, flags: options.flags | read_only, data: c_string(&options.data)? })
}

fn one(described: &Mount, root: &Root, guest: &Dir, cgroup: Option<&Path>) -> io::Result<()> {
    let target = Path::new(&described.target);
    let options = Options::parse(&described.options);
    if options.is_bind || described.fstype == "bind" {
        return bind(&place::lookup(guest, Path::new(&described.source))?, target, root, &options);
    }
    if described.fstype.starts_with("cgroup") {
        // The container is in the cgroup of its command, and sees no other one.
        let Some(cgroup) = cgroup else { return Ok(()) };
        return bind(&Dir::open(cgroup)?.to_entry()?, target, root, &options);
    }
    let covered = place::mount_point(root, target, true)?;
    let source = Some(described.source.as_str()).filter(|source| !source.is_empty()).unwrap_or(&described.fstype);
    let mounted = mount(
        Some(source),
        covered.proc_path().as_str(),
        Some(described.fstype.as_str()),
        options.flags,
        Some(options.data.as_str()),
    );
    match mounted {
        // A kernel without POSIX message queues.
        Err(Errno::ENODEV) if described.fstype == "mqueue" => {
            console::log(&format!("container: the kernel has no mqueue for {target:?}"));
            return Ok(());
        }
        other => other?,
    }
    if options.copies_up && described.fstype == "tmpfs" {
        let mounted = place::lookup(&root.dir, target)?.into_dir()?;
        let path = mounted.proc_path();
        let requested = fs::metadata(&path)?;
        run::copy_up(&covered.into_dir()?, &mounted)?;
        // For the directory itself, the options override the attributes of the directory that it covers.
        let is_given = |key: &str| described.options.iter().any(|option| option.starts_with(key));
        if is_given("uid=") || is_given("gid=") {
            let id = |key: &str, id: u32| is_given(key).then_some(id);
            std::os::unix::fs::chown(&path, id("uid=", requested.uid()), id("gid=", requested.gid()))?;
        }
        if is_given("mode=") {
            fs::set_permissions(&path, requested.permissions())?;
        }
    }
    Ok(())
}

fn bind(source: &Entry, target: &Path, root: &Root, options: &Options) -> io::Result<()> {
    let target_entry = place::mount_point(root, target, source.is_dir())?;
    let recursive = if options.is_recursive { MsFlags::MS_REC } else { MsFlags::empty() };
    let (from, to) = (source.proc_path(), target_entry.proc_path());
    mount(Some(from.as_str()), to.as_str(), None::<&str>, MsFlags::MS_BIND | recursive, None::<&str>)?;
    if !options.flags.is_empty() {
        let mounted = place::lookup(&root.dir, target)?.proc_path();
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | options.flags;
        mount(None::<&str>, mounted.as_str(), None::<&str>, flags, None::<&str>)?;
    }
    Ok(())
}

/// Makes the mounts and the root read-only that are to be.
///
/// # Errors
/// The path that failed.
pub fn restrict(container: &Container, root: &Root) -> Result<(), Failed> {
    for described in &container.mounts {
        if described.fstype != "proc" && Options::parse(&described.options).is_read_only {
            let target = Path::new(&described.target);
            place::lookup(&root.dir, target)
                .and_then(|mounted| make_read_only(&mounted))
                .map_err(at(format!("make {target:?} read-only")))?;
        }
    }
    if container.readonly {
        root.dir.to_entry().and_then(|root| make_read_only(&root)).map_err(at("make the root read-only"))?;
    }
    Ok(())
}

/// Makes a mount read-only, and leaves its other flags.
fn make_read_only(mounted: &Entry) -> io::Result<()> {
    let path = mounted.proc_path();
    let flags = read_only_flags(rustix::fs::statvfs(path.as_str())?.f_flag);
    Ok(mount(None::<&str>, path.as_str(), None::<&str>, flags, None::<&str>)?)
}
