//! Locks of Go programs: those that Go's threads wait for, told as such; goroutines that wait without a
//! thread, and threads without work, which wait for no lock.

use std::process::Command;

use perf_agent_tests::agent::{Agent, Run};
use perf_agent_tests::traced::{GoProgram, Traced};
use perf_agent_tests::{PATIENCE, alone};
use serde_json::Value;

fn number(value: &Value, field: &str) -> u64 {
    let n = value[field].as_u64();
    n.unwrap_or_else(|| panic!("no {field} in {value}"))
}

/// The trace of a kind of lock, from the beginning of its work on, and what the program measured.
fn trace(kind: &str) -> (Run, Value) {
    let built = GoProgram::build("locks.go");
    let mut command = Command::new(built.path());
    command.arg(kind);
    // A signal in the middle of a call would make two waits of it.
    command.env("GODEBUG", "asyncpreemptoff=1");
    let mut program = Traced::start(command, "locks");
    let agent = Agent::start(["trace", "-p", &program.pid().to_string()]);
    agent.attached();
    program.go();
    let done = program.done(PATIENCE);
    program.go();
    let run = agent.finish(PATIENCE);
    assert!(program.end(PATIENCE).success());
    run.ended_well("target_exit").lost_nothing();
    (run, done)
}

/// All rows of a field of the profile, over all windows.
fn rows<'a>(run: &'a Run, field: &'a str) -> impl Iterator<Item = &'a Value> {
    run.of_type("profile")
        .flat_map(move |line| line[field].as_array().unwrap())
}

fn sites<'a>(run: &'a Run, class: &'a str) -> impl Iterator<Item = &'a Value> {
    rows(run, "sites").filter(move |site| site["class"] == class)
}

fn names<'a>(row: &'a Value, field: &str) -> Vec<&'a str> {
    let frames = row[field].as_array().into_iter().flatten();
    frames.map(|f| f["name"].as_str().unwrap()).collect()
}

fn sum<'a>(rows: impl Iterator<Item = &'a Value>, field: &str) -> u64 {
    rows.map(|row| number(row, field)).sum()
}

fn lock_findings(run: &Run) -> Vec<&Value> {
    let findings = run.of_type("finding");
    findings
        .filter(|f| f["category"] == "lock_contention")
        .collect()
}

#[test]
fn a_futex_that_threads_wait_for_is_a_lock_with_its_places_and_who_lets_go() {
    let _alone = alone();
    let (run, truth) = trace("futex");
    let of_it: Vec<&Value> = rows(&run, "locks")
        .filter(|lock| lock["address"] == truth["address"])
        .collect();
    let waits = sum(of_it.iter().copied(), "waits");
    let waited = sum(of_it.iter().copied(), "sum_ns");
    println!("{waits} waits, {waited} ns: {truth}");
    // A call may return without having slept.
    let (calls, in_calls) = (number(&truth, "waits"), number(&truth, "waited_ns"));
    assert!(calls > 100 && waits <= calls, "{waits} waits: {truth}");
    // The program's time has the wait for a CPU in it, and the way to the call and back.
    let queued = run.sum("ledger", "/process/classes/runq");
    assert!(waited <= in_calls, "{waited} ns: {truth}");
    assert!(
        in_calls <= waited + queued + 50_000 * calls,
        "{waited} ns, {queued} ns in the run queue: {truth}"
    );
    for site in sites(&run, "lock") {
        // The runtime has locks of its own.
        if site["detail"]["address"] != truth["address"] {
            continue;
        }
        assert!(
            names(site, "user_stack").contains(&"main.takeLedger"),
            "{site}"
        );
    }
    for owner in of_it.iter().flat_map(|l| l["owners"].as_array().unwrap()) {
        assert_eq!(owner["owner_source"], "waker", "{owner}");
        assert!(
            names(owner, "release_stack").contains(&"main.giveLedger"),
            "{owner}"
        );
    }
    let findings = lock_findings(&run);
    let title = findings.first().map(|f| f["title"].as_str().unwrap());
    let title = title.unwrap_or_else(|| panic!("no finding in {}", run.text));
    assert!(title.contains("taken in `main.takeLedger`"), "{title}");
    assert!(
        title.contains("`main.") && title.contains("sleeps"),
        "{title}"
    );
}

#[test]
fn the_runtimes_own_locks_are_told_from_its_threads_without_work() {
    let _alone = alone();
    let (run, _) = trace("runtime");
    let waits: Vec<&Value> = sites(&run, "lock").collect();
    assert!(!waits.is_empty(), "{}", run.text);
    for site in waits {
        let names = names(site, "user_stack");
        // A wait that was over before its stack was walked has none.
        assert!(
            names.is_empty() || names.contains(&"runtime.lock2"),
            "{site}"
        );
    }
    for site in sites(&run, "idle").filter(|site| site["syscall"] == "futex") {
        assert!(
            !names(site, "user_stack").contains(&"runtime.lock2"),
            "{site}"
        );
    }
    for owner in rows(&run, "locks").flat_map(|l| l["owners"].as_array().unwrap()) {
        assert_eq!(owner["owner_source"], "waker", "{owner}");
        let release = names(owner, "release_stack");
        assert!(
            release.is_empty() || release.contains(&"runtime.unlock2"),
            "{owner}"
        );
    }
    // A lock is held, as is told here, while somebody waits for it.
    let (held, waited) = (
        sum(rows(&run, "locks"), "hold_ns"),
        sum(rows(&run, "locks"), "sum_ns"),
    );
    println!("{held} ns held, {waited} ns waited");
    assert!(held <= waited, "{held} ns held, {waited} ns waited");
}

#[test]
fn goroutines_that_wait_for_a_mutex_make_no_thread_wait_for_a_lock() {
    let _alone = alone();
    let (run, truth) = trace("mutex");
    let lock = run.sum("ledger", "/process/classes/lock");
    let waited = number(&truth, "waited_ns");
    println!("{lock} ns of threads, {waited} ns of goroutines");
    assert!(lock * 100 <= waited, "{lock} ns: {truth}");
    assert!(lock_findings(&run).is_empty(), "{}", run.text);
    for site in sites(&run, "idle").filter(|site| site["syscall"] == "futex") {
        let names = names(site, "user_stack");
        assert!(names.iter().all(|name| !name.contains("sync.")), "{site}");
    }
}
