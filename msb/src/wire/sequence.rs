//! The order of frames in an exec, and flow control: each side checks every frame of its peer. There is no I/O here, so that both
//! sides are tested and fuzzed with tables of frames.

use super::decoder::Decoded;
use super::frame::{Error, Stream};
use super::message::Message;

/// The remaining credit of a stream, and whether it has ended.
#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    credit: u64,
    ended: bool,
}

impl Flow {
    fn take(&mut self, bytes: usize, past: &'static str) -> Result<(), Error> {
        if bytes == 0 {
            // Empty frames cost no credit, so their number would be unlimited.
            return Err(Error::OutOfTurn("data without a byte"));
        }
        match self.credit.checked_sub(bytes as u64) {
            Some(left) if !self.ended => {
                self.credit = left;
                Ok(())
            }
            _ => Err(Error::OutOfTurn(past)),
        }
    }

    fn end(&mut self) -> Result<(), Error> {
        if self.ended {
            return Err(Error::OutOfTurn("a second end of a stream"));
        }
        self.ended = true;
        Ok(())
    }
}

/// Credit that a receiver has yet to grant for bytes that it has consumed. It is granted in batches: each grant is a packet and a VM
/// exit, and a sender with little credit sends small frames.
#[derive(Clone, Copy, Debug)]
pub struct OwedCredit {
    batch: u32,
    owed: u32,
}

impl OwedCredit {
    /// Nothing is owed yet. `batch` must be less than the initial credit, or the sender waits forever.
    pub const fn in_batches_of(batch: u32) -> Self {
        Self { batch, owed: 0 }
    }

    /// Counts consumed bytes. Returns the credit to grant now, if a batch is complete.
    pub fn add(&mut self, bytes: usize) -> Option<u32> {
        self.owed = self.owed.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        (self.owed > 0 && self.owed >= self.batch).then(|| std::mem::take(&mut self.owed))
    }
}

/// Credit that grows with its consumer. The window is the number of bytes that may be in flight: on a connection with latency it limits
/// a fast consumer, while for a slow one a large window only fills memory.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    size: u32,
    most: u32,
    taken: u32,
    owed: OwedCredit,
}

impl Window {
    /// A window of `size` bytes, which the sender has been granted, and which may grow to `most`.
    pub const fn growing(size: u32, most: u32) -> Self {
        Self { size, most, taken: 0, owed: OwedCredit::in_batches_of(size / 4) }
    }

    /// Counts consumed bytes, of which `left` more are waiting. Returns the credit to grant now, if any. The window doubles when a
    /// whole window was consumed and none is waiting.
    pub fn add(&mut self, bytes: usize, left: usize) -> Option<u32> {
        let owed = self.owed.add(bytes);
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.taken = self.taken.saturating_add(bytes);
        let growth = self.size.min(self.most.saturating_sub(self.size));
        match owed {
            Some(owed) if left == 0 && self.taken >= self.size => {
                self.size += growth;
                self.taken = 0;
                self.owed = OwedCredit::in_batches_of(self.size / 4);
                Some(owed.saturating_add(growth))
            }
            owed => owed,
        }
    }
}

/// The frames of the guest in an exec, checked by the host.
#[derive(Clone, Debug, Default)]
pub struct FromGuest {
    preparing: bool,
    prepared: bool,
    started: bool,
    over: bool,
    refused: bool,
    detaching: bool,
    stdout: Flow,
    stderr: Flow,
}

impl FromGuest {
    /// The host grants credit for an output.
    pub fn grant(&mut self, stream: Stream, bytes: u32) {
        if let Some(flow) = self.flow(stream) {
            flow.credit = flow.credit.saturating_add(bytes.into());
        }
    }

    /// The host has asked the guest to prepare the command.
    pub fn prepare(&mut self) {
        self.preparing = true;
    }

    /// The host asks to detach.
    pub fn detach(&mut self) {
        self.detaching = true;
    }

    /// Whether the command was started.
    pub fn has_started(&self) -> bool {
        self.started
    }

