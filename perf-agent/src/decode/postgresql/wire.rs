//! Messages as bytes: their lengths, and where one begins.

use std::ops::Range;

use super::super::framing::Length;

/// The server takes no startup packet that is longer.
const MAX_STARTUP: u32 = 10_000;
/// No message is longer: a row or a statement holds at most 1 GiB.
const MAX_MESSAGE: u32 = 0x4000_0010;
/// Of a message that is taken for one without knowing a boundary: text in the place of a length says
/// more than this.
const MAX_GUESSED: u32 = 0x00ff_ffff;

/// ReadyForQuery.
const READY: &[u8] = b"Z\0\0\0\x05";
pub const READY_LEN: usize = 6;

pub const PROTOCOL_3: u32 = 3;
pub const CANCEL: u32 = 80_877_102;
pub const SSL: u32 = 80_877_103;
pub const GSSENC: u32 = 80_877_104;

/// Big-endian number at an offset.
#[inline]
pub fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at + 4)?;
    Some(u32::from_be_bytes(four.try_into().ok()?))
}

/// Up to the zero byte, which is not part of it; whether there was one.
pub fn text(bytes: &[u8]) -> (&[u8], bool) {
    match bytes.iter().position(|b| *b == 0) {
        Some(end) => (&bytes[..end], true),
        None => (bytes, false),
    }
}

/// The text at the beginning, and what follows its zero byte.
pub fn split_text(bytes: &[u8]) -> (&[u8], &[u8]) {
    let (name, _) = text(bytes);
    (name, bytes.get(name.len() + 1..).unwrap_or_default())
}

/// Least and most a client's message says of its length.
const fn request_bounds(kind: u8) -> Option<(u32, u32)> {
    Some(match kind {
        b'H' | b'S' | b'X' | b'c' => (4, 4),
        b'Q' | b'E' | b'f' | b'p' => (5, MAX_MESSAGE),
        b'C' | b'D' | b'P' | b'B' | b'F' => (6, MAX_MESSAGE),
        b'd' => (4, MAX_MESSAGE),
        _ => return None,
    })
}

/// Least and most a server's message says of its length.
const fn response_bounds(kind: u8) -> Option<(u32, u32)> {
    Some(match kind {
        b'1' | b'2' | b'3' | b'n' | b's' | b'I' | b'c' => (4, 4),
        b'Z' => (5, 5),
        b'K' => (12, 264),
        b'R' => (8, 65536),
        b'C' => (5, 128),
        b'E' | b'N' | b'S' => (5, 1 << 26),
        b'D' | b'T' | b't' => (6, MAX_MESSAGE),
        b'G' | b'H' | b'W' => (7, 1 << 20),
        b'A' | b'V' | b'v' => (8, MAX_MESSAGE),
        b'd' => (4, MAX_MESSAGE),
        _ => return None,
    })
}

/// Bounds by a message's first byte, the least above the most where there is no such message: a
/// table costs half of what the branches do, for each message.
type Bounds = [(u32, u32); 256];

static REQUESTS: Bounds = {
    let (mut bounds, mut kind) = ([(1, 0); 256], 0);
    while kind < bounds.len() {
        if let Some(known) = request_bounds(kind as u8) {
            bounds[kind] = known;
        }
        kind += 1;
    }
    bounds
};

static RESPONSES: Bounds = {
    let (mut bounds, mut kind) = ([(1, 0); 256], 0);
    while kind < bounds.len() {
        if let Some(known) = response_bounds(kind as u8) {
            bounds[kind] = known;
        }
        kind += 1;
    }
    bounds
};

#[inline]
fn typed(bytes: &[u8], bounds: &Bounds) -> Length {
    let Some(kind) = bytes.first() else {
        return Length::Short;
    };
    let (least, most) = bounds[usize::from(*kind)];
    if least > most {
        return Length::Invalid;
    }
    match number(bytes, 1) {
        None => Length::Short,
        Some(n) if n < least || n > most => Length::Invalid,
        Some(n) => Length::Whole(u64::from(n) + 1),
    }
}

