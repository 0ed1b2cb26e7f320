//! The command line.

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use clap::Parser;
use clap::builder::{OsStringValueParser, TypedValueParser};
use msb::record::{Boot, Channel, RestartPolicy, RootChoice, VmmChoice};
use msb::tool::output::Output;
use msb::tool::source::StageRecord;
use msb::vm::{inits, name};
use msb::{record::owner, record::script, record::signal, tool::env, tool::size};

use crate::limit_args::LimitArgs;
use crate::network_args::NetworkArgs;
use crate::page::PAGE;
use crate::volume_args::VolumeArgs;

/// Boot a microVM from a record
///
/// Reads a record, boots its root file system in a microVM, and prints the record with the member "vm" when the agent in the
/// guest answers. The VM runs in the background until msb-stop stops it or its guest powers off.
#[derive(Debug, Parser)]
#[command(name = "msb-boot", version, after_help = PAGE.help())]
pub(crate) struct Args {
    #[command(flatten)]
    pub record: StageRecord,

    #[command(flatten)]
    pub output: Output,

    /// The VM's name: msb-exec and msb-stop use it, and it is the guest's hostname [default: generated]
    #[arg(long, value_name = "NAME", value_parser = name::parse)]
    pub name: Option<String>,

    /// The guest's hostname [default: the VM's name]
    #[arg(long, value_name = "NAME", value_parser = name::parse)]
    pub hostname: Option<String>,

    /// Virtual processors [default: 1]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u8).range(CPUS))]
    pub cpus: Option<u8>,

    /// Memory in MiB, or with a suffix K, M or G [default: 512M]
    #[arg(short, long, value_name = "SIZE", value_parser = memory)]
    pub memory: Option<u32>,

    // The search path is in the table of inits.
    #[arg(long, value_name = "auto|none|PATH", value_parser = init, help = init_help())]
    pub init: Option<InitChoice>,

    /// Leave the root as it is: mount and create nothing in it. Only containers run in it (msb-exec --container)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub bare: Option<bool>,

    /// Return once the init is usable, that is, has started what it starts at boot; agentd(8) defines that for each init. The
    /// default with --init
    #[arg(long, overrides_with = "no_wait_init")]
    pub wait_init: bool,

    /// Return as soon as the init runs
    #[arg(long, overrides_with = "wait_init")]
    pub no_wait_init: bool,

    /// An argument for the init (repeatable)
    #[arg(long = "init-arg", value_name = "ARG", allow_hyphen_values = true)]
    pub init_args: Vec<OsString>,

    /// A variable for the init, in addition to those it inherits (repeatable)
    #[arg(long = "init-env", value_name = "K[=V]", value_parser = OsStringValueParser::new().try_map(variable))]
    pub init_env: Vec<OsString>,

    /// The command that msb-exec runs by default, followed by CMD; replaces the image's entrypoint and cmd, as with docker. One
    /// word, or a JSON array of several; empty for none
    #[arg(long, value_name = "CMD", value_parser = OsStringValueParser::new().try_map(entrypoint))]
    pub entrypoint: Option<Entrypoint>,

    /// Provide FILE in the guest as the script /.msb/scripts/NAME, which is on PATH (repeatable)
    #[arg(long = "script", value_name = "NAME=FILE", value_parser = script_file)]
    pub scripts: Vec<(String, PathBuf)>,

    /// Set a variable for all commands in the guest; K alone takes its value from the caller's environment (repeatable). The
    /// record keeps the values
    #[arg(short, long = "env", value_name = "K[=V]", value_parser = OsStringValueParser::new().try_map(variable))]
    pub env: Vec<OsString>,

    /// Read variables from FILE, one K=V or K per line; -e overrides them (repeatable)
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,

    /// The working directory of commands in the guest [default: the image's]
    #[arg(short, long, value_name = "DIR", value_parser = absolute)]
    pub workdir: Option<String>,

    /// The user that runs commands in the guest [default: the image's]
    #[arg(short, long, value_name = "USER[:GROUP]", value_parser = user)]
    pub user: Option<String>,

    /// The signal that asks commands to end when the VM stops, as a name or number [default: the image's, else TERM]
    #[arg(long, value_name = "SIGNAL", value_parser = stop_signal)]
    pub stop_signal: Option<String>,

    /// How the root file system reaches the guest [default: auto]
    #[arg(long, value_enum)]
    pub root: Option<RootChoice>,

    /// For a block root: the size of the scratch disk, which holds what the guest writes, with a suffix K, M, G or T. It is
    /// sparse. A VM with --name reuses its disk [default: 4G]
    #[arg(long, value_name = "SIZE", value_parser = disk_size)]
    pub disk: Option<u64>,

    /// For a block root: start with a new scratch disk even if the VM of this --name has one. The old disk is removed when the
    /// new one takes its place
    #[arg(long, conflicts_with = "ephemeral")]
    pub fresh: bool,

    /// For a block root: remove the scratch disk when the VM ends, also with --name
    #[arg(long)]
    pub rm: bool,

