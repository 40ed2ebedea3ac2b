use proptest::prelude::*;

use super::super::testing::{
    Decoded, Piece, answers, asks, cut_anywhere, decode, events, survives,
};
use super::super::{Options, Protocol};
use super::frame::PADDED;
use super::*;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A literal, inserted into the table.
fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    [&[0x40, name.len() as u8], name, &[value.len() as u8], value].concat()
}

fn headers(stream: u32, flags: u8, block: &[u8]) -> Vec<u8> {
    frame(HEADERS, flags | END_HEADERS, stream, block)
}

fn data(stream: u32, flags: u8, bytes: &[u8]) -> Vec<u8> {
    frame(DATA, flags, stream, bytes)
}

fn settings() -> Vec<u8> {
    frame(SETTINGS, 0, 0, b"\0\x03\0\0\0\x64")
}

/// A gRPC call whose path and type go into the table: they are 63 and 62 afterwards.
fn call(stream: u32) -> Vec<u8> {
    let path = literal(b":path", b"/shop.v1.Orders/Get");
    let kind = literal(b"content-type", b"application/grpc");
    headers(stream, 0, &[&b"\x83\x86"[..], &path, &kind].concat())
}

fn call_again(stream: u32) -> Vec<u8> {
    headers(stream, 0, b"\x83\x86\xbf\xbe")
}

/// GET of a path with an id, without a body.
fn get(stream: u32) -> Vec<u8> {
    headers(stream, END_STREAM, b"\x82\x86\x04\x0a/orders/42")
}

fn opening() -> Vec<u8> {
    [PREFACE, &settings()].concat()
}

fn run(joined: Joined, pieces: &[Piece]) -> Decoded {
    cut_anywhere(Protocol::Http2, joined, pieces)
}

#[test]
fn grpc_streams_end_in_any_order_with_the_status_of_their_trailers() {
    let trailers = |status: &[u8]| literal(b"grpc-status", status);
    let decoded = run(
        Joined::AtStart,
        &[
            asks(5, opening()),
            answers(
                6,
                [settings(), frame(SETTINGS, frame::ACK, 0, b"")].concat(),
            ),
            asks(10, [call(1), data(1, END_STREAM, b"abc")].concat()),
            asks(20, [call_again(3), data(3, END_STREAM, b"abc")].concat()),
            answers(30, headers(3, 0, b"\x88")),
            answers(40, headers(1, 0, b"\x88")),
            answers(
                50,
                [data(3, 0, b"xyz"), headers(3, END_STREAM, &trailers(b"5"))].concat(),
            ),
            answers(
                60,
                [data(1, 0, b"xyz"), headers(1, END_STREAM, &trailers(b"0"))].concat(),
            ),
        ],
    );
    let text = "POST /shop.v1.Orders/Get";
    assert_eq!(decoded.texts(), [(text, Some("grpc-5")), (text, None)]);
    let times = |i: usize| {
        let e = &decoded.exchanges[i];
        (e.started_ns, e.first_byte_ns, e.last_byte_ns, e.queued_ns)
    };
    assert_eq!((times(0), times(1)), ((20, 30, 50, 0), (10, 40, 60, 0)));
    assert_eq!(decoded.anomalies, []);
}

#[test]
fn other_requests_are_method_and_route_and_statuses_from_400_on_are_errors() {
    let decoded = run(
        Joined::AtStart,
        &[
            asks(1, [opening(), get(1), get(3)].concat()),
            answers(2, [settings(), headers(1, 0, b"\x48\x03103")].concat()),
            answers(
                3,
                [headers(1, 0, b"\x88"), data(1, END_STREAM, b"{}")].concat(),
            ),
            answers(4, headers(3, END_STREAM, b"\x8d")),
        ],
    );
    let expected = [("GET /orders/*", None), ("GET /orders/*", Some("404"))];
    assert_eq!(decoded.texts(), expected);
    assert_eq!(decoded.exchanges[0].first_byte_ns, 3);
}

#[test]
fn padding_priority_and_continuation_are_read_through() {
    let block = b"\x82\x86\x04\x02/a";
    let padded = [&b"\x03\0\0\0\0\x10"[..], &block[..3], b"\0\0\0"].concat();
    let split = [
        frame(
            HEADERS,
            END_STREAM | PADDED | frame::PRIORITY_FLAG,
            1,
            &padded,
        ),
        frame(CONTINUATION, 0, 1, &block[3..5]),
        frame(CONTINUATION, END_HEADERS, 1, &block[5..]),
    ];
    let decoded = run(
        Joined::AtStart,
        &[
            asks(1, [opening(), split.concat()].concat()),
            answers(3, [settings(), headers(1, END_STREAM, b"\x89")].concat()),
        ],
    );
    assert_eq!(decoded.texts(), [("GET /a", None)]);
    assert_eq!(decoded.anomalies, []);
}

