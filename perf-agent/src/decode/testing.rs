//! What the decoders' tests share: transcripts of connections, in any pieces.

use proptest::prelude::*;

use super::{Anomaly, Decoder, Direction, Joined, Options, Output, PROTOCOLS, Protocol};

/// One piece of a connection's bytes: direction, when, what.
pub type Piece = (Direction, u64, Vec<u8>);

/// A request's piece.
pub fn asks(at_ns: u64, bytes: impl AsRef<[u8]>) -> Piece {
    (Direction::Request, at_ns, bytes.as_ref().to_vec())
}

/// An answer's piece.
pub fn answers(at_ns: u64, bytes: impl AsRef<[u8]>) -> Piece {
    (Direction::Response, at_ns, bytes.as_ref().to_vec())
}

/// An exchange by its texts, for comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    pub text: String,
    pub started_ns: u64,
    pub first_byte_ns: u64,
    pub last_byte_ns: u64,
    pub queued_ns: u64,
    pub error: Option<String>,
    pub hits: u32,
    pub misses: u32,
}

/// What a decoder made of a transcript.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decoded {
    pub exchanges: Vec<Read>,
    /// Summed by kind, in the order of their kinds.
    pub anomalies: Vec<(Anomaly, u64)>,
    /// Bytes understood of each direction.
    pub decoded: [u64; 2],
}

impl Decoded {
    /// Text and error of each exchange.
    pub fn texts(&self) -> Vec<(&str, Option<&str>)> {
        let exchanges = self.exchanges.iter();
        exchanges
            .map(|e| (e.text.as_str(), e.error.as_deref()))
            .collect()
    }

    /// A line for each exchange, text, `!error` and `hits/misses` where it has them, then one for
    /// each anomaly with its count.
    pub fn lines(&self) -> Vec<String> {
        let exchanges = self.exchanges.iter().map(|e| {
            let error = e.error.as_deref().map(|e| format!(" !{e}"));
            let error = error.unwrap_or_default();
            match (e.hits, e.misses) {
                (0, 0) => format!("{}{error}", e.text),
                (hits, misses) => format!("{}{error} {hits}/{misses}", e.text),
            }
        });
        let anomalies = self.anomalies.iter();
        let anomalies = anomalies.map(|(what, n)| format!("{} {n}", what.name()));
        exchanges.chain(anomalies).collect()
    }

    pub fn count(&self, what: Anomaly) -> u64 {
        let of_kind = self.anomalies.iter().filter(|(kind, _)| *kind == what);
        of_kind.map(|(_, n)| n).sum()
    }
}

/// A decoder of a protocol, as the registry makes it.
pub fn decoder(protocol: Protocol, joined: Joined) -> Box<dyn Decoder + Send> {
    let entry = PROTOCOLS.iter().find(|e| e.protocol == protocol);
    let entry = entry.unwrap_or_else(|| panic!("{protocol:?} is not in PROTOCOLS"));
    (entry.decoder)(joined)
}

/// Decodes a transcript to its end.
pub fn decode(protocol: Protocol, joined: Joined, pieces: &[Piece]) -> Decoded {
    decode_with(protocol, joined, Options::default(), pieces)
}

/// As [`decode`], with options.
pub fn decode_with(
    protocol: Protocol,
    joined: Joined,
    options: Options,
    pieces: &[Piece],
) -> Decoded {
    let (mut decoder, mut output) = (decoder(protocol, joined), Output::new(options));
    for (direction, at_ns, bytes) in pieces {
        decoder.bytes(*direction, *at_ns, bytes, &mut output);
    }
    decoder.end(&mut output);
    read(&output)
}

/// What passes: bytes, or a gap of so many.
pub type Passing<T> = (Direction, u64, Result<T, u64>);

/// Decodes what passes, gaps with it, to its end; keys are shown.
pub fn run<T: AsRef<[u8]>>(decoder: &mut dyn Decoder, passing: &[Passing<T>]) -> Decoded {
    let mut output = Output::new(Options { raw: true });
    for (direction, at_ns, what) in passing {
        match what {
            Ok(bytes) => decoder.bytes(*direction, *at_ns, bytes.as_ref(), &mut output),
            Err(count) => decoder.gap(*direction, *at_ns, *count, &mut output),
        }
    }
    decoder.end(&mut output);
    read(&output)
}

