//! agentd's file, which msb-boot puts into the initramfs of every guest.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, anyhow, bail};
use msb::architecture::Architecture;
use msb::program;
use msb::record::path;
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, elf};

use crate::guest_files;

/// Finds agentd for guests of an architecture: `$MSB_AGENTD`, or as [`guest_files`] finds it. It must be a static program for them.
///
/// # Errors
/// A message if it is missing, or why no guest could run it.
pub(crate) fn find(architecture: Architecture) -> anyhow::Result<PathBuf> {
    let named = std::env::var_os("MSB_AGENTD").filter(|path| !path.is_empty()).map(PathBuf::from);
    let agent = match named {
        Some(path) => path,
        None if std::env::current_exe().is_err() => {
            bail!("agentd: /proc is not mounted, so the directory of msb-boot is unknown (mount -t proc proc /proc)")
        }
        None => guest_files::find(architecture, program::LIBEXEC, "agentd").ok_or_else(|| {
            anyhow!(
                "agentd: {} (run \"{}\", or name it in MSB_AGENTD)",
                guest_files::searched(architecture, program::LIBEXEC),
                guest_files::remedy(architecture)
            )
        })?,
    };
    let file = fs::read(&agent).with_context(|| format!("agentd {agent:?}"))?;
    if let Err(why) = check_static(&file, architecture) {
        bail!(
            "agentd {agent:?}: {why}, and a guest has only what is in the file itself (run \"{}\")",
            guest_files::remedy(architecture)
        );
    }
    path::absolute(&agent).map_err(Into::into)
}

/// Checks that an ELF file is a program for an architecture without an interpreter (a dynamic loader).
fn check_static(file: &[u8], architecture: Architecture) -> Result<(), &'static str> {
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return Err("it is not a 64-bit ELF program");
    }
    let header = elf::FileHeader64::<Endianness>::parse(file).map_err(|_| "it is truncated")?;
    if header.e_machine(Endianness::Little) != architecture.elf_machine() {
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

    fn check(file: &[u8]) -> Result<(), &'static str> {
        check_static(file, Architecture::HOST)
    }

    #[test]
    fn an_agent_that_a_guest_could_not_run_is_refused() {
        let dynamic = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(check(&dynamic), Err("it is dynamically linked"));
        assert_eq!(check(b"#!/bin/sh\n"), Err("it is not a 64-bit ELF program"));
        assert_eq!(check(&dynamic[..60]), Err("it is truncated"));
        assert_eq!(check(&dynamic[..100]), Err("it is truncated"));
        let mut other = dynamic.clone();
        other[18] ^= 1;
        assert_eq!(check(&other), Err("it is built for another kind of machine"));
        let mut without_segments = dynamic;
        without_segments[56] = 0;
        without_segments[57] = 0;
        assert_eq!(check(&without_segments), Ok(()));
    }
}
