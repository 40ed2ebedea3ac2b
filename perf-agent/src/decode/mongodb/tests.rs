use proptest::prelude::*;

use super::super::seek::Found;
use super::super::testing::{Piece, answers, asks, cut_anywhere, decode, events, survives};
use super::super::{Anomaly, Options, Output, Protocol};
use super::*;

/// A document of elements that are already encoded.
fn doc(elements: &[&[u8]]) -> Vec<u8> {
    let body = elements.concat();
    let mut bytes = (body.len() as i32 + 5).to_le_bytes().to_vec();
    bytes.extend(body);
    bytes.push(0);
    bytes
}

fn element(kind: u8, name: &str, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend(name.as_bytes());
    bytes.push(0);
    bytes.extend(value);
    bytes
}

fn text(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = (value.len() as i32 + 1).to_le_bytes().to_vec();
    bytes.extend(value.as_bytes());
    bytes.push(0);
    element(2, name, &bytes)
}

fn double(name: &str, value: f64) -> Vec<u8> {
    element(1, name, &value.to_le_bytes())
}

fn int32(name: &str, value: i32) -> Vec<u8> {
    element(0x10, name, &value.to_le_bytes())
}

fn message(id: u32, response_to: u32, code: i32, body: &[u8]) -> Vec<u8> {
    let mut bytes = (body.len() as i32 + 16).to_le_bytes().to_vec();
    bytes.extend(id.to_le_bytes());
    bytes.extend(response_to.to_le_bytes());
    bytes.extend(code.to_le_bytes());
    bytes.extend(body);
    bytes
}

fn msg(id: u32, response_to: u32, flags: u32, document: &[u8]) -> Vec<u8> {
    let body = [&flags.to_le_bytes()[..], &[0], document].concat();
    message(id, response_to, OP_MSG, &body)
}

fn find(id: u32) -> Vec<u8> {
    let filter = doc(&[&text("status", "paid"), &element(7, "_id", b"ABCDEFGHIJKL")]);
    let parts = [
        text("find", "orders"),
        element(3, "filter", &filter),
        int32("limit", 5),
        text("$db", "shop"),
    ];
    let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    msg(id, 0, 0, &doc(&parts))
}

fn ok(id: u32, response_to: u32) -> Vec<u8> {
    msg(id, response_to, 0, &doc(&[&double("ok", 1.0)]))
}

fn run(joined: Joined, pieces: &[Piece]) -> super::super::testing::Decoded {
    cut_anywhere(Protocol::Mongodb, joined, pieces)
}

#[test]
fn a_command_is_its_name_namespace_and_filter_fields_and_its_reply_finds_it_by_id() {
    let decoded = run(
        Joined::AtStart,
        &[
            asks(10, [find(7), find(8)].concat()),
            answers(20, ok(100, 7)),
            answers(30, ok(101, 8)),
        ],
    );
    let first = &decoded.exchanges[0];
    assert_eq!(first.text, "find shop.orders {status, _id}");
    assert_eq!(
        (first.started_ns, first.first_byte_ns, first.last_byte_ns),
        (10, 20, 20)
    );
    let second = &decoded.exchanges[1];
    assert_eq!(
        (second.started_ns, second.last_byte_ns, second.queued_ns),
        (10, 30, 10)
    );
    assert_eq!(decoded.anomalies, []);
    assert_eq!(
        decoded.decoded,
        [2 * find(7).len() as u64, 2 * ok(0, 0).len() as u64]
    );
}