#[test]
fn resets_of_either_side_end_a_stream_and_what_still_comes_of_it_is_no_orphan() {
    let decoded = run(
        Joined::AtStart,
        &[
            asks(
                1,
                [opening(), call(1), call_again(3), call_again(5)].concat(),
            ),
            asks(4, frame(RST_STREAM, 0, 1, &8u32.to_be_bytes())),
            answers(
                5,
                [settings(), headers(1, 0, b"\x88"), data(1, END_STREAM, b"")].concat(),
            ),
            answers(6, frame(RST_STREAM, 0, 3, &7u32.to_be_bytes())),
            answers(7, frame(GOAWAY, 0, 0, b"\0\0\0\x03\0\0\0\0")),
        ],
    );
    let text = "POST /shop.v1.Orders/Get";
    let expected = [
        (text, Some("RST_STREAM CANCEL")),
        (text, Some("RST_STREAM REFUSED_STREAM")),
    ];
    assert_eq!(decoded.texts(), expected);
    assert_eq!(decoded.anomalies, [(Anomaly::Unanswered, 1)]);
}

#[test]
fn a_pushed_answer_is_an_exchange_from_its_promise_on() {
    let promise = [&2u32.to_be_bytes()[..], b"\x82\x86\x04\x02/p"].concat();
    let decoded = run(
        Joined::AtStart,
        &[
            asks(1, [opening(), get(1)].concat()),
            answers(
                2,
                [settings(), frame(PUSH_PROMISE, END_HEADERS, 1, &promise)].concat(),
            ),
            answers(3, headers(1, END_STREAM, b"\x88")),
            answers(4, headers(2, END_STREAM, b"\x88")),
        ],
    );
    assert_eq!(decoded.texts(), [("GET /orders/*", None), ("GET /p", None)]);
    assert_eq!(decoded.exchanges[1].started_ns, 2);
}

#[test]
fn joined_late_a_request_is_named_by_what_is_known_and_recovers_with_literals() {
    let decoded = run(
        Joined::Late,
        &[
            answers(1, headers(7, END_STREAM, b"\x88")),
            asks(2, call_again(9)),
            answers(3, headers(9, END_STREAM, b"\x88")),
            asks(4, headers(11, 0, b"\xc1\xc0\xbf\xbe")),
            answers(5, headers(11, END_STREAM, b"\x88")),
            asks(6, call(13)),
            asks(7, call_again(15)),
            answers(
                8,
                [
                    headers(15, END_STREAM, b"\x88"),
                    headers(13, END_STREAM, b"\xc0"),
                ]
                .concat(),
            ),
        ],
    );
    let call = "POST /shop.v1.Orders/Get";
    let texts: Vec<&str> = decoded.texts().iter().map(|t| t.0).collect();
    assert_eq!(texts, ["POST ?", "(headers unseen)", call, call]);
    // The last of them has a field that may be its status.
    let expected = [(Anomaly::Orphan, 1), (Anomaly::StatusUnseen, 1)];
    assert_eq!(decoded.anomalies, expected);
}

#[test]
fn joined_late_a_status_that_was_sent_before_is_counted_as_unseen() {
    let unseen = b"\xbe";
    let ends = |request: Vec<u8>, fields: &[u8]| {
        let pieces = [asks(1, request), answers(2, headers(9, END_STREAM, fields))];
        let decoded = run(Joined::Late, &pieces);
        assert_eq!(decoded.exchanges.len(), 1);
        assert_eq!(decoded.exchanges[0].error, None);
        decoded.count(Anomaly::StatusUnseen)
    };
    // Trailers, and an answer of trailers alone, to what may be a call of gRPC.
    assert_eq!(ends(call_again(9), unseen), 1);
    assert_eq!(ends(call(9), unseen), 1);
    assert_eq!(ends(call(9), &[&b"\x88"[..], unseen].concat()), 1);
    // The status of a page is there; and one of gRPC.
    assert_eq!(ends(get(9), &[&b"\x88"[..], unseen].concat()), 0);
    let good = [unseen, &literal(b"grpc-status", b"0")[..]].concat();
    assert_eq!(ends(call(9), &good), 0);
}

