//! The command of an exec: its program, user, working directory, limits and streams.

use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use msb::wire::container::Limits;
use msb::wire::exec::{DEFAULT_PATH, Failure, Limit, Request};
use msb::wire::exit_status::{NOT_EXECUTABLE, NOT_FOUND, TOOL_FAILED};
use rustix::process::{Resource, Rlimit};

use crate::agent::Agent;
use crate::barrier::{Barrier, Waiting};
use crate::cgroup::Cgroup;
use crate::container::LateMounts;
use crate::execs::Lookup;
use crate::group::Group;
use crate::limited::Limited;
use crate::not_started::NotStarted;
use crate::reap::Awaited;
use crate::streams::{self, Streams};
use crate::sys::Launch;
use crate::{container, environment, program, user};

/// The file mode creation mask if the request does not set one.
const DEFAULT_UMASK: u32 = 0o022;

/// A running command.
#[derive(Debug)]
pub struct Child {
    /// Its process and their descendants.
    pub group: Group,
    /// agentd's ends of its streams.
    pub streams: Streams,
    /// The barrier at which it waits, if it was prepared.
    pub waiting: Option<Waiting>,
}

fn failure(code: u8, message: impl Into<String>) -> Failure {
    Failure::new(code, message)
}

/// Starts the command of a request, or prepares it.
///
/// # Errors
/// The failure to send to the caller: 126 and 127 as in `env(1)`, and 125 for errors of agentd.
pub fn start(agent: &Agent, request: Request) -> Result<Child, Failure> {
    if request.prepare && request.detach {
        return Err(failure(
            TOOL_FAILED,
            "a command that is prepared has a caller, which starts it, so it is not detached",
        ));
    }
    let is_contained = request.container.is_some() || request.inside.is_some();
    if agent.is_bare() && !is_contained {
        let why = "the VM was booted with --bare, so commands run in containers alone (msb-exec --container)";
        return Err(failure(TOOL_FAILED, why));
    }
    let cgroups = &agent.execs.cgroups;
    let cgroup = match limited(agent, &request)? {
        Some(limited) => Some(
            cgroups
                .take_in(limited)
                .map_err(|error| failure(TOOL_FAILED, format!("container: its cgroup: {error}")))?,
        ),
        // In a container, the OOM killer ends one process, as on a host.
        None => cgroups.take(request.tty.is_none() && !is_contained),
    };
    let started = match is_contained {
        true => in_container(agent, request, cgroup.as_ref()),
        false => here(agent, request, cgroup.as_ref(), None),
    };
    match started {
        Ok(Running { process, streams, waiting }) => Ok(Child { group: Group::new(process, cgroup), streams, waiting }),
        Err(failure) => {
            if let Some(cgroup) = cgroup {
                cgroups.dispose(cgroup);
            }
            Err(failure)
        }
    }
}

/// The cgroup of a command's container, if that has limits.
fn limited(agent: &Agent, request: &Request) -> Result<Option<Arc<Limited>>, Failure> {
    match (&request.container, request.inside) {
        (Some(container), _) if container.limits != Limits::default() => {
            let limited = agent.execs.cgroups.limit(&container.limits);
            limited.map(Some).map_err(|(step, why)| failure(TOOL_FAILED, format!("container: {step}: {why}")))
        }
        (None, Some(id)) => match agent.execs.find(id) {
            Lookup::Exec(exec) => Ok(exec.limited()),
            _ => Ok(None),
        },
        _ => Ok(None),
    }
}

/// A command that was started.
struct Running {
    process: Arc<Awaited>,
    streams: Streams,
    waiting: Option<Waiting>,
}

/// Starts a command in a container, from a thread that enters it and ends.
fn in_container(agent: &Agent, request: Request, cgroup: Option<&Cgroup>) -> Result<Running, Failure> {
    // The process itself cannot set it in a container without /proc.
    let score = request.oom_score_adj.unwrap_or(0).to_string();
    let enter_and_start = || {
        let late = match (&request.container, request.inside) {
            (Some(container), _) => {
                let cwd = request.cwd.clone().map_or_else(|| OsString::from("/"), OsString::from);
                container::enter_new(container, agent.guest_root, cgroup.map(Cgroup::dir), Path::new(&cwd))
            }
            (None, id) => container::enter(first_process(agent, id.unwrap_or(0))?).map(|()| LateMounts::default()),
        };
        let late = late.map_err(|(step, why)| failure(TOOL_FAILED, format!("container: {step}: {why}")))?;
        here(agent, request, cgroup, Some(&late))
    };
    let started = std::thread::scope(|scope| match std::thread::Builder::new().spawn_scoped(scope, enter_and_start) {
        Ok(thread) => thread.join().unwrap_or_else(|_| Err(failure(TOOL_FAILED, "container: a fault of the agent"))),
        Err(error) => Err(failure(TOOL_FAILED, format!("container: start a thread: {error}"))),
    })?;
    let _ = fs::write(format!("/proc/{}/oom_score_adj", started.process.pid), score);
    Ok(started)
}

/// The process ID of a container's first process.
fn first_process(agent: &Agent, id: u32) -> Result<i32, Failure> {
    match agent.execs.find(id) {
        Lookup::Exec(exec) if exec.is_container() && exec.exit().is_none() => Ok(exec.process.pid),
        Lookup::Exec(exec) if !exec.is_container() => {
            Err(failure(TOOL_FAILED, format!("exec {id}: it is no container")))
        }
        Lookup::Unused => Err(failure(TOOL_FAILED, format!("exec {id}: no command with this id"))),
        _ => Err(failure(TOOL_FAILED, format!("exec {id}: its container has ended"))),
    }
}