    fn flow(&mut self, stream: Stream) -> Option<&mut Flow> {
        match stream {
            Stream::Stdin => None,
            Stream::Stdout => Some(&mut self.stdout),
            Stream::Stderr => Some(&mut self.stderr),
        }
    }

    /// Checks the next frame.
    ///
    /// # Errors
    /// [`Error::OutOfTurn`]. The connection cannot continue.
    pub fn take(&mut self, piece: &Decoded<'_>) -> Result<(), Error> {
        if self.over {
            return Err(Error::OutOfTurn("one after the last one"));
        }
        match piece {
            Decoded::Message(message) => self.take_message(message),
            Decoded::Data(..) if !self.started => Err(Error::OutOfTurn("the command has not started")),
            Decoded::Data(stream, bytes) => match self.flow(*stream) {
                Some(flow) => flow.take(bytes.len(), "output past its credit or its end"),
                None => Err(Error::OutOfTurn("stdin from the guest")),
            },
        }
    }

    fn take_message(&mut self, message: &Message) -> Result<(), Error> {
        let out_of_turn = |why| Err(Error::OutOfTurn(why));
        match message {
            Message::Failure(_) if !self.started => self.over = true,
            Message::Prepared(_) if self.preparing && !self.prepared => self.prepared = true,
            Message::Started(_) if !self.started && self.prepared == self.preparing => self.started = true,
            // A command that is killed before it runs.
            Message::Exit(_) if self.prepared => self.over = true,
            Message::Eof(stream @ (Stream::Stdout | Stream::Stderr)) if self.prepared => {
                self.flow(*stream).map_or(Ok(()), Flow::end)?;
            }
            _ if !self.started => return out_of_turn("the command has not started"),
            Message::Credit(Stream::Stdin, _) if !self.refused => {}
            Message::Eof(Stream::Stdin) if !self.refused => self.refused = true,
            Message::Eof(stream) => match self.flow(*stream) {
                Some(flow) => flow.end()?,
                None => return out_of_turn("stdin was refused twice"),
            },
            Message::Exit(_) => self.over = true,
            Message::Started(_) => return out_of_turn("the command started twice"),
            Message::Execs(_) if self.detaching => self.over = true,
            _ => return out_of_turn("not a frame for the caller of an exec"),
        }
        Ok(())
    }
}

/// The frames of the host in an exec, checked by the guest.
#[derive(Clone, Debug, Default)]
pub struct FromHost {
    stdin: Flow,
    prepared: bool,
    detaching: bool,
}

impl FromHost {
    /// The guest grants credit for stdin.
    pub fn grant(&mut self, bytes: u32) {
        self.stdin.credit = self.stdin.credit.saturating_add(bytes.into());
    }

    /// The command is prepared, and waits for the host.
    pub fn prepare(&mut self) {
        self.prepared = true;
    }

    /// Whether the host has sent end-of-file for stdin.
    pub fn stdin_ended(&self) -> bool {
        self.stdin.ended
    }

    /// Checks the next frame.
    ///
    /// # Errors
    /// [`Error::OutOfTurn`]. The connection cannot continue.
    pub fn take(&mut self, piece: &Decoded<'_>) -> Result<(), Error> {
        if self.detaching {
            return Err(Error::OutOfTurn("one after the last one"));
        }
        let out_of_turn = || Err(Error::OutOfTurn("not a frame for a running exec"));
        let message = match piece {
            Decoded::Data(Stream::Stdin, bytes) => {
                return self.stdin.take(bytes.len(), "stdin past its credit or its end");
            }
            Decoded::Data(..) => return out_of_turn(),
            Decoded::Message(message) => message,
        };
        match message {
            Message::Eof(Stream::Stdin) => self.stdin.end(),
            Message::Signal(wanted) => check_signal(wanted.signal),
            Message::Credit(Stream::Stdout | Stream::Stderr, _) | Message::Resize(_) => Ok(()),
            Message::Go if self.prepared => {
                self.prepared = false;
                Ok(())
            }
            Message::Detach if !self.prepared => {
                self.detaching = true;
                Ok(())
            }
            _ => out_of_turn(),
        }
    }
}

