//! What an exec in the guest gets that does not say otherwise: the image's configuration and the flags over it.

use std::ffi::{OsStr, OsString};

use msb::boot::{self, Defaults};
use msb::env;
use msb::record::ImageConfig;
use msb::wire::exec::Text;

use crate::args::{Args, Entrypoint, InitChoice};

/// The image's configuration with the flags over it.
///
/// # Errors
/// Words for an env file that cannot be read.
pub(crate) fn defaults(image: &ImageConfig, args: &Args) -> anyhow::Result<Defaults> {
    let mut variables = Vec::new();
    for file in &args.env_file {
        variables.extend(env::read_file(file)?);
    }
    variables.extend(args.env.iter().cloned());
    Ok(Defaults {
        env: environment(&image.env, &variables, |name| std::env::var_os(name)),
        cwd: args.workdir.clone().unwrap_or_else(|| image.working_dir.clone()),
        user: args.user.clone().unwrap_or_else(|| image.user.clone()),
        argv: command(image, args.entrypoint.as_ref(), &args.command),
    })
}

/// Docker's table: an entrypoint of the caller's replaces the image's and drops its cmd, and an empty one leaves nothing of
/// either; a command of the caller's replaces the image's cmd alone.
fn command(image: &ImageConfig, entrypoint: Option<&Entrypoint>, command: &[OsString]) -> Vec<Text> {
    let texts = |words: &[OsString]| words.iter().map(|word| word.as_os_str().into()).collect::<Vec<Text>>();
    let image_texts = |words: &Option<Vec<String>>| words.iter().flatten().map(|word| word.as_str().into()).collect();
    let first: Vec<Text> = match entrypoint {
        Some(Entrypoint(words)) => texts(words),
        None => image_texts(&image.entrypoint),
    };
    let rest: Vec<Text> = match entrypoint {
        _ if !command.is_empty() => texts(command),
        Some(_) => Vec::new(),
        None => image_texts(&image.cmd),
    };
    [first, rest].concat()
}

/// Programs that are an init wherever they are an image's entrypoint.
const INITS: [&str; 13] = [
    "/init",
    "/sbin/init",
    "/usr/sbin/init",
    "/bin/init",
    "/lib/systemd/systemd",
    "/usr/lib/systemd/systemd",
    "/bin/systemd",
    "/sbin/runit-init",
    "/sbin/runit",
    "/sbin/openrc-init",
    "/sbin/finit",
    "/bin/s6-svscan",
    "/usr/bin/s6-svscan",
];

/// The init that the flags ask for. It may take half of the time that the whole boot may.
pub(crate) fn init(image: &ImageConfig, args: &Args) -> Option<boot::Init> {
    let here = |name: &OsStr| std::env::var_os(name);
    let (path, entrypoint) = match args.init.as_ref()? {
        InitChoice::Path(path) => (Some(path.clone()), Vec::new()),
        InitChoice::Auto => {
            let first = image.entrypoint.iter().flatten().next();
            let is_init = args.entrypoint.is_none() && first.is_some_and(|first| INITS.contains(&first.as_str()));
            (None, if is_init { command(image, None, &args.command) } else { Vec::new() })
        }
    };
    Some(boot::Init {
        path,
        entrypoint,
        args: args.init_args.iter().map(|arg| arg.as_os_str().into()).collect(),
        env: environment(&[], &args.init_env, here),
        limit_ms: u64::from(args.timeout) * 500,
    })
}

