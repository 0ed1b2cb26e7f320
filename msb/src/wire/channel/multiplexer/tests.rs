//! Two multiplexers on one socket pair, and callers on both sides.

use super::*;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

/// Ends for a test: connections are accepted from a listener, and those of the peer are handed to the test.
struct TestEnds {
    listener: UnixListener,
    connected: Sender<UnixStream>,
    restarted: Sender<()>,
    /// Receives a message when the channel is drained, if a test waits for that.
    drained: Arc<Mutex<Option<Sender<()>>>>,
    /// How many bytes the kernel keeps for a local end, if not as many as usual.
    send_buffer: Option<usize>,
}

impl TestEnds {
    /// Ends without receivers.
    fn new(listener: UnixListener) -> Self {
        Self { listener, connected: channel().0, restarted: channel().0, drained: Arc::default(), send_buffer: None }
    }

    fn limit(&self, socket: &UnixStream) -> io::Result<()> {
        let limit = |bytes| rustix::net::sockopt::set_socket_send_buffer_size(socket, bytes);
        Ok(self.send_buffer.map_or(Ok(()), limit)?)
    }
}

impl Ends for TestEnds {
    fn accepting(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    fn accept(&mut self) -> io::Result<OwnedFd> {
        let (socket, _) = self.listener.accept()?;
        self.limit(&socket)?;
        Ok(socket.into())
    }

    fn connect(&mut self) -> io::Result<OwnedFd> {
        let (ours, theirs) = UnixStream::pair()?;
        self.limit(&ours)?;
        self.connected.send(theirs).map_err(io::Error::other)?;
        Ok(ours.into())
    }

    fn restarted(&mut self) {
        let _ = self.restarted.send(());
    }

    fn awaits_drained(&self) -> bool {
        self.drained.lock().unwrap().is_some()
    }

    fn drained(&mut self) {
        let _ = self.drained.lock().unwrap().take().unwrap().send(());
    }
}

/// One side of a channel, which runs in a thread.
struct TestSide {
    dir: tempfile::TempDir,
    connected: Receiver<UnixStream>,
    restarted: Receiver<()>,
    control: UnixStream,
}

impl TestSide {
    fn start(side: Side, port: UnixStream) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let ((connect, connected), (restart, restarted)) = (channel(), channel());
        let (control, theirs) = UnixStream::pair().unwrap();
        let ends = TestEnds { connected: connect, restarted: restart, ..TestEnds::new(listener) };
        thread::spawn(move || Multiplexer::new(side, port.into(), ends, Some(theirs)).unwrap().run().unwrap());
        Self { dir, connected, restarted, control }
    }

    fn open(&self) -> UnixStream {
        UnixStream::connect(self.dir.path().join("s")).unwrap()
    }

    fn wanted(&mut self, wanted: u8) {
        self.control.write_all(&[wanted]).unwrap();
    }
}

fn channel_of_two() -> (TestSide, TestSide) {
    let (host, guest) = UnixStream::pair().unwrap();
    (TestSide::start(Side::Host, host), TestSide::start(Side::Guest, guest))
}

