//! The user namespace in which a tool runs for a user other than root. The files of an image have many owners. In the namespace,
//! ID 0 is the user, and the IDs from 1 on are those that `/etc/subuid` and `/etc/subgid` give the user.
//!
//! The tool itself moves into the namespace. It stays the same process, so signals, descriptors, the exit status and the
//! supplementary groups are as before. Only newuidmap(1) and newgidmap(1), which are set-uid programs, may write such a mapping.
//! They must run outside of the namespace, so they are started before it is made, and wait.

mod subordinate_ids;

use std::ffi::OsStr;
use std::fs;
use std::io::{self, PipeWriter};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use nix::sched::CloneFlags;
use nix::unistd::{Uid, User};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid, getpid};

use crate::program;
use crate::store::id_map::{self, IdMap, Range};
use crate::store::{self, home, layout};

/// Waits until its stdin is closed, and executes its arguments.
const WAIT: &str = "read -r _; exec \"$@\"";
/// Says whether AppArmor restricts user namespaces.
const APPARMOR: &str = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns";

/// What is missing for a user namespace.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{found} ({remedy})")]
pub struct Missing {
    /// What was found.
    pub found: String,
    /// What to do.
    pub remedy: String,
}

impl Missing {
    fn new(found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { found: found.into(), remedy: remedy.into() }
    }

    fn apparmor() -> Self {
        Self::new(
            "AppArmor restricts user namespaces: kernel.apparmor_restrict_unprivileged_userns is 1",
            "install the profile in msb(7), or sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        )
    }
}

/// Why a tool cannot run for this user.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no user namespace.
    #[error("without root, a user namespace is needed")]
    Missing(#[from] Missing),
    /// The store belongs to another user, or cannot be written.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A system call or a program failed.
    #[error("user namespace")]
    System(#[from] io::Error),
}

/// Makes this process root: of the host, or of a user namespace. Root of either stays what it is. `main` calls this before it
/// opens anything, while the process has one thread. A store that was made with another mapping is refused.
///
/// # Errors
/// What is missing, and what to do about it; a store of another user.
pub fn enter() -> Result<(), Error> {
    let home = home::home().ok();
    if geteuid().is_root() {
        return Ok(home.map_or(Ok(()), |home| id_map::check(&home))?);
    }
    let namespace = Namespace::find()?;
    if let Some(home) = home {
        id_map::check_for(&home, &namespace.map)?;
    }
    namespace.enter()?;
    let _ = ENTERED.set(namespace.map);
    Ok(())
}

/// The mapping of the namespace that [`enter`] has made.
static ENTERED: OnceLock<IdMap> = OnceLock::new();

/// Makes the store, and keeps the mapping in it, if [`enter`] has made a namespace. A tool calls this once its configuration is checked,
/// before it writes to the store.
///
/// # Errors
/// As [`enter`], and those of writing.
pub fn keep_map() -> Result<(), Error> {
    match (ENTERED.get(), home::home()) {
        (Some(map), Ok(home)) => Ok(id_map::keep(&home, map)?),
        _ => Ok(()),
    }
}

/// As [`enter`], if the store was made in a user namespace: without one, no file in it belongs to somebody else.
///
/// # Errors
/// As [`enter`].
pub fn enter_store() -> Result<(), Error> {
    match home::home() {
        Ok(home) if layout::id_map(&home).exists() => enter(),
        _ => Ok(()),
    }
}

/// As [`enter`], without a look at the store: to find out whether it works. Returns what this process is then.
///
/// # Errors
/// As [`enter`].
pub fn try_out() -> Result<String, Error> {
    if geteuid().is_root() {
        return Ok("root".into());
    }
    let namespace = Namespace::find()?;
    let count: u64 = namespace.map.uid.iter().map(|range| u64::from(range.count)).sum();
    namespace.enter()?;
    Ok(format!("a user namespace with {count} IDs"))
}

/// A namespace to make.
struct Namespace {
    map: IdMap,
    newuidmap: PathBuf,
    newgidmap: PathBuf,
}

impl Namespace {
    fn find() -> Result<Self, Error> {
        let map = mapping()?;
        let find = |name: &str| {
            let missing = || Missing::new(format!("{name} is not installed"), "apt-get install uidmap");
            program::find(name, &["/usr/bin", "/usr/local/bin"]).ok_or_else(missing)
        };
        Ok(Self { map, newuidmap: find("newuidmap")?, newgidmap: find("newgidmap")? })
    }

    fn enter(&self) -> Result<(), Error> {
        let users = Mapper::start(&self.newuidmap, &self.map.uid)?;
        let groups = Mapper::start(&self.newgidmap, &self.map.gid)?;
        nix::sched::unshare(CloneFlags::CLONE_NEWUSER).map_err(|error| refusal(io::Error::from(error)))?;
        users.map()?;
        groups.map()?;
        check_profile()?;
        if !geteuid().is_root() {
            return Err(io::Error::other("newuidmap has not mapped this user to 0").into());
        }
        Ok(())
    }
}

/// A program that writes a mapping for this process, once it is told to.
struct Mapper {
    child: Child,
    /// Nothing is written to it: closing it is the sign.
    sign: PipeWriter,
    name: String,
}

impl Mapper {
    fn start(program: &std::path::Path, ranges: &[Range]) -> Result<Self, Error> {
        let (read, sign) = io::pipe()?;
        let numbers = ranges.iter().flat_map(|range| [range.inside, range.outside, range.count]);
        let child = Command::new("/bin/sh")
            .args(["-c".as_ref(), WAIT.as_ref(), "sh".as_ref(), program.as_os_str()] as [&OsStr; 4])
            .arg(getpid().to_string())
            .args(numbers.map(|number| number.to_string()))
            .stdin(read)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        Ok(Self { child, sign, name: program.file_name().unwrap_or_default().to_string_lossy().into_owned() })
    }

    fn map(self) -> Result<(), Error> {
        drop(self.sign);
        let output = self.child.wait_with_output()?;
        if output.status.success() {
            return Ok(());
        }
        let message = String::from_utf8_lossy(&output.stderr).trim_end().replace('\n', "; ");
        let found = format!("{message} ({})", output.status);
        let remedy = format!(
            "{} must be set-uid root, and must not run with no_new_privs; /etc/subuid and /etc/subgid must give the user these IDs; \
             the group must be the user's own, not one of newgrp or sg",
            self.name
        );
        Err(Missing::new(found, remedy).into())
    }
}

/// The mapping that the files give this user.
fn mapping() -> Result<IdMap, Error> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let name = User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name);
    let read = |file| fs::read_to_string(file).unwrap_or_default();
    let (subuid, subgid) = (read("/etc/subuid"), read("/etc/subgid"));
    let of_user = |text: &str| subordinate_ids::of_user(text, name.as_deref(), uid);
    let (users, groups) = (of_user(&subuid), of_user(&subgid));
    if users.is_empty() || groups.is_empty() {
        let (first, count) = subordinate_ids::free(&[&subuid, &subgid]);
        let user = name.unwrap_or_else(|| uid.to_string());
        return Err(no_range(&user, users.is_empty(), groups.is_empty(), first, count).into());
    }
    Ok(IdMap { uid: map(uid, &users), gid: map(gid, &groups) })
}

