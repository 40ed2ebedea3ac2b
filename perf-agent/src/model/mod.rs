//! Plain data that leaves the pipeline: one type for each line of the output contract.
//!
//! Serialized as NDJSON, one object a line: the common fields of [`Line`], then those of its
//! [`Body`]. Units are in the names. `schema.json` describes the same shapes; a test holds them
//! together. Every line that measures covers its own window only, and windows do not overlap, so
//! lines add up.

mod accelerator;
mod coverage;
mod finding;
mod ledger;
mod lock;
mod memory;
mod profile;
mod requests;
mod sockets;

use std::collections::BTreeMap;

use serde::Serialize;

pub use accelerator::*;
pub use coverage::*;
pub use finding::*;
pub use ledger::*;
pub use lock::*;
pub use memory::*;
pub use profile::*;
pub use requests::*;
pub use sockets::*;

/// Version of the output contract, the field `v`.
pub const VERSION: u32 = 1;

/// One line of output.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    pub v: u32,
    #[serde(flatten)]
    pub body: Body,
}

impl Line {
    pub fn new(body: Body) -> Self {
        Line { v: VERSION, body }
    }
}

/// What a line says.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Body {
    Hello(Hello),
    Ledger(Ledger),
    Syscalls(Syscalls),
    Profile(Profile),
    Connections(Connections),
    Statements(Statements),
    Requests(Requests),
    Finding(Finding),
    Coverage(Coverage),
    Dropped(Dropped),
    Bye(Bye),
}

impl Body {
    pub fn stamp(&self) -> &Stamp {
        match self {
            Body::Hello(line) => &line.stamp,
            Body::Ledger(line) => &line.stamp,
            Body::Syscalls(line) => &line.stamp,
            Body::Profile(line) => &line.stamp,
            Body::Connections(line) => &line.stamp,
            Body::Statements(line) => &line.stamp,
            Body::Requests(line) => &line.stamp,
            Body::Finding(line) => &line.stamp,
            Body::Coverage(line) => &line.stamp,
            Body::Dropped(line) => &line.stamp,
            Body::Bye(line) => &line.stamp,
        }
    }
}

/// Where and when a line was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stamp {
    /// RFC 3339, UTC, of the end of the window.
    pub ts: String,
    pub host: String,
}

/// A process a line speaks of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Process {
    pub pid: u32,
    pub comm: String,
}

/// Half-open interval of CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Window {
    pub start_ns: u64,
    pub end_ns: u64,
}

impl Window {
    pub fn length_ns(&self) -> u64 {
        self.end_ns.saturating_sub(self.start_ns)
    }
}

/// First line: what this trace can and cannot see.
#[derive(Clone, Debug, Serialize)]
pub struct Hello {
    #[serde(flatten)]
    pub stamp: Stamp,
    /// Version of perf-agent.
    pub agent: String,
    /// `uname -r`.
    pub kernel: String,
    pub arch: String,
    pub cpus: u32,
    /// Processes named on the command line.
    pub targets: Vec<Process>,
    pub follow_children: bool,
    pub interval_ns: u64,
    /// Every signal, on or off.
    pub signals: Vec<SignalState>,
}

/// Whether a signal is on, and why not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SignalState {
    pub name: String,
    pub on: bool,
    /// Why it is off or reduced; how it is attached where it is on.
    pub reason: String,
}

/// In the stream of a slow reader: lines are missing here.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Dropped {
    /// Of the last that is missing.
    #[serde(flatten)]
    pub stamp: Stamp,
    pub lines: u64,
}

/// Last line.
#[derive(Clone, Debug, Serialize)]
pub struct Bye {
    #[serde(flatten)]
    pub stamp: Stamp,
    /// `duration`, `target_exit`, `interrupt`, `terminate`, `end_of_recording`, `reader_gone`.
    pub reason: String,
    pub windows: u64,
    /// Sums over the whole trace.
    pub lifetime_ns: u64,
    pub residual_ns: u64,
    pub generated: u64,
    pub received: u64,
    pub lost: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub streams: Vec<StreamCoverage>,
    /// Exit code of a command started by the trace; 128 + signal where one ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
}

/// Everything about one process in one window: what detection looks at.
#[derive(Clone, Debug)]
pub struct ProcessReport {
    pub ledger: Ledger,
    pub syscalls: Option<Syscalls>,
    pub profile: Profile,
    pub connections: Option<Connections>,
    pub statements: Option<Statements>,
    /// Not part of the lines: of `profile --mode alloc`.
    pub allocations: Vec<AllocationSite>,
    pub requests: Option<Requests>,
}

/// Everything of one window, in the order it is emitted.
#[derive(Clone, Debug)]
pub struct WindowReport {
    pub processes: Vec<ProcessReport>,
    pub coverage: Coverage,
}
