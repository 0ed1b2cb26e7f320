//! Hooks: programs of the host that get the container's state on stdin.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use oci_spec::runtime::{Hook, Hooks};
use rustix::fs::MemfdFlags;
use serde_json::Value;

use crate::process::{self, Identity};

/// The hooks of this name that the specification advises against and callers still use.
#[allow(deprecated)]
pub(crate) fn prestart(hooks: &Hooks) -> &Option<Vec<Hook>> {
    hooks.prestart()
}

/// Runs hooks in their order.
///
/// # Errors
/// The first that fails, or takes longer than it may.
pub(crate) fn run(name: &str, hooks: &[Hook], state: &Value) -> anyhow::Result<()> {
    hooks.iter().try_for_each(|hook| run_one(hook, state).with_context(|| format!("{name} hook {:?}", hook.path())))
}

fn run_one(hook: &Hook, state: &Value) -> anyhow::Result<()> {
    let mut command = Command::new(hook.path());
    if let Some([name, args @ ..]) = hook.args().as_deref() {
        command.arg0(name).args(args);
    }
    command.env_clear();
    command.envs(hook.env().iter().flatten().filter_map(|variable| variable.split_once('=')));
    command.stdin(document(state)?).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    if let Some(seconds) = hook.timeout().filter(|seconds| *seconds > 0) {
        let identity = Identity::of(child.id().cast_signed())?;
        if !process::has_ended_within(&identity, Duration::from_secs(seconds.unsigned_abs()))? {
            child.kill()?;
            child.wait()?;
            bail!("it took longer than its {seconds} s");
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{status}");
    }
    Ok(())
}

/// The state as a file. A hook need not read it, and a pipe holds less than annotations can.
fn document(state: &Value) -> anyhow::Result<File> {
    let fd = rustix::fs::memfd_create("state", MemfdFlags::CLOEXEC)?;
    let mut file = File::from(fd);
    file.write_all(state.to_string().as_bytes())?;
    file.rewind()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_gets_the_state_its_arguments_and_its_environment_alone() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let script = format!("cat > {0}; echo \"$0 $1 $A ${{HOME-unset}}\" >> {0}", out.display());
        let hook = serde_json::from_value(
            serde_json::json!({"path": "/bin/sh", "args": ["sh", "-c", script, "zero", "one"], "env": ["A=b"]}),
        );
        run("x", &[hook.unwrap()], &serde_json::json!({"id": "c"})).unwrap();
        assert_eq!(std::fs::read_to_string(out).unwrap(), "{\"id\":\"c\"}zero one b unset\n");
    }

    #[test]
    fn a_hook_need_not_read_a_state_of_any_length() {
        let hook = serde_json::from_value(serde_json::json!({"path": "/bin/true"})).unwrap();
        run("x", &[hook], &serde_json::json!({"annotations": {"long": "x".repeat(1 << 20)}})).unwrap();
        let hook = serde_json::json!({"path": "/bin/sh", "args": ["sh", "-c", "[ $(wc -c) = 1000002 ]"]});
        run("x", &[serde_json::from_value(hook).unwrap()], &"x".repeat(1_000_000).into()).unwrap();
    }

    #[test]
    fn a_hook_that_fails_or_hangs_is_named() {
        for (script, timeout, expected) in [("exit 3", 0, "exit status: 3"), ("sleep 100", 1, "longer than its 1 s")] {
            let hook = serde_json::json!({"path": "/bin/sh", "args": ["sh", "-c", script], "timeout": timeout});
            let error = run("prestart", &[serde_json::from_value(hook).unwrap()], &Value::Null).unwrap_err();
            assert!(format!("{error:#}").starts_with("prestart hook \"/bin/sh\": "), "{error:#}");
            assert!(format!("{error:#}").contains(expected), "{error:#}");
        }
    }
}
