use super::*;

fn block(kind: EntryType, path: &str, data: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_entry_type(kind);
    header.set_size(data.len() as u64);
    header.set_mode(0o100_644);
    header.set_uid(1);
    header.set_gid(2);
    header.set_mtime(3);
    header.set_cksum();
    let mut block = header.as_bytes().to_vec();
    block.extend_from_slice(data);
    block.resize(block.len().next_multiple_of(BLOCK), 0);
    block
}

fn first(archive: &[u8]) -> anyhow::Result<Member> {
    Ok(Tape::new(archive).next_member()?.expect("a member"))
}

#[test]
fn data_that_is_not_read_is_skipped() {
    let archive = [block(EntryType::Regular, "a", b"data"), block(EntryType::Regular, "b", b"")].concat();
    let mut tape = Tape::new(&archive[..]);
    assert_eq!(tape.next_member().unwrap().unwrap().path, b"a");
    let member = tape.next_member().unwrap().unwrap();
    assert_eq!((member.path, member.metadata.mode, member.metadata.uid.get()), (b"b".to_vec(), 0o644, 1));
    assert!(tape.next_member().unwrap().is_none());
}

#[test]
fn long_names_and_pax_override_the_header() {
    let long = "d/".repeat(100) + "f";
    let archive = [
        block(EntryType::GNULongName, "././@LongLink", long.as_bytes()),
        block(EntryType::XHeader, "pax", b"14 mtime=9.25\n"),
        block(EntryType::Regular, "short", b""),
    ];
    let member = first(&archive.concat()).unwrap();
    assert_eq!(member.path, long.as_bytes());
    assert_eq!((member.metadata.mtime.tv_sec, member.metadata.mtime.tv_nsec), (9, 250_000_000));
}

#[test]
fn an_old_sparse_header_has_its_map_in_the_header_and_in_extensions() {
    let mut header = Header::new_gnu();
    header.set_path("s").unwrap();
    header.set_entry_type(EntryType::GNUSparse);
    header.set_size(5);
    let bytes = header.as_mut_bytes();
    for at in 0..4 {
        bytes[386 + at * 24..][..24].copy_from_slice(format!("{:011o}\0{:011o}\0", at * 1000, 1).as_bytes());
    }
    bytes[108..124].fill(0);
    bytes[482] = 1;
    bytes[483..495].copy_from_slice(format!("{:011o}\0", 9000).as_bytes());
    header.set_cksum();
    let mut extension = format!("{:011o}\0{:011o}\0", 8000, 1).into_bytes();
    extension.resize(BLOCK, 0);
    let archive = [header.as_bytes(), &extension[..], b"data!", &[0; BLOCK - 5]].concat();
    let member = first(&archive).unwrap();
    let offsets: Vec<u64> = member.regions.unwrap().iter().map(|region| region.offset).collect();
    assert_eq!((member.size, offsets), (9000, vec![0, 1000, 2000, 3000, 8000]));
    header.as_mut_bytes()[482] = 0;
    header.set_cksum();
    assert!(format!("{:#}", first(header.as_bytes()).unwrap_err()).contains("malformed sparse map"));
}

#[test]
fn a_checksum_is_that_of_unsigned_or_of_signed_bytes() {
    let mut header = Header::new_gnu();
    // The signed sum of the second is negative, and its last six digits are written.
    for name in [&b"\xff\xfe"[..], &[0x80; 100]] {
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        let negative = -256 * name.len() as i64;
        for (set_by, expected) in [(0, true), (negative, true), (negative + 256, false), (1, false)] {
            header.set_cksum();
            let sum = (i64::from(header.cksum().unwrap()) + set_by) & 0o777_777;
            header.as_old_mut().cksum.copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            assert_eq!(Tape::new(&header.as_bytes()[..]).next_member().is_ok(), expected, "{set_by}");
        }
    }
}

