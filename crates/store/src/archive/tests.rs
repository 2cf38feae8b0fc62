//! Archives written by another implementation, by hand, and by chance.

use proptest::prelude::*;

use super::*;

fn read(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>> {
    let mut archive = Archive::new(bytes);
    let mut entries = Vec::new();
    while let Some(entry) = archive.next_entry()? {
        let mut data = Vec::new();
        while archive.left() > 0 {
            let part = archive.fill()?;
            let count = part.len();
            data.extend_from_slice(part);
            archive.consume(count);
        }
        entries.push((entry, data));
    }
    archive.drain()?;
    Ok(entries)
}

/// A header with everything at rest but what `change` sets.
fn block(change: impl FnOnce(&mut [u8; 512])) -> Vec<u8> {
    let mut block = [0u8; 512];
    block[..4].copy_from_slice(b"file");
    block[100..107].copy_from_slice(b"0000644");
    block[156] = b'0';
    block[257..263].copy_from_slice(b"ustar\0");
    change(&mut block);
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block.to_vec()
}

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().next_multiple_of(512), 0);
    padded
}

fn sized(kind: u8, size: usize) -> Vec<u8> {
    block(|block| {
        block[156] = kind;
        block[124..136].copy_from_slice(format!("{size:011o} ").as_bytes());
    })
}

fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        body.extend_from_slice(format!("{length} {key}=").as_bytes());
        body.extend_from_slice(value);
        body.push(b'\n');
    }
    [sized(b'x', body.len()), padded(&body)].concat()
}

#[test]
fn what_the_tar_crate_writes_is_read() {
    let mut builder = tar::Builder::new(Vec::new());
    let long = format!("{}file", "long-name/".repeat(30));
    for (name, data) in [("short", &b"abc"[..]), (&long, b""), ("big", &[7; 1500])] {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o4755);
        header.set_uid(3_000_000);
        header.set_mtime(1_700_000_000);
        builder.append_data(&mut header, name, data).unwrap();
    }
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, "link", &long).unwrap();
    let entries = read(&builder.into_inner().unwrap()).unwrap();
    let names: Vec<_> =
        entries.iter().map(|(entry, _)| String::from_utf8_lossy(&entry.path).into_owned()).collect();
    assert_eq!(names, ["short", long.as_str(), "big", "link"]);
    assert_eq!(entries[0].1, b"abc");
    assert_eq!(
        (entries[0].0.mode, entries[0].0.uid, entries[0].0.mtime),
        (0o4755, 3_000_000, (1_700_000_000, 0))
    );
    assert_eq!(entries[2].1, [7; 1500]);
    assert_eq!((entries[3].0.kind, entries[3].0.link.len()), (EntryKind::SymbolicLink, long.len()));
}

#[test]
fn pax_records_may_hold_any_byte() {
    let value = b"\x01\0\0\x02\n\n=\n\xff";
    let header = pax(&[
        ("path", b"renamed"),
        ("mtime", b"-1.25"),
        ("uid", b"70000"),
        ("size", b"3"),
        ("SCHILY.xattr.security.capability", value),
        ("comment", b""),
    ]);
    let entries = read(&[header, sized(b'0', 0), padded(b"abc")].concat()).unwrap();
    let (entry, data) = &entries[0];
    assert_eq!(
        (&entry.path[..], entry.uid, entry.mtime, &data[..]),
        (&b"renamed"[..], 70000, (-2, 750_000_000), &b"abc"[..])
    );
    assert_eq!(entry.xattrs, [(b"security.capability".to_vec(), value.to_vec())]);
}

