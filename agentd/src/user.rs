//! The user that runs a command: `user[:group]`, by name or number, from the guest's passwd and group files. A static program cannot load
//! NSS modules, and images rarely have any.

use std::fs;
use std::sync::{Arc, Mutex, PoisonError};

use msb::record::owner::{Id, NotAnId};
use msb::wire::exec::Ids;

use crate::stamp::Stamp;
use crate::sys::Identity;

/// A user of `/etc/passwd`, or a number that is not in it.
#[derive(Clone, Debug, Default)]
pub struct User {
    /// The IDs of the process.
    pub identity: Identity,
    /// The name, if passwd has the number.
    pub name: Option<String>,
    /// The home directory, or `/` if passwd has none.
    pub home: String,
}

/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 16 << 20;
/// The largest file that is cached, in bytes.
const MAX_CACHED: u64 = 256 << 10;

/// Looks up `user[:group]`. Without a group, the user has its primary group and all groups that list it; with one, only that. The primary
/// group is also the first one of the supplementary groups.
///
/// # Errors
/// A message about a name that does not exist, or an invalid ID.
pub fn find(spec: &str) -> Result<User, String> {
    static PASSWD: CachedFile = CachedFile::new("/etc/passwd");
    static GROUP: CachedFile = CachedFile::new("/etc/group");
    find_in(spec, &PASSWD.read(), &GROUP.read())
}

/// The user with these IDs. It has no groups besides these, and the home directory of `/etc/passwd`.
pub fn with_ids(ids: Ids) -> User {
    // An entry of passwd with an invalid group does not matter.
    let home = find(&ids.uid.to_string()).map_or_else(|_| "/".into(), |found| found.home);
    let groups = ids.groups.into_iter().map(Id::get).collect();
    User { identity: Identity { uid: ids.uid, gid: ids.gid, groups }, home, name: None }
}

/// A file that is read again only after a change: on virtiofs, opening and closing it are round trips to the host.
struct CachedFile {
    path: &'static str,
    cache: Mutex<Option<(Stamp, Arc<str>)>>,
}

impl CachedFile {
    const fn new(path: &'static str) -> Self {
        Self { path, cache: Mutex::new(None) }
    }

    /// The text of the file. It is empty if there is no file, or one that is too large.
    fn read(&self) -> Arc<str> {
        let Ok(meta) = fs::metadata(self.path) else { return "".into() };
        if !meta.is_file() || meta.len() > MAX_FILE {
            return "".into();
        }
        let stamp = Stamp::from(&meta);
        let mut cached = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((then, text)) = &*cached
            && *then == stamp
        {
            return Arc::clone(text);
        }
        let text: Arc<str> =
            fs::read(self.path).map(|bytes| String::from_utf8_lossy(&bytes).into()).unwrap_or_default();
        *cached = (meta.len() <= MAX_CACHED && stamp.is_settled()).then(|| (stamp, Arc::clone(&text)));
        text
    }
}

