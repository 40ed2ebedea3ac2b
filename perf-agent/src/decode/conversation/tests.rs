//! Pieces out of order, lost, or of several threads.

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

/// A client whose threads share a connection: one sends, another receives.
struct Shared {
    conversation: Conversation,
    output: Output,
    positions: [u64; 2],
}

impl Shared {
    /// After an exchange told of in order.
    fn new() -> Shared {
        let mut shared = Shared {
            conversation: Conversation::new(true, Joined::AtStart),
            output: Output::new(Options::default()),
            positions: [0; 2],
        };
        shared.moves(true, REQUEST, 0);
        shared.moves(false, ANSWER, 0);
        shared
    }

    /// A piece, and what is not captured behind it.
    fn moves(&mut self, sent: bool, head: &[u8], unseen: u64) {
        let way = usize::from(sent);
        let piece = Captured {
            sent,
            at_ns: 1,
            tid: 1 + way as u32,
            position: self.positions[way],
            other_position: self.positions[1 - way],
            bytes: head.len() as u64 + unseen,
            head,
            tail: &[],
        };
        self.positions[way] += piece.bytes;
        self.conversation.take(&piece, &mut self.output);
    }
}

#[test]
fn a_long_answer_told_of_before_its_request_is_that_requests() {
    let mut shared = Shared::new();
    shared.moves(false, b"HTTP/1.1 200 OK\r\nContent-Length: 9", 0);
    shared.moves(false, b"0000\r\n\r\nbegin", 89_995);
    shared.moves(true, REQUEST, 0);
    shared.moves(true, REQUEST, 0);
    shared.moves(false, ANSWER, 0);
    shared.conversation.end(&mut shared.output);
    assert_eq!(shared.output.exchanges.len(), 3);
    assert_eq!(shared.output.anomalies, []);
}

#[test]
fn answers_to_nothing_are_held_up_to_a_bound() {
    const ANSWERS: u64 = 5_000;
    let mut shared = Shared::new();
    for _ in 0..ANSWERS {
        shared.moves(false, ANSWER, 0);
        let held = shared.conversation.held.iter();
        let memory: usize = held.map(|(_, part)| part.memory()).sum();
        assert!(memory <= MAX_HELD_BYTES, "{memory}");
    }
    shared.conversation.end(&mut shared.output);
    assert_eq!(shared.output.exchanges.len(), 1);
    let orphan = |(what, _): &&(Anomaly, u64)| *what == Anomaly::Orphan;
    let orphans = shared.output.anomalies.iter().filter(orphan);
    assert_eq!(orphans.map(|(_, n)| n).sum::<u64>(), ANSWERS);
}
