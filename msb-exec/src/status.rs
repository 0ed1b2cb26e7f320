//! `--json-status`: how a command ended, as one line of JSON.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use msb::tool::exit;
use msb::wire::exec::Exit;
use serde_json::{Value, json};

use crate::session::Ended;

/// The status file, opened before the command runs.
pub struct Status(File);

impl Status {
    /// Creates or truncates the file.
    ///
    /// # Errors
    /// Those of `open(2)`.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        File::create(path).map(Self).with_context(|| format!("status file {path:?}"))
    }

    /// Writes the status.
    ///
    /// # Errors
    /// Those of `write(2)`.
    pub fn write(mut self, code: u8, ended: &anyhow::Result<Ended>) -> anyhow::Result<()> {
        self.0.write_all(format!("{}\n", record(code, ended)).as_bytes()).context("status file")
    }
}

fn record(code: u8, ended: &anyhow::Result<Ended>) -> Value {
    match ended {
        Ok(Ended::Exit(exit)) => of_exit(code, exit, false),
        Ok(Ended::TimedOut(exit)) => of_exit(code, &exit.unwrap_or_default(), true),
        Ok(Ended::Detached(_)) => json!({"status": code, "detached": true}),
        Ok(Ended::Failure(failure)) => json!({"status": code, "error": exit::printable(&failure.message)}),
        Err(error) => json!({"status": code, "error": format!("{error:#}")}),
    }
}

fn of_exit(code: u8, exit: &Exit, timed_out: bool) -> Value {
    let mut record = json!({"status": code, "exit": exit.code, "signal": exit.signal, "timed_out": timed_out});
    if let Some(usage) = exit.usage {
        record["wall_ms"] = (usage.wall_us as f64 / 1000.0).into();
        record["user_ms"] = (usage.user_us as f64 / 1000.0).into();
        record["system_ms"] = (usage.system_us as f64 / 1000.0).into();
        record["max_rss_kib"] = usage.max_rss_kib.into();
    }
    if exit.oom {
        record["oom"] = true.into();
    }
    record
}

#[cfg(test)]
mod tests {
    use super::*;
    use msb::wire::exec::Usage;

    #[test]
    fn the_status_has_the_end_of_the_command_and_its_resource_usage() {
        let usage = Usage { wall_us: 1500, user_us: 2, system_us: 3000, max_rss_kib: 4 };
        let exit = Exit { code: None, signal: Some(9), usage: Some(usage), oom: true };
        let expected = r#"{"status":137,"exit":null,"signal":9,"timed_out":false,"wall_ms":1.5,"user_ms":0.002,"system_ms":3.0,"max_rss_kib":4,"oom":true}"#;
        assert_eq!(record(137, &Ok(Ended::Exit(exit))).to_string(), expected);
        let gone = Err(anyhow::anyhow!("gone"));
        assert_eq!(record(125, &gone).to_string(), r#"{"status":125,"error":"gone"}"#);
    }
}
