//! The text protocol: lines, some with a body behind them, and the meta commands.

use super::{
    super::{
        Anomaly, Direction, Exchange, Joined, Outcome, Output, Outstanding, Sync, TextId, Verdict,
        keys,
        lexer::{Item, Lexer, count},
        sync::Piece,
    },
    Decoder, failed, find, shape,
};

/// Most bytes of a request's line that are looked at: the keys of a get are counted in them.
pub const KEEP: usize = 16 << 10;

/// What a command is answered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// `VALUE`s, then `END`.
    Get,
    /// Lines of its own, then `END`.
    List,
    /// One line, of its own words.
    Line,
    /// One line of a meta code; the command's second letter.
    Meta(u8),
    /// `OK`, then lines without end.
    Watch,
    /// Nothing.
    Silent,
}

/// Commands with how they are answered, the index of their key (0 for none) and of the length of the
/// body behind them (0 for none).
const COMMANDS: &[(&[u8], &str, Kind, usize, usize)] = &[
    (b"get", "GET", Kind::Get, 1, 0),
    (b"gets", "GETS", Kind::Get, 1, 0),
    (b"mg", "MG", Kind::Meta(b'g'), 1, 0),
    (b"ms", "MS", Kind::Meta(b's'), 1, 2),
    (b"md", "MD", Kind::Meta(b'd'), 1, 0),
    (b"ma", "MA", Kind::Meta(b'a'), 1, 0),
    (b"me", "ME", Kind::Meta(b'e'), 1, 0),
    (b"mn", "MN", Kind::Meta(b'n'), 0, 0),
    (b"set", "SET", Kind::Line, 1, 4),
    (b"add", "ADD", Kind::Line, 1, 4),
    (b"replace", "REPLACE", Kind::Line, 1, 4),
    (b"append", "APPEND", Kind::Line, 1, 4),
    (b"prepend", "PREPEND", Kind::Line, 1, 4),
    (b"cas", "CAS", Kind::Line, 1, 4),
    (b"gat", "GAT", Kind::Get, 2, 0),
    (b"gats", "GATS", Kind::Get, 2, 0),
    (b"delete", "DELETE", Kind::Line, 1, 0),
    (b"incr", "INCR", Kind::Line, 1, 0),
    (b"decr", "DECR", Kind::Line, 1, 0),
    (b"touch", "TOUCH", Kind::Line, 1, 0),
    (b"stats", "STATS", Kind::List, 0, 0),
    (b"version", "VERSION", Kind::Line, 0, 0),
    (b"verbosity", "VERBOSITY", Kind::Line, 0, 0),
    (b"flush_all", "FLUSH_ALL", Kind::Line, 0, 0),
    (b"cache_memlimit", "CACHE_MEMLIMIT", Kind::Line, 0, 0),
    (b"slabs", "SLABS", Kind::Line, 0, 0),
    (b"lru", "LRU", Kind::Line, 0, 0),
    (b"lru_crawler", "LRU_CRAWLER", Kind::List, 0, 0),
    (b"refresh_certs", "REFRESH_CERTS", Kind::Line, 0, 0),
    (b"extstore", "EXTSTORE", Kind::Line, 0, 0),
    (b"watch", "WATCH", Kind::Watch, 0, 0),
    (b"quit", "QUIT", Kind::Silent, 0, 0),
    (b"shutdown", "SHUTDOWN", Kind::Silent, 0, 0),
];

/// First words of answers that are nothing else.
const ANSWERS: &[&[u8]] = &[
    b"VALUE",
    b"END",
    b"STORED",
    b"NOT_STORED",
    b"NOT_FOUND",
    b"DELETED",
    b"TOUCHED",
    b"STAT",
    b"SERVER_ERROR",
    b"CLIENT_ERROR",
    b"HD",
    b"VA",
    b"EN",
    b"NS",
    b"NF",
    b"MN",
    b"VERSION",
];
/// And of such as other protocols may have too.
const OTHER_ANSWERS: &[&[u8]] = &[
    b"OK", b"ERROR", b"EXISTS", b"EX", b"ME", b"RESET", b"ITEM", b"PREFIX", b"BUSY",
];

