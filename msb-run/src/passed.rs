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
    /// Each occurrence of a flag: its name and its arguments.
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
        let occurrences = occurrences.into_iter().map(|(_, flag, args)| (flag, args)).collect();
        Ok(Self { occurrences, tool: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl<T> Passed<T> {
    /// Whether the flag was given.
    pub fn has(&self, flag: &str) -> bool {
        self.occurrences.iter().any(|(given, _)| *given == flag)
    }

    /// The arguments, in their order on the command line.
    pub fn args(&self) -> Vec<OsString> {
        self.of(|_| true)
    }

    /// The arguments of the flags that `is_wanted` selects, in their order on the command line.
    pub fn of(&self, is_wanted: impl Fn(&str) -> bool) -> Vec<OsString> {
        let wanted = self.occurrences.iter().filter(|(flag, _)| is_wanted(flag));
        wanted.flat_map(|(_, args)| args).cloned().collect()
    }

    /// The value of a flag; the last one if it was repeated.
    pub fn value(&self, flag: &str) -> Option<OsString> {
        value(self.of_flag(flag).next_back()?)
    }

    /// The values of a flag, in their order on the command line. An occurrence without a value is left out.
    pub fn values(&self, flag: &str) -> Vec<OsString> {
        self.of_flag(flag).filter_map(value).collect()
    }

    fn of_flag(&self, flag: &str) -> impl DoubleEndedIterator<Item = &[OsString]> {
        self.occurrences.iter().filter(move |(given, _)| *given == flag).map(|(_, args)| args.as_slice())
    }
}

/// The value in the arguments of an occurrence.
fn value(args: &[OsString]) -> Option<OsString> {
    match args {
        [flag] => variable::value_of(flag).map(ToOwned::to_owned),
        args => args.last().cloned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_has_its_values_in_order_and_the_last_occurrence_counts() {
        let given = [
            ("script", &["--script", "a=/a"][..]),
            ("commit-on-stop", &["--commit-on-stop=no"]),
            ("script", &["--script=-b=/b"]),
            ("commit-on-stop", &["--commit-on-stop"]),
        ];
        let occurrences = given.map(|(flag, args)| (flag, args.iter().map(OsString::from).collect())).into();
        let passed = Passed::<Boot> { occurrences, tool: PhantomData };
        assert_eq!(passed.values("script"), ["a=/a", "-b=/b"]);
        assert_eq!(passed.value("script").unwrap(), "-b=/b");
        assert_eq!(passed.value("commit-on-stop"), None);
        assert!(passed.has("commit-on-stop") && !passed.has("env"));
        assert_eq!(passed.args(), ["--script", "a=/a", "--commit-on-stop=no", "--script=-b=/b", "--commit-on-stop"]);
    }
}