/// Length of a client's message; before the session started it may be one without a type.
#[inline]
pub fn request_length(bytes: &[u8], startup: bool) -> Length {
    if !startup || bytes.first() != Some(&0) {
        return typed(bytes, &REQUESTS);
    }
    let (Some(length), Some(code)) = (number(bytes, 0), number(bytes, 4)) else {
        return Length::Short;
    };
    let known = code >> 16 == PROTOCOL_3 || matches!(code, CANCEL | SSL | GSSENC);
    if known && (8..=MAX_STARTUP).contains(&length) {
        Length::Whole(u64::from(length))
    } else {
        Length::Invalid
    }
}

/// Length of a server's message; what answers an SSLRequest is a single byte.
#[inline]
pub fn response_length(bytes: &[u8], encryption_asked: bool) -> Length {
    match bytes.first() {
        Some(b'S' | b'N' | b'G') if encryption_asked => Length::Whole(1),
        _ => typed(bytes, &RESPONSES),
    }
}

/// How many messages the bytes begin with, the last maybe not whole; None if they are none.
pub fn chain(bytes: &[u8], length_of: impl Fn(&[u8]) -> Length) -> Option<Chain> {
    let (mut at, mut whole) = (0, 0);
    while at < bytes.len() {
        match length_of(&bytes[at..]) {
            Length::Whole(n) if n <= u64::from(MAX_GUESSED) => {
                if n > (bytes.len() - at) as u64 {
                    break;
                }
                at += n as usize;
                whole += 1;
            }
            // The length's first byte is 0 for all that is believed without a boundary.
            Length::Short if bytes.get(at + 1).is_none_or(|b| *b == 0) => break,
            _ => return None,
        }
    }
    Some(Chain {
        whole,
        rest: bytes.len() - at,
    })
}

/// Messages from the beginning of a piece.
pub struct Chain {
    pub whole: usize,
    /// Bytes of the last, which is not whole.
    pub rest: usize,
}

/// Where requests can be read from: the beginning of the piece, or behind a Sync in it.
pub fn request_boundary(bytes: &[u8]) -> Option<usize> {
    let length_of = |b: &[u8]| request_length(b, false);
    if chain(bytes, length_of).is_some() {
        return Some(0);
    }
    let sync = b"S\0\0\0\x04";
    let mut syncs = bytes.windows(sync.len()).enumerate();
    let (at, _) = syncs
        .find(|(at, w)| *w == sync && chain(&bytes[at + sync.len()..], length_of).is_some())?;
    Some(at + sync.len())
}

/// Whether answers can be read from the beginning of the piece.
pub fn answers_begin(bytes: &[u8]) -> bool {
    chain(bytes, |b| response_length(b, false)).is_some()
}

/// The first ReadyForQuery.
pub fn find_ready(bytes: &[u8]) -> Option<usize> {
    bytes
        .windows(READY_LEN)
        .position(|w| w.starts_with(READY) && matches!(w[READY_LEN - 1], b'I' | b'T' | b'E'))
}

/// The CommandComplete that ends where the bytes do.
pub fn complete_before(bytes: &[u8]) -> Option<Range<usize>> {
    let end = bytes.len();
    (7..=40.min(end.saturating_sub(1))).find_map(|length| {
        let start = end - length - 1;
        let fits = bytes[start] == b'C'
            && number(bytes, start + 1) == Some(length as u32)
            && bytes[start + 5].is_ascii_uppercase()
            && bytes[end - 1] == 0;
        fits.then_some(start..end)
    })
}

/// SQLSTATE of an ErrorResponse.
pub fn sqlstate(bytes: &[u8]) -> Option<&str> {
    let mut fields = bytes.get(5..)?;
    while let Some((&kind, rest)) = fields.split_first() {
        if kind == 0 {
            return None;
        }
        let (value, after) = split_text(rest);
        if kind == b'C' {
            let plain = value.len() == 5 && value.iter().all(u8::is_ascii_alphanumeric);
            return std::str::from_utf8(value).ok().filter(|_| plain);
        }
        fields = after;
    }
    None
}
