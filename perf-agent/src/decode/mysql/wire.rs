//! Packets as bytes.

use super::super::framing::Length;

/// A packet of this length is continued by the next.
pub const CONTINUED: u32 = 0x00ff_ffff;
/// Length and sequence number.
pub const HEADER: usize = 4;

pub mod capability {
    pub const COMPRESS: u32 = 1 << 5;
    pub const SSL: u32 = 1 << 11;
    pub const DEPRECATE_EOF: u32 = 1 << 24;
    pub const OPTIONAL_METADATA: u32 = 1 << 25;
    pub const ZSTD: u32 = 1 << 26;
}

pub mod status {
    pub const IN_TRANSACTION: u16 = 1;
    pub const MORE_RESULTS: u16 = 8;
    pub const CURSOR: u16 = 0x40;
    pub const NO_BACKSLASHES: u16 = 0x200;
}

pub mod command {
    pub const QUIT: u8 = 1;
    pub const INIT_DB: u8 = 2;
    pub const QUERY: u8 = 3;
    pub const FIELD_LIST: u8 = 4;
    pub const STATISTICS: u8 = 9;
    pub const PROCESS_INFO: u8 = 10;
    pub const PING: u8 = 14;
    pub const CHANGE_USER: u8 = 17;
    pub const BINLOG_DUMP: u8 = 18;
    pub const PREPARE: u8 = 22;
    pub const EXECUTE: u8 = 23;
    pub const LONG_DATA: u8 = 24;
    pub const CLOSE: u8 = 25;
    pub const RESET_STATEMENT: u8 = 26;
    pub const SET_OPTION: u8 = 27;
    pub const FETCH: u8 = 28;
    pub const BINLOG_DUMP_GTID: u8 = 30;
    pub const RESET_CONNECTION: u8 = 31;
    pub const BULK_EXECUTE: u8 = 0xfa;
}

/// A little-endian number of up to eight bytes.
pub fn number(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(size)?)?;
    Some(bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
}

/// Body length of a packet's header.
pub fn body_length(bytes: &[u8]) -> Option<u32> {
    let header = bytes.get(..HEADER)?;
    Some(number(header, 0, 3)? as u32)
}

pub fn length(bytes: &[u8]) -> Length {
    body_length(bytes).map_or(Length::Short, |n| {
        Length::Whole(u64::from(n) + HEADER as u64)
    })
}

/// As [`length`]; where nothing but a command can come, only of a command.
pub fn request_length(bytes: &[u8], strict: bool) -> Length {
    let Some(n) = body_length(bytes) else {
        return Length::Short;
    };
    if strict {
        let Some(&command) = bytes.get(HEADER) else {
            return if n == 0 {
                Length::Invalid
            } else {
                Length::Short
            };
        };
        if bytes[3] != 0 || !command_fits(command, n) {
            return Length::Invalid;
        }
    }
    length(bytes)
}

/// A length-encoded number, and how many bytes it takes.
pub fn encoded(bytes: &[u8], at: usize) -> Option<(u64, usize)> {
    match *bytes.get(at)? {
        first @ 0..=0xfa => Some((u64::from(first), 1)),
        0xfc => Some((number(bytes, at + 1, 2)?, 3)),
        0xfd => Some((number(bytes, at + 1, 3)?, 4)),
        0xfe => Some((number(bytes, at + 1, 8)?, 9)),
        _ => None,
    }
}

/// Server status of an OK packet, or of what ends a result under CLIENT_DEPRECATE_EOF.
pub fn ok_status(body: &[u8]) -> Option<u16> {
    let (_, rows) = encoded(body, 1)?;
    let (_, id) = encoded(body, 1 + rows)?;
    Some(number(body, 1 + rows + id, 2)? as u16)
}

