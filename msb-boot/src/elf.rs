//! A raw kernel image as an ELF file that both VMMs take: one segment, the entry for a processor in 64-bit mode, where libkrun
//! enters, and the note that says where a PVH start enters, which is what QEMU's `-kernel` goes by. Data in, data out.

/// The type of Xen's note with the 32-bit physical entry point (`XEN_ELFNOTE_PHYS32_ENTRY`).
const PHYS32_ENTRY: u32 = 18;

const EHDR: usize = 64;
const PHDR: usize = 56;
/// Where the number of program headers is.
const PHNUM: usize = 56;
/// Where the raw image starts in the file.
pub(crate) const IMAGE_OFFSET: usize = 4096;

/// Finds the PVH entry that the kernel's own note names. The image is the kernel without its ELF headers, so the note
/// is looked for by its shape; an entry outside of the image is something else that looks alike.
pub(crate) fn pvh_entry(image: &[u8], load: u64) -> Option<u64> {
    let end = load + image.len() as u64;
    image.windows(24).step_by(4).find_map(|window| {
        let word = |at: usize| u32::from_le_bytes([window[at], window[at + 1], window[at + 2], window[at + 3]]);
        let is_note = word(0) == 4 && word(8) == PHYS32_ENTRY && &window[12..16] == b"Xen\0";
        let entry = match word(4) {
            4 => u64::from(word(16)),
            8 => u64::from(word(16)) | u64::from(word(20)) << 32,
            _ => return None,
        };
        (is_note && (load..end).contains(&entry)).then_some(entry)
    })
}

/// What goes before the image: headers, and the note for a kernel that has a PVH entry, [`IMAGE_OFFSET`] bytes.
pub(crate) fn headers(length: usize, load: u64, entry: u64, pvh: Option<u64>) -> Vec<u8> {
    let mut note = Vec::new();
    if let Some(entry) = pvh {
        for word in [4, 8, PHYS32_ENTRY] {
            note.extend_from_slice(&word.to_le_bytes());
        }
        note.extend_from_slice(b"Xen\0");
        note.extend_from_slice(&entry.to_le_bytes());
    }

    let note_at = EHDR + 2 * PHDR;
    let mut out = b"\x7fELF\x02\x01\x01".to_vec(); // 64 bit, little-endian
    out.resize(16, 0);
    put16(&mut out, &[2, 62]); // ET_EXEC, EM_X86_64
    put32(&mut out, &[1]);
    put64(&mut out, &[entry, EHDR as u64, 0]); // entry, program headers, no sections
    put32(&mut out, &[0]);
    put16(&mut out, &[EHDR as u16, PHDR as u16, 1 + u16::from(pvh.is_some()), 0, 0, 0]);

    let length = length as u64;
    put32(&mut out, &[1, 7]); // PT_LOAD, RWX
    put64(&mut out, &[IMAGE_OFFSET as u64, load, load, length, length, 4096]);
    if pvh.is_some() {
        put32(&mut out, &[4, 4]); // PT_NOTE, R
        put64(&mut out, &[note_at as u64, 0, 0, note.len() as u64, note.len() as u64, 4]);
        out.extend_from_slice(&note);
    }
    out.resize(IMAGE_OFFSET, 0);
    out
}

/// Whether [`headers`] have a PVH entry.
pub(crate) fn has_pvh_entry(headers: &[u8]) -> bool {
    headers.get(PHNUM) == Some(&2)
}

fn put16(out: &mut Vec<u8>, values: &[u16]) {
    values.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
}

fn put32(out: &mut Vec<u8>, values: &[u32]) {
    values.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
}

fn put64(out: &mut Vec<u8>, values: &[u64]) {
    values.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image_with(note: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 4096];
        image[256..256 + note.len()].copy_from_slice(note);
        image
    }

    #[test]
    fn the_entry_is_found_by_the_notes_shape() {
        let note = b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0\x40\0\0\x01\0\0\0\0";
        assert_eq!(pvh_entry(&image_with(note), 0x100_0000), Some(0x100_0040));
        let short = b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0\x40\0\0\x01";
        assert_eq!(pvh_entry(&image_with(short), 0x100_0000), Some(0x100_0040));
    }

    #[test]
    fn an_entry_outside_of_the_image_is_none() {
        let note = b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0\x40\0\0\x01\0\0\0\0";
        assert_eq!(pvh_entry(&image_with(note), 0x200_0000), None);
        assert_eq!(pvh_entry(&[], 0), None);
        assert_eq!(pvh_entry(b"\x7fELF", 0), None);
    }

    #[test]
    fn the_headers_name_both_entries_and_end_where_the_image_starts() {
        let headers = headers(8192, 0x100_0000, 0x100_0080, Some(0x100_0040));
        assert_eq!(headers.len(), IMAGE_OFFSET);
        assert_eq!(headers[24..32], 0x100_0080u64.to_le_bytes());
        assert_eq!(pvh_entry(&headers, 0x100_0000 - 64), Some(0x100_0040));
        assert!(has_pvh_entry(&headers));
    }

    #[test]
    fn a_kernel_without_a_pvh_entry_has_no_note() {
        let headers = headers(8192, 0x100_0000, 0x100_0080, None);
        assert_eq!(headers.len(), IMAGE_OFFSET);
        assert_eq!(pvh_entry(&headers, 0x100_0000 - 64), None);
        assert!(!has_pvh_entry(&headers));
    }
}