fn read_end(mut stream: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn bytes_pass_both_ways_beside_a_connection_that_nobody_reads() {
    let (host, guest) = channel_of_two();
    // Its window, and the buffers of its sockets, fill.
    let mut ignored = host.open();
    let _kept = guest.connected.recv().unwrap();
    thread::spawn(move || ignored.write_all(&vec![1; 4 << 20]));
    for (from, to) in [(&host, &guest), (&guest, &host)] {
        let mut caller = from.open();
        let mut called = to.connected.recv().unwrap();
        let sent: Vec<u8> = (0..3_000_000u32).map(|number| number.to_le_bytes()[1]).collect();
        let echoed = thread::scope(|scope| {
            scope.spawn(|| {
                let bytes = read_end(&called);
                called.write_all(&bytes).unwrap();
                drop(called);
            });
            let mut writer = caller.try_clone().unwrap();
            let sent = &sent;
            scope.spawn(move || {
                writer.write_all(sent).unwrap();
                writer.shutdown(std::net::Shutdown::Write).unwrap();
            });
            read_end(&mut caller)
        });
        assert!(echoed == sent);
    }
}

#[test]
fn hundreds_of_connections_at_once_have_their_turns() {
    // More than [`MAX_EVENTS`].
    const COUNT: u32 = 300;
    let (host, guest) = channel_of_two();
    let mut callers: Vec<_> = (0..COUNT).map(|_| host.open()).collect();
    for (number, caller) in (0..COUNT).zip(&mut callers) {
        caller.write_all(&number.to_le_bytes()).unwrap();
        caller.shutdown(std::net::Shutdown::Write).unwrap();
    }
    let called: Vec<_> = guest.connected.iter().take(COUNT as usize).collect();
    for mut called in called {
        let number = read_end(&called);
        // More than a frame.
        called.write_all(&number.repeat(10_000)).unwrap();
    }
    for (number, caller) in (0..COUNT).zip(callers) {
        assert!(read_end(caller) == number.to_le_bytes().repeat(10_000), "{number}");
    }
}

#[test]
fn what_was_sent_before_a_close_arrives_although_input_was_not_read() {
    let (host, guest) = channel_of_two();
    let mut caller = host.open();
    caller.write_all(&[7; 64 << 10]).unwrap();
    let mut called = guest.connected.recv().unwrap();
    called.write_all(b"the end").unwrap();
    drop(called);
    assert_eq!(read_end(&mut caller), b"the end");
    // The end comes back as for a socket.
    while caller.write_all(&[7; 4096]).is_ok() {}
}

#[test]
fn a_caller_that_has_gone_is_noticed() {
    let (host, guest) = channel_of_two();
    drop(host.open());
    let mut called = guest.connected.recv().unwrap();
    assert_eq!(read_end(&mut called), b"");
    while called.write_all(&[7; 4096]).is_ok() {}
}

#[test]
fn a_frozen_channel_goes_on_where_it_was_or_begins_anew() {
    let (mut host, guest) = channel_of_two();
    let mut caller = host.open();
    let mut called = guest.connected.recv().unwrap();
    host.wanted(FREEZE);
    let mut answer = [0];
    host.control.read_exact(&mut answer).unwrap();
    assert_eq!(answer, [FROZEN]);
    caller.write_all(b"to").unwrap();
    called.write_all(b"fro").unwrap();
    host.wanted(THAW);
    let (mut to, mut fro) = ([0; 2], [0; 3]);
    called.read_exact(&mut to).unwrap();
    caller.read_exact(&mut fro).unwrap();
    assert_eq!((&to, &fro), (b"to", b"fro"));

    host.wanted(FREEZE);
    host.control.read_exact(&mut answer).unwrap();
    called.write_all(b"lost").unwrap();
    host.wanted(RESTART);
    host.wanted(THAW);
    guest.restarted.recv().unwrap();
    // Something was not read, so the end of the connection is a reset.
    while called.read(&mut answer).is_ok_and(|count| count > 0) {}
}

#[test]
fn a_channel_that_is_thawed_before_the_answer_goes_on() {
    let (mut host, guest) = channel_of_two();
    for wanted in [FREEZE, THAW, FREEZE, FREEZE, THAW] {
        host.wanted(wanted);
    }
    let mut caller = host.open();
    caller.write_all(b"to").unwrap();
    let mut to = [0; 2];
    guest.connected.recv().unwrap().read_exact(&mut to).unwrap();
    assert_eq!(&to, b"to");
}

#[test]
fn a_drained_channel_has_sent_what_local_ends_had_written() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("s")).unwrap();
    listener.set_nonblocking(true).unwrap();
    let (connect, connected) = channel();
    let ends = TestEnds { connected: connect, ..TestEnds::new(listener) };
    let awaited = Arc::clone(&ends.drained);
    thread::spawn(move || Multiplexer::new(Side::Guest, ours.into(), ends, None).unwrap().run());
    let mut open = Vec::new();
    Frame::Open(2).put(&mut open);
    theirs.write_all(&open).unwrap();
    let mut called: UnixStream = connected.recv().unwrap();
    called.write_all(&[7; 100_000]).unwrap();
    drop(called);
    let (drained, is_drained) = channel();
    *awaited.lock().unwrap() = Some(drained);
    // An event makes the loop call `awaits_drained`.
    let _caller = UnixStream::connect(dir.path().join("s")).unwrap();
    is_drained.recv().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let (mut sent, mut arrived, mut closes) = (Vec::new(), 0, 0);
    let _ = theirs.read_to_end(&mut sent);
    let (mut decoder, mut bytes) = (Decoder::default(), &sent[..]);
    while let Some(piece) = decoder.next(&mut bytes).unwrap() {
        match piece {
            Piece::Data(2, data) => arrived += data.len(),
            Piece::Frame(Frame::Close(2)) => closes += 1,
            // The end can be noticed before it is known that both directions are over.
            other => assert!(matches!(other, Piece::Frame(Frame::Open(1) | Frame::End(2))), "{other:?}"),
        }
    }
    assert_eq!((arrived, closes), (100_000, 1));
}

