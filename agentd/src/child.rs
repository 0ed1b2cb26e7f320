//! One command of an exec: who it is, what it finds in its environment, and the ends of its streams that stay with us.

use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use msb::record::script::GUEST_DIR;
use msb::wire::exec::{DEFAULT_PATH, Failure, Limit, Request, Resize, Text};
use msb::wire::exit_status::{NOT_EXECUTABLE, NOT_FOUND, TOOL_FAILED};
use rustix::process::{Resource, Rlimit};
use rustix::termios::{InputModes, LocalModes, SpecialCodeIndex};

use crate::cgroup::Cgroup;
use crate::group::Group;
use crate::reap::Awaited;
use crate::sys::{Launch, NotStarted};
use crate::{Agent, user};

/// The file mode creation mask of a command that does not ask for another.
const DEFAULT_UMASK: u32 = 0o022;

/// Ctrl-D.
const END_OF_TRANSMISSION: u8 = 4;

/// A running command.
#[derive(Debug)]
pub struct Child {
    /// The process, and those that it will have.
    pub group: Group,
    /// Our ends of its streams.
    pub streams: Streams,
}

/// Our ends of a command's streams.
#[derive(Debug)]
pub enum Streams {
    /// One pipe each.
    Pipes {
        /// To its stdin; none where that is `/dev/null`.
        stdin: Option<OwnedFd>,
        /// From its stdout.
        stdout: OwnedFd,
        /// From its stderr.
        stderr: OwnedFd,
    },
    /// A terminal's other end, for all three.
    Terminal(OwnedFd),
}

fn failure(code: u8, message: impl Into<String>) -> Failure {
    Failure { code, message: message.into() }
}

/// Starts the command of a request.
///
/// # Errors
/// The failure to send: 126 and 127 as `env(1)` has them, 125 for what is ours.
pub fn start(agent: &Agent, request: Request) -> Result<Child, Failure> {
    let defaults = &agent.defaults;
    let argv = if request.argv.is_empty() { defaults.argv.clone() } else { request.argv };
    let argv: Vec<OsString> = argv.into_iter().map(OsString::from).collect();
    let program = argv.first().ok_or_else(|| {
        failure(
            TOOL_FAILED,
            "no command given, and the image has none (neither entrypoint nor cmd, or they are its init)",
        )
    })?;
    let user =
        user::find(request.user.as_deref().unwrap_or(&defaults.user)).map_err(|why| failure(TOOL_FAILED, why))?;
    let given = request.cwd.map(OsString::from).map(PathBuf::from);
    let cwd = given.unwrap_or_else(|| PathBuf::from(&defaults.cwd));
    let cwd = Path::new("/").join(cwd);
    if !fs::metadata(&cwd).map_err(|error| failure(TOOL_FAILED, format!("workdir {cwd:?}: {error}")))?.is_dir() {
        return Err(failure(TOOL_FAILED, format!("workdir {cwd:?}: not a directory")));
    }
    let term = request.tty.as_ref().map(|tty| tty.term.clone().map_or_else(|| OsString::from("xterm"), OsString::from));
    let env = environment(&defaults.env, request.env, &user, term);
    let path = env.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.clone()).unwrap_or_default();
    let file = locate(program, &path, &cwd)?;

    let limits = request.rlimits.iter().map(limit).collect::<Result<Vec<_>, _>>()?;
    let umask = request.umask.unwrap_or(DEFAULT_UMASK);
    if umask > 0o777 {
        return Err(failure(TOOL_FAILED, format!("umask {umask:o}: over 777")));
    }

    let internal = |error: io::Error| failure(TOOL_FAILED, format!("streams: {error}"));
    let (streams, [stdin, stdout, stderr]) = match &request.tty {
        Some(tty) => terminal(tty.size, user.identity.uid.get()).map_err(internal)?,
        None => pipes(request.no_stdin, user.identity.uid.get()).map_err(internal)?,
    };
    let cgroup = agent.execs.cgroups.take(request.tty.is_none());
    let launch = |file: &Path, argv: &[&OsStr]| -> Result<Arc<Awaited>, NotStarted> {
        let c_string = |word: &OsStr| {
            CString::new(word.as_bytes()).map_err(|error| NotStarted { step: Some("its strings"), why: error.into() })
        };
        agent.reaper.spawn(&Launch {
            file: c_string(file.as_os_str())?,
            argv: argv.iter().map(|word| c_string(word)).collect::<Result<_, _>>()?,
            env: env.iter().map(|(name, value)| c_string(&join(name, value))).collect::<Result<_, _>>()?,
            cwd: c_string(cwd.as_os_str())?,
            stdio: [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()],
            identity: user.identity.clone(),
            has_terminal: request.tty.is_some(),
            umask,
            limits: limits.clone(),
            cgroup: cgroup.as_ref().map(Cgroup::entrance),
        })
    };
    let words: Vec<&OsStr> = argv.iter().map(OsString::as_os_str).collect();
    let process = match launch(&file, &words) {
        // A script without a shebang, which a shell would run itself.
        Err(NotStarted { step: None, why }) if why.raw_os_error() == Some(nix::libc::ENOEXEC) => {
            let words: Vec<&OsStr> =
                [OsStr::new("sh"), file.as_os_str()].into_iter().chain(words.iter().skip(1).copied()).collect();
            launch(Path::new("/bin/sh"), &words)
        }
        other => other,
    };
    match process {
        Ok(process) => Ok(Child { group: Group::new(process, cgroup), streams }),
        Err(NotStarted { step, why }) => {
            if let Some(cgroup) = cgroup {
                agent.execs.cgroups.dispose(cgroup);
            }
            Err(match (step, why.kind()) {
                (Some(step), _) => failure(TOOL_FAILED, format!("{program:?}: {step}: {why}")),
                (None, io::ErrorKind::NotFound) => {
                    failure(NOT_FOUND, format!("{program:?}: the interpreter that it names is not in the guest"))
                }
                (None, io::ErrorKind::OutOfMemory | io::ErrorKind::WouldBlock) => {
                    failure(TOOL_FAILED, format!("{program:?}: {why}"))
                }
                (None, _) if is_of_storage(&why) => failure(TOOL_FAILED, storage_failed(program, &why)),
                (None, _) => failure(NOT_EXECUTABLE, format!("{program:?}: {why}")),
            })
        }
    }
}

