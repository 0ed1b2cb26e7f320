//! Which init PID 1 executes, and whether the kernel would execute it. This is checked before the handoff, because the kernel panics if
//! PID 1 exits.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use msb::architecture::Architecture;
use msb::vm::boot;
use msb::vm::inits::{self, Usable};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, elf};

/// How much of a program is read, in bytes. The kernel reads 256 bytes for `#!`; the program headers of an ELF file follow its header.
const HEAD: u64 = 4096;

/// The program that PID 1 executes.
#[derive(Debug, PartialEq, Eq)]
pub struct Init {
    /// The path, as it was given.
    pub path: PathBuf,
    /// Its arguments, `argv[0]` included.
    pub argv: Vec<OsString>,
    /// Whether it is the image's command.
    pub is_entrypoint: bool,
    /// Whether it is a script, which the kernel executes with an interpreter.
    pub is_script: bool,
}

impl Init {
    /// The path to execute. The kernel names the process after it, so for a program all symlinks are resolved: PID 1 is `busybox` and not
    /// `init`. A script is executed with the given path, because its interpreter gets that as an argument.
    pub fn file(&self) -> PathBuf {
        if self.is_script {
            return self.path.clone();
        }
        fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone())
    }

    /// Whether it is systemd, or an entrypoint with systemd among its arguments, which it will execute.
    pub fn is_systemd(&self) -> bool {
        let arguments = self.argv.iter().skip(1).filter(|_| self.is_entrypoint).map(Path::new);
        let mut files = arguments.filter(|path| path.is_absolute()).chain([self.path.as_path()]);
        files.any(|file| {
            let file = fs::canonicalize(file).unwrap_or_default();
            let name = file.file_name().and_then(OsStr::to_str).unwrap_or_default();
            inits::recognise(name, b"", b"").usable == Usable::Notification
        })
    }
}

/// Finds the init that boot.json asks for below `root`, which is `/` except in tests.
///
/// # Errors
/// Every path that was checked, and why it is not an init.
pub fn find(requested: &boot::Init, root: &Path) -> Result<Init, String> {
    let args = || requested.args.iter().cloned().map(OsString::from);
    if let Some(path) = &requested.path {
        let is_script = check(root, Path::new(path)).map_err(|why| format!("init {path:?}: {why}"))?;
        let argv = [OsString::from(path)].into_iter().chain(args()).collect();
        return Ok(Init { path: path.into(), argv, is_entrypoint: false, is_script });
    }
    let mut rejected = Vec::new();
    let entrypoint: Vec<OsString> = requested.entrypoint.iter().cloned().map(OsString::from).collect();
    let paths = entrypoint.first().map(|first| (PathBuf::from(first), true)).into_iter();
    for (path, is_entrypoint) in paths.chain(inits::SEARCH.map(|path| (path.into(), false))) {
        match check(root, &path) {
            Ok(is_script) => {
                let command = if is_entrypoint { entrypoint } else { vec![path.clone().into()] };
                return Ok(Init { path, argv: command.into_iter().chain(args()).collect(), is_entrypoint, is_script });
            }
            Err(why) => rejected.push(format!("{}: {why}", path.display())),
        }
    }
    Err(format!(
        "init auto: none found; looked at {} (take an image with an init in it, or name one with --init PATH)",
        rejected.join(", ")
    ))
}

/// Checks that the kernel would execute a file. True: it is a script.
fn check(root: &Path, path: &Path) -> Result<bool, String> {
    let head = read_head(root, path)?;
    if let Some(line) = head.strip_prefix(b"#!") {
        let interpreter = interpreter_of_script(line).ok_or("a script whose first line names no interpreter")?;
        return match read_head(root, Path::new(&interpreter)) {
            Ok(_) => Ok(true),
            Err(why) => Err(format!("a script for {interpreter:?}, and that is {why}")),
        };
    }
    match interpreter_of_program(&head)? {
        Some(interpreter) => read_head(root, Path::new(&interpreter))
            .map(|_| false)
            .map_err(|why| format!("a program that needs {interpreter:?}, and that is {why}")),
        None => Ok(false),
    }
}