#[test]
fn a_peer_that_reads_no_answer_ends_the_channel() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let listener = UnixListener::bind(tempfile::tempdir().unwrap().path().join("s")).unwrap();
    let ends = TestEnds::new(listener);
    // Each is refused with a frame.
    let mut frames = Vec::new();
    for _ in 0..1000 {
        Frame::Open(2).put(&mut frames);
    }
    thread::spawn(move || while theirs.write_all(&frames).is_ok() {});
    let error = Multiplexer::new(Side::Guest, ours.into(), ends, None).unwrap().run().unwrap_err();
    assert_eq!(error.to_string(), "the peer sends and does not read");
}

#[test]
fn the_host_keeps_so_much_in_all_and_closes_the_connections_with_the_most() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("s")).unwrap();
    listener.set_nonblocking(true).unwrap();
    let ends = TestEnds { send_buffer: Some(8192), ..TestEnds::new(listener) };
    let mut host = Multiplexer::new(Side::Host, ours.into(), ends, None).unwrap();
    host.max_kept = 128 << 10;
    let stalled: Vec<_> = (0..20).map(|_| UnixStream::connect(dir.path().join("s")).unwrap()).collect();
    let reading = UnixStream::connect(dir.path().join("s")).unwrap();
    let guest = thread::spawn(move || {
        let (mut decoder, mut opened, mut block) = (Decoder::default(), Vec::new(), [0; 4096]);
        while opened.len() < 21 {
            let count = theirs.read(&mut block).unwrap();
            let mut bytes = &block[..count];
            while let Some(piece) = decoder.next(&mut bytes).unwrap() {
                let Piece::Frame(Frame::Open(connection)) = piece else { panic!("{piece:?}") };
                opened.push(connection);
            }
        }
        let reading = opened.pop().unwrap();
        for connection in opened {
            for _ in 0..8 {
                theirs.write_all(&data_header(connection, 4096)).unwrap();
                theirs.write_all(&[7; 4096]).unwrap();
            }
        }
        theirs.write_all(&data_header(reading, 4)).unwrap();
        theirs.write_all(b"done").unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        read_end(theirs)
    });
    host.run().unwrap();
    let queues = || host.locals.values().map(|local| local.queue.len());
    assert!(host.kept > 0 && host.kept <= host.max_kept, "{}", host.kept);
    assert_eq!(host.kept, queues().sum::<usize>());
    let closed = 21 - host.locals.len();
    assert!((1..20).contains(&closed), "{closed} were closed");
    drop(host);
    assert_eq!(read_end(reading), b"done");
    drop(stalled);
    let mut sent = &guest.join().unwrap()[..];
    let (mut decoder, mut closes) = (Decoder::default(), 0);
    while let Some(piece) = decoder.next(&mut sent).unwrap() {
        closes += usize::from(matches!(piece, Piece::Frame(Frame::Close(_))));
    }
    assert_eq!(closes, closed);
}

