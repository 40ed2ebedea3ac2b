//! HTTP/1.0 and 1.1: a request's method and route, and the status that answers it.
//!
//! - Pipelined requests are answered in order; interim answers (100, 103) answer nothing.
//! - An error is a status of 400 and above. Header fields only say how long a message is.
//! - The exchange ends with the last byte of the body: by its length, by its last chunk and
//!   trailers, or with the connection.
//! - What follows an upgrade (WebSocket, h2c) or `CONNECT` is recognised and not decoded.
//!
//! Heads are read by `httparse`, which neither allocates nor panics, is fuzzed, and is what hyper
//! reads them with. Bodies are passed over by their length. Memory of a connection: at most
//! [`MAX_HEAD`] bytes for each direction while a head comes in pieces, and what is outstanding.

use httparse::{EMPTY_HEADER, Header, ParserConfig};

use super::{
    Anomaly, Decoder, Direction, Entry, Joined, Outcome, Output, Outstanding, Protocol, Sync,
    TextId, TraceId, Verdict, keys,
    lexer::{Item, Lexer},
    route,
    sync::Piece,
};

pub const ENTRY: Entry = Entry {
    protocol: Protocol::Http,
    detect,
    decoder: |joined| Box::new(Http::new(joined)),
};

/// Longest head; servers refuse longer ones.
const MAX_HEAD: usize = 32 << 10;
/// Most header fields of a head.
const MAX_FIELDS: usize = 128;
/// Tells HTTP's shapes from other protocols' in [`Output::shape`].
const SHAPES: u64 = 0x4854_5450_2f31_2e31;
/// Longest method that is looked at.
const MAX_METHOD: usize = 20;

fn detect(direction: Direction, bytes: &[u8]) -> Verdict {
    match plausible(direction, bytes) {
        Some(true) => Verdict::Yes,
        Some(false) => Verdict::No,
        None => Verdict::Unsure,
    }
}

/// Whether a piece begins with a message; None if it is too short to tell.
fn plausible(direction: Direction, bytes: &[u8]) -> Option<bool> {
    match direction {
        Direction::Request => {
            let method = bytes.iter().take_while(|b| is_method(**b)).count();
            if method > MAX_METHOD || method == 0 {
                return (!bytes.is_empty()).then_some(false);
            }
            match bytes.get(method) {
                None => return None,
                Some(b' ') => {}
                Some(_) => return Some(false),
            }
            let line = bytes.split(|b| *b == b'\n').next().unwrap_or_default();
            if line.len() < bytes.len() {
                return Some(memchr::memmem::find(line, b" HTTP/1.").is_some());
            }
            // A long target may be cut; nothing else begins with a method and a path.
            let target = line
                .get(method + 1)
                .is_none_or(|b| matches!(b, b'/' | b'h' | b'*'));
            if !target {
                return Some(false);
            }
            (line.len() > 256).then_some(true)
        }
        Direction::Response => {
            let n = bytes.len().min(7);
            (bytes[..n] != b"HTTP/1."[..n])
                .then_some(false)
                .or((n == 7).then_some(true))
        }
    }
}

fn is_method(byte: u8) -> bool {
    byte.is_ascii_uppercase() || matches!(byte, b'-' | b'_')
}

/// What must be known of a request to read its answer.
struct Asked {
    /// The answer to `HEAD` has no body, whatever its fields say.
    head: bool,
    connect: bool,
    trace: Option<TraceId>,
}

/// How a message goes on.
enum Part {
    Head,
    Length(u64),
    Chunks(Box<Lexer>, Chunk),
    /// To the end of the connection.
    Close,
}

/// What the next line of a chunked body is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Chunk {
    Size,
    Trailer,
}

/// One direction.
struct Way {
    part: Part,
    /// The beginning of a head that comes in pieces.
    head: Vec<u8>,
    first_ns: u64,
    /// What is known of the answer that is read.
    outcome: Outcome,
    /// It answers a request.
    answers: bool,
    /// It has the form of Server-Sent Events, which come when there are some.
    events: bool,
    last_ns: u64,
}

/// What a head says.
enum Read {
    Request(TextId, Asked, Part),
    /// Status and fields.
    Response(u16, Fields),
    Malformed,
}

#[derive(Default)]
struct Fields {
    length: Option<u64>,
    chunked: bool,
    /// Encoded so that it ends with the connection.
    encoded: bool,
    /// Server-Sent Events (HTML, section 9.2).
    events: bool,
    invalid: bool,
}

struct Http {
    ways: [Way; 2],
    outstanding: Outstanding<Asked>,
    sync: Sync,
    /// Another protocol goes on.
    stopped: bool,
}