/// Checks a signal's number.
///
/// # Errors
/// [`Error::OutOfTurn`] for a number that is not a signal of Linux.
pub fn check_signal(number: i32) -> Result<(), Error> {
    if (1..=64).contains(&number) { Ok(()) } else { Err(Error::OutOfTurn("no such signal")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::exec::{Exit, Failure, Resize, Signal, Started};

    fn started() -> Message {
        Message::Started(Started { pid: 1, id: 1, terminal: false })
    }

    fn data(stream: Stream, bytes: usize) -> Message {
        Message::Data(stream, vec![0; bytes])
    }

    fn failure() -> Message {
        Message::Failure(Failure::new(127, ""))
    }

    #[test]
    fn credit_is_granted_in_batches_and_none_is_lost() {
        let mut owed = OwedCredit::in_batches_of(100);
        assert_eq!(
            [60, 39, 1, 0, 250, 99].map(|bytes| owed.add(bytes)),
            [None, None, Some(100), None, Some(250), None]
        );
        assert_eq!(owed.add(usize::MAX), Some(u32::MAX));
        assert_eq!(OwedCredit::in_batches_of(0).add(0), None);
    }

    #[test]
    fn a_window_grows_for_a_consumer_that_waits() {
        let mut window = Window::growing(100, 250);
        let mut taken = |bytes, left| window.add(bytes, left);
        assert_eq!([taken(20, 0), taken(30, 0), taken(30, 0)], [None, Some(50), Some(30)]);
        assert_eq!([taken(90, 1), taken(900, 1)], [Some(90), Some(900)], "some bytes are still waiting");
        assert_eq!(taken(25, 0), Some(25 + 100));
        assert_eq!(
            [taken(49, 0), taken(151, 0)],
            [None, Some(200 + 50)],
            "batches are larger now, and the limit is near"
        );
        assert_eq!(taken(250, 0), Some(250), "it does not grow beyond its limit");
    }

    #[test]
    fn a_guest_sends_the_frames_of_an_exec_within_its_credit() {
        let exit = || Message::Exit(Exit::default());
        let (out, err) = (Stream::Stdout, Stream::Stderr);
        for (frames, wrong) in [
            (vec![started(), data(out, 10), Message::Eof(out), data(err, 1), exit()], None),
            (vec![started(), Message::Credit(Stream::Stdin, 9), Message::Eof(Stream::Stdin), exit()], None),
            (vec![failure()], None),
            (vec![data(out, 1)], Some(0)),
            (vec![Message::Eof(out)], Some(0)),
            (vec![exit()], Some(0)),
            (vec![started(), started()], Some(1)),
            (vec![started(), failure()], Some(1)),
            (vec![started(), data(out, 0)], Some(1)),
            (vec![started(), data(out, 11)], Some(1)),
            (vec![started(), data(out, 6), data(out, 5)], Some(2)),
            (vec![started(), data(out, 10), data(err, 10), data(err, 1)], Some(3)),
            (vec![started(), Message::Eof(out), data(out, 1)], Some(2)),
            (vec![started(), Message::Eof(out), Message::Eof(out)], Some(2)),
            (vec![started(), Message::Eof(Stream::Stdin), Message::Eof(Stream::Stdin)], Some(2)),
            (vec![started(), Message::Eof(Stream::Stdin), Message::Credit(Stream::Stdin, 1)], Some(2)),
            (vec![started(), data(Stream::Stdin, 1)], Some(1)),
            (vec![started(), Message::Credit(out, 1)], Some(1)),
            (vec![started(), exit(), exit()], Some(2)),
            (vec![started(), Message::Execs(Default::default())], Some(1)),
            (vec![Message::hello()], Some(0)),
        ] {
            let mut turn = FromGuest::default();
            turn.grant(out, 10);
            turn.grant(err, 10);
            assert_eq!(frames.iter().position(|frame| turn.take(&frame.into()).is_err()), wrong, "{frames:?}");
        }
    }

    #[test]
    fn a_prepared_command_starts_fails_or_is_killed() {
        let prepared = || Message::Prepared(Started { pid: 1, id: 1, terminal: false });
        let exit = || Message::Exit(Exit::default());
        let out = Stream::Stdout;
        for (frames, wrong) in [
            (vec![prepared(), started(), data(out, 1), Message::Eof(out), exit()], None),
            (vec![prepared(), failure()], None),
            (vec![failure()], None),
            (vec![prepared(), Message::Eof(out), exit()], None),
            (vec![prepared(), Message::Eof(out), Message::Eof(out)], Some(2)),
            (vec![prepared(), prepared()], Some(1)),
            (vec![prepared(), data(out, 1)], Some(1)),
            (vec![prepared(), Message::Credit(Stream::Stdin, 1)], Some(1)),
            (vec![prepared(), started(), prepared()], Some(2)),
            (vec![prepared(), started(), failure()], Some(2)),
            (vec![started()], Some(0)),
            (vec![exit()], Some(0)),
        ] {
            let mut turn = FromGuest::default();
            turn.prepare();
            turn.grant(out, 10);
            assert_eq!(frames.iter().position(|frame| turn.take(&frame.into()).is_err()), wrong, "{frames:?}");
        }
        let mut not_asked = FromGuest::default();
        assert!(not_asked.take(&Decoded::from(&prepared())).is_err());
        for (frames, wrong) in [
            (vec![Message::Credit(out, 1), Message::Go, Message::Detach], None),
            (vec![Message::Signal(Signal { signal: 9, all: false }), Message::Go, Message::Go], Some(2)),
            (vec![Message::Detach], Some(0)),
        ] {
            let mut turn = FromHost::default();
            turn.prepare();
            assert_eq!(frames.iter().position(|frame| turn.take(&frame.into()).is_err()), wrong, "{frames:?}");
        }
        assert!(FromHost::default().take(&Decoded::from(&Message::Go)).is_err());
    }

    #[test]
    fn only_a_caller_that_asked_to_detach_is_detached() {
        let mut turn = FromGuest::default();
        assert!(!turn.has_started());
        turn.take(&Decoded::from(&started())).unwrap();
        assert!(turn.has_started());
        let twice = turn.clone().take(&Decoded::from(&started())).unwrap_err().to_string();
        assert!(twice.contains("started twice"), "{twice}");
        turn.detach();
        turn.take(&Decoded::from(&Message::Execs(Default::default()))).unwrap();
        assert!(turn.take(&Decoded::from(&Message::Exit(Exit::default()))).is_err());
    }

    #[test]
    fn a_host_sends_the_frames_of_an_exec_within_its_credit() {
        let signal = |signal| Message::Signal(Signal { signal, all: false });
        let stdin = Stream::Stdin;
        for (frames, wrong) in [
            (vec![data(stdin, 10), Message::Eof(stdin), signal(64), Message::Credit(Stream::Stderr, 1)], None),
            (vec![Message::Resize(Resize { rows: 1, cols: 1 }), Message::Detach], None),
            (vec![data(stdin, 11)], Some(0)),
            (vec![data(stdin, 0)], Some(0)),
            (vec![Message::Eof(stdin), data(stdin, 1)], Some(1)),
            (vec![Message::Eof(stdin), Message::Eof(stdin)], Some(1)),
            (vec![signal(0)], Some(0)),
            (vec![signal(65)], Some(0)),
            (vec![Message::Eof(Stream::Stdout)], Some(0)),
            (vec![Message::Credit(stdin, 1)], Some(0)),
            (vec![data(Stream::Stdout, 1)], Some(0)),
            (vec![Message::Detach, signal(1)], Some(1)),
            (vec![started()], Some(0)),
            (vec![Message::List], Some(0)),
        ] {
            let mut turn = FromHost::default();
            turn.grant(10);
            assert_eq!(frames.iter().position(|frame| turn.take(&frame.into()).is_err()), wrong, "{frames:?}");
            assert_eq!(turn.stdin_ended(), frames.contains(&Message::Eof(stdin)), "{frames:?}");
        }
    }
}
