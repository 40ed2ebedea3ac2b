use proptest::prelude::*;

use super::super::testing::*;
use super::super::{Options, Protocol, Transaction, Verdict};
use super::*;

const MY: Protocol = Protocol::Mysql;
/// Protocol 4.1, CONNECT_WITH_DB and so on, without DEPRECATE_EOF.
const OLD: u32 = 0x000f_a685;
const NEW: u32 = OLD | wire::capability::DEPRECATE_EOF;

fn packet(sequence: u8, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut packet = (body.len() as u32).to_le_bytes()[..3].to_vec();
    packet.push(sequence);
    packet.extend(body);
    packet
}

fn cat(parts: &[Vec<u8>]) -> Vec<u8> {
    parts.concat()
}

fn query(text: &str) -> Vec<u8> {
    packet(0, format!("\x03{text}"))
}

fn prepare(text: &str) -> Vec<u8> {
    packet(0, format!("\x16{text}"))
}

fn execute(id: u8) -> Vec<u8> {
    packet(0, [0x17, id, 0, 0, 0, 0, 1, 0, 0, 0])
}

fn command(code: u8) -> Vec<u8> {
    packet(0, [code])
}

/// OK with a server status.
fn ok(sequence: u8, status: u16) -> Vec<u8> {
    let [low, high] = status.to_le_bytes();
    packet(sequence, [0, 1, 0, low, high, 0, 0])
}

fn eof(sequence: u8, status: u16) -> Vec<u8> {
    let [low, high] = status.to_le_bytes();
    packet(sequence, [0xfe, 0, 0, low, high])
}

/// What ends rows under DEPRECATE_EOF.
fn end(sequence: u8, status: u16) -> Vec<u8> {
    let [low, high] = status.to_le_bytes();
    packet(sequence, [0xfe, 0, 0, low, high, 0, 0])
}

fn error(sequence: u8, number: u16, state: &str) -> Vec<u8> {
    let mut body = vec![0xff];
    body.extend(number.to_le_bytes());
    body.extend(format!("#{state}secret 'x'").bytes());
    packet(sequence, body)
}

fn definition(sequence: u8) -> Vec<u8> {
    packet(
        sequence,
        b"\x03def\x01d\x01t\x01t\x02id\x02id\x0c\x3f\0\x0b\0\0\0\x03\x03\x42\0\0\0",
    )
}

/// A result with a row.
fn rows(first: u8, old: bool, status: u16) -> Vec<u8> {
    let mut parts = vec![packet(first, [1]), definition(first + 1)];
    let mut next = first + 2;
    if old {
        parts.push(eof(next, 2));
        next += 1;
    }
    parts.push(packet(next, b"\x011"));
    parts.push(if old {
        eof(next + 1, status)
    } else {
        end(next + 1, status)
    });
    cat(&parts)
}

fn greeting() -> Vec<u8> {
    let flags = (NEW | wire::capability::SSL | wire::capability::COMPRESS).to_le_bytes();
    let mut body = b"\x0a8.0.36\0\x08\0\0\0abcdefgh\0".to_vec();
    body.extend([flags[0], flags[1], 0xff, 2, 0, flags[2], flags[3], 21]);
    body.extend([0; 10]);
    body.extend(b"abcdefghijkl\0mysql_native_password\0");
    packet(0, body)
}

fn login(flags: u32) -> Vec<u8> {
    let mut body = flags.to_le_bytes().to_vec();
    body.extend([0, 0, 0, 1, 0xff]);
    body.extend([0; 23]);
    body.extend(b"root\0\x14aaaaaaaaaaaaaaaaaaaamysql_native_password\0");
    packet(1, body)
}

fn connected(flags: u32) -> Vec<Piece> {
    vec![
        answers(1, greeting()),
        asks(2, login(flags)),
        answers(
            3,
            packet(2, b"\xfecaching_sha2_password\0aaaaaaaaaaaaaaaaaaaa\0"),
        ),
        asks(4, packet(3, [7; 32])),
        answers(5, packet(4, [1, 3])),
        answers(6, ok(5, 2)),
    ]
}