/// Starts a command in the namespaces of the calling thread. In a container, it mounts what is `late` there.
fn here(
    agent: &Agent,
    request: Request,
    cgroup: Option<&Cgroup>,
    late: Option<&LateMounts>,
) -> Result<Running, Failure> {
    let defaults = agent.defaults();
    let argv = if request.argv.is_empty() { defaults.argv.clone() } else { request.argv };
    let argv: Vec<OsString> = argv.into_iter().map(OsString::from).collect();
    let program = argv.first().ok_or_else(|| Failure {
        no_command: true,
        ..failure(
            TOOL_FAILED,
            "no command given, and the image has none (neither entrypoint nor cmd, or they are its init)",
        )
    })?;
    let user = match request.ids {
        Some(ids) => user::with_ids(ids),
        None => {
            user::find(request.user.as_deref().unwrap_or(&defaults.user)).map_err(|why| failure(TOOL_FAILED, why))?
        }
    };
    let given = request.cwd.map(OsString::from).map(PathBuf::from);
    let cwd = given.unwrap_or_else(|| PathBuf::from(&defaults.cwd));
    let cwd = Path::new("/").join(cwd);
    if !fs::metadata(&cwd).map_err(|error| failure(TOOL_FAILED, format!("workdir {cwd:?}: {error}")))?.is_dir() {
        return Err(failure(TOOL_FAILED, format!("workdir {cwd:?}: not a directory")));
    }
    let term = request.tty.as_ref().map(|tty| tty.term.clone().map_or_else(|| OsString::from("xterm"), OsString::from));
    let env = match request.exact_env {
        true => environment::exact(request.env, &user),
        false => environment::of_command(&defaults.env, request.env, &user, term),
    };
    let path = env.iter().find(|(name, _)| name == "PATH").map_or(DEFAULT_PATH.into(), |(_, value)| value.clone());
    let file = program::locate(program, &path, &cwd)?;

    let limits = request.rlimits.iter().map(limit).collect::<Result<Vec<_>, _>>()?;
    let umask = request.umask.unwrap_or(DEFAULT_UMASK);
    if umask > 0o777 {
        return Err(failure(TOOL_FAILED, format!("umask {umask:o}: over 777")));
    }

    let internal = |error: io::Error| failure(TOOL_FAILED, format!("streams: {error}"));
    let (streams, [stdin, stdout, stderr]) = match &request.tty {
        Some(tty) => streams::terminal(tty.size, user.identity.uid.get()).map_err(internal)?,
        None => streams::pipes(request.no_stdin, user.identity.uid.get()).map_err(internal)?,
    };
    // The agent's own is 0 only where it is PID 1.
    let oom_score_adj = request.oom_score_adj.or((!agent.is_init() || late.is_some()).then_some(0));
    let barrier = request.prepare.then(Barrier::new).transpose().map_err(internal)?;
    let launch = || -> Result<Launch<'_>, NotStarted> {
        Ok(Launch {
            file: c_string(file.as_os_str().as_bytes())?,
            argv: argv.iter().map(|argument| c_string(argument.as_bytes())).collect::<Result<_, _>>()?,
            env: env.iter().map(|(name, value)| c_string(join(name, value).as_bytes())).collect::<Result<_, _>>()?,
            cwd: c_string(cwd.as_os_str().as_bytes())?,
            stdio: [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()],
            identity: user.identity.clone(),
            has_terminal: request.tty.is_some(),
            umask,
            limits,
            cgroup: cgroup.map(Cgroup::entrance),
            contained: late,
            capabilities: request.capabilities,
            no_new_privileges: request.no_new_privileges,
            oom_score_adj: oom_score_adj.map(|score| c_string(score.to_string().as_bytes())).transpose()?,
            barrier: barrier.as_ref(),
        })
    };
    let process = launch().and_then(|launch| agent.reaper.spawn(&launch));
    let started = process.and_then(|process| Ok((process, barrier.map(Barrier::until_ready).transpose()?)));
    match started {
        Ok((process, waiting)) => Ok(Running { process, streams, waiting }),
        Err(not_started) => Err(failed_to_start(program, &not_started)),
    }
}

fn c_string(bytes: &[u8]) -> Result<CString, NotStarted> {
    CString::new(bytes).map_err(|error| NotStarted::at("its strings", error))
}

/// The failure to send for a program that did not start.
pub fn failed_to_start(program: &OsStr, NotStarted { step, why }: &NotStarted) -> Failure {
    match (step, why.kind()) {
        (Some(step), _) => failure(TOOL_FAILED, format!("{program:?}: {step}: {why}")),
        (None, io::ErrorKind::NotFound) => {
            failure(NOT_FOUND, format!("{program:?}: the interpreter that it names is not in the guest"))
        }
        (None, io::ErrorKind::OutOfMemory | io::ErrorKind::WouldBlock) => {
            failure(TOOL_FAILED, format!("{program:?}: {why}"))
        }
        (None, _) if program::is_storage_error(why) => failure(TOOL_FAILED, program::storage_failed(program, why)),
        (None, _) => failure(NOT_EXECUTABLE, format!("{program:?}: {why}")),
    }
}

fn join(name: &OsStr, value: &OsStr) -> OsString {
    [name, OsStr::new("="), value].into_iter().collect()
}

/// The kernel's form of a limit, checked for what the kernel refuses even to root.
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
