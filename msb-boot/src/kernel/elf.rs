//! A raw kernel image as an ELF file that all VMMs take. It has one segment; libkrun starts at the entry in the header, in 64-bit mode,
//! and QEMU's `-kernel` at the entry in the PVH note. Data in, data out.

use anyhow::Context;
use object::read::elf::{FileHeader as _, ProgramHeader as _};
use object::write::elf::{FileHeader, ProgramHeader, Writer};
use object::{Endianness, elf};

/// The type of Xen's note with the 32-bit physical entry point (`XEN_ELFNOTE_PHYS32_ENTRY`).
const PHYS32_ENTRY: u32 = 18;

/// Where the raw image starts in the file.
pub(crate) const IMAGE_OFFSET: usize = 4096;

/// Finds the PVH entry in the kernel's own note. libkrunfw has the kernel without its ELF headers, so no header leads to the note, and
/// the image is searched for it. An entry outside of the image means that the bytes only look like a note.
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

/// The bytes before the image, [`IMAGE_OFFSET`] of them: the headers, and the PVH note if the kernel has a PVH entry.
///
/// # Errors
/// Numbers that an ELF header cannot hold.
pub(crate) fn headers(machine: u16, length: usize, load: u64, entry: u64, pvh: Option<u64>) -> anyhow::Result<Vec<u8>> {
    let note = pvh.map(pvh_note);
    let mut out = Vec::new();
    let mut writer = Writer::new(Endianness::Little, true, &mut out);
    writer.reserve_file_header();
    writer.reserve_program_headers(1 + u32::from(note.is_some()));
    let note_offset = writer.reserve(note.as_ref().map_or(0, Vec::len), 4) as u64;
    writer.reserve_until(IMAGE_OFFSET);
    let header = FileHeader {
        os_abi: elf::ELFOSABI_NONE,
        abi_version: 0,
        e_type: elf::ET_EXEC,
        e_machine: machine,
        e_entry: entry,
        e_flags: 0,
    };
    writer.write_file_header(&header).context("ELF header")?;
    writer.write_align_program_headers();
    let length = length as u64;
    writer.write_program_header(&ProgramHeader {
        p_type: elf::PT_LOAD,
        p_flags: elf::PF_R | elf::PF_W | elf::PF_X,
        p_offset: IMAGE_OFFSET as u64,
        p_vaddr: load,
        p_paddr: load,
        p_filesz: length,
        p_memsz: length,
        p_align: 4096,
    });
    if let Some(note) = note {
        writer.write_program_header(&ProgramHeader {
            p_type: elf::PT_NOTE,
            p_flags: elf::PF_R,
            p_offset: note_offset,
            p_vaddr: 0,
            p_paddr: 0,
            p_filesz: note.len() as u64,
            p_memsz: note.len() as u64,
            p_align: 4,
        });
        writer.write(&note);
    }
    writer.pad_until(IMAGE_OFFSET);
    Ok(out)
}

/// The note that names the PVH entry.
fn pvh_note(entry: u64) -> Vec<u8> {
    const NAME: &[u8; 4] = b"Xen\0";
    let value = entry.to_le_bytes();
    let words = [NAME.len() as u32, value.len() as u32, PHYS32_ENTRY];
    let words: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    [&words[..], NAME, &value].concat()
}

/// Whether the [`headers`] of a file have a PVH note.
pub(crate) fn has_pvh_entry(headers: &[u8]) -> bool {
    let Ok(header) = elf::FileHeader64::<Endianness>::parse(headers) else { return false };
    let segments = header.program_headers(Endianness::Little, headers).unwrap_or_default();
    segments.iter().any(|segment| {
        let notes = segment.notes(Endianness::Little, headers).ok().flatten();
        notes.is_some_and(|mut notes| {
            std::iter::from_fn(|| notes.next().ok().flatten())
                .any(|note| note.name() == b"Xen" && note.n_type(Endianness::Little) == PHYS32_ENTRY)
        })
    })
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
    fn the_entry_is_found_in_the_note() {
        let note = b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0\x40\0\0\x01\0\0\0\0";
        assert_eq!(pvh_entry(&image_with(note), 0x100_0000), Some(0x100_0040));
        let short = b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0\x40\0\0\x01";
        assert_eq!(pvh_entry(&image_with(short), 0x100_0000), Some(0x100_0040));
    }

    #[test]
    fn an_entry_outside_of_the_image_is_ignored() {
        let note = b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0\x40\0\0\x01\0\0\0\0";
        assert_eq!(pvh_entry(&image_with(note), 0x200_0000), None);
        assert_eq!(pvh_entry(&[], 0), None);
        assert_eq!(pvh_entry(b"\x7fELF", 0), None);
    }

    #[test]
    fn the_headers_name_both_entries_and_end_where_the_image_starts() {
        let headers = headers(elf::EM_X86_64, 8192, 0x100_0000, 0x100_0080, Some(0x100_0040)).unwrap();
        assert_eq!(headers.len(), IMAGE_OFFSET);
        assert_eq!(headers[24..32], 0x100_0080u64.to_le_bytes());
        assert_eq!(pvh_entry(&headers, 0x100_0000 - 64), Some(0x100_0040));
        assert!(has_pvh_entry(&headers));
    }

    #[test]
    fn a_kernel_without_a_pvh_entry_has_no_note() {
        let headers = headers(elf::EM_X86_64, 8192, 0x100_0000, 0x100_0080, None).unwrap();
        assert_eq!(headers.len(), IMAGE_OFFSET);
        assert_eq!(pvh_entry(&headers, 0x100_0000 - 64), None);
        assert!(!has_pvh_entry(&headers));
    }
}
