//! Kernels as ELF files: whether one can begin by the PVH protocol (Xen's `docs/misc/pvh.pandoc`; elf(5), notes).

use std::fs::File;
use std::os::unix::fs::FileExt;

const PT_NOTE: u32 = 4;
/// `XEN_ELFNOTE_PHYS32_ENTRY`, xen/interface/elfnote.h: where it begins.
const ENTRY: u32 = 18;
const NAME: &[u8] = b"Xen\0";
/// A kernel has a handful of segments, and notes of some hundred bytes.
const MOST_SEGMENTS: u16 = 64;
const LARGEST_NOTES: u64 = 64 << 10;
const HEADER: usize = 64;
const SEGMENT: usize = 56;

/// Whether a file begins as ELF files do.
pub(super) fn is_elf(file: &File) -> bool {
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, 0).is_ok() && magic == *b"\x7fELF"
}

/// Whether the notes of a 64-bit file name an entry of PVH. What is cut short has none.
pub(super) fn has_pvh_entry(file: &File) -> bool {
    let mut header = [0; HEADER];
    if file.read_exact_at(&mut header, 0).is_err() || !header.starts_with(b"\x7fELF\x02\x01") {
        return false;
    }
    let (Some(table), Some(size), Some(count)) = (long(&header, 32), short(&header, 54), short(&header, 56))
    else {
        return false;
    };
    if usize::from(size) < SEGMENT || count > MOST_SEGMENTS {
        return false;
    }
    (0..u64::from(count)).any(|number| {
        let mut segment = [0; SEGMENT];
        let at = table.checked_add(number * u64::from(size));
        let read = at.is_some_and(|at| file.read_exact_at(&mut segment, at).is_ok());
        read && notes(file, &segment).is_some_and(|notes| names_entry(&notes))
    })
}

/// The content of a segment of notes.
fn notes(file: &File, segment: &[u8]) -> Option<Vec<u8>> {
    let (kind, offset, length) = (word(segment, 0)?, long(segment, 8)?, long(segment, 32)?);
    if kind != PT_NOTE || length > LARGEST_NOTES {
        return None;
    }
    let mut notes = vec![0; usize::try_from(length).ok()?];
    file.read_exact_at(&mut notes, offset).ok().map(|()| notes)
}

fn names_entry(mut notes: &[u8]) -> bool {
    while let (Some(name), Some(content), Some(kind)) = (word(notes, 0), word(notes, 4), word(notes, 8)) {
        let padded = |length: u32| (length as usize).next_multiple_of(4);
        let Some((found, rest)) = notes[12..].split_at_checked(padded(name)) else { return false };
        if kind == ENTRY && found == NAME {
            return true;
        }
        let Some(rest) = rest.get(padded(content)..) else { return false };
        notes = rest;
    }
    false
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_le_bytes)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write;

    use super::*;

    /// A file of one segment with two notes, the second of this name and kind.
    pub(in crate::guest) fn kernel(name: &[u8; 4], kind: u32) -> Vec<u8> {
        let mut file = vec![0; HEADER + SEGMENT];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[32..40].copy_from_slice(&(HEADER as u64).to_le_bytes());
        file[54..56].copy_from_slice(&(SEGMENT as u16).to_le_bytes());
        file[56..58].copy_from_slice(&1u16.to_le_bytes());
        let mut notes = Vec::new();
        for (name, kind, content) in [(b"Lin\0", 1, &[7; 6][..]), (name, kind, &[0; 8])] {
            for number in [4, content.len() as u32, kind] {
                notes.extend(number.to_le_bytes());
            }
            notes.extend(name);
            notes.extend(content);
            notes.resize(notes.len().next_multiple_of(4), 0);
        }
        let segment = &mut file[HEADER..];
        segment[..4].copy_from_slice(&PT_NOTE.to_le_bytes());
        segment[8..16].copy_from_slice(&((HEADER + SEGMENT) as u64).to_le_bytes());
        segment[32..40].copy_from_slice(&(notes.len() as u64).to_le_bytes());
        file.extend(notes);
        file
    }

    fn found(bytes: &[u8]) -> bool {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        has_pvh_entry(&file)
    }

    #[test]
    fn an_entry_is_found_among_the_notes() {
        assert!(found(&kernel(b"Xen\0", ENTRY)));
        assert!(!found(&kernel(b"Xen\0", 1)) && !found(&kernel(b"GNU\0", ENTRY)));
    }

    #[test]
    fn what_is_cut_or_lies_about_its_lengths_has_none() {
        let whole = kernel(b"Xen\0", ENTRY);
        for length in 0..whole.len() {
            assert!(!found(&whole[..length]), "cut at {length}");
        }
        for at in 0..whole.len() {
            for value in [0, 0x7f, 0xff] {
                let mut odd = whole.clone();
                odd[at] = value;
                // An answer, whichever: no panic.
                found(&odd);
            }
        }
    }
}
