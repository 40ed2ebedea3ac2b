use std::collections::BTreeMap;

use perf_ebpf_common::signals::{RecordHeader, record};
use proptest::prelude::*;

use super::*;
use crate::decode::{Options, Output, TextId};
use crate::drain::RequestFact;
use crate::model::Latency;

const MS: u64 = 1_000_000;
const PROCESS: u32 = 10;

/// Threads that move bytes, and what they are told to have spent.
struct Server {
    requests: Requests,
    output: Output,
    connections: BTreeMap<u64, Serving>,
    route: TextId,
    served: u64,
    life: BTreeMap<u32, u64>,
}

impl Server {
    fn new() -> Server {
        let mut output = Output::new(Options::default());
        let route = output.text("GET /a");
        Server {
            requests: Requests::default(),
            output,
            connections: BTreeMap::new(),
            route,
            served: 0,
            life: BTreeMap::new(),
        }
    }

    /// The thread got onto the CPU at this time, having spent so much in each class since its birth at
    /// time 0.
    fn on_cpu(&mut self, tid: u32, since_ns: u64, spent: &[(u8, u64)]) {
        let mut spent_ns = [0; class::COUNT];
        for (class, ns) in spent {
            spent_ns[*class as usize] = *ns;
        }
        self.life.insert(tid, since_ns);
        self.requests.told(&ThreadTotals {
            header: RecordHeader {
                kind: record::THREAD_TOTALS,
                pad: 0,
                at_ns: since_ns,
            },
            since_ns,
            start_ns: 0,
            spent_ns,
            unaccounted_ns: since_ns - spent_ns.iter().sum::<u64>(),
            tid,
            tgid: PROCESS,
        });
    }

    fn moves(
        &mut self,
        tid: u32,
        connection: u64,
        at_ns: u64,
        sent: bool,
        in_flight: usize,
        ended: &[Exchange],
    ) {
        let piece = Piece {
            sent,
            in_flight: in_flight > 0,
            ..self.piece(tid, connection, at_ns)
        };
        self.passes(&piece, ended);
    }

    /// Received, and behind it nothing is in flight.
    fn piece(&self, tid: u32, connection: u64, at_ns: u64) -> Piece {
        Piece {
            connection,
            tid,
            tgid: PROCESS,
            at_ns,
            account_ns: self.life.get(&tid).copied().unwrap_or(0),
            sent: false,
            in_flight: false,
            asks_nothing: false,
        }
    }

    fn passes(&mut self, piece: &Piece, ended: &[Exchange]) {
        self.served += ended.len() as u64;
        let serving = self.connections.entry(piece.connection).or_default();
        self.requests
            .served(serving, piece, Some(Protocol::Http), ended);
    }

    /// Reads what is whole and never answered.
    fn skips(&mut self, tid: u32, connection: u64, at_ns: u64) {
        let piece = Piece {
            asks_nothing: true,
            ..self.piece(tid, connection, at_ns)
        };
        self.passes(&piece, &[]);
    }

    fn reads(&mut self, tid: u32, connection: u64, at_ns: u64) {
        self.moves(tid, connection, at_ns, false, 1, &[]);
    }

    fn answers(&mut self, tid: u32, connection: u64, started_ns: u64, at_ns: u64) {
        let exchange = self.exchange(started_ns, at_ns);
        self.moves(tid, connection, at_ns, true, 0, &[exchange]);
    }

    fn exchange(&self, started_ns: u64, at_ns: u64) -> Exchange {
        Exchange {
            text: self.route,
            started_ns,
            first_byte_ns: at_ns,
            last_byte_ns: at_ns,
            queued_ns: 0,
            error: None,
            hits: 0,
            misses: 0,
            trace: None,
        }
    }

    fn told(&mut self) -> RequestFact {
        let served = Served {
            latency: Latency {
                count: std::mem::take(&mut self.served),
                ..Latency::default()
            },
            ..Served::of((PROCESS, Protocol::Http, self.route))
        };
        let peer = |place: u32| format!("peer {place}");
        let routes = &mut self.requests.routes;
        let facts = routes.window(vec![served], &self.output, peer);
        let [fact] = <[RequestFact; 1]>::try_from(facts).unwrap();
        let refused: u64 = fact.row.unattributed.values().sum();
        assert_eq!(fact.row.attributed + refused, fact.row.count, "{fact:?}");
        fact
    }

