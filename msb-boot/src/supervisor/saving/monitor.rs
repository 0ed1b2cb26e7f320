//! QEMU's monitor: one JSON object a line in each direction (QMP). A guest that has taken QEMU over writes the answers, so they are
//! bounded.

use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use msb::descriptor;
use serde_json::{Value, json};

/// How long QEMU may take for an answer. On a busy host it waits for its turn.
pub(super) const TIMEOUT: Duration = Duration::from_secs(60);
/// The longest line, in bytes.
const MAX_LINE: usize = 256 << 10;
/// The monitor sends events about loading a state.
const CAPABILITY: &str = "events";

/// The connection to a monitor.
pub(super) struct Monitor {
    socket: UnixStream,
    read: Vec<u8>,
    /// How many commands were sent. The number is the command's ID, because a late answer to an earlier command may come first.
    commands: u64,
    /// Whether loading a state has succeeded, once it has ended.
    migrated: Option<bool>,
    /// QEMU's version, once it has greeted.
    version: Option<String>,
}

impl Monitor {
    /// A connection on which nothing was read yet. Until the first command QEMU says nothing more than its greeting.
    ///
    /// # Errors
    /// Those of setsockopt(2).
    pub(super) fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.set_write_timeout(Some(TIMEOUT))?;
        Ok(Self { socket, read: Vec::new(), commands: 0, migrated: None, version: None })
    }

    /// The socket, on which the VMM's process sends the supervisor a descriptor before QEMU greets.
    pub(super) fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// QEMU's version, with that of its package. Prepares the monitor for a migration, once.
    ///
    /// # Errors
    /// No answer, or a command that failed.
    pub(super) fn version(&mut self) -> anyhow::Result<String> {
        if let Some(version) = &self.version {
            return Ok(version.clone());
        }
        let greeting = self.line()?;
        let version = version(&greeting).context("QEMU's monitor: no greeting")?;
        self.execute("qmp_capabilities", &json!({}), None)?;
        let capabilities = json!([{"capability": CAPABILITY, "state": true}]);
        self.execute("migrate-set-capabilities", &json!({"capabilities": capabilities}), None)?;
        self.version = Some(version.clone());
        Ok(version)
    }

    /// Executes a command, which gets `fd` with it.
    ///
    /// # Errors
    /// Why QEMU refuses it; no answer.
    pub(super) fn execute(
        &mut self,
        command: &str,
        arguments: &Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> anyhow::Result<()> {
        self.commands += 1;
        let id = json!(self.commands);
        let mut line = serde_json::to_vec(&json!({"execute": command, "arguments": arguments, "id": id}))?;
        line.push(b'\n');
        // A command is much shorter than the buffer of a socket that nobody else writes to.
        let sent = descriptor::send(&self.socket, &line, fd).with_context(|| command.to_owned())?;
        if sent != line.len() {
            bail!("{command}: QEMU does not read");
        }
        loop {
            let answer = self.line().with_context(|| command.to_owned())?;
            self.note(&answer);
            if answer.get("id") != Some(&id) {
                continue;
            }
            if let Some(error) = answer.get("error") {
                let why = error.get("desc").and_then(Value::as_str).unwrap_or("it failed");
                bail!("{command}: {}", msb::tool::exit::printable(why));
            }
            return Ok(());
        }
    }

    /// Waits until a state is loaded.
    ///
    /// # Errors
    /// A state that QEMU rejects; no answer.
    pub(super) fn await_migration(&mut self) -> anyhow::Result<()> {
        loop {
            match self.migrated.take() {
                Some(true) => return Ok(()),
                Some(false) => bail!("QEMU could not load the state"),
                None => {}
            }
            let event = self.line()?;
            self.note(&event);
        }
    }

    /// Records the end of loading, if `event` reports it.
    fn note(&mut self, event: &Value) {
        match migration_status(event) {
            Some("completed") => self.migrated = Some(true),
            Some("failed" | "cancelled") => self.migrated = Some(false),
            _ => {}
        }
    }

    fn line(&mut self) -> anyhow::Result<Value> {
        loop {
            if let Some(end) = self.read.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return serde_json::from_slice(&line).map_err(|_| anyhow!("QEMU's monitor: not JSON"));
            }
            if self.read.len() > MAX_LINE {
                bail!("QEMU's monitor: a line is too long");
            }
            let mut block = [0; 4096];
            match self.socket.read(&mut block) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)).context("QEMU has ended"),
                Ok(count) => self.read.extend_from_slice(&block[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    bail!("QEMU did not answer within {} s", TIMEOUT.as_secs())
                }
                Err(error) => return Err(error).context("QEMU's monitor"),
            }
        }
    }
}

