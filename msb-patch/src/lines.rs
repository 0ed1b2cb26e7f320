//! Replacing lines of a text that match a fixed string or a regular expression.

use regex::bytes::{Regex, RegexBuilder};

/// The lines to replace, and their replacement.
#[derive(Debug)]
pub struct Pattern {
    find: Find,
    with: Vec<u8>,
}

#[derive(Debug)]
enum Find {
    Line(Vec<u8>),
    Regex {
        regex: Regex,
        /// Matches lines that were replaced before: the replacement, with anything in place of a group.
        replaced: Regex,
    },
}

/// The result of an edit.
#[derive(Debug, PartialEq, Eq)]
pub enum Edited {
    /// The new text.
    To(Vec<u8>),
    /// The expected number of lines had been replaced before, and none is left.
    Already,
}

impl Pattern {
    /// Matches lines that are equal to `line`.
    ///
    /// # Errors
    /// A message: more than one line.
    pub fn line(line: &str, with: &str) -> Result<Self, String> {
        for (member, text) in [("line", line), ("with", with)] {
            one_line(member, text)?;
        }
        Ok(Self { find: Find::Line(line.into()), with: with.into() })
    }

    /// Matches lines in which `regex` matches a part. In `with`, `$1` and `${name}` stand for its groups, `$$` for a dollar sign.
    ///
    /// # Errors
    /// A message: not a regular expression, a group that it does not have, more than one line.
    pub fn regex(regex: &str, with: &str) -> Result<Self, String> {
        one_line("with", with)?;
        let regex = RegexBuilder::new(regex).build().map_err(|error| {
            // The message of the crate has several lines; the last one is the reason.
            let message = error.to_string();
            format!("member \"regex\": {}", message.lines().last().unwrap_or_default().trim_start_matches("error: "))
        })?;
        let replaced = replaced_pattern(&regex, with)?;
        Ok(Self { find: Find::Regex { regex, replaced }, with: with.into() })
    }

    /// The replacement of a line, if it matches.
    fn replacement(&self, line: &[u8]) -> Option<Vec<u8>> {
        match &self.find {
            Find::Line(whole) => (line == whole).then(|| self.with.clone()),
            Find::Regex { regex, .. } => regex.captures(line).map(|groups| {
                let mut to = Vec::new();
                groups.expand(&self.with, &mut to);
                to
            }),
        }
    }

    fn is_replaced(&self, line: &[u8]) -> bool {
        match &self.find {
            Find::Line(_) => line == self.with,
            Find::Regex { replaced, .. } => replaced.is_match(line),
        }
    }
}

fn one_line(member: &str, text: &str) -> Result<(), String> {
    if text.contains('\n') {
        return Err(format!("member {member:?}: contains a line break (edit replaces one line with one)"));
    }
    Ok(())
}

/// A regular expression for the results of [`Pattern::replacement`].
fn replaced_pattern(regex: &Regex, with: &str) -> Result<Regex, String> {
    let mut pattern = String::from("^");
    let mut rest = with;
    while let Some((text, behind)) = rest.split_once('$') {
        pattern += &regex::escape(text);
        if let Some(behind) = behind.strip_prefix('$') {
            pattern += "\\$";
            rest = behind;
            continue;
        }
        // The syntax of `Captures::expand`.
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let (group, behind) = match behind.strip_prefix('{').and_then(|behind| behind.split_once('}')) {
            Some((group, behind)) => (group, behind),
            None => behind.split_at(behind.find(|c| !is_word(c)).unwrap_or(behind.len())),
        };
        if group.is_empty() {
            pattern += "\\$";
            rest = behind;
            continue;
        }
        let is_known = match group.parse() {
            Ok(number) => regex.captures_len() > number,
            Err(_) => regex.capture_names().flatten().any(|name| name == group),
        };
        if !is_known {
            return Err(format!(
                "member \"with\": the regex has no group {group:?} (write $$ for a dollar sign, ${{1}}x for group 1 before an x)"
            ));
        }
        pattern += ".*";
        rest = behind;
    }
    pattern += &regex::escape(rest);
    pattern += "$";
    RegexBuilder::new(&pattern).dot_matches_new_line(true).build().map_err(|error| format!("member \"with\": {error}"))
}

