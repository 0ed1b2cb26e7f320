//! `--started-fd`: lines of JSON that say when the command is prepared, when it runs, or why it does not.

use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use msb::tool::exit;
use msb::wire::exec::Started;
use serde_json::{Value, json};

/// Where the lines go. After the last one it is closed, even if msb-exec goes on.
#[derive(Clone, Default)]
pub struct Reports(Arc<Mutex<Option<File>>>);

impl Reports {
    /// Reports to a file; to nobody without one.
    pub fn to(file: Option<File>) -> Self {
        Self(Arc::new(Mutex::new(file)))
    }

    /// The command is prepared, and waits to be started.
    pub fn prepared(&self, started: &Started) {
        self.write(&about("prepared", started), false);
    }

    /// The command runs.
    pub fn started(&self, started: &Started) {
        self.write(&about("started", started), true);
    }

    /// The command does not run. Returns whether that was reported; nothing is reported of a command that has started.
    pub fn failed(&self, status: u8, message: &str) -> bool {
        self.write(&json!({"event": "failed", "status": status, "error": exit::printable(message)}), true)
    }

    fn write(&self, line: &Value, is_last: bool) -> bool {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A reader that is gone does not want to know.
        let written = file.as_mut().is_some_and(|file| file.write_all(format!("{line}\n").as_bytes()).is_ok());
        if is_last {
            *file = None;
        }
        written
    }
}

fn about(event: &str, started: &Started) -> Value {
    json!({"event": event, "id": started.id, "pid": started.pid})
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::OwnedFd;

    fn lines(report: impl Fn(&Reports)) -> String {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let reports = Reports::to(Some(File::from(OwnedFd::from(writer))));
        report(&reports);
        drop(reports);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn the_last_line_says_whether_the_command_runs() {
        let started = Started { pid: 42, id: 7, terminal: true };
        let text = lines(|reports| {
            reports.prepared(&started);
            reports.started(&started);
            assert!(!reports.failed(1, "too late"));
        });
        assert_eq!(text, "{\"event\":\"prepared\",\"id\":7,\"pid\":42}\n{\"event\":\"started\",\"id\":7,\"pid\":42}\n");
        let text = lines(|reports| assert!(reports.failed(127, "\"x\": not found")));
        assert_eq!(text, "{\"event\":\"failed\",\"status\":127,\"error\":\"\\\"x\\\": not found\"}\n");
        assert!(!Reports::default().failed(1, "nobody"));
    }
}