/// `K=V` of the caller over `K=V` of the image, in the image's order. `K` alone takes its value from `here`, and is
/// left out where there is none.
fn environment(image: &[String], caller: &[OsString], here: impl Fn(&OsStr) -> Option<OsString>) -> Vec<Text> {
    let mut merged: Vec<OsString> = image.iter().map(OsString::from).collect();
    for variable in caller {
        let Some(wanted) = env::resolve(variable, &here) else { continue };
        match merged.iter().position(|other| env::name_of(other) == env::name_of(variable)) {
            Some(place) => merged[place] = wanted,
            None => merged.push(wanted),
        }
    }
    merged.iter().map(|variable| variable.as_os_str().into()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Option<Vec<String>> {
        (!words.is_empty()).then(|| words.iter().map(|word| (*word).to_owned()).collect())
    }

    #[test]
    fn the_command_follows_dockers_table() {
        // The image's entrypoint and cmd, the flag and the words behind --: docker's table for run, cell by cell.
        let shell = &["/bin/sh", "-c", "exec_entry p1"][..];
        let (none, exec, cmd) = (&[][..], &["exec_entry", "p1"][..], &["exec_cmd", "p2"][..]);
        let shell_cmd = &["/bin/sh", "-c", "exec_cmd p2"][..];
        for (entrypoint, image_cmd, flag, words_given, expected) in [
            (none, none, None, none, vec![]),
            (none, cmd, None, none, vec!["exec_cmd", "p2"]),
            (none, shell_cmd, None, none, vec!["/bin/sh", "-c", "exec_cmd p2"]),
            (shell, none, None, none, vec!["/bin/sh", "-c", "exec_entry p1"]),
            (shell, cmd, None, none, vec!["/bin/sh", "-c", "exec_entry p1", "exec_cmd", "p2"]),
            (exec, none, None, none, vec!["exec_entry", "p1"]),
            (exec, cmd, None, none, vec!["exec_entry", "p1", "exec_cmd", "p2"]),
            (exec, shell_cmd, None, none, vec!["exec_entry", "p1", "/bin/sh", "-c", "exec_cmd p2"]),
            (none, cmd, None, &["mine"][..], vec!["mine"]),
            (exec, cmd, None, &["mine", "x"][..], vec!["exec_entry", "p1", "mine", "x"]),
            (exec, cmd, Some(&["other"][..]), none, vec!["other"]),
            (exec, cmd, Some(&["other", "-x"][..]), &["mine"][..], vec!["other", "-x", "mine"]),
            (exec, cmd, Some(none), none, vec![]),
            (exec, cmd, Some(none), &["mine"][..], vec!["mine"]),
        ] {
            let image = ImageConfig { entrypoint: words(entrypoint), cmd: words(image_cmd), ..ImageConfig::default() };
            let flag = flag.map(|flag| Entrypoint(flag.iter().map(Into::into).collect()));
            let given: Vec<OsString> = words_given.iter().map(Into::into).collect();
            let expected: Vec<Text> = expected.into_iter().map(Text::from).collect();
            assert_eq!(command(&image, flag.as_ref(), &given), expected, "{image:?} {flag:?} {given:?}");
        }
    }

    #[test]
    fn auto_looks_at_an_entrypoint_that_is_an_init_first() {
        use clap::Parser;
        let image = ImageConfig { entrypoint: words(&["/init"]), cmd: words(&["app"]), ..ImageConfig::default() };
        let asked = |flags: &[&str]| {
            let args = Args::try_parse_from([&["msb-boot"], flags].concat()).unwrap();
            init(&image, &args)
        };
        assert_eq!(asked(&[]), None);
        assert_eq!(asked(&["--init", "auto"]).unwrap().entrypoint, ["/init", "app"].map(Text::from));
        assert_eq!(asked(&["--init", "auto", "--", "x"]).unwrap().entrypoint, ["/init", "x"].map(Text::from));
        assert!(asked(&["--init", "auto", "--entrypoint", "run"]).unwrap().entrypoint.is_empty());
        let named =
            asked(&["--init", "/sbin/init", "--init-arg", "-x", "--init-env", "A=b", "--timeout", "8"]).unwrap();
        let expected = boot::Init {
            path: Some("/sbin/init".into()),
            entrypoint: vec![],
            args: vec!["-x".into()],
            env: vec!["A=b".into()],
            limit_ms: 4000,
        };
        assert_eq!(named, expected);
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
