//! Whether a piece is of this protocol.

use super::super::framing::Length;
use super::super::{Direction, Verdict};
use super::wire::{CANCEL, GSSENC, SSL, chain, number, request_length, response_length};

pub fn detect(direction: Direction, bytes: &[u8]) -> Verdict {
    match (direction, bytes.first()) {
        (_, None) => Verdict::Unsure,
        (Direction::Request, Some(0)) => startup(bytes),
        (Direction::Request, _) => messages(bytes, |b| request_length(b, false), request_fits),
        // What answers an SSLRequest.
        (Direction::Response, Some(b'S' | b'N' | b'G')) if bytes.len() == 1 => Verdict::Unsure,
        (Direction::Response, _) => messages(bytes, |b| response_length(b, false), response_fits),
    }
}

fn startup(bytes: &[u8]) -> Verdict {
    if bytes.len() < 8 {
        let longest = number(bytes, 0).unwrap_or(0);
        return if longest > 10_000 || bytes.get(1).is_some_and(|b| *b != 0) {
            Verdict::No
        } else {
            Verdict::Unsure
        };
    }
    match (request_length(bytes, true), number(bytes, 4)) {
        (Length::Whole(8), Some(SSL | GSSENC)) => Verdict::Yes,
        (Length::Whole(16..=268), Some(CANCEL)) => Verdict::Yes,
        // The first parameter's name; other protocols have a number here.
        (Length::Whole(9..), Some(_)) => match bytes.get(8) {
            None => Verdict::Maybe,
            Some(b) if b.is_ascii_lowercase() => Verdict::Yes,
            Some(_) => Verdict::No,
        },
        _ => Verdict::No,
    }
}

/// A run of messages of which each whole one has what its kind must have.
fn messages(
    bytes: &[u8],
    length_of: impl Fn(&[u8]) -> Length,
    fits: impl Fn(&[u8]) -> Verdict,
) -> Verdict {
    let Some(run) = chain(bytes, &length_of) else {
        return Verdict::No;
    };
    let (mut rest, mut verdict) = (bytes, Verdict::Unsure);
    for _ in 0..run.whole {
        let Length::Whole(n) = length_of(rest) else {
            return Verdict::No;
        };
        let (message, after) = rest.split_at((n as usize).min(rest.len()));
        let fit = fits(message);
        if fit == Verdict::No {
            return Verdict::No;
        }
        verdict = verdict.max(fit);
        rest = after;
    }
    if run.rest > 5 && run.whole == 0 {
        // A long message's beginning.
        return fits(rest).min(Verdict::Maybe);
    }
    // Several in a row, each with a length that fits, do not come about by chance.
    if run.whole > 1 && verdict == Verdict::Maybe {
        Verdict::Yes
    } else {
        verdict
    }
}

fn is_text(bytes: &[u8]) -> bool {
    bytes
        .iter()
        .all(|b| *b >= b' ' || matches!(b, b'\t' | b'\n' | b'\r' | 0x0c))
}

/// How many texts, each ended by a zero byte, a body begins with.
fn texts(body: &[u8], count: usize, whole: bool) -> bool {
    let mut parts = body.splitn(count + 1, |b| *b == 0);
    for i in 0..count {
        match parts.next() {
            Some(part) if is_text(part) => {}
            None if !whole && i > 0 => return true,
            _ => return false,
        }
    }
    !whole || parts.next().is_some()
}

fn if_fits(fits: bool, verdict: Verdict) -> Verdict {
    if fits { verdict } else { Verdict::No }
}

fn request_fits(message: &[u8]) -> Verdict {
    let body = message.get(5..).unwrap_or_default();
    let whole = request_length(message, false) == Length::Whole(message.len() as u64);
    match message[0] {
        b'Q' => {
            let text = body.strip_suffix(b"\0").filter(|_| whole);
            let ends = text.is_some() || !whole;
            if_fits(ends && is_text(text.unwrap_or(body)), Verdict::Yes)
        }
        b'P' => if_fits(texts(body, 2, whole), Verdict::Yes),
        b'B' => if_fits(texts(body, 2, whole), Verdict::Maybe),
        b'E' => if_fits(texts(body, 1, whole), Verdict::Maybe),
        b'C' | b'D' => {
            let kind = matches!(body.first(), Some(b'S' | b'P'));
            if_fits(kind && texts(&body[1..], 1, whole), Verdict::Yes)
        }
        b'S' | b'H' | b'X' | b'c' => Verdict::Maybe,
        b'p' | b'd' | b'f' | b'F' => Verdict::Unsure,
        _ => Verdict::No,
    }
}

fn response_fits(message: &[u8]) -> Verdict {
    let body = message.get(5..).unwrap_or_default();
    match message[0] {
        b'Z' => if_fits(matches!(body, [b'I' | b'T' | b'E']), Verdict::Yes),
        b'E' | b'N' => if_fits(
            body.first() == Some(&b'S') && body.windows(2).any(|w| w == b"\0C"),
            Verdict::Yes,
        ),
        b'R' => if_fits(number(body, 0).is_some_and(|code| code <= 12), Verdict::Yes),
        b'C' => if_fits(
            body.first().is_some_and(u8::is_ascii_uppercase) && body.iter().all(u8::is_ascii),
            Verdict::Maybe,
        ),
        b'T' => if_fits(columns_fit(body), Verdict::Yes),
        b'S' => if_fits(texts(body, 1, false), Verdict::Maybe),
        b'1' | b'2' | b'3' | b'n' | b's' | b'I' | b'c' | b'D' | b't' | b'G' | b'H' | b'W' => {
            Verdict::Maybe
        }
        _ => Verdict::Unsure,
    }
}

/// A number of columns, and the first's name.
fn columns_fit(body: &[u8]) -> bool {
    let Some((count, name)) = body.split_first_chunk() else {
        return false;
    };
    let count = u16::from_be_bytes(*count);
    count <= 1664 && (count == 0 || texts(name, 1, false))
}