/// A command that waits for its answer.
#[derive(Clone, Copy)]
struct Asked {
    kind: Kind,
    keys: u32,
    hits: u32,
    quiet: bool,
    /// Hashes of what tells its answer, 0 for none.
    opaque: u64,
    key: u64,
}

/// A command whose line was read.
struct Request {
    text: TextId,
    started_ns: u64,
    silent: bool,
    asked: Asked,
}

pub struct Text {
    requests: Lexer,
    replies: Lexer,
    /// When the open messages began.
    began_ns: [Option<u64>; 2],
    /// The command whose body is read.
    open: Option<Request>,
    /// What the answer whose body is read ends with; None if more follows.
    ends: Option<Outcome>,
    watches: bool,
    outstanding: Outstanding<Asked>,
    sync: Sync,
}

fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|b| *b == b' ').filter(|w| !w.is_empty())
}

fn printable(line: &[u8]) -> bool {
    line.iter().all(|b| *b >= b' ' && *b != 0x7f)
}

fn is_command(line: &[u8]) -> bool {
    let word = words(line).next().unwrap_or_default();
    COMMANDS.iter().any(|c| c.0 == word) && printable(line)
}

fn is_answer(line: &[u8], words_of: &[&[u8]]) -> bool {
    words(line).next().is_some_and(|w| words_of.contains(&w)) && printable(line)
}

/// The first line of a piece; None if it does not end in it.
fn first_line(bytes: &[u8]) -> Option<&[u8]> {
    let end = memchr::memchr(b'\n', bytes)?;
    let line = &bytes[..end];
    Some(line.strip_suffix(b"\r").unwrap_or(line))
}

pub fn detect(direction: Direction, bytes: &[u8]) -> Verdict {
    let whole = first_line(bytes);
    let line = whole.unwrap_or(bytes);
    if !printable(line.strip_suffix(b"\r").unwrap_or(line)) {
        return Verdict::No;
    }
    let verdict = match direction {
        // Redis's inline commands look the same; those are typed, and mostly in capitals.
        Direction::Request if is_command(line) => Verdict::Yes,
        Direction::Response if is_answer(line, ANSWERS) => Verdict::Yes,
        Direction::Response if is_answer(line, OTHER_ANSWERS) => Verdict::Maybe,
        _ => Verdict::No,
    };
    match (whole, bytes.iter().position(|b| *b == b' ')) {
        (Some(_), _) => verdict,
        (None, Some(_)) => verdict.min(Verdict::Unsure),
        (None, None) if bytes.len() < 16 => Verdict::Unsure,
        (None, None) => Verdict::No,
    }
}

impl Text {
    pub fn new(joined: Joined) -> Text {
        Text {
            requests: Lexer::keeping(KEEP),
            replies: Lexer::default(),
            began_ns: [None; 2],
            open: None,
            ends: None,
            watches: false,
            outstanding: Outstanding::default(),
            sync: Sync::new(joined),
        }
    }

    #[cfg(test)]
    pub fn held(&self) -> usize {
        self.requests.held() + self.replies.held()
    }

    fn request_bytes(&mut self, at_ns: u64, mut rest: &[u8], output: &mut Output) {
        loop {
            if self.began_ns[0].is_none() && !rest.is_empty() {
                self.began_ns[0] = Some(at_ns);
            }
            let started_ns = self.began_ns[0].unwrap_or(at_ns);
            let before = rest.len();
            let item = self.requests.next(&mut rest);
            self.sync.read(Direction::Request, before - rest.len());
            let request = match item {
                None => return,
                Some(Item::Broken) => return self.malformed(Direction::Request, at_ns, output),
                Some(Item::Body(_)) => self.open.take(),
                Some(Item::Line(b"")) => None,
                Some(Item::Line(line)) => {
                    let Some((request, body)) = request(line, started_ns, output) else {
                        return self.malformed(Direction::Request, at_ns, output);
                    };
                    if let Some(length) = body {
                        self.requests.body(length);
                        self.open = Some(request);
                        continue;
                    }
                    Some(request)
                }
            };
            if let Some(request) = request {
                self.asked(request, at_ns, output);
            }
            self.began_ns[0] = None;
            self.sync.message(Direction::Request, output);
        }
    }

