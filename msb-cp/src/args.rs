//! The command line.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::Parser;
use clap::builder::{OsStringValueParser, TypedValueParser};

use crate::page::PAGE;

/// Copy files and trees between the host and a running microVM
///
/// One side is VM:PATH, where a relative PATH is one from the guest's root. The guest needs no programs for it. What is copied to an
/// existing directory goes into it; a directory with /. at its end stands for what it contains. - is a tar archive on stdin or stdout.
#[derive(Debug, Parser)]
#[command(name = "msb-cp", version, after_help = PAGE.help())]
pub(crate) struct Args {
    /// Keep owners, as numbers, and the attributes of directories that exist; out of a guest, also set-id bits and all xattrs
    #[arg(short, long)]
    pub archive: bool,

    /// Follow a symlink at SRC. Symlinks in a tree are copied as such
    #[arg(short = 'L', long)]
    pub follow_link: bool,

    /// Print errors only
    #[arg(short, long)]
    pub quiet: bool,

    /// What is copied: VM:PATH, a path of the host, or - for a tar archive on stdin
    #[arg(value_name = "SRC", value_parser = OsStringValueParser::new().try_map(place))]
    pub source: Place,

    /// Where it goes: VM:PATH, a path of the host, or - for a tar archive on stdout
    #[arg(value_name = "DST", value_parser = OsStringValueParser::new().try_map(place))]
    pub target: Place,
}

/// One side of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A path of the host.
    Local(PathBuf),
    /// A tar archive on stdin or stdout.
    Stream,
    /// A path in a VM.
    Guest { vm: String, path: OsString },
}

/// Parses a side. A path of the host with a colon in it begins with a slash or a dot, as with docker.
fn place(text: OsString) -> Result<Place, &'static str> {
    let bytes = text.as_bytes();
    if bytes == b"-" {
        return Ok(Place::Stream);
    }
    if bytes.is_empty() {
        return Err("it is empty");
    }
    match bytes.iter().position(|&byte| byte == b':') {
        Some(at) if !matches!(bytes[0], b'/' | b'.') => {
            let vm = std::str::from_utf8(&bytes[..at]).ok().filter(|vm| !vm.is_empty() && !vm.contains('/'));
            let vm = vm.ok_or("VM:PATH is expected (a path of the host with a colon begins with ./ or /)")?.to_owned();
            match OsStr::from_bytes(&bytes[at + 1..]) {
                path if path.is_empty() => Err("VM:PATH is expected, and the path is missing"),
                path => Ok(Place::Guest { vm, path: path.to_owned() }),
            }
        }
        _ => Ok(Place::Local(text.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_is_in_a_vm_on_the_host_or_a_stream() {
        let guest = |vm: &str, path: &str| Ok(Place::Guest { vm: vm.into(), path: path.into() });
        for (text, expected) in [
            ("-", Ok(Place::Stream)),
            ("worker:/etc", guest("worker", "/etc")),
            ("worker:etc/.", guest("worker", "etc/.")),
            ("worker:/a:b", guest("worker", "/a:b")),
            ("./a:b", Ok(Place::Local("./a:b".into()))),
            ("/a:b", Ok(Place::Local("/a:b".into()))),
            ("plain", Ok(Place::Local("plain".into()))),
        ] {
            assert_eq!(place(text.into()), expected, "{text}");
        }
        for bad in ["", "worker:", ":/x", "dir/a:b"] {
            assert!(place(bad.into()).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_flags_fit_together() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }
}
