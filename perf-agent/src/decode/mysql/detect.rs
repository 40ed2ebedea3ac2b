//! Whether a piece is of this protocol.

use super::super::{Direction, Verdict};
use super::wire::{HEADER, body_length, command, command_fits, encoded, is_text, number, sql_of};

pub fn detect(direction: Direction, bytes: &[u8]) -> Verdict {
    let Some(n) = body_length(bytes) else {
        return if bytes.len() == 3 && bytes[2] > 0x10 && !bytes.is_ascii() {
            Verdict::No
        } else {
            Verdict::Unsure
        };
    };
    let body = &bytes[HEADER..];
    if n == 0 || body.is_empty() {
        return if bytes[3] <= 1 && n > 0 {
            Verdict::Unsure
        } else {
            Verdict::No
        };
    }
    match direction {
        Direction::Request if bytes[3] == 0 => command_verdict(body, n),
        Direction::Request if bytes[3] == 1 => login(body, n),
        Direction::Response if bytes[3] == 0 => greeting(body, n),
        Direction::Response if bytes[3] == 1 => answer(bytes, body, n),
        _ => Verdict::No,
    }
}

fn command_verdict(body: &[u8], n: u32) -> Verdict {
    let whole = n as usize == body.len();
    // A client waits for the answer; what is longer than its length is something else.
    if !command_fits(body[0], n) || n as usize > 1 << 24 {
        return Verdict::No;
    }
    let exact = |verdict| if whole { verdict } else { Verdict::No };
    match body[0] {
        command::QUERY | command::PREPARE => {
            let text = sql_of(body);
            let first = text.iter().find(|b| !b.is_ascii_whitespace());
            let sql = first.is_none_or(|b| b.is_ascii_alphabetic() || b"(/-#{".contains(b));
            match (sql && is_text(text), whole, (body.len() as u32) < n) {
                (true, true, _) if text.len() > 3 => Verdict::Yes,
                (true, true, _) | (true, _, true) => Verdict::Maybe,
                // Pipelined: only MariaDB's Prepare is.
                (true, false, false) if body[0] == command::PREPARE => Verdict::Maybe,
                _ => Verdict::No,
            }
        }
        command::EXECUTE if (body.len() as u32) < n => Verdict::Unsure,
        // Flags of a cursor, and how often: once.
        command::EXECUTE => exact(match (number(body, 5, 1), number(body, 6, 4)) {
            (Some(0..=15), Some(1)) => Verdict::Yes,
            _ => Verdict::No,
        }),
        command::QUIT | command::PING | command::STATISTICS => exact(Verdict::Maybe),
        command::INIT_DB if whole && is_text(&body[1..]) => Verdict::Maybe,
        command::CLOSE | command::RESET_STATEMENT | command::FETCH | command::SET_OPTION => {
            exact(Verdict::Maybe)
        }
        command::RESET_CONNECTION => exact(Verdict::Maybe),
        command::LONG_DATA | command::BULK_EXECUTE => Verdict::Unsure,
        _ => Verdict::No,
    }
}

fn login(body: &[u8], n: u32) -> Verdict {
    // Protocol 4.1, and reserved zeros (MariaDB uses the last four).
    let flags = number(body, 0, 4).is_none_or(|flags| flags & 1 << 9 != 0);
    let zeros = body.iter().take(28).skip(9).all(|b| *b == 0);
    match body.len() {
        _ if !(32..65536).contains(&n) || !flags || !zeros => Verdict::No,
        32.. => Verdict::Yes,
        _ => Verdict::Unsure,
    }
}

fn greeting(body: &[u8], n: u32) -> Verdict {
    if body[0] == 0xff {
        let fits = (9..512).contains(&n) && body.get(3..).is_none_or(is_text);
        return if fits { Verdict::Maybe } else { Verdict::No };
    }
    let version = body[1..].iter().position(|b| *b == 0);
    let text = &body[1..version.map_or(body.len(), |end| end + 1)];
    let digits = text.first().is_none_or(u8::is_ascii_digit) && is_text(text);
    match version {
        _ if body[0] != 10 || !digits || n > 512 => Verdict::No,
        Some(_) if n as usize == body.len() => Verdict::Yes,
        _ => Verdict::Maybe,
    }
}

/// The first packet of an answer.
fn answer(bytes: &[u8], body: &[u8], n: u32) -> Verdict {
    let next = bytes.get(HEADER + n as usize..).unwrap_or_default();
    let follows = next.get(3).is_none_or(|b| *b == 2);
    match body[0] {
        // Short enough to be whole in its piece.
        0 if body.len() < 7 && (7..1024).contains(&n) => Verdict::Unsure,
        0 if (7..1024).contains(&n) && n as usize <= body.len() && follows => {
            let plain = n == 7 && next.is_empty() && body.len() == 7;
            if plain || n == 12 {
                Verdict::Yes
            } else {
                Verdict::Maybe
            }
        }
        0xff if (9..1024).contains(&n) && body.get(3).is_none_or(|b| *b == b'#') => {
            if body.len() >= 9 {
                Verdict::Yes
            } else {
                Verdict::Maybe
            }
        }
        0xfb if n < 1024 && next.is_empty() => Verdict::Maybe,
        1.. if n <= 4 => {
            let count = encoded(body, 0).is_some_and(|(n, _)| (1..=4096).contains(&n));
            // The first definition: its catalog is "def".
            let defined = next
                .get(HEADER..HEADER + 4)
                .is_some_and(|b| b == b"\x03def");
            match (count && follows, defined) {
                (true, true) => Verdict::Yes,
                (true, false) if next.len() < HEADER + 4 => Verdict::Maybe,
                _ => Verdict::No,
            }
        }
        _ => Verdict::No,
    }
}
