use proptest::prelude::*;

use super::*;
use crate::decode::{
    Anomaly, Options,
    testing::{
        self, FOREIGN, Passing, Piece, answers, asks, cut_anywhere, decode_with, events, survives,
    },
};

/// Text, error, hits and misses of each exchange, with keys shown, and anomalies.
fn told(pieces: &[Piece]) -> Vec<String> {
    let whole = cut_anywhere(Protocol::Memcached, Joined::AtStart, pieces);
    assert!(
        whole
            .anomalies
            .iter()
            .all(|(what, _)| *what != Anomaly::Malformed)
    );
    let raw = Options { raw: true };
    decode_with(Protocol::Memcached, Joined::AtStart, raw, pieces).lines()
}

#[test]
fn text_commands_are_paired_and_lookups_counted_per_key() {
    let pieces = [
        asks(
            1,
            "set user:1 0 0 3\r\nb\r\n\r\nget user:1\r\nget a b user:1\r\n",
        ),
        asks(
            2,
            "add a 0 0 1 noreply\r\nx\r\ndelete a\r\nincr n 1\r\ngat 10 user:1 x\r\nfoo\r\n",
        ),
        answers(
            3,
            "STORED\r\nVALUE user:1 0 3\r\nb\r\n\r\nEND\r\nVALUE user:1 0 3\r\nb\r\n\r\nEND\r\n",
        ),
        answers(
            4,
            "DELETED\r\n5\r\nVALUE user:1 0 3\r\nabc\r\nEND\r\nERROR\r\n",
        ),
        asks(
            5,
            "stats\r\nstats reset\r\nversion\r\nset big 0 0 3\r\nabc\r\nverbosity 1\r\nquit\r\n",
        ),
        answers(
            6,
            "STAT pid 1\r\nSTAT get_hits 5\r\nEND\r\nRESET\r\nVERSION 1.6.18\r\n",
        ),
        answers(7, "SERVER_ERROR object too large for cache\r\nOK\r\n"),
    ];
    assert_eq!(
        told(&pieces),
        [
            "ADD a",
            "SET user:*",
            "GET user:* 1/0",
            "GET a 1/2",
            "DELETE a",
            "INCR n",
            "GAT user:* 1/1",
            "(unknown command) !ERROR",
            "QUIT",
            "STATS",
            "STATS",
            "VERSION",
            "SET big !SERVER_ERROR",
            "VERBOSITY",
        ]
    );
    let hashed = cut_anywhere(Protocol::Memcached, Joined::AtStart, &pieces[..1]);
    assert_eq!(hashed.exchanges, []);
    assert_eq!(hashed.count(Anomaly::Unanswered), 3);
}

#[test]
fn quiet_meta_commands_end_with_the_next_answer() {
    let pieces = [
        asks(
            1,
            "mg a v q k\r\nmg b v q k\r\nmg c v q O7\r\nmg d v q O8\r\nmn\r\n",
        ),
        answers(2, "VA 1 kb\r\nx\r\nVA 2 O8\r\nab\r\nMN\r\n"),
        asks(
            3,
            "mg a v\r\nmg z\r\nms s 2 T0\r\nhi\r\nmd s q\r\nma n\r\nme a\r\nms t S2\r\nhi\r\n",
        ),
        answers(4, "VA 0\r\n\r\nEN\r\nHD\r\nHD\r\nME a exp=-1\r\nNS\r\n"),
        asks(5, "ms s 2 q\r\nhi\r\nms s 2 q I\r\nhi\r\nmn\r\n"),
        answers(6, "NS\r\nMN\r\n"),
    ];
    assert_eq!(
        told(&pieces),
        [
            "MG a 0/1", "MG b 1/0", "MG c 0/1", "MG d 1/0", "MN", "MG a 1/0", "MG z 0/1", "MS s",
            "MD s", "MA n", "ME a", "MS t", "MS s", "MS s", "MN",
        ]
    );
}

