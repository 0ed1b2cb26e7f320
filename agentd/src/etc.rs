//! The files of `/etc` that belong to the machine and not to the image: hosts, hostname and resolv.conf. As in Docker, they are bind
//! mounts over the image's files: the guest can change them, and the root stays as it is. Errors are logged on the console and do not
//! stop the boot.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use msb::vm::boot::{Boot, Network};
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::cleanup::Cleanup;
use crate::console;
use crate::path::{self, MSB_DIR};

/// The files, below `/etc`.
pub const FILES: [&str; 3] = ["etc/hosts", "etc/hostname", "etc/resolv.conf"];

/// The largest file of an image that is taken over, in bytes.
const MAX_CONTENT: u64 = 1 << 20;

/// The content of resolv.conf if the image has none.
const NO_NAME_SERVER: &[u8] = b"# This machine has no name server.\n";

/// Mounts all of them. `run` is the tmpfs on `/run`, if there is one: a file that a symlink leads there is written in place.
pub fn bind_all(boot: &Boot, run: Option<&Path>, cleanup: &mut Cleanup) {
    // Every root has this directory. The tmpfs covers it until its files are mounted elsewhere.
    let staging = Path::new("/").join(MSB_DIR);
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    if let Err(error) = mount(Some("tmpfs"), &staging, Some("tmpfs"), flags, Some("mode=0755")) {
        console::log(&format!("the machine's files in /etc: {error}"));
        return;
    }
    let has_ipv6 = Path::new("/proc/net/if_inet6").exists();
    let network = boot.network.as_ref();
    let with_resolver = network.filter(|network| !network.nameservers.is_empty());
    for (number, file) in FILES.iter().enumerate() {
        let content = |image: &[u8]| match number {
            0 => hosts(image, &boot.hostname, has_ipv6, network),
            1 => format!("{}\n", boot.hostname).into_bytes(),
            _ => match with_resolver {
                Some(network) => resolv_conf(network),
                None if image.is_empty() => NO_NAME_SERVER.to_vec(),
                None => image.to_vec(),
            },
        };
        let path = Path::new("/").join(file);
        if let Err(error) = bind(&path, content, &staging.join(number.to_string()), run, cleanup) {
            console::log(&format!("{}: {error}", path.display()));
        }
    }
    let _ = umount2(&staging, MntFlags::MNT_DETACH);
}

