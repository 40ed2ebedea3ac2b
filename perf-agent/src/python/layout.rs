//! Offsets in the interpreter's memory by version, from its headers (`Include/internal/pycore_*.h`,
//! `Include/cpython/*.h`) as the compiler lays them out on 64-bit machines.

use perf_ebpf_common::signals::python::{NO_FIELD, Python, entry};

/// How a code object tells lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineFormat {
    /// `co_lnotab` (3.9).
    Deltas,
    /// `co_linetable` of 3.10 (PEP 626).
    Ranges,
    /// `co_linetable` from 3.11 on (PEP 657).
    Locations,
}

/// Where things are in code objects, strings and byte strings. Offsets in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodeLayout {
    pub first_line: usize,
    pub file: usize,
    /// The qualified name from 3.11 on.
    pub name: usize,
    pub lines: usize,
    pub line_format: LineFormat,
    /// Length and first byte of a byte string.
    pub bytes_length: usize,
    pub bytes_start: usize,
    /// Length, flags and first character of an ASCII string; of another it lies further on.
    pub string_length: usize,
    pub string_state: usize,
    pub ascii_start: usize,
    pub string_start: usize,
}

/// Up to 3.11 a string's header had a second representation in it.
const WIDE_STRINGS: CodeLayout = CodeLayout {
    first_line: 40,
    file: 104,
    name: 112,
    lines: 120,
    line_format: LineFormat::Deltas,
    bytes_length: 16,
    bytes_start: 32,
    string_length: 16,
    string_state: 32,
    ascii_start: 48,
    string_start: 72,
};

/// 3.9.
fn v9() -> (Python, CodeLayout) {
    let python = Python {
        interpreters: 32,
        interpreter_next: 0,
        interpreter_threads: 8,
        thread_next: 8,
        thread_id: 176,
        thread_frame: 24,
        indirect_frame: NO_FIELD,
        frame_size: 112,
        frame_back: 24,
        frame_code: 32,
        frame_instruction: 104,
        frame_entry: 0,
        entry: entry::EACH,
        code_start: NO_FIELD,
        instruction_shift: 1,
        // Cells, file, name, lines.
        code_names: 96,
        ..Python::default()
    };
    (python, WIDE_STRINGS)
}

/// 3.10: instructions are counted in code units.
fn v10() -> (Python, CodeLayout) {
    let (python, code) = v9();
    let python = Python {
        frame_size: 104,
        frame_instruction: 96,
        instruction_shift: 0,
        ..python
    };
    let code = CodeLayout {
        line_format: LineFormat::Ranges,
        ..code
    };
    (python, code)
}

/// 3.11: frames are no objects any more, and one call of the loop runs many.
fn v11() -> (Python, CodeLayout) {
    let python = Python {
        interpreters: 40,
        interpreter_threads: 16,
        thread_next: 8,
        thread_id: 152,
        thread_frame: 56,
        indirect_frame: 8,
        frame_size: 72,
        frame_back: 48,
        frame_code: 32,
        frame_instruction: 56,
        frame_entry: 68,
        entry: entry::MARKED,
        code_start: 184,
        instruction_shift: 1,
        code_names: 112,
        ..Python::default()
    };
    let code = CodeLayout {
        first_line: 72,
        file: 112,
        name: 128,
        lines: 136,
        line_format: LineFormat::Locations,
        ..WIDE_STRINGS
    };
    (python, code)
}

/// 3.12.
fn v12() -> (Python, CodeLayout) {
    let (python, code) = v11();
    let python = Python {
        interpreter_threads: 72,
        thread_id: 136,
        indirect_frame: 0,
        frame_back: 8,
        frame_code: 0,
        frame_entry: 70,
        entry: entry::SHIM,
        code_start: 192,
        ..python
    };
    let code = CodeLayout {
        first_line: 68,
        ascii_start: 40,
        string_start: 56,
        ..code
    };
    (python, code)
}

/// How much of `_PyRuntime` [`v13`] reads.
pub const DEBUG_OFFSETS_BYTES: u64 = 71 * 8;

