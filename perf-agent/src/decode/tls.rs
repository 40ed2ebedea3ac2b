//! TLS, recognised and not read.

use super::Direction;

/// Whether a piece begins with a TLS record (RFC 8446, section 5.1).
pub fn looks_like(_direction: Direction, bytes: &[u8]) -> bool {
    match bytes {
        // Change-cipher-spec, alert, handshake, application data; version 3.0 to 3.4; at most
        // 2^14 + 256 bytes (a TLS 1.2 record may have 2,048 more).
        [20..=23, 3, 0..=4, high, low, ..] => {
            let length = usize::from(*high) << 8 | usize::from(*low);
            (1..=16384 + 2048).contains(&length)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_recognised_and_text_and_lengths_past_the_limit_are_not() {
        for record in [
            &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
            b"\x17\x03\x03\x00\x20aaaa",
        ] {
            assert!(looks_like(Direction::Request, record));
        }
        for other in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"*1\r\n$4\r\nPING\r\n",
            b"\x16\x03\x01\xff\xff\x01",
            b"\x16\x03",
            b"",
        ] {
            assert!(!looks_like(Direction::Request, other));
        }
    }
}
