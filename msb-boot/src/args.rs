//! The command line.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Parser, ValueEnum};
use msb::{env, script, state};

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

    /// Hand PID 1 to this init in the guest: its path, or auto for the image's entrypoint where that is an init, else the first of
    /// /sbin/init, /lib/systemd/systemd and /usr/lib/systemd/systemd
    #[arg(long, value_name = "auto|PATH", value_parser = init)]
    pub init: Option<InitChoice>,

    /// An argument for the init (again for more)
    #[arg(long = "init-arg", value_name = "ARG", requires = "init", allow_hyphen_values = true)]
    pub init_args: Vec<OsString>,

    /// A variable for the init, over those that it inherits (again for more)
    #[arg(long = "init-env", value_name = "K[=V]", requires = "init", value_parser = OsStringValueParser::new().try_map(variable))]
    pub init_env: Vec<OsString>,

    /// What runs when msb-exec names no command, before the words behind --; the image's entrypoint and cmd are left out, as docker
    /// does it. One word, or a JSON array of several; empty for none
    #[arg(long, value_name = "CMD", value_parser = OsStringValueParser::new().try_map(entrypoint))]
    pub entrypoint: Option<Entrypoint>,

    /// A script for the guest: FILE becomes /.msb/scripts/NAME, which is on PATH (again for more)
    #[arg(long = "script", value_name = "NAME=FILE", value_parser = script_file)]
    pub scripts: Vec<(String, PathBuf)>,

    /// A variable for all commands in the guest; K alone takes its value from here (again for more)
    #[arg(short, long = "env", value_name = "K[=V]", value_parser = OsStringValueParser::new().try_map(variable))]
    pub env: Vec<OsString>,

    /// A file of variables, a line each: K=V or K; -e goes over them (again for more)
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,

    /// The directory in the guest that commands start in [default: the image's]
    #[arg(short, long, value_name = "DIR", value_parser = absolute)]
    pub workdir: Option<String>,

    /// The user in the guest that commands run as [default: the image's]
    #[arg(short, long, value_name = "USER[:GROUP]", value_parser = user)]
    pub user: Option<String>,

    /// How the root reaches the guest
    #[arg(long, value_enum, default_value_t = RootChoice::Auto)]
    pub root: RootChoice,

    /// For a block root: the size of the disk that takes what the guest writes, with K, M, G or T; it takes room as it
    /// fills. The VM of a --name finds its disk again [default: 4G]
    #[arg(long, value_name = "SIZE", value_parser = disk_size)]
    pub disk: Option<u64>,

    /// For a block root: keep what the guest writes in its memory, and nothing of it when the VM has ended
    #[arg(long, conflicts_with = "disk")]
    pub ephemeral: bool,

    /// For a block root: bring what the guest has written into the record's upper when the VM has ended, as msb-stop --commit
    /// does
    #[arg(long, conflicts_with = "ephemeral")]
    pub commit_on_stop: bool,

    /// For a disk root: the qcow2 file that takes what the guest writes, made where it is missing [default: none, and the
    /// disk is as it was when the VM has ended]
    #[arg(long, value_name = "FILE")]
    pub overlay: Option<PathBuf>,

    /// What runs the VM [default: $MSB_VMM, else auto]
    #[arg(long, value_enum, env = "MSB_VMM", hide_env = true, default_value_t = VmmChoice::Auto, hide_default_value = true)]
    pub vmm: VmmChoice,

    /// Stay until the VM has ended; Ctrl-C stops it
    #[arg(short, long)]
    pub foreground: bool,

    /// Write what the guest's kernel and agent say to this file, which stays; FILE.1 holds what came before [default: kernel.log in
    /// the VM's run directory]
    #[arg(long, value_name = "FILE")]
    pub kernel_log: Option<PathBuf>,

    /// Say on stderr which root was chosen, and why
    #[arg(short, long)]
    pub verbose: bool,

    /// Boot nothing: print as JSON what this machine has for a VM, which VMM would be taken, and what to install or add
    #[arg(long)]
    pub probe: bool,

    /// How many seconds the guest may take until its agent answers
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    pub timeout: u32,

    /// What msb-exec runs without a command, behind the entrypoint [default: the image's cmd]
    #[arg(value_name = "CMD", last = true)]
    pub command: Vec<OsString>,
}

/// The words of `--entrypoint`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entrypoint(pub Vec<OsString>);

/// What `--init` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum InitChoice {
    /// To look for one.
    Auto,
    /// This one.
    Path(String),
}

const EXAMPLES: &str = "\
Examples:
  msb-pull alpine | msb-mount ./root | msb-boot > vm.json
  msb-boot -r mounted.json --name worker -c 2 -m 1G > vm.json
  msb-boot -r systemd.json -m 1G --init auto > vm.json
  msb-boot -r systemd.json --init /lib/systemd/systemd --init-arg --unit=multi-user.target > vm.json
  msb-exec -r vm.json -- uname -a
  msb-stop -r vm.json

