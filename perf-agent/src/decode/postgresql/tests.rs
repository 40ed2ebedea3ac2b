use proptest::prelude::*;

use super::super::testing::*;
use super::super::{Options, Protocol, Transaction, Verdict};
use super::*;

const PG: Protocol = Protocol::Postgresql;

/// A message with a type.
fn msg(kind: u8, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut message = vec![kind];
    message.extend((body.len() as u32 + 4).to_be_bytes());
    message.extend(body);
    message
}

fn cat(parts: &[Vec<u8>]) -> Vec<u8> {
    parts.concat()
}

fn query(text: &str) -> Vec<u8> {
    msg(b'Q', format!("{text}\0"))
}

fn parse(name: &str, text: &str) -> Vec<u8> {
    msg(b'P', format!("{name}\0{text}\0\0\0"))
}

fn bind(portal: &str, name: &str) -> Vec<u8> {
    msg(b'B', format!("{portal}\0{name}\0\0\0\0\0\0\0"))
}

fn describe(what: &str) -> Vec<u8> {
    msg(b'D', format!("{what}\0"))
}

fn execute(portal: &str) -> Vec<u8> {
    msg(b'E', format!("{portal}\0\0\0\0\0"))
}

fn sync() -> Vec<u8> {
    msg(b'S', "")
}

fn done(tag: &str) -> Vec<u8> {
    msg(b'C', format!("{tag}\0"))
}

fn row() -> Vec<u8> {
    msg(b'D', b"\0\x01\0\0\0\x011")
}

/// RowDescription of a column of table 16385.
fn rows() -> Vec<u8> {
    msg(
        b'T',
        b"\0\x01id\0\0\0\x40\x01\0\x01\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0",
    )
}

fn ready(status: &str) -> Vec<u8> {
    msg(b'Z', status)
}

fn error(state: &str) -> Vec<u8> {
    msg(b'E', format!("SERROR\0VERROR\0C{state}\0Msecret \"x\"\0\0"))
}

fn parsed() -> Vec<u8> {
    msg(b'1', "")
}

fn bound() -> Vec<u8> {
    msg(b'2', "")
}

fn startup() -> Vec<u8> {
    let body = b"\0\x03\0\0user\0me\0\0";
    cat(&[
        (body.len() as u32 + 4).to_be_bytes().to_vec(),
        body.to_vec(),
    ])
}

fn welcome() -> Vec<u8> {
    cat(&[
        msg(b'R', [0, 0, 0, 0]),
        msg(b'S', "client_encoding\0UTF8\0"),
        msg(b'K', [0; 8]),
        ready("I"),
    ])
}

fn at_start(pieces: &[Piece]) -> Decoded {
    cut_anywhere(PG, Joined::AtStart, pieces)
}

fn sum(pieces: &[Piece], direction: Direction) -> u64 {
    let of = pieces.iter().filter(|(d, ..)| *d == direction);
    of.map(|(_, _, b)| b.len() as u64).sum()
}

#[test]
fn a_session_with_simple_queries_is_decoded_whole() {
    let pieces = [
        asks(1, startup()),
        answers(2, welcome()),
        asks(10, query("SELECT abalance FROM accounts WHERE aid = 17;")),
        answers(14, cat(&[rows(), row()])),
        answers(15, cat(&[row(), done("SELECT 2"), ready("I")])),
        asks(20, query("INSERT INTO t VALUES (1)")),
        answers(25, cat(&[error("23505"), ready("I")])),
        asks(30, msg(b'X', "")),
    ];
    let decoded = at_start(&pieces);
    assert_eq!(
        decoded.texts(),
        [
            ("SELECT abalance FROM accounts WHERE aid = ?", None),
            ("INSERT INTO t VALUES (?)", Some("23505"))
        ]
    );
    let first = &decoded.exchanges[0];
    assert_eq!(
        (
            first.started_ns,
            first.first_byte_ns,
            first.last_byte_ns,
            first.queued_ns
        ),
        (10, 14, 15, 0)
    );
    assert_eq!(decoded.anomalies, []);
    assert_eq!(
        decoded.decoded,
        [
            sum(&pieces, Direction::Request),
            sum(&pieces, Direction::Response)
        ]
    );
}

