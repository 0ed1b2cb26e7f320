//! The cache of the steps of a build: the upper that a step made, by the digest of all that the step depends on. A result counts only
//! as long as its upper is as the step left it.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, anyhow, bail, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD as STANDARD;
use blake3::Hasher;
use msb::lock::{self, Lock};
use msb::overlay::upper::in_use;
use msb::record::{Record, Rootfs, Upper};
use msb::store::step::StepResult;
use msb::store::{checksums, home, layout};
use msb::tool::{env as variable, exit, line, user_namespace};
use serde_json::Value;

use crate::args::Args;
use crate::stages::TOOL;

/// The argument that starts this program to print the digest of a path.
pub const ROLE: &str = "--as-digest";
/// The variables that stand for flags which are not given.
const VARIABLES: [&str; 3] = ["MSB_NETWORK", "MSB_VMM", "SOURCE_DATE_EPOCH"];
/// Changes with what the digest covers.
const VERSION: &[u8] = b"msb-run step 1";

/// A step of a build.
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    file: PathBuf,
}

impl Step {
    /// The step that a command line asks for.
    ///
    /// # Errors
    /// A file that cannot be read, and a root that is a disk.
    pub fn new(record: &Record, args: &Args) -> anyhow::Result<Self> {
        let mut parts = Parts::new("--cache");
        parts.add(VERSION);
        parts.add_record(record)?;
        if let Some(ops) = &args.patch {
            parts.add_ops(ops)?;
        }
        let of_boot = args.boot.args();
        for list in [&of_boot, &args.exec.args(), &args.command] {
            parts.add_list(list);
        }
        parts.add_named(&of_boot)?;
        for name in VARIABLES {
            parts.add(env::var_os(name).unwrap_or_default().as_bytes());
        }
        Ok(Self { file: layout::step(&home::home()?, &parts.digest()) })
    }

    /// The record with the result of an earlier run, if there is one and nobody has changed it.
    pub fn result(&self, record: &Record) -> Option<Record> {
        let entry = StepResult::read(&self.file).ok()?;
        // Somebody may be changing it.
        let _lock = exclude_writers(&entry.upper).ok()?;
        let is_whole = digest(&entry.upper.dir).is_ok_and(|digest| digest == entry.digest)
            && entry.scripts.values().all(|script| script.exists());
        if !is_whole {
            let _ = fs::remove_file(&self.file);
            return None;
        }
        let mut made = record.clone();
        (made.upper, made.scripts, made.mount, made.vm) = (Some(entry.upper), entry.scripts, None, None);
        Some(made)
    }

    /// Keeps the result of a run.
    ///
    /// # Errors
    /// Those of reading the upper, and of writing.
    pub fn keep(&self, made: &Record) -> anyhow::Result<()> {
        let Some(upper) = made.upper.clone().filter(|_| !self.file.exists()) else { return Ok(()) };
        let digest = digest(&upper.dir).with_context(|| format!("upper {:?}", upper.dir))?;
        let entry = StepResult { upper, scripts: made.scripts.clone(), digest };
        entry.write(&self.file).with_context(|| format!("{:?}", self.file))
    }
}

/// Excludes writers of an upper as long as the lock is held.
fn exclude_writers(upper: &Upper) -> anyhow::Result<OwnedFd> {
    lock::open(&upper.work, Lock::TryShared).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => anyhow!(in_use(&upper.dir)),
        _ => anyhow!(error).context(format!("work {:?}", upper.work)),
    })
}

/// What a step or a snapshot depends on.
#[derive(Debug)]
pub struct Parts {
    hasher: Hasher,
    /// The flag that error messages name.
    flag: &'static str,
}

impl Parts {
    /// An empty list of parts.
    pub fn new(flag: &'static str) -> Self {
        Self { hasher: Hasher::new(), flag }
    }

    /// The digest of all parts, in hex.
    pub fn digest(&self) -> String {
        self.hasher.finalize().to_hex().to_string()
    }

    /// Adds a part, so that no two lists of parts give the same bytes.
    pub fn add(&mut self, part: &[u8]) {
        self.hasher.update(&(part.len() as u64).to_le_bytes());
        self.hasher.update(part);
    }

    /// Adds a list of arguments.
    pub fn add_list(&mut self, list: &[OsString]) {
        self.add(&list.len().to_le_bytes());
        list.iter().for_each(|arg| self.add(arg.as_bytes()));
    }

    fn add_path(&mut self, path: &Path) -> anyhow::Result<()> {
        let digest = digest(path).with_context(|| format!("{}: {path:?}", self.flag))?;
        self.add(digest.as_bytes());
        Ok(())
    }