/// Replaces lines. Their ends, a newline or a carriage return and a newline, are kept.
///
/// # Errors
/// A message if the number of lines is not `count`; without a count, if no line matches. Lines that were replaced before count if no line
/// is left to replace.
pub fn replace_lines(text: &[u8], pattern: &Pattern, count: Option<usize>) -> Result<Edited, String> {
    let mut to = Vec::with_capacity(text.len());
    let (mut matching, mut replaced) = (0, 0);
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        let body = line.strip_suffix(b"\n").unwrap_or(line);
        let body = if line.len() > body.len() { body.strip_suffix(b"\r").unwrap_or(body) } else { body };
        match pattern.replacement(body) {
            Some(new) => {
                matching += 1;
                to.extend(new);
            }
            None => {
                replaced += usize::from(pattern.is_replaced(body));
                to.extend(body);
            }
        }
        to.extend(&line[body.len()..]);
    }
    let is_expected = |found: usize| count.map_or(found > 0, |count| found == count);
    if is_expected(matching) {
        return Ok(Edited::To(to));
    }
    if matching == 0 && is_expected(replaced) {
        return Ok(Edited::Already);
    }
    Err(match (matching, count) {
        (0, None) => "no line matches".to_owned(),
        (found, count) => {
            let lines = if found == 1 { "line matches" } else { "lines match" };
            format!("{found} {lines}, not {}", count.unwrap_or(1))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of a text, or the message.
    fn edit(text: &str, pattern: Result<Pattern, String>, count: Option<usize>) -> Result<Option<String>, String> {
        replace_lines(text.as_bytes(), &pattern?, count).map(|edited| match edited {
            Edited::To(to) => Some(String::from_utf8(to).unwrap()),
            Edited::Already => None,
        })
    }

    #[test]
    fn a_fixed_string_is_a_whole_line() {
        for (text, line, with, count, becomes) in [
            ("a\nb\na\n", "a", "x", None, Ok(Some("x\nb\nx\n"))),
            ("a\nb\na\n", "a", "x", Some(2), Ok(Some("x\nb\nx\n"))),
            ("a\nb\na\n", "a", "x", Some(1), Err("2 lines match, not 1")),
            ("a\nb\na\n", "a", "x", Some(3), Err("2 lines match, not 3")),
            ("#a\na b\n a\n", "a", "x", None, Err("no line matches")),
            ("#a\n", "a", "x", Some(2), Err("0 lines match, not 2")),
            ("a\r\nb\r\n", "a", "x", None, Ok(Some("x\r\nb\r\n"))),
            ("b\na", "a", "x", None, Ok(Some("b\nx"))),
            ("a\r", "a", "x", None, Err("no line matches")),
            ("a\r", "a\r", "x", None, Ok(Some("x"))),
            ("a\n", "a", "", None, Ok(Some("\n"))),
            ("\n", "", "x", None, Ok(Some("x\n"))),
            ("", "", "x", None, Err("no line matches")),
            ("a.c\nabc\n", "a.c", "$1", None, Ok(Some("$1\nabc\n"))),
            // Again: the lines are there.
            ("x\nb\nx\n", "a", "x", None, Ok(None)),
            ("x\nb\nx\n", "a", "x", Some(2), Ok(None)),
            ("x\nb\nx\n", "a", "x", Some(1), Err("0 lines match, not 1")),
            ("x\na\n", "a", "x", Some(1), Ok(Some("x\nx\n"))),
            ("x\na\n", "a", "x", Some(2), Err("1 line matches, not 2")),
            ("a\n", "a", "a", Some(1), Ok(Some("a\n"))),
        ] {
            let becomes = becomes.map(|text| text.map(str::to_owned)).map_err(str::to_owned);
            assert_eq!(edit(text, Pattern::line(line, with), count), becomes, "{text:?} {line:?} {with:?} {count:?}");
        }
    }

    #[test]
    fn a_regex_finds_something_in_a_line_and_all_of_the_line_goes() {
        for (text, regex, with, count, becomes) in [
            ("#Port 22\nPortal\n", "^#?Port ", "Port 2222", Some(1), Ok(Some("Port 2222\nPortal\n"))),
            ("Port 2222\nPortal\n", "^#?Port ", "Port 2222", Some(1), Ok(Some("Port 2222\nPortal\n"))),
            ("a=1\nb=2\n", "^(.)=(\\d)$", "$2=${1}x", Some(2), Ok(Some("1=ax\n2=bx\n"))),
            ("1=ax\n2=bx\n", "^([a-z])=(\\d)$", "$2=${1}x", Some(2), Ok(None)),
            ("1=ax\n2=b\n", "^([a-z])=(\\d)$", "$2=${1}x", Some(2), Err("0 lines match, not 2")),
            ("a=1\n", "(?<key>.)=", "${key}$$", None, Ok(Some("a$\n"))),
            ("a$\n", "(?<key>.)=", "$key$$", None, Ok(None)),
            ("a\n", "b", "$ {", None, Err("no line matches")),
            ("$ {\n", "b", "$ {", None, Ok(None)),
            ("a\r\n", "a$", "b", None, Ok(Some("b\r\n"))),
            ("ä\n", "^.$", "a", None, Ok(Some("a\n"))),
            ("A\n", "(?i)a", "b", None, Ok(Some("b\n"))),
            ("x.y\n", "q", "x.y", None, Ok(None)),
            ("xay\n", "q", "x.y", None, Err("no line matches")),
            ("ax.y\nx.yb\n", "q", "x.y", None, Err("no line matches")),
        ] {
            let becomes = becomes.map(|text| text.map(str::to_owned)).map_err(str::to_owned);
            assert_eq!(
                edit(text, Pattern::regex(regex, with), count),
                becomes,
                "{text:?} {regex:?} {with:?} {count:?}"
            );
        }
    }

    #[test]
    fn bytes_that_are_not_utf_8_stay_and_are_found() {
        let pattern = Pattern::regex("(?-u)^b\\xff", "b").unwrap();
        assert_eq!(replace_lines(b"\xfe\nb\xff\n", &pattern, None).unwrap(), Edited::To(b"\xfe\nb\n".to_vec()));
    }

    #[test]
    fn what_is_not_one_line_or_not_a_regex_is_refused() {
        for (pattern, words) in [
            (Pattern::line("a\n", "b"), "member \"line\": contains a line break"),
            (Pattern::line("a", "b\nc"), "member \"with\": contains a line break"),
            (Pattern::regex("a", "b\nc"), "member \"with\": contains a line break"),
            (Pattern::regex("(a", "b"), "member \"regex\": unclosed group"),
            (Pattern::regex("a{99999}{99999}", "b"), "member \"regex\": "),
            (Pattern::regex("(a)", "$2"), "member \"with\": the regex has no group \"2\""),
            (Pattern::regex("(a)", "$1x"), "member \"with\": the regex has no group \"1x\""),
            (Pattern::regex("(a)", "${b}"), "member \"with\": the regex has no group \"b\""),
        ] {
            let error = pattern.unwrap_err();
            assert!(error.starts_with(words), "{error}");
        }
    }
}