#[test]
fn each_statement_of_a_query_is_an_exchange_and_what_follows_an_error_is_aborted() {
    let text = "BEGIN; SELECT ';'; UPDATE t SET a = 1; COMMIT;";
    let decoded = at_start(&[
        asks(10, query(text)),
        answers(20, cat(&[done("BEGIN"), rows(), row()])),
        answers(30, cat(&[done("SELECT 1"), error("40001"), ready("E")])),
        asks(40, query("; ;")),
        answers(41, cat(&[msg(b'I', ""), ready("E")])),
        asks(50, query("SELECT 1; SELEC 2")),
        answers(51, cat(&[error("42601"), ready("E")])),
    ]);
    assert_eq!(
        decoded.texts(),
        [
            ("BEGIN", None),
            ("SELECT ?", None),
            ("UPDATE t SET a = ?", Some("40001")),
            ("COMMIT", Some("aborted")),
            ("", None),
            ("SELECT ?; SELEC ?", Some("42601")),
        ]
    );
    let times: Vec<_> = decoded.exchanges[..4]
        .iter()
        .map(|e| (e.started_ns, e.first_byte_ns, e.last_byte_ns, e.queued_ns))
        .collect();
    assert_eq!(
        times,
        [
            (10, 20, 20, 0),
            (10, 20, 30, 10),
            (10, 30, 30, 20),
            (10, 10, 10, 0)
        ]
    );
    assert_eq!(decoded.anomalies, []);
}

#[test]
fn an_execute_is_an_exchange_with_the_text_of_its_parse_and_the_time_of_its_first_message() {
    let decoded = at_start(&[
        asks(1, cat(&[parse("s1", "SELECT $1"), describe("Ss1"), sync()])),
        answers(2, cat(&[parsed(), msg(b't', [0, 0]), rows(), ready("I")])),
        asks(10, bind("", "s1")),
        asks(11, cat(&[describe("P"), execute(""), sync()])),
        answers(
            20,
            cat(&[bound(), rows(), row(), done("SELECT 1"), ready("I")]),
        ),
        asks(30, parse("", "UPDATE t SET a = $1")),
        asks(31, cat(&[bind("c1", ""), execute("c1"), sync()])),
        answers(40, cat(&[parsed(), bound(), msg(b's', ""), ready("T")])),
        asks(
            50,
            cat(&[
                execute("c1"),
                msg(b'C', "Pc1\0"),
                msg(b'C', "Ss1\0"),
                sync(),
            ]),
        ),
        answers(
            60,
            cat(&[done("UPDATE 1"), msg(b'3', ""), msg(b'3', ""), ready("T")]),
        ),
    ]);
    let read: Vec<_> = decoded
        .exchanges
        .iter()
        .map(|e| (e.text.as_str(), e.started_ns, e.last_byte_ns))
        .collect();
    assert_eq!(
        read,
        [
            ("SELECT ?", 10, 20),
            ("UPDATE t SET a = ?", 30, 40),
            ("UPDATE t SET a = ?", 50, 60),
        ]
    );
    assert_eq!(decoded.anomalies, []);
}

#[test]
fn a_pipeline_is_answered_in_order_and_says_how_long_each_waited() {
    let one = cat(&[bind("", "s"), describe("P"), execute("")]);
    let answer = cat(&[bound(), rows(), row(), done("SELECT 1")]);
    let decoded = at_start(&[
        asks(1, cat(&[parse("s", "SELECT 1"), sync()])),
        answers(2, cat(&[parsed(), ready("I")])),
        asks(
            10,
            cat(&[one.clone(), one.clone(), sync(), one.clone(), sync()]),
        ),
        answers(20, answer.clone()),
        answers(30, cat(&[answer.clone(), ready("I"), answer])),
        answers(40, ready("I")),
    ]);
    let read: Vec<_> = decoded
        .exchanges
        .iter()
        .map(|e| (e.last_byte_ns, e.queued_ns))
        .collect();
    assert_eq!(read, [(20, 0), (30, 10), (30, 20)]);
    assert_eq!(decoded.anomalies, []);
}