    /// Attributed requests, and the reasons of the others.
    fn verdicts(&mut self) -> (u64, Vec<(String, u64)>) {
        let row = self.told().row;
        (row.attributed, row.unattributed.into_iter().collect())
    }
}

fn refused(reason: Reason, n: u64) -> Vec<(String, u64)> {
    vec![(reason.name().to_owned(), n)]
}

/// Thread 1 reads a request of connection 7 at 10 ms and answers it at 110 ms.
fn one_request(server: &mut Server) {
    server.on_cpu(1, 9 * MS, &[(class::IDLE, 9 * MS)]);
    server.reads(1, 7, 10 * MS);
    let spent = [
        (class::IDLE, 9 * MS),
        (class::CPU, 31 * MS),
        (class::NET_POSTGRESQL, 60 * MS),
    ];
    server.on_cpu(1, 100 * MS, &spent);
    server.answers(1, 7, 10 * MS, 110 * MS);
}

#[test]
fn a_request_of_one_thread_has_the_difference_of_the_threads_account() {
    let mut server = Server::new();
    one_request(&mut server);
    let row = server.told().row;
    assert_eq!((row.attributed, row.unattributed.len()), (1, 0));
    let classes: Vec<(&str, u64)> = row
        .ledger
        .classes
        .iter()
        .map(|(class, ns)| (class.as_str(), *ns))
        .collect();
    assert_eq!(classes, [("cpu", 40 * MS), ("net.postgresql", 60 * MS)]);
    assert_eq!(
        (row.ledger.latency_ns, row.ledger.residual_ns),
        (100 * MS, 0)
    );
    assert_eq!(row.slowest.len(), 1);
    assert_eq!(row.slowest[0].ledger.as_ref(), Some(&row.ledger));
    assert_eq!(row.text, "GET /a");
}

#[test]
fn one_that_ran_throughout_needs_one_account() {
    let mut server = Server::new();
    server.on_cpu(1, 9 * MS, &[(class::IDLE, 9 * MS)]);
    server.reads(1, 7, 10 * MS);
    server.answers(1, 7, 10 * MS, 12 * MS);
    let row = server.told().row;
    assert_eq!(row.ledger.classes["cpu"], 2 * MS);
    assert_eq!(row.ledger.classes.len(), 1);
}

#[test]
fn requests_one_after_the_other_are_each_their_own() {
    let mut server = Server::new();
    server.on_cpu(1, 9 * MS, &[(class::IDLE, 9 * MS)]);
    for (connection, at) in [(7, 10), (8, 20), (7, 30), (7, 40)] {
        server.reads(1, connection, at * MS);
        server.answers(1, connection, at * MS, (at + 5) * MS);
    }
    let row = server.told().row;
    assert_eq!((row.attributed, row.ledger.classes["cpu"]), (4, 20 * MS));
    assert_eq!(row.slowest.len(), 3);
}

#[test]
fn interleaved_requests_are_not_attributed() {
    // Each begins or ends inside the other, or lies inside it.
    for order in ["aBAb", "abAB", "abBA", "aABb"] {
        let mut server = Server::new();
        server.on_cpu(1, MS, &[(class::IDLE, MS)]);
        let mut started = BTreeMap::new();
        for (i, event) in order.chars().enumerate() {
            let at = (10 + i as u64) * MS;
            let connection = u64::from(event.eq_ignore_ascii_case(&'b'));
            if event.is_ascii_lowercase() {
                started.insert(connection, at);
                server.reads(1, connection, at);
            } else if let Some(started) = started.remove(&connection) {
                server.answers(1, connection, started, at);
            } else {
                // An answer to what was read before the trace.
                server.moves(1, connection, at, true, 0, &[]);
            }
        }
        let expected = match order {
            "aABb" => (1, vec![]),
            "aBAb" => (0, refused(Reason::Interleaved, 1)),
            _ => (0, refused(Reason::Interleaved, 2)),
        };
        assert_eq!(server.verdicts(), expected, "{order}");
    }
}

