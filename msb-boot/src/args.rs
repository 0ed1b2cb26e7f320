//! The command line.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Parser, ValueEnum};
use msb::{script, state};

/// Boot a microVM from a record
///
/// Reads a record, boots the root file system that it names in a microVM, and prints the record with the member "vm"
/// when the agent in the guest answers. The VM stays until msb-stop ends it, or until it powers off by itself.
#[derive(Debug, Parser)]
#[command(name = "msb-boot", version, after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The record: a file, or "-" for the first line of stdin [default: $MSB_RECORD, else stdin]
    #[arg(short, long, value_name = "RECORD")]
    pub record: Option<String>,

    /// The VM's name: msb-exec and msb-stop know it by that, and it is the guest's hostname [default: made up]
    #[arg(long, value_name = "NAME", value_parser = vm_name)]
    pub name: Option<String>,

    /// Virtual processors
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub cpus: u8,

    /// Memory: MiB, or a number with K, M or G
    #[arg(short, long, value_name = "SIZE", default_value = "512M", value_parser = memory)]
    pub memory: u32,

    /// The command that runs when msb-exec names none; the image's entrypoint and cmd are left out, as docker does it
    #[arg(long, value_name = "CMD")]
    pub entrypoint: Option<OsString>,

    /// A script for the guest: FILE becomes /.msb/scripts/NAME, which is on PATH (again for more)
    #[arg(long = "script", value_name = "NAME=FILE", value_parser = script_file)]
    pub scripts: Vec<(String, PathBuf)>,

    /// A variable for all commands in the guest; K alone takes its value from here (again for more)
    #[arg(short, long = "env", value_name = "K[=V]", value_parser = OsStringValueParser::new().try_map(variable))]
    pub env: Vec<OsString>,

    /// The directory in the guest that commands start in [default: the image's]
    #[arg(short, long, value_name = "DIR", value_parser = absolute)]
    pub workdir: Option<String>,

    /// The user in the guest that commands run as [default: the image's]
    #[arg(short, long, value_name = "USER[:GROUP]", value_parser = user)]
    pub user: Option<String>,

    /// How the root reaches the guest
    #[arg(long, value_enum, default_value_t = RootChoice::Auto)]
    pub root: RootChoice,

    /// For a disk root: the qcow2 file that takes what the guest writes, made where it is missing [default: none, and the
    /// disk is as it was when the VM has ended]
    #[arg(long, value_name = "FILE")]
    pub overlay: Option<PathBuf>,

    /// What runs the VM [default: $MSB_VMM, else auto]
    #[arg(long, value_enum, env = "MSB_VMM", hide_env = true, default_value_t = VmmChoice::Auto, hide_default_value = true)]
    pub vmm: VmmChoice,

    /// Boot nothing: print as JSON what this machine has for a VM, which VMM would be taken, and what to install or add
    #[arg(long)]
    pub probe: bool,

    /// How many seconds the guest may take until its agent answers
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    pub timeout: u32,
}

const EXAMPLES: &str = "\
Examples:
  msb-pull alpine | msb-mount ./root | msb-boot > vm.json
  msb-boot -r mounted.json --name worker -c 2 -m 1G > vm.json
  msb-exec -r vm.json -- uname -a
  msb-stop -r vm.json

The VM's files are in $XDG_RUNTIME_DIR/msb/NAME (for root /run/msb/NAME): record.json, kernel.log.";

/// How the root reaches the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RootChoice {
    /// By what the record holds
    Auto,
    /// The mounted root as a shared directory: what the guest writes shows on the host at once
    Share,
}

/// What runs the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum VmmChoice {
    /// libkrun where the machine has usable KVM, else QEMU; says which and why
    Auto,
    /// libkrun, on KVM
    Krun,
    /// QEMU, on KVM or in software
    Qemu,
}

fn vm_name(text: &str) -> Result<String, &'static str> {
    state::check_vm_name(text).map(|()| text.to_owned())
}

/// Reads a size as MiB.
fn memory(text: &str) -> Result<u32, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 = number.parse().map_err(|_| "a size is a number with K, M or G".to_owned())?;
    let mib = match unit.to_ascii_lowercase().trim_end_matches('b').trim_end_matches('i') {
        "k" => number / 1024,
        "" | "m" => number,
        "g" => number.saturating_mul(1024),
        _ => return Err(format!("{unit:?} is no unit of a size (K, M or G)")),
    };
    match u32::try_from(mib) {
        Ok(mib) if (MIN_MEMORY..=MAX_MEMORY).contains(&mib) => Ok(mib),
        _ => Err(format!("a guest has {MIN_MEMORY} MiB to {} GiB", MAX_MEMORY / 1024)),
    }
}

/// Less, and the kernel finds no room for its own tables.
const MIN_MEMORY: u32 = 96;
const MAX_MEMORY: u32 = 1024 * 1024;

fn script_file(text: &str) -> Result<(String, PathBuf), String> {
    let (name, file) = text.split_once('=').ok_or("NAME=FILE is expected")?;
    script::check_name(name)?;
    Ok((name.to_owned(), file.into()))
}

fn variable(text: OsString) -> Result<OsString, &'static str> {
    match text.as_encoded_bytes().first() {
        None | Some(b'=') => Err("a variable needs a name"),
        Some(_) => Ok(text),
    }
}

fn absolute(text: &str) -> Result<String, &'static str> {
    if text.starts_with('/') { Ok(text.to_owned()) } else { Err("a path in the guest starts with \"/\"") }
}

fn user(text: &str) -> Result<String, &'static str> {
    if OsStr::new(text).is_empty() || text.starts_with(':') {
        Err("a user's name or number is expected")
    } else {
        Ok(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_mib_unless_they_say_otherwise() {
        for (text, mib) in [("512", 512), ("512M", 512), ("1G", 1024), ("1g", 1024), ("2GiB", 2048), ("131072K", 128)] {
            assert_eq!(memory(text), Ok(mib), "{text}");
        }
        for bad in ["", "G", "-1", "1T", "1.5G", "95", "99999999999999999999G", "18446744073709551615G", "512 M"] {
            assert!(memory(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_script_has_a_name_and_a_file() {
        assert_eq!(script_file("setup=./a=b").unwrap(), ("setup".into(), "./a=b".into()));
        for bad in ["setup", "=x", "a/b=x", "..=x"] {
            assert!(script_file(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_flags_fit_together() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }
}
