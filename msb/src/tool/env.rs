//! Environment variables on a command line: `K=V`, `K` for the caller's own value, and files of such lines.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The largest file of variables, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// The name in `K=V` or `K`.
pub fn name_of(variable: &OsStr) -> &OsStr {
    let bytes = variable.as_bytes();
    OsStr::from_bytes(bytes.split(|&byte| byte == b'=').next().unwrap_or_default())
}

/// The value in `K=V`; `None` for `K` alone.
pub fn value_of(variable: &OsStr) -> Option<&OsStr> {
    variable.as_bytes().get(name_of(variable).len() + 1..).map(OsStr::from_bytes)
}

/// Checks `K=V` or `K`.
///
/// # Errors
/// The reason.
pub fn check(variable: &OsStr) -> Result<(), &'static str> {
    match variable.as_bytes() {
        [] | [b'=', ..] => Err("a variable needs a name"),
        bytes if bytes.contains(&0) => Err("a variable cannot hold NUL"),
        _ => Ok(()),
    }
}

/// `K=V` as it is; `K` with its value from `here`, or `None` if it has none.
pub fn resolve(variable: &OsStr, here: impl Fn(&OsStr) -> Option<OsString>) -> Option<OsString> {
    let name = name_of(variable);
    if name == variable {
        here(name).map(|value| [name, &value].join(OsStr::new("=")))
    } else {
        Some(variable.to_owned())
    }
}

/// Why a file of variables cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("env file {file:?}: {reason}")]
pub struct FileError {
    /// The file.
    pub file: PathBuf,
    /// What is wrong with it.
    pub reason: FileErrorReason,
}

/// What is wrong with a file of variables.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileErrorReason {
    /// It cannot be read.
    #[error("{0}")]
    Unreadable(io::Error),
    /// It is longer than 4 MiB.
    #[error("over {} MiB long", MAX_FILE >> 20)]
    TooLong,
    /// A line is not a variable: the line's number and the reason.
    #[error("{0}")]
    Line(String),
}

/// Reads a file of variables in the format of `docker run --env-file`.
///
/// # Errors
/// A file that cannot be read, or a wrong line.
pub fn read_file(path: &Path) -> Result<Vec<OsString>, FileError> {
    let read = || {
        if fs::metadata(path).map_err(FileErrorReason::Unreadable)?.len() > MAX_FILE {
            return Err(FileErrorReason::TooLong);
        }
        parse_file(&fs::read(path).map_err(FileErrorReason::Unreadable)?).map_err(FileErrorReason::Line)
    };
    read().map_err(|reason| FileError { file: path.to_owned(), reason })
}

/// Parses an env file as docker does: leading blanks, empty lines and lines that begin with `#` are skipped; the rest is `K=V`
/// (V literally, including quotes) or `K`.
fn parse_file(text: &[u8]) -> Result<Vec<OsString>, String> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let mut variables = Vec::new();
    for (number, line) in text.split(|&byte| byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line).trim_ascii_start();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let variable = OsString::from_vec(line.to_vec());
        let wrong = |why: &str| format!("line {}: {why}", number + 1);
        check(&variable).map_err(wrong)?;
        let name = name_of(&variable);
        if name.as_bytes().iter().any(u8::is_ascii_whitespace) {
            return Err(wrong(&format!("the name {name:?} has a blank in it")));
        }
        variables.push(variable);
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_is_given_with_its_value_or_passed_on() {
        let here = |name: &OsStr| (name == "HERE").then(|| OsString::from("x=y"));
        for (given, resolved) in [
            ("A=b=c", Some("A=b=c")),
            ("A=", Some("A=")),
            ("HERE", Some("HERE=x=y")),
            ("HERE=z", Some("HERE=z")),
            ("NOT_SET", None),
        ] {
            assert_eq!(resolve(OsStr::new(given), here).as_deref(), resolved.map(OsStr::new), "{given}");
        }
        for bad in ["", "=x", "a=\0"] {
            assert!(check(OsStr::new(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_file_of_variables_has_up_to_4_mib() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("env");
        fs::write(&path, "A=b\n").unwrap();
        assert_eq!(read_file(&path).unwrap(), ["A=b"]);
        let with_length = |length| {
            fs::File::create(&path).unwrap().set_len(length).unwrap();
            read_file(&path).unwrap_err().reason
        };
        assert!(matches!(with_length(MAX_FILE), FileErrorReason::Line(_)));
        assert!(matches!(with_length(MAX_FILE + 1), FileErrorReason::TooLong));
    }

    #[test]
    fn a_variable_has_a_name_and_maybe_a_value() {
        for (variable, name, value) in
            [("A=b=c", "A", Some("b=c")), ("A=", "A", Some("")), ("A", "A", None), ("", "", None)]
        {
            assert_eq!(name_of(OsStr::new(variable)), name);
            assert_eq!(value_of(OsStr::new(variable)), value.map(OsStr::new), "{variable}");
        }
    }

    #[test]
    fn a_file_of_variables_is_read_as_docker_reads_it() {
        let text = b"\xef\xbb\xbf# comment\n\n  A=1\nB=\"quoted\" # no comment \r\nC\n\t#another\nD=\nE=a=b\xff";
        let expected: [&[u8]; 5] = [b"A=1", b"B=\"quoted\" # no comment ", b"C", b"D=", b"E=a=b\xff"];
        assert_eq!(parse_file(text).unwrap(), expected.map(|line| OsString::from_vec(line.to_vec())));
        for (text, message) in
            [("A=1\n=x", "line 2: a variable needs a name"), ("A B=1", "line 1: the name \"A B\" has a blank in it")]
        {
            assert_eq!(parse_file(text.as_bytes()).unwrap_err(), message);
        }
        assert!(parse_file(b"A=\0").is_err());
    }
}