fn session(flags: u32, pieces: &[Piece]) -> Decoded {
    let mut all = connected(flags);
    all.extend(pieces.iter().cloned());
    cut_anywhere(MY, Joined::AtStart, &all)
}

#[test]
fn text_results_are_read_with_and_without_eof_packets() {
    for (flags, old) in [(OLD, true), (NEW, false)] {
        let decoded = session(
            flags,
            &[
                asks(10, query("SELECT * FROM t WHERE a IN (1, 2) -- c")),
                answers(11, &rows(1, old, 2)[..9]),
                answers(12, &rows(1, old, 2)[9..]),
                asks(20, query("INSERT INTO t VALUES (1)")),
                answers(21, error(1, 1062, "23000")),
                asks(30, query("SELECT 1")),
                answers(
                    31,
                    cat(&[
                        packet(1, [1]),
                        definition(2),
                        if old { eof(3, 2) } else { vec![] },
                    ]),
                ),
                answers(32, error(if old { 4 } else { 3 }, 1317, "70100")),
                asks(40, query("DO 1")),
                answers(41, ok(1, 2)),
                asks(50, command(14)),
                answers(51, ok(1, 2)),
                asks(60, command(9)),
                answers(61, packet(1, "Uptime: 1  Threads: 2")),
                asks(70, command(1)),
            ],
        );
        assert_eq!(
            decoded.texts(),
            [
                ("SELECT * FROM t WHERE a IN (?)", None),
                ("INSERT INTO t VALUES (?)", Some("1062 23000")),
                ("SELECT ?", Some("1317 70100")),
                ("DO ?", None),
                ("(ping)", None),
                ("(statistics)", None),
            ]
        );
        let first = &decoded.exchanges[0];
        assert_eq!(
            (first.started_ns, first.first_byte_ns, first.last_byte_ns),
            (10, 11, 12)
        );
        assert_eq!(decoded.anomalies, []);
    }
}

#[test]
fn every_byte_of_a_session_is_decoded() {
    let mut pieces = connected(NEW);
    pieces.extend([asks(10, query("SELECT 1")), answers(11, rows(1, false, 2))]);
    let sum = |direction| -> u64 {
        let of = pieces.iter().filter(|(d, ..)| *d == direction);
        of.map(|(_, _, b)| b.len() as u64).sum()
    };
    let decoded = decode(MY, Joined::AtStart, &pieces);
    assert_eq!(
        decoded.decoded,
        [sum(Direction::Request), sum(Direction::Response)]
    );
}

#[test]
fn each_statement_of_a_text_is_an_exchange_and_a_call_is_one() {
    let more = 2 | wire::status::MORE_RESULTS;
    let decoded = session(
        NEW,
        &[
            asks(10, query("SELECT ';'; UPDATE t SET a = 1; SELECT 2")),
            answers(11, rows(1, false, more)),
            answers(12, ok(5, more)),
            answers(13, rows(6, false, 2)),
            asks(20, query("SELECT 1; CALL p(); SELECT 3")),
            answers(21, rows(1, false, more)),
            answers(22, rows(5, false, more)),
            answers(23, rows(9, false, more)),
            answers(24, ok(13, more)),
            answers(25, rows(14, false, 2)),
            asks(30, query("SELECT 1; SELEC 2; SELECT 3")),
            answers(31, rows(1, false, more)),
            answers(32, error(5, 1064, "42000")),
            asks(40, query("CALL p()")),
            answers(41, cat(&[rows(1, false, more), ok(5, 2)])),
        ],
    );
    let read: Vec<_> = decoded
        .exchanges
        .iter()
        .map(|e| {
            (
                e.text.as_str(),
                e.error.as_deref(),
                e.last_byte_ns,
                e.queued_ns,
            )
        })
        .collect();
    assert_eq!(
        read,
        [
            ("SELECT ?", None, 11, 0),
            ("UPDATE t SET a = ?", None, 12, 1),
            ("SELECT ?", None, 13, 2),
            ("SELECT ?", None, 21, 0),
            ("CALL p()", None, 24, 1),
            ("SELECT ?", None, 25, 4),
            ("SELECT ?", None, 31, 0),
            ("SELEC ?", Some("1064 42000"), 32, 1),
            ("SELECT ?", Some("aborted"), 30, 0),
            ("CALL p()", None, 41, 0),
        ]
    );
    assert_eq!(decoded.anomalies, []);
}

