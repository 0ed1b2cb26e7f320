//! The output of detached commands, which the agent sends and a thread of the supervisor keeps in the run directory. Only the newest
//! output is kept: of each command as much as its log holds, and of so many commands. After a restart of the VM the IDs of commands begin
//! again. The logs of earlier commands stay until others have their IDs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use msb::record::Endpoint;
use msb::store::publish;
use msb::vm::rundir;
use msb::wire::exec::{Execs, Exit, Listed};
use msb::wire::sequence::OwedCredit;
use msb::wire::{self, Message, Stream, dial};

use crate::log;
use crate::rotated::Rotated;

/// How many bytes the agent may send ahead: less than a Unix socket holds (208 KiB), so that the VMM never waits for this process.
const WINDOW: u32 = 184 << 10;
/// The size of a log, in bytes. Its older part may have as many.
const LIMIT: usize = 256 << 10;
/// How many commands have their output kept.
const MAX_COMMANDS: usize = 64;

/// The thread that records.
pub(super) struct Recording(Option<JoinHandle<Logs>>);

impl Recording {
    /// Starts to record what the agent sends. The thread ends with the VM.
    pub(super) fn start(endpoint: Endpoint, dir: &Path) -> Self {
        let dir = dir.join(rundir::EXECS);
        // msb-logs waits in it for logs. Without it nothing is recorded, and the VM runs.
        let _ = publish::make_private_dir(&dir);
        let mut logs = Logs::in_dir(dir);
        let record = move || {
            if let Err(error) = logs.record(&endpoint) {
                log::note(format_args!("the output of detached commands is not recorded any more: {error}"));
            }
            logs
        };
        Self(Some(thread::spawn(record)))
    }
}

impl Drop for Recording {
    /// Waits until everything is written. The VMM must have ended.
    fn drop(&mut self) {
        if let Some(Ok(mut logs)) = self.0.take().map(JoinHandle::join) {
            logs.finish();
        }
    }
}

/// The logs of commands.
struct Logs {
    dir: PathBuf,
    /// By the command's ID. `None`: the command has ended.
    files: BTreeMap<u32, Option<Rotated>>,
    /// The IDs of commands from before the restart.
    earlier: BTreeSet<u32>,
}

impl Logs {
    /// Logs in a directory, which may have those of commands from before a restart.
    fn in_dir(dir: PathBuf) -> Self {
        let names =
            fs::read_dir(&dir).into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let earlier: BTreeSet<u32> = names.filter_map(|name| name.split('.').next()?.parse().ok()).collect();
        Self { dir, files: earlier.iter().map(|&id| (id, None)).collect(), earlier }
    }

    /// Notes the end of the commands that have ended with the VM, so that msb-logs does not wait for more.
    fn finish(&mut self) {
        for (&id, file) in &mut self.files {
            let Some(mut file) = file.take() else { continue };
            let exit = Some(Exit::default());
            let exec = Listed { id, pid: 0, argv: Vec::new(), detached: true, attached: false, exit };
            file.add_whole(&Message::Execs(Execs { execs: vec![exec], ..Execs::default() }).to_frame());
        }
    }

    fn record(&mut self, endpoint: &Endpoint) -> Result<(), wire::Error> {
        let mut frames = Message::Record.to_frame();
        Message::Credit(Stream::Stdout, WINDOW).put(&mut frames);
        let stream = dial::ask(endpoint, &frames)?;
        let mut reader = BufReader::new(&stream);
        let mut owed = OwedCredit::in_batches_of(WINDOW / 4);
        while let Some(message) = Message::receive(&mut reader)? {
            let length = self.take(message)?;
            if let Some(bytes) = owed.add(length) {
                Message::Credit(Stream::Stdout, bytes).send(&mut &stream)?;
            }
        }
        Ok(())
    }

    /// Keeps a frame of the guest, which may be hostile. Returns its length.
    fn take(&mut self, message: Message) -> Result<usize, wire::Error> {
        let frame = message.to_frame();
        match message {
            Message::Output { id, .. } => self.add(id, &frame),
            Message::Execs(Execs { execs, .. }) => {
                let [exec] = &execs[..] else { return Err(wire::Error::OutOfTurn("not one command")) };
                if frame.len() > wire::MAX_DATA {
                    return Err(wire::Error::OutOfTurn("a command with a line that is too long"));
                }
                self.add(exec.id, &frame);
                if exec.exit.is_some() {
                    self.files.insert(exec.id, None);
                }
            }
            _ => return Err(wire::Error::OutOfTurn("not output of a command")),
        }
        Ok(frame.len())
    }

    /// Appends to a log. If it cannot be written, the frame is lost.
    fn add(&mut self, id: u32, frame: &[u8]) {
        let path = self.dir.join(id.to_string());
        if self.earlier.remove(&id) {
            remove(&path);
        }
        let file = self.files.get_mut(&id).and_then(Option::take);
        let file = match file.map_or_else(|| Rotated::resume(&path, LIMIT), Ok) {
            Ok(mut file) => {
                file.add_whole(frame);
                Some(file)
            }
            Err(_) => None,
        };
        self.files.insert(id, file);
        while self.files.len() > MAX_COMMANDS {
            self.remove_oldest(id);
        }
    }

