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

use std::fmt::Write;

use self::bson::{Document, Value, split_cstring};
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
/// Names shown of a filter or a pipeline, and bytes of each.
const MAX_NAMES: usize = 8;
const MAX_NAME: usize = 64;

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

/// What an OP_MSG holds: the command or reply, and the first document of its first sequence.
#[derive(Default)]
struct Sections<'a> {
    body: Option<Document<'a>>,
    first: Option<Document<'a>>,
}

/// Reads the sections behind the flags; `end` is where they end in a whole message.
fn sections(body: &[u8], end: usize) -> Sections<'_> {
    let mut sections = Sections::default();
    let mut rest = body.get(4..end.min(body.len())).unwrap_or(&[]);
    while let Some((kind, bytes)) = rest.split_first() {
        let size = match kind {
            0 => Document::read(bytes).map(|(document, size)| {
                sections.body = sections.body.or(Some(document));
                size
            }),
            1 => int(bytes, 0)
                .and_then(|n| usize::try_from(n).ok())
                .inspect(|_| {
                    let name = bytes.get(4..).and_then(split_cstring);
                    let document = name.and_then(|(_, documents)| Document::read(documents));
                    sections.first = sections.first.or(document.map(|d| d.0));
                }),
            _ => None,
        };
        // A sequence of less than its own length field would not end.
        let Some(size) = size.filter(|n| *n >= 4) else {
            break;
        };
        rest = bytes.get(size..).unwrap_or(&[]);
    }
    sections
}

/// `find shop.orders {status, _id}`.
fn command(sections: Sections<'_>, text: &mut String) {
    let Some((name, target)) = sections.body.and_then(|d| d.into_iter().next()) else {
        text.push('?');
        return;
    };
    let (mut database, mut filter, mut pipeline, mut list, mut cursor) =
        (None, None, None, None, None);
    for (key, value) in sections.body.into_iter().flatten().skip(1) {
        match (key, value) {
            (b"$db", Value::Text(db)) => database = Some(db),
            (b"filter" | b"query" | b"q", Value::Document(d)) => filter = Some(d),
            (b"pipeline", Value::Array(stages)) => pipeline = Some(stages),
            // Drivers put these in a sequence of their own, other clients in the command.
            (b"updates" | b"deletes", Value::Array(all)) => list = Some(all),
            (b"collection", Value::Text(collection)) => cursor = Some(collection),
            _ => {}
        }
    }
    push_name(name, text);
    text.push(' ');
    push_name(database.unwrap_or(b"?"), text);
    let collection = match (name, target) {
        (b"getMore", _) => cursor,
        (_, Value::Text(collection)) => Some(collection),
        _ => None,
    };
    // `hello: 1` names no collection, and some commands name a database or a user.
    if let Some(collection) = collection.filter(|_| names_collection(name)) {
        text.push('.');
        push_name(collection, text);
    }
    let first = list.and_then(|all| match all.into_iter().next() {
        Some((_, Value::Document(d))) => Some(d),
        _ => None,
    });
    if let (b"update" | b"delete", Some(first)) = (name, sections.first.or(first))
        && let Some(Value::Document(q)) = first.get(b"q")
    {
        filter = Some(q);
    }
    if let Some(filter) = filter {
        text.push_str(" {");
        push_names(filter.into_iter().map(|(key, _)| key), text);
        text.push('}');
    }
    if let Some(stages) = pipeline {
        text.push_str(" [");
        let names = stages.into_iter().filter_map(|(_, stage)| match stage {
            Value::Document(d) => d.into_iter().next().map(|(key, _)| key),
            _ => None,
        });
        push_names(names, text);
        text.push(']');
    }
}

/// Commands whose first value is text but no collection.
fn names_collection(command: &[u8]) -> bool {
    let user = [
        &b"createUser"[..],
        b"updateUser",
        b"dropUser",
        b"usersInfo",
        b"getLog",
    ];
    let role = [
        &b"createRole"[..],
        b"updateRole",
        b"dropRole",
        b"grantRolesToUser",
        b"getParameter",
    ];
    !user.contains(&command) && !role.contains(&command)
}

fn push_names<'a>(names: impl Iterator<Item = &'a [u8]>, text: &mut String) {
    for (i, name) in names.enumerate() {
        if i > 0 {
            text.push_str(", ");
        }
        if i == MAX_NAMES {
            text.push_str("...");
            return;
        }
        push_name(name, text);
    }
}

/// A name as text: bounded, printable, and parts that are numbers (places in an array, ids used as
/// keys) folded.
fn push_name(name: &[u8], text: &mut String) {
    let cut = &name[..name.len().min(MAX_NAME)];
    for (i, part) in cut.split(|b| *b == b'.').enumerate() {
        if i > 0 {
            text.push('.');
        }
        if !part.is_empty() && part.iter().all(u8::is_ascii_digit) {
            text.push('?');
            continue;
        }
        for c in String::from_utf8_lossy(part).chars() {
            text.push(if c.is_control() { '?' } else { c });
        }
    }
}

/// OP_QUERY and OP_GET_MORE.
fn legacy(code: i32, body: &[u8], text: &mut String) {
    let Some((namespace, rest)) = body.get(4..).and_then(split_cstring) else {
        text.push('?');
        return;
    };
    let document = rest.get(8..).and_then(Document::read).map(|d| d.0);
    let database = namespace.strip_suffix(b".$cmd");
    match (code, database, document) {
        (OP_GET_MORE, ..) => {
            text.push_str("getMore ");
            push_name(namespace, text);
        }
        (_, Some(database), Some(document)) => {
            let first = document.into_iter().next();
            // A command with a read preference is wrapped.
            let first = match first {
                Some((b"$query" | b"query", Value::Document(d))) => d.into_iter().next(),
                other => other,
            };
            push_name(first.map_or(b"?", |f| f.0), text);
            text.push(' ');
            push_name(database, text);
            if let Some((command, Value::Text(collection))) = first
                && names_collection(command)
            {
                text.push('.');
                push_name(collection, text);
            }
        }
        _ => {
            text.push_str("find ");
            push_name(namespace, text);
            if let Some(document) = document {
                text.push_str(" {");
                push_names(document.into_iter().map(|(key, _)| key), text);
                text.push('}');
            }
        }
    }
}

/// Writes the code of a failed reply: `11000 DuplicateKey`.
fn error_of(reply: Document<'_>, failed: bool, text: &mut String) -> Option<()> {
    let (mut code, mut name, mut write_error) = (None, None, None);
    let mut ok = !failed;
    for (key, value) in reply {
        match (key, value) {
            (b"ok", Value::Number(n)) => ok = n != 0.0,
            (b"code", Value::Number(n)) => code = Some(n),
            (b"codeName", Value::Text(n)) => name = Some(n),
            (b"writeErrors", Value::Array(errors)) => write_error = errors.into_iter().next(),
            (b"writeConcernError", error) => write_error = write_error.or(Some((key, error))),
            _ => {}
        }
    }
    if ok {
        let Some((_, Value::Document(error))) = write_error else {
            return None;
        };
        let Some(Value::Number(n)) = error.get(b"code") else {
            return None;
        };
        (code, name) = (Some(n), None);
        if let Some(Value::Text(n)) = error.get(b"codeName") {
            name = Some(n);
        }
    }
    // A `String` takes whatever is written.
    let _ = write!(text, "{}", code.unwrap_or(0.0) as i64);
    if let Some(name) = name {
        text.push(' ');
        push_name(name, text);
    }
    Some(())
}

#[cfg(test)]
mod tests;
