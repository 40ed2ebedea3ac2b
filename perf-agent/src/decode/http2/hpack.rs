//! Header compression (RFC 7541), as far as a tracer needs it: the few fields that name and judge a
//! request.
//!
//! Own table, Huffman coding by `httlib-huffman` (MIT, no dependencies, tables made by its tests;
//! its decoder neither panics nor recurses, see the property test). The HPACK crates (`hpack`,
//! `fluke-hpack`, `loona-hpack`, `httlib-hpack`) were not taken: they refuse a whole block with an
//! index they do not know, which is what every connection joined late begins with, and keep every
//! header of every connection on the heap.
//!
//! Indices count from the newest entry, so a table that saw only the last insertions is right in
//! what it has and ends where what it has not seen begins: an index past that is *unseen*, never
//! another entry. Evictions need not be followed for that reason, and the peer's
//! SETTINGS_HEADER_TABLE_SIZE need not be known: entries too many are not referred to. Only this
//! table's own bound drops entries, [`MAX_ENTRIES`] and [`MAX_VALUES`].

use std::collections::VecDeque;

use httlib_huffman::DecoderSpeed;

/// Entries kept: what the usual 4096 bytes of a peer's table can hold.
const MAX_ENTRIES: usize = 128;
/// Bytes of values kept in all.
const MAX_VALUES: usize = 8192;
/// Bytes of one value that are looked at.
pub const MAX_VALUE: usize = 512;
/// Bytes of a name that are decoded; the names looked for are shorter.
const MAX_NAME: usize = 32;
const STATIC: usize = 61;

/// A header field that is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    Method,
    Path,
    Status,
    ContentType,
    GrpcStatus,
    TraceParent,
    Other,
    /// Its name is in an entry that was not seen.
    Unseen,
}

fn field(name: &[u8]) -> Field {
    match name {
        b":method" => Field::Method,
        b":path" => Field::Path,
        b":status" => Field::Status,
        b"content-type" => Field::ContentType,
        b"grpc-status" => Field::GrpcStatus,
        b"traceparent" => Field::TraceParent,
        _ => Field::Other,
    }
}

fn static_entry(index: usize) -> (Field, &'static [u8]) {
    match index {
        2 => (Field::Method, b"GET"),
        3 => (Field::Method, b"POST"),
        4 => (Field::Path, b"/"),
        5 => (Field::Path, b"/index.html"),
        8 => (Field::Status, b"200"),
        9 => (Field::Status, b"204"),
        10 => (Field::Status, b"206"),
        11 => (Field::Status, b"304"),
        12 => (Field::Status, b"400"),
        13 => (Field::Status, b"404"),
        14 => (Field::Status, b"500"),
        31 => (Field::ContentType, b""),
        _ => (Field::Other, b""),
    }
}

struct Entry {
    field: Field,
    /// Empty where the field is not looked at.
    value: Box<[u8]>,
}

/// A block that is no header block: nothing can be known of the table behind it.
#[derive(Debug, PartialEq, Eq)]
pub struct Broken;

/// The header table of one direction.
#[derive(Default)]
pub struct Table {
    entries: VecDeque<Entry>,
    values: usize,
    /// A value in the making.
    scratch: Vec<u8>,
}

impl Table {
    /// What was inserted so far, or after it, is not known.
    pub fn forget(&mut self) {
        self.entries.clear();
        self.values = 0;
    }

    /// Reads a block; `seen` is called for each header that is looked at, or unseen.
    pub fn block(
        &mut self,
        mut block: &[u8],
        mut seen: impl FnMut(Field, &[u8]),
    ) -> Result<(), Broken> {
        while let Some(first) = block.first() {
            match first {
                0x80.. => {
                    let index = integer(&mut block, 7)?;
                    self.indexed(index, &mut seen)?;
                }
                0x40.. => self.literal(&mut block, 6, true, &mut seen)?,
                0x20.. => {
                    if integer(&mut block, 5)? == 0 {
                        self.forget();
                    }
                }
                _ => self.literal(&mut block, 4, false, &mut seen)?,
            }
        }
        Ok(())
    }

    fn indexed(&self, index: usize, seen: &mut impl FnMut(Field, &[u8])) -> Result<(), Broken> {
        match index {
            0 => return Err(Broken),
            1..=STATIC => match static_entry(index) {
                (Field::Other, _) => {}
                (field, value) => seen(field, value),
            },
            _ => match self.entries.get(index - STATIC - 1) {
                Some(entry) if entry.field == Field::Other => {}
                Some(entry) => seen(entry.field, &entry.value),
                None => seen(Field::Unseen, b""),
            },
        }
        Ok(())
    }

    fn literal(
        &mut self,
        block: &mut &[u8],
        bits: u32,
        insert: bool,
        seen: &mut impl FnMut(Field, &[u8]),
    ) -> Result<(), Broken> {
        self.scratch.clear();
        let field = match integer(block, bits)? {
            0 => {
                let (huffman, name) = string(block)?;
                field(decoded(huffman, name, MAX_NAME, &mut self.scratch)?)
            }
            index @ ..=STATIC => static_entry(index).0,
            index => {
                let entry = self.entries.get(index - STATIC - 1);
                entry.map_or(Field::Unseen, |e| e.field)
            }
        };
        let (huffman, value) = string(block)?;
        self.scratch.clear();
        let value: &[u8] = match field {
            Field::Other | Field::Unseen => b"",
            _ => decoded(huffman, value, MAX_VALUE, &mut self.scratch)?,
        };
        if field != Field::Other {
            seen(field, value);
        }
        if insert {
            self.values += value.len();
            self.entries.push_front(Entry {
                field,
                value: value.into(),
            });
            while self.entries.len() > MAX_ENTRIES || self.values > MAX_VALUES {
                let oldest = self.entries.pop_back();
                self.values -= oldest.map_or(0, |e| e.value.len());
            }
        }
        Ok(())
    }
}

