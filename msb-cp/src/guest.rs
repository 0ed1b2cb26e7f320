//! The connection to the agent for one copy, as both ends of [`msb::transfer`].

use std::io::{self, BufReader, Write};
use std::os::unix::net::UnixStream;

use anyhow::anyhow;
use msb::record::Vm;
use msb::tool::exit;
use msb::transfer::receive::Incoming;
use msb::transfer::send::Sink;
use msb::transfer::{TO_GUEST, TO_HOST};
use msb::vm::supervisor;
use msb::wire::sequence::OwedCredit;
use msb::wire::{self, Message, Stream, dial};

/// How many bytes of frames the guest may send ahead. They fit into the VMM's buffer.
const WINDOW: u32 = 512 << 10;
/// How much is sent in one call, in bytes.
const BATCH: usize = 128 << 10;

/// The agent.
pub(crate) struct Guest {
    name: String,
    frames: BufReader<UnixStream>,
    to: UnixStream,
    /// How many bytes of frames the agent accepts now.
    credit: u64,
    out: Vec<u8>,
    owed: OwedCredit,
    failure: Option<String>,
    has_ended: bool,
}

impl Guest {
    /// Connects, and sends a request.
    ///
    /// # Errors
    /// A VM that has ended, or does not answer.
    pub(crate) fn connect(vm: &Vm, request: &Message) -> anyhow::Result<Self> {
        let to = dial::ask(&vm.endpoint, &request.to_frame()).map_err(|error| match supervisor::find(vm) {
            Ok(None) => anyhow!("vm {:?}: it is not running", vm.name),
            _ => anyhow!("vm {:?}: its agent does not answer: {error}", vm.name),
        })?;
        let owed = OwedCredit::in_batches_of(WINDOW / 4);
        let frames = BufReader::with_capacity(256 << 10, to.try_clone()?);
        let name = vm.name.clone();
        Ok(Self { name, frames, to, credit: 0, out: Vec::new(), owed, failure: None, has_ended: false })
    }

    /// Lets the agent send. One that has given up by now has said why, which is what is received next.
    pub(crate) fn grant(&mut self) {
        let _ = Message::Credit(TO_HOST, WINDOW).send(&mut self.to);
    }

    /// Why the agent has given up, if it has.
    pub(crate) fn failure(&mut self) -> Option<String> {
        self.failure.take()
    }

    /// Ends what is sent, and waits until the agent has everything in its place.
    ///
    /// # Errors
    /// Why it has not.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        Message::Eof(TO_GUEST).put(&mut self.out);
        let flushed = self.flush();
        while !self.has_ended {
            match self.next() {
                Ok(_) => {}
                Err(error) => return Err(flushed.err().filter(|_| self.failure.is_none()).unwrap_or(error)),
            }
        }
        flushed
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.write_all(&self.out)?;
        self.out.clear();
        Ok(())
    }

    /// Receives a message that belongs to the copy. `None`: the agent is done.
    fn next(&mut self) -> io::Result<Option<Message>> {
        let broken = |name: &str, error: &dyn std::fmt::Display| {
            io::Error::other(format!("vm {name:?}: {}", exit::printable(&error.to_string())))
        };
        match Message::receive(&mut self.frames) {
            Ok(Some(Message::Exit(_))) => {
                self.has_ended = true;
                Ok(None)
            }
            Ok(Some(Message::Failure(failure))) => {
                let message = exit::printable(&failure.message).to_string();
                self.failure = Some(format!("{}: {message}", self.name));
                Err(io::Error::other(format!("{}: {message}", self.name)))
            }
            Ok(Some(message)) => Ok(Some(message)),
            Ok(None) => Err(broken(&self.name, &"it hung up in the middle of the copy")),
            Err(wire::Error::Io(error)) => Err(broken(&self.name, &error)),
            Err(error) => Err(broken(&self.name, &format_args!("its agent breaks the protocol: {error}"))),
        }
    }
}

impl Sink for Guest {
    const STREAM: Stream = TO_GUEST;

    fn send(&mut self, message: &Message) -> io::Result<()> {
        let frame = message.to_frame();
        if Message::check_length(&frame).is_err() {
            return Err(io::Error::other("the xattrs of a file are too large to send"));
        }
        while self.credit < frame.len() as u64 {
            // An agent that has given up has said why, even if it takes no more.
            let flushed = self.flush();
            match self.next()? {
                Some(Message::Credit(TO_GUEST, bytes)) => self.credit += u64::from(bytes),
                _ => {
                    return Err(flushed.err().unwrap_or_else(|| io::Error::other("the agent's answer is out of turn")));
                }
            }
        }
        self.credit -= frame.len() as u64;
        self.out.extend_from_slice(&frame);
        if self.out.len() >= BATCH { self.flush() } else { Ok(()) }
    }
}

impl Incoming for Guest {
    const STREAM: Stream = TO_HOST;

    fn receive(&mut self) -> io::Result<Option<Message>> {
        let Some(message) = self.next()? else { return Ok(None) };
        if let Some(owed) = self.owed.add(message.frame_length()) {
            // An agent that has sent everything has gone.
            let _ = Message::Credit(TO_HOST, owed).send(&mut self.to);
        }
        Ok(Some(message))
    }
}
