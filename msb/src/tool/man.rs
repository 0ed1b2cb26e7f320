//! Manual pages of section 1, and the part of `--help` after the flags.
//!
//! A page is made from two things: the flags, as clap has them, and a [`Page`], which a tool defines next to its flags.
//! The output is man(7) with one sentence on a line, and passes `mandoc -T lint`.

use std::fmt::Write;

use clap::{Arg, Command};

/// The date in the header of every page: that of the release, so that pages are the same wherever they are made. The pages of
/// the other sections carry it too (`make man`).
pub(super) const DATE: &str = "2026-11-29";

/// The longest line of a page's source, in bytes, as mandoc wants it.
const LINE_WIDTH: usize = 80;

/// A term and what it means, in plain text.
pub type Item = (&'static str, &'static str);

/// The exit statuses of all tools but msb-exec.
pub const EXIT_STATUS: &[Item] =
    &[("0", "success"), ("1", "failure"), ("2", "usage error"), ("128+N", "interrupted by signal N")];

/// The variable that names a record.
pub const MSB_RECORD: Item =
    ("MSB_RECORD", "The record to use if no other is given: the name of a running VM, or a file (see msb-record(5))");
/// The variable that says where state is.
pub const MSB_HOME: Item = (
    "MSB_HOME",
    "The directory for layers, images and sandboxes. Default: $XDG_DATA_HOME/msb, else ~/.local/share/msb",
);
/// The variable that says where running VMs are.
pub const MSB_RUN: Item = (
    "MSB_RUN",
    "The directory that holds the run directories of VMs. Default: /run/msb for root, $XDG_RUNTIME_DIR/msb for other users, \
     else /run/user/UID/msb",
);

/// A section of a tool's own: its heading, and what gives its text. Paragraphs are separated by empty lines, and indented ones are
/// not filled.
pub type Note = (&'static str, fn() -> String);

/// What a tool's page says apart from its flags. All texts are plain; options and references to pages, such as msb-ops(5), are
/// set in bold.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// Further forms of the command line, after the first, which has every option.
    pub forms: &'static [&'static str],
    /// What follows the options in the first form, as in `[-- CMD...]`.
    pub operands: &'static str,
    /// Sections of the tool's own.
    pub notes: &'static [Note],
    /// Exit statuses.
    pub exit_status: &'static [Item],
    /// Environment variables.
    pub environment: &'static [Item],
    /// Files and directories.
    pub files: &'static [Item],
    /// Examples: what one is for, and its commands. Tests run them.
    pub examples: &'static [Item],
    /// Other pages, as in `msb-ops(5)`.
    pub see_also: &'static [&'static str],
}

impl Page {
    /// The text after the flags in `--help`: the notes, the exit statuses and the examples.
    pub fn help(&self) -> String {
        let mut help = String::new();
        for (heading, text) in self.notes {
            let _ = write!(help, "{heading}:\n{}\n\n", text());
        }
        let statuses: Vec<_> = self.exit_status.iter().map(|(code, meaning)| format!("{code} {meaning}")).collect();
        let _ = write!(help, "Exit status: {}.\n\nExamples:\n", statuses.join("; "));
        for (what, commands) in self.examples {
            let _ = writeln!(help, "  # {what}");
            commands.lines().for_each(|line| _ = writeln!(help, "  {line}"));
        }
        help.truncate(help.trim_end().len());
        help
    }

    /// The page of `command`, as man(7) source.
    pub fn render(&self, mut command: Command) -> String {
        command.build();
        let name = command.get_name().to_owned();
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        let long = command.get_long_about().map(ToString::to_string).unwrap_or_default();
        let mut out = Source::default();
        out.line(&format!(
            ".TH {} 1 {DATE} \"msb {}\" \"User Commands\"",
            literal(&name.to_uppercase()),
            command.get_version().unwrap_or_default()
        ));
        out.section("NAME");
        out.line(&format!("{} \\- {}", literal(&name), literal(&lower_first(&about))));
        out.section("SYNOPSIS");
        out.synopsis(&command, self);
        out.section("DESCRIPTION");
        let description = long.strip_prefix(about.as_str()).unwrap_or(&long);
        out.paragraphs(description.trim_start_matches(['.', '\n']));
        out.section("OPTIONS");
        let (options, operands): (Vec<_>, Vec<_>) =
            command.get_arguments().filter(|arg| !arg.is_hide_set()).partition(|arg| !arg.is_positional());
        let has_several = operands.len() > 1;
        for arg in operands {
            let own = arg.get_value_names().and_then(|names| names.first()).filter(|_| has_several);
            out.option(arg, own.map_or(self.operands, |name| name.as_str()));
        }
        options.into_iter().for_each(|arg| out.option(arg, ""));
        for (heading, text) in self.notes {
            out.section(&heading.to_uppercase());
            out.paragraphs(&text());
        }
        out.items("EXIT STATUS", self.exit_status);
        out.items("ENVIRONMENT", self.environment);
        out.items("FILES", self.files);
        out.section("EXAMPLES");
        for (at, (what, commands)) in self.examples.iter().enumerate() {
            if at > 0 {
                out.line(".PP");
            }
            out.fill(&format!("{}:", upper_first(what)), &[]);
            out.line(".RS 4");
            out.verbatim(commands);
            out.line(".RE");
        }
        out.section("SEE ALSO");
        for (at, page) in self.see_also.iter().enumerate() {
            let (name, section) = page.split_once('(').unwrap_or((page, ""));
            let comma = if at + 1 < self.see_also.len() { "," } else { "" };
            out.line(&format!(".BR {} ({section}{comma}", literal(name)));
        }
        out.text
    }
}

