//! The ledger against programs that measured themselves.

use std::time::Duration;

use perf_agent_tests::agent::{self, Agent, Run};
use perf_agent_tests::traced::{self, Traced};
use perf_agent_tests::truth::{self, Demands, Measured};
use perf_agent_tests::{PATIENCE, alone};
use serde_json::Value;

/// Holds a trace against what its program measured.
fn demand(run: &Run, measured: &[Measured]) {
    let booked = truth::booked(&run.lines).unwrap_or_else(|e| panic!("{e:#}"));
    let rows = truth::compare(measured, &booked, Demands::default());
    let table = truth::table(&rows);
    assert!(
        rows.iter().all(truth::Row::holds),
        "{table}\n{}",
        run.errors
    );
    println!("{table}");
}

/// What was taken from all of them on the CPU, at most.
fn taken(measured: &[Measured]) -> Duration {
    Duration::from_nanos(measured.iter().map(|m| m.taken_ns).sum())
}

fn read_truth(path: &std::path::Path) -> Vec<Measured> {
    let text = std::fs::read_to_string(path).unwrap();
    truth::measured(&serde_json::from_str(&text).unwrap()).unwrap()
}

#[test]
fn every_class_is_what_the_program_measured_when_attached_to() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("truth.json");
    let mut program = Traced::truth(&json);
    let pid = program.pid().to_string();
    let agent = Agent::start(["trace", "-p", &pid, "--interval", "250ms"]);
    agent.attached();
    program.go();
    let run = agent.finish(PATIENCE);
    assert!(program.end(PATIENCE).success());
    run.ended_well("target_exit").lost_nothing();
    let measured = read_truth(&json);
    demand(&run, &measured);
    run.agrees_with_schedstat(taken(&measured));
}

#[test]
fn every_class_is_what_the_program_measured_when_started_by_the_trace() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("truth.json");
    let (program, disk) = (traced::program("truth"), traced::disk_directory());
    let run = agent::run(
        [
            "trace",
            "--",
            program.to_str().unwrap(),
            "--json",
            json.to_str().unwrap(),
            "--dir",
            disk.to_str().unwrap(),
        ],
        PATIENCE,
    );
    run.ended_well("target_exit").lost_nothing();
    assert_eq!(run.the("bye")["exit_code"], 0, "{}", run.text);
    demand(&run, &read_truth(&json));
}

/// The split is told by samples, some 30 of a thread in one run, and a burst of interrupts in one run is
/// kernel time of whom it hits: the median of three runs.
#[test]
fn user_and_kernel_time_are_told_apart() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("truth.json");
    let wanted = [("spin", "cpu.user"), ("kernel", "cpu.kernel")];
    let mut shares = [[0.0; 3]; 2];
    for run_number in 0..3 {
        let mut program = Traced::truth(&json);
        let agent = Agent::start(["trace", "-p", &program.pid().to_string()]);
        agent.attached();
        program.go();
        let run = agent.finish(PATIENCE);
        assert!(program.end(PATIENCE).success());
        let booked = truth::booked(&run.lines).unwrap();
        let measured = read_truth(&json);
        for ((thread, class), shares) in wanted.iter().zip(&mut shares) {
            let measured = measured.iter().find(|m| m.name == *thread).unwrap();
            let b = &booked[&measured.tid];
            let of_class = b.classes.get(*class).copied().unwrap_or(0);
            shares[run_number] = of_class as f64 / b.cpu_ns() as f64;
        }
    }
    for ((thread, class), mut shares) in wanted.into_iter().zip(shares) {
        shares.sort_by(f64::total_cmp);
        assert!(
            shares[1] > 0.8,
            "{thread}: {class} is {shares:?} of its CPU time"
        );
    }
}

#[test]
fn a_thread_that_sleeps_all_the_time_has_the_whole_of_every_window() {
    let _alone = alone();
    let program = Traced::workload(&["sleeper"]);
    let pid = program.pid();
    let sleeper = traced::thread_id(pid, "sleeper");
    let agent = Agent::start([
        "trace",
        "-p",
        &pid.to_string(),
        "--duration",
        "1s",
        "--interval",
        "300ms",
    ]);
    let run = agent.finish(PATIENCE);
    run.ended_well("duration").lost_nothing();
    let mut windows = 0;
    let mut total = 0;
    for line in run.of_type("ledger") {
        let window = &line["window"];
        let length = window["end_ns"].as_u64().unwrap() - window["start_ns"].as_u64().unwrap();
        let threads = line["threads"].as_array().unwrap();
        let thread = threads
            .iter()
            .find(|t| t["tid"] == sleeper)
            .unwrap_or_else(|| panic!("no sleeper in {line}"));
        // It is found some time after the attach, which is where the first window begins.
        let lifetime = thread["lifetime_ns"].as_u64().unwrap();
        let late = if windows == 0 { 2_000_000 } else { 0 };
        assert!(lifetime <= length && lifetime + late >= length, "{line}");
        assert_eq!(
            thread["classes"],
            serde_json::json!({"ipc": lifetime}),
            "{line}"
        );
        windows += 1;
        total += length;
    }
    assert!(
        (3..=5).contains(&windows),
        "{windows} windows: {}",
        run.text
    );
    assert!(
        total.abs_diff(1_000_000_000) < 100_000_000,
        "{total} ns in all"
    );
}

#[test]
fn a_thread_that_lives_50_ms_has_its_50_ms() {
    let _alone = alone();
    let (run, done) = trace_workload("shortlived-thread", Duration::from_secs(5));
    demand(&run, &truth::measured(&done).unwrap());
    let tid = &done["threads"][0]["tid"];
    let ended = run.of_type("ledger").any(|line| {
        let threads = line["threads"].as_array().unwrap();
        threads
            .iter()
            .any(|t| t["tid"] == *tid && t["exited"] == true)
    });
    assert!(ended, "{tid} is never shown as exited: {}", run.text);
}

#[test]
fn a_thread_that_migrates_a_thousand_times_loses_nothing() {
    let _alone = alone();
    let (run, done) = trace_workload("migrate", Duration::from_secs(20));
    let measured = truth::measured(&done).unwrap();
    demand(&run, &measured);
    run.agrees_with_schedstat(taken(&measured));
}

/// Attaches before the workload begins, stays until it has ended.
fn trace_workload(name: &str, patience: Duration) -> (Run, Value) {
    let mut program = Traced::workload(&[name]);
    let agent = Agent::start(["trace", "-p", &program.pid().to_string()]);
    agent.attached();
    program.go();
    let done = program.done(patience);
    let run = agent.finish(PATIENCE);
    assert!(program.end(PATIENCE).success());
    run.ended_well("target_exit").lost_nothing();
    (run, done)
}
