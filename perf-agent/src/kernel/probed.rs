//! Functions that are probed in files of the target: OpenSSL's and those of allocators. Where a file
//! has them, and what other TLS library it is made with.

use std::{fs::File, path::Path};

use anyhow::{Context as _, Result};
use object::{
    Endianness, ReadCache, ReadRef,
    elf::{FileHeader64, PF_X, PT_LOAD, SHN_UNDEF, SHT_DYNSYM, SHT_SYMTAB, STT_FUNC},
    read::elf::{FileHeader as _, ProgramHeader as _, SectionHeader as _, Sym as _},
};

use super::links;

type Header = FileHeader64<Endianness>;

/// A signal that probes functions.
pub struct Probed {
    /// Its name.
    pub signal: &'static str,
    /// What `hello` says where nothing was found yet.
    pub none: &'static str,
    pub functions: &'static [Function],
    /// Program of the return.
    pub returns: &'static str,
    /// Whether a library is looked at, by its file's name.
    pub is_library: fn(&str) -> bool,
}

/// A function that is probed.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    pub name: &'static str,
    /// Program of its entry.
    pub entry: &'static str,
    pub returns: bool,
}

const fn function(name: &'static str, entry: &'static str) -> Function {
    Function {
        name,
        entry,
        returns: true,
    }
}

const fn freeing(name: &'static str) -> Function {
    Function {
        name,
        entry: "alloc_free",
        returns: false,
    }
}

/// OpenSSL 1.1.0 and BoringSSL have no `_ex`.
pub const TLS: Probed = Probed {
    signal: links::TLS,
    none: "the target has no OpenSSL mapped so far",
    functions: &[
        function("SSL_read", "tls_read"),
        function("SSL_read_ex", "tls_read_ex"),
        function("SSL_write", "tls_write"),
        function("SSL_write_ex", "tls_write_ex"),
    ],
    returns: "tls_return",
    is_library: |file| file.starts_with("libssl.so") || file.starts_with("libssl-"),
};

/// The C library's, and those of jemalloc, tcmalloc and mimalloc: under the C library's names, or with
/// their own prefix where they are linked in so.
pub const ALLOCATIONS: Probed = Probed {
    signal: links::ALLOCATIONS,
    none: "the target has no allocator with symbols mapped so far",
    functions: &[
        function("malloc", "alloc_malloc"),
        function("calloc", "alloc_calloc"),
        function("realloc", "alloc_realloc"),
        freeing("free"),
        function("je_malloc", "alloc_malloc"),
        function("je_calloc", "alloc_calloc"),
        function("je_realloc", "alloc_realloc"),
        freeing("je_free"),
        function("tc_malloc", "alloc_malloc"),
        function("tc_calloc", "alloc_calloc"),
        function("tc_realloc", "alloc_realloc"),
        freeing("tc_free"),
        function("mi_malloc", "alloc_malloc"),
        function("mi_calloc", "alloc_calloc"),
        function("mi_realloc", "alloc_realloc"),
        freeing("mi_free"),
    ],
    returns: "alloc_return",
    is_library: |file| {
        let libraries = [
            "libc.so",
            "libc-2.",
            "ld-musl-",
            "libjemalloc",
            "libtcmalloc",
            "libmimalloc",
        ];
        libraries.iter().any(|name| file.starts_with(name))
    },
};
/// Of Go's table of functions, which a stripped program has as well.
const GO_FUNCTION: &[u8] = b"crypto/tls.(*Conn).Write";
/// A crate's name with its length, as both manglings of Rust have it.
const RUSTLS: &[u8] = b"6rustls";

/// How a function begins, as far as it matters to the kernel, which emulates some instructions and
/// single-steps the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Beginning {
    Push,
    Nop,
    /// `endbr64`, of code with indirect branch tracking.
    Endbr,
    Other,
}

/// Where a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    pub function: &'static Function,
    /// In the file.
    pub offset: u64,
    pub beginning: Beginning,
}

/// What a file has.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub sites: Vec<Site>,
    /// A library that is linked in and has no functions of that kind.
    pub other: Option<&'static str>,
}