/// man(7) source.
#[derive(Default)]
struct Source {
    text: String,
}

impl Source {
    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn section(&mut self, heading: &str) {
        self.line(&format!(".SH {heading}"));
    }

    fn synopsis(&mut self, command: &Command, page: &Page) {
        let name = command.get_name();
        self.line(&format!(".SY {}", literal(name)));
        let shown = |arg: &&Arg| !arg.is_hide_set() && !matches!(arg.get_id().as_str(), "help" | "version");
        for arg in command.get_arguments().filter(shown).filter(|arg| !arg.is_positional()) {
            let flag = match (arg.get_short(), arg.get_long()) {
                (Some(short), _) => format!("\\-{short}"),
                (None, long) => format!("\\-\\-{}", literal(long.unwrap_or_default())),
            };
            self.line(&format!("[\\fB{flag}\\fR{}]", value(arg, "\\~")));
        }
        if !page.operands.is_empty() {
            self.line(&literal(page.operands));
        }
        self.line(".YS");
        for form in page.forms {
            self.line(&format!(".SY {}", literal(name)));
            self.line(&literal(form));
            self.line(".YS");
        }
    }

    fn option(&mut self, arg: &Arg, operands: &str) {
        self.line(".TP");
        let flags: Vec<_> = arg
            .get_short()
            .map(|short| format!("\\fB\\-{short}\\fR"))
            .into_iter()
            .chain(arg.get_long().map(|long| format!("\\fB\\-\\-{}\\fR", literal(long))))
            .collect();
        self.line(&if flags.is_empty() { literal(operands) } else { flags.join(", ") + &value(arg, " ") });
        let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
        let metavariables = value_names(arg).join(" ");
        let metavariables: Vec<_> =
            metavariables.split(|c: char| !c.is_ascii_uppercase()).filter(|word| !word.is_empty()).collect();
        let mut paragraphs = help.split("\n\n");
        let mut first = paragraphs.next().unwrap_or_default().to_owned();
        let defaults: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        if !defaults.is_empty() && arg.get_action().takes_values() {
            let _ = write!(first, " [default: {}]", defaults.join(" "));
        }
        self.fill(&first, &metavariables);
        for paragraph in paragraphs {
            self.line(".IP");
            self.fill(paragraph, &metavariables);
        }
        let choices: Vec<_> =
            arg.get_possible_values().into_iter().filter(|choice| choice.get_help().is_some()).collect();
        if choices.is_empty() || !arg.get_action().takes_values() {
            return;
        }
        self.line(".RS");
        for choice in choices {
            self.line(".TP");
            self.line(&format!(".B {}", literal(choice.get_name())));
            self.fill(&choice.get_help().map(ToString::to_string).unwrap_or_default(), &[]);
        }
        self.line(".RE");
    }

    fn items(&mut self, heading: &str, items: &[Item]) {
        if items.is_empty() {
            return;
        }
        self.section(heading);
        for (term, meaning) in items {
            self.line(".TP");
            self.line(&format!(".{} {}", if heading == "FILES" { "I" } else { "B" }, literal(term)));
            self.fill(&format!("{}.", upper_first(meaning).trim_end_matches('.')), &[]);
        }
    }

    fn paragraphs(&mut self, text: &str) {
        for (at, paragraph) in text.split("\n\n").enumerate() {
            if at > 0 {
                self.line(".PP");
            }
            if paragraph.starts_with(' ') {
                self.verbatim(paragraph);
            } else {
                self.fill(paragraph, &[]);
            }
        }
    }

