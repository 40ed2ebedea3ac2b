//! One connection: which protocol it speaks, and its bytes in order for that protocol's decoder.

use super::seek::MAX_WINDOW;
use super::{
    Anomaly, Decoder, Direction, Joined, Output, PROTOCOLS, Protocol, TextId, Verdict, tls,
};

/// Pieces kept until it is known what they are, and their bytes.
const MAX_UNDECIDED_PIECES: usize = 16;
const MAX_UNDECIDED_BYTES: usize = 8192;
/// Pieces looked at before a connection counts as unknown.
const MAX_TRIES: u32 = 64;
/// Memory for answers that are kept until the request they came before is told of.
const MAX_HELD_BYTES: usize = 64 << 10;
/// Malformed messages after which a protocol is given up, where it gave nothing that made sense.
const MAX_MALFORMED: u64 = 3;

/// A piece of a connection's bytes as it was captured.
#[derive(Clone, Copy, Debug)]
pub struct Captured<'a> {
    /// As the traced process sees it.
    pub sent: bool,
    pub at_ns: u64,
    pub tid: u32,
    /// Bytes of this direction before it.
    pub position: u64,
    /// Bytes of the other direction before it.
    pub other_position: u64,
    /// Bytes moved; `head` and `tail` are what was captured of their beginning and end.
    pub bytes: u64,
    pub head: &'a [u8],
    pub tail: &'a [u8],
}

/// What is known of the protocol.
enum Speaks {
    Undecided {
        /// Of the pieces seen so far.
        pieces: Vec<(Direction, u64, Vec<u8>)>,
        tries: u32,
    },
    Decoded(Protocol, Box<dyn Decoder + Send>),
    /// With the protocol that asked for it, if one did.
    Encrypted(Option<(Protocol, Box<dyn Decoder + Send>)>),
    Unknown,
}

/// A part of an answer that is held until its request comes.
enum Held {
    Bytes(Vec<u8>),
    Gap(u64),
}

impl Held {
    /// Bytes of memory, its place in a list included.
    fn memory(&self) -> usize {
        let bytes = match self {
            Held::Bytes(bytes) => bytes.len(),
            Held::Gap(_) => 0,
        };
        bytes + size_of::<(u64, Held)>()
    }
}

/// Gives a decoder what was held of an answer.
fn let_go(held: &mut Vec<(u64, Held)>, decoder: &mut dyn Decoder, output: &mut Output) {
    for (at_ns, part) in std::mem::take(held) {
        match part {
            Held::Bytes(bytes) => decoder.bytes(Direction::Response, at_ns, &bytes, output),
            Held::Gap(count) => decoder.gap(Direction::Response, at_ns, count, output),
        }
    }
}

impl Speaks {
    const UNDECIDED: Speaks = Speaks::Undecided {
        pieces: Vec::new(),
        tries: 0,
    };
}

/// A connection of the target.
pub struct Conversation {
    client: bool,
    joined: Joined,
    speaks: Speaks,
    /// Protocols that it turned out not to be, by their place in [`PROTOCOLS`].
    excluded: u32,
    /// Where the next piece of each direction should begin.
    expected: [Option<u64>; 2],
    /// Thread of the piece before; once two have been seen their pieces may come out of order.
    tid: u32,
    shared: bool,
    /// Thread of the last request.
    asked_by: u32,
    /// Times of the last piece, and of the last of a request.
    pub last_ns: u64,
    pub requested_ns: u64,
    /// An answer that came before its request, from another thread.
    held: Vec<(u64, Held)>,
    malformed: u64,
    answered: u64,
    /// Run of one text, for [`super::statements`].
    pub run: Run,
    /// Places of the texts met last in the table of statements.
    pub known: Vec<(TextId, usize)>,
    /// Window those places are of.
    pub known_in: u64,
    /// Since when the server waits, inside a transaction, for the client's next statement.
    pub idle_in_transaction_since_ns: Option<u64>,
    pub idle_in_transaction_ns: u64,
    pub exchanges: u64,
}

/// Exchanges of one text, one after the other.
#[derive(Clone, Copy, Debug, Default)]
pub struct Run {
    pub text: Option<TextId>,
    pub length: u64,
    /// Another text came before the run: what it was run for.
    pub led_by: Option<TextId>,
    pub last_ns: u64,
}

impl Conversation {
    pub fn new(client: bool, joined: Joined) -> Conversation {
        Conversation {
            client,
            joined,
            speaks: Speaks::UNDECIDED,
            excluded: 0,
            expected: [None; 2],
            tid: 0,
            shared: false,
            asked_by: 0,
            last_ns: 0,
            requested_ns: 0,
            held: Vec::new(),
            malformed: 0,
            answered: 0,
            run: Run::default(),
            known: Vec::new(),
            known_in: 0,
            idle_in_transaction_since_ns: None,
            idle_in_transaction_ns: 0,
            exchanges: 0,
        }
    }

    pub fn is_client(&self) -> bool {
        self.client
    }

    pub fn protocol(&self) -> Option<Protocol> {
        match self.speaks {
            Speaks::Decoded(protocol, _) => Some(protocol),
            _ => None,
        }
    }

