//! Connections and what was said on them.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Latency, Process, Stamp, Window};

/// Stream sockets that one process used in the window.
#[derive(Clone, Debug, Serialize)]
pub struct Connections {
    #[serde(flatten)]
    pub stamp: Stamp,
    #[serde(flatten)]
    pub who: Process,
    pub window: Window,
    /// Those that moved most bytes first; `coverage.sockets` counts those that are not listed.
    pub connections: Vec<ConnectionRow>,
}

/// A connection. Bytes and counts are the window's.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ConnectionRow {
    /// Inode number of the socket, as in `/proc/PID/fd`.
    pub id: u64,
    /// Protocol spoken; `unknown`, or `tls-unreadable` where it is encrypted.
    pub protocol: String,
    /// `client` or `server`.
    pub role: String,
    /// `address:port`; the path of a Unix socket on its server's end, empty on the other.
    pub local: String,
    pub peer: String,
    /// `new` or `preexisting` (made before the attach).
    pub age: String,
    /// Its first window, of a new one.
    pub opened: bool,
    pub closed: bool,
    pub tx_bytes: u64,
    pub rx_bytes: u64,
    /// From the first SYN until established; absent where that was not seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_ns: Option<u64>,
    /// Mean of the kernel's smoothed round-trip time at the receives of the window; absent where
    /// there was none, and on Unix sockets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtt_ns: Option<u64>,
    /// Smallest and largest since the first byte seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtt_min_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtt_max_ns: Option<u64>,
    /// Segments sent again.
    pub retransmits: u64,
    /// Resets, by either end.
    pub resets: u64,
    /// Blocked because the send buffer was full: how often, for how long.
    pub send_stalls: u64,
    pub send_stall_ns: u64,
    /// Encrypted. Where the plaintext was seen `protocol` is what it carries; `bytes_seen` of
    /// `coverage` then counts the plaintext, and of the ciphertext only handshakes and alerts, while
    /// `tx_bytes` and `rx_bytes` are what the socket moved.
    pub tls: bool,
    /// Requests answered in the window.
    pub exchanges: u64,
    /// Requests without their answer at the end of the window.
    pub in_flight: u64,
    /// Time the server waited, inside a transaction, for the client's next statement.
    pub idle_in_transaction_ns: u64,
}

/// What one process asked for, or was asked for, by statement.
#[derive(Clone, Debug, Serialize)]
pub struct Statements {
    #[serde(flatten)]
    pub stamp: Stamp,
    #[serde(flatten)]
    pub who: Process,
    pub window: Window,
    /// Those that took longest in all first.
    pub statements: Vec<StatementRow>,
}

/// Exchanges of one shape.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StatementRow {
    pub protocol: String,
    /// `client`: this process asked; `server`: it was asked.
    pub role: String,
    /// The server's address for a client, the client's host for a server.
    pub peer: String,
    /// Hash of protocol and text: the same on every host and in every run.
    pub fingerprint: String,
    /// Its shape, without literals.
    pub text: String,
    /// Answered in the window.
    pub count: u64,
    /// How many of them ended with an error; by SQLSTATE, errno or status in `errors_by_code`.
    pub errors: u64,
    pub errors_by_code: BTreeMap<String, u64>,
    /// From the request's first byte to the answer's last.
    pub latency: Latency,
    /// From the request's first byte to the answer's first.
    pub first_byte: Latency,
    /// Behind earlier requests of the same connection, part of `latency`.
    pub queued: Latency,
    /// Sum of latencies by length of the window: above 1 where several ran at once.
    pub wall_share: f64,
    /// Cache look-ups that found something, and that found nothing.
    pub hits: u64,
    pub misses: u64,
    /// Sequences of five and more of this statement on one connection that another one led to: how
    /// many, how many exchanges, the longest, and what led to the last of them.
    pub runs: u64,
    pub run_exchanges: u64,
    pub longest_run: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub led_by: Option<String>,
}
