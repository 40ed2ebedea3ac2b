//! What is mapped: an ELF file's segments, build ID and unwind information.

use memchr::memmem;
use object::{
    Endianness, ReadRef,
    elf::{
        ELF_NOTE_GNU, FileHeader64, NT_GNU_BUILD_ID, PF_X, PT_LOAD, SHF_COMPRESSED, SHN_UNDEF,
        SHT_DYNSYM, SHT_NOBITS, SHT_SYMTAB,
    },
    read::elf::{FileHeader as _, ProgramHeader as _, SectionHeader as _, Sym as _},
};

use super::compile::Frames;

/// An executable segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    pub offset: u64,
    pub address: u64,
    pub file_bytes: u64,
}

/// What an object defines for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol {
    pub address: u64,
    pub size: u64,
}

/// An ELF file, as far as it is wanted here.
pub struct Image<'a, R: ReadRef<'a>> {
    header: &'a FileHeader64<Endianness>,
    endian: Endianness,
    data: R,
}

impl<'a, R: ReadRef<'a>> Image<'a, R> {
    /// Reads the header.
    ///
    /// # Errors
    /// Not a 64-bit ELF file.
    pub fn parse(data: R) -> object::Result<Self> {
        let header = FileHeader64::<Endianness>::parse(data)?;
        Ok(Image {
            header,
            endian: header.endian()?,
            data,
        })
    }

    /// The executable segments. Only those: lld puts the end of one segment and the beginning of the
    /// next, at another address, into one page of the file.
    ///
    /// # Errors
    /// A malformed file.
    pub fn loads(&self) -> object::Result<Vec<Load>> {
        let segments = self.header.program_headers(self.endian, self.data)?;
        Ok(segments
            .iter()
            .filter(|s| s.p_type(self.endian) == PT_LOAD && s.p_flags(self.endian) & PF_X != 0)
            .map(|s| Load {
                offset: s.p_offset(self.endian),
                address: s.p_vaddr(self.endian),
                file_bytes: s.p_filesz(self.endian),
            })
            .collect())
    }

    /// The build ID, where it has one.
    pub fn build_id(&self) -> Option<Vec<u8>> {
        let segments = self.header.program_headers(self.endian, self.data).ok()?;
        for segment in segments {
            let Ok(Some(mut notes)) = segment.notes(self.endian, self.data) else {
                continue;
            };
            while let Ok(Some(note)) = notes.next() {
                if note.name() == ELF_NOTE_GNU && note.n_type(self.endian) == NT_GNU_BUILD_ID {
                    return Some(note.desc().to_vec());
                }
            }
        }
        None
    }

    /// Exported symbols by name.
    ///
    /// # Errors
    /// A malformed file.
    pub fn exported<const N: usize>(
        &self,
        names: [&str; N],
    ) -> object::Result<[Option<Symbol>; N]> {
        self.symbols(SHT_DYNSYM, names)
    }

    /// Functions of Go's runtime that are the first of their stack, by rising address; none where it is no
    /// Go program, or a stripped one.
    ///
    /// `mcall`, `systemstack` and `morestack` (which also lets go of the CPU where the scheduler asks for it) go from
    /// a goroutine's stack to the thread's own. The frame pointer they leave there leads back, but the goroutine may
    /// go on in another thread meanwhile.
    pub fn go_stack_bases(&self) -> Vec<Symbol> {
        const BASES: [&str; 6] = [
            "runtime.mcall",
            "runtime.systemstack",
            "runtime.morestack",
            "runtime.mstart",
            "runtime.rt0_go",
            "runtime.goexit",
        ];
        // Assembler functions are known to the symbol table under this name of their binary interface.
        const OF_ASSEMBLER: [&str; 6] = [
            "runtime.mcall.abi0",
            "runtime.systemstack.abi0",
            "runtime.morestack.abi0",
            "runtime.mstart.abi0",
            "runtime.rt0_go.abi0",
            "runtime.goexit.abi0",
        ];
        let found = [BASES, OF_ASSEMBLER].map(|names| self.symbols(SHT_SYMTAB, names));
        let mut found: Vec<Symbol> = found.into_iter().flatten().flatten().flatten().collect();
        found.sort_by_key(|symbol| symbol.address);
        found.dedup();
        found
    }

    fn symbols<const N: usize>(
        &self,
        table: u32,
        names: [&str; N],
    ) -> object::Result<[Option<Symbol>; N]> {
        let mut found = [None; N];
        let sections = self.header.sections(self.endian, self.data)?;
        let symbols = sections.symbols(self.endian, self.data, table)?;
        let strings = sections.section(symbols.string_section());
        let Ok(strings) = strings.and_then(|s| s.data(self.endian, self.data)) else {
            return Ok(found);
        };
        // Each name asked for is looked up once in all of the strings, read at once: symbol by symbol it
        // is two reads of the file each, 20,000 for PostgreSQL's.
        // A name may be the end of another one's.
        let places = names.map(|name| {
            let text = [name.as_bytes(), b"\0"].concat();
            let places = memmem::find_iter(strings, &text).map(|at| at as u32);
            places.collect::<Vec<u32>>()
        });
        if places.iter().all(Vec::is_empty) {
            return Ok(found);
        }
        for symbol in symbols.iter() {
            if symbol.st_shndx(self.endian) == SHN_UNDEF {
                continue;
            }
            let name = symbol.st_name(self.endian);
            if let Some(at) = places.iter().position(|places| places.contains(&name)) {
                found[at] = Some(Symbol {
                    address: symbol.st_value(self.endian),
                    size: symbol.st_size(self.endian),
                });
            }
        }
        Ok(found)
    }

    /// Bytes of the file that are loaded at an address.
    pub fn bytes_at(&self, address: u64, length: u64) -> Option<&'a [u8]> {
        let segments = self.header.program_headers(self.endian, self.data).ok()?;
        segments.iter().find_map(|segment| {
            let loaded = segment.p_type(self.endian) == PT_LOAD;
            let range = loaded.then(|| segment.data_range(self.endian, self.data, address, length));
            range?.ok()?
        })
    }

    /// Its unwind information. Compressed sections are passed over.
    ///
    /// # Errors
    /// A malformed file.
    pub fn frames(&self) -> object::Result<Frames<'a>> {
        let sections = self.header.sections(self.endian, self.data)?;
        let mut frames = Frames::default();
        for section in sections.iter() {
            let name = sections.section_name(self.endian, section).unwrap_or(b"");
            let address = section.sh_addr(self.endian);
            let readable = section.sh_type(self.endian) != SHT_NOBITS
                && section.sh_flags(self.endian) & u64::from(SHF_COMPRESSED) == 0;
            match name {
                b".text" => frames.text_address = address,
                b".got" => frames.got_address = address,
                b".eh_frame" if readable => {
                    frames.eh_frame = section.data(self.endian, self.data)?;
                    frames.eh_frame_address = address;
                }
                b".debug_frame" if readable => {
                    frames.debug_frame = section.data(self.endian, self.data)?;
                }
                _ => {}
            }
        }
        Ok(frames)
    }
}

