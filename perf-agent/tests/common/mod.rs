//! A recording made up for tests, and the agent that replays it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use perf_agent::drain::codec::Writer;
use perf_agent::drain::{
    EndFact, Fact, Frame, MapId, ProcessFact, Start, StatementFact, StatementsFact, WindowFact,
};
use perf_agent::model::Latency;
use perf_ebpf_common::Wire as _;
use perf_ebpf_common::signals::ledger::{ThreadState, thread_state};
use serde_json::Value;

const S: u64 = 1_000_000_000;
pub const MS: u64 = 1_000_000;
pub const PID: u32 = 42;

/// The agent, which here does as told by the command line alone.
pub fn agent(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_perf-agent"));
    command.args(arguments);
    command
        .env("XDG_CONFIG_HOME", "/no/such/folder")
        .env("HOME", "/no/such/home");
    command.env_remove("RUST_LOG");
    command
}

/// Runs it to a good end.
pub fn lines_of(command: &mut Command) -> Vec<Value> {
    let output: Output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    parse(&String::from_utf8(output.stdout).unwrap())
}

/// Lines, each valid against the schema.
pub fn parse(text: &str) -> Vec<Value> {
    let schema: Value = serde_json::from_str(perf_agent::schema::SCHEMA).unwrap();
    let schema = jsonschema::validator_for(&schema).unwrap();
    let line = |text: &str| {
        let value: Value = serde_json::from_str(text).unwrap();
        let wrong: Vec<String> = schema.iter_errors(&value).map(|e| e.to_string()).collect();
        assert!(wrong.is_empty(), "{wrong:?}\n{value}");
        value
    };
    assert!(
        text.is_empty() || text.ends_with('\n'),
        "half a line: {text}"
    );
    text.lines().map(line).collect()
}

pub fn of_type<'a>(lines: &'a [Value], kind: &str) -> impl Iterator<Item = &'a Value> {
    lines.iter().filter(move |line| line["type"] == *kind)
}

/// Exchanges of one shape that all take `ms`.
fn statement(protocol: &str, client: bool, text: &str, (count, ms): (u64, u64)) -> StatementFact {
    let latency = Latency {
        count,
        sum_ns: count * ms * MS,
        p50_ns: ms * MS,
        p90_ns: ms * MS,
        p95_ns: ms * MS,
        p99_ns: ms * MS,
        max_ns: ms * MS,
    };
    StatementFact {
        pid: PID,
        protocol: protocol.into(),
        client,
        peer: if client { "10.0.0.9:5432" } else { "10.0.0.7" }.into(),
        text: text.into(),
        latency,
        first_byte: latency,
        ..StatementFact::default()
    }
}

/// The content of the map of threads: one, on the CPU since the beginning.
fn threads() -> Frame {
    let mut thread = ThreadState::from_bytes(&[0; size_of::<ThreadState>()]).unwrap();
    (thread.tid, thread.tgid) = (PID, PID);
    thread.state = thread_state::ON_CPU;
    let mut entry = PID.to_ne_bytes().to_vec();
    entry.extend(thread.as_bytes());
    Frame::Map(MapId::Threads, entry)
}

/// A program that computes all the time, asks PostgreSQL and answers HTTP, for some windows of one
/// second. In the window `slow` its answers take 300 ms instead of 100.
pub fn recording(windows: u64, slow: impl Fn(u64) -> bool) -> Vec<u8> {
    let start = Start {
        agent: "0.1.0".into(),
        host: "test".into(),
        kernel: "6.1.0".into(),
        arch: "x86_64".into(),
        cpus: 2,
        targets: vec![PID],
        interval_ns: S,
        syscalls: "off".into(),
        ..Start::default()
    };
    let process = ProcessFact {
        pid: PID,
        comm: "shop".into(),
        slot: 1,
    };
    let mut frames = vec![
        Frame::Fact(Fact::Start(start)),
        Frame::Fact(Fact::Process(process)),
    ];
    for window in 0..windows {
        let ms = if slow(window) { 300 } else { 100 };
        let rows = vec![
            statement(
                "postgresql",
                true,
                "SELECT name FROM users WHERE id = ?",
                (30, 20),
            ),
            statement("http", false, "GET /orders/*", (40, ms)),
        ];
        frames.push(threads());
        frames.push(Frame::Fact(Fact::Statements(StatementsFact { rows })));
        frames.push(Frame::Fact(Fact::Window(Box::new(WindowFact {
            end_ns: (window + 1) * S,
            ..WindowFact::default()
        }))));
    }
    frames.push(Frame::Fact(Fact::End(EndFact {
        reason: "duration".into(),
        exit_code: None,
    })));
    let mut writer = Writer::new(Vec::new()).unwrap();
    for frame in &frames {
        writer.frame(frame).unwrap();
    }
    writer.finish().unwrap()
}

/// The same in a file.
pub fn recorded(directory: &Path, windows: u64, slow: impl Fn(u64) -> bool) -> PathBuf {
    let path = directory.join("run.parec");
    std::fs::write(&path, recording(windows, slow)).unwrap();
    path
}