    pub fn is_encrypted(&self) -> bool {
        matches!(self.speaks, Speaks::Encrypted(_))
    }

    /// Bytes sent and received by this end, as far as pieces of them were seen.
    pub fn moved(&self) -> [u64; 2] {
        let of = |direction| self.expected[direction as usize].unwrap_or(0);
        let (requests, answers) = (of(Direction::Request), of(Direction::Response));
        if self.client {
            [requests, answers]
        } else {
            [answers, requests]
        }
    }

    pub fn in_flight(&self) -> usize {
        match &self.speaks {
            Speaks::Decoded(_, decoder) => decoder.in_flight(),
            _ => 0,
        }
    }

    pub fn is_in_flight(&self) -> bool {
        match &self.speaks {
            Speaks::Decoded(_, decoder) => decoder.is_in_flight(),
            _ => false,
        }
    }

    /// Whether the next byte of the client's begins a request, where the decoder tells.
    pub fn is_at_boundary(&self) -> bool {
        match &self.speaks {
            Speaks::Decoded(_, decoder) => decoder.is_at_boundary(),
            _ => false,
        }
    }

    /// Whether this end, a client, waits for an answer or for the rest of one.
    pub fn is_awaited(&self) -> bool {
        match &self.speaks {
            Speaks::Decoded(_, decoder) => decoder.is_awaited(),
            _ => false,
        }
    }

    /// Whether the thread that moved the last piece moved the request before it.
    pub fn is_one_threads(&self) -> bool {
        self.asked_by == self.tid
    }

    /// Takes a piece; what it completes is in `output`.
    #[inline]
    pub fn take(&mut self, piece: &Captured, output: &mut Output) {
        let direction = if piece.sent == self.client {
            Direction::Request
        } else {
            Direction::Response
        };
        if direction == Direction::Request
            && let Some(since) = self.idle_in_transaction_since_ns.take()
        {
            self.idle_in_transaction_ns += piece.at_ns.saturating_sub(since);
        }
        self.shared |= self.tid != 0 && self.tid != piece.tid;
        self.tid = piece.tid;
        self.last_ns = piece.at_ns;
        if direction == Direction::Request {
            self.asked_by = piece.tid;
            self.requested_ns = piece.at_ns;
        }
        if !self.shared {
            self.catch_up(direction.other(), piece, output);
        }
        let expected = &mut self.expected[direction as usize];
        let missing = expected.map_or(0, |at| piece.position.saturating_sub(at));
        *expected = Some(piece.position + piece.bytes);
        if missing > 0 {
            self.gap(direction, piece.at_ns, missing, output);
        }
        self.bytes(direction, piece.at_ns, piece.head, output);
        let unseen = piece
            .bytes
            .saturating_sub((piece.head.len() + piece.tail.len()) as u64);
        if unseen > 0 {
            self.gap(direction, piece.at_ns, unseen, output);
        }
        if !piece.tail.is_empty() {
            self.bytes(direction, piece.at_ns, piece.tail, output);
        }
    }

    /// Tells the decoder of what passed unseen of the other direction, before a request is taken for
    /// one that did not wait for its answer. Where several threads use the connection, the record may
    /// only be late.
    fn catch_up(&mut self, other: Direction, piece: &Captured, output: &mut Output) {
        if let Some(expected) = &mut self.expected[other as usize]
            && piece.other_position > *expected
        {
            let missing = piece.other_position - *expected;
            *expected = piece.other_position;
            self.gap(other, piece.at_ns, missing, output);
        }
    }

    fn bytes(&mut self, direction: Direction, at_ns: u64, bytes: &[u8], output: &mut Output) {
        if bytes.is_empty() {
            return;
        }
        match &mut self.speaks {
            Speaks::Encrypted(_) | Speaks::Unknown => {}
            Speaks::Undecided { .. } => self.decide(direction, at_ns, bytes, output),
            Speaks::Decoded(_, decoder) => {
                let before = (output.exchanges.len(), output.anomalies.len());
                // The kernel tells of a send when it has ended. Where another thread receives, the
                // answer may be told of first.
                let answer = direction == Direction::Response;
                let early = answer && self.shared && self.client && !decoder.is_in_flight();
                if early {
                    self.held.push((at_ns, Held::Bytes(bytes.to_vec())));
                    let held: usize = self.held.iter().map(|(_, part)| part.memory()).sum();
                    if held <= MAX_HELD_BYTES {
                        return;
                    }
                } else {
                    decoder.bytes(direction, at_ns, bytes, output);
                }
                if early || !answer {
                    let_go(&mut self.held, decoder.as_mut(), output);
                }
                self.judge(before, output);
            }
        }
    }