/// Address a file's byte is linked at, by the segment it is loaded with.
pub fn linked_address(loads: &[Load], offset: u64) -> Option<u64> {
    /// A mapping begins at a page, a segment anywhere in it.
    const PAGE: u64 = 4096;
    let load = loads.iter().find(|load| {
        let start = load.offset & !(PAGE - 1);
        offset >= start && offset < load.offset.saturating_add(load.file_bytes)
    })?;
    Some(load.address.wrapping_sub(load.offset).wrapping_add(offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_in_the_middle_of_a_segment_has_the_segments_address() {
        let loads = [
            Load {
                offset: 0,
                address: 0x40_0000,
                file_bytes: 0x1234,
            },
            Load {
                offset: 0x1e40,
                address: 0x40_2e40,
                file_bytes: 0x5000,
            },
        ];
        assert_eq!(linked_address(&loads, 0), Some(0x40_0000));
        assert_eq!(linked_address(&loads, 0x2000), Some(0x40_3000));
        assert_eq!(linked_address(&loads, 0x9000), None);
    }

    #[test]
    fn what_is_no_elf_file_is_an_error_and_never_a_panic() {
        for length in [0, 3, 64, 4096] {
            assert!(Image::parse(vec![0x7fu8; length].as_slice()).is_err());
        }
    }
}
