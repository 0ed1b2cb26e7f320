//! The request: the record's member `boot`, overridden by the flags. The rest of the program reads only the result.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail};
use msb::record::path;
use msb::record::{Boot, Init};
use msb::vm::name;
use msb::wire::exec::Text;
use msb::{tool::env, tool::exit};

use crate::args::{self, Args, InitChoice};
use crate::limit_args;

/// The recorded request, overridden by the flags. `variables` are those of the env files and of `-e`, in this order; a variable
/// without a value takes its value from `here`.
///
/// # Errors
/// A usage error for flags that contradict one another, and the first invalid value, from a flag or from the record.
pub(crate) fn request(
    recorded: Option<&Boot>,
    args: &Args,
    variables: &[OsString],
    here: impl Fn(&OsStr) -> Option<OsString>,
) -> anyhow::Result<Boot> {
    let mut boot = recorded.cloned().unwrap_or_default();
    override_some(&mut boot.name, args.name.as_ref());
    override_some(&mut boot.hostname, args.hostname.as_ref());
    boot.cpus = args.cpus.unwrap_or(boot.cpus);
    boot.memory_mib = args.memory.unwrap_or(boot.memory_mib);
    boot.root = args.root.unwrap_or(boot.root);
    match &args.init {
        None => {}
        Some(InitChoice::None) => boot.init = None,
        // Recorded arguments and variables belong to the recorded init.
        Some(InitChoice::Auto) => boot.init = Some(Init::default()),
        Some(InitChoice::Path(path)) => boot.init = Some(Init::new(path.clone())),
    }
    match &mut boot.init {
        Some(init) => {
            if !args.init_args.is_empty() {
                init.args = texts(&args.init_args);
            }
            set_variables(&mut init.env, &args.init_env, &here)?;
            init.wait = (init.wait || args.wait_init) && !args.no_wait_init;
        }
        None if args.init_args.is_empty() && args.init_env.is_empty() && !args.wait_init && !args.no_wait_init => {}
        None => {
            let why = "--init-arg, --init-env, --wait-init and --no-wait-init are for an init (name one with --init)";
            return Err(exit::coded(exit::USAGE, why).into());
        }
    }
    boot.bare = args.bare.unwrap_or(boot.bare);
    if let Some(entrypoint) = &args.entrypoint {
        // As in docker, another entrypoint drops the recorded command.
        (boot.entrypoint, boot.cmd) = (Some(texts(&entrypoint.0)), None);
    }
    if !args.command.is_empty() {
        boot.cmd = Some(texts(&args.command));
    }
    set_variables(&mut boot.env, variables, &here)?;
    override_some(&mut boot.workdir, args.workdir.as_ref());
    override_some(&mut boot.user, args.user.as_ref());
    override_some(&mut boot.stop_signal, args.stop_signal.as_ref());
    if let Some(size) = args.disk {
        (boot.disk, boot.ephemeral) = (Some(size_text(size)), false);
    }
    if let Some(ephemeral) = args.ephemeral {
        boot.ephemeral = ephemeral;
        boot.disk = boot.disk.filter(|_| !ephemeral);
    }
    boot.commit_on_stop = args.commit_on_stop.unwrap_or(boot.commit_on_stop);
    override_some(&mut boot.overlay, path(args.overlay.as_deref())?.as_ref());
    override_some(&mut boot.kernel_log, path(args.kernel_log.as_deref())?.as_ref());
    boot.volumes = args.volumes.override_recorded(&boot.volumes);
    boot.network = args.network.override_recorded(&boot.network)?;
    boot.limits = args.limits.override_recorded(&boot.limits);
    boot.restart = args.restart.unwrap_or(boot.restart);
    boot.vmm = args.vmm.or(boot.vmm);
    boot.channel = args.channel.or(boot.channel);
    boot.timeout_s = args.timeout.or(boot.timeout_s);
    check(&boot)?;
    Ok(boot)
}

fn override_some<T: Clone>(member: &mut Option<T>, flag: Option<&T>) {
    if flag.is_some() {
        *member = flag.cloned();
    }
}

fn texts(args: &[OsString]) -> Vec<Text> {
    args.iter().map(|arg| arg.as_os_str().into()).collect()
}

/// Sets variables: `K=V`, or `K` with its value from `here`. A `K` that `here` does not have changes nothing.
fn set_variables(
    env: &mut BTreeMap<String, Text>,
    variables: &[OsString],
    here: impl Fn(&OsStr) -> Option<OsString>,
) -> anyhow::Result<()> {
    for variable in variables {
        let Some(resolved) = env::resolve(variable, &here) else { continue };
        let name = env::name_of(&resolved);
        let Some(text) = name.to_str() else {
            bail!("variable {name:?}: its name is not UTF-8, so no record can hold it")
        };
        let value = env::value_of(&resolved).unwrap_or_default();
        env.insert(text.to_owned(), value.into());
    }
    Ok(())
}