    /// For a block root: keep what the guest writes in its memory, and discard it when the VM ends
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", conflicts_with = "disk")]
    pub ephemeral: Option<bool>,

    /// For a block root: when the VM has ended, commit what the guest wrote into the record's upper, as msb-stop --commit does
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub commit_on_stop: Option<bool>,

    /// For a disk root: write the guest's changes to the qcow2 file FILE, which is created if it is missing [default: none;
    /// changes are discarded]
    #[arg(long, value_name = "FILE")]
    pub overlay: Option<PathBuf>,

    #[command(flatten)]
    pub volumes: VolumeArgs,

    #[command(flatten)]
    pub network: NetworkArgs,

    #[command(flatten)]
    pub limits: LimitArgs,

    /// The virtual machine monitor [default: $MSB_VMM, else auto]
    #[arg(long, value_enum)]
    pub vmm: Option<VmmChoice>,

    /// How the agent in the guest is reached: by a vsock device, or, under QEMU, by a virtio-serial port [default: vsock]
    #[arg(long, value_enum)]
    pub channel: Option<Channel>,

    /// Give a VM that starts from a snapshot another /etc/machine-id. Programs that have read the old one keep it [default: all VMs from
    /// one snapshot have the same]
    #[arg(long)]
    pub new_machine_id: bool,

    /// Start the VM again after it has ended, with the same name and disk. A VM that msb-stop has stopped stays stopped
    #[arg(long, value_enum, value_name = "POLICY")]
    pub restart: Option<RestartPolicy>,

    /// Stop the VM when the process PID has ended, or when the descriptor FD of the caller is readable or at its end. The VM is
    /// not started again then. The record does not keep this
    #[arg(long, value_name = "PID|fd:FD", value_parser = end_with)]
    pub end_with: Option<EndWith>,

    /// Make later mounts visible in the guest: those below a shared mount (mount(8), --make-shared) of a shared root, in the mount
    /// namespace of msb-boot. The record does not keep this
    #[arg(long)]
    pub follow_mounts: bool,

    /// Stay until the VM has ended, and show the guest's console (on stderr if stdout is not a terminal); Ctrl-C stops the VM
    #[arg(short, long)]
    pub foreground: bool,

    /// Write the guest's console to FILE, replacing its content; at 4 MiB it is renamed to FILE.1 and a new file begins [default:
    /// kernel.log in the VM's run directory, or in $MSB_HOME/logs/NAME if the boot fails]
    #[arg(long, value_name = "FILE")]
    pub kernel_log: Option<PathBuf>,

    /// Report on stderr which VMM and which root were chosen, and why
    #[arg(long)]
    pub verbose: bool,

    /// Boot nothing: check the flags and the record. The name, the disk and the ports of a VM of that --name count as free
    #[arg(short = 'n', long)]
    pub dry_run: bool,

    /// Boot nothing: print, as JSON, what this machine offers for a VM, which VMM would be used, and what is missing
    #[arg(long)]
    pub probe: bool,

    /// Fail if the agent does not answer, or the init is not usable, within this many seconds, without those in which the VM waits for a
    /// processor [default: 60, or 180 if an init is waited for]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub timeout: Option<u32>,

    /// The default command for msb-exec, appended to the entrypoint [default: the image's cmd]
    #[arg(value_name = "CMD", last = true)]
    pub command: Vec<OsString>,
}

/// The arguments of `--entrypoint`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entrypoint(pub Vec<OsString>);

/// What `--end-with` waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndWith {
    /// The end of a process.
    Process(i32),
    /// An event on a descriptor.
    Descriptor(i32),
}

/// What `--init` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum InitChoice {
    /// No init.
    None,
    /// A search for one.
    Auto,
    /// The init at this path.
    Path(String),
}

fn init_help() -> String {
    let [first, second, third] = inits::SEARCH;
    format!(
        "Hand PID 1 to an init of the image: a path, or auto for the image's entrypoint or cmd if that is an init, else the first \
         of {first}, {second} and {third} [default: none]"
    )
}

/// Parses a size of memory. Returns MiB.
fn memory(text: &str) -> Result<u32, String> {
    check_memory(size::parse(text)? >> 20)
}

/// Checks the size of a guest's memory, in MiB, against the limits.
pub(crate) fn check_memory(mib: u64) -> Result<u32, String> {
    match u32::try_from(mib) {
        Ok(mib) if (MIN_MEMORY..=MAX_MEMORY).contains(&mib) => Ok(mib),
        _ => Err(format!("a guest has {MIN_MEMORY} MiB to {} GiB", MAX_MEMORY / 1024)),
    }
}

/// Parses the size of a disk. Returns bytes, rounded down to blocks of 4 KiB.
pub(crate) fn disk_size(text: &str) -> Result<u64, String> {
    match size::parse(text)? {
        bytes if (MIN_DISK..=MAX_DISK).contains(&bytes) => Ok(bytes & !0xfff),
        _ => Err(format!("a disk has {} MiB to {} TiB", MIN_DISK >> 20, MAX_DISK >> 40)),
    }
}

