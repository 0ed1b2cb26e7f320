//! agentd's file, which msb-boot copies into every guest.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, anyhow, bail};
use msb::program;
use msb::record::path;
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, elf};

/// Finds agentd: `$MSB_AGENTD`, beside this program, or in `../libexec/msb`. It must be a static program for this machine.
///
/// # Errors
/// A message if it is missing, or why no guest could run it.
pub(crate) fn find() -> anyhow::Result<PathBuf> {
    let named = std::env::var_os("MSB_AGENTD").filter(|path| !path.is_empty()).map(PathBuf::from);
    let agent = match named {
        Some(path) => path,
        None if std::env::current_exe().is_err() => {
            bail!("agentd: /proc is not mounted, so the directory of msb-boot is unknown (mount -t proc proc /proc)")
        }
        None => program::installed(program::LIBEXEC, "agentd").find(|path| path.exists()).ok_or_else(|| {
            anyhow!(
                "agentd: not beside msb-boot and not in ../libexec/msb (run \"make build\", or name it in MSB_AGENTD)"
            )
        })?,
    };
    let file = fs::read(&agent).with_context(|| format!("agentd {agent:?}"))?;
    if let Err(why) = check_static(&file) {
        bail!("agentd {agent:?}: {why}, and a guest has only what is in the file itself (run \"make build\")");
    }
    path::absolute(&agent).map_err(Into::into)
}

/// Checks that an ELF file is a program for this machine without an interpreter (a dynamic loader).
fn check_static(file: &[u8]) -> Result<(), &'static str> {
    const MACHINE: u16 = if cfg!(target_arch = "x86_64") { elf::EM_X86_64 } else { elf::EM_AARCH64 };
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return Err("it is not a 64-bit ELF program");
    }
    let header = elf::FileHeader64::<Endianness>::parse(file).map_err(|_| "it is truncated")?;
    if header.e_machine(Endianness::Little) != MACHINE {
        return Err("it is built for another kind of machine");
    }
    let segments = header.program_headers(Endianness::Little, file).map_err(|_| "it is truncated")?;
    if segments.iter().any(|segment| segment.p_type(Endianness::Little) == elf::PT_INTERP) {
        return Err("it is dynamically linked");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_a_guest_could_not_run_is_refused() {
        let dynamic = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(check_static(&dynamic), Err("it is dynamically linked"));
        assert_eq!(check_static(b"#!/bin/sh\n"), Err("it is not a 64-bit ELF program"));
        assert_eq!(check_static(&dynamic[..60]), Err("it is truncated"));
        assert_eq!(check_static(&dynamic[..100]), Err("it is truncated"));
        let mut other = dynamic.clone();
        other[18] ^= 1;
        assert_eq!(check_static(&other), Err("it is built for another kind of machine"));
        let mut without_segments = dynamic;
        without_segments[56] = 0;
        without_segments[57] = 0;
        assert_eq!(check_static(&without_segments), Ok(()));
    }
}
