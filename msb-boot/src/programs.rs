//! Where the programs are that a VM needs beside this one.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};

use crate::vmm::Why;

/// `name` beside this program, and in `elsewhere` as seen from there.
pub(crate) fn near_us(elsewhere: &str, name: &str) -> Vec<PathBuf> {
    let here = std::env::current_exe().ok();
    let here = here.as_deref().and_then(Path::parent);
    here.map(|here| vec![here.join(name), here.join(elsewhere).join(name)]).unwrap_or_default()
}

/// A program: near this one, on PATH, or in one of `dirs`.
///
/// # Errors
/// Words with `remedy`.
pub(crate) fn find(name: &str, dirs: &[&str], remedy: &str) -> Result<PathBuf, Why> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).filter(|dir| dir.is_absolute()).map(|dir| dir.join(name));
    let fixed = dirs.iter().map(|dir| Path::new(dir).join(name));
    near_us("../libexec/msb", name)
        .into_iter()
        .chain(on_path)
        .chain(fixed)
        .find(|file| is_program(file))
        .ok_or_else(|| Why::new(format!("{name} is not installed"), remedy))
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// The agent: `$MSB_AGENTD`, beside this program, or in `../libexec/msb`; a static program for this machine.
///
/// # Errors
/// Words for one that is missing, or that no guest could run.
pub(crate) fn agent() -> anyhow::Result<PathBuf> {
    let named = std::env::var_os("MSB_AGENTD").filter(|path| !path.is_empty()).map(PathBuf::from);
    let agent = match named {
        Some(path) => path,
        None if std::env::current_exe().is_err() => {
            bail!(
                "agentd: looked for beside msb-boot, and without /proc nothing says where that is (mount -t proc proc /proc)"
            )
        }
        None => near_us("../libexec/msb", "agentd").into_iter().find(|path| path.exists()).ok_or_else(|| {
            anyhow!(
                "agentd: not beside msb-boot and not in ../libexec/msb (run \"make build\", or name it in MSB_AGENTD)"
            )
        })?,
    };
    let file = fs::read(&agent).with_context(|| format!("agentd {agent:?}"))?;
    if let Err(why) = runs_alone(&file) {
        bail!("agentd {agent:?}: {why}, and a guest has only what is in the file itself (run \"make build\")");
    }
    msb::record::path::absolute(&agent).map_err(Into::into)
}

/// Checks that an ELF file is for this machine and names no loader.
fn runs_alone(file: &[u8]) -> Result<(), &'static str> {
    const MACHINE: u64 = if cfg!(target_arch = "x86_64") { 62 } else { 183 };
    const PT_INTERP: u64 = 3;
    let number = |at: usize, length: usize| {
        let bytes = at.checked_add(length).and_then(|end| file.get(at..end)).ok_or("it is cut short")?;
        Ok::<u64, &'static str>(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    };
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return Err("it is no 64-bit ELF program");
    }
    if number(18, 2)? != MACHINE {
        return Err("it is for another kind of machine");
    }
    let (headers, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for header in 0..count {
        let at = usize::try_from(headers.saturating_add(header * size)).map_err(|_| "it is cut short")?;
        if number(at, 4)? == PT_INTERP {
            return Err("it is dynamically linked");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_a_guest_could_not_run_is_seen() {
        let dynamic = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(runs_alone(&dynamic), Err("it is dynamically linked"));
        assert_eq!(runs_alone(b"#!/bin/sh\n"), Err("it is no 64-bit ELF program"));
        assert_eq!(runs_alone(&dynamic[..60]), Err("it is cut short"));
        let mut other = dynamic.clone();
        other[18] ^= 1;
        assert_eq!(runs_alone(&other), Err("it is for another kind of machine"));
        let mut alone = dynamic;
        alone[56] = 0;
        alone[57] = 0;
        assert_eq!(runs_alone(&alone), Ok(()));
    }
}
