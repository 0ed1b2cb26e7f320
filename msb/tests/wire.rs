//! The bytes of the wire, pinned. A change here is a new version of it.

use msb::record::owner::Id;
use msb::vm::boot::Defaults;
use msb::wire::container::{Change, Container, Device, DeviceKind, Limits, Mount};
use msb::wire::copy::{Get, Put};
use msb::wire::exec::{
    Attach, Capabilities, Clock, Execs, Exit, Failure, Ids, Kill, Limit, Listed, Ready, Request, Resize, Resume,
    Shutdown, Signal, Started, Stopping, Text, Tty, Usage,
};
use msb::wire::upper::{Entry, What};
use msb::wire::{Error, MAX_CONTROL, Message, Stream};

/// Every kind once, with the bytes of its frame.
fn goldens() -> Vec<(Message, &'static [u8])> {
    let request = Request {
        argv: vec!["cat".into(), Text::Bytes(vec![0xff])],
        env: vec!["A=b".into()],
        cwd: Some("/".into()),
        user: Some("app:users".into()),
        tty: Some(Tty { term: Some("xterm".into()), size: Resize { rows: 24, cols: 80 } }),
        ..Request::default()
    };
    let all = Request {
        argv: vec!["a".into()],
        no_stdin: true,
        detach: true,
        rlimits: vec![Limit { name: "core".into(), soft: Some(0), hard: None }],
        umask: Some(0o77),
        now_ms: Some(5),
        ..Request::default()
    };
    let id = |number| Id::new(number).unwrap();
    let exact = Request {
        exact_env: true,
        ids: Some(Ids { uid: id(1), gid: id(2), groups: vec![id(3)] }),
        capabilities: Some(Capabilities { bounding: 1, effective: 2, permitted: 3, inheritable: 4, ambient: 5 }),
        no_new_privileges: true,
        oom_score_adj: Some(-5),
        prepare: true,
        ..Request::default()
    };
    let contained = Request {
        container: Some(Container {
            root: "/c".into(),
            readonly: true,
            hostname: Some("box".into()),
            domainname: Some("d".into()),
            mounts: vec![Mount {
                target: "/t".into(),
                fstype: "tmpfs".into(),
                source: "s".into(),
                options: vec!["ro".into()],
            }],
            devices: vec![Device {
                path: "/d".into(),
                kind: DeviceKind::Character,
                major: 1,
                minor: 2,
                mode: 3,
                uid: 4,
                gid: 5,
            }],
            masked_paths: vec!["/m".into()],
            readonly_paths: vec!["/r".into()],
            sysctl: [("a.b".to_owned(), "1".to_owned())].into(),
            limits: Limits {
                memory: Some(1),
                pids: Some(2),
                cpu_quota: Some(3),
                cpu_period: Some(4),
                cpu_weight: Some(5),
            },
        }),
        inside: Some(7),
        ..Request::default()
    };
    let usage = Usage { wall_us: 1, user_us: 2, system_us: 3, max_rss_kib: 4 };
    let ended = Exit { code: None, signal: Some(9), usage: Some(usage), oom: true };
    let resume = |new_machine_id| {
        Message::Resume(Box::new(Resume {
            now_ms: 5,
            entropy: vec![1, 2],
            hostname: "b".into(),
            defaults: Defaults {
                env: Vec::new(),
                cwd: String::new(),
                user: String::new(),
                argv: Vec::new(),
                stop_signal: 15,
            },
            new_machine_id,
        }))
    };
    let listed = |exit| Listed { id: 7, pid: 42, argv: vec!["a".into()], detached: true, attached: false, exit };
    vec![
        (Message::hello(), b"\x0d\0\0\0\x01{\"version\":2}"),
        (
            Message::Exec(Box::new(request)),
            b"\x75\0\0\0\x02{\"argv\":[\"cat\",[255]],\"env\":[\"A=b\"],\"cwd\":\"/\",\"user\":\"app:users\",\
              \"tty\":{\"term\":\"xterm\",\"size\":{\"rows\":24,\"cols\":80}}}",
        ),
        (
            Message::Exec(Box::new(all)),
            b"\x9e\0\0\0\x02{\"argv\":[\"a\"],\"env\":[],\"cwd\":null,\"user\":null,\"tty\":null,\"no_stdin\":true,\
              \"detach\":true,\"rlimits\":[{\"name\":\"core\",\"soft\":0,\"hard\":null}],\"umask\":63,\"now_ms\":5}",
        ),
        (
            Message::Exec(Box::new(exact)),
            b"\xfd\0\0\0\x02{\"argv\":[],\"env\":[],\"cwd\":null,\"user\":null,\"tty\":null,\"exact_env\":true,\
              \"ids\":{\"uid\":1,\"gid\":2,\"groups\":[3]},\"capabilities\":{\"bounding\":1,\"effective\":2,\"permitted\":3,\
              \"inheritable\":4,\"ambient\":5},\"no_new_privileges\":true,\"oom_score_adj\":-5,\"prepare\":true}",
        ),
        (
            Message::Exec(Box::new(contained)),
            b"\xbf\x01\0\0\x02{\"argv\":[],\"env\":[],\"cwd\":null,\"user\":null,\"tty\":null,\"container\":{\"root\":\"/c\",\
              \"readonly\":true,\"hostname\":\"box\",\"domainname\":\"d\",\"mounts\":[{\"target\":\"/t\",\"fstype\":\"tmpfs\",\
              \"source\":\"s\",\"options\":[\"ro\"]}],\"devices\":[{\"path\":\"/d\",\"kind\":\"character\",\"major\":1,\"minor\":2,\
              \"mode\":3,\"uid\":4,\"gid\":5}],\"masked_paths\":[\"/m\"],\"readonly_paths\":[\"/r\"],\
              \"sysctl\":{\"a.b\":\"1\"},\
              \"limits\":{\"memory\":1,\"pids\":2,\"cpu_quota\":3,\"cpu_period\":4,\"cpu_weight\":5}},\"inside\":7}",
        ),
        (Message::Prepared(Started { pid: 42, id: 7, terminal: false }), b"\x11\0\0\0\x18{\"pid\":42,\"id\":7}"),
        (Message::Go, b"\0\0\0\0\x19"),
        (Message::Started(Started { pid: 42, id: 7, terminal: false }), b"\x11\0\0\0\x03{\"pid\":42,\"id\":7}"),
        (
            Message::Started(Started { pid: 42, id: 7, terminal: true }),
            b"\x21\0\0\0\x03{\"pid\":42,\"id\":7,\"terminal\":true}",
        ),
        (Message::Clock(Clock { now_ms: 5 }), b"\x0c\0\0\0\x15{\"now_ms\":5}"),
        (
            resume(false),
            b"\x6f\0\0\0\x1a\
              {\"now_ms\":5,\"entropy\":[1,2],\"hostname\":\"b\",\"defaults\":{\"env\":[],\"cwd\":\"\",\"user\":\"\",\"argv\":[],\"stop_signal\":15}}",
        ),
        (
            resume(true),
            b"\x85\0\0\0\x1a\
              {\"now_ms\":5,\"entropy\":[1,2],\"hostname\":\"b\",\"defaults\":{\"env\":[],\"cwd\":\"\",\"user\":\"\",\"argv\":[],\"stop_signal\":15},\
              \"new_machine_id\":true}",
        ),
        (Message::Execs(Execs { execs: Vec::new(), older: 9 }), b"\x16\0\0\0\x12{\"execs\":[],\"older\":9}"),
        (Message::Data(Stream::Stdin, b"in".to_vec()), b"\x02\0\0\0\x04in"),
        (Message::Data(Stream::Stdout, b"out".to_vec()), b"\x03\0\0\0\x05out"),
        (Message::Data(Stream::Stderr, vec![]), b"\0\0\0\0\x06"),
        (Message::Eof(Stream::Stdin), b"\x01\0\0\0\x07\0"),
        (Message::Credit(Stream::Stdout, 0x1_0000), b"\x05\0\0\0\x08\x01\0\0\x01\0"),
        (Message::Signal(Signal { signal: 15, all: false }), b"\x0d\0\0\0\x09{\"signal\":15}"),
        (Message::Signal(Signal { signal: 9, all: true }), b"\x17\0\0\0\x09{\"signal\":9,\"all\":true}"),
        (Message::Resize(Resize { rows: 1, cols: 2 }), b"\x13\0\0\0\x0a{\"rows\":1,\"cols\":2}"),
        (Message::Exit(Exit { code: Some(3), ..Exit::default() }), b"\x0a\0\0\0\x0b{\"code\":3}"),
        (
            Message::Exit(ended),
            b"\x57\0\0\0\x0b{\"signal\":9,\"usage\":{\"wall_us\":1,\"user_us\":2,\"system_us\":3,\"max_rss_kib\":4},\"oom\":true}",
        ),
        (Message::Failure(Failure::new(127, "no")), b"\x1b\0\0\0\x0c{\"code\":127,\"message\":\"no\"}"),
        (
            Message::Failure(Failure { no_command: true, ..Failure::new(125, "") }),
            b"\x2b\0\0\0\x0c{\"code\":125,\"message\":\"\",\"no_command\":true}",
        ),
        (Message::Shutdown(Shutdown { grace_ms: 5 }), b"\x0e\0\0\0\x0d{\"grace_ms\":5}"),
        (
            Message::Stopping(Stopping { killed: 2, after_ms: 8000, ..Stopping::default() }),
            b"\x1c\0\0\0\x14{\"killed\":2,\"after_ms\":8000}",
        ),
        (Message::Stopping(Stopping { writing: true, ..Stopping::default() }), b"\x10\0\0\0\x14{\"writing\":true}"),
        (
            Message::Ready(Ready { error: None, kernel_ms: 1, agent_ms: 2, ..Ready::default() }),
            b"\x1c\0\0\0\x0e{\"kernel_ms\":1,\"agent_ms\":2}",
        ),
        (Message::Attach(Attach { id: 7, streams: true }), b"\x17\0\0\0\x0f{\"id\":7,\"streams\":true}"),
        (Message::List, b"\0\0\0\0\x10"),
        (Message::Kill(Kill { id: 7, signal: 15 }), b"\x14\0\0\0\x11{\"id\":7,\"signal\":15}"),
        (
            Message::Change(Change { id: 7, limits: Limits { pids: Some(Limits::UNLIMITED), ..Limits::default() } }),
            b"\x2f\0\0\0\x1b{\"id\":7,\"limits\":{\"pids\":18446744073709551615}}",
        ),
        (
            Message::Execs(Execs { execs: vec![listed(None)], older: 0 }),
            b"\x4b\0\0\0\x12{\"execs\":[{\"id\":7,\"pid\":42,\"argv\":[\"a\"],\"detached\":true,\"attached\":false}]}",
        ),
        (
            Message::Execs(Execs {
                execs: vec![listed(Some(Exit { code: Some(3), ..Exit::default() }))],
                older: 0,
            }),
            b"\x5d\0\0\0\x12{\"execs\":[{\"id\":7,\"pid\":42,\"argv\":[\"a\"],\"detached\":true,\"attached\":false,\
              \"exit\":{\"code\":3}}]}",
        ),
        (Message::Detach, b"\0\0\0\0\x13"),
        (Message::Record, b"\0\0\0\0\x1e"),
        (
            Message::Output { id: 258, stream: Stream::Stderr, bytes: b"no".to_vec() },
            b"\x07\0\0\0\x1f\x02\x01\0\0\x02no",
        ),
        (Message::Get(Get { path: "a".into(), follow: false }), b"\x1b\0\0\0\x16{\"path\":\"a\",\"follow\":false}"),
        (Message::Put(Put { path: "a".into(), contents: true, archive: false }), b"\x2c\0\0\0\x17{\"path\":\"a\",\"contents\":true,\"archive\":false}"),
        (
            Message::Entry(Box::new(Entry {
                name: Some("f".into()),
                what: What::File { size: 5 },
                attributes: None,
                number: Some(3),
            })),
            b"\x44\0\0\0\x20{\"name\":\"f\",\"what\":{\"file\":{\"size\":5}},\"attributes\":null,\"number\":3}",
        ),
        (
            Message::Entry(Box::new(Entry { name: None, what: What::Leave, attributes: None, number: None })),
            b"\x3c\0\0\0\x20{\"name\":null,\"what\":\"leave\",\"attributes\":null,\"number\":null}",
        ),
        (Message::Hole(258), b"\x08\0\0\0\x21\x02\x01\0\0\0\0\0\0"),
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
    let message = hello.check().unwrap_err().to_string();
    assert!(message.contains("version 7") && message.contains("version 2"), "{message}");
}

#[test]
fn a_hello_comes_first_and_has_this_version() {
    let receive = |bytes: &[u8]| Message::receive_hello(&mut &*bytes);
    receive(&Message::hello().to_frame()).unwrap();
    assert!(matches!(receive(b"\x0d\0\0\0\x01{\"version\":7}"), Err(Error::OtherVersion(7))));
    // Of another frame only the header is read.
    assert!(matches!(receive(b"\x01\0\0\0\x07"), Err(Error::OutOfTurn(_))));
    assert!(matches!(receive(b"\x0d\0\0\0\x01{"), Err(Error::Io(_))));
}

#[test]
fn a_message_is_sent_as_its_frame_whose_length_can_be_checked_before() {
    let mut sent = Vec::new();
    Message::hello().send(&mut sent).unwrap();
    assert_eq!(sent, Message::hello().to_frame());
    Message::check_length(&sent).unwrap();
    let request = |length| Request { argv: vec!["x".repeat(length).as_str().into()], ..Request::default() };
    let frame = |length| Message::Exec(Box::new(request(length))).to_frame();
    let others = frame(0).len();
    assert!(Message::check_length(&frame(MAX_CONTROL + 5 - others)).is_ok());
    assert!(matches!(Message::check_length(&frame(MAX_CONTROL + 6 - others)), Err(Error::TooLong { .. })));
}
