//! What an exec in the guest gets that does not say otherwise: the image's configuration with the request over it.

use std::collections::BTreeMap;

use msb::boot::{self, Defaults};
use msb::record::{Boot, ImageConfig, Init};
use msb::wire::exec::Text;

/// The image's configuration with the request over it.
pub(crate) fn defaults(image: &ImageConfig, boot: &Boot) -> Defaults {
    Defaults {
        env: environment(&image.env, &boot.env),
        cwd: boot.workdir.clone().unwrap_or_else(|| image.working_dir.clone()),
        user: boot.user.clone().unwrap_or_else(|| image.user.clone()),
        argv: command(image, boot.entrypoint.as_deref(), boot.cmd.as_deref()),
    }
}

/// Docker's table: an entrypoint of the caller's replaces the image's and drops its cmd, and an empty one leaves nothing of
/// either; a command of the caller's replaces the image's cmd alone.
fn command(image: &ImageConfig, entrypoint: Option<&[Text]>, cmd: Option<&[Text]>) -> Vec<Text> {
    let image_texts = |words: &Option<Vec<String>>| words.iter().flatten().map(|word| word.as_str().into()).collect();
    let first: Vec<Text> = entrypoint.map_or_else(|| image_texts(&image.entrypoint), <[Text]>::to_vec);
    let rest: Vec<Text> = match (entrypoint, cmd) {
        (_, Some(cmd)) => cmd.to_vec(),
        (Some(_), None) => Vec::new(),
        (None, None) => image_texts(&image.cmd),
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

/// The init that is asked for. It may take half of the time that the whole boot may.
pub(crate) fn init(image: &ImageConfig, boot: &Boot) -> Option<boot::Init> {
    let init = boot.init.as_ref()?;
    let is_searched = init.path == Init::AUTO;
    let first = image.entrypoint.iter().flatten().next();
    let is_init = boot.entrypoint.is_none() && first.is_some_and(|first| INITS.contains(&first.as_str()));
    Some(boot::Init {
        path: (!is_searched).then(|| init.path.clone()),
        entrypoint: if is_searched && is_init { command(image, None, boot.cmd.as_deref()) } else { Vec::new() },
        args: init.args.clone(),
        env: environment(&[], &init.env),
        limit_ms: u64::from(boot.timeout_s) * 500,
    })
}

/// The caller's variables over `K=V` of the image, in the image's order.
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
            let texts = |words: &[&str]| words.iter().map(|word| Text::from(*word)).collect::<Vec<_>>();
            let flag = flag.map(texts);
            let given = (!words_given.is_empty()).then(|| texts(words_given));
            let got = command(&image, flag.as_deref(), given.as_deref());
            assert_eq!(got, texts(&expected), "{image:?} {flag:?} {given:?}");
        }
    }

    #[test]
    fn auto_looks_at_an_entrypoint_that_is_an_init_first() {
        let image = ImageConfig { entrypoint: words(&["/init"]), cmd: words(&["app"]), ..ImageConfig::default() };
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
        };
        assert_eq!(asked(serde_json::json!({"init": named, "timeout_s": 8})).unwrap(), expected);
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
