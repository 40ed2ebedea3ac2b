//! Page faults against the kernel's counters of the process.

use perf_agent_tests::agent::{Agent, trace_work};
use perf_agent_tests::traced::Traced;
use perf_agent_tests::{PATIENCE, alone};

/// Minor and major faults of a process so far, threads that have ended included.
fn kernel_counts(pid: u32) -> [u64; 2] {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name is in parentheses and may hold anything.
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let field = |i: usize| fields.split(' ').nth(i).unwrap().parse().unwrap();
    [field(7), field(9)]
}

#[test]
fn faults_are_counted_and_timed_as_the_kernel_counts_them() {
    let _alone = alone();
    let mut program = Traced::workload(&["faults", "--seconds", "2", "--hold"]);
    let pid = program.pid();
    let agent = Agent::start(["trace", "-p", &pid.to_string(), "--interval", "500ms"]);
    agent.attached();
    let before = kernel_counts(pid);
    program.go();
    program.done(PATIENCE);
    let after = kernel_counts(pid);
    agent.interrupt();
    let run = agent.finish(PATIENCE);
    run.ended_well("interrupt").lost_nothing();
    let said = |what: &str| run.sum("ledger", &format!("/faults/{what}"));
    let (minor, major) = (after[0] - before[0], after[1] - before[1]);
    assert!(major > 100, "the workload made {major} major faults");
    assert_eq!(
        (said("minor"), said("major")),
        (minor, major),
        "{}",
        run.text
    );
    let class = run.sum("ledger", "/process/classes/fault");
    assert_eq!(said("blocked_ns"), class, "{}", run.text);
    assert!(class > 100_000_000, "{class} ns in faults: {}", run.text);
}

/// The clock samples each CPU 99 times a second: of the some 200 samples that fall in faults here,
/// twice the standard deviation is 14 %; the program's own figure lacks what its clock calls and
/// cold caches take.
#[test]
fn cpu_time_in_faults_is_what_the_program_measured() {
    let _alone = alone();
    let mut program = Traced::workload(&["fresh-pages", "--seconds", "3", "--hold"]);
    let (run, done) = trace_work(&mut program, &["--syscalls", "off"]);
    run.lost_nothing();
    let truth = done["fault_cpu_ns"].as_u64().unwrap();
    let said = run.sum("ledger", "/faults/cpu_ns");
    let samples = run.sum("ledger", "/faults/cpu_samples");
    println!("{said} ns from {samples} samples, {truth} ns by the program");
    assert!(samples >= 30, "{samples} samples: {}", run.text);
    assert!(
        said.abs_diff(truth) < truth / 4,
        "{said} of {truth}: {done}"
    );
}
