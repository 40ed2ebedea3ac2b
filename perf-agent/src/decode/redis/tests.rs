use proptest::prelude::*;

use super::*;
use crate::decode::{
    Options,
    testing::{
        self, Decoded, Passing, Piece, answers, asks, cut_anywhere, decode, decode_with, events,
        survives,
    },
};

/// A command as clients send it.
fn command(words: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend(format!("${}\r\n{word}\r\n", word.len()).bytes());
    }
    bytes
}

fn commands(lines: &[&str]) -> Vec<u8> {
    let words = lines.iter().map(|l| l.split(' ').collect::<Vec<_>>());
    words.flat_map(|w| command(&w)).collect()
}

fn read(pieces: &[Piece]) -> Decoded {
    cut_anywhere(Protocol::Redis, Joined::AtStart, pieces)
}

/// Text, error, hits and misses of each exchange, with keys shown.
fn told(pieces: &[Piece]) -> Vec<String> {
    read(pieces);
    let raw = Options { raw: true };
    let decoded = decode_with(Protocol::Redis, Joined::AtStart, raw, pieces);
    decoded.lines()
}

#[test]
fn a_pipeline_is_paired_in_order_with_times_and_keys_leave_as_hashes() {
    let decoded = read(&[
        asks(10, commands(&["SET user:1:name Bob", "get user:1:name"])),
        asks(12, commands(&["INCR hits", "PING"])),
        answers(20, "+OK\r\n$3\r\nBob\r\n"),
        answers(30, "-WRONGTYPE Operation against a key\r\n+PONG\r\n"),
    ]);
    assert_eq!(
        decoded.texts(),
        [
            ("SET key#db799af6", None),
            ("GET key#db799af6", None),
            ("INCR key#41723430", Some("WRONGTYPE")),
            ("PING", None)
        ]
    );
    let times = decoded.exchanges.iter();
    let times: Vec<_> = times
        .map(|e| (e.started_ns, e.first_byte_ns, e.last_byte_ns, e.queued_ns))
        .collect();
    assert_eq!(
        times,
        [
            (10, 20, 20, 0),
            (10, 20, 20, 10),
            (12, 30, 30, 8),
            (12, 30, 30, 18)
        ]
    );
    assert_eq!((decoded.exchanges[1].hits, decoded.anomalies.len()), (1, 0));
    let sent = commands(&[
        "SET user:1:name Bob",
        "get user:1:name",
        "INCR hits",
        "PING",
    ])
    .len();
    assert_eq!(decoded.decoded, [sent as u64, 14 + 43]);
}

#[test]
fn commands_are_named_with_subcommand_and_the_pattern_of_their_first_key() {
    let sent = commands(&[
        "CONFIG GET maxmemory",
        "client no-evict on",
        "CONFIG hunter2",
        "XADD events:7 * a b",
        "XREAD COUNT 2 STREAMS events:7 0",
        "EVAL return 1 queue:9 arg",
        "EVAL return 0 secret",
        "BLMPOP 0 2 list:1 list:2 LEFT",
        "OBJECT ENCODING user:5",
        "BITOP AND dst:1 src:1",
        "FT.SEARCH idx:3 hello",
        "SECRET.THING a",
        "AUTH bob hunter2",
    ]);
    let replies = ":1\r\n".repeat(13);
    assert_eq!(
        told(&[asks(1, sent), answers(2, replies)]),
        [
            "CONFIG GET",
            "CLIENT NO-EVICT",
            "CONFIG ?",
            "XADD events:*",
            "XREAD events:*",
            "EVAL queue:*",
            "EVAL",
            "BLMPOP list:*",
            "OBJECT ENCODING user:*",
            "BITOP dst:*",
            "FT.SEARCH idx:*",
            "(unknown command)",
            "AUTH",
        ]
    );
}