#[test]
fn updates_in_a_sequence_of_their_own_show_the_first_filter() {
    let q = doc(&[&int32("a.0.b", 1)]);
    let update = doc(&[
        &element(3, "q", &q),
        &element(3, "u", &doc(&[&int32("x", 1)])),
    ]);
    let mut sequence = ((update.len() + 4 + 8) as i32).to_le_bytes().to_vec();
    sequence.extend(b"updates\0");
    sequence.extend(&update);
    let body = doc(&[&text("update", "orders"), &text("$db", "shop")]);
    for kind_one_first in [false, true] {
        let (a, b) = ([&[0], &body[..]].concat(), [&[1], &sequence[..]].concat());
        let sections = if kind_one_first { [b, a] } else { [a, b] }.concat();
        // With a checksum at the end, which is no section.
        let request = [&1u32.to_le_bytes()[..], &sections, &[1, 0, 0, 0]].concat();
        let reply = doc(&[
            &int32("n", 0),
            &element(
                4,
                "writeErrors",
                &doc(&[&element(
                    3,
                    "0",
                    &doc(&[&int32("index", 0), &int32("code", 11000)]),
                )]),
            ),
            &double("ok", 1.0),
        ]);
        let decoded = run(
            Joined::AtStart,
            &[
                asks(1, message(1, 0, OP_MSG, &request)),
                answers(2, msg(2, 1, 0, &reply)),
            ],
        );
        assert_eq!(
            decoded.texts(),
            [("update shop.orders {a.?.b}", Some("11000"))]
        );
    }
}

#[test]
fn errors_are_code_and_name_and_a_pipeline_is_its_stages() {
    let stages = doc(&[
        &element(3, "0", &doc(&[&element(3, "$match", &doc(&[]))])),
        &element(3, "1", &doc(&[&int32("$limit", 3)])),
    ]);
    let request = doc(&[
        &text("aggregate", "orders"),
        &element(4, "pipeline", &stages),
        &text("$db", "shop"),
    ]);
    let reply = doc(&[
        &double("ok", 0.0),
        &text("errmsg", "secret 42"),
        &int32("code", 26),
        &text("codeName", "NamespaceNotFound"),
    ]);
    let decoded = run(
        Joined::AtStart,
        &[
            asks(1, msg(3, 0, 0, &request)),
            answers(2, msg(4, 3, 0, &reply)),
        ],
    );
    let expected = [(
        "aggregate shop.orders [$match, $limit]",
        Some("26 NamespaceNotFound"),
    )];
    assert_eq!(decoded.texts(), expected);
}

#[test]
fn a_command_without_reply_ends_with_itself_and_an_exhaust_stream_is_an_exchange_a_reply() {
    let hello = doc(&[&int32("hello", 1), &text("$db", "admin")]);
    let decoded = run(
        Joined::AtStart,
        &[
            asks(1, msg(1, 0, MORE_TO_COME, &hello)),
            asks(5, msg(2, 0, EXHAUST_ALLOWED, &hello)),
            answers(8, msg(50, 2, MORE_TO_COME, &doc(&[&double("ok", 1.0)]))),
            answers(20, msg(51, 50, 0, &doc(&[&double("ok", 1.0)]))),
        ],
    );
    let expected = [
        ("hello admin (unacknowledged)", None),
        ("hello admin", None),
        ("hello admin (exhaust)", None),
    ];
    assert_eq!(decoded.texts(), expected);
    let times = |i: usize| {
        (
            decoded.exchanges[i].started_ns,
            decoded.exchanges[i].last_byte_ns,
        )
    };
    assert_eq!([times(0), times(1), times(2)], [(1, 1), (5, 8), (8, 20)]);
    assert_eq!(decoded.anomalies, []);
}

#[test]
fn the_older_messages_and_compressed_ones_are_counted_and_timed() {
    let is_master = doc(&[&int32("isMaster", 1)]);
    let query = [&[0; 4][..], b"admin.$cmd\0", &[0; 8], &is_master].concat();
    let reply = [&[0; 20][..], &doc(&[&double("ok", 1.0)])].concat();
    let compressed = [&OP_MSG.to_le_bytes()[..], &[9, 0, 0, 0, 2, 1, 2, 3]].concat();
    let decoded = run(
        Joined::AtStart,
        &[
            asks(1, message(1, 0, OP_QUERY, &query)),
            answers(2, message(9, 1, OP_REPLY, &reply)),
            asks(3, message(2, 0, OP_COMPRESSED, &compressed)),
            answers(4, message(10, 2, OP_COMPRESSED, &compressed)),
        ],
    );
    assert_eq!(
        decoded.texts(),
        [("isMaster admin", None), ("OP_COMPRESSED", None)]
    );
    assert_eq!(decoded.anomalies, [(Anomaly::Unsupported, 2)]);
}

