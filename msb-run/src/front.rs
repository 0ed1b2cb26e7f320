//! msb: starts the tool that its first argument names.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{anyhow, bail};
use clap::Parser;
use msb::tool::man::{self, Page};
use msb::{program, tool::cli, tool::exit, tool::start};

use crate::{doctor, programs};

const TOOL: &str = "msb";

const PAGE: Page = Page {
    operands: "NAME [ARG...]",
    forms: &["help [NAME]", "doctor"],
    notes: &[("Tools", tools)],
    exit_status: &[("N", "the tool's own status"), ("1", "failure"), ("2", "usage error")],
    environment: &[("PATH", "Where tools are that are not beside msb"), man::MSB_HOME, man::MSB_RUN],
    files: &[],
    examples: &[
        ("a command in a new VM", "msb run alpine -- uname -a"),
        ("what this machine lacks for VMs", "msb doctor"),
        ("a tool's manual page", "msb help boot"),
    ],
    see_also: &["msb-run(1)", "msb-ls(1)", "msb-pull(1)", "msb-boot(1)", "msb-exec(1)", "msb(7)"],
};

/// The tools, in the order in which a user meets them.
const TOOLS: &[(&str, &str)] = &[
    ("run", "run a command in a new microVM"),
    ("ls", "list microVMs"),
    ("exec", "run a command in a running microVM"),
    ("cp", "copy files between a microVM and this machine"),
    ("store", "list, remove and check images and what else is kept"),
    ("logs", "show a console, or the output of a command"),
    ("stats", "show what running microVMs use"),
    ("snapshot", "save a running microVM"),
    ("fork", "start copies of a running microVM"),
    ("stop", "stop a microVM"),
    ("rm", "remove a microVM's disk and upper"),
    ("pull", "fetch an image, and print its record"),
    ("patch", "apply patch operations to a record's root"),
    ("mount", "mount a record's root"),
    ("boot", "boot a microVM from a record"),
    ("pack", "write a root as an image, an archive or a disk"),
    ("diff", "show what an upper changes"),
    ("doctor", "check what this machine has for microVMs"),
    ("help", "show the manual page of a tool"),
];

fn tools() -> String {
    let rows: Vec<_> = TOOLS.iter().map(|(name, what)| format!("  {name:<10}{what}")).collect();
    rows.join("\n")
}

/// MicroVM sandboxes
///
/// Starts the tool msb-NAME with the arguments that follow. A tool is looked for beside msb first, then on PATH, so another program
/// called msb-NAME becomes a subcommand of msb.
#[derive(Debug, Parser)]
#[command(name = "msb", version, after_help = PAGE.help(), override_usage = "msb NAME [ARG...]")]
struct Args {
    /// The tool without msb-, and its arguments
    #[arg(value_name = "NAME", trailing_var_arg = true, required = true)]
    words: Vec<OsString>,
}

/// The tool's main.
pub fn main() -> ExitCode {
    start::signals();
    let args: Args = cli::parse(&PAGE, exit::USAGE);
    exit::report(TOOL, exit::FAILED, run(&args))
}

fn run(args: &Args) -> anyhow::Result<u8> {
    let Some((word, rest)) = args.words.split_first() else { bail!("no tool") };
    match word.to_str() {
        Some("doctor") if rest.is_empty() => doctor::run(),
        Some("help") => help(rest),
        _ => {
            let program = tool(word).and_then(|tool| programs::find(&tool).ok()).ok_or_else(|| unknown(word))?;
            let error = Command::new(&program).args(rest).exec();
            Err(anyhow!(error).context(format!("{program:?}")))
        }
    }
}

/// The name of the tool of a word; none for a word that cannot be part of one.
fn tool(word: &OsStr) -> Option<String> {
    let is_word = |word: &&str| word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    word.to_str().filter(is_word).map(|word| format!("msb-{word}"))
}

/// Shows the manual page of a tool, or its help where there is no page.
fn help(words: &[OsString]) -> anyhow::Result<u8> {
    let name = match words {
        [] => TOOL.to_owned(),
        [word] if word == "doctor" || word == "help" => TOOL.to_owned(),
        [word] => tool(word).ok_or_else(|| unknown(word))?,
        _ => return Err(exit::coded(exit::USAGE, "help takes one name").into()),
    };
    if let Some(man) = program::find("man", &[])
        && Command::new(&man).args(["-w", &name]).stdout(Stdio::null()).stderr(Stdio::null()).status()?.success()
    {
        return Err(anyhow!(Command::new(&man).arg(&name).exec()).context(format!("{man:?}")));
    }
    let program = programs::find(&name).map_err(|_| unknown(words.first().map_or(OsStr::new(""), |word| word)))?;
    Err(anyhow!(Command::new(&program).arg("--help").exec()).context(format!("{program:?}")))
}

fn unknown(word: &OsStr) -> anyhow::Error {
    let word = word.to_string_lossy();
    let mut words = programs::words();
    words.extend(["doctor".to_owned(), "help".to_owned()]);
    let near = words.iter().map(|known| (strsim::damerau_levenshtein(known, &word), known)).min();
    let near = near.filter(|(distance, known)| *distance <= 2 && *distance < known.len());
    let near = near.map(|(_, known)| format!("did you mean {known:?}? ")).unwrap_or_default();
    let list: Vec<_> = words.iter().map(String::as_str).collect();
    exit::coded(exit::USAGE, format!("{word:?}: no such tool ({near}there are {})", list.join(", "))).into()
}