/// What an output holds, by texts.
pub fn read(output: &Output) -> Decoded {
    let text = |id| output.text_of(id).to_owned();
    let exchanges = output.exchanges.iter().map(|e| Read {
        text: text(e.text),
        started_ns: e.started_ns,
        first_byte_ns: e.first_byte_ns,
        last_byte_ns: e.last_byte_ns,
        queued_ns: e.queued_ns,
        error: e.error.map(text),
        hits: e.hits,
        misses: e.misses,
    });
    let mut sums = std::collections::BTreeMap::new();
    for (what, n) in &output.anomalies {
        *sums.entry(*what).or_default() += n;
    }
    Decoded {
        exchanges: exchanges.collect(),
        anomalies: sums.into_iter().collect(),
        decoded: output.decoded,
    }
}

/// Demands that every piece, cut at every position, and all cut into single bytes, gives the same
/// as whole; returns that.
pub fn cut_anywhere(protocol: Protocol, joined: Joined, pieces: &[Piece]) -> Decoded {
    let whole = decode(protocol, joined, pieces);
    for (i, (direction, at_ns, bytes)) in pieces.iter().enumerate() {
        for cut in 1..bytes.len() {
            let mut parts = pieces.to_vec();
            parts[i].2.truncate(cut);
            parts.insert(i + 1, (*direction, *at_ns, bytes[cut..].to_vec()));
            let cut_up = decode(protocol, joined, &parts);
            assert_eq!(cut_up, whole, "piece {i} cut at {cut}");
        }
    }
    let bytes = pieces
        .iter()
        .flat_map(|(direction, at_ns, bytes)| bytes.iter().map(|b| (*direction, *at_ns, vec![*b])));
    let bytes: Vec<Piece> = bytes.collect();
    assert_eq!(decode(protocol, joined, &bytes), whole, "byte by byte");
    whole
}

/// What a hostile or broken peer may send: pieces and gaps. `seeds` are valid beginnings that are
/// mixed in, so that not only the first check of a decoder is reached.
#[derive(Clone, Debug)]
pub enum Event {
    Bytes(Direction, Vec<u8>),
    Gap(Direction, u64),
}

fn direction() -> impl Strategy<Value = Direction> {
    prop_oneof![Just(Direction::Request), Just(Direction::Response)]
}

