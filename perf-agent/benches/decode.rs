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
        });
    });
    assert!(output.anomalies.is_empty(), "{:?}", output.anomalies);
}

/// Writes a number of seven digits into a key.
fn number(n: u32, at: usize, bytes: &mut [u8]) {
    let digits = format!("{:07}", n % 10_000_000);
    bytes[at..at + 7].copy_from_slice(digits.as_bytes());
}

fn redis(c: &mut Criterion) {
    let get = b"*2\r\n$3\r\nGET\r\n$20\r\nuser:0000000:profile\r\n".to_vec();
    let value = b"$5\r\nvalue\r\n".to_vec();
    let name = (Protocol::Redis, "redis get");
    let patch = |n: u32, request: &mut [u8], _: &mut [u8]| number(n, 23, request);
    exchange(c, name, [b"", b""], [get, value], patch);
    let set = b"*3\r\n$3\r\nSET\r\n$16\r\nkey:000000000000\r\n$3\r\nxxx\r\n".to_vec();
    let patch = |n: u32, request: &mut [u8], _: &mut [u8]| number(n, 27, request);
    let name = (Protocol::Redis, "redis set");
    exchange(c, name, [b"", b""], [set, b"+OK\r\n".to_vec()], patch);
}

fn memcached(c: &mut Criterion) {
    let get = b"get user:0000000:profile\r\n".to_vec();
    let value = b"VALUE user:0000000:profile 0 5\r\nvalue\r\nEND\r\n".to_vec();
    let name = (Protocol::Memcached, "memcached get");
    let patch = |n: u32, request: &mut [u8], _: &mut [u8]| number(n, 9, request);
    exchange(c, name, [b"", b""], [get, value], patch);
}

fn http(c: &mut Criterion) {
    let get = b"GET /users/0000000/orders?page=2 HTTP/1.1\r\nHost: shop.example\r\nAccept: */*\r\n\
        User-Agent: curl/8.5.0\r\nAccept-Encoding: gzip\r\n\r\n";
    let answer = b"HTTP/1.1 200 OK\r\nServer: nginx\r\nContent-Type: text/plain\r\n\
        Content-Length: 5\r\nConnection: keep-alive\r\n\r\nvalue";
    let name = (Protocol::Http, "http get");
    let patch = |n: u32, request: &mut [u8], _: &mut [u8]| number(n, 11, request);
    exchange(c, name, [b"", b""], [get.to_vec(), answer.to_vec()], patch);
}

criterion_group!(benches, redis, memcached, http);
criterion_main!(benches);