/// Looks for functions in a file's symbols.
///
/// # Errors
/// It cannot be read, or is no 64-bit ELF file.
pub fn find(file: &Path, functions: &'static [Function]) -> Result<Found> {
    let cache = ReadCache::new(File::open(file)?);
    let data = &cache;
    let header = Header::parse(data)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, data)?;
    let mut found = Found::default();
    for kind in [SHT_DYNSYM, SHT_SYMTAB] {
        let symbols = sections.symbols(endian, data, kind)?;
        for symbol in symbols.iter() {
            if symbol.st_shndx(endian) == SHN_UNDEF || symbol.st_type() != STT_FUNC {
                continue;
            }
            let Ok(name) = symbol.name(endian, symbols.strings()) else {
                continue;
            };
            if found.other.is_none() && memchr::memmem::find(name, RUSTLS).is_some() {
                found.other = Some("rustls");
            }
            let known = functions.iter().find(|f| f.name.as_bytes() == name);
            if let Some(function) = known
                && !found.sites.iter().any(|s| s.function == function)
            {
                let address = symbol.st_value(endian);
                let offset = offset_of(header, endian, data, address)
                    .with_context(|| format!("{} is in no segment", function.name))?;
                found.sites.push(Site {
                    function,
                    offset,
                    beginning: beginning(data.read_bytes_at(offset, 5).unwrap_or_default()),
                });
            }
        }
    }
    found.sites.sort_by_key(|site| site.function.name);
    // A program that is linked at a fixed address has it in a section of its own.
    let go = [&b".gopclntab"[..], b".data.rel.ro.gopclntab"];
    for section in sections.iter() {
        if go.contains(&sections.section_name(endian, section).unwrap_or_default())
            && let Ok(table) = section.data(endian, data)
            && memchr::memmem::find(table, GO_FUNCTION).is_some()
        {
            found.other = Some("Go crypto/tls");
        }
    }
    Ok(found)
}

/// Where in the file an address of code is.
fn offset_of<'a, R: ReadRef<'a>>(
    header: &Header,
    endian: Endianness,
    data: R,
    address: u64,
) -> Option<u64> {
    let segments = header.program_headers(endian, data).ok()?;
    segments.iter().find_map(|s| {
        let code = s.p_type(endian) == PT_LOAD && s.p_flags(endian) & PF_X != 0;
        let into = address.checked_sub(s.p_vaddr(endian))?;
        (code && into < s.p_filesz(endian)).then(|| s.p_offset(endian) + into)
    })
}

fn beginning(code: &[u8]) -> Beginning {
    match code {
        [0x50..=0x57, ..] | [0x41, 0x50..=0x57, ..] => Beginning::Push,
        [0x90, ..] | [0x0f, 0x1f, ..] | [0x66, 0x90, ..] | [0x66, 0x0f, 0x1f, ..] => Beginning::Nop,
        [0xf3, 0x0f, 0x1e, 0xfa, ..] => Beginning::Endbr,
        _ => Beginning::Other,
    }
}

/// A TLS library that cannot be read, by the name of its file.
pub fn unreadable(path: &str) -> Option<&'static str> {
    const LIBRARIES: [(&str, &str); 4] = [
        ("libgnutls.so", "GnuTLS"),
        ("libssl3.so", "NSS"),
        ("libmbedtls.so", "Mbed TLS"),
        ("libwolfssl.so", "wolfSSL"),
    ];
    let file = path.rsplit('/').next()?;
    let known = LIBRARIES.iter().find(|(start, _)| file.starts_with(start));
    known.map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginnings_are_told_apart_by_their_first_bytes() {
        assert_eq!(beginning(b"\x41\x57\x41\x56\x41"), Beginning::Push);
        assert_eq!(beginning(b"\x55\x48\x89\xe5\x90"), Beginning::Push);
        assert_eq!(beginning(b"\xf3\x0f\x1e\xfa\x55"), Beginning::Endbr);
        assert_eq!(beginning(b"\x0f\x1f\x44\x00\x00"), Beginning::Nop);
        assert_eq!(beginning(b"\x48\x83\xec\x18\x64"), Beginning::Other);
        assert_eq!(beginning(b""), Beginning::Other);
    }

    #[test]
    fn a_program_without_tls_has_no_functions_of_it() {
        let own = std::env::current_exe().unwrap();
        assert_eq!(find(&own, TLS.functions).unwrap(), Found::default());
        assert!(find(Path::new("/proc/self/maps"), TLS.functions).is_err());
    }

    #[test]
    fn libraries_are_known_by_the_names_of_their_files() {
        assert_eq!(unreadable("/usr/lib/libgnutls.so.30.34.3"), Some("GnuTLS"));
        assert_eq!(unreadable("/usr/lib/libssl.so.3"), None);
    }
}
