//! Kafka: requests and answers by correlation id.
//!
//! An exchange is a request and its answer. Its text is the API and, for Produce and Fetch up to
//! the versions that name topics by id (12), the first topic: `Produce orders`, `Fetch orders, ...`
//! if there are more. Its error is the code and name at the beginning of the answer, or of
//! Produce's first partition: `3 UNKNOWN_TOPIC_OR_PARTITION`; APIs with codes in nested lists only
//! show none.
//!
//! - A Produce that asks for no answer ends with its own last byte; its text says `(acks=0)`.
//! - The latency of a Fetch is mostly a wait: the broker holds it until there is enough to send or
//!   the consumer's `fetch.max.wait.ms` is over.
//! - SASL tokens without a header (after SaslHandshake version 0) are `SaslToken`.
//!
//! A broker answers a connection's requests in order, so what a request waited behind the one
//! before it is known, and after a gap older requests are given up.
//!
//! Memory: at most [`LOOK`] bytes of an open message in each direction, 256 when none is open, and
//! about 64 bytes a request in flight.

mod api;
mod wire;

use std::cell::Cell;
use std::fmt::Write;

use self::api::{API_VERSIONS, ErrorAt, FETCH, PRODUCE, SASL_HANDSHAKE};
use self::wire::Reader;
use super::correlated::Correlated;
use super::framing::{Length, Message};
use super::lane::Lane;
use super::{Decoder, Direction, Joined, Outcome, Output, Outstanding, Verdict};

/// Bytes of a message that are looked at: header, transactional id, a topic.
const LOOK: usize = 1024;
/// The broker's `socket.request.max.bytes`.
const MAX_REQUEST: i32 = 104_857_600;
/// A consumer may ask for any `fetch.max.bytes`.
const MAX_RESPONSE: i32 = 1 << 30;
/// A SASL token without a header; larger ones would be refused by the broker's own limit.
const MAX_TOKEN: i32 = 524_288;
/// Keys and versions accepted inside a connection that is known to be Kafka: some more than today's.
const MAX_KEY: i16 = 127;
const MAX_VERSION: i16 = 30;
/// Size, key, version, correlation id, length of the client id.
const REQUEST_WINDOW: usize = 14;
/// Size, correlation id.
const RESPONSE_WINDOW: usize = 8;

fn size_of(bytes: &[u8]) -> Option<i32> {
    Some(i32::from_be_bytes(*bytes.first_chunk()?))
}

/// Key, version, correlation id.
fn header(bytes: &[u8]) -> Option<(i16, i16, u32)> {
    let mut reader = Reader {
        rest: bytes.get(4..)?,
        flexible: false,
    };
    Some((reader.int16()?, reader.int16()?, reader.int32()? as u32))
}

/// Keys and versions of today.
fn is_known(key: i16, version: i16) -> bool {
    api::by_key(key).is_some() && (0..=20).contains(&version)
}

fn length_of(direction: Direction, raw: bool, bytes: &[u8]) -> Length {
    let Some(size) = size_of(bytes) else {
        return Length::Short;
    };
    let whole = Length::Whole(size as u64 + 4);
    match direction {
        _ if raw && (0..=MAX_TOKEN).contains(&size) => whole,
        Direction::Response if (4..=MAX_RESPONSE).contains(&size) => whole,
        Direction::Request if (8..=MAX_REQUEST).contains(&size) => match header(bytes) {
            None => Length::Short,
            Some((0..=MAX_KEY, 0..=MAX_VERSION, _)) => whole,
            Some(_) => Length::Invalid,
        },
        _ => Length::Invalid,
    }
}

/// Whether a request begins here, by its first [`REQUEST_WINDOW`] bytes.
fn plausible(bytes: &[u8]) -> bool {
    let (Some(size), Some((key, version, _))) = (size_of(bytes), header(bytes)) else {
        return false;
    };
    let client = bytes.get(12..).and_then(|b| b.first_chunk());
    let Some(client) = client.map(|b| i16::from_be_bytes(*b)) else {
        return false;
    };
    (10..=MAX_REQUEST).contains(&size)
        && is_known(key, version)
        && (-1..256).contains(&client)
        && i32::from(client.max(0)) + 10 <= size
}

