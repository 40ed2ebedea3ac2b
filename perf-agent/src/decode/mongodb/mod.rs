//! MongoDB's wire protocol: OP_MSG, the older OP_QUERY and OP_REPLY, and OP_COMPRESSED by name.
//!
//! An exchange is a command and its reply, paired by `requestID` and `responseTo`. Its text is the
//! command, the namespace and the field names of the filter: `find shop.orders {status, _id}`,
//! `aggregate shop.orders [$match, $group]`, `hello admin`. Values are never shown. An error is
//! `code codeName` of a reply with `ok: 0`, or the code of the first write error.
//!
//! - A command that asks for no reply (`moreToCome`) ends with its own last byte; its text says
//!   `(unacknowledged)`.
//! - Each reply of an exhaust cursor or a streaming `hello` is an exchange of its own, begun when
//!   the reply before ended: its latency is the wait for news. The text says `(exhaust)`.
//! - What is compressed is counted and timed as `OP_COMPRESSED`, and as unsupported.
//!
//! Memory: at most [`LOOK`] bytes of an open message in each direction, 256 when none is open, and
//! about 64 bytes a request in flight.

mod bson;
mod text;

use self::bson::Document;
use self::text::{command, error_of, legacy, sections};
use super::correlated::Correlated;
use super::framing::{Length, Message};
use super::lane::Lane;
use super::{Anomaly, Decoder, Direction, Joined, Outcome, Output, TextId, Verdict};

/// Bytes of a message that are looked at. Commands have their name first and their namespace
/// before or right behind the filter; errors are short.
const LOOK: usize = 4096;
/// The server's `maxMessageSizeBytes` is 48,000,000.
const MAX_MESSAGE: i32 = 48_000_000;
const HEADER: usize = 16;
/// Header and the first five bytes of a body, which the shortest message has.
const WINDOW: usize = 21;

const OP_REPLY: i32 = 1;
const OP_UPDATE: i32 = 2001;
const OP_INSERT: i32 = 2002;
const OP_QUERY: i32 = 2004;
const OP_GET_MORE: i32 = 2005;
const OP_DELETE: i32 = 2006;
const OP_KILL_CURSORS: i32 = 2007;
const OP_COMPRESSED: i32 = 2012;
const OP_MSG: i32 = 2013;

const CHECKSUM_PRESENT: u32 = 1;
const MORE_TO_COME: u32 = 2;
const EXHAUST_ALLOWED: u32 = 1 << 16;

