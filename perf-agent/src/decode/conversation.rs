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
    /// An answer that came before its request, from another thread.
    held: Vec<(u64, Vec<u8>)>,
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
        if direction == Direction::Request {
            self.asked_by = piece.tid;
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
                let answer = direction == Direction::Response;
                // The kernel tells of a send when it has ended. Where another thread receives, the
                // answer may be told of first.
                if answer && self.shared && self.client && decoder.in_flight() == 0 {
                    self.held.push((at_ns, bytes.to_vec()));
                    return;
                }
                let before = (output.exchanges.len(), output.anomalies.len());
                decoder.bytes(direction, at_ns, bytes, output);
                if !answer && !self.held.is_empty() {
                    for (at_ns, bytes) in std::mem::take(&mut self.held) {
                        decoder.bytes(Direction::Response, at_ns, &bytes, output);
                    }
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
            for (at_ns, bytes) in std::mem::take(&mut self.held) {
                decoder.bytes(Direction::Response, at_ns, &bytes, output);
            }
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
mod tests {
    use super::*;
    use crate::decode::Options;

    const REQUEST: &[u8] = b"GET /a HTTP/1.1\r\n\r\n";
    const ANSWER: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";

    /// Four requests of a client that waits for each answer, by one thread; of the eight pieces some
    /// are lost.
    fn exchanges_without(lost: &[usize]) -> (usize, Vec<(Anomaly, u64)>) {
        let mut conversation = Conversation::new(true, Joined::AtStart);
        let mut output = Output::new(Options::default());
        let (mut sent, mut received) = (0, 0);
        for i in 0..8 {
            let request = i % 2 == 0;
            let bytes = if request { REQUEST } else { ANSWER };
            let (position, other_position) = if request {
                (sent, received)
            } else {
                (received, sent)
            };
            if !lost.contains(&i) {
                let piece = Captured {
                    sent: request,
                    at_ns: i as u64,
                    tid: 1,
                    position,
                    other_position,
                    bytes: bytes.len() as u64,
                    head: bytes,
                    tail: &[],
                };
                conversation.take(&piece, &mut output);
            }
            *if request { &mut sent } else { &mut received } += bytes.len() as u64;
        }
        conversation.end(&mut output);
        (output.exchanges.len(), output.anomalies)
    }

    /// Takes pieces of one thread, whether it is sent and its bytes, from the one at `joined_at` on.
    fn takes<'a>(
        conversation: &mut Conversation,
        pieces: impl Iterator<Item = (bool, &'a [u8])>,
        joined_at: usize,
        output: &mut Output,
    ) {
        let mut positions = [0; 2];
        for (at_ns, (sent, bytes)) in pieces.enumerate().skip(joined_at) {
            let way = usize::from(sent);
            let piece = Captured {
                sent,
                at_ns: at_ns as u64,
                tid: 1,
                position: positions[way],
                other_position: positions[1 - way],
                bytes: bytes.len() as u64,
                head: bytes,
                tail: &[],
            };
            positions[way] += piece.bytes;
            conversation.take(&piece, output);
        }
    }

    #[test]
    fn a_protocol_is_recognised_where_lengths_are_read_apart_from_the_rest() {
        const REQUEST: &[u8] = b"\0\0\0\x0d\0\x12\0\0\0\0\0\x01\0\x03abc";
        const ANSWER: &[u8] = b"\0\0\0\x0a\0\0\0\x01\0\0\0\0\0\0";
        for joined in [Joined::AtStart, Joined::Late] {
            let mut conversation = Conversation::new(false, joined);
            let mut output = Output::new(Options::default());
            let pieces = [
                (false, &REQUEST[..4]),
                (false, &REQUEST[4..]),
                (true, ANSWER),
            ];
            takes(&mut conversation, pieces.into_iter(), 0, &mut output);
            assert_eq!(conversation.protocol(), Some(Protocol::Kafka));
            assert_eq!(output.anomalies, []);
            let [exchange] = &output.exchanges[..] else {
                panic!("{:?}", output.exchanges);
            };
            assert_eq!(output.text_of(exchange.text), "ApiVersions");
        }
    }

    #[test]
    fn a_client_that_writes_in_small_pieces_may_be_joined_in_the_middle_of_one() {
        const REQUEST: [&str; 5] = ["*2\r\n$3\r\nGET\r\n$", "8", "\r\n", "cart:755", "\r\n"];
        const ANSWER: &str = "$12\r\napples:3;tea\r\n";
        for joined_at in 0..6 {
            let mut conversation = Conversation::new(true, Joined::Late);
            let mut output = Output::new(Options::default());
            let exchange = REQUEST.map(|piece| (true, piece.as_bytes()));
            let exchange = exchange.into_iter().chain([(false, ANSWER.as_bytes())]);
            takes(
                &mut conversation,
                exchange.cycle().take(60),
                joined_at,
                &mut output,
            );
            assert_eq!(conversation.protocol(), Some(Protocol::Redis));
            // The first may be lost with its beginning, and no other.
            let whole = output.exchanges.len();
            assert!(whole >= 9, "joined at {joined_at}: {whole} of 10");
        }
    }

    #[test]
    fn what_is_lost_costs_its_own_exchange_and_no_other() {
        assert_eq!(exchanges_without(&[]), (4, vec![]));
        let answer = [(Anomaly::Unanswered, 1), (Anomaly::Resynced, 1)];
        assert_eq!(exchanges_without(&[3]), (3, answer.to_vec()));
        let request = [(Anomaly::Orphan, 1), (Anomaly::Resynced, 1)];
        assert_eq!(exchanges_without(&[4]), (3, request.to_vec()));
        assert_eq!(exchanges_without(&[2, 3]).0, 3);
        assert_eq!(exchanges_without(&[3, 4]).0, 2);
    }
}