/// A binary message.
fn binary(magic: u8, opcode: u8, status: u16, opaque: u32, parts: [&[u8]; 3]) -> Vec<u8> {
    let [extras, key, value] = parts;
    let mut bytes = vec![magic, opcode];
    bytes.extend((key.len() as u16).to_be_bytes());
    bytes.extend([extras.len() as u8, 0]);
    bytes.extend(status.to_be_bytes());
    let body = extras.len() + key.len() + value.len();
    bytes.extend((body as u32).to_be_bytes());
    bytes.extend(opaque.to_be_bytes());
    bytes.extend([0; 8]);
    for part in parts {
        bytes.extend(part);
    }
    bytes
}

fn sent(opcode: u8, opaque: u32, key: &[u8]) -> Vec<u8> {
    binary(0x80, opcode, 0, opaque, [b"", key, b""])
}

fn got(opcode: u8, status: u16, opaque: u32, value: &[u8]) -> Vec<u8> {
    binary(0x81, opcode, status, opaque, [b"", b"", value])
}

#[test]
fn binary_commands_are_paired_and_quiet_ones_end_with_the_next_answer() {
    let set = binary(0x80, 0x01, 0, 1, [&[0; 8], b"user:1", b"value"]);
    let setq = binary(0x80, 0x11, 0, 3, [&[0; 8], b"user:2", b"value"]);
    let pieces = [
        asks(1, [set, sent(0x00, 2, b"user:1"), setq].concat()),
        asks(
            1,
            [
                sent(0x09, 4, b"a"),
                sent(0x09, 5, b"b"),
                sent(0x0d, 6, b"c"),
            ]
            .concat(),
        ),
        asks(
            1,
            [
                sent(0x0a, 7, b""),
                sent(0x10, 8, b""),
                sent(0x00, 9, b"none"),
            ]
            .concat(),
        ),
        asks(
            1,
            [
                sent(0x04, 10, b"none"),
                sent(0x21, 11, b"PLAIN"),
                sent(0x77, 12, b""),
            ]
            .concat(),
        ),
        answers(
            2,
            [got(0x01, 0, 1, b""), got(0x00, 0, 2, b"value")].concat(),
        ),
        answers(2, [got(0x09, 0, 5, b"x"), got(0x0a, 0, 7, b"")].concat()),
        answers(3, [got(0x10, 0, 8, b"pid1"), got(0x10, 0, 8, b"")].concat()),
        answers(
            4,
            [
                got(0x00, 1, 9, b"Not found"),
                got(0x04, 1, 10, b"Not found"),
            ]
            .concat(),
        ),
        answers(
            4,
            [got(0x21, 0x20, 11, b"no"), got(0x77, 0x81, 12, b"")].concat(),
        ),
    ];
    assert_eq!(
        told(&pieces),
        [
            "SET user:*",
            "GET user:* 1/0",
            "SET user:*",
            "GET a 0/1",
            "GET b 1/0",
            "GET c 0/1",
            "NOOP",
            "STATS",
            "GET none 0/1",
            "DELETE none",
            "SASL AUTH !AUTH_ERROR",
            "(unknown command) !UNKNOWN_COMMAND",
        ]
    );
}

fn run(joined: Joined, passing: &[Passing<&[u8]>]) -> Vec<String> {
    testing::run(&mut Memcached::Unseen(joined), passing).lines()
}