#[test]
fn what_is_broken_or_out_of_bounds_is_an_error() {
    let whole = block(EntryType::Regular, "a", b"data");
    let mut huge = Header::new_gnu();
    huge.set_entry_type(EntryType::XHeader);
    huge.set_size(1 << 40);
    huge.set_cksum();
    let vast = [block(EntryType::XHeader, "p", b"29 size=18446744073709551615\n"), whole.clone()].concat();
    let sparse = [block(EntryType::XHeader, "p", b"22 GNU.sparse.major=1\n"), whole.clone()].concat();
    let split = [&whole[..], &[0; 512], &whole[..]].concat();
    for (archive, message) in [
        (&[b'x'; 512][..], "bad header checksum"),
        (&whole[..100], "truncated"),
        (huge.as_bytes(), "1048576 at most"),
        (&vast, "bad size"),
        (&block(EntryType::GNULongName, "l", &[b'x'; 5000]), "long name"),
        (&sparse, "malformed sparse map"),
        (&block(EntryType::new(b'Z'), "z", b""), "type 'Z' is not supported"),
    ] {
        let error = format!("{:#}", first(archive).unwrap_err());
        assert!(error.contains(message), "{message}: {error}");
    }
    for (archive, message) in [(&whole[..514], "truncated"), (&split, "a zero block between members")] {
        let mut tape = Tape::new(archive);
        tape.next_member().unwrap();
        let error = tape.next_member().unwrap_err().to_string();
        assert!(error.contains(message), "{message}: {error}");
    }
}

#[test]
fn each_type_of_member_has_its_kind() {
    let directory_of_old = block(EntryType::Regular, "d/", b"");
    for (block, expected) in [
        (block(EntryType::Regular, "a", b""), Kind::File),
        (block(EntryType::Continuous, "a", b""), Kind::File),
        (directory_of_old, Kind::Directory),
        (block(EntryType::Directory, "a", b""), Kind::Directory),
        (block(EntryType::Symlink, "a", b""), Kind::Symlink),
        (block(EntryType::Link, "a", b""), Kind::Hardlink),
        (block(EntryType::Char, "a", b""), Kind::CharDevice),
        (block(EntryType::Block, "a", b""), Kind::BlockDevice),
        (block(EntryType::Fifo, "a", b""), Kind::Fifo),
    ] {
        assert_eq!(first(&block).unwrap().kind, expected);
    }
}

#[test]
fn what_is_no_member_is_passed_over() {
    let file = block(EntryType::Regular, "a", b"");
    for other in [EntryType::XGlobalHeader, EntryType::new(b'V')] {
        let archive = [block(other, "x", b"20 comment=a commit\n"), file.clone()].concat();
        assert_eq!(first(&archive).unwrap().path, b"a", "{other:?}");
    }
}

#[test]
fn only_a_file_has_data() {
    // pax writes the size of the file into the header of a further link to it.
    let mut link = Header::new_gnu();
    link.set_path("link").unwrap();
    link.set_link_name("file").unwrap();
    link.set_entry_type(EntryType::Link);
    for (field, value) in [(Header::set_size as fn(&mut Header, u64), 512), (Header::set_uid, 0), (Header::set_gid, 0)]
    {
        field(&mut link, value);
    }
    link.set_mode(0o644);
    link.set_mtime(0);
    link.set_cksum();
    let archive = [link.as_bytes(), &block(EntryType::Regular, "next", b"")[..]].concat();
    let mut tape = Tape::new(&archive[..]);
    let member = tape.next_member().unwrap().unwrap();
    assert_eq!((member.kind, &member.link[..], tape.data().1), (Kind::Hardlink, &b"file"[..], 0));
    assert_eq!(tape.next_member().unwrap().unwrap().path, b"next");
}

#[test]
fn data_is_read_and_counted_by_the_caller() {
    let archive = [block(EntryType::Regular, "a", &[7; 600]), block(EntryType::Regular, "b", b"")].concat();
    let mut tape = Tape::new(&archive[..]);
    tape.next_member().unwrap();
    let (input, left) = tape.data();
    assert_eq!((&input[..left as usize], left), (&[7; 600][..], 600));
    input.skip(100).unwrap();
    tape.consumed(100);
    assert_eq!(tape.data().1, 500);
    assert_eq!(tape.next_member().unwrap().unwrap().path, b"b");
    assert_eq!(tape.into_inner(), b"");
}