/// Reads the first bytes of an executable file.
fn read_head(root: &Path, path: &Path) -> Result<Vec<u8>, String> {
    let file = if root == Path::new("/") { path.to_owned() } else { root.join(path.strip_prefix("/").unwrap_or(path)) };
    let meta = match fs::metadata(&file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let is_link = fs::symlink_metadata(&file).is_ok();
            return Err(if is_link { "a symlink to what is not there" } else { "not there" }.into());
        }
        other => other.map_err(|error| error.to_string())?,
    };
    if meta.is_dir() {
        return Err("a directory".into());
    }
    if !meta.is_file() {
        return Err("no file that can be run".into());
    }
    if meta.permissions().mode() & 0o111 == 0 {
        return Err("not executable (its mode has no x)".into());
    }
    let mut head = Vec::new();
    File::open(&file).and_then(|file| file.take(HEAD).read_to_end(&mut head)).map_err(|error| error.to_string())?;
    if head.is_empty() {
        return Err("an empty file".into());
    }
    Ok(head)
}

/// The path that follows `#!`.
fn interpreter_of_script(line: &[u8]) -> Option<OsString> {
    let line = line.split(|&byte| byte == b'\n').next()?;
    let word = line.split(|byte| matches!(byte, b' ' | b'\t')).find(|word| !word.is_empty())?;
    Some(OsStr::from_bytes(word).to_owned())
}

