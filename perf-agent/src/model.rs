//! Plain data that leaves the pipeline: one type for each line of the output contract.
//!
//! Serialized as NDJSON, one object a line: the common fields of [`Line`], then those of its
//! [`Body`]. Units are in the names. `schema.json` describes the same shapes; a test holds them
//! together. Every line that measures covers its own window only, and windows do not overlap, so
//! lines add up.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

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

/// Nanoseconds by class name, zero classes left out.
pub type Classes = BTreeMap<String, u64>;

/// The summary of a distribution of durations. Percentiles come from log-linear buckets and are
/// within 1/32 of the exact value; `max_ns` and `sum_ns` are exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    pub count: u64,
    pub sum_ns: u64,
    pub p50_ns: u64,
    pub p90_ns: u64,
    pub p95_ns: u64,
    pub p99_ns: u64,
    pub max_ns: u64,
}

/// Where the time of one process went.
#[derive(Clone, Debug, Serialize)]
pub struct Ledger {
    #[serde(flatten)]
    pub stamp: Stamp,
    #[serde(flatten)]
    pub who: Process,
    pub window: Window,
    pub process: ProcessLedger,
    pub threads: Vec<ThreadLedger>,
    pub cpu_split: CpuSplit,
    pub schedstat: SchedstatCheck,
    pub faults: Faults,
    pub block_io: Vec<BlockIo>,
    /// CPU quota throttling of the process's cgroup in the window, where it has a quota.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttled: Option<Throttled>,
}

/// Sums over the threads of a process.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ProcessLedger {
    /// Sum of the threads' lifetimes inside the window.
    pub lifetime_ns: u64,
    pub classes: Classes,
    pub residual_ns: u64,
    /// Completed intervals by class (`cpu`: bursts between two switches).
    pub latency: BTreeMap<String, Latency>,
    pub switches: u64,
    pub threads_started: u64,
    pub threads_exited: u64,
    /// Processes forked by this one or below it that began and ended inside the window, or died
    /// before they were a second old: counted here and not as lines of their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub short_lived: Option<ShortLived>,
}

/// Processes that came and went.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ShortLived {
    pub processes: u64,
    pub threads: u64,
    pub lifetime_ns: u64,
    pub classes: Classes,
    pub residual_ns: u64,
    /// Count by program name, the most frequent ones.
    pub comms: BTreeMap<String, u64>,
}

/// Where the time of one thread went.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ThreadLedger {
    pub tid: u32,
    pub comm: String,
    pub lifetime_ns: u64,
    pub classes: Classes,
    /// lifetime − sum of classes.
    pub residual_ns: u64,
    pub switches: u64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub exited: bool,
}

/// What the split of CPU time into user and kernel rests on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CpuSplit {
    /// `samples` of the CPU clock, or `proc` (utime and stime) where no sample fell.
    pub source: String,
    pub user_samples: u64,
    pub kernel_samples: u64,
}

/// The ledger beside the scheduler's own figures for the same threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SchedstatCheck {
    /// Threads whose scheduler figures could be read at both ends of the window.
    pub threads: u64,
    pub ledger_cpu_ns: u64,
    pub kernel_cpu_ns: u64,
    pub ledger_runq_ns: u64,
    pub kernel_runq_ns: u64,
}

/// Page faults, counted by the kernel, and what they took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Faults {
    pub minor: u64,
    pub major: u64,
    /// Time blocked in a fault (class `fault`).
    pub blocked_ns: u64,
    /// Time on the CPU in a fault, faults inside system calls included: the share of the CPU clock's
    /// samples whose kernel stack goes through the fault entry. Absent where no kernel stack could
    /// be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_ns: Option<u64>,
    /// How many samples that is.
    pub cpu_samples: u64,
}

/// Requests to one block device, from insertion into its queue to completion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BlockIo {
    /// Name as in /sys/block, else `major:minor`.
    pub device: String,
    /// `read`, `write`, `flush`, `discard`, or `op<N>`.
    pub operation: String,
    pub bytes: u64,
    pub latency: Latency,
}

/// Throttling by a CPU quota (cgroup `cpu.stat`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Throttled {
    pub cgroup: String,
    /// Enforcement periods in the window, and how many of them were throttled.
    pub periods: u64,
    pub throttled_periods: u64,
    /// Summed over the cgroup's CPUs.
    pub throttled_ns: u64,
}

/// System calls of one process.
#[derive(Clone, Debug, Serialize)]
pub struct Syscalls {
    #[serde(flatten)]
    pub stamp: Stamp,
    #[serde(flatten)]
    pub who: Process,
    pub window: Window,
    /// `full` or `sampled`.
    pub mode: String,
    /// Share of the window in which calls were counted (1 in `full`). Counts, errors and bytes are
    /// scaled up to the whole window already.
    pub fraction: f64,
    /// How many slices of the window were counted.
    pub slices: u32,
    /// What counting adds to a call, measured at the attach; absent in `full`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hook_ns: Option<u64>,
    /// By what factor the process made fewer calls in the slices for it, as far as can be told;
    /// taken into account for the rest of the window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slowdown: Option<f64>,
    pub syscalls: Vec<SyscallRow>,
}