/// How many processors a guest can have.
pub(crate) const CPUS: RangeInclusive<i64> = 1..=Boot::MAX_CPUS as i64;

/// The smallest disk, in bytes. A smaller one has no room for the journal.
const MIN_DISK: u64 = 256 << 20;
/// The largest ext4 with blocks of 4 KiB and without the feature bigalloc, in bytes.
const MAX_DISK: u64 = 16 << 40;

/// The least memory, in MiB. With less the kernel has no room for its own tables.
const MIN_MEMORY: u32 = 96;
/// The most memory, in MiB.
const MAX_MEMORY: u32 = 1024 * 1024;

fn script_file(text: &str) -> Result<(String, PathBuf), String> {
    let (name, file) = text.split_once('=').ok_or("NAME=FILE is expected")?;
    script::check_name(name)?;
    Ok((name.to_owned(), file.into()))
}

fn variable(text: OsString) -> Result<OsString, &'static str> {
    env::check(&text).map(|()| text)
}

pub(crate) fn stop_signal(text: &str) -> Result<String, &'static str> {
    let is_known = signal::number(text).is_some();
    is_known.then(|| text.to_owned()).ok_or("a signal's name or number is expected (TERM, SIGQUIT, RTMIN+3, 15)")
}

pub(crate) fn init(text: &str) -> Result<InitChoice, &'static str> {
    match text {
        "none" => Ok(InitChoice::None),
        "auto" => Ok(InitChoice::Auto),
        path if path.starts_with('/') => Ok(InitChoice::Path(path.to_owned())),
        _ => Err("\"auto\", \"none\" or an absolute path in the guest is expected"),
    }
}

fn end_with(text: &str) -> Result<EndWith, &'static str> {
    let number = |text: &str, least| text.parse::<i32>().ok().filter(|number| *number >= least);
    match text.strip_prefix("fd:") {
        Some(fd) => number(fd, 3).map(EndWith::Descriptor),
        None => number(text, 1).map(EndWith::Process),
    }
    .ok_or("a process ID, or fd: and a descriptor from 3 on, is expected")
}

fn entrypoint(text: OsString) -> Result<Entrypoint, String> {
    let array = text.to_str().filter(|text| text.starts_with('['));
    match array {
        Some(array) => match serde_json::from_str::<Vec<String>>(array) {
            Ok(args) => Ok(Entrypoint(args.into_iter().map(Into::into).collect())),
            Err(error) => Err(format!("not a JSON array of strings: {error}")),
        },
        None if text.is_empty() => Ok(Entrypoint(Vec::new())),
        None => Ok(Entrypoint(vec![text])),
    }
}

pub(crate) fn absolute(text: &str) -> Result<String, &'static str> {
    if text.starts_with('/') { Ok(text.to_owned()) } else { Err("a path in the guest starts with \"/\"") }
}

pub(crate) fn user(text: &str) -> Result<String, String> {
    if text.is_empty() || text.starts_with(':') {
        return Err("a user's name or number is expected".into());
    }
    owner::check_user(text).map(|()| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_mib_unless_they_say_otherwise() {
        for (text, mib) in [
            ("512", 512),
            ("512M", 512),
            ("1G", 1024),
            ("1.5g", 1536),
            ("2GiB", 2048),
            ("131072K", 128),
            ("1T", 1 << 20),
        ] {
            assert_eq!(memory(text), Ok(mib), "{text}");
        }
        for bad in ["", "G", "-1", "1P", "1.5.5G", "95", "99999999999999999999G", "18446744073709551615G", "512 M"] {
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
    fn an_entrypoint_is_a_string_or_an_array_of_strings() {
        let args = |args: &[&str]| Ok(Entrypoint(args.iter().map(Into::into).collect()));
        for (text, expected) in [
            ("/bin/run", args(&["/bin/run"])),
            ("with space", args(&["with space"])),
            ("[\"sh\", \"-c\", \"a b\"]", args(&["sh", "-c", "a b"])),
            ("[]", args(&[])),
            ("", args(&[])),
        ] {
            assert_eq!(entrypoint(text.into()), expected, "{text}");
        }
        assert!(entrypoint("[1]".into()).is_err());
        assert!(entrypoint("[".into()).is_err());
    }

    #[test]
    fn an_init_is_auto_none_or_an_absolute_path() {
        assert_eq!(init("auto"), Ok(InitChoice::Auto));
        assert_eq!(init("none"), Ok(InitChoice::None));
        assert_eq!(init("/sbin/init"), Ok(InitChoice::Path("/sbin/init".into())));
        assert!(init("sbin/init").is_err() && init("").is_err());
    }

    #[test]
    fn a_vm_ends_with_a_process_or_a_descriptor() {
        assert_eq!(end_with("12"), Ok(EndWith::Process(12)));
        assert_eq!(end_with("fd:3"), Ok(EndWith::Descriptor(3)));
        for bad in ["", "0", "-1", "fd:", "fd:2", "fd:x", "99999999999"] {
            assert!(end_with(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_flags_fit_together() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }
}