/// What COM_STMT_PREPARE is answered: statement 7, two parameters, a column.
fn prepared(old: bool) -> Vec<u8> {
    let mut parts = vec![
        packet(1, [0, 7, 0, 0, 0, 1, 0, 2, 0, 0, 0, 0]),
        definition(2),
        definition(3),
    ];
    if old {
        parts.extend([eof(4, 2), definition(5), eof(6, 2)]);
    } else {
        parts.push(definition(4));
    }
    cat(&parts)
}

#[test]
fn prepared_statements_have_the_text_they_were_prepared_with() {
    for (flags, old) in [(OLD, true), (NEW, false)] {
        let cursor = 2 | wire::status::CURSOR;
        let open = [
            packet(1, [1]),
            definition(2),
            if old { eof(3, cursor) } else { end(3, cursor) },
        ];
        let decoded = session(
            flags,
            &[
                asks(10, prepare("SELECT a FROM t WHERE b = ? AND c = 1")),
                answers(11, prepared(old)),
                asks(20, packet(0, [0x18, 7, 0, 0, 0, 0, 0, b'x'])),
                asks(21, execute(7)),
                answers(22, rows(1, old, 2)),
                asks(30, execute(7)),
                answers(31, cat(&open)),
                asks(32, packet(0, [0x1c, 7, 0, 0, 0, 9, 0, 0, 0])),
                answers(
                    33,
                    cat(&[
                        packet(1, [0, 0, 1]),
                        if old { eof(2, 0x82) } else { end(2, 0x82) },
                    ]),
                ),
                asks(40, packet(0, [0x1a, 7, 0, 0, 0])),
                answers(41, ok(1, 2)),
                asks(50, packet(0, [0x19, 7, 0, 0, 0])),
                asks(51, prepare("SELEC")),
                answers(52, error(1, 1064, "42000")),
                asks(60, execute(7)),
                answers(61, error(1, 1243, "HY000")),
            ],
        );
        let text = "SELECT a FROM t WHERE b = ? AND c = ?";
        assert_eq!(
            decoded.texts(),
            [
                (&*format!("(prepare) {text}"), None),
                (text, None),
                (text, None),
                (text, None),
                ("(reset statement)", None),
                ("(prepare) SELEC", Some("1064 42000")),
                ("unseen:7", Some("1243 HY000")),
            ]
        );
        assert_eq!(decoded.anomalies, []);
    }
}

#[test]
fn what_is_never_answered_begins_no_request() {
    let (mut my, mut output) = (Mysql::new(Joined::AtStart), Output::new(Options::default()));
    for (direction, at_ns, bytes) in connected(NEW) {
        my.bytes(direction, at_ns, &bytes, &mut output);
    }
    let mut reads = |bytes: &[u8]| {
        my.bytes(Direction::Request, 10, bytes, &mut output);
        my.is_at_boundary()
    };
    let close = packet(0, [wire::command::CLOSE, 7, 0, 0, 0]);
    assert!(reads(&close));
    assert!(!reads(&close[..6]));
    assert!(reads(&close[6..]));
    let long_data = packet(0, [wire::command::LONG_DATA, 7, 0, 0, 0, 0, 0, b'x']);
    assert!(reads(&long_data));
    assert!(!reads(&query("DO 1")));
}

