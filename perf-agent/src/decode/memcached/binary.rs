//! The binary protocol: 24 bytes of header, opaques that tell answers apart.

use super::{
    super::{
        Direction, Joined, Outcome, Output, Outstanding, Sync, Verdict,
        framing::{Frames, Length, Message},
        sync::Piece,
    },
    Decoder, failed, find, shape,
};

pub const REQUEST: u8 = 0x80;
pub const RESPONSE: u8 = 0x81;

const HEADER: usize = 24;
/// Header, the longest extras and the longest key.
const KEEP: usize = 24 + 20 + 256;
/// No item is larger; servers refuse more than 128 MiB at most.
const MAX_BODY: u32 = 1 << 30;

/// Lookups, and what they are when quiet.
const GETS: &[u8] = &[0x00, 0x09, 0x0c, 0x0d, 0x1d, 0x1e, 0x23, 0x24];
const STAT: u8 = 0x10;

/// Name of an opcode, and whether it is answered only with news.
fn name(opcode: u8) -> Option<(&'static str, bool)> {
    Some(match opcode {
        0x00 | 0x0c => ("GET", false),
        0x09 | 0x0d => ("GET", true),
        0x01 => ("SET", false),
        0x11 => ("SET", true),
        0x02 => ("ADD", false),
        0x12 => ("ADD", true),
        0x03 => ("REPLACE", false),
        0x13 => ("REPLACE", true),
        0x04 => ("DELETE", false),
        0x14 => ("DELETE", true),
        0x05 => ("INCR", false),
        0x15 => ("INCR", true),
        0x06 => ("DECR", false),
        0x16 => ("DECR", true),
        0x07 => ("QUIT", false),
        0x17 => ("QUIT", true),
        0x08 => ("FLUSH_ALL", false),
        0x18 => ("FLUSH_ALL", true),
        0x0a => ("NOOP", false),
        0x0b => ("VERSION", false),
        0x0e => ("APPEND", false),
        0x19 => ("APPEND", true),
        0x0f => ("PREPEND", false),
        0x1a => ("PREPEND", true),
        STAT => ("STATS", false),
        0x1b => ("VERBOSITY", false),
        0x1c => ("TOUCH", false),
        0x1d | 0x23 => ("GAT", false),
        0x1e | 0x24 => ("GAT", true),
        0x20 => ("SASL LIST", false),
        0x21 => ("SASL AUTH", false),
        0x22 => ("SASL STEP", false),
        _ => return None,
    })
}

/// Statuses that are errors; the others are answers.
fn error(status: u16) -> Option<&'static str> {
    Some(match status {
        // None, not found, exists, not stored, and the next step of an authentication.
        0x00 | 0x01 | 0x02 | 0x05 | 0x21 => return None,
        0x03 => "E2BIG",
        0x04 => "EINVAL",
        0x06 => "DELTA_BADVAL",
        0x20 => "AUTH_ERROR",
        0x81 => "UNKNOWN_COMMAND",
        0x82 => "ENOMEM",
        0x83 => "NOT_SUPPORTED",
        0x84 => "EINTERNAL",
        0x85 => "EBUSY",
        0x86 => "ETMPFAIL",
        _ => "ERROR",
    })
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// Parts of a header.
struct Header {
    opcode: u8,
    key: u16,
    extras: u8,
    /// Of an answer; of a request the bucket.
    status: u16,
    body: u32,
    opaque: u32,
}

impl Header {
    fn of(bytes: &[u8]) -> Option<Header> {
        Some(Header {
            opcode: *bytes.get(1)?,
            key: u16::from_be_bytes(field(bytes, 2)?),
            extras: *bytes.get(4)?,
            status: u16::from_be_bytes(field(bytes, 6)?),
            body: u32::from_be_bytes(field(bytes, 8)?),
            opaque: u32::from_be_bytes(field(bytes, 12)?),
        })
    }
}

fn length(magic: u8, bytes: &[u8]) -> Length {
    if bytes.first().is_some_and(|b| *b != magic) {
        return Length::Invalid;
    }
    let Some(header) = Header::of(bytes).filter(|_| bytes.len() >= HEADER) else {
        return Length::Short;
    };
    let inside = u32::from(header.key) + u32::from(header.extras);
    // The data type is 0 ever since.
    if bytes[5] != 0 || inside > header.body || header.body > MAX_BODY || header.extras > 20 {
        return Length::Invalid;
    }
    Length::Whole(HEADER as u64 + u64::from(header.body))
}

fn magic(direction: Direction) -> u8 {
    match direction {
        Direction::Request => REQUEST,
        Direction::Response => RESPONSE,
    }
}

pub fn detect(direction: Direction, bytes: &[u8]) -> Verdict {
    match length(magic(direction), bytes) {
        Length::Invalid => Verdict::No,
        Length::Short => Verdict::Unsure,
        Length::Whole(_) if name(bytes[1]).is_some() => Verdict::Yes,
        Length::Whole(_) | Length::Skim(_) => Verdict::Maybe,
    }
}