    /// Removes the log of a command, but not of `newest`: of one from before the restart, else of one that has ended, if there is any.
    fn remove_oldest(&mut self, newest: u32) {
        let mut others = self.files.iter().filter(|(id, _)| **id != newest);
        let ended = others.clone().find(|(_, file)| file.is_none());
        let other = || ended.or_else(|| others.next()).map(|(&id, _)| id);
        let Some(id) = self.earlier.first().copied().or_else(other) else { return };
        self.files.remove(&id);
        self.earlier.remove(&id);
        remove(&self.dir.join(id.to_string()));
    }
}

/// Removes both parts of a log.
fn remove(path: &Path) {
    let _ = fs::remove_file(rundir::older_part(path));
    let _ = fs::remove_file(path);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(id: u32, has_ended: bool) -> Message {
        let exit = has_ended.then(|| Exit { code: Some(0), ..Exit::default() });
        let exec = Listed { id, pid: 5, argv: vec!["x".into()], detached: true, attached: false, exit };
        Message::Execs(Execs { execs: vec![exec], ..Execs::default() })
    }

    fn output(id: u32, bytes: &[u8]) -> Message {
        Message::Output { id, stream: Stream::Stdout, bytes: bytes.to_vec() }
    }

    fn logs() -> (tempfile::TempDir, Logs) {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::in_dir(dir.path().to_owned());
        (dir, logs)
    }

    #[test]
    fn a_log_has_whole_frames_and_a_bounded_size() {
        let (dir, mut logs) = logs();
        let block = [7u8; 60_000];
        for _ in 0..20 {
            logs.take(output(3, &block)).unwrap();
        }
        logs.take(listed(3, true)).unwrap();
        let log = dir.path().join("3");
        for part in [rundir::older_part(&log), log] {
            let bytes = fs::read(part).unwrap();
            assert!(bytes.len() <= LIMIT);
            let mut frames = &bytes[..];
            while Message::receive(&mut frames).unwrap().is_some() {}
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn logs_of_commands_that_have_ended_go_first() {
        let (dir, mut logs) = logs();
        let kept = || {
            let names = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
            let mut ids: Vec<u32> = names.map(|name| name.to_str().unwrap().parse().unwrap()).collect();
            ids.sort_unstable();
            ids
        };
        for id in 1..=64 {
            logs.take(listed(id, id == 9 || id == 12)).unwrap();
        }
        assert_eq!(kept().len(), 64);
        for id in 65..=67 {
            logs.take(output(id, b"x")).unwrap();
        }
        let expected: Vec<u32> = (2..=67).filter(|id| ![9, 12].contains(id)).collect();
        assert_eq!(kept(), expected, "9, 12, and then the oldest");
        // A command that was removed while it runs begins again.
        logs.take(output(1, b"x")).unwrap();
        assert_eq!((kept().len(), kept()[0], kept()[1]), (64, 1, 3));
    }

    #[test]
    fn a_restart_ends_the_logs_of_commands_and_their_ids_begin_again() {
        let (dir, mut logs) = logs();
        for (message, id) in
            [(listed(1, true), 1), (output(1, b"old"), 1), (output(2, b"old"), 2), (output(3, b"old"), 3)]
        {
            assert!(logs.take(message).is_ok(), "{id}");
        }
        fs::write(rundir::older_part(&dir.path().join("2")), "older").unwrap();
        logs.finish();
        let frames = |id: u32| {
            let bytes = fs::read(dir.path().join(id.to_string())).unwrap();
            let mut bytes = &bytes[..];
            std::iter::from_fn(|| Message::receive(&mut bytes).unwrap()).collect::<Vec<_>>()
        };
        let is_end = |message: &Message| matches!(message, Message::Execs(Execs { execs, .. }) if execs[0].exit == Some(Exit::default()));
        for id in [2, 3] {
            assert!(frames(id).last().is_some_and(is_end), "{id}");
        }
        fs::write(dir.path().join("200"), "").unwrap();
        let mut logs = Logs::in_dir(dir.path().to_owned());
        logs.take(output(2, b"new")).unwrap();
        logs.take(output(2, b"more")).unwrap();
        assert_eq!(frames(2), [output(2, b"new"), output(2, b"more")]);
        assert!(!rundir::older_part(&dir.path().join("2")).exists());
        assert_eq!(frames(3).first(), Some(&output(3, b"old")), "its ID has not come again");
        logs.take(listed(2, true)).unwrap();
        for id in 4..=66 {
            logs.take(output(id, b"x")).unwrap();
        }
        for id in ["1", "3", "200"] {
            assert!(!dir.path().join(id).exists(), "{id} counts among all that are kept");
        }
        assert!(dir.path().join("2").exists(), "a new one is kept longer than those from before");
    }

    #[test]
    fn frames_that_are_no_output_end_the_recording() {
        let (dir, mut logs) = logs();
        for message in [
            Message::Execs(Execs::default()),
            Message::Eof(Stream::Stdout),
            Message::Execs(Execs {
                execs: vec![Listed {
                    id: 1,
                    pid: 1,
                    argv: vec!["x".repeat(wire::MAX_DATA).into()],
                    detached: true,
                    attached: false,
                    exit: None,
                }],
                ..Execs::default()
            }),
        ] {
            assert!(logs.take(message).is_err());
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
