//! Whether the record's patches name the guest's name servers: then the agent leaves `/etc/resolv.conf` as it is, also with a network.

use std::io::Read;
use std::path::Path;

use msb::overlay::resolve::{End, Last, resolve};
use msb::overlay::{Layer, Merged};
use msb::record::{Record, Rootfs};
use rustix::fs::FileType;

/// The most bytes that are read.
const MAX: u64 = 64 << 10;

/// Whether the upper of the record has an `/etc/resolv.conf` with a name server. A file of the image does not count, as in Docker.
pub(crate) fn is_patched(record: &Record) -> bool {
    let Some(upper) = &record.upper else { return false };
    match &record.rootfs {
        Some(Rootfs::Layers { lower, .. } | Rootfs::Dir { lower, .. }) => names_server(lower, &upper.dir),
        _ => false,
    }
}

fn names_server(lower: &[impl AsRef<Path>], upper: &Path) -> bool {
    let Ok(root) = Merged::open(lower, Some(upper)) else { return false };
    let Ok(found) = resolve(&root, Path::new("/etc/resolv.conf"), Last::Follow) else { return false };
    let End::Leaf(_, leaf) = found.end else { return false };
    if leaf.layer != Layer::Upper || leaf.entry.file_type() != FileType::RegularFile {
        return false;
    }
    let mut text = String::new();
    let read = leaf.data().open_to_read().and_then(|file| file.take(MAX).read_to_string(&mut text));
    read.is_ok() && text.lines().any(|line| line.split_whitespace().next() == Some("nameserver"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::{CWD, Mode};

    use super::*;

    #[test]
    fn only_a_name_server_of_the_patches_counts() {
        let dir = tempfile::tempdir().unwrap();
        let [lower, upper] = ["lower", "upper"].map(|name| dir.path().join(name));
        for root in [&lower, &upper] {
            fs::create_dir_all(root.join("etc")).unwrap();
        }
        let is_patched = || names_server(&[&lower], &upper);
        assert!(!is_patched());
        fs::write(lower.join("etc/resolv.conf"), "nameserver 192.0.2.1\n").unwrap();
        assert!(!is_patched(), "the image's");
        fs::write(upper.join("etc/resolv.conf"), "# nameserver 192.0.2.1\nsearch a.test\n").unwrap();
        assert!(!is_patched(), "no server");
        fs::write(upper.join("etc/resolv.conf"), "search a.test\nnameserver 192.0.2.1\n").unwrap();
        assert!(is_patched());
        // A symlink is followed inside the root, as the operations do.
        fs::remove_file(upper.join("etc/resolv.conf")).unwrap();
        fs::remove_file(lower.join("etc/resolv.conf")).unwrap();
        symlink("../run/resolve/stub.conf", lower.join("etc/resolv.conf")).unwrap();
        assert!(!is_patched(), "to nothing");
        fs::create_dir_all(upper.join("run/resolve")).unwrap();
        fs::write(upper.join("run/resolve/stub.conf"), "nameserver 192.0.2.1\n").unwrap();
        assert!(is_patched());
        // Of a FIFO nothing is read.
        fs::remove_file(upper.join("run/resolve/stub.conf")).unwrap();
        let fifo = upper.join("run/resolve/stub.conf");
        rustix::fs::mknodat(CWD, fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert!(!is_patched());
    }
}