/// An integer behind `bits` of prefix.
fn integer(block: &mut &[u8], bits: u32) -> Result<usize, Broken> {
    let (first, mut rest) = block.split_first().ok_or(Broken)?;
    let mask = (1u32 << bits) - 1;
    let mut value = u32::from(*first) & mask;
    if value == mask {
        for shift in [0, 7, 14, 21] {
            let (byte, after) = rest.split_first().ok_or(Broken)?;
            rest = after;
            value += u32::from(byte & 0x7f) << shift;
            if *byte < 0x80 {
                *block = rest;
                return Ok(value as usize);
            }
        }
        return Err(Broken);
    }
    *block = rest;
    Ok(value as usize)
}

/// Whether a string is Huffman coded, and its bytes.
fn string<'a>(block: &mut &'a [u8]) -> Result<(bool, &'a [u8]), Broken> {
    let huffman = block.first().ok_or(Broken)? & 0x80 != 0;
    let length = integer(block, 7)?;
    let (bytes, rest) = block.split_at_checked(length).ok_or(Broken)?;
    *block = rest;
    Ok((huffman, bytes))
}

/// A string's text; of a long one, a text that is none of those looked for or its beginning.
fn decoded<'a>(
    huffman: bool,
    bytes: &'a [u8],
    most: usize,
    scratch: &'a mut Vec<u8>,
) -> Result<&'a [u8], Broken> {
    let bytes = &bytes[..bytes.len().min(most)];
    if !huffman {
        return Ok(bytes);
    }
    let cut = bytes.len() == most;
    match httlib_huffman::decode(bytes, scratch, DecoderSpeed::FourBits) {
        Ok(()) => {}
        // What was cut need not end in padding.
        Err(_) if cut => {}
        Err(_) => return Err(Broken),
    }
    scratch.truncate(most);
    Ok(scratch)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(table: &mut Table, block: &[u8]) -> Vec<(Field, String)> {
        let mut all = Vec::new();
        let result = table.block(block, |field, value| {
            all.push((field, String::from_utf8_lossy(value).into_owned()));
        });
        assert_eq!(result, Ok(()));
        all
    }

    #[test]
    fn the_examples_of_the_standard_are_read_with_and_without_huffman_coding() {
        // RFC 7541, C.3.1 to C.3.3 and C.4.1 to C.4.3.
        let get = [
            (Field::Method, "GET".to_owned()),
            (Field::Path, "/".to_owned()),
        ];
        let index = [
            (Field::Method, "GET".to_owned()),
            (Field::Path, "/index.html".to_owned()),
        ];
        let plain: [&[u8]; 3] = [
            b"\x82\x86\x84\x41\x0fwww.example.com",
            b"\x82\x86\x84\xbe\x58\x08no-cache",
            b"\x82\x87\x85\xbf\x40\x0acustom-key\x0ccustom-value",
        ];
        let coded: [&[u8]; 3] = [
            b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff",
            b"\x82\x86\x84\xbe\x58\x86\xa8\xeb\x10\x64\x9c\xbf",
            b"\x82\x87\x85\xbf\x40\x88\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f\x89\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf",
        ];
        for blocks in [plain, coded] {
            let mut table = Table::default();
            assert_eq!(read(&mut table, blocks[0]), get);
            assert_eq!(read(&mut table, blocks[1]), get);
            assert_eq!(read(&mut table, blocks[2]), index);
            assert_eq!(table.entries.len(), 3);
        }
    }

    #[test]
    fn an_entry_from_before_is_unseen_and_one_from_after_is_right() {
        let mut table = Table::default();
        let unseen = [(Field::Unseen, String::new())];
        assert_eq!(read(&mut table, b"\xbe"), unseen);
        // `:path` by the static name, inserted; then what was at 62 is at 63.
        let path = [(Field::Path, "/a".to_owned())];
        assert_eq!(read(&mut table, b"\x44\x02/a"), path);
        assert_eq!(read(&mut table, b"\xbe"), path);
        assert_eq!(read(&mut table, b"\xbf"), unseen);
        // A literal whose name was not seen takes its place too.
        assert_eq!(read(&mut table, b"\x7f\x00\x01x"), unseen);
        assert_eq!(read(&mut table, b"\xbf"), path);
        table.forget();
        assert_eq!(read(&mut table, b"\xbe"), unseen);
    }

    #[test]
    fn the_table_is_bounded() {
        let mut table = Table::default();
        let long = [b"\x44\x7f\xf9\x02".to_vec(), vec![b'a'; 504]].concat();
        for _ in 0..1000 {
            read(&mut table, b"\x40\x01x\x01y");
            read(&mut table, &long);
        }
        assert!(table.entries.len() <= MAX_ENTRIES && table.values <= MAX_VALUES);
        assert_eq!(
            table.entries.iter().map(|e| e.value.len()).sum::<usize>(),
            table.values
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100_000))]
        #[test]
        fn any_block_ends(block in proptest::collection::vec(any::<u8>(), 0..80)) {
            let mut table = Table::default();
            let _ = table.block(&block, |_, value| assert!(value.len() <= MAX_VALUE));
            let mut text = Vec::new();
            let _ = httlib_huffman::decode(&block, &mut text, DecoderSpeed::FourBits);
        }
    }
}
