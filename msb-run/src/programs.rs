//! The tools as programs: where each is, and which there are.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::anyhow;
use msb::program;

/// Finds a tool: beside this program, else on PATH.
///
/// # Errors
/// That it is not installed.
pub fn find(tool: &str) -> anyhow::Result<PathBuf> {
    program::find(tool, &[]).ok_or_else(|| {
        anyhow!(
            "{tool} is not installed (it belongs beside this program, or on PATH; \"make install\" installs all tools)"
        )
    })
}

/// The command that starts a tool.
///
/// # Errors
/// As [`find`].
pub fn command(tool: &str) -> anyhow::Result<Command> {
    Ok(Command::new(find(tool)?))
}

/// The words that msb takes: the names of all tools without `msb-`.
pub fn words() -> BTreeSet<String> {
    let own = std::env::current_exe().ok().and_then(|program| Some(program.parent()?.to_owned()));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = own.into_iter().chain(std::env::split_paths(&path).filter(|dir| dir.is_absolute()));
    dirs.flat_map(|dir| words_in(&dir)).collect()
}

fn words_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let word = |name: &OsStr| {
        let word = name.to_str()?.strip_prefix("msb-")?;
        // Build directories hold files such as msb-run.d.
        word.bytes().all(|byte| byte.is_ascii_lowercase()).then(|| word.to_owned())
    };
    entries
        .filter_map(|entry| word(&entry.file_name()))
        .filter(|word| program::find(&format!("msb-{word}"), &[]).is_some())
        .collect()
}