/// Whether an error is one of the storage that a file is on, or of what serves it, so that it says nothing about the file.
fn is_of_storage(error: &io::Error) -> bool {
    use nix::libc::{ECONNABORTED, EHOSTDOWN, EIO, ENOTCONN, EREMOTEIO, ESTALE, ETIMEDOUT};
    let of_storage = [EIO, ENOTCONN, ECONNABORTED, ESTALE, ETIMEDOUT, EREMOTEIO, EHOSTDOWN];
    error.raw_os_error().is_some_and(|error| of_storage.contains(&error))
}

fn storage_failed(program: &OsStr, why: &io::Error) -> String {
    format!("{program:?}: the storage that it is on does not answer: {why}")
}

fn join(name: &OsStr, value: &OsStr) -> OsString {
    [name, OsStr::new("="), value].into_iter().collect()
}

/// A limit as the kernel has it, checked as far as the kernel would refuse it to root.
fn limit(limit: &Limit) -> Result<(Resource, Rlimit), Failure> {
    let refused = |why: &str| failure(TOOL_FAILED, format!("limit {:?}: {why}", limit.name));
    let resource = match limit.name.as_str() {
        "as" => Resource::As,
        "core" => Resource::Core,
        "cpu" => Resource::Cpu,
        "data" => Resource::Data,
        "fsize" => Resource::Fsize,
        "locks" => Resource::Locks,
        "memlock" => Resource::Memlock,
        "msgqueue" => Resource::Msgqueue,
        "nice" => Resource::Nice,
        "nofile" => Resource::Nofile,
        "nproc" => Resource::Nproc,
        "rss" => Resource::Rss,
        "rtprio" => Resource::Rtprio,
        "rttime" => Resource::Rttime,
        "sigpending" => Resource::Sigpending,
        "stack" => Resource::Stack,
        _ => return Err(refused("no such resource")),
    };
    if limit.soft.unwrap_or(u64::MAX) > limit.hard.unwrap_or(u64::MAX) {
        return Err(refused("the soft limit is over the hard one"));
    }
    if resource == Resource::Nofile {
        let most = fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|text| text.trim().parse::<u64>().ok());
        if let Some(most) = most.filter(|&most| limit.hard.is_none_or(|hard| hard > most)) {
            return Err(refused(&format!("over the {most} of the guest's fs.nr_open")));
        }
    }
    Ok((resource, Rlimit { current: limit.soft, maximum: limit.hard }))
}