#[test]
fn joined_late_a_path_with_an_id_is_folded_though_its_content_type_is_unseen() {
    // The content type refers to an entry that was not seen.
    let block = [&b"\x82\x86\x04\x08/nope/77\xc3"[..]].concat();
    let decoded = run(
        Joined::Late,
        &[
            asks(1, headers(9, END_STREAM, &block)),
            answers(2, headers(9, END_STREAM, b"\x88")),
        ],
    );
    assert_eq!(decoded.texts(), [("GET /nope/*", None)]);
}

#[test]
fn a_gap_in_headers_forgets_the_table_and_one_in_data_does_not() {
    for (gap_in_headers, expected) in [(false, "POST /shop.v1.Orders/Get"), (true, "POST ?")] {
        let (mut output, mut decoder) = (Output::new(Options::default()), decoder(Joined::AtStart));
        let ask = |decoder: &mut Box<dyn Decoder + Send>, bytes: &[u8], output: &mut Output| {
            decoder.bytes(Direction::Request, 1, bytes, output);
        };
        ask(&mut decoder, &opening(), &mut output);
        ask(&mut decoder, &call(1), &mut output);
        let cut = if gap_in_headers {
            call_again(3)
        } else {
            data(1, 0, &[0; 100])
        };
        ask(&mut decoder, &cut[..10], &mut output);
        decoder.gap(Direction::Request, 2, cut.len() as u64 - 10, &mut output);
        ask(&mut decoder, &call_again(5), &mut output);
        decoder.bytes(
            Direction::Response,
            9,
            &headers(5, END_STREAM, b"\x88"),
            &mut output,
        );
        let texts: Vec<&str> = output
            .exchanges
            .iter()
            .map(|e| output.text_of(e.text))
            .collect();
        assert_eq!(texts, [expected]);
        assert_eq!(output.anomalies, []);
    }
}

#[test]
fn streams_that_ended_in_a_gap_are_given_up_with_the_next_one_and_pair_with_nothing() {
    let (mut output, mut decoder) = (Output::new(Options::default()), decoder(Joined::AtStart));
    decoder.bytes(
        Direction::Request,
        1,
        &[opening(), call(1), call_again(3)].concat(),
        &mut output,
    );
    decoder.bytes(Direction::Response, 2, &settings(), &mut output);
    decoder.gap(Direction::Response, 3, 50, &mut output);
    decoder.bytes(Direction::Response, 4, &headers(3, 0, b"\x88"), &mut output);
    decoder.gap(Direction::Response, 5, 50, &mut output);
    assert_eq!((output.exchanges.len(), decoder.in_flight()), (0, 1));
    decoder.bytes(
        Direction::Response,
        6,
        &headers(3, END_STREAM, b"\xbe"),
        &mut output,
    );
    assert_eq!((output.exchanges.len(), decoder.in_flight()), (1, 0));
    let expected = [
        (Anomaly::Resynced, 1),
        (Anomaly::Unanswered, 1),
        (Anomaly::Resynced, 1),
        (Anomaly::StatusUnseen, 1),
    ];
    assert_eq!(output.anomalies, expected);
}

#[test]
fn after_an_upgrade_the_answer_to_the_first_request_is_an_orphan() {
    let switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n";
    let decoded = run(
        Joined::AtStart,
        &[
            answers(1, [&switch[..], &settings()].concat()),
            asks(2, [opening(), get(3)].concat()),
            answers(3, headers(3, END_STREAM, b"\x88")),
        ],
    );
    assert_eq!(decoded.texts(), [("GET /orders/*", None)]);
    let mut output = Output::new(Options::default());
    let mut decoder = decoder(Joined::AtStart);
    decoder.bytes(Direction::Response, 1, switch, &mut output);
    decoder.bytes(
        Direction::Response,
        2,
        &headers(1, END_STREAM, b"\x88"),
        &mut output,
    );
    assert_eq!(output.anomalies, [(Anomaly::Orphan, 1)]);
}