/// The message names the lines to add.
fn no_range(user: &str, lacks_users: bool, lacks_groups: bool, first: u32, count: u32) -> Missing {
    let line = format!("\"{user}:{first}:{count}\"");
    let last = first + (count - 1);
    let (files, to, flags) = match (lacks_users, lacks_groups) {
        (true, false) => ("/etc/subuid", "/etc/subuid".to_owned(), format!("--add-subuids {first}-{last}")),
        (false, true) => ("/etc/subgid", "/etc/subgid".to_owned(), format!("--add-subgids {first}-{last}")),
        _ => (
            "/etc/subuid and /etc/subgid",
            format!("/etc/subuid and {line} to /etc/subgid"),
            format!("--add-subuids {first}-{last} --add-subgids {first}-{last}"),
        ),
    };
    Missing::new(
        format!("{user} has no IDs in {files}, and the files of an image have many owners"),
        format!("as root, add {line} to {to}, which \"usermod {flags} {user}\" does"),
    )
}

/// The user's own ID is 0 in the namespace, and the others follow.
fn map(own: u32, others: &[(u32, u32)]) -> Vec<Range> {
    let mut map = vec![Range { inside: 0, outside: own, count: 1 }];
    let mut inside: u32 = 1;
    for &(outside, count) in others {
        // The kernel takes no ID twice, and files may name a range twice.
        let end = outside.saturating_add(count);
        if map.iter().any(|there| outside < there.outside.saturating_add(there.count) && there.outside < end) {
            continue;
        }
        let Some(next) = inside.checked_add(count) else { break };
        map.push(Range { inside, outside, count });
        inside = next;
    }
    map
}

