//! Code objects, read from the interpreter's memory.

use std::{fs::File, io, os::unix::fs::FileExt as _};

use perf_ebpf_common::signals::python::{CODE_NAMES, code_print};

use super::{layout::CodeLayout, lines, merge::PythonFrame};
use crate::drain::FrameFact;

/// Longest name or path, in bytes; what is longer is taken for damage.
const MAX_STRING: usize = 4096;
/// Largest table of lines.
const MAX_LINES: usize = 1 << 20;
/// Enough of a code object to have every field of interest in it.
const HEADER: usize = 256;

/// Memory of a process.
pub trait Memory {
    /// Fills `bytes` from an address.
    ///
    /// # Errors
    /// It is not all mapped; the process ended.
    fn read(&self, address: u64, bytes: &mut [u8]) -> io::Result<()>;
}

impl Memory for File {
    fn read(&self, address: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(bytes, address)
    }
}

/// A function, a module's body, a comprehension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code {
    pub name: String,
    pub file: String,
    first_line: i32,
    lines: Vec<u8>,
    /// Code of the interpreter's own, which its tracebacks do not show either.
    pub hidden: bool,
}

impl Code {
    /// A frame of this code, at a code unit.
    pub fn frame(&self, layout: &CodeLayout, unit: u32) -> FrameFact {
        let line = lines::line(layout.line_format, &self.lines, self.first_line, unit);
        FrameFact {
            name: self.name.clone(),
            source: Some(match line {
                Some(line) => format!("{}:{line}", self.file),
                None => self.file.clone(),
            }),
            module: Some(self.file.clone()),
            symbolized: true,
            ..FrameFact::default()
        }
    }
}