#[test]
fn an_error_in_a_pipeline_aborts_what_follows_up_to_sync() {
    let one = |name| cat(&[bind("", name), execute("")]);
    let decoded = at_start(&[
        asks(
            1,
            cat(&[parse("a", "SELECT 1"), parse("b", "DELETE FROM b"), sync()]),
        ),
        answers(2, cat(&[parsed(), parsed(), ready("I")])),
        asks(
            10,
            cat(&[
                one("a"),
                one("b"),
                one("a"),
                one("b"),
                sync(),
                one("b"),
                sync(),
            ]),
        ),
        // The second Bind fails; its own Execute is not one more.
        answers(
            20,
            cat(&[bound(), done("SELECT 1"), error("22P02"), ready("I")]),
        ),
        answers(30, cat(&[bound(), done("DELETE 1"), ready("I")])),
        asks(
            40,
            cat(&[
                parse("", "SELEC"),
                bind("", ""),
                describe("P"),
                execute(""),
                sync(),
            ]),
        ),
        answers(50, cat(&[error("42601"), ready("I")])),
        asks(60, cat(&[parse("x", "SELEC"), describe("Sx"), sync()])),
        answers(70, cat(&[error("42601"), ready("I")])),
        asks(80, cat(&[one("a"), sync()])),
        answers(
            90,
            cat(&[bound(), done("SELECT 1"), error("23503"), ready("I")]),
        ),
    ]);
    assert_eq!(
        decoded.texts(),
        [
            ("SELECT ?", None),
            ("DELETE FROM b", Some("22P02")),
            ("SELECT ?", Some("aborted")),
            ("DELETE FROM b", Some("aborted")),
            ("DELETE FROM b", None),
            ("SELEC", Some("42601")),
            ("SELEC", Some("42601")),
            ("SELECT ?", None),
            ("(sync)", Some("23503")),
        ]
    );
    assert_eq!(decoded.anomalies, []);
}

#[test]
fn copy_in_both_protocols_is_one_exchange_and_its_early_sync_is_not_answered() {
    let data = || cat(&[msg(b'd', "1\t2\n"), msg(b'd', "3\t4\n")]);
    let format = |kind| msg(kind, [0, 0, 1, 0, 0]);
    let decoded = at_start(&[
        asks(1, query("COPY t FROM STDIN")),
        answers(2, format(b'G')),
        asks(3, cat(&[data(), msg(b'c', "")])),
        answers(4, cat(&[done("COPY 2"), ready("I")])),
        asks(10, query("COPY t TO STDOUT")),
        answers(
            11,
            cat(&[
                format(b'H'),
                data(),
                msg(b'c', ""),
                done("COPY 2"),
                ready("I"),
            ]),
        ),
        asks(
            20,
            cat(&[
                parse("", "COPY t FROM STDIN"),
                bind("", ""),
                describe("P"),
                execute(""),
                sync(),
            ]),
        ),
        answers(21, cat(&[parsed(), bound(), msg(b'n', ""), format(b'G')])),
        asks(22, cat(&[data(), msg(b'c', ""), sync()])),
        answers(23, cat(&[done("COPY 2"), ready("I")])),
        asks(30, query("COPY t FROM STDIN")),
        answers(31, format(b'G')),
        asks(32, cat(&[data(), msg(b'f', "no\0")])),
        answers(33, cat(&[error("57014"), ready("I")])),
        asks(40, query("SELECT 1")),
        answers(41, cat(&[rows(), row(), done("SELECT 1"), ready("I")])),
    ]);
    let read: Vec<_> = decoded
        .exchanges
        .iter()
        .map(|e| {
            (
                e.text.as_str(),
                e.error.as_deref(),
                e.started_ns,
                e.last_byte_ns,
            )
        })
        .collect();
    assert_eq!(
        read,
        [
            ("COPY t FROM STDIN", None, 1, 4),
            ("COPY t TO STDOUT", None, 10, 11),
            ("COPY t FROM STDIN", None, 20, 23),
            ("COPY t FROM STDIN", Some("57014"), 30, 33),
            ("SELECT ?", None, 40, 41),
        ]
    );
    assert_eq!(decoded.anomalies, []);
}

#[test]
fn what_the_server_says_unasked_belongs_to_no_request() {
    let notice = msg(b'N', "SNOTICE\0C00000\0Mx\0\0");
    let notify = msg(b'A', b"\0\0\0\x01chan\0\0");
    let decoded = at_start(&[
        answers(1, notify.clone()),
        asks(10, query("SELECT 1")),
        answers(11, cat(&[notice.clone(), msg(b'S', "a\0b\0")])),
        answers(12, cat(&[rows(), notice, row(), notify])),
        answers(13, cat(&[done("SELECT 1"), ready("I")])),
        asks(20, msg(b'F', [0; 14])),
        answers(21, cat(&[msg(b'V', [0, 0, 0, 1, 7]), ready("I")])),
    ]);
    let read: Vec<_> = decoded
        .exchanges
        .iter()
        .map(|e| (e.text.as_str(), e.first_byte_ns))
        .collect();
    assert_eq!(read, [("SELECT ?", 12), ("(function call)", 21)]);
    assert_eq!(decoded.anomalies, []);
}