/// The version in a greeting, as "7.2.22 (Debian 1:7.2+dfsg-7)".
fn version(greeting: &Value) -> Option<String> {
    let version = greeting.get("QMP")?.get("version")?;
    let number = |name: &str| version.get("qemu")?.get(name)?.as_u64();
    let package = version.get("package").and_then(Value::as_str).unwrap_or_default();
    let version = format!("{}.{}.{} {package}", number("major")?, number("minor")?, number("micro")?);
    Some(msb::tool::exit::printable(version.trim()))
}

/// The state of a migration, if the event is about that.
fn migration_status(event: &Value) -> Option<&str> {
    if event.get("event")?.as_str()? != "MIGRATION" {
        return None;
    }
    event.get("data")?.get("status")?.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::thread;

    const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian 1"}, "capabilities": []}}"#;

    /// A monitor whose other end answers each command with the next of these lines, in which `ID` is that of the command.
    fn monitor(answers: &'static [&'static str]) -> Monitor {
        let (ours, theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let mut commands = BufReader::new(theirs.try_clone().unwrap());
            writeln!(&theirs, "{GREETING}").unwrap();
            for answer in answers {
                let mut command = String::new();
                commands.read_line(&mut command).unwrap();
                let command: Value = serde_json::from_str(&command).unwrap();
                writeln!(&theirs, "{}", answer.replace("ID", &command["id"].to_string())).unwrap();
            }
        });
        Monitor::new(ours).unwrap()
    }

    #[test]
    fn answers_are_told_from_events_and_errors_have_their_reason() {
        let mut monitor = monitor(&[
            r#"{"return": {}, "id": ID}"#,
            r#"{"return": {}, "id": ID}"#,
            r#"{"event": "STOP"}
               {"event": "MIGRATION", "data": {"status": "setup"}}
               {"return": {}, "id": ID}"#,
            r#"{"error": {"class": "GenericError", "desc": "no\nway"}, "id": ID}"#,
            r#"{"event": "MIGRATION", "data": {"status": "completed"}}
               {"return": {}, "id": ID}"#,
            r#"{"return": {}, "id": ID}
               {"event": "MIGRATION", "data": {"status": "failed"}}"#,
        ]);
        assert_eq!(monitor.version().unwrap(), "7.2.22 Debian 1");
        monitor.execute("stop", &json!({}), None).unwrap();
        let error = monitor.execute("migrate", &json!({}), None).unwrap_err().to_string();
        assert!(error.starts_with("migrate: no") && !error.contains('\n'), "{error}");
        monitor.execute("migrate", &json!({}), None).unwrap();
        monitor.await_migration().unwrap();
        monitor.execute("migrate", &json!({}), None).unwrap();
        assert!(monitor.await_migration().is_err());
        assert!(monitor.execute("cont", &json!({}), None).is_err(), "it has ended");
    }

    #[test]
    fn the_late_answer_to_an_earlier_command_is_not_taken_for_that_of_the_next() {
        let mut monitor = monitor(&[
            r#"{"error": {"desc": "late"}, "id": 0}
               {"return": {}, "id": ID}"#,
            r#"{"return": {}, "id": 1}
               {"error": {"desc": "refused"}, "id": ID}"#,
        ]);
        monitor.line().unwrap();
        monitor.execute("stop", &json!({}), None).unwrap();
        let error = monitor.execute("cont", &json!({}), None).unwrap_err().to_string();
        assert_eq!(error, "cont: refused");
    }

    #[test]
    fn lines_that_do_not_answer_are_errors() {
        for line in ["[]\n", "{}\n", "x\n", "{\"QMP\": {\"version\": {\"qemu\": {\"major\": \"7\"}}}}\n"] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(line.as_bytes()).unwrap();
            drop(theirs);
            assert!(Monitor::new(ours).unwrap().version().is_err(), "{line:?}");
        }
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || while theirs.write_all(&[b'x'; 4096]).is_ok() {});
        let error = Monitor::new(ours).unwrap().version().unwrap_err().to_string();
        assert!(error.contains("too long"), "{error}");
    }
}