/// Looks at the beginning of a piece.
pub fn detect(direction: Direction, bytes: &[u8]) -> Verdict {
    let Some(size) = size_of(bytes) else {
        return Verdict::Unsure;
    };
    let length = i64::from(size) + 4;
    match direction {
        // Correlation ids are any number: only the size tells.
        Direction::Response => match length.cmp(&(bytes.len() as i64)) {
            _ if !(4..=MAX_RESPONSE).contains(&size) => Verdict::No,
            std::cmp::Ordering::Less => Verdict::No,
            _ => Verdict::Unsure,
        },
        Direction::Request if !(8..=MAX_REQUEST).contains(&size) => Verdict::No,
        Direction::Request if bytes.len() < REQUEST_WINDOW => match header(bytes) {
            Some((key, version, _)) if !is_known(key, version) => Verdict::No,
            _ => Verdict::Unsure,
        },
        Direction::Request if !plausible(bytes) => Verdict::No,
        Direction::Request => {
            let mut reader = Reader {
                rest: &bytes[12..],
                flexible: false,
            };
            let client = reader.old_string();
            let printable = client.is_none_or(|c| c.iter().all(|b| (0x20..0x7f).contains(b)));
            match printable {
                false => Verdict::No,
                true if length == bytes.len() as i64 => Verdict::Yes,
                true if client.is_some_and(|c| !c.is_empty()) => Verdict::Yes,
                true => Verdict::Maybe,
            }
        }
    }
}

/// Decodes one connection.
pub struct Kafka {
    lanes: [Lane; 2],
    /// Tokens without a header pass, until a request does.
    raw: Cell<bool>,
    state: State,
}

/// A request in flight.
struct Asked {
    key: i16,
    version: i16,
}

#[derive(Default)]
struct State {
    waiting: Correlated<Asked>,
    tokens: Outstanding<()>,
    /// Text in the making.
    text: String,
}

/// A decoder for a connection.
pub fn decoder(joined: Joined) -> Box<dyn Decoder + Send> {
    Box::new(Kafka {
        lanes: [Lane::new(joined, LOOK), Lane::new(joined, LOOK)],
        raw: Cell::new(false),
        state: State::default(),
    })
}

impl Decoder for Kafka {
    fn bytes(&mut self, direction: Direction, at_ns: u64, bytes: &[u8], output: &mut Output) {
        let Kafka { lanes, raw, state } = self;
        let lane = &mut lanes[direction as usize];
        let synced = match direction {
            Direction::Request => lane.sync(at_ns, bytes, REQUEST_WINDOW, plausible, output),
            // An answer is known by the request it belongs to, and by nothing else.
            Direction::Response => {
                let ours = |b: &[u8]| {
                    size_of(b).is_some_and(|n| (4..=MAX_RESPONSE).contains(&n))
                        && b.get(4..)
                            .and_then(size_of)
                            .is_some_and(|id| state.waiting.get(id as u32).is_some())
                };
                lane.sync(at_ns, bytes, RESPONSE_WINDOW, ours, output)
            }
        };
        let Some(found) = synced else {
            return;
        };
        lane.feed(
            &found,
            at_ns,
            bytes,
            |b| length_of(direction, raw.get(), b),
            output,
            |m, output| state.message(direction, raw, m, output),
        );
        if direction == Direction::Response && lane.lost() {
            state.waiting.answers_lost();
        }
    }

    fn gap(&mut self, direction: Direction, at_ns: u64, count: u64, output: &mut Output) {
        let Kafka { lanes, raw, state } = self;
        let lost = lanes[direction as usize].gap(at_ns, count, output, |m, output| {
            state.message(direction, raw, m, output);
        });
        if lost && direction == Direction::Response {
            state.waiting.answers_lost();
            state.tokens.give_up(output);
        }
    }

    fn end(&mut self, output: &mut Output) {
        self.state.waiting.give_up(output);
        self.state.tokens.give_up(output);
    }

    fn in_flight(&self) -> usize {
        self.state.waiting.len() + self.state.tokens.len()
    }
}

impl State {
    fn message(
        &mut self,
        direction: Direction,
        raw: &Cell<bool>,
        m: Message<'_>,
        output: &mut Output,
    ) {
        output.decoded(direction, m.captured as usize);
        match direction {
            Direction::Request if raw.get() && !plausible(m.bytes) => {
                let text = output.text("SaslToken");
                self.tokens.ask(text, m.first_ns, (), output);
            }
            Direction::Request => {
                raw.set(false);
                self.request(raw, &m, output);
            }
            Direction::Response if !self.tokens.is_empty() => {
                self.tokens.first_byte(m.first_ns);
                self.tokens.answer(m.last_ns, Outcome::default(), output);
            }
            Direction::Response => self.response(&m, output),
        }
    }

