//! Memory of a process, its growth, and who made it grow, against `/proc` and what the program did.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use perf_agent_tests::agent::{self, Agent, Run, trace_work};
use perf_agent_tests::traced::Traced;
use perf_agent_tests::workloads::memory::{KEPT, KEPT_BYTES, PASSING, PASSING_BYTES};
use perf_agent_tests::{PATIENCE, alone, servers};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// A size in `/proc/PID/status`, in bytes.
fn status(pid: u32, key: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix(key)).unwrap();
    let kilobytes = line.trim_matches([':', ' ', '\t', 'k', 'B']);
    kilobytes.parse::<u64>().unwrap() * 1024
}

fn bytes(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("no size: {value}"))
}

fn mentions(row: &Value, function: &str) -> bool {
    let frames = row["user_stack"].as_array().unwrap();
    let mut names = frames.iter().filter_map(|f| f["name"].as_str());
    names.any(|name| name.contains(function))
}

/// The kernel keeps up to 32 pages a CPU to itself before it counts them, and the thread of the workload
/// has a stack and an arena of its own: together less than 1 MiB.
#[test]
fn growth_is_what_the_process_grew_by_and_its_stacks_are_of_who_made_it_grow() {
    let _alone = alone();
    let mut program = Traced::workload(&["memory-grows", "--seconds", "4", "--hold"]);
    let pid = program.pid();
    let agent = Agent::start(["trace", "-p", &pid.to_string(), "--interval", "500ms"]);
    agent.attached();
    let before = status(pid, "VmRSS");
    program.go();
    let done = program.done(PATIENCE);
    let after = status(pid, "VmRSS");
    agent.interrupt();
    let run = agent.finish(PATIENCE);
    run.ended_well("interrupt").lost_nothing();
    let last = run.of_type("ledger").last().unwrap();
    let memory = &last["memory"];
    let kept = bytes(&done["allocated_bytes"]);
    assert!(kept > 40 * MIB, "{done}");
    let resident = bytes(&memory["resident_bytes"]);
    assert!(resident.abs_diff(after) < MIB, "{memory}, now {after}");
    let change = bytes(&memory["trend"]["change_bytes"]);
    assert!(
        change.abs_diff(after - before) < MIB,
        "{before} to {after}: {memory}"
    );
    let grown = run.sum("ledger", "/memory/grown_bytes");
    assert!(grown.abs_diff(kept) < MIB, "{grown} grown of {kept}");
    let growth = run.of_type("profile").last().unwrap()["growth"].clone();
    let rows = growth.as_array().unwrap();
    let all: u64 = rows.iter().map(|row| bytes(&row["total_bytes"])).sum();
    let keepers = rows.iter().filter(|row| mentions(row, "keep_session"));
    let by_keeper: u64 = keepers.map(|row| bytes(&row["total_bytes"])).sum();
    println!("{kept} kept, {grown} grown, {by_keeper} of {all} by the keeper");
    assert!(all.abs_diff(kept) < MIB, "{all} by stacks of {kept}");
    assert!(by_keeper * 10 >= all * 9, "{by_keeper} of {all}: {growth}");
}

/// What `growth.c` is seen to do in one of its ways, and what it says it took.
fn trace_growth(way: &str) -> (Run, Value) {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("growth");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/chain/growth.c");
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-fomit-frame-pointer", "-o"])
        .arg(&program)
        .arg(source);
    servers::to_end(gcc);
    let mut command = Command::new(&program);
    command.arg(way);
    let mut program = Traced::start(command, "growth");
    let (run, done) = trace_work(&mut program, &[]);
    run.lost_nothing();
    (run, done)
}

/// Demands that the first stack of the growth finding is of the function, that all growth is what the program
/// took to 2 MiB (the counter's steps, the stack and what else a process touches), and that of the function
/// within a twentieth of it.
fn grows_in(function: &str, way: &str) -> Value {
    let (run, done) = trace_growth(way);
    let taken = bytes(&done["taken_bytes"]);
    let grown = run.sum("ledger", "/memory/grown_bytes");
    let findings = run.of_type("finding");
    let found = findings.filter(|f| f["category"] == "memory_growth").last();
    let found = found.unwrap_or_else(|| panic!("no growth found in {}", run.text));
    let first = &found["growth"][0];
    assert!(mentions(first, function), "{found}");
    assert!(
        found["subject"].as_str().unwrap().contains(function),
        "{found}"
    );
    let last = run.of_type("profile").last().unwrap();
    let all = last["growth"].as_array().unwrap().iter();
    let of_it = all.filter(|row| mentions(row, function));
    let by_function: u64 = of_it.map(|row| bytes(&row["total_bytes"])).sum();
    println!("{way}: {taken} taken, {grown} grown, {by_function} by {function}");
    assert!(grown.abs_diff(taken) < 2 * MIB, "{grown} of {taken}");
    assert!(
        by_function.abs_diff(taken) < taken / 20,
        "{by_function} of {taken}"
    );
    done
}

#[test]
fn a_heap_that_grows_by_brk_is_told_by_who_allocates() {
    let _alone = alone();
    let done = grows_in("keep_small_records", "brk");
    let (taken, heap) = (bytes(&done["taken_bytes"]), bytes(&done["heap_bytes"]));
    assert!(heap.abs_diff(taken) < MIB, "it grew otherwise: {done}");
}

#[test]
fn memory_that_grows_by_mmap_is_told_by_who_allocates() {
    let _alone = alone();
    let done = grows_in("keep_large_buffer", "mmap");
    assert_eq!(done["heap_bytes"], 0, "it grew otherwise");
}

