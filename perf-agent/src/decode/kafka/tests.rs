use proptest::prelude::*;

use super::super::seek::Found;
use super::super::testing::{
    Decoded, Piece, answers, asks, cut_anywhere, decode, events, survives,
};
use super::super::{Anomaly, Options, Output, Protocol};
use super::*;

fn sized(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_be_bytes()[..], body].concat()
}

/// A request of client `app`.
fn request(key: i16, version: i16, id: u32, body: &[u8]) -> Vec<u8> {
    let head = [
        &key.to_be_bytes()[..],
        &version.to_be_bytes(),
        &id.to_be_bytes(),
        b"\0\x03app",
    ];
    sized(&[&head.concat(), body].concat())
}

fn answer(id: u32, body: &[u8]) -> Vec<u8> {
    sized(&[&id.to_be_bytes()[..], body].concat())
}

/// Produce version 7 to one topic.
fn produce(id: u32, acks: i16) -> Vec<u8> {
    let body = [
        b"\xff\xff",
        &acks.to_be_bytes()[..],
        b"\0\0\x75\x30\0\0\0\x01\0\x06orders\0\0\0\x01\0\0\0\0\0\0\0\x04data",
    ];
    request(0, 7, id, &body.concat())
}

fn produced(id: u32, code: i16) -> Vec<u8> {
    let body = [
        b"\0\0\0\x01\0\x06orders\0\0\0\x01\0\0\0\0",
        &code.to_be_bytes()[..],
        &[0; 28],
    ];
    answer(id, &body.concat())
}

fn run(pieces: &[Piece]) -> Decoded {
    cut_anywhere(Protocol::Kafka, Joined::AtStart, pieces)
}

#[test]
fn a_pipeline_of_produces_is_paired_by_id_with_the_code_of_its_first_partition() {
    let decoded = run(&[
        asks(10, [produce(1, -1), produce(2, 1)].concat()),
        answers(30, produced(1, 0)),
        answers(50, produced(2, 3)),
    ]);
    let expected = [
        ("Produce orders", None),
        ("Produce orders", Some("3 UNKNOWN_TOPIC_OR_PARTITION")),
    ];
    assert_eq!(decoded.texts(), expected);
    let times = |i: usize| {
        let e = &decoded.exchanges[i];
        (e.started_ns, e.first_byte_ns, e.last_byte_ns, e.queued_ns)
    };
    assert_eq!((times(0), times(1)), ((10, 30, 30, 0), (10, 50, 50, 20)));
    assert_eq!(decoded.anomalies, []);
}

#[test]
fn a_produce_without_acks_ends_with_itself() {
    let decoded = run(&[
        asks(1, produce(1, 0)),
        asks(2, produce(2, 1)),
        answers(3, produced(2, 0)),
    ]);
    let expected = [("Produce orders (acks=0)", None), ("Produce orders", None)];
    assert_eq!(decoded.texts(), expected);
}

#[test]
fn flexible_versions_are_read_and_topics_by_id_are_not_guessed() {
    // Tagged fields of the header: one of two bytes. Then replica, waits, limits, session.
    let head = [
        &b"\x01\x05\x02zz"[..],
        &[0; 25],
        b"\x03\x07orders\x00\x05other\x00",
    ]
    .concat();
    let by_id = [&b"\0"[..], &[0; 25], b"\x02", &[7; 16]].concat();
    let fetched = b"\0\0\0\0\0\0\x47\0\0\0\x01\x01\0";
    let decoded = run(&[
        asks(1, request(1, 12, 5, &head)),
        answers(9, answer(5, fetched)),
        asks(10, request(1, 13, 6, &by_id)),
        answers(11, answer(6, b"\0\0\0\0\0\0\0\0\0\0\x01\x01\0")),
    ]);
    let expected = [
        ("Fetch orders, ...", Some("71 INVALID_FETCH_SESSION_EPOCH")),
        ("Fetch", None),
    ];
    assert_eq!(decoded.texts(), expected);
}

#[test]
fn the_answer_to_api_versions_has_the_old_header_in_every_version() {
    let decoded = run(&[
        asks(1, request(18, 3, 0, b"\0\x04lib\x061.0.0\0")),
        answers(2, answer(0, b"\0\x23\0\0\0\0")),
    ]);
    let expected = [("ApiVersions", Some("35 UNSUPPORTED_VERSION"))];
    assert_eq!(decoded.texts(), expected);
}

