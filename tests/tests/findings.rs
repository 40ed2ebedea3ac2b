//! Each kind of trouble is found first in a program that has that trouble.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use perf_agent_tests::agent::{self, Run};
use perf_agent_tests::traced::Traced;
use perf_agent_tests::{PATIENCE, alone};
use serde_json::Value;

/// Traces a workload in the middle of its work. It goes before what else runs on the machine, so that
/// its own trouble is the largest.
fn trace(arguments: &[&str]) -> Run {
    let mut program = Traced::workload(&[arguments, &["--seconds", "60", "--urgent"]].concat());
    program.go();
    let pid = program.pid().to_string();
    let run = agent::run(["trace", "-p", &pid, "--duration", "3s"], PATIENCE);
    run.ended_well("duration");
    run
}

/// The first finding of the last window: they come in the order of what a fix is worth.
fn top(run: &Run) -> &Value {
    let end = |f: &Value| f["window"]["end_ns"].as_u64();
    let last = run.of_type("finding").filter_map(end).max();
    run.of_type("finding")
        .find(|f| end(f) == last)
        .unwrap_or_else(|| panic!("no finding in {}", run.text))
}

fn is(finding: &Value, category: &str) {
    assert_eq!(finding["category"], category, "{finding}");
    let confidence = finding["confidence"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&confidence), "{finding}");
    assert!(
        !finding["evidence"].as_array().unwrap().is_empty(),
        "{finding}"
    );
    assert!(
        !finding["recommendations"].as_array().unwrap().is_empty(),
        "{finding}"
    );
}

fn some_frame(finding: &Value, function: &str) -> bool {
    let stacks = finding["stacks"].as_array().unwrap();
    stacks
        .iter()
        .flat_map(|site| site["user_stack"].as_array().unwrap())
        .any(|frame| frame["name"].as_str().unwrap().contains(function))
}

#[test]
fn a_fight_for_a_lock() {
    let _alone = alone();
    let run = trace(&["lockfight"]);
    let finding = top(&run);
    is(finding, "lock_contention");
    assert!(some_frame(finding, "update_shared_account"), "{finding}");
    // Four threads, at least two of which wait at any time.
    let bound = finding["gain_bound_ns_per_s"].as_u64().unwrap();
    assert!(
        (1_500_000_000..=4_000_000_000).contains(&bound),
        "{finding}"
    );
}

#[test]
fn a_storm_of_tiny_writes() {
    let _alone = alone();
    let run = trace(&["tinywrites"]);
    is(top(&run), "syscall_storm");
    assert!(
        top(&run)["subject"].as_str().unwrap().contains("write"),
        "{}",
        top(&run)
    );
}

#[test]
fn sleeping_to_poll() {
    let _alone = alone();
    let run = trace(&["sleep-poll"]);
    is(top(&run), "sleep_poll");
}

#[test]
fn a_storm_of_errors() {
    let _alone = alone();
    let run = trace(&["errors"]);
    is(top(&run), "error_storm");
    let text = top(&run).to_string();
    assert!(text.contains("ENOENT") && text.contains("open"), "{text}");
}

#[test]
fn waiting_for_the_disk() {
    let _alone = alone();
    let run = trace(&["fsyncs"]);
    is(top(&run), "disk_wait");
    let text = top(&run).to_string();
    assert!(text.contains("fsync"), "{text}");
}

#[test]
fn bound_by_the_cpu_in_one_function() {
    let _alone = alone();
    let run = trace(&["cpu"]);
    is(top(&run), "cpu_bound");
    let subject = top(&run)["subject"].as_str().unwrap();
    assert!(
        subject.contains("multiply_matrices_forever"),
        "{}",
        top(&run)
    );
}

#[test]
fn more_threads_than_cpus() {
    let _alone = alone();
    let run = trace(&["runq"]);
    is(top(&run), "run_queue");
}

#[test]
fn waiting_for_pages_to_come_from_disk() {
    let _alone = alone();
    let run = trace(&["faults"]);
    is(top(&run), "page_faults");
    assert!(
        some_frame(top(&run), "read_index_from_disk"),
        "{}",
        top(&run)
    );
}

/// A server that takes 5 ms for each byte, for one connection.
fn slow_server(listener: TcpListener) {
    std::thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut byte = [0];
        // Ends with the client, which is killed at the end of its test.
        while stream.read(&mut byte)? == 1 {
            std::thread::sleep(Duration::from_millis(5));
            stream.write_all(&byte)?;
        }
        Ok(())
    });
}

fn network_finding(address: SocketAddr, listener: TcpListener) -> Value {
    slow_server(listener);
    let run = trace(&["tcp-client", "--connect", &address.to_string()]);
    let finding = top(&run).clone();
    is(&finding, "network_wait");
    let subject = finding["subject"].as_str().unwrap();
    assert!(subject.contains(&address.to_string()), "{finding}");
    finding
}

#[test]
fn waiting_for_a_peer() {
    let _alone = alone();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let finding = network_finding(address, listener);
    assert_eq!(finding["delegate_to"], "performance-engineer", "{finding}");
}

#[test]
fn waiting_for_a_database() {
    let _alone = alone();
    // A loopback address of its own, so that the port is free beside a real server.
    let listener = TcpListener::bind("127.83.69.70:5432").unwrap();
    let address = listener.local_addr().unwrap();
    let finding = network_finding(address, listener);
    assert_eq!(finding["delegate_to"], "database-specialist", "{finding}");
    assert_eq!(finding["area"], "database_performance", "{finding}");
}

#[test]
fn an_idle_program_has_no_findings() {
    let _alone = alone();
    let program = Traced::workload(&["sleeper"]);
    let pid = program.pid().to_string();
    let run = agent::run(["trace", "-p", &pid, "--duration", "2s"], PATIENCE);
    run.ended_well("duration").lost_nothing();
    assert_eq!(run.of_type("finding").count(), 0, "{}", run.text);
}
