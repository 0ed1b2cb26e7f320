//! Kernel parameters (`sysctl.d(5)`): those that commands have elsewhere, and the one that images set to a value which this kernel
//! refuses.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;

use crate::console;

/// What Docker sets in a container: any user may bind low ports and send pings. And what systemd sets on a host: no user is harmed by the
/// links, FIFOs and files of another one in `/tmp`.
const FOR_COMMANDS: [(&str, &str); 6] = [
    ("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"),
    ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647"),
    ("/proc/sys/fs/protected_hardlinks", "1"),
    ("/proc/sys/fs/protected_symlinks", "1"),
    ("/proc/sys/fs/protected_fifos", "1"),
    ("/proc/sys/fs/protected_regular", "1"),
];

/// The directories that `systemd-sysctl` reads. A file hides those with the same name in later directories.
const DIRECTORIES: [&str; 5] =
    ["etc/sysctl.d", "run/sysctl.d", "usr/local/lib/sysctl.d", "usr/lib/sysctl.d", "lib/sysctl.d"];
const PID_MAX: &str = "/proc/sys/kernel/pid_max";
/// The file with the value that this kernel accepts. Its name sorts last, so it is read last.
const OVERRIDE: &str = "/run/sysctl.d/zz-msb.conf";
/// The most bytes that are read of a file, and the most files.
const MAX_FILE: u64 = 64 << 10;
const MAX_FILES: usize = 256;

/// Sets the parameters for commands.
pub fn set_for_commands() {
    for (path, value) in FOR_COMMANDS {
        match fs::write(path, value) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => console::log(&format!("{path}: {error}")),
            _ => {}
        }
    }
}

/// Overrides a `kernel.pid_max` of the image that this kernel refuses, such as that of systemd's own file: systemd-sysctl.service would
/// fail.
///
/// # Errors
/// Those of reading and writing the kernel's value, and of writing the file.
pub fn override_pid_max() -> io::Result<()> {
    let Some(wanted) = wanted_pid_max(Path::new("/")) else { return Ok(()) };
    let now = fs::read_to_string(PID_MAX)?;
    if fs::write(PID_MAX, &wanted).is_ok() {
        // The kernel accepts the value. The init will set it.
        return fs::write(PID_MAX, now);
    }
    fs::create_dir_all(Path::new(OVERRIDE).parent().unwrap_or(Path::new("/run")))?;
    let now = now.trim();
    fs::write(OVERRIDE, format!("# The kernel of this machine does not accept {wanted}.\nkernel.pid_max = {now}\n"))
}

/// The value of `kernel.pid_max` in the files below `root`, unless a failure to set it is ignored.
fn wanted_pid_max(root: &Path) -> Option<String> {
    let mut files: BTreeMap<OsString, String> = BTreeMap::new();
    for dir in DIRECTORIES {
        let Ok(entries) = fs::read_dir(root.join(dir)) else { continue };
        for entry in entries.take(MAX_FILES).filter_map(Result::ok) {
            let name = entry.file_name();
            if Path::new(&name).extension().is_some_and(|extension| extension == "conf") && !files.contains_key(&name) {
                files.insert(name, read(&entry.path()).unwrap_or_default());
            }
        }
    }
    files.values().flat_map(|text| text.lines()).filter_map(pid_max_in).next_back()?
}

/// The value of `kernel.pid_max` in a line. The inner `None`: the line begins with `-`, so a failure is ignored.
fn pid_max_in(line: &str) -> Option<Option<String>> {
    let line = line.trim();
    let (may_fail, line) = match line.strip_prefix('-') {
        Some(line) => (true, line),
        None => (false, line),
    };
    let (key, value) = line.split_once('=')?;
    // The key of a comment begins with # or ;.
    let is_it = matches!(key.trim(), "kernel.pid_max" | "kernel/pid_max");
    is_it.then(|| (!may_fail).then(|| value.trim().to_owned()))
}

/// Reads a file of the image. A symlink to `/dev/null` hides a file, and is an error here.
fn read(path: &Path) -> io::Result<String> {
    let meta = fs::metadata(path)?;
    if !meta.is_file() || meta.len() > MAX_FILE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    fs::read(path).map(|text| String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_sets_pid_max_and_may_fail_or_not() {
        for (line, expected) in [
            ("kernel.pid_max = 4194304", Some(Some("4194304"))),
            ("kernel/pid_max=5", Some(Some("5"))),
            ("  kernel.pid_max=\t7  ", Some(Some("7"))),
            ("-kernel.pid_max = 4194304", Some(None)),
            ("# kernel.pid_max = 4194304", None),
            (";kernel.pid_max = 4194304", None),
            ("kernel.pid_maximum = 1", None),
            ("kernel.pid_max", None),
            ("", None),
        ] {
            assert_eq!(pid_max_in(line), expected.map(|value| value.map(str::to_owned)), "{line:?}");
        }
    }

    #[test]
    fn the_last_file_by_name_counts_and_one_of_an_earlier_directory_hides_its_namesake() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let wanted = || wanted_pid_max(root.path());
        assert_eq!(wanted(), None);
        put("usr/lib/sysctl.d/50-pid-max.conf", "# words\nkernel.pid_max = 4194304\n");
        assert_eq!(wanted().as_deref(), Some("4194304"));
        put("etc/sysctl.d/10-more.conf", "kernel.pid_max = 1\n");
        put("etc/sysctl.d/60-more.conf", "vm.swappiness = 1\n");
        put("etc/sysctl.d/90-more.txt", "kernel.pid_max = 1\n");
        assert_eq!(wanted().as_deref(), Some("4194304"));
        put("lib/sysctl.d/60-other.conf", "-kernel.pid_max = 9\n");
        assert_eq!(wanted(), None, "it may fail");
        put("lib/sysctl.d/70-other.conf", "kernel.pid_max = 8\nkernel.pid_max = 9\n");
        assert_eq!(wanted().as_deref(), Some("9"));
        put("etc/sysctl.d/70-other.conf", "");
        put("etc/sysctl.d/60-other.conf", "");
        std::os::unix::fs::symlink("/dev/null", root.path().join("etc/sysctl.d/50-pid-max.conf")).unwrap();
        assert_eq!(wanted().as_deref(), Some("1"));
        put("usr/lib/sysctl.d/80-large.conf", &format!("{}\nkernel.pid_max = 3\n", "#".repeat(64 << 10)));
        assert_eq!(wanted().as_deref(), Some("1"), "too large");
    }
}
