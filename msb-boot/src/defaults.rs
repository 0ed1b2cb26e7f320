//! The defaults of a command in the guest: the image's configuration, overridden by the request.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use anyhow::anyhow;
use msb::architecture::Architecture;
use msb::record::signal;
use msb::record::{Boot, ImageConfig, Init};
use msb::vm::boot::{self, Defaults};
use msb::vm::inits;
use msb::wire::exec::Text;
use serde_json::Value;

/// The defaults of a command: the image's configuration, overridden by the request.
pub(crate) fn defaults(image: &ImageConfig, boot: &Boot) -> Defaults {
    // Then the image's command is not the default command, and the image's stop signal is the init's.
    let is_init_the_command = boot.init.is_some() && !init_command(image, boot).is_empty();
    let argv = command(image, boot.entrypoint.as_deref(), boot.cmd.as_deref());
    Defaults {
        env: environment(&image.env, &boot.env),
        cwd: clean(boot.workdir.as_deref().unwrap_or(&image.working_dir)),
        user: boot.user.clone().unwrap_or_else(|| image.user.clone()),
        argv: if is_init_the_command { Vec::new() } else { argv },
        stop_signal: if is_init_the_command {
            stop_signal(&ImageConfig::default(), boot)
        } else {
            stop_signal(image, boot)
        },
    }
}

/// The number of the signal that asks commands to end: the request's, else the image's, else SIGTERM. As in docker, a signal of the image
/// that does not exist is ignored.
fn stop_signal(image: &ImageConfig, boot: &Boot) -> i32 {
    boot.stop_signal
        .as_deref()
        .and_then(signal::number)
        .or_else(|| signal::number(&image.stop_signal))
        .unwrap_or(SIGTERM)
}

const SIGTERM: i32 = 15;

/// The warning about an image whose stop signal does not exist.
pub(crate) fn unknown_stop_signal(image: &ImageConfig, boot: &Boot) -> Option<String> {
    let text = &image.stop_signal;
    let is_unknown = boot.stop_signal.is_none() && !text.is_empty() && signal::number(text).is_none();
    is_unknown
        .then(|| format!("the image's stop signal {text:?} does not exist: commands get SIGTERM (set --stop-signal)"))
}

/// The directories that the image declares as volumes. The guest makes them, as a container runtime does.
pub(crate) fn volumes(image: &ImageConfig) -> Vec<String> {
    let declared = image.unknown.get("Volumes").and_then(Value::as_object);
    let paths = declared.into_iter().flat_map(|volumes| volumes.keys()).map(|path| clean(path));
    paths.filter(|path| !path.is_empty() && path != "/").collect()
}

/// An image's path from the root, without `.` and `..`, as docker cleans it: the components before `..` need not exist. An empty path
/// stays empty.
fn clean(path: &str) -> String {
    let mut names = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    if path.is_empty() { String::new() } else { format!("/{}", names.join("/")) }
}

/// The architecture of a guest for the image's platform: this machine's if the record names none.
///
/// # Errors
/// A platform for which there are no guests.
pub(crate) fn architecture(platform: Option<&str>) -> anyhow::Result<Architecture> {
    let Some(platform) = platform.filter(|platform| !platform.is_empty()) else { return Ok(Architecture::HOST) };
    Architecture::of_platform(platform).ok_or_else(|| {
        let ours = Architecture::HOST.platform();
        let known = Architecture::ALL.map(Architecture::platform).join(" or ");
        anyhow!("the image is for {platform}, and guests run {known} (pull it with msb-pull --platform {ours})")
    })
}

/// The command by docker's rules: the caller's entrypoint replaces the image's entrypoint and drops its cmd; the caller's cmd replaces
/// the image's cmd. An entrypoint or a command that is one empty string counts as empty.
fn command(image: &ImageConfig, entrypoint: Option<&[Text]>, cmd: Option<&[Text]>) -> Vec<Text> {
    let image_texts = |args: &Option<Vec<String>>| args.iter().flatten().map(|arg| arg.as_str().into()).collect();
    let is_empty_string = |args: &[Text]| matches!(args, [arg] if *arg == Text::from(""));
    let mut first: Vec<Text> = entrypoint.map_or_else(|| image_texts(&image.entrypoint), <[Text]>::to_vec);
    if is_empty_string(&first) {
        first.clear();
    }
    let rest: Vec<Text> = match (entrypoint, cmd) {
        (_, Some(cmd)) => cmd.to_vec(),
        (Some(_), None) => Vec::new(),
        (None, None) => image_texts(&image.cmd),
    };
    let whole = [first, rest].concat();
    if is_empty_string(&whole) { Vec::new() } else { whole }
}