#[test]
fn a_number_that_the_peer_uses_again_too_early_does_not_count_twice() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let listener = UnixListener::bind(tempfile::tempdir().unwrap().path().join("s")).unwrap();
    let (connect, connected) = channel();
    let ends = TestEnds { connected: connect, send_buffer: Some(8192), ..TestEnds::new(listener) };
    let mut host = Multiplexer::new(Side::Host, ours.into(), ends, None).unwrap();
    host.max_kept = 1 << 20;
    // More than the socket of a local end takes.
    let data: Vec<u8> = (0..8).flat_map(|_| [&data_header(1, MAX_DATA)[..], &[7; MAX_DATA]].concat()).collect();
    let (mut open, mut close) = (Vec::new(), Vec::new());
    Frame::Open(1).put(&mut open);
    Frame::Close(1).put(&mut close);
    let guest = thread::spawn(move || {
        for _ in 0..50 {
            theirs.write_all(&[&open[..], &data, &close].concat()).unwrap();
        }
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        theirs
    });
    host.run().unwrap();
    guest.join().unwrap();
    assert_eq!(connected.iter().take(50).count(), 50);
    let left: Vec<usize> = host.locals.values().map(|local| local.queue.len()).collect();
    assert!(left.len() == 1 && left[0] > 0, "{left:?}");
    assert_eq!(host.kept, left[0]);
}

#[test]
fn the_events_of_an_earlier_local_end_are_not_those_of_a_new_one_with_its_number() {
    for (frames, is_ended) in [
        (&[Frame::Close(2), Frame::Open(2)][..], false),
        (&[Frame::Restart, Frame::Open(2), Frame::Open(4)], false),
        (&[], true),
        (&[Frame::Open(6)], true),
    ] {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let listener = UnixListener::bind(tempfile::tempdir().unwrap().path().join("s")).unwrap();
        let (connect, _connected) = channel();
        let ends = TestEnds { connected: connect, ..TestEnds::new(listener) };
        let mut guest = Multiplexer::new(Side::Guest, ours.into(), ends, None).unwrap();
        let mut arrive = |guest: &mut Multiplexer<TestEnds>, frames: &[Frame]| {
            let mut bytes = Vec::new();
            frames.iter().for_each(|frame| frame.put(&mut bytes));
            theirs.write_all(&bytes).unwrap();
            guest.read_port(&mut [0; 64]).unwrap()
        };
        arrive(&mut guest, &[Frame::Open(2), Frame::Open(4)]);
        guest.added.clear();
        if !frames.is_empty() {
            arrive(&mut guest, frames);
        }
        guest.note(2, epoll::EventFlags::HUP).unwrap();
        assert_eq!(guest.locals[&2].is_abandoned, is_ended, "{frames:?}");
        // The event of another one is not lost.
        guest.note(4, epoll::EventFlags::HUP).unwrap();
        assert_eq!(guest.locals[&4].is_abandoned, !frames.contains(&Frame::Restart), "{frames:?}");
    }
}

#[test]
fn a_peer_that_violates_the_protocol_ends_the_channel() {
    for side in [Side::Host, Side::Guest] {
        for bytes in [&b"\0\0\0\x01\0\0\0\0"[..], b"\0\0\0\x06\0\0\0\0"] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let listener = UnixListener::bind(tempfile::tempdir().unwrap().path().join("s")).unwrap();
            let ends = TestEnds::new(listener);
            theirs.write_all(bytes).unwrap();
            theirs.shutdown(std::net::Shutdown::Write).unwrap();
            let ended = Multiplexer::new(side, ours.into(), ends, None).unwrap().run();
            let is_freeze_for_guest = side == Side::Guest && bytes[3] == 6;
            assert_eq!(ended.is_err(), !is_freeze_for_guest, "{side:?} {bytes:?} {ended:?}");
        }
    }
}