#[test]
fn hits_and_misses_are_told_from_answers() {
    let sent = commands(&[
        "GET a",
        "GET b",
        "MGET a b c",
        "HMGET h x y",
        "HMGET h x y",
        "EXISTS a b c",
        "TTL a",
        "TYPE a",
        "LRANGE l 0 -1",
        "SMEMBERS s",
        "GETRANGE a 0 1",
        "SET a b",
        "GET a",
        "GET a",
    ]);
    let replies = "$1\r\nx\r\n$-1\r\n*3\r\n$1\r\nx\r\n$-1\r\n$0\r\n\r\n*2\r\n$-1\r\n$1\r\ny\r\n\
        *2\r\n$-1\r\n$-1\r\n:2\r\n:-2\r\n+none\r\n*0\r\n~1\r\n$1\r\na\r\n$2\r\nab\r\n+OK\r\n_\r\n-ERR x\r\n";
    assert_eq!(
        told(&[asks(1, sent), answers(2, replies)]),
        [
            "GET a 1/0",
            "GET b 0/1",
            "MGET a 2/1",
            "HMGET h 1/0",
            "HMGET h 0/1",
            "EXISTS a 2/1",
            "TTL a 0/1",
            "TYPE a 0/1",
            "LRANGE l 0/1",
            "SMEMBERS s 1/0",
            "GETRANGE a 1/0",
            "SET a",
            "GET a 0/1",
            "GET a !ERR",
        ]
    );
}

#[test]
fn commands_of_a_transaction_count_when_exec_executes_them_with_its_outcome() {
    let sent = commands(&["MULTI", "GET a", "INCR b", "HGETALL c", "EXEC", "PING"]);
    let replies = "+OK\r\n+QUEUED\r\n+QUEUED\r\n+QUEUED\r\n*3\r\n$-1\r\n-WRONGTYPE x\r\n\
        *2\r\n$1\r\nf\r\n*1\r\n:5\r\n+PONG\r\n";
    assert_eq!(
        told(&[asks(1, sent), answers(2, replies)]),
        [
            "MULTI",
            "GET a 0/1",
            "INCR b !WRONGTYPE",
            "HGETALL c 1/0",
            "EXEC",
            "PING"
        ]
    );
    let sent = commands(&[
        "MULTI", "GET a", "DISCARD", "MULTI", "GET a", "NOSUCH", "EXEC", "WATCH k", "MULTI",
        "GET a", "EXEC", "MULTI", "EXEC",
    ]);
    let replies = "+OK\r\n+QUEUED\r\n+OK\r\n+OK\r\n+QUEUED\r\n-ERR unknown\r\n-EXECABORT x\r\n+OK\r\n\
        +OK\r\n+QUEUED\r\n*-1\r\n+OK\r\n*0\r\n";
    assert_eq!(
        told(&[asks(1, sent), answers(2, replies)]),
        [
            "MULTI",
            "DISCARD",
            "MULTI",
            "(unknown command) !ERR",
            "EXEC !EXECABORT",
            "WATCH k",
            "MULTI",
            "EXEC",
            "MULTI",
            "EXEC",
        ]
    );
    // Joined behind its first command: the known ones are the last.
    let pieces = [
        asks(1, commands(&["GET a", "EXEC"])),
        answers(2, "+QUEUED\r\n*2\r\n:1\r\n$1\r\nx\r\n"),
    ];
    let decoded = decode(Protocol::Redis, Joined::Late, &pieces);
    assert_eq!(decoded.exchanges.len(), 2);
    assert_eq!(decoded.exchanges[0].hits, 1);
    assert_eq!(decoded.anomalies, [(Anomaly::Orphan, 1)]);
}