/// 3.13: `_Py_DebugOffsets` at the beginning of `_PyRuntime`, which is words of eight bytes.
fn v13(bytes: &[u8]) -> Option<(Python, CodeLayout)> {
    let word = |index: usize| {
        let bytes = bytes.get(index * 8..index * 8 + 8)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    };
    // Of a build without the global lock objects have another header.
    let free_threaded = word(2)? != 0;
    if !bytes.starts_with(b"xdebugpy") || free_threaded {
        return None;
    }
    let offset = |index| u16::try_from(word(index)?).ok();
    let (python, code) = v12();
    let python = Python {
        interpreters: offset(5)?,
        interpreter_next: offset(8)?,
        interpreter_threads: offset(9)?,
        thread_next: offset(21)?,
        thread_frame: offset(23)?,
        thread_id: offset(24)?,
        indirect_frame: NO_FIELD,
        frame_back: offset(29)?,
        frame_code: offset(30)?,
        frame_instruction: offset(31)?,
        frame_entry: offset(33)?,
        code_start: offset(43)?,
        code_names: offset(35)?,
        ..python
    };
    let ascii_start = usize::from(offset(70)?);
    let code = CodeLayout {
        file: offset(35)?.into(),
        name: offset(37)?.into(),
        lines: offset(38)?.into(),
        first_line: offset(39)?.into(),
        bytes_length: offset(65)?.into(),
        bytes_start: offset(66)?.into(),
        string_state: offset(68)?.into(),
        string_length: offset(69)?.into(),
        ascii_start,
        // Behind it a second encoding and its length.
        string_start: ascii_start + 16,
        ..code
    };
    Some((python, code))
}

/// The offsets of 3.`minor`; `own` reads what `_PyRuntime` begins with.
pub fn of_version<'a>(
    minor: u8,
    own: impl FnOnce() -> Option<&'a [u8]>,
) -> Option<(Python, CodeLayout)> {
    match minor {
        9 => Some(v9()),
        10 => Some(v10()),
        11 => Some(v11()),
        12 => Some(v12()),
        13 => v13(own()?),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use perf_ebpf_common::signals::python::FRAME_BYTES;

    use super::*;

    /// What 3.13.0 says of itself, where it is asked.
    fn debug_offsets() -> Vec<u8> {
        let mut words = [0u64; 71];
        words[0] = u64::from_le_bytes(*b"xdebugpy");
        words[1] = 0x030d_00f0;
        for (index, offset) in [
            (5, 632),
            (8, 7264),
            (9, 7344),
            (21, 8),
            (23, 72),
            (24, 152),
            (29, 8),
            (31, 56),
            (33, 70),
            (35, 112),
            (37, 128),
            (38, 136),
            (39, 68),
            (43, 200),
            (65, 16),
            (66, 32),
            (68, 32),
            (69, 16),
            (70, 40),
        ] {
            words[index] = offset;
        }
        words.iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    #[test]
    fn every_field_that_is_read_of_a_frame_is_in_what_is_read() {
        let own = debug_offsets();
        for minor in 9..=13 {
            let (python, _) = of_version(minor, || Some(&own)).unwrap();
            let size = usize::from(python.frame_size);
            assert!(size < FRAME_BYTES, "{minor}");
            let instruction = if minor < 11 { 4 } else { 8 };
            for (offset, bytes) in [
                (python.frame_back, 8),
                (python.frame_code, 8),
                (python.frame_instruction, instruction),
                (python.frame_entry, 1),
            ] {
                assert!(usize::from(offset) + bytes <= size, "{minor}: {offset}");
            }
        }
    }

    #[test]
    fn from_3_13_on_the_interpreter_tells_its_offsets() {
        let own = debug_offsets();
        let (python, code) = of_version(13, || Some(&own)).unwrap();
        assert_eq!((python.interpreters, python.code_start), (632, 200));
        assert_eq!((code.name, code.string_start), (128, 56));
        let mut free_threaded = own.clone();
        free_threaded[16] = 1;
        assert_eq!(of_version(13, || Some(&free_threaded)), None);
        for cut in [0, 7, 8, 200, own.len() - 1] {
            assert_eq!(of_version(13, || Some(&own[..cut])), None, "{cut}");
        }
        assert_eq!(of_version(13, || None), None);
    }

    #[test]
    fn versions_without_offsets_are_left_alone() {
        for minor in [0, 8, 14, 255] {
            assert_eq!(of_version(minor, || None), None);
        }
    }
}