/// The interpreter (dynamic loader) of a program for this machine, as far as it can be read in the file's first bytes.
///
/// # Errors
/// Why the kernel does not execute the file.
fn interpreter_of_program(head: &[u8]) -> Result<Option<OsString>, &'static str> {
    const MACHINE: u16 = Architecture::HOST.elf_machine();
    const ENDIAN: Endianness = Endianness::Little;
    if !head.starts_with(&elf::ELFMAG) || head.len() < size_of::<elf::FileHeader64<Endianness>>() {
        return Err("neither a program nor a script (its first line has no \"#!\")");
    }
    let header = elf::FileHeader64::<Endianness>::parse(head).ok();
    let header = header.filter(|header| header.is_little_endian() && header.e_machine(ENDIAN) == MACHINE);
    let header = header.ok_or("a program for another processor")?;
    let segments = header.program_headers(ENDIAN, head).unwrap_or_default();
    let interpreter = segments.iter().find_map(|segment| segment.interpreter(ENDIAN, head).ok().flatten());
    Ok(interpreter.map(|path| OsStr::from_bytes(path).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use msb::wire::exec::Text;

    /// A root with a file of each kind.
    fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, content: &[u8], mode: u32| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        };
        let own = fs::read("/proc/self/exe").unwrap();
        let mut foreign = own[..4096].to_vec();
        foreign[18] = 40;
        put("bin/sh", b"#!/bin/true\n", 0o755);
        put("script", b"#! /bin/sh -e\n", 0o755);
        put("orphan", b"#!/bin/none\n", 0o755);
        put("nameless", b"#!\n", 0o755);
        put("plain", b"text\n", 0o755);
        put("empty", b"", 0o755);
        put("locked", b"#!/bin/sh\n", 0o644);
        put("foreign", &foreign, 0o755);
        put("linked", &own[..4096], 0o755);
        fs::create_dir(root.path().join("dir")).unwrap();
        std::os::unix::fs::symlink("nowhere", root.path().join("dangling")).unwrap();
        root
    }

    #[test]
    fn an_init_that_the_kernel_would_not_execute_is_an_error_with_the_reason() {
        let root = root();
        for (path, message) in [
            ("/none", "init \"/none\": not there"),
            ("/dangling", "a symlink to what is not there"),
            ("/dir", "a directory"),
            ("/locked", "not executable (its mode has no x)"),
            ("/empty", "an empty file"),
            ("/plain", "neither a program nor a script (its first line has no \"#!\")"),
            ("/orphan", "a script for \"/bin/none\", and that is not there"),
            ("/nameless", "names no interpreter"),
            ("/foreign", "a program for another processor"),
            ("/linked", "a program that needs \"/lib"),
        ] {
            let requested = boot::Init { path: Some(path.into()), ..boot::Init::default() };
            let error = find(&requested, root.path()).unwrap_err();
            assert!(error.contains(message), "{path}: {error}");
        }
    }

    #[test]
    fn a_named_init_has_its_path_and_the_arguments_as_argv() {
        let root = root();
        let requested =
            boot::Init { path: Some("/script".into()), args: vec!["--unit=x".into()], ..boot::Init::default() };
        let found = find(&requested, root.path()).unwrap();
        assert_eq!(found.argv, ["/script", "--unit=x"]);
        assert!(!found.is_entrypoint && found.is_script);
    }

    #[test]
    fn a_program_is_executed_by_its_own_path_and_a_script_by_the_given_one() {
        let root = root();
        let at = |path: &str| root.path().join(path);
        fs::create_dir_all(at("sbin")).unwrap();
        fs::copy("/proc/self/exe", at("bin/tool")).unwrap();
        std::os::unix::fs::symlink("../bin/tool", at("sbin/init")).unwrap();
        std::os::unix::fs::symlink("../script", at("sbin/start")).unwrap();
        let init =
            |path: &str, is_script| Init { path: at(path), argv: vec!["x".into()], is_entrypoint: false, is_script };
        let root = fs::canonicalize(root.path()).unwrap();
        assert_eq!(init("sbin/init", false).file(), root.join("bin/tool"));
        assert_eq!(init("sbin/start", true).file(), at("sbin/start"));
        assert_eq!(init("none", false).file(), at("none"));
    }

    #[test]
    fn systemd_is_recognised_behind_a_symlink_and_behind_an_entrypoint() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        fs::write(at("systemd"), "").unwrap();
        fs::write(at("run.sh"), "").unwrap();
        std::os::unix::fs::symlink("systemd", at("init")).unwrap();
        for (arguments, is_entrypoint, expected) in [
            (&["init"][..], false, true),
            (&["systemd"], false, true),
            (&["run.sh"], false, false),
            (&["run.sh", "init"], true, true),
            (&["run.sh", "init"], false, false),
            (&["none"], false, false),
        ] {
            let argv: Vec<OsString> = arguments.iter().map(|name| at(name).into()).collect();
            let init = Init { path: argv[0].clone().into(), argv, is_entrypoint, is_script: false };
            assert_eq!(init.is_systemd(), expected, "{arguments:?}");
        }
    }

    #[test]
    fn auto_takes_the_entrypoint_first_and_lists_what_it_rejected() {
        let root = root();
        let command: Vec<Text> = vec!["/script".into(), "cmd".into()];
        let mut requested = boot::Init { entrypoint: command, args: vec!["arg".into()], ..boot::Init::default() };
        let found = find(&requested, root.path()).unwrap();
        assert_eq!(found.argv, ["/script", "cmd", "arg"]);
        assert!(found.is_entrypoint);
        requested.entrypoint = vec!["/init".into()];
        let error = find(&requested, root.path()).unwrap_err();
        for path in ["/init", "/sbin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd"] {
            assert!(error.contains(&format!("{path}: not there")), "{error}");
        }
        fs::create_dir_all(root.path().join("lib/systemd")).unwrap();
        fs::copy(root.path().join("script"), root.path().join("lib/systemd/systemd")).unwrap();
        let found = find(&requested, root.path()).unwrap();
        assert_eq!(found.argv, ["/lib/systemd/systemd", "arg"]);
    }
}
