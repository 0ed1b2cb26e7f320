//! Where the programs and files are that a tool needs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::architecture::Architecture;

/// Where `make install` puts the programs that only msb's tools run, as seen from the directory of the tools.
pub const LIBEXEC: &str = "../libexec/msb";

/// The name of the agent's file.
pub const AGENT: &str = "agentd";

/// The running program's file, even if another release has replaced it on the disk.
pub const OWN_EXECUTABLE: &str = "/proc/self/exe";

/// The paths at which a file of this installation may be: beside the running program, and in `dir`, relative to the program's own
/// directory. There is none if `/proc` is not mounted.
pub fn installed(dir: &str, name: &str) -> impl Iterator<Item = PathBuf> {
    let program = std::env::current_exe().ok();
    let here = program.as_deref().and_then(Path::parent).map(Path::to_owned);
    here.into_iter().flat_map(move |here| [here.join(name), here.join(dir).join(name)])
}

/// The agents that exist: `$MSB_AGENTD`, and those of this installation for each architecture.
pub fn agents() -> Vec<PathBuf> {
    let named = std::env::var_os("MSB_AGENTD").filter(|path| !path.is_empty()).map(PathBuf::from);
    let others = Architecture::ALL.map(|architecture| format!("{}/{AGENT}", architecture.name()));
    let names = [AGENT].into_iter().chain(others.iter().map(String::as_str));
    named.into_iter().chain(names.flat_map(|name| installed(LIBEXEC, name))).filter(|path| path.exists()).collect()
}

/// Finds a program: in this installation, on PATH, or in one of `dirs`. Relative directories on PATH are skipped.
pub fn find(name: &str, dirs: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).filter(|dir| dir.is_absolute()).map(|dir| dir.join(name));
    let in_dirs = dirs.iter().map(|dir| Path::new(dir).join(name));
    installed(LIBEXEC, name).chain(on_path).chain(in_dirs).find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_executable_files_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("msb-test-program");
        let found = || find("msb-test-program", &[dir.path().to_str().unwrap()]);
        fs::write(&file, "").unwrap();
        assert_eq!(found(), None);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(found(), Some(file));
    }
}