/// Makes a path absolute, for the record.
fn path(path: Option<&Path>) -> anyhow::Result<Option<PathBuf>> {
    Ok(path.map(path::absolute).transpose()?)
}

/// A size in the largest unit of which it is a multiple.
fn size_text(bytes: u64) -> String {
    let units = [(40, "T"), (30, "G"), (20, "M")];
    let (shift, unit) = units.into_iter().find(|(shift, _)| bytes.is_multiple_of(1 << shift)).unwrap_or((10, "K"));
    format!("{}{unit}", bytes >> shift)
}

/// The size of the scratch disk, in bytes.
///
/// # Errors
/// Text that is not a size.
pub(crate) fn disk_size(boot: &Boot) -> anyhow::Result<Option<u64>> {
    boot.disk.as_deref().map(args::disk_size).transpose().map_err(|why| anyhow!("boot.disk: {why}"))
}

/// Checks a request as the flags are checked: a user may have edited the record.
fn check(boot: &Boot) -> anyhow::Result<()> {
    let wrong = |member: &str, why: String| Err(anyhow!("boot.{member}: {why}"));
    for (member, name) in [("name", &boot.name), ("hostname", &boot.hostname)] {
        if let Some(Err(why)) = name.as_deref().map(name::check) {
            return wrong(member, format!("{:?}: {why}", name.as_deref().unwrap_or_default()));
        }
    }
    if !args::CPUS.contains(&i64::from(boot.cpus)) {
        return wrong("cpus", format!("a guest has {} to {} processors", args::CPUS.start(), args::CPUS.end()));
    }
    if let Err(why) = args::check_memory(u64::from(boot.memory_mib)) {
        return wrong("memory_mib", why);
    }
    if let Some(init) = &boot.init {
        match args::init(&init.path) {
            Ok(InitChoice::Auto | InitChoice::Path(_)) => {}
            _ => return wrong("init.path", format!("{:?}: \"auto\" or an absolute path is expected", init.path)),
        }
    }
    let lists = [("entrypoint", &boot.entrypoint), ("cmd", &boot.cmd)];
    let init_args = boot.init.as_ref().map(|init| &init.args);
    let lists = lists.into_iter().filter_map(|(member, args)| Some((member, args.as_ref()?)));
    for (member, args) in lists.chain(init_args.map(|args| ("init.args", args))) {
        if args.iter().any(has_nul) {
            return wrong(member, "an argument cannot hold NUL".into());
        }
    }
    let init_env = boot.init.iter().map(|init| ("init.env", &init.env));
    for (member, env) in [("env", &boot.env)].into_iter().chain(init_env) {
        for (name, value) in env {
            if name.contains('=') {
                return wrong(member, format!("{name:?}: the name of a variable has no \"=\""));
            }
            if let Err(why) = env::check(OsStr::new(name)) {
                return wrong(member, format!("{name:?}: {why}"));
            }
            if has_nul(value) {
                return wrong(member, format!("{name:?}: a variable cannot hold NUL"));
            }
        }
    }
    if let Some(Err(why)) = boot.workdir.as_deref().map(args::absolute) {
        return wrong("workdir", why.into());
    }
    if let Some(Err(why)) = boot.user.as_deref().map(args::user) {
        return wrong("user", why);
    }
    if let Some(Err(why)) = boot.stop_signal.as_deref().map(args::stop_signal) {
        return wrong("stop_signal", why.into());
    }
    if let Err((member, why)) = limit_args::check(&boot.limits) {
        return wrong(&format!("limits.{member}"), why);
    }
    disk_size(boot)?;
    if boot.timeout_s == Some(0) {
        return wrong("timeout_s", "at least one second is expected".into());
    }
    if boot.bare && boot.init.is_some() {
        bail!("--bare and --init exclude each other (an init is PID 1 of the whole guest: run it in a container)");
    }
    if boot.bare && !boot.volumes.is_empty() {
        bail!("--bare mounts nothing in the root, so there are no volumes (mount them in the container)");
    }
    if boot.ephemeral && boot.disk.is_some() {
        bail!("--disk and --ephemeral exclude each other (--disk SIZE or --ephemeral alone)");
    }
    if boot.ephemeral && boot.commit_on_stop {
        bail!(
            "--commit-on-stop needs a disk, and --ephemeral keeps what the guest writes in memory (leave one of them out)"
        );
    }
    Ok(())
}