#[test]
fn mariadb_may_prepare_and_execute_without_waiting() {
    let last = packet(0, [0x17, 0xff, 0xff, 0xff, 0xff, 0, 1, 0, 0, 0]);
    let decoded = session(
        NEW,
        &[
            asks(10, cat(&[prepare("SELECT a FROM t WHERE b = ?"), last])),
            answers(11, cat(&[prepared(false), rows(1, false, 2)])),
            asks(20, execute(7)),
            answers(
                21,
                cat(&[packet(1, [1, 0]), packet(2, [0, 0, 1]), end(3, 2)]),
            ),
        ],
    );
    let text = "SELECT a FROM t WHERE b = ?";
    assert_eq!(
        decoded.texts(),
        [
            ("(prepare) SELECT a FROM t WHERE b = ?", None),
            (text, None),
            (text, None)
        ]
    );
    assert_eq!(decoded.anomalies, []);
}

#[test]
fn a_file_is_no_command_whatever_is_in_it() {
    let decoded = session(
        NEW,
        &[
            asks(10, query("LOAD DATA LOCAL INFILE 'x' INTO TABLE t")),
            answers(11, packet(1, b"\xfbx")),
            asks(12, cat(&[packet(2, "1\n2\n"), packet(0, "\x03SELECT 9")])),
            asks(13, packet(4, "")),
            answers(14, ok(5, 2)),
            asks(20, query("SELECT 1")),
            answers(21, rows(1, false, 2)),
        ],
    );
    let read: Vec<_> = decoded
        .exchanges
        .iter()
        .map(|e| (e.text.as_str(), e.last_byte_ns))
        .collect();
    assert_eq!(
        read,
        [
            ("LOAD DATA LOCAL INFILE ? INTO TABLE t", 14),
            ("SELECT ?", 21)
        ]
    );
    assert_eq!(decoded.anomalies, []);
}

#[test]
fn refused_and_encrypted_and_compressed_connections_are_told() {
    let refused = [
        answers(1, greeting()),
        asks(2, login(NEW)),
        answers(3, error(2, 1045, "28000")),
    ];
    assert_eq!(
        cut_anywhere(MY, Joined::AtStart, &refused).texts(),
        [("(connect)", Some("1045 28000"))]
    );
    let full = [answers(1, error(0, 1040, "08004"))];
    assert_eq!(
        decode(MY, Joined::AtStart, &full).texts(),
        [("(connect)", Some("1040 08004"))]
    );

    let (mut my, mut output) = (Mysql::new(Joined::AtStart), Output::new(Options::default()));
    my.bytes(Direction::Response, 1, &greeting(), &mut output);
    let mut ssl = (NEW | wire::capability::SSL).to_le_bytes().to_vec();
    ssl.extend([0; 28]);
    my.bytes(
        Direction::Request,
        2,
        &cat(&[packet(1, ssl), b"\x16\x03\x01".to_vec()]),
        &mut output,
    );
    assert!(my.encrypted());
    my.decrypted();
    let mut inside = login(NEW);
    inside[3] = 2;
    my.bytes(Direction::Request, 3, &inside, &mut output);
    my.bytes(
        Direction::Response,
        4,
        &error(3, 1045, "28000"),
        &mut output,
    );
    assert_eq!(output.text_of(output.exchanges[0].text), "(connect)");
    assert_eq!(output.anomalies, []);

    let compressed = session(
        NEW | wire::capability::COMPRESS,
        &[asks(10, "\x09\0\0\0\0\0\0\x05\0\0\0\x03DO 1")],
    );
    assert_eq!(compressed.exchanges, []);
    assert_eq!(compressed.anomalies, [(Anomaly::Unsupported, 1)]);
}

#[test]
fn a_user_is_changed_in_several_steps() {
    let decoded = session(
        NEW,
        &[
            asks(10, packet(0, b"\x11root\0\x14aaaaaaaaaaaaaaaaaaaat\0")),
            answers(
                11,
                packet(1, b"\xfemysql_native_password\0aaaaaaaaaaaaaaaaaaaa\0"),
            ),
            asks(12, packet(2, [7; 20])),
            answers(13, ok(3, 2)),
            asks(20, packet(0, b"\x02db")),
            answers(21, ok(1, 2)),
        ],
    );
    assert_eq!(
        decoded.texts(),
        [("(change user)", None), ("(init db)", None)]
    );
    assert_eq!(decoded.anomalies, []);
}

