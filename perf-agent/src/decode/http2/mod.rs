//! HTTP/2, and gRPC over it.
//!
//! An exchange is a stream: from the first byte of its HEADERS to END_STREAM or RST_STREAM of the
//! other side; its first byte is the first of the final answer's HEADERS. Streams end in any order.
//! Its text is `POST /pkg.Service/Method` for gRPC and method and route for others; its error the
//! status from 400 on (`404`), `grpc-5` by the trailers, or `RST_STREAM CANCEL`. A pushed answer
//! is an exchange from its PUSH_PROMISE on, with the promised request's text.
//!
//! Joined late (or after a gap in headers, which is the same), header fields that refer to what was
//! sent before are not known: a request is named by what is (`POST ?`, `(headers unseen)`), counted
//! and timed. Nothing is taken for another field: see [`hpack`]. A gRPC status or a status that was
//! sent before counts as none, and as [`Anomaly::StatusUnseen`].
//!
//! The upgrade of HTTP/1.1 (`h2c`) is followed from the server's `101` and the client's preface on;
//! the answer to the upgraded request itself is an orphan here, as HTTP/1.1 had its request.
//!
//! Memory: at most [`KEEP`] bytes of an open frame in each direction and [`MAX_BLOCK`] of an open
//! header block; the header table's own bounds (12 KiB, in practice under 1); about 100 bytes
//! a stream in flight.

mod frame;
mod headers;
mod hpack;

use self::frame::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADER, HEADERS, Head, PREFACE,
    PUSH_PROMISE, RST_STREAM, SETTINGS, length_of,
};
use self::headers::{Fields, Texts};
use self::hpack::Table;
use super::correlated::Correlated;
use super::framing::Message;
use super::lane::Lane;
use super::{Anomaly, Decoder, Direction, Joined, Outcome, Output, TextId, TraceId, Verdict};

/// Bytes of a frame kept when it comes in pieces: the largest frame peers send unless told
/// otherwise (SETTINGS_MAX_FRAME_SIZE).
const KEEP: usize = 16384 + HEADER;
/// Bytes of a header block in several frames.
const MAX_BLOCK: usize = 65536;

/// Looks at the beginning of a piece.
pub fn detect(direction: Direction, bytes: &[u8]) -> Verdict {
    if direction == Direction::Request && bytes.first() == Some(&b'P') {
        return match bytes.len() {
            ..14 if PREFACE.starts_with(bytes) => Verdict::Unsure,
            14..24 if PREFACE.starts_with(bytes) => Verdict::Yes,
            _ if bytes.starts_with(PREFACE) => Verdict::Yes,
            _ => Verdict::No,
        };
    }
    let (mut at, mut frames, mut told) = (0, 0, false);
    while let Some(head) = bytes.get(at..).and_then(Head::read) {
        if !head.is_plausible(direction) {
            return Verdict::No;
        }
        frames += 1;
        // An empty or unflagged frame of DATA could be many things.
        told |= head.kind == SETTINGS || head.kind == HEADERS && head.has(END_HEADERS);
        at += HEADER + head.length as usize;
        if at >= bytes.len() {
            break;
        }
    }
    match frames {
        0 if bytes.len() >= HEADER => Verdict::No,
        0 => Verdict::Unsure,
        _ if at == bytes.len() && told => Verdict::Yes,
        1 if at > bytes.len() => Verdict::Unsure,
        _ => Verdict::Maybe,
    }
}

/// Decodes one connection.
pub struct Http2 {
    lanes: [Lane; 2],
    state: State,
}

/// A decoder for a connection.
pub fn decoder(joined: Joined) -> Box<dyn Decoder + Send> {
    Box::new(Http2 {
        lanes: [Lane::new(joined, KEEP), Lane::new(joined, KEEP)],
        state: State::new(joined),
    })
}

impl Decoder for Http2 {
    fn bytes(&mut self, direction: Direction, at_ns: u64, bytes: &[u8], output: &mut Output) {
        let Http2 { lanes, state } = self;
        let lane = &mut lanes[direction as usize];
        let plausible = |b: &[u8]| {
            (direction == Direction::Request && PREFACE.starts_with(b))
                || Head::read(b).is_some_and(|head| head.is_plausible(direction))
        };
        let Some(found) = lane.sync(at_ns, bytes, HEADER, plausible, output) else {
            return;
        };
        lane.feed(
            &found,
            at_ns,
            bytes,
            |b| length_of(direction, b),
            output,
            |m, output| state.message(direction, &m, output),
        );
        if lane.lost() {
            state.lost(direction, output);
        }
    }

    fn gap(&mut self, direction: Direction, at_ns: u64, count: u64, output: &mut Output) {
        let Http2 { lanes, state } = self;
        let lost = lanes[direction as usize].gap(at_ns, count, output, |m, output| {
            state.message(direction, &m, output);
        });
        if lost {
            state.lost(direction, output);
        }
    }

