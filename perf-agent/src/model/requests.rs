//! Requests that a process answered, and where the time of each went.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Classes, Latency, Process, Stamp, Window};

/// Requests that one process answered in the window, by route or statement.
#[derive(Clone, Debug, Serialize)]
pub struct Requests {
    #[serde(flatten)]
    pub stamp: Stamp,
    #[serde(flatten)]
    pub who: Process,
    pub window: Window,
    /// Those that took longest in all first.
    pub requests: Vec<RequestRow>,
}

/// Requests of one shape.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RequestRow {
    pub protocol: String,
    /// As that of the same shape in `statements`.
    pub fingerprint: String,
    /// Its shape, without literals.
    pub text: String,
    /// Answered in the window.
    pub count: u64,
    /// How many of them ended with an error; by SQLSTATE, errno or status in `errors_by_code`.
    pub errors: u64,
    pub errors_by_code: BTreeMap<String, u64>,
    /// From the receive that brought the request's first byte to the send that took the answer's last.
    pub latency: Latency,
    /// How many of them a single thread answered that did nothing else meanwhile.
    pub attributed: u64,
    /// The others, by why their time cannot be told apart.
    pub unattributed: BTreeMap<String, u64>,
    /// Where the time of those that are attributed went, summed.
    pub ledger: RequestLedger,
    /// What those asked others for, by peer, the one that took longest first.
    pub downstream: Vec<Downstream>,
    /// The slowest ones, slowest first.
    pub slowest: Vec<SlowRequest>,
}

/// What the thread that answered did, from the first byte to the last: its classes and the residual
/// sum to `latency_ns`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestLedger {
    pub latency_ns: u64,
    /// As in `ledger`, but for `cpu`, which is not split.
    pub classes: Classes,
    pub residual_ns: u64,
}

/// What was asked of one peer for requests, by the thread that answered them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Downstream {
    pub protocol: String,
    /// Address of the server, or path of its Unix socket.
    pub peer: String,
    pub count: u64,
    pub errors: u64,
    /// For how long at least one answer was outstanding.
    pub time_ns: u64,
    /// Those that took longest in all first.
    pub statements: Vec<DownstreamStatement>,
}

/// One statement of a [`Downstream`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DownstreamStatement {
    pub text: String,
    pub count: u64,
    pub errors: u64,
    /// Sum of latencies.
    pub sum_ns: u64,
}

/// A single request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlowRequest {
    /// CLOCK_MONOTONIC.
    pub started_ns: u64,
    pub latency_ns: u64,
    /// Thread that sent the end of the answer.
    pub tid: u32,
    /// SQLSTATE, errno or status it ended with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Trace id of its `traceparent` header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// Why there is no ledger.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unattributed: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ledger: Option<RequestLedger>,
    pub downstream: Vec<Downstream>,
}

/// How many requests have a ledger of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RequestCoverage {
    /// Answered in the window.
    pub served: u64,
    pub attributed: u64,
    /// By reason: `interleaved` (the thread had other requests between this one's first byte and its
    /// last), `pipelined` (several on the connection at once), `handed_over` (threads of the process
    /// pass requests on to each other), `not_seen` (its beginning or the thread's account was before
    /// the attach, or lost), `residual` (the account does not sum to its latency).
    pub unattributed: BTreeMap<String, u64>,
    /// What processes that answered requests asked others for in the window.
    pub calls: u64,
    /// Of them, those that `downstream` of no request can have: of a thread that served none then (a pool, a
    /// driver's own thread, work in the background), or on a connection that several threads use.
    pub calls_elsewhere: u64,
}