#[test]
fn query_attributes_are_not_the_text() {
    let mut with = b"\x03\x02\x01\x00\x01\xfe\0\x01a\x08\0\x01b".to_vec();
    with.extend(b"\x03xyz\x09\0\0\0\0\0\0\0SELECT 1");
    let decoded = session(
        NEW,
        &[
            asks(10, packet(0, b"\x03\0\x01SELECT 1")),
            answers(11, rows(1, false, 2)),
            asks(20, packet(0, with)),
            answers(21, rows(1, false, 2)),
        ],
    );
    assert_eq!(decoded.texts(), [("SELECT ?", None), ("SELECT ?", None)]);
}

#[test]
fn packets_of_16_mib_are_one_message() {
    let text = format!(
        "\x03INSERT INTO t VALUES ('{}')",
        "x".repeat(0xff_ffff + 10)
    );
    let (first, rest) = text.as_bytes().split_at(0xff_ffff);
    let mut pieces = connected(NEW);
    pieces.extend([
        asks(10, packet(0, first)),
        asks(11, packet(1, rest)),
        answers(12, ok(2, 2)),
        asks(20, query("SELECT x")),
        answers(21, cat(&[packet(1, [1]), definition(2)])),
        answers(
            22,
            cat(&[packet(3, first), packet(4, b"\xfe\0\0\0\0"), end(5, 2)]),
        ),
        asks(30, query("DO 1")),
        answers(31, ok(1, 2)),
    ]);
    let decoded = decode(MY, Joined::AtStart, &pieces);
    assert_eq!(
        decoded.texts(),
        [
            ("INSERT INTO t VALUES (?…", None),
            ("SELECT x", None),
            ("DO ?", None)
        ]
    );
    assert_eq!(decoded.anomalies, []);
}

#[test]
fn transactions_are_told_as_the_server_tells_them() {
    let mut output = Output::new(Options::default());
    let mut my = Mysql::new(Joined::Late);
    for (at, status) in [(1, 3), (2, 2)] {
        my.bytes(Direction::Request, at, &query("DO 1"), &mut output);
        my.bytes(Direction::Response, at, &ok(1, status), &mut output);
    }
    assert_eq!(
        output.transactions,
        [(1, Transaction::Open), (2, Transaction::Idle)]
    );
}

#[test]
fn joined_late_the_kind_of_results_is_learnt_and_statements_are_named_by_columns() {
    for old in [false, true] {
        let decoded = cut_anywhere(
            MY,
            Joined::Late,
            &[
                asks(1, prepare("SELECT a FROM t WHERE b = ?")),
                answers(2, prepared(old)),
                asks(10, execute(3)),
                answers(11, rows(1, old, 2)),
                asks(20, execute(3)),
                answers(21, error(1, 1205, "HY000")),
                asks(30, execute(4)),
                answers(31, ok(1, 2)),
            ],
        );
        assert_eq!(
            decoded.texts(),
            [
                ("(prepare) SELECT a FROM t WHERE b = ?", None),
                ("unseen (t.id)", None),
                ("unseen (t.id)", Some("1205 HY000")),
                ("unseen:4", None),
            ]
        );
        assert_eq!(decoded.anomalies, []);
    }
}

#[test]
fn joined_in_the_middle_of_a_result_the_next_command_is_the_first_exchange() {
    let result = rows(1, false, 2);
    let decoded = decode(
        MY,
        Joined::Late,
        &[
            answers(1, &result[3..]),
            answers(2, &result[7..]),
            asks(3, query("SELECT 1")),
            answers(4, result),
        ],
    );
    let read: Vec<_> = decoded
        .exchanges
        .iter()
        .map(|e| (e.text.as_str(), e.last_byte_ns))
        .collect();
    assert_eq!(read, [("SELECT ?", 4)]);
    assert_eq!(decoded.anomalies, [(Anomaly::Resynced, 1)]);
}