#[test]
fn errors_after_rows_and_refused_connections_are_errors() {
    let decoded = at_start(&[
        asks(1, query("SELECT 1/a FROM t")),
        answers(2, cat(&[rows(), row(), error("22012"), ready("I")])),
    ]);
    assert_eq!(decoded.texts(), [("SELECT ? / a FROM t", Some("22012"))]);
    let decoded = at_start(&[asks(1, startup()), answers(5, error("28P01"))]);
    assert_eq!(decoded.texts(), [("(connect)", Some("28P01"))]);
    let cancel = b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\x01\0\0\0\x02";
    assert_eq!(at_start(&[asks(1, cancel)]).anomalies, []);
}

#[test]
fn encryption_is_noticed_and_its_refusal_too() {
    let ssl = b"\0\0\0\x08\x04\xd2\x16\x2f";
    let mut output = Output::new(Options::default());
    let mut postgresql = Postgresql::new(Joined::AtStart);
    postgresql.bytes(Direction::Request, 1, ssl, &mut output);
    assert!(!postgresql.encrypted());
    postgresql.bytes(Direction::Response, 2, b"S", &mut output);
    assert!(postgresql.encrypted());
    postgresql.bytes(Direction::Request, 3, b"\x16\x03\x01", &mut output);
    assert_eq!(output.anomalies, []);
    assert_eq!(output.decoded, [8, 1]);
    let gss = b"\0\0\0\x08\x04\xd2\x16\x30";
    let decoded = at_start(&[
        asks(1, gss),
        answers(2, "N"),
        asks(3, ssl),
        answers(4, "N"),
        asks(5, startup()),
        answers(6, welcome()),
        asks(7, query("SELECT 1")),
        answers(8, cat(&[done("SELECT 1"), ready("I")])),
    ]);
    assert_eq!(decoded.texts(), [("SELECT ?", None)]);
    assert_eq!(decoded.anomalies, []);
}

#[test]
fn transactions_are_told_as_the_server_tells_them() {
    let mut output = Output::new(Options::default());
    let mut postgresql = Postgresql::new(Joined::AtStart);
    for (at, status) in [(1, "I"), (2, "T"), (3, "E")] {
        postgresql.bytes(Direction::Request, at, &query("x"), &mut output);
        let answer = cat(&[done("X"), ready(status)]);
        postgresql.bytes(Direction::Response, at, &answer, &mut output);
    }
    use Transaction::{Failed, Idle, Open};
    assert_eq!(output.transactions, [(1, Idle), (2, Open), (3, Failed)]);
}

#[test]
fn statements_prepared_unseen_are_named_by_columns_or_by_name_and_command() {
    let run = cat(&[bind("", "P0_1"), describe("P"), execute(""), sync()]);
    let blind = cat(&[bind("", "P0_2"), execute(""), sync()]);
    let decoded = cut_anywhere(
        PG,
        Joined::Late,
        &[
            asks(1, query("BEGIN")),
            answers(2, cat(&[done("BEGIN"), ready("T")])),
            asks(10, run.clone()),
            answers(
                11,
                cat(&[bound(), rows(), row(), done("SELECT 1"), ready("T")]),
            ),
            asks(20, run),
            answers(
                21,
                cat(&[bound(), rows(), row(), done("SELECT 1"), ready("T")]),
            ),
            asks(30, blind.clone()),
            answers(31, cat(&[bound(), done("UPDATE 1"), ready("T")])),
            asks(40, blind),
            answers(41, cat(&[bound(), error("23505"), ready("E")])),
        ],
    );
    assert_eq!(
        decoded.texts(),
        [
            ("BEGIN", None),
            ("unseen (16385.id)", None),
            ("unseen (16385.id)", None),
            ("unseen:P0_2 UPDATE", None),
            ("unseen:P0_2 UPDATE", Some("23505")),
        ]
    );
    assert_eq!(decoded.anomalies, []);
}