#[test]
fn one_read_while_another_is_open_is_not_attributed_even_if_nothing_moves_between() {
    let mut server = Server::new();
    server.on_cpu(1, MS, &[(class::IDLE, MS)]);
    server.reads(1, 8, 5 * MS);
    server.reads(1, 7, 10 * MS);
    server.answers(1, 7, 10 * MS, 20 * MS);
    assert_eq!(server.verdicts(), (0, refused(Reason::Interleaved, 1)));
    // Its connection ends: nothing is open any more.
    let mut gone = server.connections.remove(&8).unwrap();
    server.requests.answered(&mut gone);
    server.reads(1, 7, 30 * MS);
    server.answers(1, 7, 30 * MS, 40 * MS);
    assert_eq!(server.verdicts(), (1, vec![]));
}

#[test]
fn pipelined_requests_are_not_attributed() {
    // Both in one piece, answered in one.
    let mut server = Server::new();
    server.on_cpu(1, MS, &[(class::IDLE, MS)]);
    server.moves(1, 7, 10 * MS, false, 2, &[]);
    let both = [
        server.exchange(10 * MS, 20 * MS),
        server.exchange(10 * MS, 20 * MS),
    ];
    server.moves(1, 7, 20 * MS, true, 0, &both);
    assert_eq!(server.verdicts(), (0, refused(Reason::Pipelined, 2)));
    // Answered one by one.
    server.moves(1, 7, 30 * MS, false, 2, &[]);
    let first = server.exchange(30 * MS, 31 * MS);
    server.moves(1, 7, 31 * MS, true, 1, &[first]);
    server.answers(1, 7, 30 * MS, 32 * MS);
    assert_eq!(server.verdicts(), (0, refused(Reason::Pipelined, 2)));
}

#[test]
fn after_a_request_was_handed_over_those_of_the_process_are_not_attributed_for_a_while() {
    let mut server = Server::new();
    server.on_cpu(1, MS, &[(class::IDLE, MS)]);
    server.on_cpu(2, MS, &[(class::IDLE, MS)]);
    server.reads(1, 7, 10 * MS);
    server.answers(2, 7, 10 * MS, 20 * MS);
    server.reads(1, 8, 30 * MS);
    server.answers(1, 8, 30 * MS, 40 * MS);
    assert_eq!(server.verdicts(), (0, refused(Reason::HandedOver, 2)));
    let later = HANDED_OVER_NS + 20 * MS;
    server.reads(1, 8, later);
    server.answers(1, 8, later, later + MS);
    assert_eq!(server.verdicts(), (1, vec![]));
}

#[test]
fn a_connection_may_be_served_by_another_thread_the_next_time() {
    let mut server = Server::new();
    for (tid, at) in [(1, 10), (2, 20), (1, 30)] {
        server.on_cpu(tid, MS, &[(class::IDLE, MS)]);
        server.reads(tid, 7, at * MS);
        server.answers(tid, 7, at * MS, (at + 1) * MS);
    }
    assert_eq!(server.verdicts(), (3, vec![]));
}

#[test]
fn without_the_account_or_the_beginning_nothing_is_attributed() {
    // No account at all.
    let mut server = Server::new();
    server.reads(1, 7, 10 * MS);
    server.answers(1, 7, 10 * MS, 20 * MS);
    assert_eq!(server.verdicts(), (0, refused(Reason::NotSeen, 1)));
    // The last one was lost: the thread was off the CPU since the one that came.
    let mut server = Server::new();
    server.on_cpu(1, MS, &[(class::IDLE, MS)]);
    server.reads(1, 7, 10 * MS);
    server.life.insert(1, 15 * MS);
    server.answers(1, 7, 10 * MS, 20 * MS);
    assert_eq!(server.verdicts(), (0, refused(Reason::NotSeen, 1)));
    // The request was read before the trace.
    let mut server = Server::new();
    server.on_cpu(1, MS, &[(class::IDLE, MS)]);
    server.answers(1, 7, 10 * MS, 20 * MS);
    assert_eq!(server.verdicts(), (0, refused(Reason::NotSeen, 1)));
    // The connection ended the answer.
    let mut server = Server::new();
    let exchange = server.exchange(10 * MS, 20 * MS);
    server.requests.ended(PROCESS, Protocol::Http, &[exchange]);
    server.served = 1;
    assert_eq!(server.verdicts(), (0, refused(Reason::NotSeen, 1)));
}

