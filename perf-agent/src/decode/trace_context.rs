//! The header `traceparent` (W3C Trace Context, section 3.2): which trace a request belongs to.

use std::fmt;

/// Length of version, trace-id, parent-id and flags with their hyphens.
const LENGTH: usize = 55;
/// Longest value that is looked at; later versions may append to it.
pub const MAX_VALUE: usize = 512;

/// A trace's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TraceId([u8; 16]);

impl TraceId {
    /// The id in a value of the header; `None` where the value breaks a rule of its version.
    pub fn parse(value: &[u8]) -> Option<TraceId> {
        let value = value.trim_ascii();
        let (known, rest) = value.split_at_checked(LENGTH)?;
        let (version, trace, parent, flags) =
            (&known[..2], &known[3..35], &known[36..52], &known[53..]);
        let hyphens = [2, 35, 52].iter().all(|at| known[*at] == b'-');
        let more = match version {
            b"00" => rest.is_empty(),
            _ => rest.is_empty() || rest[0] == b'-',
        };
        let legal = [version, trace, parent, flags]
            .iter()
            .all(|part| part.iter().all(is_hex));
        let named = [trace, parent]
            .iter()
            .all(|part| part.iter().any(|b| *b != b'0'));
        if !(hyphens && more && legal && named) || version == b"ff" {
            return None;
        }
        let mut id = [0; 16];
        for (byte, pair) in id.iter_mut().zip(trace.chunks_exact(2)) {
            *byte = digit(pair[0]) << 4 | digit(pair[1]);
        }
        Some(TraceId(id))
    }
}

/// Hexadecimal in lower case, as the recommendation asks for.
fn is_hex(byte: &u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

fn digit(byte: u8) -> u8 {
    match byte {
        b'0'..=b'9' => byte - b'0',
        _ => byte.wrapping_sub(b'a').wrapping_add(10) & 0xf,
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(value: &str) -> Option<String> {
        TraceId::parse(value.as_bytes()).map(|id| id.to_string())
    }

    #[test]
    fn the_examples_of_the_recommendation_are_read() {
        for value in [
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            " 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00\t",
            // A later version, with what it may append.
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-the-future-will-be-like",
        ] {
            let id = parsed(value);
            assert_eq!(
                id.as_deref(),
                Some("4bf92f3577b34da6a3ce929d0e0e4736"),
                "{value}"
            );
        }
    }

    #[test]
    fn what_breaks_a_rule_is_no_trace() {
        for value in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.x",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736+00f067aa0ba902b7-01",
        ] {
            assert_eq!(parsed(value), None, "{value}");
        }
    }

    proptest! {
        #[test]
        fn any_id_comes_back_as_it_was_written(
            trace in "[0-9a-f]{32}", parent in "[0-9a-f]{16}", flags in "[0-9a-f]{2}"
        ) {
            let zero = trace.bytes().all(|b| b == b'0') || parent.bytes().all(|b| b == b'0');
            let value = format!("00-{trace}-{parent}-{flags}");
            prop_assert_eq!(parsed(&value), (!zero).then_some(trace));
        }

        #[test]
        fn no_value_makes_it_panic(value: Vec<u8>) {
            let _ = TraceId::parse(&value);
        }
    }
}