#[test]
fn a_frame_that_cannot_be_is_malformed_once_and_endless_ones_hold_bounded_memory() {
    let bad = [opening(), vec![0xff; 40]].concat();
    let decoded = decode(Protocol::Http2, Joined::AtStart, &[asks(1, bad)]);
    assert_eq!(decoded.anomalies, [(Anomaly::Malformed, 1)]);
    let mut state = State::new(Joined::AtStart);
    let mut output = Output::new(Options::default());
    let endless = frame(CONTINUATION, 0, 1, &[0; 16384]);
    let open = frame(HEADERS, 0, 1, b"\x82");
    for bytes in std::iter::once(&open).chain(std::iter::repeat_n(&endless, 100)) {
        let m = Message {
            bytes,
            length: bytes.len() as u64,
            captured: bytes.len() as u64,
            first_ns: 1,
            last_ns: 1,
        };
        state.message(Direction::Request, &m, &mut output);
    }
    let held = state.open[0]
        .as_ref()
        .map_or(0, |open| open.bytes.capacity());
    assert!(held > 0 && held <= 2 * MAX_BLOCK, "{held} bytes held");
    let mut lane = Lane::new(Joined::AtStart, KEEP);
    let huge = [&b"\xff\xff\xff\x01\x04\0\0\0\x01"[..], &[0; 5000]].concat();
    for _ in 0..100 {
        let found = super::super::seek::Found::default();
        let length = |b: &[u8]| length_of(Direction::Request, b);
        lane.feed(&found, 1, &huge, length, &mut output, |_, _| {
            panic!("no end")
        });
    }
    assert!(
        lane.held_bytes() <= 2 * KEEP,
        "{} bytes held",
        lane.held_bytes()
    );
}

#[test]
fn other_protocols_are_refused() {
    for (name, request, response) in super::super::testing::foreign(Protocol::Http2) {
        assert_eq!(detect(Direction::Request, request), Verdict::No, "{name}");
        assert_eq!(
            detect(Direction::Response, response),
            Verdict::No,
            "{name} answer"
        );
    }
    assert_eq!(detect(Direction::Request, PREFACE), Verdict::Yes);
    assert_eq!(detect(Direction::Request, b"PRI * HT"), Verdict::Unsure);
    assert_eq!(detect(Direction::Request, &call(5)), Verdict::Yes);
    assert_eq!(detect(Direction::Response, &settings()), Verdict::Yes);
    assert_eq!(
        detect(Direction::Response, &data(5, 0, b"abc")),
        Verdict::Maybe
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100_000))]
    #[test]
    fn any_events_end_and_claim_no_more_than_they_were(
        events in events(vec![opening(), settings(), call(1), call_again(3), get(5),
            headers(1, END_STREAM, b"\x88"), headers(3, 0, b"\x8d\xbe"), data(3, END_STREAM, b"xy"),
            frame(HEADERS, 0, 7, b"\x82"), frame(CONTINUATION, END_HEADERS, 7, b"\x84"),
            frame(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\x02\x82\x84"),
            frame(RST_STREAM, 0, 5, &[0; 4]), frame(GOAWAY, 0, 0, &[0; 8])]),
        late: bool,
    ) {
        let joined = if late { Joined::Late } else { Joined::AtStart };
        survives(Protocol::Http2, joined, &events);
    }
}

#[test]
fn a_stream_whose_answer_has_begun_is_in_flight_and_not_awaited() {
    let mut decoder = decoder(Joined::AtStart);
    let mut output = Output::new(Options::default());
    let mut passes = |direction, bytes: Vec<u8>| {
        decoder.bytes(direction, 10, &bytes, &mut output);
        (decoder.in_flight(), decoder.is_awaited())
    };
    let asked = [opening(), get(1)].concat();
    assert_eq!(passes(Direction::Request, asked), (1, true));
    let begun = [settings(), headers(1, 0, b"\x88")].concat();
    assert_eq!(passes(Direction::Response, begun), (1, false));
    assert_eq!(passes(Direction::Request, get(3)), (2, true));
    assert_eq!(
        passes(Direction::Response, headers(3, 0, b"\x88")),
        (2, false)
    );
    assert_eq!(
        passes(Direction::Response, data(3, END_STREAM, b"")),
        (1, false)
    );
}

#[test]
fn what_a_client_sends_beside_requests_begins_none() {
    const WINDOW_UPDATE: u8 = 8;
    let mut decoder = decoder(Joined::AtStart);
    let mut output = Output::new(Options::default());
    let mut reads = |bytes: &[u8]| {
        decoder.bytes(Direction::Request, 10, bytes, &mut output);
        decoder.is_at_boundary()
    };
    assert!(reads(&opening()));
    let credit = frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]);
    assert!(reads(&credit));
    assert!(!reads(&credit[..7]));
    assert!(reads(&credit[7..]));
    assert!(!reads(&frame(HEADERS, END_STREAM, 1, b"\x82\x86")));
    assert!(!reads(&frame(CONTINUATION, END_HEADERS, 1, b"\x84")));
    assert!(!reads(&credit));
    let answer = [settings(), headers(1, END_STREAM, b"\x89")].concat();
    decoder.bytes(Direction::Response, 11, &answer, &mut output);
    assert!(decoder.is_at_boundary());
}