/// A reader that gives a few bytes at a time, as a pipe may.
struct Dripping<'a>(&'a [u8]);

impl Read for Dripping<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(100);
        self.0.read(&mut buffer[..length])
    }
}

impl Skip for Dripping<'_> {
    fn skip(&mut self, length: u64) -> io::Result<()> {
        self.0.skip(length)
    }
}

#[test]
fn a_header_may_arrive_in_parts() {
    let archive = [block(EntryType::Regular, "a", b"data"), block(EntryType::Regular, "b", b"")].concat();
    let mut tape = Tape::new(Dripping(&archive));
    for name in [b"a", b"b"] {
        assert_eq!(tape.next_member().unwrap().unwrap().path, name);
    }
    assert!(tape.next_member().unwrap().is_none());
}

#[test]
fn an_archive_ends_at_zero_blocks_or_with_the_stream() {
    let file = block(EntryType::Regular, "a", b"");
    for (what, end) in [
        ("no zero block", vec![]),
        ("one zero block", vec![0; BLOCK]),
        ("two", vec![0; 2 * BLOCK]),
        ("what follows them is not read", [vec![0; 2 * BLOCK], vec![b'x'; BLOCK]].concat()),
    ] {
        let archive = [file.clone(), end].concat();
        let mut tape = Tape::new(&archive[..]);
        assert!(tape.next_member().unwrap().is_some(), "{what}");
        assert!(tape.next_member().unwrap().is_none(), "{what}");
    }
}

#[test]
fn the_last_padding_may_be_missing_and_data_may_not() {
    let archive = [block(EntryType::Regular, "a", &[7; 300]), block(EntryType::Regular, "b", &[7; 300])].concat();
    let data_end = archive.len() - BLOCK + 300;
    for (length, is_whole) in [(data_end - 1, false), (data_end, true), (data_end + 100, true), (archive.len(), true)] {
        let mut tape = Tape::new(Dripping(&archive[..length]));
        for name in [b"a", b"b"] {
            assert_eq!(tape.next_member().unwrap().unwrap().path, name, "{length}");
        }
        assert_eq!(tape.next_member().is_ok_and(|end| end.is_none()), is_whole, "{length}");
    }
}

#[test]
fn a_sparse_map_of_version_1_is_in_front_of_the_data() {
    let records = [&b"22 GNU.sparse.major=1\n"[..], b"28 GNU.sparse.realsize=9000\n", b"21 GNU.sparse.name=s\n"];
    let mut data = b"1\n8000\n5\n".to_vec();
    data.resize(BLOCK, 0);
    data.extend(b"data!");
    let archive = [
        block(EntryType::XHeader, "p", &records.concat()),
        block(EntryType::Regular, "GNUSparseFile.0/s", &data),
        block(EntryType::Regular, "next", b""),
    ];
    let archive = archive.concat();
    let mut tape = Tape::new(&archive[..]);
    let member = tape.next_member().unwrap().unwrap();
    assert_eq!((&member.path[..], member.size), (&b"s"[..], 9000));
    assert_eq!(member.regions.unwrap(), [Region { offset: 8000, length: 5 }]);
    let (input, left) = tape.data();
    assert_eq!(&input[..left as usize], b"data!");
    assert_eq!(tape.next_member().unwrap().unwrap().path, b"next");
    // Without its size.
    let archive = [block(EntryType::XHeader, "p", records[0]), block(EntryType::Regular, "s", &data)].concat();
    assert!(format!("{:#}", first(&archive).unwrap_err()).contains("no size"));
}

#[test]
fn a_size_in_pax_overrides_that_of_the_header() {
    let mut file = block(EntryType::Regular, "a", b"");
    file.extend([7; BLOCK]);
    let archive =
        [block(EntryType::XHeader, "p", b"12 size=512\n"), file, block(EntryType::Regular, "b", b"")].concat();
    let mut tape = Tape::new(&archive[..]);
    assert_eq!(tape.next_member().unwrap().unwrap().size, 512);
    assert_eq!(tape.next_member().unwrap().unwrap().path, b"b");
}