/// The file that a name stands for, by the command's own PATH, as `execvp(3)` goes about it.
fn locate(program: &OsStr, path: &OsStr, cwd: &Path) -> Result<PathBuf, Failure> {
    let check = |file: &Path| -> Result<(), Failure> {
        let meta = fs::metadata(cwd.join(file)).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => failure(NOT_EXECUTABLE, format!("{program:?}: {error}")),
            _ if is_of_storage(&error) => failure(TOOL_FAILED, storage_failed(program, &error)),
            _ => failure(NOT_FOUND, format!("{program:?}: not found in the guest")),
        })?;
        if meta.is_dir() {
            return Err(failure(NOT_EXECUTABLE, format!("{program:?}: is a directory")));
        }
        if meta.permissions().mode() & 0o111 == 0 {
            return Err(failure(NOT_EXECUTABLE, format!("{program:?}: not executable (its mode has no x)")));
        }
        Ok(())
    };
    if program.is_empty() {
        return Err(failure(NOT_FOUND, "the command is an empty word"));
    }
    if program.as_bytes().contains(&b'/') {
        let file = PathBuf::from(program);
        return check(&file).map(|()| file);
    }
    let mut worst = None;
    for dir in path.as_bytes().split(|&byte| byte == b':') {
        let dir = if dir.is_empty() { Path::new(".") } else { Path::new(OsStr::from_bytes(dir)) };
        let file = dir.join(program);
        match check(&file) {
            Ok(()) => return Ok(file),
            Err(why) if why.code == NOT_EXECUTABLE => worst = worst.or(Some(why)),
            // What is behind it is not what the caller means, or may not be.
            Err(why) if why.code == TOOL_FAILED => return Err(why),
            Err(_) => {}
        }
    }
    Err(worst.unwrap_or_else(|| failure(NOT_FOUND, format!("{program:?}: not found in the guest's PATH"))))
}

/// The image's variables and the request's over them, with what people expect to find: PATH with the scripts first,
/// HOME, USER, LOGNAME, and TERM on a terminal.
fn environment(
    defaults: &[Text],
    request: Vec<Text>,
    user: &user::User,
    term: Option<OsString>,
) -> Vec<(OsString, OsString)> {
    let mut env: Vec<(OsString, OsString)> = Vec::new();
    let mut set = |name: &OsStr, value: OsString| set_variable(&mut env, name, value);
    set(OsStr::new("PATH"), DEFAULT_PATH.into());
    set(OsStr::new("HOME"), user.home.clone().into());
    if let Some(name) = &user.name {
        set(OsStr::new("USER"), name.into());
        set(OsStr::new("LOGNAME"), name.into());
    }
    if let Some(term) = term {
        set(OsStr::new("TERM"), term);
    }
    merge_environment(env, defaults.iter().cloned().chain(request))
}

/// Puts `K=V` assignments over the variables that are there already, and the scripts in front of PATH, once.
pub fn merge_environment(
    mut env: Vec<(OsString, OsString)>,
    assignments: impl Iterator<Item = Text>,
) -> Vec<(OsString, OsString)> {
    for assignment in assignments {
        let assignment = OsString::from(assignment);
        let bytes = assignment.as_bytes();
        // A name before the first "="; an assignment without a name is none.
        if let Some(end) = bytes.iter().position(|&byte| byte == b'=').filter(|&end| end > 0) {
            set_variable(&mut env, OsStr::from_bytes(&bytes[..end]), OsStr::from_bytes(&bytes[end + 1..]).to_owned());
        }
    }
    let path = env.iter().find(|(name, _)| name == "PATH").map_or(DEFAULT_PATH.into(), |(_, path)| path.clone());
    let has_scripts = path.as_bytes().split(|&byte| byte == b':').any(|dir| dir == GUEST_DIR.as_bytes());
    if !has_scripts {
        let with_scripts = [OsStr::new(GUEST_DIR), &path].join(OsStr::new(":"));
        set_variable(&mut env, OsStr::new("PATH"), with_scripts);
    }
    env
}

fn set_variable(env: &mut Vec<(OsString, OsString)>, name: &OsStr, value: OsString) {
    match env.iter_mut().find(|(there, _)| there == name) {
        Some((_, old)) => *old = value,
        None => env.push((name.to_owned(), value)),
    }
}

type Ends = (Streams, [OwnedFd; 3]);