    /// Text that is not filled, without the indentation that all lines share.
    fn verbatim(&mut self, text: &str) {
        self.line(".EX");
        let indent = text.lines().map(|line| line.len() - line.trim_start().len()).min().unwrap_or(0);
        for line in text.lines() {
            self.line(&start_of_line(&literal(&line[indent..])));
        }
        self.line(".EE");
    }

    /// Filled text: each sentence begins on a line, and no line is longer than mandoc likes.
    fn fill(&mut self, text: &str, metavariables: &[&str]) {
        let mut line = String::new();
        for word in text.split_whitespace() {
            let set = set_word(word, metavariables);
            if !line.is_empty() && (line.len() + 1 + set.len() >= LINE_WIDTH || line.ends_with(['.', '?'])) {
                self.line(&start_of_line(&line));
                line.clear();
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(&set);
        }
        if !line.is_empty() {
            self.line(&start_of_line(&line));
        }
    }
}

/// The value of an option, with what separates it from the flag.
fn value(arg: &Arg, space: &str) -> String {
    if !arg.get_action().takes_values() {
        return String::new();
    }
    let names: Vec<_> = value_names(arg).into_iter().map(|name| format!("\\fI{}\\fR", literal(name))).collect();
    match arg.get_num_args() {
        Some(range) if range.min_values() == 0 => format!("[={}]", names.join(space)),
        _ => format!("{space}{}", names.join(space)),
    }
}

fn value_names(arg: &Arg) -> Vec<&str> {
    arg.get_value_names().unwrap_or_default().iter().map(|name| name.as_str()).collect()
}

/// A word of filled text: options and references to pages are bold, metavariables italic.
fn set_word(word: &str, metavariables: &[&str]) -> String {
    let (opening, rest) = word.split_at(word.len() - word.trim_start_matches(['(', '[', '"']).len());
    let (core, closing) = rest.split_at(rest.trim_end_matches([',', '.', ';', ':', ')', ']', '"']).len());
    let is_option = core.starts_with('-') && core.len() > 1 && core != "--";
    let core = if is_option {
        format!("\\fB{}\\fR", literal(core))
    } else if let Some((page, section)) = rest.split_once('(')
        && section.starts_with(|c: char| c.is_ascii_digit())
    {
        return format!("{}\\fB{}\\fR({}", literal(opening), literal(page), literal(section));
    } else if metavariables.contains(&core) {
        format!("\\fI{}\\fR", literal(core))
    } else {
        literal(core)
    };
    format!("{}{core}{}", literal(opening), literal(closing))
}

/// Text with the characters escaped that roff or a typesetter would change.
fn literal(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\e"),
            '-' => out.push_str("\\-"),
            '\'' => out.push_str("\\(aq"),
            '`' => out.push_str("\\(ga"),
            '^' => out.push_str("\\(ha"),
            '~' => out.push_str("\\(ti"),
            '…' => out.push_str("..."),
            c => out.push(c),
        }
    }
    out
}

/// A line that roff does not take for a request.
fn start_of_line(line: &str) -> String {
    if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line.to_owned() }
}

fn lower_first(text: &str) -> String {
    change_first(text, |c| c.to_ascii_lowercase())
}

fn upper_first(text: &str) -> String {
    change_first(text, |c| c.to_ascii_uppercase())
}

fn change_first(text: &str, change: impl Fn(char) -> char) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| change(first).to_string() + chars.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_of_text_is_set_as_what_it_is() {
        for (word, set) in [
            ("word", "word"),
            ("--init-arg", r"\fB\-\-init\-arg\fR"),
            ("(-n),", r"(\fB\-n\fR),"),
            ("msb-ops(5).", r"\fBmsb\-ops\fR(5)."),
            ("FILE,", r"\fIFILE\fR,"),
            ("PATH", "PATH"),
            ("-", r"\-"),
            ("it's", r"it\(aqs"),
        ] {
            assert_eq!(set_word(word, &["FILE"]), set, "{word}");
        }
    }

    #[test]
    fn a_sentence_begins_on_a_line_and_no_line_is_long() {
        let mut out = Source::default();
        out.fill(&format!("One. Two .three {}", "word ".repeat(40)), &[]);
        let lines: Vec<_> = out.text.lines().collect();
        assert_eq!(lines[0], "One.");
        assert!(lines[1].starts_with("Two .three word"));
        assert!(lines.iter().all(|line| line.len() < LINE_WIDTH));
    }

    #[test]
    fn text_that_roff_would_read_is_escaped() {
        let mut out = Source::default();
        out.verbatim("  .msb 'a\\b'\n    ~/x");
        assert_eq!(out.text, ".EX\n\\&.msb \\(aqa\\eb\\(aq\n  \\(ti/x\n.EE\n");
    }
}