    fn request(&mut self, raw: &Cell<bool>, m: &Message<'_>, output: &mut Output) {
        let Some((key, version, id)) = header(m.bytes) else {
            return;
        };
        self.text.clear();
        match api::by_key(key) {
            Some(api) => self.text.push_str(api.name),
            // A `String` takes whatever is written.
            None => drop(write!(self.text, "Api{key}")),
        }
        let body = &m.bytes[..m.bytes.len().min(LOOK)];
        let topics = topics(key, version, body, &mut self.text);
        raw.set((key, version) == (SASL_HANDSHAKE, 0));
        let answered = topics != Some(Acks::None);
        if !answered {
            self.text.push_str(" (acks=0)");
        }
        let text = output.text(&self.text);
        let asked = Asked { key, version };
        self.waiting.ask(id, text, m.first_ns, asked, output);
        if !answered {
            let outcome = Outcome::default();
            self.waiting
                .answer(id, m.last_ns, m.last_ns, outcome, false, output);
        }
    }

    fn response(&mut self, m: &Message<'_>, output: &mut Output) {
        let Some(id) = m.bytes.get(4..).and_then(size_of) else {
            return;
        };
        let id = id as u32;
        let asked = self.waiting.get(id);
        let body = &m.bytes[..m.bytes.len().min(LOOK)];
        let code = asked.and_then(|w| error_code(&w.kind, body));
        let error = code.filter(|code| *code != 0).map(|code| {
            let name = api::error_name(code);
            self.text.clear();
            let space = if name.is_empty() { "" } else { " " };
            let _ = write!(self.text, "{code}{space}{name}");
            output.text(&self.text)
        });
        let outcome = Outcome {
            error,
            ..Outcome::default()
        };
        self.waiting
            .answer(id, m.first_ns, m.last_ns, outcome, true, output);
    }
}

/// Whether a Produce asks for an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Acks {
    None,
    Some,
}

/// Adds the first topic to the text of a Produce or Fetch, as far as its bytes are there.
fn topics(key: i16, version: i16, bytes: &[u8], text: &mut String) -> Option<Acks> {
    let api = api::by_key(key)?;
    if key != PRODUCE && key != FETCH {
        return None;
    }
    let mut reader = Reader {
        rest: bytes.get(12..)?,
        flexible: version >= api.flexible,
    };
    reader.old_string()?;
    reader.tags()?;
    let mut acks = Acks::Some;
    if key == PRODUCE {
        if version >= 3 {
            reader.string()?;
        }
        if reader.int16()? == 0 {
            acks = Acks::None;
        }
        reader.skip(4)?;
    } else {
        // Replica (a tagged field from 15), longest wait, fewest bytes, most bytes, isolation,
        // session and epoch.
        let replica = if version < 15 { 4 } else { 0 };
        let limit = if version >= 3 { 4 } else { 0 };
        let isolation = if version >= 4 { 1 } else { 0 };
        let session = if version >= 7 { 8 } else { 0 };
        reader.skip(replica + 8 + limit + isolation + session)?;
    }
    // From here on what is missing is only a name.
    let named = reader.array().filter(|_| version < 13);
    if let Some(count @ 1..) = named
        && let Some(topic) = reader.string()
    {
        text.push(' ');
        let legal = |b: &u8| b.is_ascii_alphanumeric() || b"._-".contains(b);
        let topic = &topic[..topic.len().min(249)];
        text.extend(
            topic
                .iter()
                .map(|b| if legal(b) { char::from(*b) } else { '?' }),
        );
        if count > 1 {
            text.push_str(", ...");
        }
    }
    Some(acks)
}

/// The error code of an answer, if its place is fixed.
fn error_code(asked: &Asked, bytes: &[u8]) -> Option<i16> {
    let api = api::by_key(asked.key)?;
    let version = asked.version;
    let mut reader = Reader {
        rest: bytes.get(8..)?,
        flexible: version >= api.flexible,
    };
    // A client must be able to read this one before it knows the broker's versions.
    if asked.key != API_VERSIONS {
        reader.tags()?;
    }
    let throttled = match api.error {
        ErrorAt::Unknown => return None,
        ErrorAt::First => false,
        ErrorAt::ThrottledFrom(from) => version >= from,
        ErrorAt::OnlyFrom(from) if version < from => return None,
        ErrorAt::OnlyFrom(_) => true,
        ErrorAt::Until(until) if version >= until => return None,
        ErrorAt::Until(_) => version >= 1,
        ErrorAt::Produce => {
            if reader.array()? == 0 {
                return None;
            }
            match version {
                ..13 => reader.string().map(|_| ()),
                _ => reader.skip(16),
            }?;
            if reader.array()? == 0 {
                return None;
            }
            true
        }
    };
    // The throttle time, or the partition's index.
    reader.skip(if throttled { 4 } else { 0 })?;
    reader.int16()
}

#[cfg(test)]
mod tests;