#[test]
fn joined_in_the_middle_of_a_pipeline_answers_find_their_requests_from_the_end() {
    let one = cat(&[parse("", "SELECT 1"), bind("", ""), execute("")]);
    let last = cat(&[parse("", "SELECT a"), bind("", ""), execute("")]);
    let answer = |tag| cat(&[parsed(), bound(), done(tag)]);
    let decoded = decode(
        PG,
        Joined::Late,
        &[
            answers(1, &row()[3..]),
            asks(2, cat(&[one, last, sync()])),
            answers(3, cat(&[answer("UPDATE 9"), answer("SELECT 1")])),
            answers(4, cat(&[answer("SELECT 2"), ready("I")])),
            asks(5, query("SELECT b")),
            answers(6, cat(&[done("SELECT 3"), ready("I")])),
        ],
    );
    let read: Vec<_> = decoded
        .exchanges
        .iter()
        .map(|e| (e.text.as_str(), e.last_byte_ns))
        .collect();
    // The answers of the piece that began in the middle of a row were not found again before
    // ReadyForQuery: only the one it ends with.
    assert_eq!(read, [("SELECT a", 4), ("SELECT b", 6)]);
    assert_eq!(decoded.count(Anomaly::Unanswered), 1);
    assert_eq!(decoded.count(Anomaly::Resynced), 1);
}

#[test]
fn answers_that_fit_nothing_asked_stop_the_pairing_until_the_client_starts_anew() {
    let decoded = decode(
        PG,
        Joined::AtStart,
        &[
            asks(1, query("SELECT a")),
            answers(2, cat(&[bound(), done("SELECT 1"), ready("I")])),
            asks(3, query("SELECT b")),
            answers(4, cat(&[done("SELECT 1"), ready("I")])),
        ],
    );
    assert_eq!(decoded.texts(), [("SELECT b", None)]);
    assert_eq!(decoded.count(Anomaly::Unanswered), 1);
    assert_eq!(decoded.count(Anomaly::Orphan), 2);
}

/// Decodes pieces, the one at `hole` with only its first `kept` bytes captured.
fn with_gap(pieces: &[Piece], hole: usize, kept: usize, seen_at_end: usize) -> Decoded {
    let (mut postgresql, mut output) = (
        Postgresql::new(Joined::AtStart),
        Output::new(Options::default()),
    );
    for (i, (direction, at_ns, bytes)) in pieces.iter().enumerate() {
        if i != hole {
            postgresql.bytes(*direction, *at_ns, bytes, &mut output);
            continue;
        }
        let after = bytes.len() - seen_at_end;
        postgresql.bytes(*direction, *at_ns, &bytes[..kept], &mut output);
        postgresql.gap(*direction, *at_ns, (after - kept) as u64, &mut output);
        postgresql.bytes(*direction, *at_ns, &bytes[after..], &mut output);
    }
    postgresql.end(&mut output);
    read(&output)
}

#[test]
fn a_large_result_cut_by_the_capture_limit_is_still_one_exchange() {
    let many = cat(&vec![row(); 1000]);
    let pieces = [
        asks(1, query("SELECT * FROM t")),
        answers(5, cat(&[rows(), many.clone()])),
        answers(9, cat(&[many, done("SELECT 2000"), ready("I")])),
        asks(10, query("SELECT b")),
        answers(11, cat(&[done("SELECT 1"), ready("I")])),
    ];
    for hole in [1, 2] {
        for kept in 0..80 {
            let decoded = with_gap(&pieces, hole, kept, if hole == 2 { 40 } else { 0 });
            let read: Vec<_> = decoded
                .exchanges
                .iter()
                .map(|e| (e.text.as_str(), e.last_byte_ns))
                .collect();
            assert_eq!(
                read,
                [("SELECT * FROM t", 9), ("SELECT b", 11)],
                "{hole} {kept}"
            );
            assert_eq!(decoded.count(Anomaly::Unanswered), 0);
            assert!(decoded.count(Anomaly::Resynced) <= 1);
        }
    }
}

