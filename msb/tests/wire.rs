//! The bytes of the wire, pinned. A change here is a new version of it.

use msb::wire::exec::{Exit, Failure, Ready, Request, Resize, Shutdown, Signal, Started, Text, Tty};
use msb::wire::{Message, Stream};

/// Every kind once, with the bytes of its frame.
fn goldens() -> Vec<(Message, &'static [u8])> {
    let request = Request {
        argv: vec!["cat".into(), Text::Bytes(vec![0xff])],
        env: vec!["A=b".into()],
        cwd: Some("/".into()),
        user: Some("app:users".into()),
        tty: Some(Tty { term: Some("xterm".into()), size: Resize { rows: 24, cols: 80 } }),
    };
    vec![
        (Message::hello(), b"\x0d\0\0\0\x01{\"version\":1}"),
        (
            Message::Exec(request),
            b"\x75\0\0\0\x02{\"argv\":[\"cat\",[255]],\"env\":[\"A=b\"],\"cwd\":\"/\",\"user\":\"app:users\",\
              \"tty\":{\"term\":\"xterm\",\"size\":{\"rows\":24,\"cols\":80}}}",
        ),
        (Message::Started(Started { pid: 42 }), b"\x0a\0\0\0\x03{\"pid\":42}"),
        (Message::Data(Stream::Stdin, b"in".to_vec()), b"\x02\0\0\0\x04in"),
        (Message::Data(Stream::Stdout, b"out".to_vec()), b"\x03\0\0\0\x05out"),
        (Message::Data(Stream::Stderr, vec![]), b"\0\0\0\0\x06"),
        (Message::Eof(Stream::Stdin), b"\x01\0\0\0\x07\0"),
        (Message::Credit(Stream::Stdout, 0x1_0000), b"\x05\0\0\0\x08\x01\0\0\x01\0"),
        (Message::Signal(Signal { signal: 15 }), b"\x0d\0\0\0\x09{\"signal\":15}"),
        (Message::Resize(Resize { rows: 1, cols: 2 }), b"\x13\0\0\0\x0a{\"rows\":1,\"cols\":2}"),
        (Message::Exit(Exit { code: Some(3), signal: None }), b"\x0a\0\0\0\x0b{\"code\":3}"),
        (Message::Exit(Exit { code: None, signal: Some(9) }), b"\x0c\0\0\0\x0b{\"signal\":9}"),
        (
            Message::Failure(Failure { code: 127, message: "no".into() }),
            b"\x1b\0\0\0\x0c{\"code\":127,\"message\":\"no\"}",
        ),
        (Message::Shutdown(Shutdown { grace_ms: 5 }), b"\x0e\0\0\0\x0d{\"grace_ms\":5}"),
        (
            Message::Ready(Ready { error: None, kernel_ms: 1, agent_ms: 2, ..Ready::default() }),
            b"\x1c\0\0\0\x0e{\"kernel_ms\":1,\"agent_ms\":2}",
        ),
    ]
}

#[test]
fn every_kind_has_its_bytes() {
    for (message, bytes) in goldens() {
        let frame = message.to_frame();
        assert_eq!(frame, bytes, "{}", String::from_utf8_lossy(&frame));
        assert_eq!(Message::receive(&mut &*frame).unwrap(), Some(message));
    }
}

#[test]
fn hello_of_another_version_is_refused_with_both_versions_named() {
    let Some(Message::Hello(hello)) = Message::receive(&mut &b"\x0d\0\0\0\x01{\"version\":7}"[..]).unwrap() else {
        panic!()
    };
    let words = hello.check().unwrap_err().to_string();
    assert!(words.contains("version 7") && words.contains("version 1"), "{words}");
}