/// Mounts one file. `content` computes its content from that of the image's file.
fn bind(
    path: &Path,
    content: impl Fn(&[u8]) -> Vec<u8>,
    source: &Path,
    run: Option<&Path>,
    cleanup: &mut Cleanup,
) -> io::Result<()> {
    let root = Path::new("/");
    let place = path::follow(root, path)?;
    if path::is_foreign(&place) {
        return Err(io::Error::other(format!("left alone: the image has a symlink to {place:?} there")));
    }
    let found = match fs::symlink_metadata(&place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        other => Some(other?),
    };
    if found.as_ref().is_some_and(fs::Metadata::is_dir) {
        return Err(io::Error::other("left alone: the image has a directory there"));
    }
    let image = match &found {
        Some(meta) if meta.is_file() => read(&place)?,
        _ => Vec::new(),
    };
    let content = content(&image);
    let is_in_run = run.is_some_and(|run| place.starts_with(run));
    if is_in_run && found.is_some() && content == image {
        return Ok(());
    }
    let parent = place.parent().unwrap_or(root);
    if is_in_run {
        path::make_directories(root, parent, &mut Cleanup::default())?;
        if found.is_some_and(|meta| !meta.is_file()) {
            return Err(io::Error::other("left alone: the image has something other than a regular file there"));
        }
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let mut options = File::options();
        return options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o644)
            .custom_flags(flags)
            .open(&place)?
            .write_all(&content);
    }
    let mut file = File::options().write(true).create_new(true).mode(0o644).open(source)?;
    file.write_all(&content)?;
    match found {
        Some(meta) if meta.is_file() => {
            fchown(&file, Some(meta.uid()), Some(meta.gid()))?;
            file.set_permissions(Permissions::from_mode(meta.mode() & 0o7777))?;
        }
        Some(_) => {}
        None => {
            path::make_directories(root, parent, cleanup)?;
            if path::make(&place, || File::create_new(&place).map(drop))? {
                cleanup.add(&place);
            }
        }
    }
    Ok(mount(Some(source), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
}

/// Gives the machine another name in the files that have it. What the guest has added to them stays.
pub fn rename(old: &str, new: &str) {
    let write = |file: &str, content: &dyn Fn(&[u8]) -> Vec<u8>| -> io::Result<()> {
        let place = path::follow(Path::new("/"), &Path::new("/").join(file))?;
        let content = content(&read(&place)?);
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        File::options().write(true).truncate(true).custom_flags(flags).open(&place)?.write_all(&content)
    };
    let renamed = |found: &[u8]| rename_in_hosts(found, old, new);
    let name = |_: &[u8]| format!("{new}\n").into_bytes();
    for (file, content) in [(FILES[0], &renamed as &dyn Fn(&[u8]) -> Vec<u8>), (FILES[1], &name)] {
        if let Err(error) = write(file, content) {
            console::log(&format!("/{file}: {error}"));
        }
    }
}

/// hosts(5) without the line that [`hosts`] has added for the old name, and with one for the new name.
fn rename_in_hosts(found: &[u8], old: &str, new: &str) -> Vec<u8> {
    let label = old.split_once('.').map(|(label, _)| label);
    let own = own_line(&[Some(old), label].into_iter().flatten().collect::<Vec<_>>());
    // The line of localhost is not the machine's.
    let is_own = |line: &&[u8]| *line == own.as_bytes() && !old.eq_ignore_ascii_case("localhost");
    let kept: Vec<&[u8]> = found.split_inclusive(|&byte| byte == b'\n').filter(|line| !is_own(line)).collect();
    hosts(&kept.concat(), new, false, None)
}

/// The line of hosts(5) for the machine's names.
fn own_line(names: &[&str]) -> String {
    format!("127.0.0.1\t{}\n", names.join(" "))
}

/// Reads a regular file. It is opened with care, because the host may replace it in a shared root.
fn read(path: &PathBuf) -> io::Result<Vec<u8>> {
    let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let mut content = Vec::new();
    file.take(MAX_CONTENT + 1).read_to_end(&mut content)?;
    if content.len() as u64 > MAX_CONTENT {
        return Err(io::Error::other(format!("left alone: the image's file has more than {MAX_CONTENT} bytes")));
    }
    Ok(content)
}

/// resolv.conf(5) for the network. An answer over 512 bytes needs EDNS: without it, glibc would ask again over TCP.
fn resolv_conf(network: &Network) -> Vec<u8> {
    let mut lines: String = network.nameservers.iter().map(|address| format!("nameserver {address}\n")).collect();
    if !network.search.is_empty() {
        lines.push_str(&format!("search {}\n", network.search.join(" ")));
    }
    lines.push_str("options edns0\n");
    lines.into_bytes()
}

/// The image's hosts(5), with lines for localhost and the machine's name added if they are missing.
fn hosts(image: &[u8], hostname: &str, has_ipv6: bool, network: Option<&Network>) -> Vec<u8> {
    let mut hosts = image.to_vec();
    if hosts.last().is_some_and(|&byte| byte != b'\n') {
        hosts.push(b'\n');
    }
    let has = |name: &str, is_ipv6: bool| image.split(|&byte| byte == b'\n').any(|line| names_in(line, is_ipv6, name));
    let mut lines = String::new();
    if !has("localhost", false) {
        lines.push_str("127.0.0.1\tlocalhost\n");
    }
    if has_ipv6 && !has("localhost", true) && !has("ip6-localhost", true) {
        lines.push_str("::1\tlocalhost ip6-localhost ip6-loopback\n");
    }
    // "hostname -s" and sudo use the first label of a name with a domain.
    let label = hostname.split_once('.').map(|(label, _)| label);
    let is_missing = |name: &&str| !name.eq_ignore_ascii_case("localhost") && !has(name, false) && !has(name, true);
    let names: Vec<&str> = [Some(hostname), label].into_iter().flatten().filter(is_missing).collect();
    if !names.is_empty() {
        lines.push_str(&own_line(&names));
    }
    for (address, name) in network.iter().flat_map(|network| &network.hosts) {
        lines.push_str(&format!("{address}\t{name}\n"));
    }
    hosts.extend(lines.as_bytes());
    hosts
}

/// Whether a line of hosts(5) has an IPv4 or IPv6 address for a name.
fn names_in(line: &[u8], is_ipv6: bool, name: &str) -> bool {
    let line = line.split(|&byte| byte == b'#').next().unwrap_or_default();
    let mut fields = line.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty());
    fields.next().is_some_and(|address| address.contains(&b':') == is_ipv6)
        && fields.any(|field| field.eq_ignore_ascii_case(name.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: &str = "127.0.0.1\tlocalhost\n";
    const LOCAL_6: &str = "::1\tlocalhost ip6-localhost ip6-loopback\n";

    #[test]
    fn hosts_keeps_the_images_lines_and_gets_those_that_are_missing() {
        const OWN: &str = "127.0.0.1\tworker\n";
        for (image, expected) in [
            ("", format!("{LOCAL}{LOCAL_6}{OWN}")),
            ("192.0.2.7 mine\n", format!("192.0.2.7 mine\n{LOCAL}{LOCAL_6}{OWN}")),
            ("192.0.2.7 mine", format!("192.0.2.7 mine\n{LOCAL}{LOCAL_6}{OWN}")),
            ("127.0.0.1\tlocalhost\n", format!("{LOCAL}{LOCAL_6}{OWN}")),
            ("  127.0.0.1  a LocalHost # x\n", format!("  127.0.0.1  a LocalHost # x\n{LOCAL_6}{OWN}")),
            ("# 127.0.0.1 localhost\n", format!("# 127.0.0.1 localhost\n{LOCAL}{LOCAL_6}{OWN}")),
            ("127.0.0.1 localhost.localdomain\n", format!("127.0.0.1 localhost.localdomain\n{LOCAL}{LOCAL_6}{OWN}")),
            ("localhost\n", format!("localhost\n{LOCAL}{LOCAL_6}{OWN}")),
            ("::1 localhost\n", format!("::1 localhost\n{LOCAL}{OWN}")),
            ("::1 ip6-localhost\n127.0.0.1 localhost\n", format!("::1 ip6-localhost\n127.0.0.1 localhost\n{OWN}")),
            ("10.0.0.1 WORKER\n", format!("10.0.0.1 WORKER\n{LOCAL}{LOCAL_6}")),
            ("fd00::1 worker\n", format!("fd00::1 worker\n{LOCAL}{LOCAL_6}")),
            ("10.0.0.1 x # worker\n", format!("10.0.0.1 x # worker\n{LOCAL}{LOCAL_6}{OWN}")),
        ] {
            assert_eq!(
                String::from_utf8(hosts(image.as_bytes(), "worker", true, None)).unwrap(),
                expected,
                "{image:?}"
            );
        }
        assert_eq!(hosts(b"", "worker", false, None), format!("{LOCAL}{OWN}").into_bytes());
        for (hostname, expected) in
            [("a.b.test", "127.0.0.1\ta.b.test a\n"), ("localhost.test", "127.0.0.1\tlocalhost.test\n")]
        {
            assert_eq!(hosts(b"", hostname, false, None), format!("{LOCAL}{expected}").into_bytes());
        }
        assert_eq!(hosts(b"127.0.0.1 localhost a\n", "a.b", false, None), b"127.0.0.1 localhost a\n127.0.0.1\ta.b\n");
        assert_eq!(hosts(b"", "localhost", false, None), LOCAL.as_bytes());
        assert_eq!(hosts(b"\xff\n", "localhost", false, None), [b"\xff\n", LOCAL.as_bytes()].concat());
    }

    #[test]
    fn another_name_replaces_the_line_of_the_old_one_alone() {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        for (old, new, expected) in [
            ("worker", "other", "127.0.0.1\tother\n"),
            ("a.b.test", "other", "127.0.0.1\tother\n"),
            ("worker", "a.b.test", "127.0.0.1\ta.b.test a\n"),
            ("worker", "localhost", ""),
        ] {
            let mut found = hosts(b"10.0.0.9 db # worker\n", old, true, None);
            found.extend(b"127.0.0.1 worker-2\n");
            let renamed = text(rename_in_hosts(&found, old, new));
            assert_eq!(renamed, format!("10.0.0.9 db # worker\n{LOCAL}{LOCAL_6}127.0.0.1 worker-2\n{expected}"));
            // As often as one likes.
            assert_eq!(text(rename_in_hosts(renamed.as_bytes(), new, new)), renamed);
        }
    }

    #[test]
    fn a_network_adds_hosts_and_name_servers() {
        let network = Network {
            cards: Vec::new(),
            nameservers: vec!["10.0.2.3".parse().unwrap()],
            search: vec!["a.test".into(), "b.test".into()],
            hosts: vec![("10.0.2.2".parse().unwrap(), "host.msb.internal".into())],
        };
        let expected = "127.0.0.1\tlocalhost\n10.0.2.2\thost.msb.internal\n";
        assert_eq!(hosts(b"", "localhost", false, Some(&network)), expected.as_bytes());
        assert_eq!(resolv_conf(&network), b"nameserver 10.0.2.3\nsearch a.test b.test\noptions edns0\n");
    }

    #[test]
    fn an_images_file_is_read_to_a_limit() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("file");
        let size = usize::try_from(MAX_CONTENT).unwrap();
        fs::write(&file, vec![b'x'; size]).unwrap();
        assert_eq!(read(&file).unwrap().len(), size);
        fs::write(&file, vec![b'x'; size + 1]).unwrap();
        assert!(read(&file).unwrap_err().to_string().contains("more than 1048576 bytes"));
    }
}