/// Why the kernel made no namespace.
fn refusal(error: io::Error) -> Error {
    let setting = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let is_off = |path: &str| setting(path).as_deref() == Some("0");
    let missing = |found: &str, remedy: &str| Error::from(Missing::new(found, remedy));
    if is_off("/proc/sys/user/max_user_namespaces") {
        return missing(
            "user namespaces are off: user.max_user_namespaces is 0",
            "sysctl -w user.max_user_namespaces=65536",
        );
    }
    if is_off("/proc/sys/kernel/unprivileged_userns_clone") {
        return missing(
            "user namespaces are off: kernel.unprivileged_userns_clone is 0",
            "sysctl -w kernel.unprivileged_userns_clone=1",
        );
    }
    match Errno::from_io_error(&error) {
        Some(Errno::NOSPC) => {
            missing("there are too many user namespaces already", "raise user.max_user_namespaces with sysctl")
        }
        // Ubuntu without the profile "unprivileged_userns", see check_profile. SELinux refuses with the same error.
        Some(Errno::ACCESS) if setting(APPARMOR).is_some_and(|on| on != "0") => Missing::apparmor().into(),
        Some(Errno::PERM) => missing(
            "the kernel refuses it to this process: Operation not permitted",
            "in a container: docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined, or --privileged",
        ),
        _ => error.into(),
    }
}

/// Ubuntu 24.04 lets anybody make a user namespace, and puts the process into the profile "unprivileged_userns", which allows it no
/// capability there. If that profile was removed, the namespace is refused with EACCES.
fn check_profile() -> Result<(), Error> {
    let restricts = fs::read_to_string(APPARMOR);
    let profile = fs::read_to_string("/proc/self/attr/current").unwrap_or_default();
    match restricts {
        Ok(on) if is_restricted(&on, &profile) => Err(Missing::apparmor().into()),
        _ => Ok(()),
    }
}

fn is_restricted(setting: &str, profile: &str) -> bool {
    setting.trim() != "0" && profile.starts_with("unprivileged_userns")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_is_root_of_the_namespace_and_the_other_ids_follow_without_gaps() {
        let range = |inside, outside, count| Range { inside, outside, count };
        for (own, others, expected) in [
            (1000, &[(100_000, 65_536)][..], vec![range(0, 1000, 1), range(1, 100_000, 65_536)]),
            (1000, &[(5000, 10), (7000, 5)], vec![range(0, 1000, 1), range(1, 5000, 10), range(11, 7000, 5)]),
            (1000, &[(999, 10), (7000, 5)], vec![range(0, 1000, 1), range(1, 7000, 5)]),
            (
                1000,
                &[(5000, 10), (5000, 10), (4995, 6), (5010, 5)],
                vec![range(0, 1000, 1), range(1, 5000, 10), range(11, 5010, 5)],
            ),
            (
                1000,
                &[(5000, u32::MAX - 5000), (2000, 4294960000)],
                vec![range(0, 1000, 1), range(1, 5000, u32::MAX - 5000)],
            ),
        ] {
            assert_eq!(map(own, others), expected, "{others:?}");
        }
    }

    #[test]
    fn the_message_names_the_lines_that_are_missing() {
        for (users, groups, has, lacks) in [
            (
                true,
                true,
                "add \"alice:100000:65536\" to /etc/subuid and \"alice:100000:65536\" to /etc/subgid",
                "nothing",
            ),
            (true, false, "add \"alice:100000:65536\" to /etc/subuid,", "/etc/subgid"),
            (false, true, "add \"alice:100000:65536\" to /etc/subgid,", "/etc/subuid"),
        ] {
            let message = no_range("alice", users, groups, 100_000, 65_536).to_string();
            assert!(message.contains(has) && !message.contains(lacks), "{message}");
            assert!(message.contains("100000-165535 alice\""), "{message}");
        }
    }

    #[test]
    fn a_profile_for_the_program_lifts_the_restriction() {
        for (setting, profile, restricted) in [
            ("1\n", "unprivileged_userns (enforce)\n", true),
            ("0\n", "unprivileged_userns (enforce)\n", false),
            ("1\n", "msb (unconfined)\n", false),
            ("1\n", "unconfined\n", false),
        ] {
            assert_eq!(is_restricted(setting, profile), restricted, "{setting:?} {profile:?}");
        }
    }
}