#[test]
fn subscriptions_are_answered_per_channel_and_pushes_answer_nothing() {
    let message = "*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$2\r\nhi\r\n";
    let frame =
        |word: &str, n: u32| format!("*3\r\n${}\r\n{word}\r\n$1\r\na\r\n:{n}\r\n", word.len());
    let pieces = [
        asks(1, commands(&["SUBSCRIBE a b"])),
        answers(2, frame("subscribe", 1) + &frame("subscribe", 2) + message),
        answers(3, message),
        asks(
            4,
            commands(&["PSUBSCRIBE p*", "PING", "UNSUBSCRIBE", "PUNSUBSCRIBE p*"]),
        ),
        answers(
            5,
            frame("psubscribe", 3) + message + "*2\r\n$4\r\npong\r\n$0\r\n\r\n",
        ),
        answers(6, frame("unsubscribe", 2) + &frame("unsubscribe", 1)),
        answers(7, frame("punsubscribe", 0)),
        asks(8, commands(&["LRANGE l 0 1"])),
        answers(9, "*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$2\r\nhi\r\n"),
    ];
    let expected = [
        "SUBSCRIBE",
        "PSUBSCRIBE",
        "PING",
        "UNSUBSCRIBE",
        "PUNSUBSCRIBE",
    ];
    assert_eq!(told(&pieces)[..5], expected);
    assert_eq!(told(&pieces)[5..], ["LRANGE l 1/0"]);
    let three = [
        asks(
            1,
            commands(&["HELLO 3", "CLIENT TRACKING ON", "GET a", "SUBSCRIBE a"]),
        ),
        answers(
            2,
            "%1\r\n$5\r\nproto\r\n:3\r\n+OK\r\n>2\r\n+invalidate\r\n*1\r\n$1\r\na\r\n$1\r\nx\r\n",
        ),
        answers(
            3,
            ">3\r\n+message\r\n+a\r\n+b\r\n>3\r\n+subscribe\r\n+a\r\n:1\r\n>3\r\n+message\r\n+a\r\n+b\r\n",
        ),
    ];
    assert_eq!(
        told(&three),
        ["HELLO", "CLIENT TRACKING", "GET a 1/0", "SUBSCRIBE"]
    );
    let monitor = [
        asks(1, "MONITOR\r\n"),
        answers(
            2,
            "+OK\r\n+1339518083.107412 [0 127.0.0.1:60866] \"keys\" \"*\"\r\n",
        ),
        answers(3, "+1339518087.1 [0 127.0.0.1:60866] \"ping\"\r\n"),
    ];
    assert_eq!(told(&monitor), ["MONITOR"]);
}

#[test]
fn every_type_of_reply_ends_where_it_ends() {
    let replies = [
        "|1\r\n+ttl\r\n:3600\r\n$1\r\nx\r\n",
        "*2\r\n|1\r\n+a\r\n*2\r\n+b\r\n+c\r\n:1\r\n*2\r\n*0\r\n*-1\r\n",
        "(3492890328409238509324850943850943825024385\r\n",
        "=15\r\ntxt:Some string\r\n",
        "!21\r\nSYNTAX invalid syntax\r\n",
        "$?\r\n;4\r\nHell\r\n;1\r\no\r\n;0\r\n",
        "*?\r\n:1\r\n*?\r\n%1\r\n+a\r\n+b\r\n.\r\n$3\r\n.\r\n\r\n.\r\n",
        ",3.14\r\n",
        "#t\r\n",
        "%2\r\n+a\r\n~2\r\n:1\r\n:2\r\n+b\r\n_\r\n",
    ];
    let sent = commands(&["ECHO x"; 10]);
    let mut pieces = vec![asks(1, sent)];
    for (at, reply) in replies.iter().enumerate() {
        pieces.push(answers(10 + at as u64, reply));
    }
    let decoded = read(&pieces);
    let ends: Vec<u64> = decoded.exchanges.iter().map(|e| e.last_byte_ns).collect();
    assert_eq!(ends, (10..20).collect::<Vec<u64>>());
    assert_eq!(decoded.texts()[4], ("ECHO", Some("SYNTAX")));
    assert_eq!(decoded.anomalies, []);
}

#[test]
fn what_is_not_answered_ends_with_its_request() {
    let pieces = [
        asks(
            1,
            commands(&["CLIENT REPLY OFF", "SET a 1", "CLIENT REPLY ON", "GET a"]),
        ),
        answers(2, "+OK\r\n$1\r\n1\r\n"),
        asks(3, commands(&["CLIENT REPLY SKIP", "INCR a", "PING"])),
        answers(4, "+PONG\r\n"),
    ];
    assert_eq!(
        told(&pieces),
        [
            "CLIENT REPLY",
            "SET a",
            "CLIENT REPLY",
            "GET a 1/0",
            "CLIENT REPLY",
            "INCR a",
            "PING"
        ]
    );
}

#[test]
fn inline_commands_and_empty_ones_are_read() {
    let pieces = [
        asks(1, "PING\r\n\r\n*0\r\nget  \"user:1\"\nfoo bar\r\n*-1\r\n"),
        answers(2, "+PONG\r\n$-1\r\n-ERR unknown command\r\n"),
    ];
    assert_eq!(
        told(&pieces),
        ["PING", "GET user:* 0/1", "(unknown command) !ERR"]
    );
}