The VM's files are in $XDG_RUNTIME_DIR/msb/NAME (for root /run/msb/NAME): record.json, kernel.log.

Inits, and how msb-stop asks each to power off:
  systemd        SIGRTMIN+4
  BusyBox        SIGUSR2 (also Finit)
  sysvinit       runlevel 0 on /run/initctl (also OpenRC behind it)
  runit          /run/runit.stopit and SIGCONT
  s6-svscan      SIGUSR1 where s6-linux-init set it up, else SIGTERM
  others         SIGRTMIN+4 where they catch it, and SIGTERM
One that has not powered off within the grace is ended by force, and one that just ends (as inits of containers do) ends the
machine in order. Most slim images have no init: take one that ships it, or build one (examples/systemd).";

/// How the root reaches the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RootChoice {
    /// By what the record holds
    Auto,
    /// The mounted root as a shared directory: what the guest writes shows on the host at once
    Share,
    /// Disks made of the layers and the patches, and one for what the guest writes: the fast one
    Block,
    /// The record's disk
    Disk,
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

/// Reads the size of a disk, in bytes.
fn disk_size(text: &str) -> Result<u64, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 = number.parse().map_err(|_| "a size is a number with K, M, G or T".to_owned())?;
    let shift = match unit.to_ascii_lowercase().trim_end_matches('b').trim_end_matches('i') {
        "k" => 10,
        "" | "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(format!("{unit:?} is no unit of a size (K, M, G or T)")),
    };
    match number.checked_mul(1 << shift) {
        Some(bytes) if (MIN_DISK..=MAX_DISK).contains(&bytes) => Ok(bytes & !0xfff),
        _ => Err(format!("a disk has {} MiB to {} TiB", MIN_DISK >> 20, MAX_DISK >> 40)),
    }
}

/// What a disk has where nobody says.
pub(crate) const DEFAULT_DISK: u64 = 4 << 30;
/// Less, and the journal has no place.
const MIN_DISK: u64 = 256 << 20;
/// The most that ext4 takes without its feature bigalloc, by blocks of 4 KiB.
const MAX_DISK: u64 = 16 << 40;

/// Less, and the kernel finds no room for its own tables.
const MIN_MEMORY: u32 = 96;
const MAX_MEMORY: u32 = 1024 * 1024;

fn script_file(text: &str) -> Result<(String, PathBuf), String> {
    let (name, file) = text.split_once('=').ok_or("NAME=FILE is expected")?;
    script::check_name(name)?;
    Ok((name.to_owned(), file.into()))
}

fn variable(text: OsString) -> Result<OsString, &'static str> {
    env::check(&text).map(|()| text)
}

fn init(text: &str) -> Result<InitChoice, &'static str> {
    match text {
        "auto" => Ok(InitChoice::Auto),
        path if path.starts_with('/') => Ok(InitChoice::Path(path.to_owned())),
        _ => Err("\"auto\" or an absolute path in the guest is expected"),
    }
}

fn entrypoint(text: OsString) -> Result<Entrypoint, String> {
    let words = text.to_str().filter(|text| text.starts_with('['));
    match words {
        Some(words) => match serde_json::from_str::<Vec<String>>(words) {
            Ok(words) => Ok(Entrypoint(words.into_iter().map(Into::into).collect())),
            Err(error) => Err(format!("no JSON array of words: {error}")),
        },
        None if text.is_empty() => Ok(Entrypoint(Vec::new())),
        None => Ok(Entrypoint(vec![text])),
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
    fn a_disks_size_is_mib_unless_it_says_otherwise() {
        for (text, mib) in [("256", 256), ("1G", 1024), ("4GiB", 4096), ("1T", 1 << 20)] {
            assert_eq!(disk_size(text), Ok(mib << 20), "{text}");
        }
        for bad in ["", "G", "255M", "17T", "1P", "-1", "99999999999999999999G", "18446744073709551615T"] {
            assert!(disk_size(bad).is_err(), "{bad}");
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
    fn an_entrypoint_is_a_word_or_an_array_of_words() {
        let words = |words: &[&str]| Ok(Entrypoint(words.iter().map(Into::into).collect()));
        for (text, expected) in [
            ("/bin/run", words(&["/bin/run"])),
            ("with space", words(&["with space"])),
            ("[\"sh\", \"-c\", \"a b\"]", words(&["sh", "-c", "a b"])),
            ("[]", words(&[])),
            ("", words(&[])),
        ] {
            assert_eq!(entrypoint(text.into()), expected, "{text}");
        }
        assert!(entrypoint("[1]".into()).is_err());
        assert!(entrypoint("[".into()).is_err());
    }

    #[test]
    fn an_init_is_auto_or_an_absolute_path() {
        assert_eq!(init("auto"), Ok(InitChoice::Auto));
        assert_eq!(init("/sbin/init"), Ok(InitChoice::Path("/sbin/init".into())));
        assert!(init("sbin/init").is_err() && init("").is_err());
    }

    #[test]
    fn the_flags_fit_together() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }
}