fn has_nul(text: &Text) -> bool {
    match text {
        Text::Utf8(text) => text.contains('\0'),
        Text::Bytes(bytes) => bytes.contains(&0),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::{Value, json};

    use super::*;

    fn asked(recorded: Value, flags: &[&str]) -> anyhow::Result<Value> {
        let recorded: Option<Boot> = serde_json::from_value(recorded).unwrap();
        let args = Args::try_parse_from([&["msb-boot"], flags].concat())?;
        let here = |name: &OsStr| (name == "HERE").then(|| "x=y".into());
        let boot = request(recorded.as_ref(), &args, &args.env, here)?;
        Ok(serde_json::to_value(boot)?)
    }

    /// What `asked` differs in from the defaults.
    fn difference(recorded: Value, flags: &[&str]) -> Value {
        let (asked, default) = (asked(recorded, flags).unwrap(), serde_json::to_value(Boot::default()).unwrap());
        let members = asked.as_object().unwrap().clone();
        Value::Object(members.into_iter().filter(|(member, value)| default.get(member) != Some(value)).collect())
    }

    #[test]
    fn a_flag_overrides_its_member_and_no_other() {
        let init = |path: &str, args: Value, env: Value| json!({"path": path, "args": args, "env": env, "wait": true});
        let recorded = json!({"cpus": 3, "memory_mib": 700, "name": "old", "user": "app", "new": {"kept": 1}});
        assert_eq!(difference(recorded.clone(), &[]), recorded);
        for (flags, member, value) in [
            (&["--name", "w"][..], "name", json!("w")),
            (&["--hostname", "h"], "hostname", json!("h")),
            (&["-c", "2"], "cpus", json!(2)),
            (&["--bare"], "bare", json!(true)),
            (&["-m", "1G"], "memory_mib", json!(1024)),
            (&["--root", "block"], "root", json!("block")),
            (&["--init", "auto"], "init", init("auto", json!([]), json!({}))),
            (&["--init=/i", "--init-arg=-x", "--init-env=A=b"], "init", init("/i", json!(["-x"]), json!({"A": "b"}))),
            (&["--entrypoint", "run"], "entrypoint", json!(["run"])),
            (&["--entrypoint", ""], "entrypoint", json!([])),
            (&["--", "a", "b"], "cmd", json!(["a", "b"])),
            (&["-e", "A=b=c", "-e", "HERE", "-e", "NOT_SET"], "env", json!({"A": "b=c", "HERE": "x=y"})),
            (&["-w", "/srv"], "workdir", json!("/srv")),
            (&["-u", "1:2"], "user", json!("1:2")),
            (&["--stop-signal", "SIGRTMIN+3"], "stop_signal", json!("SIGRTMIN+3")),
            (&["--disk", "2048"], "disk", json!("2G")),
            (&["--ephemeral"], "ephemeral", json!(true)),
            (&["--commit-on-stop"], "commit_on_stop", json!(true)),
            (&["--overlay", "/o.qcow2"], "overlay", json!("/o.qcow2")),
            (&["--restart", "on-reboot"], "restart", json!("on-reboot")),
            (&["--kernel-log", "/log"], "kernel_log", json!("/log")),
            (&["--vmm", "qemu"], "vmm", json!("qemu")),
            (&["--timeout", "9"], "timeout_s", json!(9)),
        ] {
            let mut expected = recorded.clone();
            expected[member] = value;
            assert_eq!(difference(recorded.clone(), flags), expected, "{flags:?}");
            // The result, as a recorded request, is the same request.
            assert_eq!(difference(expected.clone(), &[]), expected, "{flags:?}");
        }
    }

    #[test]
    fn a_flag_resets_what_belonged_to_its_old_value() {
        let init = json!({"init": {"path": "/i", "args": ["-x"], "env": {"A": "b"}, "wait": true}});
        let impatient = json!({"init": {"path": "/i", "args": ["-x"], "env": {"A": "b"}, "wait": false}});
        let command = json!({"entrypoint": ["run"], "cmd": ["me"]});
        for (recorded, flags, expected) in [
            (init.clone(), &["--init", "none"][..], json!({})),
            (init.clone(), &["--init", "/j"], json!({"init": {"path": "/j", "args": [], "env": {}, "wait": true}})),
            (
                init.clone(),
                &["--init-arg", "y"],
                json!({"init": {"path": "/i", "args": ["y"], "env": {"A": "b"}, "wait": true}}),
            ),
            (
                init.clone(),
                &["--init-env", "C=d"],
                json!({"init": {"path": "/i", "args": ["-x"], "env": {"A": "b", "C": "d"}, "wait": true}}),
            ),
            (init.clone(), &["--no-wait-init"], impatient.clone()),
            (impatient.clone(), &["--wait-init"], init.clone()),
            (impatient.clone(), &[], impatient),
            (init.clone(), &["--wait-init"], init),
            (command.clone(), &["--entrypoint", "other"], json!({"entrypoint": ["other"]})),
            (command, &["--", "you"], json!({"entrypoint": ["run"], "cmd": ["you"]})),
            (json!({"env": {"A": "1", "B": "2"}}), &["-e", "A=3"], json!({"env": {"A": "3", "B": "2"}})),
            (json!({"disk": "8G"}), &["--ephemeral"], json!({"ephemeral": true})),
            (json!({"disk": "8G"}), &["--ephemeral=false"], json!({"disk": "8G"})),
            (json!({"ephemeral": true}), &["--disk", "8G"], json!({"disk": "8G"})),
            (json!({"ephemeral": true}), &["--ephemeral=false"], json!({})),
            (json!({"commit_on_stop": true}), &["--commit-on-stop=false"], json!({})),
        ] {
            assert_eq!(difference(recorded.clone(), flags), expected, "{recorded} {flags:?}");
        }
    }

    #[test]
    fn a_record_is_checked_as_flags_are() {
        for (recorded, expected) in [
            (json!({"name": "a/b"}), "boot.name: \"a/b\""),
            (json!({"hostname": "-"}), "boot.hostname: \"-\""),
            (json!({"cpus": 0}), "boot.cpus: a guest has 1 to 64 processors"),
            (json!({"cpus": 65}), "boot.cpus"),
            (json!({"memory_mib": 95}), "boot.memory_mib: a guest has 96 MiB"),
            (json!({"init": {"path": "init"}}), "boot.init.path: \"init\""),
            (json!({"init": {"path": "none"}}), "boot.init.path: \"none\""),
            (json!({"init": {"args": ["\0"]}}), "boot.init.args"),
            (json!({"init": {"env": {"": "x"}}}), "boot.init.env: \"\""),
            (json!({"entrypoint": ["a\0"]}), "boot.entrypoint"),
            (json!({"cmd": [[0, 255]]}), "boot.cmd"),
            (json!({"env": {"A=B": "x"}}), "boot.env: \"A=B\""),
            (json!({"env": {"A": "\0"}}), "boot.env: \"A\""),
            (json!({"workdir": "srv"}), "boot.workdir"),
            (json!({"user": ""}), "boot.user"),
            (json!({"user": ":1"}), "boot.user"),
            (json!({"stop_signal": "SIGNONE"}), "boot.stop_signal"),
            (json!({"disk": "1X"}), "boot.disk: unknown unit \"X\""),
            (json!({"timeout_s": 0}), "boot.timeout_s"),
            (json!({"ephemeral": true, "disk": "1G"}), "exclude each other"),
            (json!({"bare": true, "init": {}}), "--bare and --init exclude"),
            (json!({"bare": true, "volumes": [{"tmpfs": {}, "target": "/t"}]}), "no volumes"),
            (json!({"ephemeral": true, "commit_on_stop": true}), "--commit-on-stop needs a disk"),
        ] {
            let error = asked(recorded.clone(), &[]).unwrap_err().to_string();
            assert!(error.contains(expected), "{recorded}: {error}");
        }
        assert!(asked(json!({"cpus": 64, "memory_mib": 96, "disk": "256M", "timeout_s": 1}), &[]).is_ok());
    }

    #[test]
    fn flags_for_an_init_need_one() {
        for flags in [
            &["--init-arg", "x"][..],
            &["--init-env", "A=b"],
            &["--init", "none", "--init-arg", "x"],
            &["--no-wait-init"],
        ] {
            let error = asked(Value::Null, flags).unwrap_err().to_string();
            assert!(error.contains("name one with --init"), "{flags:?}: {error}");
        }
    }

    #[test]
    fn arguments_that_are_not_utf8_are_kept_and_such_names_are_refused() {
        use std::os::unix::ffi::OsStringExt;
        let odd = |text: &[u8]| OsString::from_vec(text.to_vec());
        let args = Args::try_parse_from([odd(b"msb-boot"), odd(b"--"), odd(b"\xff")]).unwrap();
        let boot = request(None, &args, &[odd(b"A=\xff")], |_| None).unwrap();
        assert_eq!(boot.cmd, Some(vec![Text::Bytes(vec![255])]));
        assert_eq!(boot.env["A"], Text::Bytes(vec![255]));
        let args = Args::try_parse_from(["msb-boot"]).unwrap();
        assert!(request(None, &args, &[odd(b"\xff=x")], |_| None).is_err());
        let args = Args::try_parse_from([odd(b"msb-boot"), odd(b"--kernel-log"), odd(b"/\xff")]).unwrap();
        assert!(request(None, &args, &[], |_| None).unwrap_err().to_string().contains("not UTF-8"));
    }

    #[test]
    fn a_size_is_written_in_the_largest_unit_that_fits() {
        for text in ["256M", "4G", "1T", "1025M", "262148K"] {
            assert_eq!(size_text(args::disk_size(text).unwrap()), text);
        }
        assert_eq!(size_text(4096 << 20), "4G");
    }
}
