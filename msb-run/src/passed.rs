//! The flags that msb-run passes on: those of the tools that it starts, as each tool lists them (`--generate flags`).

use std::ffi::OsString;
use std::fmt::Debug;
use std::marker::PhantomData;
use std::process::Stdio;
use std::sync::OnceLock;

use anyhow::{Context, ensure};
use clap::{ArgMatches, Command, FromArgMatches};
use msb::tool::env as variable;
use msb::tool::passed::Flag;

use crate::programs;

/// A tool that takes flags from msb-run's command line.
pub trait Tool: Clone + Debug + Default + Send + Sync + 'static {
    /// Its name.
    const NAME: &'static str;
    /// The heading of its flags.
    const HEADING: &'static str;
    /// Whether msb-run passes this flag on.
    fn takes(flag: &str) -> bool;
    /// Where its flags are kept once they were asked for.
    fn flags() -> &'static OnceLock<Result<Vec<Flag>, String>>;
}

macro_rules! tool {
    ($(#[$doc:meta])* $type:ident, $name:literal, $takes:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default)]
        pub struct $type;

        impl Tool for $type {
            const NAME: &'static str = $name;
            const HEADING: &'static str = concat!("Flags of ", $name);

            fn takes(flag: &str) -> bool {
                let takes: fn(&str) -> bool = $takes;
                takes(flag)
            }

            fn flags() -> &'static OnceLock<Result<Vec<Flag>, String>> {
                static FLAGS: OnceLock<Result<Vec<Flag>, String>> = OnceLock::new();
                &FLAGS
            }
        }
    };
}

tool!(
    /// msb-boot: all flags but those for its record, which msb-run hands over, and those that msb-run has itself.
    Boot,
    "msb-boot",
    |flag| !["record", "output", "json", "quiet", "name", "rm", "foreground", "dry-run", "probe", "verbose"].contains(&flag)
);
tool!(
    /// msb-pull: the flags about registries, trust and limits.
    Pull,
    "msb-pull",
    |flag| {
        ["platform", "plain-http", "tls-verify", "ca-file", "cert-dir", "authfile"].contains(&flag)
            || ["require-digest", "verify", "max-size", "max-files"].contains(&flag)
    }
);
tool!(
    /// msb-exec: the flags about the command's terminal, stdin and limits.
    Exec,
    "msb-exec",
    |flag| ["tty", "no-tty", "interactive", "no-stdin", "rlimit", "umask", "json-status"].contains(&flag)
);

/// The arguments for a tool, in the order in which they were given.
#[derive(Clone, Debug)]
pub struct Passed<T> {
    /// The arguments.
    pub args: Vec<OsString>,
    /// Which of the flags were given.
    pub given: Vec<String>,
    /// The arguments of each occurrence, and which flag it is of.
    occurrences: Vec<(&'static str, Vec<OsString>)>,
    tool: PhantomData<T>,
}

/// The flags of a tool that msb-run passes on.
///
/// # Errors
/// A tool that is missing, or that does not list its flags.
pub fn flags<T: Tool>() -> anyhow::Result<&'static [Flag]> {
    let ask = || -> anyhow::Result<Vec<Flag>> {
        let mut command = programs::command(T::NAME)?;
        let output = command.args(["--generate", "flags"]).stdin(Stdio::null()).output().context(T::NAME)?;
        ensure!(output.status.success(), "{} does not list its flags (is it of another release?)", T::NAME);
        let mut flags: Vec<Flag> = serde_json::from_slice(&output.stdout).context(T::NAME)?;
        flags.retain(|flag| T::takes(&flag.long));
        Ok(flags)
    };
    let flags = T::flags().get_or_init(|| ask().map_err(|error| format!("{error:#}")));
    flags.as_deref().map_err(|error| anyhow::anyhow!("{error}"))
}

/// Asks all tools for their flags at the same time.
///
/// # Errors
/// As [`flags`].
pub fn ask_all() -> anyhow::Result<()> {
    std::thread::scope(|scope| {
        scope.spawn(flags::<Boot>);
        scope.spawn(flags::<Pull>);
        flags::<Exec>().map(drop)
    })?;
    flags::<Boot>()?;
    flags::<Pull>().map(drop)
}

impl<T: Tool> clap::Args for Passed<T> {
    fn augment_args(command: Command) -> Command {
        // Without the tool there is nothing to run; the run says so.
        let flags = flags::<T>().unwrap_or_default();
        command.args(flags.iter().map(|flag| flag.arg().help_heading(T::HEADING)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<T: Tool> FromArgMatches for Passed<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let flags = flags::<T>().unwrap_or_default();
        let of = |flag: &'static Flag| flag.given(matches).into_iter().map(|(at, args)| (at, flag.long.as_str(), args));
        let mut occurrences: Vec<_> = flags.iter().flat_map(of).collect();
        occurrences.sort_by_key(|(at, ..)| *at);
        let occurrences: Vec<_> = occurrences.into_iter().map(|(_, flag, args)| (flag, args)).collect();
        let is_given = |flag: &&Flag| !flag.given(matches).is_empty();
        Ok(Self {
            args: occurrences.iter().flat_map(|(_, args)| args).cloned().collect(),
            given: flags.iter().filter(is_given).map(|flag| flag.long.clone()).collect(),
            occurrences,
            tool: PhantomData,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl<T> Passed<T> {
    /// Whether the flag was given.
    pub fn has(&self, flag: &str) -> bool {
        self.given.iter().any(|given| given == flag)
    }

    /// The arguments of some of the flags, in the order in which they were given.
    pub fn of(&self, is_wanted: impl Fn(&str) -> bool) -> Vec<OsString> {
        let wanted = self.occurrences.iter().filter(|(flag, _)| is_wanted(flag));
        wanted.flat_map(|(_, args)| args).cloned().collect()
    }

    /// The value that a flag has: the last one that was given.
    pub fn value(&self, flag: &str) -> Option<OsString> {
        let (_, args) = self.occurrences.iter().rfind(|(given, _)| *given == flag)?;
        let last = args.last()?;
        Some(if args.len() > 1 { last.clone() } else { variable::value_of(last)?.to_owned() })
    }
}
