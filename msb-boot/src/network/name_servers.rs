//! The name servers of a VM: those of --dns, or those of the host's resolv.conf(5), which is read again whenever it changes.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

use crate::log;

const RESOLV_CONF: &str = "/etc/resolv.conf";
const PORT: u16 = 53;
/// How many servers of the file are asked, as by the C library.
const MAX_SERVERS: usize = 3;
/// The most bytes of the file that are read.
const MAX_BYTES: u64 = 64 << 10;
/// How many symlinks the path may have, as in path_resolution(7).
const MAX_SYMLINKS: u32 = 40;

/// The servers, and the file from which they are read, unless they are fixed.
pub(super) struct NameServers {
    list: Vec<SocketAddr>,
    file: Option<WatchedFile>,
}

impl NameServers {
    /// These servers; without any, those of the host.
    pub(super) fn new(dns: &[IpAddr]) -> Self {
        if dns.is_empty() { Self::of_file(Path::new(RESOLV_CONF)) } else { Self::fixed(dns) }
    }

    /// Servers that do not change.
    pub(super) fn fixed(dns: &[IpAddr]) -> Self {
        Self { list: dns.iter().map(|address| (*address, PORT).into()).collect(), file: None }
    }

    fn of_file(path: &Path) -> Self {
        let mut servers = Self { list: Vec::new(), file: Some(WatchedFile::new(path)) };
        servers.update(true);
        servers
    }

    /// The servers, in the order in which they are asked.
    pub(super) fn list(&self) -> Vec<SocketAddr> {
        self.list.clone()
    }

    /// What is readable after a change.
    pub(super) fn changes(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref()?.inotify.as_ref().map(AsFd::as_fd)
    }

    /// Reads the file again if it has changed, or if `always`. Returns whether the servers are others now.
    pub(super) fn update(&mut self, always: bool) -> bool {
        let Some(file) = &mut self.file else { return false };
        if !file.has_changed() && !always {
            return false;
        }
        if let Err(error) = file.watch() {
            log::note(format_args!("{:?}: changes are not noticed: {error}", file.path));
        }
        let list = file.read();
        let is_new = list != self.list;
        self.list = list;
        is_new
    }
}

/// A file that is watched, with every directory and symlink on its path: any of them may be replaced.
struct WatchedFile {
    path: PathBuf,
    inotify: Option<OwnedFd>,
    /// The watches, and the name that matters if one is of a directory.
    watches: Vec<(i32, Option<OsString>)>,
}

impl WatchedFile {
    fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), inotify: None, watches: Vec::new() }
    }

    /// Takes the events. Returns whether one concerns the file.
    fn has_changed(&self) -> bool {
        let Some(inotify) = &self.inotify else { return false };
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(inotify, &mut buffer);
        let mut has_changed = false;
        while let Ok(event) = reader.next() {
            let name = event.file_name().map(|name| name.to_bytes());
            // Lost events have no watch, and the end of a mount has no name.
            has_changed |= event.wd() < 0
                || event.events().contains(ReadFlags::UNMOUNT)
                || self.watches.iter().any(|(watch, wanted)| {
                    *watch == event.wd() && wanted.as_ref().map(|wanted| wanted.as_bytes()) == name
                });
        }
        has_changed
    }

    /// Watches the path as it is now, from the root directory to the file or to the first name that is missing. A directory that
    /// this process may search and not read has no watch.
    fn watch(&mut self) -> io::Result<()> {
        const IN_DIRECTORY: WatchFlags = WatchFlags::CREATE
            .union(WatchFlags::MOVED_TO)
            .union(WatchFlags::MOVED_FROM)
            .union(WatchFlags::DELETE)
            .union(WatchFlags::ONLYDIR);
        const OF_FILE: WatchFlags = WatchFlags::CLOSE_WRITE.union(WatchFlags::DELETE_SELF).union(WatchFlags::MOVE_SELF);
        (self.inotify, self.watches) = (None, Vec::new());
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let mut symlinks = 0;
        let mut here = PathBuf::from("/");
        let mut rest: VecDeque<OsString> = names(&self.path);
        while let Some(name) = rest.pop_front() {
            if name == ".." {
                here.pop();
                continue;
            }
            // The watch comes first, so that no change is between the two.
            match inotify::add_watch(&inotify, &here, IN_DIRECTORY) {
                Err(Errno::ACCESS) => {}
                // The watch before it reports that the directory was removed.
                Err(Errno::NOENT | Errno::NOTDIR) => break,
                other => self.watches.push((other?, Some(name.clone()))),
            }
            let next = here.join(&name);
            let Ok(meta) = fs::symlink_metadata(&next) else { break };
            if meta.is_symlink() && symlinks < MAX_SYMLINKS {
                symlinks += 1;
                let Ok(target) = fs::read_link(&next) else { break };
                if target.is_absolute() {
                    here = PathBuf::from("/");
                }
                rest = names(&target).into_iter().chain(rest).collect();
            } else if meta.is_dir() {
                here = next;
            } else {
                match inotify::add_watch(&inotify, &next, OF_FILE) {
                    // The same.
                    Err(Errno::NOENT | Errno::ACCESS) => {}
                    other => self.watches.push((other?, None)),
                }
                break;
            }
        }
        self.inotify = Some(inotify);
        Ok(())
    }

    /// The servers in it. Without the file they are those of an empty one.
    fn read(&self) -> Vec<SocketAddr> {
        let mut text = Vec::new();
        if let Ok(file) = fs::File::open(&self.path) {
            let _ = file.take(MAX_BYTES).read_to_end(&mut text);
        }
        parse(&String::from_utf8_lossy(&text))
    }
}