#[test]
fn an_account_that_does_not_sum_to_the_latency_is_said_and_not_used() {
    let mut server = Server::new();
    server.on_cpu(1, 9 * MS, &[(class::IDLE, 9 * MS)]);
    server.reads(1, 7, 10 * MS);
    // Of the 90 ms up to here 2 are in no class.
    server.on_cpu(1, 100 * MS, &[(class::IDLE, 9 * MS), (class::CPU, 89 * MS)]);
    server.answers(1, 7, 10 * MS, 110 * MS);
    assert_eq!(server.verdicts(), (0, refused(Reason::Residual, 1)));
}

#[test]
fn a_request_in_several_pieces_begins_with_the_first() {
    let mut server = Server::new();
    server.on_cpu(1, MS, &[(class::IDLE, MS)]);
    // Its head comes in two pieces; then an interim answer, then the body.
    server.moves(1, 7, 10 * MS, false, 0, &[]);
    server.moves(1, 7, 11 * MS, false, 1, &[]);
    server.moves(1, 7, 12 * MS, true, 1, &[]);
    server.moves(1, 7, 13 * MS, false, 1, &[]);
    server.answers(1, 7, 10 * MS, 20 * MS);
    assert_eq!(server.told().row.ledger.latency_ns, 10 * MS);
}

#[test]
fn what_is_never_answered_begins_no_request() {
    let mut server = Server::new();
    server.on_cpu(1, MS, &[(class::IDLE, MS)]);
    // In front of the first request, between two, and once in pieces.
    server.skips(1, 7, 8 * MS);
    server.skips(1, 7, 9 * MS);
    server.reads(1, 7, 10 * MS);
    server.answers(1, 7, 10 * MS, 20 * MS);
    server.moves(1, 7, 21 * MS, false, 0, &[]);
    server.skips(1, 7, 22 * MS);
    server.reads(1, 7, 30 * MS);
    server.answers(1, 7, 30 * MS, 50 * MS);
    assert_eq!(server.told().row.ledger.latency_ns, 30 * MS);
    // Within an answer it ends nothing.
    server.reads(1, 7, 60 * MS);
    server.moves(1, 7, 61 * MS, true, 1, &[]);
    server.moves(1, 7, 62 * MS, false, 1, &[]);
    server.answers(1, 7, 60 * MS, 70 * MS);
    assert_eq!(server.verdicts(), (1, vec![]));
}

#[test]
fn what_the_thread_asked_others_for_belongs_to_the_request() {
    let mut server = Server::new();
    let (query, get) = (server.output.text("SELECT ?"), server.output.text("GET k"));
    server.on_cpu(1, 9 * MS, &[(class::IDLE, 9 * MS)]);
    let exchange = |text, from: u64, to: u64| Exchange {
        text,
        ..Server::new().exchange(from * MS, to * MS)
    };
    let (postgresql, redis) = ((Protocol::Postgresql, 0), (Protocol::Redis, 1));
    // Before the request.
    server
        .requests
        .called((1, PROCESS), true, postgresql, &[exchange(query, 2, 3)]);
    server.reads(1, 7, 10 * MS);
    server
        .requests
        .called((1, PROCESS), true, postgresql, &[exchange(query, 11, 31)]);
    // A pipeline of two, and then another thread's.
    let pipeline = [exchange(get, 40, 42), exchange(get, 40, 43)];
    server.requests.called((1, PROCESS), true, redis, &pipeline);
    server
        .requests
        .called((2, PROCESS), true, redis, &[exchange(get, 44, 45)]);
    let mut failed = exchange(query, 50, 60);
    failed.error = Some(server.output.text("57014"));
    server
        .requests
        .called((1, PROCESS), true, postgresql, &[failed]);
    server.answers(1, 7, 10 * MS, 110 * MS);
    server
        .requests
        .called((1, PROCESS), true, redis, &[exchange(get, 120, 121)]);
    let row = server.told().row;
    // By a process that serves nobody.
    server
        .requests
        .called((9, PROCESS + 1), true, redis, &[exchange(get, 1, 2)]);
    let served = [Served::of((PROCESS, Protocol::Http, get))];
    let (all, elsewhere) = (7, 3);
    assert_eq!(server.requests.asked_by(&served), Asked { all, elsewhere });
    assert_eq!(server.requests.asked_by(&served), Asked::default());
    let told: Vec<(&str, &str, u64, u64, u64)> = row
        .downstream
        .iter()
        .map(|d| (&*d.protocol, &*d.peer, d.count, d.errors, d.time_ns / MS))
        .collect();
    assert_eq!(
        told,
        [
            ("postgresql", "peer 0", 2, 1, 30),
            ("redis", "peer 1", 2, 0, 3)
        ]
    );
    let gets = &row.downstream[1].statements;
    assert_eq!((gets.len(), &*gets[0].text), (1, "GET k"));
    assert_eq!((gets[0].count, gets[0].sum_ns), (2, 5 * MS));
    assert_eq!(row.slowest[0].downstream, row.downstream);
}