#[derive(Clone, Copy)]
struct Asked {
    opcode: u8,
    opaque: u32,
    quiet: bool,
}

pub struct Binary {
    frames: [Frames; 2],
    outstanding: Outstanding<Asked>,
    sync: Sync,
}

impl Binary {
    pub fn new(joined: Joined) -> Binary {
        Binary {
            frames: [Frames::new(KEEP), Frames::new(KEEP)],
            outstanding: Outstanding::default(),
            sync: Sync::new(joined),
        }
    }
}

fn message(
    direction: Direction,
    message: &Message<'_>,
    outstanding: &mut Outstanding<Asked>,
    output: &mut Output,
) {
    let Some(header) = Header::of(message.bytes) else {
        return;
    };
    match direction {
        Direction::Request => asked(&header, message, outstanding, output),
        Direction::Response => answered(&header, message, outstanding, output),
    }
}

fn asked(
    header: &Header,
    message: &Message<'_>,
    outstanding: &mut Outstanding<Asked>,
    output: &mut Output,
) {
    let (name, quiet) = name(header.opcode).unwrap_or(("(unknown command)", false));
    let from = HEADER + usize::from(header.extras);
    let key = message.bytes.get(from..);
    let key = key.map(|bytes| &bytes[..bytes.len().min(usize::from(header.key))]);
    // The key of statistics is their name, of an authentication its mechanism.
    let keyed = !matches!(header.opcode, STAT | 0x20..=0x22);
    let text = shape(name, key.filter(|k| keyed && !k.is_empty()), output);
    let asked = Asked {
        opcode: header.opcode,
        opaque: header.opaque,
        quiet,
    };
    outstanding.ask(text, message.first_ns, asked, output);
}

fn answered(
    header: &Header,
    message: &Message<'_>,
    outstanding: &mut Outstanding<Asked>,
    output: &mut Output,
) {
    let is_it = |a: &Asked| (a.opcode, a.opaque) == (header.opcode, header.opaque);
    if !find(outstanding, message.last_ns, is_it, silence, output) {
        return outstanding.orphan(message.last_ns, output);
    }
    outstanding.first_byte(message.first_ns);
    // Statistics come one a message, an empty one ends them.
    if header.opcode == STAT && header.body > 0 && header.status == 0 {
        return;
    }
    let outcome = match error(header.status) {
        Some(code) => failed(code, output),
        None if GETS.contains(&header.opcode) => Outcome {
            error: None,
            hits: u32::from(header.status == 0),
            misses: u32::from(header.status != 0),
        },
        None => Outcome::default(),
    };
    outstanding.answer(message.last_ns, outcome, output);
}

/// What it means that a request was not answered.
fn silence(asked: &Asked) -> Option<Outcome> {
    asked.quiet.then(|| Outcome {
        error: None,
        hits: 0,
        misses: u32::from(GETS.contains(&asked.opcode)),
    })
}

impl Decoder for Binary {
    fn bytes(&mut self, direction: Direction, at_ns: u64, bytes: &[u8], output: &mut Output) {
        let way = direction as usize;
        let magic = magic(direction);
        let fits = || length(magic, bytes) != Length::Invalid;
        let boundary = || matches!(length(magic, bytes), Length::Whole(_)).then_some(0);
        let (outstanding, at) = (&mut self.outstanding, (direction, at_ns));
        match self.sync.piece(at, outstanding, output, fits, boundary) {
            Piece::On => {}
            Piece::Anew(_) => self.frames[way].reset(),
            Piece::Skip => return,
        }
        let (sync, outstanding) = (&mut self.sync, &mut self.outstanding);
        let mut whole = false;
        let taken = self.frames[way].feed(
            at_ns,
            bytes,
            |bytes| length(magic, bytes),
            |m| {
                whole = true;
                message(direction, &m, outstanding, output);
                true
            },
        );
        sync.read(direction, taken);
        if whole {
            sync.messages(direction, self.frames[way].passed(), output);
        }
        if self.frames[way].lost() {
            sync.malformed(direction, at_ns, outstanding, output);
        }
    }

    fn gap(&mut self, direction: Direction, at_ns: u64, count: u64, output: &mut Output) {
        let way = direction as usize;
        let outstanding = &mut self.outstanding;
        if !self.sync.gap(direction, at_ns, outstanding, output) {
            return;
        }
        let mut whole = false;
        self.frames[way].gap(at_ns, count, |m| {
            whole = true;
            message(direction, &m, outstanding, output);
            true
        });
        if whole {
            self.sync.message(direction, output);
        }
        if self.frames[way].lost() {
            self.sync.lose(direction, at_ns, false, outstanding, output);
        }
    }

    fn end(&mut self, output: &mut Output) {
        self.outstanding.give_up(output);
    }

    fn in_flight(&self) -> usize {
        self.outstanding.len()
    }
}
