//! Readers that do not read, and commands that die, beside a trace that runs.

use std::fs;
use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use perf_agent_tests::agent::{self, Agent, Run};
use perf_agent_tests::traced::Traced;
use perf_agent_tests::{PATIENCE, alone};
use serde_json::Value;

/// Windows of 60 ms (shorter ones are not judged) in 6 s.
const WINDOWS: u64 = 100;

/// Lines, each valid by the schema.
fn parse(text: &str) -> Vec<Value> {
    assert!(text.ends_with('\n'), "half a line at the end of {text}");
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    lines.iter().for_each(agent::validate);
    lines
}

/// Lines that came, and lines that were told to be missing.
fn tally(lines: &[Value]) -> (u64, u64) {
    lines.iter().fold((0, 0), |(came, missing), line| {
        match line["type"].as_str() {
            Some("dropped") => (came, missing + line["lines"].as_u64().unwrap_or(0)),
            _ => (came + 1, missing),
        }
    })
}

#[test]
fn a_reader_that_does_not_read_and_a_command_that_dies_hold_up_nothing() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let (socket, log) = (directory.path().join("s"), directory.path().join("log"));
    let program = Traced::workload(&["cpu", "--seconds", "60", "--now"]);
    let pid = program.pid().to_string();
    // Takes whole lines (a shell reads byte by byte), three a life: the greeting and two findings.
    let command = format!(
        "performance-engineer=i=0; while [ $i -lt 3 ] && read -r l; do echo \"$l\" >> {}; i=$((i+1)); done",
        log.display()
    );
    let mut arguments = vec![
        "trace",
        "-p",
        &pid,
        "--duration",
        "6s",
        "--interval",
        "60ms",
    ];
    arguments.extend(["--listen", socket.to_str().unwrap(), "--exec", &command]);
    arguments.extend(["--queue-bytes", "20000"]);
    let agent = Agent::start(arguments);
    let mut slow = connected(&socket);
    agent.wait_for("bye", |line| line["type"] == "bye");
    // Only now it reads.
    let mut text = String::new();
    slow.read_to_string(&mut text).unwrap();
    let run = agent.finish(PATIENCE);
    drop(program);
    run.ended_well("duration").lost_nothing();
    assert!(!socket.exists());
    // Had anything waited for the reader, there would be no `bye`, for which it waits itself. Windows
    // slip on a busy machine, but not by that much.
    let windows = run.the("bye")["windows"].as_u64().unwrap();
    assert!(
        (WINDOWS / 2..=WINDOWS + 1).contains(&windows),
        "{windows} windows"
    );
    missed_what_it_was_told(&run, &parse(&text));
    got_what_is_not_counted(&run, &parse(&fs::read_to_string(&log).unwrap()));
}

/// A reader of the socket from before the first line.
fn connected(socket: &Path) -> UnixStream {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return stream,
            Err(e) => assert!(Instant::now() < deadline, "{e}"),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The slow reader: each line came or was told to be missing.
fn missed_what_it_was_told(run: &Run, received: &[Value]) {
    assert_eq!(received[0], run.lines[0]);
    assert_eq!(received.last(), run.lines.last());
    let (came, missing) = tally(received);
    assert!(missing > 0, "the reader kept up: {came} lines");
    assert_eq!(came + missing, run.lines.len() as u64);
    let listen = &run.the("bye")["streams"][0];
    // The bye itself is not in it.
    assert_eq!(listen["lines"], run.lines.len() as u64 - 1);
    assert_eq!(listen["dropped"], missing);
    // Nor are the last coverage and what came after it in the windows' own.
    let of_windows = |name: &str| run.sum("coverage", &format!("/streams/0/{name}"));
    assert_eq!(of_windows("lines"), run.lines.len() as u64 - 2);
    assert!((missing - 1..=missing).contains(&of_windows("dropped")));
}

/// The command that dies: what it got is what was printed for it, with gaps as long as it was told.
fn got_what_is_not_counted(run: &Run, received: &[Value]) {
    let meant: Vec<&Value> = run
        .of_type("finding")
        .filter(|line| line["delegate_to"] == "performance-engineer")
        .collect();
    let exec = &run.the("bye")["streams"][1];
    assert_eq!(exec["lines"], meant.len() as u64);
    assert!(exec["restarts"].as_u64() > Some(1), "{exec}");
    let (mut next, mut missing, mut findings) = (0, 0, 0);
    for line in received {
        match line["type"].as_str() {
            Some("dropped") => missing += line["lines"].as_u64().unwrap(),
            Some("finding") => {
                let skipped = meant[next..].iter().position(|m| *m == line);
                let skipped = skipped.unwrap_or_else(|| panic!("not printed: {line}"));
                assert_eq!(skipped as u64, missing, "before {line}");
                (next, missing, findings) = (next + skipped + 1, 0, findings + 1);
            }
            _ => {}
        }
    }
    assert!(findings > 2, "{received:#?}");
}
