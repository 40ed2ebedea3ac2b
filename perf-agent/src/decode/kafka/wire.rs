//! Kafka's primitive types, read from the beginning of a message that may be cut or hostile.

/// What is left to read.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    pub rest: &'a [u8],
    /// Lengths are variable integers, and structures end in tagged fields.
    pub flexible: bool,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    pub fn skip(&mut self, count: usize) -> Option<()> {
        self.take(count).map(|_| ())
    }

    pub fn int16(&mut self) -> Option<i16> {
        Some(i16::from_be_bytes(*self.take(2)?.first_chunk()?))
    }

    pub fn int32(&mut self) -> Option<i32> {
        Some(i32::from_be_bytes(*self.take(4)?.first_chunk()?))
    }

    fn varint(&mut self) -> Option<u32> {
        let mut value = 0u64;
        for shift in [0, 7, 14, 21, 28] {
            let byte = *self.take(1)?.first()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return u32::try_from(value).ok();
            }
        }
        None
    }

    /// A string that is always of the old form: the client id of a header.
    pub fn old_string(&mut self) -> Option<&'a [u8]> {
        let length = self.int16()?;
        self.take(usize::try_from(length).unwrap_or(0))
    }

    /// A string, empty if null.
    pub fn string(&mut self) -> Option<&'a [u8]> {
        if !self.flexible {
            return self.old_string();
        }
        let length = self.varint()?.saturating_sub(1);
        self.take(length as usize)
    }

    /// How many elements follow, 0 if null.
    pub fn array(&mut self) -> Option<u32> {
        if self.flexible {
            return Some(self.varint()?.saturating_sub(1));
        }
        Some(u32::try_from(self.int32()?).unwrap_or(0))
    }

    /// Passes over tagged fields.
    pub fn tags(&mut self) -> Option<()> {
        if !self.flexible {
            return Some(());
        }
        // Each takes at least two bytes, so a hostile count ends with the bytes.
        for _ in 0..self.varint()? {
            self.varint()?;
            let size = self.varint()?;
            self.skip(size as usize)?;
        }
        Some(())
    }
}
