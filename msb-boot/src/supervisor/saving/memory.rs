//! The memory of a guest that is saved. Usually it is a file that the VMM has mapped shared. If the VM started from a snapshot, it is the
//! saved file and the pages that the VMM has changed, which are read from the VMM's memory. A guest that has taken the VMM over controls
//! those pages, as it controls its memory in any case.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use anyhow::{Context, ensure};
use msb::overlay::copy_data;
use msb::store::erase::Use;
use rustix::param::page_size;

/// How much is copied at a time, in bytes.
const BLOCK: usize = 1 << 20;
/// The bits of an entry of `/proc/PID/pagemap`, see proc_pid_pagemap(5).
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_FILE: u64 = 1 << 61;

/// The memory of a guest.
pub(super) enum Memory {
    /// A file that the VMM has mapped.
    Shared(File),
    /// A saved file that the VMM has mapped privately.
    Private {
        /// The file.
        saved: Use,
        /// The VMM's process ID.
        vmm: u32,
    },
}

impl Memory {
    /// Copies what the guest cannot change. It need not be paused for that.
    ///
    /// # Errors
    /// Those of reading and writing.
    pub(super) fn begin_copy(&self, copy: &File) -> anyhow::Result<()> {
        match self {
            Self::Shared(_) => Ok(()),
            Self::Private { saved, .. } => Ok(copy_data(saved, copy, saved.metadata()?.len())?),
        }
    }

    /// Copies the rest. The guest must be paused.
    ///
    /// # Errors
    /// As [`Self::begin_copy`]; a VMM that has not mapped the file, or has ended.
    pub(super) fn complete_copy(&self, copy: &File) -> anyhow::Result<()> {
        match self {
            Self::Shared(memory) => Ok(copy_data(memory, copy, memory.metadata()?.len())?),
            Self::Private { saved, vmm } => copy_changes(*vmm, saved.metadata()?.len(), copy),
        }
    }
}

fn copy_changes(vmm: u32, size: u64, copy: &File) -> anyhow::Result<()> {
    let path = |file| format!("/proc/{vmm}/{file}");
    let maps = fs::read_to_string(path("maps")).context("the VMM's mappings")?;
    let mappings = guest_mappings(&maps, size);
    ensure!(!mappings.is_empty(), "the VMM has not mapped it");
    let (pages, memory) = (File::open(path("pagemap"))?, File::open(path("mem"))?);
    for mapping in mappings {
        copy_changed_pages(&mapping, &pages, &memory, copy)?;
    }
    Ok(())
}

/// A part of the guest's memory in the VMM's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mapping {
    start: u64,
    end: u64,
    offset: u64,
}

/// Finds the guest's memory in a `/proc/PID/maps`: private mappings of one file that cover it in order, from 0 to `size`. The device number
/// in the table is not compared with that of the file, because on some file systems they differ.
fn guest_mappings(maps: &str, size: u64) -> Vec<Mapping> {
    let (mut found, mut file): (Vec<Mapping>, Option<(&str, &str)>) = (Vec::new(), None);
    for (mapping, of) in maps.lines().filter_map(private_mapping) {
        if file != Some(of) || found.last().is_none_or(|last| last.offset + last.end - last.start != mapping.offset) {
            found.clear();
            file = (mapping.offset == 0).then_some(of);
        }
        if file.is_some() {
            found.push(mapping);
            if mapping.offset + mapping.end - mapping.start == size {
                return found;
            }
        }
    }
    Vec::new()
}

/// A writable private mapping of a file, and the file's device and inode number.
fn private_mapping(line: &str) -> Option<(Mapping, (&str, &str))> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let is_private = fields.next()?.starts_with("rw-p");
    let number = |text| u64::from_str_radix(text, 16).ok();
    let mapping = Mapping { start: number(start)?, end: number(end)?, offset: number(fields.next()?)? };
    let file = (fields.next()?, fields.next()?);
    (is_private && file.1 != "0" && mapping.start < mapping.end).then_some((mapping, file))
}

