//! HTTP/2 frames (RFC 9113): the header, and what stands before a header block.

use super::super::Direction;
use super::super::framing::Length;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const HEADER: usize = 9;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
/// The highest registered type (PRIORITY_UPDATE); unknown ones must be ignored.
const LAST_TYPE: u8 = 0x10;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;
pub const PRIORITY_FLAG: u8 = 0x20;

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub length: u32,
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
}

impl Head {
    pub fn read(bytes: &[u8]) -> Option<Head> {
        let [a, b, c, kind, flags, s0, s1, s2, s3] = *bytes.first_chunk::<HEADER>()?;
        Some(Head {
            length: u32::from_be_bytes([0, a, b, c]),
            kind,
            flags,
            stream: u32::from_be_bytes([s0, s1, s2, s3]),
        })
    }

    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// What the standard demands of lengths and streams.
    fn is_valid(&self) -> bool {
        let stream = self.stream != 0 && self.stream >> 31 == 0;
        match self.kind {
            DATA | HEADERS | CONTINUATION => stream,
            PRIORITY => stream && self.length == 5,
            RST_STREAM => stream && self.length == 4,
            PUSH_PROMISE => stream && self.length >= 4,
            SETTINGS if self.has(ACK) => self.stream == 0 && self.length == 0,
            SETTINGS => self.stream == 0 && self.length.is_multiple_of(6) && self.length < 1024,
            PING => self.stream == 0 && self.length == 8,
            GOAWAY => self.stream == 0 && self.length >= 8,
            WINDOW_UPDATE => self.stream >> 31 == 0 && self.length == 4,
            _ => self.kind <= LAST_TYPE && self.length <= 16384,
        }
    }

    /// Whether this is a frame for sure, where nothing else vouches for it: sizes as nearly all
    /// peers use them, no flag that has no meaning.
    pub fn is_plausible(&self, direction: Direction) -> bool {
        let flags = match self.kind {
            DATA => END_STREAM | PADDED,
            HEADERS => END_STREAM | END_HEADERS | PADDED | PRIORITY_FLAG,
            PUSH_PROMISE => END_HEADERS | PADDED,
            CONTINUATION => END_HEADERS,
            SETTINGS | PING => ACK,
            _ => 0,
        };
        let client = self.stream % 2 == 1;
        let stream = match (self.kind, direction) {
            (PUSH_PROMISE, Direction::Request) => false,
            (DATA | HEADERS | CONTINUATION, Direction::Request) => client,
            _ => true,
        };
        self.is_valid()
            && self.kind <= CONTINUATION
            && self.length <= 1 << 20
            && self.flags & !flags == 0
            && stream
            && (self.kind != HEADERS || self.length > 0)
    }
}

/// Where the message that begins here ends: a preface, the answer to an upgrade, or a frame.
pub fn length_of(direction: Direction, bytes: &[u8]) -> Length {
    let (opening, end): (&[u8], _) = match direction {
        Direction::Request => (b"PRI", PREFACE),
        Direction::Response => (b"HTTP/1.1 101", b"\r\n\r\n"),
    };
    let n = bytes.len().min(opening.len());
    if n > 0 && bytes[..n] == opening[..n] {
        return match (direction, bytes.len()) {
            (Direction::Request, ..24) if PREFACE.starts_with(bytes) => Length::Short,
            (Direction::Request, _) if bytes.starts_with(PREFACE) => Length::Whole(24),
            (Direction::Request, _) => Length::Invalid,
            (Direction::Response, _) => {
                let head = &bytes[..bytes.len().min(2048)];
                match head.windows(4).position(|w| w == end) {
                    Some(at) => Length::Whole(at as u64 + 4),
                    None if head.len() < 2048 => Length::Short,
                    None => Length::Invalid,
                }
            }
        };
    }
    match Head::read(bytes) {
        None => Length::Short,
        Some(head) if !head.is_valid() => Length::Invalid,
        // The content of a body is not looked at.
        Some(head) if head.kind == DATA => Length::Skim(u64::from(head.length) + HEADER as u64),
        Some(head) => Length::Whole(u64::from(head.length) + HEADER as u64),
    }
}

/// The header block in a HEADERS or PUSH_PROMISE frame: without padding, priority, promised stream.
pub fn block<'a>(head: &Head, payload: &'a [u8]) -> Option<&'a [u8]> {
    let (mut from, mut to) = (0, payload.len());
    if head.has(PADDED) {
        to = to.checked_sub(usize::from(*payload.first()?))?;
        from += 1;
    }
    from += match head.kind {
        HEADERS if head.has(PRIORITY_FLAG) => 5,
        PUSH_PROMISE => 4,
        _ => 0,
    };
    payload.get(from..to)
}

/// Four bytes of a payload as a number.
pub fn number(payload: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*payload.get(at..)?.first_chunk()?))
}

/// Names of RST_STREAM's codes.
pub fn code_name(code: u32) -> &'static str {
    const NAMES: [&str; 14] = [
        "NO_ERROR",
        "PROTOCOL_ERROR",
        "INTERNAL_ERROR",
        "FLOW_CONTROL_ERROR",
        "SETTINGS_TIMEOUT",
        "STREAM_CLOSED",
        "FRAME_SIZE_ERROR",
        "REFUSED_STREAM",
        "CANCEL",
        "COMPRESSION_ERROR",
        "CONNECT_ERROR",
        "ENHANCE_YOUR_CALM",
        "INADEQUATE_SECURITY",
        "HTTP_1_1_REQUIRED",
    ];
    NAMES
        .get(code as usize)
        .copied()
        .unwrap_or("(unknown code)")
}
