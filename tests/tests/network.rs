//! What the network does to the target's connections, against what the kernel counts in a network
//! namespace of the target's own.

use perf_agent_tests::agent::{Agent, Run};
use perf_agent_tests::traced::Traced;
use perf_agent_tests::{PATIENCE, alone};
use serde_json::Value;

/// Traces the workload in one window; with what it says of itself.
fn trace(arguments: &[&str]) -> (Run, Value) {
    let mut program = Traced::workload(&[&["lossy-network"], arguments].concat());
    let pid = program.pid().to_string();
    let agent = Agent::start(["trace", "--interval", "100s", "-p", &pid]);
    agent.attached();
    program.go();
    let own = program.done(2 * PATIENCE);
    let run = agent.finish(PATIENCE);
    run.ended_well("target_exit").lost_nothing();
    (run, own)
}

fn connections(run: &Run) -> Vec<&Value> {
    let lines = run.of_type("connections");
    lines
        .flat_map(|line| line["connections"].as_array().into_iter().flatten())
        .collect()
}

/// What is found: for the client, which waits for it, first.
fn finding(run: &Run) -> &Value {
    let found = run
        .of_type("finding")
        .find(|f| f["category"] == "retransmits");
    found.unwrap_or_else(|| panic!("no finding: {}", run.text))
}

fn figure(finding: &Value, name: &str, field: &str) -> f64 {
    let figures = finding["evidence"].as_array().unwrap();
    let figure = figures.iter().find(|figure| figure["name"] == name);
    figure.unwrap_or_else(|| panic!("no {name} in {finding}"))[field]
        .as_f64()
        .unwrap()
}

#[test]
fn segments_sent_again_are_those_the_kernel_counts() {
    let _alone = alone();
    let (run, own) = trace(&[]);
    let sum: u64 = connections(&run)
        .iter()
        .map(|row| row["retransmits"].as_u64().unwrap())
        .sum();
    // Who listens is known in the target's own namespace: the connection was there before the trace.
    let mut roles: Vec<&Value> = connections(&run).iter().map(|row| &row["role"]).collect();
    roles.sort_by_key(|role| role.as_str());
    roles.dedup();
    assert_eq!(roles, ["client", "server"], "{}", run.text);
    // One in fifty of 600 and of those sent again.
    assert!(sum >= 12, "{own}");
    assert_eq!(own["retransmits"], sum, "{}", run.text);
    let finding = finding(&run);
    let told = figure(finding, "retransmits", "samples");
    assert!(
        told > 0.0 && told <= sum as f64,
        "{told} of {sum}: {finding}"
    );
}

#[test]
fn a_round_trip_that_became_long_is_the_kernels_own() {
    let _alone = alone();
    let (run, own) = trace(&["--connect", "slow"]);
    let connections = connections(&run);
    let client = connections.iter().find(|row| row["role"] == "client");
    let client = client.unwrap_or_else(|| panic!("{}", run.text));
    let us = |field: &str| client[field].as_u64().unwrap() / 1000;
    assert_eq!(own["least_us"], us("rtt_min_ns"), "{client}");
    assert_eq!(own["mean_us"], us("rtt_ns"), "{client}");
    let finding = finding(&run);
    let told = figure(finding, "round_trip", "value") as u64 / 1000;
    assert_eq!(told, us("rtt_ns"), "{finding}");
}