/// The modes of the pipes for stdin and for the outputs. The command opens `/dev/stdin` and `/dev/stdout` as their owner, as in a
/// container; a user that it changes to can do the same, for what the pipe is for.
const STDIN_MODE: u32 = 0o644;
const OUTPUT_MODE: u32 = 0o622;

/// Makes a pipe that a user can open again by its descriptor (`/proc/self/fd/N`).
fn pipe_of(owner: u32, mode: u32) -> io::Result<(io::PipeReader, io::PipeWriter)> {
    let (reader, writer) = io::pipe()?;
    rustix::fs::fchown(&reader, Some(rustix::fs::Uid::from_raw(owner)), None)?;
    rustix::fs::fchmod(&reader, rustix::fs::Mode::from_raw_mode(mode))?;
    Ok((reader, writer))
}

fn pipes(no_stdin: bool, owner: u32) -> io::Result<Ends> {
    let (child_in, stdin): (OwnedFd, Option<OwnedFd>) = if no_stdin {
        (fs::File::open("/dev/null")?.into(), None)
    } else {
        let (theirs, ours) = pipe_of(owner, STDIN_MODE)?;
        (theirs.into(), Some(ours.into()))
    };
    let (stdout, child_out) = pipe_of(owner, OUTPUT_MODE)?;
    let (stderr, child_err) = pipe_of(owner, OUTPUT_MODE)?;
    let streams = Streams::Pipes { stdin, stdout: stdout.into(), stderr: stderr.into() };
    Ok((streams, [child_in, child_out.into(), child_err.into()]))
}

fn terminal(size: Resize, owner: u32) -> io::Result<Ends> {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    set_size(&ours, size)?;
    let name = ptsname(&ours, Vec::new())?;
    let theirs: OwnedFd =
        fs::File::options().read(true).write(true).open(Path::new(OsStr::from_bytes(name.as_bytes())))?.into();
    // tty(1), mesg(1) and su want the terminal to belong to its user.
    rustix::fs::fchown(&theirs, Some(rustix::fs::Uid::from_raw(owner)), None)?;
    let (second, third) = (theirs.try_clone()?, theirs.try_clone()?);
    Ok((Streams::Terminal(ours), [theirs, second, third]))
}

/// Tells a terminal its size.
///
/// # Errors
/// What `ioctl(2)` says.
pub fn set_size(terminal: &OwnedFd, size: Resize) -> io::Result<()> {
    let size = rustix::termios::Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}

