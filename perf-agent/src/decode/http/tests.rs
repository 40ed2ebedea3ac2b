use proptest::prelude::*;

use super::*;
use crate::decode::{
    Options,
    testing::{
        self, FOREIGN, Passing, Piece, answers, asks, cut_anywhere, decode_with, events, survives,
    },
};

/// Text and error of each exchange, and anomalies.
fn told(pieces: &[Piece]) -> Vec<String> {
    cut_anywhere(Protocol::Http, Joined::AtStart, pieces).lines()
}

#[test]
fn pipelined_requests_with_every_kind_of_body_are_paired_in_order() {
    let pieces = [
        asks(
            1,
            "GET /users/42?token=secret HTTP/1.1\r\nHost: a.example\r\n\r\nHEAD /big HTTP/1.1\r\n\r\n",
        ),
        asks(
            2,
            "POST /items HTTP/1.1\r\nContent-Length: 5\r\n\r\nGET /PUT /up/9 HTTP/1.1\r\n",
        ),
        asks(
            3,
            "Transfer-Encoding: gzip, chunked\r\n\r\n5;ext=1\r\nhello\r\n0\r\nTrailer: x\r\n\r\n",
        ),
        asks(
            4,
            "\r\nDELETE /items/7 HTTP/1.1\nHost: b\n\nOPTIONS * HTTP/1.1\r\n\r\n",
        ),
        answers(
            5,
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n",
        ),
        answers(
            6,
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n",
        ),
        answers(
            7,
            "4\r\n\r\n\r\n\r\nA\r\n0123456789\r\n0\r\nA: b\r\nC: d\r\n\r\n",
        ),
        answers(
            8,
            "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
        ),
        answers(9, "HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno"),
    ];
    assert_eq!(
        told(&pieces),
        [
            "GET /users/*",
            "HEAD /big",
            "POST /items",
            "PUT /up/* !503",
            "DELETE /items/*",
            "OPTIONS !404"
        ]
    );
    let decoded = cut_anywhere(Protocol::Http, Joined::AtStart, &pieces);
    let post = &decoded.exchanges[2];
    assert_eq!(
        (post.started_ns, post.first_byte_ns, post.last_byte_ns),
        (2, 6, 7)
    );
    let sum = |of| {
        let of_way = pieces.iter().filter(|p| p.0 == of);
        of_way.map(|p| p.2.len() as u64).sum::<u64>()
    };
    assert_eq!(
        decoded.decoded,
        [sum(Direction::Request), sum(Direction::Response)]
    );
}

#[test]
fn an_answer_may_come_before_the_request_has_ended_and_end_with_the_connection() {
    let pieces = [
        asks(
            1,
            "POST /upload HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n",
        ),
        answers(2, "HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n"),
        asks(3, "0123456789"),
        asks(4, "GET /old HTTP/1.0\r\n\r\n"),
        answers(
            5,
            "HTTP/1.0 200 OK\r\nX: a\r\n folded\r\nBad Header: x\r\n\r\nsome",
        ),
        answers(6, " body"),
    ];
    assert_eq!(told(&pieces), ["POST /upload !413", "GET /old"]);
    let decoded = cut_anywhere(Protocol::Http, Joined::AtStart, &pieces);
    let old = &decoded.exchanges[1];
    assert_eq!((old.first_byte_ns, old.last_byte_ns), (5, 6));
}