#[test]
fn sasl_tokens_without_a_header_are_counted_until_a_request_comes() {
    let decoded = run(&[
        asks(1, request(17, 0, 1, b"\0\x05PLAIN")),
        answers(2, answer(1, b"\0\0\0\0\0\x01\0\x05PLAIN")),
        asks(3, sized(b"\0user\0secret")),
        answers(4, sized(b"")),
        asks(5, request(3, 1, 2, b"\xff\xff\xff\xff")),
        answers(6, answer(2, &[0; 12])),
    ]);
    let expected = [
        ("SaslHandshake", None),
        ("SaslToken", None),
        ("Metadata", None),
    ];
    assert_eq!(decoded.texts(), expected);
    assert_eq!(decoded.anomalies, []);
}

#[test]
fn joined_late_answers_are_known_by_their_requests_alone() {
    let pieces = [
        answers(1, b"the rest of a large fetch"),
        answers(2, produced(1, 0)),
        asks(3, &produce(2, 1)[20..]),
        asks(4, produce(3, 1)),
        answers(5, &produced(3, 0)[..4]),
        answers(6, &produced(3, 0)[4..]),
    ];
    let decoded = decode(Protocol::Kafka, Joined::Late, &pieces);
    assert_eq!(decoded.texts(), [("Produce orders", None)]);
    let times = &decoded.exchanges[0];
    assert_eq!(
        (times.started_ns, times.first_byte_ns, times.last_byte_ns),
        (4, 5, 6)
    );
    assert_eq!(decoded.anomalies, [(Anomaly::Resynced, 2)]);
}

#[test]
fn a_gap_over_answers_gives_up_the_requests_they_were_for() {
    let (mut output, mut decoder) = (Output::new(Options::default()), decoder(Joined::AtStart));
    for id in 1..=3 {
        decoder.bytes(Direction::Request, 1, &produce(id, 1), &mut output);
    }
    let first = produced(1, 0);
    decoder.bytes(Direction::Response, 2, &first[..30], &mut output);
    decoder.gap(
        Direction::Response,
        3,
        2 * first.len() as u64 - 30,
        &mut output,
    );
    decoder.bytes(Direction::Response, 4, &produced(3, 0), &mut output);
    assert_eq!((output.exchanges.len(), decoder.in_flight()), (2, 0));
    assert_eq!(
        output.anomalies,
        [(Anomaly::Resynced, 1), (Anomaly::Unanswered, 1)]
    );
}

#[test]
fn a_huge_size_is_malformed_once_and_half_a_message_holds_bounded_memory() {
    let mut huge = produce(1, 1);
    huge[..4].copy_from_slice(&i32::MAX.to_be_bytes());
    let decoded = decode(Protocol::Kafka, Joined::AtStart, &[asks(1, huge)]);
    assert_eq!(decoded.anomalies, [(Anomaly::Malformed, 1)]);
    let (mut lane, mut output) = (
        Lane::new(Joined::AtStart, LOOK),
        Output::new(Options::default()),
    );
    let mut endless = produce(1, 1);
    endless[..4].copy_from_slice(&MAX_REQUEST.to_be_bytes());
    for _ in 0..1000 {
        lane.feed(
            &Found::default(),
            1,
            &endless,
            |b| length_of(Direction::Request, false, b),
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
    for (name, request, response) in super::super::testing::foreign(Protocol::Kafka) {
        assert_eq!(detect(Direction::Request, request), Verdict::No, "{name}");
        assert!(
            detect(Direction::Response, response) <= Verdict::Unsure,
            "{name} answer"
        );
    }
    assert_eq!(detect(Direction::Request, &produce(1, 1)), Verdict::Yes);
    assert_eq!(
        detect(Direction::Request, &produce(1, 1)[..4]),
        Verdict::Unsure
    );
    assert_eq!(
        detect(Direction::Request, &produce(1, 1)[..30]),
        Verdict::Yes
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100_000))]
    #[test]
    fn any_events_end_and_claim_no_more_than_they_were(
        events in events(vec![produce(1, 1), produce(2, 0), produced(1, 3), produced(2, 0),
            request(17, 0, 3, b"\0\x05PLAIN"), request(18, 3, 4, b"\0\x04lib\x061.0.0\0"),
            request(1, 12, 5, &[&b"\0"[..], &[0; 25], b"\x03\x07orders\x00"].concat()),
            answer(5, b"\0\0\0\0\0\0\0\0\0\0\x01\x01\0")]),
        late: bool,
    ) {
        let joined = if late { Joined::Late } else { Joined::AtStart };
        survives(Protocol::Kafka, joined, &events);
    }
}
