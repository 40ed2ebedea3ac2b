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
    let mut n = n;
    for digit in bytes[at..at + 7].iter_mut().rev() {
        *digit = b'0' + (n % 10) as u8;
        n /= 10;
    }
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

/// A pipeline of sixteen GETs in one piece, answered in one piece.
fn redis_pipeline(c: &mut Criterion) {
    let mut request = b"*2\r\n$3\r\nGET\r\n$16\r\nkey:000000000000\r\n".repeat(16);
    let (length, answer) = (request.len() / 16, b"$3\r\nxxx\r\n".repeat(16));
    let (mut decoder, mut output) = (decoder(Protocol::Redis), Output::new(Options::default()));
    let mut n = 1u32;
    c.bench_function("redis get, 16 in a pipeline", |b| {
        b.iter(|| {
            for at in 0..16 {
                n = n.wrapping_add(1);
                number(n, at * length + 27, &mut request);
            }
            decoder.bytes(Direction::Request, n.into(), &request, &mut output);
            decoder.bytes(Direction::Response, n.into(), &answer, &mut output);
            assert_eq!(output.exchanges.len(), 16, "{:?}", output.anomalies);
            output.exchanges.clear();
        });
    });
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

fn mongodb(c: &mut Criterion) {
    let message = |document: &[u8]| {
        let length = document.len() as u32 + 25;
        let size = (document.len() as u32 + 5).to_le_bytes();
        let head = [
            &length.to_le_bytes()[..],
            &[0; 8],
            b"\xdd\x07\0\0\0\0\0\0\0",
            &size,
        ];
        let mut bytes = [&head.concat(), document, b"\0"].concat();
        bytes[..4].copy_from_slice(&(length + 1).to_le_bytes());
        bytes
    };
    let find = message(
        b"\x02find\0\x07\0\0\0orders\0\x03filter\0\x20\0\0\0\x02status\0\x05\0\0\0paid\0\x10_id\0\x07\0\0\0\0\
        \x10limit\0\x05\0\0\0\x02$db\0\x05\0\0\0shop\0",
    );
    let ok = message(b"\x01ok\0\0\0\0\0\0\0\xf0\x3f");
    let patch = |n: u32, request: &mut [u8], answer: &mut [u8]| {
        request[4..8].copy_from_slice(&n.to_le_bytes());
        answer[8..12].copy_from_slice(&n.to_le_bytes());
    };
    let name = (Protocol::Mongodb, "mongodb find");
    exchange(c, name, [b"", b""], [find, ok], patch);
}

fn kafka(c: &mut Criterion) {
    let produce =
        b"\0\0\0\x42\0\0\0\x07\0\0\0\0\0\x03app\xff\xff\0\x01\0\0\x75\x30\0\0\0\x01\0\x06orders\
        \0\0\0\x01\0\0\0\0\0\0\0\x10datadatadatadata";
    let mut produce = produce.to_vec();
    let size = produce.len() as u32 - 4;
    produce[..4].copy_from_slice(&size.to_be_bytes());
    let produced = [
        &b"\0\0\0\x38\0\0\0\0\0\0\0\x01\0\x06orders\0\0\0\x01\0\0\0\0\0\0"[..],
        &[0; 28],
    ];
    let mut produced = produced.concat();
    let size = produced.len() as u32 - 4;
    produced[..4].copy_from_slice(&size.to_be_bytes());
    let patch = |n: u32, request: &mut [u8], answer: &mut [u8]| {
        request[8..12].copy_from_slice(&n.to_be_bytes());
        answer[4..8].copy_from_slice(&n.to_be_bytes());
    };
    let name = (Protocol::Kafka, "kafka produce");
    exchange(c, name, [b"", b""], [produce, produced], patch);
}

fn http2(c: &mut Criterion) {
    let settings: &[u8] = b"\0\0\0\x04\0\0\0\0\0";
    let opening = [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
        settings,
        b"\0\0\x3b\x01\x05\0\0\0\x01\x83\x86\x44\x13/shop.v1.Orders/Get\x5f\x10application/grpc",
        b"\x40\x02te\x08trailers",
    ];
    let mut opening = opening.concat();
    let block = opening.len() - 24 - 9 - 9;
    opening[24 + 9 + 2] = block as u8;
    // Indexed headers, then a message of ten bytes; an answer with trailers.
    let request =
        b"\0\0\x05\x01\x04\0\0\0\x03\x83\x86\xc0\xbf\xbe\0\0\x0a\0\x01\0\0\0\x03\0\0\0\0\x05abcde";
    let answer = b"\0\0\x01\x01\x04\0\0\0\x03\x88\0\0\x0a\0\0\0\0\0\x03\0\0\0\0\x05abcde\
        \0\0\x0f\x01\x05\0\0\0\x03\x00\x0bgrpc-status\x010";
    let patch = |n: u32, request: &mut [u8], answer: &mut [u8]| {
        // Streams are numbered up to 2^31; the benchmark ends before.
        let stream = (2 * n + 1).to_be_bytes();
        for at in [5, 19] {
            request[at..at + 4].copy_from_slice(&stream);
        }
        for at in [5, 15, 34] {
            answer[at..at + 4].copy_from_slice(&stream);
        }
    };
    let opening = [&opening[..], settings];
    let name = (Protocol::Http2, "http2 grpc unary");
    exchange(c, name, opening, [request.to_vec(), answer.to_vec()], patch);
}

criterion_group!(
    benches,
    redis,
    redis_pipeline,
    memcached,
    http,
    mongodb,
    kafka,
    http2
);
criterion_main!(benches);