/// Whether a command can have a body of this length.
pub fn command_fits(command: u8, length: u32) -> bool {
    use command::*;
    match command {
        QUIT | STATISTICS | PROCESS_INFO | PING | RESET_CONNECTION => length == 1,
        QUERY | PREPARE => length > 1,
        INIT_DB => (2..=1025).contains(&length),
        FIELD_LIST => (2..=2050).contains(&length),
        5..=8 | 12 | 13 => length <= 1025,
        CHANGE_USER => (3..=65536).contains(&length),
        EXECUTE | BULK_EXECUTE => length >= 7,
        LONG_DATA => length >= 7,
        CLOSE | RESET_STATEMENT => length == 5,
        SET_OPTION => length == 3,
        FETCH => length == 9,
        BINLOG_DUMP | BINLOG_DUMP_GTID | 21 => (10..=65536).contains(&length),
        _ => false,
    }
}

/// Whether a piece begins with a command; of its text only characters, no control bytes.
pub fn command_begins(bytes: &[u8]) -> bool {
    let header = [0, 0];
    match (bytes.get(3).unwrap_or(&header[0]), bytes.get(HEADER)) {
        (0, None) => true,
        (0, Some(&command)) => {
            let n = body_length(bytes).unwrap_or(0);
            let body = bytes.get(HEADER..).unwrap_or_default();
            let whole = n as usize <= body.len();
            // What follows a whole command can only be another one.
            let next = bytes.get(HEADER + n as usize..).unwrap_or_default();
            command_fits(command, n)
                && (!matches!(
                    command,
                    command::QUERY | command::PREPARE | command::INIT_DB
                ) || is_text(sql_of(&body[..body.len().min(n as usize)])))
                && (!whole || next.is_empty() || command_begins_again(next))
        }
        _ => false,
    }
}

fn command_begins_again(bytes: &[u8]) -> bool {
    match (bytes.get(3), bytes.get(HEADER)) {
        (Some(0), Some(&command)) => command_fits(command, body_length(bytes).unwrap_or(0)),
        (None | Some(0), None) => true,
        _ => false,
    }
}

pub fn is_text(bytes: &[u8]) -> bool {
    // Some clients send their string's zero byte, too.
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    let shown = &bytes[..bytes.len().min(64)];
    shown
        .iter()
        .all(|b| *b >= b' ' || matches!(b, b'\t' | b'\n' | b'\r'))
}

/// The text of a COM_QUERY or COM_STMT_PREPARE body: behind the query attributes, if there are any.
/// They are told by the byte after the command, a count, which no text begins with.
pub fn sql_of(body: &[u8]) -> &[u8] {
    let text = body.get(1..).unwrap_or_default();
    if body.first() != Some(&command::QUERY) || !matches!(text, [0..=8, 1, ..]) {
        return text;
    }
    after_attributes(text).unwrap_or_default()
}

fn after_attributes(text: &[u8]) -> Option<&[u8]> {
    let count = usize::from(text[0]);
    if count == 0 {
        return text.get(2..);
    }
    // Behind the two counts: nulls, a flag, types and names, values.
    let nulls = text.get(2..2 + count.div_ceil(8))?;
    let mut at = 2 + nulls.len() + 1;
    let mut types = [0u8; 8];
    for kind in types.iter_mut().take(count) {
        *kind = *text.get(at)?;
        let (name, size) = encoded(text, at + 2)?;
        at = at
            .checked_add(2 + size)?
            .checked_add(usize::try_from(name).ok()?)?;
    }
    for (i, kind) in types.iter().take(count).enumerate() {
        if nulls[i / 8] & 1 << (i % 8) != 0 {
            continue;
        }
        at = at.checked_add(match kind {
            6 => 0,
            1 => 1,
            2 | 13 => 2,
            3 | 4 | 9 => 4,
            5 | 8 => 8,
            7 | 10 | 11 | 12 => 1 + usize::from(*text.get(at)?),
            _ => {
                let (value, size) = encoded(text, at)?;
                size.checked_add(usize::try_from(value).ok()?)?
            }
        })?;
    }
    text.get(at..)
}

/// The error of an ERR packet, as `ERRNO SQLSTATE`.
pub fn error(body: &[u8]) -> Option<String> {
    let number = number(body, 1, 2)?;
    let state = body.get(4..9).filter(|_| body.get(3) == Some(&b'#'));
    let state = state.filter(|s| s.iter().all(u8::is_ascii_alphanumeric));
    match state.and_then(|s| std::str::from_utf8(s).ok()) {
        Some(state) => Some(format!("{number} {state}")),
        None => Some(format!("{number}")),
    }
}