fn is_init(argument: &Text) -> bool {
    inits::is_init_command(Path::new(&OsString::from(argument.clone())))
}

/// The init for the agent. Half of the boot's timeout is for the init to start, and three quarters until it is usable; the rest is for the
/// agent to report that it is late.
pub(crate) fn init(image: &ImageConfig, boot: &Boot) -> Option<boot::Init> {
    let init = boot.init.as_ref()?;
    let is_searched = init.path == Init::AUTO;
    let limit_ms = u64::from(boot.timeout_s()) * 1000;
    Some(boot::Init {
        path: (!is_searched).then(|| init.path.clone()),
        entrypoint: if is_searched { init_command(image, boot) } else { Vec::new() },
        args: init.args.clone(),
        env: environment(&[], &init.env),
        limit_ms: limit_ms / 2,
        stop_signal: stop_signal(image, boot),
        usable_ms: init.wait.then_some(limit_ms / 4 * 3),
    })
}

/// The image's command, if it starts an init: as its entrypoint, as its cmd, or as the cmd that its entrypoint executes. A caller's
/// entrypoint is for commands only, so there is none then.
fn init_command(image: &ImageConfig, boot: &Boot) -> Vec<Text> {
    if boot.entrypoint.is_some() {
        return Vec::new();
    }
    let whole = command(image, None, boot.cmd.as_deref());
    let mut without_cmd = image.clone();
    without_cmd.cmd = None;
    let entrypoint = command(&without_cmd, None, None);
    let has_init = |place: usize| whole.get(place).is_some_and(is_init);
    if has_init(0) || has_init(entrypoint.len()) { whole } else { Vec::new() }
}

