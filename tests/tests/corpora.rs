//! Decoders on public packet captures, in every kind of pieces. The captures are not part of the
//! project: they are looked for in `$PERF_AGENT_CORPORA`, else in `../shared/corpora` beside the
//! workspace, when the tests are built; without them the test is shown as ignored.

use std::path::Path;

use perf_agent::decode::{Joined, Options, Output, PROTOCOLS, Protocol};
use perf_agent_tests::capture::{Connection, Event, connections, cut_at, in_pieces};

/// A capture, the protocol of all its connections, and what is read of each connection: text and
/// error of its exchanges, then anomalies with their counts.
type Expected = (&'static str, Protocol, &'static [&'static [&'static str]]);

const CAPTURES: &[Expected] = &[
    (
        "redis/redis-debug.pcap",
        Protocol::Redis,
        &[&["LRANGE mylist"]],
    ),
    (
        "redis/redis-error.pcap",
        Protocol::Redis,
        &[&["GET abcd !NOAUTH"]],
    ),
    (
        "memcached/memcached.pcap",
        Protocol::Memcached,
        &[&["SET foo", "GET foo", "QUIT"]],
    ),
    ("http/httpv1.pcap", Protocol::Http, &[&["POST /query"]]),
    // One packet each way: neither the request's head nor the answer's body ends in it.
    ("http/client-ip.pcap", Protocol::Http, &[&["unanswered 1"]]),
];

fn read(protocol: Protocol, joined: Joined, events: &[Event]) -> Vec<String> {
    let entry = PROTOCOLS.iter().find(|e| e.protocol == protocol);
    let mut decoder = (entry.expect("in the registry").decoder)(joined);
    let mut output = Output::new(Options { raw: true });
    for event in events {
        match event {
            Event::Bytes(direction, at_ns, bytes) => {
                decoder.bytes(*direction, *at_ns, bytes, &mut output);
            }
            Event::Gap(direction, at_ns, count) => {
                decoder.gap(*direction, *at_ns, *count, &mut output);
            }
        }
    }
    decoder.end(&mut output);
    let exchanges = output.exchanges.iter().map(|exchange| {
        let text = output.text_of(exchange.text);
        match exchange.error {
            Some(error) => format!("{text} !{}", output.text_of(error)),
            None => text.to_owned(),
        }
    });
    let mut anomalies = std::collections::BTreeMap::new();
    for (what, count) in &output.anomalies {
        *anomalies.entry(what.name()).or_insert(0) += count;
    }
    let anomalies = anomalies.iter().map(|(name, n)| format!("{name} {n}"));
    exchanges.chain(anomalies).collect()
}

/// Pieces of every kind give the same; cut ones give nothing that was not there.
fn in_any_pieces(what: &str, protocol: Protocol, connection: &Connection) -> Vec<String> {
    let Connection { joined, events, .. } = connection;
    let whole = read(protocol, *joined, events);
    let mut random = 1u64;
    for limit in [1, 2, 7, 64, 1000] {
        let size = || {
            random = random
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (random >> 33) as usize % limit + 1
        };
        // Where the beginning was not seen, only whole pieces tell where a message begins.
        if *joined == Joined::AtStart {
            let pieces = in_pieces(events, size);
            assert_eq!(read(protocol, *joined, &pieces), whole, "{what} by {limit}");
        }
        let mut left = whole.clone();
        for line in read(protocol, *joined, &cut_at(events, limit)) {
            // A message whose end was not seen has its text, but not its error.
            let known = |l: &String| *l == line || l.split(" !").next() == Some(&line);
            match left.iter().position(known) {
                Some(at) => _ = left.remove(at),
                None => assert!(is_anomaly(&line), "{what} cut at {limit}: {line}"),
            }
        }
    }
    whole
}

fn is_anomaly(line: &str) -> bool {
    let (name, count) = line.rsplit_once(' ').unwrap_or_default();
    let plain = |c: char| c.is_ascii_lowercase() || c == '_';
    count.parse::<u64>().is_ok() && name.chars().all(plain)
}

#[test]
#[cfg_attr(
    not(corpora),
    ignore = "no captures in $PERF_AGENT_CORPORA or ../shared/corpora"
)]
fn captures_are_read_as_expected_in_any_pieces() {
    let directory = Path::new(option_env!("PERF_AGENT_CORPORA").unwrap_or_default());
    let mut wrong = String::new();
    for (path, protocol, expected) in CAPTURES {
        let connections = connections(&directory.join("deepflow").join(path));
        let read = connections
            .iter()
            .map(|c| in_any_pieces(path, *protocol, c));
        let read: Vec<Vec<String>> = read.collect();
        if read != *expected {
            wrong += &format!("{path}: {read:#?}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
#[cfg_attr(
    not(corpora),
    ignore = "no captures in $PERF_AGENT_CORPORA or ../shared/corpora"
)]
fn captures_are_recognised_by_their_first_piece_and_by_no_other_decoder() {
    let directory = Path::new(option_env!("PERF_AGENT_CORPORA").unwrap_or_default());
    for (path, protocol, _) in CAPTURES {
        for connection in connections(&directory.join("deepflow").join(path)) {
            let Some(Event::Bytes(direction, _, bytes)) = connection.events.first() else {
                continue;
            };
            let verdicts = PROTOCOLS
                .iter()
                .map(|e| ((e.detect)(*direction, bytes), e.protocol));
            // The first of the surest, as the trace takes it.
            let best = verdicts.rev().max_by_key(|(verdict, _)| *verdict);
            assert_eq!(best.map(|(_, p)| p), Some(*protocol), "{path}: {bytes:?}");
        }
    }
}