#[test]
fn a_replication_link_is_named_and_left_alone() {
    let pieces = [
        asks(1, commands(&["PING", "REPLCONF listening-port 6380"])),
        answers(2, "+PONG\r\n+OK\r\n"),
        asks(3, commands(&["PSYNC ? -1"])),
        answers(4, "+FULLRESYNC x 0\r\n$88\r\nREDIS0009"),
    ];
    assert_eq!(told(&pieces), ["PING", "REPLCONF", "unsupported 1"]);
}

fn run(joined: Joined, passing: &[Passing<&[u8]>]) -> Decoded {
    testing::run(&mut Redis::new(joined), passing)
}

#[test]
fn payload_that_was_not_captured_is_passed_over_by_its_length() {
    use Direction::{Request, Response};
    let decoded = run(
        Joined::AtStart,
        &[
            (
                Request,
                1,
                Ok(b"*3\r\n$3\r\nSET\r\n$6\r\nuser:1\r\n$1000\r\nabc"),
            ),
            (Request, 2, Err(999)),
            (Request, 3, Ok(&commands(&["GET user:1"]))),
            (Response, 4, Ok(b"+OK\r\n$1000\r\nab")),
            (Response, 5, Err(998)),
            (Response, 6, Ok(b"\r\n")),
        ],
    );
    assert_eq!(
        decoded.texts(),
        [("SET user:*", None), ("GET user:*", None)]
    );
    assert_eq!(decoded.exchanges[1].last_byte_ns, 6);
    assert_eq!(decoded.anomalies, []);
}

