//! What an exec in the guest gets that does not say otherwise: the image's configuration and the flags over it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use msb::boot::Defaults;
use msb::record::ImageConfig;
use msb::wire::exec::Text;

use crate::args::Args;

/// The image's configuration with the flags over it.
pub(crate) fn defaults(image: &ImageConfig, args: &Args) -> Defaults {
    Defaults {
        env: environment(&image.env, &args.env, |name| std::env::var_os(name)),
        cwd: args.workdir.clone().unwrap_or_else(|| image.working_dir.clone()),
        user: args.user.clone().unwrap_or_else(|| image.user.clone()),
        argv: command(image, args.entrypoint.as_deref()),
    }
}

/// Docker's table: an entrypoint of the caller's replaces the image's and drops its cmd; an empty one leaves nothing.
fn command(image: &ImageConfig, entrypoint: Option<&OsStr>) -> Vec<Text> {
    match entrypoint {
        Some(entrypoint) if entrypoint.is_empty() => Vec::new(),
        Some(entrypoint) => vec![entrypoint.into()],
        None => {
            let parts = [&image.entrypoint, &image.cmd];
            parts.into_iter().flatten().flatten().map(|word| word.as_str().into()).collect()
        }
    }
}

/// `K=V` of the caller over `K=V` of the image, in the image's order. `K` alone takes its value from `here`, and is
/// left out where there is none.
fn environment(image: &[String], caller: &[OsString], here: impl Fn(&OsStr) -> Option<OsString>) -> Vec<Text> {
    let mut merged: Vec<OsString> = image.iter().map(OsString::from).collect();
    for variable in caller {
        let name = name_of(variable);
        let wanted = if name == variable {
            here(name).map(|value| [name, &value].join(OsStr::new("=")))
        } else {
            Some(variable.clone())
        };
        let Some(wanted) = wanted else { continue };
        match merged.iter().position(|other| name_of(other) == name) {
            Some(place) => merged[place] = wanted,
            None => merged.push(wanted),
        }
    }
    merged.iter().map(|variable| variable.as_os_str().into()).collect()
}

fn name_of(variable: &OsStr) -> &OsStr {
    let bytes = variable.as_bytes();
    OsStr::from_bytes(bytes.split(|&byte| byte == b'=').next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Option<Vec<String>> {
        Some(words.iter().map(|word| (*word).to_owned()).collect())
    }

    #[test]
    fn the_command_follows_dockers_table() {
        for (entrypoint, cmd, flag, expected) in [
            (None, words(&["sh"]), None, vec!["sh"]),
            (words(&["run"]), None, None, vec!["run"]),
            (words(&["run", "-x"]), words(&["a"]), None, vec!["run", "-x", "a"]),
            (words(&["run"]), words(&["a"]), Some("other"), vec!["other"]),
            (words(&["run"]), words(&["a"]), Some(""), vec![]),
            (None, None, None, vec![]),
        ] {
            let image = ImageConfig { entrypoint, cmd, ..ImageConfig::default() };
            let expected: Vec<Text> = expected.into_iter().map(Text::from).collect();
            assert_eq!(command(&image, flag.map(OsStr::new)), expected, "{image:?} {flag:?}");
        }
    }

    #[test]
    fn the_callers_variables_go_over_the_images() {
        let image = ["PATH=/bin".to_owned(), "A=image".to_owned()];
        let here = |name: &OsStr| (name == "FROM_HERE").then(|| "x=y".into());
        let caller = ["A=b=c", "NEW=", "FROM_HERE", "NOT_SET"].map(OsString::from);
        let expected = ["PATH=/bin", "A=b=c", "NEW=", "FROM_HERE=x=y"].map(Text::from);
        assert_eq!(environment(&image, &caller, here), expected);
    }
}