/// The names of a path, without the root and ".".
fn names(path: &Path) -> VecDeque<OsString> {
    let is_name = |component: &Component| matches!(component, Component::Normal(_) | Component::ParentDir);
    path.components().filter(is_name).map(|component| component.as_os_str().to_owned()).collect()
}

/// The name servers of a resolv.conf(5). Without any it is the one on the same machine.
fn parse(text: &str) -> Vec<SocketAddr> {
    let mut servers: Vec<SocketAddr> = text.lines().filter_map(server).take(MAX_SERVERS).collect();
    if servers.is_empty() {
        servers.push((Ipv4Addr::LOCALHOST, PORT).into());
    }
    servers
}

fn server(line: &str) -> Option<SocketAddr> {
    let mut words = line.split_whitespace();
    let address = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
    let Some((address, interface)) = address.split_once('%') else {
        return Some((address.parse::<IpAddr>().ok()?, PORT).into());
    };
    let scope = interface.parse().ok().or_else(|| nix::net::if_::if_nametoindex(interface).ok())?;
    Some(SocketAddrV6::new(address.parse().ok()?, PORT, 0, scope).into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn servers_are_taken_in_their_order() {
        for (text, expected) in [
            ("nameserver 192.0.2.1\nnameserver 2001:db8::1\n", &["192.0.2.1:53", "[2001:db8::1]:53"][..]),
            ("# nameserver 192.0.2.9\nsearch a.test\n\tnameserver\t192.0.2.1 # x", &["192.0.2.1:53"]),
            ("nameserver fe80::1%1\nnameserver fe80::2%lo\n", &["[fe80::1%1]:53", "[fe80::2%1]:53"]),
            (
                "nameserver fe80::1%msb-missing\nnameserver a.test\nnameserver\nnameservers 192.0.2.1\n",
                &["127.0.0.1:53"],
            ),
            ("", &["127.0.0.1:53"]),
            (
                "nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\nnameserver 192.0.2.4\n",
                &["192.0.2.1:53", "192.0.2.2:53", "192.0.2.3:53"],
            ),
        ] {
            let servers: Vec<String> = parse(text).iter().map(SocketAddr::to_string).collect();
            assert_eq!(servers, expected, "{text}");
        }
    }

    #[test]
    fn a_change_of_the_file_or_of_anything_on_its_path_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let text = |number: u8| format!("nameserver 192.0.2.{number}\n");
        for name in ["etc", "run/one", "run/two"] {
            fs::create_dir_all(path(name)).unwrap();
        }
        let link = path("etc/resolv.conf");
        let mut servers = NameServers::of_file(&link);
        assert_eq!(servers.list(), ["127.0.0.1:53".parse().unwrap()]);
        let mut expect = |what: &str, address: &str| {
            assert!(servers.update(false), "{what}");
            assert_eq!(servers.list()[0].ip().to_string(), address, "{what}");
            assert!(!servers.update(false), "{what}");
        };
        fs::write(&link, text(1)).unwrap();
        expect("it is made", "192.0.2.1");
        fs::write(&link, text(2)).unwrap();
        expect("it is written", "192.0.2.2");
        fs::write(path("etc/new"), text(3)).unwrap();
        fs::rename(path("etc/new"), &link).unwrap();
        expect("another one takes its place", "192.0.2.3");
        fs::write(path("run/one/stub"), text(4)).unwrap();
        symlink("../run/now/stub", path("etc/link")).unwrap();
        symlink(path("run/one"), path("run/now")).unwrap();
        fs::rename(path("etc/link"), &link).unwrap();
        expect("a symlink takes its place", "192.0.2.4");
        fs::write(path("run/one/stub"), text(5)).unwrap();
        expect("its target is written", "192.0.2.5");
        fs::remove_dir_all(path("run/two")).unwrap();
        fs::write(path("etc/hosts"), "").unwrap();
        fs::write(path("run/two"), text(9)).unwrap();
        fs::remove_file(path("run/two")).unwrap();
        fs::create_dir(path("run/two")).unwrap();
        fs::write(path("run/two/stub"), text(6)).unwrap();
        symlink(path("run/two"), path("run/new")).unwrap();
        fs::rename(path("run/new"), path("run/now")).unwrap();
        expect("a directory on its path is another", "192.0.2.6");
        fs::rename(path("run"), path("gone")).unwrap();
        expect("a directory is gone", "127.0.0.1");
        fs::rename(path("gone"), path("run")).unwrap();
        expect("it is back", "192.0.2.6");
    }

    #[test]
    fn what_does_not_concern_the_file_is_no_change() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        fs::write(&file, "nameserver 192.0.2.1\n").unwrap();
        let mut watched = WatchedFile::new(&file);
        watched.watch().unwrap();
        fs::write(dir.path().join("hosts"), "").unwrap();
        assert!(!watched.has_changed());
        fs::write(&file, "nameserver 192.0.2.1\n").unwrap();
        assert!(watched.has_changed());
        // The list of servers is the same, so nobody is told.
        let mut servers = NameServers::of_file(&file);
        fs::write(&file, "nameserver 192.0.2.1\n").unwrap();
        assert!(!servers.update(false));
        let mut fixed = NameServers::fixed(&["192.0.2.7".parse().unwrap()]);
        assert!(fixed.changes().is_none() && !fixed.update(true));
    }
}
