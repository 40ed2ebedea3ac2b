//! What one request and its answer cost a decoder, each in one piece: `cargo bench --bench decode`.

use criterion::{Criterion, criterion_group, criterion_main};
use perf_agent::decode::{Decoder, Direction, Joined, Options, Output, PROTOCOLS, Protocol};

fn decoder(protocol: Protocol) -> Box<dyn Decoder + Send> {
    let entry = PROTOCOLS.iter().find(|e| e.protocol == protocol);
    let entry = entry.expect("the protocol is in PROTOCOLS");
    (entry.decoder)(Joined::AtStart)
}

/// Decodes `opening` once, then a request and an answer an iteration, numbered by `patch`; each must
/// give one exchange and no anomaly.
fn exchange(
    c: &mut Criterion,
    (protocol, name): (Protocol, &str),
    opening: [&[u8]; 2],
    [mut request, mut answer]: [Vec<u8>; 2],
    patch: impl Fn(u32, &mut [u8], &mut [u8]),
) {
    let (mut decoder, mut output) = (decoder(protocol), Output::new(Options::default()));
    decoder.bytes(Direction::Request, 1, opening[0], &mut output);
    decoder.bytes(Direction::Response, 1, opening[1], &mut output);
    output.exchanges.clear();
    let mut n = 1u32;
    c.bench_function(name, |b| {
        b.iter(|| {
            n = n.wrapping_add(1);
            patch(n, &mut request, &mut answer);
            let at_ns = u64::from(n);
            decoder.bytes(Direction::Request, at_ns, &request, &mut output);
            decoder.bytes(Direction::Response, at_ns, &answer, &mut output);
            assert_eq!(output.exchanges.len(), 1, "{:?}", output.anomalies);
            output.exchanges.clear();
            output.transactions.clear();
        });
    });
    assert!(output.anomalies.is_empty(), "{:?}", output.anomalies);
}

/// Writes a number of seven digits into a text.
fn number(n: u32, at: usize, bytes: &mut [u8]) {
    let digits = format!("{:07}", n % 10_000_000);
    bytes[at..at + 7].copy_from_slice(digits.as_bytes());
}

fn postgresql(c: &mut Criterion) {
    let opening: [&[u8]; 2] = [
        b"\0\0\0\x11\0\x03\0\0user\0me\0\0P\0\0\0\x14P0_1\0SELECT 1\0\0\0S\0\0\0\x04",
        b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I1\0\0\0\x04Z\0\0\0\x05I",
    ];
    let rows = b"T\0\0\0\x1b\0\x01id\0\0\0\x40\x01\0\x01\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0\
        D\0\0\0\x0b\0\x01\0\0\0\x011C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I";
    let run = b"B\0\0\0\x1b\0P0_1\0\0\0\0\x01\0\0\0\x070000000\0\0D\0\0\0\x06P\0E\0\0\0\x09\0\0\0\0\0S\0\0\0\x04";
    let answer = [&b"2\0\0\0\x04"[..], rows].concat();
    let name = (Protocol::Postgresql, "postgresql prepared");
    let patch = |n: u32, request: &mut [u8], _: &mut [u8]| number(n, 19, request);
    exchange(c, name, opening, [run.to_vec(), answer], patch);
    // A text of 100 bytes that is another one each time.
    let text = b"UPDATE pgbench_accounts SET abalance = abalance + 17 WHERE aid = 0000000 AND name = 'it''s' AND a < 3\0";
    let mut query = b"Q".to_vec();
    query.extend((text.len() as u32 + 4).to_be_bytes());
    query.extend(text);
    let name = (Protocol::Postgresql, "postgresql simple, new literals");
    let patch = |n: u32, request: &mut [u8], _: &mut [u8]| number(n, 70, request);
    exchange(c, name, opening, [query.clone(), rows.to_vec()], patch);
    let name = (Protocol::Postgresql, "postgresql simple, seen before");
    exchange(c, name, opening, [query, rows.to_vec()], |_, _, _| {});
}

fn mysql(c: &mut Criterion) {
    let mut login = b"\x22\0\0\x01\x85\xa6\x0f\x01\0\0\0\x01\xff".to_vec();
    login.extend([0; 23]);
    login.extend(b"u\0");
    login.extend(b"\x09\0\0\0\x16SELECT ?");
    let prepared = b"\x07\0\0\x02\0\0\0\x02\0\0\0\x0c\0\0\x01\0\x07\0\0\0\0\0\0\0\0\0\0";
    let opening: [&[u8]; 2] = [&login, prepared];
    let rows = b"\x01\0\0\x01\x01\x1a\0\0\x02\x03def\x01d\x01t\x01t\x02id\x02id\x0c\x3f\0\x0b\0\0\0\x03\0\0\
        \x02\0\0\x03\x011\x07\0\0\x04\xfe\0\0\x02\0\0\0";
    let run = b"\x0e\0\0\0\x17\x07\0\0\0\0\x01\0\0\0\0\0\0\0";
    let name = (Protocol::Mysql, "mysql prepared");
    exchange(
        c,
        name,
        opening,
        [run.to_vec(), rows.to_vec()],
        |_, _, _| {},
    );
    let mut query = b"\x24\0\0\0\x03".to_vec();
    query.extend(b"SELECT a FROM orders WHERE b=0000000");
    query[0] = (query.len() - 4) as u8;
    let name = (Protocol::Mysql, "mysql text, new literals");
    let patch = |n: u32, request: &mut [u8], _: &mut [u8]| number(n, 34, request);
    exchange(c, name, opening, [query, rows.to_vec()], patch);
}

criterion_group!(benches, postgresql, mysql);
criterion_main!(benches);
