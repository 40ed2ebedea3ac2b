//! TLS records, recognised and not read: what a connection that cannot be decoded is.
//!
//! Own code of a few lines: of a record only its header is looked at, and of a ClientHello two
//! extensions; `tls-parser` builds every message it meets.

use super::Direction;

/// A record's header: type, version, length.
const HEADER: usize = 5;
const HANDSHAKE: u8 = 22;
/// 2^14 and what encryption may add (2048 up to version 1.2).
const MAX_RECORD: usize = 16384 + 2048;
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;

/// Length of the record that begins here, if it can be one.
fn record(bytes: &[u8]) -> Option<(u8, usize)> {
    let [kind, major, minor, high, low] = *bytes.first_chunk::<HEADER>()?;
    let length = usize::from(u16::from_be_bytes([high, low]));
    // ChangeCipherSpec, alert, handshake, application data, heartbeat; SSL 3.0 to TLS 1.3.
    let fits = match kind {
        20 => length == 1,
        21 => (2..=256).contains(&length),
        22..=24 => length > 0,
        _ => false,
    };
    (fits && major == 3 && minor <= 4 && length <= MAX_RECORD).then_some((kind, length))
}

/// Whether the beginning of a piece, of a new connection or of one joined late, is TLS: every
/// record in the piece up to the last, which may be cut, has a header that can be one.
pub fn looks_like(direction: Direction, bytes: &[u8]) -> bool {
    let Some((kind, length)) = record(bytes) else {
        return false;
    };
    if kind == HANDSHAKE && bytes.len() >= HEADER + 4 {
        // The first handshake message of either side; those after it are encrypted, and their
        // length is in no relation to the record's.
        let hello = match direction {
            Direction::Request => 1,
            Direction::Response => 2,
        };
        let [kind, a, b, c] = [bytes[5], bytes[6], bytes[7], bytes[8]];
        let claimed = u32::from_be_bytes([0, a, b, c]) as usize;
        if kind == hello && claimed > MAX_RECORD * 4 {
            return false;
        }
    }
    let mut rest = bytes.get(HEADER + length..).unwrap_or(&[]);
    while rest.len() >= HEADER {
        let Some((_, length)) = record(rest) else {
            return false;
        };
        rest = rest.get(HEADER + length..).unwrap_or(&[]);
    }
    true
}

/// What a ClientHello tells in the clear.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientHello<'a> {
    /// `legacy_version`: 0x0303 for TLS 1.2 and 1.3.
    pub version: u16,
    /// The name of the server: a value, shown only when raw values may be.
    pub server_name: Option<&'a [u8]>,
    /// The first protocol offered, such as `h2`.
    pub alpn: Option<&'a [u8]>,
}

/// Takes a length of `N` bytes and that many bytes off the beginning.
fn sized<'a, const N: usize>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = bytes.split_first_chunk::<N>()?;
    let length = length.iter().fold(0, |n, b| n << 8 | usize::from(*b));
    let (taken, rest) = rest.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