#[test]
fn gaps_inside_values_are_passed_over_and_over_boundaries_pair_nothing_wrongly() {
    use Direction::{Request, Response};
    let events: &[Passing<&[u8]>] = &[
        (Request, 1, Ok(b"set a 0 0 1000\r\nab")),
        (Request, 1, Err(1000)),
        (Request, 1, Ok(b"get a\r\n")),
        (Response, 2, Ok(b"STORED\r\nVALUE a 0 1000\r\nab")),
        (Response, 3, Err(998)),
        (Response, 4, Ok(b"\r\nEND\r\n")),
    ];
    assert_eq!(run(Joined::AtStart, events), ["SET a", "GET a 1/0"]);
    let events: &[Passing<&[u8]>] = &[
        (Request, 1, Ok(b"get a\r\nget b\r\n")),
        (Response, 2, Ok(b"VALUE a 0 10\r\nab")),
        (Response, 2, Err(40)),
        (Response, 2, Ok(b"END\r\n")),
        (Request, 3, Ok(b"get c\r\n")),
        (Response, 4, Ok(b"END\r\n")),
    ];
    assert_eq!(
        run(Joined::AtStart, events),
        [
            "GET c 0/1",
            "orphan_answers 1",
            "unanswered 2",
            "resynced 1"
        ]
    );
    let late: &[Passing<&[u8]>] = &[
        (Response, 1, Ok(b"lue\r\nEND\r\n")),
        (Request, 2, Ok(b"get c\r\n")),
        (Response, 3, Ok(b"END\r\n")),
    ];
    assert_eq!(run(Joined::Late, late), ["GET c 0/1", "resynced 1"]);
    let get = sent(0x00, 2, b"user:1");
    let late: &[Passing<&[u8]>] = &[
        (Response, 1, Ok(&got(0x00, 0, 1, b"old"))),
        (Request, 2, Ok(&get)),
        (Response, 3, Ok(&got(0x00, 0, 2, b"new")[..20])),
        (Response, 3, Ok(&got(0x00, 0, 2, b"new")[20..])),
    ];
    assert_eq!(
        run(Joined::Late, late),
        ["GET user:* 1/0", "orphan_answers 1"]
    );
}

#[test]
fn endless_and_huge_messages_hold_bounded_memory() {
    let mut output = Output::new(Options::default());
    let heads: [(Direction, &[u8]); 4] = [
        (Direction::Request, b"get "),
        (Direction::Request, b"set a 0 0 2147483648\r\n"),
        (Direction::Response, b"VALUE a 0 2147483648\r\n"),
        (Direction::Response, b"STAT "),
    ];
    for (direction, head) in heads {
        let mut text = text::Text::new(Joined::AtStart);
        text.bytes(direction, 1, head, &mut output);
        for _ in 0..1000 {
            text.bytes(direction, 1, &[b'a'; 4096], &mut output);
        }
        assert!(text.held() <= 2 * text::KEEP + 1024, "{} held", text.held());
    }
    assert!(size_of::<text::Text>() + size_of::<binary::Binary>() < 1024);
}

#[test]
fn other_protocols_are_not_taken_for_memcached() {
    let http: [&[u8]; 4] = [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        b"$4\r\nPING\r\n",
    ];
    for bytes in FOREIGN.iter().chain(&http) {
        for direction in [Direction::Request, Direction::Response] {
            let verdict = detect(direction, bytes);
            assert!(
                verdict < Verdict::Maybe,
                "{verdict:?} {direction:?} {bytes:?}"
            );
        }
    }
    assert_eq!(detect(Direction::Request, b"get a\r\n"), Verdict::Yes);
    assert_eq!(detect(Direction::Request, b"ge"), Verdict::Unsure);
    assert_eq!(
        detect(Direction::Response, b"VALUE a 0 1\r\na"),
        Verdict::Yes
    );
    assert_eq!(detect(Direction::Request, &sent(0, 1, b"a")), Verdict::Yes);
    assert_eq!(detect(Direction::Response, &sent(0, 1, b"a")), Verdict::No);
}

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = [
        "get a b\r\nset a 0 0 3\r\nabc\r\nstats\r\nadd a 0 0 1 noreply\r\nx\r\n",
        "VALUE a 0 3\r\nabc\r\nEND\r\nSTORED\r\nSTAT a 1\r\nEND\r\n",
        "mg a v q k\r\nmg b v O1\r\nms a 2\r\nhi\r\nmn\r\n",
        "VA 1 ka\r\nx\r\nEN\r\nHD\r\nMN\r\n",
    ]
    .map(|s| s.as_bytes().to_vec())
    .into();
    seeds.push([sent(0x09, 1, b"a"), sent(0x0a, 2, b""), sent(0x10, 3, b"")].concat());
    seeds.push(
        [
            got(0x09, 0, 1, b"x"),
            got(0x0a, 0, 2, b""),
            got(0x10, 0, 3, b"x"),
        ]
        .concat(),
    );
    seeds
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100_000))]
    #[test]
    fn whatever_comes_is_survived(events in events(seeds()), late in any::<bool>()) {
        let joined = if late { Joined::Late } else { Joined::AtStart };
        survives(Protocol::Memcached, joined, &events);
    }
}