impl Fields {
    fn of(headers: &[Header<'_>]) -> Fields {
        let mut fields = Fields::default();
        for header in headers {
            let value = header.value.trim_ascii();
            if header.name.eq_ignore_ascii_case("content-length") {
                let first = value.split(|b| *b == b',').next().unwrap_or_default();
                let length = number(first.trim_ascii(), 10);
                fields.invalid |=
                    length.is_none() || fields.length.is_some_and(|l| Some(l) != length);
                fields.length = length;
            } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
                let last = value.rsplit(|b| *b == b',').next().unwrap_or_default();
                fields.chunked = last.trim_ascii().eq_ignore_ascii_case(b"chunked");
                fields.encoded = !fields.chunked;
            } else if header.name.eq_ignore_ascii_case("content-type") {
                let kind = value.split(|b| *b == b';').next().unwrap_or_default();
                fields.events = kind.trim_ascii().eq_ignore_ascii_case(b"text/event-stream");
            }
        }
        fields
    }

    /// The body; a request without a length has none.
    fn body(&self) -> Option<Part> {
        match self.length {
            _ if self.chunked => Some(Part::Chunks(Box::default(), Chunk::Size)),
            _ if self.encoded => None,
            Some(0) => Some(Part::Head),
            Some(length) => Some(Part::Length(length)),
            None => None,
        }
    }
}

/// Digits alone.
fn number(digits: &[u8], radix: u32) -> Option<u64> {
    let plain = digits.first().is_some_and(u8::is_ascii_hexdigit);
    let text = std::str::from_utf8(digits).ok().filter(|_| plain)?;
    u64::from_str_radix(text, radix).ok()
}

fn read(direction: Direction, head: &[u8], output: &mut Output) -> Read {
    let mut headers = [EMPTY_HEADER; MAX_FIELDS];
    let mut config = ParserConfig::default();
    match direction {
        Direction::Request => {
            let mut request = httparse::Request::new(&mut headers);
            config.ignore_invalid_headers_in_requests(true);
            let parsed = config.parse_request(&mut request, head);
            let (Ok(_), Some(method), Some(target)) = (parsed, request.method, request.path) else {
                return Read::Malformed;
            };
            let fields = Fields::of(request.headers);
            if fields.invalid || fields.encoded {
                return Read::Malformed;
            }
            let asked = Asked::of(method, request.headers);
            let text = shape(method, target.as_bytes(), output);
            Read::Request(text, asked, fields.body().unwrap_or(Part::Head))
        }
        Direction::Response => {
            let mut response = httparse::Response::new(&mut headers);
            config
                .allow_obsolete_multiline_headers_in_responses(true)
                .allow_spaces_after_header_name_in_responses(true)
                .ignore_invalid_headers_in_responses(true);
            let parsed = config.parse_response(&mut response, head);
            let (Ok(_), Some(status)) = (parsed, response.code) else {
                return Read::Malformed;
            };
            Read::Response(status, Fields::of(response.headers))
        }
    }
}

fn shape(method: &str, target: &[u8], output: &mut Output) -> TextId {
    let known = method.len() <= MAX_METHOD && method.bytes().all(is_method);
    let method = if known { method } else { "(unknown method)" };
    let path = route::path(target);
    let hash = keys::mix(SHAPES, keys::fingerprint(method.as_bytes()));
    let hash = keys::mix(hash, path.map_or(0, route::fingerprint));
    output.shape(hash, |_| match path {
        Some(path) => format!("{method} {}", route::route(path)),
        None => method.to_owned(),
    })
}

impl Asked {
    fn of(method: &str, headers: &[Header<'_>]) -> Asked {
        let trace = headers
            .iter()
            .find(|h| h.name.eq_ignore_ascii_case("traceparent"));
        Asked {
            head: method == "HEAD",
            connect: method == "CONNECT",
            trace: trace.and_then(|h| TraceId::parse(h.value)),
        }
    }
}

impl Way {
    fn new() -> Way {
        Way {
            part: Part::Head,
            head: Vec::new(),
            first_ns: 0,
            outcome: Outcome::default(),
            answers: false,
            events: false,
            last_ns: 0,
        }
    }

    /// Whether it stands at a message's boundary.
    fn between(&self) -> bool {
        matches!(self.part, Part::Head) && self.head.is_empty()
    }

