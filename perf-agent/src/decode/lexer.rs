//! Lines and counted bodies, which the text protocols of caches are made of, out of a stream in any
//! pieces.

use memchr::memchr;

/// Most bytes of a line or body that are handed on, and kept when it comes in pieces, if nothing else
/// is asked for. Keys are looked at for no longer.
pub const KEEP: usize = 256;

/// Longest line; servers refuse longer ones.
const MAX_LINE: usize = 64 << 10;

/// What passed whole. Of either kind at most the beginning is handed on.
#[derive(Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// Without its end (LF or CR LF).
    Line(&'a [u8]),
    /// Without its end, and without what was in a gap and behind it.
    Body(&'a [u8]),
    /// A body did not end with CR LF where its length says, or a line does not end.
    Broken,
}

/// One direction's lines and bodies.
pub struct Lexer {
    keep: usize,
    /// The beginning of an item that came in pieces.
    kept: Vec<u8>,
    /// `kept` was handed on.
    used: bool,
    /// A part of the item passed before.
    open: bool,
    /// Bytes of the open body still to come, its CR LF included; 0 in a line.
    left: u64,
    body: bool,
    /// Part of the body was in a gap.
    holed: bool,
    /// Bytes of the open line.
    line: usize,
}

impl Default for Lexer {
    fn default() -> Lexer {
        Lexer::keeping(KEEP)
    }
}

impl Lexer {
    /// Hands on at most `keep` bytes of a line or body.
    pub fn keeping(keep: usize) -> Lexer {
        Lexer {
            keep,
            kept: Vec::new(),
            used: false,
            open: false,
            left: 0,
            body: false,
            holed: false,
            line: 0,
        }
    }

    /// Whether the stream stands between items.
    pub fn between(&self) -> bool {
        !self.open && !self.body
    }

    /// Bytes held, for the bound on memory.
    #[cfg(test)]
    pub fn held(&self) -> usize {
        self.kept.capacity()
    }

    /// What follows is a body of this length, then CR LF.
    pub fn body(&mut self, length: u64) {
        (self.body, self.left) = (true, length.saturating_add(2));
    }

    fn ready(&mut self) {
        if self.used {
            // Room of a short line is kept: connections whose messages are always cut would
            // otherwise allocate for each.
            self.kept.clear();
            self.kept.shrink_to(64);
            self.used = false;
        }
    }

    /// The next item, taken off the front of `rest`; None once `rest` is used up.
    #[inline]
    pub fn next<'a, 'b: 'a>(&'a mut self, rest: &mut &'b [u8]) -> Option<Item<'a>> {
        self.ready();
        if self.body {
            return self.next_body(rest);
        }
        let bytes = *rest;
        let Some(end) = line_end(bytes) else {
            self.keep(bytes);
            self.open |= !bytes.is_empty();
            self.line = self.line.saturating_add(bytes.len());
            *rest = &[];
            return (self.line > MAX_LINE).then_some(Item::Broken);
        };
        *rest = &bytes[end + 1..];
        if self.line + end > MAX_LINE {
            return Some(Item::Broken);
        }
        if !self.open {
            return Some(Item::Line(without_cr(&bytes[..end.min(self.keep)])));
        }
        self.keep(&bytes[..end]);
        (self.used, self.open, self.line) = (true, false, 0);
        Some(Item::Line(without_cr(&self.kept)))
    }

    fn next_body<'a, 'b: 'a>(&'a mut self, rest: &mut &'b [u8]) -> Option<Item<'a>> {
        let bytes = *rest;
        if !self.open && self.left <= bytes.len() as u64 {
            let (body, after) = bytes.split_at(self.left as usize);
            (*rest, self.body) = (after, false);
            let (body, end) = body.split_at(body.len() - 2);
            return Some(if end == b"\r\n" {
                Item::Body(&body[..body.len().min(self.keep)])
            } else {
                Item::Broken
            });
        }
        let now = self.left.min(bytes.len() as u64) as usize;
        let (bytes, after) = bytes.split_at(now);
        // Where the body proper ends within `bytes`.
        let proper = self.left.saturating_sub(2).min(now as u64) as usize;
        if !self.holed {
            self.keep(&bytes[..proper]);
        }
        self.open |= now > 0;
        let broken = bytes[proper..].iter().enumerate().any(|(i, byte)| {
            let left = self.left - (proper + i) as u64;
            *byte != if left == 2 { b'\r' } else { b'\n' }
        });
        self.left -= now as u64;
        *rest = after;
        if broken {
            return Some(Item::Broken);
        }
        if self.left > 0 {
            return None;
        }
        (self.used, self.open, self.body, self.holed) = (true, false, false, false);
        Some(Item::Body(&self.kept))
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = self.keep.saturating_sub(self.kept.len());
        self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// `count` bytes passed unseen. False if they went over the end of the open item, or none with
    /// a known length is open.
    pub fn gap(&mut self, count: u64) -> bool {
        self.ready();
        // A gap up to the very end leaves the item to the next call of `next`.
        if !self.body || count > self.left {
            return false;
        }
        (self.holed, self.open) = (true, true);
        self.left -= count;
        true
    }
}

/// Lines are short: a plain search beats the vectorised one up to some 20 bytes.
#[inline]
fn line_end(bytes: &[u8]) -> Option<usize> {
    let near = bytes.iter().take(12).position(|b| *b == b'\n');
    near.or_else(|| {
        let far = bytes.get(12..)?;
        memchr(b'\n', far).map(|at| at + 12)
    })
}

fn without_cr(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// Digits alone, up to 2^40.
pub fn count(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 13 {
        return None;
    }
    let mut value = 0;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        value = value * 10 + u64::from(digit - b'0');
    }
    (value <= 1 << 40).then_some(value)
}

/// A line of `mark` and one to four digits that lies whole at the front of `bytes`: its number and
/// what follows the line. `None` for all others, which are left to [`Lexer::next`].
#[inline]
pub fn number(mark: u8, bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (first, rest) = bytes.split_first()?;
    if *first != mark {
        return None;
    }
    digits(rest)
}

/// As [`number`], behind the mark.
#[inline]
pub fn digits(mut rest: &[u8]) -> Option<(usize, &[u8])> {
    let mut value = 0;
    for digits in 0..=4 {
        match rest {
            [digit @ b'0'..=b'9', after @ ..] => {
                value = value * 10 + usize::from(digit - b'0');
                rest = after;
            }
            [b'\r', b'\n', after @ ..] if digits > 0 => return Some((value, after)),
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(lexer: &mut Lexer, mut rest: &[u8]) -> Vec<String> {
        let mut out = Vec::new();
        loop {
            let item = match lexer.next(&mut rest) {
                None => return out,
                Some(Item::Broken) => {
                    out.push("broken".into());
                    return out;
                }
                Some(Item::Body(body)) => format!("body {}", String::from_utf8_lossy(body)),
                Some(Item::Line(line)) => String::from_utf8_lossy(line).into_owned(),
            };
            if let Some(length) = item.strip_prefix('$') {
                let length = count(length.as_bytes()).unwrap();
                lexer.body(length);
            }
            out.push(item);
        }
    }

    #[test]
    fn lines_and_bodies_are_the_same_in_any_pieces() {
        let stream = b"+OK\r\n$5\r\na\r\nbc\r\n\n$0\r\n\r\nend\r\n";
        let expected = ["+OK", "$5", "body a\r\nbc", "", "$0", "body ", "end"];
        for first in 0..=stream.len() {
            for second in first..=stream.len() {
                let mut lexer = Lexer::default();
                let mut out = items(&mut lexer, &stream[..first]);
                out.extend(items(&mut lexer, &stream[first..second]));
                out.extend(items(&mut lexer, &stream[second..]));
                assert_eq!(out, expected, "cut at {first} and {second}");
                assert!(lexer.between());
            }
        }
    }

    #[test]
    fn a_body_that_does_not_end_where_it_says_is_broken_and_a_gap_inside_it_is_passed_over() {
        for cut in 1..8 {
            let mut lexer = Lexer::default();
            let stream = b"$1\r\nabc\r\n";
            let mut out = items(&mut lexer, &stream[..cut]);
            if out.last().is_none_or(|l| l != "broken") {
                out.extend(items(&mut lexer, &stream[cut..]));
            }
            assert_eq!(out, ["$1", "broken"], "cut at {cut}");
        }
        let mut lexer = Lexer::default();
        items(&mut lexer, b"$10\r\nab");
        assert!(lexer.gap(10));
        assert_eq!(items(&mut lexer, b"next\r\n"), ["body ab", "next"]);
        items(&mut lexer, b"$10\r\nab");
        assert!(!lexer.gap(11));
        assert!(!Lexer::default().gap(1));
    }

    #[test]
    fn endless_lines_and_bodies_hold_a_bounded_beginning() {
        for head in ["", "$1099511627776\r\n"] {
            let mut lexer = Lexer::default();
            items(&mut lexer, head.as_bytes());
            for _ in 0..1000 {
                items(&mut lexer, &[b'x'; 1000]);
            }
            assert!(lexer.held() <= 2 * KEEP, "{} bytes held", lexer.held());
        }
    }
}
