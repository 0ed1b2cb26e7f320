//! Inits that supervise services: when the services of the boot have been started.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::libc::{self, c_long};

use super::children::{self, still_running};

/// The most services that are checked.
const MAX_SERVICES: usize = 1000;

/// openrc-init creates its FIFO when it has run the runlevels.
///
/// # Errors
/// What still runs.
pub fn openrc(call: c_long) -> Result<(), String> {
    match call {
        libc::SYS_mknodat => Ok(()),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_mknod => Ok(()),
        _ => Err(still_running("openrc", &children::of_pid_1().unwrap_or_default())),
    }
}

/// runit: its second stage runs runsvdir, whose argument is the directory of services, and each service has a supervisor.
///
/// # Errors
/// What is missing.
pub fn runit() -> Result<(), String> {
    let children = children::of_pid_1().map_err(|error| error.to_string())?;
    match children.iter().find(|child| child.name == "runsvdir") {
        Some(runsvdir) => {
            let services = runsvdir.arguments.iter().skip(1).find(|argument| !argument.starts_with('-'));
            all_supervised(Path::new(services.map_or("/etc/service", String::as_str)))
        }
        None => Err(still_running("runit's first stage", &children)),
    }
}

/// s6-svscan: it listens on its control FIFO, and each service in its working directory has a supervisor.
///
/// # Errors
/// What is missing.
pub fn s6() -> Result<(), String> {
    let services = Path::new("/proc/1/cwd");
    if !has_reader(&services.join(".s6-svscan/control")) {
        return Err("s6-svscan does not listen".into());
    }
    all_supervised(services)
}

/// Finit: it has set its condition `hook/sys/up`, after it has started everything.
///
/// # Errors
/// What is missing.
pub fn finit() -> Result<(), String> {
    let is_up = Path::new("/run/finit/cond/hook/sys/up").exists();
    if is_up { Ok(()) } else { Err("Finit's condition hook/sys/up is not set".into()) }
}

/// Checks that each service has a supervisor that listens, as `s6-svok(8)` and `sv(8)` do.
fn all_supervised(services: &Path) -> Result<(), String> {
    let entries = fs::read_dir(services).map_err(|error| format!("read the directory of services: {error}"))?;
    for entry in entries.take(MAX_SERVICES).filter_map(Result::ok) {
        let (name, path) = (entry.file_name(), entry.path());
        let is_service = !name.as_encoded_bytes().starts_with(b".") && path.join("run").exists();
        if is_service && !has_reader(&path.join("supervise/control")) {
            return Err(format!("service {name:?} has no supervisor"));
        }
    }
    Ok(())
}

/// Whether a process has a FIFO open for reading (`fifo(7)`).
fn has_reader(fifo: &Path) -> bool {
    fs::metadata(fifo).is_ok_and(|meta| meta.file_type().is_fifo())
        && File::options().write(true).custom_flags(libc::O_NONBLOCK).open(fifo).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_supervised_when_its_fifo_has_a_reader() {
        let scratch = tempfile::tempdir().unwrap();
        let services = scratch.path();
        assert_eq!(all_supervised(services), Ok(()));
        fs::create_dir_all(services.join("one/supervise")).unwrap();
        fs::create_dir(services.join(".hidden")).unwrap();
        fs::write(services.join(".hidden/run"), "").unwrap();
        assert_eq!(all_supervised(services), Ok(()), "no run file");
        fs::write(services.join("one/run"), "").unwrap();
        assert_eq!(all_supervised(services), Err("service \"one\" has no supervisor".into()));
        let fifo = services.join("one/supervise/control");
        fs::write(&fifo, "").unwrap();
        assert!(all_supervised(services).is_err(), "a file, not a FIFO");
        fs::remove_file(&fifo).unwrap();
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(all_supervised(services).is_err(), "without a reader");
        let _reader = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&fifo).unwrap();
        assert_eq!(all_supervised(services), Ok(()));
    }
}