/// Reads the ClientHello at the beginning of a connection, as far as it is whole in its first
/// record and in `bytes`.
pub fn client_hello(bytes: &[u8]) -> Option<ClientHello<'_>> {
    let (kind, length) = record(bytes)?;
    let message = bytes.get(HEADER..)?;
    let message = &message[..length.min(message.len())];
    let (header, mut body) = message.split_first_chunk::<4>()?;
    if kind != HANDSHAKE || header[0] != 1 {
        return None;
    }
    let version = u16::from_be_bytes(*body.first_chunk()?);
    let mut hello = ClientHello {
        version,
        ..ClientHello::default()
    };
    // Version and random; session; cipher suites; compression.
    body = body.get(34..)?;
    sized::<1>(&mut body)?;
    sized::<2>(&mut body)?;
    sized::<1>(&mut body)?;
    // The extensions may be cut: what is whole of them is read.
    let mut extensions = body.get(2..).unwrap_or(&[]);
    while let Some((kind, rest)) = extensions.split_first_chunk::<2>() {
        extensions = rest;
        let Some(mut value) = sized::<2>(&mut extensions) else {
            break;
        };
        match u16::from_be_bytes(*kind) {
            SERVER_NAME => {
                let mut list = sized::<2>(&mut value).unwrap_or(&[]);
                if list.first() == Some(&0) {
                    list = &list[1..];
                    hello.server_name = sized::<2>(&mut list);
                }
            }
            ALPN => {
                let mut list = sized::<2>(&mut value).unwrap_or(&[]);
                hello.alpn = sized::<1>(&mut list);
            }
            _ => {}
        }
    }
    Some(hello)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::decode::{Protocol, testing};

    fn hello() -> Vec<u8> {
        let name = b"\0\0\0\x0f\0\x0d\0\0\x0ashop.local";
        let alpn = b"\0\x10\0\x0e\0\x0c\x02h2\x08http/1.1";
        let mut body = [&[3, 3][..], &[7; 32], b"\0\0\x02\x13\x01\x01\0"].concat();
        let extensions = [&name[..], alpn].concat();
        body.extend((extensions.len() as u16).to_be_bytes());
        body.extend(extensions);
        let mut bytes = vec![22, 3, 1];
        bytes.extend((body.len() as u16 + 4).to_be_bytes());
        bytes.push(1);
        bytes.extend(&(body.len() as u32).to_be_bytes()[1..]);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn a_client_hello_tells_its_version_name_and_first_protocol() {
        let bytes = hello();
        assert!(looks_like(Direction::Request, &bytes));
        let read = client_hello(&bytes).expect("a hello");
        assert_eq!(read.version, 0x0303);
        assert_eq!(read.server_name, Some(&b"shop.local"[..]));
        assert_eq!(read.alpn, Some(&b"h2"[..]));
        let cut = client_hello(&bytes[..bytes.len() - 1]).expect("a hello");
        assert_eq!(
            (cut.server_name, cut.alpn),
            (Some(&b"shop.local"[..]), None)
        );
    }

    #[test]
    fn records_in_the_middle_of_a_stream_are_recognised_in_both_directions() {
        let data = |n: usize| [&[23, 3, 3][..], &(n as u16).to_be_bytes(), &vec![0xab; n]].concat();
        for direction in [Direction::Request, Direction::Response] {
            assert!(looks_like(direction, &[data(100), data(300)].concat()));
            assert!(looks_like(direction, &data(4000)[..50]));
            assert!(!looks_like(
                direction,
                &[data(100), b"plain text".to_vec()].concat()
            ));
            assert!(!looks_like(direction, &data(20000)));
            assert!(!looks_like(direction, b"\x17\x03"));
        }
        assert!(looks_like(
            Direction::Response,
            b"\x14\x03\x03\0\x01\x01\x17\x03\x03\0\x20..."
        ));
    }

    #[test]
    fn no_protocol_that_is_decoded_looks_like_tls() {
        for but in [Protocol::Http, Protocol::Mongodb] {
            for (name, request, response) in testing::foreign(but) {
                let expected = name == "tls";
                assert_eq!(looks_like(Direction::Request, request), expected, "{name}");
                assert_eq!(
                    looks_like(Direction::Response, response),
                    expected,
                    "{name}"
                );
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100_000))]
        #[test]
        fn any_bytes_end(mut bytes in proptest::collection::vec(any::<u8>(), 0..80), seed: bool) {
            if seed {
                let hello = hello();
                let n = bytes.len().min(hello.len());
                for (i, byte) in hello.iter().enumerate().take(n) {
                    if bytes[i] % 8 != 0 {
                        bytes[i] = *byte;
                    }
                }
            }
            let _ = (looks_like(Direction::Request, &bytes), client_hello(&bytes));
        }
    }
}
