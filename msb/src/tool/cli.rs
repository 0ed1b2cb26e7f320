//! The command line of every tool: parsing, usage errors, and pages made from the flags.

mod completion;

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::process::exit;

use clap::Parser;

use crate::tool::exit::warn;
use crate::tool::line;
use crate::tool::man::{DATE, Page};
use crate::tool::passed::Flag;

/// Parses the process's arguments, or ends the process.
///
/// `--help` and `--version` print and exit with 0; a usage error is reported and exits with `usage_code`. The hidden
/// `--generate man|security|bash|zsh|fish|schema|flags` prints the manual page, msb-security(7), a completion, the record's JSON Schema
/// or the flags.
pub fn parse<A: Parser>(page: &Page, usage_code: u8) -> A {
    parse_by(page, usage_code, A::try_parse_from)
}

/// As [`parse`], for a tool whose command line has rules that clap does not know.
pub fn parse_by<A: Parser>(
    page: &Page,
    usage_code: u8,
    parse: impl FnOnce(Vec<OsString>) -> Result<A, clap::Error>,
) -> A {
    let args: Vec<OsString> = std::env::args_os().collect();
    if let [_, flag, what] = args.as_slice()
        && flag == "--generate"
    {
        exit(i32::from(generate(A::command(), page, &what.to_string_lossy())));
    }
    match parse(args) {
        Ok(parsed) => parsed,
        Err(error) if error.use_stderr() => {
            let message = error.render().to_string();
            let message = message.strip_prefix("error: ").unwrap_or(&message);
            warn(A::command().get_name(), message.trim_end());
            exit(i32::from(usage_code));
        }
        Err(text) => {
            // clap's own print adds colours on a terminal.
            let result = if std::io::stdout().is_terminal() {
                text.print()
            } else {
                line::write(text.render().to_string().as_bytes())
            };
            exit(i32::from(printed(A::command().get_name(), result)));
        }
    }
}

fn generate(mut command: clap::Command, page: &Page, what: &str) -> u8 {
    let name = command.get_name().to_owned();
    let mut out = Vec::new();
    let made = match what {
        "man" => out.write_all(page.render(command).as_bytes()),
        "flags" => serde_json::to_writer(&mut out, &Flag::all(&mut command))
            .map_err(Into::into)
            .and_then(|()| out.write_all(b"\n")),
        "security" => out.write_all(crate::jail::security_page(DATE).as_bytes()),
        "schema" => serde_json::to_writer_pretty(&mut out, &schemars::schema_for!(crate::record::Record))
            .map_err(Into::into)
            .and_then(|()| out.write_all(b"\n")),
        _ => match what.parse::<clap_complete::Shell>() {
            Ok(shell) => {
                clap_complete::generate(shell, &mut command, &name, &mut out);
                out = completion::with_names(shell, &name, &out);
                Ok(())
            }
            Err(_) => {
                warn(&name, &format!("cannot generate {what:?} (man, security, bash, zsh, fish, schema or flags)"));
                return crate::tool::exit::USAGE;
            }
        },
    };
    printed(&name, made.and_then(|()| line::write(&out)))
}

/// The exit status after printing a page.
fn printed(name: &str, result: std::io::Result<()>) -> u8 {
    match result {
        Ok(()) => 0,
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => crate::tool::exit::READER_GONE,
        Err(error) => {
            warn(name, &format!("stdout: {error}"));
            crate::tool::exit::FAILED
        }
    }
}
