//! A cursor over the elements of a BSON document that may be cut or hostile.
//!
//! Own code: the `bson` crate builds documents (an allocation an element) and refuses cut ones, and
//! a decoder needs a few elements of the first kilobytes of a message whose rest was not captured.
//! Nothing here allocates or recurses.

/// A value, as far as a decoder looks at it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    Number(f64),
    Text(&'a [u8]),
    /// Its bytes after the length, as far as captured.
    Document(Document<'a>),
    Array(Document<'a>),
    Other,
}

/// The elements of a document that were captured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Document<'a> {
    rest: &'a [u8],
}

fn int(bytes: &[u8]) -> Option<i32> {
    Some(i32::from_le_bytes(*bytes.first_chunk()?))
}

impl<'a> Document<'a> {
    /// The document at the beginning of `bytes`, and how long it claims to be.
    pub fn read(bytes: &'a [u8]) -> Option<(Document<'a>, usize)> {
        let length = usize::try_from(int(bytes)?).ok().filter(|n| *n >= 5)?;
        let end = length.min(bytes.len());
        let rest = bytes.get(4..end)?;
        Some((Document { rest }, length))
    }

    /// The first value of this name.
    pub fn get(self, name: &[u8]) -> Option<Value<'a>> {
        self.into_iter()
            .find_map(|(key, value)| (key == name).then_some(value))
    }
}

impl<'a> IntoIterator for Document<'a> {
    type Item = (&'a [u8], Value<'a>);
    type IntoIter = Elements<'a>;

    fn into_iter(self) -> Elements<'a> {
        Elements { rest: self.rest }
    }
}

/// Name and value of each element, up to the end of what was captured or the first that is
/// no BSON.
pub struct Elements<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Elements<'a> {
    type Item = (&'a [u8], Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let (kind, rest) = self.rest.split_first()?;
        self.rest = &[];
        let (name, rest) = split_cstring(rest)?;
        let (value, size) = value(*kind, rest)?;
        self.rest = rest.get(size..).unwrap_or(&[]);
        Some((name, value))
    }
}

/// Up to the zero byte, and what follows it.
pub fn split_cstring(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|b| *b == 0)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

/// A value and its size; the size may lie past what was captured.
fn value(kind: u8, bytes: &[u8]) -> Option<(Value<'_>, usize)> {
    let sized = |extra: usize| {
        let length = usize::try_from(int(bytes)?).ok()?;
        Some((Value::Other, length.checked_add(extra)?))
    };
    match kind {
        0x01 => {
            let number = f64::from_le_bytes(*bytes.first_chunk()?);
            Some((Value::Number(number), 8))
        }
        // String, JavaScript code, symbol: a length that counts the zero byte.
        0x02 => {
            let length = usize::try_from(int(bytes)?).ok()?;
            let text = bytes.get(4..4 + length.checked_sub(1)?);
            Some((text.map_or(Value::Other, Value::Text), 4 + length))
        }
        0x0d | 0x0e => sized(4),
        0x03 | 0x04 => {
            let (document, length) = Document::read(bytes)?;
            let value = match kind {
                0x03 => Value::Document(document),
                _ => Value::Array(document),
            };
            Some((value, length))
        }
        // Binary: a length, a subtype, the bytes.
        0x05 => sized(5),
        // Nothing, null, the smallest and the largest key.
        0x06 | 0x0a | 0x7f | 0xff => Some((Value::Other, 0)),
        0x07 => Some((Value::Other, 12)),
        0x08 => Some((Value::Number(f64::from(*bytes.first()?)), 1)),
        // Date, timestamp.
        0x09 | 0x11 => Some((Value::Other, 8)),
        // Regular expression: pattern and flags.
        0x0b => {
            let (pattern, rest) = split_cstring(bytes)?;
            let (flags, _) = split_cstring(rest)?;
            Some((Value::Other, pattern.len() + flags.len() + 2))
        }
        // DBPointer: a string and an ObjectId.
        0x0c => sized(16),
        // Code with scope: its length counts itself.
        0x0f => sized(0),
        0x10 => Some((Value::Number(f64::from(int(bytes)?)), 4)),
        0x12 => {
            let number = i64::from_le_bytes(*bytes.first_chunk()?);
            Some((Value::Number(number as f64), 8))
        }
        0x13 => Some((Value::Other, 16)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn elements_of_every_type_are_passed_and_a_cut_document_gives_what_it_has() {
        let mut body = Vec::new();
        body.extend(b"\x01d\0\0\0\0\0\0\0\xf0?\x02s\0\x03\0\0\0ab\0");
        body.extend(b"\x05b\0\x02\0\0\0\x00xy\x07i\0ABCDEFGHIJKL\x08t\0\x01\x0an\0");
        body.extend(b"\x0br\0^a\0i\0\x10j\0\x07\0\0\0\x12l\0\x08\0\0\0\0\0\0\0");
        body.extend(b"\x03e\0\x05\0\0\0\0\x0fc\0\x04\0\0\0\x13q\x000123456789abcdef");
        body.extend(b"\x02z\0\x02\0\0\0Z\0");
        let mut whole = ((body.len() + 5) as i32).to_le_bytes().to_vec();
        whole.extend(&body);
        whole.push(0);
        let (document, length) = Document::read(&whole).expect("a document");
        assert_eq!(length, whole.len());
        let names: Vec<u8> = document.into_iter().map(|(name, _)| name[0]).collect();
        assert_eq!(names, b"dsbitnrjlecqz");
        assert_eq!(document.get(b"z"), Some(Value::Text(b"Z")));
        assert_eq!(document.get(b"l"), Some(Value::Number(8.0)));
        let (cut, _) = Document::read(&whole[..40]).expect("a document");
        assert_eq!(cut.get(b"s"), Some(Value::Text(b"ab")));
        assert_eq!(cut.get(b"z"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Some((document, _)) = Document::read(&bytes) {
                prop_assert!(document.into_iter().count() <= bytes.len());
            }
        }
    }
}
