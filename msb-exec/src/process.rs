//! `--process`: a command as the process object of the OCI runtime specification describes it (config.md, "Process"). It is complete:
//! neither the image nor the agent adds to it.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use msb::record::owner::Id;
use msb::wire::exec::{Ids, LIMITS, Limit, Request, Resize, Tty};
use serde::Deserialize;

use crate::{capabilities, tty};

/// The members that have a meaning here. Others, such as apparmorProfile and selinuxLabel, are about the host's kernel.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    #[serde(default)]
    terminal: bool,
    console_size: Option<ConsoleSize>,
    #[serde(default)]
    user: User,
    args: Vec<String>,
    #[serde(default)]
    env: Vec<String>,
    cwd: String,
    capabilities: Option<capabilities::Sets>,
    #[serde(default)]
    rlimits: Vec<Rlimit>,
    #[serde(default)]
    no_new_privileges: bool,
    oom_score_adj: Option<i32>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct ConsoleSize {
    height: u16,
    width: u16,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct User {
    #[serde(default)]
    uid: Id,
    #[serde(default)]
    gid: Id,
    umask: Option<u32>,
    #[serde(default)]
    additional_gids: Vec<Id>,
}

#[derive(Clone, Debug, Deserialize)]
struct Rlimit {
    #[serde(rename = "type")]
    kind: String,
    soft: u64,
    hard: u64,
}

/// `RLIM_INFINITY`.
const UNLIMITED: u64 = u64::MAX;

impl Process {
    /// Reads the object from a file.
    ///
    /// # Errors
    /// Those of reading and parsing.
    pub fn read(file: &Path) -> anyhow::Result<Self> {
        let text = fs::read(file).with_context(|| format!("process {file:?}"))?;
        serde_json::from_slice(&text).with_context(|| format!("process {file:?}"))
    }

    /// Whether the command has a terminal.
    pub fn terminal(&self) -> bool {
        self.terminal
    }

    /// The request for the command, with or without a terminal.
    ///
    /// # Errors
    /// A member with a wrong value.
    pub fn request(&self, has_terminal: bool) -> anyhow::Result<Request> {
        if self.args.is_empty() {
            bail!("process.args: a command is expected");
        }
        if !self.cwd.starts_with('/') {
            bail!("process.cwd {:?}: an absolute path is expected", self.cwd);
        }
        let size = || match self.console_size {
            Some(ConsoleSize { height, width }) if height > 0 && width > 0 => Resize { rows: height, cols: width },
            _ => tty::size(),
        };
        let User { uid, gid, umask, additional_gids } = &self.user;
        Ok(Request {
            argv: self.args.iter().map(|word| word.as_str().into()).collect(),
            env: self.env.iter().map(|variable| variable.as_str().into()).collect(),
            exact_env: true,
            cwd: Some(self.cwd.as_str().into()),
            tty: has_terminal.then(|| Tty { term: None, size: size() }),
            rlimits: self.rlimits.iter().map(Rlimit::limit).collect::<anyhow::Result<_>>()?,
            umask: *umask,
            ids: Some(Ids { uid: *uid, gid: *gid, groups: additional_gids.clone() }),
            // As with runc and crun, a process without this member has none.
            capabilities: Some(self.capabilities.clone().unwrap_or_default().masks()),
            no_new_privileges: self.no_new_privileges,
            oom_score_adj: self.oom_score_adj,
            ..Request::default()
        })
    }
}

impl Rlimit {
    fn limit(&self) -> anyhow::Result<Limit> {
        let name = self.kind.strip_prefix("RLIMIT_").unwrap_or_default().to_ascii_lowercase();
        if !LIMITS.contains(&name.as_str()) {
            bail!("process.rlimits: no resource {:?}", self.kind);
        }
        let value = |limit| Some(limit).filter(|&limit| limit != UNLIMITED);
        Ok(Limit { name, soft: value(self.soft), hard: value(self.hard) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn request(process: Value) -> anyhow::Result<Request> {
        let process: Process = serde_json::from_value(process)?;
        process.request(process.terminal())
    }

    #[test]
    fn a_process_object_is_the_whole_request() {
        let full = request(json!({
            "terminal": true, "consoleSize": {"height": 33, "width": 99},
            "user": {"uid": 1, "gid": 2, "umask": 63, "additionalGids": [3, 4], "username": "x"},
            "args": ["sh", "-c", "exit"], "env": ["A=b"], "cwd": "/srv",
            "capabilities": {"bounding": ["CAP_CHOWN", "CAP_KILL"], "effective": ["CAP_KILL"], "ambient": ["CAP_OF_THE_FUTURE"]},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 5, "hard": 18_446_744_073_709_551_615_u64}],
            "noNewPrivileges": true, "oomScoreAdj": -3, "apparmorProfile": "x",
        }))
        .unwrap();
        assert_eq!(
            serde_json::to_value(&full).unwrap(),
            json!({
                "argv": ["sh", "-c", "exit"], "env": ["A=b"], "cwd": "/srv", "user": null,
                "tty": {"term": null, "size": {"rows": 33, "cols": 99}},
                "rlimits": [{"name": "nofile", "soft": 5, "hard": null}], "umask": 63, "exact_env": true,
                "ids": {"uid": 1, "gid": 2, "groups": [3, 4]},
                "capabilities": {"bounding": 33, "effective": 32, "permitted": 0, "inheritable": 0, "ambient": 0},
                "no_new_privileges": true, "oom_score_adj": -3,
            })
        );
        let least = request(json!({"args": ["a"], "cwd": "/"})).unwrap();
        assert_eq!(least.ids, Some(Ids::default()));
        assert_eq!(least.capabilities, Some(Default::default()));
        assert!(least.exact_env && least.tty.is_none() && least.umask.is_none());
    }

    #[test]
    fn a_wrong_member_is_named() {
        for (process, expected) in [
            (json!({"cwd": "/"}), "missing field `args`"),
            (json!({"args": ["a"]}), "missing field `cwd`"),
            (json!({"args": [], "cwd": "/"}), "process.args"),
            (json!({"args": ["a"], "cwd": "srv"}), "process.cwd \"srv\""),
            (json!({"args": ["a"], "cwd": "/", "user": {"uid": 4_294_967_295_u32}}), "4294967295"),
            (
                json!({"args": ["a"], "cwd": "/", "rlimits": [{"type": "RLIMIT_NONE", "soft": 1, "hard": 1}]}),
                "process.rlimits: no resource \"RLIMIT_NONE\"",
            ),
            (json!({"args": ["a"], "cwd": "/", "rlimits": [{"type": "NOFILE", "soft": 1, "hard": 1}]}), "\"NOFILE\""),
        ] {
            let error = format!("{:#}", request(process.clone()).unwrap_err());
            assert!(error.contains(expected), "{process}: {error}");
        }
    }
}