#[test]
fn a_gap_anywhere_never_gives_an_answer_to_another_request() {
    let names = ["a", "b", "c", "d", "e", "f"];
    let mut pieces = Vec::new();
    for (i, pair) in names.chunks(2).enumerate() {
        let at = 10 * i as u64;
        let ask = |name: &str| {
            cat(&[
                parse("", &format!("SELECT {name}")),
                bind("", ""),
                execute(""),
            ])
        };
        pieces.push(asks(at, cat(&[ask(pair[0]), ask(pair[1]), sync()])));
        let answer = |i: usize| cat(&[parsed(), bound(), done(&format!("SELECT {i}"))]);
        pieces.push(answers(at + 2 * i as u64 + 1, answer(0)));
        pieces.push(answers(
            at + 2 * i as u64 + 2,
            cat(&[answer(1), ready("I")]),
        ));
    }
    let truth = decode(PG, Joined::AtStart, &pieces);
    assert_eq!(truth.exchanges.len(), 6);
    for hole in 0..pieces.len() {
        let len = pieces[hole].2.len();
        for kept in 0..len {
            for seen in 0..len - kept {
                let decoded = with_gap(&pieces, hole, kept, seen);
                for exchange in &decoded.exchanges {
                    let same = truth.exchanges.iter().any(|t| {
                        (&t.text, t.last_byte_ns, &t.error)
                            == (&exchange.text, exchange.last_byte_ns, &exchange.error)
                    });
                    // A cut text is the beginning of the right one.
                    let cut = exchange.text.ends_with('…') || exchange.text.starts_with("unseen:");
                    assert!(
                        same || cut,
                        "hole {hole}, {kept} kept, {seen} seen: {exchange:?}"
                    );
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
    for huge in [
        0x7fff_ffffu32,
        0x8000_0000,
        0xffff_ffff,
        0x4000_0000,
        100_000_000,
    ] {
        for (direction, kind) in [(Direction::Request, b'Q'), (Direction::Response, b'D')] {
            for joined in [Joined::AtStart, Joined::Late] {
                let (mut pg, mut output) =
                    (Postgresql::new(joined), Output::new(Options::default()));
                let mut header = vec![kind];
                header.extend(huge.to_be_bytes());
                pg.bytes(direction, 1, &header, &mut output);
                for at in 0..500 {
                    pg.bytes(direction, at, &[b'x'; 1000], &mut output);
                }
                assert!(pg.held_bytes() <= 2 * KEPT_REQUEST, "{}", pg.held_bytes());
            }
        }
    }
    let (mut pg, mut output) = (
        Postgresql::new(Joined::AtStart),
        Output::new(Options::default()),
    );
    for at in 0..200_000u64 {
        let message = parse(&format!("s{at}"), "SELECT 1");
        pg.bytes(Direction::Request, at, &message, &mut output);
    }
    let bound = 2 * MAX_QUEUE * size_of::<session::Item>() + 48 * MAX_STATEMENTS;
    assert!(pg.held_bytes() <= bound, "{}", pg.held_bytes());
}

#[test]
fn an_idle_connection_holds_little() {
    let (mut pg, mut output) = (
        Postgresql::new(Joined::AtStart),
        Output::new(Options::default()),
    );
    for at in 0..1000 {
        let text = query(&format!("SELECT {}", "a, ".repeat(3000)));
        for half in text.chunks(5000) {
            pg.bytes(Direction::Request, at, half, &mut output);
        }
        let answer = cat(&[done("SELECT 1"), ready("I")]);
        pg.bytes(Direction::Response, at, &answer, &mut output);
    }
    let held = pg.held_bytes() + size_of::<Postgresql>();
    assert!(held < 2048, "{held}");
}

fn seeds() -> Vec<Vec<u8>> {
    vec![
        startup(),
        welcome(),
        b"\0\0\0\x08\x04\xd2\x16\x2f".to_vec(),
        query("SELECT 1; COPY t FROM STDIN; SELECT 'x'"),
        cat(&[parse("s", "SELECT $1"), describe("Ss"), sync()]),
        cat(&[bind("p", "s"), describe("Pp"), execute("p"), sync()]),
        cat(&[
            parse("", "UPDATE t SET a = 1"),
            bind("", ""),
            execute(""),
            msg(b'H', ""),
        ]),
        cat(&[
            parsed(),
            bound(),
            rows(),
            row(),
            done("SELECT 1"),
            ready("I"),
        ]),
        cat(&[error("23505"), ready("E")]),
        cat(&[
            msg(b'G', [0, 0, 0]),
            msg(b'd', "x"),
            msg(b'c', ""),
            done("COPY 1"),
            ready("T"),
        ]),
        cat(&[
            msg(b'F', [0; 14]),
            msg(b'V', [0; 4]),
            msg(b'C', "Ss\0"),
            msg(b'3', ""),
        ]),
        sync(),
        ready("I"),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100_000))]
    #[test]
    fn no_peer_can_break_it(events in events(seeds()), late in any::<bool>()) {
        survives(PG, if late { Joined::Late } else { Joined::AtStart }, &events);
    }
}

#[test]
fn its_own_traffic_is_recognised_at_any_time() {
    use Direction::{Request, Response};
    let cancel = b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\x01\0\0\0\x02";
    for bytes in [
        startup(),
        b"\0\0\0\x08\x04\xd2\x16\x2f".to_vec(),
        cancel.to_vec(),
        query("SELECT 1"),
        query("SELECT\n\t'é'"),
        cat(&[
            parse("", "SELECT $1"),
            bind("", ""),
            describe("P"),
            execute(""),
            sync(),
        ]),
        cat(&[bind("", "s"), describe("P"), execute(""), sync()]),
        cat(&[bind("", "s"), execute(""), sync()]),
    ] {
        assert_eq!(detect(Request, &bytes), Verdict::Yes, "{bytes:?}");
        assert_ne!(detect(Request, &bytes[..3]), Verdict::No, "{bytes:?}");
        assert!(
            detect(Request, &bytes[..bytes.len() - 1]) >= Verdict::Unsure,
            "{bytes:?}"
        );
    }
    for bytes in [
        welcome(),
        cat(&[rows(), row(), done("SELECT 1"), ready("I")]),
        cat(&[bound(), rows(), row(), done("SELECT 1"), ready("I")]),
        cat(&[error("23505"), ready("I")]),
        cat(&[parsed(), msg(b't', [0, 0]), rows(), ready("T")]),
        cat(&[row(), row()]),
    ] {
        assert_eq!(detect(Response, &bytes), Verdict::Yes, "{bytes:?}");
        assert_ne!(detect(Response, &bytes[..4]), Verdict::No, "{bytes:?}");
    }
    assert_eq!(detect(Response, b"N"), Verdict::Unsure);
}

#[test]
fn the_traffic_of_others_is_not_taken_for_it() {
    let op_msg = b"\x51\0\0\0\x07\0\0\0\0\0\0\0\xdd\x07\0\0\0\0\0\0\0\x3c\0\0\0";
    let others: &[&[u8]] = &[
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /a HTTP/1.1\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
        b"*1\r\n$4\r\nPING\r\n",
        b"PING\r\n",
        b"SET a 1\r\n",
        b"+PONG\r\n",
        b"-ERR x\r\n",
        b"$-1\r\n",
        b"get a\r\n",
        b"set a 0 0 1\r\n1\r\n",
        b"VALUE a 0 1\r\n1\r\nEND\r\n",
        b"END\r\n",
        b"STORED\r\n",
        b"\x80\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0a",
        b"\x81\0\0\0\0\0\0\0\0\0\0\0",
        b"\x4a\0\0\0\x0a8.0.36\0\x08\0\0\0abcdefgh\0",
        b"\x09\0\0\0\x03SELECT 1",
        b"\x51\0\0\0\x03SELECT 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 2000000",
        op_msg,
        // Kafka's ApiVersions, and Metadata 0, whose key and version look like protocol 3.0.
        b"\0\0\0\x1a\0\x12\0\x03\0\0\0\x01\0\x08consumer\0\x02a\x02b\0",
        b"\0\0\0\x16\0\x03\0\0\0\0\0\x01\0\x08consumer\0\0\0\0",
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

#[test]
fn a_result_whose_end_was_not_captured_is_ended_by_the_next_request() {
    let pieces = [
        asks(1, startup()),
        answers(2, welcome()),
        asks(3, query("SELECT * FROM t")),
        answers(5, cat(&[rows(), row()])),
        answers(9, cat(&[row(), done("SELECT 2"), ready("I")])),
        asks(10, query("SELECT b")),
        answers(11, cat(&[done("SELECT 1"), ready("I")])),
    ];
    for kept in 0..pieces[4].2.len() {
        let decoded = with_gap(&pieces, 4, kept, 0);
        let read: Vec<_> = decoded
            .exchanges
            .iter()
            .map(|e| (e.text.as_str(), e.last_byte_ns))
            .collect();
        assert_eq!(read, [("SELECT * FROM t", 9), ("SELECT b", 11)], "{kept}");
    }
}