    /// Passes over bytes of a body. None if they are none of it; else whether it ended.
    fn body(&mut self, rest: &mut &[u8]) -> Option<bool> {
        match &mut self.part {
            Part::Head => Some(true),
            Part::Close => {
                *rest = &[];
                Some(false)
            }
            Part::Length(left) => {
                let now = (*left).min(rest.len() as u64);
                *left -= now;
                *rest = &rest[now as usize..];
                Some(*left == 0)
            }
            Part::Chunks(lexer, chunk) => loop {
                match lexer.next(rest) {
                    None => return Some(false),
                    Some(Item::Broken) => return None,
                    Some(Item::Body(_)) => {}
                    Some(Item::Line(b"")) if *chunk == Chunk::Trailer => return Some(true),
                    Some(Item::Line(_)) if *chunk == Chunk::Trailer => {}
                    Some(Item::Line(line)) => {
                        let size = line.split(|b| *b == b';').next().unwrap_or_default();
                        match number(size.trim_ascii(), 16)? {
                            0 => *chunk = Chunk::Trailer,
                            size => lexer.body(size),
                        }
                    }
                }
            },
        }
    }
}

/// Length of a head, with its blank line, that goes on in `bytes` behind `kept`.
fn head_end(kept: &[u8], bytes: &[u8]) -> Option<usize> {
    // Bytes of the open line, as far as they matter: a line is blank with none or one CR.
    let open = kept.rsplit(|b| *b == b'\n').next().unwrap_or_default();
    let mut blank = open.is_empty() || open == b"\r";
    let mut from = 0;
    for end in memchr::memchr_iter(b'\n', bytes) {
        blank &= matches!(&bytes[from..end], b"" | b"\r");
        if blank {
            return Some(end + 1);
        }
        (blank, from) = (true, end + 1);
    }
    None
}

impl Http {
    fn new(joined: Joined) -> Http {
        Http {
            ways: [Way::new(), Way::new()],
            outstanding: Outstanding::default(),
            sync: Sync::new(joined),
            stopped: false,
        }
    }

    fn feed(&mut self, direction: Direction, at_ns: u64, mut rest: &[u8], output: &mut Output) {
        while !rest.is_empty() && !self.stopped {
            let before = rest.len();
            let fine = self.step(direction, at_ns, &mut rest, output);
            self.sync.read(direction, before - rest.len());
            if !fine {
                let outstanding = &mut self.outstanding;
                return self.sync.malformed(direction, at_ns, outstanding, output);
            }
            if self.ways[direction as usize].head.is_empty() {
                self.sync.message(direction, output);
            }
        }
    }

    /// Takes a head or a part of a body off the front; false if it is none.
    fn step(
        &mut self,
        direction: Direction,
        at_ns: u64,
        rest: &mut &[u8],
        output: &mut Output,
    ) -> bool {
        let way = &mut self.ways[direction as usize];
        way.last_ns = at_ns;
        if !matches!(way.part, Part::Head) {
            let Some(ended) = way.body(rest) else {
                return false;
            };
            if ended {
                self.end_message(direction, at_ns, output);
            }
            return true;
        }
        if way.head.is_empty() {
            // Blank lines between messages are passed over.
            if let [b'\r' | b'\n', after @ ..] = rest {
                *rest = after;
                return true;
            }
            way.first_ns = at_ns;
        }
        let Some(end) = head_end(&way.head, rest) else {
            way.head.extend_from_slice(rest);
            *rest = &[];
            return way.head.len() <= MAX_HEAD;
        };
        let (head, after) = rest.split_at(end);
        *rest = after;
        if way.head.is_empty() {
            return self.head(direction, at_ns, head, output);
        }
        let mut kept = std::mem::take(&mut way.head);
        kept.extend_from_slice(head);
        self.head(direction, at_ns, &kept, output)
    }

    fn head(&mut self, direction: Direction, at_ns: u64, head: &[u8], output: &mut Output) -> bool {
        let way = &mut self.ways[direction as usize];
        match read(direction, head, output) {
            _ if head.len() > MAX_HEAD => false,
            Read::Malformed => false,
            Read::Request(text, asked, part) => {
                way.part = part;
                self.outstanding.ask(text, way.first_ns, asked, output);
                true
            }
            Read::Response(status, fields) => self.response(status, &fields, at_ns, output),
        }
    }