    fn asked(&mut self, request: Request, at_ns: u64, output: &mut Output) {
        if request.silent {
            output.exchanges.push(Exchange {
                text: request.text,
                started_ns: request.started_ns,
                first_byte_ns: at_ns,
                last_byte_ns: at_ns,
                queued_ns: 0,
                error: None,
                hits: 0,
                misses: 0,
                trace: None,
            });
        } else {
            let Request {
                text, started_ns, ..
            } = request;
            self.outstanding
                .ask(text, started_ns, request.asked, output);
        }
    }

    fn reply_bytes(&mut self, at_ns: u64, mut rest: &[u8], output: &mut Output) {
        loop {
            if self.began_ns[1].is_none() && !rest.is_empty() {
                self.began_ns[1] = Some(at_ns);
            }
            let before = rest.len();
            let item = self.replies.next(&mut rest);
            self.sync.read(Direction::Response, before - rest.len());
            let ends = match item {
                None => return,
                Some(Item::Broken) => return self.malformed(Direction::Response, at_ns, output),
                Some(Item::Body(_)) => self.ends.take(),
                Some(Item::Line(line)) => {
                    let reply = Reply::of(line);
                    let body = reply.body;
                    let known = reply.known || self.watches;
                    let next = self.outstanding.next().map(|a| a.kind);
                    let own = matches!(next, Some(Kind::Line | Kind::List)) && printable(line);
                    if !known && !own || body == Some(None) {
                        return self.malformed(Direction::Response, at_ns, output);
                    }
                    let first_ns = self.began_ns[1].unwrap_or(at_ns);
                    let ends = self.replied(&reply, first_ns, at_ns, output);
                    if let Some(Some(length)) = body {
                        self.replies.body(length);
                        self.ends = ends;
                        continue;
                    }
                    ends
                }
            };
            if let Some(outcome) = ends {
                self.outstanding.answer(at_ns, outcome, output);
            }
            self.began_ns[1] = None;
            self.sync.message(Direction::Response, output);
        }
    }

    /// A line of an answer; what the answer ends with, if it does.
    fn replied(
        &mut self,
        reply: &Reply,
        first_ns: u64,
        at_ns: u64,
        output: &mut Output,
    ) -> Option<Outcome> {
        let outstanding = &mut self.outstanding;
        if !find(
            outstanding,
            at_ns,
            |asked| reply.is_to(asked),
            silence,
            output,
        ) {
            if !self.watches && !reply.goes_on() {
                outstanding.orphan(at_ns, output);
            }
            return None;
        }
        self.outstanding.first_byte(first_ns);
        let asked = self.outstanding.next_mut()?;
        if reply.is_error() {
            return Some(failed(&String::from_utf8_lossy(reply.word()), output));
        }
        let (mut hits, mut misses) = (0, 0);
        match (asked.kind, reply.word()) {
            (Kind::Get, b"VALUE") => {
                asked.hits += 1;
                return None;
            }
            (Kind::Get, _) => (hits, misses) = (asked.hits, asked.keys.saturating_sub(asked.hits)),
            (Kind::List, _) if reply.goes_on() => return None,
            (Kind::Meta(b'g'), word) if word == b"EN" => misses = 1,
            (Kind::Meta(b'g'), _) => hits = 1,
            (Kind::Watch, _) => self.watches = true,
            _ => {}
        }
        Some(Outcome {
            error: None,
            hits,
            misses,
        })
    }

    fn malformed(&mut self, direction: Direction, at_ns: u64, output: &mut Output) {
        self.sync
            .malformed(direction, at_ns, &mut self.outstanding, output);
    }

    fn reset(&mut self, direction: Direction) {
        self.began_ns[direction as usize] = None;
        match direction {
            Direction::Request => (self.requests, self.open) = (Lexer::keeping(KEEP), None),
            Direction::Response => (self.replies, self.ends) = (Lexer::default(), None),
        }
    }
}