/// Whether the process has its own copy of a page of a private mapping. `entry` is the page's entry in the pagemap.
fn is_changed(entry: u64) -> bool {
    entry & SWAPPED != 0 || entry & (PRESENT | OF_FILE) == PRESENT
}

fn copy_changed_pages(mapping: &Mapping, pages: &File, memory: &File, copy: &File) -> io::Result<()> {
    let page = page_size() as u64;
    let mut block = vec![0; BLOCK];
    let mut entries = vec![0; BLOCK];
    let mut at = mapping.start;
    while at < mapping.end {
        let count = ((mapping.end - at) / page).min(BLOCK as u64 / 8).max(1);
        let entries = &mut entries[..count as usize * 8];
        pages.read_exact_at(entries, at / page * 8)?;
        let entries = entries.chunks_exact(8).map(|entry| u64::from_ne_bytes(entry.try_into().unwrap_or_default()));
        let changed: Vec<bool> = entries.map(is_changed).collect();
        for run in changed.chunk_by(|one, next| one == next) {
            let length = run.len() as u64 * page;
            if run[0] {
                copy_range(memory, at, copy, mapping.offset + (at - mapping.start), length, &mut block)?;
            }
            at += length;
        }
    }
    Ok(())
}

fn copy_range(from: &File, at: u64, to: &File, offset: u64, length: u64, block: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < length {
        let block = &mut block[..usize::try_from(length - done).unwrap_or(BLOCK).min(BLOCK)];
        from.read_exact_at(block, at + done)?;
        to.write_all_at(block, offset + done)?;
        done += block.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_memory_is_the_private_file_that_is_mapped_as_a_whole() {
        let library = "7f00-8f00 rw-p 00001000 fe:00 77 /lib/libc.so.6\n";
        let whole = "10000-18000 rw-p 00000000 fe:00 12 /memory\n";
        let parts = "10000-14000 rw-p 00000000 fe:00 12 /memory\n14000-18000 rw-p 00004000 fe:00 12 /memory\n";
        let one = vec![Mapping { start: 0x10000, end: 0x18000, offset: 0 }];
        let two = vec![
            Mapping { start: 0x10000, end: 0x14000, offset: 0 },
            Mapping { start: 0x14000, end: 0x18000, offset: 0x4000 },
        ];
        for (maps, expected) in [
            (whole.to_owned(), one.clone()),
            (format!("{library}{whole}{library}"), one),
            (format!("{library}{parts}"), two.clone()),
            (format!("10000-14000 rw-p 00000000 fe:00 11 /other\n{parts}"), two),
            (parts.replace(" 00004000", " 00008000"), Vec::new()),
            (parts.replace("00004000 fe:00 12", "00004000 fe:00 13"), Vec::new()),
            (parts.replace("00004000 fe:00 12", "00004000 fe:01 12"), Vec::new()),
            (whole.replace("rw-p", "rw-s"), Vec::new()),
            (whole.replace("rw-p", "r--p"), Vec::new()),
            (whole.replace("fe:00 12 /memory", "00:00 0"), Vec::new()),
            (whole.replace("00000000", "00001000"), Vec::new()),
            (whole.replace("18000", "17000"), Vec::new()),
            (whole.replace("18000", "19000"), Vec::new()),
            (format!("{library}nonsense\n10000-18000\n"), Vec::new()),
        ] {
            assert_eq!(guest_mappings(&maps, 0x8000), expected, "{maps}");
        }
    }

    #[test]
    fn a_page_is_the_processs_own_if_it_is_anonymous_or_swapped() {
        for (entry, expected) in [
            (0, false),
            (PRESENT, true),
            (PRESENT | OF_FILE, false),
            (OF_FILE, false),
            (SWAPPED, true),
            (PRESENT | 0xfff, true),
        ] {
            assert_eq!(is_changed(entry), expected, "{entry:x}");
        }
    }
}