/// Sequences of random bytes, of damaged and cut valid messages, and of gaps.
pub fn events(seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<Event>> {
    let random = proptest::collection::vec(any::<u8>(), 0..64);
    let mutated = (
        proptest::sample::select(seeds),
        any::<prop::sample::Index>(),
        any::<u8>(),
        0usize..200,
    )
        .prop_map(|(mut bytes, at, value, keep)| {
            if !bytes.is_empty() && value % 4 != 0 {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            bytes.truncate(keep);
            bytes
        });
    let bytes = prop_oneof![1 => random, 3 => mutated];
    let event = prop_oneof![
        8 => (direction(), bytes).prop_map(|(d, b)| Event::Bytes(d, b)),
        1 => (direction(), prop_oneof![0u64..100, any::<u64>()]).prop_map(|(d, n)| Event::Gap(d, n)),
    ];
    proptest::collection::vec(event, 0..12)
}

/// Feeds events to a decoder; demands that it claims no more bytes decoded than there were.
pub fn survives(protocol: Protocol, joined: Joined, events: &[Event]) {
    let mut output = Output::new(Options::default());
    let mut decoder = decoder(protocol, joined);
    let mut seen = [0u64; 2];
    for (at, event) in events.iter().enumerate() {
        match event {
            Event::Bytes(direction, bytes) => {
                seen[*direction as usize] += bytes.len() as u64;
                decoder.bytes(*direction, at as u64, bytes, &mut output);
            }
            Event::Gap(direction, n) => decoder.gap(*direction, at as u64, *n, &mut output),
        }
    }
    decoder.end(&mut output);
    assert_eq!(decoder.in_flight(), 0, "in flight after the end");
    for (decoded, seen) in output.decoded.iter().zip(seen) {
        assert!(*decoded <= seen, "{decoded} of {seen} bytes decoded");
    }
}

/// First bytes of other protocols' connections, for the tests of `detect`: what no text protocol
/// of a cache or HTTP/1 may take for its own.
pub const FOREIGN: &[&[u8]] = &[
    // A TLS ClientHello.
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x5a\x11\x90\x0d",
    // PostgreSQL: startup, SSL request, simple query, parse, authentication.
    b"\x00\x00\x00\x29\x00\x03\x00\x00user\x00postgres\x00database\x00x\x00\x00",
    b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
    b"Q\x00\x00\x00\x0dSELECT 1\x00",
    b"P\x00\x00\x00\x10\x00SELECT 1\x00\x00\x00",
    b"R\x00\x00\x00\x08\x00\x00\x00\x00",
    // MySQL: greeting, COM_QUERY.
    b"\x4a\x00\x00\x00\x0a8.0.36\x00\x08\x00\x00\x00abcdefgh\x00",
    b"\x09\x00\x00\x00\x03SELECT 1",
    // MongoDB OP_MSG.
    b"\x24\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\xdd\x07\x00\x00\x00\x00\x00\x00\x00\x0f\x00\x00\x00",
    // Kafka ApiVersions.
    b"\x00\x00\x00\x16\x00\x12\x00\x03\x00\x00\x00\x01\x00\x0cconsole-prod",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
    b"\x93\x0b\xf1\x9e\x00\x7a\x55\x31\xee\xa0\x0a\x81\x02\xfd",
];
/// Name, request bytes and answer bytes of a connection's beginning.
pub type FirstBytes = (&'static str, &'static [u8], &'static [u8]);

/// How connections of other protocols begin, for the negative set of `detect`.
pub fn foreign(but: Protocol) -> Vec<FirstBytes> {
    let all: [(Option<Protocol>, FirstBytes); 13] = [
        (
            Some(Protocol::Http),
            (
                "http",
                b"GET /orders/42 HTTP/1.1\r\nHost: a\r\n\r\n",
                b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            ),
        ),
        (
            None,
            (
                "tls",
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
                b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb",
            ),
        ),
        (
            Some(Protocol::Redis),
            ("redis", b"*2\r\n$3\r\nGET\r\n$5\r\nkey:1\r\n", b"$5\r\nvalue\r\n*0\r\n+OK\r\n"),
        ),
        (
            Some(Protocol::Redis),
            ("redis inline", b"PING\r\nSET a b\r\nGET a\r\n\r\n", b"+PONG\r\n+OK\r\n$1\r\nb\r\n"),
        ),
        (
            Some(Protocol::Memcached),
            ("memcached", b"get key:1 key:2 key:3\r\n", b"VALUE key:1 0 5\r\nvalue\r\nEND\r\n"),
        ),
        (
            Some(Protocol::Memcached),
            (
                "memcached binary",
                b"\x80\x00\x00\x05\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\0\0\0\0\0key:1",
                b"\x81\x00\x00\x00\x04\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0value",
            ),
        ),
        (
            Some(Protocol::Postgresql),
            (
                "postgresql startup",
                b"\0\0\0\x21\0\x03\0\0user\0me\0database\0shop\0\0\0\0",
                b"R\0\0\0\x08\0\0\0\0S\0\0\0\x16client_encoding\0UTF8\0",
            ),
        ),
        (
            Some(Protocol::Postgresql),
            (
                "postgresql query",
                b"Q\0\0\0\x19SELECT * FROM orders\0",
                b"T\0\0\0\x1b\0\x01id\0\0\0\x40\0\0\x01\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0",
            ),
        ),
        (
            Some(Protocol::Mysql),
            (
                "mysql",
                b"\x15\0\0\0\x03SELECT * FROM orders",
                b"\x4a\0\0\0\x0a8.0.36\0\x08\0\0\0abcdefgh\0\xff\xff\x21\x02\0\xff\xc1\x15",
            ),
        ),
        (
            Some(Protocol::Mongodb),
            (
                "mongodb",
                b"\x26\0\0\0\x07\0\0\0\0\0\0\0\xdd\x07\0\0\0\0\0\0\0\x11\0\0\0\x10ping\0\x01\0\0\0\0\0\0",
                b"\x26\0\0\0\x09\0\0\0\x07\0\0\0\xdd\x07\0\0\0\0\0\0\0\x11\0\0\0\x01ok\0\0\0\0\0\0\0\xf0\x3f\0",
            ),
        ),
        (
            Some(Protocol::Kafka),
            (
                "kafka",
                b"\0\0\0\x19\0\x12\0\x03\0\0\0\x01\0\x05admin\0\x04lib\x061.0.0\0",
                b"\0\0\0\x10\0\0\0\x01\0\0\x02\0\x12\0\0\0\x03\0\0\0\0\0",
            ),
        ),
        (
            Some(Protocol::Http2),
            (
                "http2",
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
                b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64\0\0\0\x04\x01\0\0\0\0",
            ),
        ),
        (
            None,
            ("ssh", b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"),
        ),
    ];
    let others = all
        .into_iter()
        .filter(|(protocol, _)| *protocol != Some(but));
    others.map(|(_, first)| first).collect()
}