fn int(bytes: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

struct Header {
    length: i32,
    id: u32,
    response_to: u32,
    code: i32,
}

fn header(bytes: &[u8]) -> Option<Header> {
    Some(Header {
        length: int(bytes, 0)?,
        id: int(bytes, 4)? as u32,
        response_to: int(bytes, 8)? as u32,
        code: int(bytes, 12)?,
    })
}

fn is_code(direction: Direction, code: i32) -> bool {
    match direction {
        Direction::Request => matches!(
            code,
            OP_UPDATE | OP_INSERT | OP_QUERY..=OP_KILL_CURSORS | OP_COMPRESSED | OP_MSG
        ),
        Direction::Response => matches!(code, OP_REPLY | OP_COMPRESSED | OP_MSG),
    }
}

fn length_of(direction: Direction, bytes: &[u8]) -> Length {
    match header(bytes) {
        None if int(bytes, 0).is_some_and(|n| !(WINDOW as i32..=MAX_MESSAGE).contains(&n)) => {
            Length::Invalid
        }
        None => Length::Short,
        Some(h) if !(WINDOW as i32..=MAX_MESSAGE).contains(&h.length) => Length::Invalid,
        Some(h) if !is_code(direction, h.code) => Length::Invalid,
        Some(h) => Length::Whole(h.length as u64),
    }
}

/// What the first bytes of a body say beyond the header.
fn plausible(direction: Direction, bytes: &[u8]) -> bool {
    let Some(h) = header(bytes) else {
        return false;
    };
    let answers = h.response_to != 0;
    if !matches!(length_of(direction, bytes), Length::Whole(_)) {
        return false;
    }
    match (h.code, int(bytes, HEADER)) {
        (OP_MSG, Some(flags)) => {
            let known = CHECKSUM_PRESENT | MORE_TO_COME | EXHAUST_ALLOWED;
            flags as u32 & !known == 0 && bytes.get(HEADER + 4).is_none_or(|kind| *kind <= 1)
        }
        (OP_COMPRESSED, Some(original)) => is_code(direction, original),
        _ => answers == (direction == Direction::Response),
    }
}

/// Looks at the beginning of a piece.
pub fn detect(direction: Direction, bytes: &[u8]) -> Verdict {
    match length_of(direction, bytes) {
        Length::Short => Verdict::Unsure,
        Length::Whole(_) if plausible(direction, bytes) => Verdict::Yes,
        _ => Verdict::No,
    }
}

/// What a request in flight needs to know of itself.
struct Asked {
    /// Replies go on without further requests.
    exhaust: Option<TextId>,
}

/// Decodes one connection.
pub struct Mongodb {
    lanes: [Lane; 2],
    state: State,
}

#[derive(Default)]
struct State {
    waiting: Correlated<Asked>,
    /// Text in the making.
    text: String,
}

/// A decoder for a connection.
pub fn decoder(joined: Joined) -> Box<dyn Decoder + Send> {
    Box::new(Mongodb {
        lanes: [Lane::new(joined, LOOK), Lane::new(joined, LOOK)],
        state: State::default(),
    })
}

impl Decoder for Mongodb {
    fn bytes(&mut self, direction: Direction, at_ns: u64, bytes: &[u8], output: &mut Output) {
        let lane = &mut self.lanes[direction as usize];
        let synced = lane.sync(at_ns, bytes, WINDOW, |b| plausible(direction, b), output);
        let Some(found) = synced else {
            return;
        };
        let state = &mut self.state;
        lane.feed(
            &found,
            at_ns,
            bytes,
            |b| length_of(direction, b),
            output,
            |m, output| state.message(direction, m, output),
        );
        if direction == Direction::Response && lane.lost() {
            self.state.waiting.answers_lost();
        }
    }

    fn gap(&mut self, direction: Direction, at_ns: u64, count: u64, output: &mut Output) {
        let state = &mut self.state;
        let lost = self.lanes[direction as usize].gap(at_ns, count, output, |m, output| {
            state.message(direction, m, output);
        });
        if lost && direction == Direction::Response {
            self.state.waiting.answers_lost();
        }
    }

    fn end(&mut self, output: &mut Output) {
        self.state.waiting.give_up(output);
    }

    fn in_flight(&self) -> usize {
        self.state.waiting.len()
    }
}

impl State {
    fn message(&mut self, direction: Direction, message: Message<'_>, output: &mut Output) {
        output.decoded(direction, message.captured as usize);
        let Some(header) = header(message.bytes) else {
            return;
        };
        let body = &message.bytes[HEADER..message.bytes.len().min(LOOK)];
        if header.code == OP_COMPRESSED {
            output.anomaly(Anomaly::Unsupported, 1);
        }
        match direction {
            Direction::Request => self.request(&header, body, &message, output),
            Direction::Response => self.response(&header, body, &message, output),
        }
    }

    fn request(&mut self, header: &Header, body: &[u8], m: &Message<'_>, output: &mut Output) {
        self.text.clear();
        let mut answered = true;
        let mut exhaust = false;
        match header.code {
            OP_MSG => {
                let flags = int(body, 0).unwrap_or(0) as u32;
                answered = flags & MORE_TO_COME == 0;
                exhaust = flags & EXHAUST_ALLOWED != 0;
                let length = (header.length as usize).saturating_sub(HEADER);
                let end = length - if flags & CHECKSUM_PRESENT != 0 { 4 } else { 0 };
                command(sections(body, end), &mut self.text);
            }
            OP_COMPRESSED => self.text.push_str("OP_COMPRESSED"),
            OP_QUERY | OP_GET_MORE => legacy(header.code, body, &mut self.text),
            code => {
                answered = false;
                self.text.push_str(match code {
                    OP_INSERT => "OP_INSERT",
                    OP_UPDATE => "OP_UPDATE",
                    OP_DELETE => "OP_DELETE",
                    _ => "OP_KILL_CURSORS",
                });
            }
        }
        if !answered {
            self.text.push_str(" (unacknowledged)");
        }
        let text = output.text(&self.text);
        let exhaust = exhaust.then(|| {
            self.text.push_str(" (exhaust)");
            output.text(&self.text)
        });
        self.waiting
            .ask(header.id, text, m.first_ns, Asked { exhaust }, output);
        if !answered {
            let outcome = Outcome::default();
            self.waiting
                .answer(header.id, m.last_ns, m.last_ns, outcome, false, output);
        }
    }

    fn response(&mut self, header: &Header, body: &[u8], m: &Message<'_>, output: &mut Output) {
        let flags = int(body, 0).unwrap_or(0) as u32;
        let document = match header.code {
            OP_MSG => sections(body, header.length as usize - HEADER).body,
            // Flags, cursor, start and number of documents go before.
            OP_REPLY => body.get(20..).and_then(Document::read).map(|d| d.0),
            _ => None,
        };
        let failed = header.code == OP_REPLY && flags & 2 != 0;
        self.text.clear();
        let error = document.and_then(|d| error_of(d, failed, &mut self.text));
        let outcome = Outcome {
            error: error.map(|()| output.text(&self.text)),
            ..Outcome::default()
        };
        let exhaust = self.waiting.get(header.response_to);
        let exhaust = exhaust.map(|w| w.kind.exhaust.unwrap_or(w.text));
        self.waiting.answer(
            header.response_to,
            m.first_ns,
            m.last_ns,
            outcome,
            true,
            output,
        );
        if let (OP_MSG, Some(text)) = (header.code, exhaust)
            && flags & MORE_TO_COME != 0
        {
            // The next reply answers this one.
            let asked = Asked {
                exhaust: Some(text),
            };
            self.waiting.ask(header.id, text, m.last_ns, asked, output);
        }
    }
}

#[cfg(test)]
mod tests;