/// A command out of its line, and the length of the body behind it. None if it is no line of text.
fn request(line: &[u8], started_ns: u64, output: &mut Output) -> Option<(Request, Option<u64>)> {
    let word = words(line).next()?;
    let Some((_, name, kind, key, body)) = COMMANDS.iter().find(|c| c.0 == word) else {
        let text = shape("(unknown command)", None, output);
        let asked = Asked::new(Kind::Line);
        let request = Request {
            text,
            started_ns,
            silent: false,
            asked,
        };
        return printable(line).then_some((request, None));
    };
    let mut asked = Asked::new(*kind);
    let key_word = (*key > 0).then(|| words(line).nth(*key)).flatten();
    let text = shape(name, key_word, output);
    let mut silent = *kind == Kind::Silent;
    match kind {
        Kind::Get => asked.keys = words(line).skip(*key).count() as u32,
        Kind::Meta(_) => {
            let flags = words(line).skip(if *body > 0 { 3 } else { 2 });
            asked.flags(flags, key_word.unwrap_or_default());
        }
        Kind::Line => silent = line.ends_with(b" noreply"),
        // Of its subcommands only the dump is a list; the others answer by a word.
        Kind::List | Kind::Watch | Kind::Silent => {}
    }
    let body = (*body > 0).then(|| words(line).nth(*body)).flatten();
    // Until 1.6.8 the length of a meta set was a flag.
    let body = body.and_then(|b| count(b.strip_prefix(b"S").unwrap_or(b)));
    let request = Request {
        text,
        started_ns,
        silent,
        asked,
    };
    Some((request, body))
}

impl Asked {
    fn new(kind: Kind) -> Asked {
        Asked {
            kind,
            keys: 0,
            hits: 0,
            quiet: false,
            opaque: 0,
            key: 0,
        }
    }

    fn flags<'a>(&mut self, flags: impl Iterator<Item = &'a [u8]>, key: &[u8]) {
        for flag in flags {
            match flag {
                b"q" => self.quiet = true,
                b"k" => self.key = token(key),
                [b'O', opaque @ ..] => self.opaque = token(opaque),
                _ => {}
            }
        }
    }
}

/// What it means that a command was not answered.
fn silence(asked: &Asked) -> Option<Outcome> {
    asked.quiet.then(|| Outcome {
        error: None,
        hits: 0,
        misses: u32::from(asked.kind == Kind::Meta(b'g')),
    })
}

/// A token by a hash that is never 0.
fn token(bytes: &[u8]) -> u64 {
    let hash = bytes
        .iter()
        .fold(1, |hash, byte| keys::mix(hash, u64::from(*byte)));
    hash | 1 << 63
}

/// A line of an answer.
struct Reply {
    word: [u8; 16],
    word_length: usize,
    /// The word is one of the protocol's.
    known: bool,
    /// A body follows, of this length; `Some(None)` if the length is none.
    body: Option<Option<u64>>,
    opaque: u64,
    key: u64,
}

impl Reply {
    fn of(line: &[u8]) -> Reply {
        let mut rest = words(line);
        let word = rest.next().unwrap_or_default();
        let mut copy = [0; 16];
        let word_length = word.len().min(copy.len());
        copy[..word_length].copy_from_slice(&word[..word_length]);
        let mut reply = Reply {
            word: copy,
            word_length,
            known: is_answer(line, ANSWERS)
                || is_answer(line, OTHER_ANSWERS)
                || !word.is_empty() && word.iter().all(u8::is_ascii_digit),
            body: None,
            opaque: 0,
            key: 0,
        };
        match word {
            b"VALUE" => reply.body = Some(rest.nth(2).and_then(count)),
            b"VA" => reply.body = Some(rest.next().and_then(count)),
            b"HD" | b"EN" | b"NS" | b"NF" | b"EX" => {}
            _ => return reply,
        }
        if word != b"VALUE" {
            for flag in rest {
                match flag {
                    [b'O', opaque @ ..] => reply.opaque = token(opaque),
                    [b'k', key @ ..] => reply.key = token(key),
                    _ => {}
                }
            }
        }
        reply
    }

    /// Its first word, or the beginning of that.
    fn word(&self) -> &[u8] {
        &self.word[..self.word_length]
    }