/// One system call.
#[derive(Clone, Debug, Serialize)]
pub struct SyscallRow {
    pub name: String,
    pub count: u64,
    /// Half width of the 95 % confidence interval of `count`, and how far it may be off because
    /// counting slows calls down; absent where it is exact, and where a single slice gives no
    /// variance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count_error: Option<u64>,
    pub errors: BTreeMap<String, u64>,
    /// Of the calls seen from entry to exit, not scaled: `latency.count` of them.
    pub latency: Latency,
    /// Moved by the read and write families, 0 elsewhere.
    pub bytes: u64,
}

/// Where one process blocked and what it ran, by stack.
#[derive(Clone, Debug, Serialize)]
pub struct Profile {
    #[serde(flatten)]
    pub stamp: Stamp,
    #[serde(flatten)]
    pub who: Process,
    pub window: Window,
    /// Largest first, the top ones of each class.
    pub sites: Vec<Site>,
    /// What the sites left out sum to, by class.
    pub rest: Classes,
    /// Contended locks, largest wait first.
    pub locks: Vec<Lock>,
}

/// One place where time went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Site {
    pub class: String,
    /// System call, where blocked in one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub syscall: Option<String>,
    /// Completed intervals; samples for `cpu.*`.
    pub count: u64,
    /// Time inside the window, open intervals included; for `cpu.*` the class's time by share of
    /// samples.
    pub sum_ns: u64,
    /// Longest completed interval since the attach; 0 for `cpu.*`.
    pub max_ns: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<Detail>,
    /// Innermost first. Empty where no stack was taken.
    pub user_stack: Vec<Frame>,
    pub kernel_stack: Vec<Frame>,
}

/// What a site waits for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Detail {
    /// User address of the futex word, hexadecimal.
    Futex { address: String },
    /// `address:port` of a TCP or UDP peer.
    Peer { peer: String, port: u16 },
    /// Path of a Unix server socket (`@` for abstract).
    Unix { path: String },
    /// A file; the path where its fd was still open when asked.
    File {
        device: String,
        inode: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        path: Option<String>,
    },
}

/// One frame of a stack.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Frame {
    /// Demangled function, or `module+0xoffset` where there is no symbol, or the bare address.
    pub name: String,
    /// File the code is mapped from; `[kernel]`, `[vdso]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    /// `file:line`, where debug information tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Build ID of the module, hexadecimal, where there is no symbol: its debug information can be
    /// found by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build_id: Option<String>,
    /// False where `name` is not a symbol.
    pub symbolized: bool,
    /// Its code stands inside that of the next frame; told with `--inlines on`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub inlined: bool,
}

/// A contended futex.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lock {
    /// User address of the futex word, hexadecimal.
    pub address: String,
    pub waits: u64,
    pub sum_ns: u64,
    pub max_ns: u64,
    /// Who ended the waits, largest first.
    pub wakers: Vec<Waker>,
}

/// Who woke whom out of a lock wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Waker {
    /// 0 where a timeout, a signal or an interrupt ended the wait.
    pub waker_tid: u32,
    pub waker_comm: String,
    pub waiter_tid: u32,
    pub waiter_comm: String,
    pub count: u64,
    pub sum_ns: u64,
}

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

/// Low, medium, high.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Low,
    Medium,
    High,
}

/// Whether a finding is in this window for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    New,
    Ongoing,
    Resolved,
}

/// A bottleneck somebody can act on.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    #[serde(flatten)]
    pub stamp: Stamp,
    #[serde(flatten)]
    pub who: Process,
    pub window: Window,
    /// Stable over windows and runs: category, program and subject hashed.
    pub id: String,
    /// The rule: `lock_contention`, `disk_wait`, ...
    pub category: String,
    /// `caching`, `database_performance`, `api_response`, `system_bottleneck`, `ml_performance`.
    pub area: String,
    pub impact: Level,
    pub effort: Level,
    /// 0 to 1.
    pub confidence: f64,
    pub delegate_to: String,
    /// What it is about: a lock, a peer, a device, a function.
    pub subject: String,
    pub title: String,
    pub evidence: Vec<Evidence>,
    /// Upper bound of the thread time a fix saves, per second of wall time.
    pub gain_bound_ns_per_s: u64,
    /// In order.
    pub recommendations: Vec<String>,
    pub state: State,
    /// `ts` of the window it was first found in.
    pub since: String,
    /// Stacks the finding rests on, largest first.
    pub stacks: Vec<Site>,
}

/// A measured figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evidence {
    pub name: String,
    pub value: f64,
    /// `ns`, `ns/s`, `bytes`, `count`, `1/s`, `ratio`.
    pub unit: String,
    /// Observations behind it.
    pub samples: u64,
}

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
    /// Events that the kernel did not tell of and that were put back exactly, by kind.
    pub inferred: BTreeMap<String, u64>,
    pub bytes_seen: u64,
    pub bytes_decoded: u64,
    pub sockets: SocketCoverage,
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

/// In the stream of a slow reader: lines are missing here.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Dropped {
    /// Of the last that is missing.
    #[serde(flatten)]
    pub stamp: Stamp,
    pub lines: u64,
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
    /// the attach), `unanswered`, `malformed`, `resynced`, `queue_full`, `unsupported`.
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
}

/// Everything of one window, in the order it is emitted.
#[derive(Clone, Debug)]
pub struct WindowReport {
    pub processes: Vec<ProcessReport>,
    pub coverage: Coverage,
}
