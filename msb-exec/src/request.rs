//! The request that a command line describes.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::anyhow;
use msb::tool::env;
use msb::wire::container::Container;
use msb::wire::exec::{Request, Text, Tty};

use crate::args::Args;
use crate::process::Process;
use crate::tty;

/// Builds the request, with or without a terminal.
///
/// # Errors
/// An env file that cannot be read, a wrong command line for a remote shell, or a process object with a wrong value.
pub fn request(
    args: &Args,
    process: Option<&Process>,
    container: Option<Container>,
    has_terminal: bool,
) -> anyhow::Result<Request> {
    let described = match process {
        Some(process) => process.request(has_terminal)?,
        None => of_flags(args, has_terminal)?,
    };
    Ok(Request {
        no_stdin: args.no_stdin || (args.detach && !args.interactive && !has_terminal),
        detach: args.detach,
        prepare: args.prepare_fd.is_some(),
        container,
        inside: args.inside,
        now_ms: now_ms(),
        ..described
    })
}

/// What the flags say about the command.
fn of_flags(args: &Args, has_terminal: bool) -> anyhow::Result<Request> {
    let mut user = args.user.clone();
    let mut argv: Vec<OsString> = Vec::new();
    if args.rsh {
        let remote = Remote::parse(&args.command).map_err(|why| anyhow!(why))?;
        argv = remote.argv(args.workdir.is_none());
        user = user.or(args.login.clone()).or(remote.user);
    } else {
        if let Some(line) = &args.shell {
            argv.extend(["/bin/sh".into(), "-c".into(), line.clone()]);
        }
        argv.extend(args.command.iter().cloned());
    }
    let mut variables = Vec::new();
    if has_terminal {
        // It describes the caller's terminal, as TERM does.
        variables.push("COLORTERM".into());
    }
    for file in &args.env_file {
        variables.extend(env::read_file(file)?);
    }
    variables.extend(args.env.iter().cloned());
    let resolved = variables.iter().filter_map(|variable| env::resolve(variable, |name| std::env::var_os(name)));
    let tty = || Tty { term: std::env::var_os("TERM").map(|term| term.as_os_str().into()), size: tty::size() };
    Ok(Request {
        argv: argv.iter().map(|word| word.as_os_str().into()).collect(),
        env: resolved.map(|variable| variable.as_os_str().into()).collect(),
        cwd: args.workdir.as_deref().map(Text::from),
        user,
        tty: has_terminal.then(tty),
        rlimits: args.rlimits.clone(),
        umask: args.umask,
        ..Request::default()
    })
}

/// The current time, in milliseconds since 1970.
fn now_ms() -> Option<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(now.as_millis()).ok()
}

/// The arguments that rsync and git pass to a remote shell: `[USER@]HOST COMMAND…`.
#[derive(Debug, PartialEq)]
struct Remote {
    user: Option<String>,
    /// The command, joined with blanks: the guest's shell splits it again.
    line: OsString,
}

impl Remote {
    fn parse(words: &[OsString]) -> Result<Self, String> {
        let [host, words @ ..] = words else { return Err("--rsh: HOST COMMAND… is expected".into()) };
        // ssh, too, accepts it between host and command.
        let words = if words.first().is_some_and(|word| word == "--") { &words[1..] } else { words };
        if words.is_empty() {
            return Err(format!("--rsh: a command is expected after {host:?} (for a shell, leave --rsh out)"));
        }
        let user = match host.as_bytes().iter().rposition(|&byte| byte == b'@') {
            Some(end) => {
                let user = OsStr::from_bytes(&host.as_bytes()[..end]).to_str();
                Some(user.ok_or_else(|| format!("--rsh: user of {host:?}: not UTF-8"))?.to_owned())
            }
            None => None,
        };
        Ok(Self { user, line: words.join(OsStr::new(" ")) })
    }

    /// The command that sshd would run, in the user's home or in the image's working directory.
    fn argv(&self, at_home: bool) -> Vec<OsString> {
        let mut line = OsString::from(if at_home { "cd 2>/dev/null\n" } else { "" });
        line.push(&self.line);
        vec!["/bin/sh".into(), "-c".into(), line]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remote_shells_call_is_a_host_and_a_line() {
        let parse = |words: &[&str]| Remote::parse(&words.iter().map(OsString::from).collect::<Vec<_>>());
        for (words, user, line) in [
            (&["vm", "rsync", "--server", "."][..], None, "rsync --server ."),
            (&["app@vm", "git-upload-pack '/srv/a b'"], Some("app"), "git-upload-pack '/srv/a b'"),
            (&["a@b@vm", "--", "ls", "-l"], Some("a@b"), "ls -l"),
        ] {
            assert_eq!(parse(words), Ok(Remote { user: user.map(str::to_owned), line: line.into() }), "{words:?}");
        }
        assert!(parse(&[]).is_err() && parse(&["vm"]).is_err() && parse(&["vm", "--"]).is_err());
    }
}