/// Nothing of it is there, and no page of the host is gone by it.
#[test]
fn memory_that_is_mapped_and_not_touched_is_no_growth() {
    let _alone = alone();
    let (run, done) = trace_growth("reserved");
    assert!(bytes(&done["taken_bytes"]) > 60 * MIB, "{done}");
    let grown = run.sum("ledger", "/memory/grown_bytes");
    assert!(grown < MIB, "{grown}");
    let mut findings = run.of_type("finding");
    assert!(!findings.any(|f| f["category"] == "memory_growth"));
}

/// Traces a workload from its beginning on.
fn trace(workload: &str) -> Run {
    let mut program = Traced::workload(&[workload, "--seconds", "60"]);
    program.go();
    let pid = program.pid().to_string();
    let run = agent::run(["trace", "-p", &pid, "--duration", "8s"], PATIENCE);
    run.ended_well("duration").lost_nothing();
    run
}

#[test]
fn steady_growth_is_found_before_the_memory_is_used_up() {
    let _alone = alone();
    let run = trace("memory-grows");
    let end = |f: &Value| f["window"]["end_ns"].as_u64();
    let last = run.of_type("finding").filter_map(end).max();
    let top = run.of_type("finding").find(|f| end(f) == last).unwrap();
    assert_eq!(top["category"], "memory_growth", "{top}");
    assert!(mentions(&top["growth"][0], "keep_session"), "{top}");
    assert!(
        top["subject"].as_str().unwrap().contains("keep_session"),
        "{top}"
    );
    assert_eq!(top["delegate_to"], "performance-engineer");
    let evidence = top["evidence"].as_array().unwrap();
    let figure = |name| {
        let found = evidence.iter().find(|e| e["name"] == name);
        found.unwrap()["value"].as_f64().unwrap()
    };
    let rate = figure("growth") / MIB as f64;
    assert!((15.0..17.0).contains(&rate), "{rate} MiB/s: {top}");
    let seconds = figure("left") / figure("growth");
    let told = top["exhausted_in_ns"].as_f64().unwrap() / 1e9;
    assert!((told / seconds - 1.0).abs() < 0.01, "{top}");
    let impact = if seconds < 3600.0 { "high" } else { "medium" };
    assert_eq!(top["impact"], impact, "{top}");
}

#[test]
fn a_cache_that_fills_and_is_then_replaced_is_no_growth() {
    let _alone = alone();
    let run = trace("memory-steady");
    let found = run
        .of_type("finding")
        .find(|f| f["category"] == "memory_growth");
    assert!(found.is_none(), "{found:?}");
    // It is replaced: the process allocates as much as the one that grows.
    let memory = &run.of_type("ledger").last().unwrap()["memory"];
    assert!(bytes(&memory["anon_bytes"]) > 60 * MIB, "{memory}");
}

/// Where the C library begins in a process.
fn libc_start(pid: u32) -> u64 {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let first = maps.lines().find(|line| line.contains("/libc.so.6"));
    let (start, _) = first.unwrap().split_once('-').unwrap();
    u64::from_str_radix(start, 16).unwrap()
}

/// Waits until `malloc` of a process begins with a breakpoint. The C library is the test's own.
fn malloc_is_probed(pid: u32) {
    const BREAKPOINT: u8 = 0xcc;
    let own = libc::malloc as *const () as u64 - libc_start(std::process::id());
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut first = [0];
    while first[0] != BREAKPOINT {
        assert!(Instant::now() < deadline, "malloc is not probed");
        std::thread::sleep(Duration::from_millis(5));
        memory
            .read_exact_at(&mut first, libc_start(pid) + own)
            .unwrap();
    }
}

/// Samples of one in 64 KiB: 1,024 of what is kept, give or take 31 (a standard deviation), and 3,072 of
/// what passes, give or take 44. Five of those are 15 % and 7 %.
#[test]
fn allocations_are_told_by_who_makes_them_and_whether_they_were_freed() {
    let _alone = alone();
    let mut program = Traced::workload(&["allocations", "--hold"]);
    let pid = program.pid();
    let profile = Command::new(agent::binary())
        .args(["profile", "--mode", "alloc", "--sample-bytes", "65536"])
        .args(["--duration", "6s"])
        .args(["--folded", "-", "-p", &pid.to_string()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    malloc_is_probed(pid);
    program.go();
    program.done(PATIENCE);
    // It is there until all is named: it may have done its work before the profile's first look.
    let output = profile.wait_with_output().unwrap();
    program.go();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let text = String::from_utf8(output.stdout).unwrap();
    let sum = |class: &str, function: &str| -> u64 {
        let lines = text.lines().filter(|line| {
            let mut parts = line.split(';').skip(1);
            parts.next() == Some(class) && parts.any(|part| part.contains(function))
        });
        lines
            .map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap())
            .sum()
    };
    let near = |estimate: u64, truth: usize, percent: u64| {
        let truth = truth as u64;
        println!("{estimate} of {truth}");
        estimate.abs_diff(truth) <= truth * percent / 100
    };
    let (kept, passed) = (
        sum("[live]", "leak_records"),
        sum("[freed]", "churn_buffers"),
    );
    assert!(near(kept, KEPT * KEPT_BYTES, 15), "{text}");
    assert!(near(passed, PASSING * PASSING_BYTES, 7), "{text}");
    assert_eq!(sum("[freed]", "leak_records"), 0, "{text}");
    assert_eq!(sum("[live]", "churn_buffers"), 0, "{text}");
    let all = sum("[live]", "") + sum("[freed]", "");
    // The program's start and the vector of what is kept.
    assert!(near(kept + passed, all as usize, 2), "{text}");
    assert!(
        errors.contains("malloc") && errors.contains(" a call)"),
        "{errors}"
    );
    assert!(errors.contains("lost 0"), "{errors}");
}