#[test]
fn numbers_may_be_octal_or_binary() {
    for (field, value) in [
        (&b"0000644\0"[..], Some(0o644)),
        (b"   644  ", Some(0o644)),
        (b"\0\0\0\0\0\0\0\0", Some(0)),
        (b"\x80\0\0\0\0\0\x01\0", Some(256)),
        (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
        (b"64 4    ", None),
        (b"8       ", None),
        (b"-1      ", None),
        (b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
    ] {
        assert_eq!(header::number(field).ok(), value, "{field:?}");
    }
}

#[test]
fn old_archives_mark_folders_by_a_slash() {
    let bytes = block(|block| {
        block[..4].copy_from_slice(b"dir/");
        block[156] = 0;
        block[257..263].fill(0);
    });
    assert_eq!(read(&bytes).unwrap()[0].0.kind, EntryKind::Folder);
}

#[test]
fn sparse_files_of_every_format_are_maps() {
    let old = block(|block| {
        block[156] = b'S';
        block[257..265].copy_from_slice(b"ustar  \0");
        block[124..136].copy_from_slice(b"00000000003 ");
        block[386..398].copy_from_slice(b"00000010000 ");
        block[398..410].copy_from_slice(b"00000000003 ");
        block[483..495].copy_from_slice(b"00000020000 ");
    });
    let one_zero = {
        let records: &[(&str, &[u8])] = &[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"file"),
            ("GNU.sparse.realsize", b"8192"),
        ];
        [pax(records), sized(b'0', 515), padded(b"1\n4096\n3\n")].concat()
    };
    let zero_one = {
        let records: &[(&str, &[u8])] = &[("GNU.sparse.map", b"4096,3"), ("GNU.sparse.size", b"8192")];
        [pax(records), sized(b'0', 3)].concat()
    };
    let zero_zero = {
        let records: &[(&str, &[u8])] =
            &[("GNU.sparse.size", b"8192"), ("GNU.sparse.offset", b"4096"), ("GNU.sparse.numbytes", b"3")];
        [pax(records), sized(b'0', 3)].concat()
    };
    for (what, bytes) in [("old", old), ("1.0", one_zero), ("0.1", zero_one), ("0.0", zero_zero)] {
        let entries = read(&[bytes, padded(b"abc")].concat()).unwrap();
        let (entry, data) = &entries[0];
        assert_eq!((entry.kind, &data[..]), (EntryKind::File, &b"abc"[..]), "{what}");
        assert_eq!((entry.size, entry.sparse.as_deref()), (8192, Some(&[(4096, 3)][..])), "{what}");
    }
}

#[test]
fn hostile_headers_are_refused() {
    let big = (2 << 20) + 512;
    let long_path = "x/".repeat(2048);
    let sparse = |map: &[u8], size: &[u8]| {
        [pax(&[("GNU.sparse.map", map), ("GNU.sparse.size", size)]), sized(b'0', 3), padded(b"abc")].concat()
    };
    for (what, bytes) in [
        ("a wrong checksum", {
            let mut bytes = block(|_| {});
            bytes[0] = b'g';
            bytes
        }),
        ("a short header", block(|_| {})[..300].to_vec()),
        ("a short member", [sized(b'0', 1000), vec![0; 512]].concat()),
        ("an unknown type", block(|block| block[156] = b'Q')),
        ("a negative size", block(|block| block[124..136].fill(0xff))),
        (
            "a huge size",
            block(|block| {
                block[124..136].fill(0xff);
                block[124] = 0x80;
            }),
        ),
        ("a huge pax header", [sized(b'x', big), vec![b' '; big]].concat()),
        ("a huge long name", [sized(b'L', big), vec![b'x'; big], block(|_| {})].concat()),
        ("two pax headers", [pax(&[("path", b"a")]), pax(&[("path", b"b")]), block(|_| {})].concat()),
        ("a pax header alone", pax(&[("path", b"a")])),
        ("a long path", [pax(&[("path", long_path.as_bytes())]), block(|_| {})].concat()),
        ("a NUL in a path", [pax(&[("path", b"a\0b")]), block(|_| {})].concat()),
        ("an owner past 32 bits", [pax(&[("uid", b"4294967296")]), block(|_| {})].concat()),
        ("the owner that is none", [pax(&[("gid", b"4294967295")]), block(|_| {})].concat()),
        ("a size that overflows", [pax(&[("size", b"99999999999999999999")]), block(|_| {})].concat()),
        ("a record without a sign", [sized(b'x', 6), padded(b"6 path\n"), block(|_| {})].concat()),
        ("a record too long", [sized(b'x', 9), padded(b"99 a=b\nxx"), block(|_| {})].concat()),
        ("sparse segments out of order", sparse(b"8,2,0,1", b"100")),
        ("sparse segments past the end", sparse(b"98,3", b"100")),
        ("sparse segments that overflow", sparse(b"18446744073709551615,3", b"100")),
        ("sparse segments without data", sparse(b"0,4", b"100")),
        ("half a sparse segment", sparse(b"0,3,5", b"100")),
        ("a file longer than any", sparse(b"0,3", b"18446744073709551615")),
    ] {
        assert!(read(&bytes).is_err(), "{what} was accepted");
    }
}

#[test]
fn members_after_an_end_are_not_read_and_none_is_needed() {
    let bytes = [block(|_| {}), vec![0; 1024], block(|_| {})].concat();
    assert_eq!(read(&bytes).unwrap().len(), 1);
    assert_eq!(read(&block(|_| {})).unwrap().len(), 1);
    assert_eq!(read(b"").unwrap().len(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever the bytes, the reader ends without a panic.
    #[test]
    fn no_bytes_break_the_reader(
        mut bytes in proptest::collection::vec(any::<u8>(), 512..3000),
        kind in prop::sample::select(b"01234567xgLKS".to_vec()),
        right in any::<bool>(),
    ) {
        bytes[156] = kind;
        if right {
            bytes[100..136].fill(b'0');
            bytes[148..156].fill(b' ');
            let sum: u32 = bytes[..512].iter().map(|byte| u32::from(*byte)).sum();
            bytes[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        }
        let _ = read(&bytes);
    }
}
