//! The kernel in a libkrunfw, read from the file. The library may be for another architecture, so that this program cannot load
//! it. Data in, data out.

use object::elf::FileHeader64;
use object::read::elf::ElfFile;
use object::{Endianness, Object, ObjectSection, ObjectSymbol};

/// The symbol that libkrunfw exports for its kernel: a string of C, whose last byte is not the kernel's.
const SYMBOL: &[u8] = b"KERNEL_BUNDLE";

/// Finds the kernel in a library for `machine`, the `e_machine` of its ELF header.
///
/// # Errors
/// Why there is none.
pub(crate) fn kernel(library: &[u8], machine: u16) -> Result<&[u8], &'static str> {
    let file = ElfFile::<FileHeader64<Endianness>>::parse(library).map_err(|_| "it is not a 64-bit ELF library")?;
    if file.elf_header().e_machine.get(file.endian()) != machine {
        return Err("it is built for another kind of machine");
    }
    let symbol = file.dynamic_symbols().find(|symbol| symbol.name_bytes() == Ok(SYMBOL)).ok_or("it holds no kernel")?;
    let section = symbol.section_index().and_then(|index| file.section_by_index(index).ok());
    let data = section.and_then(|section| section.data_range(symbol.address(), symbol.size()).ok().flatten());
    data.and_then(|data| data.split_last()).map(|(_, kernel)| kernel).ok_or("its kernel is truncated")
}

/// Whether a kernel has the header of arm64's `Image`.
pub(crate) fn is_image(kernel: &[u8]) -> bool {
    kernel.get(56..60) == Some(b"ARM\x64")
}

#[cfg(test)]
mod tests {
    use super::*;
    use msb::architecture::Architecture;

    #[test]
    fn a_file_without_a_kernel_is_refused() {
        let machine = Architecture::HOST.elf_machine();
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(kernel(b"#!/bin/sh\n", machine), Err("it is not a 64-bit ELF library"));
        assert_eq!(kernel(&program[..40], machine), Err("it is not a 64-bit ELF library"));
        assert_eq!(kernel(&program, machine + 1), Err("it is built for another kind of machine"));
        assert_eq!(kernel(&program, machine), Err("it holds no kernel"));
    }

    #[test]
    fn an_image_is_known_by_its_header() {
        let mut kernel = vec![0; 64];
        kernel[56..60].copy_from_slice(b"ARM\x64");
        assert!(is_image(&kernel));
        kernel[56] = 0;
        assert!(!is_image(&kernel));
        assert!(!is_image(b"ARM\x64"));
    }
}