fn find_in(spec: &str, passwd: &str, group: &str) -> Result<User, String> {
    let (user, group_spec) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (spec, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = as_number(user).map_err(|why| format!("user {user:?}: {why}"))?;
    let lines = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let line = lines.filter(|fields| fields.len() >= 6).find(|fields| match number {
        Some(number) => fields[2].parse() == Ok(number),
        None => fields[0] == user,
    });
    let mut found = User { home: "/".to_owned(), ..User::default() };
    match (line, number) {
        (Some(fields), _) => {
            let id = |what: &str, text: &str| {
                text.parse().map_err(|why| format!("user {user:?}: its {what} in /etc/passwd, {text:?}: {why}"))
            };
            found.identity.uid = id("uid", fields[2])?;
            found.identity.gid = id("gid", fields[3])?;
            found.name = Some(fields[0].to_owned());
            if !fields[5].is_empty() {
                fields[5].clone_into(&mut found.home);
            }
        }
        (None, Some(number)) => found.identity.uid = number,
        (None, None) => return Err(format!("user {user:?}: not in the guest's /etc/passwd")),
    }
    let groups = || group.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(|fields| fields.len() >= 3);
    let gid = |fields: &[&str]| {
        let [name, _, text, ..] = fields else { unreachable!("a line has three fields at least") };
        text.parse::<Id>().map_err(|why| (why, format!("group {name:?}: its gid in /etc/group, {text:?}: {why}")))
    };
    match group_spec {
        Some(group) => {
            found.identity.gid = match as_number(group).map_err(|why| format!("group {group:?}: {why}"))? {
                Some(number) => number,
                None => {
                    let line = groups().find(|fields| fields[0] == group);
                    let line = line.ok_or_else(|| format!("group {group:?}: not in the guest's /etc/group"))?;
                    gid(&line).map_err(|(_, message)| message)?
                }
            };
        }
        None => {
            if let Some(name) = &found.name {
                let lists_it = |fields: &Vec<&str>| {
                    fields.get(3).is_some_and(|members| members.split(',').any(|member| member == name))
                };
                for line in groups().filter(lists_it) {
                    match gid(&line) {
                        Ok(id) => found.identity.groups.push(id.get()),
                        // Like the C library, this skips a line without a number.
                        Err((NotAnId::NotANumber, _)) => {}
                        Err((_, message)) => return Err(message),
                    }
                }
            }
        }
    }
    // As with initgroups(3): a program that runs with another effective group keeps this one, and what a file's mode denies to it.
    let Identity { gid, groups, .. } = &mut found.identity;
    groups.retain(|group| *group != gid.get());
    groups.insert(0, gid.get());
    Ok(found)
}

/// The number of a user or group; `None` for a name.
fn as_number(text: &str) -> Result<Option<Id>, NotAnId> {
    match text.parse() {
        Ok(id) => Ok(Some(id)),
        Err(NotAnId::NotANumber) => Ok(None),
        Err(why) => Err(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nbad line\napp:x:1000:1001:,,,:/home/app:/bin/sh\nnohome:x:7:7:::\n";
    const GROUP: &str = "root:x:0:\naudio:x:29:app,other\nvideo:x:44:application\nstaff:x:50:root,app\nusers:x:100:app9\nown:x:1001:app\n";

    #[test]
    fn users_are_found_as_docker_finds_them() {
        for (spec, uid, gid, groups, home) in [
            ("", 0, 0, vec![0, 50], "/root"),
            ("root", 0, 0, vec![0, 50], "/root"),
            ("app", 1000, 1001, vec![1001, 29, 50], "/home/app"),
            ("1000", 1000, 1001, vec![1001, 29, 50], "/home/app"),
            ("app:users", 1000, 100, vec![100], "/home/app"),
            ("app:9", 1000, 9, vec![9], "/home/app"),
            ("4711", 4711, 0, vec![0], "/"),
            ("4711:4712", 4711, 4712, vec![4712], "/"),
            ("nohome", 7, 7, vec![7], "/"),
            (":users", 0, 100, vec![100], "/root"),
        ] {
            let user = find_in(spec, PASSWD, GROUP).unwrap();
            let Identity { uid: its_uid, gid: its_gid, groups: its_groups } = user.identity;
            let found = (its_uid.get(), its_gid.get(), its_groups, user.home.as_str());
            assert_eq!(found, (uid, gid, groups, home), "{spec:?}");
        }
    }

    #[test]
    fn the_number_that_means_unchanged_is_refused_wherever_it_is_read() {
        let passwd = "root:x:0:0::/:\nbig:x:4294967295:0::/:\nwide:x:1:4294967295::/:\nmember:x:2:2::/:\nfar:x:4294967296:0::/:\n";
        let group = "all:x:4294967295:member\nodd:x:x:fine\nodder:x:-1:fine\n";
        for (spec, message) in [
            ("4294967295", "user \"4294967295\": 4294967295 is reserved"),
            ("4294967295:0", "user \"4294967295\": "),
            ("0:4294967295", "group \"4294967295\": "),
            (":4294967295", "group \"4294967295\": "),
            ("4294967296", "user \"4294967296\": not a number from"),
            ("big", "user \"big\": its uid in /etc/passwd, \"4294967295\": "),
            ("big:0", "user \"big\": its uid"),
            ("wide", "user \"wide\": its gid in /etc/passwd, \"4294967295\": "),
            ("1", "user \"1\": its gid"),
            ("far", "user \"far\": its uid"),
            ("root:all", "group \"all\": its gid in /etc/group, \"4294967295\": "),
            ("member", "group \"all\": its gid"),
            ("2", "group \"all\": its gid"),
        ] {
            let error = find_in(spec, passwd, group).unwrap_err();
            assert!(error.starts_with(message), "{spec}: {error}");
        }
        // With a group in the spec, the groups that list the user are not read.
        assert_eq!(find_in("member:7", passwd, group).unwrap().identity.gid.get(), 7);
        let passwd = "fine:x:3:3::/:\n";
        assert_eq!(find_in("fine", passwd, group).unwrap().identity.groups, [3]);
    }

    #[test]
    fn an_unknown_name_is_said() {
        assert!(find_in("nobody-here", PASSWD, GROUP).unwrap_err().contains("\"nobody-here\""));
        assert!(find_in("app:none", PASSWD, GROUP).unwrap_err().contains("group \"none\""));
        assert!(find_in("bad line", PASSWD, GROUP).is_err());
    }
}