#[test]
fn a_gap_anywhere_never_gives_an_answer_to_another_request() {
    let mut pieces = connected(NEW);
    let many = cat(&[
        packet(1, [1]),
        definition(2),
        cat(&(3..60).map(|i| packet(i, b"\x0212")).collect::<Vec<_>>()),
        end(60, 2),
    ]);
    for i in 0..3u64 {
        pieces.push(asks(10 + i * 10, query(&format!("SELECT a{i}"))));
        pieces.push(answers(13 + i * 10, &many[..90]));
        pieces.push(answers(15 + i * 10, &many[90..]));
    }
    let truth = decode(MY, Joined::AtStart, &pieces);
    assert_eq!(truth.exchanges.len(), 3);
    for hole in 6..pieces.len() {
        let (_, _, bytes) = &pieces[hole];
        for kept in 0..bytes.len() {
            for seen in [0, 1, 5, 9, 11, 30] {
                let seen = seen.min(bytes.len() - kept - 1);
                let (mut my, mut output) =
                    (Mysql::new(Joined::AtStart), Output::new(Options::default()));
                for (i, (direction, at_ns, bytes)) in pieces.iter().enumerate() {
                    if i == hole {
                        let after = bytes.len() - seen;
                        my.bytes(*direction, *at_ns, &bytes[..kept], &mut output);
                        my.gap(*direction, *at_ns, (after - kept) as u64, &mut output);
                        my.bytes(*direction, *at_ns, &bytes[after..], &mut output);
                    } else {
                        my.bytes(*direction, *at_ns, bytes, &mut output);
                    }
                }
                my.end(&mut output);
                let decoded = read(&output);
                for exchange in &decoded.exchanges {
                    let same = truth
                        .exchanges
                        .iter()
                        .find(|t| t.started_ns == exchange.started_ns);
                    let same = same.is_some_and(|t| {
                        t.last_byte_ns == exchange.last_byte_ns
                            && (t.text == exchange.text || exchange.text.ends_with('…'))
                    });
                    assert!(same, "hole {hole}, {kept} kept, {seen} seen: {exchange:?}");
                }
                assert!(
                    decoded.exchanges.len() >= 2,
                    "hole {hole}, {kept} kept, {seen} seen"
                );
            }
        }
    }
}

#[test]
fn lengths_and_halves_that_never_end_take_bounded_memory() {
    for direction in [Direction::Request, Direction::Response] {
        for joined in [Joined::AtStart, Joined::Late] {
            let (mut my, mut output) = (Mysql::new(joined), Output::new(Options::default()));
            my.bytes(direction, 1, b"\xff\xff\xff\0\x03", &mut output);
            for at in 0..20_000 {
                my.bytes(direction, at, &[b'x'; 1000], &mut output);
            }
            assert!(my.held_bytes() <= 2 * KEPT_REQUEST, "{}", my.held_bytes());
        }
    }
    let (mut my, mut output) = (Mysql::new(Joined::Late), Output::new(Options::default()));
    for at in 0..100_000u64 {
        my.bytes(Direction::Request, at, &query("DO 1"), &mut output);
    }
    assert!(my.held_bytes() <= 4 << 20, "{}", my.held_bytes());
    assert!(my.in_flight() <= 16384);
}