#[test]
fn joined_late_in_the_middle_of_a_message_it_begins_at_the_next() {
    let pieces = [
        asks(1, &find(1)[9..]),
        answers(2, ok(90, 1)),
        asks(3, find(2)),
        answers(4, ok(91, 2)),
    ];
    let decoded = decode(Protocol::Mongodb, Joined::Late, &pieces);
    assert_eq!(decoded.texts(), [("find shop.orders {status, _id}", None)]);
    assert_eq!(decoded.exchanges[0].started_ns, 3);
    assert_eq!(
        decoded.anomalies,
        [(Anomaly::Orphan, 1), (Anomaly::Resynced, 1)]
    );
    let decoded = run(Joined::Late, &pieces[2..]);
    assert_eq!((decoded.exchanges.len(), decoded.anomalies.len()), (1, 0));
}

#[test]
fn a_gap_inside_a_reply_is_passed_over_and_one_over_replies_gives_their_requests_up() {
    let mut output = Output::new(Options::default());
    let mut decoder = decoder(Joined::AtStart);
    let reply = ok(90, 1);
    decoder.bytes(Direction::Request, 1, &find(1), &mut output);
    decoder.bytes(Direction::Response, 2, &reply[..24], &mut output);
    decoder.gap(Direction::Response, 3, reply.len() as u64 - 24, &mut output);
    assert_eq!(output.exchanges.len(), 1);
    for id in 2..5 {
        decoder.bytes(Direction::Request, 4, &find(id), &mut output);
    }
    decoder.gap(Direction::Response, 5, 2 * reply.len() as u64, &mut output);
    decoder.bytes(Direction::Response, 6, &ok(93, 4), &mut output);
    assert_eq!((output.exchanges.len(), decoder.in_flight()), (2, 0));
    let expected = [(Anomaly::Resynced, 1), (Anomaly::Unanswered, 2)];
    assert_eq!(output.anomalies, expected);
}

#[test]
fn a_huge_length_is_malformed_once_and_half_a_message_holds_bounded_memory() {
    let mut huge = find(1);
    huge[..4].copy_from_slice(&i32::MAX.to_le_bytes());
    let decoded = decode(Protocol::Mongodb, Joined::AtStart, &[asks(1, huge)]);
    assert_eq!(decoded.anomalies, [(Anomaly::Malformed, 1)]);
    let mut lane = Lane::new(Joined::AtStart, LOOK);
    let mut output = Output::new(Options::default());
    let mut endless = find(1);
    endless[..4].copy_from_slice(&MAX_MESSAGE.to_le_bytes());
    for _ in 0..1000 {
        lane.feed(
            &Found::default(),
            1,
            &endless,
            |b| length_of(Direction::Request, b),
            &mut output,
            |_, _| panic!("no end"),
        );
    }
    assert!(
        lane.held_bytes() <= 2 * LOOK,
        "{} bytes held",
        lane.held_bytes()
    );
}

#[test]
fn other_protocols_are_refused() {
    for (name, request, response) in super::super::testing::foreign(Protocol::Mongodb) {
        assert_eq!(detect(Direction::Request, request), Verdict::No, "{name}");
        assert_eq!(
            detect(Direction::Response, response),
            Verdict::No,
            "{name} answer"
        );
    }
    assert_eq!(detect(Direction::Request, &find(1)), Verdict::Yes);
    assert_eq!(detect(Direction::Response, &ok(2, 1)), Verdict::Yes);
    assert_eq!(detect(Direction::Request, &find(1)[..10]), Verdict::Unsure);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100_000))]
    #[test]
    fn any_events_end_and_claim_no_more_than_they_were(
        events in events(vec![find(1), find(2), ok(9, 1), ok(9, 2),
            msg(3, 0, EXHAUST_ALLOWED, &doc(&[&int32("hello", 1)])),
            message(4, 0, OP_QUERY, &[&[0; 4][..], b"a.b\0", &[0; 8], &doc(&[])].concat())]),
        late: bool,
    ) {
        let joined = if late { Joined::Late } else { Joined::AtStart };
        survives(Protocol::Mongodb, joined, &events);
    }
}
