//! Flags that one tool passes on to another. `TOOL --generate flags` prints a tool's flags, and the caller adds them to its own
//! command line: both show the same help text, and the values are checked only by the tool that they are for.

use std::ffi::OsString;

use clap::{Arg, ArgAction, ArgMatches, Command, builder::PossibleValue};
use serde::{Deserialize, Serialize};

/// A flag of a tool, without how its values are checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flag {
    /// The name after `--`.
    pub long: String,
    /// The letter after `-`.
    pub short: Option<char>,
    /// What its values are called; none if it has no value.
    pub values: Vec<String>,
    /// Whether the value may be left out; otherwise it follows `=`.
    pub is_optional: bool,
    /// The values that it takes, with what they mean, if they are few.
    pub choices: Vec<(String, Option<String>)>,
    /// The help text.
    pub help: String,
}

impl Flag {
    /// The visible flags of a command, except `--help` and `--version`.
    pub fn all(command: &mut Command) -> Vec<Self> {
        command.build();
        let is_shown = |arg: &&Arg| !arg.is_hide_set() && !matches!(arg.get_id().as_str(), "help" | "version");
        command.get_arguments().filter(is_shown).filter_map(Self::of).collect()
    }

    fn of(arg: &Arg) -> Option<Self> {
        let takes_values = arg.get_action().takes_values();
        let names = arg.get_value_names().unwrap_or_default().iter().map(ToString::to_string);
        let choices = arg.get_possible_values().into_iter().filter(|_| takes_values);
        let described =
            |choice: PossibleValue| (choice.get_name().to_owned(), choice.get_help().map(ToString::to_string));
        Some(Self {
            long: arg.get_long()?.to_owned(),
            short: arg.get_short(),
            values: names.filter(|_| takes_values).collect(),
            is_optional: takes_values && arg.get_num_args().is_some_and(|range| range.min_values() == 0),
            choices: choices.map(described).collect(),
            help: arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default(),
        })
    }

    /// The flag as part of another command line, which takes any value and any number of them.
    pub fn arg(&'static self) -> Arg {
        let arg = Arg::new(self.long.as_str()).long(self.long.as_str()).help(self.help.as_str());
        let arg = self.short.map_or(arg.clone(), |short| arg.short(short));
        if self.values.is_empty() {
            return arg.action(ArgAction::SetTrue).overrides_with(self.long.as_str());
        }
        let arg =
            arg.action(ArgAction::Append).value_names(self.values.iter().map(String::as_str)).allow_hyphen_values(true);
        let arg = arg.value_parser(clap::builder::OsStringValueParser::new());
        if self.is_optional {
            arg.num_args(0..=1).require_equals(true).default_missing_value("")
        } else {
            arg.num_args(self.values.len())
        }
    }

    /// The occurrences of the flag on a command line, each with its place there and as the arguments that pass it on.
    pub fn given(&self, matches: &ArgMatches) -> Vec<(usize, Vec<OsString>)> {
        let flag = OsString::from(format!("--{}", self.long));
        if self.values.is_empty() {
            let at = matches.index_of(&self.long).filter(|_| matches.get_flag(&self.long));
            return at.into_iter().map(|at| (at, vec![flag.clone()])).collect();
        }
        let occurrences = matches.get_occurrences::<OsString>(&self.long).into_iter().flatten();
        let mut indices = matches.indices_of(&self.long).into_iter().flatten();
        let arguments = |values: Vec<&OsString>| match values.as_slice() {
            [value] if self.is_optional && value.is_empty() => vec![flag.clone()],
            [value] if value.as_encoded_bytes().starts_with(b"-") || self.is_optional => {
                let mut argument = flag.clone();
                argument.push("=");
                argument.push(value);
                vec![argument]
            }
            values => [&flag].into_iter().chain(values.iter().copied()).cloned().collect(),
        };
        occurrences
            .map(|values| {
                let at = indices.next().unwrap_or_default();
                let values: Vec<&OsString> = values.collect();
                (1..values.len()).for_each(|_| _ = indices.next());
                (at, arguments(values))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool() -> Command {
        Command::new("tool")
            .arg(
                Arg::new("env").short('e').long("env").value_name("K[=V]").action(ArgAction::Append).help("a variable"),
            )
            .arg(Arg::new("wait").long("wait-init").action(ArgAction::SetTrue))
            .arg(Arg::new("kept").long("kept").value_name("BOOL").num_args(0..=1).require_equals(true))
            .arg(Arg::new("root").long("root").value_name("ROOT").value_parser(["share", "block"]))
            .arg(Arg::new("word").value_name("WORD"))
    }

    #[test]
    fn flags_pass_on_in_their_order() {
        let flags = Flag::all(&mut tool());
        assert_eq!(
            flags.iter().map(|flag| flag.long.as_str()).collect::<Vec<_>>(),
            ["env", "wait-init", "kept", "root"]
        );
        let text = serde_json::to_string(&flags).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Flag>>(&text).unwrap(), flags);
        let flags: &'static [Flag] = flags.leak();
        let other = Command::new("other").args(flags.iter().map(Flag::arg));
        let line = ["other", "--kept", "-e", "A=-b", "--root=block", "-eB", "--env=-C", "--kept=no", "--wait-init"];
        let matches = other.try_get_matches_from(line).unwrap();
        let mut given: Vec<_> = flags.iter().flat_map(|flag| flag.given(&matches)).collect();
        given.sort_by_key(|(at, _)| *at);
        let words: Vec<_> = given.into_iter().flat_map(|(_, words)| words).collect();
        assert_eq!(
            words,
            ["--kept", "--env", "A=-b", "--root", "block", "--env", "B", "--env=-C", "--kept=no", "--wait-init"]
        );
    }
}