/// The image's variables, overridden by the caller's. The image's order is kept, and new variables follow.
fn environment(image: &[String], caller: &BTreeMap<String, Text>) -> Vec<Text> {
    let name_of = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
    let set = |name: &str, value: &Text| match value {
        Text::Utf8(value) => Text::Utf8(format!("{name}={value}")),
        Text::Bytes(value) => Text::Bytes([name.as_bytes(), b"=", value].concat()),
    };
    let kept = image.iter().map(|variable| match caller.get_key_value(&name_of(variable)) {
        Some((name, value)) => set(name, value),
        None => variable.as_str().into(),
    });
    let is_new = |name: &String| !image.iter().any(|variable| name_of(variable) == *name);
    kept.chain(caller.iter().filter(|(name, _)| is_new(name)).map(|(name, value)| set(name, value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image_of(entrypoint: &[&str], cmd: &[&str]) -> ImageConfig {
        let mut image = ImageConfig::default();
        (image.entrypoint, image.cmd) = (words(entrypoint), words(cmd));
        image
    }

    fn words(words: &[&str]) -> Option<Vec<String>> {
        (!words.is_empty()).then(|| words.iter().map(|word| (*word).to_owned()).collect())
    }

    #[test]
    fn the_command_follows_dockers_table() {
        // The image's entrypoint and cmd, --entrypoint, and the arguments after --: docker's table for run, cell by cell.
        let shell = &["/bin/sh", "-c", "exec_entry p1"][..];
        let (none, exec, cmd) = (&[][..], &["exec_entry", "p1"][..], &["exec_cmd", "p2"][..]);
        let shell_cmd = &["/bin/sh", "-c", "exec_cmd p2"][..];
        let empty = &[""][..];
        for (entrypoint, image_cmd, flag, given_cmd, expected) in [
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
            (empty, cmd, None, none, vec!["exec_cmd", "p2"]),
            (empty, none, None, none, vec![]),
            (empty, empty, None, none, vec![]),
            (none, empty, None, none, vec![]),
            (none, cmd, None, empty, vec![]),
            (exec, cmd, Some(empty), none, vec![]),
            (exec, cmd, Some(empty), &["mine"][..], vec!["mine"]),
            (exec, empty, None, none, vec!["exec_entry", "p1", ""]),
            (&["", "x"][..], none, None, none, vec!["", "x"]),
        ] {
            let image = image_of(entrypoint, image_cmd);
            let texts = |words: &[&str]| words.iter().map(|word| Text::from(*word)).collect::<Vec<_>>();
            let flag = flag.map(texts);
            let given = (!given_cmd.is_empty()).then(|| texts(given_cmd));
            let got = command(&image, flag.as_deref(), given.as_deref());
            assert_eq!(got, texts(&expected), "{image:?} {flag:?} {given:?}");
        }
    }

    #[test]
    fn auto_looks_at_the_images_own_init_first() {
        let image = image_of(&["/init"], &["app"]);
        let asked = |boot: serde_json::Value| init(&image, &serde_json::from_value(boot).unwrap());
        let auto = serde_json::json!({"path": "auto"});
        assert_eq!(asked(serde_json::json!({})), None);
        let entrypoint = |boot| asked(boot).unwrap().entrypoint;
        assert_eq!(entrypoint(serde_json::json!({"init": auto})), ["/init", "app"].map(Text::from));
        assert_eq!(entrypoint(serde_json::json!({"init": auto, "cmd": ["x"]})), ["/init", "x"].map(Text::from));
        assert!(entrypoint(serde_json::json!({"init": auto, "entrypoint": ["run"]})).is_empty());
        let named = serde_json::json!({"path": "/sbin/init", "args": ["-x"], "env": {"A": "b"}});
        let expected = boot::Init {
            path: Some("/sbin/init".into()),
            entrypoint: vec![],
            args: vec!["-x".into()],
            env: vec!["A=b".into()],
            limit_ms: 4000,
            stop_signal: 15,
            usable_ms: Some(6000),
        };
        assert_eq!(asked(serde_json::json!({"init": named, "timeout_s": 8})).unwrap(), expected);
        let times = |boot| asked(boot).map(|init| (init.limit_ms, init.usable_ms)).unwrap();
        assert_eq!(times(serde_json::json!({"init": {"wait": false}})), (30_000, None));
        assert_eq!(times(serde_json::json!({"init": {}})), (90_000, Some(135_000)));
        for (entrypoint, cmd, expected) in [
            (&[][..], &["/sbin/init"][..], &["/sbin/init"][..]),
            (&[], &["/usr/lib/systemd/systemd", "--unit=x"], &["/usr/lib/systemd/systemd", "--unit=x"]),
            (&[""], &["/lib/systemd/systemd"], &["/lib/systemd/systemd"]),
            (&["/entrypoint.sh"], &["/sbin/init"], &["/entrypoint.sh", "/sbin/init"]),
            (&["/bin/sh"], &["-c", "/sbin/init"], &[]),
            (&[], &["init"], &[]),
            (&[], &["/app/init"], &[]),
            (&[], &["/bin/sh"], &[]),
            (&["/init", "x"], &[], &["/init", "x"]),
            (&[], &[], &[]),
        ] {
            let image = image_of(entrypoint, cmd);
            let expected: Vec<Text> = expected.iter().map(|word| Text::from(*word)).collect();
            let boot = serde_json::from_value(serde_json::json!({"init": {}})).unwrap();
            assert_eq!(init(&image, &boot).unwrap().entrypoint, expected, "{entrypoint:?} {cmd:?}");
        }
    }

    #[test]
    fn commands_stop_with_the_requested_signal_or_the_images() {
        for (image, asked, expected, is_warned) in [
            ("", None, 15, false),
            ("SIGQUIT", None, 3, false),
            ("SIGRTMIN+3", None, 37, false),
            ("2", None, 2, false),
            ("SIGQUIT", Some("INT"), 2, false),
            ("nonsense", None, 15, true),
            ("nonsense", Some("9"), 9, false),
        ] {
            let (mut config, mut boot) = (ImageConfig::default(), Boot::default());
            config.stop_signal = image.into();
            boot.stop_signal = asked.map(str::to_owned);
            assert_eq!(defaults(&config, &boot).stop_signal, expected, "{image:?} {asked:?}");
            assert_eq!(unknown_stop_signal(&config, &boot).is_some(), is_warned, "{image:?} {asked:?}");
        }
    }

    #[test]
    fn an_image_whose_command_is_the_init_has_no_other_command_and_no_signal_for_others() {
        let mut image = image_of(&[], &["/sbin/init"]);
        image.stop_signal = "SIGRTMIN+3".into();
        for (boot, argv, commands, init_signal) in [
            (serde_json::json!({}), &["/sbin/init"][..], 37, None),
            (serde_json::json!({"init": {}}), &[], 15, Some(37)),
            (serde_json::json!({"init": {"path": "/lib/systemd/systemd"}}), &[], 15, Some(37)),
            (serde_json::json!({"init": {}, "stop_signal": "INT"}), &[], 2, Some(2)),
            (serde_json::json!({"init": {}, "cmd": ["app"]}), &["app"], 37, Some(37)),
            (serde_json::json!({"init": {}, "entrypoint": ["app"]}), &["app"], 37, Some(37)),
        ] {
            let asked: Boot = serde_json::from_value(boot.clone()).unwrap();
            let defaults = defaults(&image, &asked);
            let argv: Vec<Text> = argv.iter().map(|word| Text::from(*word)).collect();
            let init = init(&image, &asked).map(|init| init.stop_signal);
            assert_eq!((defaults.argv, defaults.stop_signal, init), (argv, commands, init_signal), "{boot}");
        }
    }

    #[test]
    fn a_path_is_cleaned_as_docker_cleans_it() {
        for (path, expected) in [
            ("", ""),
            ("/", "/"),
            ("/srv/app", "/srv/app"),
            ("srv/app", "/srv/app"),
            ("/srv//app/", "/srv/app"),
            ("/a/../b/./c", "/b/c"),
            ("/../..", "/"),
            (".", "/"),
            ("../x", "/x"),
            ("/...", "/..."),
            ("/a b", "/a b"),
        ] {
            assert_eq!(clean(path), expected, "{path:?}");
        }
    }

    #[test]
    fn volumes_are_the_paths_that_the_image_declares() {
        for (json, expected) in [
            ("{}", &[][..]),
            (r#"{"Volumes":null}"#, &[]),
            (r#"{"Volumes":{}}"#, &[]),
            (r#"{"Volumes":["/data"]}"#, &[]),
            (r#"{"Volumes":{"/data":{},"relative":{},"/var/lib/x":null}}"#, &["/data", "/relative", "/var/lib/x"]),
            (r#"{"Volumes":{"":{},"/":{},"/a/../b/":{}}}"#, &["/b"]),
        ] {
            let image: ImageConfig = serde_json::from_str(json).unwrap();
            assert_eq!(volumes(&image), expected, "{json}");
        }
    }

    #[test]
    fn the_guest_has_the_images_architecture() {
        assert_eq!(architecture(None).unwrap(), Architecture::HOST);
        assert_eq!(architecture(Some("")).unwrap(), Architecture::HOST);
        assert_eq!(architecture(Some("linux/amd64")).unwrap(), Architecture::X86_64);
        assert_eq!(architecture(Some("linux/arm64/v8")).unwrap(), Architecture::Aarch64);
        for bad in ["windows/amd64", "linux/386", "unknown/unknown"] {
            let error = architecture(Some(bad)).unwrap_err().to_string();
            assert!(
                error.contains(&format!("the image is for {bad}, and guests run linux/amd64 or linux/arm64")),
                "{error}"
            );
        }
    }

    #[test]
    fn the_callers_variables_override_the_images() {
        let image = ["PATH=/bin".to_owned(), "A=image".to_owned(), "AB=1".to_owned(), "BARE".to_owned()];
        let caller =
            [("A", Text::from("b=c")), ("NEW", Text::from("")), ("ODD", Text::Bytes(vec![255])), ("BARE", "x".into())];
        let caller = caller.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let mut expected = ["PATH=/bin", "A=b=c", "AB=1", "BARE=x", "NEW="].map(Text::from).to_vec();
        expected.push(Text::Bytes(b"ODD=\xff".to_vec()));
        assert_eq!(environment(&image, &caller), expected);
    }
}
