//! Real servers under load, attached to in the middle of it.

use perf_agent_tests::agent::{self, Run};
use perf_agent_tests::servers::{self, Postgres};
use perf_agent_tests::traced;
use perf_agent_tests::{PATIENCE, alone};
use serde_json::Value;

/// The first finding of the last window: they come in the order of what a fix is worth.
fn top_finding(run: &Run) -> &Value {
    let end = |f: &Value| f["window"]["end_ns"].as_u64();
    let last = run.of_type("finding").filter_map(end).max();
    run.of_type("finding")
        .find(|f| end(f) == last)
        .unwrap_or_else(|| panic!("no finding in {}", run.text))
}

/// Everything that must hold of any trace of a server.
fn ledger_closes(run: &Run) {
    run.ended_well("duration").lost_nothing();
    let bye = run.the("bye");
    let (lifetime, residual) = (
        bye["lifetime_ns"].as_u64().unwrap(),
        bye["residual_ns"].as_u64().unwrap(),
    );
    assert!(lifetime > 0 && residual <= lifetime / 200, "{bye}");
    assert_eq!(bye["generated"], bye["received"], "{bye}");
    for line in run.of_type("ledger") {
        for t in line["threads"].as_array().unwrap() {
            let (lifetime, residual) = (
                t["lifetime_ns"].as_u64().unwrap(),
                t["residual_ns"].as_u64().unwrap(),
            );
            assert!(residual <= lifetime / 200 + 50_000, "{t}");
        }
    }
}

/// Lifetime of a process over all windows.
fn lifetime_of(run: &Run, pid: u32) -> u64 {
    run.of_type("ledger")
        .filter(|line| line["pid"] == pid)
        .map(|line| line["process"]["lifetime_ns"].as_u64().unwrap())
        .sum()
}

fn one_of(finding: &Value, categories: &[&str]) {
    let category = finding["category"].as_str().unwrap();
    assert!(
        categories.contains(&category),
        "not one of {categories:?}: {finding}"
    );
    assert!(
        !finding["recommendations"].as_array().unwrap().is_empty(),
        "{finding}"
    );
    assert!(
        !finding["evidence"].as_array().unwrap().is_empty(),
        "{finding}"
    );
}

#[test]
fn redis_under_redis_benchmark_is_accounted_for() {
    let _alone = alone();
    let (mut server, port) = servers::redis();
    let _load = servers::redis_load(port);
    let pid = server.pid();
    let stolen = traced::stolen();
    let run = agent::run(
        ["trace", "-p", &pid.to_string(), "--duration", "4s"],
        PATIENCE,
    );
    assert!(server.runs());
    ledger_closes(&run);
    run.agrees_with_schedstat(traced::stolen() - stolen);
    let threads = std::fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .count() as u64;
    let expected = threads * 4_000_000_000;
    let lifetime = lifetime_of(&run, pid);
    assert!(
        lifetime.abs_diff(expected) < expected / 20,
        "{lifetime} ns of {expected} ns"
    );
    // One thread that reads, computes and writes as fast as it can.
    one_of(
        top_finding(&run),
        &["cpu_bound", "run_queue", "syscall_storm"],
    );
}

#[test]
fn postgres_under_pgbench_is_accounted_for() {
    let _alone = alone();
    let mut postgres = Postgres::start();
    let _load = postgres.load();
    let pid = postgres.server.pid();
    let stolen = traced::stolen();
    let run = agent::run(
        ["trace", "-p", &pid.to_string(), "--duration", "4s"],
        PATIENCE,
    );
    assert!(postgres.server.runs());
    ledger_closes(&run);
    run.agrees_with_schedstat(traced::stolen() - stolen);
    let lifetime = lifetime_of(&run, pid);
    assert!(
        lifetime.abs_diff(4_000_000_000) < 200_000_000,
        "{lifetime} ns"
    );
    let mut backends: Vec<u64> = run
        .of_type("ledger")
        .filter(|line| line["process"]["classes"]["cpu.user"].as_u64() > Some(10_000_000))
        .map(|line| line["pid"].as_u64().unwrap())
        .collect();
    backends.sort_unstable();
    backends.dedup();
    assert!(backends.len() >= 4, "busy processes: {backends:?}");
    one_of(
        top_finding(&run),
        &[
            "cpu_bound",
            "run_queue",
            "syscall_storm",
            "disk_wait",
            "lock_contention",
            // All update one of two rows.
            "database_locks",
        ],
    );
}
