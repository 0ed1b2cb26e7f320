//! msb-exec: runs a command in a running microVM, as plainly as if it ran here.

mod args;
mod ended;
mod session;
mod tty;

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::process::ExitCode;

use anyhow::bail;
use args::Args;
use msb::exit::{self, coded};
use msb::record::{Record, Vm};
use msb::wire::dial::dial;
use msb::wire::exec::{Request, Text, Tty};
use msb::{cli, wire};
use session::Ended;

fn main() -> ExitCode {
    let args: Args = cli::parse(exit::TOOL_FAILED);
    let result = run(args);
    tty::restore();
    exit::report("msb-exec", exit::TOOL_FAILED, result)
}

fn run(args: Args) -> anyhow::Result<u8> {
    let request = request(&args)?;
    let record = Record::take(args.record.as_deref())?;
    let vm = record.vm()?;
    let connection = dial(&vm.endpoint).map_err(|error| coded(exit::TOOL_FAILED, gone(vm, error)))?;
    session::hold_signals()?;
    if args.tty && tty::is_terminal() {
        tty::make_raw()?;
    }
    let ended = session::run(connection, &request, args.timeout);
    match ended {
        Ok(Ended::Exit(exit)) => Ok(match (exit.code, exit.signal) {
            (Some(code), _) => code,
            (None, Some(signal)) => exit::SIGNAL_BASE.saturating_add(u8::try_from(signal).unwrap_or(0)),
            (None, None) => bail!("the agent did not say how the command ended"),
        }),
        Ok(Ended::TimedOut) => Err(coded(exit::TIMED_OUT, "the command took too long and was ended")),
        Ok(Ended::Failure(failure)) => Err(coded(failure.code, exit::printable(&failure.message))),
        Err(error) => match error.downcast::<wire::Error>() {
            Ok(broken) => Err(coded(exit::TOOL_FAILED, gone(vm, broken))),
            Err(other) => Err(other),
        },
    }
}

/// The request that the command line asks for.
fn request(args: &Args) -> anyhow::Result<Request> {
    let mut argv: Vec<OsString> = Vec::new();
    if let Some(line) = &args.shell {
        argv.extend(["/bin/sh".into(), "-c".into(), line.clone()]);
    }
    argv.extend(args.command.iter().cloned());
    let mut env = Vec::new();
    for assignment in &args.env {
        env.extend(resolve_env(assignment)?);
    }
    let tty =
        args.tty.then(|| Tty { term: std::env::var_os("TERM").map(|term| term.as_os_str().into()), size: tty::size() });
    Ok(Request {
        argv: argv.iter().map(|word| word.as_os_str().into()).collect(),
        env,
        cwd: args.workdir.as_deref().map(Text::from),
        user: args.user.clone(),
        tty,
    })
}

/// `K=V` as it is; `K` with the caller's value, and nothing where the caller has none.
fn resolve_env(assignment: &OsStr) -> anyhow::Result<Option<Text>> {
    let bytes = assignment.as_bytes();
    if bytes.is_empty() || bytes.starts_with(b"=") {
        return Err(coded(exit::TOOL_FAILED, format!("env {assignment:?}: a variable needs a name")));
    }
    if bytes.contains(&b'=') {
        return Ok(Some(assignment.into()));
    }
    Ok(std::env::var_os(assignment).map(|value| {
        let mut whole = bytes.to_vec();
        whole.push(b'=');
        whole.extend_from_slice(value.as_bytes());
        OsString::from_vec(whole).as_os_str().into()
    }))
}

/// Words for a connection that was refused or broke.
fn gone(vm: &Vm, error: wire::Error) -> String {
    let name = &vm.name;
    match error {
        wire::Error::Io(error) => match error.kind() {
            io::ErrorKind::NotFound
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof => {
                let why = ended::reason(vm).map_or(", or its agent is".into(), |reason| format!(": {reason}"));
                format!("vm {name:?}: it is gone{why} (see {:?}, then msb-stop and msb-boot)", vm.kernel_log)
            }
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                format!("vm {name:?}: its agent does not answer (see {:?})", vm.kernel_log)
            }
            _ => format!("vm {name:?}: {error}"),
        },
        nonsense => format!("vm {name:?}: its agent speaks nonsense: {nonsense}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_is_given_with_its_value_or_passed_on() {
        assert_eq!(resolve_env(OsStr::new("A=b=c")).unwrap(), Some("A=b=c".into()));
        assert_eq!(resolve_env(OsStr::new("A=")).unwrap(), Some("A=".into()));
        assert_eq!(resolve_env(OsStr::new("MSB_TEST_UNSET_VARIABLE")).unwrap(), None);
        assert!(
            matches!(resolve_env(OsStr::new("PATH")).unwrap(), Some(Text::Utf8(text)) if text.starts_with("PATH="))
        );
        assert!(resolve_env(OsStr::new("=b")).is_err());
    }
}