#[test]
fn an_idle_connection_holds_little() {
    let (mut my, mut output) = (Mysql::new(Joined::Late), Output::new(Options::default()));
    for at in 0..1000 {
        for half in query(&format!("SELECT {}", "a, ".repeat(3000))).chunks(5000) {
            my.bytes(Direction::Request, at, half, &mut output);
        }
        my.bytes(Direction::Response, at, &rows(1, false, 2), &mut output);
    }
    let held = my.held_bytes() + size_of::<Mysql>();
    assert!(held < 2048, "{held}");
}

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![
        greeting(),
        login(NEW),
        login(OLD),
        query("SELECT 1; CALL p(); SELECT 2"),
        prepare("SELECT ?"),
        execute(7),
        command(14),
        packet(0, b"\x11root\0\x14aaaaaaaaaaaaaaaaaaaat\0"),
        packet(0, [0x1c, 7, 0, 0, 0, 9, 0, 0, 0]),
        packet(1, b"\xfbx"),
        packet(2, ""),
        ok(1, 2),
        ok(1, 10),
        ok(2, 2),
        error(1, 1062, "23000"),
        prepared(true),
        prepared(false),
        packet(
            0,
            b"\x03\x02\x01\x00\x01\xfe\0\x01a\x08\0\x01b\x03xyz\x09\0\0\0\0\0\0\0SELECT 1",
        ),
    ];
    seeds.extend([rows(1, true, 2), rows(1, false, 2), rows(1, false, 10)]);
    seeds
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100_000))]
    #[test]
    fn no_peer_can_break_it(events in events(seeds()), late in any::<bool>()) {
        survives(MY, if late { Joined::Late } else { Joined::AtStart }, &events);
    }
}

#[test]
fn its_own_traffic_is_recognised_at_any_time() {
    use Direction::{Request, Response};
    for bytes in [
        login(NEW),
        query("SELECT 1"),
        query("/* c */ select 'é'"),
        query("SELECT 1\0"),
        prepare("SELECT ?"),
        execute(7),
        packet(0, b"\x03\0\x01SELECT 1"),
    ] {
        assert_eq!(detect(Request, &bytes), Verdict::Yes, "{bytes:?}");
        assert_ne!(detect(Request, &bytes[..4]), Verdict::No, "{bytes:?}");
    }
    for bytes in [
        greeting(),
        ok(1, 2),
        error(1, 1062, "23000"),
        rows(1, true, 2),
        rows(1, false, 2),
    ] {
        assert_eq!(detect(Response, &bytes), Verdict::Yes, "{bytes:?}");
        assert_ne!(detect(Response, &bytes[..4]), Verdict::No, "{bytes:?}");
    }
    assert_eq!(detect(Request, &command(14)), Verdict::Maybe);
}

#[test]
fn the_traffic_of_others_is_not_taken_for_it() {
    let others: &[&[u8]] = &[
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
        b"*1\r\n$4\r\nPING\r\n",
        b"PING\r\n",
        b"+PONG\r\n",
        b"$-1\r\n",
        b"get a\r\n",
        b"set a 0 0 1\r\n1\r\n",
        b"VALUE a 0 1\r\n1\r\nEND\r\n",
        b"\x80\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0a",
        b"\x81\0\0\0\0\0\0\0\0\0\0\0",
        b"\0\0\0\x08\x04\xd2\x16\x2f",
        b"\0\0\0\x14\0\x03\0\0user\0me\0\0",
        b"Q\0\0\0\x0dSELECT 1\0",
        b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I",
        b"Z\0\0\0\x05I",
        b"P\0\0\0\x0e\0SELECT\0\0\0B\0\0\0\x0c\0\0\0\0\0\0\0\0",
        b"\x51\0\0\0\x07\0\0\0\0\0\0\0\xdd\x07\0\0\0\0\0\0\0\x3c\0\0\0",
        b"\x30\0\0\0\x03\0\0\0\0\0\0\0\xdd\x07\0\0\0\0\0\0\0\x1b\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        b"\0\0\0\x1a\0\x12\0\x03\0\0\0\x01\0\x08consumer\0\x02a\x02b\0",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0\x64",
        b"SSH-2.0-OpenSSH_9.2\r\n",
    ];
    for bytes in others {
        for direction in [Direction::Request, Direction::Response] {
            assert_eq!(
                detect(direction, bytes),
                Verdict::No,
                "{direction:?} {bytes:?}"
            );
        }
    }
}

proptest! {
    #[test]
    fn random_bytes_are_not_taken_for_it(bytes in proptest::collection::vec(any::<u8>(), 12..100)) {
        for direction in [Direction::Request, Direction::Response] {
            prop_assert!(detect(direction, &bytes) < Verdict::Yes);
        }
    }
}
