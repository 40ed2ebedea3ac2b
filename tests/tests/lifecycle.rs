//! Processes that fork, exec and end while they are traced.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use perf_agent_tests::agent::{self, Run, trace_work};
use perf_agent_tests::traced::Traced;
use perf_agent_tests::{PATIENCE, alone};

/// Time asleep by process and name, in lines of its own.
fn slept(run: &Run) -> BTreeMap<(u64, String), u64> {
    let mut slept = BTreeMap::new();
    for line in run.of_type("ledger") {
        let key = (
            line["pid"].as_u64().unwrap(),
            line["comm"].as_str().unwrap().to_owned(),
        );
        *slept.entry(key).or_default() += line["process"]["classes"]["timer"].as_u64().unwrap_or(0);
    }
    slept
}

/// The shell becomes a `sleep` itself; its child is another, and lives long enough for lines of its
/// own from its second second on.
const SHELL: [&str; 4] = ["--", "sh", "-c", "sleep 2.5 & exec sleep 2.8"];
const CHILD_SLEEPS: u64 = 2_500_000_000;
const SHELL_SLEEPS: u64 = 2_800_000_000;

#[test]
fn a_child_is_followed_and_exec_renames_the_target() {
    let _alone = alone();
    let run = agent::run(["trace"].into_iter().chain(SHELL), PATIENCE);
    run.ended_well("target_exit").lost_nothing();
    let slept = slept(&run);
    let pids: BTreeSet<u64> = slept.keys().map(|(pid, _)| *pid).collect();
    assert_eq!(pids.len(), 2, "{slept:?}");
    let own: Vec<u64> = slept
        .values()
        .copied()
        .filter(|ns| *ns > 1_000_000_000)
        .collect();
    assert_eq!(own.len(), 2, "{slept:?}");
    assert!(slept.keys().any(|(_, comm)| comm == "sleep"), "{slept:?}");
    let last = run.of_type("ledger").last().unwrap();
    assert_eq!(last["comm"], "sleep", "{last}");
    let young = run.sum("ledger", "/process/short_lived/classes/timer");
    let all = slept.values().sum::<u64>() + young;
    let expected = CHILD_SLEEPS + SHELL_SLEEPS;
    assert!(
        all.abs_diff(expected) < 60_000_000,
        "{all}: {slept:?}, {young}"
    );
}

#[test]
fn a_child_is_left_alone_when_asked() {
    let _alone = alone();
    let arguments = ["trace", "--no-children"].into_iter().chain(SHELL);
    let run = agent::run(arguments, PATIENCE);
    run.ended_well("target_exit").lost_nothing();
    let slept = slept(&run);
    let young = run.sum("ledger", "/process/short_lived/processes");
    let pids: BTreeSet<u64> = slept.keys().map(|(pid, _)| *pid).collect();
    assert_eq!((pids.len(), young), (1, 0), "{slept:?}");
    let all: u64 = slept.values().sum();
    assert!(all.abs_diff(SHELL_SLEEPS) < 30_000_000, "{slept:?}");
}

#[test]
fn a_child_that_is_there_before_the_attach_is_followed() {
    let _alone = alone();
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "sleep 30; true"]);
    let mut shell = shell.stderr(std::process::Stdio::null()).spawn().unwrap();
    let pid = shell.id();
    let child = wait_for_child(pid);
    let run = agent::run(
        ["trace", "-p", &pid.to_string(), "--duration", "1s"],
        PATIENCE,
    );
    // SAFETY: the shell waits for this child, so its id cannot belong to another process.
    unsafe { libc::kill(child as i32, libc::SIGKILL) };
    shell.wait().unwrap();
    run.ended_well("duration").lost_nothing();
    let slept = slept(&run);
    let time = slept
        .get(&(child, "sleep".to_owned()))
        .copied()
        .unwrap_or(0);
    assert!(time.abs_diff(1_000_000_000) < 100_000_000, "{slept:?}");
    let waited = run.sum("ledger", "/process/classes/child");
    assert!(waited.abs_diff(1_000_000_000) < 100_000_000, "{}", run.text);
}

/// The one child of a process, once it has become `sleep`.
fn wait_for_child(pid: u32) -> u64 {
    let deadline = std::time::Instant::now() + PATIENCE;
    while std::time::Instant::now() < deadline {
        let path = format!("/proc/{pid}/task/{pid}/children");
        let children = std::fs::read_to_string(path).unwrap_or_default();
        if let Ok(child) = children.trim().parse() {
            let comm = std::fs::read_to_string(format!("/proc/{child}/comm"));
            if comm.is_ok_and(|comm| comm == "sleep\n") {
                return child;
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    panic!("the shell has no child");
}

#[test]
fn a_thousand_children_a_second_are_counted_and_leave_nothing_behind() {
    let _alone = alone();
    let mut program = Traced::workload(&["forker", "--seconds", "3", "--hold"]);
    let pid = program.pid();
    let (run, done) = trace_work(&mut program, &[]);
    run.lost_nothing();
    let children = done["children"].as_u64().unwrap();
    let mut named: Vec<u64> = run
        .of_type("ledger")
        .map(|line| line["pid"].as_u64().unwrap())
        .filter(|&other| other != u64::from(pid))
        .collect();
    named.sort_unstable();
    named.dedup();
    let counted = run.sum("ledger", "/process/short_lived/processes") + named.len() as u64;
    assert_eq!(counted, children, "{} with lines of their own", named.len());
    let last = run.of_type("coverage").last().unwrap();
    let threads = last["maps"]["threads"].as_u64();
    assert!(
        threads.is_some_and(|n| n < 64),
        "threads left in the map: {last}"
    );
}