/// What is typed at a terminal for the end of input, behind the byte `last`: the character for it, twice where a line has begun, since
/// the first one only ends that line (termios(3), VEOF).
pub fn end_of_input(terminal: Option<&OwnedFd>, last: Option<u8>) -> Vec<u8> {
    let state = terminal.and_then(|terminal| rustix::termios::tcgetattr(terminal).ok());
    let special = |index| state.as_ref().map(|state| state.special_codes[index]);
    let eof = special(SpecialCodeIndex::VEOF).filter(|&byte| byte != 0).unwrap_or(END_OF_TRANSMISSION);
    let modes = state.as_ref().map(|state| (state.input_modes, state.local_modes));
    let (input, local) = modes.unwrap_or((InputModes::ICRNL, LocalModes::ICANON));
    let ends_line = |byte: u8| {
        let is_special =
            [SpecialCodeIndex::VEOL, SpecialCodeIndex::VEOL2].into_iter().any(|at| special(at) == Some(byte));
        byte == b'\n' || byte == eof || byte == b'\r' && input.contains(InputModes::ICRNL) || byte != 0 && is_special
    };
    let has_begun = local.contains(LocalModes::ICANON) && last.is_some_and(|byte| !ends_line(byte));
    vec![eof; if has_begun { 2 } else { 1 }]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(env: &[(OsString, OsString)], name: &str) -> Option<String> {
        env.iter().find(|(there, _)| there == name).map(|(_, value)| value.to_string_lossy().into_owned())
    }

    #[test]
    fn the_environment_is_the_images_then_the_requests_with_the_scripts_first_in_path() {
        let user = user::User { home: "/home/app".into(), name: Some("app".into()), ..Default::default() };
        for (image, request, name, expected) in [
            (
                vec![],
                vec![],
                "PATH",
                Some("/.msb/scripts:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
            ),
            (vec!["PATH=/opt/bin"], vec![], "PATH", Some("/.msb/scripts:/opt/bin")),
            (vec!["PATH=/opt/bin"], vec!["PATH=/x:/.msb/scripts"], "PATH", Some("/x:/.msb/scripts")),
            (vec![], vec![], "HOME", Some("/home/app")),
            (vec!["HOME=/data"], vec![], "HOME", Some("/data")),
            (vec![], vec![], "USER", Some("app")),
            (vec!["A=1"], vec!["A=2", "A=a=b"], "A", Some("a=b")),
            (vec!["A=1"], vec!["A="], "A", Some("")),
            (vec!["=x", "no-assignment"], vec![], "", None),
            (vec![], vec![], "TERM", None),
        ] {
            let image: Vec<Text> = image.into_iter().map(Text::from).collect();
            let request = request.into_iter().map(Text::from).collect();
            let env = environment(&image, request, &user, None);
            assert_eq!(value(&env, name).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn the_end_of_input_is_said_twice_where_a_line_has_begun() {
        for (last, count) in
            [(None, 1), (Some(b'\n'), 1), (Some(b'\r'), 1), (Some(4), 1), (Some(b'c'), 2), (Some(0), 2)]
        {
            assert_eq!(end_of_input(None, last), vec![4; count], "{last:?}");
            let (Streams::Terminal(terminal), _theirs) = terminal(Resize { rows: 24, cols: 80 }, own_uid()).unwrap()
            else {
                panic!("no terminal")
            };
            assert_eq!(end_of_input(Some(&terminal), last), vec![4; count], "{last:?}");
            let mut state = rustix::termios::tcgetattr(&terminal).unwrap();
            state.special_codes[SpecialCodeIndex::VEOF] = b'!';
            state.special_codes[SpecialCodeIndex::VEOL] = b'c';
            state.input_modes.remove(InputModes::ICRNL);
            rustix::termios::tcsetattr(&terminal, rustix::termios::OptionalActions::Now, &state).unwrap();
            let count = if matches!(last, None | Some(b'\n' | b'c')) { 1 } else { 2 };
            assert_eq!(end_of_input(Some(&terminal), last), vec![b'!'; count], "{last:?}");
            state.make_raw();
            rustix::termios::tcsetattr(&terminal, rustix::termios::OptionalActions::Now, &state).unwrap();
            assert_eq!(end_of_input(Some(&terminal), last).len(), 1, "{last:?}");
        }
    }

    fn own_uid() -> u32 {
        rustix::process::getuid().as_raw()
    }

    #[test]
    fn an_error_of_storage_says_nothing_about_the_file() {
        use nix::libc::{EACCES, EIO, ELOOP, ENOENT, ENOTCONN, ENOTDIR, ESTALE, ETXTBSY};
        for (error, is_one) in [
            (EIO, true),
            (ENOTCONN, true),
            (ESTALE, true),
            (ENOENT, false),
            (ENOTDIR, false),
            (EACCES, false),
            (ELOOP, false),
            (ETXTBSY, false),
        ] {
            assert_eq!(is_of_storage(&io::Error::from_raw_os_error(error)), is_one, "{error}");
        }
        assert!(!is_of_storage(&io::Error::other("of no number")));
    }

    #[test]
    fn a_command_is_found_as_a_shell_finds_it() {
        let scratch = tempfile::tempdir().unwrap();
        fs::create_dir_all(scratch.path().join("a/dir")).unwrap();
        fs::create_dir(scratch.path().join("b")).unwrap();
        fs::write(scratch.path().join("a/plain"), "").unwrap();
        for file in ["b/plain", "b/tool"] {
            fs::write(scratch.path().join(file), "").unwrap();
            fs::set_permissions(scratch.path().join(file), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let path = OsString::from(format!("{0}/a:{0}/b", scratch.path().display()));
        let find = |program: &str| locate(OsStr::new(program), &path, scratch.path());
        assert_eq!(find("tool").unwrap(), scratch.path().join("b/tool"));
        assert_eq!(find("plain").unwrap(), scratch.path().join("b/plain"), "what cannot be executed is passed over");
        assert_eq!(find("b/tool").unwrap(), Path::new("b/tool"));
        assert_eq!(find("none").unwrap_err().code, NOT_FOUND);
        assert_eq!(find("").unwrap_err().code, NOT_FOUND);
        assert_eq!(find("dir").unwrap_err().code, NOT_EXECUTABLE);
        assert_eq!(find("./a/plain").unwrap_err().code, NOT_EXECUTABLE);
        assert_eq!(find("./none").unwrap_err().code, NOT_FOUND);
    }
}