    /// Adds a variable with the value that it has for msb-boot.
    fn add_variable(&mut self, variable: &OsStr) {
        let resolved = variable::resolve(variable, |name| env::var_os(name));
        self.add(resolved.unwrap_or_default().as_bytes());
    }

    /// Adds the root by its content, and the other members of a record as they are.
    ///
    /// # Errors
    /// A file that cannot be read, and a root that is a disk.
    pub fn add_record(&mut self, record: &Record) -> anyhow::Result<()> {
        let mut rest = record.clone();
        (rest.upper, rest.mount, rest.vm) = (None, None, None);
        let lower = match rest.rootfs.take() {
            Some(Rootfs::Layers { lower, .. } | Rootfs::Dir { lower, .. }) => lower,
            Some(Rootfs::Disk { .. }) => {
                bail!("{}: the root is a disk (only layers and directories can be used)", self.flag)
            }
            None => Vec::new(),
        };
        let scripts = std::mem::take(&mut rest.scripts);
        self.add(&serde_json::to_vec(&rest)?);
        self.add(&lower.len().to_le_bytes());
        for dir in &lower {
            match layout::stored_layer(dir) {
                Some((_, id)) => self.add(id.as_bytes()),
                None => self.add_path(dir)?,
            }
        }
        match &record.upper {
            Some(upper) => {
                let _lock = exclude_writers(upper)?;
                self.add_path(&upper.dir)?;
            }
            None => self.add(b"no upper"),
        }
        self.add(&scripts.len().to_le_bytes());
        for (name, file) in &scripts {
            self.add(name.as_bytes());
            self.add_path(file)?;
        }
        Ok(())
    }

    /// Adds operations, and the files of the host that they name.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn add_ops(&mut self, file: &Path) -> anyhow::Result<()> {
        self.check_not_pipe(file)?;
        let text = fs::read(file).with_context(|| format!("{file:?}"))?;
        self.add(&text);
        // What is not JSON, msb-patch refuses.
        let ops = serde_json::Deserializer::from_slice(&text).into_iter::<Value>().map_while(Result::ok);
        for op in ops {
            let encoded = op.get("src_base64").and_then(|src| STANDARD.decode(src.as_str()?).ok());
            let src = op.get("src").and_then(Value::as_str).map(|src| src.as_bytes().to_vec()).or(encoded);
            if let Some(src) = src {
                self.add_path(Path::new(OsStr::from_bytes(&src)))?;
            }
        }
        Ok(())
    }

    /// Adds what the flags of msb-boot name: variables of the environment, and files.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn add_named(&mut self, args: &[OsString]) -> anyhow::Result<()> {
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let flag = variable::name_of(arg).as_bytes();
            if !matches!(flag, b"--env" | b"--init-env" | b"--env-file" | b"--script" | b"--network-policy") {
                continue;
            }
            let value = match variable::value_of(arg) {
                Some(value) => value,
                None => args.next().map_or(OsStr::new(""), OsString::as_os_str),
            };
            match flag {
                b"--env-file" => {
                    self.check_not_pipe(Path::new(value))?;
                    for variable in variable::read_file(Path::new(value))? {
                        self.add_variable(&variable);
                    }
                }
                b"--network-policy" => self.add_path(Path::new(value))?,
                b"--script" => {
                    if let Some(file) = variable::value_of(value) {
                        self.add_path(Path::new(file))?;
                    }
                }
                _ => self.add_variable(value),
            }
        }
        Ok(())
    }

    /// Refuses a pipe, which the tool could not read again.
    fn check_not_pipe(&self, file: &Path) -> anyhow::Result<()> {
        let meta = fs::metadata(file).with_context(|| format!("{file:?}"))?;
        ensure!(
            !meta.file_type().is_fifo(),
            "{}: {file:?}: a pipe, which can be read only once (write it to a file)",
            self.flag
        );
        Ok(())
    }
}

/// The digest of a path. In a store of a user namespace only root of that can read all files, and this process has to stay outside.
fn digest(path: &Path) -> anyhow::Result<String> {
    if rustix::process::geteuid().is_root() || !layout::id_map(&home::home()?).exists() {
        return Ok(checksums::digest(path)?);
    }
    let mut command = Command::new(msb::program::OWN_EXECUTABLE);
    let output = command.arg(ROLE).arg(path).stdin(Stdio::null()).output()?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        bail!("{}", message.trim_end().trim_start_matches("msb-run: "));
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// The role's main.
pub fn main() -> ExitCode {
    let print = || -> anyhow::Result<u8> {
        user_namespace::enter_store()?;
        let path = env::args_os().nth(2).unwrap_or_default();
        line::put_bytes(checksums::digest(Path::new(&path))?.as_bytes())?;
        Ok(0)
    };
    exit::report(TOOL, exit::TOOL_FAILED, print())
}