    fn is_error(&self) -> bool {
        matches!(self.word(), b"ERROR" | b"CLIENT_ERROR" | b"SERVER_ERROR")
    }

    /// More lines of the same answer follow.
    fn goes_on(&self) -> bool {
        match self.word() {
            b"STAT" | b"ITEM" | b"PREFIX" | b"VALUE" => true,
            word => word.starts_with(b"key="),
        }
    }

    fn is_to(&self, asked: &Asked) -> bool {
        if self.is_error() {
            return true;
        }
        if self.opaque != 0 && self.opaque != asked.opaque || self.key != 0 && self.key != asked.key
        {
            return false;
        }
        // What a quiet command does not tell is told of another.
        let silent: &[u8] = match asked.kind {
            Kind::Meta(b'g') => b"EN",
            _ => b"HD",
        };
        if asked.quiet && self.word() == silent {
            return false;
        }
        match (asked.kind, self.word()) {
            (Kind::Get, word) => matches!(word, b"VALUE" | b"END"),
            (Kind::Meta(b'g'), word) => matches!(word, b"VA" | b"HD" | b"EN"),
            (Kind::Meta(b's'), word) => matches!(word, b"HD" | b"NS" | b"EX" | b"NF"),
            (Kind::Meta(b'd'), word) => matches!(word, b"HD" | b"EX" | b"NF"),
            (Kind::Meta(b'a'), word) => matches!(word, b"VA" | b"HD" | b"NS" | b"EX" | b"NF"),
            (Kind::Meta(b'e'), word) => matches!(word, b"ME" | b"EN"),
            (Kind::Meta(_), word) => word == b"MN",
            (Kind::List, word) => !matches!(word, b"VALUE" | b"STORED" | b"HD" | b"VA" | b"EN"),
            (Kind::Line | Kind::Watch, word) => {
                !self.goes_on() && !matches!(word, b"END" | b"HD" | b"VA" | b"EN" | b"MN")
            }
            (Kind::Silent, _) => false,
        }
    }
}

impl Decoder for Text {
    fn bytes(&mut self, direction: Direction, at_ns: u64, bytes: &[u8], output: &mut Output) {
        let line = first_line(bytes);
        let known = |line| match direction {
            Direction::Request => is_command(line),
            Direction::Response => Reply::of(line).known,
        };
        let fits = || line.is_none_or(known);
        let boundary = || line.is_some_and(known).then_some(0);
        let (outstanding, at) = (&mut self.outstanding, (direction, at_ns));
        match self.sync.piece(at, outstanding, output, fits, boundary) {
            Piece::On => {}
            Piece::Anew(_) => self.reset(direction),
            Piece::Skip => return,
        }
        match direction {
            Direction::Request => self.request_bytes(at_ns, bytes, output),
            Direction::Response => self.reply_bytes(at_ns, bytes, output),
        }
    }

    fn gap(&mut self, direction: Direction, at_ns: u64, count: u64, output: &mut Output) {
        let outstanding = &mut self.outstanding;
        if count == 0 || !self.sync.gap(direction, at_ns, outstanding, output) {
            return;
        }
        // What ends with the gap is closed by the call without bytes.
        match direction {
            Direction::Request if self.requests.gap(count) => {
                return self.request_bytes(at_ns, &[], output);
            }
            Direction::Response if self.replies.gap(count) => {
                return self.reply_bytes(at_ns, &[], output);
            }
            Direction::Request => {
                if let Some(request) = self.open.take() {
                    self.sync.message(direction, output);
                    self.asked(request, at_ns, output);
                }
            }
            Direction::Response => {}
        }
        let begun = self.began_ns[1].is_some();
        self.sync
            .lose(direction, at_ns, begun, &mut self.outstanding, output);
    }

    fn end(&mut self, output: &mut Output) {
        // One that was begun has no answer either.
        if !self.sync.lost(Direction::Request) && self.open.take().is_some() {
            output.anomaly(Anomaly::Unanswered, 1);
        }
        self.outstanding.give_up(output);
    }

    fn in_flight(&self) -> usize {
        self.outstanding.len()
    }
}
