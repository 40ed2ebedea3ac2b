//! What the figures of a window rest on, and what they cost.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{RequestCoverage, Stamp, Window};

/// What the figures of a window rest on.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Coverage {
    #[serde(flatten)]
    pub stamp: Stamp,
    pub window: Window,
    /// Sums over all processes of the window.
    pub lifetime_ns: u64,
    pub residual_ns: u64,
    /// Ring records made by the kernel side, received here; the difference is in `lost`.
    pub generated: u64,
    pub received: u64,
    /// By reason, zero ones left out.
    pub lost: BTreeMap<String, u64>,
    /// Events that the kernel did not tell of and that were put back, by kind: those of threads exactly.
    pub inferred: BTreeMap<String, u64>,
    pub bytes_seen: u64,
    pub bytes_decoded: u64,
    pub sockets: SocketCoverage,
    pub requests: RequestCoverage,
    /// Frames of the stacks shown in this window: all, and those without a symbol.
    pub frames: u64,
    pub unsymbolized_frames: u64,
    pub stack_memo: StackMemoCoverage,
    /// Walks of user stacks by why they ended (`complete`: at the outermost frame), zero ones left
    /// out.
    pub stack_walks: BTreeMap<String, u64>,
    /// Walks of Python frames by why they ended (`complete`: at the outermost frame), and what became
    /// of them: `shifted`, `unreadable`. Zero ones are left out.
    pub python_walks: BTreeMap<String, u64>,
    /// Entries in the kernel side's maps at the end of the window.
    pub maps: BTreeMap<String, u64>,
    pub agent: AgentCost,
    /// What went to other readers beside standard output and the file, since the coverage before.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub streams: Vec<StreamCoverage>,
}

/// What one of `--listen` and `--exec` was given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StreamCoverage {
    /// `listen` or `exec`.
    pub stream: String,
    /// The socket's path; the delegate.
    pub name: String,
    /// Readers connected now; 1 while the command runs.
    pub readers: u64,
    /// Readers that were turned away because there were too many.
    pub refused: u64,
    /// Lines meant for them, summed over the readers.
    pub lines: u64,
    /// Of these, those that did not reach them because they did not read; each is told where they
    /// are missing.
    pub dropped: u64,
    /// How often the command was started again.
    pub restarts: u64,
}

/// What could not be read of the sockets' bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SocketCoverage {
    /// Used in the window.
    pub connections: u64,
    /// Past the number that is listed.
    pub unlisted_connections: u64,
    pub unlisted_bytes: u64,
    pub tls_unreadable_bytes: u64,
    /// TLS libraries that programs of the target have loaded or linked in and that `--tls on` cannot
    /// read, as far as they were looked for.
    pub unreadable_tls: Vec<String>,
    /// Exchanges past the number of statements kept apart.
    pub statements_dropped: u64,
    /// Exchanges of processes that have no lines of their own.
    pub unattributed_statements: u64,
    /// Messages that could not be paired or read, by reason: `orphan_answers` (the request was before
    /// the attach), `unanswered`, `malformed`, `resynced`, `queue_full`, `unsupported`,
    /// `status_unseen` (an HTTP/2 answer whose status is in header fields sent before the attach).
    pub anomalies: BTreeMap<String, u64>,
}

/// How far stacks taken from the memo can be trusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StackMemoCoverage {
    pub hits: u64,
    pub walks: u64,
    /// Hits walked again, and how many of them had another stack.
    pub checked: u64,
    pub mismatched: u64,
}

/// What the agent itself cost in the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct AgentCost {
    /// CPU time of the agent's process.
    pub cpu_ns: u64,
    /// Time inside its kernel programs, on all CPUs, in every process of the host: measured for
    /// `bpf_fraction` of the window and divided by it.
    pub bpf_ns: u64,
    pub bpf_fraction: f64,
    /// Resident at the end of the window.
    pub rss_bytes: u64,
}