    fn end(&mut self, output: &mut Output) {
        self.state.streams.give_up(output);
    }

    fn in_flight(&self) -> usize {
        self.state.streams.len()
    }

    /// Of an answer that has begun nothing tells whether its rest is on its way or will come with the next
    /// event: calls of gRPC that watch stay open for hours.
    fn is_awaited(&self) -> bool {
        self.state.streams.any(|s| s.first_byte_ns.is_none())
    }

    /// SETTINGS, WINDOW_UPDATE and PRIORITY stand in front of a request and are none of it.
    fn is_at_boundary(&self) -> bool {
        let at = Direction::Request as usize;
        !self.is_in_flight() && self.lanes[at].is_at_boundary() && self.state.open[at].is_none()
    }
}

/// A stream in flight.
#[derive(Default)]
struct Stream {
    error: Option<TextId>,
    trace: Option<TraceId>,
    /// What was seen of the request does not say that it is no call of gRPC.
    may_be_grpc: bool,
    /// Its end may have been in a gap.
    doubtful: bool,
}

/// A header block whose frames go on.
struct OpenBlock {
    head: Head,
    promised: u32,
    bytes: Vec<u8>,
    first_ns: u64,
    /// A part of it was not captured.
    broken: bool,
}

struct State {
    streams: Correlated<Stream>,
    tables: [Table; 2],
    open: [Option<OpenBlock>; 2],
    fields: Fields,
    texts: Texts,
    /// The highest stream of the client's.
    last_stream: u32,
    /// Answers to streams before this one are orphans; to all, as long as it is not known.
    known_from: Option<u32>,
}

impl State {
    fn new(joined: Joined) -> State {
        State {
            streams: Correlated::default(),
            tables: Default::default(),
            open: [None, None],
            fields: Fields::default(),
            texts: Texts::default(),
            last_stream: 0,
            known_from: (joined == Joined::AtStart).then_some(0),
        }
    }

    /// Frames of a direction may have passed unseen.
    fn lost(&mut self, direction: Direction, output: &mut Output) {
        self.open[direction as usize] = None;
        self.tables[direction as usize].forget();
        match direction {
            Direction::Request => self.known_from = None,
            Direction::Response => {
                // Those of which nothing came since the loss before ended in it.
                self.streams.retain(|_, s| !s.kind.doubtful, output);
                self.streams.each(|s| s.kind.doubtful = true);
            }
        }
    }

    fn message(&mut self, direction: Direction, m: &Message<'_>, output: &mut Output) {
        output.decoded(direction, m.captured as usize);
        if m.bytes.starts_with(b"PRI") {
            self.known_from = Some(0);
            return;
        }
        if m.bytes.starts_with(b"HTTP/1.1") {
            self.known_from = Some(2);
            return;
        }
        let Some(head) = Head::read(m.bytes) else {
            return;
        };
        let payload = &m.bytes[HEADER..];
        let whole = m.bytes.len() as u64 == m.length;
        if head.kind != CONTINUATION && self.open[direction as usize].take().is_some() {
            output.anomaly(Anomaly::Malformed, 1);
            self.tables[direction as usize].forget();
        }
        match head.kind {
            HEADERS | PUSH_PROMISE => self.begin(direction, head, payload, whole, m, output),
            CONTINUATION => self.go_on(direction, head, payload, whole, m, output),
            DATA if direction == Direction::Response => {
                if let Some(stream) = self.streams.get_mut(head.stream) {
                    stream.first_byte_ns.get_or_insert(m.first_ns);
                    stream.kind.doubtful = false;
                }
                if head.has(END_STREAM) {
                    self.answer(head.stream, m, output);
                }
            }
            RST_STREAM => self.reset(direction, head.stream, payload, m, output),
            GOAWAY if direction == Direction::Response => {
                if let Some(last) = frame::number(payload, 0) {
                    let last = last & (u32::MAX >> 1);
                    self.streams
                        .retain(|id, _| id <= last || id % 2 == 0, output);
                }
            }
            // Of a table's size nothing needs to be known; the others carry no request.
            _ => {}
        }
    }

    fn begin(
        &mut self,
        direction: Direction,
        head: Head,
        payload: &[u8],
        whole: bool,
        m: &Message<'_>,
        output: &mut Output,
    ) {
        let promised = match head.kind {
            PUSH_PROMISE => {
                let at = usize::from(head.has(frame::PADDED));
                frame::number(payload, at).unwrap_or(0) & (u32::MAX >> 1)
            }
            _ => 0,
        };
        let fragment = frame::block(&head, payload).filter(|_| whole);
        let broken = fragment.is_none();
        let fragment = fragment.unwrap_or(&[]);
        if head.has(END_HEADERS) {
            self.read(direction, fragment, broken, output);
            self.headers(direction, &head, promised, (m.first_ns, m), output);
        } else {
            self.open[direction as usize] = Some(OpenBlock {
                head,
                promised,
                bytes: fragment.to_vec(),
                first_ns: m.first_ns,
                broken,
            });
        }
    }