    fn response(&mut self, status: u16, fields: &Fields, at_ns: u64, output: &mut Output) -> bool {
        let way = &mut self.ways[Direction::Response as usize];
        // Interim: the answer is still to come.
        if (100..200).contains(&status) && status != 101 {
            return true;
        }
        let next = self.outstanding.next();
        let bare = matches!(status, 101 | 204 | 304) || next.is_some_and(|asked| asked.head);
        let switches = status == 101
            || next.is_some_and(|asked| asked.connect) && (200..300).contains(&status);
        if fields.invalid && !bare {
            return false;
        }
        way.answers = next.is_some();
        way.events = fields.events;
        way.outcome = Outcome {
            error: (status >= 400).then(|| output.text(&status.to_string())),
            ..Outcome::default()
        };
        self.outstanding.first_byte(way.first_ns);
        way.part = match fields.body() {
            _ if bare || switches => Part::Head,
            Some(part) => part,
            None => Part::Close,
        };
        if matches!(way.part, Part::Head) {
            self.end_message(Direction::Response, at_ns, output);
        }
        if switches {
            self.stopped = true;
            output.anomaly(Anomaly::Unsupported, 1);
            self.outstanding.give_up(output);
            self.sync.message(Direction::Response, output);
        }
        true
    }

    fn end_message(&mut self, direction: Direction, at_ns: u64, output: &mut Output) {
        let way = &mut self.ways[direction as usize];
        way.part = Part::Head;
        if direction == Direction::Request {
            return;
        }
        if way.answers {
            let trace = self.outstanding.next().and_then(|asked| asked.trace);
            self.outstanding.answer(at_ns, way.outcome, output);
            if let (Some(_), Some(exchange)) = (trace, output.exchanges.last_mut()) {
                exchange.trace = trace;
            }
        } else {
            self.outstanding.orphan(at_ns, output);
        }
        way.answers = false;
    }

    /// What is known of a request whose head goes on in a gap.
    fn cut(&mut self, output: &mut Output) {
        let way = &mut self.ways[Direction::Request as usize];
        let Some(end) = memchr::memchr(b'\n', &way.head) else {
            return;
        };
        let mut head = std::mem::take(&mut way.head);
        head.truncate(end + 1);
        head.extend_from_slice(b"\r\n");
        if let Read::Request(text, asked, _) = read(Direction::Request, &head, output) {
            self.outstanding.ask(text, way.first_ns, asked, output);
            self.sync.message(Direction::Request, output);
        }
    }
}

impl Decoder for Http {
    fn bytes(&mut self, direction: Direction, at_ns: u64, bytes: &[u8], output: &mut Output) {
        if self.stopped || bytes.is_empty() {
            return;
        }
        let fits = || plausible(direction, bytes) != Some(false);
        let boundary = || (plausible(direction, bytes) == Some(true)).then_some(0);
        let (outstanding, at) = (&mut self.outstanding, (direction, at_ns));
        match self.sync.piece(at, outstanding, output, fits, boundary) {
            Piece::On => {}
            Piece::Anew(_) => self.ways[direction as usize] = Way::new(),
            Piece::Skip => return,
        }
        self.feed(direction, at_ns, bytes, output);
    }

    fn gap(&mut self, direction: Direction, at_ns: u64, count: u64, output: &mut Output) {
        let outstanding = &mut self.outstanding;
        if self.stopped || count == 0 || !self.sync.gap(direction, at_ns, outstanding, output) {
            return;
        }
        let way = &mut self.ways[direction as usize];
        way.last_ns = at_ns;
        match &mut way.part {
            Part::Close => return,
            Part::Length(left) if count < *left => {
                *left -= count;
                return;
            }
            Part::Length(left) => {
                let exact = count == *left;
                self.end_message(direction, at_ns, output);
                if exact {
                    return;
                }
            }
            Part::Chunks(lexer, _) => {
                if lexer.gap(count) {
                    // A chunk never ends the body: a last one of size 0 does.
                    _ = way.body(&mut [].as_slice());
                    return;
                }
            }
            Part::Head if direction == Direction::Request => self.cut(output),
            Part::Head => {}
        }
        let begun = !self.ways[1].between() && self.ways[1].answers;
        self.sync
            .lose(direction, at_ns, begun, &mut self.outstanding, output);
    }

    fn end(&mut self, output: &mut Output) {
        let way = &self.ways[Direction::Response as usize];
        if matches!(way.part, Part::Close) && !self.sync.lost(Direction::Response) {
            let last_ns = way.last_ns;
            self.end_message(Direction::Response, last_ns, output);
        }
        if !self.stopped && !self.sync.lost(Direction::Request) {
            self.cut(output);
        }
        self.outstanding.give_up(output);
    }

    fn in_flight(&self) -> usize {
        self.outstanding.len()
    }

    fn is_awaited(&self) -> bool {
        let answer = &self.ways[Direction::Response as usize];
        let events = answer.events && !matches!(answer.part, Part::Head);
        !events && self.is_in_flight()
    }
}

#[cfg(test)]
mod tests;
