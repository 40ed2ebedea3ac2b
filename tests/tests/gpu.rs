//! Programs that drive an accelerator, against what they measured themselves: the library is one of
//! ours, without a device, that exports the names of the real one.

use std::path::Path;
use std::process::Command;

use perf_agent_tests::agent::{Run, trace_work};
use perf_agent_tests::traced::Traced;
use perf_agent_tests::{alone, servers};
use serde_json::Value;

/// A library's file, and its functions that launch a kernel and wait for it.
struct Library {
    file: &'static str,
    launch: &'static str,
    wait: &'static str,
}

const CUDA: Library = Library {
    file: "libcuda.so.1",
    launch: "cuLaunchKernel",
    wait: "cuStreamSynchronize",
};

const HIP: Library = Library {
    file: "libamdhip64.so.6",
    launch: "hipLaunchKernel",
    wait: "hipStreamSynchronize",
};

/// Builds the library and the program that uses it.
fn build(directory: &Path, library: &Library) {
    let gcc = |source: &str, output: &str| {
        let mut gcc = Command::new("gcc");
        gcc.args(["-O2", "-pthread"]);
        // The sources have the names of CUDA.
        for (theirs, name) in [(CUDA.launch, library.launch), (CUDA.wait, library.wait)] {
            gcc.arg(format!("-D{theirs}={name}"));
        }
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/accelerator");
        gcc.arg(format!("{folder}/{source}"));
        gcc.arg("-o").arg(directory.join(output));
        gcc
    };
    let mut shared = gcc("cuda.c", library.file);
    shared.args(["-shared", "-fPIC"]);
    shared.arg(format!("-Wl,-soname,{}", library.file));
    servers::to_end(shared);
    let mut program = gcc("train.c", "train");
    program.arg(directory.join(library.file));
    program.arg("-Wl,-rpath,$ORIGIN");
    servers::to_end(program);
}

/// Traces the program for all of its work.
fn train(library: &Library, mode: &str) -> (Run, Value) {
    let directory = tempfile::tempdir().unwrap();
    build(directory.path(), library);
    let mut command = Command::new(directory.path().join("train"));
    command.args([mode, "4"]);
    let mut program = Traced::start(command, "train");
    let (run, done) = trace_work(&mut program, &[]);
    run.lost_nothing();
    (run, done)
}

/// Sum over the windows of a figure of the calls that wait.
fn waited(run: &Run, figure: &str) -> u64 {
    let profiles = run.of_type("profile");
    let calls = profiles.flat_map(|p| p["accelerator"].as_array().unwrap().clone());
    let waits = calls.filter(|c| c["waits"] == true);
    waits.map(|c| c[figure].as_u64().unwrap()).sum()
}

/// Findings of windows of full length, the first of each first.
fn findings(run: &Run) -> Vec<&Value> {
    let found = run.of_type("finding").filter(|f| {
        let end = |at: &str| f["window"][at].as_u64().unwrap();
        end("end_ns") - end("start_ns") > 900_000_000 && f["state"] != "resolved"
    });
    found.collect()
}

fn of_gpu<'a>(found: &[&'a Value]) -> Vec<&'a Value> {
    let mut found = found.to_vec();
    found.retain(|f| f["category"] == "gpu_wait");
    found
}

#[test]
fn a_wait_after_each_small_kernel_is_found_and_timed_as_the_program_timed_it() {
    let _alone = alone();
    for library in [&CUDA, &HIP] {
        waits_after_each_small_kernel(library);
    }
}

fn waits_after_each_small_kernel(library: &Library) {
    let (run, done) = train(library, "tiny");
    let truth = done["sync_ns"].as_u64().unwrap();
    // The program's own figure has its clock calls, and the run queue after each wake-up.
    let blocked = waited(&run, "blocked_ns") + waited(&run, "cpu_ns");
    let queued = run.sum("ledger", "/process/classes/runq");
    println!("{blocked} ns of {truth}, {queued} in the run queue: {done}");
    assert!(
        blocked < truth && blocked + queued > truth * 8 / 10,
        "{done}"
    );
    let kernels = done["kernels"].as_u64().unwrap();
    let blocks = waited(&run, "blocks");
    assert!(
        blocks.abs_diff(kernels) <= kernels / 50,
        "{blocks} of {kernels}"
    );
    let all = findings(&run);
    let found = of_gpu(&all);
    assert!(!found.is_empty(), "{}", run.text);
    for finding in &found {
        assert_eq!(finding["delegate_to"], "ml-orchestrator", "{finding}");
        assert_eq!(finding["area"], "ml_performance", "{finding}");
        assert!(
            finding["subject"].as_str().unwrap().contains("train_step"),
            "{finding}"
        );
        assert!(
            finding["recommendations"][0]
                .as_str()
                .unwrap()
                .contains(library.wait),
            "{finding}"
        );
    }
    assert_eq!(
        all.last().unwrap()["window"],
        found.last().unwrap()["window"]
    );
    let first_of_last = all
        .iter()
        .find(|f| f["window"] == all.last().unwrap()["window"]);
    assert_eq!(
        first_of_last.unwrap()["category"],
        "gpu_wait",
        "{first_of_last:?}"
    );
    assert_eq!(
        first_of_last.unwrap()["impact"],
        "high",
        "{first_of_last:?}"
    );
}

#[test]
fn a_loop_that_waits_for_its_loader_starves_the_accelerator() {
    let _alone = alone();
    let (run, done) = train(&CUDA, "starved");
    let found = findings(&run);
    let starved: Vec<_> = of_gpu(&found)
        .into_iter()
        .filter(|f| f["subject"].as_str().unwrap().starts_with("input"))
        .collect();
    assert!(starved.len() >= 3, "{done}: {}", run.text);
    let truth = done["input_ns"].as_f64().unwrap() / done["wall_ns"].as_f64().unwrap();
    for finding in &starved {
        assert!(
            finding["subject"].as_str().unwrap().contains("next_batch"),
            "{finding}"
        );
        let bound = finding["gain_bound_ns_per_s"].as_f64().unwrap() / 1e9;
        assert!(
            (bound - truth).abs() < 0.1,
            "{truth} of the time: {finding}"
        );
        assert_eq!(finding["impact"], "high", "{finding}");
    }
}

#[test]
fn batches_and_a_loader_that_keeps_up_give_nothing_above_low() {
    let _alone = alone();
    for mode in ["batched", "fed"] {
        let (run, done) = train(&CUDA, mode);
        for finding in of_gpu(&findings(&run)) {
            assert_eq!(finding["impact"], "low", "{mode}, {done}: {finding}");
        }
        // It does drive the accelerator.
        assert!(waited(&run, "blocked_ns") > 1_000_000_000, "{mode}, {done}");
    }
}