#[test]
fn names_have_up_to_4095_bytes_and_no_nul() {
    let file = block(EntryType::Symlink, "a", b"");
    let long = |length: usize| [vec![b'x'; length], vec![0]].concat();
    let pax = |key: &str, value: &[u8]| {
        let length = key.len() + value.len() + 3;
        let digits = (1..).find(|digits| (length + digits).to_string().len() == *digits).unwrap();
        let record = [format!("{} {key}=", length + digits).as_bytes(), value, b"\n"].concat();
        [block(EntryType::XHeader, "p", &record), file.clone()].concat()
    };
    let gnu = |kind: EntryType, name: &[u8]| [block(kind, "././@LongLink", name), file.clone()].concat();
    for (archive, expected) in [
        (gnu(EntryType::GNULongName, &long(4095)), Ok((4095, 0))),
        (gnu(EntryType::GNULongLink, &long(4095)), Ok((1, 4095))),
        (gnu(EntryType::GNULongName, &[b'x'; 4096]), Err("a name over 4095 bytes")),
        (gnu(EntryType::GNULongLink, &[b'x'; 4096]), Err("a name over 4095 bytes")),
        (gnu(EntryType::GNULongName, &long(4096)), Err("4097 bytes, 4096 at most")),
        (pax("path", &[b'x'; 4095]), Ok((4095, 0))),
        (pax("path", &[b'x'; 4096]), Err("a name over 4095 bytes")),
        (pax("linkpath", &[b'x'; 4096]), Err("a name over 4095 bytes")),
        (pax("path", b"a\0b"), Err("a NUL in its name")),
        (pax("linkpath", b"a\0b"), Err("a NUL in its name")),
    ] {
        match (first(&archive).map(|member| (member.path.len(), member.link.len())), expected) {
            (Ok(lengths), Ok(expected)) => assert_eq!(lengths, expected),
            (Err(error), Err(message)) => assert!(format!("{error:#}").contains(message), "{message}: {error:#}"),
            (got, expected) => panic!("{expected:?}: {got:?}"),
        }
    }
}

#[test]
fn numbers_of_a_header_are_checked() {
    let edited = |kind: EntryType, at: usize, text: &[u8]| {
        let mut block = block(kind, "a", b"");
        block[at..at + text.len()].copy_from_slice(text);
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        first(&block)
    };
    for (at, message) in [(100, "malformed mode"), (108, "malformed owner"), (116, "malformed group")] {
        let error = edited(EntryType::Regular, at, b"x").unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    assert!(edited(EntryType::Regular, 124, b"x").unwrap_err().to_string().contains("bad size"));
    assert!(edited(EntryType::Regular, 136, b"x").unwrap_err().to_string().contains("malformed time"));
    let huge = edited(EntryType::Regular, 108, b"\x80\0\0\0\xff\xff\xff\xff").unwrap_err().to_string();
    assert!(huge.contains("owner 4294967295"), "{huge}");
    for kind in [EntryType::Char, EntryType::Block] {
        assert_eq!(edited(kind, 329, b"0000010\x000000020\0").unwrap().device, (8, 16));
        for at in [329, 337] {
            assert!(edited(kind, at, b"x").unwrap_err().to_string().contains("malformed device number"));
        }
    }
    // What is not a device may have anything there.
    assert_eq!(edited(EntryType::Regular, 329, b"x").unwrap().device, (0, 0));
}

#[test]
fn the_size_of_xattrs_is_that_of_names_values_and_their_places() {
    let record = b"26 SCHILY.xattr.user.k=ab\n";
    let archive = [block(EntryType::XHeader, "p", record), block(EntryType::Regular, "a", b"")].concat();
    let places = 2 * size_of::<Vec<u8>>();
    assert_eq!(first(&archive).unwrap().metadata.xattrs_size(), places + "user.k".len() + 2);
}

#[test]
fn only_an_early_end_is_called_truncated() {
    assert_eq!(truncated(io::ErrorKind::UnexpectedEof.into()).to_string(), "truncated tar archive");
    assert_eq!(truncated(io::Error::other("the disk is on fire")).to_string(), "the disk is on fire");
}