#[test]
fn another_protocol_behind_an_upgrade_is_named_and_left_alone() {
    let pieces = [
        asks(
            1,
            "GET /chat HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        ),
        answers(
            2,
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x01\x02",
        ),
        asks(3, "\x01\x02\x03"),
    ];
    assert_eq!(told(&pieces), ["GET /chat", "unsupported 1"]);
    let pieces = [
        asks(1, "CONNECT example.com:443 HTTP/1.1\r\n\r\n"),
        answers(2, "HTTP/1.1 407 Auth\r\nContent-Length: 1\r\n\r\nx"),
        asks(3, "CONNECT example.com:443 HTTP/1.1\r\n\r\n"),
        answers(4, "HTTP/1.1 200 Connection established\r\n\r\n"),
        asks(5, "\x16\x03\x01"),
    ];
    assert_eq!(told(&pieces), ["CONNECT !407", "CONNECT", "unsupported 1"]);
}

#[test]
fn malformed_messages_are_counted_once_and_the_next_is_found() {
    let pieces = [
        asks(1, "GET / HTTP/1.1\r\n\r\n"),
        answers(
            2,
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        ),
        answers(3, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        asks(4, "GET /next HTTP/1.1\r\n\r\n"),
        answers(5, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ];
    let decoded = decode_with(Protocol::Http, Joined::AtStart, Options::default(), &pieces);
    assert_eq!(
        decoded.lines(),
        [
            "GET /next",
            "orphan_answers 1",
            "unanswered 1",
            "malformed 1",
            "resynced 1"
        ]
    );
}

fn run(joined: Joined, passing: &[Passing<&str>]) -> Vec<String> {
    testing::run(&mut Http::new(joined), passing).lines()
}

#[test]
fn gaps_in_bodies_are_passed_over_and_over_boundaries_pair_nothing_wrongly() {
    use Direction::{Request, Response};
    let next = "GET /next HTTP/1.1\r\n\r\n";
    let empty = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let events = [
        (
            Request,
            1,
            Ok("PUT /a HTTP/1.1\r\nContent-Length: 1000\r\n\r\nxy"),
        ),
        (Request, 1, Err(998)),
        (
            Response,
            2,
            Ok("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n100\r\nab"),
        ),
        (Response, 2, Err(256)),
        (Response, 3, Ok("0\r\n\r\n")),
        (Request, 4, Ok(next)),
        (Response, 5, Ok(empty)),
    ];
    assert_eq!(run(Joined::AtStart, &events), ["PUT /a", "GET /next"]);
    // A head that is cut still names its request, and the next finds the boundary.
    let events = [
        (Request, 1, Ok("GET /a HTTP/1.1\r\nCookie: aaaa")),
        (Request, 1, Err(500)),
        (
            Response,
            2,
            Ok("HTTP/1.1 404 Not Found\r\nContent-Length: 500\r\n\r\n"),
        ),
        (Response, 2, Err(500)),
        (Request, 3, Ok(next)),
        (Response, 4, Ok(empty)),
    ];
    assert_eq!(
        run(Joined::AtStart, &events),
        ["GET /a !404", "GET /next", "resynced 1"]
    );
    // The rest of a long answer is not seen; the next request says that it ended.
    let events = [
        (Request, 1, Ok("GET /a HTTP/1.1\r\n\r\n")),
        (
            Response,
            2,
            Ok("HTTP/1.1 500 X\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nab"),
        ),
        (Response, 3, Err(500)),
        (Request, 4, Ok(next)),
        (Response, 5, Ok(empty)),
    ];
    assert_eq!(
        run(Joined::AtStart, &events),
        ["GET /a", "GET /next", "resynced 1"]
    );
    let late = [
        (Response, 1, Ok("the end of a body")),
        (Request, 2, Ok(next)),
        (Response, 3, Ok(empty)),
    ];
    assert_eq!(run(Joined::Late, &late), ["GET /next", "resynced 1"]);
}

#[test]
fn endless_heads_and_bodies_hold_bounded_memory() {
    let mut output = Output::new(Options::default());
    let heads = [
        (Direction::Request, "GET /"),
        (
            Direction::Request,
            "PUT / HTTP/1.1\r\nContent-Length: 9223372036854775807\r\n\r\n",
        ),
        (
            Direction::Request,
            "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffff\r\n",
        ),
        (
            Direction::Response,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
        ),
    ];
    for (direction, head) in heads {
        let mut http = Http::new(Joined::AtStart);
        http.bytes(direction, 1, head.as_bytes(), &mut output);
        for _ in 0..1000 {
            http.bytes(direction, 1, &[b'a'; 4096], &mut output);
        }
        let held: usize = http.ways.iter().map(|w| w.head.capacity()).sum();
        assert!(held <= 4 * MAX_HEAD, "{held} held");
    }
    assert!(size_of::<Http>() < 1024, "{}", size_of::<Http>());
}

#[test]
fn other_protocols_are_not_taken_for_http() {
    let caches: [&[u8]; 4] = [
        b"GET key\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        b"set a 0 0 1\r\nx\r\n",
        b"+OK\r\n",
    ];
    for bytes in FOREIGN.iter().chain(&caches) {
        for direction in [Direction::Request, Direction::Response] {
            let verdict = detect(direction, bytes);
            assert!(
                verdict < Verdict::Maybe,
                "{verdict:?} {direction:?} {bytes:?}"
            );
        }
    }
    assert_eq!(
        detect(Direction::Request, b"GET / HTTP/1.1\r\n"),
        Verdict::Yes
    );
    assert_eq!(detect(Direction::Request, b"GE"), Verdict::Unsure);
    assert_eq!(detect(Direction::Response, b"HTTP/1.0 200"), Verdict::Yes);
    assert_eq!(detect(Direction::Response, b"HTTP/2"), Verdict::No);
}

fn seeds() -> Vec<Vec<u8>> {
    [
        "GET /a/1 HTTP/1.1\r\nHost: a\r\n\r\nHEAD / HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nA: b\r\n\r\n",
        "CONNECT a:1 HTTP/1.1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        "HTTP/1.1 101 X\r\n\r\n",
    ]
    .map(|s| s.as_bytes().to_vec())
    .into()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100_000))]
    #[test]
    fn whatever_comes_is_survived(events in events(seeds()), late in any::<bool>()) {
        let joined = if late { Joined::Late } else { Joined::AtStart };
        survives(Protocol::Http, joined, &events);
    }
}