#[test]
fn what_is_asked_on_a_connection_that_threads_share_is_of_no_request() {
    let mut server = Server::new();
    server.on_cpu(1, 9 * MS, &[(class::IDLE, 9 * MS)]);
    server.reads(1, 7, 10 * MS);
    let exchange = server.exchange(11 * MS, 12 * MS);
    let peer = (Protocol::Postgresql, 0);
    server
        .requests
        .called((1, PROCESS), false, peer, &[exchange]);
    server.answers(1, 7, 10 * MS, 20 * MS);
    assert!(server.told().row.downstream.is_empty());
    let served = [Served::of((PROCESS, Protocol::Http, TextId::default()))];
    let (all, elsewhere) = (1, 1);
    assert_eq!(server.requests.asked_by(&served), Asked { all, elsewhere });
}

#[test]
fn the_slowest_are_kept_with_their_trace() {
    let mut server = Server::new();
    server.on_cpu(1, MS, &[(class::IDLE, MS)]);
    let traceparent = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    for (i, took) in [3, 9, 1, 7, 5, 8].into_iter().enumerate() {
        let at = (100 * i as u64 + 10) * MS;
        server.reads(1, 7, at);
        let mut exchange = server.exchange(at, at + took * MS);
        exchange.trace = crate::decode::TraceId::parse(traceparent).filter(|_| took == 8);
        server.moves(1, 7, at + took * MS, true, 0, &[exchange]);
    }
    let row = server.told().row;
    let slowest: Vec<(u64, Option<&str>)> = row
        .slowest
        .iter()
        .map(|s| (s.latency_ns / MS, s.trace_id.as_deref()))
        .collect();
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    assert_eq!(slowest, [(9, None), (8, Some(trace)), (7, None)]);
}

#[test]
fn threads_that_do_nothing_are_forgotten_unless_they_have_a_request_open() {
    let mut server = Server::new();
    server.on_cpu(1, MS, &[(class::IDLE, MS)]);
    server.reads(2, 7, 10 * MS);
    server.requests.forget(FORGET_NS + 20 * MS);
    let known: Vec<u32> = server.requests.threads.keys().copied().collect();
    assert_eq!(known, [2]);
}

proptest! {
    /// Whatever order bytes of three connections and two threads come in: a request is attributed only
    /// if no other piece of its thread lies between its own, and the counts add up.
    #[test]
    fn nothing_else_of_the_thread_lies_inside_an_attributed_request(
        steps in proptest::collection::vec((1u32..3, 0u64..3, any::<bool>()), 1..60)
    ) {
        let mut server = Server::new();
        server.on_cpu(1, 0, &[]);
        server.on_cpu(2, 0, &[]);
        let mut open: BTreeMap<u64, (u32, u64)> = BTreeMap::new();
        let mut pieces: Vec<(u32, u64, u64)> = Vec::new();
        for (i, (tid, connection, sent)) in steps.into_iter().enumerate() {
            let at = (i as u64 + 1) * MS;
            let before = server.requests.routes.attributed();
            match (sent, open.get(&connection).copied()) {
                (true, Some((reader, started))) => {
                    open.remove(&connection);
                    server.answers(tid, connection, started, at);
                    if server.requests.routes.attributed() > before {
                        prop_assert_eq!(tid, reader);
                        let alone = pieces
                            .iter()
                            .filter(|(by, _, when)| *by == tid && *when > started)
                            .all(|(_, of, _)| *of == connection);
                        prop_assert!(alone);
                        prop_assert!(open.values().all(|(by, _)| *by != tid));
                    }
                }
                (true, None) => server.moves(tid, connection, at, true, 0, &[]),
                (false, Some(_)) => server.moves(tid, connection, at, false, 1, &[]),
                (false, None) => {
                    open.insert(connection, (tid, at));
                    server.reads(tid, connection, at);
                }
            }
            pieces.push((tid, connection, at));
        }
        server.told();
    }
}