    /// Gives up a protocol that makes no sense of the bytes. What was in the output `before` a piece
    /// (exchanges and anomalies) is not of it.
    fn judge(&mut self, (exchanges, anomalies): (usize, usize), output: &Output) {
        self.answered += (output.exchanges.len() - exchanges) as u64;
        self.malformed += output.anomalies[anomalies..]
            .iter()
            .filter(|(what, _)| *what == Anomaly::Malformed)
            .map(|(_, n)| n)
            .sum::<u64>();
        let given_up = self.malformed >= MAX_MALFORMED && self.answered < self.malformed;
        match std::mem::replace(&mut self.speaks, Speaks::UNDECIDED) {
            Speaks::Decoded(protocol, decoder) if decoder.encrypted() => {
                self.speaks = Speaks::Encrypted(Some((protocol, decoder)));
            }
            Speaks::Decoded(protocol, _) if given_up => {
                if let Some(place) = PROTOCOLS.iter().position(|e| e.protocol == protocol) {
                    self.excluded |= 1 << place;
                }
                (self.malformed, self.answered) = (0, 0);
                self.joined = Joined::Late;
            }
            other => self.speaks = other,
        }
    }

    /// What comes from now on is what the connection's encryption carries: `from_its_start` says from
    /// its first byte.
    pub fn decrypted(&mut self, from_its_start: bool) {
        self.expected = [None; 2];
        self.held.clear();
        (self.malformed, self.answered, self.excluded) = (0, 0, 0);
        self.joined = if from_its_start {
            Joined::AtStart
        } else {
            Joined::Late
        };
        match std::mem::replace(&mut self.speaks, Speaks::UNDECIDED) {
            Speaks::Encrypted(Some((protocol, mut decoder))) if from_its_start => {
                decoder.decrypted();
                self.speaks = Speaks::Decoded(protocol, decoder);
            }
            _ => {}
        }
    }

    #[inline(never)]
    fn gap(&mut self, direction: Direction, at_ns: u64, count: u64, output: &mut Output) {
        match &mut self.speaks {
            Speaks::Decoded(..) if direction == Direction::Response && !self.held.is_empty() => {
                match self.held.last_mut() {
                    Some((_, Held::Gap(before))) => *before += count,
                    _ => self.held.push((at_ns, Held::Gap(count))),
                }
            }
            Speaks::Decoded(_, decoder) => decoder.gap(direction, at_ns, count, output),
            Speaks::Undecided { pieces, .. } => {
                pieces.clear();
                self.joined = Joined::Late;
            }
            Speaks::Encrypted(_) | Speaks::Unknown => {}
        }
    }

    #[cold]
    fn decide(&mut self, direction: Direction, at_ns: u64, bytes: &[u8], output: &mut Output) {
        let Speaks::Undecided { pieces, tries } = &mut self.speaks else {
            return;
        };
        *tries += 1;
        let held: usize = pieces.iter().map(|(_, _, b)| b.len()).sum();
        if pieces.len() >= MAX_UNDECIDED_PIECES || held + bytes.len() > MAX_UNDECIDED_BYTES {
            let header = pieces.pop_if(|(d, _, b)| *d == direction && b.len() <= MAX_WINDOW);
            pieces.clear();
            pieces.extend(header);
            self.joined = Joined::Late;
        }
        if tls::looks_like(direction, bytes) {
            self.speaks = Speaks::Encrypted(None);
            return;
        }
        pieces.push((direction, at_ns, bytes.to_vec()));
        // A program may read a message's length first and then the rest.
        let run = pieces.iter().rev().take_while(|(d, ..)| *d == direction);
        let run: Vec<&[u8]> = run.map(|(.., bytes)| &bytes[..]).collect();
        let run: Vec<u8> = run.into_iter().rev().flatten().copied().collect();
        let place = best(direction, &run, self.excluded);
        match place.or_else(|| best(direction, bytes, self.excluded)) {
            Some(place) => {
                let pieces = std::mem::take(pieces);
                let entry = &PROTOCOLS[place];
                self.speaks = Speaks::Decoded(entry.protocol, (entry.decoder)(self.joined));
                for (direction, at_ns, bytes) in pieces {
                    self.bytes(direction, at_ns, &bytes, output);
                }
            }
            None if *tries >= MAX_TRIES => self.speaks = Speaks::Unknown,
            None => {}
        }
    }

    /// The trace or the connection ended.
    pub fn end(&mut self, output: &mut Output) {
        self.release(output);
        if let Speaks::Decoded(_, decoder) = &mut self.speaks {
            decoder.end(output);
        }
    }

    /// Lets go of answers that were held for a request which did not come.
    pub fn release(&mut self, output: &mut Output) {
        if let Speaks::Decoded(_, decoder) = &mut self.speaks {
            let_go(&mut self.held, decoder.as_mut(), output);
        }
    }
}

/// The protocol a piece looks most like, of those that are not excluded.
fn best(direction: Direction, bytes: &[u8], excluded: u32) -> Option<usize> {
    let mut best: Option<(Verdict, usize)> = None;
    for (place, entry) in PROTOCOLS.iter().enumerate() {
        if excluded & 1 << place != 0 {
            continue;
        }
        let verdict = (entry.detect)(direction, bytes);
        if verdict >= Verdict::Maybe && best.is_none_or(|(v, _)| verdict > v) {
            best = Some((verdict, place));
        }
    }
    best.map(|(_, place)| place)
}

#[cfg(test)]
mod tests;