#[test]
fn a_gap_over_boundaries_pairs_nothing_wrongly() {
    use Direction::{Request, Response};
    // Two commands of a pipeline are lost with a gap, one is cut.
    let decoded = run(
        Joined::AtStart,
        &[
            (
                Request,
                1,
                Ok(b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n*3\r\n$4\r\nMSET\r\n$1\r\nb\r\n$9\r\nxy"),
            ),
            (Request, 1, Err(200)),
            (Request, 1, Ok(&commands(&["GET z"]))),
            (
                Response,
                2,
                Ok(b"$1\r\nx\r\n+OK\r\n:1\r\n:2\r\n$1\r\nz\r\n"),
            ),
            (Request, 3, Ok(&commands(&["INCR k"]))),
            (Response, 4, Ok(b":5\r\n")),
        ],
    );
    assert_eq!(
        decoded.texts(),
        [("GET a", None), ("MSET b", None), ("INCR k", None)]
    );
    assert_eq!(
        decoded.anomalies,
        [
            (Anomaly::Orphan, 3),
            (Anomaly::Unanswered, 1),
            (Anomaly::Resynced, 1)
        ]
    );
    // A long answer goes on past what was captured; the next command says that it ended.
    let decoded = run(
        Joined::AtStart,
        &[
            (Request, 1, Ok(&commands(&["LRANGE l 0 -1"]))),
            (Response, 2, Ok(b"*2\r\n$5\r\nab")),
            (Response, 3, Err(12)),
            (Response, 4, Ok(b"$1\r\n")),
            (Request, 5, Ok(&commands(&["GET a"]))),
            (Response, 6, Ok(b"$1\r\na\r\n")),
        ],
    );
    assert_eq!(decoded.texts(), [("LRANGE l", None), ("GET a", None)]);
    assert_eq!(decoded.exchanges[0].last_byte_ns, 4);
    assert_eq!(decoded.anomalies, [(Anomaly::Resynced, 1)]);
    // Of several, none can be told.
    let decoded = run(
        Joined::AtStart,
        &[
            (Request, 1, Ok(&commands(&["GET a", "GET b"]))),
            (Response, 2, Ok(b"$5\r\nab")),
            (Response, 2, Err(12)),
            (Response, 2, Ok(b"+OK\r\n")),
            (Request, 5, Ok(&commands(&["GET c"]))),
            (Response, 6, Ok(b"$1\r\na\r\n")),
        ],
    );
    assert_eq!(decoded.texts(), [("GET c", None)]);
    assert_eq!(decoded.count(Anomaly::Unanswered), 2);
}

#[test]
fn a_connection_joined_in_the_middle_finds_the_next_boundary() {
    use Direction::{Request, Response};
    let decoded = run(
        Joined::Late,
        &[
            (Response, 1, Ok(b"lue of something\r\n$1\r\nx\r\n")),
            (Request, 2, Ok(&commands(&["GET a"]))),
            (Response, 3, Ok(b"$-1\r\n")),
        ],
    );
    assert_eq!(decoded.texts(), [("GET a", None)]);
    assert_eq!(decoded.anomalies, [(Anomaly::Resynced, 1)]);
    let decoded = run(
        Joined::Late,
        &[
            (Response, 1, Ok(b"$1\r\nx\r\n+OK\r\n")),
            (Request, 2, Ok(&commands(&["GET a"]))),
            (Response, 3, Ok(b"$-1\r\n")),
        ],
    );
    assert_eq!(decoded.texts(), [("GET a", None)]);
    assert_eq!(decoded.anomalies, [(Anomaly::Orphan, 2)]);
}

#[test]
fn endless_and_huge_messages_hold_bounded_memory() {
    use Direction::{Request, Response};
    let mut output = Output::new(Options::default());
    let heads: [(Direction, &[u8]); 5] = [
        (Request, b"*2147483648\r\n$3\r\nGET\r\n$2147483648\r\n"),
        (Request, b"PING "),
        (Response, b"$2147483648\r\n"),
        (Response, b"*2147483648\r\n*2147483648\r\n+"),
        (Response, b"-"),
    ];
    for (direction, head) in heads {
        let mut redis = Redis::new(Joined::AtStart);
        redis.bytes(direction, 1, head, &mut output);
        for _ in 0..1000 {
            redis.bytes(direction, 1, &[b'a'; 4096], &mut output);
        }
        assert!(redis.held() <= 4 * lexer::KEEP, "{} held", redis.held());
    }
    assert!(size_of::<Redis>() < 1024, "{}", size_of::<Redis>());
    let mut redis = Redis::new(Joined::AtStart);
    for _ in 0..200_000 {
        redis.bytes(Response, 1, b"*9\r\n*9\r\n*?\r\n|9\r\n", &mut output);
    }
    assert!(redis.held() <= 4 * lexer::KEEP);
}

#[test]
fn other_protocols_are_not_taken_for_redis() {
    for bytes in crate::decode::testing::FOREIGN {
        for direction in [Direction::Request, Direction::Response] {
            let verdict = detect(direction, bytes);
            assert!(
                verdict < Verdict::Maybe,
                "{verdict:?} {direction:?} {bytes:?}"
            );
        }
    }
    assert_eq!(
        detect(Direction::Request, b"*1\r\n$4\r\nPING\r\n"),
        Verdict::Yes
    );
    assert_eq!(detect(Direction::Request, b"*1\r"), Verdict::Unsure);
    assert_eq!(detect(Direction::Request, b"PING\r\n"), Verdict::Maybe);
    assert_eq!(detect(Direction::Response, b"$3\r\nabc\r\n"), Verdict::Yes);
    assert_eq!(detect(Direction::Response, b"+OK\r\n"), Verdict::Maybe);
    assert_eq!(
        detect(Direction::Response, b"-NOAUTH x\r\n"),
        Verdict::Maybe
    );
}

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![
        commands(&["GET a", "MULTI", "EXEC", "SUBSCRIBE a b", "UNSUBSCRIBE"]),
        commands(&["EVAL s 2 a b", "CLIENT REPLY SKIP", "MGET a b"]),
        b"PING\r\nget a\r\n".to_vec(),
    ];
    for reply in [
        "+OK\r\n+QUEUED\r\n*2\r\n$-1\r\n:4\r\n",
        "*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n",
        ">3\r\n+message\r\n+a\r\n+b\r\n%1\r\n+a\r\n*?\r\n:1\r\n.\r\n",
        "$?\r\n;4\r\nHell\r\n;0\r\n|1\r\n+a\r\n:1\r\n$1\r\nx\r\n-ERR x\r\n",
    ] {
        seeds.push(reply.as_bytes().to_vec());
    }
    seeds
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100_000))]
    #[test]
    fn whatever_comes_is_survived(events in events(seeds()), late in any::<bool>()) {
        let joined = if late { Joined::Late } else { Joined::AtStart };
        survives(Protocol::Redis, joined, &events);
    }
}
