//! The jail of a program that makes a file system of a tree: mkfs.erofs(1) or mke2fs(8). Such a program is written in C, and reads names
//! and attributes that images and guests have made.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Jail, Profile, process};
use crate::overlay::error::{At, Error};

/// A program that makes a file system.
#[derive(Debug)]
pub struct Mkfs {
    program: PathBuf,
    command: Command,
}

impl Mkfs {
    /// Where the program has the tree.
    pub const TREE: &str = "/tree";
    /// Where it has the image.
    pub const IMAGE: &str = "/proc/self/fd/0";

    /// A program that reads `tree` and writes `image`. The tree may have xattrs in `trusted.`. `mount_point` is any directory of the host.
    ///
    /// # Errors
    /// A path that is not UTF-8.
    pub fn new(
        program: &Path,
        mount_point: &Path,
        tree: &Path,
        has_trusted_xattrs: bool,
        image: &File,
    ) -> Result<Self, Error> {
        let profile = if has_trusted_xattrs { Profile::MkfsTrusted } else { Profile::Mkfs };
        let descriptors = Path::new("/proc/self/fd");
        let jail = Jail::new(mount_point, profile, 0)
            .ro_bind_program(program)
            .ro_bind(tree, Self::TREE.as_ref())
            .ro_bind(descriptors, descriptors)
            .dir("/tmp".as_ref());
        let mut command = jail.command(program).at(|| format!("{program:?}"))?;
        command.stdin(image.try_clone()?);
        Ok(Self { program: program.to_owned(), command })
    }

    /// Its command, for arguments and variables.
    pub fn command(&mut self) -> &mut Command {
        &mut self.command
    }

    /// Runs it to its end, which is at once if this process is interrupted.
    ///
    /// # Errors
    /// Its exit status and its messages, or the step that failed.
    pub fn run(mut self) -> Result<(), Error> {
        let output = process::output(&mut self.command).at(|| format!("{:?}", self.program))?;
        if output.status.success() {
            return Ok(());
        }
        let message = String::from_utf8_lossy(&output.stderr);
        let message = message.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
        Err(Error::Host(format!("{:?} ended with {}: {message}", self.program, output.status)))
    }
}