/// Reads the code object of a frame; `None` where it is gone, or another is there. `names_at` is the
/// offset of what its print was made of.
pub fn read(
    memory: &impl Memory,
    layout: &CodeLayout,
    names_at: usize,
    frame: &PythonFrame,
) -> Option<Code> {
    let mut header = [0; HEADER];
    memory.read(frame.code, &mut header).ok()?;
    let mut names = [0; CODE_NAMES];
    for (i, name) in names.iter_mut().enumerate() {
        *name = word(&header, names_at + 8 * i)?;
    }
    if code_print(names) != frame.print {
        return None;
    }
    let (file, name) = (word(&header, layout.file)?, word(&header, layout.name)?);
    Some(Code {
        name: string(memory, layout, name)?,
        file: string(memory, layout, file)?,
        first_line: word(&header, layout.first_line)? as u32 as i32,
        lines: bytes(memory, layout, word(&header, layout.lines)?)?,
        // What calls `__init__` from 3.12 on has its name for a file.
        hidden: file == name,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at + 8)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

/// A `bytes` object.
fn bytes(memory: &impl Memory, layout: &CodeLayout, address: u64) -> Option<Vec<u8>> {
    let mut length = [0; 8];
    let at = address.checked_add(layout.bytes_length as u64)?;
    memory.read(at, &mut length).ok()?;
    let length = usize::try_from(u64::from_le_bytes(length)).ok()?;
    if length > MAX_LINES {
        return None;
    }
    let mut content = vec![0; length];
    let at = address.checked_add(layout.bytes_start as u64)?;
    memory.read(at, &mut content).ok()?;
    Some(content)
}

/// A `str` object: characters of one, two or four bytes behind its header (PEP 393).
fn string(memory: &impl Memory, layout: &CodeLayout, address: u64) -> Option<String> {
    const KIND_SHIFT: u32 = 2;
    const COMPACT: u32 = 1 << 5;
    const ASCII: u32 = 1 << 6;
    let mut header = [0; 64];
    memory.read(address, &mut header).ok()?;
    let length = usize::try_from(word(&header, layout.string_length)?).ok()?;
    let state = word(&header, layout.string_state)? as u32;
    let width = ((state >> KIND_SHIFT) & 7) as usize;
    let start = match state & ASCII != 0 {
        true => layout.ascii_start,
        false => layout.string_start,
    };
    if state & COMPACT == 0 || !matches!(width, 1 | 2 | 4) || length > MAX_STRING / width {
        return None;
    }
    let mut content = vec![0; length * width];
    memory
        .read(address.checked_add(start as u64)?, &mut content)
        .ok()?;
    let characters = content.chunks_exact(width).map(|c| {
        let mut code = [0; 4];
        code[..width].copy_from_slice(c);
        char::from_u32(u32::from_le_bytes(code)).unwrap_or(char::REPLACEMENT_CHARACTER)
    });
    Some(characters.collect())
}

#[cfg(test)]
mod tests {
    use super::{super::layout, *};

    /// Memory from address 0x1000 on.
    struct Bytes(Vec<u8>);

    const BASE: u64 = 0x1000;

    impl Memory for Bytes {
        fn read(&self, address: u64, bytes: &mut [u8]) -> io::Result<()> {
            let end = || io::Error::from(io::ErrorKind::UnexpectedEof);
            let at = address.checked_sub(BASE).ok_or_else(end)? as usize;
            let from = self.0.get(at..).and_then(|rest| rest.get(..bytes.len()));
            bytes.copy_from_slice(from.ok_or_else(end)?);
            Ok(())
        }
    }

    fn put(memory: &mut Bytes, at: usize, bytes: &[u8]) {
        let end = at + bytes.len();
        memory.0.resize(memory.0.len().max(end), 0);
        memory.0[at..end].copy_from_slice(bytes);
    }

    fn put_string(memory: &mut Bytes, layout: &CodeLayout, at: usize, text: &str, width: usize) {
        let ascii = text.is_ascii();
        let length = text.chars().count() as u64;
        put(memory, at + layout.string_length, &length.to_le_bytes());
        let state = (width as u32) << 2 | 1 << 5 | u32::from(ascii) << 6;
        put(memory, at + layout.string_state, &state.to_le_bytes());
        let start = if ascii {
            layout.ascii_start
        } else {
            layout.string_start
        };
        for (i, c) in text.chars().enumerate() {
            let bytes = u32::from(c).to_le_bytes();
            put(memory, at + start + i * width, &bytes[..width]);
        }
    }

    /// A code object of a version at [`BASE`], with strings behind it.
    fn code_object(layout: &CodeLayout, name: &str, width: usize) -> Bytes {
        let mut memory = Bytes(vec![0; 8192]);
        let (file_at, name_at, lines_at) = (0x400, 0x800, 0xc00);
        for (field, at) in [
            (layout.file, file_at),
            (layout.name, name_at),
            (layout.lines, lines_at),
        ] {
            put(&mut memory, field, &(BASE + at as u64).to_le_bytes());
        }
        put(&mut memory, layout.first_line, &7i32.to_le_bytes());
        put_string(&mut memory, layout, file_at, "/srv/app.py", 1);
        put_string(&mut memory, layout, name_at, name, width);
        // Three code units of the first line, two of one four further on.
        let table: &[u8] = &[0x80 | 10 << 3 | 2, 0, 0, 0x80 | 13 << 3 | 1, 8];
        put(
            &mut memory,
            lines_at + layout.bytes_length,
            &(table.len() as u64).to_le_bytes(),
        );
        put(&mut memory, lines_at + layout.bytes_start, table);
        memory
    }

    /// A frame of the code object at [`BASE`], as the kernel side tells of it.
    fn frame_at_base(memory: &Bytes, names_at: usize) -> PythonFrame {
        let names = [0, 8, 16, 24].map(|i| word(&memory.0, names_at + i).unwrap());
        PythonFrame {
            code: BASE,
            unit: 0,
            print: code_print(names),
        }
    }

    #[test]
    fn a_function_is_read_with_its_file_and_line() {
        for minor in [11, 12] {
            let (python, layout) = layout::of_version(minor, || None).unwrap();
            let names_at = python.code_names.into();
            for (name, width) in [("Cart.total", 1), ("café", 1), ("значение", 2), ("名🜚", 4)]
            {
                let memory = code_object(&layout, name, width);
                let frame = frame_at_base(&memory, names_at);
                let code = read(&memory, &layout, names_at, &frame).unwrap();
                assert_eq!(
                    (code.name.as_str(), code.hidden),
                    (name, false),
                    "3.{minor}"
                );
                let frame = code.frame(&layout, 2);
                assert_eq!(frame.source.as_deref(), Some("/srv/app.py:7"));
                let frame = code.frame(&layout, 3);
                assert_eq!(frame.source.as_deref(), Some("/srv/app.py:11"));
                let frame = code.frame(&layout, 5);
                assert_eq!(frame.source.as_deref(), Some("/srv/app.py"));
            }
        }
    }

    #[test]
    fn another_function_at_the_same_address_is_not_taken_for_the_one_that_was_there() {
        let (python, layout) = layout::of_version(11, || None).unwrap();
        let names_at = python.code_names.into();
        let mut memory = code_object(&layout, "first", 1);
        let frame = frame_at_base(&memory, names_at);
        let code = read(&memory, &layout, names_at, &frame);
        assert_eq!(code.unwrap().name, "first");
        // Its name is another string now.
        put(&mut memory, layout.name, &(BASE + 0x400).to_le_bytes());
        assert_eq!(read(&memory, &layout, names_at, &frame), None);
    }

    #[test]
    fn what_is_no_code_object_is_refused() {
        let (python, layout) = layout::of_version(11, || None).unwrap();
        let memory = code_object(&layout, "f", 1);
        let frame = PythonFrame {
            code: BASE + 8100,
            unit: 0,
            print: 0,
        };
        let names_at = python.code_names.into();
        assert_eq!(read(&memory, &layout, names_at, &frame), None);
        for address in [0, BASE, BASE + 0xc00, u64::MAX - 8] {
            assert_eq!(string(&memory, &layout, address), None, "{address:#x}");
        }
        let mut long = code_object(&layout, "f", 1);
        put(
            &mut long,
            0xc00 + layout.bytes_length,
            &(u64::MAX).to_le_bytes(),
        );
        assert_eq!(bytes(&long, &layout, BASE + 0xc00), None);
    }
}
