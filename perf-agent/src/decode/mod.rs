//! Application protocols over byte streams: what a connection carried, as exchanges of a request
//! and its answer.
//!
//! A [`Decoder`] is pure and does no I/O: it takes the bytes of both directions in stream order,
//! in whatever pieces they came, and gives [`Exchange`]s. It never aborts: bad input is an
//! [`Anomaly`] and the decoder goes on at the next message boundary it can find. Its memory is
//! bounded by constants, whatever lengths a peer claims.
//!
//! One file a protocol and one line in [`PROTOCOLS`].

pub mod connections;
pub mod conversation;
pub mod correlated;
mod ends;
pub mod framing;
mod gathered;
mod http;
pub mod http2;
pub mod kafka;
mod key_texts;
pub mod keys;
pub mod lane;
mod lexer;
mod memcached;
pub mod mongodb;
pub mod mysql;
pub mod output;
pub mod outstanding;
pub mod postgresql;
mod redis;
pub mod requests;
pub mod route;
pub mod seek;
pub mod shapes;
pub mod sql;
pub mod statements;
pub mod sync;
mod telling;
#[cfg(test)]
mod testing;
pub mod tls;
pub mod trace_context;

pub use output::{Anomaly, Exchange, Options, Output, TextId, Transaction};
pub use outstanding::{Outcome, Outstanding};
pub use sync::Sync;
pub use trace_context::TraceId;

/// Which way bytes flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Client to server.
    Request,
    /// Server to client.
    Response,
}

impl Direction {
    pub const fn other(self) -> Direction {
        match self {
            Direction::Request => Direction::Response,
            Direction::Response => Direction::Request,
        }
    }
}

/// How sure a look at the first bytes of a piece makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Cannot be this protocol: not asked again for this connection.
    No,
    /// Too short to tell, or nothing in it that tells.
    Unsure,
    /// Fits, but other protocols would look the same; taken if no other is surer.
    Maybe,
    /// Nothing else looks like this.
    Yes,
}

/// Whether a decoder sees a connection from its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joined {
    AtStart,
    /// The connection is older than the trace: handshakes and prepared statements are unseen, and
    /// the first bytes may be in the middle of a message.
    Late,
}

/// A protocol perf-agent decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Postgresql,
    Mysql,
    Redis,
    Memcached,
    Mongodb,
    Http,
    Http2,
    Kafka,
}

impl Protocol {
    /// Name in `connections`, `statements` and, behind `net.`, in the ledger.
    pub const fn name(self) -> &'static str {
        match self {
            Protocol::Postgresql => "postgresql",
            Protocol::Mysql => "mysql",
            Protocol::Redis => "redis",
            Protocol::Memcached => "memcached",
            Protocol::Mongodb => "mongodb",
            Protocol::Http => "http",
            Protocol::Http2 => "http2",
            Protocol::Kafka => "kafka",
        }
    }
}

/// Decodes one connection.
pub trait Decoder {
    /// Takes bytes of one direction, in stream order. `at_ns` is when the last of them was sent or
    /// received (CLOCK_MONOTONIC).
    fn bytes(&mut self, direction: Direction, at_ns: u64, bytes: &[u8], output: &mut Output);

    /// `count` bytes of one direction passed that were not captured.
    fn gap(&mut self, direction: Direction, at_ns: u64, count: u64, output: &mut Output);

    /// The connection ended, or the trace did: what is outstanding stays unanswered.
    fn end(&mut self, output: &mut Output);

    /// Requests that wait for (the rest of) their answer.
    fn in_flight(&self) -> usize;

    /// Whether there are any: asked with each piece.
    fn is_in_flight(&self) -> bool {
        self.in_flight() > 0
    }

    /// Whether a client waits for an answer or for the rest of one. An answer that stays open for events, with
    /// nothing between them, is not waited for.
    fn is_awaited(&self) -> bool {
        self.is_in_flight()
    }

    /// Whether what the client sent is whole and nothing of it waits to be answered: its next byte begins a
    /// request. For protocols in which a client also sends what is never answered; others need not tell.
    fn is_at_boundary(&self) -> bool {
        false
    }

    /// Whether what follows is TLS (or GSSAPI's encryption): the client asked for it and the server
    /// agreed. It is not this decoder's any more.
    fn encrypted(&self) -> bool {
        false
    }

    /// What follows is what that encryption carries, from its first byte.
    fn decrypted(&mut self) {}
}

/// A protocol's line in the registry.
pub struct Entry {
    pub protocol: Protocol,
    /// Looks at the beginning of a piece of one direction.
    pub detect: fn(Direction, &[u8]) -> Verdict,
    pub decoder: fn(Joined) -> Box<dyn Decoder + Send>,
}

/// Every protocol, the surest to recognise first.
pub const PROTOCOLS: &[Entry] = &[
    Entry {
        protocol: Protocol::Postgresql,
        detect: postgresql::detect,
        decoder: postgresql::decoder,
    },
    Entry {
        protocol: Protocol::Mysql,
        detect: mysql::detect,
        decoder: mysql::decoder,
    },
    Entry {
        protocol: Protocol::Mongodb,
        detect: mongodb::detect,
        decoder: mongodb::decoder,
    },
    Entry {
        protocol: Protocol::Http2,
        detect: http2::detect,
        decoder: http2::decoder,
    },
    Entry {
        protocol: Protocol::Kafka,
        detect: kafka::detect,
        decoder: kafka::decoder,
    },
    http::ENTRY,
    redis::ENTRY,
    memcached::ENTRY,
];

/// Cuts a text to at most so many bytes, between two characters; whether it was longer.
fn cut_to(text: &mut String, most_bytes: usize) -> bool {
    let longer = text.len() > most_bytes;
    if longer {
        // A character has at most four bytes, so this looks at four places at most.
        let end = (0..=most_bytes).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
    }
    longer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_characters() {
        for (most_bytes, cut) in [
            (0, ""),
            (1, "a"),
            (2, "a"),
            (3, "aé"),
            (6, "aé"),
            (7, "aé😀"),
        ] {
            let mut text = "aé😀".to_owned();
            assert_eq!(cut_to(&mut text, most_bytes), most_bytes < 7);
            assert_eq!(text, cut, "{most_bytes}");
        }
    }
}