    fn go_on(
        &mut self,
        direction: Direction,
        head: Head,
        payload: &[u8],
        whole: bool,
        m: &Message<'_>,
        output: &mut Output,
    ) {
        let Some(mut open) = self.open[direction as usize].take() else {
            // Its beginning was not seen.
            self.tables[direction as usize].forget();
            return;
        };
        open.broken |= !whole
            || open.head.stream != head.stream
            || open.bytes.len() + payload.len() > MAX_BLOCK;
        if !open.broken {
            open.bytes.extend_from_slice(payload);
        }
        if head.has(END_HEADERS) {
            self.read(direction, &open.bytes, open.broken, output);
            let times = (open.first_ns, m);
            self.headers(direction, &open.head, open.promised, times, output);
        } else {
            self.open[direction as usize] = Some(open);
        }
    }

    /// Reads a block into `fields`.
    fn read(&mut self, direction: Direction, block: &[u8], broken: bool, output: &mut Output) {
        let State { tables, fields, .. } = self;
        let table = &mut tables[direction as usize];
        fields.clear();
        if broken {
            table.forget();
            fields.add(hpack::Field::Unseen, b"");
            return;
        }
        if table
            .block(block, |field, value| fields.add(field, value))
            .is_err()
        {
            output.anomaly(Anomaly::Malformed, 1);
            table.forget();
        }
    }

    fn headers(
        &mut self,
        direction: Direction,
        head: &Head,
        promised: u32,
        (first_ns, m): (u64, &Message<'_>),
        output: &mut Output,
    ) {
        match (direction, head.kind) {
            (Direction::Request, HEADERS) => self.request(head.stream, first_ns, output),
            (Direction::Response, PUSH_PROMISE) if promised != 0 => {
                let text = self.texts.text(&self.fields, output);
                self.streams
                    .ask(promised, text, first_ns, Stream::default(), output);
            }
            (Direction::Response, HEADERS) => self.response(head, first_ns, m, output),
            _ => {}
        }
    }

    fn request(&mut self, stream: u32, first_ns: u64, output: &mut Output) {
        // Those of a stream that is known, or was, are its trailers.
        if stream <= self.last_stream || stream.is_multiple_of(2) || !self.fields.is_request() {
            return;
        }
        self.last_stream = stream;
        self.known_from.get_or_insert(stream);
        let text = self.texts.text(&self.fields, output);
        let kind = Stream {
            trace: self.fields.trace,
            may_be_grpc: self.fields.may_be_grpc(),
            ..Stream::default()
        };
        self.streams.ask(stream, text, first_ns, kind, output);
    }

    fn response(&mut self, head: &Head, first_ns: u64, m: &Message<'_>, output: &mut Output) {
        let Fields {
            status,
            grpc_status,
            ..
        } = self.fields;
        if let Some(waiting) = self.streams.get_mut(head.stream)
            && !matches!(status, Some(100..200))
        {
            waiting.first_byte_ns.get_or_insert(first_ns);
            waiting.kind.doubtful = false;
            if let Some(code) = grpc_status.filter(|code| *code != 0) {
                waiting.kind.error = Some(output.text(&format!("grpc-{code}")));
            } else if let Some(status) = status.filter(|status| *status >= 400) {
                waiting.kind.error = Some(output.text(&status.to_string()));
            }
        }
        if head.has(END_STREAM) {
            let asked = self.streams.get(head.stream);
            if asked.is_some_and(|s| self.fields.hides_status(s.kind.may_be_grpc)) {
                output.anomaly(Anomaly::StatusUnseen, 1);
            }
            self.answer(head.stream, m, output);
        }
    }

    fn reset(
        &mut self,
        direction: Direction,
        stream: u32,
        payload: &[u8],
        m: &Message<'_>,
        output: &mut Output,
    ) {
        let Some(waiting) = self.streams.get_mut(stream) else {
            if direction == Direction::Response {
                self.answer(stream, m, output);
            }
            return;
        };
        let code = frame::number(payload, 0).map_or("(code unseen)", frame::code_name);
        waiting.kind.error = Some(output.text(&format!("RST_STREAM {code}")));
        self.answer(stream, m, output);
    }

    /// The answer of a stream ended. The end of a stream that was reset before is no orphan.
    fn answer(&mut self, stream: u32, m: &Message<'_>, output: &mut Output) {
        match self.streams.get(stream) {
            Some(waiting) => {
                let outcome = Outcome {
                    error: waiting.kind.error,
                    ..Outcome::default()
                };
                let trace = waiting.kind.trace;
                self.streams
                    .answer(stream, m.first_ns, m.last_ns, outcome, false, output);
                if let (Some(_), Some(exchange)) = (trace, output.exchanges.last_mut()) {
                    exchange.trace = trace;
                }
            }
            None if self.known_from.is_none_or(|from| stream < from) => {
                output.anomaly(Anomaly::Orphan, 1);
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests;
